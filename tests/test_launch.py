"""launch.py and launcher/: real processes, real files, a real pip; nothing large is installed."""

import ast
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from launch import python_refusal
from launcher import SetupProblem
from launcher.chromium import find_chromium
from launcher.environment import Environment, InstallPlan, RequirementGroup
from launcher.lock import exclusive
from launcher.pip import explain_failure
from launcher.progress import Display, PipProgress, size_words
from launcher.start import explain_os_error, hand_over, program_environment

ROOT = Path(__file__).resolve().parent.parent


class Screen(Display):
    """A display that remembers its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.live, self._width, self.updates = False, 0, []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def update(self, text: str) -> None:
        self.updates.append(text)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def make_wheel(folder: Path, name: str, version: str = "1.0") -> Path:
    """A wheel of one package with one module."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": f"version = '{version}'\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as wheel:
        for file, content in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(file, content)
    return path


def local_group(root: Path, name: str = "program", size_bytes: int = 1000) -> RequirementGroup:
    """A group installed from wheels in `root/wheels`, by the requirements in `root/NAME.txt`."""
    path = root / f"{name}.txt"
    steps = (("--no-index", "--find-links", str(root / "wheels"), "-r", str(path)),)
    return RequirementGroup(name, (path,), lambda environment: InstallPlan(name, steps, size_bytes, size_bytes))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project folder that asks for the package `alpha`, offered as a wheel."""
    make_wheel(tmp_path / "wheels", "alpha")
    (tmp_path / "program.txt").write_text("alpha==1.0\n")
    return tmp_path


@pytest.fixture(scope="module")
def finished_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once; tests that change it copy it."""
    folder = tmp_path_factory.mktemp("finished")
    make_wheel(folder / "wheels", "alpha")
    (folder / "program.txt").write_text("alpha==1.0\n")
    environment_in(folder).ensure([local_group(folder)])
    return folder


@pytest.fixture
def copied_root(finished_root: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(finished_root, copy, symlinks=True)
    (copy / ".venv.log").unlink()
    return copy


def environment_in(root: Path, **options) -> Environment:
    return Environment(root / ".venv", Screen(), **options)


@pytest.fixture
def quick_venv(finished_root: Path, tmp_path: Path) -> list[str]:
    """A stand-in for `python -m venv` that copies one made before: the real one takes seconds."""
    script = tmp_path / "copy_venv.py"
    script.write_text(
        "import shutil, sys\n"
        "bare = shutil.ignore_patterns('alpha*', 'expertflow.json')\n"
        f"venv = {str(finished_root / '.venv')!r}\n"
        "shutil.copytree(venv, sys.argv[1], symlinks=True, dirs_exist_ok=True, ignore=bare)\n"
    )
    return [sys.executable, str(script)]


def run_inside(environment: Environment, code: str) -> str:
    answer = subprocess.run([environment.python, "-c", code], capture_output=True, text=True, check=True)
    return answer.stdout.strip()


def fake_pip(folder: Path, body: str) -> list[str]:
    script = folder / "fake_pip.py"
    script.write_text(f"import sys, time\n{body}\n")
    return [sys.executable, str(script)]


# The Python it is started with


@pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 13)])
def test_supported_pythons_are_taken(version):
    assert python_refusal(version, is_64_bit=True) is None


@pytest.mark.parametrize("version", [(3, 10), (3, 14), (2, 7), (4, 0)])
def test_other_pythons_are_refused_with_the_way_out(version):
    words = python_refusal(version, True, lambda name: "/usr/bin/" + name if name == "python3.12" else None)
    assert f"{version[0]}.{version[1]}" in words
    assert "`python3.12 launch.py`" in words
    assert "python.org" in python_refusal(version, True, lambda name: None)
    assert "32-bit" in python_refusal((3, 12), False, lambda name: None)


def test_launch_parses_on_old_pythons():
    ast.parse((ROOT / "launch.py").read_text(), feature_version=(3, 6))


