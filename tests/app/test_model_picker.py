"""Choosing another model in a real browser: its plan, its download, the change to it and the way back."""

from __future__ import annotations

import shutil
import threading

import pytest

from engine.errors import CheckpointCorrupt, ModelNotFound
from tests.app.fake_engine import FakeEngine
from tests.tiny_models import tiny_checkpoint

pytestmark = pytest.mark.browser

NAME = "org/moe"


def load(model, on_progress, **options):
    if model == "broken":
        raise CheckpointCorrupt("broken is truncated.", "Download it again.")
    engine = FakeEngine(words=["The ", "answer ", "is ", "**42**", "."])
    engine.model_name = model
    return engine


def look_at(page, name):
    page.page.fill("#model-name textarea, #model-name input", name)
    page.page.click("#look")


def test_a_model_is_looked_at_downloaded_stopped_downloaded_and_loaded(serve, visit, hub):
    hub.add(NAME, tiny_checkpoint("mixtral"))
    served = serve(load)
    page = visit(served.address)
    page.see("#header", "Ready")
    page.page.click("#models > button")
    look_at(page, "org/absent")
    page.see("#offer", "There is no model org/absent")
    page.see("#offer", "Check the spelling")
    page.not_see("#download")

    look_at(page, NAME)
    page.see("#offer", "MixtralForCausalLM")
    page.see("#offer", "not yet; the download is")
    page.see("#offer", "It fits whole")
    page.not_see("#load-model")
    hub.hold = threading.Event()
    page.page.click("#download")
    page.see("#download-notice", f"Downloading {NAME}")
    page.not_see("#download")
    page.page.click("#cancel-download")
    assert served.program.desk._cancel.wait(60)
    hub.hold.set()
    page.see("#download-notice", "was stopped")
    hub.hold = None
    page.page.click("#download")
    page.see("#download-notice", f"{NAME} is on this machine")
    page.page.click("#load-model")
    page.see("#header", NAME)
    page.see("#header", "Ready")
    page.see("#offer", "This model is loaded.")
    page.not_see("#load-model")
    page.say("What is the answer?")
    page.wait_for_answer()
    page.see("#chatbot [data-testid=bot]", "42")


def test_one_from_the_list_fails_to_load_and_there_is_a_way_back(serve, visit, hub, module_home):
    broken = module_home / "cache" / "models" / "broken"
    shutil.copytree(tiny_checkpoint("mixtral"), broken)
    served = serve(load)
    page = visit(served.address)
    page.see("#header", "Ready")
    before = served.program.model_name
    page.page.click("#models > button")
    page.page.click("#local-models input")
    page.page.click("#local-models [role=option]:has-text('broken')")
    page.see("#offer", str(broken))
    page.page.click("#load-model")
    page.see("#load-notice", "broken is truncated.")
    page.see("#go-back", f"Back to {before}")
    page.page.click("#go-back")
    page.see("#header", before)
    page.see("#header", "Ready")
    page.not_see("#go-back")


def test_a_model_asked_for_at_the_start_that_is_not_here_is_offered(serve, visit, hub, monkeypatch):
    hub.add(NAME, tiny_checkpoint("mixtral"))
    monkeypatch.setenv("EXPERTFLOW_MODEL", NAME)

    def not_here(model, **options):
        raise ModelNotFound(f"There is no model {model!r} on this machine.", "Download it.")

    page = visit(serve(not_here).address)
    page.see("#load-notice", "There is no model")
    page.see("#offer", "MixtralForCausalLM")
    page.see("#download")
