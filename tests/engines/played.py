"""TensorRT-RTX's or TensorRT's runtime and PyTorch's CUDA played on the CPU, no laxer than the real ones.

The played classes have only names that the real bindings have, their methods' parameters are those of the
real docstrings, and what TensorRT forbids fails here too: running without memory, shapes or addresses, two
contexts in one scratch memory at a time, a capture of shapes that were never run.
"""

from __future__ import annotations

import ctypes
import inspect
import math
import re
import threading
import time
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import torch

from tfanet.files import sha256
from tfanet_engines.sidecar import Sidecar

SECONDS = 0.002
"""Of one played inference: long enough for threads to get into each other's way."""


def plays(real):
    """A class decorator: the public methods must be the real class's, attributes set on it too."""

    def check(cls):
        for name, function in vars(cls).items():
            if name.startswith("_"):
                continue
            assert hasattr(real, name), f"{real.__name__} has no {name}"
            if not callable(function):
                continue
            doc = getattr(real, name).__doc__
            wanted = [*inspect.signature(function).parameters][1:]
            overloads = re.findall(rf"^(?:\d+\. )?{name}\(self: [^,)]+(.*)\) ->", doc, re.MULTILINE)
            known = [re.findall(r", (\w+): ", text) for text in overloads]
            assert wanted in known, f"{real.__name__}.{name} takes {known}, not {wanted}"

        def set_attribute(self, name, value):
            if not name.startswith("_") and not hasattr(real, name):
                raise AttributeError(f"{real.__name__} has no {name}")
            object.__setattr__(self, name, value)

        cls.__setattr__ = set_attribute
        return cls

    return check


RTX_NAMES = (
    "EngineValidity", "EngineInvalidityDiagnostics", "DynamicShapesKernelSpecializationStrategy",
    "CudaGraphStrategy", "IRuntimeCache",
)  # fmt: skip
"""What TensorRT lacks, or the runner asks TensorRT-RTX for alone."""


class Played:
    """A played machine with one GPU, whose memory is the host's; `real` are a library's bindings."""

    def __init__(self, real, batches=(1, 2, 8), free_contexts=99, scratch=64, stored=b"kernels", extra=()):
        self.real, self.batches, self.free_contexts = real, batches, free_contexts
        self.scratch, self.stored, self.extra = scratch, stored, extra
        self.streams, self.events, self.local = {}, [], threading.local()
        self.runs, self.busy, self.lock = [], set(), threading.Lock()
        self.captures = self.replays = 0
        self.capturable = True
        rtx = hasattr(real, "IRuntimeCache")
        self.module = SimpleNamespace(
            __name__=real.__name__,
            __version__=real.__version__,
            ILogger=real.ILogger,
            ExecutionContextAllocationStrategy=real.ExecutionContextAllocationStrategy,
            Runtime=self._rtx_runtime() if rtx else self._runtime(self._engine()),
            **{name: getattr(real, name) for name in RTX_NAMES if rtx},
        )

    def install(self, monkeypatch):
        from tfanet_engines import run_plan

        monkeypatch.setattr(run_plan, "load_backend", lambda name: (name, self.module))
        monkeypatch.setattr(run_plan, "gpu_for", lambda file, sidecar: torch.device("cpu"))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA GeForce RTX 4090")
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(self))
        monkeypatch.setattr(torch.cuda, "stream", self._use)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: self.current)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(self))
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: stream.held.append(tensor))
        return self

    @property
    def current(self):
        if not hasattr(self.local, "stream"):
            self.local.stream = Stream(self)
        return self.local.stream

    @contextmanager
    def _use(self, stream):
        before, self.local.stream = self.current, stream
        try:
            yield
        finally:
            self.local.stream = before

    def _freed(self, thing, name):
        weakref.finalize(thing, self.events.append, name)

    def _runtime(self, engine_class):
        machine, real = self, self.real

        @plays(real.Runtime)
        class Runtime:
            def __init__(self, logger):
                assert isinstance(logger, real.ILogger)
                machine._freed(self, "runtime")

            def deserialize_cuda_engine(self, serialized_engine):
                machine.events.append("deserialised")
                return engine_class()

        return Runtime

    def _engine(self):
        machine, real = self, self.real

        @plays(real.ICudaEngine)
        class Engine:
            def __init__(self):
                machine._freed(self, "engine")

            device_memory_size_v2 = machine.scratch

            def create_execution_context(self, strategy):
                assert strategy == real.ExecutionContextAllocationStrategy.USER_MANAGED
                return self._new_context()

            def _new_context(self):
                with machine.lock:
                    machine.free_contexts -= 1
                return _context(machine, self) if machine.free_contexts >= 0 else None

            def get_tensor_profile_shape(self, name, profile_index):
                assert (name, profile_index) == ("image", 0)
                return [(n, 32, 32, 3) for n in machine.batches]

        return Engine

    def _rtx_runtime(self):
        machine, real = self, self.real

        @plays(real.IRuntimeCache)
        class Cache:
            def __init__(self):
                self._blob = b""

            def deserialize(self, blob):
                accepted = bytes(blob) == machine.stored
                self._blob = machine.stored if accepted else b""
                machine.events.append(f"cache {'taken' if accepted else 'rejected'}")
                return accepted

            def serialize(self):
                return machine.stored

        @plays(real.IRuntimeConfig)
        class Config:
            def create_runtime_cache(self):
                return Cache()

            def set_runtime_cache(self, cache):
                self._cache = cache
                return True

            def set_execution_context_allocation_strategy(self, strategy):
                self._strategy = strategy

        @plays(real.ICudaEngine)
        class Engine(self._engine()):
            def create_runtime_config(self):
                return Config()

            def create_execution_context(self, runtime_config):
                strategies = real.DynamicShapesKernelSpecializationStrategy
                assert runtime_config.dynamic_shapes_kernel_specialization_strategy == strategies.EAGER
                assert runtime_config._strategy == real.ExecutionContextAllocationStrategy.USER_MANAGED
                return self._new_context()

        @plays(real.Runtime)
        class Runtime(self._runtime(Engine)):
            def get_engine_validity(self, buffer):
                machine.events.append("header read")
                return real.EngineValidity.VALID, 0

        return Runtime


