"""What has to be known before a model is loaded: where it is, its tokenizer, its context, what is not possible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from engine.checkpoint.catalog import resolve_model
from engine.checkpoint.dense_model import DenseModel, OpenedCheckpoint
from engine.checkpoint.quantised import PRECISIONS, QuantisedIndex, ensure_quantised, plan_quantised
from engine.errors import CheckpointCorrupt, InvalidSetting
from engine.model import kernels
from engine.model.experts import plain_activation

Progress = Callable[[str, int, int], None]
DEFAULT_CONTEXT_LENGTH = 2048
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


@dataclass(frozen=True)
class ModelFiles:
    """A checkpoint on this machine."""

    name: str
    path: Path


def locate_model(model: str | Path, on_progress: Progress | None) -> ModelFiles:
    """The folder of "demo" (built if need be), "org/name" or a path. Raises ModelNotFound, BuildFailed, DiskFull."""
    from engine.checkpoint.builtin import BUILTIN_NAME, ensure_builtin

    if str(model) == BUILTIN_NAME:
        return ModelFiles(BUILTIN_NAME, ensure_builtin(on_progress))
    path = resolve_model(str(model))
    return ModelFiles(str(model) if not Path(model).exists() else path.name, path)


def require_supported(precision: str) -> None:
    """Says plainly what this version cannot do. Raises InvalidSetting."""
    if precision not in ("auto", "native", *PRECISIONS):
        raise InvalidSetting(
            f"There is no precision called {precision!r}.",
            "Use auto or native (the checkpoint's own weights), or int8 or nf4 (lossy).",
        )


def at_precision(checkpoint: OpenedCheckpoint, precision: str) -> OpenedCheckpoint:
    """The same with experts planned at `precision`; "auto" is never lossy. Raises what `plan_quantised` raises."""
    if precision not in PRECISIONS:
        return checkpoint
    return replace(checkpoint, index=plan_quantised(checkpoint, precision))


def make_experts(checkpoint: OpenedCheckpoint, on_progress: Progress | None) -> None:
    """Quantises the experts once, where the plan is to hold them so. Raises what `ensure_quantised` raises."""
    if isinstance(checkpoint.index, QuantisedIndex):
        ensure_quantised(checkpoint.index, on_progress)


def context_for(config: PretrainedConfig, asked: int | None) -> int:
    """Tokens of context: what was asked for, or 2,048 within the model's limit. Raises InvalidSetting above it."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None) or DEFAULT_CONTEXT_LENGTH
    if asked is None:
        return min(DEFAULT_CONTEXT_LENGTH, limit)
    if not 1 <= asked <= limit:
        raise InvalidSetting(f"A context of {asked} tokens is not possible.", f"This model allows 1 to {limit}.")
    return asked


def prepare_kernels(dense: DenseModel, fast_path: bool, on_progress: Progress | None, joint: bool = False) -> None:
    """Compiles what the first token would otherwise wait for; a second at most on every later start. `joint`: what
    several chats at once need, too.
    """
    head = dense.model.get_output_embeddings()
    if head is None:
        return
    by_kernel = all(plain_activation(module) is not None for module in dense.experts_modules)
    dtypes = {param.dtype for layer in range(len(dense.experts_modules)) for param in dense.index.params(layer)}
    experts = dtypes.pop() if by_kernel and len(dtypes) == 1 else None
    kernels.prepare(head.weight.dtype, experts, fast_path, on_progress, dense.index.is_packed, joint)


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase | None:
    """The checkpoint's tokenizer, None when it has none (ids still work). Raises CheckpointCorrupt."""
    if not any((path / name).exists() for name in _TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(path)
    except Exception as error:  # the library raises many kinds for a broken file
        raise CheckpointCorrupt(
            f"The tokenizer in {path} cannot be loaded: {error}.", "Download the model's tokenizer files again."
        ) from error
