"""Plans: what is refused before one is opened, and contexts, graphs and memory on a played TensorRT-RTX."""

from __future__ import annotations

import dataclasses
import gc
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from played import Played, pairs_of, write_sidecar

from tfanet.errors import UserError
from tfanet.signature import BATCH, TensorSpec
from tfanet_engines import context_pool, gpu, open_engine, run_plan, runtime_cache, trt_api
from tfanet_engines.sidecar import Sidecar, sidecar_path

trt = pytest.importorskip("tensorrt_rtx")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def rtx4090(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA GeForce RTX 4090")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


def test_a_plan_without_a_gpu(plan, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"needs an NVIDIA GPU of compute capability 8\.9.* has none"):
        open_engine(plan)


BAD_PLANS = [
    pytest.param({"compute_capabilities": ["12.0"]}, r"capability 12\.0, .*4090 has 8\.9", id="other-gpu"),
    pytest.param({"builder_version": "1.5.0.1"}, r"built by tensorrt_rtx 1\.5\.0\.1, but 1\.7", id="version"),
    pytest.param({"builder": "openvino"}, "built by the unknown library 'openvino'", id="builder"),
    pytest.param({"kind": "onnx"}, "does not describe a plan", id="kind"),
    pytest.param({"file_sha256": "0" * 64}, "truncated or altered", id="altered"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_PLANS)
@pytest.mark.usefixtures("rtx4090")
def test_a_plan_that_does_not_fit_the_machine_names_the_rebuild(plan, small_config, fields, message):
    write_sidecar(plan, small_config, **fields)
    with pytest.raises(UserError, match=message + r".*tfanet-export trt --fp16"):
        open_engine(plan)


def test_a_plan_without_its_sidecar(plan):
    sidecar_path(plan).unlink()
    with pytest.raises(UserError, match=r"model\.plan\.json is missing"):
        open_engine(plan)


@pytest.mark.usefixtures("rtx4090")
def test_a_plan_that_the_runtime_refuses(plan):
    """TensorRT-RTX is real here: the file is no plan, whatever its sidecar says."""
    with pytest.raises(UserError, match=r"tensorrt_rtx rejects .*tfanet-export trt"):
        open_engine(plan)


def test_messages_of_the_runtime_are_kept_without_the_noise():
    logger = trt_api.make_logger(trt)
    logger.log(trt.ILogger.Severity.ERROR, "no kernel for this layer")
    logger.log(trt.ILogger.Severity.ERROR, "[checkMacros.cpp::catchCudaError::250] driver version")
    logger.log(trt.ILogger.Severity.WARNING, "slow")
    assert logger.errors == ["no kernel for this layer"]


def test_a_config_from_another_version_is_refused(plan):
    values = dataclasses.asdict(Sidecar.read(plan)) | {"config": {"image_size": 32}}
    Sidecar(**values).write(plan)
    with pytest.raises(UserError, match="does not fit this version"):
        open_engine(plan)


def test_a_plan_of_a_library_that_is_not_here(plan, small_config, monkeypatch):
    write_sidecar(plan, small_config, builder="tensorrt")
    monkeypatch.setattr(run_plan, "gpu_for", lambda file, sidecar: torch.device("cpu"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"plan of tensorrt: .*install"):
        open_engine(plan)


@pytest.fixture
def machine(plan, small_config, monkeypatch):
    write_sidecar(plan, small_config, builder_version=trt.__version__)
    return Played(trt).install(monkeypatch)


def test_threads_get_their_own_results_from_a_few_contexts(plan, machine, small_config):
    with open_engine(plan, contexts=3) as engine:

        def ask(seed):
            images, tokens, expected = pairs_of(1 + seed % 8, small_config, seed)
            if seed % 3 == 0:  # a tensor's result may not be overwritten by the next call
                found = engine.infer(torch.from_numpy(images), torch.from_numpy(tokens)).numpy()
            else:
                found = engine.infer(images, tokens)
            np.testing.assert_allclose(found, expected, rtol=1e-6)
            return threading.get_ident()

        with ThreadPoolExecutor(8) as threads:
            assert len(set(threads.map(ask, range(160)))) == 8
        assert len(engine._pool._idle) == 3


def test_extra_outputs_are_had_by_name_and_by_nobody_else(plan, small_config, monkeypatch):
    names = ("text.norm/0", "stage1.kps/0")
    proof = {"extra_outputs": [*names]}
    write_sidecar(plan, small_config, builder_version=trt.__version__, proof=proof)
    Played(trt, batches=(1, 1, 1), extra=names).install(monkeypatch)
    with pytest.raises(UserError, match="extra outputs for inspection"):
        open_engine(plan)
    extra = [TensorSpec(name, "float32", (BATCH, k)) for k, name in enumerate(names, 1)]
    images, tokens, expected = pairs_of(1, small_config, 0)
    with run_plan.PlanEngine(plan, contexts=1, cuda_graphs=False, extra=extra) as engine:
        found = engine.extra_outputs(images, tokens)
        assert {name: value.tolist() for name, value in found.items()} == {
            names[0]: [[1]],
            names[1]: [[2, 2]],
        }
        np.testing.assert_allclose(engine.infer(images, tokens), expected, rtol=1e-6)


def test_a_graph_is_captured_once_a_batch_size_and_then_replayed(plan, machine, small_config):
    with open_engine(plan, contexts=1) as engine:
        for seed, count in enumerate([1, 3, 1, 3, 3, 1, 8]):
            images, tokens, expected = pairs_of(count, small_config, seed)
            np.testing.assert_allclose(engine.infer(images, tokens), expected, rtol=1e-6)
        assert (machine.captures, machine.replays) == (3, 4)
        with engine._pool.context() as context:
            assert context.graph_batches == [1, 3, 8]
    # The buffers are the same whatever the batch: one address for each tensor.
    assert len({tuple(run.values()) for run in machine.runs}) == 1


def test_without_graphs_nothing_is_captured(plan, machine, small_config):
    images, tokens, expected = pairs_of(2, small_config)
    with open_engine(plan, cuda_graphs=False) as engine:
        for _ in range(3):
            np.testing.assert_allclose(engine.infer(images, tokens), expected, rtol=1e-6)
    assert machine.captures == 0
    assert len(machine.runs) == 3


def test_where_nothing_can_be_captured_a_warning_says_so_once(plan, machine, small_config):
    machine.capturable = False
    images, tokens, expected = pairs_of(2, small_config)
    with open_engine(plan, contexts=1) as engine:
        with pytest.warns(RuntimeWarning, match="2 images run without a CUDA graph"):
            engine.infer(images, tokens)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_allclose(engine.infer(images, tokens), expected, rtol=1e-6)
    assert machine.replays == 0


def test_tensors_are_read_and_written_where_they_lie(plan, machine, small_config):
    images, tokens, expected = (torch.from_numpy(x) for x in pairs_of(2, small_config))
    images, tokens = (aligned(x) for x in (images, tokens))
    with open_engine(plan) as engine:
        logits = engine.infer(images, tokens)
        (bound,) = machine.runs
        assert bound == {
            "image": images.data_ptr(), "tokens": tokens.data_ptr(), "mask_logits": logits.data_ptr()
        }  # fmt: skip
        torch.testing.assert_close(logits, expected.float())
        with engine._pool.context() as context:
            assert machine.current in context.stream.waited
            assert context.stream in machine.current.waited
            assert {id(t) for t in context.stream.held} == {id(images), id(tokens), id(logits)}
        # A view at an odd address is copied to one that kernels can read.
        odd = engine.infer(images[1:], tokens[1:])
        torch.testing.assert_close(odd, expected[1:].float())
        assert machine.runs[-1]["tokens"] != tokens[1:].data_ptr()


def aligned(tensor):
    """The values at an address that is a multiple of `ALIGNMENT`, as a GPU's allocator gives."""
    memory = torch.empty(tensor.nbytes + context_pool.ALIGNMENT, dtype=torch.uint8)
    start = -memory.data_ptr() % context_pool.ALIGNMENT
    return memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)


def test_warm_up_runs_every_context(plan, machine, small_config):
    with open_engine(plan, contexts=3) as engine:
        assert engine.warm_up(2) > 0
        assert (machine.captures, machine.replays) == (3, 3)
        images, tokens, _ = pairs_of(2, small_config)
        engine.infer(images, tokens)
        assert (machine.captures, machine.replays) == (3, 4)
        with pytest.raises(UserError, match="takes 1 to 8 images"):
            engine.warm_up(9)


def test_all_is_freed_contexts_before_the_engine_before_the_runtime(plan, machine, small_config):
    with open_engine(plan, contexts=2) as engine:
        engine.warm_up(1)
        engine.warm_up(3)
        images, tokens, _ = pairs_of(1, small_config)
        engine.infer(torch.from_numpy(images), torch.from_numpy(tokens))
        machine.events.clear()
    gc.collect()
    assert machine.events == ["context"] * 5 + ["engine", "runtime"]


def test_closing_waits_for_calls_under_way(plan, machine, small_config):
    engine = open_engine(plan, contexts=1)
    images, tokens, expected = pairs_of(4, small_config)
    taken, go = threading.Event(), threading.Event()

    def hold():
        with engine._pool.context() as context:
            taken.set()
            go.wait(5)
            return context.infer(images, tokens)

    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(hold)
        assert taken.wait(5)
        closing = threads.submit(engine.close)
        assert not closing.done()
        go.set()
        np.testing.assert_allclose(running.result(5), expected, rtol=1e-6)
        closing.result(5)
    with pytest.raises(ValueError, match="closed"):
        engine.infer(images, tokens)


def test_memory_of_a_context(plan, machine, small_config):
    size, length = small_config.image_size, small_config.token_length
    with open_engine(plan) as engine:
        assert engine.batch == (1, 2, 8)
        assert engine.context_bytes == machine.scratch + 8 * (size * size * 3 + 8 * length + 4 * size * size)


def test_a_context_without_memory_is_one_line(plan, machine, small_config):
    machine.free_contexts = 0
    images, tokens, _ = pairs_of(1, small_config)
    with open_engine(plan) as engine, pytest.raises(UserError, match=r"not enough GPU memory.*contexts=1"):
        engine.infer(images, tokens)


@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError("no"), RuntimeError("CUDA error: out of memory")]
)
def test_buffers_without_memory_are_one_line(plan, machine, small_config, error, monkeypatch):
    images, tokens, expected = pairs_of(1, small_config)
    with open_engine(plan) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty", lambda *shape, **options: raise_(error))
            with pytest.raises(UserError, match=r"not enough GPU memory to run .*a context needs 0 MiB"):
                engine.infer(images, tokens)
        np.testing.assert_allclose(engine.infer(images, tokens), expected, rtol=1e-6)
    with pytest.raises(RuntimeError, match="other"), gpu.enough_memory("it", 1):
        raise RuntimeError("other")


