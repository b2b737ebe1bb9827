"""The result of one step of a branch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

# Reasons that finish the branch, not only its step.
FINAL_REASONS = frozenset({"eos", "stop_when", "max_tokens", "length", "budget", "complete", "dead_end"})

TopLogprobs = tuple[tuple[int, float], ...]  # (token id, log-probability), best first


@dataclass(frozen=True)
class Step:
    """The result of one `Branch.step()`.

    Attributes:
        text: the characters that end in the step, without special tokens. A character that is incomplete at
            the end begins the text that follows: as itself, or as U+FFFD if the rest of its bytes never
            comes.
        tokens, logprobs, entropies: one entry per token; nats, of the model's own distribution (temperature
            1, before penalty and filters).
        reason: "stop_string", "stop_token" or "max_step_tokens" if the branch can continue. Otherwise the
            branch's finish reason: "eos", "stop_when", "max_tokens", "length" (the model's last position),
            "budget", "dead_end" (the constraint allows no token that may be drawn, and the text does not
            match it), "complete" (the text matches the constraint, which allows no further token, and no
            end-of-sequence token may be drawn), or the argument of `Branch.finish`.
        hidden: mean of the model's last hidden states over the step's tokens (float32 [hidden]) if
            `decoder.keep_hidden` is set, else None.
        top_logprobs: one entry per token: (token id, log-probability) pairs of the most probable tokens at
            its position, best first, lowest id first among equals; nats, of the model's own distribution.
            Empty unless `SamplingParams.top_logprobs` asks for them. The token itself may be absent.
        self_certainties: one entry per token: KL divergence of the model's own distribution from the uniform
            one over the vocabulary, D(uniform || model), nats; 0 for a uniform distribution. Empty unless
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
    """A part of a step, from `Branch.stream`. The pieces of a step add up to the result of `step()`.

    Attributes:
        text: whole characters. Characters that a later token may complete to a stop string are held back with
            their tokens until that is decided, so a stop string begins and ends in the last piece.
        tokens, logprobs, entropies, top_logprobs, self_certainties: same as in `Step`. A token that ends
            inside a character comes in an earlier piece than that character.
        reason: the step's in the last piece; None in all others.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    entropies: tuple[float, ...]
    reason: str | None = None
    top_logprobs: tuple[TopLogprobs, ...] = ()
    self_certainties: tuple[float, ...] = ()
