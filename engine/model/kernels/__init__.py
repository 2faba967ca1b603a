"""Compiled kernels for decoding on CPU. Ask `available()` before importing any of the modules beside this one."""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.model.kernels.runtime import (
    available,
    cache_folder,
    release_threads,
    set_numba_environment,
    unavailable_reason,
    use_torch_threads,
)

__all__ = ["available", "cache_folder", "prepare", "release_threads", "unavailable_reason", "use_torch_threads"]

set_numba_environment()  # before any module of this package can import numba


def prepare(
    dense: torch.dtype,
    experts: torch.dtype | None,
    fast_path: bool,
    on_progress: Callable[[str, int, int], None] | None = None,
    packed: bool = False,
    joint: bool = False,
) -> None:
    """Has the kernels compiled for weights of these dtypes before the first token needs them.

    `experts`: None when torch computes them. `fast_path`: whether it will decode. `packed`: whether experts are stored
    in few bits. `joint`: whether several chats will be read in one pass. Nothing to do where the kernels cannot run or
    read the dtype. About a second when an earlier start compiled them, some 15 seconds of one core when not.
    """
    if not available():
        return
    from engine.model.kernels.storage import has_kernel_dtype
    from engine.model.kernels.warm_up import warm_up

    if has_kernel_dtype(dense):
        readable = experts if experts is not None and has_kernel_dtype(experts) else None
        warm_up(dense, readable, fast_path and (packed or readable is not None), on_progress, packed, joint)
