"""Builds the tokenizer of a GGUF file from its keys alone.

Source of the rules: llama.cpp (src/llama-vocab.cpp), which defines the format.
"""

from __future__ import annotations

import re
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from .header import Header
from .merges import merges_by_score
from .splits import NO_NAME, SPLITS, Split
from .token_types import CONTROL, MATCHED, UNKNOWN, USER_DEFINED
from .vocabulary import BYTE_LEVEL, Vocabulary, setting

_SPACE = "\u2581"  # SentencePiece's
_TEMPLATE = "tokenizer.chat_template"
_TEMPLATE_NAME = re.compile("[A-Za-z0-9_-]{1,100}")  # it becomes the name of a file
# llama.cpp goes by the model's name: special tokens of these models strip the whitespace after them, except
# for a few tokens.
_STRIPPING_MODELS = ("phi-3", "phi3")
_NOT_STRIPPING = frozenset({"<unk>", "<s>", "<|endoftext|>"})


def refuse_tokenizer(header: Header) -> None:
    """Raises the same ModelLoadError as `read_tokenizer`, without building the tokenizer."""
    _Parts(header)


def read_tokenizer(header: Header) -> PreTrainedTokenizerFast:
    """Returns the tokenizer. Raises ModelLoadError, naming the key, for values that are not supported."""
    return _Parts(header).tokenizer()


class _Parts:
    """The checked values of the tokenizer's keys."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.vocabulary = vocabulary = Vocabulary.read(header)
        self.byte_level = vocabulary.model == BYTE_LEVEL
        self.split = _split(header) if self.byte_level else Split((), begins=True)
        self.space_first = setting(header, "add_space_prefix", bool, True)
        self.templates = _templates(header)
        self.adds_bos = self._adds("bos", self.split.begins)
        self.adds_eos = self._adds("eos", False)

    def _adds(self, name: str, default: bool) -> bool:
        token = self.vocabulary.named[name]
        adds = setting(self.header, f"add_{name}_token", bool, None)
        if adds and token is None:
            raise self.header.refuse(f"tokenizer.ggml.{name}_token_id", f"an id, as add_{name}_token is true")
        if token is None or not (default if adds is None else adds):
            return False
        if re.search(r"\s", self.vocabulary.tokens[token]):  # transformers cannot add such a token
            raise self.header.refuse(f"tokenizer.ggml.{name}_token_id", "a token without spaces in its text")
        return True

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return PreTrainedTokenizerFast(
            tokenizer_object=self._backend(),
            bos_token=self._special("bos"),
            eos_token=self._special("eos"),
            unk_token=self._special("unknown"),
            pad_token=self._special("padding"),
            add_bos_token=self.adds_bos,
            add_eos_token=self.adds_eos,
            chat_template=self.templates,
        )

    def _special(self, name: str) -> str | None:
        """Returns a named token's text; None for ordinary text, which transformers would make special."""
        token = self.vocabulary.named[name]
        if token is None or self.vocabulary.types[token] not in MATCHED:
            return None
        return self.vocabulary.tokens[token]

    def _backend(self) -> Any:
        backend = self._byte_level() if self.byte_level else self._sentencepiece()
        # If two begin at the same place, the longer one matches.
        backend.add_special_tokens(self._added(CONTROL, UNKNOWN))
        backend.add_tokens(self._added(USER_DEFINED))
        return backend

    def _byte_level(self) -> Any:
        vocabulary = self.vocabulary
        ids = {text: token for token, text in enumerate(vocabulary.tokens)}
        whole = self.split.whole_words
        backend = Tokenizer(models.BPE(vocab=ids, merges=vocabulary.merges, ignore_merges=whole))
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.split.patterns]
            + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        backend.decoder = decoders.ByteLevel()
        return backend

    def _sentencepiece(self) -> Any:
        """Returns a backend that turns spaces into "▁".

        It adds one more before each text and after each token that is matched whole. Characters without a
        token become their bytes, or the unknown token.
        """
        vocabulary = self.vocabulary
        unknown = vocabulary.named["unknown"]
        model = models.BPE(
            vocab={text: token for token, text in enumerate(vocabulary.tokens)},
            merges=merges_by_score(vocabulary),
            unk_token=None if unknown is None else vocabulary.tokens[unknown],
            byte_fallback=True,
        )
        backend = Tokenizer(model)
        before: list[Any] = [normalizers.Prepend(_SPACE)] if self.space_first else []
        after: list[Any] = [decoders.Strip(" ", left=1)] if self.space_first else []
        backend.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", _SPACE)])
        backend.decoder = decoders.Sequence(
            [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after]
        )
        return backend

    def _added(self, *types: int) -> list[AddedToken]:
        """Returns the tokens of these types, which are matched whole."""
        name = self.header.metadata.get("general.name")
        strips = isinstance(name, str) and any(model in name.lower() for model in _STRIPPING_MODELS)
        vocabulary = self.vocabulary
        return [
            AddedToken(
                text,
                normalized=False,
                lstrip=text in self.split.lstrip,
                rstrip=strips and text not in _NOT_STRIPPING,
            )
            for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
            if kind in types
        ]


def _split(header: Header) -> Split:
    name = setting(header, "pre", str, NO_NAME) or NO_NAME
    if name not in SPLITS:
        raise header.refuse(
            "tokenizer.ggml.pre",
            "a way to split text that is known here; use the safetensors weights of the model, with its own "
            "tokenizer",
        )
    return SPLITS[name]


def _templates(header: Header) -> str | dict[str, str] | None:
    """Returns the chat template, or all of them by name; the unnamed one is "default"."""
    templates: dict[str, str] = {}
    for key, text in header.metadata.items():
        if key != _TEMPLATE and not key.startswith(f"{_TEMPLATE}."):
            continue
        name = key.removeprefix(_TEMPLATE).removeprefix(".") or "default"
        if not isinstance(text, str):
            raise header.refuse(key, "a text")
        if not _TEMPLATE_NAME.fullmatch(name):
            raise header.refuse(key, "a name of letters, digits, - and _")
        if templates.setdefault(name, text) != text:
            raise header.refuse(key, f"the same text as {_TEMPLATE}")
    return templates["default"] if templates.keys() == {"default"} else templates or None
