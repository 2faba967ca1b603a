"""Products of stored weights with many rows of activations: Linear layers and experts while a prompt is read.

Activations lie in blocks of 16 rows side by side, [blocks, in, 16] ("lanes"): a step along `in` multiplies a few
weights with 16 rows at once, the sums stay in registers, and weights are raised to fp32 a few rows at a time in the
nearest cache. So nothing the size of a weight matrix is ever written.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from engine.model.kernels.activation import activate
from engine.model.kernels.declare import inlined, parallel_kernel, prange
from engine.model.kernels.storage import to_float32

LANES = 16
HALF_LANES = 8
TILE_OUTPUTS = 6  # with 16 lanes: 12 of 16 registers of 8 floats, or 6 of 32 of 16
BLOCKS_TOGETHER = 8  # activations that one thread goes through for each tile of weights stay in its second cache


def _tile_sums(lanes: int):
    """An intrinsic for one tile; compilers do not find this form by themselves."""
    vector = ir.VectorType(ir.FloatType(), lanes)

    @intrinsic
    def tile_sums(typing_context, weights, x, depth, sums):
        def generate(context, builder, signature, arguments):
            pointer = ir.FloatType().as_pointer()
            arrays = [
                context.make_array(array_type)(context, builder, argument).data
                for array_type, argument in zip(signature.args, arguments, strict=True)
                if array_type != types.intp
            ]
            weights_at, x_at, sums_at = (builder.bitcast(array, pointer) for array in arrays)
            depth = arguments[2]
            totals = [cgutils.alloca_once(builder, vector) for _ in range(TILE_OUTPUTS)]
            for total in totals:
                builder.store(ir.Constant(vector, [0.0] * lanes), total)
            with cgutils.for_range(builder, depth) as loop:
                step = builder.mul(loop.index, ir.Constant(loop.index.type, LANES))
                activations = _load(builder, x_at, step, vector)
                for output, total in enumerate(totals):
                    place = builder.add(builder.mul(depth, ir.Constant(depth.type, output)), loop.index)
                    weight = builder.load(builder.gep(weights_at, [place]))
                    product = builder.fmul(_spread(builder, weight, vector), activations, flags=("contract",))
                    builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
            for output, total in enumerate(totals):
                place = builder.gep(sums_at, [ir.Constant(depth.type, output * LANES)])
                store = builder.store(builder.load(total), builder.bitcast(place, vector.as_pointer()))
                store.align = 4
            return context.get_dummy_value()

        return types.none(weights, x, depth, sums), generate

    return tile_sums


def _load(builder, base, offset, vector):
    place = builder.bitcast(builder.gep(base, [offset]), vector.as_pointer())
    return builder.load(place, align=4)


def _spread(builder, value, vector):
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), mask)


_sums_of_16 = _tile_sums(LANES)
_sums_of_8 = _tile_sums(HALF_LANES)


@inlined
def tile_sums(weights, block, rows, sums):
    """sums[o, lane] = sum over i of weights[o, i] * block[i, lane], for at least the first `rows` lanes.

    weights float32 [TILE_OUTPUTS, in], block float32 [in, LANES], sums float32 [TILE_OUTPUTS, LANES].
    """
    if rows > HALF_LANES:
        _sums_of_16(weights, block, weights.shape[1], sums)
    else:
        _sums_of_8(weights, block, weights.shape[1], sums)


@inlined
def raise_row(stored, out):
    for i in range(out.shape[0]):
        out[i] = to_float32(stored[i])


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
def multiply_blocks(weight, blocks, out):
    """out[r] = weight @ (row r of blocks); weight [out_features, in] stored, out float32 [rows, out_features].

    out_features is at least TILE_OUTPUTS.
    """
    rows, features = out.shape
    tiles = (features + TILE_OUTPUTS - 1) // TILE_OUTPUTS
    groups = (blocks.shape[0] + BLOCKS_TOGETHER - 1) // BLOCKS_TOGETHER
    for task in prange(groups * tiles):
        group = task // tiles
        first = min((task - group * tiles) * TILE_OUTPUTS, features - TILE_OUTPUTS)  # the last tile overlaps
        raised = np.empty((TILE_OUTPUTS, weight.shape[1]), np.float32)
        sums = np.empty((TILE_OUTPUTS, LANES), np.float32)
        for o in range(TILE_OUTPUTS):
            raise_row(weight[first + o], raised[o])
        for b in range(group * BLOCKS_TOGETHER, min((group + 1) * BLOCKS_TOGETHER, blocks.shape[0])):
            present = min(LANES, rows - b * LANES)
            tile_sums(raised, blocks[b], present, sums)
            for lane in range(present):
                for o in range(TILE_OUTPUTS):
                    out[b * LANES + lane, first + o] = sums[o, lane]


@parallel_kernel
def gate_up_blocks(gate_up, activation, blocks, rows, hidden):
    """hidden = act(gate @ x) * (up @ x) for every row x, as blocks again.

    gate_up [2 * intermediate, in] stored, gate first; hidden float32 [blocks, intermediate, LANES], of which
    `rows` lanes in all mean something. intermediate is at least TILE_OUTPUTS / 2.
    """
    neurons = TILE_OUTPUTS // 2
    intermediate = hidden.shape[1]
    tiles = (intermediate + neurons - 1) // neurons
    groups = (blocks.shape[0] + BLOCKS_TOGETHER - 1) // BLOCKS_TOGETHER
    for task in prange(groups * tiles):
        group = task // tiles
        first = min((task - group * tiles) * neurons, intermediate - neurons)
        raised = np.empty((TILE_OUTPUTS, gate_up.shape[1]), np.float32)
        sums = np.zeros((TILE_OUTPUTS, LANES), np.float32)
        for n in range(neurons):
            raise_row(gate_up[first + n], raised[n])
            raise_row(gate_up[intermediate + first + n], raised[neurons + n])
        for b in range(group * BLOCKS_TOGETHER, min((group + 1) * BLOCKS_TOGETHER, blocks.shape[0])):
            tile_sums(raised, blocks[b], min(LANES, rows - b * LANES), sums)
            for n in range(neurons):
                activate_lanes(activation, sums[n], sums[neurons + n], hidden[b, first + n])


@inlined
def activate_lanes(activation, gate, up, out):
    for lane in range(LANES):
        out[lane] = activate(activation, gate[lane]) * up[lane]


def fits_tiles(gate_up_shape, down_shape):
    """Whether an expert's matrices are large enough for the tiles."""
    return gate_up_shape[0] >= TILE_OUTPUTS and down_shape[0] >= TILE_OUTPUTS


def blocks_for(rows, width):
    """An uninitialised array for so many rows."""
    return np.empty((-(-rows // LANES), width, LANES), np.float32)


def multiply_rows(weight, x, out):
    """out = x @ weight.T; x float32 [rows, in], weight [out_features >= TILE_OUTPUTS, in] stored."""
    blocks = blocks_for(*x.shape)
    pack_rows(x, np.arange(x.shape[0]), blocks)
    multiply_blocks(weight, blocks, out)


def expert_rows(gate_up, down, activation, x, tokens, out):
    """out[r] = down(act(gate(x[tokens[r]])) * up(x[tokens[r]])): one gated expert for many rows.

    gate_up [2 * intermediate, width] and down [width, intermediate] stored; x float32 [any, width]; tokens int64
    [rows]; out float32 [rows, width].
    """
    blocks = blocks_for(len(tokens), x.shape[1])
    pack_rows(x, tokens, blocks)
    hidden = blocks_for(len(tokens), down.shape[1])
    gate_up_blocks(gate_up, activation, blocks, len(tokens), hidden)
    multiply_blocks(down, hidden, out)
