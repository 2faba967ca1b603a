"""Products of stored weights with a few rows of activations: what several chats' tokens need of each matrix.

A block of weights is raised to fp32 in registers once and multiplied with up to six rows, whose sums stay in registers
too; for more rows, weights come from the nearest cache again. Each sum has a register and an order of its own, so that
a row's result does not depend on the rows beside it.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from engine.model.kernels.declare import inlined, parallel_kernel, prange
from engine.model.kernels.storage import HAS_HALF_INSTRUCTIONS, pointer_at
from engine.model.kernels.tile_product import take

TILE = 12  # outputs that every group of rows goes through while their weights are in the first cache
TASK = 4 * TILE  # outputs that a thread takes at a time
ROWS_TOGETHER = 6
_OUTPUTS_OF_ROWS = {1: 6, 2: 6, 3: 4, 4: 3, 5: 2, 6: 2}  # as many sums as registers hold; each divides TILE
_VECTOR = 8
_LINE = 32  # weights of two bytes in a line of the cache
_AHEAD = 12  # rows of weights, about as long as memory takes to answer

_FLOATS = ir.VectorType(ir.FloatType(), _VECTOR)
_INTS = ir.VectorType(ir.IntType(32), _VECTOR)


def reads(dtype):
    """Whether these kernels multiply weights of this numpy dtype, as `storage.kernel_view` gives it, here."""
    return HAS_HALF_INSTRUCTIONS or dtype != np.int16


def _block_product(outputs: int, rows: int):
    """An intrinsic: so many neighbouring outputs of so many rows. Compilers do not find this form by themselves."""

    @intrinsic
    def block_product(typing_context, weight, first, x, tokens, begin, sums, place):
        def generate(context, builder, signature, arguments):
            block = _Block(context, builder, signature.args, arguments, outputs, rows)
            block.multiply()
            block.store()
            return context.get_dummy_value()

        return types.none(weight, first, x, tokens, begin, sums, place), generate

    return block_product


class _Block:
    """Writes the code of one block: `outputs` rows of weights from `first` on, times x[tokens[begin]] and so on."""

    def __init__(self, context, builder, kinds, arguments, outputs, rows):
        weight, first, x, tokens, begin, sums, place = arguments
        array = context.make_array(kinds[0])(context, builder, weight)
        self._builder, self._dtype, self._outputs = builder, kinds[0].dtype, outputs
        self._depth = cgutils.unpack_tuple(builder, array.shape, 2)[1]
        self._integer = self._depth.type
        self._first_at = builder.gep(array.data, [builder.mul(first, self._depth)])
        self._weights_at = [self._row(self._first_at, self._integer(o)) for o in range(outputs)]
        x_at, tokens_at, sums_at = (
            context.make_array(kind)(context, builder, argument).data
            for kind, argument in ((kinds[2], x), (kinds[3], tokens), (kinds[5], sums))
        )
        chosen = [builder.gep(tokens_at, [builder.add(begin, self._integer(r))]) for r in range(rows)]
        self._rows_at = [self._row(x_at, builder.load(at)) for at in chosen]
        start = builder.mul(place, self._integer(ROWS_TOGETHER))
        self._sums_at = builder.gep(sums_at, [start])
        zero = ir.Constant(_FLOATS, [0.0] * _VECTOR)
        self._totals = [[cgutils.alloca_once(builder, _FLOATS) for _ in range(rows)] for _ in range(outputs)]
        for total in (total for line in self._totals for total in line):
            builder.store(zero, total)

    def _row(self, base, number):
        return self._builder.gep(base, [self._builder.mul(number, self._depth)])

    def multiply(self):
        """Lines of the cache, then what is left in whole registers."""
        builder, integer = self._builder, self._integer
        lines = builder.and_(self._depth, integer(-_LINE))
        self._vectors = builder.and_(self._depth, integer(-_VECTOR))
        with cgutils.for_range_slice(builder, integer(0), lines, integer(_LINE)) as (position, _):
            self._fetch_ahead(position)
            for step in range(0, _LINE, _VECTOR):
                self._add_products(builder.add(position, integer(step)))
        with cgutils.for_range_slice(builder, lines, self._vectors, integer(_VECTOR)) as (position, _):
            self._add_products(position)

    def _fetch_ahead(self, position):
        """In the order of addresses, whichever rows they belong to: so the processor's own fetching joins in."""
        builder = self._builder
        begin = builder.mul(position, self._integer(self._outputs))
        begin = builder.add(begin, builder.mul(self._depth, self._integer(_AHEAD)))
        for line in range(self._outputs):
            at = builder.gep(self._first_at, [builder.add(begin, self._integer(line * _LINE))])
            _prefetch(builder, at)

    def _add_products(self, position):
        builder = self._builder
        raised = [self._raised(at, position) for at in self._weights_at]
        for r, at in enumerate(self._rows_at):
            row = _load(builder, at, position, _FLOATS, 4)
            for weights, totals in zip(raised, self._totals, strict=True):
                product = builder.fmul(weights, row, flags=("contract",))
                builder.store(builder.fadd(builder.load(totals[r]), product, flags=("contract",)), totals[r])

    def _raised(self, base, position):
        builder = self._builder
        if self._dtype == types.float32:
            return _load(builder, base, position, _FLOATS, 4)
        if self._dtype == types.int16:
            return builder.fpext(_load(builder, base, position, ir.VectorType(ir.HalfType(), _VECTOR), 2), _FLOATS)
        bits = builder.zext(_load(builder, base, position, ir.VectorType(ir.IntType(16), _VECTOR), 2), _INTS)
        return builder.bitcast(builder.shl(bits, ir.Constant(_INTS, [16] * _VECTOR)), _FLOATS)

    def store(self):
        """The lanes' sums, and the products of what did not fill a register."""
        builder = self._builder
        for o, (weights_at, totals) in enumerate(zip(self._weights_at, self._totals, strict=True)):
            for r, (row_at, total) in enumerate(zip(self._rows_at, totals, strict=True)):
                at = builder.gep(self._sums_at, [self._integer(o * ROWS_TOGETHER + r)])
                builder.store(_sum_of_lanes(builder, builder.load(total)), at)
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


