"""Splits of text before merges, for each name of `tokenizer.ggml.pre` that llama.cpp knows.

The pieces are worked out by hand from the patterns in the models' own tokenizer.json.
"""

from __future__ import annotations

import pytest
from gguf_vocabularies import LETTERS, byte_level_keys, header_of, read
from tts_decode.errors import ModelLoadError
from tts_decode.model.gguf.splits import SPLITS
from tts_decode.model.gguf.tokenizer import refuse_tokenizer

# For each way to split: its names, and texts whose pieces are parted by "¦".
GPT2 = ["It¦'s¦ ¦ 12345¦ a¦_¦b¦\n\n¦ c", "DON¦'¦T¦ x¦++;¦\n\t¦ y", "é日本¦ ½"]
DIGITS = ["It¦'s¦  ¦1¦2¦3¦4¦5¦ a¦_¦b¦\n\n¦ c", "a¦ ¦٣¦½"]
LLAMA3 = ["It¦'s¦ ¦ ¦123¦45¦ a¦_b¦\n\n¦ c", "DON¦'T¦ ¦ x¦++;\n\n¦\t¦ y¦ ", "a¦ \r\n¦b"]
QWEN2 = ["It¦'s¦ ¦ ¦1¦2¦3¦ a¦_b¦\n\n¦ c", "DON¦'T¦X¦;\n\n¦e¦\u0301x"]
O200K = ["Hello¦World's¦ ¦123¦4¦ JSONData", "DON'T¦ a¦/\n/¦ \n¦ b", "e\u0301x¦ ÉCOLE"]
DEEPSEEK3 = ["x¦=¦123¦45¦日本¦ab¦ +=\n¦c", "a¦.b¦ ¦ e\u0301¦\n\n¦ ¦カナ¦d"]
BLOOM = ["Hi¦ there¦(¦x¦),¦ y¦.", "a12¦\n¦b"]
BAILING = ["It¦'s¦ ¦1¦2¦\n\n¦x", "a¦ \n¦b¦ +=\n"]
AYA = ["1¦234¦567¦ ab", "Hello¦World's¦ ¦12"]
CASES: dict[str, tuple[str, list[str]]] = {
    "gpt-2": (
        "phi-2 jina-es jina-de jina-v2-es jina-v2-de jina-v2-code jina-v1-en roberta-bpe gigachat a.x-4.0 "
        "mellum modern-bert mpt olmo jais trillion granite-docling exaone4",
        GPT2,
    ),
    "smollm": ("starcoder refact command-r codeshell exaone minerva-7b mellum2", DIGITS),
    "llama-bpe": (
        "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe glm4 "
        "glm5 chatglm-bpe",
        LLAMA3,
    ),
    "qwen2": ("deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2", QWEN2),
    "qwen35": ("", ["It¦'s¦ ¦1¦2¦ e\u0301x¦;\n\n¦ y"]),
    "tekken": ("", ["Hello¦World¦'s¦ ¦1¦2¦a¦/\n¦b", "ÉCOLE¦ e\u0301x"]),
    "gpt-4o": ("llama4 kanana2 talkie minimax-m2 granite-embed-multi-97m", O200K),
    "deepseek-v3": ("hunyuan-dense joyai-llm hy_v4", DEEPSEEK3),
    "deepseek-llm": ("", ["Ab¦ ¦日本¦1234¦ x¦!¦\n¦ é¦。", "a¦  ¦\n¦b"]),
    "deepseek-coder": ("", ["Ab¦ ¦1¦2¦!¦日¦\n¦ x"]),
    "falcon": ("", ["a¦+¦b¦ ¦123¦45¦.¦x¦`"]),
    "default": ("", ["a¦+¦b¦ ¦123¦45¦.¦x¦½"]),
    "bloom": ("poro-chat gpt3-finnish", BLOOM),
    "viking": ("", ["Hi¦(¦x¦),¦ y¦1¦2"]),
    "chameleon": ("", ["a¦\t¦b¦ ¦1¦!¦IMGIMGABZ¦c", "a¦    ¦b¦  ¦<¦sentinel¦:¦1¦2¦>"]),
    "tiny_aya": ("cohere2moe", AYA),
    "kimi-k2": ("", ["Hello¦日本¦World's¦ ¦123¦4¦;\n¦x"]),
    "superbpe": ("", ["ab ¦1¦234¦567¦ c d"]),
    "bailingmoe": ("bailingmoe2 llada-moe", BAILING),
    "seed-coder": ("", ["a¦;¦\n\n¦b¦'S¦ ¦1¦2"]),
    "ufakzeka": ("", ["Ali¦'nin¦ ¦1¦2", "DON¦'TX¦;\n\n¦b"]),
    "afmoe": ("", ["1¦234¦567¦ ¦日本¦a¦.b"]),
    "laguna": ("", ["a¦  ¦\n\n¦b", "x¦;¦\n¦ y"]),
    "exaone-moe": ("", ["a b c¦1¦;\n¦\n¦d"]),
    "minicpm5": ("", ["123¦4¦ a¦'s"]),
    "jais-2": ("", ["a¦    ¦ b", "It¦'s¦ ¦123¦4"]),
    "youtu": ("", ["가나¦ABC's¦ ¦1¦2¦「¦x"]),
    "spark2_5": ("", ["a¦!¦\n¦\n¦1¦2¦3¦4¦日本¦ b"]),
}
NAMES = [(name, texts) for first, (others, texts) in CASES.items() for name in [first, *others.split()]]
BOTH = {*("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken")}
WHOLE_WORDS = BOTH | {"jina-v5-nano", "youtu", "minicpm5", "granite-embed-multi-97m", "glm4", "glm5"}
BEGINS = BOTH | {"jina-v5-nano", "chameleon"}


