"""Which cards CUDA numbers 0, 1, 2 ...: the environment hides and reorders what the driver lists."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from engine.hardware.gpu import Gpu, MigInstance
from engine.hardware.torch_cuda import TorchCard, bare_uuid

VISIBLE = "CUDA_VISIBLE_DEVICES"
_LEADING_NUMBER = re.compile(r"\s*([+-]?\d+)")


def visible_gpus(gpus: Sequence[Gpu], environment: Mapping[str, str]) -> tuple[Gpu, ...]:
    """The cards in the order of `cuda:0`, `cuda:1` ..., as CUDA reads its variable: numbers or UUIDs (also their
    beginnings); the first entry that names no card ends the list, a card named twice empties it.

    Without CUDA_DEVICE_ORDER=PCI_BUS_ID and with different cards, CUDA itself puts the fastest first; only PyTorch's
    own UUIDs (`match`) are certain then.
    """
    listed = environment.get(VISIBLE)
    if listed is None:
        return tuple(gpus)
    chosen: list[Gpu] = []
    for entry in listed.split(","):
        gpu = _named(entry, gpus)
        if gpu is None:
            break
        if gpu in chosen:
            return ()
        chosen.append(gpu)
    return tuple(chosen)


def match(
    card: TorchCard, gpus: Sequence[Gpu], environment: Mapping[str, str]
) -> tuple[Gpu | None, MigInstance | None]:
    """The driver's card behind PyTorch's, and the part of it where it is split; by UUID, else by order."""
    for gpu in gpus:
        for part in gpu.mig_instances:
            if card.uuid is not None and bare_uuid(part.uuid) == card.uuid:
                return gpu, part
        if card.uuid is not None and bare_uuid(gpu.uuid) == card.uuid:
            return gpu, gpu.mig_instances[0] if gpu.mig_instances else None
    visible = visible_gpus(gpus, environment)
    if card.index >= len(visible):
        return None, None
    gpu = visible[card.index]
    return gpu, gpu.mig_instances[0] if gpu.mig_instances else None


def _named(entry: str, gpus: Sequence[Gpu]) -> Gpu | None:
    entry = entry.strip()
    if entry.startswith(("GPU-", "MIG-")):
        uuids = [(gpu, (gpu.uuid, *(part.uuid for part in gpu.mig_instances))) for gpu in gpus]
        named = [gpu for gpu, known in uuids if any(uuid and uuid.startswith(entry) for uuid in known)]
        return named[0] if len(named) == 1 else None
    number = _LEADING_NUMBER.match(entry)
    place = int(number[1]) if number else -1
    return gpus[place] if 0 <= place < len(gpus) else None
