"""How kernels are declared, and the threads they run on prepared. The package has made numba's settings before."""

from __future__ import annotations

import functools

from numba import njit, prange

from engine.model.kernels.runtime import share_torch_openmp

FASTMATH = {"reassoc", "contract", "nsz", "arcp"}  # sums may be reordered; NaN and infinity still mean themselves

_declare = functools.partial(njit, nogil=True, error_model="numpy")  # a check for zero divisors keeps loops scalar

inlined = functools.partial(_declare, fastmath=FASTMATH)
"""For functions that only other kernels call: compiled into them."""

exactly_rounded = functools.partial(_declare, fastmath={"contract", "nsz"})
"""The same for functions whose order of operations is what makes them accurate."""

kernel = functools.partial(_declare, fastmath=FASTMATH, cache=True)
"""Callable from Python, on the calling thread; other Python threads run meanwhile."""

parallel_kernel = functools.partial(kernel, parallel=True)
"""The same with its `prange` loops spread over the OpenMP threads."""

__all__ = ["exactly_rounded", "inlined", "kernel", "parallel_kernel", "prange"]

share_torch_openmp()
