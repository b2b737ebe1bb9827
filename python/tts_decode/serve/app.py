"""The application: its routes, over one decoder."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from tts_kernels import OutOfPagesError
from tts_kernels.checks import instance

from ..decoding.decoder import TreeDecoder
from ..decoding.retained import RetainedTexts
from .admission import Admission, Ticket, released_on_error
from .answers import ChatForm, CompletionForm, Form
from .bodies import Bodies
from .config import ServerConfig
from .engine import EngineThread, Ferry
from .errors import APIError, error_response, given, without_room
from .generation import Emit, generate
from .grammars import Grammars
from .guard import CLIENT, Guard
from .job import Facts, Job, Usage, chat_job, completion_job, length_field, sequences_of
from .metrics import CONTENT_TYPE, Metrics
from .presence import DisconnectedError, while_there
from .prompts import Prompts
from .protocol import ChatBody, CompletionBody
from .reply import Desk, Reply, Work
from .searching import PATH, read_search, run_search
from .trees import KeptTrees


def create_app(decoder: TreeDecoder, config: ServerConfig) -> FastAPI:
    """Returns an ASGI application that serves a decoder; one process, one application, one decoder.

    While it runs, it owns the decoder: everything that uses it goes through `app.state.server`.

    Raises:
        TypeError: an argument is of another type.
        ValueError: the decoder's pages hold fewer tokens than `config.least_kv_tokens`, and fewer than the
            model's longest text.
    """
    _check_room(instance("decoder", decoder, TreeDecoder), instance("config", config, ServerConfig))
    server = Server(decoder, config)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.open()
        try:
            yield
        finally:
            await server.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.server = server
    post: dict[str, Callable[..., Any]] = {
        "/v1/completions": server.completions,
        "/v1/chat/completions": server.chat,
    }
    get: dict[str, Callable[..., Any]] = {
        "/v1/models": server.models,
        "/v1/models/{model:path}": server.model,
        f"{PATH}{{tree}}": server.tree,
        "/health": server.health,
        "/metrics": server.metrics_text,
    }
    for methods, endpoints in ((["POST"], post), (["GET", "HEAD"], get)):
        for path, endpoint in endpoints.items():
            app.add_api_route(path, endpoint, methods=methods, response_model=None)
    app.add_exception_handler(APIError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(DisconnectedError, _on_disconnect)
    app.add_middleware(Guard, config=config, metrics=server.metrics, paths=frozenset([*post, *get]))
    return app


class Server:
    """The parts that an application serves with.

    Attributes:
        decoder, config. metrics, bodies, admission, trees. retained: for the engine's thread only.
    """

    def __init__(self, decoder: TreeDecoder, config: ServerConfig) -> None:
        self.decoder, self.config = decoder, config
        limits = config.limits
        self.metrics = Metrics()
        self.bodies = Bodies(limits)
        self.admission = Admission(limits)
        self.retained = RetainedTexts(decoder, limits.retained, limits.retained_tokens)
        self.trees = KeptTrees(limits.trees, limits.tree_bytes)
        self._facts = Facts(
            decoder.vocab_size, decoder.max_kv_tokens, decoder.page_size, decoder.max_positions
        )
        self._created = int(time.time())
        self._desk: Desk | None = None

    def open(self) -> None:
        """Opens the server, for the loop that speaks HTTP."""
        limits = self.config.limits
        engine, ferry = EngineThread(), Ferry(asyncio.get_running_loop())
        prompts, grammars = Prompts(self.decoder, limits), Grammars(self.decoder.tokenizer)
        engine.submit(grammars.warm())
        self.admission.closed = False
        self._desk = Desk(engine, ferry, self.admission, self.metrics, limits, prompts, grammars)

    async def close(self) -> None:
        """Frees every page."""
        self.admission.closed = True
        engine = self.desk.engine
        await asyncio.to_thread(engine.close)
        self.retained.clear()

    @property
    def desk(self) -> Desk:
        if self._desk is None:
            raise RuntimeError("the server is not open: run its application by an ASGI server with lifespan")
        return self._desk

    # -- routes

    async def completions(self, request: Request) -> Response:
        async with self.bodies.read(request, CompletionBody, _client(request)) as body:
            ticket = self._admitted(request, body)
            with released_on_error(ticket):
                prompts = await while_there(request.receive, self.desk.prompts.of_completion(body))
                job = completion_job(body, prompts, self.config.limits, self._facts)
                form = CompletionForm(self.config.model, **_listed(job))
                return self._reply(request, body, job, form, ticket)

    async def chat(self, request: Request) -> Response:
        async with self.bodies.read(request, ChatBody, _client(request)) as body:
            ticket = self._admitted(request, body)
            with released_on_error(ticket):
                prompt = await while_there(request.receive, self.desk.prompts.of_chat(body))
                job = chat_job(body, prompt, self.config.limits, self._facts)
                known: Sequence[bytes] = ()
                if job.logprobs is not None:
                    known = await while_there(request.receive, self.desk.prompts.token_bytes())
                form = ChatForm(self.config.model, known, **_listed(job))
                return self._reply(request, body, job, form, ticket)

    async def models(self) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, model: str) -> Response:
        self._check_model(model)
        return JSONResponse(self._card())

    async def tree(self, tree: str) -> Response:
        found = self.trees.get(tree)
        if found is None:
            raise APIError(404, "this tree is not kept, or not any more", None, "tree_not_found")
        return Response(found, media_type="application/json")

    async def health(self) -> Response:
        if self.admission.closed or not self.desk.engine.alive:
            raise APIError(503, "the server is shutting down", None, "unavailable")
        return JSONResponse({"status": "ok"})

    async def metrics_text(self) -> Response:
        stats, retained = await self.desk.engine.call(lambda: (self.decoder.stats(), len(self.retained)))
        text = self.metrics.exposed(stats, self.admission.running, retained)
        return Response(text, media_type=CONTENT_TYPE)

    # -- what they share

    def _admitted(self, request: Request, body: CompletionBody | ChatBody) -> Ticket:
        self._check_model(body.model)
        sequences = sequences_of(body, self.config.limits)
        return self.admission.admit(sequences, _client(request))

    def _reply(
        self, request: Request, body: CompletionBody | ChatBody, job: Job, form: Form, ticket: Ticket
    ) -> Reply:
        limits, usage = self.config.limits, Usage()
        decoder, owner = self.decoder, _client(request) if self.config.keys else ""
        if body.tts is None:
            grammars = self.desk.grammars

            async def run(emit: Emit) -> None:
                await grammars.compiled(job.sampling.constraint)
                try:
                    await generate(decoder, self.retained.of(owner), job, emit, usage)
                except OutOfPagesError:
                    needed, room = job.kv_tokens, decoder.max_kv_tokens
                    alone = self.admission.running == ticket.sequences
                    if max(needed) > room or (alone and sum(needed) > room):
                        raise without_room(length_field(body), sum(needed), room) from None
                    raise  # it will fit when others have ended
        else:
            search = read_search(body, job, decoder, limits, self.config.scorers)
            ticket.widen(search.sequences, "tts")

            async def run(emit: Emit) -> None:
                await run_search(decoder, self.retained.of(owner), self.trees, job, search, emit, usage)

        options = body.stream_options
        include_usage = options is not None and bool(options.include_usage)
        return Reply(self.desk, Work(run, form, usage, ticket, job.stream, include_usage))

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self.config.model:
            message = f"model: got {given(name)}, expected {self.config.model!r}"
            raise APIError(404, message, "model", "model_not_found")

    def _card(self) -> dict[str, Any]:
        return {
            "id": self.config.model,
            "object": "model",
            "created": self._created,
            "owned_by": "tts-kernels",
            "max_model_len": self.decoder.max_positions,
        }


def _check_room(decoder: TreeDecoder, config: ServerConfig) -> None:
    least, size = config.least_kv(decoder)
    if decoder.max_kv_tokens < least:
        raise ValueError(
            f"decoder: got KV pages of {decoder.max_kv_tokens} tokens, expected at least {least}; make it "
            f"with kv_bytes = {size} or more"
        )


def _client(request: Request) -> str:
    """Returns the client that a request counts for, as set by the guard."""
    return str(getattr(request.state, CLIENT))


def _listed(job: Job) -> dict[str, bool]:
    return {"logprobs": job.logprobs is not None, "token_ids": job.token_ids}


async def _on_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, APIError)  # registered for it
    return error_response(error)


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reasons = {404: "no such path", 405: "this path does not serve the method"}
    reason = reasons.get(error.status_code, "not served")
    headers = error.headers or {}  # a 405 lists its methods
    return error_response(APIError(error.status_code, reason, None, "not_served", headers))


async def _on_disconnect(_: Request, error: Exception) -> Response:
    return Response(status_code=499)  # the client is gone
