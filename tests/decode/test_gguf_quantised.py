"""GGUF files whose weights stay quantised: they compute what dequantised ones do, but for rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_gguf import TOKENS, gguf
from tiny_gguf_models import CASES, random_model, write_model
from tiny_quantised import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    INNER,
    KV_HEADS,
    LAYERS,
    MIXED,
    write_quantised,
)
from torch import Tensor
from tts_decode import TreeDecoder, UnsupportedModelError, gather
from tts_decode.model.agreement import compared_paths
from tts_decode.model.families import catalogue, reading
from tts_decode.model.families.conditions import why_general
from tts_decode.model.footprint import packed_bytes, weight_bytes
from tts_decode.model.hf import HFEngine
from tts_decode.model.loading import load_model
from tts_decode.model.quantised_experts import QuantisedExperts
from tts_decode.model.quantised_modules import (
    Quantised,
    QuantisedEmbedding,
    QuantisedLinear,
    weight_rows,
    weight_shape,
)

from tts_kernels import DecoderLayer

pytestmark = pytest.mark.usefixtures("one_thread", "cache")

IDS = torch.randint(3, len(TOKENS), (70,), generator=torch.Generator().manual_seed(1)).tolist()
# Eight bits of a row move a product by some 0.6 % of its size; this is behind three layers of them.
ROUNDING = 0.06
KINDS = {"QuantisedLinear", "QuantisedEmbedding"}
FILES: dict[str, dict[str, Any]] = {
    "Q4_0": {"kinds": "Q4_0"},
    "Q4_1": {"kinds": "Q4_1", "tied": False},
    "Q5_0": {"kinds": "Q5_0"},
    "Q8_0": {"kinds": "Q8_0", "tied": False, "biases": True},
    "Q4_K": {"kinds": "Q4_K"},
    "Q6_K": {"kinds": "Q6_K"},
    "IQ4_XS": {"kinds": "IQ4_XS"},
    "mixed": {"kinds": MIXED, "biases": True},
    "floats around": {"kinds": MIXED | {"token_embd": "F16", "output": "F32"}, "tied": False},
}


@pytest.fixture(params=FILES)
def quantised_file(request: pytest.FixtureRequest, file: Path) -> Path:
    write_quantised(file, **FILES[request.param])
    return file


@contextmanager
def exact(model: torch.nn.Module) -> Iterator[None]:
    """Inside, products are with the float weights."""
    rounding = [m for m in model.modules() if isinstance(m, QuantisedLinear | QuantisedExperts)]
    for module in rounding:
        module.exact = True
    yield
    for module in rounding:
        module.exact = False


def logits(model: Any, ids: list[int] = IDS) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float()


def share(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def serve(model: Any, tokenizer: Any, **options: Any) -> TreeDecoder:
    return TreeDecoder(model, tokenizer, kv_bytes=1 << 22, **options)


def test_the_weights_are_those_of_the_file(quantised_file: Path) -> None:
    """As transformers dequantises them, to the last bits; what int8 activations do is apart."""
    expected, _ = load_model(quantised_file, "float32")
    for _ in range(2):  # packed, then from the copy
        model, _ = load_model(quantised_file, "float32", weights="file")
        assert any(isinstance(module, QuantisedLinear) for module in model.modules())
        with exact(model):
            torch.testing.assert_close(logits(model), logits(expected), atol=2e-5, rtol=1e-4)
        assert 0 < share(logits(model), logits(expected)) < ROUNDING


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "general"])
@pytest.mark.parametrize("chunk", [9, 512])
def test_a_decoder_computes_what_the_dequantised_model_does(
    quantised_file: Path, packed: bool, chunk: int
) -> None:
    """A prompt whole and in chunks, single steps, forks inside a page, other text after a truncation."""
    plain, _ = load_model(quantised_file, "float32")
    model, tokenizer = load_model(quantised_file, "float32", weights="file")
    decoder = serve(model, tokenizer, pack_weights=packed, max_batch_tokens=chunk)
    assert why_general(model) is None
    assert (decoder.runtime.engine.packed is not None) is packed

    async def search() -> list[tuple[list[int], Tensor]]:
        root = await decoder.root(IDS[:37])
        one, two = root.fork(2)
        await one.extend(IDS[37:60])
        for token in IDS[60:65]:
            await two.extend([token])
        (three,) = one.fork(1)
        three.truncate(41)
        await three.extend(IDS[:9])
        return [(branch.tokens, await branch.next_logprobs()) for branch in (one, two, three)]

    for tokens, got in decoder.run(search()):
        assert share(got, logits(plain, tokens)[-1].log_softmax(-1)) < ROUNDING


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "general"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_branchs_bits_do_not_depend_on_the_batch(file: Path, packed: bool, dtype: str) -> None:
    """Without floats: products of transformers' own linear layers go by the batch."""
    write_quantised(file, MIXED | {"ffn_up": "Q4_0"})
    model, tokenizer = load_model(file, dtype, weights="file")

    async def logprobs(decoder: TreeDecoder, others: int) -> list[Tensor]:
        root = await decoder.root(IDS[:30])
        branches = root.fork(1 + others)
        first, *_ = await gather(branch.extend([i + 1, 2, 3]) for i, branch in enumerate(branches))
        following, *_ = await gather(branch.next_logprobs() for branch in branches)
        return [first, following]

    alone = serve(model, tokenizer, pack_weights=packed)
    expected = alone.run(logprobs(alone, 0))
    for others, chunk in [(20, 512), (3, 7)]:
        decoder = serve(model, tokenizer, pack_weights=packed, max_batch_tokens=chunk)
        for ours, same in zip(decoder.run(logprobs(decoder, others)), expected, strict=True):
            assert torch.equal(ours, same)


