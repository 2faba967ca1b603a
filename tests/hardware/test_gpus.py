"""Cards as NVML tells them, through a stand-in for its Python binding."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from engine.hardware.gpus import Gpu, survey_gpus


class NVMLError(Exception):
    pass


class NotFound(NVMLError):
    pass


class NotSupported(NVMLError):
    pass


def unsupported(*_: object) -> None:
    raise NotSupported("Not Supported")


class Binding(SimpleNamespace):
    """A working driver with one card; keyword arguments replace functions."""

    def __init__(self, **replaced: object) -> None:
        self.ended = 0
        memory = SimpleNamespace(total=8 << 30, free=6 << 30, used=2 << 30)
        working = {
            "NVMLError": NVMLError,
            "NVMLError_LibraryNotFound": NotFound,
            "nvmlInit": lambda: None,
            "nvmlShutdown": self._end,
            "nvmlSystemGetDriverVersion": lambda: "560.1",
            "nvmlDeviceGetCount": lambda: 1,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetName": lambda handle: "RTX 4060",
            "nvmlDeviceGetMemoryInfo": lambda handle: memory,
            "nvmlDeviceGetCurrPcieLinkGeneration": lambda handle: 4,
            "nvmlDeviceGetCurrPcieLinkWidth": lambda handle: 8,
        }
        super().__init__(**working | replaced)

    def _end(self) -> None:
        self.ended += 1


def failing(error: Exception):
    def fail(*_: object):
        raise error

    return fail


def test_a_card():
    binding = Binding()
    survey = survey_gpus(binding)
    assert survey.gpus == (Gpu(0, "RTX 4060", 8 << 30, 6 << 30, 4, 8, vram_used_bytes=2 << 30),)
    assert survey.driver == "560.1"
    assert "RTX 4060" in survey.explanation
    assert binding.ended == 1


def test_no_driver_is_explained_and_nothing_is_shut_down():
    binding = Binding(nvmlInit=failing(NotFound("NVML Shared Library Not Found")))
    survey = survey_gpus(binding)
    assert survey.gpus == ()
    assert survey.explanation.startswith("No NVIDIA driver is installed")
    assert binding.ended == 0


def test_a_driver_that_fails_later_is_explained_and_shut_down():
    binding = Binding(nvmlDeviceGetCount=failing(NVMLError("Unknown Error")))
    survey = survey_gpus(binding)
    assert survey.gpus == ()
    assert "Unknown Error" in survey.explanation
    assert binding.ended == 1


def test_a_driver_without_a_card():
    survey = survey_gpus(Binding(nvmlDeviceGetCount=lambda: 0))
    assert survey.gpus == ()
    assert "reports no card" in survey.explanation


@pytest.mark.parametrize("question", ["MemoryInfo", "CurrPcieLinkGeneration", "Name"])
def test_what_a_card_does_not_tell_is_left_open(question):
    (gpu,) = survey_gpus(Binding(**{f"nvmlDeviceGet{question}": unsupported})).gpus
    told = {
        "MemoryInfo": (gpu.vram_total_bytes, None),
        "CurrPcieLinkGeneration": (gpu.pcie_generation, None),
        "Name": (gpu.name, "card 0"),
    }
    assert told[question][0] == told[question][1]
    assert gpu.pcie_lanes == 8


def test_names_as_bytes():
    (gpu,) = survey_gpus(Binding(nvmlDeviceGetName=lambda handle: b"Tesla T4")).gpus
    assert gpu.name == "Tesla T4"


def test_the_real_binding_answers_here_too():
    survey = survey_gpus()
    assert survey.explanation
    assert bool(survey.gpus) == survey.explanation.startswith("Found ")
