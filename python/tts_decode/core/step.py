"""What one step of a branch generated."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

# Reasons for which a branch is finished, not only its step.
FINAL_REASONS = frozenset({"eos", "stop_when", "max_tokens", "length", "budget", "complete", "dead_end"})

TopLogprobs = tuple[tuple[int, float], ...]  # (token id, log-probability), best first


@dataclass(frozen=True)
class Step:
    """What one `Branch.step()` generated.

    Attributes:
        text: the characters that end in the step, special tokens left out. One that is incomplete at its end
            begins the text of what follows: as itself, or as U+FFFD if the rest of its bytes never comes.
        tokens, logprobs, entropies: one entry a token; nats, of the model's own distribution (temperature 1,
            before penalty and filters).
        reason: "stop_string", "stop_token" or "max_step_tokens" when the branch can go on; otherwise the
            branch's finish reason: "eos", "stop_when", "max_tokens", "length" (the model's last position),
            "budget", "dead_end" (the constraint allows no token that may be drawn, and the text does not
            match it), "complete" (it allows none as the text matches it, and no end of the sequence may be
            drawn), or what `Branch.finish` was given.
        hidden: mean of the model's last hidden states over the step's tokens (float32 [hidden]) when
            `decoder.keep_hidden` is set, else None.
        top_logprobs: one entry a token: the (token id, log-probability) pairs of the tokens that were most
            probable in its place, best first, of equals the lowest id; nats, of the model's own distribution.
            Empty unless `SamplingParams.top_logprobs` asks for them. The token itself need not be among them.
        self_certainties: one entry a token: KL divergence of the model's own distribution from the uniform
            one over the vocabulary, D(uniform || model), nats; 0 where the model knows nothing. Empty unless
            `SamplingParams.self_certainty` asks for them.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    entropies: tuple[float, ...]
    reason: str
    hidden: Tensor | None = None
    top_logprobs: tuple[TopLogprobs, ...] = ()
    self_certainties: tuple[float, ...] = ()


@dataclass(frozen=True)
class StepPiece:
    """What `Branch.stream` gives: a part of a step. The pieces of a step add up to what `step()` returns.

    Attributes:
        text: whole characters. Those that a later token may complete to a stop string are held back with
            their tokens until that is decided, so a stop string begins and ends in the last piece.
        tokens, logprobs, entropies, top_logprobs, self_certainties: as of `Step`. A token that ends inside a
            character comes before that character does.
        reason: of the last piece as of `Step`; None of those before.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    entropies: tuple[float, ...]
    reason: str | None = None
    top_logprobs: tuple[TopLogprobs, ...] = ()
    self_certainties: tuple[float, ...] = ()
