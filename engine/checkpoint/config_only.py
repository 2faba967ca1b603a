"""What a checkpoint's headers would say, made up from its config alone: every parameter of the model, in one dtype."""

from __future__ import annotations

from pathlib import Path

import torch

from engine.checkpoint.safetensors_header import SINGLE_NAME, CheckpointTensors, TensorLocation
from engine.checkpoint.skeleton import Skeleton, read_config
from engine.checkpoint.weight_groups import WeightGroup


def imagine_headers(skeleton: Skeleton, folder: Path) -> tuple[CheckpointTensors, dict[str, WeightGroup]]:
    """Tensors named as the parameters they become, one after the other, in the dtype that the folder's config names
    or, where the skeleton expects packed ones, as bytes.
    """
    config = read_config(folder)
    dtype = getattr(config.get_text_config(), "dtype", None) or config.dtype or torch.float32
    tied = set(skeleton.model.all_tied_weights_keys)
    tensors: dict[str, TensorLocation] = {}
    offset = 0
    for name, parameter in skeleton.model.state_dict().items():
        if name in tied:
            continue
        stored = torch.uint8 if parameter.dtype == torch.uint8 else dtype
        nbytes = parameter.numel() * stored.itemsize
        tensors[name] = TensorLocation(0, offset, nbytes, stored, tuple(parameter.shape))
        offset += nbytes
    groups = {name: WeightGroup(name, None, {name: [(name, tensor)]}) for name, tensor in tensors.items()}
    return CheckpointTensors((folder / SINGLE_NAME,), tensors), groups
