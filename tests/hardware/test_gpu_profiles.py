"""The cards that can be emulated: the shipped file, spellings, what a damaged file does."""

from __future__ import annotations

import json

import pytest

from engine.errors import InvalidSetting
from engine.hardware.gpu_profiles import GIB, PROFILES_FILE, gpu_profiles, profile_named, read_profiles


def test_the_shipped_cards_are_possible_cards():
    profiles = gpu_profiles()
    assert len(profiles) >= 10
    for profile in profiles:
        assert profile_named(profile.name) is profile
        assert 4 * GIB <= profile.vram_bytes <= 48 * GIB
        assert 100e9 < profile.memory_bytes_per_second < 2e12
        # nothing reaches its lanes' nominal rate, and no link is as fast as the card's own memory
        assert 5e9 < profile.link_bytes_per_second < 2e9 * profile.pcie_lanes * 2 ** (profile.pcie_generation - 4)
        assert profile.link_bytes_per_second < profile.memory_bytes_per_second / 5


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("4060", "RTX 4060"),
        ("rtx4060", "RTX 4060"),
        ("NVIDIA GeForce RTX 4060", "RTX 4060"),
        ("4060 8gb", "RTX 4060"),
        ("RTX-3060_12G", "RTX 3060"),
        ("4060ti-16g", "RTX 4060 Ti 16 GB"),
        ("RTX 4060 Ti 8 GiB", "RTX 4060 Ti 8 GB"),
        ("4060 laptop", "RTX 4060 Laptop"),
        ("RTX 4050 Laptop GPU", "RTX 4050 Laptop"),
        ("1080ti", "GTX 1080 Ti"),
        ("a2000", "RTX A2000"),
        ("5060ti", "RTX 5060 Ti 16 GB"),
    ],
)
def test_a_card_is_found_by_any_usual_spelling(text, name):
    assert profile_named(text).name == name


@pytest.mark.parametrize(
    ("text", "cause", "remedy"),
    [
        ("9999", "No card called '9999' is known", "RTX 3060, RTX 3060 Ti"),
        ("", "No card called ''", "RTX 4090"),
        ("3060 8G", "No card called", "RTX 3060"),
        ("4060 Ti", "There are 2 cards", "RTX 4060 Ti 8 GB, RTX 4060 Ti 16 GB"),
    ],
)
def test_what_is_no_card_lists_what_there_is(text, cause, remedy):
    with pytest.raises(InvalidSetting) as refused:
        profile_named(text)
    assert cause in refused.value.cause
    assert remedy in refused.value.remedy


def test_the_roofline_is_bytes_over_bandwidth():
    card = profile_named("4060")
    assert card.token_seconds(272 * 10**6) == pytest.approx(1e-3)
    assert "8 GiB" in card.words and "PCIe 4.0 x8 (12.6 GB/s)" in card.words
    assert card.label == "emulated RTX 4060"


@pytest.mark.parametrize(
    "change",
    [
        {"cards": []},
        {"pcie_efficiency": 1.5},
        {"cards": [{"name": "RTX 1"}]},
        {"bandwidth": 3},
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path, change):
    whole = json.loads(PROFILES_FILE.read_text())
    (tmp_path / "profiles.json").write_text(json.dumps(whole | change))
    with pytest.raises(ValueError):
        read_profiles(tmp_path / "profiles.json")


def test_a_card_named_twice_is_refused(tmp_path):
    whole = json.loads(PROFILES_FILE.read_text())
    whole["cards"].append(whole["cards"][0] | {"name": "GeForce GTX1080 Ti"})
    (tmp_path / "profiles.json").write_text(json.dumps(whole))
    with pytest.raises(ValueError, match="twice"):
        read_profiles(tmp_path / "profiles.json")
