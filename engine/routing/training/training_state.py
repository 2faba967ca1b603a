"""A training run on disk: everything it needs to go on as if it had never been left."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from engine.errors import InvalidSetting

if TYPE_CHECKING:
    from engine.routing.training.train import TrainingState


def save_state(
    file: Path,
    facts: Mapping[str, Any],
    state: TrainingState,
    best: dict[str, torch.Tensor],
    network: nn.Module,
    adam: torch.optim.Optimizer,
) -> None:
    """Replaces `file` at once. `facts`: what must be the same when the run is taken up again."""
    saved = {
        "facts": dict(facts),
        "state": asdict(state),
        "best": best,
        "network": network.state_dict(),
        "adam": adam.state_dict(),
    }
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        torch.save(saved, partial)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def load_state(
    file: Path, facts: Mapping[str, Any], network: nn.Module, adam: torch.optim.Optimizer
) -> tuple[TrainingState, dict[str, torch.Tensor]]:
    """Puts network and optimiser where they were. Raises InvalidSetting when the file is of another run."""
    from engine.routing.training.train import TrainingState

    remedy = f"Delete {file} to begin anew, or train into another file."
    try:
        saved = torch.load(file, weights_only=True)
        if saved["facts"] != dict(facts):
            raise InvalidSetting(f"{file} was left by a run with other settings or traces.", remedy)
        network.load_state_dict(saved["network"])
        adam.load_state_dict(saved["adam"])
        state = TrainingState(**saved["state"])
        state.measured = [(int(step), float(recall)) for step, recall in state.measured]
        return state, saved["best"]
    except (OSError, EOFError, KeyError, TypeError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise InvalidSetting(f"{file} cannot be gone on with ({error}).", remedy) from error
