"""Which worker a prompt goes to, and what the feed hands out, without Ray."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.batch.job import BatchSettings
from app.batch.nodes.feed import PromptFeed
from app.batch.nodes.feed_actor import FeedActor, FeedPlan
from app.batch.nodes.report import WorkerTotals
from app.batch.nodes.spread import ROUND_ROBIN, ROUTES, ByRoutes, RoundRobin
from engine.routing.predictor_files import own_dir
from engine.routing.predictors.baselines import PreviousToken
from engine.routing.predictors.recurrent import export
from engine.routing.predictors.recurrent_network import RecurrentNetwork, RecurrentSizes
from engine.routing.predictors.weights_file import write_predictor
from engine.routing.prompt_routes import LAST_TOKENS, predicted_use
from engine.routing.shape import RoutingShape
from tests.app.test_batch import asked, write_source
from tests.app.test_cli import run_json
from tests.separate_home import separate_home
from tests.tiny_chat_model import tiny_chat_checkpoint
from tests.tiny_models import VOCAB_SIZE

TOPICS = 3


def use_of_topic(number: int, text: str) -> np.ndarray | None:
    """Lines name their topic; a little noise of their own."""
    if not text.isdigit():
        return None
    return np.eye(TOPICS)[int(text)] + 0.1 * np.random.default_rng(number).random(TOPICS)


def drained(feed: PromptFeed, ticket_lines: int, workers: list[str]) -> list[tuple[str, list[tuple[int, str]]]]:
    """Workers take in turn and write what they got, until nothing is left."""
    taken, done, written = [], set(), 0
    for ticket in range(10_000):
        worker = workers[ticket % len(workers)]
        lines = feed.take(ticket, worker)
        assert lines is not None and feed.take(ticket, "another") == lines
        if not lines:
            return taken
        taken.append((worker, lines))
        done |= {number for number, _ in lines}
        while written in done:
            written += 1
        feed.written(written)
    raise AssertionError("It never ends.")


@given(st.integers(0, 90), st.integers(1, 4), st.integers(1, 7), st.booleans(), st.data())
def test_every_line_is_handed_out_once_whatever_the_spread(count, places, ticket_lines, by_routes, data):
    lines = [(n, data.draw(st.sampled_from(["0", "1", "2", "bad"]))) for n in range(count)]
    window = ticket_lines * (places + 1)
    spread = ByRoutes(places, use_of_topic, max(window // places, 1)) if by_routes else RoundRobin(places)
    feed = PromptFeed(iter(lines), 0, spread, places, ticket_lines, window)
    taken = drained(feed, ticket_lines, [f"w{n}" for n in range(places)])
    assert sorted(line for _, some in taken for line in some) == lines
    assert all(len(some) == ticket_lines for _, some in taken[:-1])


def test_each_worker_gets_a_topic_and_helps_when_its_own_is_done():
    texts = [str(n % TOPICS) for n in range(300)]
    feed = PromptFeed(iter(enumerate(texts)), 0, ByRoutes(TOPICS, use_of_topic, 100), TOPICS, 10, 300)
    taken = drained(feed, 10, ["a", "b", "c"])
    topics = {worker: {text for who, some in taken for _, text in some if who == worker} for worker in "abc"}
    assert sorted(map(sorted, topics.values())) == [["0"], ["1"], ["2"]]
    one_topic = PromptFeed(iter(enumerate("0" * 300)), 0, ByRoutes(2, use_of_topic, 60), 2, 10, 120)
    shares = [worker for worker, _ in drained(one_topic, 10, ["a", "b"])]
    assert shares.count("a") == shares.count("b")


def test_nothing_is_read_far_beyond_what_is_written():
    read = []
    lines = ((n, read.append(n) or "0") for n in range(1000))
    feed = PromptFeed(lines, 0, RoundRobin(2), 2, 5, 30)
    for ticket in range(6):
        assert feed.take(ticket, "a") is not None
    assert feed.take(6, "a") is None and len(read) == 30
    feed.written(5)
    assert [number for number, _ in feed.take(6, "a")] == [30, 31, 32, 33, 34]


def test_a_worker_that_comes_for_one_that_is_gone_takes_its_place():
    feed = PromptFeed(iter(enumerate("01" * 100)), 0, ByRoutes(2, use_of_topic, 90), 2, 10, 200)
    old = {text for _, text in feed.take(0, "a")}
    assert {text for _, text in feed.take(1, "b")} != old
    assert {text for _, text in feed.take(2, "successor of a")} == old


def test_a_prompts_use_is_what_is_expected_over_its_last_tokens():
    class Spy(PreviousToken):
        asked: list[int] = []

        def predict(self, token_id):
            self.asked.append(token_id)
            self._used[0, :, token_id % 4] = 1 / (1 + token_id % 2)
            return self._used

    use = predicted_use(Spy(RoutingShape(2, 4, 1, 100)), range(80))
    assert Spy.asked == list(range(80 - LAST_TOKENS, 80))
    assert use.shape == (2, 4) and use.min() > 0 and use.max() <= 1


def in_a_loop_of_its_own(coroutine):
    """In another thread: this one may have a browser's loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def test_the_feed_asks_the_models_predictor_and_says_what_is_missing(tmp_path, monkeypatch):
    separate_home(tmp_path / "home", monkeypatch)
    source, model = tmp_path / "in.jsonl", str(tiny_chat_checkpoint())
    source.write_text("".join(asked(f"{n}", "ab"[n % 2] * 20) + "\n" for n in range(8)) + "no json\n")
    plan = FeedPlan(source, 0, model, ROUTES, 2, 4, 100, BatchSettings())

    async def take(spread):
        feed = FeedActor(FeedPlan(**{**vars(plan), "spread": spread}))
        first = await feed.take(0, "a", "here", "f" * 32)
        other = await feed.take(1, "b", "there", "f" * 32)
        wrong = await feed.take(2, "c", "elsewhere", "0" * 32)
        return first, other, wrong

    first, *_ = in_a_loop_of_its_own(take(ROUTES))
    assert "No predictor" in first.problem[0] and "--spread round-robin" in first.problem[1]
    first, other, _ = in_a_loop_of_its_own(take(ROUND_ROBIN))
    assert [[number for number, _ in handout.lines] for handout in (first, other)] == [[0, 2, 4, 6], [1, 3, 5, 7]]

    shape = RoutingShape(2, 4, 2, VOCAB_SIZE)
    network = RecurrentNetwork(shape, RecurrentSizes(hidden_width=0, token_width=8, state_width=8, head_width=8)).eval()
    own_dir().mkdir(parents=True)
    write_predictor(own_dir() / f"{'f' * 32}.safetensors", export(network, np.array([[1.0, 0.0]] * 3), "f" * 32))
    first, other, wrong = in_a_loop_of_its_own(take(ROUTES))
    assert {number % 2 for number, _ in first.lines} != {number % 2 for number, _ in other.lines[:4] if number < 8}
    assert "on elsewhere has other weights than that on here" in wrong.problem[0]