def _context(machine, engine):
    # The class holds nothing of the engine: a class lives until the collector comes by.
    @plays(machine.real.IExecutionContext)
    class Context:
        def __init__(self, engine):
            self._engine, self._shapes, self._addresses, self._ran, self._memory = engine, {}, {}, set(), None
            machine._freed(self, "context")

        def set_device_memory(self, memory, size):
            assert memory % 64 == 0
            assert size >= machine.scratch
            self._memory = memory

        def set_input_shape(self, name, shape):
            assert name in ("image", "tokens")
            self._shapes[name] = shape
            return machine.batches[0] <= shape[0] <= machine.batches[2]

        def set_tensor_address(self, name, memory):
            assert name in ("image", "tokens", "mask_logits", *machine.extra)
            self._addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle):
            assert self._memory is not None, "no device memory was set"
            assert {*self._shapes} == {"image", "tokens"}
            assert {*self._addresses} == {"image", "tokens", "mask_logits", *machine.extra}
            shapes, addresses = dict(self._shapes), dict(self._addresses)
            stream = machine.streams[stream_handle]
            if stream.graph is not None:
                assert shapes["image"] in self._ran, "captured before its shapes were run"
                stream.graph.work.append(lambda: run(machine, self._memory, shapes, addresses))
                return machine.capturable
            self._ran.add(shapes["image"])
            machine.runs.append(addresses)
            run(machine, self._memory, shapes, addresses)
            return True

    return Context(engine)


def run(machine, scratch, shapes, addresses):
    """mask_logits = mean over RGB of the image + sum of the tokens, at raw addresses, after a while; further
    output k is `[B, k]` of k."""
    with machine.lock:
        assert scratch not in machine.busy, "two contexts compute in one scratch memory"
        machine.busy.add(scratch)

    def at(name, kind, shape):
        data = (kind * math.prod(shape)).from_address(addresses[name])
        return np.frombuffer(data, kind).reshape(shape)

    images = at("image", ctypes.c_uint8, shapes["image"])
    tokens = at("tokens", ctypes.c_int64, shapes["tokens"])
    logits = images.mean(-1) + tokens.sum(1)[:, None, None]
    time.sleep(SECONDS)
    at("mask_logits", ctypes.c_float, images.shape[:3])[:] = logits
    for number, name in enumerate(machine.extra, 1):
        at(name, ctypes.c_float, (len(images), number))[:] = number
    with machine.lock:
        machine.busy.remove(scratch)


class Stream:
    def __init__(self, machine):
        self.graph, self.held, self.waited = None, [], []
        with machine.lock:
            self.cuda_stream = len(machine.streams) + 1
            machine.streams[self.cuda_stream] = self

    def synchronize(self):
        assert self.graph is None, "a stream that is captured cannot be waited for"

    def wait_stream(self, stream):
        self.waited.append(stream)


class Graph:
    def __init__(self, machine):
        self.machine, self.work = machine, []

    def capture_begin(self, pool=None, capture_error_mode="global"):
        assert capture_error_mode == "thread_local", "other threads' work would break the capture"
        self.machine.current.graph = self

    def capture_end(self):
        self.machine.current.graph = None
        self.machine.captures += 1

    def replay(self):
        self.machine.replays += 1
        for work in self.work:
            work()


def write_sidecar(path, config, **fields):
    values = {
        "kind": "plan", "weights_sha256": None, "precision": "fp16", "proof": {}, "builder": "tensorrt_rtx",
        "builder_version": "1.7.1.116", "compute_capabilities": ["8.9"], "onnx_sha256": "cd" * 32,
        "file_sha256": sha256(path), "rebuild": "tfanet-export trt --fp16", "cost": {"seconds": 1.0},
    }  # fmt: skip
    Sidecar.of(config, **(values | fields)).write(path)


def pairs_of(count, config, seed=0):
    """Inputs of `count` pairs and the logits of the played network."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, config.image_size, config.image_size, 3), np.uint8)
    tokens = rng.integers(0, 100, (count, config.token_length))
    return images, tokens, images.mean(-1) + tokens.sum(1)[:, None, None]
