"""Products of stored weights with a few rows of activations: what several chats' tokens need of each matrix.

A block of weights is raised to fp32 in registers once and multiplied with up to six rows, whose sums stay in registers
too; for more rows, weights come from the nearest cache again. Each sum has a register and an order of its own, so that
a row's result does not depend on the rows beside it.

bf16 is raised two weights at a time: of each pair that a 32-bit number holds, a shift raises the first and a mask the
second. So activations are put in the same order before: of each 16, those of even and then those of odd places.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import functools

import numpy as np
from llvmlite import binding, ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from engine.model.kernels.declare import inlined, parallel_kernel, prange
from engine.model.kernels.storage import HAS_HALF_INSTRUCTIONS, pointer_at
from engine.model.kernels.tile_product import take

TILE = 12  # outputs that every group of rows goes through while their weights are in the first cache
TASK = 8 * TILE  # outputs that a thread takes at a time
ROWS_TOGETHER = 6
_OUTPUTS_OF_ROWS = {1: 6, 2: 6, 3: 4, 4: 3, 5: 2, 6: 2}  # as many sums as registers hold; each divides TILE
_VECTOR = 16 if binding.get_host_cpu_features().get("avx512f", False) else 8
_HALF_VECTOR = 8
_TOTALS_TOGETHER = 4  # vectors whose lanes are summed up beside each other
_LINE = 32  # weights of two bytes in a line of the cache
_LINE_BYTES = 64
_PAIRS = 2 * _VECTOR

_FLOATS = ir.VectorType(ir.FloatType(), _VECTOR)
_INTS = ir.VectorType(ir.IntType(32), _VECTOR)


def reads(dtype):
    """Whether these kernels multiply weights of this numpy dtype, as `storage.kernel_view` gives it, here."""
    return HAS_HALF_INSTRUCTIONS or dtype != np.int16


def _block_product(outputs: int, rows: int):
    """An intrinsic: so many neighbouring outputs of so many rows. Compilers do not find this form by themselves."""

    @intrinsic
    def block_product(typing_context, weight, first, x, tokens, begin, ahead, sums, place):
        def generate(context, builder, signature, arguments):
            block = _Block(context, builder, signature.args, arguments, outputs, rows)
            block.multiply()
            block.store()
            return context.get_dummy_value()

        return types.none(weight, first, x, tokens, begin, ahead, sums, place), generate

    return block_product


class _Block:
    """Writes the code of one block: `outputs` rows of weights from `first` on, times x[tokens[begin]] and so on.

    The sum of output o and row r goes to sums[place + o * rows + r]. As many weights are fetched from address `ahead`.
    """

    def __init__(self, context, builder, kinds, arguments, outputs, rows):
        weight, first, x, tokens, begin, ahead, sums, place = arguments
        array = context.make_array(kinds[0])(context, builder, weight)
        self._builder, self._dtype, self._outputs = builder, kinds[0].dtype, outputs
        self._depth = cgutils.unpack_tuple(builder, array.shape, 2)[1]
        self._integer = self._depth.type
        self._ahead_at = builder.inttoptr(ahead, array.data.type)
        first_at = builder.gep(array.data, [builder.mul(first, self._depth)])
        self._weights_at = [self._row(first_at, self._integer(o)) for o in range(outputs)]
        x_at, tokens_at, sums_at = (
            context.make_array(kind)(context, builder, argument).data
            for kind, argument in ((kinds[2], x), (kinds[3], tokens), (kinds[6], sums))
        )
        chosen = [builder.gep(tokens_at, [builder.add(begin, self._integer(r))]) for r in range(rows)]
        self._rows_at = [self._row(x_at, builder.load(at)) for at in chosen]
        self._sums_at = builder.gep(sums_at, [place])
        self._totals = [[cgutils.alloca_once(builder, _FLOATS) for _ in range(rows)] for _ in range(outputs)]
        for total in self._all_totals():
            builder.store(_zeros(), total)

    def _row(self, base, number):
        return self._builder.gep(base, [self._builder.mul(number, self._depth)])

    def _all_totals(self):
        return [total for of_output in self._totals for total in of_output]

    def multiply(self):
        """Lines of the cache, then what is left in whole registers."""
        builder, integer = self._builder, self._integer
        lines = builder.and_(self._depth, integer(-_LINE))
        self._vectors = builder.and_(self._depth, integer(-_VECTOR))
        with cgutils.for_range_slice(builder, integer(0), lines, integer(_LINE)) as (position, _):
            self._fetch_ahead(position)
            for step in range(0, _LINE, _PAIRS):
                self._add_pairs(builder.add(position, integer(step)))
        with cgutils.for_range_slice(builder, lines, self._vectors, integer(_VECTOR)) as (position, _):
            self._add_products(self._raised, position, position)

    def _fetch_ahead(self, position):
        """In the order of addresses, whichever rows they belong to: so the processor's own fetching joins in."""
        begin = self._builder.mul(position, self._integer(self._outputs))
        for line in range(self._outputs):
            place = self._builder.add(begin, self._integer(line * _LINE))
            _prefetch(self._builder, self._builder.gep(self._ahead_at, [place]))

    def _add_pairs(self, position):
        second = self._builder.add(position, self._integer(_VECTOR))
        if self._dtype == types.uint16:
            self._add_products(self._raised_firsts, position, position)
            self._add_products(self._raised_seconds, position, second)
        else:
            self._add_products(self._raised, position, position)
            self._add_products(self._raised, second, second)

    def _add_products(self, raised, position, position_in_rows):
        """Adds a register of each output's weights, as `raised` loads them, times a register of each row.

        The fewer of both are kept, the others come one by one: else compilers load more than registers hold, which
        the fence keeps them from doing for the next products too.
        """
        builder = self._builder
        builder.fence("acq_rel", targetscope="singlethread")
        weights = [functools.partial(raised, at, position) for at in self._weights_at]
        rows = [functools.partial(_load, builder, at, position_in_rows, _FLOATS, 4) for at in self._rows_at]
        totals = self._totals
        if len(rows) > len(weights):
            weights, rows, totals = rows, weights, list(zip(*totals, strict=True))
        kept = [load() for load in rows]
        for load, sums in zip(weights, totals, strict=True):
            factor = load()
            for other, total in zip(kept, sums, strict=True):
                product = builder.fmul(factor, other, flags=("contract",))
                builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)

    def _raised_firsts(self, base, position):
        pairs = _load(self._builder, base, position, _INTS, 2)
        return self._builder.bitcast(self._builder.shl(pairs, _same(16)), _FLOATS)

    def _raised_seconds(self, base, position):
        pairs = _load(self._builder, base, position, _INTS, 2)
        return self._builder.bitcast(self._builder.and_(pairs, _same(0xFFFF0000)), _FLOATS)

    def _raised(self, base, position):
        builder = self._builder
        if self._dtype == types.float32:
            return _load(builder, base, position, _FLOATS, 4)
        if self._dtype == types.int16:
            return builder.fpext(_load(builder, base, position, ir.VectorType(ir.HalfType(), _VECTOR), 2), _FLOATS)
        bits = builder.zext(_load(builder, base, position, ir.VectorType(ir.IntType(16), _VECTOR), 2), _INTS)
        return builder.bitcast(builder.shl(bits, _same(16)), _FLOATS)

    def store(self):
        """The lanes' sums, and the products of what did not fill a register."""
        builder = self._builder
        totals = [builder.load(total) for total in self._all_totals()]
        for begin in range(0, len(totals), _TOTALS_TOGETHER):
            together = totals[begin : begin + _TOTALS_TOGETHER]
            sums = _sums_of_lanes(builder, together + [_zeros()] * (_TOTALS_TOGETHER - len(together)))
            sums = _chosen(builder, sums, sums, range(len(together)))
            at = builder.gep(self._sums_at, [self._integer(begin)])
            builder.store(sums, builder.bitcast(at, sums.type.as_pointer()), align=4)
        with builder.if_then(builder.icmp_signed("<", self._vectors, self._depth), likely=False):
            self._add_rest()

    def _add_rest(self):
        builder = self._builder
        pairs = [(weights_at, row_at) for weights_at in self._weights_at for row_at in self._rows_at]
        for place, (weights_at, row_at) in enumerate(pairs):
            at = builder.gep(self._sums_at, [self._integer(place)])
            with cgutils.for_range_slice(builder, self._vectors, self._depth, self._integer(1)) as (position, _):
                weight = self._raise_one(builder.load(builder.gep(weights_at, [position])))
                product = builder.fmul(weight, builder.load(builder.gep(row_at, [position])), flags=("contract",))
                builder.store(builder.fadd(builder.load(at), product, flags=("contract",)), at)

    def _raise_one(self, stored):
        builder = self._builder
        if self._dtype == types.float32:
            return stored
        if self._dtype == types.int16:
            return builder.fpext(builder.bitcast(stored, ir.HalfType()), ir.FloatType())
        bits = builder.shl(builder.zext(stored, ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(bits, ir.FloatType())


def _load(builder, base, position, vector, align):
    return builder.load(builder.bitcast(builder.gep(base, [position]), vector.as_pointer()), align=align)


def _same(number):
    return ir.Constant(_INTS, [number] * _VECTOR)


def _zeros():
    return ir.Constant(_FLOATS, [0.0] * _VECTOR)


def _prefetch(builder, address):
    """Into the second cache: the first has fewer places for what is on its way, and this much comes faster."""
    pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    form = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, form, "llvm.prefetch.p0i8")
    builder.call(function, [builder.bitcast(address, pointer), number(0), number(2), number(1)])


def _sums_of_lanes(builder, vectors):
    """Of each of four vectors, as one vector: all in the same order, by instructions that do two vectors at once."""
    if _VECTOR > _HALF_VECTOR:
        lower, upper = range(_HALF_VECTOR), range(_HALF_VECTOR, _VECTOR)
        vectors = [_added(builder, vector, vector, lower, upper) for vector in vectors]
    first, second = (
        _added(builder, vectors[begin], vectors[begin + 1], (0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15))
        for begin in (0, 2)
    )
    halves = _added(builder, first, second, (0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15))
    return _added(builder, halves, halves, (0, 1, 2, 3), (4, 5, 6, 7))


def _added(builder, left, right, some, others):
    """Numbers of both vectors at `some` places plus those at `others`."""
    return builder.fadd(_chosen(builder, left, right, some), _chosen(builder, left, right, others))


def _chosen(builder, left, right, places):
    chosen = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), list(places))
    return builder.shuffle_vector(left, right, chosen)