@pytest.mark.parametrize("name", CASES)
def test_every_architecture_keeps_its_weights(name: str, file: Path) -> None:
    """Layouts that are undone, fused products, experts, scaled embeddings; gpt2's lie transposed."""
    write_model(file, CASES[name], random_model(CASES[name]), kind="Q8_0")
    expected, _ = load_model(file, "float32")
    model, tokenizer = load_model(file, "float32", weights="file")
    quantised = {type(module).__name__ for module in model.modules() if isinstance(module, Quantised)}
    experts = "moe" in name or name in ("gpt-oss", "mixtral")
    assert quantised == (set() if name == "gpt2" else (KINDS | {"Quantised"} if experts else KINDS))
    with exact(model):
        torch.testing.assert_close(logits(model), logits(expected), atol=2e-4, rtol=1e-4)
    if name != "phi3-longrope":  # whose positions are refused
        decoder = serve(model, tokenizer)
        assert (decoder.runtime.engine.packed is not None) is (why_general(model) is None)
        assert why_general(model) is None or name in ("gpt2", "command-r-norms")
        got = decoder.run(following(decoder, IDS[:40]))
        assert share(got, logits(expected, IDS[:40])[-1].log_softmax(-1)) < 0.15


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss"])
def test_a_small_fault_in_experts_is_found(name: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2 %, where int8 activations may move a layer by more."""
    write_model(file, CASES[name], random_model(CASES[name]), kind="Q8_0")
    model, tokenizer = load_model(file, "float32", weights="file")
    inner = QuantisedExperts._inner
    monkeypatch.setattr(QuantisedExperts, "_inner", lambda self, gate, up: 1.02 * inner(self, gate, up))
    with pytest.raises(UnsupportedModelError, match=r"layer 0.*packed path"):
        serve(model, tokenizer)


def test_experts_of_gpt_oss_stay_in_mxfp4(file: Path) -> None:
    """With their biases; forks, a truncation, and the bits of a branch in any batch."""
    case = CASES["gpt-oss"]
    write_model(file, case, random_model(case), kind="MXFP4")
    plain, _ = load_model(file, "float32")
    model, tokenizer = load_model(file, "float32", weights="file")
    experts = model.model.layers[1].mlp.experts
    for part, name in ((experts.gate, "gate_up"), (experts.up, "gate_up"), (experts.down, "down")):
        assert part.kind == "MXFP4"
        every = getattr(plain.model.layers[1].mlp.experts, f"{name}_proj_bias")
        own = every if name == "down" else every[:, ::2] if part is experts.gate else every[:, 1::2]
        assert torch.equal(part.bias, own.detach().flatten())
    assert why_general(model) is None

    async def search(decoder: TreeDecoder, others: int) -> list[tuple[list[int], Tensor]]:
        root = await decoder.root(IDS[:37])
        one, two, *_ = branches = root.fork(2 + others)
        await gather(branch.extend(IDS[40 + i : 45 + i]) for i, branch in enumerate(branches))
        two.truncate(30)
        await two.extend(IDS[:9])
        return [(branch.tokens, await branch.next_logprobs()) for branch in (one, two)]

    whole, chunked = serve(model, tokenizer), serve(model, tokenizer, max_batch_tokens=7)
    found = whole.run(search(whole, 0))
    for (tokens, got), (_, same) in zip(found, chunked.run(search(chunked, 9)), strict=True):
        assert torch.equal(got, same)
        assert share(got, logits(plain, tokens)[-1].log_softmax(-1)) < 0.15


async def following(decoder: TreeDecoder, ids: list[int]) -> Tensor:
    root = await decoder.root(ids)
    return await root.next_logprobs()


def test_no_weight_lies_in_memory_twice(file: Path) -> None:
    """Head and embedding table share theirs, and the packed path takes the modules' own."""
    write_quantised(file, MIXED | {"ffn_up": "Q4_0"})
    model, tokenizer = load_model(file, weights="file")
    packed = serve(model, tokenizer).runtime.engine.packed
    assert packed is not None
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert table.panels.data_ptr() == head.panels.data_ptr()
    for layer, module in zip(packed.layers, model.model.layers, strict=True):
        attention, mlp = module.self_attn, module.mlp
        linears = [attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj]
        weights = [*layer.qkv, *layer.gate_up, layer.o, layer.down]
        for weight, linear in zip(weights, [*linears, attention.o_proj, mlp.down_proj], strict=True):
            assert weight.panels.data_ptr() == linear.panels.data_ptr()


Q4_K_M = dict.fromkeys(MIXED, "Q4_K") | {"token_embd": "Q6_K", "attn_v": "Q6_K", "ffn_down": "Q6_K"}
Q5_K_M = Q4_K_M | {name: "Q5_K" for name, kind in Q4_K_M.items() if kind == "Q4_K"}


@pytest.mark.parametrize("kinds", ["Q4_0", "Q8_0", Q4_K_M, Q5_K_M], ids=["Q4_0", "Q8_0", "Q4_K_M", "Q5_K_M"])
def test_memory_is_within_15_percent_of_the_file(kinds: Any, file: Path) -> None:
    write_quantised(file, kinds)
    model, tokenizer = load_model(file, weights="file")
    packed = serve(model, tokenizer).runtime.engine.packed
    assert packed is not None
    in_memory = sum(weight_bytes(model).values()) + packed_bytes(model, packed)
    assert in_memory < 1.15 * sum(tensor.n_bytes for tensor in gguf.GGUFReader(file).tensors)


def test_the_dtype_of_the_model_is_that_of_activations(file: Path) -> None:
    write_quantised(file, "Q4_0")
    model, tokenizer = load_model(file, "bfloat16", weights="file")
    assert (model.dtype, logits(model).dtype) == (torch.bfloat16, torch.float32)
    assert serve(model, tokenizer).runtime.pool.k_pages.dtype == torch.bfloat16
    before = model.model.layers[0].mlp.up_proj.panels
    model.float()
    assert model.model.embed_tokens(torch.tensor([3])).dtype == torch.float32
    assert model.model.layers[0].mlp.up_proj.panels is before


def test_generate_of_transformers_runs(file: Path) -> None:
    write_quantised(file, MIXED)
    model, _ = load_model(file, "float32", weights="file")
    made = model.generate(torch.tensor([IDS[:9]]), max_new_tokens=5, do_sample=False)
    assert made[0, :9].tolist() == IDS[:9]
    assert made[0, 9] == logits(model, IDS[:9])[-1].argmax()


@pytest.mark.parametrize("act", ["train", "save", "move"])
def test_what_quantised_weights_are_not_for_is_refused_by_name(file: Path, act: str, tmp_path: Path) -> None:
    write_quantised(file, "Q4_0")
    model, _ = load_model(file, weights="file")
    acts = {
        "train": model.train,
        "save": lambda: model.save_pretrained(tmp_path / "saved"),
        "move": lambda: model.to("meta"),
    }
    with pytest.raises(UnsupportedModelError, match=r"Quantised.*expected a quantised weight to stay"):
        acts[act]()


def test_adapters_are_refused_by_name(file: Path) -> None:
    peft = pytest.importorskip("peft")
    write_quantised(file, "Q4_0")
    model, _ = load_model(file, weights="file")
    with pytest.raises(ValueError, match="QuantisedLinear"):
        peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))


