"""Dropping a file's pages from the page cache, so that RAM does not pose as disk."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def drop_pages(files: Iterable[Path]) -> None:
    """Asks the system to forget cached pages of `files`. Pages that some process has mapped stay.

    Does nothing on systems without `posix_fadvise`; `can_drop_pages` says which.
    """
    if not can_drop_pages():
        return
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def can_drop_pages() -> bool:
    """Whether this system lets a program drop pages."""
    return hasattr(os, "posix_fadvise")


def weight_files(folder: Path) -> list[Path]:
    """The files of a checkpoint or offload folder that hold weights."""
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix in {".safetensors", ".dat"})
