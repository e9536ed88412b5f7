"""Ways to compute the scans that do not ship, in PyTorch and as ONNX functions: the rivals of `scan_cpu.py`.

Signatures, shapes and meaning are those of `tfanet.ops.selective_scan` and `tfanet.ops.cross_selective_scan`;
all tensors are FP32 here. In comments and docstrings b is the batch, K the groups, D the channels of a group,
N the states, and L tokens lie in R rows of P positions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from scan_measure import SHIPS
from torch import Tensor

from tfanet.ops import cross_selective_scan, selective_scan
from tfanet.ops.cross_selective_scan import DIRECTIONS, cross_merge, cross_scan, cross_selective_scan_loop
from tfanet.ops.cross_selective_scan import _forward as cross_selective_scan_vectorised
from tfanet.ops.selective_scan import selective_scan_loop
from tfanet_export.functions import function_protos
from tfanet_export.scan_bodies import CONSTANTS, from_rows, in_rows, padding, softplus
from tfanet_plugins.operations import CROSS_SCAN, DOMAIN, DOMAIN_VERSION, OPSET, SCAN

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

LOOP, ROWS, POSITIONS = "token by token", "doubling in rows", "row positions"
COPIES, COPIES_ROWS, NO_COMPILER = "copies, shipped scan", "copies, doubling in rows", "ships, no compiler"

# PyTorch, channels first.


def doubling(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    """Hillis and Steele (1986): log2 L passes over all tokens, each joining a token to the one 2^i before."""
    decay, x = _recurrence(*_grouped(u, delta, A, B, bias))
    _double_(decay, x)
    return _output(x, u, C, D)


def doubling_in_rows(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor
) -> Tensor:
    """The same inside rows of sqrt L tokens, then over the rows' ends: half the passes over all tokens."""
    decay, x = (_in_rows(t) for t in _recurrence(*_grouped(u, delta, A, B, bias)))
    _double_(decay, x)
    end_decay, end = decay[..., -1].clone(), x[..., -1].clone()
    _double_(end_decay, end)
    x[..., 1:, :].addcmul_(decay[..., 1:, :], end[..., :-1, None])
    return _output(x.flatten(-2)[..., : u.shape[2]], u, C, D)


def row_positions(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor
) -> Tensor:
    """Steps over the positions of all rows at once, over the rows, and over the positions again."""
    *tokens, rates = _grouped(u, delta, A, B, bias)
    step, inputs, weights = (_in_rows(t).movedim(-1, 0).contiguous() for t in tokens)  # [P, b, K, ., ., R]
    decay, x = _recurrence(step, inputs, weights, rates)
    end = torch.zeros_like(x[0])
    for a, value in zip(decay, x, strict=True):
        end = torch.addcmul(value, a, end)
    row_decay, enter = decay.prod(0), torch.zeros_like(end)
    for row in range(1, end.shape[-1]):
        enter[..., row] = torch.addcmul(end[..., row - 1], row_decay[..., row - 1], enter[..., row - 1])
    for a, value in zip(decay, x, strict=True):
        enter = value.addcmul_(a, enter)
    return _output(x.movedim(0, -1).flatten(-2)[..., : u.shape[2]], u, C, D)


