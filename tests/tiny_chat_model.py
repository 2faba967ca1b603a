"""A tiny random MoE checkpoint that can chat: every letter is a token."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import EOS_TOKEN_ID, VOCAB_SIZE, tiny_checkpoint

LETTERS = [chr(code) for code in range(32, 127)] + ["\n"]
CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


@cache
def tiny_chat_checkpoint() -> Path:
    """Folder of a Mixtral with a tokenizer and a chat template."""
    plain = tiny_checkpoint("mixtral")
    folder = plain.with_name("mixtral-chat")
    shutil.copytree(plain, folder)
    special = [f"<{number}>" for number in range(VOCAB_SIZE - len(LETTERS))]
    vocabulary = {token: number for number, token in enumerate(special + LETTERS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=special[0]))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=special[EOS_TOKEN_ID])
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder
