"""The pre-tokenizers of byte-level vocabularies, which split text before merging, by `tokenizer.ggml.pre`.

The names and their other settings are llama.cpp's (src/llama-vocab.cpp). The patterns come from the models'
own tokenizer.json; llama.cpp approximates some of them. The patterns of a name apply in order, each to the
pieces that the earlier ones left: every match is a piece, and so is the text between two matches.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Split:
    """One way to split text.

    whole_words: a piece that is a token is not merged from its parts. begins: texts begin with BOS. lstrip:
    tokens that strip the whitespace before them.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    begins: bool = False
    lstrip: frozenset[str] = frozenset()


_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANKS = r"\s+(?!\S)|\s+"
_LINES = rf"\s*[\r\n]+|{_BLANKS}"
_SIGNS = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_LINES}"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"

_GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_BLANKS}"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_SIGNS}"

# Words that begin with capitals, or have none.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_SLASH_SIGNS = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES}"
_CASED = rf"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTION}?|{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTION}?"
_TEKKEN = rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}|{_SLASH_SIGNS}"
_O200K = rf"{_CASED}|\p{{N}}{{1,3}}|{_SLASH_SIGNS}"

# Kimi K2: as above, without Han characters, which form separate runs.
_NO_HAN_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_NO_HAN_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_KIMI = (
    rf"\p{{Han}}+|{_LEAD}{_NO_HAN_UPPER}*{_NO_HAN_LOWER}+{_CONTRACTION}?"
    rf"|{_LEAD}{_NO_HAN_UPPER}+{_NO_HAN_LOWER}*{_CONTRACTION}?|\p{{N}}{{1,3}}|{_SIGNS}"
)

# DeepSeek's.
_HAN_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_HAN_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_SIGN_WORDS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
_DEEPSEEK3 = rf"{_SIGN_WORDS}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_LINES}"
_CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
    "\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf"
    "\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d"
    "\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc"
    "\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115"
    "\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e"
    "\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_WIDE_SIGNS = "[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"

_ASIAN = (
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
    "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
_YOUTU_SCRIPTS = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
    f"\ufe30-\ufe4f]+|[\u3105-\u312f]+|{_HAN_KANA}"
)
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_THREE_DIGITS = "[0-9][0-9][0-9]"

_BLOOM_SPLIT = Split((_BLOOM,))
_GPT2_SPLIT = Split((_GPT2,))
_DIGITS_SPLIT = Split((r"\p{N}", _GPT2))
_LLAMA3_SPLIT = Split((_LLAMA3,))
_LLAMA3_WORDS = Split((_LLAMA3,), whole_words=True, begins=True)
_GLM_SPLIT = Split((_LLAMA3,), whole_words=True)
_QWEN2_SPLIT = Split((_QWEN2,))
_O200K_SPLIT = Split((_O200K,))
_DEEPSEEK3_SPLIT = Split((r"\p{N}{1,3}", _HAN_KANA, _DEEPSEEK3))
_MASKED_SPLIT = Split((_GPT2,), lstrip=frozenset({"<mask>"}))
_BAILING_SPLIT = Split(
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
        rf"|{_BLANKS}",
    )
)
_AYA_SPLIT = Split((r"\d{1,3}(?=(?:\d{3})*\b)", _O200K))

