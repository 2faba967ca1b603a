"""Plans in words, bytes and percent."""

import pytest

from app.ui import html
from app.ui.plan_view import (
    budget_of,
    budget_words,
    bytes_in_words,
    everything_fits,
    invitation,
    marks,
    minimum_percent,
    percent_resident,
)
from tests.app.fake_engine import FakePlan


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1 kB"),
        (1_234_567_890, "1.23 GB"),
        (849_346_560, "849 MB"),
        (25_300_000_000, "25.3 GB"),
        (120_000_000_000, "120 GB"),
    ],
)
def test_bytes_in_words(count, words):
    assert bytes_in_words(count) == words


def test_percent_and_words_of_a_quarter():
    plan = FakePlan(slots=48)
    assert percent_resident(plan) == 25.0
    assert budget_words(plan) == "25 %: 48 of 192 experts, 212 MB"
    assert not everything_fits(plan)
    assert budget_of(25.0) == "25%"


def test_minimum_is_the_smallest_whole_percent_that_is_enough():
    assert minimum_percent(FakePlan(slots=192, minimum_slots=2)) == 2  # 1 % would be 1.92 slots
    assert minimum_percent(FakePlan(slots=192, minimum_slots=192)) == 100


def test_where_everything_fits_the_person_is_invited_to_pull_the_slider():
    assert "Pull the slider down" in invitation(FakePlan(slots=192))
    assert "Pull the slider down" not in invitation(FakePlan(slots=20))


def test_marks_stand_where_the_slider_stands_and_do_not_overlap():
    plan = FakePlan(slots=192)
    assert marks(plan, 100.0) == [{"label": "minimum", "place": 0}, {"label": "auto", "place": 100.0}]
    assert marks(plan, 51.0)[1]["place"] == 50.0  # the track goes from 2 to 100
    assert marks(plan, 5.0) == [{"label": "minimum, auto", "place": 0}]
    assert marks(plan, None) == [{"label": "minimum", "place": 0}]


def test_what_others_wrote_is_escaped():
    assert "<b>x</b>" not in html.header("<b>x</b>", "<i>", "Ready", "ready")
    assert "<script>" not in html.notice("error", "<script>", "<script>")
