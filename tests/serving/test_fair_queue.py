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
        if what == "put" and not queue.is_full:
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
