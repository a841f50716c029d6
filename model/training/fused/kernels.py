"""Triton kernels of the fused step: a tile's forward and backward pass, gathers, and sums of rows by id.

A tile is a block of whole groups of samples. Activations and dropout masks of a tile stay on the chip, except for what
the products of the weights' gradients read later. Nothing uses atomics, so the same inputs give the same bits.

This is the only module that imports Triton, which comes with torch's CUDA builds.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _mix(x):
    """A hash of 32 bits ("lowbias32" of Wellons, Prospecting for Hash Functions, 2018)."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _kept(sample_keys, unit_keys, limit):
    """Whether dropout keeps each unit of each sample, [samples, units]; `limit` is the dropout rate times 2**32.

    `model.training.fused.replay.kept` makes the same decisions in torch. With a single multiplication here, decisions
    on two units would be correlated.
    """
    x = (sample_keys[:, None] ^ unit_keys.to(tl.uint32)[None, :]) * 0x7FEB352D
    return (x ^ (x >> 15)) * 0x846CA68B >= limit


@triton.jit
def _rounded(x, kind: tl.constexpr, PRODUCTS: tl.constexpr):
    """float32 values as operands of a product. TF32 is rounded here, to nearest even, since GPUs would truncate it."""
    if PRODUCTS == "tf32":
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0xFFF + ((bits >> 13) & 1)) & 0xFFFFE000
        return bits.to(tl.float32, bitcast=True)
    return x.to(kind)


@triton.jit
def _rows(table, ids, columns, valid, WIDTH: tl.constexpr):
    """Rows of a table as float32; 0 where not valid."""
    return tl.load(table + ids[:, None] * WIDTH + columns[None, :], valid[:, None], 0.0).to(tl.float32)


@triton.jit
def _add(to, values, mask, more):
    """Add to what this program stored for its earlier tiles; its first tile (not `more`) only stores."""
    tl.store(to, tl.load(to, mask & more, 0.0) + values, mask)


@triton.jit
def _loss(logits, lane, valid, labels, part, more, SCALE: tl.constexpr):
    """Add the summed binary cross-entropy and the sum of its gradients; return the logits' gradients times SCALE."""
    label = tl.load(labels + lane, valid, 0.0)
    e = tl.exp(-tl.abs(logits))
    d_logits = tl.where(valid, (tl.where(logits >= 0, 1.0, e) / (1.0 + e) - label) * SCALE, 0.0)
    losses = tl.maximum(logits, 0.0) - logits * label + tl.log(1.0 + e)
    _add(part, tl.sum(tl.where(valid, losses, 0.0), 0), True, more)
    _add(part + 1, tl.sum(d_logits, 0), True, more)
    return d_logits


