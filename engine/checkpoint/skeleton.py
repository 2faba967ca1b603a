"""The model's structure without weights: which modules are experts, and what every parameter is called."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.core_model_loading import build_glob_alternation
from transformers.modeling_utils import patch_output_recorders
from transformers.utils import logging as transformers_logging

from engine.checkpoint import mxfp4
from engine.errors import CheckpointCorrupt, CheckpointUnreadable, ModelNotFound, NotAMoeModel, UnsupportedModel

CONFIG_NAME = "config.json"
EXPERT_COUNT_SETTINGS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
    "num_routed_experts",
)
TOP_K_SETTINGS = ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_top_k", "moe_k")


_changing_libraries = threading.Lock()
"""Held while a model is constructed: transformers replaces functions of its classes and of torch meanwhile, and two
threads doing so at once would leave the replacements in place (no weights are tied from then on)."""


@dataclass(frozen=True)
class ExpertsModule:
    """One MoE layer's experts: the shapes of its fused parameters start with the number of experts."""

    name: str
    module: nn.Module
    shapes: dict[str, tuple[int, ...]]
    count: int
    top_k: int


@dataclass(frozen=True)
class Skeleton:
    """A model on the meta device, with its experts modules in forward order.

    In float32, or, where `own_dtype`, in the dtype that the checkpoint's config names.
    """

    model: PreTrainedModel
    experts: tuple[ExpertsModule, ...]
    own_dtype: bool = False

    def expert_parameter_names(self) -> list[str]:
        return [f"{experts.name}.{name}" for experts in self.experts for name in experts.shapes]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps loading chatter (unexpected keys, experimental features) off the user's terminal."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(before)


def build_skeleton(path: Path, experts_implementation: str = "eager", own_dtype: bool = False) -> Skeleton:
    """Build the model of the checkpoint folder `path` without memory for its weights.

    It computes in float32, or, with `own_dtype`, in the dtype that its config names.

    Raises ModelNotFound, CheckpointUnreadable, CheckpointCorrupt (bad config), NotAMoeModel,
    UnsupportedModel (quantised but for mxfp4, remote code, or experts off transformers' experts interface).
    """
    with quiet_transformers():
        config = read_config(path)
        model_class, config = _model_class(config)
        config._experts_implementation = experts_implementation
        try:
            model = _on_meta(model_class, config, _own_dtype(config) if own_dtype else torch.float32)
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ZeroDivisionError) as error:
            raise CheckpointCorrupt(
                f"No model can be built from {path / CONFIG_NAME} ({error}).", "Download the model's config again."
            ) from error
        if _stored_method(config) == mxfp4.METHOD:
            for name, module in model.named_modules():
                if is_experts_module(module):
                    mxfp4.expect_packed_experts(module, name)
    experts = tuple(_find_experts(model))
    if not experts:
        _refuse_without_experts(path, config)
    return Skeleton(model, experts, own_dtype)


def read_config(path: Path) -> Any:
    """transformers' config object of the checkpoint folder `path`."""
    raw = _read_raw_config(path)
    quantisation = raw.get("quantization_config") or (raw.get("text_config") or {}).get("quantization_config")
    if quantisation and quantisation.get("quant_method") != mxfp4.METHOD:
        raise UnsupportedModel(
            f"The checkpoint {path} is quantised ({quantisation.get('quant_method')}), which this version cannot read.",
            "Use a float32, float16, bfloat16 or mxfp4 version of the model.",
        )
    model_type = raw.get("model_type")
    if not model_type:
        raise CheckpointCorrupt(f"{path / CONFIG_NAME} names no model_type.", "Download the model's config again.")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        raise UnsupportedModel(
            f"The installed transformers does not know the architecture {model_type!r} of {path}.",
            "Use a model of an architecture that transformers contains; code from checkpoints is never run.",
        )
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # config classes validate with exceptions of many kinds
        raise CheckpointCorrupt(
            f"{path / CONFIG_NAME} is not a valid {model_type} config ({error}).", "Download the model's config again."
        ) from error


def _stored_method(config: Any) -> str | None:
    """How a quantised checkpoint says that its weights are stored."""
    return (getattr(config, "quantization_config", None) or {}).get("quant_method")


def _read_raw_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise ModelNotFound(f"There is no model folder {path}.", "Check the path, or list the models on this machine.")
    file = path / CONFIG_NAME
    if not file.exists():
        raise ModelNotFound(
            f"{path} is not a model: it has no {CONFIG_NAME}.", "Name a folder with config and weights."
        )
    try:
        raw = json.loads(file.read_bytes())
    except OSError as error:
        raise CheckpointUnreadable(f"{file} cannot be read ({error.strerror}).", "Check its permissions.") from error
    except ValueError as error:
        raise CheckpointCorrupt(f"{file} is not valid JSON ({error}).", "Download the model's config again.") from error
    if not isinstance(raw, dict):
        raise CheckpointCorrupt(f"{file} is not a JSON object.", "Download the model's config again.")
    return raw


