"""Medians and ratios."""

from __future__ import annotations

import json

import pytest

from engine.lab.report import make_report, median_ratio, median_run, ratio


def test_a_run_is_the_median_of_its_repeats():
    repeats = [
        {"policy": "lru", "tokens": 8, "tokens_per_second": speed, "peak_rss_bytes": peak, "note": None}
        for speed, peak in ((3.0, 10), (1.0, 30), (2.0, 20))
    ]
    assert median_run(repeats) == {
        "policy": "lru",
        "tokens": 8,
        "tokens_per_second": 2.0,
        "peak_rss_bytes": 30,
        "note": None,
        "repeats": 3,
        "tokens_per_second_all": [3.0, 1.0, 2.0],
    }
    with pytest.raises(ValueError, match="No repeats"):
        median_run([])


def test_ratios_of_what_was_measured_in_turn():
    assert median_ratio([2.0, 4.0, 30.0], [1.0, 2.0, 3.0]) == 2.0
    assert median_ratio([], []) is None
    assert ratio(3.0, 2.0) == 1.5
    assert ratio(None, 2.0) is None
    assert ratio(3.0, None) is None


def test_the_report_is_json_and_names_machine_and_command():
    report = json.loads(json.dumps(make_report([{"a": 1}], {"b": None}, notes=["n"])))
    assert report["runs"] == [{"a": 1}]
    assert report["ratios"] == {"b": None}
    assert report["machine"]["versions"]["torch"]
    assert report["command"]
