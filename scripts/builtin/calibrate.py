"""Routers, neuron masks and gains of the built-in model from calibration tokens, layer by layer, without training.

python -m scripts.builtin.calibrate --tokens chats.npz documentation.npz --out parts.npz
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
from scripts.builtin.layer_walk import Texts, walk_layers

EXPERTS, TOP_K = 16, 2
SAMPLE_TOKENS = 49_152  # enough to place 16 centres and to fit a router
GAIN_RIDGE = 0.05
SOFTNESS = 0.25  # on the fitted logits: a sharper router leaves the second expert nearly unused
MASK_ROUNDS = 2
LOAD_CAP = 1.8  # times the mean, in each kind of text by itself


@dataclass(frozen=True)
class Size:
    """Neurons of an expert, and of the part that all tokens share."""

    kept: int
    shared: int


@dataclass
class Layer:
    """Parts of one layer: router [experts, hidden], mask bool and gain [experts, intermediate].

    `shared` bool [intermediate] are the neurons that every token uses, outside of the experts.
    """

    router: torch.Tensor
    mask: torch.Tensor
    gain: torch.Tensor
    shared: torch.Tensor


def route(x: torch.Tensor, router: torch.Tensor) -> torch.Tensor:
    """Weight of each expert [tokens, experts], as Mixtral: softmax, the best two, renormalised."""
    top, index = (x @ router.T).softmax(-1).topk(TOP_K, dim=-1)
    return torch.zeros(len(x), EXPERTS).scatter_(1, index, top / top.sum(-1, keepdim=True))


def largest_load(routing: torch.Tensor, kinds: list[slice]) -> torch.Tensor:
    """Load of each expert over the mean [experts], in the kind of text where it is busiest."""
    chosen = (routing > 0).float() * EXPERTS / TOP_K
    return torch.stack([chosen[kind].mean(0) for kind in kinds]).amax(0)


def cap_load(
    router: torch.Tensor, x: torch.Tensor, kinds: list[slice], most: float = LOAD_CAP, rounds: int = 60
) -> torch.Tensor:
    """``router`` with experts busier than ``most`` times the mean in some kind of text turned down until they are not.

    There is no bias to turn, but a direction of ``x`` [tokens, hidden] whose product is about one for every
    token serves as well.
    """
    gram = x.T @ x / len(x)
    gram.diagonal().add_(0.02 * gram.diagonal().mean())
    constant = torch.linalg.solve(gram, x.mean(0))
    step = (x @ router.T).std() * 0.2
    for _ in range(rounds):
        excess = (largest_load(route(x, router), kinds) - most).clamp(0, 1)
        if not excess.any():
            break
        router = router - step * excess[:, None] * constant
    return router


def largest(values: torch.Tensor, count: int) -> torch.Tensor:
    """bool, shaped as ``values``: the ``count`` largest of each row."""
    index = values.topk(count, dim=-1).indices
    return torch.zeros_like(values, dtype=torch.bool).scatter_(-1, index, True)


def choose_neurons(energy: torch.Tensor, routing: torch.Tensor, kept: int) -> torch.Tensor:
    """The ``kept`` neurons of each expert: bool [experts, intermediate].

    First those with the most energy [tokens, intermediate] on the expert's tokens, then, in rounds, those that
    take most off the energy lost, given what the other expert of each token keeps.
    """
    mask = largest(routing.T @ energy, kept)
    squared = routing.pow(2).T @ energy
    for _ in range(MASK_ROUNDS):
        missing = 1 - routing @ mask.float()
        benefit = 2 * routing.T @ (energy * missing) + (2 * mask.float() - 1) * squared
        mask = largest(benefit, kept)
    return mask


def fit_gains(energy: torch.Tensor, routing: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Factors [experts, intermediate] on kept neurons that make up for experts that lack them.

    Of a token's two experts often only one holds a neuron, which then counts by that expert's weight instead
    of one. For each neuron: least squares towards one over the tokens, weighted with the neuron's energy
    [tokens, intermediate] there.
    """
    first, second = torch.triu_indices(EXPERTS, EXPERTS)
    pairs = energy.T @ (routing[:, first] * routing[:, second])
    gram = torch.zeros(energy.shape[1], EXPERTS, EXPERTS)
    gram[:, first, second] = pairs
    gram[:, second, first] = pairs
    kept = mask.T.float()
    target = energy.T @ routing * kept
    ridge = GAIN_RIDGE * target.mean(1, keepdim=True) + 1e-12
    gram = gram * kept[:, :, None] * kept[:, None, :] + torch.diag_embed(ridge.expand(-1, EXPERTS))
    solved = torch.linalg.solve(gram, target + ridge)
    return torch.where(mask, solved.T.clamp(0.5, 2), 1)