def _model_class(config: Any) -> tuple[type[PreTrainedModel], Any]:
    """The class stock transformers would load for text generation, and the config it takes."""
    for auto_class in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(config) in auto_class._model_mapping:
            classes = auto_class._model_mapping[type(config)]
            choices = classes if isinstance(classes, (list, tuple)) else [classes]
            named = [c for c in choices if c.__name__ in (config.architectures or [])]
            model_class = (named or list(choices))[0]
            if model_class.config_class is config.sub_configs.get("text_config"):
                config = config.get_text_config()
            return model_class, config
    raise UnsupportedModel(
        f"transformers has no text-generating model for the architecture {config.model_type!r}.",
        "Use a model that generates text.",
    )


def _own_dtype(config: Any) -> torch.dtype:
    """What stock transformers computes in with `dtype="auto"`; bfloat16 where that is no dtype to compute in."""
    dtype = config.dtype or getattr(config.get_text_config(), "dtype", None) or torch.float32
    return dtype if dtype in (torch.float32, torch.float16, torch.bfloat16) else torch.bfloat16


def _on_meta(model_class: type[PreTrainedModel], config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """Construct exactly as `from_pretrained(dtype=dtype)` would."""
    config.dtype = dtype
    for key in config.sub_configs:
        if getattr(config, key, None) is not None:
            getattr(config, key).dtype = dtype
    with _changing_libraries, ExitStack() as stack:
        for context in model_class.get_init_context(dtype, False, False, None):
            stack.enter_context(context)
        model = model_class(config)
        patch_output_recorders(model)
    _keep_in_float32(model, dtype)
    return model


def _keep_in_float32(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Parameters that the family never computes in half precision, as `from_pretrained` keeps them."""
    kept = model._get_dtype_plan(dtype)
    if not kept:
        return
    pattern = build_glob_alternation(list(kept))[0]
    for name, parameter in model.named_parameters():
        if pattern.search(name):
            parameter.data = parameter.data.float()
    for name, buffer in model.named_buffers():
        if pattern.search(name) and buffer.is_floating_point():
            buffer.data = buffer.data.float()


def is_experts_module(module: nn.Module) -> bool:
    """Whether transformers' experts interface runs this module."""
    return all(hasattr(module, name) for name in ("_apply_gate", "is_transposed", "has_gate", "num_experts"))


def _find_experts(model: nn.Module) -> Iterator[ExpertsModule]:
    for name, module in model.named_modules():
        if not is_experts_module(module):
            continue
        shapes = {
            key: tuple(parameter.shape)
            for key, parameter in module.named_parameters(recurse=False)
            if parameter.ndim >= 1 and parameter.shape[0] == module.num_experts
        }
        parent = model.get_submodule(name.rpartition(".")[0])
        yield ExpertsModule(name, module, shapes, int(module.num_experts), _top_k(parent, module))


def _top_k(parent: nn.Module, experts: nn.Module) -> int:
    """How many experts the router beside `experts` picks for one token."""
    for module in (parent, *parent.children()):
        top_k = getattr(module, "top_k", None)
        if isinstance(top_k, int):
            return top_k
    for setting in TOP_K_SETTINGS:
        value = getattr(experts.config, setting, None)
        if value is not None:
            return max(value) if isinstance(value, (list, tuple)) else int(value)
    raise UnsupportedModel(
        f"It cannot be told how many experts a token of {type(parent).__name__} uses.",
        "Report this architecture to the project.",
    )


def _refuse_without_experts(path: Path, config: Any) -> None:
    text = config.get_text_config()
    counts = [value for name in EXPERT_COUNT_SETTINGS if (value := getattr(text, name, None))]
    if any((max(value) if isinstance(value, (list, tuple)) else value) > 1 for value in counts):
        raise UnsupportedModel(
            f"The experts of architecture {config.model_type!r} ({path}) are outside transformers' experts interface.",
            "Use a model of a family on that interface, such as Mixtral, OLMoE, Qwen3-MoE or DeepSeek-V3.",
        )
    raise NotAMoeModel(
        f"{path} ({config.model_type}) is not a Mixture-of-Experts model: it has no experts to cache.",
        "Choose a Mixture-of-Experts model, such as OLMoE or Qwen3-30B-A3B.",
    )
