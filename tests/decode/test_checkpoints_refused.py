"""Checkpoints that are refused: by a setting's name before a weight is read, or for what is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_checkpoints import Saved, awq, compressed, gptq, int_quantized, pack_quantized
from torch import Tensor
from tts_decode.errors import ModelLoadError
from tts_decode.model.loading import load_model

GPTQ = Saved(4, 32, gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False})
AWQ = Saved(4, 64, awq, {"quant_method": "awq", "bits": 4, "group_size": 64})
WEIGHTS = {"num_bits": 4, "strategy": "group", "group_size": 64, "symmetric": False}
PACKED = Saved(4, 64, pack_quantized, compressed("pack-quantized", WEIGHTS))
INT8 = Saved(
    8,
    -1,
    int_quantized,
    compressed("int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": True}),
    symmetric=True,
)
Q = "model.layers.1.self_attn.q_proj"


def grouped(weights: dict[str, Any], **others: Any) -> dict[str, Any]:
    """Changed `config_groups`, of one group."""
    group = {"targets": ["Linear"], "weights": WEIGHTS | weights, "input_activations": None} | others
    return {"config_groups": {"group_0": group}}


@pytest.mark.parametrize(
    ("saved", "changes", "message"),
    [
        *(
            (GPTQ, {"quant_method": method}, f"quant_method: got '{method}', expected 'gptq' or 'awq'")
            for method in (
                "fp8",
                "bitsandbytes",
                "hqq",
                "quark",
                "torchao",
                "auto-round",
                "aqlm",
                "fbgemm_fp8",
            )
        ),
        (GPTQ, {"quant_method": None}, "quant_method: got None"),
        (
            GPTQ,
            {"bits": 3},
            "bits: got 3, expected 4 or 8; load the model's float checkpoint with weights='int8'",
        ),
        (GPTQ, {"bits": 2}, "bits: got 2"),
        (GPTQ, {"bits": "4"}, "bits: got '4'"),
        (GPTQ, {"bits": True}, "bits: got True"),
        (
            GPTQ,
            {"checkpoint_format": "marlin"},
            "checkpoint_format: got 'marlin', expected 'gptq' or 'gptq_v2'",
        ),
        (GPTQ, {"format": "bitblas"}, "format: got 'bitblas'"),
        (GPTQ, {"is_marlin_format": True}, "is_marlin_format asks for the layout of Marlin"),
        (GPTQ, {"dynamic": {"-:.*": {}}}, "dynamic asks for settings that differ from module to module"),
        (GPTQ, {"pack_dtype": "int64"}, "pack_dtype: got 'int64'"),
        (GPTQ, {"group_size": "all"}, "group_size: got 'all', expected an integer"),
        (GPTQ, {"sym": "yes"}, "sym: got 'yes'"),
        (AWQ, {"bits": 8}, "bits: got 8, expected 4"),
        (AWQ, {"version": "gemv"}, "version: got 'gemv', expected 'gemm'"),
        (AWQ, {"version": "marlin"}, "version: got 'marlin'"),
        (AWQ, {"zero_point": False}, "zero_point: got False"),
        (
            PACKED,
            {"format": "float-quantized"},
            "format: got 'float-quantized', expected 'pack-quantized' or",
        ),
        (PACKED, {"format": "marlin-24"}, "format: got 'marlin-24'"),
        (PACKED, {"format": "nvfp4-pack-quantized"}, "format: got 'nvfp4-pack-quantized'"),
        (PACKED, {"config_groups": {}}, "config_groups: got {}, expected at least one entry"),
        (PACKED, {"config_groups": ["Linear"]}, r"config_groups: got \['Linear'\], expected an object"),
        (PACKED, {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme asks for a quantised KV cache"),
        (PACKED, {"transform_config": {"config_groups": {"a": 1}}}, "transform_config asks for transformed"),
        (
            PACKED,
            {"sparsity_config": {"format": "sparse-24-bitmask"}},
            "sparsity_config.format: got 'sparse-24-b",
        ),
        (PACKED, grouped({"num_bits": 3}), "config_groups.group_0.weights.num_bits: got 3, expected 4 or 8"),
        (PACKED, grouped({"type": "float"}), "weights.type: got 'float', expected 'int'"),
        (
            PACKED,
            grouped({"strategy": "block"}),
            "weights.strategy: got 'block', expected 'tensor' or 'channel'",
        ),
        (
            PACKED,
            {"config_groups": {"group_0": {"weights": None}}},
            "group_0.weights: got None, expected an object",
        ),
        (
            PACKED,
            grouped({}, output_activations={"num_bits": 8}),
            "output_activations asks for quantised outputs",
        ),
        (
            PACKED,
            grouped({}, input_activations={"num_bits": 8, "type": "float", "dynamic": True}),
            "input_activations.type: got 'float', expected 'int'",
        ),
        (
            PACKED,
            grouped({}, input_activations={"num_bits": 8, "type": "int", "dynamic": False}),
            "input_activations.dynamic: got False, expected True",
        ),
        (
            PACKED,
            {"config_groups": {n: {"weights": WEIGHTS | {"num_bits": b}} for n, b in (("a", 4), ("b", 8))}},
            "config_groups quantise modules in several ways",
        ),
    ],
    ids=str,
)
def test_a_setting_that_is_not_served(
    saved: Saved, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """Before any weight is read: there are none."""
    saved.write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    saved.write_settings(tmp_path, changes)
    with pytest.raises(ModelLoadError, match=message):
        load_model(tmp_path)


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def apply(tensors: dict[str, Tensor]) -> None:
        tensors[name] = change(tensors[name])

    return apply


def with_number(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        made = tensor.clone()
        made.flatten()[5] = value
        return made

    return change


@pytest.mark.parametrize(
    ("saved", "change", "message"),
    [
        (GPTQ, lambda t: t.pop(f"{Q}.qzeros"), f"got no tensor {Q}.qzeros, expected one of shape"),
        (GPTQ, lambda t: t.pop(f"{Q}.qweight"), f"got no tensor {Q}.weight"),
        (GPTQ, lambda t: t.pop("model.norm.weight"), "got no tensor model.norm.weight"),
        (GPTQ, lambda t: t.update({"more.weight": torch.ones(2)}), "got the tensor more.weight, which Llama"),
        (
            GPTQ,
            lambda t: t.update({f"{Q}.bias": torch.ones(128)}),
            f"{Q}.bias: got numbers for a layer without bias",
        ),
        (
            GPTQ,
            lambda t: t.update({"model.norm.qweight": torch.zeros(8, 8, dtype=torch.int32)}),
            "has a quantised weight for model.norm, expected only such of linear layers",
        ),
        (
            GPTQ,
            lambda t: t.update({"model.experts.0.qweight": torch.zeros(8, 8, dtype=torch.int32)}),
            "has a quantised weight for model.experts.0, .* has none there",
        ),
        (
            GPTQ,
            changed(f"{Q}.qweight", lambda x: x[:4]),
            f"{Q}.qweight: got shape \\[4, 128\\], expected \\[8",
        ),
        (GPTQ, changed(f"{Q}.qweight", torch.Tensor.long), f"{Q}.qweight: got int64, expected int32"),
        (GPTQ, changed(f"{Q}.scales", lambda x: x[:, :3]), f"{Q}.scales: got shape"),
        (GPTQ, changed(f"{Q}.scales", torch.Tensor.double), f"{Q}.scales: got float64"),
        (GPTQ, changed(f"{Q}.scales", with_number(float("nan"))), f"{Q}: scales: got NaN, infinity"),
        (GPTQ, changed(f"{Q}.scales", with_number(float("inf"))), f"{Q}: scales: got NaN, infinity"),
        (
            GPTQ,
            changed(f"{Q}.g_idx", with_number(1)),
            f"{Q}.g_idx makes groups of 31 to 33 inputs, which is not served, expected 32 in each",
        ),
        (
            GPTQ,
            changed(f"{Q}.g_idx", with_number(2)),
            f"{Q}.g_idx: got a group out of range, expected 0 to 1",
        ),
        (GPTQ, changed(f"{Q}.g_idx", with_number(-1)), f"{Q}.g_idx: got a group out of range"),
        (GPTQ, changed(f"{Q}.g_idx", lambda x: x[1:]), rf"{Q}.g_idx: got shape \[63\], expected \[64\]"),
        (GPTQ, changed(f"{Q}.g_idx", torch.Tensor.float), f"{Q}.g_idx: got float32, expected int32 or int64"),
        (GPTQ, changed("lm_head.weight", lambda x: x[:9]), "lm_head.weight: got shape"),
        (GPTQ, changed("lm_head.weight", torch.Tensor.int), "lm_head.weight: got int32, expected float32 or"),
        (AWQ, changed(f"{Q}.qzeros", lambda x: x[:, :1]), f"{Q}.qzeros: got shape"),
        (PACKED, changed(f"{Q}.weight_shape", lambda x: x.flip(0)), rf"{Q}.weight_shape: got \[64, 128\]"),
        (PACKED, lambda t: t.pop(f"{Q}.weight_zero_point"), f"got no tensor {Q}.weight_zero_point"),
        (
            PACKED,
            lambda t: t.update({f"{Q}.weight_g_idx": torch.arange(64, dtype=torch.int32) % 1 + 1}),
            f"{Q}.weight_g_idx: got a group out of range",
        ),
        (INT8, changed(f"{Q}.weight", torch.Tensor.short), f"{Q}.weight: got int16, expected int8"),
        (
            INT8,
            lambda t: t.update({f"{Q}.weight_zero_point": torch.ones(128, 1, dtype=torch.int8)}),
            f"{Q}.weight_zero_point: got others than 0",
        ),
        (INT8, lambda t: t.update({f"{Q}.input_scale": torch.ones(1)}), f"got the tensor {Q}.input_scale"),
    ],
)
def test_damaged_tensors(
    saved: Saved, change: Callable[[dict[str, Tensor]], Any], message: str, tmp_path: Path
) -> None:
    saved.write(tmp_path, change)
    with pytest.raises(ModelLoadError, match=message):
        load_model(tmp_path)


def test_zero_points_that_are_not_what_sym_says(tmp_path: Path) -> None:
    GPTQ.write(tmp_path)
    GPTQ.write_settings(tmp_path, {"sym": True})
    with pytest.raises(ModelLoadError, match="qzeros: got others than 8, expected none as sym is true"):
        load_model(tmp_path)


def test_act_order_without_its_groups(tmp_path: Path) -> None:
    GPTQ.write(tmp_path, lambda tensors: tensors.pop(f"{Q}.g_idx"))
    load_model(tmp_path)
    GPTQ.write_settings(tmp_path, {"desc_act": True})
    with pytest.raises(ModelLoadError, match=rf"got no tensor {Q}.g_idx, expected one of shape \[64\]"):
        load_model(tmp_path)


@pytest.mark.parametrize("order", ["group", "dynamic", True])
def test_compressed_act_order_without_its_groups(order: str | bool, tmp_path: Path) -> None:
    """Groups of neighbours would be other weights. `weight` is the order of rounding, which leaves none."""
    PACKED.write(tmp_path)
    PACKED.write_settings(tmp_path, grouped({"actorder": "weight"}))
    load_model(tmp_path)
    PACKED.write_settings(tmp_path, grouped({"actorder": order}))
    with pytest.raises(ModelLoadError, match=r"no tensor .*\.weight_g_idx, expected one of shape \[128\]"):
        load_model(tmp_path)
    PACKED.write_settings(tmp_path, grouped({"actorder": "unheard of"}))
    with pytest.raises(ModelLoadError, match="actorder: got 'unheard of', expected 'weight' or 'static'"):
        load_model(tmp_path)


def test_groups_that_do_not_divide(tmp_path: Path) -> None:
    GPTQ.write(tmp_path)
    for size in (48, 24, 0, -2):
        GPTQ.write_settings(tmp_path, {"group_size": size})
        with pytest.raises(ModelLoadError, match=f"has groups of {size} of its (64|128) inputs, expected"):
            load_model(tmp_path)


def test_float_weights_where_the_config_says_quantised(tmp_path: Path) -> None:
    def plain(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("qweight")]:
            del tensors[name]

    GPTQ.write(tmp_path, plain)
    with pytest.raises(ModelLoadError, match="got no tensor qweight, expected one in each quantised module"):
        load_model(tmp_path)


def test_a_bias_of_zeros_for_a_layer_without(tmp_path: Path) -> None:
    """As AutoGPTQ saves it."""
    GPTQ.write(tmp_path, lambda tensors: tensors.update({f"{Q}.bias": torch.zeros(128)}))
    model, _ = load_model(tmp_path)
    assert model.get_submodule(Q).bias is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read .*model.safetensors.index.json"),
        ("{}", "cannot read .*model.safetensors.index.json"),
        ('{"weight_map": {"a": "../b.safetensors"}}', "got the file '../b.safetensors', expected a name"),
        ('{"weight_map": {"a": 3}}', "got the file 3"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "cannot read gone.safetensors"),
    ],
)
def test_an_index_that_is_damaged(text: str, message: str, tmp_path: Path) -> None:
    GPTQ.write(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelLoadError, match=message):
        load_model(tmp_path)


def test_files_cut_short_and_missing(tmp_path: Path) -> None:
    GPTQ.write(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for size in (len(whole) - 1, 100, 4, 0):
        file.write_bytes(whole[:size])
        with pytest.raises(ModelLoadError, match=r"cannot read model\.safetensors"):
            load_model(tmp_path)
    file.unlink()
    with pytest.raises(ModelLoadError, match=r"has neither model\.safetensors nor"):
        load_model(tmp_path)


def test_several_files(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    GPTQ.write(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, tmp_path / file)
    (tmp_path / "model.safetensors").unlink()
    places = {name: file for file, held in parts.items() for name in held}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    model, _ = load_model(tmp_path)
    assert type(model).__name__ == "LlamaForCausalLM"
    save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(ModelLoadError, match="lies in two files"):
        load_model(tmp_path)


def test_weights_that_do_not_go_together(tmp_path: Path) -> None:
    GPTQ.write(tmp_path)
    for weights in ("int8", "int4"):
        with pytest.raises(ModelLoadError, match=f"weights: got '{weights}' for .*, expected 'file'"):
            load_model(tmp_path, weights=weights)


def test_quantised_weights_that_the_config_does_not_tell_of(tmp_path: Path) -> None:
    """transformers would leave the layers with random numbers."""
    GPTQ.write(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    del config["quantization_config"]
    file.write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=r"does not fill model\.layers\.0.* of LlamaForCausalLM"):
        load_model(tmp_path)
