"""The stub of NVIDIA's library, compiled once, and a process that has it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hardware.stub_driver import StubDriver, compile_stub, process_with_library


@pytest.fixture(scope="session")
def stub_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled library; tests that need it are skipped where there is no compiler or no Linux."""
    if not sys.platform.startswith("linux") or shutil.which("gcc") is None:
        pytest.skip("the stub of NVML needs Linux and gcc")
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
