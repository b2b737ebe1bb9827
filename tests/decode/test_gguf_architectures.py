"""Every architecture that is read from GGUF: the model read is the one that was written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny_gguf import TOKENS, gguf
from tiny_gguf_models import CASES, random_model, write_model
from tts_decode import TreeDecoder
from tts_decode.errors import ModelLoadError
from tts_decode.model.gguf.architectures import ARCHITECTURES
from tts_decode.model.gguf.config import config_of
from tts_decode.model.gguf.header import Header
from tts_decode.model.gguf.keys import HARMLESS, NEUTRAL
from tts_decode.model.gguf.metadata import Metadata
from tts_decode.model.loading import load_config, load_model

pytestmark = pytest.mark.usefixtures("one_thread", "cache")


def test_every_architecture_has_a_case() -> None:
    assert {case.architecture for case in CASES.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", CASES)
def test_the_model_read_is_the_model_written(name: str, tmp_path: Path) -> None:
    """Sizes, epsilons, bases, windows and caps differ from the defaults of the config's class."""
    file = tmp_path / "tiny.gguf"
    original = random_model(CASES[name])
    write_model(file, CASES[name], original)
    model, _ = load_model(file, "float32")
    assert type(model) is type(original)
    ids = torch.randint(len(TOKENS), (2, 70), generator=torch.Generator().manual_seed(1))
    for length in (50, 70):  # on both sides of the original context of longrope
        with torch.no_grad():
            expected = original(input_ids=ids[:, :length]).logits.log_softmax(-1)
            logprobs = model(input_ids=ids[:, :length]).logits.log_softmax(-1)
        torch.testing.assert_close(logprobs, expected, atol=2e-4, rtol=0)

    from_header, from_copy = load_config(file).to_dict(), model.config.to_dict()
    for key in ("dtype", "architectures", "_name_or_path", "transformers_version"):  # set by loading weights
        from_header.pop(key, None)
        from_copy.pop(key, None)
    assert from_copy == from_header


KEYS = sorted(
    value.removeprefix("{arch}.")
    for group in vars(gguf.Keys).values()
    if isinstance(group, type)
    for value in (*vars(group).values(), *vars(getattr(group, "Indexer", object)).values())
    if isinstance(value, str) and value.startswith("{arch}.")
)


# Those of nemotron have four pairs, which some keys of YaRN do not touch; mistral3 takes no YaRN.
ONE_OF_EACH = {(case.architecture, "expert_count" in case.keys): name for name, case in CASES.items()}


@pytest.mark.parametrize("name", sorted({*ONE_OF_EACH.values()} - {"nemotron", "mistral3"}))
def test_no_key_is_lost(name: str, tmp_path: Path) -> None:
    """Each key that the format has changes the config, or is refused by its name, or is at rest."""
    file = tmp_path / "tiny.gguf"
    case = CASES[name]
    write_model(file, case, random_model(case))
    read = Header.read(file)
    architecture = read.architecture
    base = dict(read.metadata)
    if architecture.rotary:  # so that the keys of YaRN act
        scaled = {"type": "yarn", "factor": 4.0, "original_context_length": 4096}
        base |= {read.path(f"rope.scaling.{key}"): value for key, value in scaled.items()}

    def config(metadata: dict[str, object]) -> str:
        return repr(
            config_of(Header(file, Metadata(metadata, tuple(read.places.values()), read.begin))).to_dict()
        )

    at_rest = {**NEUTRAL, **architecture.neutral}
    before = config(base)
    assert len(KEYS) > 100
    for key in (*KEYS, "a_key_of_tomorrow"):
        for value in (5, 0.37, True, "text", [1, 2]):
            path = read.path(key)
            if key in HARMLESS or base.get(path, at_rest.get(key)) == value:
                continue
            try:
                after = config(base | {path: value})
            except ModelLoadError as error:
                told = str(error)
            else:
                assert after != before, f"{path} = {value!r} changed nothing"
                continue
            # Where a key contradicts another, or the tensors, that one may be named.
            assert path in told or architecture.serves(key), told


