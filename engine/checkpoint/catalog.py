"""Which models are on this machine, where each lies, and what its headers say about it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint import builtin
from engine.checkpoint.expert_index import ExpertIndex
from engine.checkpoint.quantised.copies import list_copies, remove_folder
from engine.checkpoint.safetensors_header import missing_weights
from engine.checkpoint.weight_formats import GGUF, OTHER_SUFFIXES, gguf_refusal
from engine.errors import EngineError, InvalidSetting, ModelNotFound
from engine.paths import models_dir

CONFIG_NAME = "config.json"
DELETING_PREFIX = ".deleting-"
HUB_CACHE = "Hugging Face cache"
DOWNLOAD_COMMAND = "python launch.py models download"
LIST_REMEDY = "`models` lists what is on this machine."

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ModelInfo:
    """One model. Numbers come from config and headers alone and are None for a model that is not built yet.

    `bytes` is all weights as stored, `expert_bytes` one expert, `experts_per_layer` the most of any layer.
    `source` is "built-in", "models folder" or "Hugging Face cache".
    """

    name: str
    path: Path
    source: str
    architecture: str | None = None
    bytes: int | None = None
    expert_bytes: int | None = None
    experts_per_layer: int | None = None
    experts_per_token: int | None = None
    moe_layers: int | None = None

    @property
    def is_ready(self) -> bool:
        """False for the built-in model before it is built."""
        return self.bytes is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return {**asdict(self), "path": str(self.path), "ready": self.is_ready}


@dataclass(frozen=True)
class UnusableModel:
    """A folder that looks like a Mixture-of-Experts checkpoint and cannot be run, and why."""

    name: str
    path: Path
    cause: str
    remedy: str


def list_models() -> list[ModelInfo]:
    """Every model that can be chosen, the built-in one first."""
    return scan_models()[0]


def scan_models() -> tuple[list[ModelInfo], list[UnusableModel]]:
    """Models that can be chosen, and checkpoints found that cannot be run."""
    models: list[ModelInfo] = []
    unusable: list[UnusableModel] = []
    for name, path, source in [(builtin.BUILTIN_NAME, models_dir(), "built-in"), *_found()]:
        try:
            if source == HUB_CACHE and missing_weights(path):
                raise unfinished_download(name)
            models.append(_describe_builtin() if source == "built-in" else describe_model(name, path, source))
        except EngineError as error:
            unusable.append(UnusableModel(name, path, error.cause, error.remedy))
    return models, unusable


def _describe_builtin() -> ModelInfo:
    path = builtin.builtin_path()
    if not builtin.is_complete(path):
        return ModelInfo(builtin.BUILTIN_NAME, path, "built-in")
    return describe_model(builtin.BUILTIN_NAME, path, "built-in")


def describe_model(name: str, path: Path, source: str) -> ModelInfo:
    """What config and headers say. Raises the typed errors of `ExpertIndex.from_checkpoint`."""
    index = ExpertIndex.from_checkpoint(path)
    return ModelInfo(
        name=name,
        path=path,
        source=source,
        architecture=(_read_config(path).get("architectures") or [None])[0],
        bytes=index.total_bytes,
        expert_bytes=index.expert_bytes,
        experts_per_layer=max(index.experts_per_layer),
        experts_per_token=index.top_k,
        moe_layers=len(index.experts_per_layer),
    )


def resolve_model(name_or_path: str | os.PathLike[str], on_progress: Progress | None = None) -> Path:
    """The checkpoint folder of "demo" (built first if need be), of a folder's path, or of a name in `models`.

    Raises ModelNotFound, and for "demo" what `ensure_builtin` raises.
    """
    if name_or_path == builtin.BUILTIN_NAME:
        return builtin.ensure_builtin(on_progress)
    path = find_model(name_or_path)
    assert path is not None, "only the built-in model may be yet to build"
    return path


def find_model(name_or_path: str | os.PathLike[str]) -> Path | None:
    """The same without building: None for a built-in model that is yet to be built. Raises ModelNotFound."""
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if name == builtin.BUILTIN_NAME:
        return builtin.builtin_path() if builtin.is_complete(builtin.builtin_path()) else None
    if path.is_dir():
        return path.resolve()
    if path.is_file() and path.suffix.lower() == GGUF:
        raise gguf_refusal(f"{path} is a GGUF file")
    if path.is_file():
        raise ModelNotFound(f"{path} is a file, not a model's folder.", f"Give the folder it lies in: {path.parent}.")
    for found, folder, source in _found():
        if found == name:
            if source == HUB_CACHE and missing_weights(folder):
                raise unfinished_download(name)
            return folder
    raise ModelNotFound(f"There is no model {name!r} on this machine.", _how_to_get(name))


def cached_config(name: str) -> Path | None:
    """The folder in Hugging Face's cache with at least the config of "org/name", whole or not."""
    found = (path for cached, path in _hugging_face_cache() if cached == name and (path / CONFIG_NAME).is_file())
    return next(found, None)


