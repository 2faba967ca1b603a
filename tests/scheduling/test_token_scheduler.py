"""The scheduler with its forecast, told of routing as the layers would tell it."""

from __future__ import annotations

import numpy as np
import pytest

from engine.errors import InvalidSetting
from engine.routing.shape import RoutingShape
from engine.scheduling.group_rows import GroupRows
from engine.scheduling.groupings import AUTO, CACHE_AWARE, OFF, PAPER, WAVES
from engine.scheduling.measured_choice import PROBE_TOKENS, MeasuredChoice
from engine.scheduling.paths import RecentPaths
from engine.scheduling.token_scheduler import SchedulerSettings, TokenScheduler

SHAPE = RoutingShape(layers=3, experts=8, top_k=2, vocabulary=100)


class Telling(RecentPaths):
    """Keeps what it was asked and told."""

    def __init__(self, places: int) -> None:
        super().__init__(SHAPE, places)
        self.log: list[tuple] = []

    def begin(self, place):
        self.log.append(("begin", place))
        super().begin(place)

    def predict(self, places, token_ids):
        self.log.append(("predict", tuple(places), tuple(token_ids)))
        return super().predict(places, token_ids)

    def observed(self, places, experts, weights):
        self.log.append(("observed", tuple(places), experts.copy()))
        super().observed(places, experts, weights)


class Bench:
    """`topic_of`: experts 2 t and 2 t + 1 are what a chat of topic t uses, in every layer."""

    def __init__(self, topic_of: dict[str, int], places: int = 8, foresees: bool = False) -> None:
        self.topic_of, self.forecast = topic_of, Telling(places)
        self.rows = GroupRows(SHAPE.layers, SHAPE.top_k)
        self.absent = np.ones((SHAPE.layers, SHAPE.experts), np.float32)
        self.scheduler = TokenScheduler(
            SHAPE, lambda: self.forecast, lambda: self.absent, self.rows, places, lambda: foresees
        )

    def step(self, chats: list[str], apart: bool = False) -> list[str]:
        with self.scheduler.group(chats, [ord(chat) for chat in chats]) as chosen:
            read = [chats[place] for place in chosen]
            used = np.array([[2 * self.topic_of[chat], 2 * self.topic_of[chat] + 1] for chat in read])
            for part in np.split(used, len(used)) if apart else [used]:
                for layer in range(SHAPE.layers):
                    self.rows.observed(layer, None, part, np.full(part.shape, 0.5))
        return read


@pytest.mark.parametrize("apart", [False, True])
def test_chats_of_a_topic_are_read_together_once_their_routing_is_known(apart):
    bench = Bench({"a": 0, "b": 1, "c": 0, "d": 1})
    bench.scheduler.use(SchedulerSettings(CACHE_AWARE, 2))
    chats = list("abcd")
    for _ in range(4):
        bench.step(chats, apart)
    topics = [{bench.topic_of[chat] for chat in bench.step(chats, apart)} for _ in range(6)]
    assert all(len(found) == 1 for found in topics)


