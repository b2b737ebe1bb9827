"""Runs llm-reasoners' searches on a decoder of this process: text, logits and likelihoods.

Needs `llm-reasoners`, in a version that was tested (`TESTED` of `tts_decode.extras`), installed with
`--no-deps`: its requirements besides torch and transformers are for its other models.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch

from tts_kernels.checks import any_integer, flag, instance, integer, is_integer, number, shown

from ..core.naming import named
from ..core.params import mix
from ..core.running import gather
from ..decoding.branch import TreeBranch
from ..decoding.decoder import TreeDecoder
from ..decoding.kv_budget import Pin
from ..decoding.releasing import release_all
from ..extras import require, require_tested

require("reasoners")
require_tested("llm-reasoners")
from reasoners import GenerateOutput, LanguageModel  # noqa: E402

T = TypeVar("T")
Floats = npt.NDArray[np.float32]
_POSTPROCESS = {"softmax": torch.softmax, "log_softmax": torch.log_softmax}


class TreeLanguageModel(LanguageModel):
    """The `base_model` that llm-reasoners' world models and search configurations take.

    The inputs of a call are decoded in one batch, and share the KV that earlier calls left resident.

    Args:
        decoder: its `sampling` sets what `generate` does not name.
        seed: calls draw with it and their number.
        retain: number of texts that stay resident for later calls, as long as nobody else needs their pages.
    """

    def __init__(self, decoder: TreeDecoder, *, seed: int = 0, retain: int = 256) -> None:
        super().__init__()
        self.decoder = instance("decoder", decoder, TreeDecoder)
        self.tokenizer = decoder.tokenizer
        self._seed, self._calls = any_integer("seed", seed), 0
        self._retain, self._pins = integer("retain", retain, 0), deque[Pin]()

    def generate(
        self,
        inputs: Sequence[str],
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = 50,
        top_p: float = 1.0,
        num_return_sequences: int = 1,
        eos_token_id: str | int | Sequence[str | int] | None = None,
        hide_input: bool = True,
        output_log_probs: bool = False,
        stopping_criteria: Callable[..., Any] | None = None,
    ) -> GenerateOutput:
        """Returns texts for the inputs in order, `num_return_sequences` each, with transformers' meanings.

        Args:
            max_length: of input and output together; `max_new_tokens` takes precedence.
            do_sample: False takes the most probable tokens, and so does a temperature of 0.
            eos_token_id: tokens of the vocabulary that end a text and stay in it. A text means its last
                token.
            hide_input: whether the texts leave the inputs out.
            output_log_probs: also return float32 [tokens] for each text: its tokens' log-probabilities under
                the model.
            stopping_criteria: called after each token with ids [1, length] and empty scores [1, 0]; the text
                ends when the result, or all of it, is true.

        Raises:
            TypeError: an argument is of another type, including a single text as `inputs`.
            ValueError: an input has no token, or is as long as `max_length`; `eos_token_id` holds a text
                without tokens, or an id beyond the vocabulary; or for the reasons of `SamplingParams`.
            PromptTooLongError: the model or its pages cannot hold an input.
        """
        inputs = _texts("inputs", inputs)
        for name, value in (
            ("max_length", max_length),
            ("max_new_tokens", max_new_tokens),
            ("num_return_sequences", num_return_sequences),
        ):
            if value is not None or name == "num_return_sequences":
                integer(name, value, 1)
        flag("hide_input", hide_input)
        flag("output_log_probs", output_log_probs)
        if not (stopping_criteria is None or callable(stopping_criteria)):
            raise TypeError(
                f"stopping_criteria: got {shown(stopping_criteria)}, expected a function of ids and scores"
            )
        temperature = number("temperature", temperature, low=0)
        sampling = replace(
            self.decoder.sampling,
            temperature=temperature if flag("do_sample", do_sample) else 0.0,
            top_k=top_k or 0,
            top_p=top_p,
            stop=(),
            stop_token_ids=self._end_tokens(eos_token_id),
        )
        lengths = [
            self._most(f"inputs[{number}]", text, max_length, max_new_tokens)
            for number, text in enumerate(inputs)
        ]
        call = self._calls + 1
        held: list[TreeBranch] = []

        async def texts(number: int, text: str) -> list[TreeBranch]:
            most = lengths[number]
            seed = mix(self._seed, call, number)
            params = replace(sampling, max_tokens=most, max_step_tokens=most, seed=seed)
            with named(f"inputs[{number}]"):
                root = await self.decoder.root(text, params)
            held.append(root)
            forks = root.fork(num_return_sequences)
            held.extend(forks)
            root.release()
            await gather(_finish(fork, stopping_criteria) for fork in forks)
            return forks

        async def run() -> GenerateOutput:
            groups = await gather(texts(number, text) for number, text in enumerate(inputs))
            branches = [branch for group in groups for branch in group]
            shown = [branch.text_from(branch.prompt_length if hide_input else 0) for branch in branches]
            logprobs = [np.array(branch.logprobs, np.float32) for branch in branches]
            self._keep(branches)
            self._calls = call  # a failed call does not count: the next one draws as if it had not happened
            return GenerateOutput(shown, logprobs if output_log_probs else None)

        return self._run(run(), held)

    def get_next_token_logits(
        self,
        prompt: str | Sequence[str],
        candidates: Sequence[str] | Sequence[Sequence[str]],
        postprocess: str | None = None,
    ) -> list[Floats]:
        """Returns float32 [candidates] for each prompt: the logits of tokens that may come next.

        Args:
            candidates: texts of one token each, for all prompts or a list for each. If one has more tokens,
                the second counts, with a warning, as in llm-reasoners' own models.
            postprocess: "softmax" or "log_softmax", over the vocabulary, as in llm-reasoners' own models: the
                probabilities of the candidates sum to their total under the model, not to 1.
        """
        if postprocess is not None and postprocess not in _POSTPROCESS:
            raise ValueError(
                f"postprocess: got {postprocess!r}, expected None or {' or '.join(_POSTPROCESS)}"
            )
        prompts = _texts("prompt", [prompt] if isinstance(prompt, str) else prompt)
        names = ["prompt"] if isinstance(prompt, str) else [f"prompt[{i}]" for i in range(len(prompts))]
        lists = _lists_of_texts(candidates, len(prompts))
        if len(lists) != len(prompts) or not all(lists):
            raise ValueError(
                f"candidates: got {shown(candidates)} for {len(prompts)} prompts, expected texts of one "
                "token, for all of them or a list for each"
            )
        ids = [[self._only_token(text) for text in texts] for texts in lists]
        held: list[TreeBranch] = []

        async def root(name: str, text: str) -> TreeBranch:
            with named(name):
                held.append(branch := await self.decoder.root(text))
            return branch

        async def run() -> list[Floats]:
            branches = await gather(root(*item) for item in zip(names, prompts, strict=True))
            rows = [cast(torch.Tensor, branch.logits).cpu() for branch in branches]  # a root has them
            self._keep(branches)
            if postprocess is not None:
                rows = [_POSTPROCESS[postprocess](row, -1) for row in rows]
            return [row[own].numpy() for row, own in zip(rows, ids, strict=True)]

        return self._run(run(), held)

    def get_loglikelihood(self, prefix: str, contents: Sequence[str]) -> Floats:
        """Returns float32 [contents], nats: how likely each text continues as it does after the prefix.

        Each text must begin with the prefix's tokens. No special tokens are added.
        """
        texts = [instance("prefix", prefix, str), *_texts("contents", contents)]
        names = ["prefix", *(f"contents[{i}]" for i in range(len(texts) - 1))]
        begin, *ids = [self._ids(name, text) for name, text in zip(names, texts, strict=True)]
        if not begin:
            raise ValueError(f"prefix: got {prefix!r}, expected a text of a token or more")
        for i, own in enumerate(ids):
            if own[: len(begin)] != begin:
                raise ValueError(f"contents[{i}]: got other tokens at its beginning than those of prefix")
        held: list[TreeBranch] = []

        async def read(name: str, root: TreeBranch, own: list[int]) -> torch.Tensor:
            with named(name):
                return await root.logprobs_of(own[len(begin) :])

        async def run() -> Floats:
            with named("prefix"):
                root = await self.decoder.root(begin)
            held.append(root)
            rests = await gather(read(name, root, own) for name, own in zip(names[1:], ids, strict=True))
            self._keep([root])
            return np.array([float(rest.sum()) for rest in rests], np.float32)

        return self._run(run(), held)

    def clear(self) -> None:
        """Frees the pages that earlier calls left resident."""
        while self._pins:
            self._pins.popleft().release()

    def _run(self, coroutine: Coroutine[Any, Any, T], held: Sequence[TreeBranch]) -> T:
        """Returns a call's result. held: branches that it made, none of which is left."""
        try:
            return self.decoder.run(coroutine)
        finally:
            release_all(held)

    def _keep(self, branches: Sequence[TreeBranch]) -> None:
        """Leaves the KV of branches resident, and releases them."""
        for branch in branches:
            self._pins.append(self.decoder.pin(branch))
            branch.release()
            if len(self._pins) > self._retain:
                self._pins.popleft().release()

    def _ids(self, name: str, text: str) -> list[int]:
        """Returns the ids of a caller's text, without special tokens."""
        with named(name):
            return self.decoder.token_ids(text)

    def _most(self, name: str, text: str, max_length: int | None, max_new_tokens: int | None) -> int:
        """Returns how many tokens may follow an input. name: of the input, for an error."""
        if max_new_tokens is not None:
            return max_new_tokens
        if max_length is None:
            return self.decoder.sampling.max_tokens
        with named(name):
            length = len(self.decoder.prompt_ids(text))
        if length >= max_length:
            raise ValueError(f"max_length: got {max_length} for {name} of {length} tokens, expected more")
        return max_length - length

    def _end_tokens(self, ends: Any) -> list[int]:
        """Returns the token ids that `eos_token_id` means."""
        if ends is None:
            return []
        found = []
        for end in ends if isinstance(ends, Sequence) and not isinstance(ends, str) else [ends]:
            what = f"eos_token_id: got {shown(end)}, expected a token id or a text of tokens"
            if not (is_integer(end) or isinstance(end, str)):
                raise TypeError(what)
            ids = self._ids("eos_token_id", end) if isinstance(end, str) else [int(end)]
            if not ids or not 0 <= ids[-1] < self.decoder.vocab_size:
                raise ValueError(f"{what} of the vocabulary, 0..{self.decoder.vocab_size - 1}")
            found.append(ids[-1])
        return found

    def _only_token(self, text: str) -> int:
        ids = self._ids("candidates", text)
        if not ids:
            raise ValueError(f"candidates: got {text!r}, expected a text of one token")
        if len(ids) != 1:
            warnings.warn(f"candidates: got {text!r} of {len(ids)} tokens, expected one", stacklevel=3)
        return ids[min(1, len(ids) - 1)]


