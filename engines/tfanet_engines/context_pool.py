"""The execution context pool of a plan, and what one inference needs for itself.

The pool has a fixed size instead of a context per thread: a server has many short-lived threads, and a
context holds GPU memory until it is freed. A thread takes a context for one call and waits if all are in use.
With two contexts one call copies its images while another computes.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfanet.signature import BATCH, Signature, TensorSpec
from tfanet_engines.gpu import enough_memory, out_of_memory

if TYPE_CHECKING:
    import torch

ALIGNMENT = 256
"""Bytes. Every tensor address must be a multiple of it; tensors at other addresses are copied."""
_capturing = threading.Lock()
"""One capture at a time in the process: a capture restricts what other streams may do."""


@dataclass(frozen=True)
class OpenPlan:
    """A deserialised plan: what its inference contexts share."""

    name: str
    engine: Any
    """`ICudaEngine`."""
    new_context: Callable[[], Any]
    """Returns an `IExecutionContext` without device memory, or None if there is too little memory."""
    errors: list[str]
    """The error messages of the library's logger."""
    device: torch.device
    signature: Signature
    largest: int
    """Largest batch of the optimisation profile."""
    cuda_graphs: bool
    """Whether calls with NumPy arrays are captured as CUDA graphs."""

    @property
    def scratch_bytes(self) -> int:
        """Device memory for activations; the `IExecutionContext`s of one inference context share it."""
        return self.engine.device_memory_size_v2

    @property
    def buffer_bytes(self) -> int:
        """Device memory for inputs and outputs of the largest batch; as much pinned host memory is used."""
        specs = (*self.signature.inputs, *self.signature.outputs)
        return sum(math.prod(_sized(s, self.largest)) * np.dtype(s.dtype).itemsize for s in specs)

    @property
    def context_bytes(self) -> int:
        """Device memory of an inference context, without what the library keeps per `IExecutionContext`."""
        return self.scratch_bytes + self.buffer_bytes

    def require(self, success: bool) -> None:
        if not success:
            raise RuntimeError(f"{self.name} failed: {'; '.join(self.errors)}")


