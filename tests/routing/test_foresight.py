"""Which predictor is used, and what "auto" comes to."""

from __future__ import annotations

import pytest

from engine.cache.policy_choice import ADAPTIVE, AUTO, PREDICTIVE, check_policy
from engine.paths import data_dir
from engine.routing.foresight import choose_policy
from engine.routing.predictor_files import SHIPPED_DIR, find_predictor
from engine.routing.predictors.recurrent import export
from engine.routing.predictors.weights_file import write_predictor
from tests.routing.test_recurrent import CALIBRATION, random_network


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPERTFLOW_HOME", str(tmp_path))


def own_predictor(model: str) -> None:
    folder = data_dir() / "predictors"
    folder.mkdir(parents=True)
    write_predictor(folder / f"{model}.safetensors", export(random_network(), CALIBRATION, model))


def test_auto_predicts_where_a_predictor_was_trained_for_the_model():
    assert check_policy(AUTO) == AUTO
    assert choose_policy(AUTO, "some-model") == ADAPTIVE
    own_predictor("some-model")
    assert choose_policy(AUTO, "some-model") == PREDICTIVE
    assert choose_policy(AUTO, "another-model") == ADAPTIVE
    assert choose_policy(AUTO, "some-model", from_page_cache=True) == ADAPTIVE
    assert choose_policy(PREDICTIVE, "some-model", from_page_cache=True) == PREDICTIVE


def test_the_predictor_that_comes_along_is_found():
    (shipped,) = SHIPPED_DIR.glob("*.safetensors")
    assert choose_policy(AUTO, shipped.stem) == PREDICTIVE


@pytest.mark.parametrize("asked", ["lru", ADAPTIVE, PREDICTIVE])
def test_what_was_asked_for_by_name_stays(asked):
    own_predictor("some-model")
    assert choose_policy(asked, "some-model") == asked


def test_a_spoilt_predictor_is_not_used_and_said():
    own_predictor("some-model")
    file = data_dir() / "predictors" / "some-model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    stored, problem = find_predictor("some-model")
    assert stored is None and str(file) in problem
    assert choose_policy(AUTO, "some-model") == ADAPTIVE
