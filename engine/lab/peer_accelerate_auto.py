"""Contender: the same transformers model spread by accelerate over the card, RAM and disk (`device_map="auto"`)."""

from __future__ import annotations

from typing import Any

from engine.lab.contender import serve
from engine.lab.peer_transformers import StockTransformers


class AccelerateOffload(StockTransformers):
    """What does not fit into `card_bytes` goes to RAM, up to `ram_bytes`, and then to `offload_folder`."""

    def loading_options(self, request: dict[str, Any]) -> dict[str, Any]:
        limits: dict[int | str, int] = {"cpu": request["ram_bytes"]}
        if (card := str(request["device"])).startswith("cuda"):
            limits[int(card.partition(":")[2] or 0)] = request["card_bytes"]
        return {"device_map": "auto", "max_memory": limits, "offload_folder": request["offload_folder"]}


if __name__ == "__main__":
    serve(AccelerateOffload())
