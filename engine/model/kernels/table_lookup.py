"""Sixteen-entry table look-ups, eight at a time, where the processor has an instruction for them (AVX2).

Compilers turn such look-ups into single loads, which are some eight times slower.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

AVAILABLE = binding.get_host_cpu_features().get("avx2", False)

_LANES = 8
_FLOATS = ir.VectorType(ir.FloatType(), _LANES)
_INTS = ir.VectorType(ir.IntType(32), _LANES)
_BYTES = ir.VectorType(ir.IntType(8), _LANES)
_FUSED = ("contract", "reassoc", "nsz")


@intrinsic
def block_dot(typing_context, numbers, start, count, table, high, low):
    """Sum over `count` bytes from `start` on of table[upper half] * high + table[lower half] * low.

    numbers uint8 [bytes], table float32 [16], high and low float32 [bytes]; count is a multiple of 8.
    """

    def generate(context, builder, signature, arguments):
        numbers_at, start, count, table_at, high_at, low_at = _raw(context, builder, signature, arguments)
        tables = _load_table(builder, table_at)
        zero = ir.Constant(_FLOATS, [0.0] * _LANES)
        sums = [cgutils.alloca_once_value(builder, zero) for _ in range(2)]
        for total in sums:
            builder.store(zero, total)
        with cgutils.for_range_slice(builder, start, builder.add(start, count), _step(start)) as (place, _):
            values = _look_up_bytes(builder, numbers_at, place, tables)
            for value, inputs_at, total in zip(values, (high_at, low_at), sums, strict=True):
                product = builder.fmul(value, _load(builder, inputs_at, place, _FLOATS), flags=_FUSED)
                builder.store(builder.fadd(builder.load(total), product, flags=_FUSED), total)
        return _sum_of_lanes(builder, builder.fadd(*(builder.load(total) for total in sums), flags=_FUSED))

    return types.float32(numbers, start, count, table, high, low), generate


@intrinsic
def block_raise(typing_context, numbers, start, count, table, scale, high_first, out):
    """out[2 i], out[2 i + 1] = the two numbers of byte i times `scale` (float32), for `count` bytes from `start` on.

    high_first (boolean): the upper half of a byte comes first; count is a multiple of 8; out float32 [2 * bytes].
    """

    def generate(context, builder, signature, arguments):
        numbers_at, start, count, table_at, scale, high_first, out_at = _raw(context, builder, signature, arguments)
        tables = _load_table(builder, table_at)
        factor = _everywhere(builder, scale)
        with cgutils.for_range_slice(builder, start, builder.add(start, count), _step(start)) as (place, _):
            high, low = _look_up_bytes(builder, numbers_at, place, tables)
            first = builder.fmul(builder.select(high_first, high, low), factor)
            second = builder.fmul(builder.select(high_first, low, high), factor)
            for half in range(2):
                order = [lane for i in range(4 * half, 4 * half + 4) for lane in (i, i + _LANES)]
                mixed = builder.shuffle_vector(first, second, ir.Constant(_INTS, order))
                target = builder.add(builder.mul(place, place.type(2)), place.type(half * _LANES))
                builder.store(mixed, _at(builder, out_at, target, _FLOATS), align=4)
        return context.get_dummy_value()

    return types.none(numbers, start, count, table, scale, high_first, out), generate


def _raw(context, builder, signature, arguments):
    """Arrays as pointers to their first element, everything else as it is."""
    return [
        context.make_array(kind)(context, builder, argument).data if isinstance(kind, types.Array) else argument
        for kind, argument in zip(signature.args, arguments, strict=True)
    ]


def _step(start):
    return start.type(_LANES)


def _at(builder, base, place, vector):
    return builder.bitcast(builder.gep(base, [place]), vector.as_pointer())


def _load(builder, base, place, vector):
    return builder.load(_at(builder, base, place, vector), align=1 if vector is _BYTES else 4)


def _load_table(builder, table_at):
    places = (ir.Constant(ir.IntType(64), first) for first in (0, _LANES))
    return [_load(builder, table_at, place, _FLOATS) for place in places]


def _look_up_bytes(builder, numbers_at, place, tables):
    """The values of the upper and of the lower halves of eight bytes."""
    stored = builder.zext(_load(builder, numbers_at, place, _BYTES), _INTS)
    upper = builder.lshr(stored, ir.Constant(_INTS, [4] * _LANES))
    lower = builder.and_(stored, ir.Constant(_INTS, [15] * _LANES))
    return _look_up(builder, upper, tables), _look_up(builder, lower, tables)


def _look_up(builder, index, tables):
    permute = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_FLOATS, [_FLOATS, _INTS]), "llvm.x86.avx2.permps"
    )
    first, second = (builder.call(permute, [table, index]) for table in tables)  # by the lowest three bits
    in_second = builder.icmp_unsigned(">", index, ir.Constant(_INTS, [_LANES - 1] * _LANES))
    return builder.select(in_second, second, first)


def _everywhere(builder, value):
    single = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(single, ir.Constant(_FLOATS, ir.Undefined), ir.Constant(_INTS, [0] * _LANES))


def _sum_of_lanes(builder, vector):
    lanes = [builder.extract_element(vector, ir.Constant(ir.IntType(32), lane)) for lane in range(_LANES)]
    while len(lanes) > 1:
        lanes = [builder.fadd(one, other, flags=_FUSED) for one, other in zip(lanes[::2], lanes[1::2], strict=True)]
    return lanes[0]
