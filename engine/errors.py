"""Everything that can go wrong in words a person can act on: each error has a cause and a remedy."""

from __future__ import annotations


class EngineError(Exception):
    """Base of all errors the engine raises on purpose.

    `cause` says what is wrong, `remedy` what to do; UI, API and terminal show both unchanged.
    """

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(f"{cause} {remedy}")
        self.cause = cause
        self.remedy = remedy


class Cancelled(Exception):
    """The computation was left because its answer is no longer wanted; nothing is wrong."""


class ModelNotFound(EngineError):
    """The named model or folder is not on this machine."""


class NotAMoeModel(EngineError):
    """The checkpoint is readable but has no experts to cache."""


class UnsupportedModel(EngineError):
    """A MoE family, quantisation or file layout this version cannot run."""


class CheckpointUnreadable(EngineError):
    """A file of the checkpoint cannot be opened or read (permissions, I/O error)."""


class CheckpointCorrupt(EngineError):
    """A file is truncated, a tensor is missing, or a header makes no sense."""


class BudgetTooSmall(EngineError):
    """The budget in bytes is below what the model needs; `minimum_bytes` is the number that would do."""

    def __init__(self, cause: str, remedy: str, minimum_bytes: int) -> None:
        super().__init__(cause, remedy)
        self.minimum_bytes = minimum_bytes


class NotEnoughMemory(EngineError):
    """The machine has less free memory than the plan needs."""


class InvalidSetting(EngineError):
    """An argument (budget, link, policy, sampling) that cannot be understood."""


class DeviceNotAvailable(EngineError):
    """The device that was asked for is not there, or the installed PyTorch cannot compute on it."""


class DriverFailed(EngineError):
    """The card's driver does not answer any more."""


class TransferFailed(EngineError):
    """A far-to-near copy failed; the slot it was meant for has been given back."""


class ContextFull(EngineError):
    """The chat no longer fits the context; `needed_tokens` against `context_length`."""

    def __init__(self, cause: str, remedy: str, needed_tokens: int, context_length: int) -> None:
        super().__init__(cause, remedy)
        self.needed_tokens = needed_tokens
        self.context_length = context_length


class EngineBusy(EngineError):
    """Another answer is being written by this engine, or too many requests wait for theirs."""


class EngineClosed(EngineError):
    """The engine was closed before or during the call."""


class DiskFull(EngineError):
    """Not enough room on disk; nothing half-written is left behind."""


class BuildFailed(EngineError):
    """The built-in model, or a copy of a model in fewer bits, could not be made."""


class PredictorUnusable(EngineError):
    """A predictor's file is damaged, of another version, or learnt another model's routing."""


class PortInUse(EngineError):
    """Another program (or another instance) listens on the port."""


class TraceStoreUnavailable(EngineError):
    """The file of recorded routing cannot be opened, read or written."""


class AccessDenied(EngineError):
    """The hub wants to know who asks: a gated or private model, or a token it does not accept."""


class ClusterFailed(EngineError):
    """Several machines were to share a job: one of them cannot, or the cluster that joins them does not answer."""


class HubUnreachable(EngineError):
    """The hub cannot be asked: no network, offline mode, or it does not answer properly."""


class DownloadBusy(EngineError):
    """The same model is being downloaded already, here or by another program."""
