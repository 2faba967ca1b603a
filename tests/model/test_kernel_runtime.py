"""Where compiled kernels are kept and on which threads they run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from engine.model import kernels
from engine.model.kernels import runtime

ROOT = Path(__file__).parents[2]
PROBE = """
import json, numpy as np, torch
from engine.model import kernels
reason = kernels.unavailable_reason()
result = {"reason": reason, "torch_threads": torch.get_num_threads()}
if reason is None:
    from engine.model.kernels.matvec import matvec
    out = np.empty((1, 3), np.float32)
    matvec(np.ones((3, 5), np.float32), np.ones((1, 5), np.float32), out)
    openmp = {line.split()[-1] for line in open("/proc/self/maps") if "gomp" in line}
    result |= {"out": out.tolist(), "from_cache": sum(matvec.stats.cache_hits.values()), "openmp": sorted(openmp)}
print(json.dumps(result))
"""


def probe(home: Path, before: str = "", **environment: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", before + PROBE],
        cwd=ROOT,
        env=os.environ | {"EXPERTFLOW_HOME": str(home)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_a_second_process_finds_the_compiled_kernels(tmp_path):
    first, second = probe(tmp_path), probe(tmp_path)
    assert first["out"] == second["out"] == [[5.0, 5.0, 5.0]]
    assert (first["from_cache"], second["from_cache"]) == (0, 1)
    assert not list((ROOT / "engine" / "model" / "kernels").rglob("*.nbi"))


def test_torch_and_the_kernels_share_one_openmp_runtime(tmp_path):
    result = probe(tmp_path)
    assert len(result["openmp"]) == 1 and "torch" in result["openmp"][0]


def test_starting_the_kernels_leaves_torchs_threads_as_they_are(tmp_path):
    assert probe(tmp_path, before="import torch; torch.set_num_threads(1)\n")["torch_threads"] == 1


def test_where_openmp_does_not_load_torch_computes_and_the_reason_is_said(tmp_path):
    block = "import sys; sys.modules['numba.np.ufunc.omppool'] = None\n"
    result = probe(tmp_path, before=block)
    assert "PyTorch computes instead" in result["reason"]


def test_a_home_that_cannot_be_written_gets_a_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EXPERTFLOW_HOME", str(tmp_path / "file" / "below"))
    folder = runtime.cache_folder()
    assert tmp_path not in folder.parents and folder.name.startswith("kernels-")


def test_kernels_of_versions_not_used_for_a_week_are_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPERTFLOW_HOME", str(tmp_path))
    current = runtime.cache_folder()
    old, recent = current.with_name("kernels-old"), current.with_name("kernels-recent")
    for folder in (old, recent):
        folder.mkdir()
        (folder / "kernel.nbc").write_text("")
    os.utime(old, (0, 0))
    assert runtime.cache_folder() == current
    assert current.exists() and recent.exists() and not old.exists()


def test_released_threads_end_and_start_anew(tmp_path):
    released = """
import os
def threads(): return len(os.listdir("/proc/self/task"))
def double(x):
    from engine.model.kernels.matvec import matvec
    out = np.empty((1, 64), np.float32)
    matvec(np.full((64, 5), 2, np.float32), x, out)
    return out.tolist()
"""
    ask = """
x = np.ones((1, 5), np.float32)
kernels.use_torch_threads()
first, working = double(x), threads()
kernels.release_threads()
after = threads()
same, others = double(x) == first, torch.get_num_threads() - 1
print(json.dumps([same, working - after == others, threads() - after == others]))
"""
    done = subprocess.run(
        [sys.executable, "-c", released + PROBE + ask],
        cwd=ROOT,
        env=os.environ | {"EXPERTFLOW_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [True, True, True]


def test_kernels_follow_torchs_number_of_threads():
    import numba

    assert kernels.available()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        kernels.use_torch_threads()
        assert numba.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
        kernels.use_torch_threads()
    assert numba.get_num_threads() == before
