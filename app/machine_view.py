"""The machine and its speeds as rows of words, for people."""

from __future__ import annotations

from typing import Any

from engine.hardware.gpu import Gpu, GpuProcess
from engine.hardware.machine import Machine
from engine.hardware.machine_speeds import MachineSpeeds
from engine.hardware.memory_plan import format_bytes
from engine.hardware.speed import Speed

Row = tuple[str, str]
_MOST_PROGRAMS = 4


def machine_rows(machine: Machine, disk: dict[str, Any]) -> list[Row]:
    """Processor, cards, memory, disk, system, libraries."""
    limited = f", limited by {machine.ram_limited_by}" if machine.ram_limited_by else ""
    rows = [("processor", f"{machine.cpu}: {machine.cpu_cores} cores, {machine.cpu_threads} threads usable")]
    rows += [row for gpu in machine.gpus for row in gpu_rows(gpu)]
    rows += _driver_row(machine)
    rows.append(("RAM", _of(machine.ram_available_bytes, machine.ram_total_bytes) + limited))
    if machine.swap_total_bytes:
        rows.append(("swap", _of(machine.swap_free_bytes, machine.swap_total_bytes)))
    rows.append(("disk", f"{format_bytes(disk['free_bytes'])} free at {disk['folder']}"))
    rows.append(("system", f"{machine.system}{' (WSL)' if machine.survey.wsl else ''}, Python {machine.python}"))
    rows.append(("libraries", ", ".join(f"{name} {version}" for name, version in machine.versions.items())))
    return rows


def gpu_rows(gpu: Gpu) -> list[Row]:
    """One card: memory, who uses it, its slot, its parts."""
    generation = gpu.compute_capability and f", compute capability {'.'.join(map(str, gpu.compute_capability))}"
    rows = [(f"card {gpu.index}", f"{gpu.name}{generation or ''}: {_of(gpu.vram_free_bytes, gpu.vram_total_bytes)}")]
    rows += _program_row(gpu) + _slot_row(gpu)
    for part in gpu.mig_instances:
        rows.append((f"  part {part.index}", f"{part.name}: {_of(part.vram_free_bytes, part.vram_total_bytes)}"))
    return rows


def speed_rows(speeds: MachineSpeeds | None) -> list[Row]:
    """What was measured; "beside the rest" while copying, reading and computing went on at once."""
    if speeds is None:
        return []
    computed = f"{1000 * speeds.expert_seconds:.1f} ms ({speeds.expert_by}, {speeds.expert_dtype}), "
    to_card = speeds.device != "cpu"
    rows = [("RAM to the card" if to_card else "RAM to RAM", _speed(speeds.copy))]
    if speeds.copy_pageable is not None:
        rows.append(("from ordinary RAM", _speed(speeds.copy_pageable)))
    rows.append(("one expert on the processor", computed + _speed(speeds.expert)))
    if speeds.disk is not None and speeds.disk_reader is not None:
        rows.append(("disk, one expert at a time", _speed(speeds.disk_reader)))
        rows.append(("disk by pattern", _disk_speed(speeds.disk.to_dict())))
    rows.append(
        ("measured", f"{speeds.measured_at} on experts of {format_bytes(speeds.expert_bytes)}; again: --refresh")
    )
    return rows


def _driver_row(machine: Machine) -> list[Row]:
    survey = machine.survey
    if survey.driver is None:
        return []
    cuda = f", CUDA up to {survey.cuda_driver[0]}.{survey.cuda_driver[1]}" if survey.cuda_driver else ""
    return [("driver", f"NVIDIA {survey.driver}{cuda}")]


def _program_row(gpu: Gpu) -> list[Row]:
    if gpu.processes is None:
        return [("  used by", "the driver does not tell")]
    others = [process for process in gpu.processes if not process.own]
    if not others:
        return []
    named = [
        f"{process.name or f'process {process.pid}'}"
        + (f" {format_bytes(process.used_bytes)}" if process.used_bytes is not None else "")
        for process in others[:_MOST_PROGRAMS]
    ]
    more = f" and {len(others) - _MOST_PROGRAMS} more" if len(others) > _MOST_PROGRAMS else ""
    return [("  used by", f"{', '.join(named)}{more}{_sum_in_words(gpu, others)}")]


def _sum_in_words(gpu: Gpu, others: list[GpuProcess]) -> str:
    if gpu.vram_others_bytes is not None:
        return f": {format_bytes(gpu.vram_others_bytes)}"
    anything = any(process.used_bytes is not None for process in others)
    return " (the driver does not tell all sizes)" if anything else " (the driver does not tell how much each holds)"


def _slot_row(gpu: Gpu) -> list[Row]:
    if gpu.pcie_max_generation is None or gpu.pcie_lanes is None:
        return []
    most = f", at most {gpu.pcie_bytes_per_second / 1e9:.1f} GB/s" if gpu.pcie_bytes_per_second else ""
    idle = gpu.pcie_generation is not None and gpu.pcie_generation < gpu.pcie_max_generation
    now = f"; generation {gpu.pcie_generation} now, to save power" if idle else ""
    lanes = f"x{gpu.pcie_lanes}" + (f" of x{gpu.pcie_max_lanes}" if gpu.pcie_max_lanes != gpu.pcie_lanes else "")
    return [("  slot", f"PCIe {gpu.pcie_max_generation}.0 {lanes}{most}{now}")]


def _of(free_bytes: int | None, total_bytes: int | None) -> str:
    if free_bytes is None or total_bytes is None:
        return "the driver does not tell its memory"
    return f"{format_bytes(free_bytes)} free of {format_bytes(total_bytes)}"


def _speed(speed: Speed) -> str:
    return f"{speed.alone / 1e9:.2f} GB/s, {speed.together / 1e9:.2f} beside the rest"


def _disk_speed(speed: dict[str, Any]) -> str:
    patterns = ("sequential_1_reader", "sequential_2_readers", "random_1_reader", "random_2_readers")
    figures = [f"{name.replace('_', ' ')} {speed[name] / 1e9:.2f}" for name in patterns]
    return f"GB/s: {', '.join(figures)}. {speed['explanation']}"
