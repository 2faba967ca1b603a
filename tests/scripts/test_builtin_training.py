"""Training of the built-in model's parts, on the first layers of the real dense model."""

from __future__ import annotations

import dataclasses
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.checkpoint.builtin import builder
from engine.checkpoint.builtin.dense import DenseWeights
from engine.checkpoint.builtin.recipe import load_recipe, save_recipe
from scripts.builtin import distill
from scripts.builtin.export_assets import trained_parts
from scripts.builtin.fit_layers import Fitting, batches, fit_layer, resume
from scripts.builtin.layer_walk import LayerPass, Texts, walk_layers
from scripts.builtin.student import DenseLayers, Student, Trained

LAYERS, EXPERTS, RANK = 2, 6, 3


@pytest.fixture(scope="module")
def dense() -> DenseLayers:
    """The dense model's embedding and first two layers."""
    dense = DenseLayers(context=64)
    dense.layers = dense.layers[:LAYERS]
    return dense


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """The shipped routers, masks and gains of some of those layers' experts, as `calibrate` writes them."""
    recipe = load_recipe()
    cut = {name: getattr(recipe, name)[:LAYERS, :EXPERTS] for name in ("routers", "masks", "gains")}
    path = tmp_path / "parts.npz"
    np.savez(path, tokens=1000, shared=np.zeros((LAYERS, recipe.masks.shape[-1]), bool), **cut)
    return path


def token_ids(rows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 49152, (rows, tokens)))


def test_what_is_exported_and_built_says_what_the_student_says(tmp_path: Path, dense, parts) -> None:
    from transformers import AutoModelForCausalLM

    trained = Trained.load(parts, RANK)
    torch.manual_seed(0)
    for layer in trained.layers:
        for outward in layer.outward.values():
            nn.init.normal_(outward, std=0.01)
    shipped, corrections = trained_parts(trained)
    names = ("routers", "masks", "gains")
    save_recipe(tmp_path / "assets", 9, 2, *(shipped[name] for name in names), corrections, provenance={})
    recipe = load_recipe(tmp_path / "assets")
    builder.build(tmp_path / "model", recipe, DenseWeights(), lambda *progress: None)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    ids = token_ids(1, 40)
    with torch.no_grad():
        student = dense.logits(list(Student(dense, trained.layers).streams(ids))[-1][0])
        plain = dense.logits(list(dense.streams(ids))[-1])
        built = model(ids).logits
    assert (built - student).norm() < 0.1 * (plain - student).norm()


def test_fitting_a_layer_brings_it_closer_to_the_dense_one(dense, parts) -> None:
    torch.manual_seed(0)
    layer, weights = Trained.load(parts, RANK).layers[1], dense.layers[1]
    with torch.no_grad():
        streams = list(dense.streams(token_ids(20, 60)))
        _, x = dense.attend(1, streams[0])
        x = x.flatten(0, 1)
        gate, up = F.linear(x, weights["gate"]), F.linear(x, weights["up"])
    length = streams[1].flatten(0, 1).norm(dim=-1, keepdim=True)
    walked = LayerPass(1, weights, x, gate, up, dense.feed_forward(1, x), length)
    kinds = [slice(0, 800), slice(800, 1200)]
    first, final = fit_layer(layer, walked, kinds, Fitting(RANK, 20, 200, 2e-3, 3e-4, 0.02, 0))
    assert final < 0.9 * first
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_a_batch_is_of_one_kind_of_text_and_no_token_comes_twice() -> None:
    found = list(batches([slice(0, 10), slice(10, 24)], 4))
    assert sorted(len({int(token) // 10 > 0 for token in batch}) for batch in found) == [1] * 5
    tokens = torch.cat(found).tolist()
    assert len(tokens) == len(set(tokens)) == 20 and set(tokens) <= set(range(24))


def test_walking_the_layers_gives_what_the_dense_model_computes(tmp_path: Path, dense) -> None:
    for name, rows in (("chats", 3), ("documentation", 2)):
        np.savez(tmp_path / name, tokens=token_ids(rows, 40).numpy())
    texts = Texts.read([tmp_path / "chats.npz", tmp_path / "documentation.npz"])
    assert (texts.tokens, texts.kinds) == (200, [slice(0, 120), slice(120, 200)])
    first, second = islice(walk_layers(texts), 2)
    _, x = dense.attend(1, torch.cat([list(dense.streams(block))[0] for block in texts.blocks]))
    torch.testing.assert_close(second.x, x.flatten(0, 1), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(second.output, dense.feed_forward(1, second.x), rtol=1e-3, atol=1e-4)
    assert first.stream_length.shape == (200, 1)


def test_fitting_goes_on_after_the_layer_it_stopped_at(tmp_path: Path, parts) -> None:
    out, settings = tmp_path / "fitted.pt", {"rank": RANK, "tokens": 7}
    trained, fitted = resume(out, parts, settings)
    assert (fitted, trained.rank) == (0, RANK)
    trained.history["fitting"] = settings | {"layers": 1}
    trained.save(out)
    assert resume(out, parts, settings)[1] == 1
    with pytest.raises(SystemExit, match="other settings"):
        resume(out, parts, settings | {"tokens": 8})


def test_distillation_learns_and_goes_on_where_it_stopped(tmp_path: Path, dense, parts) -> None:
    tokens = [token_ids(2, 30).numpy()]  # the same batch again and again
    training = distill.Training(10, 2, 5e-3, 3e-4, 0.2, 0.02, seed=0)

    def run(out: Path, steps: int | None = None) -> tuple[Trained, list[float]]:
        torch.manual_seed(training.seed)
        trained, losses = Trained.load(parts, RANK), []
        keep = lambda step, parts_of_loss: losses.append(parts_of_loss["kl"])  # noqa: E731
        distill.train(dense, trained, tokens, training, out, keep, lambda: len(losses) == steps)
        return trained, losses

    whole, losses = run(tmp_path / "whole.pt")
    assert len(losses) == 10
    assert losses[-1] < 0.9 * losses[0]
    with pytest.raises(SystemExit):
        run(tmp_path / "again.pt", steps=3)
    again, rest = run(tmp_path / "again.pt")
    assert rest == pytest.approx(losses[3:], rel=1e-3)
    for name, value in whole.layers.state_dict().items():
        torch.testing.assert_close(again.layers.state_dict()[name], value, rtol=1e-3, atol=1e-5)
    assert Trained.load(tmp_path / "again.pt").history["distillation"]["tokens"] == 10 * 2 * 30
    with pytest.raises(SystemExit, match="other settings"):
        other = dataclasses.replace(training, steps=7)
        distill.train(dense, again, tokens, other, tmp_path / "again.pt", lambda *_: None)