@pytest.mark.parametrize(("name", "texts"), NAMES)
def test_pieces(name: str, texts: list[str]) -> None:
    split = read(byte_level_keys(pre=name)).backend_tokenizer.pre_tokenizer.pre_tokenize_str
    for text in texts:
        expected = text.split("¦")
        pieces = [bytes(LETTERS.index(letter) for letter in piece) for piece, _ in split("".join(expected))]
        assert [piece.decode() for piece in pieces] == expected


@pytest.mark.parametrize("name", [name for name, _ in NAMES])
def test_what_else_a_name_says(name: str) -> None:
    """Words that are tokens need no merges; BOS stands first where the file does not say."""
    tokenizer = read(byte_level_keys(["hello", "<bos>"], {"<bos>": 3}, pre=name, bos_token_id=257))
    whole = [256] if name in WHOLE_WORDS else [LETTERS.index(letter) for letter in "hello"]
    assert tokenizer("hello").input_ids == [257] * (name in BEGINS) + whole


def test_every_name_is_tested() -> None:
    assert SPLITS.keys() == {name for name, _ in NAMES}


def test_a_file_without_a_name() -> None:
    for absent in (None, ""):
        split = read(byte_level_keys(pre=absent)).backend_tokenizer.pre_tokenizer.pre_tokenize_str
        assert [piece for piece, _ in split("a+b 1234")] == ["a", "+", "b", "Ġ", "123", "4"]


@pytest.mark.parametrize("name", ["gemma4", "sarvam-moe", "whitespace", "no such", "GPT-2"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(
        ModelLoadError, match=rf"tokenizer\.ggml\.pre: got '{name}', expected .* use the safetensors"
    ):
        refuse_tokenizer(header_of(byte_level_keys(pre=name)))


def test_a_mask_takes_the_space_before_it() -> None:
    keys = byte_level_keys(["<mask>"], {"<mask>": 3}, pre="jina-v2-de")
    assert read(keys)("a <mask> b").input_ids == [
        LETTERS.index("a"),
        256,
        LETTERS.index("Ġ"),
        LETTERS.index("b"),
    ]
