"""The experts of every MoE layer, computed from whatever an ExpertProvider hands over, on transformers' seam.

`compute_experts` is registered with transformers as "expertflow". Each (token, k) pair has a row of its own for its
expert's output, and the rows are summed in the order of k at the end: the result does not depend on the order in
which experts arrive, so neither on what is resident nor on timing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _default_apply_gate

from engine.model import kernels, packed_product, upcast
from engine.model.heap import return_hoard
from engine.model.packed_product import PackedMatrix
from engine.model.stored_linear import MAX_KERNEL_ROWS

NAME = "expertflow"
_pass = threading.local()  # `of_several_chats`: whether the rows of this thread's pass are of different chats


class ExpertWeights(Protocol):
    """One expert's weights where they lie."""

    @property
    def address(self) -> int:
        """Address of the slot's first byte."""

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameter name -> view in the slot, storage dtype, without the leading expert dimension."""

    @property
    def on_host(self) -> bool:
        """Whether they lie in the processor's memory although the model computes on a card."""


class Lease(Protocol):
    """Experts asked for; a context manager that releases whatever is still held when left."""

    def __enter__(self) -> Lease: ...

    def __exit__(self, *exception: object) -> object: ...

    def next_batch(self) -> Sequence[tuple[int, ExpertWeights]]:
        """Blocks until at least one further expert is ready, returns all that are; [] after the last.

        The batch before is released, so its weights must not be used any more.
        """


