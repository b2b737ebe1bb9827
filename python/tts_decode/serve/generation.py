"""Runs a job on the decoder, in the decoder's own thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

from ..core.detokenizer import TextStream, continuation, text_stream
from ..core.running import gather
from ..core.step import Step, StepPiece, TopLogprobs
from ..decoding.branch import TreeBranch
from ..decoding.decoder import TreeDecoder
from ..decoding.releasing import release_all
from ..decoding.retained import OwnTexts
from ..decoding.stop_text import cut_at_stop
from .job import Job, Piece, Token, Usage
from .prompts import Prompt
from .stops import finish_reason

Emit = Callable[[Piece], None]

_CONTEXT = 8  # preceding tokens that determine a token's text; a character has at most 4 bytes


async def generate(decoder: TreeDecoder, retained: OwnTexts, job: Job, emit: Emit, usage: Usage) -> None:
    """Emits the pieces of all choices as they come.

    Whether it returns, fails or is cancelled, no branch is left; what they hold by then is retained.
    """
    await gather(
        _Samples(decoder, retained, job, emit, usage, number).run() for number in range(len(job.prompts))
    )


class _Samples:
    """The choices of one prompt: its branch, and forks of it."""

    def __init__(
        self, decoder: TreeDecoder, retained: OwnTexts, job: Job, emit: Emit, usage: Usage, number: int
    ) -> None:
        self._decoder, self._retained, self._job = decoder, retained, job
        self._emit, self._usage = emit, usage
        self._prompt: Prompt = job.prompts[number]
        self._first = number * job.n  # index of its first choice
        self._sampling = replace(job.sampling, seed=job.sampling.seed + number)
        self._length = 0  # tokens of the prompt
        self._branches: list[TreeBranch] = []  # all that are held, sampled ones last
        self._drawn: list[TreeBranch] = []
        self._kept: set[TreeBranch] = set()

    async def run(self) -> None:
        prompt, job = self._prompt, self._job
        ids = self._retained.ids(prompt.text, prompt.ids)
        self._length = len(ids)
        self._usage.prompt += len(ids)
        try:
            echoed = await self._echo(ids) if job.echo else ()
            text = (prompt.text or continuation(self._decoder.tokenizer, ids, 0)) if job.echo else ""
            head = Piece(0, text, echoed=echoed, prompt_ids=ids if job.token_ids else ())
            if job.generates:
                await self._draw(ids, head)
            else:
                for index in range(job.n):
                    self._emit(replace(head, choice=self._first + index, finish_reason="length"))
        finally:
            for branch in self._drawn or self._branches:  # also for aborted requests
                self._keep(branch)
            release_all(self._branches)

    async def _draw(self, ids: Sequence[int], head: Piece) -> None:
        job = self._job
        root = await self._decoder.root(ids, self._sampling)
        if not self._branches:  # otherwise it was computed for the echo
            self._usage.cached += root.cached_tokens
        self._branches.append(root)
        if job.best_of > 1:  # the prompt's own branch comes first: the same choice for every n
            self._branches += root.fork(job.best_of - 1)
        self._drawn = self._branches[-job.best_of :]
        if job.best_of == job.n:
            await gather(
                self._sample(_Choice(self._decoder, branch, self._first + index, job, head))
                for index, branch in enumerate(self._drawn)
            )
            return
        steps = await gather(self._whole(branch) for branch in self._drawn)
        ranked = sorted(range(job.best_of), key=lambda i: -_mean(steps[i].logprobs))
        for index, i in enumerate(ranked[: job.n]):
            choice = _Choice(self._decoder, self._drawn[i], self._first + index, job, head)
            self._emit(choice.piece(steps[i], steps[i].reason))

    async def _sample(self, choice: _Choice) -> None:
        branch = choice.branch
        if not self._job.stream:
            step = await self._whole(branch)
            self._emit(choice.piece(step, step.reason))
            return
        pieces = branch.stream()
        try:
            async for piece in pieces:
                self._usage.completion += len(piece.tokens)
                if piece.reason is not None:
                    self._keep(branch)
                made = choice.piece(piece, piece.reason)
                head = made.echoed or made.prompt_ids
                if made.text or made.tokens or head or made.finish_reason is not None:
                    self._emit(made)  # otherwise it is half a character
        finally:
            await pieces.aclose()

    async def _whole(self, branch: TreeBranch) -> Step:
        step = await branch.step()
        self._usage.completion += len(step.tokens)
        self._keep(branch)
        return step

    def _keep(self, branch: TreeBranch) -> None:
        if branch not in self._kept and not branch.released:
            self._kept.add(branch)
            self._retained.keep(branch, self._length, self._known_text)

    @cached_property
    def _known_text(self) -> str | None:
        return self._retained.known_text(self._prompt.text, self._prompt.ids, self._job.sampling)

    async def _echo(self, ids: Sequence[int]) -> Sequence[Token]:
        """Returns the prompt's tokens, if they are listed.

        The branch that reads them is held, so that the samples share its KV.
        """
        job, tokenizer = self._job, self._decoder.tokenizer
        if job.logprobs is None:
            return ()
        logprobs: list[float | None] = [None] * len(ids)
        tops: list[TopLogprobs] = [()] * len(ids)
        if len(ids) > 1:
            reader = await self._decoder.root(ids[:1], replace(self._sampling, constraint=None))
            self._branches.append(reader)
            logprobs[1:], listed = await reader.extend_listing(ids[1:], job.logprobs)
            tops[1:] = listed or tops[1:]
        stream = text_stream(tokenizer, (), special=True)
        return _told(tokenizer, stream, (), ids, logprobs, tops)


class _Choice:
    """Makes pieces of what a branch generates. head: the prompt's part, with which the first piece begins."""

    def __init__(self, decoder: TreeDecoder, branch: TreeBranch, index: int, job: Job, head: Piece) -> None:
        self.branch, self._tokenizer = branch, decoder.tokenizer
        self._job, self._head = job, replace(head, choice=index)
        self._stream: TextStream | None = None
        if job.logprobs is not None or job.token_ids:
            before = branch.tokens[: branch.prompt_length]
            self._stream = text_stream(self._tokenizer, before, special=True)
        self._told = branch.prompt_length  # tokens of the branch already emitted

    def piece(self, part: Step | StepPiece, reason: str | None) -> Piece:
        branch = self.branch
        text = part.text
        stop_reason: str | int | None = None
        if reason == "stop_string":
            text, stop_reason = self._cut(part.text)
        elif reason == "stop_token":
            stop_reason = part.tokens[-1]
        tokens: Sequence[Token] = ()
        if self._stream is not None:
            context = branch.tokens[max(0, self._told - _CONTEXT) : self._told]
            tokens = _told(
                self._tokenizer, self._stream, context, part.tokens, part.logprobs, part.top_logprobs
            )
        self._told += len(part.tokens)
        finish = None if reason is None else finish_reason(reason)
        head, self._head = self._head, Piece(self._head.choice, "")
        return replace(
            head, text=head.text + text, tokens=tokens, finish_reason=finish, stop_reason=stop_reason
        )

    def _cut(self, text: str) -> tuple[str, str | None]:
        """Cuts text at its stop string; a string with a special token does not appear in the text."""
        branch, stops, tokenizer = self.branch, self._job.sampling.stop, self._tokenizer
        last = branch.length - 1
        shown = len(continuation(tokenizer, branch.tokens, last))
        text, stop = cut_at_stop(text, shown, stops, include=self._job.include_stop)
        if stop is None:
            whole = continuation(tokenizer, branch.tokens, branch.prompt_length, special=True)
            spelled = len(continuation(tokenizer, branch.tokens, last, special=True))
            _, stop = cut_at_stop(whole, spelled, stops, include=True)
        return text, stop


