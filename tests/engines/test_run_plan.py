"""Plans: refusals before one is opened; contexts, CUDA graphs and memory with a fake TensorRT-RTX."""

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
from fakes.tensorrt import FakeTensorRT, random_pairs
from small_engines import write_sidecar

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
def test_a_plan_for_another_machine_is_refused_with_its_rebuild_command(plan, small_config, fields, message):
    write_sidecar(plan, small_config, **fields)
    with pytest.raises(UserError, match=message + r".*tfanet-export trt --fp16"):
        open_engine(plan)


def test_a_plan_without_its_sidecar(plan):
    sidecar_path(plan).unlink()
    with pytest.raises(UserError, match=r"model\.plan\.json is missing"):
        open_engine(plan)


@pytest.mark.usefixtures("rtx4090")
def test_a_plan_that_the_runtime_rejects(plan):
    """With the real TensorRT-RTX: the file is not a plan, although its sidecar describes one."""
    with pytest.raises(UserError, match=r"tensorrt_rtx rejects .*tfanet-export trt"):
        open_engine(plan)


def test_the_logger_collects_errors_without_those_about_cuda():
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


def test_a_plan_of_a_library_that_is_not_installed(plan, small_config, monkeypatch):
    write_sidecar(plan, small_config, builder="tensorrt")
    monkeypatch.setattr(run_plan, "gpu_for", lambda file, sidecar: torch.device("cpu"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"plan of tensorrt: .*install"):
        open_engine(plan)


@pytest.fixture
def fake_trt(plan, small_config, monkeypatch):
    write_sidecar(plan, small_config, builder_version=trt.__version__)
    return FakeTensorRT(trt).install(monkeypatch)


def test_threads_get_their_own_results_from_a_few_contexts(plan, fake_trt, small_config):
    with open_engine(plan, contexts=3) as engine:

        def call(seed):
            images, tokens, expected = random_pairs(1 + seed % 8, small_config, seed)
            if seed % 3 == 0:  # the next call may not overwrite the result
                logits = engine.infer(torch.from_numpy(images), torch.from_numpy(tokens)).numpy()
            else:
                logits = engine.infer(images, tokens)
            np.testing.assert_allclose(logits, expected, rtol=1e-6)
            return threading.get_ident()

        with ThreadPoolExecutor(8) as threads:
            assert len(set(threads.map(call, range(160)))) == 8
        assert len(engine._pool._idle) == 3


def test_extra_outputs(plan, small_config, monkeypatch):
    names = ("text.norm/0", "stage1.kps/0")
    proof = {"further_outputs": [*names]}
    write_sidecar(plan, small_config, builder_version=trt.__version__, proof=proof)
    FakeTensorRT(trt, batches=(1, 1, 1), extra=names).install(monkeypatch)
    with pytest.raises(UserError, match="extra outputs for inspection"):
        open_engine(plan)
    extra = [TensorSpec(name, "float32", (BATCH, k)) for k, name in enumerate(names, 1)]
    images, tokens, expected = random_pairs(1, small_config, 0)
    with run_plan.PlanEngine(plan, contexts=1, cuda_graphs=False, extra=extra) as engine:
        values = engine.extra_outputs(images, tokens)
        assert {name: value.tolist() for name, value in values.items()} == {
            names[0]: [[1]],
            names[1]: [[2, 2]],
        }
        np.testing.assert_allclose(engine.infer(images, tokens), expected, rtol=1e-6)


def test_a_graph_is_captured_once_per_batch_size_and_then_replayed(plan, fake_trt, small_config):
    with open_engine(plan, contexts=1) as engine:
        for seed, count in enumerate([1, 3, 1, 3, 3, 1, 8]):
            images, tokens, expected = random_pairs(count, small_config, seed)
            np.testing.assert_allclose(engine.infer(images, tokens), expected, rtol=1e-6)
        assert (fake_trt.cuda.captures, fake_trt.cuda.replays) == (3, 4)
        with engine._pool.context() as context:
            assert context.graph_batches == [1, 3, 8]
    # Every batch size uses the same buffers: one address per tensor.
    assert len({tuple(run.values()) for run in fake_trt.runs}) == 1


def test_without_graphs_nothing_is_captured(plan, fake_trt, small_config):
    images, tokens, expected = random_pairs(2, small_config)
    with open_engine(plan, cuda_graphs=False) as engine:
        for _ in range(3):
            np.testing.assert_allclose(engine.infer(images, tokens), expected, rtol=1e-6)
    assert fake_trt.cuda.captures == 0
    assert len(fake_trt.runs) == 3


def test_a_failed_capture_warns_once(plan, fake_trt, small_config):
    fake_trt.capturable = False
    images, tokens, expected = random_pairs(2, small_config)
    with open_engine(plan, contexts=1) as engine:
        with pytest.warns(RuntimeWarning, match="2 images run without a CUDA graph"):
            engine.infer(images, tokens)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_allclose(engine.infer(images, tokens), expected, rtol=1e-6)
    assert fake_trt.cuda.replays == 0


def test_tensors_are_not_copied(plan, fake_trt, small_config):
    images, tokens, expected = (torch.from_numpy(x) for x in random_pairs(2, small_config))
    images, tokens = (aligned(x) for x in (images, tokens))
    with open_engine(plan) as engine:
        logits = engine.infer(images, tokens)
        (bound,) = fake_trt.runs
        assert bound == {
            "image": images.data_ptr(), "tokens": tokens.data_ptr(), "mask_logits": logits.data_ptr()
        }  # fmt: skip
        torch.testing.assert_close(logits, expected.float())
        with engine._pool.context() as context:
            assert fake_trt.cuda.current in context.stream.waited
            assert context.stream in fake_trt.cuda.current.waited
            assert {id(t) for t in context.stream.held} == {id(images), id(tokens), id(logits)}
        # A view at an unaligned address is copied.
        odd = engine.infer(images[1:], tokens[1:])
        torch.testing.assert_close(odd, expected[1:].float())
        assert fake_trt.runs[-1]["tokens"] != tokens[1:].data_ptr()


def aligned(tensor):
    """The values at an address that is a multiple of `ALIGNMENT`, as a GPU's allocator gives."""
    memory = torch.empty(tensor.nbytes + context_pool.ALIGNMENT, dtype=torch.uint8)
    start = -memory.data_ptr() % context_pool.ALIGNMENT
    return memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)


