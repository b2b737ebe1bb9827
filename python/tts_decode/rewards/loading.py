"""Loads a reward model from a folder or a hub id, from safetensors. No code of the folder is run."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from tts_kernels.device import checked_device

from ..decoding.decoder import TreeDecoder
from ..errors import ModelLoadError, TTSError
from ..model.loading import resolve_dtype
from ..model.transformers_output import first_line, quiet_transformers
from .readers import READERS, Reader, reader_named
from .readouts import ClassHead, ValueHead
from .reward_model import RewardModel

# Substrings of a folder's lower-case name that identify the reader; the first match counts.
_NAMES = {
    "math-shepherd": "math_shepherd",
    "llemma-reward-model": "rebase_llemma",
    "llama3.1-8b-prm": "rlhflow",
    "skywork-o1-open-prm": "skywork_o1",
    "qwen2.5-math-prm": "qwen2.5_math_prm",
    "llama3.1-math-prm": "er_prm",
    "pqm": "pqm",
    "versaprm": "versa_prm",
    "llama-prm800k": "versa_prm",
}
# A config identifies the reader by its first architecture.
_ARCHITECTURES = {"Qwen2ForProcessRewardModel": "qwen2.5_math_prm"}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_WRAPPED = "pretrained_model."  # prefix that training libraries add to the names of the model's weights
_HEAD_PREFIXES = {
    ClassHead: ("score.", "classifier."),
    ValueHead: ("v_head.summary.", "v_head.", "value_head.", "score."),
}


def load_reward_model(
    name_or_path: str | os.PathLike[str],
    reader: str | Reader | None = None,
    *,
    agg_strategy: str = "last",
    question: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    **options: Any,
) -> RewardModel:
    """Loads a reward model from a local folder in the format of `save_pretrained`, or from the hub.

    A head that transformers has no class for, as in Qwen2.5-Math-PRM or Skywork-o1-Open-PRM, is built from
    its weights: linear layers with a ReLU between them.

    Args:
        name_or_path: a folder, or else an id on the hub, such as "Qwen/Qwen2.5-Math-PRM-7B": its config,
            tokenizer and safetensors are fetched.
        reader: a `Reader` or the name of a shipped one. Default: identified by the name of the folder or of
            the model that its config names, or by the config's architecture, or "outcome" for a sequence
            classifier with one output.
        agg_strategy, question: of `RewardModel`.
        dtype, device: same as for `load_model`.
        options: of `TreeDecoder`, such as `kv_bytes`: one `KVBudget` can hold policy and reward model.

    Raises:
        ModelLoadError: the folder cannot be read or fetched, or lacks the reader's head.
        TypeError, ValueError: same as for `RewardModel`; or no reader was named and the folder does not
            identify one.
    """
    device = checked_device(device)
    chosen = None if reader is None else reader_named(reader)
    path = _folder(name_or_path)
    if not (path / "config.json").is_file():
        raise ModelLoadError(
            f"reward model: there is no folder {path} with a config.json; give a local folder in the format "
            "of save_pretrained, or OWNER/NAME of a model on the hub"
        )
    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            chosen = chosen or _told_by(str(name_or_path), config)
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            model, head = _load(path, config, chosen, resolve_dtype(dtype, device))
        except (ModelLoadError, _UnknownReaderError):
            raise
        except Exception as cause:  # third-party parsers: their exception types are no contract
            raise ModelLoadError(
                f"reward model: cannot load the folder {path}; it needs config.json, a tokenizer and "
                f"safetensors weights (pickled .bin weights are not read). Cause: {first_line(cause)}"
            ) from cause
    decoder = TreeDecoder(model, tokenizer, device=device, **options)
    return RewardModel(decoder, chosen, agg_strategy=agg_strategy, question=question, head=head)


class _UnknownReaderError(TTSError, ValueError):
    """Neither the caller nor the folder names the reader."""


def _folder(name_or_path: str | os.PathLike[str]) -> Path:
    """Returns the folder, or where the hub's files were put. Raises ModelLoadError."""
    path, name = Path(name_or_path).expanduser(), os.fspath(name_or_path)
    if path.exists() or not _HUB_ID.fullmatch(name):
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as cause:  # from the network, the hub, or its client
        raise ModelLoadError(
            f"reward model: there is no folder {path}, and {name} cannot be fetched from the hub; check "
            f"the name and the network. Cause: {first_line(cause)}"
        ) from cause


