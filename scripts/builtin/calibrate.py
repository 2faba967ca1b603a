"""Routers and neuron masks of the built-in model from calibration tokens, layer by layer, without training.

python -m scripts.builtin.calibrate --tokens chats.npz documentation.npz --out assets/builtin
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from scripts.builtin.clustering import balanced_kmeans, fit_router
from scripts.builtin.dense_forward import DenseForward, load_tokens, rms_norm

EXPERTS, TOP_K, KEPT_NEURONS = 16, 2, 1280


@dataclass
class Layer:
    """Parts of one layer: router [experts, hidden], mask bool and gain [experts, intermediate]."""

    router: torch.Tensor
    mask: torch.Tensor
    gain: torch.Tensor

    def neuron_scales(self, routing: torch.Tensor) -> torch.Tensor:
        """What the chosen experts together multiply each neuron by: [tokens, intermediate]."""
        return routing @ (self.mask * self.gain)


def route(x: torch.Tensor, router: torch.Tensor) -> torch.Tensor:
    """Weight of each expert [tokens, experts], as Mixtral: softmax, the best two, renormalised."""
    top, index = (x @ router.T).softmax(-1).topk(TOP_K, dim=-1)
    return torch.zeros(len(x), EXPERTS).scatter_(1, index, top / top.sum(-1, keepdim=True))


def activations(x: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """What goes into ``down_proj``: [tokens, intermediate]."""
    return F.silu(F.linear(x, weights["gate"])).mul_(F.linear(x, weights["up"]))


def strongest_neurons(energy: torch.Tensor) -> torch.Tensor:
    """bool [experts, intermediate]: the KEPT_NEURONS largest of each row."""
    index = energy.topk(KEPT_NEURONS, dim=1).indices
    return torch.zeros_like(energy, dtype=torch.bool).scatter_(1, index, True)


def calibrate_layer(x: torch.Tensor, active: torch.Tensor, down: torch.Tensor, generator: torch.Generator) -> Layer:
    """Parts of a layer from its inputs ``x`` [tokens, hidden] and activations [tokens, intermediate]."""
    router = fit_router(x, balanced_kmeans(x, EXPERTS, generator), EXPERTS)
    energy = route(x, router).T @ active.pow(2) * down.pow(2).sum(0)
    return Layer(router, strongest_neurons(energy), torch.ones_like(energy))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    blocks = [row for path in args.tokens for row in torch.from_numpy(load_tokens(path)).long().split(16)]
    model = DenseForward(16, max(block.shape[1] for block in blocks))
    streams = [F.embedding(block, model.embedding) for block in blocks]
    layers = []
    for index, weights in enumerate(model.layers):
        started = time.perf_counter()
        with torch.no_grad():
            for x in streams:
                x += model.attention(index, rms_norm(x, weights["input_layernorm"], model.eps), 0)
            inputs = [rms_norm(x, weights["post_attention_layernorm"], model.eps) for x in streams]
            x = torch.cat([block.flatten(0, 1) for block in inputs])
            active = activations(x, weights)
            layer = calibrate_layer(x, active, weights["down"], generator)
            routing = route(x, layer.router)
            dense = F.linear(active, weights["down"])
            lost = F.linear(active * (layer.neuron_scales(routing) - 1), weights["down"]).norm() / dense.norm()
            for stream, output in zip(streams, dense.split([s[..., 0].numel() for s in streams]), strict=True):
                stream += output.view_as(stream)
        layers.append(layer)
        load = (routing > 0).float().mean(0) * EXPERTS / TOP_K
        seconds = time.perf_counter() - started
        print(f"layer {index}: error {lost:.3f}, load {load.min():.2f}-{load.max():.2f}, {seconds:.0f} s")
    np.savez(
        args.out,
        routers=torch.stack([layer.router for layer in layers]).numpy(),
        masks=torch.stack([layer.mask for layer in layers]).numpy(),
        gains=torch.stack([layer.gain for layer in layers]).numpy(),
    )


if __name__ == "__main__":
    main()