class InferenceContext:
    """A CUDA stream, scratch memory and I/O buffers; per batch size an `IExecutionContext` and a CUDA graph.

    A graph is captured with the shapes and addresses of its `IExecutionContext`, so each batch size has its
    own. They run one after the other on the stream, so one scratch memory serves them all.
    """

    def __init__(self, plan: OpenPlan) -> None:
        import torch

        self._plan = plan
        self._trt_contexts: dict[int | None, Any] = {}
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._without_graph = set() if plan.cuda_graphs else set(range(1, plan.largest + 1))

        def allocate(**options: Any) -> dict[str, torch.Tensor]:
            specs = (*plan.signature.inputs, *plan.signature.outputs)
            return {
                s.name: torch.empty(_sized(s, plan.largest), dtype=getattr(torch, s.dtype), **options)
                for s in specs
            }

        with enough_memory(plan.name, plan.context_bytes):
            self.stream = torch.cuda.Stream(plan.device)
            with torch.cuda.stream(self.stream):
                self._scratch = torch.empty(plan.scratch_bytes, dtype=torch.uint8, device=plan.device)
                self._buffers = allocate(device=plan.device)
            self._pinned = allocate(pin_memory=plan.device.type == "cuda")

    @property
    def graph_batches(self) -> list[int]:
        """The batch sizes that have a CUDA graph."""
        return sorted(self._graphs)

    def infer(self, images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Mask logits float32 `[B, S, S]` of NumPy arrays, copied through pinned memory.

        From the second call with a batch size a CUDA graph is replayed.
        """
        import torch

        count = len(images)
        output = self._plan.signature.mask_logits.name
        with torch.cuda.stream(self.stream):
            for spec, value in zip(self._plan.signature.inputs, (images, tokens), strict=True):
                host = self._pinned[spec.name][:count]
                host.numpy()[:] = value
                self._buffers[spec.name][:count].copy_(host, non_blocking=True)
            self._run(count)
            logits = self._pinned[output][:count]
            logits.copy_(self._buffers[output][:count], non_blocking=True)
        self.stream.synchronize()
        return logits.numpy().copy()

    def extra_outputs(self, images: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """The values of the signature's extra outputs, by name, for one image and expression."""
        self.infer(images, tokens)
        return {spec.name: self._buffers[spec.name].cpu().numpy() for spec in self._plan.signature.extra}

    def infer_tensors(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Mask logits float32 `[B, S, S]` of tensors on the device, without copies.

        The caller's current stream is synchronised with before and after.
        """
        import torch

        signature = self._plan.signature
        caller = torch.cuda.current_stream(self._plan.device)
        with enough_memory(self._plan.name, self._plan.context_bytes):
            tensors = [t if t.data_ptr() % ALIGNMENT == 0 else t.clone() for t in (images, tokens)]
            shape = _sized(signature.mask_logits, len(images))
            tensors.append(torch.empty(shape, dtype=torch.float32, device=self._plan.device))
        context = self._trt_context(None)
        specs = (*signature.inputs, signature.mask_logits)
        self._bind(context, {s.name: t for s, t in zip(specs, tensors, strict=True)})
        self.stream.wait_stream(caller)
        self._plan.require(context.execute_async_v3(self.stream.cuda_stream))
        caller.wait_stream(self.stream)
        for tensor in tensors:
            tensor.record_stream(self.stream)  # not reused before this stream is done
        return tensors[-1]

    def close(self) -> None:
        """Wait for the stream, then free graphs, contexts and memory in this order."""
        self.stream.synchronize()
        self._graphs.clear()
        self._trt_contexts.clear()
        self._buffers.clear()
        self._pinned.clear()
        del self._scratch

    def _run(self, count: int) -> None:
        if graph := self._graphs.get(count):
            graph.replay()
            return
        context = self._trt_context(count)
        self._bind(context, {name: buffer[:count] for name, buffer in self._buffers.items()})
        # TensorRT requires one run with these shapes before a capture, not only for the result.
        self._plan.require(context.execute_async_v3(self.stream.cuda_stream))
        if count not in self._without_graph:
            self._capture(context, count)

    def _capture(self, context: Any, count: int) -> None:
        """Capture a call of `count` images; if that fails, warn once and run such calls without a graph."""
        import torch

        graph = torch.cuda.CUDAGraph()
        self.stream.synchronize()
        try:
            with _capturing:
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    success = context.execute_async_v3(self.stream.cuda_stream)
                finally:
                    graph.capture_end()
            self._plan.require(success)
        except RuntimeError as error:
            self._without_graph.add(count)
            warnings.warn(
                f"{self._plan.name}: calls of {count} images run without a CUDA graph: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
        else:
            self._graphs[count] = graph

    def _trt_context(self, key: int | None) -> Any:
        """The `IExecutionContext` for a batch size, or for the caller's tensors if `key` is None."""
        if key not in self._trt_contexts:
            context = self._plan.new_context()
            if context is None:
                raise out_of_memory(self._plan.name, self._plan.context_bytes)
            context.set_device_memory(self._scratch.data_ptr(), self._scratch.nbytes)
            self._trt_contexts[key] = context
        return self._trt_contexts[key]

    def _bind(self, context: Any, tensors: dict[str, torch.Tensor]) -> None:
        for spec in self._plan.signature.inputs:
            self._plan.require(context.set_input_shape(spec.name, tuple(tensors[spec.name].shape)))
        for name, tensor in tensors.items():
            self._plan.require(context.set_tensor_address(name, tensor.data_ptr()))


class ContextPool:
    """At most `size` contexts, created on demand; each is used by one thread at a time."""

    def __init__(self, create: Callable[[], InferenceContext], size: int) -> None:
        self._create, self._size = create, size
        self._slots = threading.Semaphore(size)
        self._idle: deque[InferenceContext] = deque()
        self._taking_all = threading.Lock()
        """Held while all slots are acquired: two threads that each have some would wait for each other."""
        self._closed = False

    @contextmanager
    def context(self) -> Iterator[InferenceContext]:
        """A context for this thread alone; waits while all are in use. `ValueError` if the pool is closed."""
        with self._slots:
            if self._closed:
                raise ValueError("the engine is closed")
            try:
                idle = self._idle.pop()  # the one used last
            except IndexError:
                idle = None
            context = idle or self._create()
            try:
                yield context
            finally:
                self._idle.append(context)

    @contextmanager
    def all_contexts(self) -> Iterator[list[InferenceContext]]:
        """All `size` contexts, created if necessary."""
        with ExitStack() as stack:
            with self._taking_all:
                contexts = [stack.enter_context(self.context()) for _ in range(self._size)]
            yield contexts

    def close(self) -> None:
        """Wait for the calls in progress, then free every context. Waiting calls raise `ValueError`."""
        self._closed = True
        with self._taking_all, ExitStack() as stack:
            for _ in range(self._size):
                stack.enter_context(self._slots)
            while self._idle:
                self._idle.pop().close()


def _sized(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    return tuple(batch if n == BATCH else int(n) for n in spec.shape)
