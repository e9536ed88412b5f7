"""The meaning of the domain `tfanet`, written in standard ONNX ops: schemas and local functions.

    SelectiveScan(u, delta, A, B, C, D, delta_bias) -> y         tfanet.ops.selective_scan
    LinearCrossAttention(q, k, v, gamma) -> out                  tfanet.ops.linear_cross_attention

The modules named on the right have the tables of shapes and the equations. In an ONNX file each operation
stays one node; the function of the same name, stored in the same file, is what a runtime without a plugin
runs. T, the type of the activations, is float16 or float32; A, D, delta_bias and gamma may have either type
whatever T is. All arithmetic is float32. SelectiveScan's output is float32 too, for trained states pass the
range of float16; LinearCrossAttention's has the type of q.

SelectiveScan has a body for each kind of runtime; the graph around it is the same. Both lay the L tokens out
in R rows of P positions, find the state at the end of every row, carry it over the rows, and add it to the
tokens of the next. Neither unrolls tokens nor divides by a product of decays, which underflows.

- `cpu` (ONNX Runtime): P = min(128, ceil(sqrt(L))), and ONNX Scan steps over the P positions of all rows at
  once. No limit on L.
- `gpu` (TensorRT-RTX): P = 128, and doubling steps (Hillis and Steele, 1986) inside rows and over rows; a
  Scan would be one launch a step. L is at most `MAX_GPU_LENGTH`; beyond, shapes clash and runtimes refuse.

Shapes inside the bodies have no symbolic names on purpose: ONNX Runtime takes equal names in two uses of one
function for equal sizes and shares buffers between them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import onnx

DOMAIN = "tfanet"
DOMAIN_VERSION = 1
OPSET = 20
"""The standard opset that the bodies are written in."""

MAX_ROW = 128
"""P's upper limit: the most steps that a Scan over positions takes."""
DOUBLINGS = 7
"""Doubling steps that cover MAX_ROW positions."""
MAX_GPU_LENGTH = MAX_ROW * MAX_ROW
"""The longest sequence of the `gpu` body; 14,400 is the longest of a 480 x 480 image."""

Target = Literal["cpu", "gpu"]

_SCAN_DOC = "Selective scan over the last axis with grouped B and C, softplus inside, state in float32."
_ATTENTION_DOC = "Linear cross-attention XNorm(Q) XNorm(K^T V), channels first, sums in float32."


def function_protos(target: Target) -> list[onnx.FunctionProto]:
    """Both functions, with the scan's body for `target`; append them to `ModelProto.functions`.

    Raises `ValueError` for an unknown target.
    """
    if target not in get_args(Target):
        raise ValueError(f"target must be one of {', '.join(get_args(Target))}, not {target!r}")
    scan = _CPU_SCAN if target == "cpu" else _gpu_scan()
    return [
        _function("SelectiveScan (u, delta, A, B, C, D, delta_bias) => (y)", scan, _SCAN_DOC),
        _function("LinearCrossAttention (q, k, v, gamma) => (out)", _attention(), _ATTENTION_DOC),
    ]


def op_schemas() -> list[onnx.defs.OpSchema]:
    """Schemas of both operations, for `onnx.checker`, onnxscript and the PyTorch exporter."""
    schemas = (
        ("SelectiveScan", _SCAN_DOC, ("u", "delta", "A:W", "B", "C", "D:W", "delta_bias:W"), "y:wide"),
        ("LinearCrossAttention", _ATTENTION_DOC, ("q", "k", "v", "gamma:W"), "out"),
    )
    return [_schema(*schema) for schema in schemas]


def register_schemas() -> None:
    """Make the schemas known to this process's `onnx`; does nothing the second time."""
    import onnx

    for schema in op_schemas():
        if not onnx.defs.has(schema.name, domain=DOMAIN):
            onnx.defs.register_schema(schema)


