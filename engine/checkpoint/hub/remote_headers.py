"""The headers of a checkpoint that is still on the hub: the first kilobytes of each shard, and no weight."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from huggingface_hub.errors import SafetensorsParsingError
from huggingface_hub.utils import SafetensorsFileMetadata

from engine.checkpoint.hub.access import ASK_SECONDS, hub_api, hub_errors
from engine.checkpoint.hub.files import fetch_small
from engine.checkpoint.hub.repository import Repository
from engine.checkpoint.safetensors_header import (
    INDEX_NAME,
    LENGTH_FIELD_BYTES,
    SINGLE_NAME,
    CheckpointTensors,
    TensorLocation,
    join_shards,
    locate_tensors,
    parse_weight_map,
)
from engine.errors import CheckpointCorrupt

Progress = Callable[[str, int, int], None]
STAGE = "Reading headers from the hub"
READERS = 8
ANOTHER = "Choose another repository of this model."


def read_weight_map(repository: Repository) -> dict[str, str]:
    """Tensor name to shard, from the index; empty for a model in one file."""
    if SINGLE_NAME in repository.files:
        return {}
    try:
        return parse_weight_map(fetch_small(repository, repository.files[INDEX_NAME]).read_bytes())
    except ValueError as error:
        raise CheckpointCorrupt(f"{INDEX_NAME} of {repository.name} {error}.", ANOTHER) from error


def read_remote_headers(
    repository: Repository, weight_map: dict[str, str], on_progress: Progress | None = None
) -> CheckpointTensors:
    """What `read_checkpoint_headers` would say of the files once they are here.

    Raises CheckpointCorrupt, UnsupportedModel, and what `hub_errors` raises.
    """
    names = repository.shard_names(weight_map)
    files, shards = tuple(repository.snapshot / name for name in names), []
    with ThreadPoolExecutor(min(READERS, len(names))) as pool:
        for number, metadata in enumerate(pool.map(lambda name: _read_header(repository, name), names)):
            shards.append(_locate(repository, files[number], number, metadata))
            if on_progress is not None:
                on_progress(STAGE, number + 1, len(names))
    return join_shards(files, shards, weight_map)


def _read_header(repository: Repository, file_name: str) -> SafetensorsFileMetadata:
    with hub_errors(repository.name):
        try:
            return hub_api().parse_safetensors_file_metadata(
                repository.name, file_name, revision=repository.commit, timeout=ASK_SECONDS
            )
        except SafetensorsParsingError as error:
            raise CheckpointCorrupt(f"{file_name} of {repository.name} is not a safetensors file.", ANOTHER) from error


def _locate(
    repository: Repository, file: Path, number: int, metadata: SafetensorsFileMetadata
) -> dict[str, TensorLocation]:
    header: dict[str, dict[str, Any]] = {
        name: {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": tensor.data_offsets}
        for name, tensor in metadata.tensors.items()
    }
    data_bytes = max((tensor.data_offsets[1] for tensor in metadata.tensors.values()), default=0)
    data_start = repository.files[file.name].nbytes - data_bytes
    if data_start < LENGTH_FIELD_BYTES:
        raise CheckpointCorrupt(f"{file.name} of {repository.name} is shorter than its header says.", ANOTHER)
    return locate_tensors(file, number, header, data_start)
