"""Runs inside the process that has the stub driver: one watched card, on a clock that the test turns."""

from __future__ import annotations

import platform
from unittest import mock

from engine.hardware.gpus import GpuSurvey, survey_gpus
from engine.hardware.vram_reading import VramReader, VramReading
from engine.hardware.vram_watch import Change, VramWatch

_running: dict[str, VramWatch] = {}
_now = {"seconds": 0.0}


def start(uuid: str, allocated_bytes: int) -> None:
    """Watch this card from second 0 on; this process's allocator holds so much of it all the time."""
    _now["seconds"] = 0.0
    reader = VramReader(uuid, lambda: allocated_bytes, can_spill=False)
    _running["watch"] = VramWatch(reader, clock=lambda: _now["seconds"])


def look(seconds: float) -> list[tuple[Change, int]]:
    """What the watch notices at this second."""
    _now["seconds"] = seconds
    return [(observation.change, observation.nbytes) for observation in _running["watch"].look()]


def read_once(uuid: str, allocated_bytes: int) -> VramReading:
    with VramReader(uuid, lambda: allocated_bytes) as read:
        return read()


def survey_under_wsl() -> GpuSurvey:
    """The survey as if this kernel were WSL's."""
    with mock.patch.object(platform, "release", lambda: "5.15.167.4-microsoft-standard-WSL2"):
        return survey_gpus()
