"""What runs on the GPU for a stream; imported only where Triton is there. See `_triton`.

A program takes ROWS rows of the batch at a time. Their states lie in a scratch buffer of its own in global memory,
with the rows innermost: every permutation of legs is an offset looked up in a table, and what is read of one number
is read of all rows at once. For small bonds the buffers of all programs together stay in the second-level cache.
Between two passes stands a barrier, since other threads of the program read what these wrote.

A pass is told to `_product` as thirteen numbers, all known when it is compiled:
    H, M, S, N       sizes: kept by both sides, of the state, summed, made
    at, across, down where the operand starts, and its strides along n and s
    source, target   where the two states start, in numbers of one row
    table            where the six lists of offsets start: from h, m, s and to h, m, n
    BM, BS, BN       the tile
"""
# Triton is an option, and its language is no Python that a type checker follows.
# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAssignmentType=false
# pyright: reportArgumentType=false, reportOperatorIssue=false

import triton
import triton.language as tl


@triton.jit
def _offsets(table, at, i, count):
    return tl.load(table + at + i, mask=i < count, other=0)


@triton.jit
def _load_state(state, first, second, in_first, in_second, ROWS: tl.constexpr):
    """The numbers at first[:, None] + second[None, :], of all rows: (first, second * rows)."""
    at = (first[:, None] + second[None, :]) * ROWS
    mask = in_first[:, None] & in_second[None, :]
    found = tl.load(state + at[:, :, None] + tl.arange(0, ROWS)[None, None, :], mask=mask[:, :, None], other=0.0)
    return tl.reshape(found, (first.shape[0], second.shape[0] * ROWS))


@triton.jit
def _dot(a, b, acc, WIDE: tl.constexpr):
    """IEEE in float32. WIDE: the interpreter has no product of bfloat16; that of the same numbers is the same."""
    if WIDE:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _product(
    states, operands, table, PASSES: tl.constexpr, WHICH: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr
):
    """to[h, m, n] = sum over s of from[h, m, s] * operand[h, s, n], tile by tile."""
    H: tl.constexpr = PASSES[WHICH][0]
    M: tl.constexpr = PASSES[WHICH][1]
    S: tl.constexpr = PASSES[WHICH][2]
    N: tl.constexpr = PASSES[WHICH][3]
    BM: tl.constexpr = PASSES[WHICH][10]
    BS: tl.constexpr = PASSES[WHICH][11]
    BN: tl.constexpr = PASSES[WHICH][12]
    source, target, operand, offsets = (
        states + PASSES[WHICH][7] * ROWS,
        states + PASSES[WHICH][8] * ROWS,
        operands + PASSES[WHICH][4],
        table + PASSES[WHICH][9],
    )
    tiles_m: tl.constexpr = (M + BM - 1) // BM
    tiles_n: tl.constexpr = (N + BN - 1) // BN
    for task in range(H * tiles_m * tiles_n):
        h = task // (tiles_m * tiles_n)
        m = task // tiles_n % tiles_m * BM + tl.arange(0, BM)
        n = task % tiles_n * BN + tl.arange(0, BN)
        from_m = tl.load(offsets + h) + _offsets(offsets, H, m, M)
        acc = tl.zeros((BN, BM * ROWS), tl.float32)
        for start in range(0, S, BS):
            s = start + tl.arange(0, BS)
            taken = _load_state(source, _offsets(offsets, H + M, s, S), from_m, s < S, m < M, ROWS)
            at = h * (S * N) + n[:, None] * PASSES[WHICH][5] + s[None, :] * PASSES[WHICH][6]
            matrix = tl.load(operand + at, mask=(n < N)[:, None] & (s < S)[None, :], other=0.0)
            acc = _dot(matrix, taken, acc, WIDE)
        to_m = tl.load(offsets + H + M + S + h) + _offsets(offsets, 2 * H + M + S, m, M)
        to_n = _offsets(offsets, 2 * H + 2 * M + S, n, N)
        to = (to_n[:, None] + to_m[None, :]) * ROWS
        mask = (n < N)[:, None] & (m < M)[None, :]
        made = tl.reshape(acc, (BN, BM, ROWS)).to(states.dtype.element_ty)
        tl.store(target + to[:, :, None] + tl.arange(0, ROWS)[None, None, :], made, mask=mask[:, :, None])


