"""A recipe of two layers with six experts each, quick to build, with corrections whatever the shipped one has."""

from __future__ import annotations

import dataclasses

import numpy as np

from engine.checkpoint.builtin.corrections import quantise
from engine.checkpoint.builtin.recipe import Recipe, load_recipe

LAYERS, EXPERTS, RANK = 2, 6, 3


def make_small_recipe() -> Recipe:
    full = load_recipe()
    cut = {name: getattr(full, name)[:LAYERS, :EXPERTS] for name in ("routers", "masks", "gains")}
    widths = {"gate": (full.hidden_size, full.kept_neurons), "up": (full.hidden_size, full.kept_neurons)}
    widths["down"] = widths["gate"][::-1]
    random = np.random.default_rng(0)
    corrections = {
        name: quantise(
            random.normal(size=(LAYERS, EXPERTS, RANK, width_in)).astype(np.float32),
            0.01 * random.normal(size=(LAYERS, EXPERTS, width_out, RANK)).astype(np.float32),
        )
        for name, (width_in, width_out) in widths.items()
    }
    return dataclasses.replace(full, corrections=corrections, **cut)