def test_an_old_python_gets_one_sentence_and_no_environment(tmp_path):
    shutil.copy(ROOT / "launch.py", tmp_path)
    code = "import runpy, sys; sys.version_info = (3, 9, 2); runpy.run_path('launch.py', run_name='__main__')"
    answer = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 1
    assert "this is 64-bit Python 3.9" in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["launch.py"]


def test_help_before_the_environment_exists_installs_nothing(tmp_path):
    shutil.copy(ROOT / "launch.py", tmp_path)
    shutil.copytree(ROOT / "launcher", tmp_path / "launcher")
    for path in ROOT.glob("requirements*.txt"):
        shutil.copy(path, tmp_path)
    answer = subprocess.run(
        [sys.executable, tmp_path / "launch.py", "--help"], capture_output=True, text=True, check=True
    )
    assert "usage: python3 launch.py" in answer.stdout
    assert not (tmp_path / ".venv").exists()


def test_the_launcher_imports_the_standard_library_only():
    names = set()
    for path in [ROOT / "launch.py", *(ROOT / "launcher").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module.split(".")[0])
    assert names - set(sys.stdlib_module_names) == {"launcher"}


# Making the environment


def test_it_is_made_once_and_used_again(finished_root):
    environment = environment_in(finished_root, pip=[sys.executable, "-c", "raise SystemExit('pip was run')"])
    assert run_inside(environment, "import alpha; print(alpha.version)") == "1.0"
    environment.ensure([local_group(finished_root)])
    assert environment.display.lines == []


def test_it_says_beforehand_what_it_takes(root, quick_venv):
    environment = environment_in(root, make_venv=quick_venv)
    environment.ensure([local_group(root, size_bytes=30_000_000)])
    announcement = environment.display.lines[1]
    assert "30 MB to download, 60 MB of disk" in announcement
    assert environment.display.lines[2] == "  unpacking 1 package"


def test_no_room_is_told_before_anything_is_downloaded(root, quick_venv):
    environment = environment_in(root, make_venv=quick_venv, free_bytes=lambda folder: 5_000_000_000)
    with pytest.raises(SetupProblem, match=r"needs 8\.0 GB .* 5\.0 GB are free"):
        environment.ensure([local_group(root, size_bytes=4_000_000_000)])
    assert "alpha" not in environment.log_path.read_text()
    environment_in(root, make_venv=quick_venv).ensure([local_group(root)])


def test_changed_requirements_bring_it_up_to_date(copied_root):
    make_wheel(copied_root / "wheels", "alpha", "2.0")
    (copied_root / "program.txt").write_text("alpha==2.0\n")
    environment = environment_in(copied_root, free_bytes=lambda folder: 0)
    group = local_group(copied_root)._replace(check=lambda environment: f"checked with {environment.python.name}")
    environment.ensure([group])
    environment.ensure([group])
    assert "have changed" in environment.display.text
    assert environment.display.text.count("checked with python") == 1
    assert run_inside(environment, "import alpha; print(alpha.version)") == "2.0"


def test_a_group_is_added_without_touching_the_rest(copied_root):
    make_wheel(copied_root / "wheels", "beta")
    (copied_root / "test.txt").write_text("beta==1.0\n")
    groups = [local_group(copied_root), local_group(copied_root, "test")]
    environment = environment_in(copied_root)
    environment.ensure(groups)
    assert environment.is_ready(groups)
    assert "alpha" not in environment.log_path.read_text()


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_a_missing_venv_module_names_the_package_to_install(root, module):
    environment = environment_in(root, find_module=lambda name: None if name == module else name)
    with pytest.raises(SetupProblem, match=f"`{module}` module.*apt install python3-venv"):
        environment.ensure([local_group(root)])
    assert not environment.folder.exists()


# Environments that are not what they seem


def damage_by_marker(folder: Path) -> None:
    (folder / "unfinished").touch()


