"""ExpertFlow's engine: runs Mixture-of-Experts models larger than the memory they run in."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError

# OpenMP threads that wait in a long busy loop keep each other off the processor as soon as another program (the
# browser) wants some of it: decoding then falls from tokens per second to seconds per token. As long as this, a tenth
# of a millisecond, they bridge the Python between two layers; waking takes a fifth of a predicted token's time. They
# wait for so long only while there are no more of them than processors: see `kernels.release_threads`. Read when torch
# loads.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.hardware.memory_plan import MemoryPlan
    from engine.metrics import EngineStats
    from engine.snapshot import ChatEvent, EngineSnapshot

_LAZY = {  # torch and transformers take seconds to import: only what is asked for is
    "Engine": "engine.engine",
    "MemoryPlan": "engine.hardware.memory_plan",
    "EngineStats": "engine.metrics",
    "ChatEvent": "engine.snapshot",
    "EngineSnapshot": "engine.snapshot",
}

__all__ = ["ChatEvent", "Engine", "EngineError", "EngineSnapshot", "EngineStats", "MemoryPlan"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
