"""A batch on a local Ray: the output of one engine, whoever is killed on the way; nothing stays behind."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray", reason="Ray, which is optional, is not installed.")

import ray

from app.batch.job import BatchSettings, run_batch
from app.batch.nodes.session import Nodes, ray_session
from app.batch.nodes.spread import ROUND_ROBIN
from app.batch.output import BatchOutput
from engine.errors import ClusterFailed, InvalidSetting
from tests.app.batch_engine import CountingEngine
from tests.app.counting_worker import run_counting
from tests.app.test_batch import ROOT, asked, write_source
from tests.tiny_chat_model import tiny_chat_checkpoint

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def nodes():
    """One local cluster for all tests here."""
    before = set(psutil.Process().children())
    with ray_session("local", 2, "cpu", "25%") as found:
        started = started_since(before)
        yield found
        started |= started_since(before)
    _, left = psutil.wait_procs(started, timeout=60)
    assert not left


def started_since(before: set[psutil.Process]) -> set[psutil.Process]:
    """Children of this process with all of theirs; not those of a browser that was there before."""
    new = set(psutil.Process().children()) - before
    return new.union(*(child.children(recursive=True) for child in new))


def undisturbed(source: Path, folder: Path) -> bytes:
    with BatchOutput(folder / "undisturbed.jsonl") as output:
        run_batch(CountingEngine(), source, output, BatchSettings(max_tokens=8), lambda *_: None)
    return (folder / "undisturbed.jsonl").read_bytes()


def busy_workers() -> list[psutil.Process]:
    """Of Ray's processes on this machine those whose engines are answering."""
    named = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            title = "".join(child.cmdline())
            if "MapWorker" in title and "submit" in title:
                named.append(child)
    return named


def test_a_job_that_is_killed_and_then_loses_a_worker_gives_what_an_undisturbed_one_gives(nodes, tmp_path):
    source, target = write_source(tmp_path, 90), tmp_path / "out.jsonl"
    expected, lost = undisturbed(source, tmp_path), []
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "tests.app.counting_worker", address, str(source), str(target), "0.2"]
    job = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    while job.poll() is None and not (target.exists() and target.read_bytes().count(b"\n") >= 10):
        time.sleep(0.05)
    job.kill()
    assert job.wait() < 0
    kept = target.read_bytes().count(b"\n")
    assert 10 <= kept < 70

    def kill_a_worker(stage, done, total):
        if done >= kept + 10 and not lost and (busy := busy_workers()):
            lost.append(busy[0])
            busy[0].kill()

    report = run_counting(nodes, source, target, 0.02, kill_a_worker)
    assert lost and target.read_bytes() == expected
    assert report["lines"] == report["lines_written"] == 90 and not report["stopped"]
    assert report["lines_kept"] == kept and report["tokens"] > 0 and report["spread"] == "round-robin"
    assert sum(worker["lines"] for worker in report["workers"]) == 90 - report["lines_kept"]
    assert len(report["workers"]) >= 2


def test_engines_of_a_real_model_answer_as_one_does(nodes, tmp_path):
    from app.batch.nodes.job import NodesJob, run_batch_on_nodes
    from engine import Engine

    source = tmp_path / "in.jsonl"
    lines = [asked(f"{n}", f"Question {n}", temperature=n % 2, max_tokens=6) for n in range(12)]
    source.write_text("\n".join([*lines, "no json", asked("long", "y" * 5000)]) + "\n")
    options = {"model": str(tiny_chat_checkpoint()), "budget": "50%", "policy": "lru", "batch_size": 2}
    with BatchOutput(tmp_path / "one.jsonl") as output, Engine.load(**options) as engine:
        run_batch(engine, source, output, BatchSettings(), lambda *_: None)
    with BatchOutput(tmp_path / "two.jsonl") as output:
        job = NodesJob(nodes, options, ROUND_ROBIN, BatchSettings())
        report = run_batch_on_nodes(job, source, output, lambda *_: None)
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert report["lines_failed"] == 2 and report["spread"] == ROUND_ROBIN
    assert 0 < report["hit_rate"] < 1 and report["bytes_moved"] > 0


def test_a_machine_without_the_model_is_named(nodes, tmp_path, monkeypatch):
    from app.batch.nodes.job import told
    from app.batch.nodes.worker import RESULT, EngineWorker

    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the worker sets it for its process
    worker = EngineWorker(None, {"model": str(tmp_path / "nothing")}, BatchSettings(), 2)
    (row,) = worker({"id": [0]})
    with pytest.raises(ClusterFailed, match=f"On {platform.node()}: There is no model"):
        told(row[RESULT][0])


def test_a_file_that_is_done_asks_nobody(tmp_path):
    source, target = write_source(tmp_path, 3), tmp_path / "out.jsonl"
    target.write_bytes(undisturbed(source, tmp_path))
    report = run_counting(Nodes(workers=2, share=2, gpus_each=0), source, target, 0.0)
    assert report["lines_kept"] == report["lines_written"] == 3 and report["workers"] == []


def test_what_a_cluster_has_no_room_for_is_told_at_once(nodes):
    from app.batch.nodes.session import _nodes

    with pytest.raises(InvalidSetting, match="9 workers need 10 processors of the cluster; it offers 3"):
        _nodes(9, "cpu", "25%")
    with pytest.raises(InvalidSetting, match="2 workers would share a machine"):
        _nodes(2, "cpu", "auto")
    with pytest.raises(InvalidSetting, match="card each; the cluster has 0"):
        _nodes(2, "cuda", "25%")


def test_a_cluster_is_joined_from_inside():
    with pytest.raises(InvalidSetting, match="from outside"), ray_session("ray://else:10001", None, "cpu", "auto"):
        pass
