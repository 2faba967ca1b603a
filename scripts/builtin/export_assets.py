"""Calibrated or trained parts in their shipped form: python -m scripts.builtin.export_assets trained.pt --version 3"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from engine.checkpoint.builtin.corrections import MATRICES, Corrections, quantise
from engine.checkpoint.builtin.dense import GGUF_NAME
from engine.checkpoint.builtin.recipe import ASSETS_DIR, save_recipe
from scripts.builtin.calibrate import TOP_K
from scripts.builtin.student import Trained

Parts = Mapping[str, np.ndarray]


def trained_parts(trained: Trained) -> tuple[Parts, Mapping[str, Corrections]]:
    """Routers, masks and gains; corrections."""

    def stacked(name: str) -> np.ndarray:
        return np.stack([layer.get_parameter(name).detach().numpy() for layer in trained.layers])

    parts = {"masks": trained.parts["masks"], "routers": stacked("router"), "gains": stacked("gain")}
    factors = {name: (stacked(f"inward.{name}"), stacked(f"outward.{name}")) for name in MATRICES}
    return parts, _kept_corrections(factors, parts["masks"])


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", type=Path)
    parser.add_argument("--version", type=int, required=True, help="of the recipe, counted up with every change")
    parser.add_argument("--out", type=Path, default=ASSETS_DIR)
    args = parser.parse_args()
    trained = Trained.load(args.parts)
    if trained.parts["shared"].any():
        raise SystemExit("The built-in model has no shared part: calibrate with --shared 0.")
    parts, corrections = trained_parts(trained)
    provenance = {
        "carved_from": f"{GGUF_NAME} (SmolLM2-135M-Instruct, Apache-2.0)",
        "texts": "chats sampled from that model; documentation packages of Debian 12",
        "made_by": "scripts/builtin, as its README describes",
        **trained.history,
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
