"""Settings: command line over environment (EXPERTFLOW_*) over the settings file over defaults.

What the person changes on the page (budget, sampling, system prompt) goes to the settings file and is there
again after a restart.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import BaseModel, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from engine.errors import InvalidSetting
from engine.paths import config_dir

ENGINE_OPTIONS = (
    "model",
    "budget",
    "device",
    "precision",
    "policy",
    "link",
    "context_length",
    "preload",
    "host_compute",
)


class Sampling(BaseModel, extra="ignore"):
    """How answers are drawn; the names are those of `Engine.chat`."""

    system_prompt: str = ""
    temperature: float = Field(default=0.7, ge=0.0, le=5.0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=0.95, gt=0.0, le=1.0)
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    repetition_penalty: float | None = Field(default=None, gt=0.0, le=5.0)  # None: as the model's makers chose
    max_new_tokens: int = Field(default=512, ge=1)
    seed: int | None = None
    stop: list[str] = []

    def chat_arguments(self) -> dict[str, Any]:
        """Keyword arguments for `Engine.chat`."""
        values = self.model_dump(exclude={"system_prompt"})
        values["stop"] = tuple(self.stop)
        return values


class Settings(BaseSettings):
    """Everything a person can set once. See `load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix="EXPERTFLOW_", env_nested_delimiter="__", extra="ignore", toml_file=None
    )

    model: str = "demo"
    budget: str | int = "auto"
    device: str = "auto"
    precision: str = "auto"
    policy: str = "auto"
    link: str = "auto"
    context_length: int | None = None
    preload: bool = False
    host_compute: bool = False
    chats_at_once: int = Field(default=0, ge=0, le=64)  # answered together by the page; 0: as many as go well
    host: str = "127.0.0.1"
    port: int = Field(default=7860, ge=0, le=65535)
    open_browser: bool = True
    record_routing: bool = False
    learn_from_chats: bool = False  # needs record_routing
    routing_limit_megabytes: int = Field(default=256, ge=1)  # for each model; the oldest conversations go
    sampling: Sampling = Sampling()

    def engine_options(self) -> dict[str, Any]:
        """Keyword arguments for `Engine.load`."""
        return {name: getattr(self, name) for name in ENGINE_OPTIONS}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, settings_path())


def beside_one(chats_at_once: int) -> int | str:
    """`batch_size` of `Engine.load` for so many chats at once, 0 for as many as go well."""
    return chats_at_once - 1 if chats_at_once else "auto"


def settings_path() -> Path:
    return config_dir() / "settings.toml"


def load_settings(command_line: Mapping[str, Any] | None = None) -> Settings:
    """Settings of this run; None in `command_line` means "not given". Raises InvalidSetting."""
    given = {name: value for name, value in (command_line or {}).items() if value is not None}
    path = settings_path()
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InvalidSetting(
            f"The setting {name!r} has a value that cannot be used: {first['input']!r} ({first['msg']}).",
            f"Change it where it was set: the command line, EXPERTFLOW_{name.upper()} or {path}.",
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidSetting(
            f"The settings file {path} is not valid TOML: {error}.",
            "Correct it, or delete it to start from the defaults.",
        ) from error
    except OSError as error:
        raise InvalidSetting(
            f"The settings file {path} cannot be read: {error.strerror or error}.",
            "Correct its permissions, or delete it to start from the defaults.",
        ) from error


def save_changes(changes: Mapping[str, Any]) -> None:
    """Writes changed values into the settings file and keeps its other values and comments.

    `changes` may hold one level of tables. The file is replaced as a whole, so a killed process leaves the old
    one. Raises OSError where the folder cannot be written.
    """
    path = settings_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    document = tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else tomlkit.document()
    _merge(document, changes)
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    fresh.write_text(tomlkit.dumps(document), encoding="utf-8")
    os.replace(fresh, path)


def _merge(table: Any, changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, Mapping):
            if name not in table:
                table[name] = tomlkit.table()
            _merge(table[name], value)
        elif value is None:
            table.pop(name, None)
        else:
            table[name] = value
