"""Function bodies of the scans for TensorRT-RTX and other GPU runtimes, as ONNX text; see `scan_bodies`.

The recurrence inside rows and over rows takes doubling steps (Hillis and Steele, 1986), because ONNX Scan
would be one launch per step. There are at most as many rows as positions per row, a power of two chosen for
the longest scan of the model (`row_length`). For a longer scan shapes do not match, and runtimes raise an
error.
"""

from __future__ import annotations

from itertools import pairwise

from tfanet_export.scan_bodies import CONSTANTS, from_rows, in_rows, padding, softplus
from tfanet_plugins.operations import ScanSizes


def row_length(longest: int) -> int:
    """Positions per row for up to `longest` tokens: the smallest power of two whose square is enough."""
    row = 2
    while row * row < longest:
        row *= 2
    return row


def selective_scan_gpu(sizes: ScanSizes) -> str:
    """`SelectiveScan` by doubling, for up to `sizes.longest` tokens."""
    size = row_length(sizes.longest)
    return f"""
    {CONSTANTS}
    batch = Shape <start = 0, end = 1> (u)
    length = Shape <start = 2, end = 3> (u)
    groups = Shape <start = 1, end = 2> (B)
    states = Shape <start = 2, end = 3> (B)
    one_f = Constant <value_float = 1.0> ()
    most = Constant <value_ints = [{size}]> ()
    {padding("most")}
    wide_shape = Concat <axis = 0> (batch, groups, last, one, rows, most)
    states_shape = Concat <axis = 0> (batch, groups, one, states, rows, most)
    {in_rows("u", "wide_shape")}
    {in_rows("delta", "wide_shape")}
    {in_rows("B", "states_shape")}
    {in_rows("C", "states_shape")}
    A_32 = Cast <to = 1> (A)
    A_shape = Concat <axis = 0> (groups, last, states, one, one)
    A_rows = Reshape (A_32, A_shape)
    channel_shape = Concat <axis = 0> (groups, last, one, one, one)
    D_32 = Cast <to = 1> (D)
    D_rows = Reshape (D_32, channel_shape)
    bias_32 = Cast <to = 1> (delta_bias)
    bias_rows = Reshape (bias_32, channel_shape)

    s_raw = Add (delta_rows, bias_rows)
    {softplus("s")}
    log_decay = Mul (s_softplus, A_rows)
    decay = Exp (log_decay)
    step_u = Mul (s_softplus, u_rows)
    input = Mul (step_u, B_rows)
    {_doubling("decay", "input", "inside", size)}

    row_last = Constant <value_ints = [{size - 1}]> ()
    end_decay_p = Slice (decay_inside, row_last, most, last)
    end_input_p = Slice (input_inside, row_last, most, last)
    end_decay_r = Squeeze (end_decay_p, last)
    end_input_r = Squeeze (end_input_p, last)
    missing_rows = Sub (most, rows)
    row_tail = Concat <axis = 0> (zero, missing_rows)
    end_decay = Pad (end_decay_r, row_tail, one_f, last)
    end_input = Pad (end_input_r, row_tail, , last)
    {_doubling("end_decay", "end_input", "over", size)}

    next_row = Constant <value_ints = [1, -1]> ()
    entering = Pad (end_input_over, next_row, , last)
    entering_r = Slice (entering, zero, rows, last)
    enter = Unsqueeze (entering_r, last)
    carried = Mul (decay_inside, enter)
    h = Add (input_inside, carried)
    weighted = Mul (h, C_rows)
    mixed = ReduceSum <keepdims = 1> (weighted, three)
    skip = Mul (u_rows, D_rows)
    y_rows = Add (mixed, skip)
    {from_rows()}
    """


def _doubling(decay: str, x: str, tag: str, size: int) -> str:
    """`{x}_{tag}` = states, `{decay}_{tag}` = products of decays, along a last axis of `size` entries.

    Step i combines every entry with the entry 2^i before it; Pad with one negative end is a shift.
    """
    names = [(decay, x), *((f"{tag}_decay{i}", f"{tag}_x{i}") for i in range(1, size.bit_length() - 1))]
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


