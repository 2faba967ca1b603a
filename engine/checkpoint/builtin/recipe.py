"""What turns the dense model into experts: routers, neuron masks, gains, corrections, in ``assets/builtin``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from engine.checkpoint.builtin.corrections import MATRICES, Corrections
from engine.errors import BuildFailed

ASSETS_DIR = Path(__file__).resolve().parents[3] / "assets" / "builtin"
DESCRIPTION_NAME = "recipe.json"
PARTS_NAME = "parts.safetensors"
FORMAT = 3  # of the two files; `version` in the description counts the recipes written in it
_CORRECTION_PARTS = ("inward", "outward", "scale")
_REINSTALL = "get the program's files again; assets/builtin belongs to them"


@dataclass(frozen=True)
class Recipe:
    """Parts for every layer.

    routers: float32 [layers, experts, hidden]; masks: bool [layers, experts, intermediate], with the same number
    of neurons kept by every expert; gains: float32 [layers, experts, intermediate], factors on the kept columns
    of ``down_proj``; corrections: what is added to an expert's gate, up and down matrix, by name.
    """

    version: int
    experts_per_token: int
    routers: np.ndarray
    masks: np.ndarray
    gains: np.ndarray
    corrections: Mapping[str, Corrections]
    digest: str

    @property
    def layers(self) -> int:
        return len(self.routers)

    @property
    def experts(self) -> int:
        return self.routers.shape[1]

    @property
    def hidden_size(self) -> int:
        return self.routers.shape[2]

    @property
    def kept_neurons(self) -> int:
        """Of an expert."""
        return int(self.masks[0, 0].sum())

    @property
    def identity(self) -> str:
        """Names the result: equal identities build equal bytes."""
        return f"v{self.version}-{self.digest[:8]}"


def load_recipe(folder: Path = ASSETS_DIR) -> Recipe:
    """Read and check the assets. Raises BuildFailed when they are missing, damaged or of a newer format."""
    try:
        description = json.loads((folder / DESCRIPTION_NAME).read_text(encoding="utf-8"))
        data = (folder / PARTS_NAME).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if description["format"] != FORMAT:
            raise BuildFailed(
                f"the built-in model's assets have format {description['format']}, this program reads {FORMAT}",
                _REINSTALL,
            )
        if description["parts_sha256"] != digest:
            raise BuildFailed(f"{folder / PARTS_NAME} does not match its description", _REINSTALL)
        parts = load(data)
        recipe = Recipe(
            version=description["version"],
            experts_per_token=description["experts_per_token"],
            routers=parts["routers"].astype(np.float32),
            masks=np.unpackbits(parts["masks"], axis=-1).astype(bool),
            gains=parts["gains"].astype(np.float32),
            corrections={
                name: Corrections(*(parts[f"{name}.{part}"] for part in _CORRECTION_PARTS)) for name in MATRICES
            },
            digest=digest,
        )
    except (OSError, ValueError, KeyError) as error:
        raise BuildFailed(f"the built-in model's assets in {folder} cannot be read: {error}", _REINSTALL) from error
    _check_shapes(recipe, folder)
    return recipe


def _check_shapes(recipe: Recipe, folder: Path) -> None:
    """Raises BuildFailed where parts do not fit each other."""
    layers, experts, hidden = recipe.routers.shape
    kept = recipe.kept_neurons
    sizes = {"gate": (kept, hidden), "up": (kept, hidden), "down": (hidden, kept)}
    fits = (recipe.masks.sum(-1) == kept).all() and recipe.gains.shape == recipe.masks.shape
    for name, (width_out, width_in) in sizes.items():
        corrections = recipe.corrections[name]
        rank = corrections.scale.shape[-1]
        fits &= corrections.scale.shape == (layers, experts, rank)
        fits &= corrections.inward.shape == (layers, experts, rank, width_in)
        fits &= corrections.outward.shape == (layers, experts, width_out, rank)
    if not fits:
        raise BuildFailed(f"the experts described in {folder} are not all of one size", _REINSTALL)


def save_recipe(
    folder: Path,
    version: int,
    experts_per_token: int,
    routers: np.ndarray,
    masks: np.ndarray,
    gains: np.ndarray,
    corrections: Mapping[str, Corrections],
    provenance: Mapping[str, object],
) -> None:
    """Write the assets in their shipped form: routers and gains as float16, neurons as bits, corrections as int8."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, np.ndarray] = {
        "routers": routers.astype(np.float16),
        "masks": np.packbits(masks, axis=-1),
        "gains": gains.astype(np.float16),
    }
    for name in MATRICES:
        parts |= {f"{name}.{part}": getattr(corrections[name], part) for part in _CORRECTION_PARTS}
    data = save({name: np.ascontiguousarray(part) for name, part in parts.items()})  # save takes memory as it lies
    (folder / PARTS_NAME).write_bytes(data)
    description = {
        "format": FORMAT,
        "version": version,
        "experts_per_token": experts_per_token,
        "parts_sha256": hashlib.sha256(data).hexdigest(),
        "provenance": provenance,
    }
    (folder / DESCRIPTION_NAME).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
