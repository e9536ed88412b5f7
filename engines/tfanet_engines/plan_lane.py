"""Lanes: everything that one inference of a plan has for itself, and the pool that threads take them from.

Why not a context per thread: the threads of a server come and go and may be many, while a context holds GPU
memory until it is freed. A lane belongs to a thread for one call only, so memory is bounded by the number of
lanes, whatever the number of threads; a thread that finds none free waits. Two lanes are enough to copy the
pictures of one call while another computes.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfanet.signature import BATCH, Signature, TensorSpec
from tfanet_engines.gpu import enough_memory, out_of_memory

if TYPE_CHECKING:
    import torch

ALIGNMENT = 256
"""Bytes that the address of every tensor of an engine is a multiple of; tensors that are not are copied."""
_capturing = threading.Lock()
"""One capture at a time in the process: CUDA forbids much on other streams while one is recorded."""


@dataclass(frozen=True)
class OpenPlan:
    """A deserialised plan: what its lanes share."""

    name: str
    engine: Any
    """`ICudaEngine`."""
    new_context: Callable[[], Any]
    """An `IExecutionContext` without device memory of its own; None when there is no memory for it."""
    errors: list[str]
    """Of the library's logger."""
    device: torch.device
    signature: Signature
    largest: int
    """Of the profile's batches."""
    graphs: bool
    """Whether calls with arrays are captured as CUDA graphs."""

    @property
    def scratch_bytes(self) -> int:
        """Device memory that the library's contexts compute in; those of a lane share it."""
        return self.engine.device_memory_size_v2

    @property
    def buffer_bytes(self) -> int:
        """Inputs and outputs of the largest batch; the same again in pinned memory of the host."""
        specs = (*self.signature.inputs, *self.signature.outputs)
        return sum(math.prod(_sized(s, self.largest)) * np.dtype(s.dtype).itemsize for s in specs)

    @property
    def lane_bytes(self) -> int:
        """Device memory of a lane, besides what the library keeps for each context."""
        return self.scratch_bytes + self.buffer_bytes

    def require(self, done: bool) -> None:
        if not done:
            raise RuntimeError(f"{self.name} failed: {'; '.join(self.errors)}")


