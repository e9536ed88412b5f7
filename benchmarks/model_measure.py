"""The whole model in PyTorch and ONNX Runtime: inputs, the model without scans, profiles."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import onnx
import torch
from onnx_cpu import open_session
from torch import Tensor

from tfanet.model import TFANet
from tfanet_export.storage import save_onnx
from tfanet_plugins.operations import CROSS_SCAN, DOMAIN, OPSET, SCAN


class Line(NamedTuple):
    """One type of operator in a profile of one run."""

    operator: str
    calls: int
    seconds: float


def at_size(model: TFANet, size: int) -> TFANet:
    """The model for images of size x size, sharing its weights: none of its modules depends on the size."""
    resized = copy.copy(model)
    resized.config = dataclasses.replace(model.config, image_size=size)
    return resized


def torch_call(model: TFANet, feed: Mapping[str, np.ndarray]) -> Callable[[], np.ndarray]:
    """Runs the model on `feed` in PyTorch, eager."""
    tensors = [torch.from_numpy(value) for value in feed.values()]

    def call() -> np.ndarray:
        with torch.inference_mode():
            return model(*tensors).numpy()

    return call


# Without scans: only the skip connection y = sum of D_k x of each scan is left.


def _no_cross_scan(
    x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    return x.float() * D.unflatten(0, (-1, x.shape[-1])).sum(0)


def _no_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    return u.float() * D[:, None]


@contextmanager
def no_scans() -> Iterator[None]:
    """While the block runs, models in PyTorch compute only the skip connection of their scans."""
    with patch.multiple("tfanet.vmamba", cross_selective_scan=_no_cross_scan, selective_scan=_no_scan):
        yield


# The products with 0 keep the nodes that compute p and delta, since PyTorch computes these too.
_NO_SCANS = {
    f"{CROSS_SCAN} (x, p, dt_weight, A, D, delta_bias) => (y)": """
        axes = Constant <value_ints = [1, 2, 3]> ()
        from = Constant <value_ints = [0, 0, 0]> ()
        to = Constant <value_ints = [1, 1, 1]> ()
        first = Constant <value_ints = [0]> ()
        last = Constant <value_ints = [-1]> ()
        nought = Constant <value_float = 0.0> ()
        x_32 = Cast <to = 1> (x)
        D_32 = Cast <to = 1> (D)
        channels = Shape <start = 3, end = 4> (x)
        shape = Concat <axis = 0> (last, channels)
        D_grouped = Reshape (D_32, shape)
        D_sum = ReduceSum <keepdims = 0> (D_grouped, first)
        p_one = Slice (p, from, to, axes)
        p_32 = Cast <to = 1> (p_one)
        nothing = Mul (p_32, nought)
        weight = Add (D_sum, nothing)
        y = Mul (x_32, weight)
    """,
    f"{SCAN} (u, delta, A, B, C, D, delta_bias) => (y)": """
        from = Constant <value_ints = [0]> ()
        to = Constant <value_ints = [1]> ()
        last = Constant <value_ints = [-1]> ()
        nought = Constant <value_float = 0.0> ()
        u_32 = Cast <to = 1> (u)
        D_32 = Cast <to = 1> (D)
        D_column = Unsqueeze (D_32, last)
        delta_one = Slice (delta, from, to, last)
        delta_32 = Cast <to = 1> (delta_one)
        nothing = Mul (delta_32, nought)
        weight = Add (D_column, nothing)
        y = Mul (u_32, weight)
    """,
}


def write_without_scans(source: Path, to: Path) -> None:
    """Write the ONNX file `source` to `to` with the skip connection as the body of its scans."""
    proto = onnx.load(source)
    others = [function for function in proto.functions if function.name not in (SCAN, CROSS_SCAN)]
    del proto.functions[:]
    proto.functions.extend(others)
    for head, body in _NO_SCANS.items():
        text = f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>\n{head} {{{body}}}'
        proto.functions.append(onnx.parser.parse_function(text))
    save_onnx(proto, to)


# Profiles of one run each, after a warm-up.


def torch_profile(call: Callable[[], Any]) -> list[Line]:
    """PyTorch's operators by their own time, without the operators they call, longest first."""
    from torch.profiler import ProfilerActivity, profile

    call()
    with profile(activities=[ProfilerActivity.CPU]) as result:
        call()
    lines = [Line(e.key, e.count, e.self_cpu_time_total / 1e6) for e in result.key_averages()]
    return sorted(lines, key=lambda line: -line.seconds)


def onnx_profile(path: Path, threads: int, feed: Mapping[str, np.ndarray], folder: Path) -> list[Line]:
    """ONNX Runtime's operators by time, longest first; the time of a Scan includes the nodes inside it."""
    session = open_session(path, threads, folder / "profile", native=True)
    for _ in range(2):
        session.run(None, feed)
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return profile_lines(events)


def profile_lines(events: list[dict[str, Any]]) -> list[Line]:
    """The outermost nodes of the last run in ONNX Runtime's trace, by operator type, longest first."""
    started = max(event["ts"] for event in events if event["name"] == "model_run")
    nodes = [e for e in events if e["cat"] == "Node" and "op_name" in e["args"] and e["ts"] >= started]
    calls: dict[str, int] = defaultdict(int)
    microseconds: dict[str, float] = defaultdict(float)
    end = started
    for event in sorted(nodes, key=lambda event: (event["ts"], -event["dur"])):
        if event["ts"] + event["dur"] <= end:
            continue
        calls[event["args"]["op_name"]] += 1
        microseconds[event["args"]["op_name"]] += event["dur"]
        end = event["ts"] + event["dur"]
    lines = [Line(name, calls[name], spent / 1e6) for name, spent in microseconds.items()]
    return sorted(lines, key=lambda line: -line.seconds)
