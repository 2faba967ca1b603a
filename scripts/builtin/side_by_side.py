"""Greedy answers of the dense and the built-in model to held-out prompts: python -m scripts.builtin.side_by_side

Writes docs/answers.md for people to read: perplexity does not say whether an answer makes sense.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import Engine
from engine.checkpoint.builtin import builtin_path
from engine.checkpoint.builtin.dense import dense_gguf_path
from scripts.builtin.prompts import PromptSource

OUT = Path(__file__).resolve().parents[2] / "docs" / "answers.md"
INTRODUCTION = """\
# Answers side by side

Greedy answers, at most {tokens} tokens, of SmolLM2-135M-Instruct (the packaged Q4_1 file: "dense") and of the
built-in model made from it ({name}), to {prompts} prompts whose topics and wording were used for no calibration and
no training. Made by `python -m scripts.builtin.side_by_side`.

"""


def held_out_prompts(count: int, seed: int) -> list[str]:
    """Different opening messages."""
    source, prompts = PromptSource(held_out=True, seed=seed), []
    while len(prompts) < count:
        prompt = source.opening()
        if prompt is not None and prompt not in prompts:
            prompts.append(prompt)
    return prompts


@torch.inference_mode()
def dense_answers(prompts: list[str], tokens: int) -> list[str]:
    """All prompts in one batch, padded on the left."""
    gguf = dense_gguf_path()
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**batch, max_new_tokens=tokens, do_sample=False)
    return tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def built_in_answers(prompts: list[str], tokens: int) -> list[str]:
    with Engine.load("demo", budget="100%") as engine:
        return [
            "".join(
                event.text
                for event in engine.chat([{"role": "user", "content": prompt}], max_new_tokens=tokens, temperature=0.0)
            )
            for prompt in prompts
        ]


def quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.strip().splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    prompts = held_out_prompts(args.prompts, args.seed)
    answers = zip(prompts, dense_answers(prompts, args.tokens), built_in_answers(prompts, args.tokens), strict=True)
    text = INTRODUCTION.format(tokens=args.tokens, prompts=args.prompts, name=builtin_path().name)
    for number, (prompt, dense, ours) in enumerate(answers, start=1):
        text += f"## {number}. {prompt}\n\ndense:\n\n{quoted(dense)}\n\nbuilt-in:\n\n{quoted(ours)}\n\n"
    args.out.write_text(text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
