"""What a repository on the hub holds, and which of its files make up the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import hf_hub_url

from engine.checkpoint.hub.access import ASK_SECONDS, cache_folder, endpoint, hub_api, hub_errors
from engine.checkpoint.safetensors_header import INDEX_NAME, SINGLE_NAME
from engine.checkpoint.skeleton import CONFIG_NAME
from engine.checkpoint.weight_formats import refuse_other_formats
from engine.errors import CheckpointCorrupt, ModelNotFound

BRANCH = "main"
# Beside the weights: config, tokenizer, chat template, card. Not copies of the weights in other formats or folders.
COMPANIONS = (
    "*.json",
    "tokenizer*",
    "*.model",
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
    "*.jinja",
    "README.md",
    "LICENSE*",
)
NOT_COMPANIONS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.py", "*.index.json")


@dataclass(frozen=True)
class RepositoryFile:
    """A file and how its content is told: by SHA-256 where it is large, else by the id git gives it."""

    name: str
    nbytes: int
    git_id: str
    sha256: str | None = None

    @property
    def blob_name(self) -> str:
        """What the file is called in the cache of Hugging Face's tools."""
        return self.sha256 or self.git_id


@dataclass(frozen=True)
class Repository:
    """One commit of a repository; `files` by name."""

    name: str
    commit: str
    files: Mapping[str, RepositoryFile]

    @property
    def folder(self) -> Path:
        """Where the cache keeps everything of this repository."""
        return cache_folder() / f"models--{self.name.replace('/', '--')}"

    @property
    def snapshot(self) -> Path:
        """Where the files of this commit are once they are here."""
        return self.folder / "snapshots" / self.commit

    def url(self, file_name: str) -> str:
        return hf_hub_url(self.name, file_name, revision=self.commit, endpoint=endpoint())

    def require_model(self) -> None:
        """Raises ModelNotFound (no config), UnsupportedModel (not safetensors), CheckpointCorrupt (no weights)."""
        if CONFIG_NAME not in self.files:
            refuse_other_formats(self.name, self.files)
            raise ModelNotFound(f"{self.name} is not a model: it has no {CONFIG_NAME}.", "Choose another repository.")
        if SINGLE_NAME not in self.files and INDEX_NAME not in self.files:
            refuse_other_formats(self.name, self.files)
            raise CheckpointCorrupt(
                f"{self.name} holds no weights: neither {SINGLE_NAME} nor {INDEX_NAME} is there.",
                "Choose another repository of this model.",
            )

    def shard_names(self, weight_map: Mapping[str, str]) -> list[str]:
        """The files with the weights. Raises CheckpointCorrupt where the index lists one that is not there."""
        names = sorted(set(weight_map.values())) if weight_map else [SINGLE_NAME]
        for name in names:
            if name not in self.files:
                raise CheckpointCorrupt(
                    f"Shard {name} is missing from {self.name}, though {INDEX_NAME} lists it.",
                    "Choose another repository of this model.",
                )
        return names

    def companions(self) -> list[RepositoryFile]:
        """Everything the model needs beside its weights."""
        wanted = [name for name in self.files if any(fnmatch(name, pattern) for pattern in COMPANIONS)]
        wanted = [name for name in wanted if not any(fnmatch(name, pattern) for pattern in NOT_COMPANIONS)]
        return [self.files[name] for name in sorted(wanted) if "/" not in name]


def look_up(name: str) -> Repository:
    """What the hub says of `name` ("org/name") now. Raises ModelNotFound, AccessDenied, HubUnreachable."""
    with hub_errors(name):
        info = hub_api().model_info(name, revision=BRANCH, files_metadata=True, timeout=ASK_SECONDS)
    files = {
        file.rfilename: RepositoryFile(
            file.rfilename,
            file.lfs.size if file.lfs else file.size or 0,
            file.blob_id or "",
            file.lfs.sha256 if file.lfs else None,
        )
        for file in info.siblings or ()
    }
    return Repository(info.id, info.sha or BRANCH, files)
