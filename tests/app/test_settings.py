"""Command line over environment over file over default; changes survive; nonsense is told in words."""

import pytest

from app.preferences import Preferences
from app.program import Program
from app.settings import Sampling, load_settings, save_changes, settings_path
from app.ui.chats_at_once import choices
from engine.errors import InvalidSetting


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPERTFLOW_HOME", str(tmp_path))
    return tmp_path


def write_file(text):
    settings_path().parent.mkdir(parents=True, exist_ok=True)
    settings_path().write_text(text)


def test_defaults_without_a_file():
    settings = load_settings()
    assert (settings.model, settings.budget, settings.port) == ("demo", "auto", 7860)


def test_each_source_wins_over_the_next(monkeypatch):
    write_file('budget = "10%"\nmodel = "from/file"\npolicy = "lru"\n')
    monkeypatch.setenv("EXPERTFLOW_BUDGET", "20%")
    monkeypatch.setenv("EXPERTFLOW_MODEL", "from/environment")
    settings = load_settings({"budget": "30%", "model": None})
    assert settings.budget == "30%"
    assert settings.model == "from/environment"
    assert settings.policy == "lru"
    assert settings.link == "auto"


def test_chats_at_once_of_the_command_line_reach_the_engine_and_the_page(home):
    write_file("chats_at_once = 2\n")
    for given, chats, beside in (({}, 2, 1), ({"chats_at_once": 5}, 5, 4), ({"chats_at_once": 0}, 0, "auto")):
        program = Program(load_settings(given))
        try:
            assert program.host.options["batch_size"] == beside
            assert program.preferences.chats_at_once == chats and chats in dict(choices(chats)).values()
        finally:
            program.close()
    assert load_settings().chats_at_once == 2  # for that run alone


def test_engine_options_are_those_of_load():
    options = load_settings({"budget": "5%"}).engine_options()
    assert options == {
        "model": "demo",
        "budget": "5%",
        "device": "auto",
        "precision": "auto",
        "policy": "auto",
        "link": "auto",
        "context_length": None,
        "preload": False,
        "host_compute": False,
    }


def test_changes_on_the_page_survive_a_restart_and_keep_the_rest_of_the_file():
    write_file('# mine\nmodel = "org/name"  # the big one\n')
    preferences = Preferences(load_settings())
    preferences.set_budget("25%")
    preferences.set_chats_at_once(3)
    preferences.set_sampling(Sampling(system_prompt="Be brief.", temperature=0.2, seed=7, stop=["END"]))
    text = settings_path().read_text()
    assert text.startswith("# mine\n")
    assert "# the big one" in text

    settings = load_settings()
    assert (settings.model, settings.budget, settings.chats_at_once) == ("org/name", "25%", 3)
    assert settings.sampling.system_prompt == "Be brief."
    assert (settings.sampling.temperature, settings.sampling.seed, settings.sampling.stop) == (0.2, 7, ["END"])


def test_a_value_set_back_to_nothing_leaves_the_file():
    save_changes({"sampling": {"seed": 7}})
    save_changes({"sampling": {"seed": None}})
    assert load_settings().sampling.seed is None
    assert "seed" not in settings_path().read_text()


def test_no_half_written_file_is_left(home):
    save_changes({"budget": "25%"})
    assert [file.name for file in settings_path().parent.iterdir()] == ["settings.toml"]


@pytest.mark.parametrize(
    ("text", "words"),
    [("budget = ", "not valid TOML"), ("port = 99999", "port"), ("[sampling]\ntemperature = -1", "temperature")],
)
def test_a_bad_file_is_told_in_words(text, words):
    write_file(text)
    with pytest.raises(InvalidSetting) as caught:
        load_settings()
    assert words in caught.value.cause
    assert caught.value.remedy


def test_a_file_that_cannot_be_written_is_a_warning_and_the_change_holds_for_now(home):
    (home / "config").write_text("a file where the folder should be")
    preferences = Preferences(load_settings())
    preferences.set_sampling(Sampling(temperature=0.1))
    assert preferences.sampling.temperature == 0.1
    assert "cannot be written" in preferences.warning


def test_sampling_becomes_arguments_of_chat():
    arguments = Sampling(stop=["a"], system_prompt="x").chat_arguments()
    assert arguments["stop"] == ("a",)
    assert "system_prompt" not in arguments
