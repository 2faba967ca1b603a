"""Which tests may be left out: browser tests where there is no Chromium; in CI, none."""

import os
from pathlib import Path

import hypothesis
import pytest

import engine  # noqa: F401 - before anything imports torch: it sets how OpenMP threads wait
from launcher.chromium import HOW_TO_GET_IT, find_chromium
from tests.fixtures_builtin import builtin_model  # noqa: F401 - a fixture for all
from tests.fixtures_hub import hub  # noqa: F401 - a fixture for all

hypothesis.settings.register_profile("expertflow", deadline=None)  # timing never decides a test
hypothesis.settings.load_profile("expertflow")

LONGEST_FILES = (
    "test_browser.py",
    "test_page.py",
    "test_batch_on_ray.py",
    "test_builtin.py",
    "test_benches.py",
    "test_dense_model.py",
    "test_exactness.py",
    "test_memory.py",
    "test_builtin_training.py",
    "test_quantised_memory.py",
)
IN_CI = os.environ.get("CI", "").lower() in ("1", "true")
LEFT_OUT = pytest.StashKey[list[str]]()
WORKERS_LEFT_OUT = "browser_tests_left_out"  # as pytest's worker processes name it to the process that reports


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _leave_browser_tests_out(config, items)
    if _is_worker(config):  # what takes long begins first, so that all processes end at about the same time
        items.sort(key=lambda item: _place(item.path))
        config.workeroutput[WORKERS_LEFT_OUT] = config.stash.get(LEFT_OUT, [])


def _leave_browser_tests_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    browser_tests = [item for item in items if item.get_closest_marker("browser")]
    if not browser_tests or find_chromium():
        return
    if IN_CI and _is_worker(config):
        return  # the words of an error would be lost: they are those that the tests fail with
    if IN_CI:
        raise pytest.UsageError(f"No Chromium, and CI leaves no test out. {HOW_TO_GET_IT}")
    items[:] = [item for item in items if item not in browser_tests]
    config.hook.pytest_deselected(items=browser_tests)
    config.stash[LEFT_OUT] = [item.nodeid for item in browser_tests]


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def _place(path: Path) -> int:
    return LONGEST_FILES.index(path.name) if path.name in LONGEST_FILES else len(LONGEST_FILES)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_testnodedown(node, error) -> None:
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get(WORKERS_LEFT_OUT, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left_out = config.stash.get(LEFT_OUT, [])
    if left_out:
        terminalreporter.section(f"{len(left_out)} tests left out: no Chromium on this machine")
        for name in left_out:
            terminalreporter.line(name)
        terminalreporter.line(HOW_TO_GET_IT)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    return _fail_if_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    return _fail_if_skipped((yield))


def _fail_if_skipped(report):
    if IN_CI and report.skipped:
        report.outcome, report.longrepr = "failed", f"CI leaves no test out: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """A Chromium to drive; tests that use it are marked `browser`."""
    path = find_chromium()
    assert path is not None, HOW_TO_GET_IT
    return path
