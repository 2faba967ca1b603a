"""Quantising streams, and a quantised model stays within its plan, by the system's own accounting."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from engine.hardware.memory_plan import MIB


def large_checkpoint(folder) -> int:
    """Writes a Mixtral of 32 experts of 3 MB (bf16) each; returns the bytes of its experts."""
    config = MixtralConfig(
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=1000,
        num_local_experts=8,
        max_position_embeddings=2048,
    )
    with torch.device("meta"):
        model = MixtralForCausalLM(config).to(torch.bfloat16)
    noise = (torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) / 50).bfloat16()
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.copy_(noise.repeat(-(-parameter.numel() // len(noise)))[: parameter.numel()].view_as(parameter))
    model.save_pretrained(folder)
    return sum(p.nbytes for name, p in model.named_parameters() if ".experts." in name)


@pytest.mark.parametrize("precision", ("int8", "nf4"))
def test_quantising_and_running_stay_within_their_memory(precision, tmp_path):
    native_bytes = large_checkpoint(tmp_path / "model")
    command = [
        sys.executable,
        "-m",
        "tests.checkpoint.measure_quantising",
        str(tmp_path / "model"),
        str(tmp_path / "home"),
        precision,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["quantising_peak"] < 0.6 * native_bytes, report
    assert len(report["runs"]) == 3
    for run in report["runs"]:
        assert run["peak"] <= run["plan"] + max(run["plan"] // 10, 64 * MIB), report
