"""docs/models.md says what happens to each model type of transformers, and why: rows of it are tried here."""

from __future__ import annotations

import re

import pytest
import torch
import transformers as hf
from tiny_models import VOCAB, byte_tokenizer
from tts_decode import TreeDecoder, UnsupportedModelError
from tts_decode.model.shape import shape_of_config

from benches.model_table import PAGE, fill, row
from benches.tiny_architectures import MODEL_TYPES, tiny_config, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

# Of each path, and of each reason why a model is refused, one or more.
SAMPLE = (
    *("llama", "qwen3", "gemma2", "gpt2", "cohere2", "mixtral"),
    *("falcon", "stablelm", "gpt_neo", "nemotron", "gemma3n_text", "whisper", "roc_bert"),
    *("bloom", "mpt", "bart", "deepseek_v3", "deepseek_v4", "gpt_oss", "mamba", "bamba", "lfm2", "zaya"),
    *("llama4_text", "mllama", "xlnet", "xglm", "git", "gemma4_text", "gemma4_assistant", "hrm_text", "doge"),
)


def committed() -> list[str]:
    return [line for line in PAGE.read_text(encoding="utf-8").split("\n") if line.startswith("| `")]


@pytest.mark.parametrize("model_type", SAMPLE)
def test_the_row_in_the_page_is_what_happens(model_type: str) -> None:
    assert row(model_type) in committed()


def test_every_model_type_has_one_row() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = {re.match(r"\| `([^`]+)`", line)[1]: line for line in committed()}  # type: ignore[index]
    assert len(rows) == len(committed())
    if f"transformers {hf.__version__} has" in page:  # another version has other types
        assert fill(page, {name: rows[name] for name in MODEL_TYPES}) == page


def test_nothing_that_is_served_is_wrong() -> None:
    assert not [line for line in committed() if "| wrong" in line]


@pytest.mark.parametrize(
    ("model_type", "options", "feature"),
    [
        ("falcon", {"alibi": True}, "ALiBi positions"),
        ("granitemoehybrid", {"layer_types": ["linear_attention"] * 3}, "linear-attention or state-space"),
        ("bert", {"is_decoder": False}, "bidirectional attention"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "bidirectional attention"),
        ("bert", {"add_cross_attention": True}, "cross-attention"),
        ("stablelm", {"hidden_size": 1088}, "head_dim 272"),
        ("gpt_neo", {"hidden_size": 1088}, "head_dim 272"),
        ("gpt_neox_japanese", {}, r"attention code of its own \(GPTNeoXJapaneseAttention\)"),
        ("dory", {}, "attention runs several times for a token"),
    ],
)
def test_the_refusal_names_what_the_setting_brings(
    model_type: str, options: dict[str, object], feature: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=f"needs .*{feature}.*, which the tree attention path"):
        TreeDecoder(tiny_model(model_type, options=options), byte_tokenizer(), kv_bytes=1 << 22)


def test_any_exception_of_the_model_is_quoted() -> None:
    """Whatever a model does with two tokens: the refusal says what it was, and leaves the model as it was."""

    class Moody(hf.LlamaForCausalLM):
        def forward(self, *args: object, **kwargs: object) -> object:
            return self.mood  # an AttributeError

    class WithoutKeywords(hf.LlamaForCausalLM):
        def forward(self, input_ids: torch.Tensor) -> object:
            return super().forward(input_ids)

    config = hf.LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    for cls, cause in ((Moody, "AttributeError: .*mood"), (WithoutKeywords, "TypeError: .*position_ids")):
        model = cls(config)
        with pytest.raises(
            UnsupportedModelError, match=f"{cls.__name__} cannot be run .*Cause: {cause}"
        ) as caught:
            TreeDecoder(model, byte_tokenizer(), kv_bytes=1 << 22)
        assert caught.value.__cause__ is not None
        assert model.config._attn_implementation != "tts_tree"


def test_one_layer_of_other_code_is_enough_to_refuse() -> None:
    class OwnAttention(torch.nn.Module):
        def forward(self, hidden_states: torch.Tensor, **_: object) -> tuple[torch.Tensor, None]:
            return hidden_states, None

    model = tiny_model("llama")
    model.model.layers[1].self_attn = OwnAttention()
    with pytest.raises(UnsupportedModelError, match=r"attention code of its own \(OwnAttention\)"):
        TreeDecoder(model, byte_tokenizer(), kv_bytes=1 << 22)


def test_memory_that_runs_out_is_no_feature() -> None:
    class Large(hf.LlamaForCausalLM):
        def forward(self, *args: object, **kwargs: object) -> object:
            raise torch.OutOfMemoryError("no room")

    config = hf.LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(torch.OutOfMemoryError):
        TreeDecoder(Large(config), byte_tokenizer(), kv_bytes=1 << 22)


@pytest.mark.parametrize("model_type", ["cpmant", "deepseek_v3", "gemma4_text", "dots3_note_text", "mamba"])
def test_a_config_alone_is_refused_too(model_type: str) -> None:
    with pytest.raises(UnsupportedModelError):
        shape_of_config(tiny_config(model_type), torch.float32)