class Lane:
    """A stream, scratch memory and buffers, and for each batch size a context and a CUDA graph.

    A graph is recorded with the shapes and addresses that its context has, hence a context for each; the
    contexts run one after the other on the lane's stream, so that one scratch memory serves them all.
    """

    def __init__(self, plan: OpenPlan) -> None:
        import torch

        self._plan = plan
        self._contexts: dict[int | None, Any] = {}
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._without_graph = set() if plan.graphs else set(range(1, plan.largest + 1))
        specs = (*plan.signature.inputs, *plan.signature.outputs)
        with enough_memory(plan.name, plan.lane_bytes):
            self.stream = torch.cuda.Stream(plan.device)
            with torch.cuda.stream(self.stream):
                self._scratch = torch.empty(plan.scratch_bytes, dtype=torch.uint8, device=plan.device)
                self._buffers = {
                    s.name: torch.empty(
                        _sized(s, plan.largest), dtype=getattr(torch, s.dtype), device=plan.device
                    )
                    for s in specs
                }
            self._pinned = {
                s.name: torch.empty(
                    _sized(s, plan.largest),
                    dtype=getattr(torch, s.dtype),
                    pin_memory=plan.device.type == "cuda",
                )
                for s in specs
            }

    @property
    def graph_batches(self) -> list[int]:
        """The batch sizes that are replayed from a CUDA graph."""
        return sorted(self._graphs)

    def infer(self, images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Logits of arrays, by way of pinned memory and, from the second call of a size, a CUDA graph."""
        import torch

        count = len(images)
        output = self._plan.signature.mask_logits.name
        with torch.cuda.stream(self.stream):
            for spec, value in zip(self._plan.signature.inputs, (images, tokens), strict=True):
                host = self._pinned[spec.name][:count]
                host.numpy()[:] = value
                self._buffers[spec.name][:count].copy_(host, non_blocking=True)
            self._run(count)
            found = self._pinned[output][:count]
            found.copy_(self._buffers[output][:count], non_blocking=True)
        self.stream.synchronize()
        return found.numpy().copy()

    def look(self, images: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """The signature's extra outputs for arrays of one pair, by name."""
        self.infer(images, tokens)
        return {spec.name: self._buffers[spec.name].cpu().numpy() for spec in self._plan.signature.extra}

    def infer_tensors(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of tensors on the device, read where they lie, in order with the caller's stream."""
        import torch

        signature = self._plan.signature
        caller = torch.cuda.current_stream(self._plan.device)
        with enough_memory(self._plan.name, self._plan.lane_bytes):
            tensors = [t if t.data_ptr() % ALIGNMENT == 0 else t.clone() for t in (images, tokens)]
            shape = _sized(signature.mask_logits, len(images))
            tensors.append(torch.empty(shape, dtype=torch.float32, device=self._plan.device))
        context = self._context(None)
        specs = (*signature.inputs, signature.mask_logits)
        self._bind(context, {s.name: t for s, t in zip(specs, tensors, strict=True)})
        self.stream.wait_stream(caller)
        self._plan.require(context.execute_async_v3(self.stream.cuda_stream))
        caller.wait_stream(self.stream)
        for tensor in tensors:
            tensor.record_stream(self.stream)  # its memory is not given to others before this stream is done
        return tensors[-1]

    def close(self) -> None:
        """Wait for the stream, then free graphs, contexts and memory, in this order."""
        self.stream.synchronize()
        self._graphs.clear()
        self._contexts.clear()
        self._buffers.clear()
        self._pinned.clear()
        del self._scratch

    def _run(self, count: int) -> None:
        if graph := self._graphs.get(count):
            graph.replay()
            return
        context = self._context(count)
        self._bind(context, {name: buffer[:count] for name, buffer in self._buffers.items()})
        # Not only for the result: a context must have run with its shapes before it is captured.
        self._plan.require(context.execute_async_v3(self.stream.cuda_stream))
        if count not in self._without_graph:
            self._capture(context, count)

    def _capture(self, context: Any, count: int) -> None:
        """Record a call of `count` images; where the library cannot, a warning says so, once a lane."""
        import torch

        graph = torch.cuda.CUDAGraph()
        self.stream.synchronize()
        try:
            with _capturing:
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    done = context.execute_async_v3(self.stream.cuda_stream)
                finally:
                    graph.capture_end()
            self._plan.require(done)
        except RuntimeError as error:
            self._without_graph.add(count)
            warnings.warn(
                f"{self._plan.name}: calls of {count} images run without a CUDA graph: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
        else:
            self._graphs[count] = graph

    def _context(self, key: int | None) -> Any:
        """The context for a batch size, or (None) for tensors of the caller."""
        if key not in self._contexts:
            context = self._plan.new_context()
            if context is None:
                raise out_of_memory(self._plan.name, self._plan.lane_bytes)
            context.set_device_memory(self._scratch.data_ptr(), self._scratch.nbytes)
            self._contexts[key] = context
        return self._contexts[key]

    def _bind(self, context: Any, tensors: dict[str, torch.Tensor]) -> None:
        for spec in self._plan.signature.inputs:
            self._plan.require(context.set_input_shape(spec.name, tuple(tensors[spec.name].shape)))
        for name, tensor in tensors.items():
            self._plan.require(context.set_tensor_address(name, tensor.data_ptr()))


class LanePool:
    """At most `limit` lanes, made when they are first needed, each with one thread at a time."""

    def __init__(self, make: Callable[[], Lane], limit: int) -> None:
        self._make, self._limit = make, limit
        self._made = 0
        self._free: list[Lane] = []
        self._change = threading.Condition()
        self._closed = False

    @contextmanager
    def lane(self) -> Iterator[Lane]:
        """A lane that nobody else has; waits for one where all are taken."""
        lane = self._take()
        try:
            yield lane
        finally:
            with self._change:
                self._free.append(lane)
                self._change.notify_all()

    def _take(self) -> Lane:
        with self._change:
            self._change.wait_for(lambda: self._closed or self._free or self._made < self._limit)
            if self._closed:
                raise ValueError("the engine is closed")
            if self._free:
                return self._free.pop()  # the one used last: what it needs is at hand
            self._made += 1
        try:
            return self._make()
        except BaseException:
            with self._change:
                self._made -= 1
                self._change.notify_all()
            raise

    @contextmanager
    def all_lanes(self) -> Iterator[list[Lane]]:
        """Every lane that there may be, made now if it is not there yet."""
        taken: list[Lane] = []
        try:
            for _ in range(self._limit):
                taken.append(self._take())
            yield taken
        finally:
            with self._change:
                self._free += taken
                self._change.notify_all()

    def close(self) -> None:
        """Free every lane, once the calls under way are done."""
        with self._change:
            self._closed = True
            self._change.notify_all()
            self._change.wait_for(lambda: len(self._free) == self._made)
            while self._free:
                self._free.pop().close()
            self._made = 0


def _sized(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    return tuple(batch if n == BATCH else int(n) for n in spec.shape)
