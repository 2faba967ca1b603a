"""Passages of documentation from Debian packages, tokenised: for calibration, and (other documents) held out.

    apt-get install python3.11-doc git-doc debian-policy debian-reference-en developers-reference \
        postgresql-doc-15 sqlite3-doc
    python -m scripts.builtin.collect_documentation --out documentation.npz --passages 48
    python -m scripts.builtin.collect_documentation --held-out assets/heldout/documentation.jsonl
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from engine.checkpoint.builtin.dense import dense_gguf_path

PYTHON = "/usr/share/doc/python3.11/html/_sources"
POSTGRESQL = "/usr/share/doc/postgresql-doc-15/html"
SQLITE = "/usr/share/doc/sqlite3"

# Held-out texts ship with the project, so they come from permissively licensed documents only.
HELD_OUT = {
    "PSF-2.0": [f"{PYTHON}/{name}.rst.txt" for name in (
        "howto/sockets", "howto/unicode", "howto/functional", "howto/regex", "tutorial/classes",
        "tutorial/errors", "tutorial/stdlib", "faq/design", "library/asyncio-task", "library/heapq",
        "library/csv", "library/fractions")],
    "PostgreSQL": [f"{POSTGRESQL}/{name}.html" for name in (
        "tutorial-agg", "tutorial-join", "mvcc-intro", "routine-vacuuming", "indexes-multicolumn",
        "wal-intro", "explicit-locking", "ddl-partitioning")],
    "blessing": [f"{SQLITE}/{name}.html" for name in (
        "atomiccommit", "howtocorrupt", "whentouse", "withoutrowid", "isolation", "faq")],
}  # fmt: skip

CALIBRATION = [
    (PYTHON, "**/*.rst.txt", 3),
    (POSTGRESQL, "*.html", 2),
    (SQLITE, "*.html", 1),
    ("/usr/share/doc/git-doc", "*.txt", 1),
    ("/usr/share/doc/debian-policy", "*.txt.gz", 1),
    ("/usr/share/debian-reference", "*.en.html", 1),
    ("/usr/share/developers-reference/_sources", "*.rst.txt", 1),
]  # folder, pattern, weight
PASSAGE_TOKENS = 320


class _Text(HTMLParser):
    SKIPPED = {"script", "style", "head", "svg"}
    BREAKS = {"p", "div", "li", "tr", "pre", "h1", "h2", "h3", "h4", "br", "dt", "dd", "table"}

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._skipping = self._verbatim = 0

    def handle_starttag(self, tag, attrs) -> None:
        self._skipping += tag in self.SKIPPED
        self._verbatim += tag == "pre"
        if tag in self.BREAKS:
            self.parts.append("\n")

    def handle_endtag(self, tag) -> None:
        self._skipping -= tag in self.SKIPPED
        self._verbatim -= tag == "pre"
        if tag in self.BREAKS:
            self.parts.append("\n")

    def handle_data(self, data) -> None:
        if not self._skipping:
            self.parts.append(data if self._verbatim else re.sub(r"\s+", " ", data))


def read_document(path: Path) -> str:
    """Plain text of a .txt, .txt.gz or .html file, without long runs of blank lines."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text = data.decode("utf-8", errors="replace")
    if path.suffix == ".html":
        parser = _Text()
        parser.feed(text)
        text = "".join(parser.parts)
    text = "\n".join(line.rstrip() for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def excerpt(text: str, characters: int, chooser: random.Random) -> str:
    """A passage that begins at a paragraph, from anywhere in the document."""
    starts = [0] + [match.end() for match in re.finditer(r"\n\n", text)]
    room = [start for start in starts if len(text) - start >= characters]
    start = chooser.choice(room) if room else 0
    return text[start : start + characters]


def held_out_passages(chooser: random.Random) -> list[dict[str, str]]:
    passages = []
    for licence, names in HELD_OUT.items():
        for name in names:
            text = excerpt(read_document(Path(name)), 3000, chooser)
            passages.append({"source": name.removeprefix("/usr/share/doc/"), "licence": licence, "text": text})
    return passages


def calibration_tokens(count: int, tokenizer, chooser: random.Random) -> np.ndarray:
    """int32 [count, PASSAGE_TOKENS] from documents that are not held out."""
    held_out = {name for names in HELD_OUT.values() for name in names}
    pools = []
    for folder, pattern, weight in CALIBRATION:
        files = sorted(path for path in Path(folder).glob(pattern) if str(path) not in held_out)
        if not files:
            raise SystemExit(f"{folder} has no {pattern}: install the packages named above")
        pools.append((files, weight))
    rows: list[list[int]] = []
    while len(rows) < count:
        files, _ = chooser.choices(pools, weights=[weight for _, weight in pools])[0]
        text = excerpt(read_document(chooser.choice(files)), 2400, chooser)
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) >= PASSAGE_TOKENS:
            rows.append(ids[:PASSAGE_TOKENS])
    return np.array(rows, dtype=np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where calibration tokens go (.npz)")
    parser.add_argument("--held-out", type=Path, help="where held-out passages go (.jsonl)")
    parser.add_argument("--passages", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.held_out:
        lines = [json.dumps(p, ensure_ascii=False) for p in held_out_passages(random.Random(args.seed))]
        args.held_out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if args.out:
        gguf = dense_gguf_path()
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        tokens = calibration_tokens(args.passages, tokenizer, random.Random(args.seed + 1))
        np.savez(args.out, tokens=tokens)


if __name__ == "__main__":
    main()
