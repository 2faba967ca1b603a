"""What the environment is filled with: the program's requirements, and those of its tests."""

from collections.abc import Callable
from pathlib import Path

from launcher.environment import Environment, InstallPlan, RequirementGroup
from launcher.pip import installer_environment
from launcher.torch_build import ask_pip, choose_torch_build, has_nvidia_card, torch_requirement

# The first pip that reports its progress to other programs is 24.1; this one also resumes broken downloads.
PIP = "pip==26.2.1"
SHOW_PROGRESS = ("--progress-bar", "raw")
# Modules are compiled when first used: compiling all of them would take a minute of the installation.
QUICKLY = (*SHOW_PROGRESS, "--no-compile")

# Everything but torch and its libraries, measured with the pinned versions on Linux.
OTHERS_DOWNLOAD_BYTES, OTHERS_DISK_BYTES = 300_000_000, 1_000_000_000
TESTS_DOWNLOAD_BYTES, TESTS_DISK_BYTES = 100_000_000, 300_000_000


def program_group(root: Path) -> RequirementGroup:
    """What the program itself needs."""
    files = (root / "requirements.txt", root / "requirements-model.txt")
    return RequirementGroup("program", files, _program_plan(*files))


def test_group(root: Path) -> RequirementGroup:
    """What `launch.py test` needs beyond it."""
    path = root / "requirements-test.txt"
    steps = ((*QUICKLY, "-r", str(path)),)
    plan = InstallPlan("the test tools", steps, TESTS_DOWNLOAD_BYTES, TESTS_DISK_BYTES)
    return RequirementGroup("test", (path,), lambda environment: plan)


def _program_plan(requirements: Path, model_requirements: Path) -> Callable[[Environment], InstallPlan]:
    def plan(environment: Environment) -> InstallPlan:
        environment.run_pip([PIP])
        environment.display.update("  asking for the right build of PyTorch")
        surroundings = installer_environment(environment.temporary_dir)
        torch = torch_requirement(requirements)
        build = choose_torch_build(ask_pip(environment.pip, torch, surroundings), has_nvidia_card())
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