async def _finish(branch: TreeBranch, criteria: Callable[..., Any] | None) -> None:
    """Generates the whole text in one step, or token by token if criteria check each."""
    reason, stopped = "", False
    while not (branch.finished or stopped or reason == "stop_token"):
        reason = (await branch.step(**({} if criteria is None else {"max_step_tokens": 1}))).reason
        if criteria is not None:
            stopped = _is_true(criteria(torch.tensor([branch.tokens]), torch.empty(1, 0)))


def _is_true(found: Any) -> bool:
    """Whether a stopping criterion's result, or all of it, is true."""
    try:
        return bool(torch.as_tensor(found).all())
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"stopping_criteria: got {shown(found)} of it, expected a bool, or bools") from None


def _texts(name: str, texts: Any) -> list[str]:
    """Returns a list of texts; refuses one text, which would be read as a list of its letters."""
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        remedy = f"; pass [{shown(texts)}]" if isinstance(texts, str) else ""
        raise TypeError(f"{name}: got {shown(texts)}, expected a list of texts{remedy}")
    found = list(texts)
    for index, text in enumerate(found):
        instance(f"{name}[{index}]", text, str)
    return found


def _lists_of_texts(candidates: Any, prompts: int) -> list[list[str]]:
    """Returns the candidates of each prompt, given as one list for all of them or a list for each."""
    if isinstance(candidates, str) or not isinstance(candidates, Iterable):
        return [_texts("candidates", candidates)]  # raises
    given = list(candidates)
    if given and not any(isinstance(entry, str) for entry in given):
        return [_texts(f"candidates[{index}]", entry) for index, entry in enumerate(given)]
    return [_texts("candidates", given)] * prompts
