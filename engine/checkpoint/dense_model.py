"""A model with everything in memory but its experts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.loading_report import LoadStateDictInfo

from engine.checkpoint.expert_index import ExpertIndex
from engine.checkpoint.safetensors_header import CheckpointTensors, read_checkpoint_headers
from engine.checkpoint.skeleton import Skeleton, build_skeleton, quiet_transformers
from engine.checkpoint.storage_plan import parameters_in_storage_dtype, resident_bytes
from engine.checkpoint.stored_modules import store_modules
from engine.checkpoint.tensor_reader import TensorReader
from engine.checkpoint.weight_groups import WeightGroup, group_weights
from engine.errors import CheckpointCorrupt, UnsupportedModel
from engine.model import experts as experts_function

Progress = Callable[[str, int, int], None]
STAGE = "Reading the dense weights"


@dataclass(frozen=True)
class DenseModel:
    """`model` in eval mode whose `experts_modules` (in forward order) have no parameters; `index` finds those."""

    model: PreTrainedModel
    index: ExpertIndex
    experts_modules: tuple[nn.Module, ...]

    @property
    def resident_bytes(self) -> int:
        """Memory the dense weights and buffers take."""
        return resident_bytes(self.model)


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A checkpoint whose config and headers were read, and no weight: enough to plan its memory."""

    path: Path
    skeleton: Skeleton
    headers: CheckpointTensors
    groups: Mapping[str, WeightGroup]
    index: ExpertIndex

    @property
    def config(self) -> PretrainedConfig:
        return self.skeleton.model.config


def open_checkpoint(path: Path, own_dtype: bool = False) -> OpenedCheckpoint:
    """With `own_dtype` the model will compute in the dtype its config names, else in float32.

    Raises the typed errors of `build_skeleton` and `read_checkpoint_headers`.
    """
    path = Path(path)
    experts_function.register()
    skeleton = build_skeleton(path, experts_function.NAME, own_dtype)
    headers = read_checkpoint_headers(path)
    groups = group_weights(skeleton.model, headers.tensors)
    return OpenedCheckpoint(path, skeleton, headers, groups, ExpertIndex(skeleton, headers, groups))


def load_dense(path: Path, on_progress: Progress | None = None) -> DenseModel:
    """`read_dense` of the checkpoint folder `path`."""
    return read_dense(open_checkpoint(path), on_progress)


def read_dense(checkpoint: OpenedCheckpoint, on_progress: Progress | None = None) -> DenseModel:
    """Load the checkpoint, once, without reading one byte of an expert.

    The model computes what `from_pretrained(path, dtype=torch.float32)` would; Linear and Embedding weights stay
    in the checkpoint's dtype and are raised to float32 at use. One opened with `own_dtype` is what
    `from_pretrained(path, dtype="auto")` gives. `on_progress(stage, done_bytes, total_bytes)`.
    Raises the typed errors of `TensorReader`.
    """
    skeleton, model = checkpoint.skeleton, checkpoint.skeleton.model
    names = set(model.state_dict()) - set(skeleton.expert_parameter_names())
    with quiet_transformers(), torch.no_grad():
        stored = set() if skeleton.own_dtype else parameters_in_storage_dtype(model)
        dense = [group for group in checkpoint.groups.values() if group.target in names]
        with TensorReader(checkpoint.headers.files) as reader:
            missing = names - _load_groups(model, dense, reader, stored, on_progress)
        _complete(skeleton, missing)
        _strip_experts(skeleton)
        store_modules(model, stored)
        _attach_generation_config(model, checkpoint.path)
    model.config.name_or_path = str(checkpoint.path)
    model.eval().requires_grad_(False)
    model.save_pretrained = _refuse_saving
    return DenseModel(model, checkpoint.index, tuple(experts.module for experts in skeleton.experts))


def _strip_experts(skeleton: Skeleton) -> None:
    for experts in skeleton.experts:
        for name in experts.shapes:
            experts.module._parameters[name] = None


def _load_groups(
    model: PreTrainedModel,
    groups: Iterable[WeightGroup],
    reader: TensorReader,
    stored: set[str],
    on_progress: Progress | None,
) -> set[str]:
    """Read `groups` into `model`; returns the names of the parameters and buffers that were filled."""
    groups = sorted(groups, key=lambda group: min((t.file, t.offset) for t in group.locations))
    done, total, loaded = 0, sum(group.nbytes for group in groups), set()
    for group in groups:
        for name, tensor in _read_group(model, group, reader, stored).items():
            _set(model, name, tensor)
            loaded.add(name)
        done += group.nbytes
        if on_progress is not None:
            on_progress(STAGE, done, total)
    return loaded