def raise_(error):
    raise error


def test_batches_outside_the_profile_are_refused(plan, machine, small_config):
    images, tokens, _ = pairs_of(9, small_config)
    with open_engine(plan) as engine, pytest.raises(UserError, match="takes 1 to 8 images at once, not 9"):
        engine.infer(images, tokens)


def test_compiled_kernels_are_kept_for_the_next_start(plan, machine, cache_folder):
    with open_engine(plan) as engine:
        engine.warm_up()
        (kept,) = cache_folder.rglob("*.cache")
        assert kept.read_bytes() == b"kernels"
        assert kept.stat().st_mode & 0o777 == 0o600
    assert "cache taken" not in machine.events
    open_engine(plan).close()
    assert machine.events.count("cache taken") == 1


def test_kernels_of_another_driver_are_made_anew(plan, machine, cache_folder):
    open_engine(plan).close()
    (kept,) = cache_folder.rglob("*.cache")
    kept.write_bytes(b"of another driver")
    open_engine(plan).close()
    assert "cache rejected" in machine.events
    assert kept.read_bytes() == b"kernels"


def test_kernels_that_others_may_write_are_refused(plan, machine, cache_folder):
    open_engine(plan).close()
    (kept,) = cache_folder.rglob("*.cache")
    kept.chmod(0o666)
    with pytest.raises(UserError, match="writable by others"):
        open_engine(plan)


