"""Turns down the experts that training has left too busy in some kind of text.

    python -m scripts.builtin.cap_loads fitted.pt --tokens chats.npz documentation.npz --out capped.pt

Layer by layer, on the dense model's own streams, as in `fit_layers`; routers change by next to nothing elsewhere.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from scripts.builtin.calibrate import cap_load, largest_load, route
from scripts.builtin.layer_walk import Texts, walk_layers
from scripts.builtin.student import Trained

MOST = 1.7  # times the mean load; texts never seen are less even


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path, help="what fit_layers or distill wrote")
    parser.add_argument("--tokens", type=Path, nargs="+", required=True, help="a file for each kind of text")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    texts, trained = Texts.read(args.tokens), Trained.load(args.trained)
    for walked in walk_layers(texts):
        router = trained.layers[walked.index].get_parameter("router")
        capped = cap_load(router.detach(), walked.x, texts.kinds, MOST)
        busiest = [float(largest_load(route(walked.x, r), texts.kinds).max()) for r in (router, capped)]
        print(f"layer {walked.index}: busiest {busiest[0]:.2f} -> {busiest[1]:.2f}", flush=True)
        router.copy_(capped)
    trained.history["most_load"] = MOST
    trained.save(args.out)


if __name__ == "__main__":
    main()