_one, _two, _three, _four, _five, _six = (_block_product(outputs, rows) for rows, outputs in _OUTPUTS_OF_ROWS.items())


@inlined
def _multiply_block(rows, weight, first, x, tokens, begin, ahead, sums, place):
    if rows == 1:
        _one(weight, first, x, tokens, begin, ahead, sums, place)
    elif rows == 2:
        _two(weight, first, x, tokens, begin, ahead, sums, place)
    elif rows == 3:
        _three(weight, first, x, tokens, begin, ahead, sums, place)
    elif rows == 4:
        _four(weight, first, x, tokens, begin, ahead, sums, place)
    elif rows == 5:
        _five(weight, first, x, tokens, begin, ahead, sums, place)
    else:
        _six(weight, first, x, tokens, begin, ahead, sums, place)


@inlined
def _outputs_at_once(rows):
    return 6 if rows <= 2 else 4 if rows == 3 else 3 if rows == 4 else 2


@parallel_kernel
def multiply_groups(addresses, features, columns, firsts, lasts, stored, x, tokens, out, workers, taken):
    """out[p, columns[g] + o] = weight g's row o . x[tokens[p]], for each group g and its firsts[g] <= p < lasts[g].

    addresses int64 [groups]: of weights [features[g] >= TILE, in], contiguous; stored: any array of their kernel
    dtype; x float32 [any, in]; tokens int64; out float32 [any, any], all contiguous; taken int64 [1], zero. Matrices
    that share rows stand side by side in `out`; experts have rows of their own.
    """
    for _ in prange(workers):
        _multiply_tasks(addresses, features, columns, firsts, lasts, stored, x, tokens, out, taken)


