"""Linear and embedding layers whose weights keep the checkpoint's dtype while everything is computed in fp32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from engine.model import kernels, upcast

MAX_KERNEL_ROWS = 4


class StoredLinear(nn.Module):
    """A Linear layer with its weight [out_features, in_features] in storage dtype and its bias in fp32.

    The weight is a buffer rather than a parameter, so that the model's own dtype stays fp32. It is not saved.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight.detach(), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().float(), persistent=False)
        self._kernel = _product_for(weight)

    @classmethod
    def from_linear(cls, linear: nn.Linear, weight: torch.Tensor | None = None) -> StoredLinear:
        """The same layer, with `weight` (storage dtype) in place of the layer's own."""
        return cls(linear.weight if weight is None else weight, linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.numel() // self.in_features
        flat = x.reshape(rows, self.in_features)
        if self._kernel is not None and x.dtype == torch.float32:
            out = self._kernel(flat)
            if self.bias is not None:
                out += self.bias
        else:
            out = upcast.linear(flat.float(), self.weight, self.bias).to(x.dtype)
        return out.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        shape = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{shape}, stored={self.weight.dtype}"


class StoredEmbedding(nn.Module):
    """An Embedding with its weight [num_embeddings, embedding_dim] in storage dtype; looks up in fp32."""

    weight: torch.Tensor

    def __init__(self, weight: torch.Tensor, padding_idx: int | None = None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        self.padding_idx = padding_idx
        self.register_buffer("weight", weight.detach(), persistent=False)

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, weight: torch.Tensor | None = None) -> StoredEmbedding:
        """The same layer, with `weight` (storage dtype) in place of the layer's own."""
        return cls(embedding.weight if weight is None else weight, embedding.padding_idx)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(token_ids, self.weight).float()

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, stored={self.weight.dtype}"


def _product_for(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """A function x [rows, in] -> [rows, out] by the kernels, or None where torch has to compute."""
    if weight.device.type != "cpu" or not weight.is_contiguous() or not kernels.available():
        return None
    from engine.model.kernels.matvec import matvec
    from engine.model.kernels.storage import has_kernel_dtype, kernel_view
    from engine.model.kernels.tile_product import TILE_OUTPUTS, multiply_rows

    if not has_kernel_dtype(weight.dtype) or weight.shape[0] < TILE_OUTPUTS:
        return None
    stored = kernel_view(weight)

    def product(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty(x.shape[0], stored.shape[0], dtype=torch.float32)
        kernels.use_torch_threads()
        multiply = matvec if x.shape[0] <= MAX_KERNEL_ROWS else multiply_rows
        multiply(stored, x.detach().contiguous().numpy(), out.numpy())
        return out

    return product