def test_a_cache_that_cannot_be_written_is_a_warning(plan, machine, cache_folder):
    cache_folder.write_text("a file in the folder's place")
    with pytest.warns(RuntimeWarning, match="compiled kernels are not kept"):
        open_engine(plan).close()


def test_cache_names_differ_by_plan_version_and_gpu():
    keys = [
        ("a" * 64, "1.7", "RTX 4090"), ("b" * 64, "1.7", "RTX 4090"), ("a" * 64, "1.8", "RTX 4090"),
        ("a" * 64, "1.7", "RTX 4080/x"),
    ]  # fmt: skip
    names = {runtime_cache.cache_path(*key).name for key in keys}
    assert len(names) == 4
    assert not any("/" in name or " " in name for name in names)


def test_a_version_compatible_plan_runs_on_the_same_major_version(plan, machine, small_config):
    major = trt.__version__.split(".")[0]
    write_sidecar(plan, small_config, builder_version=f"{major}.0.0.1", version_compatible=True)
    open_engine(plan).close()
    write_sidecar(plan, small_config, builder_version="99.0.0.1", version_compatible=True)
    with pytest.raises(UserError, match=r"built by tensorrt_rtx 99\.0"):
        open_engine(plan)


def test_lanes_is_a_deprecated_name_of_contexts(plan, machine, small_config):
    with pytest.warns(DeprecationWarning, match="contexts="):
        engine = open_engine(plan, lanes=3)
    with engine:
        engine.warm_up()
        assert len(engine._pool._idle) == 3
        with pytest.warns(DeprecationWarning, match="context_bytes"):
            assert engine.lane_bytes == engine.context_bytes


