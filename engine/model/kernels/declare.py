"""How kernels are declared, and the threads they run on prepared. The package has made numba's settings before."""

from __future__ import annotations

import functools

from numba import njit, prange

from engine.model.kernels.runtime import share_torch_openmp

FASTMATH = {"reassoc", "contract", "nsz", "arcp"}  # sums may be reordered; NaN and infinity still mean themselves

inlined = functools.partial(njit, fastmath=FASTMATH, nogil=True)
"""For functions that only other kernels call: compiled into them."""

kernel = functools.partial(njit, fastmath=FASTMATH, nogil=True, cache=True)
"""Callable from Python, on the calling thread; other Python threads run meanwhile."""

parallel_kernel = functools.partial(kernel, parallel=True)
"""The same with its `prange` loops spread over the OpenMP threads."""

__all__ = ["inlined", "kernel", "parallel_kernel", "prange"]

share_torch_openmp()
