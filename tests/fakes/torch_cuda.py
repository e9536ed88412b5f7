"""CUDA streams and graphs of PyTorch, faked on the CPU: each thread has its current stream."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import torch


class FakeCuda:
    """One GPU, an RTX 4090, whose memory is the host's.

    What CUDA forbids fails here too: waiting for a stream during a capture, or a capture that restricts other
    threads.
    """

    def __init__(self):
        self.streams, self.captures, self.replays = {}, 0, 0
        self._local, self._lock = threading.local(), threading.Lock()

    def install(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA GeForce RTX 4090")
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream(self))
        monkeypatch.setattr(torch.cuda, "stream", self._use)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: self.current)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: FakeGraph(self))
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: stream.held.append(tensor))

    @property
    def current(self):
        if not hasattr(self._local, "stream"):
            self._local.stream = FakeStream(self)
        return self._local.stream

    @contextmanager
    def _use(self, stream):
        before, self._local.stream = self.current, stream
        try:
            yield
        finally:
            self._local.stream = before

    def add(self, stream):
        """A handle for a new stream."""
        with self._lock:
            self.streams[handle := len(self.streams) + 1] = stream
        return handle


class FakeStream:
    def __init__(self, cuda):
        self.graph, self.held, self.waited = None, [], []
        self.cuda_stream = cuda.add(self)

    def synchronize(self):
        assert self.graph is None, "a stream cannot be synchronised during a capture"

    def wait_stream(self, stream):
        self.waited.append(stream)


class FakeGraph:
    def __init__(self, cuda):
        self._cuda, self.work = cuda, []

    def capture_begin(self, pool=None, capture_error_mode="global"):
        assert capture_error_mode == "thread_local", "other threads' work would break the capture"
        self._cuda.current.graph = self

    def capture_end(self):
        self._cuda.current.graph = None
        self._cuda.captures += 1

    def replay(self):
        self._cuda.replays += 1
        for work in self.work:
            work()
