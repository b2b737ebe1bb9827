"""Finished texts that are kept, so that a request which goes on with one computes only what is new.

A client sends the text that it got back, not the ids that were sampled, and a tokenizer may cut that text in
another way. So the ids are kept beside the text. The KV is kept by pins of the decoder, which give way as
soon as pages are needed.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.detokenizer import text_stream
from ..decoding.branch import TreeBranch
from ..decoding.decoder import TreeDecoder
from ..decoding.kv_budget import Pin

_PAGE = 16  # tokens that another tokenization of a known text may lose


@dataclass
class _Entry:
    """text: as a client sees it, special tokens included. tokens: all ids.

    begin: index of the first token whose end in the text is known. ends: of those from there on, ascending.
    """

    text: str
    tokens: array[int]
    begin: int
    ends: array[int]
    pin: Pin

    def known_in(self, text: str) -> int:
        """How many of the tokens are the beginning of a text; 0 where that is not known."""
        first = self.ends[0]
        if not text.startswith(self.text[:first]):
            return 0
        return self.begin + bisect_right(self.ends, _common(text, self.text, first))


class RetainedTexts:
    """Finished texts by least recent use. For the decoder's own thread.

    Args:
        texts, tokens: how many are kept at most, and of how many tokens in all.
    """

    def __init__(self, decoder: TreeDecoder, texts: int, tokens: int) -> None:
        self._decoder = decoder
        self._texts, self._tokens = texts, tokens
        self._entries: OrderedDict[int, _Entry] = OrderedDict()  # by the ids of pins
        self._size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def ids(self, text: str, canonical: list[int]) -> list[int]:
        """Ids for a text: those of the tokenizer, `canonical`, unless they part from known ones more than a
        page before the end of the known text."""
        entry, known = self._best(text)
        if entry is None:
            return canonical
        self._entries.move_to_end(entry.pin.id)
        tokens = entry.tokens[:known].tolist()
        if known - _common(canonical, tokens) <= _PAGE:
            return canonical
        rest = text[entry.ends[known - entry.begin - 1] :]
        ids = tokens + self._decoder.token_ids(rest)
        stream = text_stream(self._decoder.tokenizer, tokens, special=True)
        if stream.add(ids[known:]) != rest:  # some tokenizers add to a text's start
            return canonical
        return ids if self._special(ids) == self._special(canonical) else canonical

    def keep(self, branch: TreeBranch, prompt: str | None) -> None:
        """Keeps a finished branch. prompt: the text of its prompt; None: that of its ids, where the text
        alone would get these, too. Else one client could choose the ids that another one's text gets."""
        if not self._texts or branch.length > self._tokens:
            return
        tokens = branch.tokens
        if prompt is None:
            stream = text_stream(self._decoder.tokenizer, [], special=True)
            given = tokens[: branch.prompt_length]
            prompt = stream.add(given)
            if not prompt or self.ids(prompt, self._decoder.prompt_ids(prompt)) != given:
                return
        base, known = self._best(prompt)
        if base is not None and base.tokens[:known].tolist() == tokens[:known]:
            begin, ends = base.begin, base.ends[: known - base.begin]
            text = prompt[: ends[-1]]
        else:
            begin, ends, text = branch.prompt_length - 1, array("q", [len(prompt)]), prompt
        grown = self._spelled(tokens, begin + len(ends), ends)
        entry = _Entry(text + grown, array("q", tokens), begin, ends, self._decoder.pin(branch))
        for other in list(self._entries.values()):
            if begin <= other.begin and entry.tokens[: len(other.tokens)] == other.tokens:
                self._drop(other)  # all of it is in the new one
        self._entries[entry.pin.id] = entry
        self._size += len(tokens)
        while len(self._entries) > self._texts or self._size > self._tokens:
            self._drop(next(iter(self._entries.values())))

    def _special(self, ids: Sequence[int]) -> list[int]:
        """Special tokens among ids: no other tokens may stand for them, nor they for plain text."""
        special = set(getattr(self._decoder.tokenizer, "all_special_ids", ()))
        return [token for token in ids if token in special]

    def clear(self) -> None:
        for entry in list(self._entries.values()):
            self._drop(entry)

    def _best(self, text: str) -> tuple[_Entry | None, int]:
        """The entry with the longest known beginning of a text, and how many tokens that is."""
        for entry in list(self._entries.values()):
            if not entry.pin.resident:  # its pages were needed
                self._drop(entry)
        known = [(entry.known_in(text), entry) for entry in self._entries.values()]
        count, best = max(known, key=lambda pair: pair[0], default=(0, None))
        return (best, count) if count else (None, 0)

    def _spelled(self, tokens: Sequence[int], start: int, ends: array[int]) -> str:
        """Text of `tokens[start:]`, whose ends are added to `ends`. One that ends inside a character ends, as
        seen from the text, with it."""
        stream = text_stream(self._decoder.tokenizer, tokens[:start], special=True)
        pieces, length = [], ends[-1]
        for token in tokens[start:]:
            pieces.append(piece := stream.add((token,)))
            length += len(piece)
            ends.append(length if piece else length + 1)
        return "".join(pieces)

    def _drop(self, entry: _Entry) -> None:
        del self._entries[entry.pin.id]
        self._size -= len(entry.tokens)
        entry.pin.release()


def _common(one: Sequence[object], other: Sequence[object], low: int = 0) -> int:
    """Length of the common beginning of two texts, or of two lists, whose first `low` items are the same."""
    high = min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
