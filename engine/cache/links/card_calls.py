"""Everything the CUDA link asks of PyTorch's CUDA interface, and nothing else: so a recording fake can stand in.

docs/cuda_link.md goes through these calls one by one.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

_PORTABLE = 1  # cudaHostRegisterPortable: locked for every context, not only the calling thread's


class CardCalls(Protocol):
    """A card's streams, events, copies and memory. Streams and events are opaque to the callers."""

    device: torch.device

    def stream(self, urgent: bool) -> Any:
        """A new stream beside the computation's."""

    def compute_stream(self) -> Any:
        """The stream on which the calling thread computes."""

    def event(self) -> Any:
        """A new event, never recorded yet."""

    def record(self, event: Any, stream: Any) -> None:
        """The event happens when everything enqueued on the stream until now is done."""

    def wait(self, stream: Any, event: Any) -> None:
        """What is enqueued on the stream from now on begins after the event's last record. Returns at once."""

    def synchronize(self, event: Any) -> None:
        """Blocks the calling thread until the event has happened; other threads go on."""

    def copy(self, target: torch.Tensor, source: torch.Tensor, stream: Any) -> None:
        """Enqueues a copy. Both tensors must stay as they are until an event recorded after it has happened."""

    def empty(self, rows: int, row_bytes: int) -> torch.Tensor:
        """uint8 [rows, row_bytes] on the card, not initialised. Raises torch.OutOfMemoryError."""

    def release_unused(self) -> None:
        """Gives memory that PyTorch keeps for later back to the driver."""

    def free_bytes(self) -> int:
        """What new tensors could take now, by the driver's count. 0 to the whole card."""

    def reserved_bytes(self) -> int:
        """What PyTorch holds of the card, used or not."""

    def lock(self, address: int, nbytes: int) -> bool:
        """Page-locks host memory for the card. False when the driver refuses."""

    def unlock(self, address: int) -> None:
        """Takes `lock` back."""


class TorchCard:
    """`CardCalls` on a real card. `cuda` stands in for `torch.cuda`."""

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self.device = device
        self._cuda = cuda

    def stream(self, urgent: bool) -> Any:
        return self._cuda.Stream(self.device, priority=-1 if urgent else 0)

    def compute_stream(self) -> Any:
        return self._cuda.current_stream(self.device)

    def event(self) -> Any:
        return self._cuda.Event(blocking=True)  # a waiting reader sleeps instead of spinning on a core

    def record(self, event: Any, stream: Any) -> None:
        event.record(stream)

    def wait(self, stream: Any, event: Any) -> None:
        stream.wait_event(event)

    def synchronize(self, event: Any) -> None:
        event.synchronize()

    def copy(self, target: torch.Tensor, source: torch.Tensor, stream: Any) -> None:
        with self._cuda.stream(stream):
            target.copy_(source, non_blocking=True)

    def empty(self, rows: int, row_bytes: int) -> torch.Tensor:
        return torch.empty(rows, row_bytes, dtype=torch.uint8, device=self.device)

    def release_unused(self) -> None:
        self._cuda.empty_cache()

    def free_bytes(self) -> int:
        free, _ = self._cuda.mem_get_info(self.device)
        return free + self.reserved_bytes() - self._cuda.memory_allocated(self.device)

    def reserved_bytes(self) -> int:
        return self._cuda.memory_reserved(self.device)

    def lock(self, address: int, nbytes: int) -> bool:
        with self._cuda.device(self.device):  # else this would begin a context on the first card
            refused = int(self._cuda.cudart().cudaHostRegister(address, nbytes, _PORTABLE)) != 0
        if refused:
            self._forget_error()
        return not refused

    def unlock(self, address: int) -> None:
        with self._cuda.device(self.device):
            self._cuda.cudart().cudaHostUnregister(address)

    def _forget_error(self) -> None:
        """The runtime keeps a refusal as its "last error", which the next launch would report as its own."""
        try:
            torch.empty(1, device=self.device).fill_(0.0)
        except RuntimeError:
            return  # reported, and by that forgotten
