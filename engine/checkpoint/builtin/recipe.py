"""What turns the dense model into experts: routers, neuron masks and gains, shipped in ``assets/builtin``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from engine.errors import BuildFailed

ASSETS_DIR = Path(__file__).resolve().parents[3] / "assets" / "builtin"
DESCRIPTION_NAME = "recipe.json"
PARTS_NAME = "parts.safetensors"
FORMAT = 1  # of the two files; `version` in the description counts the recipes written in it
_REINSTALL = "get the program's files again; assets/builtin belongs to them"


@dataclass(frozen=True)
class Recipe:
    """Parts for every layer.

    routers: float32 [layers, experts, hidden]; masks: bool [layers, experts, intermediate], with the same number
    of neurons kept by every expert; gains: float32 [layers, experts, intermediate], factors on the kept columns
    of ``down_proj``.
    """

    version: int
    experts_per_token: int
    routers: np.ndarray
    masks: np.ndarray
    gains: np.ndarray
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
            digest=digest,
        )
    except (OSError, ValueError, KeyError) as error:
        raise BuildFailed(f"the built-in model's assets in {folder} cannot be read: {error}", _REINSTALL) from error
    kept = recipe.masks.sum(-1)
    if (kept != recipe.kept_neurons).any() or recipe.gains.shape != recipe.masks.shape:
        raise BuildFailed(f"the experts described in {folder} are not all of one size", _REINSTALL)
    return recipe


def save_recipe(
    folder: Path,
    version: int,
    experts_per_token: int,
    routers: np.ndarray,
    masks: np.ndarray,
    gains: np.ndarray,
    provenance: dict[str, object],
) -> None:
    """Write the assets in their shipped form: routers and gains as float16, masks as bits."""
    folder.mkdir(parents=True, exist_ok=True)
    data = save(
        {
            "routers": routers.astype(np.float16),
            "masks": np.packbits(masks, axis=-1),
            "gains": gains.astype(np.float16),
        }
    )
    (folder / PARTS_NAME).write_bytes(data)
    description = {
        "format": FORMAT,
        "version": version,
        "experts_per_token": experts_per_token,
        "parts_sha256": hashlib.sha256(data).hexdigest(),
        "provenance": provenance,
    }
    (folder / DESCRIPTION_NAME).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