def damage_by_emptying(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def damage_by_removing_python(folder: Path) -> None:
    shutil.rmtree(folder / "bin")


def damage_by_removing_pip(folder: Path) -> None:
    shutil.rmtree(next(folder.glob("lib/python*/site-packages/pip")))


def damage_by_removing_a_package(folder: Path) -> None:
    shutil.rmtree(next(folder.glob("lib/python*/site-packages/alpha")))


def damage_by_losing_the_python_behind_it(folder: Path) -> None:
    for path in (folder / "bin").glob("python*"):
        path.unlink()
        path.symlink_to(folder / "gone")


def damage_by_linking_to_nowhere(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder.with_name("nowhere"))


@pytest.mark.parametrize(
    "damage",
    [
        damage_by_marker,
        damage_by_emptying,
        damage_by_removing_python,
        damage_by_removing_pip,
        damage_by_removing_a_package,
        damage_by_losing_the_python_behind_it,
        damage_by_linking_to_nowhere,
    ],
)
def test_a_damaged_environment_is_made_again(copied_root, damage, quick_venv):
    damage(copied_root / ".venv")
    group = local_group(copied_root)
    environment = environment_in(copied_root, make_venv=quick_venv)
    assert not environment.is_ready([group])
    environment.ensure([group])
    assert "making it again" in environment.display.text
    assert run_inside(environment, "import alpha; print(alpha.version)") == "1.0"
    assert sorted(path.name for path in copied_root.glob(".venv*")) == [".venv", ".venv.lock", ".venv.log"]


def test_an_environment_made_by_hand_is_filled_not_replaced(copied_root):
    (copied_root / ".venv/expertflow.json").unlink()
    (copied_root / ".venv/mine").touch()
    environment = environment_in(copied_root)
    environment.ensure([local_group(copied_root)])
    assert (copied_root / ".venv/mine").exists()
    assert environment.is_ready([local_group(copied_root)])


def test_a_mangled_stamp_counts_as_none(copied_root):
    (copied_root / ".venv/expertflow.json").write_text('{"python": ')
    environment = environment_in(copied_root)
    assert not environment.is_ready([local_group(copied_root)])
    environment.ensure([local_group(copied_root)])
    assert environment.is_ready([local_group(copied_root)])


# What stops an installation


def test_no_network_is_one_sentence_and_leaves_a_good_environment_good(copied_root):
    path = copied_root / "test.txt"
    path.write_text("beta==1.0\n")
    steps = (("--index-url", "http://127.0.0.1:9/simple", "--retries", "1", "-r", str(path)),)
    offline = RequirementGroup("test", (path,), lambda environment: InstallPlan("tests", steps, 1, 1))
    environment = environment_in(copied_root)
    with pytest.raises(SetupProblem, match="could not be reached: check the network") as caught:
        environment.ensure([local_group(copied_root), offline])
    assert str(environment.log_path) in str(caught.value)
    assert "Connection refused" in environment.log_path.read_text()
    assert environment.is_ready([local_group(copied_root)])


def test_a_disk_that_fills_up_while_unpacking_leaves_it_marked(copied_root, quick_venv):
    pip = fake_pip(
        copied_root,
        "print('Installing collected packages: alpha')\n"
        "print('ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device')\n"
        "sys.exit(1)",
    )
    group = local_group(copied_root)
    (copied_root / "program.txt").write_text("alpha\n")
    with pytest.raises(SetupProblem, match="disk is full: free some space"):
        environment_in(copied_root, pip=pip).ensure([group])
    environment = environment_in(copied_root, make_venv=quick_venv)
    environment.ensure([group])
    assert "left half-made" in environment.display.text
    assert environment.is_ready([group])


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("... NameResolutionError(...)\nERROR: No matching distribution found for torch==2.13.0", "network"),
        ("ERROR: No matching distribution found for torch==2.13.0", "offers no torch==2.13.0"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]", "PIP_CERT"),
        ("ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied", "who owns"),
        ("first\nERROR: something new\n\n", "pip ended with code 2 (ERROR: something new)"),
    ],
)
def test_failures_are_explained(output, words):
    assert words in explain_failure(output, 2)


