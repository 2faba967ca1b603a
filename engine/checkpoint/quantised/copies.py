"""The cache folder of quantised experts: what a copy is called, when it is whole, listing and deleting."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint.builtin.manifest import flush_folder
from engine.checkpoint.quantised.formats import FORMAT_VERSION
from engine.checkpoint.safetensors_header import LENGTH_FIELD_BYTES
from engine.paths import models_dir

MANIFEST_NAME = "quantised.json"
BUILDING_PREFIX = ".building-"
DELETING_PREFIX = ".deleting-"
LARGEST_HASHED_HEADER_BYTES = 1 << 20


@dataclass(frozen=True)
class QuantisedCopy:
    """One checkpoint's experts at one precision. `source` is the checkpoint's folder, `bytes` all that it takes."""

    name: str
    path: Path
    source: Path
    precision: str
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return {
            "name": self.name,
            "path": str(self.path),
            "source": str(self.source),
            "precision": self.precision,
            "bytes": self.bytes,
        }


def quantised_dir() -> Path:
    """Folder of all copies, beside the models. Not created here."""
    return models_dir().parent / "quantised"


def copy_folder(checkpoint: Path, files: Iterable[Path], precision: str) -> Path:
    """Where the copy of this very checkpoint is, or will be: another content has another name."""
    name = f"{checkpoint.resolve().name}-{precision}-v{FORMAT_VERSION}-{checkpoint_identity(checkpoint, files)}"
    return quantised_dir() / name


def checkpoint_identity(checkpoint: Path, files: Iterable[Path]) -> str:
    """Digest of the config, and of each shard's name, size, time of change and header."""
    digest = hashlib.blake2b(digest_size=6)
    digest.update((checkpoint / "config.json").read_bytes())
    for file in files:
        status = file.stat()
        digest.update(f"{file.name}:{status.st_size}:{status.st_mtime_ns}".encode())
        with file.open("rb") as stream:
            header_bytes = int.from_bytes(stream.read(LENGTH_FIELD_BYTES), "little")
            digest.update(stream.read(min(header_bytes, LARGEST_HASHED_HEADER_BYTES)))
    return digest.hexdigest()


def write_manifest(folder: Path, source: Path, precision: str) -> None:
    """The last file of a copy: without it the folder is none. Durable when this returns."""
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    facts = {"source": str(source), "precision": precision, "version": FORMAT_VERSION, "files": files}
    with (folder / MANIFEST_NAME).open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(facts, indent=2) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    flush_folder(folder)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a whole copy; None where there is none, or a file is not there in its size."""
    try:
        facts = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == nbytes for name, nbytes in facts["files"].items())
        return facts if whole and {"source", "precision", "version"} <= facts.keys() else None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None


def list_copies() -> list[QuantisedCopy]:
    """All whole copies, by name."""
    folder = quantised_dir()
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        facts = None if path.name.startswith(".") else read_manifest(path)
        if facts is not None:
            nbytes = sum(facts["files"].values())
            found.append(QuantisedCopy(path.name, path, Path(facts["source"]), facts["precision"], nbytes))
    return found


def remove_folder(path: Path) -> None:
    """Renamed first, so that a deletion cut short leaves nothing that looks like a copy."""
    doomed = path.with_name(f"{DELETING_PREFIX}{os.getpid()}-{path.name}")
    path.rename(doomed)
    shutil.rmtree(doomed)
