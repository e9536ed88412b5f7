"""Function bodies of the scans for ONNX Runtime on a CPU, as ONNX text, and what both targets share.

L tokens are split into R rows of P positions. The body computes the state at the end of every row, carries it
over the rows, and adds it to the tokens of the next row. Neither target unrolls tokens, or divides by a
product of decays, which underflows. Here ONNX Scan iterates over the P positions of all rows at once, and the
carry over rows is computed the same way: with P near the cube root of L a scan takes about 5 P long steps.
Channels are innermost, so each step and each broadcast over tokens or channels is contiguous in memory. L is
not limited.

Shapes inside the bodies have no symbolic names on purpose: ONNX Runtime assumes that equal names in two calls
of one function are equal sizes, and shares buffers between them. Names of values begin with a tag where a
piece of text is used more than once.
"""

from __future__ import annotations

from tfanet_plugins.operations import ScanSizes

_STATE = "float[?, ?, ?, ?, ?]"
CONSTANTS = """
    zero = Constant <value_ints = [0]> ()
    first = Constant <value_int = 0> ()
    one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()
    three = Constant <value_ints = [3]> ()
    four = Constant <value_ints = [4]> ()
    five = Constant <value_ints = [5]> ()
    one_three = Constant <value_ints = [1, 3]> ()
    last = Constant <value_ints = [-1]> ()
    """


def selective_scan_cpu(sizes: ScanSizes) -> str:
    """`SelectiveScan` with Scans over positions."""
    return f"""
    {CONSTANTS}
    batch = Shape <start = 0, end = 1> (u)
    length = Shape <start = 2, end = 3> (u)
    groups = Shape <start = 1, end = 2> (B)
    states = Shape <start = 2, end = 3> (B)
    {_position_count("length", "row", "0.3333333")}
    {padding("row")}
    flat_shape = Concat <axis = 0> (batch, groups, last, length)
    wide_shape = Concat <axis = 0> (batch, groups, rows, row, one, last)
    states_shape = Concat <axis = 0> (batch, groups, one, states, rows, row)
    {_channels_inside("u")}
    {_channels_inside("delta")}
    {in_rows("B", "states_shape")}
    {in_rows("C", "states_shape")}
    s_B = Transpose <perm = [5, 0, 1, 4, 3, 2]> (B_rows)
    s_C = Transpose <perm = [5, 0, 1, 4, 3, 2]> (C_rows)

    A_32 = Cast <to = 1> (A)
    A_shape = Concat <axis = 0> (groups, one, last, states)
    A_grouped = Reshape (A_32, A_shape)
    s_A = Transpose <perm = [0, 1, 3, 2]> (A_grouped)
    channel_shape = Concat <axis = 0> (groups, one, one, last)
    D_32 = Cast <to = 1> (D)
    D_grouped = Reshape (D_32, channel_shape)
    bias_32 = Cast <to = 1> (delta_bias)
    bias = Reshape (bias_32, channel_shape)

    {_positions("s", "s_raw = Add (raw_now, bias)", f"{_STATE} raw_now = delta_p", "u_p", reverse=False)}
    {_sum_over_states("s", sizes.states)}
    skip = Mul (u_p, D_grouped)
    skip_flat = Squeeze (skip, four)
    y_p = Add (s_y, skip_flat)
    y_by_row = Transpose <perm = [1, 2, 3, 0, 4]> (y_p)
    tokens_shape = Concat <axis = 0> (batch, groups, padded_length, last)
    y_tokens = Reshape (y_by_row, tokens_shape)
    y_rows = Transpose <perm = [0, 1, 3, 2]> (y_tokens)
    {from_rows()}
    """


def _channels_inside(x: str) -> str:
    """`{x}_p` [P, batch, K, R, 1, D] of x [batch, K*D, L].

    Two transposes of one axis each, with a Reshape between them so that they are not merged: one transpose of
    all axes is several times slower in ONNX Runtime.
    """
    return f"""
    {x}_32 = Cast <to = 1> ({x})
    {x}_flat = Reshape ({x}_32, flat_shape)
    {x}_tokens = Transpose <perm = [0, 1, 3, 2]> ({x}_flat)
    {x}_padded = Pad ({x}_tokens, tail, , two)
    {x}_rows = Reshape ({x}_padded, wide_shape)
    {x}_p = Transpose <perm = [3, 0, 1, 2, 4, 5]> ({x}_rows)
    """