def test_warm_up_runs_every_context(plan, fake_trt, small_config):
    with open_engine(plan, contexts=3) as engine:
        assert engine.warm_up(2) > 0
        assert (fake_trt.cuda.captures, fake_trt.cuda.replays) == (3, 3)
        images, tokens, _ = random_pairs(2, small_config)
        engine.infer(images, tokens)
        assert (fake_trt.cuda.captures, fake_trt.cuda.replays) == (3, 4)
        with pytest.raises(UserError, match="takes 1 to 8 images"):
            engine.warm_up(9)


def test_contexts_are_freed_before_the_engine_and_the_runtime(plan, fake_trt, small_config):
    with open_engine(plan, contexts=2) as engine:
        engine.warm_up(1)
        engine.warm_up(3)
        images, tokens, _ = random_pairs(1, small_config)
        engine.infer(torch.from_numpy(images), torch.from_numpy(tokens))
        fake_trt.events.clear()
    gc.collect()
    assert fake_trt.events == ["context"] * 5 + ["engine", "runtime"]


def test_close_waits_for_calls_in_progress(plan, fake_trt, small_config):
    engine = open_engine(plan, contexts=1)
    images, tokens, expected = random_pairs(4, small_config)
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


def test_memory_of_a_context(plan, fake_trt, small_config):
    size, length = small_config.image_size, small_config.token_length
    with open_engine(plan) as engine:
        assert engine.batch == (1, 2, 8)
        assert engine.context_bytes == fake_trt.scratch + 8 * (size * size * 3 + 8 * length + 4 * size * size)


def test_out_of_memory_for_a_context_is_one_line(plan, fake_trt, small_config):
    fake_trt.free_contexts = 0
    images, tokens, _ = random_pairs(1, small_config)
    with open_engine(plan) as engine, pytest.raises(UserError, match=r"not enough GPU memory.*contexts=1"):
        engine.infer(images, tokens)


@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError("no"), RuntimeError("CUDA error: out of memory")]
)
def test_out_of_memory_for_buffers_is_one_line(plan, fake_trt, small_config, error, monkeypatch):
    images, tokens, expected = random_pairs(1, small_config)
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


def test_batches_outside_the_profile_are_refused(plan, fake_trt, small_config):
    images, tokens, _ = random_pairs(9, small_config)
    with open_engine(plan) as engine, pytest.raises(UserError, match="takes 1 to 8 images at once, not 9"):
        engine.infer(images, tokens)


