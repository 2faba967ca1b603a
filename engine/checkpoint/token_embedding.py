"""A checkpoint's own token embedding, read alone."""

from __future__ import annotations

from pathlib import Path

import torch

from engine.checkpoint.safetensors_header import read_checkpoint_headers
from engine.checkpoint.tensor_reader import TensorReader
from engine.errors import UnsupportedModel

_NAMES = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")


def read_token_embedding(path: Path) -> torch.Tensor:
    """float32 [vocabulary, width]. Raises UnsupportedModel where no tensor has one of its usual names."""
    checkpoint = read_checkpoint_headers(path)
    for name, location in checkpoint.tensors.items():
        if name.endswith(_NAMES) and len(location.shape) == 2:
            with TensorReader(checkpoint.files) as reader:
                return reader.read(location, torch.float32)
    raise UnsupportedModel(
        f"{path} has no token embedding of a known name.", "Train the predictor without --model: it learns its own."
    )
