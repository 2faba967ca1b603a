"""What a model needs besides its experts, from its config: the prefill workspace above all."""

from __future__ import annotations

from transformers import PretrainedConfig

from engine.checkpoint.expert_index import ExpertIndex
from engine.checkpoint.quantised import QuantisedIndex, lossy_sentence
from engine.hardware.memory_plan import MIB, Footprint
from engine.model.kv_cache import kv_bytes

FP32_BYTES = 4
_CARD_RUNTIME_BYTES = 256 * MIB  # handles and workspaces of CUDA's libraries, kernels loaded late: an assumption
_CARD_WORKSPACE_TARGET_BYTES = 768 * 10**6  # each pass streams all experts over the link: longer ones pay there
_CHUNKS = (2048, 1024, 512, 256, 128)  # rows of one prefill pass, tried in this order
_WORKSPACE_TARGET_BYTES = 256 * 10**6
_RUNTIME_BYTES = 128 * MIB  # compiled kernels and their libraries, thread stacks, allocator slack: measured
_ROW_COPIES = 24  # of a hidden row alive or kept by the allocator inside a decoder layer: measured


def prefill_chunk(config: PretrainedConfig, index: ExpertIndex, context_length: int, on_card: bool = False) -> int:
    """Rows per prefill pass: as many as the workspace target allows, since each pass streams all experts."""
    target = _CARD_WORKSPACE_TARGET_BYTES if on_card else _WORKSPACE_TARGET_BYTES
    for rows in _CHUNKS:
        if workspace_bytes(config, index, context_length, rows, on_card) <= target:
            return rows
    return _CHUNKS[-1]


def workspace_bytes(
    config: PretrainedConfig, index: ExpertIndex, context_length: int, rows: int, on_card: bool = False
) -> int:
    """Scratch of one prefill pass of `rows` rows, the logits of one row, and the runtime's own needs.

    On a card as if it computed in fp32 as well: the plan has to hold for the checkpoints that do.
    """
    text = config.get_text_config()
    hidden = text.hidden_size
    expert_elements = [index.weights_per_expert(layer) for layer in range(len(index.experts_per_layer))]
    expert_width = max(elements for elements in expert_elements) // hidden
    activations = rows * (hidden * (_ROW_COPIES + index.top_k) + expert_width)
    mask = rows * context_length * 2  # as fp32 and as bool, rounded up
    upcast = max(expert_elements) + 16 * MIB // FP32_BYTES
    logits = 6 * text.vocab_size
    runtime = _CARD_RUNTIME_BYTES if on_card else _RUNTIME_BYTES
    return runtime + FP32_BYTES * (activations + mask + upcast + logits)


def footprint(config: PretrainedConfig, index: ExpertIndex, context_length: int, on_card: bool = False) -> Footprint:
    """Everything the memory plan needs to know of a model for one chat, computed in fp32 or, `on_card`, in the config's
    dtype.
    """
    rows = prefill_chunk(config, index, context_length, on_card)
    number_bytes = config.dtype.itemsize if on_card and config.dtype is not None else FP32_BYTES
    return Footprint(
        dense_bytes=index.dense_bytes,
        kv_bytes=kv_bytes(config, context_length, number_bytes),
        workspace_bytes=workspace_bytes(config, index, context_length, rows, on_card),
        slot_bytes=index.slot_bytes,
        experts_total=sum(index.experts_per_layer),
        minimum_slots=min(index.top_k, max(index.experts_per_layer)),
        model_bytes_total=index.total_bytes,
        precision=index.precision,
        notes=(lossy_sentence(index),) if isinstance(index, QuantisedIndex) else (),
    )