def put_in_order(row, stored, ordered):
    """Inputs in the order in which blocks raise weights; kernels only (chosen by the type of `stored`)."""
    raise NotImplementedError("put_in_order exists inside compiled kernels only")


@overload(put_in_order)
def _put_in_order(row, stored, ordered):
    return _firsts_then_seconds if stored.dtype == types.uint16 else _as_they_are


def _firsts_then_seconds(row, stored, ordered):
    lines = row.shape[0] // _LINE * _LINE
    for begin in range(0, lines, _PAIRS):
        for i in range(_VECTOR):
            ordered[begin + i] = row[begin + 2 * i]
            ordered[begin + _VECTOR + i] = row[begin + 2 * i + 1]
    for i in range(lines, row.shape[0]):
        ordered[i] = row[i]


def _as_they_are(row, stored, ordered):
    for i in range(row.shape[0]):
        ordered[i] = row[i]


@inlined
def _multiply_tasks(addresses, features, columns, firsts, lasts, stored, x, tokens, out, taken):
    sums = np.empty(TILE * ROWS_TOGETHER, np.float32)
    ordered = _in_lines(x.shape)  # each thread's own: another parallel region would cost more
    for row in range(x.shape[0]):
        put_in_order(x[row], stored, ordered[row])
    row_bytes = x.shape[1] * stored.itemsize
    task = take(taken)
    group, begun = _group_of(task, 0, 0, features)
    while group < addresses.shape[0]:
        following = take(taken)
        next_group, next_begun = _group_of(following, group, begun, features)
        weight = carray(pointer_at(addresses[group]), (features[group], x.shape[1]), stored.dtype)
        begin, end = (task - begun) * TASK, min((task - begun + 1) * TASK, features[group])
        for start in range(begin, end, TILE):
            first = min(start, features[group] - TILE)  # the last tile overlaps
            ahead = addresses[group] + min(start + TILE, features[group] - TILE) * row_bytes
            if start + TILE >= end and next_group < addresses.shape[0]:
                ahead = addresses[next_group] + (following - next_begun) * TASK * row_bytes
            _multiply_tile(
                weight, first, ordered, tokens, firsts[group], lasts[group], columns[group], out, ahead, sums
            )
        task, group, begun = following, next_group, next_begun


