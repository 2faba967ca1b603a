"""Records the built-in model's routing on the texts it was made with: what its predictor is trained on.

    python -m scripts.builtin.record_routing --tokens chats.npz --out routing.sqlite

Each row of tokens is read as a conversation of its own. A file that exists is added to; --rows 100:200 takes a part.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from engine import Engine
from engine.routing.traces.trace_store import TraceStore
from scripts.builtin.dense_forward import load_tokens

ROUTERS_AHEAD = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", default=":", help="first:end")
    args = parser.parse_args()
    first, end = (int(number) if number else None for number in args.rows.split(":"))
    rows = load_tokens(args.tokens)[first:end].tolist()
    with Engine.load(model="demo", budget="100%") as engine, TraceStore(args.out, engine.traced_model) as store:
        engine.record_to(store, ROUTERS_AHEAD, hidden=True)
        for number, row in enumerate(rows, start=1):
            engine.new_recorded_conversation()
            engine.logits(row)
            print(f"{number} of {len(rows)}", end="\r", flush=True)
        engine.record_to(None)
        if engine.recording_problem:
            raise SystemExit(engine.recording_problem)


if __name__ == "__main__":
    main()