def _told(
    tokenizer: object,
    stream: TextStream,
    context: Sequence[int],
    tokens: Sequence[int],
    logprobs: Sequence[float | None],
    tops: Sequence[TopLogprobs],
) -> list[Token]:
    """Returns the tokens with their texts. stream: of the preceding text, whose tokens are `context`."""
    path = [*context]
    told = []
    for i, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
        text = stream.add((token,))
        top = _listed(tokenizer, path, token, text, tops[i] if tops else ())
        told.append(Token(token, text, logprob, top))
        path.append(token)
    return told


def _listed(
    tokenizer: object, context: Sequence[int], token: int, text: str, top: TopLogprobs
) -> list[tuple[int, str, float]]:
    """Returns alternatives by text, each text once.

    Tokens that complete no character, or the same one as another, are shown by id in brackets.
    """
    used = {text, ""}
    listed = []
    for other, value in top:
        spelled = text
        if other != token:
            stream = text_stream(tokenizer, context[-_CONTEXT:], special=True)
            spelled = stream.add((other,))
            spelled = f"<{other}>" if spelled in used else spelled
            used.add(spelled)
        listed.append((other, spelled, value))
    return listed


def _mean(logprobs: Sequence[float]) -> float:
    return sum(logprobs) / max(len(logprobs), 1)