def cross_selective_scan_cpu(sizes: ScanSizes) -> str:
    """`CrossSelectiveScan`: pixels as two sequences, by rows and by columns, scanned in both directions."""
    return f"""
    {CONSTANTS}
    batch = Shape <start = 0, end = 1> (x)
    height = Shape <start = 1, end = 2> (x)
    width = Shape <start = 2, end = 3> (x)
    channels = Shape <start = 3, end = 4> (x)
    rank = Shape <start = 1, end = 2> (dt_weight)
    states = Shape <start = 1, end = 2> (A)
    length = Mul (height, width)
    {_position_count("length", "row", "0.3333333")}
    {padding("row")}
    x_32 = Cast <to = 1> (x)
    p_32 = Cast <to = 1> (p)
    {_two_sequences("x")}
    {_two_sequences("p")}

    A_32 = Cast <to = 1> (A)
    A_shape = Concat <axis = 0> (four, channels, states)
    A_grouped = Reshape (A_32, A_shape)
    A_turned = Transpose <perm = [0, 2, 1]> (A_grouped)
    weight_32 = Cast <to = 1> (dt_weight)
    bias_32 = Cast <to = 1> (delta_bias)
    d0_A, d1_A, d2_A, d3_A = Split <axis = 0, num_outputs = 4> (A_turned)
    d0_weight, d1_weight, d2_weight, d3_weight = Split <axis = 0, num_outputs = 4> (weight_32)
    d0_bias, d1_bias, d2_bias, d3_bias = Split <axis = 0, num_outputs = 4> (bias_32)
    dt_shape = Concat <axis = 0> (last, rank)
    wide_shape = Concat <axis = 0> (row, batch, one, rows, one, channels)
    states_shape = Concat <axis = 0> (row, batch, one, rows, states, one)
    rows_u = Reshape (x_by_rows, wide_shape)
    columns_u = Reshape (x_by_columns, wide_shape)
    p_sizes = Concat <axis = 0> ({", ".join(["rank, states, states"] * 4)})
    {_parts("rows", (0, 2))}
    {_parts("columns", (1, 3))}
    {"".join(_direction(k) for k in range(4))}
    rows_hc = Add (d0_hc, d2_hc)
    columns_hc = Add (d1_hc, d3_hc)
    {_sum_over_states("rows", sizes.states)}
    {_sum_over_states("columns", sizes.states)}
    {_tokens_to_map("rows", "height, width")}
    {_tokens_to_map("columns", "width, height")}
    from_columns = Transpose <perm = [0, 2, 1, 3]> (columns_map)
    scanned = Add (rows_map, from_columns)
    D_32 = Cast <to = 1> (D)
    D_shape = Concat <axis = 0> (four, channels)
    D_grouped = Reshape (D_32, D_shape)
    D_sum = ReduceSum <keepdims = 0> (D_grouped, zero)
    skip = Mul (x_32, D_sum)
    y = Add (scanned, skip)
    """


def _position_count(length: str, row: str, exponent: str) -> str:
    """`row` = `length` ** `exponent`, rounded up: the number of positions of a row."""
    return f"""
    {row}_length_f = Cast <to = 1> ({length})
    {row}_exponent = Constant <value_float = {exponent}> ()
    {row}_power = Pow ({row}_length_f, {row}_exponent)
    {row}_up = Ceil ({row}_power)
    {row} = Cast <to = 7> ({row}_up)
    """


def _two_sequences(x: str) -> str:
    """`{x}_by_rows`, `{x}_by_columns` [P, batch, R, C] of `{x}_32` [batch, H, W, C], padded with 0."""
    turned = f"""
    {x}_turned = Transpose <perm = [0, 2, 1, 3]> ({x}_32)
    {x}_flat_shape = Concat <axis = 0> (batch, length, last)
    {x}_rows_shape = Concat <axis = 0> (batch, rows, row, last)"""
    return turned + "".join(
        f"""
    {x}_{order}_flat = Reshape ({source}, {x}_flat_shape)
    {x}_{order}_padded = Pad ({x}_{order}_flat, tail, , one)
    {x}_{order}_rows = Reshape ({x}_{order}_padded, {x}_rows_shape)
    {x}_by_{order} = Transpose <perm = [2, 0, 1, 3]> ({x}_{order}_rows)
    """
        for order, source in (("rows", f"{x}_32"), ("columns", f"{x}_turned"))
    )