NO_NAME = "default"  # for a file without the key
SPLITS: dict[str, Split] = {
    NO_NAME: Split((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", _THREE_DIGITS)),
    "a.x-4.0": _GPT2_SPLIT,
    "afmoe": Split((r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", _ASIAN, _DEEPSEEK3)),
    "bailingmoe": _BAILING_SPLIT,
    "bailingmoe2": _BAILING_SPLIT,
    "bloom": _BLOOM_SPLIT,
    "chameleon": Split(
        (
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        begins=True,
    ),
    "chatglm-bpe": _LLAMA3_SPLIT,
    "codeshell": _DIGITS_SPLIT,
    "cohere2moe": _AYA_SPLIT,
    "command-r": _DIGITS_SPLIT,
    "dbrx": _LLAMA3_SPLIT,
    "deepseek-coder": Split((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_HANGUL, r"\p{N}")),
    "deepseek-llm": Split(
        (r"[\r\n]", rf"\s?[{_CASED_LETTERS}]+", rf"\s?{_WIDE_SIGNS}", r"\s+$", _HAN_HANGUL, r"\p{N}+")
    ),
    "deepseek-r1-qwen": _QWEN2_SPLIT,
    "deepseek-v3": _DEEPSEEK3_SPLIT,
    "exaone": _DIGITS_SPLIT,
    "exaone-moe": Split(
        (
            rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{_BLANKS}",
        )
    ),
    "exaone4": _GPT2_SPLIT,
    "f2llmv2": _QWEN2_SPLIT,
    "falcon": Split((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, _THREE_DIGITS)),
    "falcon-h1": _LLAMA3_WORDS,
    "falcon3": _LLAMA3_WORDS,
    "gigachat": _GPT2_SPLIT,
    "glm4": _GLM_SPLIT,
    "glm5": _GLM_SPLIT,
    "gpt-2": _GPT2_SPLIT,
    "gpt-4o": _O200K_SPLIT,
    "gpt3-finnish": _BLOOM_SPLIT,
    "granite-docling": _GPT2_SPLIT,
    "granite-embed-multi-97m": Split((_O200K,), whole_words=True),
    "grok-2": _QWEN2_SPLIT,
    "hunyuan": _QWEN2_SPLIT,
    "hunyuan-dense": _DEEPSEEK3_SPLIT,
    "hy_v4": _DEEPSEEK3_SPLIT,
    "jais": _GPT2_SPLIT,
    "jais-2": Split(
        (
            rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s{{512}}(?!\S)"
            r"|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)"
            r"|\s{1,2}(?!\S)|\s{1}",
        )
    ),
    "jina-de": _GPT2_SPLIT,
    "jina-es": _GPT2_SPLIT,
    "jina-v1-en": _GPT2_SPLIT,
    "jina-v2-code": _MASKED_SPLIT,
    "jina-v2-de": _MASKED_SPLIT,
    "jina-v2-es": _MASKED_SPLIT,
    "jina-v5-nano": _LLAMA3_WORDS,
    "joyai-llm": _DEEPSEEK3_SPLIT,
    "kanana2": _O200K_SPLIT,
    "kimi-k2": Split((_KIMI,)),
    "kormo": _QWEN2_SPLIT,
    "laguna": Split((r"[^\n]+|[\n]+", _QWEN2)),
    "lfm2": _LLAMA3_WORDS,
    "llada-moe": _BAILING_SPLIT,
    "llama-bpe": _LLAMA3_WORDS,
    "llama-v3": _LLAMA3_WORDS,
    "llama3": _LLAMA3_WORDS,
    "llama4": _O200K_SPLIT,
    "megrez": _QWEN2_SPLIT,
    "mellum": _GPT2_SPLIT,
    "mellum2": _DIGITS_SPLIT,
    "midm-2.0": _LLAMA3_WORDS,
    "minerva-7b": _DIGITS_SPLIT,
    "minicpm5": Split(
        (r"\p{N}{1,3}", rf"{_CONTRACTION}|{_WORD}|\p{{N}}+|{_SIGNS}"),
        whole_words=True,
    ),
    "minimax-m2": _O200K_SPLIT,
    "modern-bert": _GPT2_SPLIT,
    "mpt": _GPT2_SPLIT,
    "olmo": _GPT2_SPLIT,
    "phi-2": _GPT2_SPLIT,
    "pixtral": _LLAMA3_WORDS,
    "poro-chat": _BLOOM_SPLIT,
    "qwen2": _QWEN2_SPLIT,
    "qwen35": Split(
        (
            rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_LINES}",
        )
    ),
    "refact": _DIGITS_SPLIT,
    "roberta-bpe": _GPT2_SPLIT,
    "seed-coder": Split((rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_LINES}",)),
    "smaug-bpe": _LLAMA3_SPLIT,
    "smollm": _DIGITS_SPLIT,
    "solar-open": _QWEN2_SPLIT,
    "spark2_5": Split(
        (
            r"\p{N}{1,3}",
            _HAN_KANA,
            rf"{_SIGN_WORDS}| ?[\p{{P}}\p{{S}}]+|[\r\n]|{_BLANKS}",
            r"\p{N}",
        )
    ),
    "stablelm2": _QWEN2_SPLIT,
    "starcoder": _DIGITS_SPLIT,
    "superbpe": Split((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    "talkie": _O200K_SPLIT,
    "tekken": Split((_TEKKEN,), whole_words=True, begins=True),
    "tiny_aya": _AYA_SPLIT,
    "trillion": _GPT2_SPLIT,
    "ufakzeka": Split((rf"{_WORD}|\p{{N}}|{_SIGNS}",)),
    "viking": Split((_BLOOM, r"\p{N}")),
    "youtu": Split((_YOUTU_SCRIPTS, rf"{_CASED}|\p{{N}}|{_SLASH_SIGNS}"), whole_words=True),
}