def test_rows_of_an_embedding_table(file: Path) -> None:
    write_quantised(file, MIXED)
    model, _ = load_model(file, "float32", weights="file")
    table = model.get_input_embeddings()
    assert isinstance(table, QuantisedEmbedding)
    ids = torch.tensor([[5, 0, len(TOKENS) - 1], [17, 17, 40]])
    assert torch.equal(table(ids), table.dequantised()[ids])
    for module in (table, model.get_output_embeddings(), torch.nn.Linear(4, 9)):
        weight = module.dequantised() if isinstance(module, Quantised) else module.weight.detach()
        assert weight_shape(module) == list(weight.shape)
        assert torch.equal(weight_rows(module, [3, 0, 3]), weight[[3, 0, 3]])
    assert table(ids[:, :0]).shape == (2, 0, 256)
    with pytest.raises(IndexError, match="indices"):
        table(torch.tensor([len(TOKENS)]))


def test_panels_that_are_written_are_noticed(file: Path) -> None:
    write_quantised(file, "Q8_0")
    model, tokenizer = load_model(file, weights="file")
    decoder = serve(model, tokenizer)

    before = decoder.run(following(decoder, IDS[:9]))
    model.model.layers[1].mlp.down_proj.panels.zero_()
    after = decoder.run(following(decoder, IDS[:9]))
    assert not torch.equal(before, after)
    assert share(after, logits(model, IDS[:9])[-1].log_softmax(-1)) < ROUNDING


