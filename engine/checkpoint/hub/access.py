"""How the hub is reached, and what its refusals mean in words.

HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, HF_HOME and HF_HUB_CACHE count as they do for all of Hugging Face's tools.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from engine.errors import AccessDenied, DiskFull, EngineError, HubUnreachable, ModelNotFound

ASK_SECONDS = 15.0  # without an answer, the hub counts as unreachable


def endpoint() -> str:
    """Address of the hub, or of the mirror in its place."""
    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")


def hub_api() -> HfApi:
    return HfApi(endpoint=endpoint())


def cache_folder() -> Path:
    """Where all of Hugging Face's tools keep what they download."""
    return Path(constants.HF_HUB_CACHE).expanduser()


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turns what huggingface_hub raises while the repository `name` is dealt with into errors one can act on.

    Raises ModelNotFound, AccessDenied, HubUnreachable, DiskFull.
    """
    try:
        yield
    except EngineError:
        raise
    except (httpx2.HTTPError, OSError, HFValidationError) as error:  # most of huggingface_hub's are OSErrors
        raise _in_words(name, error) from error


def _in_words(name: str, error: Exception) -> EngineError:
    if isinstance(error, GatedRepoError):
        return _gated(name)
    if isinstance(error, HFValidationError):
        return ModelNotFound(f"{name!r} is not the name of a repository.", "Write it as organisation/model.")
    if isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)):
        return ModelNotFound(
            f"There is no model {name} at {endpoint()}, or it is a private one.",
            f"Check the spelling; for a private model {_sign_in()}.",
        )
    if isinstance(error, EntryNotFoundError):
        return ModelNotFound(f"{name} lacks a file of a model ({_first_line(error)}).", "Choose another model.")
    if isinstance(error, OfflineModeIsEnabled):
        return HubUnreachable(
            f"{name} cannot be looked up: HF_HUB_OFFLINE is set, so nothing is fetched.",
            "Unset HF_HUB_OFFLINE, or choose a model that is on this machine.",
        )
    if isinstance(error, HfHubHTTPError):
        return _refused(name, error)
    if isinstance(error, httpx2.HTTPError):
        return HubUnreachable(
            f"{endpoint()} cannot be reached ({_first_line(error) or type(error).__name__}).",
            "Check the network, proxy and firewall, then try again: what was downloaded is kept.",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            f"The disk of {cache_folder()} is full.",
            "Free some space, or set HF_HOME to a folder on a larger disk, and try again: what was fetched is kept.",
        )
    return HubUnreachable(
        f"{name} cannot be fetched: {_first_line(error) or type(error).__name__}.",
        f"Check that {cache_folder()} can be written and try again.",
    )


def _gated(name: str) -> AccessDenied:
    return AccessDenied(
        f"{name} is gated: its makers want their terms accepted first.",
        f"Accept them at {endpoint()}/{name}, then {_sign_in()}.",
    )


def _refused(name: str, error: HfHubHTTPError) -> EngineError:
    status = error.response.status_code
    if status in (401, 403):
        return AccessDenied(
            f"The hub does not let you fetch {name} (status {status}).",
            f"Check at {endpoint()}/settings/tokens that your token is valid and may read it, then {_sign_in()}.",
        )
    if status == 429:
        return HubUnreachable("The hub asks for fewer requests (status 429).", "Wait some minutes and try again.")
    return HubUnreachable(
        f"{endpoint()} answers with status {status}.", "Try again later: what was downloaded is kept."
    )


def _sign_in() -> str:
    return f"make a token at {endpoint()}/settings/tokens and run `hf auth login` (or set HF_TOKEN)"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
