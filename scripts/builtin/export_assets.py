"""Calibrated or trained parts in their shipped form: python -m scripts.builtin.export_assets trained.pt --version 3"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from engine.checkpoint.builtin.corrections import MATRICES, Corrections, quantise
from engine.checkpoint.builtin.dense import GGUF_NAME
from engine.checkpoint.builtin.recipe import ASSETS_DIR, save_recipe
from scripts.builtin.calibrate import TOP_K

Parts = Mapping[str, np.ndarray]


def read_parts(path: Path) -> tuple[Parts, Mapping[str, Corrections], Mapping[str, object]]:
    """Routers, masks and gains, corrections, and what they were made with, of what `calibrate` or `distill` wrote."""
    if path.suffix == ".npz":
        parts = dict(np.load(path))
        return parts, _no_corrections(parts["masks"], parts["routers"].shape[-1]), {}
    saved = torch.load(path, weights_only=False)
    state = {name: value.numpy() for name, value in saved["student"].items()}
    layers = range(len(saved["parts"]["routers"]))

    def stacked(name: str) -> np.ndarray:
        return np.stack([state[f"layers.{layer}.{name}"] for layer in layers])

    parts = dict(saved["parts"]) | {"routers": stacked("router"), "gains": stacked("gain")}
    factors = {name: (stacked(f"inward.{name}"), stacked(f"outward.{name}")) for name in MATRICES}
    return (
        parts,
        _kept_corrections(factors, parts["masks"]),
        {"training": saved["training"], "trained_tokens": saved["tokens"]},
    )


def _kept_corrections(
    factors: Mapping[str, tuple[np.ndarray, np.ndarray]], masks: np.ndarray
) -> dict[str, Corrections]:
    """The factors in eight bits, without the neurons that an expert does not keep."""

    layers, experts, _ = masks.shape
    kept_neurons = int(masks[0, 0].sum())

    def kept(values: np.ndarray) -> np.ndarray:
        """[layers, experts, kept, rank] of [layers, experts, intermediate, rank]."""
        return values[masks].reshape(layers, experts, kept_neurons, values.shape[-1])

    quantised = {name: quantise(factors[name][0], kept(factors[name][1])) for name in ("gate", "up")}
    inward, outward = factors["down"]
    return quantised | {"down": quantise(kept(inward.swapaxes(-1, -2)).swapaxes(-1, -2), outward)}


def _no_corrections(masks: np.ndarray, hidden: int) -> dict[str, Corrections]:
    layers, experts, intermediate = masks.shape
    narrow, wide = (np.zeros((layers, experts, 0, width), np.float32) for width in (hidden, intermediate))
    factors = {"gate": (narrow, wide), "up": (narrow, wide), "down": (wide, narrow)}
    return _kept_corrections({name: (i, o.swapaxes(-1, -2)) for name, (i, o) in factors.items()}, masks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", type=Path)
    parser.add_argument("--version", type=int, required=True, help="of the recipe, counted up with every change")
    parser.add_argument("--out", type=Path, default=ASSETS_DIR)
    args = parser.parse_args()
    parts, corrections, training = read_parts(args.parts)
    provenance = {
        "carved_from": f"{GGUF_NAME} (SmolLM2-135M-Instruct, Apache-2.0)",
        "calibrated_on": "chats sampled from that model; documentation packages of Debian 12",
        "calibration_tokens": int(parts["tokens"]),
        "made_by": "scripts/builtin, as its README describes",
        **training,
    }
    save_recipe(
        args.out,
        args.version,
        TOP_K,
        parts["routers"],
        parts["masks"],
        parts["gains"],
        corrections,
        provenance,
    )
    print(f"{sum(path.stat().st_size for path in args.out.iterdir())} bytes in {args.out}")


if __name__ == "__main__":
    main()