def test_two_threads_that_take_all_contexts_take_turns(plan, machine):
    with open_engine(plan, contexts=2) as engine, ThreadPoolExecutor(2) as threads:
        assert all(seconds > 0 for seconds in threads.map(lambda _: engine.warm_up(), range(8)))
        assert len(engine._pool._idle) == 2


def test_calls_that_wait_for_a_context_raise_when_the_engine_closes(plan, machine, small_config):
    engine = open_engine(plan, contexts=1)
    images, tokens, _ = pairs_of(1, small_config)
    with ThreadPoolExecutor(2) as threads:
        with engine._pool.context():
            waiting = threads.submit(engine.infer, images, tokens)
            closing = threads.submit(engine.close)
            while not engine._pool._closed:
                time.sleep(0.001)
        closing.result(5)
        with pytest.raises(ValueError, match="closed"):
            waiting.result(5)


def test_a_context_that_cannot_be_created_gives_its_slot_back(plan, machine, small_config):
    images, tokens, expected = pairs_of(1, small_config)
    with open_engine(plan, contexts=1) as engine:
        create, engine._pool._create = engine._pool._create, lambda: raise_(UserError("too little memory"))
        with pytest.raises(UserError, match="too little memory"):
            engine.infer(images, tokens)
        engine._pool._create = create
        np.testing.assert_allclose(engine.infer(images, tokens), expected, rtol=1e-6)
