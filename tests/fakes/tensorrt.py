"""TensorRT or TensorRT-RTX on the CPU: a builder that records its calls, a runtime that computes.

Types, flags and loggers are those of the real bindings, and the fake classes have only their names and
parameters. What TensorRT forbids fails here too: running without memory, shapes or addresses, two contexts in
one scratch memory at a time, a capture of shapes that never ran.
"""

from __future__ import annotations

import ctypes
import json
import math
import threading
import time
import weakref
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from fakes.recorder import Recorder, like
from fakes.torch_cuda import FakeCuda

SECONDS = 0.002
"""Duration of an inference: long enough for threads to interfere with each other."""
PLAN = b"a plan"
LAYERS = {"Layers": [{"Name": "a", "Outputs": [{"Format/Datatype": "Half", "DataType": "FP16"}]}] * 3}
"""What the engine inspector returns."""


def expected_logits(images, tokens):
    """The mask logits of every fake plan: mean over RGB of the image + sum of the tokens."""
    return images.mean(-1) + tokens.sum(1)[:, None, None]


def random_pairs(count, config, seed=0):
    """Images uint8 [B, S, S, 3], tokens int64 [B, L] and their `expected_logits`."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, config.image_size, config.image_size, 3), np.uint8)
    tokens = rng.integers(0, 100, (count, config.token_length))
    return images, tokens, expected_logits(images, tokens)


class FakeTensorRT:
    """In place of the module `real`: `tensorrt_rtx`, or `tensorrt` over `fakes.bindings`.

    Args:
        batches: smallest, optimal and largest batch of the plan's profile.
        scratch: device memory of a context, bytes.
        free_contexts: how many contexts can be created before memory runs out.
        extra: names of extra outputs; output k is `[B, k]` of k.
        compiled: TensorRT-RTX's cache of compiled kernels.
        plugins: names of the parsed network's layers, all of them plugins.
        opens: whether `deserialize_cuda_engine` succeeds.
        timings: letters that a build adds to its timing cache, itself a set of letters.
        takes_timings: whether a config accepts a timing cache that is not empty.
    """

    def __init__(
        self, real, *, batches=(1, 2, 8), scratch=64, free_contexts=99, extra=(), compiled=b"kernels",
        plugins=(), opens=True, timings="", takes_timings=True,
    ):  # fmt: skip
        self._real, self.__name__, self.__version__ = real, real.__name__, real.__version__
        self.batches, self.scratch, self.free_contexts = batches, scratch, free_contexts
        self.extra, self.compiled, self.plugins, self.opens = extra, compiled, plugins, opens
        self.timings, self.takes_timings = timings, takes_timings
        self.cuda, self.capturable, self.lock = FakeCuda(), True, threading.Lock()
        self.log, self.events, self.runs, self.busy = [], [], [], set()
        """Builder calls; events of runtime, engine and contexts; addresses of each run; scratch in use."""
        self.Runtime = _rtx_runtime(self) if hasattr(real, "IRuntimeCache") else _runtime(self, _engine(self))

    def __getattr__(self, name):
        return getattr(self._real, name)

    def install(self, monkeypatch):
        """Use this library, and the fake GPU, wherever plans are built or opened."""
        from tfanet_engines import builder, run_plan

        for module in (builder, run_plan):
            monkeypatch.setattr(module, "load_backend", lambda name: (name, self))
        monkeypatch.setattr(run_plan, "gpu_for", lambda file, sidecar: torch.device("cpu"))
        self.cuda.install(monkeypatch)
        return self

    def freed(self, thing, name):
        """Add `name` to `events` when `thing` is freed."""
        weakref.finalize(thing, self.events.append, name)

    def OnnxParser(self, network, logger):
        return Recorder(self._real.OnnxParser, self.log, parse=True, parse_from_file=True)

    def Builder(self, logger):
        return Recorder(
            self._real.Builder, self.log, create_network=self._network(), create_builder_config=self.config(),
            create_optimization_profile=Recorder(self._real.IOptimizationProfile, self.log),
            build_serialized_network=PLAN,
        )  # fmt: skip

    def _network(self):
        """The parsed network: the deployed signature with images 32 x 32, and a plugin layer per name."""

        def tensor(name, dtype, shape):
            return SimpleNamespace(name=name, dtype=getattr(self.DataType, dtype), shape=shape)

        inputs = [tensor("image", "UINT8", (-1, 32, 32, 3)), tensor("tokens", "INT64", (-1, 5))]
        outputs = [tensor("mask_logits", "FLOAT", (-1, 32, 32))]
        layers = [
            SimpleNamespace(
                name=name, type=self.LayerType.PLUGIN_V3, num_outputs=1,
                get_output=lambda index: tensor("x", "HALF", (1,)),
            )
            for name in self.plugins
        ]  # fmt: skip
        return Recorder(
            self._real.INetworkDefinition, [], num_layers=len(layers), num_inputs=2, num_outputs=1,
            get_layer=layers.__getitem__, get_input=inputs.__getitem__, get_output=outputs.__getitem__,
        )  # fmt: skip

    def config(self):
        """An `IBuilderConfig`."""
        used = []

        def set_timing_cache(cache, ignore_mismatch):
            if cache._letters and not self.takes_timings:
                return False
            cache._letters |= set(self.timings)
            used.append(cache)
            return True

        return Recorder(
            self._real.IBuilderConfig, self.log, add_optimization_profile=0,
            create_timing_cache=partial(_timing_cache, self), set_timing_cache=set_timing_cache,
            get_timing_cache=lambda: used[-1],
        )  # fmt: skip


def _timing_cache(fake, blob):
    @like(fake.ITimingCache)
    class TimingCache:
        def __init__(self, blob):
            self._letters = set(blob.decode())

        def serialize(self):
            fake.log.append(["serialize"])
            return "".join(sorted(self._letters)).encode()

        def combine(self, input_cache, ignore_mismatch):
            self._letters |= input_cache._letters

    return TimingCache(blob)


def _runtime(fake, engine_class):
    @like(fake._real.Runtime)
    class Runtime:
        def __init__(self, logger):
            assert isinstance(logger, fake.ILogger)
            fake.freed(self, "runtime")

        def deserialize_cuda_engine(self, serialized_engine):
            fake.events.append("deserialised")
            return engine_class() if fake.opens else None

    return Runtime


def _engine(fake):
    strategies = fake.ExecutionContextAllocationStrategy

    @like(fake.ICudaEngine)
    class Engine:
        def __init__(self):
            fake.freed(self, "engine")

        device_memory_size_v2 = fake.scratch

        def create_execution_context(self, strategy):
            assert strategy == strategies.USER_MANAGED
            return self._new_context()

        def _new_context(self):
            with fake.lock:
                fake.free_contexts -= 1
            return _context(fake, self) if fake.free_contexts >= 0 else None

        def get_tensor_profile_shape(self, name, profile_index):
            assert (name, profile_index) == ("image", 0)
            return [(n, 32, 32, 3) for n in fake.batches]

        def create_engine_inspector(self):
            return Recorder(fake.EngineInspector, fake.log, get_engine_information=json.dumps(LAYERS))

    return Engine


def _rtx_runtime(fake):
    @like(fake.IRuntimeCache)
    class RuntimeCache:
        def deserialize(self, blob):
            accepted = bytes(blob) == fake.compiled
            fake.events.append(f"cache {'accepted' if accepted else 'rejected'}")
            return accepted

        def serialize(self):
            return fake.compiled

    @like(fake.IRuntimeConfig)
    class RuntimeConfig:
        def create_runtime_cache(self):
            return RuntimeCache()

        def set_runtime_cache(self, cache):
            self._cache = cache
            return True

        def set_execution_context_allocation_strategy(self, strategy):
            self._strategy = strategy

    @like(fake.ICudaEngine)
    class Engine(_engine(fake)):
        def create_runtime_config(self):
            return RuntimeConfig()

        def create_execution_context(self, runtime_config):
            strategies = fake.DynamicShapesKernelSpecializationStrategy
            assert runtime_config.dynamic_shapes_kernel_specialization_strategy == strategies.EAGER
            assert runtime_config._strategy == fake.ExecutionContextAllocationStrategy.USER_MANAGED
            return self._new_context()

    @like(fake._real.Runtime)
    class Runtime(_runtime(fake, Engine)):
        def get_engine_validity(self, buffer):
            fake.events.append("header checked")
            return fake.EngineValidity.VALID, 0

    return Runtime


def _context(fake, engine):
    # The class does not refer to the engine: classes live until the garbage collector runs.
    @like(fake.IExecutionContext)
    class Context:
        def __init__(self, engine):
            self._engine, self._shapes, self._addresses, self._ran, self._memory = engine, {}, {}, set(), None
            fake.freed(self, "context")

        def set_device_memory(self, memory, size):
            assert memory % 64 == 0
            assert size >= fake.scratch
            self._memory = memory

        def set_input_shape(self, name, shape):
            assert name in ("image", "tokens")
            self._shapes[name] = shape
            return fake.batches[0] <= shape[0] <= fake.batches[2]

        def set_tensor_address(self, name, memory):
            assert name in ("image", "tokens", "mask_logits", *fake.extra)
            self._addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle):
            assert self._memory is not None, "no device memory was set"
            assert {*self._shapes} == {"image", "tokens"}
            assert {*self._addresses} == {"image", "tokens", "mask_logits", *fake.extra}
            shapes, addresses = dict(self._shapes), dict(self._addresses)
            stream = fake.cuda.streams[stream_handle]
            if stream.graph is not None:
                assert shapes["image"] in self._ran, "captured before its shapes were run"
                stream.graph.work.append(lambda: _compute(fake, self._memory, shapes, addresses))
                return fake.capturable
            self._ran.add(shapes["image"])
            fake.runs.append(addresses)
            _compute(fake, self._memory, shapes, addresses)
            return True

    return Context(engine)


def _compute(fake, scratch, shapes, addresses):
    """Write `expected_logits` and the extra outputs at raw addresses, after `SECONDS`."""
    with fake.lock:
        assert scratch not in fake.busy, "two contexts compute in one scratch memory"
        fake.busy.add(scratch)

    def at(name, kind, shape):
        data = (kind * math.prod(shape)).from_address(addresses[name])
        return np.frombuffer(data, kind).reshape(shape)

    images = at("image", ctypes.c_uint8, shapes["image"])
    logits = expected_logits(images, at("tokens", ctypes.c_int64, shapes["tokens"]))
    time.sleep(SECONDS)
    at("mask_logits", ctypes.c_float, images.shape[:3])[:] = logits
    for number, name in enumerate(fake.extra, 1):
        at(name, ctypes.c_float, (len(images), number))[:] = number
    with fake.lock:
        fake.busy.remove(scratch)
