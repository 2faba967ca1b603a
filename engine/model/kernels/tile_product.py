"""Products of stored weights with many rows of activations: Linear layers and experts while a prompt is read.

Activations lie in blocks of 16 rows side by side, [blocks, in, 16] ("lanes"): a step along `in` multiplies a few
weights with 16 rows at once, the sums stay in registers, and weights are raised to fp32 a few rows at a time in the
nearest cache. So nothing the size of a weight matrix is ever written. Threads take tiles as they become free, because
cores differ and other programs run.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import math
import threading

import numpy as np
from llvmlite import ir
from numba import get_num_threads, types
from numba.core import cgutils
from numba.extending import intrinsic

from engine.model.kernels.activation import SILU, activate
from engine.model.kernels.declare import inlined, parallel_kernel, prange
from engine.model.kernels.exponential import exp
from engine.model.kernels.storage import to_float32

LANES = 16
HALF_LANES = 8
TILE_OUTPUTS = 6  # with 16 lanes: 12 of 16 registers of 8 floats, or 6 of 32 of 16
BLOCKS_TOGETHER = 8  # activations that one thread goes through for each tile of weights stay in its second cache
DEPTH = 1024  # inputs at a time: the raised weights of a tile stay in the first cache
PANEL_STRIDE = DEPTH + 16  # known when compiling, so that one register points to all rows; no power of two


def _tile_sums(lanes: int):
    """An intrinsic for one tile; compilers do not find this form by themselves."""
    vector = ir.VectorType(ir.FloatType(), lanes)

    @intrinsic
    def tile_sums(typing_context, weights, x, depth, sums):
        def generate(context, builder, signature, arguments):
            weights_at, x_at, depth, sums_at = (
                argument if kind == types.intp else _first_element(context, builder, kind, argument)
                for kind, argument in zip(signature.args, arguments, strict=True)
            )
            places = [_vector_at(builder, sums_at, output * LANES, vector) for output in range(TILE_OUTPUTS)]
            totals = [cgutils.alloca_once_value(builder, builder.load(place, align=4)) for place in places]
            with cgutils.for_range(builder, depth) as loop:
                step = builder.mul(loop.index, ir.Constant(loop.index.type, LANES))
                activations = builder.load(_vector_at(builder, x_at, step, vector), align=4)
                for output, total in enumerate(totals):
                    place = builder.add(loop.index, ir.Constant(loop.index.type, output * PANEL_STRIDE))
                    weight = builder.load(builder.gep(weights_at, [place]))
                    product = builder.fmul(_spread(builder, weight, vector), activations, flags=("contract",))
                    builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
            for place, total in zip(places, totals, strict=True):
                builder.store(builder.load(total), place, align=4)
            return context.get_dummy_value()

        return types.none(weights, x, depth, sums), generate

    return tile_sums


def _first_element(context, builder, kind, array):
    return builder.bitcast(context.make_array(kind)(context, builder, array).data, ir.FloatType().as_pointer())


def _vector_at(builder, base, offset, vector):
    if isinstance(offset, int):
        offset = ir.Constant(ir.IntType(64), offset)
    return builder.bitcast(builder.gep(base, [offset]), vector.as_pointer())


def _spread(builder, value, vector):
    undefined = ir.Constant(vector, ir.Undefined)
    single = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(single, undefined, everywhere)


_sums_of_16 = _tile_sums(LANES)
_sums_of_8 = _tile_sums(HALF_LANES)


@inlined
def add_products(panel, block, rows, depth, sums):
    """sums[o, lane] += sum over i < depth of panel[o, i] * block[i, lane], for at least the first `rows` lanes.

    panel float32 [TILE_OUTPUTS, PANEL_STRIDE], block float32 [>= depth, LANES], sums float32 [TILE_OUTPUTS, LANES].
    """
    if rows > HALF_LANES:
        _sums_of_16(panel, block, depth, sums)
    else:
        _sums_of_8(panel, block, depth, sums)


@intrinsic
def take(typing_context, taken):
    """Number of the next task, counted up for all threads at once: a thread that is kept waiting takes fewer."""

    def generate(context, builder, signature, arguments):
        counter = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(taken), generate


@inlined
def raise_row(stored, out):
    for i in range(stored.shape[0]):
        out[i] = to_float32(stored[i])


@inlined
def multiply_tile(first, second, weight, blocks, begin, end, rows, panel, sums):
    """sums[b] = products of blocks[begin + b], b < end - begin, with half a tile of `weight`'s rows from `first` on
    and half a tile from `second` on. `rows`: of all blocks; panel and sums are scratch.
    """
    half = TILE_OUTPUTS // 2
    inputs = weight.shape[1]
    parts = (inputs + DEPTH - 1) // DEPTH
    sums[: end - begin] = 0
    for part in range(parts):
        start, stop = inputs * part // parts, inputs * (part + 1) // parts
        for o in range(half):
            raise_row(weight[first + o, start:stop], panel[o])
            raise_row(weight[second + o, start:stop], panel[half + o])
        for b in range(begin, end):
            add_products(panel, blocks[b, start:stop], rows - b * LANES, stop - start, sums[b - begin])


@parallel_kernel
def pack_rows(x, tokens, blocks):
    """blocks[b, i, lane] = x[tokens[16 b + lane], i], 0 beyond the last token; blocks float32 [.., in, LANES]."""
    count = tokens.shape[0]
    for b in prange(blocks.shape[0]):
        for lane in range(LANES):
            place = b * LANES + lane
            if place < count:
                row = x[tokens[place]]
                for i in range(blocks.shape[1]):
                    blocks[b, i, lane] = row[i]
            else:
                for i in range(blocks.shape[1]):
                    blocks[b, i, lane] = 0


@parallel_kernel
def multiply_blocks(weight, blocks, out, workers, taken):
    """out[r] = weight @ (row r of blocks); weight [out_features, in] stored, out float32 [rows, out_features].

    out_features is at least TILE_OUTPUTS; taken: int64 [1], zero.
    """
    for worker in prange(workers):
        _multiply_tasks(worker, weight, blocks, out, taken)


@inlined
def _multiply_tasks(worker, weight, blocks, out, taken):
    rows, features = out.shape
    tiles, tasks = _tasks(features, TILE_OUTPUTS, blocks.shape[0])
    panel = np.empty((TILE_OUTPUTS, PANEL_STRIDE), np.float32)
    sums = np.empty((BLOCKS_TOGETHER, TILE_OUTPUTS, LANES), np.float32)
    task = take(taken)
    while task < tasks:
        group = task // tiles
        first = min((task - group * tiles) * TILE_OUTPUTS, features - TILE_OUTPUTS)  # the last tile overlaps
        begin, end = group * BLOCKS_TOGETHER, min((group + 1) * BLOCKS_TOGETHER, blocks.shape[0])
        multiply_tile(first, first + TILE_OUTPUTS // 2, weight, blocks, begin, end, rows, panel, sums)
        for b in range(begin, end):
            for lane in range(min(LANES, rows - b * LANES)):
                for o in range(TILE_OUTPUTS):
                    out[b * LANES + lane, first + o] = sums[b - begin, o, lane]
        task = take(taken)


@parallel_kernel
def gate_up_blocks(gate_up, activation, blocks, rows, hidden, workers, taken):
    """hidden = act(gate @ x) * (up @ x) for every row x, as blocks again.

    gate_up [2 * intermediate, in] stored, gate first; hidden float32 [blocks, intermediate, LANES], of which
    `rows` lanes in all mean something. intermediate is at least TILE_OUTPUTS / 2; taken: int64 [1], zero.
    """
    for worker in prange(workers):
        _gate_up_tasks(worker, gate_up, activation, blocks, rows, hidden, taken)


@inlined
def _gate_up_tasks(worker, gate_up, activation, blocks, rows, hidden, taken):
    neurons = TILE_OUTPUTS // 2
    intermediate = hidden.shape[1]
    tiles, tasks = _tasks(intermediate, neurons, blocks.shape[0])
    panel = np.empty((TILE_OUTPUTS, PANEL_STRIDE), np.float32)
    sums = np.empty((BLOCKS_TOGETHER, TILE_OUTPUTS, LANES), np.float32)
    task = take(taken)
    while task < tasks:
        group = task // tiles
        first = min((task - group * tiles) * neurons, intermediate - neurons)
        begin, end = group * BLOCKS_TOGETHER, min((group + 1) * BLOCKS_TOGETHER, blocks.shape[0])
        multiply_tile(first, intermediate + first, gate_up, blocks, begin, end, rows, panel, sums)
        for b in range(begin, end):
            both = sums[b - begin].reshape(TILE_OUTPUTS * LANES)
            out = hidden[b, first : first + neurons].reshape(neurons * LANES)
            gate_all(activation, both[: neurons * LANES], both[neurons * LANES :], out)
        task = take(taken)


@inlined
def _tasks(features, features_per_task, blocks):
    """Tasks of one group of blocks, and of all groups."""
    tiles = (features + features_per_task - 1) // features_per_task
    return tiles, tiles * ((blocks + BLOCKS_TOGETHER - 1) // BLOCKS_TOGETHER)


@inlined
def gate_all(activation, gate, up, out):
    if activation == SILU:  # apart from the others, so that it becomes vector instructions
        for i in range(out.shape[0]):
            out[i] = gate[i] / (np.float32(1) + exp(-gate[i])) * up[i]
    else:
        for i in range(out.shape[0]):
            out[i] = activate(activation, gate[i]) * up[i]


def fits_tiles(gate_up_shape, down_shape):
    """Whether an expert's matrices are large enough for the tiles."""
    return gate_up_shape[0] >= TILE_OUTPUTS and down_shape[0] >= TILE_OUTPUTS