def _read_group(
    model: PreTrainedModel, group: WeightGroup, reader: TensorReader, stored: set[str]
) -> Mapping[str, torch.Tensor]:
    """Parameter name -> tensor: in the dtype it has on disk if all of the group's are `stored`, else the model's."""
    keep = stored.issuperset(group.targets()) and len({t.dtype for t in group.locations}) == 1

    def read(as_stored: bool) -> dict[str, list[torch.Tensor]]:
        computed = _tensor_of(model, group.target).dtype
        return {
            pattern: [reader.read(t, t.dtype if as_stored else computed) for _, t in tensors]
            for pattern, tensors in group.sources.items()
        }

    sources = read(keep)
    if group.converter is None:
        return group.convert(sources, model, model.config)
    before = _bit_sum(t for tensors in sources.values() for t in tensors) if keep else 0
    converted = group.convert(sources, model, model.config)
    if keep and _bit_sum(converted.values()) != before:  # arithmetic, which has to happen in float32
        converted = group.convert(read(False), model, model.config)
    return converted


def _bit_sum(tensors: Iterable[torch.Tensor]) -> int:
    """Equal before and after an operation that only moves elements."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return sum(int(t.contiguous().view(integers[t.itemsize]).sum(dtype=torch.int64)) for t in tensors)


def _tensor_of(model: PreTrainedModel, name: str) -> torch.Tensor:
    owner, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(owner), leaf)


def _set(model: PreTrainedModel, name: str, tensor: torch.Tensor) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    expected = getattr(owner, leaf)
    if tensor.shape != expected.shape:
        raise CheckpointCorrupt(
            f"{name} has shape {tuple(tensor.shape)} in the checkpoint; the config asks for {tuple(expected.shape)}.",
            "Check that config.json belongs to these weights.",
        )
    if leaf not in owner._buffers:
        tensor = nn.Parameter(tensor, requires_grad=False)
    _mark_initialised(tensor)
    setattr(owner, leaf, tensor)


def _mark_initialised(tensor: Any) -> None:
    tensor._is_hf_initialized = True  # transformers' sign that it must not give this one values


def _complete(skeleton: Skeleton, missing: set[str]) -> None:
    """What `from_pretrained` does after reading: computed buffers, and weights that share memory."""
    model = skeleton.model
    for name in skeleton.expert_parameter_names():  # still on the meta device: not to be given values
        _mark_initialised(_tensor_of(model, name))
    tied = model.all_tied_weights_keys
    allowed = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name in sorted(missing & parameters):
        partner_is_there = name in tied and tied[name] not in missing or _has_loaded_target(name, tied, missing)
        if not partner_is_there and not any(pattern.search(name) for pattern in allowed):
            raise CheckpointCorrupt(f"Tensor {name} is missing from the checkpoint.", "Download the model again.")
    info = LoadStateDictInfo(missing, set(), set(), {}, [], set())
    model.mark_tied_weights_as_initialized(info)
    model._move_missing_keys_from_meta_to_device(missing, None, None, None)
    model._initialize_missing_keys(is_quantized=False)
    model.tie_weights(missing_keys=missing, recompute_mapping=False)


def _has_loaded_target(source: str, tied: Mapping[str, str], missing: set[str]) -> bool:
    return any(target not in missing for target, origin in tied.items() if origin == source)


def _attach_generation_config(model: PreTrainedModel, path: Path) -> None:
    model.adjust_generation_fn(
        generation_config=None,
        from_auto_class=True,
        from_pipeline=None,
        pretrained_model_name_or_path=str(path),
        cache_dir=None,
        force_download=False,
        proxies=None,
        local_files_only=True,
        token=None,
        revision=None,
        subfolder="",
        trust_remote_code=False,
    )


def _refuse_saving(*args: Any, **settings: Any) -> NoReturn:
    raise UnsupportedModel(
        "This model has no experts in memory, so that a saved copy would lack them.",
        "Copy the checkpoint's folder instead.",
    )
