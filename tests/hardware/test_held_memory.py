"""What is measured beside the plan is what the process took, not what it read."""

from __future__ import annotations

import mmap

from engine.engine import Engine
from engine.errors import DriverFailed
from engine.hardware.held_memory import HeldMemory, own_bytes
from engine.hardware.vram_reading import VramReading
from tests.tiny_models import tiny_checkpoint

MIB = 1 << 20


def test_memory_that_is_taken_counts_and_files_that_are_mapped_do_not(tmp_path):
    file = tmp_path / "large"
    file.write_bytes(b"x" * (48 * MIB))
    before = own_bytes()
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:: mmap.PAGESIZE].count(b"x")  # every page was read
        assert own_bytes() < before + 24 * MIB
    taken = mmap.mmap(-1, 64 * MIB)
    taken.write(b"x" * len(taken))
    assert own_bytes() > before + 48 * MIB
    taken.close()


def test_plan_and_measurement_stand_side_by_side():
    held = HeldMemory()
    held._before_bytes = own_bytes() - 1_234_000_000
    assert held.words(1_400_000_000) == "Planned: 1.4 GB; taken by this process since loading began: 1.2 GB."


def test_on_a_card_the_driver_is_asked_and_may_be_silent():
    reading = VramReading(total_bytes=8 << 30, free_bytes=4 << 30, own_bytes=3_000_000_000, allocated_bytes=0)
    assert HeldMemory().words(10**9, lambda: reading) == "Planned: 1.0 GB; taken on the card: 3.0 GB."

    def silent() -> VramReading:
        raise DriverFailed("The driver does not answer.", "Restart it.")

    assert HeldMemory().words(10**9, silent) == ""


def test_a_loaded_engine_says_it():
    with Engine.load(tiny_checkpoint("mixtral"), budget="50%") as engine:
        assert any(note.startswith("Planned: ") for note in engine.snapshot().notes)
