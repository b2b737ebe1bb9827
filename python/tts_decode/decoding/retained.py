"""Keeps finished texts, so that a request that continues one computes only what is new.

A client sends back the text it received, not the sampled ids, and a tokenizer may split that text
differently. So the ids are kept beside the text. The decoder's pins keep the KV; they give way as soon as
pages are needed.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from ..core.detokenizer import text_stream
from ..core.params import SamplingParams
from .branch import TreeBranch
from .decoder import TreeDecoder
from .known_texts import KnownText, TextIndex, common
from .kv_budget import Pin

_PAGE = 16  # tokens of a known text that another tokenization may lose


@dataclass(frozen=True)
class _Entry:
    """What was kept for an owner. known: None if only a prompt of ids finds it."""

    owner: OwnTexts
    tokens: array[int]
    known: KnownText | None
    pin: Pin

    def holds(self, other: _Entry) -> bool:
        """Whether this entry contains all of another one."""
        count = len(other.tokens)
        if other.owner is not self.owner or count > len(self.tokens):
            return False
        if self.tokens[count - 1] != other.tokens[-1] or self.tokens[:count] != other.tokens:
            return False
        return other.known is None or (self.known is not None and self.known.begin <= other.known.begin)


class RetainedTexts:
    """Finished texts of several owners. For the decoder's own thread.

    If they become too many, the owner with the most loses the least recently used one: no owner displaces the
    texts of another who has fewer.

    Args:
        texts, tokens: maximum number of texts kept, and of their tokens in total.
    """

    def __init__(self, decoder: TreeDecoder, texts: int, tokens: int) -> None:
        self.decoder = decoder
        self._texts, self._tokens = texts, tokens
        self._entries: OrderedDict[int, _Entry] = OrderedDict()  # by pin id
        self._owners: WeakValueDictionary[str, OwnTexts] = WeakValueDictionary()
        self._size = 0
        self._special = _special_ids(decoder.tokenizer)

    def __len__(self) -> int:
        """The number of resident texts."""
        self._drop_lost()
        return len(self._entries)

    def of(self, owner: str) -> OwnTexts:
        """Returns one owner's texts; an owner, such as an API key, never affects the ids of another's."""
        own = self._owners.get(owner)
        if own is None:
            own = self._owners[owner] = OwnTexts(self, self._special)
        return own

    def clear(self) -> None:
        for entry in list(self._entries.values()):
            self.drop(entry)

    def has_room(self, tokens: int) -> bool:
        """Whether a text of `tokens` tokens can be kept at all."""
        return bool(self._texts) and tokens <= self._tokens

    def add(self, entry: _Entry) -> None:
        for other in list(self._entries.values()):
            if entry.holds(other):
                self.drop(other)
        self._entries[entry.pin.id] = entry
        self._size += len(entry.tokens)
        if self._crowded or self._size > self._tokens:
            self._drop_lost()
        while self._crowded or self._size > self._tokens:
            self.drop(self._next_to_go())

    def used(self, owner: OwnTexts, ids: Sequence[int]) -> None:
        """Marks the owner's text that shares most with a prompt's ids, and at least a page, as used."""
        given, best, most = array("q", ids), None, _PAGE - 1
        for entry in self._entries.values():
            if entry.owner is owner and (shared := common(entry.tokens, given)) > most:
                best, most = entry, shared
        if best is not None:
            self._entries.move_to_end(best.pin.id)

    def drop(self, entry: _Entry) -> None:
        del self._entries[entry.pin.id]
        self._size -= len(entry.tokens)
        entry.owner.forget(entry)
        entry.pin.release()

    @property
    def _crowded(self) -> bool:
        return len(self._entries) > self._texts

    def _next_to_go(self) -> _Entry:
        """Returns an entry of the owner who has most of whatever exceeds its limit."""
        held: Counter[OwnTexts] = Counter()
        for entry in self._entries.values():
            held[entry.owner] += 1 if self._crowded else len(entry.tokens)
        most = max(held.values())
        return next(entry for entry in self._entries.values() if held[entry.owner] == most)

    def _drop_lost(self) -> None:
        """Drops the texts whose pages were needed."""
        for entry in list(self._entries.values()):
            if not entry.pin.resident:
                self.drop(entry)


class OwnTexts:
    """The texts kept for one owner; made by `RetainedTexts.of`.

    Args:
        special: tokens that no others may replace, and that may not replace plain text.
    """

    def __init__(self, store: RetainedTexts, special: frozenset[int]) -> None:
        self._store, self._special = store, special
        self._index = TextIndex()
        self._entries: dict[KnownText, _Entry] = {}

    def ids(self, text: str | None, canonical: list[int]) -> list[int]:
        """Returns the ids for a prompt of this text: the tokenizer's, `canonical`, or known ones.

        Known ids are used if the canonical ones differ from them more than a page before the end of the known
        text. text: None: the prompt is of ids.
        """
        ids = canonical if text is None else self._as_known(text, canonical)
        self._store.used(self, ids)
        return ids

    def _as_known(self, text: str, canonical: list[int]) -> list[int]:
        known, count = self._best(text)
        if known is None:
            return canonical
        same = common(canonical, known.tokens[:count].tolist())
        if count - same <= _PAGE:
            return canonical
        ids = self._continued(known, count, text, canonical)
        return ids if self._controls(ids[same:]) == self._controls(canonical[same:]) else canonical

    def known_text(self, text: str | None, ids: list[int], sampling: SamplingParams) -> str | None:
        """Returns a prompt's text, for `keep`; None if a client chose the tokens of it or of its answer.

        text: None: the prompt is of ids.
        """
        if sampling.logit_bias:
            return None
        return self.text_of(ids) if text is None else text

    def text_of(self, ids: list[int]) -> str | None:
        """Returns the text of a client's ids if the text would get these ids anyway; None otherwise.

        Otherwise nobody else may get these ids for the text: one client could then choose the ids of
        another's text.
        """
        decoder = self._store.decoder
        for special in (True, False):
            text = text_stream(decoder.tokenizer, [], special=special).add(ids)
            if text and ids in (self._as_known(text, decoder.prompt_ids(text)), decoder.token_ids(text)):
                return text
        return None

    def keep(self, branch: TreeBranch, prompt_length: int, prompt: str | None) -> None:
        """Keeps what is computed of a branch.

        Args:
            prompt_length: number of its tokens that are the request's prompt. prompt: their text; None: later
                prompts find them by their ids only, as they also do if not all of them are resident.
        """
        if branch.kv_length and not branch.stale and self._store.has_room(branch.length):
            self.take(self._store.decoder.pin(branch), branch.tokens, prompt_length, prompt)

    def take(self, pin: Pin, tokens: Sequence[int], prompt_length: int, prompt: str | None) -> None:
        """Like `keep`, for tokens that a pin holds. The pin is given up with them."""
        if not pin.resident or not self._store.has_room(len(tokens)):
            pin.release()
            return
        known = None
        if prompt is not None and len(tokens) >= prompt_length:
            known = self._known(tokens, prompt_length, prompt)
        entry = _Entry(self, array("q", tokens) if known is None else known.tokens, known, pin)
        if known is not None:
            self._index.add(known)
            self._entries[known] = entry
        self._store.add(entry)

    def forget(self, entry: _Entry) -> None:
        """Removes an entry; called by the store."""
        if entry.known is not None:
            self._index.remove(entry.known)
            del self._entries[entry.known]

    def _best(self, text: str) -> tuple[KnownText | None, int]:
        known, count = self._index.best(text)
        while known is not None and not self._entries[known].pin.resident:  # its pages were needed
            self._store.drop(self._entries[known])
            known, count = self._index.best(text)
        return known, count

    def _known(self, tokens: Sequence[int], prompt_length: int, prompt: str) -> KnownText:
        base, count = self._best(prompt)
        if base is not None and base.tokens[:count].tolist() == list(tokens[:count]):
            begin, ends = base.begin, base.ends[: count - base.begin]
            text = prompt[: ends[-1]]
        else:
            begin, ends, text = prompt_length - 1, array("q", [len(prompt)]), prompt
        start = begin + len(ends)
        grown = self._spelled(tokens[:start], tokens[start:], ends)
        return KnownText(text + grown, array("q", tokens), begin, ends)

    def _continued(self, known: KnownText, count: int, text: str, canonical: list[int]) -> list[int]:
        """Returns the known tokens, followed by those of the rest of the text."""
        decoder = self._store.decoder
        tokens, rest = known.tokens[:count].tolist(), text[known.end_of(count) :]
        added = decoder.token_ids(rest)
        if text_stream(decoder.tokenizer, tokens, special=True).add(added) == rest:
            return tokens + added
        # Some tokenizers add to a text's start. Their ids of the whole text take over at a common boundary.
        ends = array("q", [0])
        spelled = len(self._spelled([], canonical, ends))
        for kept in range(count, max(count - _PAGE, known.begin), -1):
            end = (
                known.end_of(kept) + spelled - len(text)
            )  # a first token may have text that the client did not send
            place = bisect_right(ends, end)
            if place and ends[place - 1] == end:
                return tokens[:kept] + canonical[place - 1 :]
        return canonical

    def _controls(self, ids: Sequence[int]) -> list[int]:
        return [token for token in ids if token in self._special]

    def _spelled(self, before: Sequence[int], tokens: Sequence[int], ends: array[int]) -> str:
        """Returns the text of tokens after others, and adds their ends to `ends`.

        The last entry of `ends` is where they begin. A token that ends inside a character counts as ending
        with it.
        """
        stream = text_stream(self._store.decoder.tokenizer, before, special=True)
        pieces, length = [], ends[-1]
        for token in tokens:
            pieces.append(piece := stream.add((token,)))
            length += len(piece)
            ends.append(length if piece else length + 1)
        return "".join(pieces)


def _special_ids(tokenizer: Any) -> frozenset[int]:
    """Returns the tokens that represent themselves in a text.

    These are special tokens and tokens added to the vocabulary, except runs of spaces, which some tokenizers
    add.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    controls = [token for token, told in added.items() if told.special or told.content.strip()]
    return frozenset([*getattr(tokenizer, "all_special_ids", ()), *controls])