def calibrate_layer(
    x: torch.Tensor,
    active: torch.Tensor,
    down: torch.Tensor,
    kinds: list[slice],
    size: Size,
    generator: torch.Generator,
) -> Layer:
    """Parts of a layer from its inputs ``x`` [tokens, hidden] and activations [tokens, intermediate].

    ``kinds`` are the ranges of tokens that hold one kind of text each.
    """
    sample = torch.randperm(len(x), generator=generator)[:SAMPLE_TOKENS]
    router = SOFTNESS * fit_router(x[sample], balanced_kmeans(x[sample], EXPERTS, generator), EXPERTS)
    router = cap_load(router, x, kinds)
    routing = route(x, router)
    energy = active.pow(2) * down.pow(2).sum(0)
    shared = largest(energy.sum(0), size.shared)
    energy[:, shared] = 0  # no expert wants what is there anyway
    mask = choose_neurons(energy, routing, size.kept)
    return Layer(router, mask, fit_gains(energy, routing, mask), shared)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=Path, nargs="+", required=True, help="a file for each kind of text")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kept", type=int, default=1344, help="neurons of an expert")
    parser.add_argument("--shared", type=int, default=0, help="neurons that every token uses, to compare with")
    args = parser.parse_args()
    size = Size(args.kept, args.shared)
    generator = torch.Generator().manual_seed(0)
    texts = Texts.read(args.tokens)
    layers = []
    for walked in walk_layers(texts):
        started = time.perf_counter()
        x, down = walked.x, walked.weights["down"]
        active = F.silu(walked.gate).mul_(walked.up)
        layers.append(calibrate_layer(x, active, down, texts.kinds, size, generator))
        report(walked.index, layers[-1], x[::8], active[::8], walked.output[::8], down)
        print(f"busiest {largest_load(route(x, layers[-1].router), texts.kinds).max():.2f}", end=", ")
        print(f"{time.perf_counter() - started:.0f} s", flush=True)
    np.savez(
        args.out,
        tokens=texts.tokens,
        routers=torch.stack([layer.router for layer in layers]).numpy(),
        masks=torch.stack([layer.mask for layer in layers]).numpy(),
        gains=torch.stack([layer.gain for layer in layers]).numpy(),
        shared=torch.stack([layer.shared for layer in layers]).numpy(),
    )


def report(
    index: int, layer: Layer, x: torch.Tensor, active: torch.Tensor, dense: torch.Tensor, down: torch.Tensor
) -> None:
    """Relative error of the layer's output, without gains and with them, and how even the load is."""
    routing = route(x, layer.router)
    errors = [
        float(F.linear(active * (routing @ scales + layer.shared - 1), down).norm() / dense.norm())
        for scales in (layer.mask.float(), layer.mask * layer.gain)
    ]
    load = (routing > 0).float().mean(0) * EXPERTS / TOP_K
    print(
        f"layer {index}: error {errors[0]:.3f}, with gains {errors[1]:.3f}, load {load.min():.2f}-{load.max():.2f}",
        end=", ",
    )


if __name__ == "__main__":
    main()
