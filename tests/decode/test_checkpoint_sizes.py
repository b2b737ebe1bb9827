"""Folders whose config.json and weights are not of one model: each is refused by the name of what differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import byte_tokenizer, tiny_model
from transformers import AutoModelForCausalLM
from tts_decode.errors import ModelLoadError
from tts_decode.model import loading
from tts_decode.model.loading import load_model

pytestmark = pytest.mark.usefixtures("one_thread")
UP = "model.layers.1.mlp.up_proj.weight"


def saved(folder: Path, kind: str = "llama", **changes: Any) -> Path:
    tiny_model(kind).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**7}, "num_hidden_layers: got 10000000, expected at most 10000"),
        ({"num_hidden_layers": 31}, "num_hidden_layers: got 31, expected no more than the 30 tensors"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: got 0, expected at least 1"),
        ({"num_hidden_layers": -1}, "num_hidden_layers: got -1, expected at least 1"),
        ({"num_key_value_heads": 0}, "num_key_value_heads: got 0, expected at least 1"),
        ({"head_dim": 0}, "head_dim: got 0, expected at least 1"),
        ({"vocab_size": -5}, "vocab_size: got -5, expected at least 1"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps: got nan, expected 0 to 1"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps: got inf, expected 0 to 1"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers'.*got str"),  # transformers' own words
    ],
)
@pytest.mark.parametrize("weights", ["auto", "int4"])
def test_counts_that_no_model_has(
    changes: dict[str, Any], message: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for made in ("skeleton", "load_rounded"):
        monkeypatch.setattr(loading, made, lambda *_: pytest.fail("modules were made"))
    with pytest.raises(ModelLoadError, match=message):
        load_model(saved(tmp_path / "tiny", **changes), weights=weights)


def test_experts_beyond_number(tmp_path: Path) -> None:
    folder = saved(tmp_path / "tiny", "mixtral", num_local_experts=10**9)
    with pytest.raises(ModelLoadError, match="num_local_experts: got 1000000000, expected at most 10000"):
        load_model(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "llama4"])  # one runs packed, one general
def test_other_sizes_are_refused_before_there_is_memory_for_them(
    kind: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "tiny", kind, vocab_size=10**6)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("was loaded"))
    with pytest.raises(ModelLoadError, match=r"\.weight: got shape \[260, 64\], expected \[1000000, 64\] by"):
        load_model(folder, dtype)


def test_a_tensor_that_lies_the_other_way(tmp_path: Path) -> None:
    folder = saved(tmp_path / "tiny")
    tensors = load_file(folder / "model.safetensors")
    tensors[UP] = tensors[UP].T.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=rf"{UP}: got shape \[64, 96\], expected \[96, 64\]"):
        load_model(folder)


@pytest.mark.parametrize(("dtype", "told"), [(torch.int32, "I32"), (torch.float8_e4m3fn, "F8_E4M3")])
@pytest.mark.parametrize("kind", ["llama", "llama4"])
def test_numbers_that_are_no_floats(kind: str, dtype: torch.dtype, told: str, tmp_path: Path) -> None:
    """transformers casts them, whatever scales lie beside them."""
    folder = saved(tmp_path / "tiny", kind)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("o_proj.weight"))
    tensors[name] = tensors[name].to(dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=rf"{name}: got {told}, expected floats"):
        load_model(folder)


@pytest.mark.parametrize("length", [0, 5, 100, -1])
@pytest.mark.parametrize("weights", ["auto", "int4"])
def test_a_file_cut_short_is_named(weights: str, length: int, tmp_path: Path) -> None:
    folder = saved(tmp_path / "tiny")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:length])
    with pytest.raises(ModelLoadError, match=r"cannot read model\.safetensors: .*damaged or cut short"):
        load_model(folder, weights=weights)


EXTRA = "model.layers.1.self_attn.q_proj.bias"


@pytest.mark.parametrize("kind", ["llama", "llama4"])
@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_parts_that_the_config_denies(kind: str, weights: str, tmp_path: Path) -> None:
    """transformers leaves them out, and the rest would be another model."""
    options = {"no_rope_layers": [1, 0], "layer_types": None} if kind == "llama4" else {}
    folder = saved(tmp_path / "tiny", kind, num_hidden_layers=2, **options)
    with pytest.raises(ModelLoadError, match=r"got the tensor model\.layers\.2\."):
        load_model(folder, weights=weights)
    folder = saved(tmp_path / "biased", kind)
    tensors = load_file(folder / "model.safetensors") | {EXTRA: torch.ones(128)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=f"got the tensor {EXTRA}|{EXTRA}: got numbers"):
        load_model(folder, weights=weights)


def test_parts_beside_the_model_are_left_out(tmp_path: Path) -> None:
    """Towers for images, layers that draft, frequencies that older classes saved, and biases of zeros."""
    folder = saved(tmp_path / "tiny")
    beside = ("vision.layers.0.fc.weight", "mtp.norm.weight", "model.layers.0.self_attn.rotary_emb.inv_freq")
    tensors = load_file(folder / "model.safetensors") | {name: torch.ones(4) for name in beside}
    tensors[EXTRA] = torch.zeros(128)  # a bias that changes nothing
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model, _ = load_model(folder)
    assert torch.equal(model.get_parameter(UP), tensors[UP])


@pytest.mark.parametrize(("kind", "count"), [("qwen3_moe", 6), ("mixtral", 5), ("olmoe", 8)])
def test_experts_that_are_not_those_of_the_config(kind: str, count: int, tmp_path: Path) -> None:
    """transformers joins them first, and names none where that fails."""
    folder = saved(tmp_path / "tiny", kind)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    ending = ".experts.1.w3.weight" if kind == "mixtral" else ".experts.1.up_proj.weight"
    name = next(name for name in tensors if name.endswith(ending))
    extra = name.replace(".1.", f".{count}.")
    for changed, message in (
        ({key: value for key, value in tensors.items() if key != name}, r"no tensor .*\.1\.up_proj\.weight"),
        (
            tensors | {extra: tensors[name].clone()},
            f"experts.{count}.up_proj.weight, expected {count} experts",
        ),
        (tensors | {name: tensors[name][1:].clone()}, r"\.1\.up_proj\.weight: got shape \["),
    ):
        save_file(changed, file, metadata={"format": "pt"})
        with pytest.raises(ModelLoadError, match=message):
            load_model(folder)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("model.safetensors.index.json", "[1]", r"cannot read .*model\.safetensors\.index\.json"),
        (
            "model.safetensors.index.json",
            '{"weight_map": {"a": "gone.safetensors"}}',
            r"cannot read gone\.saf",
        ),
        ("tokenizer.json", "{}", r"got no usable tokenizer \(tokenizer\.json, tokenizer_config\.json\)"),
        ("config.json", "{}", r"got no usable config\.json"),
    ],
)
@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_the_damaged_file_is_named(weights: str, file: str, text: str, message: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "tiny")
    (folder / file).write_text(text)
    with pytest.raises(ModelLoadError, match=message):
        load_model(folder, weights=weights)


@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_fields_of_which_transformers_makes_no_model(weights: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "tiny", hidden_act="unheard of")
    with pytest.raises(ModelLoadError, match=r"got no usable fields in config\.json.*'unheard of'"):
        load_model(folder, weights=weights)


def test_what_is_right_loads(tmp_path: Path) -> None:
    for kind in ("llama", "mixtral", "llama4"):
        model, _ = load_model(saved(tmp_path / kind, kind), "float32")
        ids = torch.arange(20)[None]
        assert torch.equal(model(ids).logits, tiny_model(kind)(ids).logits)