def test_system_errors_are_explained():
    assert "The disk is full" in explain_os_error(OSError(28, "No space left on device"))
    assert "(/opt/x)" in explain_os_error(PermissionError(13, "Permission denied", "/opt/x"))


LAUNCH_A_GROUP = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from test_launch import local_group
from launcher.environment import Environment
from launcher.progress import Display
from launcher.start import prepare
folder = Path({folder!r})
environment = Environment(folder / ".venv", Display(sys.stderr), {options})
sys.exit(prepare(environment, [local_group(folder)]))
"""


def launch_in_a_process(folder: Path, **options) -> subprocess.Popen:
    words = ", ".join(f"{name}={value!r}" for name, value in options.items())
    code = LAUNCH_A_GROUP.format(root=str(ROOT), tests=str(ROOT / "tests"), folder=str(folder), options=words)
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def log_holds(folder: Path, text: str) -> bool:
    path = folder / ".venv.log"
    return path.exists() and text in path.read_text()


@pytest.mark.parametrize("said", ["Collecting alpha", "Installing collected packages: alpha"])
def test_ctrl_c_ends_in_one_sentence_and_the_next_launch_works(copied_root, said, quick_venv):
    (copied_root / "program.txt").write_text("alpha\n")
    pip = fake_pip(copied_root, f"print({said!r}, flush=True)\ntime.sleep(600)")
    launch = launch_in_a_process(copied_root, pip=pip)
    wait_for(lambda: log_holds(copied_root, said))
    launch.send_signal(signal.SIGINT)
    assert launch.wait(30) == 130
    assert launch.stderr.read().splitlines()[-1].startswith("Stopped before the environment was ready")
    environment = environment_in(copied_root, make_venv=quick_venv)
    environment.ensure([local_group(copied_root)])
    assert environment.is_ready([local_group(copied_root)])
    assert ("left half-made" in environment.display.text) == said.startswith("Installing")


def test_a_killed_launch_is_noticed_and_its_pip_waited_for(copied_root, quick_venv):
    (copied_root / "program.txt").write_text("alpha\n")
    go_on = copied_root / "go-on"
    pip = fake_pip(
        copied_root,
        "import os\nprint('Installing collected packages: alpha', flush=True)\n"
        f"while not os.path.exists({str(go_on)!r}): time.sleep(0.02)",
    )
    launch = launch_in_a_process(copied_root, pip=pip)
    wait_for(lambda: log_holds(copied_root, "Installing"))
    launch.kill()
    launch.wait()
    second = launch_in_a_process(copied_root, make_venv=quick_venv)
    assert second.stderr.readline().startswith("Another launch is preparing the environment")
    assert second.poll() is None
    go_on.touch()
    assert second.wait(60) == 0
    assert "left half-made" in second.stderr.read()
    assert environment_in(copied_root).is_ready([local_group(copied_root)])


def test_two_launches_at_a_time_make_one_environment(root, quick_venv):
    launches = [launch_in_a_process(root, make_venv=quick_venv) for _ in range(2)]
    spoken = [launch.communicate(timeout=120)[1] for launch in launches]
    assert [launch.returncode for launch in launches] == [0, 0]
    assert sum("Making a Python environment" in words for words in spoken) == 1
    assert environment_in(root).is_ready([local_group(root)])


def test_the_lock_is_held_by_one_and_freed(tmp_path):
    waits = []
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from launcher.lock import exclusive
with exclusive(Path({str(tmp_path / "lock")!r}), lambda: print("waits", flush=True)):
    print("held", flush=True)
"""
    with exclusive(tmp_path / "lock", lambda: waits.append(1)):
        other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline() == "waits\n"
    assert other.communicate(timeout=30)[0] == "held\n"
    assert waits == []


# Progress, handing over, Chromium


