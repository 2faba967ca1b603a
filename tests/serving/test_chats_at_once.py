"""How many chats are answered together when nobody says: few where their keys and values would take much."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from engine.engine import Engine
from engine.errors import InvalidSetting
from engine.hardware.memory_plan import Footprint
from engine.serving.chats_at_once import AUTO_CHATS, chats_beside, with_chats
from tests.tiny_models import tiny_checkpoint


def footprint(kv_bytes: int) -> Footprint:
    return Footprint(
        dense_bytes=1000,
        kv_bytes=kv_bytes,
        workspace_bytes=0,
        slot_bytes=10,
        experts_total=8,
        minimum_slots=2,
        model_bytes_total=5000,
    )


@pytest.mark.parametrize(("kv_bytes", "beside"), [(0, 3), (10, 3), (41, 3), (42, 2), (125, 1), (126, 0)])
def test_the_others_take_at_most_an_eighth_of_near_memory(kv_bytes, beside):
    one = footprint(kv_bytes)
    assert chats_beside("auto", one, lambda: SimpleNamespace(near_bytes_total=1000)) == beside < AUTO_CHATS
    assert with_chats(one, 1 + beside).kv_bytes == (1 + beside) * kv_bytes


def test_what_is_asked_for_is_taken_and_nonsense_refused():
    assert chats_beside(9, footprint(10**6), lambda: pytest.fail("nobody asked for a plan")) == 9
    for wrong in (-1, "many"):
        with pytest.raises(InvalidSetting, match="batch_size"):
            Engine.load(tiny_checkpoint("mixtral"), batch_size=wrong)
