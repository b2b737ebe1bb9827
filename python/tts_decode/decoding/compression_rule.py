"""When a decoder compresses the KV of its branches, and by which rule."""

from __future__ import annotations

from dataclasses import dataclass

from tts_kernels.checks import integer


@dataclass(frozen=True)
class Compression:
    """When and how far branches are compressed, for `TreeDecoder(compress=...)`; see `Branch.compress`.

    A branch whose KV has more than `budget_tokens` + `slack_tokens` is brought back to `budget_tokens`, as
    far as its own pages go: what it shares with others stays. A prompt is compressed once all of it is
    computed. Where no page is free to look at the last tokens in, a branch stays as it is for the time being.

    What a branch keeps depends on who shares its pages at that moment, so the promise that a seed gives the
    same text whatever else is in the batch does not hold beyond the first compression.

    Attributes:
        budget_tokens: tokens of KV, in each layer, that a branch is brought back to.
        slack_tokens: tokens that it may have beyond that. Each compression costs a forward of `observe`
            tokens.
        sink, recent, observe: as of `Branch.compress`.
    """

    budget_tokens: int
    slack_tokens: int = 256
    sink: int = 1
    recent: int = 4
    observe: int = 32

    def __post_init__(self) -> None:
        for name, least in (("budget_tokens", 1), ("slack_tokens", 16)):
            object.__setattr__(self, name, integer(name, getattr(self, name), least))
        check_rule(self.sink, self.recent, self.observe)


def check_rule(sink: int, recent: int, observe: int) -> None:
    """TypeError or ValueError for what no compression goes by."""
    for name, value, least in (("sink", sink, 0), ("recent", recent, 2), ("observe", observe, 1)):
        integer(name, value, least)
