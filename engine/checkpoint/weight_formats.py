"""Weights that are not safetensors: named, with the reason why they are refused and what to take instead."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from engine.errors import UnsupportedModel

PICKLED = {".bin", ".pt", ".pth", ".ckpt"}
GGUF = ".gguf"
OTHER_SUFFIXES = {*PICKLED, GGUF}


def refuse_other_formats(place: str, file_names: Iterable[str]) -> None:
    """Raises UnsupportedModel if there are weights among the files at `place`, of which none is safetensors."""
    names = sorted(file_names)
    gguf = [name for name in names if PurePosixPath(name).suffix.lower() == GGUF]
    if gguf:
        raise gguf_refusal(f"{place} holds its weights as GGUF ({gguf[0]})")
    pickled = [name for name in names if PurePosixPath(name).suffix.lower() in PICKLED]
    if pickled:
        raise UnsupportedModel(
            f"The weights in {place} are not in safetensors format ({pickled[0]}).",
            "Get the safetensors version of this model.",
        )


def gguf_refusal(what: str) -> UnsupportedModel:
    """transformers reads GGUF in one of two ways, and neither suits a model larger than memory.

    Its first reader (qwen2moe, qwen3moe, gpt-oss, minimax-m2; Mixtral it takes for a dense Llama) dequantises every
    tensor and holds them all at once; its second (qwen35moe alone) keeps the blocks, but all of them in memory too.
    """
    return UnsupportedModel(
        f"{what}, which transformers can only read as a whole: all experts, most families dequantised, would have to "
        "fit in memory at once.",
        "Get the safetensors version of this model, from whose files each expert is read alone.",
    )