def _parts(order: str, directions: tuple[int, int]) -> str:
    """dt, B and C of the two directions that scan in `order`, from p; the other directions' are unused."""
    names = ", ".join(
        f"d{k}_dt{spare}, d{k}_B_tokens{spare}, d{k}_C_tokens{spare}"
        for k in range(4)
        for spare in ["" if k in directions else f"_{order}"]
    )
    return f"""
    {names} = Split <axis = 3> (p_by_{order}, p_sizes)
    """


def _tokens_to_map(order: str, size: str) -> str:
    """`{order}_map` [batch, H, W, D], or [batch, W, H, D], from `{order}_y` [P, batch, 1, R, D]."""
    return f"""
    {order}_turned = Transpose <perm = [1, 3, 0, 2, 4]> ({order}_y)
    {order}_padded_shape = Concat <axis = 0> (batch, padded_length, channels)
    {order}_padded = Reshape ({order}_turned, {order}_padded_shape)
    {order}_tokens = Slice ({order}_padded, zero, length, one)
    {order}_map_shape = Concat <axis = 0> (batch, {size}, channels)
    {order}_map = Reshape ({order}_tokens, {order}_map_shape)
    """


def _direction(k: int) -> str:
    """`d{k}_hc`, states times C, of direction k: by rows (k even) or columns, reversed for k >= 2."""
    t, order = f"d{k}", "columns" if k % 2 else "rows"
    raw = f"""
            delta = MatMul (raw_now, {t}_weight_turned)
            delta_biased = Add (delta, {t}_bias)
            {t}_raw = Unsqueeze (delta_biased, one_three)
    """
    return f"""
    {t}_weight_turned = Transpose <perm = [1, 0]> ({t}_weight)
    {t}_B = Reshape ({t}_B_tokens, states_shape)
    {t}_C = Reshape ({t}_C_tokens, states_shape)
    {_positions(t, raw, f"float[?, ?, ?] raw_now = {t}_dt", f"{order}_u", reverse=k >= 2)}
    """


def softplus(t: str) -> str:
    """`{t}_softplus` = log(1 + exp(`{t}_raw`)) = max(raw, 0) + log(1 + z), z = exp(-|raw|).

    log(1 + z) = 2 atanh(s), s = z / (2 + z) <= 1/3, is s times a polynomial in s^2 (minimax over [0, 1/9])
    with a relative error of at most 5e-7 for every z. ONNX Runtime's Softplus is several times slower, and
    Log(1 + z) loses the digits of small z; correcting that made the scans slower than this polynomial.
    """
    coefficients = "".join(
        f"""
    {t}_c{i} = Constant <value_float = {value}> ()"""
        for i, value in enumerate((1.9999996, 0.6667598, 0.3959006, 0.34222454))
    )
    return f"""
    {coefficients}
    {t}_two_f = Constant <value_float = 2.0> ()
    {t}_magnitude = Abs ({t}_raw)
    {t}_minus = Neg ({t}_magnitude)
    {t}_z = Exp ({t}_minus)
    {t}_z_two = Add ({t}_z, {t}_two_f)
    {t}_s = Div ({t}_z, {t}_z_two)
    {t}_q = Mul ({t}_s, {t}_s)
    {t}_q3 = Mul ({t}_q, {t}_c3)
    {t}_p2 = Add ({t}_q3, {t}_c2)
    {t}_q2 = Mul ({t}_p2, {t}_q)
    {t}_p1 = Add ({t}_q2, {t}_c1)
    {t}_q1 = Mul ({t}_p1, {t}_q)
    {t}_p0 = Add ({t}_q1, {t}_c0)
    {t}_log = Mul ({t}_p0, {t}_s)
    {t}_positive = Relu ({t}_raw)
    {t}_softplus = Add ({t}_positive, {t}_log)
    """