@triton.jit
def _level(
    x, gmf, one_hot, last, first, lane, valid, keys, labels, weights, small, unit_keys, acts, grads, part,
    more, n_samples, limit, scale_up, LEVEL: tl.constexpr, WIDTHS: tl.constexpr, WEIGHTS_AT: tl.constexpr,
    UNITS_AT: tl.constexpr, SUMS_AT: tl.constexpr, SCALE: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """A hidden layer from the second on, whose products are `x`, and all that follows it, in both directions.

    Returns:
        The gradient of this layer before ReLU, [rows, width], and that of the logits.
    """
    N: tl.constexpr = WIDTHS[LEVEL]
    LAST: tl.constexpr = len(WIDTHS) - 1
    kind: tl.constexpr = weights.dtype.element_ty
    units = tl.arange(0, N)
    to = n_samples.to(tl.int64) * UNITS_AT[LEVEL] + first * N
    at = lane[:, None] * N + units[None, :]
    x += tl.load(small + UNITS_AT[LEVEL] + units)[None, :]
    # Units of rows that are not valid may be kept: the gradients of these rows' logits are 0. Products by a number come
    # after the choice, since compilers would move a choice behind the rounding, where it takes more instructions.
    keep = _kept(keys, tl.load(unit_keys + UNITS_AT[LEVEL] + units), limit)
    z = _rounded(tl.where(keep, tl.maximum(x, 0.0, tl.PropagateNan.ALL), 0.0) * scale_up, kind, PRODUCTS)
    if LEVEL == LAST:
        head = tl.load(small + UNITS_AT[LEVEL + 1] + units)
        logits = gmf + tl.sum(z.to(tl.float32) * head[None, :], 1)
        d_logits = _loss(logits, lane, valid, labels + first, part, more, SCALE)
        weighted = _rounded(one_hot.to(tl.float32) * d_logits[None, :], kind, PRODUCTS)
        sums = tl.dot(weighted, z, input_precision=PRODUCTS)
        _add(part + 2 + UNITS_AT[LEVEL + 1] + 0 * last[:, None] + units[None, :], sums, last[:, None], more)
        back = d_logits[:, None] * head[None, :]
    else:
        ABOVE: tl.constexpr = WIDTHS[LEVEL + 1]
        above = tl.arange(0, ABOVE)
        if not SUMS_AT[LEVEL + 1]:
            tl.store(acts + to + at, z, valid[:, None])
        transposed = tl.load(weights + WEIGHTS_AT[LEVEL] + above[None, :] * N + units[:, None])
        products = tl.dot(z, transposed, input_precision=PRODUCTS)
        d_above, d_logits = _level(
            products, gmf, one_hot, last, first, lane, valid, keys, labels, weights, small, unit_keys, acts, grads,
            part, more, n_samples, limit, scale_up, LEVEL + 1, WIDTHS, WEIGHTS_AT, UNITS_AT, SUMS_AT,
            SCALE, PRODUCTS,
        )  # fmt: skip
        if SUMS_AT[LEVEL + 1]:
            at_weights = part + SUMS_AT[LEVEL + 1] + above[:, None] * N + units[None, :]
            d_weights = tl.load(at_weights, more, 0.0)
            tl.store(at_weights, tl.dot(tl.trans(d_above), z, d_weights, input_precision=PRODUCTS))
        straight = tl.load(weights + WEIGHTS_AT[LEVEL] + above[:, None] * N + units[None, :])
        back = tl.dot(d_above, straight, input_precision=PRODUCTS)
    d = _rounded(tl.where(z.to(tl.float32) > 0, back, 0.0) * scale_up, kind, PRODUCTS)
    sums = tl.dot(one_hot, d, input_precision=PRODUCTS)
    _add(part + 2 + UNITS_AT[LEVEL] + 0 * last[:, None] + units[None, :], sums, last[:, None], more)
    if not SUMS_AT[LEVEL]:
        tl.store(grads + to + at, d, valid[:, None])
    return d, d_logits


@triton.jit
def _tile(
    tile, items, labels, item_first, user_first, item_gmf, user_gmf, weights, small, unit_keys, dropout, acts, grads,
    d_logits, d_user_first, d_user_gmf, part, more, n_samples, scale_up, WIDTHS: tl.constexpr,
    WEIGHTS_AT: tl.constexpr, UNITS_AT: tl.constexpr, SUMS_AT: tl.constexpr, FACTORS: tl.constexpr,
    GROUP: tl.constexpr, SLOTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, SCALE: tl.constexpr,
    PRODUCTS: tl.constexpr,
):  # fmt: skip
    """See `tile_step`; `more`: this is not the program's first tile."""
    GROUPS: tl.constexpr = ROWS // GROUP
    DEPTH: tl.constexpr = len(WIDTHS)
    HEAD: tl.constexpr = UNITS_AT[DEPTH] + WIDTHS[DEPTH - 1]
    N: tl.constexpr = WIDTHS[0]
    kind: tl.constexpr = weights.dtype.element_ty
    lane = tl.arange(0, ROWS)
    # Positions within a tile have 32 bits, since those of 64 would take twice the registers.
    first, first_group = tile * (GROUPS * GROUP), tile * GROUPS
    valid = lane < tl.minimum(n_samples - first, GROUPS * GROUP).to(tl.int32)
    group = lane // GROUP
    user_first += first_group * N
    user_gmf += first_group * FACTORS
    item = tl.load(items + first + lane, valid, 0).to(tl.int64)
    keys = _mix((first + lane).to(tl.uint32) ^ _mix(tl.load(dropout).to(tl.uint32)))
    limit = tl.load(dropout + 1).to(tl.uint32)
    # Sums over groups are a product, [SLOTS, ROWS] by [ROWS, …]; its last row sums the whole tile.
    slot = tl.arange(0, SLOTS)
    last = slot == SLOTS - 1
    one_hot = (last[:, None] | (group[None, :] == slot[:, None])).to(tl.float32).to(kind)
    f = tl.arange(0, FACTORS)
    gmf_head = tl.load(small + HEAD + f)
    gmf = _rows(user_gmf, group, f, valid, FACTORS) * _rows(item_gmf, item, f, valid, FACTORS) * gmf_head[None, :]
    logits = tl.sum(gmf, 1) + tl.load(small + HEAD + FACTORS)
    N1: tl.constexpr = WIDTHS[1] if DEPTH > 1 else 16
    n1 = tl.arange(0, N1)
    products = tl.zeros([ROWS, N1], tl.float32)
    for start in tl.range(0, N, BLOCK):
        c = start + tl.arange(0, BLOCK)
        x = _rows(item_first, item, c, valid, N) + _rows(user_first, group, c, valid, N) + tl.load(small + c)[None, :]
        keep = _kept(keys, tl.load(unit_keys + c), limit)
        z = _rounded(tl.where(keep, tl.maximum(x, 0.0, tl.PropagateNan.ALL), 0.0) * scale_up, kind, PRODUCTS)
        tl.store(acts + first * N + lane[:, None] * N + c[None, :], z, valid[:, None])
        if DEPTH > 1:
            transposed = tl.load(weights + n1[None, :] * N + c[:, None])
            products = tl.dot(z, transposed, products, input_precision=PRODUCTS)
        else:
            logits += tl.sum(z.to(tl.float32) * tl.load(small + UNITS_AT[1] + c)[None, :], 1)
    if DEPTH > 1:
        d_above, d_logit = _level(
            products, logits, one_hot, last, first, lane, valid, keys, labels, weights, small, unit_keys, acts, grads,
            part, more, n_samples, limit, scale_up, 1, WIDTHS, WEIGHTS_AT, UNITS_AT, SUMS_AT, SCALE,
            PRODUCTS,
        )  # fmt: skip
    else:
        d_logit = _loss(logits, lane, valid, labels + first, part, more, SCALE)
    tl.store(d_logits + first + lane, d_logit, valid)
    has_group = slot < tl.minimum(n_samples // GROUP - first_group, GROUPS).to(tl.int32)
    d_user_first += first_group * N
    d_user_gmf += first_group * FACTORS
    # What other threads stored is visible from here on: activations of this tile, and sums of the one before.
    tl.debug_barrier()
    for start in tl.range(0, N, BLOCK):
        c = start + tl.arange(0, BLOCK)
        z = _rows(acts + first * N, lane, c, valid, N)
        if DEPTH > 1:
            back = tl.dot(d_above, tl.load(weights + n1[:, None] * N + c[None, :]), input_precision=PRODUCTS)
        else:
            back = d_logit[:, None] * tl.load(small + UNITS_AT[1] + c)[None, :]
            _add(part + 2 + UNITS_AT[1] + c, tl.sum(d_logit[:, None] * z, 0), True, more)
        d = _rounded(tl.where(z > 0, back, 0.0) * scale_up, kind, PRODUCTS)
        tl.store(grads + first * N + lane[:, None] * N + c[None, :], d, valid[:, None])
        sums = tl.dot(one_hot, d, input_precision=PRODUCTS)
        _add(part + 2 + 0 * last[:, None] + c[None, :], sums, last[:, None], more)
        if GROUP > 1:
            tl.store(d_user_first + slot[:, None] * N + c[None, :], sums.to(kind), has_group[:, None])
    # Loaded again rather than held in registers meanwhile.
    of_user, of_item = _rows(user_gmf, group, f, valid, FACTORS), _rows(item_gmf, item, f, valid, FACTORS)
    _add(part + 2 + HEAD + f, tl.sum(d_logit[:, None] * of_user * of_item, 0), True, more)
    d_user = _rounded(d_logit[:, None] * gmf_head[None, :] * of_item, kind, PRODUCTS)
    if GROUP > 1:
        sums = tl.dot(one_hot, d_user, input_precision=PRODUCTS)
        tl.store(d_user_gmf + slot[:, None] * FACTORS + f[None, :], sums.to(kind), has_group[:, None])
    else:
        tl.store(d_user_gmf + lane[:, None] * FACTORS + f[None, :], d_user, valid[:, None])


@triton.jit(do_not_specialize=["n_samples"])
def tile_step(
    items, labels, item_first, user_first, item_gmf, user_gmf, weights, small, unit_keys, dropout, acts, grads,
    d_logits, d_user_first, d_user_gmf, parts, n_samples, scale_up, WIDTHS: tl.constexpr,
    WEIGHTS_AT: tl.constexpr, UNITS_AT: tl.constexpr, SUMS_AT: tl.constexpr, FACTORS: tl.constexpr,
    GROUP: tl.constexpr, SLOTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, SCALE: tl.constexpr,
    PRODUCTS: tl.constexpr,
):  # fmt: skip
    """Forward and backward pass of every n-th tile, for n programs; each adds up sums over its tiles.

    Each level's width, and the number of factors, is padded to a power of two.

    Args:
        items, labels: [n_samples] int32, float32.
        item_first, user_first: the first layer's products of each item and of each group's user, [items, WIDTHS[0]]
            and [groups, WIDTHS[0]].
        item_gmf, user_gmf: GMF embeddings of each item and of each group's user, […, FACTORS].
        weights: of the layers from the second on, [out, in], one after the other, from WEIGHTS_AT.
        small: biases of all levels, from UNITS_AT, then the head's weights of the MLP and of GMF, then its bias.
        unit_keys: a hash of each unit, int32.
        dropout: int64 [2], the seed, and the dropout rate times 2**32.
        acts: out, activations of all levels, one level after the other, [n_samples, WIDTHS[level]], except for those
            that no library's product needs: the last, and those below a level that has SUMS_AT.
        grads: out, gradients before ReLU of all levels, likewise, except for levels that have SUMS_AT; these and those
            below of the summed loss times SCALE.
        d_logits: out, [n_samples] float32.
        d_user_first, d_user_gmf: out, sums over each group; the former only if GROUP > 1 (`grads` has it otherwise).
        parts: out, of each program: the loss, the gradients of the bias of the head, of `small`'s biases and of the
            head's weights, and of those weights below a level that are summed here.
        scale_up: 1 / (1 - dropout rate).
        SUMS_AT: for each level, where in a part the gradient of the weights below it begins; 0 if a library's product
            makes it. Last, the length of a part.
        ROWS: of a tile, of which ROWS // GROUP * GROUP are in use.
        BLOCK: units of the first level computed at a time.
        SLOTS: at least ROWS // GROUP + 1.
    """
    USED: tl.constexpr = ROWS // GROUP * GROUP
    SUMS: tl.constexpr = SUMS_AT[len(WIDTHS)]
    program = tl.program_id(0).to(tl.int64)
    # Nothing is kept in registers from tile to tile: they are scarce.
    for tile in tl.range(program, tl.cdiv(n_samples, USED), tl.num_programs(0), disable_licm=True):
        _tile(
            tile, items, labels, item_first, user_first, item_gmf, user_gmf, weights, small, unit_keys, dropout, acts,
            grads, d_logits, d_user_first, d_user_gmf, parts + program * SUMS, tile > program, n_samples, scale_up,
            WIDTHS, WEIGHTS_AT, UNITS_AT, SUMS_AT, FACTORS, GROUP, SLOTS, ROWS, BLOCK, SCALE, PRODUCTS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["n_rows"])
def gather_rows(
    table, ids, out, n_rows, STRIDE: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """out[r] = table[ids[r * STRIDE]], converted and padded with zeros from WIDTH to PADDED columns.

    Args:
        COLUMNS: the next power of two from PADDED.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    valid = rows < n_rows
    which = tl.load(ids + rows * STRIDE, valid, 0).to(tl.int64)
    inside = valid[:, None] & (columns < WIDTH)[None, :]
    values = tl.load(table + which[:, None] * WIDTH + columns[None, :], inside, 0.0)
    written = valid[:, None] & (columns < PADDED)[None, :]
    tl.store(out + rows[:, None] * PADDED + columns[None, :], values.to(out.dtype.element_ty), written)


@triton.jit
def _correction(log_beta, step):
    """1 - beta**step, also where beta is close to 1."""
    x = log_beta * step
    return tl.where(x > -0.05, -x * (1.0 + x / 2.0 * (1.0 + x / 3.0 * (1.0 + x / 4.0))), 1.0 - tl.exp(x))


@triton.jit
def segment_sum(
    rows, factors, order, bounds, columns, unit, out, exp_avg, exp_avg_sq, step, rate, beta1, beta2, log_beta1,
    log_beta2, eps,
    STRIDE: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    WEIGHTED: tl.constexpr, ADAM: tl.constexpr,
):  # fmt: skip
    """Sum rows by id: the gradient of a table, written to `out`, or applied to the table `out` by a step of Adam.

    The gradient of id i is `unit` times the sum, over bounds[i] <= k < bounds[i + 1], of rows[order[k]]. If WEIGHTED it
    is that of factors[order[k]] * rows[order[k] // GROUP], times `columns`.

    Args:
        rows: […, STRIDE], of which WIDTH columns count; PADDED is WIDTH or the next power of two.
        step: of Adam, float32, counting this one; `rate`: its learning rate (both in device memory). The formula is
            that of torch.optim.Adam.
    """
    i = tl.program_id(0).to(tl.int64)
    n, r = tl.arange(0, PADDED), tl.arange(0, ROWS)
    inside = n < WIDTH
    end = tl.load(bounds + i + 1)
    total = tl.zeros([ROWS, PADDED], tl.float32)
    for start in range(tl.load(bounds + i), end, ROWS):
        valid = start + r < end
        which = tl.load(order + start + r, valid, 0)
        row = which // GROUP if WEIGHTED else which
        values = tl.load(rows + row[:, None] * STRIDE + n[None, :], valid[:, None] & inside[None, :], 0.0)
        if WEIGHTED:
            total += values.to(tl.float32) * tl.load(factors + which, valid, 0.0)[:, None]
        else:
            total += values.to(tl.float32)
    gradient = tl.sum(total, 0) * tl.load(unit)
    if WEIGHTED:
        gradient *= tl.load(columns + n, inside, 0.0)
    at = i * WIDTH + n
    if ADAM:
        t = tl.load(step)
        first = tl.load(exp_avg + at, inside, 0.0)
        first += (gradient - first) * (1.0 - beta1)
        second = tl.load(exp_avg_sq + at, inside, 0.0) * beta2 + gradient * gradient * (1.0 - beta2)
        size = tl.load(rate) / _correction(log_beta1, t)
        spread = tl.sqrt(second) / tl.sqrt(_correction(log_beta2, t)) + eps
        tl.store(exp_avg + at, first, inside)
        tl.store(exp_avg_sq + at, second, inside)
        tl.store(out + at, tl.load(out + at, inside, 0.0) - size * first / spread, inside)
    else:
        tl.store(out + at, gradient, inside)
