"""Chooses verifiers on problems whose right answers are known."""

from __future__ import annotations

from collections.abc import Sequence


def choose_verifiers(
    approvals: Sequence[Sequence[Sequence[bool]]],
    right: Sequence[Sequence[bool]],
    max_verifiers: int | None = None,
) -> list[int]:
    """Returns the verifiers whose approvals together choose the most right candidates.

    Lifshitz et al., arXiv 2502.20379, section 5: verifiers are added one by one, each time the one that gains
    most, ties to the lower index; the result is the shortest such list with the most right choices. For each
    problem a set of verifiers chooses the first candidate with the most approvals.

    Args:
        approvals: `[problem][candidate][verifier]`.
        right: `[problem][candidate]`.
        max_verifiers: None, as many as there are.

    Raises:
        ValueError: the two do not fit together, or there is no problem or verifier.
    """
    shapes = [len(answers) for answers in approvals], [len(answers) for answers in right]
    widths = {len(given) for answers in approvals for given in answers}
    if shapes[0] != shapes[1] or 0 in shapes[0] or len(widths) != 1 or widths == {0}:
        raise ValueError(
            f"approvals: got {shapes[0]} candidates of {sorted(widths)} verifiers for {shapes[1]} in right, "
            "expected the same candidates of each problem, at least one, and the same verifiers for all"
        )
    count = widths.pop()

    def solved(chosen: Sequence[int]) -> int:
        total = 0
        for answers, good in zip(approvals, right, strict=True):
            votes = [sum(bool(given[i]) for i in chosen) for given in answers]
            total += good[votes.index(max(votes))]
        return total

    chosen: list[int] = []
    found: list[tuple[int, list[int]]] = []
    while len(chosen) < min(count, max_verifiers or count):
        others = (i for i in range(count) if i not in chosen)
        chosen = [*chosen, max(others, key=lambda i: solved([*chosen, i]))]
        found.append((solved(chosen), chosen))
    return max(found, key=lambda entry: entry[0])[1]
