"""Calibrated parts in their shipped form: python -m scripts.builtin.export_assets parts.npz --version 1"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from engine.checkpoint.builtin.dense import GGUF_NAME
from engine.checkpoint.builtin.recipe import ASSETS_DIR, save_recipe
from scripts.builtin.calibrate import TOP_K


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", type=Path)
    parser.add_argument("--version", type=int, required=True, help="of the recipe, counted up with every change")
    parser.add_argument("--out", type=Path, default=ASSETS_DIR)
    args = parser.parse_args()
    parts = np.load(args.parts)
    provenance = {
        "carved_from": f"{GGUF_NAME} (SmolLM2-135M-Instruct, Apache-2.0)",
        "calibrated_on": "chats sampled from that model; documentation packages of Debian 12",
        "calibration_tokens": int(parts["tokens"]),
        "made_by": "scripts/builtin, as its README describes",
    }
    save_recipe(args.out, args.version, TOP_K, parts["routers"], parts["masks"], parts["gains"], provenance)
    print(f"{sum(path.stat().st_size for path in args.out.iterdir())} bytes in {args.out}")


if __name__ == "__main__":
    main()