def _positions(t: str, raw: str, given: str, u: str, *, reverse: bool) -> str:
    """`{t}_hc` [P, b, K, R, N, D], the states times C; the P positions are the operands' first axis.

    u [P, b, K, R, 1, D]; `{t}_A` [K, 1, N, D] or [1, N, D]; `{t}_B`, `{t}_C` [P, b, K, R, N, 1]. `raw` is
    text that computes `{t}_raw` [b, K, R, 1, D] of a position from its input `given`, "type name = source".
    Time runs over the positions of a row, then over the rows; with `reverse` backward over both. All work on
    a token is done in its step, while it is in the cache.
    """
    way, state = int(reverse), _STATE
    parameter, source = given.split(" = ")
    return f"""
    {t}_u_first = Gather <axis = 0> ({u}, first)
    {t}_B_first = Gather <axis = 0> ({t}_B, first)
    {t}_like_state = Mul ({t}_u_first, {t}_B_first)
    {t}_end_shape = Shape ({t}_like_state)
    {t}_nothing = ConstantOfShape ({t}_end_shape)
    {t}_end, {t}_end_log_decay, {t}_decay, {t}_input = Scan <
        num_scan_inputs = 3, scan_input_directions = [{way}, {way}, {way}],
        scan_output_directions = [{way}, {way}],
        body = {t}_inside_rows ({state} h, {state} log_sum, {parameter}, {state} u_now, {state} B_now)
            => ({state} h_next, {state} log_sum_next, {state} decay_now, {state} x_now) {{
            {raw}
            {softplus(t)}
            log_decay = Mul ({t}_softplus, {t}_A)
            log_sum_next = Add (log_sum, log_decay)
            decay_now = Exp (log_decay)
            step_u = Mul ({t}_softplus, u_now)
            x_now = Mul (step_u, B_now)
            kept = Mul (decay_now, h)
            h_next = Add (kept, x_now)
        }}
    > ({t}_nothing, {t}_nothing, {source}, {u}, {t}_B)
    {_carry(t, reverse)}
    {t}_last_state, {t}_hc = Scan <
        num_scan_inputs = 3, scan_input_directions = [{way}, {way}, {way}],
        scan_output_directions = [{way}],
        body = {t}_again ({state} h, {state} decay_now, {state} x_now, {state} C_now)
            => ({state} h_next, {state} hc) {{
            kept = Mul (decay_now, h)
            h_next = Add (kept, x_now)
            hc = Mul (h_next, C_now)
        }}
    > ({t}_enter, {t}_decay, {t}_input, {t}_C)
    """