def _prefetch(builder, address):
    pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    form = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, form, "llvm.prefetch.p0i8")
    builder.call(function, [builder.bitcast(address, pointer), number(0), number(3), number(1)])


def _sum_of_lanes(builder, vector):
    """Halves onto halves, in this order always."""
    lanes = _VECTOR
    while lanes > 1:
        lanes //= 2
        vector = builder.fadd(_lanes(builder, vector, 0, lanes), _lanes(builder, vector, lanes, lanes))
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


def _lanes(builder, vector, first, count):
    chosen = ir.Constant(ir.VectorType(ir.IntType(32), count), list(range(first, first + count)))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), chosen)


_one, _two, _three, _four, _five, _six = (_block_product(outputs, rows) for rows, outputs in _OUTPUTS_OF_ROWS.items())


@inlined
def _multiply_block(rows, weight, first, x, tokens, begin, sums, place):
    if rows == 1:
        _one(weight, first, x, tokens, begin, sums, place)
    elif rows == 2:
        _two(weight, first, x, tokens, begin, sums, place)
    elif rows == 3:
        _three(weight, first, x, tokens, begin, sums, place)
    elif rows == 4:
        _four(weight, first, x, tokens, begin, sums, place)
    elif rows == 5:
        _five(weight, first, x, tokens, begin, sums, place)
    else:
        _six(weight, first, x, tokens, begin, sums, place)


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


@inlined
def _multiply_tasks(addresses, features, columns, firsts, lasts, stored, x, tokens, out, taken):
    sums = np.empty((TILE, ROWS_TOGETHER), np.float32)
    group, begun = 0, 0  # tasks of the groups before this one
    task = take(taken)
    while group < addresses.shape[0]:
        tasks = (features[group] + TASK - 1) // TASK
        if task >= begun + tasks:
            begun += tasks
            group += 1
            continue
        weight = carray(pointer_at(addresses[group]), (features[group], x.shape[1]), stored.dtype)
        begin, end = (task - begun) * TASK, min((task - begun + 1) * TASK, features[group])
        for start in range(begin, end, TILE):
            first = min(start, features[group] - TILE)  # the last tile overlaps
            _multiply_tile(weight, first, x, tokens, firsts[group], lasts[group], columns[group], out, sums)
        task = take(taken)


@inlined
def _multiply_tile(weight, first, x, tokens, first_row, last_row, column, out, sums):
    """TILE outputs of all the rows, as many at once as fit and about as many each time."""
    rows = last_row - first_row
    parts = (rows + ROWS_TOGETHER - 1) // ROWS_TOGETHER
    for part in range(parts):
        begin, end = first_row + rows * part // parts, first_row + rows * (part + 1) // parts
        step = _outputs_at_once(end - begin)
        for place in range(0, TILE, step):
            _multiply_block(end - begin, weight, first + place, x, tokens, begin, sums, place)
        for row in range(begin, end):
            for o in range(TILE):
                out[row, column + first + o] = sums[o, row - begin]
