"""How fast the simulated machine computes and moves: as measured elsewhere, or as a card's figures allow."""

from __future__ import annotations

from dataclasses import dataclass

from engine.card_emulation import bytes_read_per_token, embedding_name
from engine.checkpoint.dense_model import OpenedCheckpoint
from engine.errors import InvalidSetting
from engine.hardware.gpu_profiles import GpuProfile, profile_named

DEFAULT_LINK = "emulated:2.5GBps"


@dataclass(frozen=True)
class SimulatedPace:
    """`link` as `SimulationLab.speed` takes it, or several with commas. Either `seconds` a token, or a card."""

    link: str
    seconds: float | None = None
    card: GpuProfile | None = None

    @property
    def label(self) -> str | None:
        return None if self.card is None else self.card.label

    def token_seconds(self, checkpoint: OpenedCheckpoint) -> float:
        """Of a token of this model with everything resident."""
        if self.card is None:
            assert self.seconds is not None
            return self.seconds
        model, index = checkpoint.skeleton.model, checkpoint.index
        return self.card.token_seconds(bytes_read_per_token(model, index, _embedding_itemsize(checkpoint)))


def simulated_pace(gpu: str | None, token_ms: float | None, link: str | None) -> SimulatedPace:
    """From the options of `simulate`. Raises InvalidSetting where they contradict each other or say too little."""
    if gpu is None:
        if token_ms is None:
            raise InvalidSetting(
                "How long a token takes is not known.", "Give --gpu CARD, or --token-ms as `bench decode` measures it."
            )
        return SimulatedPace(link or DEFAULT_LINK, seconds=token_ms / 1e3)
    if token_ms is not None or link is not None:
        raise InvalidSetting("--gpu stands for --token-ms and --link.", "Leave these out, or leave --gpu out.")
    card = profile_named(gpu)
    rate, latency = card.link_bytes_per_second / 1e9, card.link_latency_seconds * 1e6
    return SimulatedPace(f"emulated:{rate:.4f}GBps+{latency:.1f}us", card=card)


def _embedding_itemsize(checkpoint: OpenedCheckpoint) -> int:
    """Bytes of one number of the input embedding in the checkpoint's files."""
    model = checkpoint.skeleton.model
    name = embedding_name(model)
    stored = (group.locations[0].dtype for group in checkpoint.groups.values() if name in group.targets())
    return next(stored, model.get_input_embeddings().weight.dtype).itemsize
