"""Sampled held-out chats as the JSON lines that ship with the project.

python -m scripts.builtin.sample_chats --held-out --seed 777 --batches 1 --tokens 320 --out held_out.npz
python -m scripts.builtin.export_held_out held_out.npz assets/heldout/chats.jsonl
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from engine.checkpoint.builtin.dense import dense_gguf_path
from scripts.builtin.dense_forward import load_tokens

MESSAGE = re.compile(r"<\|im_start\|>(\w+)\n(.*?)(<\|im_end\|>|\Z)", re.DOTALL)


def chat_record(text: str) -> dict[str, Any]:
    """Messages of a rendered chat, and whether the last one was finished before the sample was cut off."""
    found = MESSAGE.findall(text)
    messages = [{"role": role, "content": content} for role, content, _ in found]
    return {"messages": messages, "complete": bool(found[-1][2])}


def main() -> None:
    source, target = map(Path, sys.argv[1:3])
    gguf = dense_gguf_path()
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    texts = [tokenizer.decode(row.tolist(), skip_special_tokens=False) for row in load_tokens(str(source))]
    # A row cut off in the middle of a letter or of a message's head has no exact text.
    records = [chat_record(text) for text in texts if not text.endswith("\ufffd")]
    lines = [json.dumps(record, ensure_ascii=False) for record in records if record["messages"]]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} chats, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