def test_what_workers_did_is_added_up():
    totals = WorkerTotals()
    spent = {"tokens": 10, "decode_steps": 8, "decode_seconds": 2.0, "activations": 40, "hits": 10, "bytes_moved": 600}
    for worker, hits in (("x", 10), ("x", 30), ("y", 40)):
        totals.add({"worker": worker, "node": "here", "spent": spent | {"hits": hits, "stall_seconds": 0.5}})
    first, second = totals.workers()
    assert (first["lines"], first["tokens"], first["hit_rate"]) == (2, 20, 0.5) and second["hit_rate"] == 1.0
    together = totals.together()
    assert together["tokens"] == 30 and together["hit_rate"] == pytest.approx(2 / 3)
    assert together["stall_seconds"] == 1.5
    assert together["tokens_per_second"] == 8.0 and together["bytes_per_token"] == 60


def test_the_command_says_how_to_install_ray_where_it_is_not(tmp_path, monkeypatch):
    from app.commands import batch

    monkeypatch.setattr(batch, "find_spec", lambda name: None)
    job = ["batch", write_source(tmp_path, 1), tmp_path / "out.jsonl"]
    assert "requirements-ray.txt" in run_json(*job, "--ray", "local", code=2)["error"]["remedy"]
    assert "--ray" in run_json(*job, "--workers", "2", code=2)["error"]["remedy"]
    assert not (tmp_path / "out.jsonl").exists()