def _told_by(name: str, config: Any) -> Reader:
    for told in (Path(name).name, str(getattr(config, "_name_or_path", ""))):
        for part, reader in _NAMES.items():
            if part in told.rpartition("/")[2].lower():
                return READERS[reader]
    if _architecture(config) in _ARCHITECTURES:
        return READERS[_ARCHITECTURES[_architecture(config)]]
    if _architecture(config).endswith("ForSequenceClassification") and config.num_labels == 1:
        return READERS["outcome"]
    raise _UnknownReaderError(
        f"reader: {Path(name).name} ({_architecture(config)}) does not tell how it is read; expected one of "
        f"{', '.join(READERS)}, or a Reader"
    )


def _architecture(config: Any) -> str:
    return next(iter(getattr(config, "architectures", None) or ()), "unknown architecture")


def _load(path: Path, config: Any, reader: Reader, dtype: torch.dtype) -> tuple[Any, nn.Module | None]:
    """Returns the model, and its head if transformers does not load it."""
    name = _architecture(config)
    prefixes = _HEAD_PREFIXES.get(type(reader.readout))
    head: nn.Module | None = None
    auto: Any = AutoModelForCausalLM
    if prefixes is not None:
        if name.endswith("ForSequenceClassification"):
            auto = AutoModelForSequenceClassification
        elif name.endswith("ForTokenClassification"):
            auto = AutoModelForTokenClassification
        else:
            head, auto = _read_head(path, prefixes), AutoModel
    model, report = auto.from_pretrained(
        path,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        key_mapping={rf"^{re.escape(_WRAPPED)}": ""},
        output_loading_info=True,
    )
    if report["missing_keys"]:  # transformers would continue with random weights
        missing = sorted(report["missing_keys"])
        raise ModelLoadError(
            f"reward model: the weights in {path} ({name}) lack {', '.join(missing[:3])}, which the reader "
            f"{reader.name} needs: it is another kind of model"
        )
    return model, head


def _read_head(path: Path, prefixes: tuple[str, ...]) -> nn.Sequential:
    """Returns the linear layers of the first prefix present: `score.weight`, or `score.0.weight` and on."""
    tensors = _tensors(path, prefixes)
    for prefix in prefixes:
        weights = {
            name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)
        }
        layers = sorted((name for name in weights if name.endswith("weight")), key=_layer_number)
        if not layers:
            continue
        modules: list[nn.Module] = []
        for name in layers:
            weight, bias = weights[name], weights.get(name.removesuffix("weight") + "bias")
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
            linear.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
            modules += [nn.ReLU(), linear] if modules else [linear]
        return nn.Sequential(*modules)
    names = [f"{prefix}weight" for prefix in prefixes]
    raise ModelLoadError(
        f"reward model: the weights in {path} have no head named {' or '.join(names)}, which this reader "
        "reads; it is another kind of model, or was saved without its head"
    )


def _layer_number(name: str) -> int:
    number = name.partition(".")[0]
    return int(number) if number.isdigit() else 0


def _tensors(path: Path, prefixes: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Returns the tensors whose names begin with a prefix."""
    found = {}
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118  # not a mapping
                    name = key.removeprefix(_WRAPPED)
                    if name.startswith(prefixes):
                        found[name] = tensors.get_tensor(key)
        except SafetensorError as cause:
            raise ModelLoadError(f"reward model: {file} is not a safetensors file. Cause: {cause}") from cause
    return found
