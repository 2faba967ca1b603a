"""`bench gpu`: every contender on a stand-in for the card, the emulated card alone, and refusals in a sentence."""

from __future__ import annotations

import json
import os
import sys

import pytest

from engine.errors import DeviceNotAvailable, InvalidSetting
from engine.hardware.device import ChosenDevice
from engine.hardware.gpus import GpuSurvey
from engine.hardware.torch_cuda import TorchCuda
from engine.lab import bench_gpu
from engine.lab.bench_gpu import GpuBenchSettings, run_bench_gpu
from engine.lab.contender_process import ContenderFailed
from engine.lab.llama_server import LlamaServer, LlamaUnusable, why_not_llama
from engine.lab.peer_accelerate_auto import AccelerateOffload
from engine.lab.peer_transformers import StockTransformers
from tests.separate_home import separate_home
from tests.tiny_chat_model import tiny_chat_checkpoint

FAKE_LLAMA = """#!{python}
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

if "--help" in sys.argv:
    sys.exit("{help}")
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
assert sys.argv[1] == "--cpu-moe" and options["--moe-cache-mib"].isdigit(), sys.argv
if options["--model"] == "broken.gguf":
    sys.exit(3)

class Server(BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply({{"status": "ok"}})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        tokens = list(range(asked["n_predict"]))
        timings = {{"prompt_ms": 10.0, "predicted_ms": 100.0 * (len(tokens) - 1)}}
        self.reply({{"tokens": tokens, "timings": timings, "content": ""}})

    def reply(self, body):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_):
        return None

HTTPServer(("127.0.0.1", int(options["--port"])), Server).serve_forever()
"""


def silent(*_: object) -> None:
    """Nobody looks at the progress of a test."""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    separate_home(tmp_path / "home", monkeypatch)


@pytest.fixture
def no_card(monkeypatch):
    monkeypatch.setattr(bench_gpu, "survey_gpus", lambda: GpuSurvey((), None, "No NVIDIA driver is installed."))
    monkeypatch.setattr(bench_gpu, "ask_torch", lambda: TorchCuda("2.13.0+cpu", None))


def install_llama(folder, monkeypatch, told="--moe-cache-mib N  cache of experts"):
    program = folder / "llama-server"
    program.write_text(FAKE_LLAMA.format(python=sys.executable, help=told))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def settings(**changed) -> GpuBenchSettings:
    given = {"model": str(tiny_chat_checkpoint()), "budgets": ("50%",), "tokens": 5, "offload_tokens": 3, "repeats": 1}
    return GpuBenchSettings(**given | changed)


def test_without_a_card_one_sentence_says_so_and_what_to_try(no_card):
    with pytest.raises(DeviceNotAvailable, match="No card can be used.*--emulate 4060"):
        run_bench_gpu(settings(), silent)


def test_an_unknown_card_is_refused_before_anything_runs(no_card):
    with pytest.raises(InvalidSetting, match="RTX 3060"):
        run_bench_gpu(settings(emulate="pony"), silent)


def test_an_emulated_card_is_measured_alone_in_its_time(no_card):
    report = json.loads(json.dumps(run_bench_gpu(settings(emulate="4060"), silent)))
    (run,) = report["runs"]
    assert (run["budget"], run["contender"]) == ("50%", "expertflow")
    assert report["ratios"] == {} and report["device"] is None
    assert report["emulation"]["label"] == run["emulated"] == "emulated RTX 4060"
    assert run["time_dilation"] == pytest.approx(report["emulation"]["dilation"])
    assert run["tokens_per_second"] == pytest.approx((run["tokens"] - 1) / run["decode_seconds"])
    assert 0 <= run["stall_seconds"] <= run["decode_seconds"]
    assert any("not here" in note for note in report["notes"])
    assert {"machine", "command", "runs", "ratios"} <= report.keys()


class Actor:
    """A contender in this process that answers at a speed of its own; `asked` remembers what it was loaded with."""

    asked: dict[str, dict] = {}

    def __init__(self, module: str, threads: int) -> None:
        self.name = module.removeprefix("engine.lab.")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def load(self, **settings):
        self.asked[self.name] = settings
        facts = {"near_bytes_total": 5 << 30, "near_bytes_experts": 3 << 30, "emulation": None, "emulation_notes": ()}
        return facts if self.name == "peer_expertflow" else {}

    def answer(self, ids, new_tokens, **settings):
        seconds = {"peer_expertflow": 0.05, "peer_accelerate_auto": 0.5, "peer_transformers": 0.025}[self.name]
        ids = list(range(new_tokens))
        return {"ids": ids, "prefill_seconds": 0.1, "decode_seconds": seconds * (new_tokens - 1)}


