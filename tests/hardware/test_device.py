"""Which device is chosen and what is said about it, from invented drivers and PyTorch builds."""

from __future__ import annotations

import pytest

from engine.errors import DeviceNotAvailable, InvalidSetting
from engine.hardware.device import choose_device
from engine.hardware.gpu import Gpu, MigInstance
from engine.hardware.gpus import NO_GPU, GpuSurvey
from engine.hardware.torch_cuda import TorchCard, TorchCuda

GIB = 1 << 30
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_120")
SMALL = Gpu(0, "RTX 3060", 12 * GIB, 4 * GIB, uuid="GPU-aaaa-1", compute_capability=(8, 6))
LARGE = Gpu(1, "RTX 3090", 24 * GIB, 23 * GIB, uuid="GPU-bbbb-2", compute_capability=(8, 6))
NOTHING = GpuSurvey((), None, f"No NVIDIA driver is installed: {NO_GPU}.")
CPU_BUILD = TorchCuda("2.13.0+cpu", None)


def survey(*gpus: Gpu, cuda: tuple[int, int] = (13, 0)) -> GpuSurvey:
    return GpuSurvey(gpus, "580.1", "Found cards.", cuda)


def seen(*gpus: Gpu, uuids: bool = True, capability: tuple[int, int] = (8, 6)) -> TorchCuda:
    """A CUDA build that lists the cards in this order."""
    cards = tuple(
        TorchCard(index, gpu.name, gpu.vram_total_bytes, capability, gpu.uuid.removeprefix("GPU-") if uuids else None)
        for index, gpu in enumerate(gpus)
    )
    return TorchCuda("2.13.0+cu130", (13, 0), cards, ARCHITECTURES)


def test_auto_takes_the_card_with_the_most_free_memory_by_torchs_number():
    # CUDA lists the faster card first, NVML by the bus
    chosen = choose_device("auto", survey(SMALL, LARGE), seen(LARGE, SMALL), {})
    assert (chosen.kind, chosen.index, chosen.torch_name) == ("cuda", 0, "cuda:0")
    assert chosen.gpu is LARGE
    assert chosen.vram_free_bytes == 23 * GIB
    assert "RTX 3090" in chosen.reason and "of 2 cards the one with the most free memory" in chosen.reason


def test_a_nearly_full_large_card_loses_to_a_smaller_one():
    full = Gpu(1, "RTX 3090", 24 * GIB, GIB, uuid="GPU-bbbb-2")
    assert choose_device("auto", survey(SMALL, full), seen(SMALL, full), {}).gpu is SMALL


def test_a_card_by_number_is_torchs_number_not_the_drivers():
    cards, torch_cuda = survey(SMALL, LARGE), seen(LARGE, SMALL)
    assert choose_device("cuda:1", cards, torch_cuda, {}).gpu is SMALL
    assert choose_device("cuda:0", cards, torch_cuda, {}).gpu is LARGE


@pytest.mark.parametrize(
    ("listed", "gpu"), [("1", LARGE), ("1,0", LARGE), ("GPU-bbbb", LARGE), ("0", SMALL), ("GPU-aaaa-1,7", SMALL)]
)
def test_without_uuids_the_environment_says_which_card_is_first(listed, gpu):
    environment = {"CUDA_VISIBLE_DEVICES": listed}
    chosen = choose_device("cuda:0", survey(SMALL, LARGE), seen(gpu, uuids=False), environment)
    assert chosen.gpu is gpu


def test_a_number_that_is_not_there_lists_what_is():
    with pytest.raises(DeviceNotAvailable, match=r"no card cuda:2; there is cuda:0 \(RTX 3060\)"):
        choose_device("cuda:2", survey(SMALL), seen(SMALL), {})


def test_a_hidden_card_names_the_variable_that_hides_it():
    environment = {"CUDA_VISIBLE_DEVICES": "0"}
    with pytest.raises(DeviceNotAvailable, match="CUDA_VISIBLE_DEVICES is '0'"):
        choose_device("cuda:1", survey(SMALL, LARGE), seen(SMALL), environment)


@pytest.mark.parametrize("asked", ["cuda", "cuda:0"])
def test_asking_for_a_card_where_there_is_no_driver(asked):
    with pytest.raises(DeviceNotAvailable, match="No NVIDIA driver is installed"):
        choose_device(asked, NOTHING, CPU_BUILD, {})