@inlined
def _in_lines(shape):
    """float32 memory that begins with a line of the cache: a register that spans two of them takes twice as long."""
    memory = np.empty(shape[0] * shape[1] + _LINE_BYTES // 4, np.float32)
    skipped = -memory.ctypes.data % _LINE_BYTES // 4
    return memory[skipped : skipped + shape[0] * shape[1]].reshape(shape)


@inlined
def _group_of(task, group, begun, features):
    """Which group a task belongs to, and the number of its first; `group` and `begun`: of a task before it."""
    while group < features.shape[0]:
        tasks = (features[group] + TASK - 1) // TASK
        if task < begun + tasks:
            break
        begun += tasks
        group += 1
    return group, begun


@inlined
def _multiply_tile(weight, first, x, tokens, first_row, last_row, column, out, ahead, sums):
    """TILE outputs of all the rows, as many at once as fit and about as many each time."""
    rows = last_row - first_row
    parts = (rows + ROWS_TOGETHER - 1) // ROWS_TOGETHER
    for part in range(parts):
        begin, end = first_row + rows * part // parts, first_row + rows * (part + 1) // parts
        together = end - begin
        for place in range(0, TILE, _outputs_at_once(together)):
            fetched = ahead + place * weight.strides[0]
            _multiply_block(together, weight, first + place, x, tokens, begin, fetched, sums, place * together)
        for row in range(begin, end):
            for o in range(TILE):
                out[row, column + first + o] = sums[o * together + row - begin]
