"""Rows of a trace as bytes: one compressed npz in the narrowest dtypes that hold them."""

from __future__ import annotations

import io

import numpy as np

from engine.routing.readout import tap_layers
from engine.routing.traces.trace import NOBODY, RoutingTrace

NARROW_NOBODY = 255  # in place of NOBODY where experts are stored as uint8


def encode(rows: RoutingTrace, experts: int) -> bytes:
    """`experts`: how many a layer has at most."""
    arrays = {
        "token_ids": rows.token_ids.astype(np.int32),
        "experts": _narrowed(rows.experts) if experts <= NARROW_NOBODY else rows.experts.astype(np.int16),
        "weights": rows.weights.astype(np.float16),
        "decoded": rows.decoded.astype(bool),
    }
    if rows.midway is not None:
        arrays["midway_layers"] = np.array(tap_layers(rows.layers), np.int16)
    optional = {"ahead": rows.ahead, "hidden": rows.hidden, "midway": rows.midway}
    arrays |= {name: array.astype(np.float16) for name, array in optional.items() if array is not None}
    blob = io.BytesIO()
    np.savez_compressed(blob, allow_pickle=False, **arrays)
    return blob.getvalue()


def decode(conversation: str, blob: bytes) -> RoutingTrace:
    """What `encode` was given."""
    with np.load(io.BytesIO(blob), allow_pickle=False) as arrays:
        experts = arrays["experts"]
        seen = arrays.get("midway_layers")  # versions before this one tapped other layers, and did not say which
        is_seen = seen is not None and seen.tolist() == list(tap_layers(experts.shape[1]))
        return RoutingTrace(
            conversation,
            arrays["token_ids"],
            _widened(experts) if experts.dtype == np.uint8 else experts,
            arrays["weights"],
            arrays["decoded"],
            arrays.get("ahead"),
            arrays.get("hidden"),
            arrays.get("midway") if is_seen else None,
        )


def _narrowed(experts: np.ndarray) -> np.ndarray:
    return np.where(experts == NOBODY, NARROW_NOBODY, experts).astype(np.uint8)


def _widened(experts: np.ndarray) -> np.ndarray:
    wide = experts.astype(np.int16)
    wide[wide == NARROW_NOBODY] = NOBODY
    return wide
