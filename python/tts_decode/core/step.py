"""What one step of a branch generated."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

# Reasons for which a branch is finished, not only its step.
FINAL_REASONS = frozenset({"eos", "max_tokens", "length", "budget"})


@dataclass(frozen=True)
class Step:
    """What one `Branch.step()` generated.

    Attributes:
        text: the characters that end in the step, special tokens left out. One that is incomplete at its end
            begins the text of what follows: as itself, or as U+FFFD if the rest of its bytes never comes.
        tokens, logprobs, entropies: one entry a token; nats, of the model's own distribution (temperature 1,
            before penalty and filters).
        reason: "stop_string", "stop_token" or "max_step_tokens" when the branch can go on; otherwise the
            branch's finish reason: "eos", "max_tokens", "length" (the model's last position), "budget", or
            what `Branch.finish` was given.
        hidden: mean of the model's last hidden states over the step's tokens (float32 [hidden]) when
            `decoder.keep_hidden` is set, else None.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    entropies: tuple[float, ...]
    reason: str
    hidden: Tensor | None = None
