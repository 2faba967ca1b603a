"""Keys and values of one chat, in buffers of the full context length that cost memory only where written.

The same buffers serve transformers' own forward (through its Cache interface) and the decoding fast path.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers.cache_utils import (
    DYNAMIC_LAYER_TYPE_MAPPING,
    Cache,
    CacheLayerMixin,
    get_layer_types_and_kwargs,
)
from transformers.configuration_utils import PreTrainedConfig

from engine.anonymous_memory import mapping
from engine.errors import ContextFull, UnsupportedModel

# Sliding and chunked layers keep every position too: their mask hides the old ones, and cropping stays possible.
_FULL_LENGTH_TYPES = ("full_attention", "sliding_attention", "chunked_attention")


class KvLayer(CacheLayerMixin):
    """One layer's keys and values: [1, kv_heads, context_length, head_dim], filled up to `length`.

    In the dtype and on the device of the first keys that come; fp32 on the CPU is touched lazily.
    """

    is_sliding = False
    is_croppable = True

    def __init__(self, context_length: int) -> None:
        super().__init__()
        self.context_length = context_length
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        if key_states.shape[0] != 1:
            raise UnsupportedModel(
                f"The key-value cache holds one chat, but {key_states.shape[0]} were passed at once.",
                "Run the chats one after the other.",
            )
        self.allocate(key_states.shape[1], key_states.shape[-1], value_states.shape[-1], key_states)

    def allocate(self, kv_heads: int, key_dim: int, value_dim: int, like: torch.Tensor | None = None) -> None:
        """Reserves the buffers, in fp32 on the CPU or as `like` is. On the CPU the system gives memory page by page
        as positions are written; a card gives all at once, and torch.OutOfMemoryError leaves nothing allocated.
        """
        keys = _buffer(like, 1, kv_heads, self.context_length, key_dim)
        self.values = _buffer(like, 1, kv_heads, self.context_length, value_dim)
        self.keys = keys
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends [1, kv_heads, new, head_dim] and returns views of everything up to now.

        Raises ContextFull when the new positions do not fit.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        start, stop = self.length, self.length + key_states.shape[-2]
        if stop > self.context_length:
            raise context_full(stop, self.context_length)
        self.keys[:, :, start:stop] = key_states
        self.values[:, :, start:stop] = value_states
        self.length = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.context_length

    def keep(self, length: int) -> None:
        """Forgets every position from `length` on."""
        self.length = min(self.length, length)

    def reset(self) -> None:
        self.length = 0

    def crop(self, tokens_to_remove: int) -> None:
        """transformers' own convention: a negative number of positions to forget."""
        self.keep(self.length - abs(tokens_to_remove))

    @property
    def nbytes(self) -> int:
        if self.keys is None or self.values is None:
            return 0
        return self.keys.nbytes + self.values.nbytes


class KvCache(Cache):
    """Keys and values of all layers of one chat of at most `context_length` tokens.

    Layers without ordinary attention (recurrent states, convolutions) keep transformers' own cache layer; such a
    cache can only be cropped to nothing (`can_crop` is False).
    """

    def __init__(self, config: PreTrainedConfig, context_length: int) -> None:
        types, arguments = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
        self._fresh_layers = [
            (KvLayer, {"context_length": context_length})
            if name in _FULL_LENGTH_TYPES
            else (DYNAMIC_LAYER_TYPE_MAPPING[name], extra)
            for name, extra in zip(types, arguments, strict=False)
        ]
        self.layers: list[Any]
        super().__init__(layers=[make(**extra) for make, extra in self._fresh_layers])
        self.context_length = context_length

    @property
    def length(self) -> int:
        """Positions that every layer holds. After an interrupted forward the layers may differ: `crop(length)`."""
        lengths = [layer.get_seq_length() for layer in self.layers if isinstance(layer, CacheLayerMixin)]
        return min(lengths, default=0)

    @property
    def can_crop(self) -> bool:
        """Whether `crop` to any length is possible, so that a follow-up may re-use what is here."""
        return all(make is KvLayer for make, _ in self._fresh_layers)

    def crop(self, length: int) -> None:
        """Keeps the first `length` positions. Unlike transformers' crop, the argument is what stays.

        Raises UnsupportedModel when recurrent state would have to be taken back (only 0 is possible there).
        """
        if self.can_crop:
            for layer in self.layers:
                layer.keep(length)
        elif length == 0:
            self.layers = [make(**extra) for make, extra in self._fresh_layers]
        elif length != self.length:
            raise UnsupportedModel(
                "This model's recurrent state cannot be taken back to an earlier position.",
                "Read the chat again from its beginning.",
            )

    def free(self) -> None:
        """Forgets the chat and gives the memory back; the next keys reserve it anew."""
        self.layers = [make(**extra) for make, extra in self._fresh_layers]

    def require_room(self, new_tokens: int) -> None:
        """Raises ContextFull unless `new_tokens` more positions fit."""
        needed = self.length + new_tokens
        if needed > self.context_length:
            raise context_full(needed, self.context_length)

    @property
    def nbytes(self) -> int:
        """Bytes reserved so far (a layer reserves at its first use); pages never written cost nothing."""
        return sum(_layer_bytes(layer) for layer in self.layers)


def kv_bytes(config: PreTrainedConfig, context_length: int, number_bytes: int = 4) -> int:
    """What the attention layers' buffers will reserve, from the config alone; recurrent states are not counted.

    `number_bytes`: of one number, 4 where the model computes in fp32.
    """
    text = config.get_text_config(decoder=True)
    types, _ = get_layer_types_and_kwargs(text)
    layers = sum("attention" in name and name != "linear_attention" or "hybrid" in name for name in types)
    heads = text.num_attention_heads
    if getattr(text, "kv_lora_rank", None):  # latent attention is cached expanded: all heads, two head sizes
        per_position = heads * (text.qk_nope_head_dim + text.qk_rope_head_dim + text.v_head_dim)
    else:
        kv_heads = getattr(text, "num_key_value_heads", None) or heads
        per_position = 2 * kv_heads * (getattr(text, "head_dim", None) or text.hidden_size // heads)
    return number_bytes * layers * per_position * context_length


def context_full(needed_tokens: int, context_length: int) -> ContextFull:
    """The error for a chat of `needed_tokens` in a context of `context_length`."""
    return ContextFull(
        f"The chat needs {needed_tokens} tokens, but the context holds {context_length}.",
        "Start a new chat, shorten the messages, or load the model with a larger context.",
        needed_tokens=needed_tokens,
        context_length=context_length,
    )


def _buffer(like: torch.Tensor | None, *shape: int) -> torch.Tensor:
    if like is None or (like.device.type == "cpu" and like.dtype == torch.float32):
        return _lazily_touched(*shape)
    return torch.empty(shape, dtype=like.dtype, device=like.device)


def _lazily_touched(*shape: int) -> torch.Tensor:
    """An fp32 tensor in anonymous memory of its own: untouched pages cost nothing, and freeing gives all back."""
    nbytes = 4 * math.prod(shape)
    if nbytes == 0:
        return torch.empty(shape, dtype=torch.float32)
    return torch.frombuffer(mapping(nbytes), dtype=torch.float32).view(shape)


def _layer_bytes(layer: object) -> int:
    if isinstance(layer, KvLayer):
        return layer.nbytes
    states = [getattr(layer, "keys", None), getattr(layer, "values", None)]
    for name in ("conv_states", "recurrent_states"):
        states += list((getattr(layer, name, None) or {}).values())
    return sum(state.nbytes for state in states if isinstance(state, torch.Tensor))