def _carry(t: str, reverse: bool) -> str:
    """`{t}_enter` [b, K, R, N, D], the state before each row, from the rows' end states and decays.

    The rows are split into rows of rows, which are scanned the same way. Padding rows have end state 0.
    """
    way, state, r = int(reverse), _STATE, f"{t}_r"
    return f"""
    {t}_row_count = Shape <start = 2, end = 3> ({t}_end)
    {_position_count(f"{t}_row_count", f"{r}_row", "0.5")}
    {t}_count_less_one = Sub ({t}_row_count, one)
    {t}_full = Div ({t}_count_less_one, {r}_row)
    {t}_outer = Add ({t}_full, one)
    {t}_padded_count = Mul ({t}_outer, {r}_row)
    {t}_missing = Sub ({t}_padded_count, {t}_row_count)
    {t}_row_tail = Concat <axis = 0> (zero, {t}_missing)
    {t}_shape_head = Slice ({t}_end_shape, zero, two)
    {t}_shape_tail = Slice ({t}_end_shape, three, five)
    {t}_outer_shape = Concat <axis = 0> ({t}_shape_head, {t}_outer, {r}_row, {t}_shape_tail)
    {t}_end_padded = Pad ({t}_end, {t}_row_tail, , two)
    {t}_end_outer = Reshape ({t}_end_padded, {t}_outer_shape)
    {r}_input = Transpose <perm = [3, 0, 1, 2, 4, 5]> ({t}_end_outer)
    {t}_log_padded = Pad ({t}_end_log_decay, {t}_row_tail, , two)
    {t}_log_outer = Reshape ({t}_log_padded, {t}_outer_shape)
    {r}_log_decay = Transpose <perm = [3, 0, 1, 2, 4, 5]> ({t}_log_outer)
    {r}_decay = Exp ({r}_log_decay)
    {r}_end_log_decay = ReduceSum <keepdims = 0> ({r}_log_decay, zero)
    {r}_end_shape = Shape ({r}_end_log_decay)
    {r}_nothing = ConstantOfShape ({r}_end_shape)
    {r}_end = Scan <
        num_scan_inputs = 2, scan_input_directions = [{way}, {way}],
        body = {r}_inside ({state} h, {state} decay_now, {state} x_now) => ({state} h_next) {{
            kept = Mul (decay_now, h)
            h_next = Add (kept, x_now)
        }}
    > ({r}_nothing, {r}_decay, {r}_input)
    {r}_row_decay = Exp ({r}_end_log_decay)
    {r}_carry_shape = Concat <axis = 0> ({t}_shape_head, {t}_shape_tail)
    {r}_no_carry = ConstantOfShape ({r}_carry_shape)
    {r}_carry_end, {r}_enter = Scan <
        num_scan_inputs = 2, scan_input_axes = [2, 2], scan_output_axes = [2],
        scan_input_directions = [{way}, {way}], scan_output_directions = [{way}],
        body = {r}_over (float[?, ?, ?, ?] c, float[?, ?, ?, ?] decay_now, float[?, ?, ?, ?] end)
            => (float[?, ?, ?, ?] c_next, float[?, ?, ?, ?] before) {{
            before = Identity (c)
            kept = Mul (decay_now, c)
            c_next = Add (kept, end)
        }}
    > ({r}_no_carry, {r}_row_decay, {r}_end)
    {r}_last, {r}_before = Scan <
        num_scan_inputs = 2, scan_input_directions = [{way}, {way}], scan_output_directions = [{way}],
        body = {r}_again ({state} h, {state} decay_now, {state} x_now) => ({state} h_next, {state} before) {{
            before = Identity (h)
            kept = Mul (decay_now, h)
            h_next = Add (kept, x_now)
        }}
    > ({r}_enter, {r}_decay, {r}_input)
    {t}_before_turned = Transpose <perm = [1, 2, 3, 0, 4, 5]> ({r}_before)
    {t}_padded_shape = Concat <axis = 0> ({t}_shape_head, {t}_padded_count, {t}_shape_tail)
    {t}_before_padded = Reshape ({t}_before_turned, {t}_padded_shape)
    {t}_enter = Slice ({t}_before_padded, zero, {t}_row_count, two)
    """


def _sum_over_states(t: str, states: int) -> str:
    """`{t}_y` [P, b, K, R, D] = sum of `{t}_hc` over its N entries."""
    operation = "Squeeze" if states == 1 else "ReduceSum <keepdims = 0>"
    return f"""
    {t}_y = {operation} ({t}_hc, four)
    """


def padding(row: str) -> str:
    """Sizes of L tokens in R rows of P = `row`: rows, padded_length, and `tail`, the Pad along the last axis.

    The padding values of the last row do not matter: no token follows them.
    """
    return f"""
    length_less_one = Sub (length, one)
    full_rows = Div (length_less_one, {row})
    rows = Add (full_rows, one)
    padded_length = Mul (rows, {row})
    padding = Sub (padded_length, length)
    tail = Concat <axis = 0> (zero, padding)
    """


def in_rows(x_now: str, shape: str) -> str:
    """`{x_now}_rows`: x in float32, padded along the last axis and reshaped to `shape`."""
    return f"""
    {x_now}_32 = Cast <to = 1> ({x_now})
    {x_now}_padded = Pad ({x_now}_32, tail, , last)
    {x_now}_rows = Reshape ({x_now}_padded, {shape})
    """


def from_rows() -> str:
    """y [batch, K*D, L] from y_rows [batch, K, D, (1,) R, P]."""
    return """
    y_shape = Concat <axis = 0> (batch, last, padded_length)
    y_padded = Reshape (y_rows, y_shape)
    y = Slice (y_padded, zero, length, last)
    """
