"""A server on loopback over a tiny model, in a thread of the test's process."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import httpx
import uvicorn
from tiny_models import byte_tokenizer
from transformers import PreTrainedModel
from tts_decode import TreeDecoder
from tts_decode.serve.config import Limits, ServerConfig
from tts_decode.serve.run import http_config

MODEL = "tiny"
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_chatty(model: PreTrainedModel, **options: Any) -> TreeDecoder:
    """A decoder over bytes that knows a chat template."""
    tokenizer = byte_tokenizer(chat_template=CHAT_TEMPLATE)
    decoder = TreeDecoder(model, tokenizer, **({"kv_bytes": 1 << 24} | options))
    decoder.eos_token_ids = frozenset()
    return decoder


class Served:
    """A running server.

    Attributes:
        decoder: what it serves; for looks only. url: its base. http: a client of it.
    """

    def __init__(
        self, decoder: TreeDecoder, *, limits: Limits | None = None, grace: float = 1.0, **config: Any
    ) -> None:
        self.decoder, self._grace = decoder, grace
        settings = ServerConfig(MODEL, limits=limits or Limits(idle_seconds=5.0), **config)
        self._uvicorn = uvicorn.Server(self._config(settings))
        self._thread = threading.Thread(target=self._uvicorn.run, daemon=True)
        self._thread.start()
        until(lambda: self._uvicorn.started)
        self.port = self._uvicorn.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=60.0)

    def _config(self, settings: ServerConfig) -> uvicorn.Config:
        config = http_config(self.decoder, settings, grace=self._grace)
        config.port = 0
        return config

    @property
    def server(self) -> Any:
        return self._uvicorn.config.app.state.server

    @property
    def connections(self) -> int:
        """That are open."""
        return len(self._uvicorn.server_state.connections)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.http.post(path, json=body, **options)

    def complete(self, prompt: Any, **body: Any) -> dict[str, Any]:
        """The answer of /v1/completions, which has to be one."""
        answer = self.post("/v1/completions", {"prompt": prompt, **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def chat(self, messages: list[dict[str, Any]], **body: Any) -> dict[str, Any]:
        answer = self.post("/v1/chat/completions", {"messages": messages, **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def chunks(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The events of a stream, which has to end as it should."""
        answer = self.post(path, {**body, "stream": True})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        *events, done, rest = answer.text.split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]

    def idle(self) -> bool:
        """Whether nothing is generated, and only what is retained is held."""
        stats = self.decoder.stats()
        return (self.server.admission.running, stats.branches) == (0, 0)

    def assert_empties(self) -> None:
        """All branches go, and with what is retained every page."""
        if not self._thread.is_alive():
            return
        until(self.idle)
        self.on_engine(self.server.retained.clear)
        assert self.decoder.stats().resident_bytes == 0

    def on_engine(self, function: Any) -> Any:
        """What a function returns on the decoder's thread."""

        async def run() -> Any:
            return function()

        return self.server.desk.engine.submit(run()).result(10)

    def assert_ends(self) -> None:
        """It ends by itself when it is told to."""
        self._uvicorn.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()

    def close(self) -> None:
        self.http.close()
        self.assert_ends()


def until(condition: Any, seconds: float = 30.0) -> None:
    """Waits for what other threads do."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)