def cross_selective_scan_gpu(_: ScanSizes) -> str:
    """`CrossSelectiveScan` as one `SelectiveScan` of four groups: the four traversals of the map."""
    return f"""
    {CONSTANTS}
    backwards_from = Constant <value_ints = [-1]> ()
    backwards_to = Constant <value_ints = [{-(2**63)}]> ()
    batch = Shape <start = 0, end = 1> (x)
    height = Shape <start = 1, end = 2> (x)
    width = Shape <start = 2, end = 3> (x)
    channels = Shape <start = 3, end = 4> (x)
    rank = Shape <start = 1, end = 2> (dt_weight)
    states = Shape <start = 1, end = 2> (A)
    x_32 = Cast <to = 1> (x)
    p_32 = Cast <to = 1> (p)
    weight_32 = Cast <to = 1> (dt_weight)
    pixels = Mul (height, width)
    sequence = Concat <axis = 0> (batch, last, pixels)
    {_traversals("x_32", "x", "sequence")}
    u = Concat <axis = 1> (x_rows, x_columns, x_rows_back, x_columns_back)

    p_grouped = Concat <axis = 0> (batch, four, last, pixels)
    {_traversals("p_32", "p", "p_grouped")}
    p0, p0_1, p0_2, p0_3 = Split <axis = 1, num_outputs = 4> (p_rows)
    p1_0, p1, p1_2, p1_3 = Split <axis = 1, num_outputs = 4> (p_columns)
    p2_0, p2_1, p2, p2_3 = Split <axis = 1, num_outputs = 4> (p_rows_back)
    p3_0, p3_1, p3_2, p3 = Split <axis = 1, num_outputs = 4> (p_columns_back)
    parts = Concat <axis = 1> (p0, p1, p2, p3)
    sizes = Concat <axis = 0> (rank, states, states)
    dt, B, C = Split <axis = 2> (parts, sizes)
    weight_shape = Concat <axis = 0> (four, channels, rank)
    weight_grouped = Reshape (weight_32, weight_shape)
    delta_grouped = MatMul (weight_grouped, dt)
    delta = Reshape (delta_grouped, sequence)

    scanned = tfanet.SelectiveScan (u, delta, A, B, C, D, delta_bias)
    y_rows, y_columns, y_rows_back, y_columns_back = Split <axis = 1, num_outputs = 4> (scanned)
    rows_again = Slice (y_rows_back, backwards_from, backwards_to, two, backwards_from)
    columns_again = Slice (y_columns_back, backwards_from, backwards_to, two, backwards_from)
    sum_rows = Add (y_rows, rows_again)
    sum_columns = Add (y_columns, columns_again)
    rows_shape = Concat <axis = 0> (batch, channels, height, width)
    columns_shape = Concat <axis = 0> (batch, channels, width, height)
    map_of_rows = Reshape (sum_rows, rows_shape)
    map_of_columns = Reshape (sum_columns, columns_shape)
    from_rows = Transpose <perm = [0, 2, 3, 1]> (map_of_rows)
    from_columns = Transpose <perm = [0, 3, 2, 1]> (map_of_columns)
    y = Add (from_rows, from_columns)
    """


def _traversals(source: str, x: str, shape: str) -> str:
    """`{x}_rows`, `{x}_columns`, `{x}_rows_back`, `{x}_columns_back` of a channels-last map, as `shape`."""
    return f"""
    {x}_rows_map = Transpose <perm = [0, 3, 1, 2]> ({source})
    {x}_columns_map = Transpose <perm = [0, 3, 2, 1]> ({source})
    {x}_rows = Reshape ({x}_rows_map, {shape})
    {x}_columns = Reshape ({x}_columns_map, {shape})
    {x}_rows_back = Slice ({x}_rows, backwards_from, backwards_to, last, backwards_from)
    {x}_columns_back = Slice ({x}_columns, backwards_from, backwards_to, last, backwards_from)
    """
