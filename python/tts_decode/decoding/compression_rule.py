"""The rule by which a decoder compresses the KV of its branches."""

from __future__ import annotations

from dataclasses import dataclass

from tts_kernels.checks import integer


@dataclass(frozen=True)
class Compression:
    """When and how far to compress branches, for `TreeDecoder(compress=...)`; see `Branch.compress`.

    A branch with more than `budget_tokens` + `slack_tokens` of KV is reduced to `budget_tokens`, as far as
    its own pages allow: shared pages stay. A prompt is compressed once all of it is computed. If no page is
    free for observing the last tokens, the branch stays as it is for now.

    What a branch keeps depends on who shares its pages at that moment. So beyond the first compression, a
    seed no longer guarantees the same text whatever else is in the batch.

    Attributes:
        budget_tokens: tokens of KV, per layer, that a branch is reduced to.
        slack_tokens: tokens that it may have beyond that. Each compression costs a forward of `observe`
            tokens.
        sink, recent, observe: same as for `Branch.compress`.
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
    """Raises TypeError or ValueError for values that no compression can use."""
    for name, value, least in (("sink", sink, 0), ("recent", recent, 2), ("observe", observe, 1)):
        integer(name, value, least)
