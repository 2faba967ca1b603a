"""Which build of PyTorch the launcher takes, what it asks the driver first, and what it says afterwards."""

import ctypes
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.hardware.card_check import card_sentence
from engine.hardware.gpu import Gpu
from engine.hardware.gpus import GpuSurvey
from engine.hardware.torch_cuda import TorchCard, TorchCuda
from launcher import groups
from launcher.nvidia import NvidiaCards, find_nvidia_cards
from launcher.torch_build import CPU_BUILD, CPU_INDEX_OPTIONS, CUDA_BUILD, IMPATIENTLY, choose_torch_build
from tests.test_launch import ROOT

CPU_INDEX, CU126, CU130 = (f"https://download.pytorch.org/whl/{name}" for name in ("cpu", "cu126", "cu130"))
ADA, PASCAL, BLACKWELL, KEPLER = (8, 9), (6, 1), (12, 0), (3, 5)


def offers(*indexes: str, default: str | None = "2.13.0"):
    """A pip that reaches these of PyTorch's indexes, besides the default one."""

    def offered_version(options):
        if not options:
            return default
        assert options[0] == "--index-url" and tuple(options[2:]) == IMPATIENTLY
        return f"2.13.0+{options[1].rsplit('/', 1)[-1]}" if options[1] in indexes else None

    return offered_version


def cards(cuda, *capabilities) -> NvidiaCards:
    return NvidiaCards(cuda, capabilities)


EVERYTHING = offers(CPU_INDEX, CU126, CU130)


def test_no_cuda_libraries_without_a_card():
    build = choose_torch_build(EVERYTHING, None, "Linux", "x86_64")
    assert build == CPU_BUILD._replace(pip_options=CPU_INDEX_OPTIONS)
    assert choose_torch_build(EVERYTHING, None, "Windows", "AMD64") == CPU_BUILD


def test_cuda_is_taken_where_the_cpu_index_cannot_be_reached():
    assert choose_torch_build(offers(), None, "Linux", "x86_64") == CUDA_BUILD


@pytest.mark.parametrize(
    ("system", "machine", "found", "index"),
    [
        ("Linux", "x86_64", cards((13, 0), ADA), None),  # the package index's own build
        ("Linux", "aarch64", cards((13, 2), BLACKWELL), None),
        ("Linux", "x86_64", cards(None), None),  # a driver that does not tell
        ("Linux", "x86_64", cards((12, 4), ADA), CU126),
        ("Linux", "x86_64", cards((13, 0), PASCAL), CU126),
        ("Linux", "x86_64", cards((13, 0), PASCAL, ADA), None),
        ("Windows", "AMD64", cards((13, 0), ADA), CU130),
        ("Windows", "AMD64", cards((13, 0), BLACKWELL), CU130),
        ("Windows", "AMD64", cards((12, 8), ADA), CU126),
        ("Windows", "AMD64", cards((12, 0), PASCAL), CU126),
        ("Windows", "AMD64", cards(None), CU130),
    ],
)
def test_the_newest_cuda_that_driver_and_card_allow(system, machine, found, index):
    build = choose_torch_build(EVERYTHING, found, system, machine)
    assert build.pip_options == (() if index is None else ("--index-url", index))
    assert build.disk_bytes == CUDA_BUILD.disk_bytes
    assert build.advice == ""


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (cards((11, 4), ADA), r"driver is too old .* up to 11\.4.* install NVIDIA's driver 580 .* folder \.venv"),
        (cards((12, 8), BLACKWELL), r"driver is too old .* up to 12\.8"),  # 12.6 has no code for such a card
        (cards((11, 4), KEPLER), r"capability 3\.5\) is not among those"),
        (cards(None, KEPLER), r"capability 3\.5\) is not among those"),
    ],
)
@pytest.mark.parametrize(("system", "machine"), [("Linux", "x86_64"), ("Windows", "AMD64")])
def test_a_card_that_cannot_be_used_gets_a_sentence_and_no_gigabytes(system, machine, found, words):
    build = choose_torch_build(EVERYTHING, found, system, machine)
    assert re.search(words, build.advice)
    assert build.disk_bytes == CPU_BUILD.disk_bytes


@pytest.mark.parametrize("system", ["Windows", "Linux"])
def test_an_index_that_cannot_be_reached_is_named(system):
    build = choose_torch_build(offers(), cards((12, 4), ADA), system, "AMD64" if system == "Windows" else "x86_64")
    assert build.pip_options == ()
    assert CU126 in build.advice and "check the network" in build.advice


def test_a_mirror_that_offers_another_build_is_not_taken_for_cuda():
    def mirror(options):
        return "2.13.0+cpu" if options else "2.13.0"

    build = choose_torch_build(mirror, cards((13, 0), ADA), "Windows", "AMD64")
    assert build.pip_options == () and "no such build" in build.advice


def test_the_users_own_index_decides():
    for card in (None, cards((13, 0), ADA)):
        assert choose_torch_build(offers(default="2.13.0+cpu"), card, "Linux", "x86_64") == CPU_BUILD
        assert choose_torch_build(offers(default="2.13.0+cu130"), card, "Windows", "AMD64") == CUDA_BUILD


