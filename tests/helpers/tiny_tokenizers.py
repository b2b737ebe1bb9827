"""Tiny vocabularies of every kind, each with its tokens' bytes according to their makers."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast, PythonBackend

SPECIAL = ["<s>", "</s>"]
ADDED = "[TAG]"
HOLE = 390  # no vocabulary has this id
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's

# Text in tokens that begin, end and cut characters.
_PIECES = [
    *(b" \xe2", b"\x98\x83", b"\xe2\x98", b"\x83!", b"\xf0\x9f", b"\x98\x80", b"\xe6\x97\xa5", b"\xa5\xe6"),
    *(b"Answer", b": ", b" a", b"\n\n", b"END", b"  ", b"\xc3\xa9", b"\xef\xbf\xbd", "日本語".encode()),
]
_WORDS = ["Answer", ":", "a", "END", "\n\n", "日", "é", "☃", "😀", "\N{REPLACEMENT CHARACTER}", "n't", "."]


@dataclass
class Vocabulary:
    """A tokenizer and the truth about it.

    Attributes:
        behind: bytes of each id that has text before it. first: of the first one, where they are others.
        byte_ids: the id of each byte; none where the vocabulary has no bytes.
        strip: whether a space at the start of the text is dropped.
    """

    tokenizer: Any
    behind: dict[int, bytes]
    first: dict[int, bytes] = field(default_factory=dict)
    byte_ids: Sequence[int] = ()
    strip: bool = False

    @cached_property
    def special(self) -> set[int]:
        return {id_ for id_ in self.behind if self.tokenizer.convert_ids_to_tokens(id_) in SPECIAL}

    @property
    def ids(self) -> list[int]:
        return [*self.behind, HOLE, -1]

    def written(self, tokens: Sequence[int], special: bool) -> list[int]:
        return [t for t in tokens if t in self.behind and (special or t not in self.special)]

    def bytes(self, tokens: Sequence[int], special: bool) -> bytes:
        written = self.written(tokens, special)
        pieces = [self.behind[token] for token in written]
        if written:
            pieces[0] = self.first.get(written[0], pieces[0])
        data = b"".join(pieces)
        return data[1:] if self.strip and data.startswith(b" ") else data

    def text(self, tokens: Sequence[int], special: bool = False) -> str:
        """Up to a character that the tokens do not complete."""
        return codecs.getincrementaldecoder("utf-8")("replace").decode(self.bytes(tokens, special))

    def encode(self, text: str) -> list[int]:
        return [self.byte_ids[byte] for byte in text.encode()]


def _fast(model: Any, decoder: Any, specials: Sequence[str] = SPECIAL) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model)
    backend.decoder = decoder
    backend.add_special_tokens(list(specials))
    backend.add_tokens([AddedToken(ADDED, lstrip=True, rstrip=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def byte_level() -> Vocabulary:
    """GPT-2's kind."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    alphabet = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    behind = dict(enumerate([bytes([byte]) for byte in range(256)] + _PIECES))
    vocab = {"".join(alphabet[byte] for byte in piece): id_ for id_, piece in behind.items()}
    for text in [*SPECIAL, ADDED]:
        behind[len(behind)] = text.encode()
        vocab[text] = len(vocab)
    tokenizer = _fast(models.BPE(vocab=vocab, merges=[]), decoders.ByteLevel())
    return Vocabulary(tokenizer, behind, byte_ids=range(256))


