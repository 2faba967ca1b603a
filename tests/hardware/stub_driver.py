"""A program that asks the real `pynvml`, which finds the stub library where the driver's would be.

The library is searched for when a program starts, so questions go to a process of its own; it answers with the
real objects. What the driver says is a file, which a test may rewrite between two questions.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parent / "nvml_stub" / "nvml_stub.c"
LIBRARY = "libnvidia-ml.so.1"
GIB = 1 << 30

SYSTEM = {"driver": "580.65.06", "cuda": 13000}
CARD = {
    "name": "NVIDIA GeForce RTX 4060",
    "uuid": "GPU-5e1f0000-0000-4000-8000-000000000001",
    "bus": "00000000:01:00.0",
    "total": 8 * GIB,
    "free": 6 * GIB,
    "generation": 1,
    "lanes": 8,
    "max_generation": 4,
    "max_lanes": 8,
    "capability": "8.9",
    "processes": "listed",
}


class StubDriver:
    """What the driver says (`tell`), and a process that is asked (`call`)."""

    def __init__(self, scenario: Path, pool: ProcessPoolExecutor) -> None:
        self._scenario = scenario
        self._pool = pool

    def tell(self, *cards: Mapping[str, object], **system: object) -> None:
        """Replace all that the driver says from now on. A key with None is not said at all."""
        lines = dict(SYSTEM) | {"cards": len(cards)} | system
        for index, card in enumerate(cards):
            lines |= {f"card.{index}.{key}": value for key, value in card.items()}
        fresh = self._scenario.with_suffix(".new")
        fresh.write_text("".join(f"{key} = {value}\n" for key, value in lines.items() if value is not None))
        os.replace(fresh, self._scenario)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The answer of an importable function, run in the process that has this driver."""
        return self._pool.submit(function, *arguments).result(timeout=60)


def find_compiler() -> str | None:
    """Any C compiler."""
    return next((path for name in ("gcc", "cc", "clang") if (path := shutil.which(name))), None)


def compile_stub(folder: Path) -> Path:
    """The library in `folder`; takes a fraction of a second."""
    library = folder / LIBRARY
    compiler = find_compiler()
    assert compiler is not None
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(library), str(SOURCE)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


@contextmanager
def process_with_library(folder: Path, scenario: Path) -> Iterator[ProcessPoolExecutor]:
    """One process that finds NVML in `folder`; it starts with the first question."""
    found = {"LD_LIBRARY_PATH": str(folder), "NVML_STUB_SCENARIO": str(scenario)}
    before = {name: os.environ.get(name) for name in found}
    os.environ |= found
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(os.getpid).result(timeout=60)
            yield pool
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@pytest.fixture(scope="session")
def stub_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled library; tests that need it are skipped where there is no compiler or no Linux."""
    if not sys.platform.startswith("linux") or find_compiler() is None:
        pytest.skip("the stub of NVML needs Linux and a C compiler")
    return compile_stub(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def stub_process(stub_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StubDriver]:
    scenario = tmp_path_factory.mktemp("nvml-scenario") / "scenario.txt"
    with process_with_library(stub_library.parent, scenario) as pool:
        yield StubDriver(scenario, pool)


@pytest.fixture
def driver(stub_process: StubDriver) -> StubDriver:
    """A driver without a card; tests tell it what to say."""
    stub_process.tell()
    return stub_process
