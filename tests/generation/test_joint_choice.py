"""Reading together or apart: the quicker way, and little time lost on finding out."""

from __future__ import annotations

import pytest

from engine.generation.joint_choice import JointChoice


def steps(choice: JointChoice, chats: int, joint: float, apart: float, count: int) -> tuple[float, int]:
    """Seconds of `count` steps, and how many were joint."""
    seconds, together = 0.0, 0
    for _ in range(count):
        way = choice.joint(chats)
        took = joint if way else apart
        choice.took(chats, way, took)
        seconds, together = seconds + took, together + way
    return seconds, together


@pytest.mark.parametrize(("joint", "apart"), [(0.1, 0.3), (0.3, 0.1), (0.2, 0.25)])
def test_takes_the_quicker_way_and_loses_little(joint, apart):
    seconds, together = steps(JointChoice(), 4, joint, apart, 1000)
    assert seconds < 1.06 * 1000 * min(joint, apart)
    assert (together > 500) == (joint < apart)


def test_numbers_of_chats_are_told_apart():
    choice = JointChoice()
    steps(choice, 2, joint=0.3, apart=0.1, count=100)
    steps(choice, 16, joint=0.3, apart=0.8, count=100)
    assert steps(choice, 2, 0.3, 0.1, 20)[1] <= 2 and steps(choice, 16, 0.3, 0.8, 20)[1] >= 18


def test_follows_a_machine_that_changes():
    choice = JointChoice()
    steps(choice, 4, joint=0.1, apart=0.2, count=200)
    steps(choice, 4, joint=0.5, apart=0.2, count=200)
    assert steps(choice, 4, joint=0.5, apart=0.2, count=100)[1] < 10