@pytest.mark.parametrize("foresees", [True, False])
def test_passes_that_are_foreseen_are_told_what_each_chat_will_use(foresees):
    """Without anything to choose: paths are predicted only for whoever loads ahead."""
    bench = Bench({"a": 0, "b": 1, "c": 2}, foresees=foresees)
    bench.scheduler.use(SchedulerSettings(WAVES))
    for _ in range(3):
        bench.step(list("abc"))
    with bench.scheduler.group(list("abc"), [1, 2, 3]) as chosen:
        expected = bench.scheduler.expected
        assert chosen == [0, 1, 2]
    if not foresees:
        assert expected is None and not bench.forecast.log
        return
    assert expected.shape == (3, 1, SHAPE.layers, SHAPE.experts)
    for chat, topic in enumerate((0, 1, 2)):
        assert (expected[chat, 0].argmax(-1) // 2 == topic).all()
    with bench.scheduler.group(["a"], [1]):
        assert bench.scheduler.expected is None


def test_a_token_is_predicted_once_and_told_what_it_used():
    bench = Bench({"a": 0, "b": 1, "c": 2})
    bench.scheduler.use(SchedulerSettings(CACHE_AWARE, 2))
    read = bench.step(list("abc"))
    predicted = [entry for entry in bench.forecast.log if entry[0] == "predict"]
    assert len(predicted) == 1 and sorted(predicted[0][2]) == [97, 98, 99]
    observed = [entry for entry in bench.forecast.log if entry[0] == "observed"][0]
    assert [int(row[0, 0]) // 2 for row in observed[2]] == [bench.topic_of[chat] for chat in read]
    bench.step(list("abc"))
    predicted = [entry for entry in bench.forecast.log if entry[0] == "predict"]
    assert sorted(predicted[1][2]) == sorted(ord(chat) for chat in read)  # the third one's token is the same


def test_places_go_to_new_chats_and_are_begun():
    bench = Bench(dict.fromkeys("abcdefghij", 0), places=3)
    bench.scheduler.use(SchedulerSettings(CACHE_AWARE, 2))
    for first in range(7):
        bench.step([chr(ord("a") + first + n) for n in range(3)])
    begun = [entry[1] for entry in bench.forecast.log if entry[0] == "begin"]
    assert len(begun) >= 9 and set(begun) == {0, 1, 2}


def test_where_all_go_nothing_is_predicted():
    for settings in (SchedulerSettings(OFF), SchedulerSettings(WAVES, 2), SchedulerSettings(PAPER, 9)):
        bench = Bench({"a": 0, "b": 1, "c": 2})
        bench.scheduler.use(settings)
        assert bench.step(list("abc")) == list("abc")
        assert bench.forecast.log == []


@pytest.mark.parametrize("name", [AUTO, PAPER, CACHE_AWARE])
def test_few_chats_are_not_divided_unless_that_is_asked(name):
    bench = Bench(dict.fromkeys("abc", 0))
    bench.scheduler.use(SchedulerSettings(name))
    assert all(bench.step(list("abc")) == list("abc") for _ in range(20))
    bench.scheduler.use(SchedulerSettings(name, 2))
    assert len(bench.step(list("abc"))) == 2


def test_off_with_a_size_takes_turns():
    bench = Bench(dict.fromkeys("abcde", 0))
    bench.scheduler.use(SchedulerSettings(OFF, 2))
    assert [bench.step(list("abcde")) for _ in range(5)] == [
        ["a", "b"],
        ["c", "d"],
        ["e", "a"],
        ["b", "c"],
        ["d", "a"],  # e and a were read together: either may go first
    ]
    assert bench.scheduler.stats().worst_wait_passes == 2
    assert bench.scheduler.stats().passes_by_name == {OFF: 5}


@pytest.mark.parametrize("name", [OFF, PAPER, CACHE_AWARE, AUTO])
def test_nobody_is_passed_over_more_than_promised(name):
    bench = Bench({chr(97 + n): n % 4 for n in range(8)})
    bench.scheduler.use(SchedulerSettings(name, 2, most_passed_over=6))
    for _ in range(60):
        assert 1 <= len(bench.step(list("abcdefgh"))) <= 2
    assert bench.scheduler.stats().worst_wait_passes <= 6


def test_after_an_error_the_group_still_waits():
    bench = Bench(dict.fromkeys("abcd", 0))
    bench.scheduler.use(SchedulerSettings(OFF, 2))
    with pytest.raises(OSError, match="disk"), bench.scheduler.group(list("abcd"), [1, 2, 3, 4]):
        raise OSError("disk")
    assert bench.scheduler.stats().passes == 0
    assert bench.step(list("abcd")) == ["a", "b"]


def test_a_pass_that_told_its_rows_twice_is_not_believed():
    rows = GroupRows(2, 2)
    rows.begin(2)
    for layer in (0, 1, 0):
        rows.observed(layer, None, np.ones((2, 2), int), np.ones((2, 2)))
    assert rows.take() is None
    rows.observed(0, None, np.ones((2, 2), int), np.ones((2, 2)))
    assert rows.take() is None


def test_settings_are_checked():
    with pytest.raises(InvalidSetting, match="fastest"):
        SchedulerSettings("fastest")
    with pytest.raises(InvalidSetting, match="group size"):
        SchedulerSettings(OFF, 0)
    with pytest.raises(InvalidSetting, match="most_passed_over"):
        SchedulerSettings(OFF, 2, -1)


def spend(choice: MeasuredChoice, seconds: dict[str, float], passes: int, waiting: int = 8) -> list[str]:
    names = []
    for _ in range(passes):
        names.append(choice.name(waiting))
        choice.took(waiting, waiting, waiting * seconds[names[-1]])
    return names


def test_what_is_quicker_is_used_nearly_always():
    names = spend(MeasuredChoice(("one", "other")), {"one": 1.0, "other": 1.5}, 1000)
    assert set(names) == {"one", "other"}
    assert 0 < names.count("other") * 0.5 < 0.05 * 1000
    names = spend(MeasuredChoice(("one", "other")), {"one": 1.5, "other": 1.0}, 1000)
    assert names.count("one") * 0.5 < 0.05 * 1000


def test_it_follows_what_changes_and_knows_sizes_apart():
    choice = MeasuredChoice(("one", "other"))
    spend(choice, {"one": 1.0, "other": 1.2}, 400)
    names = spend(choice, {"one": 1.0, "other": 0.5}, 1500)
    assert names[-200:].count("other") > 150
    assert choice.seconds_per_token(2) == {}
    assert choice.name(2) == "one"


def test_the_tokens_that_follow_a_change_do_not_count():
    choice = MeasuredChoice(("one",))
    for number in range(PROBE_TOKENS):
        choice.name(4)
        choice.took(4, 4, 400.0 if number == 0 else 4.0)
    assert choice.seconds_per_token(4) == {"one": 1.0}
