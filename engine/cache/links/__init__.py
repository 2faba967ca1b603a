"""The links there are, by their command-line names."""

from __future__ import annotations

from collections.abc import Callable

from engine.cache.link import Link
from engine.cache.links.disk import DiskLink
from engine.cache.links.emulated import EmulatedLink
from engine.checkpoint.expert_index import ExpertIndex
from engine.errors import InvalidSetting

LINK_HELP = "auto, disk, disk:direct, emulated:2.5GBps or emulated:2.5GBps+20us"


def open_link(name: str, index: ExpertIndex, on_progress: Callable[[str, int, int], None] | None = None) -> Link:
    """The link called `name`. "auto" is "disk"; "disk:direct" reads past the page cache. Raises InvalidSetting."""
    if name in ("auto", "disk"):
        return DiskLink(index)
    if name == "disk:direct":
        return DiskLink(index, direct=True)
    if name.startswith("emulated:"):
        return EmulatedLink(index, name, on_progress)
    if name == "cuda":
        raise InvalidSetting(
            "The CUDA link is not part of this version.", "Use --link disk; the model runs on the CPU."
        )
    raise InvalidSetting(f"There is no link called {name!r}.", f"Use one of: {LINK_HELP}.")
