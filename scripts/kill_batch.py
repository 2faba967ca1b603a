"""Does a batch job that is killed again and again give what an undisturbed one gives, byte for byte?

    python -m scripts.kill_batch --folder FOLDER [--lines 200] [--kills 10] [--model demo] [--budget 25%]

Answers short lines with the real model, half of them greedily and half drawn, then once more with kill -9 at random
moments, one in five of them before its first answer, and the same command after each. Takes minutes. Prints JSON; the
exit code is 1 where the two differ.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

LAST_KILL = 0.9  # of the lines: later ones might find the job done
MOMENT_SECONDS = 0.5  # a kill comes up to so long after the line it was meant for,
START_SECONDS = 8.0  # or after the start, where that line is there already: while the model is loaded
POLL_SECONDS = 0.005
QUESTIONS = ("What is {}?", "Name a town with {} letters.", "Say {} in French.", "Is {} a prime?", "Count to {}.")


@dataclass(frozen=True)
class KilledJob:
    """`kept`: whole lines in the output after each kill, `torn`: kills that left a part of one; `identical`: to the
    undisturbed job's output, after each kill as far as it went, and at the end.
    """

    kept: list[int]
    torn: int
    identical: bool
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the files; what was there is made anew")
    parser.add_argument("--lines", type=int, default=200)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--budget", default="25%")
    args = parser.parse_args()
    if not 0 < args.kills < LAST_KILL * args.lines:
        parser.error("--kills must be at least 1 and well below --lines.")
    source = write_source(args.folder, args.lines, args.tokens)
    options = ["--batch-size", str(args.batch_size), "--model", args.model, "--budget", args.budget]

    def command(target: Path) -> list[str]:
        return [sys.executable, "-m", "app.cli", "batch", str(source), str(target), *options, "--json"]

    expected, target = args.folder / "undisturbed.jsonl", args.folder / "killed.jsonl"
    for file in (expected, target):
        file.unlink(missing_ok=True)
    began = time.perf_counter()
    finish(command(expected))
    undisturbed_seconds = time.perf_counter() - began
    moments = kill_moments(args.lines, args.kills, args.seed)
    found = run_killed(command(target), target, expected.read_bytes(), moments, args.seed)
    print(json.dumps({"lines": args.lines, "undisturbed_seconds": undisturbed_seconds, **asdict(found)}, indent=2))
    if not found.identical:
        raise SystemExit(1)


def write_source(folder: Path, lines: int, tokens: int) -> Path:
    """Lines of OpenAI's batch format."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "in.jsonl"
    source.write_text("".join(_line(number, tokens) + "\n" for number in range(lines)), encoding="utf-8")
    return source


def kill_moments(lines: int, kills: int, seed: int) -> list[int]:
    """How many lines are to be written before each kill."""
    early = kills // 5
    return [0] * early + sorted(random.Random(seed).choices(range(1, int(LAST_KILL * lines)), k=kills - early))


def run_killed(command: Sequence[str], target: Path, expected: bytes, moments: Sequence[int], seed: int) -> KilledJob:
    """The job with a kill at each of `moments`, and once to its end. Raises SystemExit where it ends before a kill."""
    generator = random.Random(seed)
    kept, torn, identical = [], 0, True
    began = time.perf_counter()
    for moment in moments:
        there = _read(target).count(b"\n") >= moment
        _kill_after(command, target, moment, generator.random() * (START_SECONDS if there else MOMENT_SECONDS))
        written = _read(target)
        whole = written[: written.rfind(b"\n") + 1]
        kept.append(whole.count(b"\n"))
        torn += written != whole
        identical = identical and expected.startswith(whole)
    finish(command)
    return KilledJob(kept, torn, identical and _read(target) == expected, time.perf_counter() - began)


def finish(command: Sequence[str]) -> None:
    """Runs it to its end. Raises SystemExit where it fails."""
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}.")


def _kill_after(command: Sequence[str], target: Path, lines: int, seconds: float) -> None:
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while job.poll() is None and _read(target).count(b"\n") < lines:
            time.sleep(POLL_SECONDS)
        time.sleep(seconds)
        if job.poll() is not None:
            raise SystemExit(f"The job ended with {job.returncode} before line {lines}. Ask for more --lines.")
    finally:
        job.kill()
        job.wait()


def _read(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""


def _line(number: int, tokens: int) -> str:
    question = QUESTIONS[number % len(QUESTIONS)].format(number)
    body = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": tokens,
        "temperature": number % 2,
    }
    request = {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(request)


if __name__ == "__main__":
    main()
