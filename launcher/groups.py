"""What the environment is filled with: the program's requirements, and those of its tests."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from launcher.environment import Environment, InstallPlan, RequirementGroup
from launcher.nvidia import find_nvidia_cards
from launcher.pip import installer_environment
from launcher.torch_build import ask_pip, choose_torch_build, torch_requirement

# The first pip that reports its progress to other programs is 24.1; this one also resumes broken downloads.
PIP = "pip==26.2.1"
SHOW_PROGRESS = ("--progress-bar", "raw")
# Modules are compiled when first used: compiling all of them would take a minute of the installation.
QUICKLY = (*SHOW_PROGRESS, "--no-compile")

# Everything but torch and its libraries, measured with the pinned versions on Linux.
OTHERS_DOWNLOAD_BYTES, OTHERS_DISK_BYTES = 300_000_000, 1_000_000_000
TESTS_DOWNLOAD_BYTES, TESTS_DISK_BYTES = 240_000_000, 700_000_000


def program_group(root: Path) -> RequirementGroup:
    """What the program itself needs."""
    files = (root / "requirements.txt", root / "requirements-model.txt")
    return RequirementGroup("program", files, _program_plan(*files), lambda environment: card_words(environment, root))


def card_words(environment: Environment, root: Path) -> str | None:
    """Whether the installed PyTorch sees the cards that the driver sees, and what to do if not; None without cards."""
    asked = subprocess.run(
        [environment.python, "-P", "-m", "engine.hardware.card_check"],
        env={**installer_environment(environment.temporary_dir), "PYTHONPATH": str(root)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if asked.returncode:
        said = (asked.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return f"PyTorch could not be asked for NVIDIA cards ({said[:200]}); `doctor` looks again."
    return asked.stdout.strip() or None


def test_group(root: Path) -> RequirementGroup:
    """What `launch.py test` needs beyond it, what is optional included, and nothing that changes what is pinned."""
    files = (root / "requirements-test.txt", root / "requirements-ray.txt")
    named = [part for path in files for part in ("-r", str(path))]
    steps = ((*QUICKLY, "-c", str(root / "requirements.txt"), *named),)
    plan = InstallPlan("the test tools", steps, TESTS_DOWNLOAD_BYTES, TESTS_DISK_BYTES)
    return RequirementGroup("test", files, lambda environment: plan)


def _program_plan(requirements: Path, model_requirements: Path) -> Callable[[Environment], InstallPlan]:
    def plan(environment: Environment) -> InstallPlan:
        environment.run_pip([PIP])
        environment.display.update("  asking for the right build of PyTorch")
        surroundings = installer_environment(environment.temporary_dir)
        torch = torch_requirement(requirements)
        build = choose_torch_build(ask_pip(environment.pip, torch, surroundings), find_nvidia_cards())
        if build.advice:
            environment.display.line(build.advice)
        steps: list[tuple[str, ...]] = [(*QUICKLY, "-r", str(requirements))]
        if build.pip_options:
            steps.insert(0, (*QUICKLY, *build.pip_options, "--no-deps", torch))
        steps.append((*QUICKLY, "--no-deps", "-r", str(model_requirements)))
        return InstallPlan(
            f"{build.words} and the other packages",
            tuple(steps),
            build.download_bytes + OTHERS_DOWNLOAD_BYTES,
            build.disk_bytes + OTHERS_DISK_BYTES,
        )

    return plan