class _Scratch(threading.local):
    """Blocks kept from call to call: their sizes change with every expert, which would fragment the heap."""

    def __init__(self):
        self._memory = {}

    def blocks(self, name, rows, width):
        """An uninitialised array for so many rows, valid until the next call with this name in this thread."""
        shape = (-(-rows // LANES), width, LANES)
        size = math.prod(shape)
        memory = self._memory.get(name)
        if memory is None or memory.size < size:
            memory = self._memory[name] = np.empty(size, np.float32)
        return memory[:size].reshape(shape)


_scratch = _Scratch()


def multiply_rows(weight, x, out):
    """out = x @ weight.T; x float32 [rows, in], weight [out_features >= TILE_OUTPUTS, in] stored."""
    blocks = _scratch.blocks("inputs", *x.shape)
    pack_rows(x, np.arange(x.shape[0]), blocks)
    multiply_blocks(weight, blocks, out, get_num_threads(), np.zeros(1, np.int64))


def expert_rows(gate_up, down, activation, x, tokens, out):
    """out[r] = down(act(gate(x[tokens[r]])) * up(x[tokens[r]])): one gated expert for many rows.

    gate_up [2 * intermediate, width] and down [width, intermediate] stored; x float32 [any, width]; tokens int64
    [rows]; out float32 [rows, width].
    """
    blocks = _scratch.blocks("inputs", len(tokens), x.shape[1])
    pack_rows(x, tokens, blocks)
    hidden = _scratch.blocks("hidden", len(tokens), down.shape[1])
    workers = get_num_threads()
    gate_up_blocks(gate_up, activation, blocks, len(tokens), hidden, workers, np.zeros(1, np.int64))
    multiply_blocks(down, hidden, out, workers, np.zeros(1, np.int64))
