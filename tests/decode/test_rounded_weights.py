"""Float checkpoints loaded with weights="int8" or "int4": which layers are rounded, and float16 ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import byte_tokenizer, tiny_model
from torch import Tensor
from transformers import PreTrainedModel
from tts_decode.errors import ModelLoadError
from tts_decode.model.loading import load_model
from tts_decode.model.quantised_modules import QuantisedEmbedding, QuantisedLinear


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 40)[None]).logits.double()


def saved(folder: Path, dtype: torch.dtype = torch.float32, **options: object) -> PreTrainedModel:
    model = tiny_model(dtype=dtype, **options)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model


def steps(weight: Tensor, bits: int) -> Tensor:
    """Of 8 bits: of the largest of 32, 127 each way; of 4: of the range, 15."""
    groups = weight.double().unflatten(1, (-1, 32))
    if bits == 8:
        return (groups.abs().amax(-1) / 127).repeat_interleave(32, 1)
    return ((groups.amax(-1) - groups.amin(-1)) / 15).repeat_interleave(32, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("weights", "bits"), [("int8", 8), ("int4", 4)])
def test_linear_layers_are_rounded_and_the_head_to_eight_bits(
    weights: str, bits: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = saved(tmp_path, dtype)
    loaded, _ = load_model(tmp_path, "float32", weights=weights)
    for name, module in model.named_modules():
        found = loaded.get_submodule(name)
        if not isinstance(module, torch.nn.Linear):
            assert not isinstance(found, QuantisedLinear)
            continue
        assert isinstance(found, QuantisedLinear)
        kept = 8 if name == "lm_head" else bits
        assert found.form.bits == kept
        off = (found.dequantised().double() - module.weight.double()).abs()
        # Within half a step; four bits may cut the ends of a group's range off, where that is nearer in all.
        assert (off <= (0.51 if kept == 8 else 1.5) * steps(module.weight, kept)).all(), name
    table = loaded.get_input_embeddings().weight
    assert torch.equal(table, model.get_input_embeddings().weight.float())
    # A layer that is read wrong would take all of them away.
    far = (logits(loaded) - logits(model)).norm() / logits(model).norm()
    assert far < (0.15 if bits == 8 else 0.6)


def test_a_tied_table_is_rounded_once_for_both(tmp_path: Path) -> None:
    model = saved(tmp_path, tie_word_embeddings=True)
    loaded, _ = load_model(tmp_path, weights="int4")
    table, head = loaded.get_input_embeddings(), loaded.get_output_embeddings()
    assert isinstance(table, QuantisedEmbedding)
    assert isinstance(head, QuantisedLinear)
    assert table.panels.data_ptr() == head.panels.data_ptr()
    assert table.form.bits == 8
    weight = model.get_input_embeddings().weight
    assert ((table.dequantised().double() - weight.double()).abs() <= 0.51 * steps(weight, 8)).all()


def test_layers_whose_inputs_are_no_multiple_of_32_stay(tmp_path: Path) -> None:
    saved(tmp_path, intermediate_size=80)
    loaded, _ = load_model(tmp_path, weights="int8")
    assert isinstance(loaded.model.layers[0].mlp.down_proj, torch.nn.Linear)
    assert isinstance(loaded.model.layers[0].mlp.up_proj, QuantisedLinear)


def test_weights_that_cannot_be_rounded(tmp_path: Path) -> None:
    model = tiny_model()
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = float("nan")
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"up_proj: weight: got NaN"):
        load_model(tmp_path, weights="int8")


def test_other_weights(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ModelLoadError, match=r"got 'file' for .*, expected 'auto', 'int8' or 'int4'"):
        load_model(tmp_path, weights="file")
    with pytest.raises(ValueError, match="weights: got 'int3', expected 'auto', 'file' or one of int8, int4"):
        load_model(tmp_path, weights="int3")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_a_float16_checkpoint(dtype: str, tmp_path: Path) -> None:
    """Every float16 is a float32; bfloat16 rounds it."""
    model = saved(tmp_path, torch.float16)
    loaded, _ = load_model(tmp_path, dtype)
    assert loaded.dtype in (torch.float32, torch.bfloat16)
    if dtype != "auto":
        assert loaded.dtype == getattr(torch, dtype)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.to(loaded.dtype)), name
