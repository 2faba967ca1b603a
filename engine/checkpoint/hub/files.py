"""One file from the hub into the cache of Hugging Face's tools: resumed, checked, and put in place when it is whole.

huggingface_hub's own download throws a file's bytes away when it is interrupted, gigabytes at a time; so the bytes are
streamed here, over its sessions and into its cache's layout, and only their keeping is ours.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import httpx2
from filelock import Timeout
from huggingface_hub import constants
from huggingface_hub.file_download import are_symlinks_supported
from huggingface_hub.utils import WeakFileLock, build_hf_headers, hf_raise_for_status, http_stream_backoff

from engine.checkpoint.hub.access import cache_folder, hub_errors
from engine.checkpoint.hub.repository import Repository, RepositoryFile
from engine.errors import Cancelled, CheckpointCorrupt, DownloadBusy

CHUNK_BYTES = 1 << 20
ATTEMPTS = 5  # in a row that bring not one byte
RETRY_SECONDS = 1.0
LOCK_SECONDS = 0.5
RANGE_NOT_SATISFIABLE = 416
INTERRUPTIONS = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)
TRY_AGAIN = "Download the model again; if it happens again, the file on the hub is damaged."

Counted = Callable[[int], None]
"""Told of bytes that arrived, or, negative, that have to come again."""


def is_here(repository: Repository, file: RepositoryFile) -> bool:
    """Whether the whole file is in the cache. Files are put there only after their content was checked."""
    return _size(repository.snapshot / file.name) == file.nbytes


def bytes_here(repository: Repository, file: RepositoryFile) -> int:
    """How much of the file need not be fetched any more."""
    if is_here(repository, file) or _size(_blob(repository, file)) == file.nbytes:
        return file.nbytes
    return min(_size(_partial(repository, file)) or 0, file.nbytes)


def fetch_small(repository: Repository, file: RepositoryFile) -> Path:
    """The path of a config or an index, fetched if need be."""
    fetch(repository, file, lambda nbytes: None, lambda: False)
    return repository.snapshot / file.name


def fetch(repository: Repository, file: RepositoryFile, counted: Counted, is_cancelled: Callable[[], bool]) -> None:
    """Brings the file into the cache, going on where an earlier fetch stopped.

    Raises Cancelled (what arrived is kept), CheckpointCorrupt (the content is not what the hub promised; thrown away),
    DownloadBusy, and what `hub_errors` raises.
    """
    if is_here(repository, file):
        return
    with hub_errors(repository.name), _locked(repository, file):
        partial, blob = _partial(repository, file), _blob(repository, file)
        if _size(blob) != file.nbytes:
            partial.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("ab+") as stream:
                digest = _receive(repository, file, stream, counted, is_cancelled)
            if digest != file.blob_name:
                partial.unlink()
                counted(-file.nbytes)
                raise CheckpointCorrupt(f"{file.name} of {repository.name} arrived damaged.", TRY_AGAIN)
            _put_in_place(repository, file, partial)
        else:
            _link(repository, file)


def _receive(
    repository: Repository, file: RepositoryFile, stream: BinaryIO, counted: Counted, is_cancelled: Callable[[], bool]
) -> str:
    """Appends what is missing; returns the content's digest in the form of `RepositoryFile.blob_name`."""
    digest, done = _Digest(file), stream.seek(0, os.SEEK_END)
    if done > file.nbytes:
        done = stream.truncate(0)
    stream.seek(0)
    while piece := stream.read(CHUNK_BYTES):
        digest.update(piece)
    attempts = ATTEMPTS
    while done < file.nbytes:
        before = done
        try:
            for start, chunk in _chunks(repository.url(file.name), done):
                if start == 0 and done:  # the server began anew
                    counted(-done)
                    digest, done, before = _Digest(file), stream.truncate(0), 0
                stream.write(chunk)
                digest.update(chunk)
                counted(len(chunk))
                done += len(chunk)
                if is_cancelled():
                    raise Cancelled(file.name)
        except INTERRUPTIONS:
            if attempts <= 1 and done == before:
                raise
        attempts = ATTEMPTS if done > before else attempts - 1
        if not attempts:
            raise _truncated(repository, file, done)
        if done < file.nbytes:
            _wait(is_cancelled)
    return digest.name()


def _chunks(url: str, offset: int) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) from `offset` on, or from 0 where the server cannot begin in the middle."""
    headers: dict[str, str] = build_hf_headers() | {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    settings: dict[str, Any] = {"headers": headers, "timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT}
    with http_stream_backoff("GET", url, max_retries=2, retry_on_exceptions=(), **settings) as response:
        if response.status_code == RANGE_NOT_SATISFIABLE:
            return
        hf_raise_for_status(response)
        position = offset if response.status_code == httpx2.codes.PARTIAL_CONTENT else 0
        for chunk in response.iter_bytes():
            yield position, chunk
            position += len(chunk)


def _truncated(repository: Repository, file: RepositoryFile, done: int) -> CheckpointCorrupt:
    return CheckpointCorrupt(f"{file.name} of {repository.name} ends after {done} of {file.nbytes} bytes.", TRY_AGAIN)


def _wait(is_cancelled: Callable[[], bool]) -> None:
    if is_cancelled():
        raise Cancelled
    time.sleep(RETRY_SECONDS)


class _Digest:
    """SHA-256 of large files' content, for others the id that git gives a file."""

    def __init__(self, file: RepositoryFile) -> None:
        self._expected = file.blob_name
        self._hash = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.nbytes)

    def update(self, piece: bytes) -> None:
        self._hash.update(piece)

    def name(self) -> str:
        return self._hash.hexdigest()


def _put_in_place(repository: Repository, file: RepositoryFile, partial: Path) -> None:
    if are_symlinks_supported(cache_folder()):
        os.replace(partial, _blob(repository, file))
        _link(repository, file)
    else:
        pointer = repository.snapshot / file.name
        pointer.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, pointer)


def _link(repository: Repository, file: RepositoryFile) -> None:
    pointer = repository.snapshot / file.name
    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.unlink(missing_ok=True)
    pointer.symlink_to(os.path.relpath(_blob(repository, file), pointer.parent))


@contextmanager
def _locked(repository: Repository, file: RepositoryFile) -> Iterator[None]:
    """The lock that huggingface_hub takes for the same file."""
    lock = cache_folder() / ".locks" / repository.folder.name / f"{file.blob_name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with WeakFileLock(lock, timeout=LOCK_SECONDS):
            yield
    except Timeout as error:
        raise DownloadBusy(
            f"{file.name} of {repository.name} is being downloaded already.", "Wait for it, or stop it there."
        ) from error


def _blob(repository: Repository, file: RepositoryFile) -> Path:
    return repository.folder / "blobs" / file.blob_name


def _partial(repository: Repository, file: RepositoryFile) -> Path:
    return repository.folder / "blobs" / f"{file.blob_name}.incomplete"


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
