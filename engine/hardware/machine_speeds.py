"""How fast experts come and are computed here: the copy to near memory, the disk, the processor. Measured together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from engine.hardware.copy_probe import CopyInRam, CopyToCard
from engine.hardware.device import ChosenDevice
from engine.hardware.disk_probe import DiskProbe, probe_file, random_reading, temporary_file
from engine.hardware.expert_probe import ExpertShape, computed_by, expert_steps
from engine.hardware.speed import Speed, Step, measure

Progress = Callable[[str, int, int], None]
SECONDS_EACH = 0.25
MOST_PIECE_BYTES = 16 << 20  # larger experts are copied and read in pieces: neither becomes faster beyond this
_LOOK_SECONDS = 0.2
_BUSY_PERCENT = 30.0
_COPY, _PAGEABLE, _EXPERT, _DISK = "copy", "pageable copy", "expert", "disk"
_WORDS = {
    _COPY: "Measuring the copy of experts to where they are computed",
    _PAGEABLE: "Measuring the copy from ordinary RAM",
    _EXPERT: "Measuring the processor on one expert (the first start compiles its kernel)",
    _DISK: "Measuring single reads of experts",
    "together": "Measuring all of it at the same time",
}


@dataclass(frozen=True)
class MachineSpeeds:
    """Bytes per second, for experts of `expert_bytes`.

    `copy` goes from RAM to where experts are computed on `device`: page-locked to a card, RAM to RAM on the
    processor. `copy_pageable` is the card's from ordinary RAM, None on the processor; where the driver refuses
    page-locked memory, `copy` is the same. `expert` is the processor computing one expert for one token. `disk` is
    None where nothing could be read; `disk_reader` is one reader at random, which can be compared with the others.
    """

    device: str
    copy: Speed
    copy_pageable: Speed | None
    expert: Speed
    expert_bytes: int
    expert_dtype: str
    expert_by: str
    disk: DiskProbe | None
    disk_reader: Speed | None
    measured_at: str
    notes: tuple[str, ...] = ()

    @property
    def expert_seconds(self) -> float:
        """One expert for one token on this processor, by itself."""
        return self.expert_bytes / self.expert.alone

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return {**asdict(self), "notes": list(self.notes), "disk": self.disk and self.disk.to_dict()} | {
            "expert_seconds": self.expert_seconds
        }

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> MachineSpeeds:
        """What `to_dict` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        fields = {name: stored[name] for name in cls.__dataclass_fields__}
        for name in ("copy", "copy_pageable", "expert", "disk_reader"):
            fields[name] = _speed(fields[name])
        fields["disk"] = fields["disk"] and DiskProbe(**{k: fields["disk"][k] for k in DiskProbe.__dataclass_fields__})
        if fields["copy"] is None or fields["expert"] is None or not fields["expert_bytes"] > 0:
            raise ValueError("figures are missing")
        return cls(**fields | {"notes": tuple(fields["notes"])})


def measure_speeds(
    device: ChosenDevice,
    shape: ExpertShape,
    place: Path,
    on_progress: Progress | None = None,
    seconds_each: float = SECONDS_EACH,
) -> MachineSpeeds:
    """Measures for about three seconds (compiling the kernel comes on top at the first start).

    `place` is a file of the model, or the folder where one will be. Takes up to 400 MB meanwhile, less where little
    is free. A disk that cannot be read, page-locked memory that is refused and a busy machine become notes.
    """
    notes = _note_on_other_work()
    piece_bytes = min(shape.nbytes, MOST_PIECE_BYTES)
    with ExitStack() as stack:
        steps: dict[str, Step] = dict(_copies(device, piece_bytes, stack, notes))
        steps[_EXPERT] = expert_steps(shape)
        disk, reading = _disk(place, piece_bytes, 4 * seconds_each, stack, notes, on_progress)
        if reading is not None:
            steps[_DISK] = reading
        speeds = measure(steps, seconds_each, _reporter(on_progress, len(steps) + 2))
    return MachineSpeeds(
        device=device.torch_name,
        copy=speeds.get(_COPY) or speeds[_PAGEABLE],
        copy_pageable=speeds.get(_PAGEABLE),
        expert=speeds[_EXPERT],
        expert_bytes=shape.nbytes,
        expert_dtype=str(shape.dtype).removeprefix("torch."),
        expert_by=computed_by(shape),
        disk=disk,
        disk_reader=speeds.get(_DISK),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        notes=tuple(notes),
    )


def _note_on_other_work() -> list[str]:
    busy = psutil.cpu_percent(interval=_LOOK_SECONDS)
    if busy < _BUSY_PERCENT:
        return []
    return [
        f"Other programs kept the processor busy ({busy:.0f}%) while speeds were measured: measure again when idle."
    ]


def _copies(device: ChosenDevice, piece_bytes: int, stack: ExitStack, notes: list[str]) -> Iterator[tuple[str, Step]]:
    if device.index is None:
        yield _COPY, CopyInRam(piece_bytes).step
        return
    try:
        yield _COPY, stack.enter_context(CopyToCard(piece_bytes, device.index, page_locked=True)).step
    except RuntimeError as refusal:
        reason = str(refusal).partition("\n")[0]
        notes.append(f"The driver gives no page-locked RAM ({reason}): experts are copied from ordinary RAM, slower.")
    yield _PAGEABLE, stack.enter_context(CopyToCard(piece_bytes, device.index, page_locked=False)).step


def _disk(
    place: Path, piece_bytes: int, seconds: float, stack: ExitStack, notes: list[str], on_progress: Progress | None
) -> tuple[DiskProbe | None, Step | None]:
    try:
        file = stack.enter_context(_file_at(place))
        if on_progress:
            on_progress("Measuring the disk", 0, 0)
        return probe_file(file, piece_bytes, seconds), stack.enter_context(random_reading(file, piece_bytes)).step
    except (OSError, ValueError) as problem:
        notes.append(f"The disk's speed could not be measured: {problem}.".replace("..", "."))
        return None, None


@contextmanager
def _file_at(place: Path) -> Iterator[Path]:
    if place.is_dir():
        with temporary_file(place) as file:
            yield file
    else:
        yield place


def _reporter(on_progress: Progress | None, total: int) -> Callable[[str], None] | None:
    if on_progress is None:
        return None
    done = iter(range(1, total))
    return lambda name: on_progress(_WORDS[name], next(done), total)


def _speed(stored: dict[str, float] | None) -> Speed | None:
    if stored is None:
        return None
    speed = Speed(float(stored["alone"]), float(stored["together"]))
    if not (speed.alone > 0 and speed.together > 0):
        raise ValueError("a speed is not positive")
    return speed
