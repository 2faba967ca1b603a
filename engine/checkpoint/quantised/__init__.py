"""Experts in fewer bits than the checkpoint's: made once into a cache folder, read from there like any experts."""

from __future__ import annotations

from engine.checkpoint.quantised.copies import QuantisedCopy, list_copies, quantised_dir
from engine.checkpoint.quantised.ensure import ensure_quantised, plan_quantised
from engine.checkpoint.quantised.formats import PRECISIONS
from engine.checkpoint.quantised.index import QuantisedIndex
from engine.checkpoint.quantised.quality import lossy_sentence

__all__ = [
    "PRECISIONS",
    "QuantisedCopy",
    "QuantisedIndex",
    "ensure_quantised",
    "list_copies",
    "lossy_sentence",
    "plan_quantised",
    "quantised_dir",
]