def test_every_contender_gets_the_same_prompt_and_the_same_memory(monkeypatch, tmp_path):
    card = ChosenDevice("cuda", 1, "", vram_total_bytes=8 << 30, vram_free_bytes=8 << 30)
    monkeypatch.setattr(bench_gpu, "the_card", lambda device: card)
    monkeypatch.setattr(bench_gpu, "ContenderProcess", Actor)
    install_llama(tmp_path, monkeypatch)
    report = run_bench_gpu(settings(gguf="model.gguf"), silent)
    speeds = {run["contender"]: run["tokens_per_second"] for run in report["runs"]}
    assert speeds == pytest.approx({"expertflow": 20, "accelerate offload": 2, "llama.cpp": 10, "transformers": 40})
    assert report["ratios"] == pytest.approx(
        {
            "50%_decode_over_transformers": 0.5,
            "50%_decode_over_accelerate_offload": 10,
            "50%_decode_over_llama_cpp": 2,
        }
    )
    assert Actor.asked["peer_accelerate_auto"]["card_bytes"] == 5 << 30
    assert {asked["device"] for asked in Actor.asked.values()} == {"cuda:1"}
    assert report["contenders"]["llama.cpp 50%"]["command"][10:12] == ["--moe-cache-mib", "3072"]
    assert report["identical_ids"] and report["device"]["torch_name"] == "cuda:1"
    assert not list(tiny_chat_checkpoint().parent.glob(".offload-*"))


def test_a_peer_that_fails_leaves_none_and_a_note(monkeypatch):
    class Failing(Actor):
        def load(self, **settings):
            if self.name != "peer_expertflow":
                raise ContenderFailed("It ran out of memory.", "Leave it out.")
            return super().load(**settings)

    monkeypatch.setattr(bench_gpu, "the_card", lambda device: ChosenDevice("cuda", 0, ""))
    monkeypatch.setattr(bench_gpu, "ContenderProcess", Failing)
    report = run_bench_gpu(settings(), silent)
    assert [run["contender"] for run in report["runs"]] == ["expertflow"]
    assert set(report["ratios"].values()) == {None}
    assert any("ran out of memory" in note for note in report["notes"])


def test_accelerates_offload_writes_what_stock_transformers_does(tmp_path):
    """The processor stands in for the card."""
    place = {"path": str(tiny_chat_checkpoint()), "threads": 1, "device": "cpu"}
    offload, stock = AccelerateOffload(), StockTransformers()
    offload.load(place | {"card_bytes": 0, "ram_bytes": 10**9, "offload_folder": str(tmp_path)})
    stock.load(place)
    asked = {"ids": [70, 71, 72], "new_tokens": 4}
    assert offload.answer(asked)["ids"] == stock.answer(asked)["ids"]


def test_llama_is_left_out_in_words(monkeypatch, tmp_path):
    with monkeypatch.context() as alone:
        alone.setenv("PATH", str(tmp_path))
        assert "no llama-server is on the path" in why_not_llama("model.gguf")
    install_llama(tmp_path, monkeypatch, told="usage: llama-server --model FILE")
    assert "--gguf FILE" in why_not_llama(None)
    assert "b11481" in why_not_llama("model.gguf")


def test_a_llama_that_does_not_start_is_an_error_not_a_wait(monkeypatch, tmp_path):
    install_llama(tmp_path, monkeypatch)
    assert why_not_llama("broken.gguf") is None
    with LlamaServer() as server, pytest.raises(LlamaUnusable, match="code 3"):
        server.load("broken.gguf", 10, 128, 1)


def test_a_model_too_large_for_the_card_leaves_stock_out():
    card = ChosenDevice("cuda", 0, "", vram_total_bytes=2000, vram_free_bytes=1000)
    bench = bench_gpu._Bench(settings(), tiny_chat_checkpoint(), card, "auto", silent)
    bench.stock()
    assert "transformers is left out: the whole model needs" in bench._notes[0]


def test_accelerate_gets_as_much_of_the_card_as_ours():
    request = {"device": "cuda:1", "card_bytes": 7, "ram_bytes": 9, "offload_folder": "x"}
    assert AccelerateOffload().loading_options(request)["max_memory"] == {1: 7, "cpu": 9}
    assert AccelerateOffload().loading_options(request | {"device": "cpu"})["max_memory"] == {"cpu": 9}
