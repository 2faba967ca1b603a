"""Contender: the same transformers model with accelerate's disk offload of all weights."""

from __future__ import annotations

from typing import Any

from engine.lab.contender import serve
from engine.lab.peer_transformers import StockTransformers


class AccelerateDisk(StockTransformers):
    """Every module on disk; accelerate writes a copy of its own into `offload_folder` while loading."""

    def loading_options(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"device_map": {"": "disk"}, "offload_folder": request["offload_folder"]}


if __name__ == "__main__":
    serve(AccelerateDisk())
