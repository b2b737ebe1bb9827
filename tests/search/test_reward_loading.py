"""Loading reward models: causal models, classifiers, heads of their own, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from reward_cases import CHAT, KV_BYTES, SEQUENCE, Answer, decoder_of, stack
from safetensors.torch import load_file, save_file
from tiny_models import byte_tokenizer, tiny_model
from torch import Tensor, nn
from tts_decode import ModelLoadError
from tts_decode.rewards import RewardModel, load_reward_model

pytestmark = pytest.mark.usefixtures("one_thread")


def save(
    folder: Path, model: Any, tokenizer: Any, extra: dict[str, Tensor] | None = None, **config: Any
) -> Path:
    """Saves model and tokenizer, adds tensors to the weights and changes the config."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    if config.pop("prefix", False):
        weights = {f"model.{name}": tensor for name, tensor in weights.items()}
    save_file({**weights, **(extra or {})}, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def loaded_scores(folder: Path, reader: str | None = None) -> tuple[list[float], RewardModel]:
    prm = load_reward_model(folder, reader, dtype="float32", kv_bytes=KV_BYTES)
    return prm.decoder.run(prm.step_scores([Answer(["one", "two"])]))[0], prm


def scores_of(model: Any, tokenizer: Any, reader: str, head: nn.Module | None = None) -> list[float]:
    decoder = decoder_of(model, tokenizer)
    return decoder.run(RewardModel(decoder, reader, head=head).step_scores([Answer(["one", "two"])]))[0]


def test_loads_causal_models_and_classifiers(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("mistral"), byte_tokenizer("ки")
    folder = save(tmp_path / "math-shepherd-tiny", model, tokenizer)
    scores, prm = loaded_scores(folder)
    assert prm.reader.name == "math_shepherd"
    assert scores == pytest.approx(scores_of(model, tokenizer, "math_shepherd"), abs=1e-6)

    tied = tiny_model()
    tied.lm_head.weight = tied.get_input_embeddings().weight
    tied.config.tie_word_embeddings = True
    scores, _ = loaded_scores(save(tmp_path / "tied", tied, tokenizer), "math_shepherd")
    assert scores == pytest.approx(scores_of(tied, tokenizer, "math_shepherd"), abs=1e-6)

    model, tokenizer = tiny_model(auto=SEQUENCE, num_labels=1), byte_tokenizer(chat_template=CHAT)
    scores, prm = loaded_scores(save(tmp_path / "classifier", model, tokenizer))
    assert prm.reader.name == "outcome"
    assert scores == pytest.approx(scores_of(model, tokenizer, "outcome"), abs=1e-6)


@pytest.mark.parametrize("wrapped", [False, True])
def test_loads_heads_that_transformers_has_no_class_for(tmp_path: Path, wrapped: bool) -> None:
    """The code beside the weights would fail if it ran."""
    code = {"auto_map": {"AutoModel": "modeling.Broken", "AutoConfig": "modeling.Broken"}}
    base, tokenizer = tiny_model("qwen2", auto=hf.AutoModel), byte_tokenizer("<extra_0>", chat_template=CHAT)
    head = stack()
    extra = {f"score.{name}": tensor for name, tensor in head.state_dict().items()}
    folder = save(
        tmp_path / "Qwen2.5-Math-PRM-tiny", base, tokenizer, extra,
        prefix=True, architectures=["Qwen2ForProcessRewardModel"], **code,
    )  # fmt: skip
    (folder / "modeling.py").write_text("raise RuntimeError('code of the folder ran')")
    scores, prm = loaded_scores(folder)
    assert prm.reader.name == "qwen2.5_math_prm"
    assert scores == pytest.approx(scores_of(base, tokenizer, "qwen2.5_math_prm", head), abs=1e-6)

    causal, tokenizer, value = tiny_model("qwen2"), byte_tokenizer(), nn.Linear(64, 1)
    extra = {f"v_head.summary.{name}": tensor for name, tensor in value.state_dict().items()}
    folder = save(
        tmp_path / "Skywork-o1-Open-PRM-tiny", causal, tokenizer, extra,
        architectures=["Qwen2ForPrmModel"], **code,
    )  # fmt: skip
    if wrapped:
        weights = load_file(folder / "model.safetensors")
        weights = {n if n.startswith("v_head") else f"pretrained_model.{n}": w for n, w in weights.items()}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    scores, prm = loaded_scores(folder)
    assert scores == pytest.approx(scores_of(causal.base_model, tokenizer, "skywork_o1", value), abs=1e-6)


def test_loading_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer("ки", chat_template=CHAT)
    folder = save(tmp_path / "some-model", tiny_model(), tokenizer)
    with pytest.raises(
        ValueError, match=r"reader: some-model .*does not tell how it is read; expected one of"
    ):
        load_reward_model(folder)
    with pytest.raises(ModelLoadError, match=r"have no head named v_head\.summary\.weight or"):
        load_reward_model(folder, "skywork_o1")
    classifier = save(tmp_path / "classifier", tiny_model(auto=SEQUENCE, num_labels=1), tokenizer)
    with pytest.raises(ModelLoadError, match=r"\(LlamaForSequenceClassification\) lack lm_head.weight"):
        load_reward_model(classifier, "math_shepherd")
    with pytest.raises(ModelLoadError, match=r"there is no folder .*on the hub"):
        load_reward_model(tmp_path / "nothing", "pqm")
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ModelLoadError, match=r"pickled \.bin weights are not read"):
        load_reward_model(folder, "math_shepherd")
    weights.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{broken")
    with pytest.raises(ModelLoadError, match="safetensors"):
        load_reward_model(folder, "pqm")


def test_a_hub_id_is_fetched_and_its_name_tells_the_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "snapshot", tiny_model(), byte_tokenizer("ки"))
    asked: list[str] = []

    def fetch(name: str, *, allow_patterns: list[str]) -> str:
        asked.append(name)
        assert not any("bin" in pattern or ".py" in pattern for pattern in allow_patterns)
        if "absent" in name:
            raise OSError("404\nmore")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    prm = load_reward_model("someone/Math-Shepherd-tiny", dtype="float32", kv_bytes=KV_BYTES)
    assert (prm.reader.name, asked) == ("math_shepherd", ["someone/Math-Shepherd-tiny"])
    with pytest.raises(ModelLoadError, match=r"someone/absent cannot be fetched .*: OSError: 404"):
        load_reward_model("someone/absent")


def test_the_architecture_tells_the_reader(tmp_path: Path) -> None:
    base, tokenizer = tiny_model("qwen2", auto=hf.AutoModel), byte_tokenizer("<extra_0>", chat_template=CHAT)
    extra = {f"score.{name}": tensor for name, tensor in stack().state_dict().items()}
    names = {"prefix": True, "architectures": ["Qwen2ForProcessRewardModel"]}
    folder = save(tmp_path / "renamed", base, tokenizer, extra, **names)
    assert loaded_scores(folder)[1].reader.name == "qwen2.5_math_prm"