def changed(
    header: Header, metadata: dict[str, object] | None = None, tensors: tuple[str, ...] = ()
) -> Header:
    """Of the same file, with other metadata, and with the places of the first tensor for new ones."""
    first = next(iter(header.places.values()))
    places = (*header.places.values(), *(first._replace(name=name) for name in tensors))
    return Header(
        header.file, Metadata(header.metadata if metadata is None else metadata, places, header.begin)
    )


@pytest.mark.parametrize("architecture", sorted({"bloom", "mamba", "chatglm", "gemma4", "lfm2", "falcon"}))
def test_other_architectures_are_refused_by_name(architecture: str, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_model(file, CASES["llama"], random_model(CASES["llama"]))
    header = Header.read(file)
    with pytest.raises(ModelLoadError, match=re.escape(f"general.architecture: got {architecture!r}")):
        changed(header, header.metadata | {"general.architecture": architecture})


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("mistral3", "attention.temperature_scale", 0.1),
        ("mistral3", "rope.scaling.type", "yarn"),
        ("exaone4", "attention.sliding_window", 16),
        ("olmo3", "rope.freq_base_swa", 700.0),
        ("olmo3", "attention.sliding_window_pattern", [True, False]),
        ("olmo3", "attention.sliding_window_pattern", -1),
        ("granite", "rope.scaling.finetuned", False),
        ("olmoe", "expert_weights_norm", True),
        ("smollm3", "attention.sliding_window", 16),
        ("glm4", "nextn_predict_layers", 1),
        ("gemma", "final_logit_softcapping", 30.0),
    ],
)
def test_what_an_architecture_would_lose_is_refused_by_name(
    name: str, key: str, value: object, tmp_path: Path
) -> None:
    file = tmp_path / "tiny.gguf"
    write_model(file, CASES[name], random_model(CASES[name]))
    header = Header.read(file)
    with pytest.raises(ModelLoadError, match=re.escape(header.path(key))):
        config_of(changed(header, header.metadata | {header.path(key): value}))


def test_a_mixture_is_not_taken_for_the_dense_model_of_its_name(tmp_path: Path) -> None:
    """Nor one whose number of experts is missing, nor one of older files, with a tensor for each expert."""
    file = tmp_path / "tiny.gguf"
    write_model(file, CASES["mixtral"], random_model(CASES["mixtral"]))
    header = Header.read(file)
    assert config_of(header).model_type == "mixtral"
    for key in ("llama.expert_count", "llama.expert_used_count"):
        metadata = {name: value for name, value in header.metadata.items() if name != key}
        with pytest.raises(ModelLoadError, match=f"{key}: got nothing"):
            config_of(changed(header, metadata))
    single = tuple(sorted(name.replace("_exps", ".3") for name in header.tensors if "_exps" in name))
    with pytest.raises(ModelLoadError, match=r"blk\.0\.ffn_down\.3\.weight.*of a single expert.*again"):
        config_of(changed(header, tensors=single))


def test_a_family_name_does_not_change_the_arithmetic(tmp_path: Path) -> None:
    """transformers takes a Llama file named mistral for one with a window of 4,096 tokens."""
    file = tmp_path / "tiny.gguf"
    original = random_model(CASES["llama"])
    write_model(file, CASES["llama"], original, {"general.name": "mistral"})
    model, tokenizer = load_model(file, "float32")
    assert getattr(model.config, "sliding_window", None) is None
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, original(ids).logits, atol=2e-4, rtol=0)
    assert TreeDecoder(model, tokenizer, kv_bytes=1 << 20).eos_token_ids == {0, 2}


def test_norms_of_heads_that_transformers_cannot_read(tmp_path: Path) -> None:
    """StableLM 2 12B: llama.cpp stacks the norms of the heads, transformers wants them one by one."""
    file = tmp_path / "tiny.gguf"
    case = CASES["stablelm"]
    write_model(file, case, random_model(case))
    header = Header.read(file)
    with pytest.raises(ModelLoadError, match=r"the tensor blk\.0\.attn_q_norm\.weight"):
        config_of(changed(header, tensors=("blk.0.attn_q_norm.weight",)))
