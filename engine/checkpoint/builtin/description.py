"""The small files beside the weights: configuration, generation settings, tokenizer, model card."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path

from engine.checkpoint.builtin.dense import DenseWeights, dense_gguf_path
from engine.checkpoint.builtin.recipe import ASSETS_DIR, Recipe
from engine.checkpoint.model_card import CARD_NAME

END_OF_TEXT, MESSAGE_START, MESSAGE_END = 0, 1, 2  # SmolLM2's <|endoftext|>, <|im_start|>, <|im_end|>


def model_config(dense: DenseWeights, recipe: Recipe) -> dict[str, object]:
    """Contents of ``config.json``: Mixtral's architecture at SmolLM2's sizes."""
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "attention_dropout": 0.0,
        "bos_token_id": MESSAGE_START,
        "dtype": "bfloat16",
        "eos_token_id": MESSAGE_END,
        "head_dim": dense.hidden_size // dense.heads,
        "hidden_act": "silu",
        "hidden_size": dense.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": recipe.kept_neurons,
        "max_position_embeddings": dense.context_length,
        "num_attention_heads": dense.heads,
        "num_experts_per_tok": recipe.experts_per_token,
        "num_hidden_layers": recipe.layers,
        "num_key_value_heads": dense.kv_heads,
        "num_local_experts": recipe.experts,
        "output_router_logits": False,
        "pad_token_id": MESSAGE_END,
        "rms_norm_eps": dense.rms_norm_eps,
        "rope_theta": dense.rope_theta,
        "router_aux_loss_coef": 0.001,
        "router_jitter_noise": 0.0,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": dense.vocab_size,
    }


GENERATION_CONFIG = {
    "bos_token_id": MESSAGE_START,
    "eos_token_id": [MESSAGE_END, END_OF_TEXT],
    "pad_token_id": MESSAGE_END,
}


def json_bytes(content: dict[str, object]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def write_description(folder: Path, dense: DenseWeights, recipe: Recipe) -> None:
    """``config.json``, ``generation_config.json``, the model card, and the tokenizer with its chat template."""
    (folder / "config.json").write_bytes(json_bytes(model_config(dense, recipe)))
    (folder / "generation_config.json").write_bytes(json_bytes(GENERATION_CONFIG))
    (folder / CARD_NAME).write_bytes((ASSETS_DIR / CARD_NAME).read_bytes())
    for name, content in tokenizer_files(dense.context_length).items():
        (folder / name).write_bytes(content)


@cache  # the GGUF's vocabulary takes seconds to read
def tokenizer_files(context_length: int) -> dict[str, bytes]:
    """Name and content of the tokenizer's files, as transformers reads them from the GGUF."""
    from transformers import AutoTokenizer  # imports slowly; only a build needs it

    gguf = dense_gguf_path()
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    config = json.loads(files["tokenizer_config.json"])
    for key in ("is_local", "local_files_only"):
        config.pop(key, None)  # how it was read from the GGUF says nothing about the new files
    config["model_max_length"] = context_length
    return files | {"tokenizer_config.json": json_bytes(config)}