def test_auto_without_a_card_says_why():
    chosen = choose_device("auto", NOTHING, CPU_BUILD, {})
    assert (chosen.kind, chosen.index, chosen.torch_name) == ("cpu", None, "cpu")
    assert chosen.reason == NOTHING.explanation


@pytest.mark.parametrize("asked", ["gpu", "cuda:", "cuda:x", "mps", ""])
def test_what_is_no_device_is_refused(asked):
    with pytest.raises(InvalidSetting):
        choose_device(asked, survey(SMALL), seen(SMALL), {})


def test_the_processor_on_request():
    assert choose_device("cpu", survey(SMALL), seen(SMALL), {}).torch_name == "cpu"


@pytest.mark.parametrize(
    ("torch_cuda", "cuda", "environment", "cause", "remedy"),
    [
        (CPU_BUILD, (13, 0), {}, "2.13.0+cpu) is built without CUDA", "launch.py"),
        (TorchCuda("2.13", (13, 0)), (11, 4), {}, "runs CUDA up to 11.4 and this PyTorch needs CUDA 13.0", "580.65"),
        (TorchCuda("2.13", (13, 0)), (13, 0), {"CUDA_VISIBLE_DEVICES": "-1"}, "='-1' hides it", "unset"),
        (TorchCuda("2.13", (13, 0), problem="CUDA unknown error"), (13, 0), {}, "(CUDA unknown error)", "restart"),
        (seen(SMALL, capability=(6, 1)), (13, 0), {}, "compute capability 6.1 is not among", "another card"),
    ],
)
def test_a_card_that_torch_cannot_use_is_explained(torch_cuda, cuda, environment, cause, remedy):
    chosen = choose_device("auto", survey(SMALL, cuda=cuda), torch_cuda, environment)
    assert chosen.kind == "cpu"
    assert cause in chosen.reason and remedy in chosen.reason and "RTX 3060" in chosen.reason
    with pytest.raises(DeviceNotAvailable) as refusal:
        choose_device("cuda", survey(SMALL, cuda=cuda), torch_cuda, environment)
    assert cause in refusal.value.cause and remedy in refusal.value.remedy


def test_auto_passes_over_a_card_too_old_for_torch():
    old = TorchCard(0, "GTX 1080 Ti", 11 * GIB, (6, 1), "cccc-3")
    both = TorchCuda("2.13", (13, 0), (old, TorchCard(1, "RTX 3060", 12 * GIB, (8, 6), "aaaa-1")), ARCHITECTURES)
    pascal = Gpu(1, "GTX 1080 Ti", 11 * GIB, 11 * GIB, uuid="GPU-cccc-3")
    assert choose_device("auto", survey(SMALL, pascal), both, {}).index == 1
    with pytest.raises(DeviceNotAvailable, match=r"compute capability 6\.1"):
        choose_device("cuda:0", survey(SMALL, pascal), both, {})


def test_a_split_card_is_as_large_as_its_part():
    part = MigInstance(0, "MIG-dddd-4", "A100 MIG 1g.10gb", 10 * GIB, 9 * GIB)
    split = Gpu(0, "A100", 80 * GIB, 60 * GIB, uuid="GPU-eeee-5", mig_enabled=True, mig_instances=(part,))
    for uuid in ("dddd-4", "eeee-5"):  # CUDA names the part or, in older versions, its card
        card = TorchCuda("2.13", (13, 0), (TorchCard(0, "A100 MIG 1g.10gb", 10 * GIB, (8, 0), uuid),), ARCHITECTURES)
        chosen = choose_device("auto", survey(split), card, {})
        assert (chosen.vram_total_bytes, chosen.vram_free_bytes) == (10 * GIB, 9 * GIB)
        assert "MIG 1g.10gb" in chosen.reason


def test_torch_alone_is_enough_where_nvml_does_not_answer():
    chosen = choose_device("auto", NOTHING, seen(SMALL), {})
    assert (chosen.index, chosen.gpu, chosen.vram_total_bytes) == (0, None, 12 * GIB)
    assert chosen.vram_free_bytes is None


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (("sm_80",), (8, 6), True),
        (("sm_86",), (8, 0), False),
        (("sm_80",), (9, 0), False),
        (("compute_80",), (12, 0), True),
        (("sm_90a",), (9, 0), True),
        ((), (3, 5), True),
    ],
)
def test_code_for_a_card(architectures, capability, runs):
    assert TorchCuda("2", (12, 0), architectures=architectures).runs_on(capability) is runs
