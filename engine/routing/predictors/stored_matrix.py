"""A matrix kept in fp16 that is multiplied by vectors: with the compiled kernels, or numpy where they cannot run."""

from __future__ import annotations

import numpy as np
import torch

from engine.model import kernels


class StoredMatrix:
    """fp16 [outputs, inputs] as it lies in a predictor's file."""

    def __init__(self, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values, np.float16)
        self._out = np.empty((1, len(values)), np.float32)
        self._compiled = kernels.available()
        if self._compiled:
            from engine.model.kernels.matvec import matvec
            from engine.model.kernels.storage import kernel_view

            self._matvec, self._stored = matvec, kernel_view(torch.from_numpy(values))
        else:
            self._widened = values.astype(np.float32)

    def times(self, x: np.ndarray) -> np.ndarray:
        """float32 [outputs], overwritten by the next call; x: float32 [inputs]."""
        if not self._compiled:
            np.dot(self._widened, x, out=self._out[0])
        else:
            kernels.use_torch_threads()
            self._matvec(self._stored, x[None], self._out)
        return self._out[0]
