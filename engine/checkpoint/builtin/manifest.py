"""The list of a finished build's files, written last: a folder without a matching one is not a model."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

MANIFEST_NAME = "expertflow-build.json"
SAMPLE_BYTES = 1 << 20


def cheap_digest(path: Path) -> str:
    """Digest of a file's first and last MiB: finds truncated and unwritten files at little cost."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        digest.update(file.read(SAMPLE_BYTES))
        file.seek(max(0, path.stat().st_size - SAMPLE_BYTES))
        digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def write_manifest(folder: Path, identity: str) -> None:
    """Flush every file of ``folder`` to the disk, then list them."""
    files = {}
    for path in sorted(folder.iterdir()):
        _flush(path)
        files[path.name] = {"bytes": path.stat().st_size, "digest": cheap_digest(path)}
    manifest = folder / MANIFEST_NAME
    manifest.write_text(json.dumps({"identity": identity, "files": files}, indent=2) + "\n", encoding="utf-8")
    _flush(manifest)
    flush_folder(folder)


def matches_manifest(folder: Path) -> bool:
    """Whether ``folder`` holds a manifest and every file that it lists, in the listed size and content."""
    try:
        files = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))["files"]
        return all(
            (folder / name).stat().st_size == listed["bytes"] and cheap_digest(folder / name) == listed["digest"]
            for name, listed in files.items()
        )
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return False


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system can open folders."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
