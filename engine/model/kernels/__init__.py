"""Compiled kernels for decoding on CPU. Ask `available()` before importing any of the modules beside this one."""

from engine.model.kernels.runtime import (
    available,
    cache_folder,
    set_numba_environment,
    unavailable_reason,
    use_torch_threads,
)

__all__ = ["available", "cache_folder", "unavailable_reason", "use_torch_threads"]

set_numba_environment()  # before any module of this package can import numba