def test_other_systems_have_no_cuda():
    assert choose_torch_build(EVERYTHING, None, "Darwin", "arm64") == CPU_BUILD
    assert choose_torch_build(EVERYTHING, cards((13, 0), ADA), "Windows", "ARM64") == CPU_BUILD


# Asking the driver


class FakeNvml:
    """NVML's C interface over ctypes: each call fills in its arguments and returns a status."""

    def __init__(self, capabilities, cuda_version=13000, init=0, broken=()):
        self.capabilities, self.cuda_version, self.init, self.broken = capabilities, cuda_version, init, broken
        self.open = 0

    def nvmlInit_v2(self):
        self.open += not self.init
        return self.init

    def nvmlShutdown(self):
        self.open -= 1
        return 0

    def nvmlDeviceGetCount_v2(self, count):
        count._obj.value = len(self.capabilities)
        return 0

    def nvmlSystemGetCudaDriverVersion_v2(self, version):
        version._obj.value = self.cuda_version
        return 0 if self.cuda_version else 999

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        handle._obj.value = index.value + 1
        return 15 if index.value in self.broken else 0

    def nvmlDeviceGetCudaComputeCapability(self, handle, major, minor):
        major._obj.value, minor._obj.value = self.capabilities[handle.value - 1]
        return 0


@pytest.fixture
def no_traces(monkeypatch):
    monkeypatch.setattr("launcher.nvidia._has_traces_of_a_driver", lambda: False)


@pytest.mark.parametrize(
    ("nvml", "found"),
    [
        (FakeNvml([ADA]), cards((13, 0), ADA)),
        (FakeNvml([PASCAL, ADA], 12060), cards((12, 6), PASCAL, ADA)),
        (FakeNvml([PASCAL, ADA], broken=(0,)), cards((13, 0), ADA)),
        (FakeNvml([ADA], cuda_version=0), cards(None, ADA)),
        (FakeNvml([]), None),
        (FakeNvml([ADA], init=9), None),
    ],
)
def test_the_driver_is_asked_and_left_in_order(nvml, found, no_traces):
    assert find_nvidia_cards(lambda name: nvml) == found
    assert nvml.open == 0


def test_a_driver_that_cannot_be_asked_is_still_one(monkeypatch):
    def nowhere(name):
        raise OSError(name)

    monkeypatch.setattr("launcher.nvidia._has_traces_of_a_driver", lambda: True)
    assert find_nvidia_cards(nowhere) == NvidiaCards(None)
    assert find_nvidia_cards(lambda name: FakeNvml([ADA], init=9)) == NvidiaCards(None)
    monkeypatch.setattr("launcher.nvidia._has_traces_of_a_driver", lambda: False)
    assert find_nvidia_cards(nowhere) is None


def test_the_library_has_windows_names_there(monkeypatch, no_traces):
    tried = []

    def nowhere(name):
        tried.append(name)
        raise OSError(name)

    monkeypatch.setattr("launcher.nvidia.sys.platform", "win32")
    find_nvidia_cards(nowhere)
    assert all(name.endswith("nvml.dll") for name in tried) and len(tried) == 2


def test_the_real_loader_finds_what_this_machine_has():
    found = find_nvidia_cards()
    assert found is None or found.cuda_version is None or found.cuda_version > (9, 0)
    with pytest.raises(OSError):
        ctypes.CDLL("no-such-library.so.1")


# After the installation


def gpu(**facts) -> Gpu:
    named = {"index": 0, "name": "RTX 4060", "vram_total_bytes": 8 << 30, "vram_free_bytes": 7 << 30}
    return Gpu(**named, pcie_generation=4, pcie_lanes=8, **facts)


SEEN = GpuSurvey((gpu(),), "550.54", "Found RTX 4060 (driver 550.54).", cuda_driver=(12, 4))


@pytest.mark.parametrize(
    ("torch_cuda", "words"),
    [
        (TorchCuda("2.13.0+cpu", None), "built without CUDA"),
        (TorchCuda("2.13.0+cu130", (13, 0)), "install NVIDIA's driver 580"),
        (TorchCuda("2.13.0+cu126", (12, 6), problem="CUDA unknown error"), "CUDA unknown error"),
        (TorchCuda("2.13.0+cu126", (12, 6), (TorchCard(0, "RTX 4060", 8 << 30, ADA),), ("sm_86",)), "computed on RTX"),
    ],
)
def test_after_installing_one_sentence_says_whether_the_card_is_seen(torch_cuda, words):
    assert words in card_sentence(SEEN, torch_cuda)


def test_without_a_card_nothing_is_said():
    assert card_sentence(GpuSurvey((), None, "No NVIDIA driver is installed."), TorchCuda("2.13.0+cpu", None)) is None


def test_the_check_runs_the_environments_python(tmp_path):
    environment = SimpleNamespace(python=Path(sys.executable), temporary_dir=tmp_path)
    words = groups.card_words(environment, ROOT)
    assert words is None or "computed on" in words
    assert "No module named" in groups.card_words(environment, tmp_path)
