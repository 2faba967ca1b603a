"""How the compiled kernels run on this machine: where their machine code is kept, and on which threads.

The kernels are compiled by numba when first used (no compiler is needed on the machine) and their machine code is
kept in the cache folder, so that only the first start waits. They run on OpenMP threads: numba's other portable
thread pool needs ~130 us to start a parallel region, OpenMP ~4 us, and one token starts more than a hundred.
"""

from __future__ import annotations

import ctypes
import functools
import getpass
import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from engine.paths import models_dir

_OMP_MODULE = "numba.np.ufunc.omppool"
_SYSTEM_NAME = b"\0libgomp.so.1.0.0\0"  # what numba's wheel links against
_TORCH_NAME = b"\0libgomp.so.1\0\0\0\0\0"  # what torch ships and has loaded already

_TORCH_OPENMP = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
_PAUSE_HARD = 2  # omp_pause_hard
_KEPT_SECONDS = 7 * 86400

_calling_thread = threading.local()


@functools.cache
def unavailable_reason() -> str | None:
    """None when the kernels can run here, else one sentence that says why torch computes instead."""
    try:
        from numba.np.ufunc.parallel import _launch_threads

        import engine.model.kernels.declare  # noqa: F401  (makes the threads ready)

        threads = torch.get_num_threads()
        _launch_threads()
        torch.set_num_threads(threads)  # launching set the shared runtime's number to the most that may be used
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        return f"The compiled kernels cannot run on this machine ({error}); PyTorch computes instead."
    layer = sys.modules["numba"].threading_layer()
    if layer != "omp":
        return f"The compiled kernels need OpenMP threads, but only '{layer}' started; PyTorch computes instead."
    return None


def use_torch_threads() -> None:
    """Lets the kernels that this thread starts run on as many threads as torch's operators do."""
    threads = torch.get_num_threads()
    if getattr(_calling_thread, "threads", None) != threads:
        numba = sys.modules["numba"]
        numba.set_num_threads(max(1, min(threads, numba.config.NUMBA_NUM_THREADS)))
        _calling_thread.threads = threads


def release_threads() -> None:
    """Ends the OpenMP threads that have worked for the calling thread, which will not compute for a while; they start
    anew when it does.

    Every thread that computes has OpenMP threads of its own. As soon as a process has more of all of them than there
    are processors, the runtime lets none wait in a busy loop any more, and each of the hundred parallel regions of a
    token begins by waking threads: decoding took 1.6 times as long.
    """
    library = _openmp()
    if library is not None:
        library.omp_pause_resource_all(_PAUSE_HARD)


@functools.cache
def _openmp() -> ctypes.CDLL | None:
    """The runtime that torch brought along, where it is one that can end threads."""
    if not _TORCH_OPENMP.exists():
        return None
    library = ctypes.CDLL(str(_TORCH_OPENMP))
    return library if hasattr(library, "omp_pause_resource_all") else None


def available() -> bool:
    """Whether the compiled kernels can run here."""
    return unavailable_reason() is None


def cache_folder() -> Path:
    """Folder of the compiled kernels; its name changes with their source, since numba only watches single files."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    name = f"kernels-{digest.hexdigest()[:12]}"
    preferred = models_dir().parent / name
    try:
        preferred.mkdir(parents=True, exist_ok=True)
        os.utime(preferred)
        writable = os.access(preferred, os.W_OK)
        _remove_outdated(preferred)
    except OSError:
        writable = False
    return preferred if writable else Path(tempfile.gettempdir()) / f"expertflow-{getpass.getuser()}" / name


def _remove_outdated(current: Path) -> None:
    """Other versions' kernels, unless used lately: two checkouts may take turns on one machine."""
    for folder in current.parent.glob("kernels-*"):
        if folder != current and time.time() - folder.stat().st_mtime > _KEPT_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def set_numba_environment() -> None:
    """numba reads its settings from the environment: where code is kept, and the most threads that may be used."""
    os.environ["NUMBA_CACHE_DIR"] = str(cache_folder())
    os.environ["NUMBA_THREADING_LAYER"] = "omp"
    os.environ["NUMBA_NUM_THREADS"] = str(max(torch.get_num_threads(), os.cpu_count() or 1))
    if "numba" in sys.modules:
        sys.modules["numba"].config.reload_config()


def share_torch_openmp() -> None:
    """Make numba use the OpenMP runtime that torch brought along and has already loaded.

    Two runtimes in one process keep two pools of threads that spin against each other, and a bare machine has no
    system-wide runtime at all. numba's pool module asks for it by another file name than torch's, so a copy of
    that module with the name replaced is loaded in its place. Anything unexpected: leave numba's own in place.
    """
    if _OMP_MODULE in sys.modules or not sys.platform.startswith("linux"):
        return
    spec = importlib.util.find_spec(_OMP_MODULE)
    if spec is None or spec.origin is None:
        return
    content = Path(spec.origin).read_bytes()
    if content.count(_SYSTEM_NAME) != 1 or not _TORCH_OPENMP.exists():
        return
    copy = cache_folder() / Path(spec.origin).name
    if not copy.exists() or copy.stat().st_size != len(content):
        copy.parent.mkdir(parents=True, exist_ok=True)
        partial = copy.with_suffix(f".{os.getpid()}")
        partial.write_bytes(content.replace(_SYSTEM_NAME, _TORCH_NAME))
        os.replace(partial, copy)
    _load_as(_OMP_MODULE, copy)


def _load_as(name: str, path: Path) -> None:
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, str(path), loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    setattr(sys.modules[parent], child, module)
