"""Programs and pages on a scripted engine."""

import os

import pytest

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

from app.program import Program
from app.settings import load_settings
from tests.app.fake_engine import FakeEngine


@pytest.fixture(scope="module")
def module_home(tmp_path_factory):
    """A home folder of its own for the tests of one module."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPERTFLOW_HOME", str(home))
        yield home


@pytest.fixture(scope="module")
def make_program(module_home):
    """Makes programs on a scripted engine (or a loader), closed at the end of the module."""
    programs = []

    def make(load=None):
        program = Program(load_settings(), load or FakeEngine.load)
        program.start()
        programs.append(program)
        return program

    yield make
    for program in programs:
        program.close()


@pytest.fixture
def serve(make_program):
    """Serves a program on an engine (or a loader of one)."""
    from tests.app.browsing import ServedProgram

    served = []

    def start(engine):
        load = engine if callable(engine) else lambda on_progress, **options: engine
        served.append(ServedProgram(make_program(load)))
        return served[-1]

    yield start
    for one in served:
        one.program.answers.close()
        one.close()


@pytest.fixture(scope="session")
def browser(chromium_path):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium_path, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens pages; at the end of the test each is asked whether it misbehaved."""
    from tests.app.browsing import Visit

    visits = []

    def open_page(address, **size):
        visits.append(Visit(browser, address, **size))
        return visits[-1]

    yield open_page
    for page in visits:
        page.close()