def test_the_self_check_sees_faults_behind_the_rounding(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_quantised(file, MIXED)
    model, tokenizer = load_model(file, "float32", weights="file")
    assert serve(model, tokenizer).self_check is not None
    declared = catalogue.FAMILIES["LlamaModel"]
    for wrong in ({"rotary_pairs": True}, {"norm": "rms_plus_one"}, {"parallel": True}):
        monkeypatch.setitem(catalogue.FAMILIES, "LlamaModel", replace(declared, **wrong))
        with pytest.raises(UnsupportedModelError, match="does not agree with its own forward"):
            serve(load_model(file, "float32", weights="file")[0], tokenizer)


def test_the_self_check_looks_at_the_weights_as_they_are_served(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gate and up in the place of each other, only where they stay quantised."""
    write_quantised(file, "Q4_0")
    right = reading.pack_layer

    def wrong(*args: Any) -> DecoderLayer:
        layer = right(*args)
        return layer._replace(gate_up=layer.gate_up[::-1]) if isinstance(layer.gate_up, tuple) else layer

    monkeypatch.setattr(compared_paths, "pack_layer", wrong)
    model, tokenizer = load_model(file, "float32", weights="file")
    with pytest.raises(UnsupportedModelError, match=r"layer 0, .* packed path"):
        serve(model, tokenizer)


def test_the_cost_of_a_step_counts_the_bytes_of_the_panels(file: Path) -> None:
    write_quantised(file, "Q4_0", tied=False)
    model, _ = load_model(file, "bfloat16", weights="file")
    shape = HFEngine(model).shape
    layers = LAYERS * (2 * HIDDEN * HEADS * HEAD_DIM + 2 * HIDDEN * KV_HEADS * HEAD_DIM + 3 * HIDDEN * INNER)
    assert shape.parameters == shape.active_parameters == layers + HIDDEN * len(TOKENS)
    padded = HIDDEN * -(-len(TOKENS) // 16) * 16
    assert shape.weight_bytes * shape.parameters == pytest.approx((layers + padded) * 18 / 32)
    assert shape.kv_bytes == 2