def _schema(name: str, doc: str, inputs: tuple[str, ...], output: str) -> onnx.defs.OpSchema:
    from onnx.defs import OpSchema

    floats, wide = ["tensor(float16)", "tensor(float)"], ["tensor(float)"]
    result, _, result_kind = output.partition(":")
    split = [item.partition(":") for item in inputs]
    return OpSchema(
        name,
        DOMAIN,
        DOMAIN_VERSION,
        doc,
        inputs=[OpSchema.FormalParameter(n, kind or "T", is_homogeneous=kind != "W") for n, _, kind in split],
        outputs=[OpSchema.FormalParameter(result, result_kind or "T")],
        type_constraints=[
            ("T", floats, "the activations' type"),
            ("W", floats, "a parameter's type"),
            *([("wide", wide, "the result's type")] if result_kind else []),
        ],
    )


def _function(head: str, body: str, doc: str) -> onnx.FunctionProto:
    from onnx import parser

    function = parser.parse_function(f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>\n{head} {{{body}}}')
    function.doc_string = doc
    return function


def _attention() -> str:
    from tfanet.ops.linear_cross_attention import EPS

    return f"""
    eps = Constant <value_float = {EPS}> ()
    embedding_of_q = Constant <value_ints = [-2]> ()
    embedding_of_v = Constant <value_ints = [-1]> ()
    head_axes = Constant <value_ints = [1, 2]> ()
    q32 = Cast <to = 1> (q)
    k32 = Cast <to = 1> (k)
    v32 = Cast <to = 1> (v)
    gamma32 = Cast <to = 1> (gamma)
    scale = Unsqueeze (gamma32, head_axes)

    vT = Transpose <perm = [0, 1, 3, 2]> (v32)
    kv = MatMul (k32, vT)
    {_xnorm("kv", "embedding_of_v")}
    {_xnorm("q32", "embedding_of_q")}
    kvT = Transpose <perm = [0, 1, 3, 2]> (kv_xnorm)
    out32 = MatMul (kvT, q32_xnorm)
    out = CastLike (out32, q)
    """


def _xnorm(x: str, axes: str) -> str:
    """`{x}_xnorm` = scale x / sqrt(sum of x^2 over `axes` + eps)."""
    return f"""
    {x}_square = Mul ({x}, {x})
    {x}_sum = ReduceSum <keepdims = 1> ({x}_square, {axes})
    {x}_sum_eps = Add ({x}_sum, eps)
    {x}_norm = Sqrt ({x}_sum_eps)
    {x}_unit = Div ({x}, {x}_norm)
    {x}_xnorm = Mul ({x}_unit, scale)
    """


def _rows(row: str, ones: str) -> str:
    """What both scan bodies begin with: float32 operands in rows.

    u_rows, delta_rows [batch, K, D, 1, R, P]; B_rows, C_rows [batch, K, 1, N, R, P]; A_rows [K, D, N, 1...],
    D_rows, bias_rows [K, D, 1, 1...]. `row` computes P, as `row`, from `length`; `ones` are the trailing 1s.
    What the last row is padded with does not matter: nothing comes after it.
    """
    operands = "".join(
        f"""
    {x}32 = Cast <to = 1> ({x})
    {x}_padded = Pad ({x}32, tail, , last)
    {x}_rows = Reshape ({x}_padded, {shape})"""
        for x, shape in (("u", "u_shape"), ("delta", "u_shape"), ("B", "B_shape"), ("C", "B_shape"))
    )
    parameters = "".join(
        f"""
    {x}32 = Cast <to = 1> ({source})
    {x}_rows = Reshape ({x}32, {x}_shape)"""
        for x, source in (("A", "A"), ("D", "D"), ("bias", "delta_bias"))
    )
    return f"""
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    last = Constant <value_ints = [-1]> ()
    most = Constant <value_ints = [{MAX_ROW}]> ()
    state_axis = Constant <value_ints = [3]> ()
    one_f = Constant <value_float = 1.0> ()
    batch = Shape <start = 0, end = 1> (u)
    length = Shape <start = 2, end = 3> (u)
    groups = Shape <start = 1, end = 2> (B)
    states = Shape <start = 2, end = 3> (B)
    {row}
    length_less_one = Sub (length, one)
    full_rows = Div (length_less_one, row)
    rows = Add (full_rows, one)
    padded_length = Mul (rows, row)
    padding = Sub (padded_length, length)
    tail = Concat <axis = 0> (zero, padding)

    u_shape = Concat <axis = 0> (batch, groups, last, one, rows, row)
    B_shape = Concat <axis = 0> (batch, groups, one, states, rows, row)
    A_shape = Concat <axis = 0> (groups, last, states, {ones})
    D_shape = Concat <axis = 0> (groups, last, one, {ones})
    bias_shape = Identity (D_shape)
    {operands}
    {parameters}
    """


def _recurrence(delta: str, u: str, B: str) -> str:
    """decay = exp(dt A) and x = dt u B with dt = softplus(delta + delta_bias).

    The softplus is the one of `tfanet.ops.selective_scan`: no overflow, and exact where 1 + exp rounds to 1.
    """
    return f"""
    raw = Add ({delta}, bias_rows)
    magnitude = Abs (raw)
    minus = Neg (magnitude)
    small = Exp (minus)
    small_one = Add (small, one_f)
    small_again = Sub (small_one, one_f)
    lost = Sub (small, small_again)
    lost_share = Div (lost, small_one)
    log_rounded = Log (small_one)
    correction = Add (log_rounded, lost_share)
    positive = Relu (raw)
    dt = Add (positive, correction)
    {_decay_and_input("dt", u, B)}
    """


def _decay_and_input(dt: str, u: str, B: str, tag: str = "") -> str:
    return f"""
    log_decay{tag} = Mul ({dt}, A_rows)
    decay{tag} = Exp (log_decay{tag})
    dt_u{tag} = Mul ({dt}, {u})
    x{tag} = Mul (dt_u{tag}, {B})
    """


def _output(h: str, C: str, u: str, y: str) -> str:
    """`y` = sum over N of C h + D u."""
    return f"""
    weighted = Mul ({h}, {C})
    mixed = ReduceSum <keepdims = 1> (weighted, state_axis)
    skip = Mul ({u}, D_rows)
    {y} = Add (mixed, skip)
    """


_RETURN = """
    y_shape = Concat <axis = 0> (batch, last, padded_length)
    y_padded = Reshape (y_rows, y_shape)
    y = Slice (y_padded, zero, length, last)
    """

_STATE = "float[?, ?, ?, ?, ?]"
_CARRY = "float[?, ?, ?, ?]"

_CPU_ROW = """
    length_f = Cast <to = 1> (length)
    root_f = Sqrt (length_f)
    root_up = Ceil (root_f)
    root = Cast <to = 7> (root_up)
    row = Min (root, most)
    """

_CPU_SCAN = f"""
    {_rows(_CPU_ROW, "one")}
    us = Transpose <perm = [5, 0, 1, 2, 3, 4]> (u_rows)
    deltas = Transpose <perm = [5, 0, 1, 2, 3, 4]> (delta_rows)
    Bs = Transpose <perm = [5, 0, 1, 2, 3, 4]> (B_rows)
    Cs = Transpose <perm = [5, 0, 1, 2, 3, 4]> (C_rows)
    channels = Shape <start = 3, end = 4> (us)
    dt_shape = Concat <axis = 0> (batch, groups, channels, one, rows)
    carry_shape = Concat <axis = 0> (batch, groups, channels, states)
    state_shape = Concat <axis = 0> (carry_shape, rows)
    no_dt = ConstantOfShape (dt_shape)
    no_state = ConstantOfShape (state_shape)
    no_carry = ConstantOfShape (carry_shape)

    row_end, row_dt, dts = Scan <num_scan_inputs = 3, body = inside_rows (
        {_STATE} h, {_STATE} dt_sum, {_STATE} delta_p, {_STATE} u_p, {_STATE} B_p
    ) => ({_STATE} h_next, {_STATE} dt_sum_next, {_STATE} dt) {{
        {_recurrence("delta_p", "u_p", "B_p")}
        dt_sum_next = Add (dt_sum, dt)
        kept = Mul (decay, h)
        h_next = Add (kept, x)
    }}> (no_state, no_dt, deltas, us, Bs)

    log_row_decay = Mul (row_dt, A_rows)
    row_decay = Exp (log_row_decay)
    carry_end, enter = Scan <
        num_scan_inputs = 2, scan_input_axes = [4, 4], scan_output_axes = [4],
        body = over_rows (
            {_CARRY} c, {_CARRY} decay_r, {_CARRY} end_r
        ) => ({_CARRY} c_next, {_CARRY} c_before) {{
            c_before = Identity (c)
            c_kept = Mul (decay_r, c)
            c_next = Add (c_kept, end_r)
        }}
    > (no_carry, row_decay, row_end)

    last_state, ys = Scan <num_scan_inputs = 4, body = again_inside_rows (
        {_STATE} g, {_STATE} dt_q, {_STATE} u_q, {_STATE} B_q, {_STATE} C_q
    ) => ({_STATE} g_next, {_STATE} y_q) {{
        {_decay_and_input("dt_q", "u_q", "B_q", "_q")}
        g_kept = Mul (decay_q, g)
        g_next = Add (g_kept, x_q)
        {_output("g_next", "C_q", "u_q", "y_q")}
    }}> (enter, dts, us, Bs, Cs)
    y_rows = Transpose <perm = [1, 2, 3, 4, 5, 0]> (ys)
    {_RETURN}
    """


def _gpu_scan() -> str:
    return f"""
    {_rows("row = Identity (most)", "one, one")}
    {_recurrence("delta_rows", "u_rows", "B_rows")}
    {_doubling("decay", "x", "inside")}

    row_last = Constant <value_ints = [{MAX_ROW - 1}]> ()
    end_decay_p = Slice (decay_inside, row_last, most, last)
    end_x_p = Slice (x_inside, row_last, most, last)
    end_decay_r = Squeeze (end_decay_p, last)
    end_x_r = Squeeze (end_x_p, last)
    missing_rows = Sub (most, rows)
    row_tail = Concat <axis = 0> (zero, missing_rows)
    end_decay = Pad (end_decay_r, row_tail, one_f, last)
    end_x = Pad (end_x_r, row_tail, , last)
    {_doubling("end_decay", "end_x", "over")}

    next_row = Constant <value_ints = [1, -1]> ()
    entering = Pad (end_x_over, next_row, , last)
    entering_r = Slice (entering, zero, rows, last)
    enter = Unsqueeze (entering_r, last)
    carried = Mul (decay_inside, enter)
    h = Add (x_inside, carried)
    {_output("h", "C_rows", "u_rows", "y_rows")}
    {_RETURN}
    """


def _doubling(decay: str, x: str, tag: str) -> str:
    """`{x}_{tag}` = states, `{decay}_{tag}` = products of decays, along a last axis of MAX_ROW entries.

    Step i combines every entry with the one 2^i before it; Pad with one negative end is a shift.
    """
    names = [(decay, x), *((f"{tag}_decay{i}", f"{tag}_x{i}") for i in range(1, DOUBLINGS))]
    names.append((f"{decay}_{tag}", f"{x}_{tag}"))
    return "".join(
        f"""
    {tag}_shift{i} = Constant <value_ints = [{2**i}, {-(2**i)}]> ()
    {tag}_decay_before{i} = Pad ({a}, {tag}_shift{i}, one_f, last)
    {tag}_x_before{i} = Pad ({b}, {tag}_shift{i}, , last)
    {tag}_x_kept{i} = Mul ({a}, {tag}_x_before{i})
    {b_next} = Add ({b}, {tag}_x_kept{i})
    {a_next} = Mul ({a}, {tag}_decay_before{i})"""
        for i, ((a, b), (a_next, b_next)) in enumerate(pairwise(names))
    )
