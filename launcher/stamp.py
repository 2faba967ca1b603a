"""What an environment says about itself: finished and with what, or unfinished."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

_STAMP_NAME = "expertflow.json"
_MARKER_NAME = "unfinished"


def digest(paths: Iterable[Path]) -> str:
    """SHA-256 over the files' contents, in hexadecimal."""
    total = hashlib.sha256()
    for path in paths:
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


class Stamp:
    """The two notes in an environment's folder.

    A marker lies there while packages are being changed. The stamp is written last; it names the Python, the
    requirement files that were installed (by digest) and the packages' folders, so that one deleted since
    is noticed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stamp_path = folder / _STAMP_NAME
        self._marker_path = folder / _MARKER_NAME

    def begin(self) -> None:
        """Declare the environment unfinished."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._marker_path.touch()

    def finish(self, python: Path, installed: Mapping[str, str]) -> None:
        """Declare it finished, with these groups and the digests of their requirement files."""
        note = {
            "python": os.path.realpath(python),
            "installed": dict(installed),
            "packages": _package_folders(self.folder),
        }
        unfinished = self._stamp_path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(note, indent=1), encoding="utf-8")
        os.replace(unfinished, self._stamp_path)
        self.cancel()

    def cancel(self) -> None:
        """Take back `begin`: nothing was changed."""
        self._marker_path.unlink(missing_ok=True)

    def is_unfinished(self) -> bool:
        """True if a change was begun and not finished."""
        return self._marker_path.exists()

    def installed(self, python: Path) -> dict[str, str]:
        """Digests by group of what is installed; empty if unfinished, damaged or made by another Python."""
        note = self._read()
        if self.is_unfinished() or note is None or note["python"] != os.path.realpath(python):
            return {}
        return {} if self._missing(note) else note["installed"]

    def is_damaged(self) -> bool:
        """True if packages that were installed are gone."""
        note = self._read()
        return note is not None and bool(self._missing(note))

    def made_with_another(self, python: Path) -> bool:
        """True if the system's Python behind it has been replaced since."""
        note = self._read()
        return note is not None and note["python"] != os.path.realpath(python)

    def _missing(self, note: dict) -> set[str]:
        return set(note["packages"]) - set(_package_folders(self.folder))

    def _read(self) -> dict | None:
        try:
            note = json.loads(self._stamp_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return note if isinstance(note, dict) and {"python", "installed", "packages"} <= note.keys() else None


def _package_folders(folder: Path) -> list[str]:
    sites = [*folder.glob("lib/python*/site-packages"), *folder.glob("Lib/site-packages")]
    entries = [entry for site in sites for entry in os.scandir(site) if entry.is_dir()]
    passing = ("~", "__pycache__")
    return sorted(
        entry.name for entry in entries if not entry.name.startswith(passing) and not entry.name.endswith(".dist-info")
    )
