"""Families declared as data: packed forwards against transformers in float64, and wrong declarations."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import transformers as hf
from primitives import make
from tiny_models import FAMILIES, tiny_model
from torch import Tensor
from transformers import PreTrainedModel
from tts_decode import TreeDecoder, UnsupportedModelError, gather
from tts_decode.model.families import catalogue
from tts_decode.model.families.conditions import why_general

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = torch.randint(0, 250, (70,), generator=torch.Generator().manual_seed(1)).tolist()


def randomised(family: str, dtype: torch.dtype = torch.float32, seed: int = 3, **options: Any) -> Any:
    """Norms, biases and multipliers too, which are all one or zero as they are made."""
    model = tiny_model(family, seed=seed, **options)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() < 2:
                weight.add_(torch.randn_like(weight), alpha=0.3)
    return model.to(dtype)


def exact_logprobs(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    """float64 [T, vocab], of transformers."""
    exact = type(model)(model.config).double().eval()
    exact.load_state_dict(model.state_dict())
    if any(name.endswith("experts") for name, _ in exact.named_modules()):
        exact.set_experts_implementation("eager")  # others know no float64
    with torch.no_grad():
        return exact(torch.tensor([tokens])).logits[0].log_softmax(-1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [9, 512])
def test_equal_to_transformers(family: str, chunk: int) -> None:
    """A prompt whole and in chunks, single steps, forks inside a page, other text after a truncation; all
    beyond the windows."""
    model = randomised(family)
    decoder = make(model, max_batch_tokens=chunk)
    assert why_general(model) is None
    assert decoder.runtime.engine.packed is not None

    async def search() -> list[tuple[list[int], Tensor, Tensor]]:
        root = await decoder.root(TEXT[:37])
        one, two = root.fork(2)
        first = await one.extend(TEXT[37:60])
        steps = [await two.extend([token]) for token in TEXT[60:65]]
        found = [(one.tokens, first, await one.next_logprobs())]
        found.append((two.tokens, torch.cat(steps), await two.next_logprobs()))
        (three,) = one.fork(1)
        three.truncate(41)
        forced = await three.extend(TEXT[:9])
        found.append((three.tokens, forced, await three.next_logprobs()))
        return found

    for tokens, forced, following in decoder.run(search()):
        expected = exact_logprobs(model, tokens)
        start = len(tokens) - len(forced)
        picked = expected[start - 1 : -1].gather(-1, torch.tensor(tokens[start:])[:, None])[:, 0]
        torch.testing.assert_close(forced.double(), picked, atol=2e-4, rtol=0)
        torch.testing.assert_close(following.double(), expected[-1], atol=2e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_branchs_bits_do_not_depend_on_the_batch(family: str, dtype: torch.dtype) -> None:
    model = randomised(family, dtype)

    async def logprobs(decoder: TreeDecoder, others: int) -> list[Tensor]:
        root = await decoder.root(TEXT[:30])
        branches = root.fork(1 + others)
        first, *_ = await gather(branch.extend([i + 1, 2, 3]) for i, branch in enumerate(branches))
        following, *_ = await gather(branch.next_logprobs() for branch in branches)
        return [first, following]

    whole = make(model)
    alone = whole.run(logprobs(whole, 0))
    for others, chunk in [(20, 512), (3, 7)]:
        decoder = make(model, max_batch_tokens=chunk)
        for ours, expected in zip(decoder.run(logprobs(decoder, others)), alone, strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.parametrize("family", ["gemma2", "olmo3", "cohere2", "starcoder2", "glm4", "granite_swa"])
def test_attention_of_another_kind_has_the_same_bits(family: str) -> None:
    """Where the masses of pages are wanted the layers run one by one."""
    model = randomised(family, torch.bfloat16)

    async def logprobs(decoder: TreeDecoder) -> Tensor:
        root = await decoder.root(TEXT[:40])
        await root.extend([5])
        return await root.next_logprobs()

    one_by_one, dense = make(model, track_mass=True), make(model)
    assert torch.equal(one_by_one.run(logprobs(one_by_one)), dense.run(logprobs(dense)))


def _never(_attention: Any) -> bool:
    return False


# The family, and what its declaration says falsely.
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"norm": "rms_plus_one"}),
    ("llama", {"parallel": True}),
    ("llama", {"rotary_pairs": True}),
    ("llama", {"rotates": _never}),
    ("gemma2", {"norm": "rms"}),
    ("gemma2", {"logit_soft_cap": None}),
    ("phi3", {"rotary_pairs": True}),
    ("granite", {"factor": None}),
    ("granite", {"embedding_factor": None}),
    ("granite", {"logit_divisor": None}),
    ("granite", {"logit_divisor": None, "logit_factor": "config.logits_scaling"}),
    ("granite_swa", {"rotary_by": None}),
    ("granite_swa", {"rotates": _never}),
    ("smollm3", {"rotates": lambda attention: True}),
    ("cohere2", {"rotates": lambda attention: True}),
    ("cohere2", {"norm": "rms"}),
    ("cohere2", {"rotary_pairs": False}),
    ("cohere2", {"angles": "twice"}),
    ("cohere2", {"parallel": False}),
    ("cohere2", {"logit_factor": None}),
    ("glm4", {"rotary_pairs": False}),
    ("glm4", {"out_norm": "post_mlp_layernorm", "mlp_out_norm": "post_self_attn_layernorm"}),
    ("stablelm", {"parallel": True}),
    ("exaone4", {"rotates": lambda attention: True}),
    ("mixtral", {"normalises_experts": False}),
    ("qwen3_moe", {"normalises_experts": True}),
    ("qwen2_moe", {"normalises_experts": True}),
    ("nemotron", {"norm": "layer"}),
    ("gpt_oss", {"rotary_pairs": True}),
    ("gpt_oss", {"normalises_experts": False}),
    ("olmo2", {"out_norm": None, "input_norm": "post_attention_layernorm"}),
]


@pytest.mark.parametrize(
    ("family", "wrong"), WRONG, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_a_wrong_declaration_is_found_at_load(
    family: str, wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the weights that the class initialises."""
    model = tiny_model(family)
    base = type(model.base_model).__name__
    declared = dataclasses.replace(catalogue.FAMILIES[base], **wrong)
    monkeypatch.setitem(catalogue.FAMILIES, base, declared)
    with pytest.raises(UnsupportedModelError):
        make(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_declaration_without_one_of_its_norms_is_not_used(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    base = type(model.base_model).__name__
    declared = catalogue.FAMILIES[base]
    for name in ("input_norm", "out_norm", "mlp_norm", "mlp_out_norm", "head_norms"):
        if getattr(declared, name) is not None and not (name == "mlp_norm" and family == "stablelm_parallel"):
            monkeypatch.setitem(catalogue.FAMILIES, base, dataclasses.replace(declared, **{name: None}))
            assert "is not in the declaration" in (why_general(model) or "")


def gemma3_with_images() -> PreTrainedModel:
    """Text of the family in a model that also takes images."""
    text = tiny_model("gemma3").config
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(2)
    config = hf.Gemma3Config(
        text_config=text.to_dict(),
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=1,
        image_token_index=255,
        boi_token_index=254,
        eoi_token_index=253,
    )
    return hf.Gemma3ForConditionalGeneration(config).eval()


def test_a_model_for_more_than_text_runs_packed() -> None:
    model = gemma3_with_images()
    assert why_general(model) is None
    decoder = make(model)
    assert decoder.runtime.engine.packed is not None

    async def following() -> Tensor:
        return await (await decoder.root(TEXT)).next_logprobs()

    with torch.no_grad():
        expected = model(torch.tensor([TEXT])).logits[0, -1].log_softmax(-1)
    torch.testing.assert_close(decoder.run(following()), expected, atol=2e-4, rtol=0)


def test_a_wrapper_that_no_declaration_names_runs_over_the_general_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = "Gemma3TextModel"
    monkeypatch.setitem(catalogue.FAMILIES, base, dataclasses.replace(catalogue.FAMILIES[base], wrappers=()))
    assert "is no wrapper in the declaration" in (why_general(gemma3_with_images()) or "")


@dataclasses.dataclass
class GatedConfig(hf.LlamaConfig):
    """As a later release of transformers may have it."""

    attention_gate: float | None = None


@pytest.mark.parametrize(("value", "served"), [(None, True), (0.5, False)])
def test_an_option_that_no_declaration_covers_leads_to_the_general_path(
    value: float | None, served: bool
) -> None:
    model = tiny_model()
    config = GatedConfig(**model.config.to_dict())
    config.attention_gate = value
    model.config = model.model.config = config
    assert (why_general(model) is None) == served
    if not served:
        assert why_general(model) == "config.attention_gate is not covered by the declaration of LlamaModel"


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("stablelm", {"qk_layernorm": True}, "layer 0: self_attn.q_layernorm.norms.0.weight is not in"),
        ("cohere", {"use_qk_norm": True}, "layer 0: self_attn.q_norm.weight is not in the declaration"),
        ("starcoder2", {"hidden_act": "relu"}, "layers.0.mlp.act is ReLU"),
        ("gemma", {"intermediate_size": 90}, "layer 0: the width of the MLP is no multiple of 16"),
    ],
)
def test_other_settings_run_over_the_general_path(family: str, options: dict[str, Any], reason: str) -> None:
    model = randomised(family, **options)
    assert (why_general(model) or "").startswith(reason)
    decoder = make(model)
    assert decoder.runtime.engine.packed is None

    async def following() -> Tensor:
        return await (await decoder.root(TEXT)).next_logprobs()

    expected = exact_logprobs(model, TEXT)[-1]
    torch.testing.assert_close(decoder.run(following()).double(), expected, atol=2e-4, rtol=0)