class ExpertProvider(Protocol):
    """Where experts come from. `layer` counts MoE layers in forward order."""

    def observe(self, layer: int, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> None:
        """The real routing of all rows of this step, [rows, top_k] each, told once before `acquire`.

        `hidden` [rows, width] fp32 is the feed-forward's normalised input, which the router saw. All three are
        valid until `acquire` for this layer returns: the decoding fast path uses their memory again.
        """

    def acquire(self, layer: int, experts: Sequence[int]) -> Lease:
        """Asks for distinct experts."""


class ExpertsNotAttached(RuntimeError):
    """A model with the expertflow experts was run before `attach`."""


@dataclass(frozen=True)
class ExpertsPlan:
    """What is known about one layer's experts beforehand.

    `activation`: the kernels' number when the plain gated form (act(gate) * up, gate rows first, no bias) applies,
    else None and torch computes. `last_row_only`: nothing reads the other rows' outputs, so they stay zero.
    `on_card`: activations and experts lie on a card; `computes_on_host`: but for those the processor computes.
    """

    provider: ExpertProvider
    layer: int
    num_experts: int
    activation: int | None
    last_row_only: bool = False
    on_card: bool = False
    computes_on_host: bool = False


def register() -> None:
    """Makes `experts_implementation="expertflow"` valid in transformers. May be called again."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, compute_experts)


def attach(
    experts_modules: Sequence[nn.Module],
    provider: ExpertProvider,
    last_row_only: bool = False,
    on_card: bool = False,
    computes_on_host: bool = False,
) -> None:
    """Connects each experts module, in forward order, with the provider of its weights.

    `last_row_only`: the last of them ends the model, and of its output only the last token's is wanted. `on_card`:
    the model computes on a card, in its own dtype; `computes_on_host`: the provider may hand out experts that lie in
    the processor's memory.
    """
    register()
    last = len(experts_modules) - 1
    for layer, module in enumerate(experts_modules):
        plan = ExpertsPlan(
            provider,
            layer,
            number_of_experts(module),
            plain_activation(module),
            last_row_only and layer == last,
            on_card,
            computes_on_host,
        )
        object.__setattr__(module, "_expertflow", plan)  # not a submodule, and never part of a state dict


def number_of_experts(module: nn.Module) -> int:
    """How many routed experts the module has; ids from there on mean "nobody"."""
    return cast(int, module.num_experts)


def plain_activation(module: nn.Module) -> int | None:
    """The kernels' activation number when the kernels can compute these experts, else None."""
    if not kernels.available() or not _is_plain(module):
        return None
    from engine.model.kernels.activation import activation_number

    return activation_number(cast(nn.Module, module.act_fn))


def _is_plain(module: nn.Module) -> bool:
    return (
        getattr(module, "has_gate", True)
        and getattr(module, "is_concatenated", True)
        and not getattr(module, "is_transposed", False)
        and not getattr(module, "has_bias", False)
        and not getattr(module, "has_post_expert_norm", False)
        and getattr(type(module), "_apply_gate", None) is _default_apply_gate
        and isinstance(getattr(module, "act_fn", None), nn.Module)
    )


@torch.no_grad()
def compute_experts(
    module: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Sum over k of weight * expert(hidden state): [tokens, width] from [tokens, width] and twice [tokens, top_k].

    Ids outside 0..num_experts-1 mean "nobody" and contribute nothing.
    """
    plan: ExpertsPlan | None = getattr(module, "_expertflow", None)
    if plan is None:
        raise ExpertsNotAttached(f"{type(module).__name__} has no expert provider: call attach() first.")
    if top_k_weights.shape != top_k_index.shape:  # older DeepSeek-style routers pass [tokens, num_experts]
        top_k_weights = top_k_weights.gather(1, top_k_index.clamp(0, plan.num_experts - 1))
    if plan.on_card:
        from engine.model.experts_on_card import compute_on_card

        return compute_on_card(module, plan, hidden_states, top_k_index, top_k_weights)
    x = hidden_states.float()
    plan.provider.observe(plan.layer, x, top_k_index, top_k_weights)
    if only_last_row(plan, len(x)):
        out = torch.zeros_like(hidden_states)
        out[-1:] = _compute(module, plan, x[-1:], top_k_index[-1:], top_k_weights[-1:])
        return out
    return _compute(module, plan, x, top_k_index, top_k_weights).to(hidden_states.dtype)


def only_last_row(plan: ExpertsPlan, rows: int) -> bool:
    """Whether of these rows only the last one's output is read by anybody."""
    return plan.last_row_only and rows > 1 and not getattr(_pass, "of_several_chats", False)


@contextmanager
def several_chats() -> Iterator[None]:
    """While this thread runs a pass whose rows are of different chats, each of them the last of its own."""
    _pass.of_several_chats = True
    try:
        yield
    finally:
        _pass.of_several_chats = False


def _compute(
    module: nn.Module, plan: ExpertsPlan, x: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    pairs = Pairs(top_k_index, plan.num_experts)
    x = x.contiguous()
    rows = torch.empty(len(pairs.tokens), x.shape[1], dtype=torch.float32)
    few_rows = x.shape[0] <= MAX_KERNEL_ROWS
    if not few_rows:
        return_hoard()
    with plan.provider.acquire(plan.layer, pairs.experts.tolist()) as lease:
        while batch := lease.next_batch():
            by_kernel = plan.activation is not None and _kernel_reads(batch[0][1].tensors)
            if by_kernel and few_rows:
                _few_rows_by_kernel(plan, batch, pairs, x, rows)
            elif by_kernel:
                _many_rows_by_kernel(plan, batch, pairs, x, rows)
            else:
                _batch_by_torch(module, batch, pairs, x, rows)
    return _combined(rows, pairs.row_of_pair, top_k_weights.float())


class Pairs:
    """(token, k) pairs in the order of their experts: each expert's pairs are neighbouring rows.

    `experts`: the distinct ids, ascending; `order` [rows]: the pair (token * top_k + k) of each row; `tokens` [rows]:
    its token; `row_of_pair` [tokens, top_k]: where each pair's row is, -1 for pairs routed to nobody.
    """

    def __init__(self, top_k_index: torch.Tensor, num_experts: int) -> None:
        ids = top_k_index.detach().reshape(-1).numpy()
        order = np.argsort(ids, kind="stable")
        first, last = np.searchsorted(ids, [0, num_experts], sorter=order)
        order = order[first:last]
        self.order = order
        self.tokens = order // top_k_index.shape[1]
        self.row_of_pair = np.full(top_k_index.shape, -1, np.int64)
        self.row_of_pair.reshape(-1)[order] = np.arange(len(order))
        self.experts, starts = np.unique(ids[order], return_index=True)
        stops = np.append(starts[1:], len(order))
        self._rows = {
            expert: slice(start, stop)
            for expert, start, stop in zip(self.experts.tolist(), starts.tolist(), stops.tolist(), strict=True)
        }

    def rows_of(self, expert: int) -> slice:
        """The rows of `expert`, whose tokens ascend."""
        return self._rows[expert]


Batch = Sequence[tuple[int, ExpertWeights]]


def _batch_by_torch(module: nn.Module, batch: Batch, pairs: Pairs, x: torch.Tensor, rows: torch.Tensor) -> None:
    for expert, weights in batch:
        chosen = pairs.rows_of(expert)
        tokens = torch.from_numpy(pairs.tokens[chosen])
        expert_forward(module, weights.tensors, x[tokens], out=rows[chosen])


def expert_on_host(module: nn.Module, plan: ExpertsPlan, weights: ExpertWeights, x: torch.Tensor) -> torch.Tensor:
    """One expert by the processor: x [rows, width] fp32 -> [rows, width] fp32."""
    out = torch.empty_like(x)
    if plan.activation is not None and len(x) <= MAX_KERNEL_ROWS and _kernel_reads(weights.tensors):
        pairs = Pairs(torch.zeros(len(x), 1, dtype=torch.long), 1)
        _few_rows_by_kernel(plan, [(0, weights)], pairs, x, out)
    else:
        expert_forward(module, weights.tensors, x, out)
    return out


def expert_forward(module: Any, tensors: dict[str, torch.Tensor], x: torch.Tensor, out: torch.Tensor) -> None:
    """One expert of any family on the seam: x [rows, width] -> out [rows, width], fp32."""
    gated = getattr(module, "has_gate", True)
    first = "gate_up_proj" if gated else "up_proj"
    inner = _multiply(module, tensors, first, x)
    inner = module._apply_gate(inner) if gated else module.act_fn(inner)
    _multiply(module, tensors, "down_proj", inner, out)
    if getattr(module, "has_post_expert_norm", False):
        out.copy_(module.post_expert_norm(out))


def _multiply(
    module: Any, tensors: dict[str, torch.Tensor], name: str, x: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """x times parameter `name`, in whichever form it is stored, and its bias."""
    if (packed := PackedMatrix.of(tensors, name)) is not None:
        return packed_product.linear(x, packed, _bias(tensors, name), out)
    multiply = upcast.linear_transposed if getattr(module, "is_transposed", False) else upcast.linear
    return multiply(x, tensors[name], _bias(tensors, name), out)


def _bias(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor | None:
    bias = tensors.get(f"{name}_bias")
    return None if bias is None else bias.float()


def _kernel_reads(tensors: dict[str, torch.Tensor]) -> bool:
    from engine.model.kernels.storage import has_kernel_dtype
    from engine.model.kernels.tile_product import fits_tiles

    gate_up, down = tensors["gate_up_proj"], tensors["down_proj"]
    return has_kernel_dtype(down.dtype) and gate_up.dtype == down.dtype and fits_tiles(gate_up.shape, down.shape)


def _many_rows_by_kernel(plan: ExpertsPlan, batch: Batch, pairs: Pairs, x: torch.Tensor, rows: torch.Tensor) -> None:
    from engine.model.kernels.storage import kernel_view
    from engine.model.kernels.tile_product import expert_rows

    kernels.use_torch_threads()
    for expert, weights in batch:
        chosen = pairs.rows_of(expert)
        gate_up, down = (kernel_view(weights.tensors[name]) for name in ("gate_up_proj", "down_proj"))
        expert_rows(gate_up, down, plan.activation, x.detach().numpy(), pairs.tokens[chosen], rows[chosen].numpy())


def _few_rows_by_kernel(plan: ExpertsPlan, batch: Batch, pairs: Pairs, x: torch.Tensor, rows: torch.Tensor) -> None:
    from engine.model.kernels.expert_mlp import expert_mlp
    from engine.model.kernels.storage import kernel_view

    chosen = [np.arange(len(pairs.tokens))[pairs.rows_of(expert)] for expert, _ in batch]
    rows_of_batch = np.concatenate(chosen)
    first = batch[0][1]
    down = first.tensors["down_proj"]
    kernels.use_torch_threads()
    expert_mlp(
        np.repeat([weights.address for _, weights in batch], [len(group) for group in chosen]),
        first.tensors["gate_up_proj"].data_ptr() - first.address,
        down.data_ptr() - first.address,
        kernel_view(down)[0],
        plan.activation,
        x.detach().numpy(),
        pairs.tokens[rows_of_batch],
        rows_of_batch,
        np.empty((len(rows_of_batch), down.shape[1]), np.float32),
        rows.numpy(),
    )


def _combined(rows: torch.Tensor, row_of_pair: np.ndarray, weights: torch.Tensor) -> torch.Tensor:
    """Sum over k, in order, of weights [tokens, top_k] times each pair's row."""
    tokens, top_k = weights.shape
    if kernels.available():
        from engine.model.kernels.routing import combine

        kernels.use_torch_threads()
        result = torch.empty(tokens, rows.shape[1])
        combine(rows.numpy(), row_of_pair, weights.detach().contiguous().numpy(), result.numpy())
        return result
    result = torch.zeros(tokens, rows.shape[1])
    for k in range(top_k):
        present = torch.from_numpy(np.flatnonzero(row_of_pair[:, k] >= 0))
        chosen = rows[torch.from_numpy(row_of_pair[:, k])[present]]
        result[present] += chosen * weights[present, k, None]
    return result