def test_compiled_kernels_are_saved_for_the_next_start(plan, fake_trt, cache_folder):
    with open_engine(plan) as engine:
        engine.warm_up()
        (file,) = cache_folder.rglob("*.cache")
        assert file.read_bytes() == b"kernels"
        assert file.stat().st_mode & 0o777 == 0o600
    assert "cache accepted" not in fake_trt.events
    open_engine(plan).close()
    assert fake_trt.events.count("cache accepted") == 1


def test_kernels_of_another_driver_are_replaced(plan, fake_trt, cache_folder):
    open_engine(plan).close()
    (file,) = cache_folder.rglob("*.cache")
    file.write_bytes(b"of another driver")
    open_engine(plan).close()
    assert "cache rejected" in fake_trt.events
    assert file.read_bytes() == b"kernels"


def test_kernels_that_others_may_write_are_refused(plan, fake_trt, cache_folder):
    open_engine(plan).close()
    (file,) = cache_folder.rglob("*.cache")
    file.chmod(0o666)
    with pytest.raises(UserError, match="writable by others"):
        open_engine(plan)


def test_a_runtime_cache_that_cannot_be_written_is_a_warning(plan, fake_trt, cache_folder):
    cache_folder.write_text("a file in the folder's place")
    with pytest.warns(RuntimeWarning, match="compiled kernels were not saved"):
        open_engine(plan).close()


def test_cache_paths_differ_by_plan_version_and_gpu():
    keys = [
        ("a" * 64, "1.7", "RTX 4090"), ("b" * 64, "1.7", "RTX 4090"), ("a" * 64, "1.8", "RTX 4090"),
        ("a" * 64, "1.7", "RTX 4080/x"),
    ]  # fmt: skip
    names = {runtime_cache.cache_path(*key).name for key in keys}
    assert len(names) == 4
    assert not any("/" in name or " " in name for name in names)


def test_a_version_compatible_plan_runs_on_the_same_major_version(plan, fake_trt, small_config):
    major = trt.__version__.split(".")[0]
    write_sidecar(plan, small_config, builder_version=f"{major}.0.0.1", version_compatible=True)
    open_engine(plan).close()
    write_sidecar(plan, small_config, builder_version="99.0.0.1", version_compatible=True)
    with pytest.raises(UserError, match=r"built by tensorrt_rtx 99\.0"):
        open_engine(plan)


def test_lanes_is_a_deprecated_name_of_contexts(plan, fake_trt, small_config):
    with pytest.warns(DeprecationWarning, match="contexts="):
        engine = open_engine(plan, lanes=3)
    with engine:
        engine.warm_up()
        assert len(engine._pool._idle) == 3
        with pytest.warns(DeprecationWarning, match="context_bytes"):
            assert engine.lane_bytes == engine.context_bytes


def test_two_threads_that_take_all_contexts_take_turns(plan, fake_trt):
    engine, seconds = open_engine(plan, contexts=2), []
    create = engine._pool._create
    engine._pool._create = lambda: time.sleep(0.05) or create()  # time for each thread to take one
    # Daemons, and the engine is closed only at the end: a deadlock fails the test and does not hang it.
    threads = [
        threading.Thread(target=lambda: seconds.extend(engine.warm_up() for _ in range(4)), daemon=True)
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(seconds) == 8
    assert min(seconds) > 0
    assert len(engine._pool._idle) == 2
    engine.close()


def test_calls_that_wait_for_a_context_raise_when_the_engine_closes(plan, fake_trt, small_config):
    engine = open_engine(plan, contexts=1)
    images, tokens, _ = random_pairs(1, small_config)
    with ThreadPoolExecutor(2) as threads:
        with engine._pool.context():
            waiting = threads.submit(engine.infer, images, tokens)
            while not engine._pool._slots._cond._waiters:
                assert not waiting.done()
                time.sleep(0.001)
            closing = threads.submit(engine.close)
            while not engine._pool._closed:
                time.sleep(0.001)
        closing.result(5)
        with pytest.raises(ValueError, match="closed"):
            waiting.result(5)


def test_a_context_that_cannot_be_created_gives_its_slot_back(plan, fake_trt, small_config):
    images, tokens, expected = random_pairs(1, small_config)
    with open_engine(plan, contexts=1) as engine:
        create, engine._pool._create = engine._pool._create, lambda: raise_(UserError("too little memory"))
        with pytest.raises(UserError, match="too little memory"):
            engine.infer(images, tokens)
        engine._pool._create = create
        np.testing.assert_allclose(engine.infer(images, tokens), expected, rtol=1e-6)