def _sentencepiece() -> tuple[dict[str, int], dict[int, bytes]]:
    """Contents and bytes of a vocabulary with a token for each byte, as Llama 2's."""
    words = [_SPACE, _SPACE * 2, *(_SPACE + word for word in _WORDS), *_WORDS, "##a", "<0xZZ>"]
    contents = [*SPECIAL, ADDED, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    behind = [text.encode() for text in (*SPECIAL, ADDED)] + [bytes([byte]) for byte in range(256)]
    behind += [word.replace(_SPACE, " ").encode() for word in words]
    return {content: id_ for id_, content in enumerate(contents)}, dict(enumerate(behind))


def byte_fallback(*, strip: bool = True, unigram: bool = False, fused_first: bool = False) -> Vocabulary:
    """Llama 2's, Gemma's (not stripped), a converted SentencePiece unigram's, a converted GGUF file's."""
    vocab, behind = _sentencepiece()
    model = (
        models.Unigram([(content, -1.0) for content in vocab], unk_id=0, byte_fallback=True)
        if unigram
        else models.BPE(vocab=vocab, merges=[], byte_fallback=True)
    )
    space, joined = decoders.Replace(_SPACE, " "), [decoders.ByteFallback(), decoders.Fuse()]
    stages = [*joined, space] if fused_first else [space, *joined]
    stages += [decoders.Strip(" ", 1, 0)] if strip else []
    tokenizer = _fast(model, decoders.Sequence(stages))
    return Vocabulary(tokenizer, behind, byte_ids=range(3, 259), strip=strip)


def metaspace(*, bytes_too: bool = False) -> Vocabulary:
    """T5's and XGLM's; with bytes, as of some vision models."""
    vocab, behind = _sentencepiece()
    contents = {id_: content for content, id_ in vocab.items()}
    if not bytes_too:
        behind |= {id_: contents[id_].encode() for id_ in range(3, 259)}
    first = {
        id_: content.replace(_SPACE, "").encode() for id_, content in contents.items() if _SPACE in content
    }
    stages = [decoders.Metaspace()]
    stages += [decoders.ByteFallback(), decoders.Fuse()] if bytes_too else []
    tokenizer = _fast(models.Unigram([(content, -1.0) for content in vocab], 0), decoders.Sequence(stages))
    return Vocabulary(tokenizer, behind, first, byte_ids=range(3, 259) if bytes_too else ())


def word_piece() -> Vocabulary:
    """BERT's."""
    contents = [*SPECIAL, ADDED, *_WORDS, *("##" + word for word in _WORDS), "##"]
    model = models.WordPiece(vocab={content: id_ for id_, content in enumerate(contents)}, unk_token="<s>")
    behind = [content[2:] if content.startswith("##") else f" {content}" for content in contents]
    behind = [text.replace(" n't", "n't").replace(" .", ".") for text in behind]  # its own cleanup
    first = {id_: content.encode() for id_, content in enumerate(contents)}
    tokenizer = _fast(model, decoders.WordPiece())
    return Vocabulary(tokenizer, {id_: text.encode() for id_, text in enumerate(behind)}, first)


def word_ends() -> Vocabulary:
    """The first GPT's: the space behind a word is there if a word follows. Its tokens have no bytes of their
    own, as the last one differs."""
    contents = [*SPECIAL, ADDED, *_WORDS, *(word + "</w>" for word in _WORDS)]
    vocab = {content: id_ for id_, content in enumerate(contents)}
    tokenizer = _fast(models.BPE(vocab=vocab, merges=[]), decoders.BPEDecoder("</w>"))
    return _DecodedWhole(tokenizer, {id_: content.encode() for content, id_ in vocab.items()})


def regex_behind() -> Vocabulary:
    """A decoder that looks at neighbours, over bytes."""
    vocab = byte_level()
    vocab.tokenizer.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Replace(Regex("(?<=E)N(?=D)"), "-")]
    )
    return _DecodedWhole(vocab.tokenizer, vocab.behind)


class _DecodedWhole(Vocabulary):
    """The truth is what the tokenizer makes of all tokens, up to an incomplete character."""

    def text(self, tokens: Sequence[int], special: bool = False) -> str:
        written = self.written(tokens, True)
        text: str = self.tokenizer.decode(written, skip_special_tokens=not special) if written else ""
        return text.rstrip("\N{REPLACEMENT CHARACTER}")


class _SlowTokenizer(PythonBackend):
    """In Python, with `<0xNN>` tokens; its holes raise."""

    vocab_files_names: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, vocab: dict[str, int], **options: Any) -> None:
        self._vocab = vocab
        self._contents = {id_: content for content, id_ in vocab.items()}
        super().__init__(**options)

    @property
    def vocab_size(self) -> int:
        return len(self._vocab)

    def get_vocab(self) -> dict[str, int]:
        return self._vocab

    def _tokenize(self, text: str, **options: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self._vocab.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return self._contents[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        data = b"".join(
            bytes([int(token[3:5], 16)])
            if token.startswith("<0x") and token != "<0xZZ>"
            else token.replace(_SPACE, " ").encode()
            for token in tokens
        )
        text = data.decode(errors="replace")
        return text[1:] if text.startswith(" ") else text


def slow() -> Vocabulary:
    """Written in Python, as SentencePiece's own."""
    vocab, behind = _sentencepiece()
    tokenizer = _SlowTokenizer(vocab, bos_token="<s>", eos_token="</s>", unk_token="<s>")
    return _HeldBack(tokenizer, behind, byte_ids=range(3, 259), strip=True)


class _HeldBack(Vocabulary):
    def text(self, tokens: Sequence[int], special: bool = False) -> str:
        return super().text(tokens, special).rstrip("\N{REPLACEMENT CHARACTER}")


VOCABULARIES: dict[str, Callable[[], Vocabulary]] = {
    "byte_level": byte_level,
    "llama2": byte_fallback,
    "gemma": lambda: byte_fallback(strip=False),
    "unigram": lambda: byte_fallback(unigram=True),
    "gguf": lambda: byte_fallback(fused_first=True),
    "metaspace": metaspace,
    "metaspace_bytes": lambda: metaspace(bytes_too=True),
    "word_piece": word_piece,
    "word_ends": word_ends,
    "regex_behind": regex_behind,
    "slow": slow,
}
