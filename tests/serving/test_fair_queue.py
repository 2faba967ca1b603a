"""The queue is fair: first come, first served within a caller, callers in turn, whoever leaves in between."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.serving.fair_queue import FairQueue

steps = st.lists(st.tuples(st.sampled_from(["put", "put", "pop", "remove"]), st.integers(0, 3)), max_size=60)


@given(steps)
def test_what_is_announced_is_what_happens(script):
    queue, came = FairQueue(bound=12), 0
    for what, number in script:
        announced = queue.in_order()
        assert len(announced) == len(queue) and queue.is_full == (len(queue) == 12)
        if what == "put" and queue.has_room(str(number)):
            queue.put((number, came), caller=str(number))
            came += 1
        elif what == "pop":
            assert queue.pop() == (announced[0] if announced else None)
            assert queue.in_order() == announced[1:]
        elif what == "remove" and announced:
            leaves = announced[number % len(announced)]
            assert queue.remove(leaves) and not queue.remove(leaves)
    of_each = {}
    while (item := queue.pop()) is not None:
        caller, arrival = item
        assert of_each.get(caller, -1) < arrival
        of_each[caller] = arrival


def test_who_asks_for_much_delays_another_by_one():
    queue = FairQueue(bound=10)
    for item in ("a1", "a2", "a3", "b1", "b2", "c1"):
        queue.put(item, caller=item[0])
    assert queue.in_order() == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert queue.pop() == "a1"
    queue.put("d1", caller="d")
    assert [queue.pop() for _ in range(7)] == ["b1", "c1", "a2", "d1", "b2", "a3", None]


@given(st.lists(st.sampled_from("ab"), max_size=60), st.integers(2, 40))
def test_whoever_asks_for_much_leaves_room_for_others(callers, bound):
    queue = FairQueue(bound)
    for caller in callers:
        if queue.has_room(caller):
            queue.put(caller, caller)
    assert max(queue.of("a"), queue.of("b")) <= bound - bound // 2 and len(queue) <= bound
    if bound >= 4:  # two who take what they can, and a third may still come
        assert queue.has_room("c") and not queue.is_full


def test_one_caller_fills_half_and_room_comes_back_as_it_leaves():
    queue = FairQueue(bound=8)
    for number in range(4):
        queue.put(("greedy", number), "greedy")
    assert not queue.has_room("greedy") and queue.has_room("other")
    queue.put("modest", "other")
    assert not queue.has_room("greedy") and queue.has_room("other")
    assert queue.remove(("greedy", 3)) and queue.has_room("greedy")
    queue.put(("greedy", 3), "greedy")
    assert [queue.pop(), queue.pop()] == [("greedy", 0), "modest"] and queue.has_room("greedy")