@triton.jit
def _slopes(states, slopes, table, PASSES: tl.constexpr, WHICH: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """slopes[h, s, n] += sum over m and rows of from[h, m, s] * to[h, m, n]; only this program writes there."""
    H: tl.constexpr = PASSES[WHICH][0]
    M: tl.constexpr = PASSES[WHICH][1]
    S: tl.constexpr = PASSES[WHICH][2]
    N: tl.constexpr = PASSES[WHICH][3]
    BM: tl.constexpr = PASSES[WHICH][10]
    BS: tl.constexpr = PASSES[WHICH][11]
    BN: tl.constexpr = PASSES[WHICH][12]
    source, target, offsets = (
        states + PASSES[WHICH][7] * ROWS,
        states + PASSES[WHICH][8] * ROWS,
        table + PASSES[WHICH][9],
    )
    tiles_s: tl.constexpr = (S + BS - 1) // BS
    tiles_n: tl.constexpr = (N + BN - 1) // BN
    for task in range(H * tiles_s * tiles_n):
        h = task // (tiles_s * tiles_n)
        s = task // tiles_n % tiles_s * BS + tl.arange(0, BS)
        n = task % tiles_n * BN + tl.arange(0, BN)
        from_s = tl.load(offsets + h) + _offsets(offsets, H + M, s, S)
        to_n = tl.load(offsets + H + M + S + h) + _offsets(offsets, 2 * H + 2 * M + S, n, N)
        acc = tl.zeros((BS, BN), tl.float32)
        for start in range(0, M, BM):
            m = start + tl.arange(0, BM)
            old = _load_state(source, from_s, _offsets(offsets, H, m, M), s < S, m < M, ROWS)
            new = _load_state(target, to_n, _offsets(offsets, 2 * H + M + S, m, M), n < N, m < M, ROWS)
            acc = _dot(old, tl.trans(new), acc, WIDE)
        at = slopes + PASSES[WHICH][4] + h * (S * N) + s[:, None] * N + n[None, :]
        mask = (s < S)[:, None] & (n < N)[None, :]
        tl.store(at, tl.load(at, mask=mask, other=0.0) + acc, mask=mask)


@triton.jit
def _take(array, state, block, rows, COUNT: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr):
    """A block of rows out of the batch; rows beyond its end are zero."""
    r = tl.arange(0, ROWS)
    row = r.to(tl.int64) + block * ROWS
    for start in range(0, COUNT, TILE):
        i = start + tl.arange(0, TILE)
        mask = (row < rows)[:, None] & (i < COUNT)[None, :]
        found = tl.load(array + row[:, None] * COUNT + i[None, :], mask=mask, other=0.0)
        tl.store(state + i[:, None] * ROWS + r[None, :], tl.trans(found), mask=(i < COUNT)[:, None])


@triton.jit
def _give(array, state, block, rows, COUNT: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr):
    """A block of rows into the batch."""
    r = tl.arange(0, ROWS)
    row = r.to(tl.int64) + block * ROWS
    for start in range(0, COUNT, TILE):
        i = start + tl.arange(0, TILE)
        found = tl.load(state + i[:, None] * ROWS + r[None, :], mask=(i < COUNT)[:, None], other=0.0)
        mask = (row < rows)[:, None] & (i < COUNT)[None, :]
        tl.store(array + row[:, None] * COUNT + i[None, :], tl.trans(found), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def forward(
    x, y, scratch, operands, table, rows,
    PASSES: tl.constexpr, SIZE: tl.constexpr, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """x (rows, INPUTS) through all passes into y (rows, OUTPUTS); a program's scratch is SIZE * ROWS numbers."""
    COUNT: tl.constexpr = len(PASSES)
    states = scratch + tl.program_id(0).to(tl.int64) * (SIZE * ROWS)
    for block in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        _take(x, states + PASSES[0][7] * ROWS, block, rows, INPUTS, ROWS, TILE)
        tl.debug_barrier()
        for i in tl.static_range(COUNT):
            _product(states, operands, table, PASSES, i, ROWS, WIDE)
            tl.debug_barrier()
        _give(y, states + PASSES[COUNT - 1][8] * ROWS, block, rows, OUTPUTS, ROWS, TILE)
        tl.debug_barrier()  # the next block's rows go where these still are


@triton.jit(do_not_specialize=["rows"])
def backward(
    x, gy, gx, slopes, scratch, operands, table, rows,
    PASSES: tl.constexpr, BACK: tl.constexpr, OPERANDS: tl.constexpr, SIZE: tl.constexpr,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, FOR_X: tl.constexpr, FOR_OPERANDS: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The block forward again, all states kept; then gradients back, each written over the state that it is of.

    slopes: (programs, OPERANDS) sums of each program's blocks, zero at first.
    """
    COUNT: tl.constexpr = len(PASSES)
    states = scratch + tl.program_id(0).to(tl.int64) * (SIZE * ROWS)
    own = slopes + tl.program_id(0).to(tl.int64) * OPERANDS
    for block in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        if FOR_OPERANDS:
            _take(x, states + PASSES[0][7] * ROWS, block, rows, INPUTS, ROWS, TILE)
            tl.debug_barrier()
            for i in tl.static_range(COUNT - 1):
                _product(states, operands, table, PASSES, i, ROWS, WIDE)
                tl.debug_barrier()
        _take(gy, states + PASSES[COUNT - 1][8] * ROWS, block, rows, OUTPUTS, ROWS, TILE)
        tl.debug_barrier()
        for i in tl.static_range(COUNT):
            if FOR_OPERANDS:
                _slopes(states, own, table, PASSES, COUNT - 1 - i, ROWS, WIDE)
                tl.debug_barrier()
            if FOR_X or i < COUNT - 1:
                _product(states, operands, table, BACK, COUNT - 1 - i, ROWS, WIDE)
                tl.debug_barrier()
        if FOR_X:
            _give(gx, states + PASSES[0][7] * ROWS, block, rows, INPUTS, ROWS, TILE)
            tl.debug_barrier()
