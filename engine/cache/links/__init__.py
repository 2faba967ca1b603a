"""The links there are, by their command-line names."""

from __future__ import annotations

from collections.abc import Callable

from engine.cache.link import Link
from engine.cache.links.disk import DiskLink
from engine.cache.links.emulated import PREFIX, EmulatedCardLink, EmulatedLink, emulated_card
from engine.checkpoint.expert_index import ExpertIndex
from engine.errors import InvalidSetting

LINK_HELP = (
    "auto, disk, disk:direct, emulated:2.5GBps, emulated:2.5GBps+20us, emulated:2.5GBps/host:10GBps or "
    "emulated:CARD (such as emulated:4060)"
)


def open_link(name: str, index: ExpertIndex, on_progress: Callable[[str, int, int], None] | None = None) -> Link:
    """The link called `name`. "auto" is "disk"; "disk:direct" reads past the page cache. Raises InvalidSetting."""
    if name in ("auto", "disk"):
        return DiskLink(index)
    if name == "disk:direct":
        return DiskLink(index, direct=True)
    if card := emulated_card(name):
        return EmulatedCardLink(index, card, on_progress)
    if name.startswith(PREFIX):
        return EmulatedLink(index, name, on_progress)
    if name == "cuda":
        raise InvalidSetting(
            "The CUDA link needs a card, and the model is computed on the processor.", "Use --link disk."
        )
    raise InvalidSetting(f"There is no link called {name!r}.", f"Use one of: {LINK_HELP}.")
