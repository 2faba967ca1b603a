"""What a model would need before any of its weights is here: from its config and the headers of its files.

The same skeleton, index and footprint that loading uses; only the headers may come from the hub.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PretrainedConfig

from engine.checkpoint.catalog import cached_config, find_model, is_repository_name
from engine.checkpoint.config_only import imagine_headers
from engine.checkpoint.expert_index import ExpertIndex
from engine.checkpoint.hub.download import DownloadPlan, plan_download
from engine.checkpoint.hub.files import fetch_small
from engine.checkpoint.hub.remote_headers import read_remote_headers, read_weight_map
from engine.checkpoint.hub.repository import Repository, look_up
from engine.checkpoint.model_card import CARD_NAME
from engine.checkpoint.quantised import PRECISIONS, QuantisedIndex, quantised_dir
from engine.checkpoint.quantised.layout import lay_out_packed
from engine.checkpoint.safetensors_header import CheckpointTensors, read_checkpoint_headers
from engine.checkpoint.skeleton import CONFIG_NAME, Skeleton, build_skeleton
from engine.errors import EngineError, HubUnreachable, InvalidSetting, ModelNotFound
from engine.hardware.memory_plan import Footprint
from engine.model.footprint import footprint

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ModelEstimate:
    """`total_parameters` counts every weight of the model, `active_parameters` those one token uses.

    `from_headers` is False where the config alone had to do. `download` is what belongs to a model on the hub, None
    for a folder.
    """

    name: str
    folder: Path
    skeleton: Skeleton
    index: ExpertIndex
    total_parameters: int
    active_parameters: int
    from_headers: bool
    download: DownloadPlan | None = None

    @property
    def config(self) -> PretrainedConfig:
        return self.skeleton.model.config

    @property
    def architecture(self) -> str:
        return (self.config.architectures or [type(self.config).__name__])[0]

    @property
    def is_here(self) -> bool:
        """Whether it can be loaded without fetching anything."""
        return self.from_headers and (self.download is None or self.download.is_complete)

    def at_precision(self, precision: str) -> ModelEstimate:
        """The same with experts in "int8" or "nf4"; "auto" and "native" are the checkpoint's own numbers.

        Raises InvalidSetting for a checkpoint whose experts are in few bits already.
        """
        if precision not in PRECISIONS:
            return self
        if self.index.is_packed:
            raise InvalidSetting(
                f"The experts of {self.name} are stored in few bits already; {precision} would only lose more.",
                "Use the precision native.",
            )
        layers = tuple(
            lay_out_packed(self.index.params(layer), precision, experts.module)
            for layer, experts in enumerate(self.skeleton.experts)
        )
        return replace(self, index=QuantisedIndex(self.index, layers, precision, self.folder, quantised_dir()))

    def footprint(self, context_length: int) -> Footprint:
        """For the memory plan, as loading would reckon it."""
        return footprint(self.config, self.index, context_length, self.skeleton.own_dtype)


def estimate(name_or_path: str, on_progress: Progress | None = None, own_dtype: bool = False) -> ModelEstimate:
    """Of a model on this machine ("demo", a name in `models`, a folder), or else of "org/name" on the hub.

    With `own_dtype` it would compute in the dtype its config names, as on a card, else in float32.
    Where the hub cannot be reached, a config that is here already has to do. Raises what `estimate_folder` and
    `estimate_repository` raise, ModelNotFound for a built-in model that is yet to be built.
    """
    try:
        folder = find_model(name_or_path)
    except ModelNotFound:
        if not is_repository_name(name_or_path):
            raise
        return _estimate_from_hub(name_or_path, on_progress, own_dtype)
    if folder is None:
        raise ModelNotFound("The built-in model is not built yet.", "The first start builds it; nothing is downloaded.")
    return estimate_folder(name_or_path, folder, own_dtype)


def _estimate_from_hub(name: str, on_progress: Progress | None, own_dtype: bool) -> ModelEstimate:
    try:
        return estimate_repository(look_up(name), on_progress, own_dtype)
    except HubUnreachable:
        folder = cached_config(name)
        if folder is None:
            raise
        return estimate_config(name, folder, own_dtype)


def estimate_folder(name: str, folder: Path, own_dtype: bool = False) -> ModelEstimate:
    """Of a checkpoint on this machine. Raises the typed errors of `build_skeleton` and `read_checkpoint_headers`."""
    return _estimate(name, build_skeleton(folder, own_dtype=own_dtype), read_checkpoint_headers(folder), folder)


def estimate_repository(
    repository: Repository, on_progress: Progress | None = None, own_dtype: bool = False
) -> ModelEstimate:
    """Of a model on the hub, of which only config, index and headers are fetched.

    Raises what `estimate_folder` raises (so an architecture that cannot be run is told before the download), and
    AccessDenied, HubUnreachable.
    """
    repository.require_model()
    folder = fetch_small(repository, repository.files[CONFIG_NAME]).parent
    if CARD_NAME in repository.files:
        fetch_small(repository, repository.files[CARD_NAME])
    try:
        skeleton = build_skeleton(folder, own_dtype=own_dtype)
        headers = read_remote_headers(repository, read_weight_map(repository), on_progress)
        return _estimate(repository.name, skeleton, headers, folder, plan_download(repository))
    except EngineError as error:
        named = error.cause.replace(str(folder / CONFIG_NAME), f"{repository.name}'s {CONFIG_NAME}")
        EngineError.__init__(error, named.replace(str(folder), repository.name), error.remedy)  # not the cache's folder
        raise


def estimate_config(name: str, folder: Path, own_dtype: bool = False) -> ModelEstimate:
    """Of a config alone: right to about a percent for weights stored in the config's dtype or as mxfp4."""
    return _estimate(name, build_skeleton(folder, own_dtype=own_dtype), None, folder)


def _estimate(
    name: str, skeleton: Skeleton, headers: CheckpointTensors | None, folder: Path, download: DownloadPlan | None = None
) -> ModelEstimate:
    if headers is None:
        index = ExpertIndex(skeleton, *imagine_headers(skeleton, folder))
    else:
        index = ExpertIndex(skeleton, headers)
    total, active = _parameters(skeleton, index)
    return ModelEstimate(name, folder, skeleton, index, total, active, headers is not None, download)


def _parameters(skeleton: Skeleton, index: ExpertIndex) -> tuple[int, int]:
    """(all, those one token uses), counted as numbers however they are stored."""
    not_counted = {*skeleton.expert_parameter_names(), *skeleton.model.all_tied_weights_keys}
    dense = sum(p.numel() for name, p in skeleton.model.named_parameters() if name not in not_counted)
    each = [index.weights_per_expert(layer) for layer in range(len(skeleton.experts))]
    total = sum(weights * experts.count for weights, experts in zip(each, skeleton.experts, strict=True))
    used = sum(
        weights * min(experts.top_k, experts.count) for weights, experts in zip(each, skeleton.experts, strict=True)
    )
    return dense + total, dense + used
