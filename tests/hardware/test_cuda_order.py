"""CUDA_VISIBLE_DEVICES read as CUDA reads it; where this PyTorch has the same reader, both agree."""

from __future__ import annotations

import pytest

from engine.hardware.cuda_order import visible_gpus
from engine.hardware.gpu import Gpu

GPUS = tuple(Gpu(index, f"card {index}", 1, 1, uuid=f"GPU-{index}{index}ab-cd") for index in range(3))


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (None, (0, 1, 2)),
        ("", ()),
        ("-1", ()),
        ("2", (2,)),
        ("2,0", (2, 0)),
        (" 1 , 2 ", (1, 2)),
        ("0,7,1", (0,)),
        ("1,-1,0", (1,)),
        ("1,1", ()),
        ("1gpu,2", (1, 2)),
        ("GPU-11ab-cd,GPU-00", (1, 0)),
        ("GPU-", ()),
        ("GPU-99", ()),
        ("none", ()),
    ],
)
def test_the_list_is_read_as_cuda_reads_it(listed, expected, monkeypatch):
    environment = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    assert tuple(gpu.index for gpu in visible_gpus(GPUS, environment)) == expected
    assert torchs_reading(listed, monkeypatch) == expected


def torchs_reading(listed, monkeypatch) -> tuple[int, ...]:
    from torch import cuda

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    places = cuda._parse_visible_devices()
    if places and isinstance(places[0], str):
        places = cuda._transform_uuid_to_ordinals(places, [gpu.uuid for gpu in GPUS])
    known = []
    for place in places:
        if place >= len(GPUS):
            break
        known.append(place)
    return tuple(known)