def test_pips_output_becomes_progress():
    screen = Screen()
    progress = PipProgress(screen, clock=iter(range(100)).__next__)
    for line in [
        "Collecting torch==2.13.0 (from -r requirements.txt (line 4))",
        "  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl.metadata (29 kB)",
        "Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (190.4 MB)",
        "Progress 95000000 of 190400000",
        "Downloading six-1.17.0-py2.py3-none-any.whl (11 kB)",
    ]:
        progress.read(line)
    assert not progress.unpacking
    progress.read("Installing collected packages: mpmath, torch")
    assert screen.lines == ["  downloading torch, 190 MB", "  unpacking 2 packages"]
    assert "  downloading torch, 95 MB of 190 MB  (4 s)" in screen.updates
    assert progress.unpacking


def test_sizes_in_words():
    assert [size_words(n) for n in (0, 999_000, 190_400_000, 2_400_000_000)] == [
        "0 kB",
        "999 kB",
        "190 MB",
        "2.4 GB",
    ]


def test_the_program_is_found_from_any_folder_and_reports_to_nobody(tmp_path):
    (tmp_path / "project").mkdir()
    (tmp_path / "project/app.py").write_text("import os; print(os.environ['GRADIO_ANALYTICS_ENABLED'])")
    (tmp_path / "app.py").write_text("print('the wrong one')")
    child = os.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.dup2(os.open(tmp_path / "said", os.O_WRONLY | os.O_CREAT), 1)
        hand_over([sys.executable, "-P", "-m", "app"], program_environment(tmp_path / "project"))
    assert os.waitpid(child, 0)[1] == 0
    assert (tmp_path / "said").read_text() == "False\n"


def test_the_program_keeps_the_bytecode_of_its_uncompiled_packages(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert "PYTHONDONTWRITEBYTECODE" not in program_environment(tmp_path)


def test_the_variable_decides_which_chromium():
    on_path = {"chromium": "/usr/bin/chromium", "/opt/chrome": "/opt/chrome"}.get
    assert find_chromium({}, on_path) == "/usr/bin/chromium"
    assert find_chromium({"EXPERTFLOW_CHROMIUM": "/opt/chrome"}, on_path) == "/opt/chrome"
    assert find_chromium({"EXPERTFLOW_CHROMIUM": "/gone"}, on_path) is None


BROWSER_TEST = "import pytest\n@pytest.mark.browser\ndef test_page(): pass\ndef test_rest(): pass\n"


@pytest.mark.parametrize("processes", [(), ("-n", "2")])
def test_browser_tests_are_left_out_in_words(tmp_path, processes):
    answer = run_pytest(tmp_path, BROWSER_TEST, "", *processes)
    assert "1 tests left out: no Chromium" in answer.stdout
    assert "test_page.py::test_page" in answer.stdout
    assert answer.returncode == 0


@pytest.mark.parametrize(
    ("content", "in_ci", "exit_code", "words"),
    [
        (BROWSER_TEST, "true", 4, "CI leaves no test out"),
        ("import pytest\ndef test_page(): pytest.skip('no')\n", "", 0, "1 skipped"),
        ("import pytest\ndef test_page(): pytest.skip('no')\n", "true", 1, "CI leaves no test out"),
        ("import pytest\npytest.skip('no', allow_module_level=True)\n", "true", 2, "CI leaves no test out"),
    ],
)
def test_no_test_is_left_out_in_ci(tmp_path, content, in_ci, exit_code, words):
    answer = run_pytest(tmp_path, content, in_ci)
    assert words in answer.stdout + answer.stderr
    assert answer.returncode == exit_code


def run_pytest(folder: Path, content: str, in_ci: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Where there is no Chromium, with the configuration of this suite."""
    shutil.copy(ROOT / "tests/conftest.py", folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "test_page.py").write_text(content)
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    surroundings |= {"CI": in_ci, "EXPERTFLOW_CHROMIUM": "/gone", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "pytest", folder, *options],
        cwd=folder,
        env=surroundings,
        capture_output=True,
        text=True,
    )