def _grouped(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """step, u [b, K, D, 1, L], B [b, K, 1, N, L], A [K, D, N, 1]."""
    groups = B.shape[1]
    step = F.softplus(delta + bias[:, None])
    step, u = (t.unflatten(1, (groups, -1)).unsqueeze(3) for t in (step, u))
    return step, u, B.unsqueeze(2), A.unflatten(0, (groups, -1)).unsqueeze(3)


def _recurrence(step: Tensor, u: Tensor, B: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """decay and x of h_t = decay_t h_(t-1) + x_t, in whatever layout the operands have."""
    return torch.exp(step * A), step * u * B


def _output(h: Tensor, u: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """y [b, K*D, L] from h [b, K, D, N, L]."""
    return torch.addcmul((h * C.unsqueeze(2)).sum(3).flatten(1, 2), u, D[:, None])


def _in_rows(x: Tensor) -> Tensor:
    """[..., L] -> [..., R, P] with P = sqrt L rounded up; the padding comes after all tokens and is 0."""
    length = x.shape[-1]
    row = math.isqrt(length - 1) + 1
    return F.pad(x, (0, -length % row)).unflatten(-1, (-1, row))


def _double_(decay: Tensor, x: Tensor) -> None:
    """x becomes the states and decay the products of decays, along the last axis."""
    shift = 1
    while shift < x.shape[-1]:
        x[..., shift:] += decay[..., shift:] * x[..., :-shift]
        decay[..., shift:] *= decay[..., :-shift].clone()
        shift *= 2


def copies(scan: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The 2-D scan from a 1-D one: four traversals of the map laid out in memory, `scan`, their sum."""

    def cross(x: Tensor, p: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, bias: Tensor) -> Tensor:
        states, rank = A.shape[1], dt_weight.shape[1]
        traversed = cross_scan(p).unflatten(2, (DIRECTIONS, -1))
        own = torch.stack([traversed[:, k, k] for k in range(DIRECTIONS)], dim=1)
        dt, B, C = own.split([rank, states, states], dim=2)
        delta = dt_weight.unflatten(0, (DIRECTIONS, -1)) @ dt
        y = scan(cross_scan(x).flatten(1, 2), delta.flatten(1, 2), A, B, C, D, bias)
        return cross_merge(y.unflatten(1, (DIRECTIONS, -1)), x.shape[1], x.shape[2])

    return cross


TORCH: dict[tuple[str, str], Callable[..., Tensor]] = {
    (SCAN, LOOP): selective_scan_loop,
    (SCAN, "doubling over all tokens"): doubling,
    (SCAN, ROWS): doubling_in_rows,
    (SCAN, POSITIONS): row_positions,
    (SCAN, SHIPS): selective_scan,
    (CROSS_SCAN, LOOP): cross_selective_scan_loop,
    (CROSS_SCAN, COPIES_ROWS): copies(doubling_in_rows),
    (CROSS_SCAN, COPIES): copies(selective_scan),
    (CROSS_SCAN, NO_COMPILER): cross_selective_scan_vectorised,
    (CROSS_SCAN, SHIPS): cross_selective_scan,
}
"""Functions by operation and formulation."""

# ONNX Runtime. Scan bodies declare ranks only, as in `tfanet_export.scan_bodies`.

_HEAD = f"""
    {CONSTANTS}
    batch = Shape <start = 0, end = 1> (u)
    length = Shape <start = 2, end = 3> (u)
    groups = Shape <start = 1, end = 2> (B)
    states = Shape <start = 2, end = 3> (B)
    """
_TOKEN_STATE = "float[?, ?, ?, ?]"
_ROW_STATE = "float[?, ?, ?, ?, ?]"


def _token_major(x: str, shape: str) -> str:
    return f"""
    {x}_grouped = Reshape ({x}, {shape})
    {x}_t = Transpose <perm = [4, 0, 1, 3, 2]> ({x}_grouped)
    """


_TOKENS = f"""
    {_HEAD}
    wide_shape = Concat <axis = 0> (batch, groups, last, one, length)
    states_shape = Concat <axis = 0> (batch, groups, one, states, length)
    {_token_major("u", "wide_shape")}
    {_token_major("delta", "wide_shape")}
    {_token_major("B", "states_shape")}
    {_token_major("C", "states_shape")}
    A_shape = Concat <axis = 0> (groups, last, states)
    A_grouped = Reshape (A, A_shape)
    A_turned = Transpose <perm = [0, 2, 1]> (A_grouped)
    channel_shape = Concat <axis = 0> (groups, one, last)
    bias = Reshape (delta_bias, channel_shape)
    s_raw = Add (delta_t, bias)
    {softplus("s")}
    log_decay = Mul (s_softplus, A_turned)
    decay = Exp (log_decay)
    step_u = Mul (s_softplus, u_t)
    input = Mul (step_u, B_t)
    input_first = Gather <axis = 0> (input, first)
    state_shape = Shape (input_first)
    nothing = ConstantOfShape (state_shape)
    h_last, hc = Scan <num_scan_inputs = 3, body = tokens (
        {_TOKEN_STATE} h, {_TOKEN_STATE} decay_now, {_TOKEN_STATE} input_now, {_TOKEN_STATE} C_now
    ) => ({_TOKEN_STATE} h_next, {_TOKEN_STATE} hc_now) {{
        kept = Mul (decay_now, h)
        h_next = Add (kept, input_now)
        hc_now = Mul (h_next, C_now)
    }}> (nothing, decay, input, C_t)
    mixed = ReduceSum <keepdims = 1> (hc, three)
    D_grouped = Reshape (D, channel_shape)
    skip = Mul (u_t, D_grouped)
    y_t = Add (mixed, skip)
    y_grouped = Transpose <perm = [1, 2, 4, 3, 0]> (y_t)
    u_shape = Shape (u)
    y = Reshape (y_grouped, u_shape)
    """
"""One Scan over the L tokens, everything else before and after it."""


def _position_major(x: str, shape: str) -> str:
    return f"""
    {in_rows(x, shape)}
    {x}_p = Transpose <perm = [5, 0, 1, 2, 3, 4]> ({x}_rows)
    """


_POSITIONS = f"""
    {_HEAD}
    length_f = Cast <to = 1> (length)
    root = Sqrt (length_f)
    root_up = Ceil (root)
    row = Cast <to = 7> (root_up)
    {padding("row")}
    wide_shape = Concat <axis = 0> (batch, groups, last, one, rows, row)
    states_shape = Concat <axis = 0> (batch, groups, one, states, rows, row)
    {_position_major("u", "wide_shape")}
    {_position_major("delta", "wide_shape")}
    {_position_major("B", "states_shape")}
    {_position_major("C", "states_shape")}
    A_shape = Concat <axis = 0> (groups, last, states, one)
    A_rows = Reshape (A, A_shape)
    channel_shape = Concat <axis = 0> (groups, last, one, one)
    bias = Reshape (delta_bias, channel_shape)
    D_rows = Reshape (D, channel_shape)
    u_first = Gather <axis = 0> (u_p, first)
    B_first = Gather <axis = 0> (B_p, first)
    like_state = Mul (u_first, B_first)
    state_shape = Shape (like_state)
    no_state = ConstantOfShape (state_shape)
    u_first_shape = Shape (u_first)
    no_step = ConstantOfShape (u_first_shape)
    carry_shape = Slice (state_shape, zero, four)
    no_carry = ConstantOfShape (carry_shape)

    end, step_sum, step = Scan <num_scan_inputs = 3, body = inside_rows (
        {_ROW_STATE} h, {_ROW_STATE} sum, {_ROW_STATE} delta_now, {_ROW_STATE} u_now, {_ROW_STATE} B_now
    ) => ({_ROW_STATE} h_next, {_ROW_STATE} sum_next, {_ROW_STATE} step_now) {{
        s_raw = Add (delta_now, bias)
        {softplus("s")}
        step_now = Identity (s_softplus)
        log_decay = Mul (s_softplus, A_rows)
        decay = Exp (log_decay)
        step_u = Mul (s_softplus, u_now)
        input = Mul (step_u, B_now)
        sum_next = Add (sum, s_softplus)
        kept = Mul (decay, h)
        h_next = Add (kept, input)
    }}> (no_state, no_step, delta_p, u_p, B_p)
    row_log_decay = Mul (step_sum, A_rows)
    row_decay = Exp (row_log_decay)
    last_carry, enter = Scan <
        num_scan_inputs = 2, scan_input_axes = [4, 4], scan_output_axes = [4],
        body = over_rows ({_TOKEN_STATE} c, {_TOKEN_STATE} decay_r, {_TOKEN_STATE} end_r)
            => ({_TOKEN_STATE} c_next, {_TOKEN_STATE} c_before) {{
            c_before = Identity (c)
            c_kept = Mul (decay_r, c)
            c_next = Add (c_kept, end_r)
        }}
    > (no_carry, row_decay, end)
    last_state, y_p = Scan <num_scan_inputs = 4, body = again (
        {_ROW_STATE} g, {_ROW_STATE} step_q, {_ROW_STATE} u_q, {_ROW_STATE} B_q, {_ROW_STATE} C_q
    ) => ({_ROW_STATE} g_next, {_ROW_STATE} y_q) {{
        log_decay_q = Mul (step_q, A_rows)
        decay_q = Exp (log_decay_q)
        step_u_q = Mul (step_q, u_q)
        input_q = Mul (step_u_q, B_q)
        g_kept = Mul (decay_q, g)
        g_next = Add (g_kept, input_q)
        weighted = Mul (g_next, C_q)
        mixed = ReduceSum <keepdims = 1> (weighted, three)
        skip = Mul (u_q, D_rows)
        y_q = Add (mixed, skip)
    }}> (enter, step, u_p, B_p, C_p)
    y_rows = Transpose <perm = [1, 2, 3, 4, 5, 0]> (y_p)
    {from_rows()}
    """
"""Scans over the positions of rows of sqrt L tokens, channels first, rows innermost."""


def _scan_function(body: str) -> onnx.FunctionProto:
    from onnx import parser

    head = f"{SCAN} (u, delta, A, B, C, D, delta_bias) => (y)"
    opsets = f'["": {OPSET}, "{DOMAIN}": {DOMAIN_VERSION}]'
    return parser.parse_function(f'<domain: "{DOMAIN}", opset_import: {opsets}>\n{head} {{{body}}}')


def onnx_formulations(*, states: int, length: int) -> dict[tuple[str, str], list[onnx.FunctionProto]]:
    """What a model of one node needs, by operation and formulation, for up to `length` tokens."""
    cpu, gpu = (
        {function.name: function for function in function_protos(target, states=states, longest=length)}
        for target in ("cpu", "gpu")
    )
    return {
        (SCAN, LOOP): [_scan_function(_TOKENS)],
        (SCAN, ROWS): [gpu[SCAN]],
        (SCAN, POSITIONS): [_scan_function(_POSITIONS)],
        (SCAN, SHIPS): [cpu[SCAN]],
        (CROSS_SCAN, COPIES_ROWS): [gpu[CROSS_SCAN], gpu[SCAN]],
        (CROSS_SCAN, COPIES): [gpu[CROSS_SCAN], cpu[SCAN]],
        (CROSS_SCAN, NO_COMPILER): [cpu[CROSS_SCAN]],
        (CROSS_SCAN, SHIPS): [cpu[CROSS_SCAN]],
    }
