"""What other systems lack is not needed: every module imports, and the basic paths work, without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.engine.test_exactness import prompt_of
from tests.tiny_models import tiny_checkpoint

ROOT = Path(__file__).resolve().parent.parent

# Libraries come first: they have their own ways on each system. What is theirs and ours alike is then taken away.
ELSEWHERE = """
import asyncio, importlib, multiprocessing, os, pkgutil, signal, sys, tempfile, threading, types
import accelerate, bitsandbytes, fastapi, gguf, gradio, huggingface_hub, numba, platformdirs, psutil, pydantic_settings
import pynvml, rich, safetensors.torch, sqlmodel, tomlkit, torch, typer, uvicorn
from rich import console, progress, table
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.integrations import moe
from transformers.models.mixtral import modeling_mixtral

LACKING = {
    os: "preadv pread pwrite pwritev posix_fadvise posix_fallocate sched_getaffinity sched_setaffinity fork forkpty "
    "getuid geteuid getgid setsid killpg getpgid statvfs fstatvfs fchmod fchown chown mkfifo getloadavg sysconf nice "
    "uname sync sendfile openpty O_DIRECT O_CLOEXEC O_NOFOLLOW O_SYNC O_DIRECTORY O_NONBLOCK",
    signal: "SIGKILL SIGHUP SIGUSR1 SIGUSR2 SIGALRM SIGQUIT SIGCHLD alarm setitimer pause pthread_kill sigwait",
    __import__("mmap"): "MAP_PRIVATE MAP_SHARED MAP_ANONYMOUS PROT_READ PROT_WRITE MADV_DONTNEED",
    threading: "pthread_kill",
}
for module, names in LACKING.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
for name in "fcntl resource pwd grp termios tty pty readline syslog".split():
    sys.modules[name] = None  # importing it raises ImportError
locked = []
sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=lambda *arguments: locked.append(arguments))
os.O_BINARY = 0
sys.platform = "win32"
"""

IMPORT_ALL = """
import app, engine, launcher, launch
from engine import Engine  # as programs do
count = 0
for package in (launcher, engine, app):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(found.name)
        count += 1
print(count, "modules")
"""

BASIC_PATHS = """
from pathlib import Path
from engine import Engine
from engine.checkpoint.builtin.manifest import flush_folder
from engine.hardware.machine import survey_machine
from engine.lab.page_cache import drop_pages, weight_files
from engine.lab.process_memory import peak_rss_bytes, reset_peak_rss, return_freed_memory
from launcher.lock import exclusive

model = Path(sys.argv[1])
for link in ("disk", "disk:direct", "emulated:2.5GBps"):
    with Engine.load(model, budget="50%", link=link) as loaded:
        print(link, loaded.generate_ids([int(token) for token in sys.argv[2].split(",")], 6))
drop_pages(weight_files(model))
reset_peak_rss(), return_freed_memory()
assert peak_rss_bytes() > 0
assert survey_machine().cpu_threads > 0
with tempfile.TemporaryDirectory() as folder, exclusive(Path(folder, "lock"), print):
    assert len(locked) == 1
"""


def elsewhere(code: str, *arguments: str) -> list[str]:
    """What `code` prints on a system that lacks what is POSIX's or Linux's."""
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE + code, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_every_module_imports_and_the_basic_paths_work_without_what_is_posix_alone():
    prompt = prompt_of(9, 1)
    said = elsewhere(IMPORT_ALL + BASIC_PATHS, str(tiny_checkpoint("mixtral")), ",".join(map(str, prompt)))
    from engine import Engine

    with Engine.load(tiny_checkpoint("mixtral"), budget="100%") as engine:
        expected = engine.generate_ids(prompt, 6)
    assert int(said[0].split()[0]) > 200
    assert said[1:] == [f"{link} {expected}" for link in ("disk", "disk:direct", "emulated:2.5GBps")]
