"""Which dense weights stay in the checkpoint's dtype, and what memory the dense part takes."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from engine.checkpoint.weight_groups import WeightGroup

STORABLE = (nn.Linear, nn.Embedding)  # exact types: a subclass may do more with its weight than multiply
# `self.lm_head.weight` in code, but not "lm_head.weight" in a string
WEIGHT_IN_CODE = re.compile(r"(?<![\"'\w.])[A-Za-z_][\w.]*?\.?\b(\w+)\.weight\b")  # group 1: the module's name


def parameters_in_storage_dtype(model: PreTrainedModel) -> set[str]:
    """Names of the parameters that may keep their dtype: weights of plain Linear and Embedding modules.

    Not those whose family's code handles the weight itself instead of calling the module, and of weights tied
    together only those that all may.
    """
    handled = _weights_handled_by_code(model)
    names = {
        f"{path}.weight"
        for path, module in model.named_modules(remove_duplicate=False)
        if type(module) in STORABLE and path.rpartition(".")[2] not in handled
    }
    for target, source in model.all_tied_weights_keys.items():
        if not {target, source} <= names:
            names -= {target, source}
    return names


def _weights_handled_by_code(model: PreTrainedModel) -> set[str]:
    """Attribute names `x` for which the model's source says `.x.weight`."""
    files = {type(module).__module__ for module in model.modules()}
    sources = [inspect.getsource(sys.modules[name]) for name in files if name.startswith("transformers.models.")]
    return {match.group(1) for source in sources for match in WEIGHT_IN_CODE.finditer(source)}


def dense_memory_bytes(
    model: PreTrainedModel, groups: Mapping[str, WeightGroup], stored: set[str], expert_names: Iterable[str]
) -> int:
    """Bytes of all weights and buffers but the experts', with `stored` ones in their dtype on disk."""
    not_counted = {*expert_names, *model.all_tied_weights_keys}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    on_disk = {target: group.locations[0].dtype for group in groups.values() for target in group.targets()}
    return sum(
        tensor.numel() * (on_disk.get(name, tensor.dtype) if name in stored else tensor.dtype).itemsize
        for name, tensor in tensors.items()
        if name not in not_counted
    )


def resident_bytes(model: nn.Module) -> int:
    """Bytes that the parameters and buffers of a loaded model take, shared memory counted once."""
    tensors: list[torch.Tensor] = [*model.parameters(), *model.buffers()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