def find_deletable(name: str) -> Path:
    """The folder that deleting `name`, a model or a quantised copy, removes; always one of this program's own.

    Raises ModelNotFound, or InvalidSetting for a model that another program keeps.
    """
    if name == builtin.BUILTIN_NAME:
        own = {name: builtin.builtin_path()}
    else:
        own = {path.name: path for path in _own_folders()} | {copy.name: copy.path for copy in list_copies()}
    if name in own and own[name].is_dir():
        return own[name]
    if any(name == cached for cached, _ in _hugging_face_cache()):
        raise InvalidSetting(
            f"{name} is in the Hugging Face cache, which other programs use too.",
            f"Delete it with `hf cache rm model/{name}`.",
        )
    raise ModelNotFound(f"There is no model {name!r} to delete.", LIST_REMEDY)


def delete_model(name: str) -> int:
    """Removes the model's folder, with the quantised copies of it, and returns the bytes freed.

    Raises as `find_deletable`.

    The folder is renamed first, so that a deletion cut short leaves nothing that looks like a model.
    """
    path = find_deletable(name)
    copies = [copy for copy in list_copies() if copy.source == path.resolve()]
    doomed = path.with_name(f"{DELETING_PREFIX}{os.getpid()}-{path.name}")
    path.rename(doomed)
    freed = 0
    for leftover in path.parent.glob(f"{DELETING_PREFIX}*"):
        freed += _folder_bytes(leftover)
        _remove(leftover)
    for copy in copies:
        remove_folder(copy.path)
    return freed + sum(copy.bytes for copy in copies)


def _found() -> Iterator[tuple[str, Path, str]]:
    """(name, folder, source) of everything but the built-in model that may be a model, judged by its config."""
    for path in _own_folders():
        yield path.name, path, "models folder"
    for name, path in _hugging_face_cache():
        if _mentions_experts(path) and not is_only_looked_at(path):
            yield name, path, HUB_CACHE


def _own_folders() -> list[Path]:
    """Checkpoint folders the user put beside the built-in model's."""
    folder = models_dir()
    if not folder.is_dir():
        return []
    built = f"{builtin.BUILTIN_NAME}-v"  # the built-in model's builds, also those of other recipes
    return sorted(
        path for path in folder.iterdir() if not path.name.startswith((".", built)) and (path / CONFIG_NAME).is_file()
    )


def _hugging_face_cache() -> Iterator[tuple[str, Path]]:
    """(org/name, snapshot folder) of every model downloaded with Hugging Face's tools; a whole one of the main branch
    if there."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repo in sorted(repos, key=lambda repo: repo.repo_id):
        revisions = sorted(
            repo.revisions,
            key=lambda one: (not missing_weights(one.snapshot_path), "main" in one.refs, one.last_modified),
        )
        if repo.repo_type == "model" and revisions:
            yield repo.repo_id, revisions[-1].snapshot_path


def _mentions_experts(path: Path) -> bool:
    """Whether the config names experts at all: spares building every dense model in the cache to find out."""
    return any("expert" in name for name in _setting_names(_read_config(path)))


def _setting_names(config: dict[str, Any]) -> Iterator[str]:
    for name, value in config.items():
        yield name
        if isinstance(value, dict):
            yield from _setting_names(value)


def _read_config(path: Path) -> dict[str, Any]:
    """The folder's config, or nothing where it is not there or not readable (the index then says what is wrong)."""
    try:
        config = json.loads((path / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def is_repository_name(name: str) -> bool:
    """Whether `name` may be a repository's on the hub, "org/name", rather than a path."""
    return name.count("/") == 1 and not name.startswith((".", "~", "/")) and not name.endswith("/") and "\\" not in name


def is_only_looked_at(path: Path) -> bool:
    """Whether a snapshot holds a config and perhaps an index, but no weight: somebody asked what it would need."""
    return (path / CONFIG_NAME).is_file() and not any(
        file.suffix in {".safetensors", *OTHER_SUFFIXES} for file in path.iterdir()
    )


def unfinished_download(name: str) -> ModelNotFound:
    """Only a part of the model is in the cache."""
    return ModelNotFound(
        f"Of {name} only a part is on this machine: its download is not finished.",
        f"`{DOWNLOAD_COMMAND} {name}` fetches the rest.",
    )


def _how_to_get(name: str) -> str:
    if is_repository_name(name):
        return f"Download it with `{DOWNLOAD_COMMAND} {name}` and try again, or choose another: {LIST_REMEDY}"
    return f"Check the spelling or the path: {LIST_REMEDY}"


def _folder_bytes(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())


def _remove(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()  # the user linked a folder of their own here: only the link is ours
    else:
        shutil.rmtree(folder)
