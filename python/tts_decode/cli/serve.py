"""`tts-decode serve`: runs an HTTP server of OpenAI's protocol on one decoder."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from tts_kernels.checks import shown

from ..decoding.decoder import TreeDecoder
from ..extras import require
from ..rewards import Scorer, load_reward_model
from .display import Screen
from .errors import MIB, CommandError, UsageError, usage_errors
from .filled import filled
from .groups import ModelOptions
from .scorers import check_reader
from .session import Session

_NETWORK, _LIMITS = "Network", "Limits of a request"
_LAST_PORT = 65535
# By the internal names of limits.
_LIMIT_OPTIONS = {
    "choices": "--max-choices",
    "request_tokens": "--max-request-tokens",
    "search_tokens": "--max-search-tokens",
    "request_seconds": "--max-seconds",
    "sequences": "--max-sequences",
    "client_sequences": "--max-client-sequences",
    "retained": "--retain",
}
_MOST_BODY_KIB = 1 << 20  # 1 GiB
_LONGEST_GRACE = 86400  # seconds; or inf

Host = Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=_NETWORK)]
Port = Annotated[int, typer.Option(help="Port to listen on; 0: any free one.", rich_help_panel=_NETWORK)]
Keys = Annotated[
    Path | None,
    typer.Option(
        help="File of API keys, one per line, in addition to TTS_DECODE_API_KEYS=KEY,KEY.",
        rich_help_panel=_NETWORK,
    ),
]
Name = Annotated[str | None, typer.Option(help="The model's name for clients. Default: as in --model.")]
Scorers = Annotated[
    list[str],
    typer.Option(
        "--scorer",
        metavar="NAME=READER:FOLDER",
        help="A reward model that searches may name; may be repeated.",
    ),
]


@dataclass(frozen=True)
class Settings:
    """The values of the command's options."""

    name: Name = None
    scorer: Scorers = field(default_factory=list)
    host: Host = "127.0.0.1"
    port: Port = 8000
    api_keys: Keys = None
    grace: Annotated[
        float,
        typer.Option(
            help="Seconds for requests to finish after a signal; inf: no limit.",
            rich_help_panel=_NETWORK,
        ),
    ] = 10.0
    max_tokens: Annotated[int, typer.Option(help="Most tokens of one choice.", rich_help_panel=_LIMITS)] = (
        8192
    )
    max_choices: Annotated[
        int,
        typer.Option(
            help="Most choices of a request: n, best_of, the width of a search.", rich_help_panel=_LIMITS
        ),
    ] = 128
    max_request_tokens: Annotated[
        int, typer.Option(help="Most tokens of all choices of a request.", rich_help_panel=_LIMITS)
    ] = 524288
    max_search_tokens: Annotated[
        int, typer.Option(help="Most tokens that one search samples.", rich_help_panel=_LIMITS)
    ] = 131072
    max_seconds: Annotated[
        float, typer.Option(help="Longest time of a request.", rich_help_panel=_LIMITS)
    ] = 600.0
    max_body_kib: Annotated[int, typer.Option(help="Largest body of a request.", rich_help_panel=_LIMITS)] = (
        4096
    )
    max_sequences: Annotated[
        int,
        typer.Option(help="Most choices at a time, of all requests; more get 429.", rich_help_panel=_LIMITS),
    ] = 256
    max_client_sequences: Annotated[
        int | None,
        typer.Option(
            help="The same for one API key, or for one address if there are no keys. Default: all.",
            rich_help_panel=_LIMITS,
        ),
    ] = None
    retain: Annotated[
        int,
        typer.Option(help="Finished texts kept for requests that continue them.", rich_help_panel=_LIMITS),
    ] = 256

    def __post_init__(self) -> None:
        """Raises UsageError for values that nothing else checks."""
        if not (0 <= self.grace <= _LONGEST_GRACE or self.grace == math.inf):
            raise UsageError(
                f"--grace: got {self.grace}, expected seconds from 0 to {_LONGEST_GRACE}, or inf"
            )
        if not 1 <= self.max_body_kib <= _MOST_BODY_KIB:
            raise UsageError(
                f"--max-body-kib: got {shown(self.max_body_kib)}, expected an integer from 1 to "
                f"{_MOST_BODY_KIB}"
            )
        if not 0 <= self.port <= _LAST_PORT:
            raise UsageError(f"--port: got {shown(self.port)}, expected 0 to {_LAST_PORT}")
        for flag, text in (("--name", self.name), ("--host", self.host)):
            if text is not None and not text.strip():
                raise UsageError(f"{flag}: got {text!r}, expected a text that is not empty")

    def limits(self) -> dict[str, Any]:
        """Returns the fields of `tts_decode.serve.config.Limits` that options set."""
        return {
            "max_tokens": self.max_tokens,
            "choices": self.max_choices,
            "request_tokens": self.max_request_tokens,
            "search_tokens": self.max_search_tokens,
            "request_seconds": self.max_seconds,
            "body_bytes": self.max_body_kib << 10,
            "sequences": self.max_sequences,
            "client_sequences": self.max_client_sequences,
            "retained": self.retain,
        }


@filled
def serve(model: ModelOptions, settings: Settings) -> None:
    """Serve OpenAI's protocol: completions and chats, whole or streamed, and searches.

    All requests share one KV tree: a common prefix is computed once, even after its first request has
    finished. A request that continues an earlier answer computes only the new tokens.

    Examples:

      tts-decode serve

      curl localhost:8000/v1/chat/completions -H "Content-Type: application/json" -d '{"messages":
      [{"role": "user", "content": "What is 3 + 4?"}], "n": 4}'

      A search: add "tts": {"strategy": "ets", "n": 16}; an OpenAI client takes it as extra_body.

      TTS_DECODE_API_KEYS=$(openssl rand -hex 24) tts-decode serve --host 0.0.0.0
    """
    require("fastapi")
    from ..serve.config import Limits, ServerConfig
    from ..serve.keys import read_keys
    from ..serve.run import is_loopback, listen
    from ..serve.run import serve as run

    host, port = settings.host, settings.port
    with usage_errors(_LIMIT_OPTIONS):
        keys = read_keys(settings.api_keys)
        limits = Limits(**settings.limits())
    wanted = [_named_reader(text) for text in settings.scorer]
    try:
        listener = listen(host, port)
    except OSError as error:
        raise CommandError(f"--host {host} --port {port}: cannot listen there: {error}") from error
    with listener:
        with model.open(shared=bool(wanted)) as session:
            scorers = {
                label: _loaded(session, reader, folder, model.device) for label, reader, folder in wanted
            }
            decoder = session.decoder()
            local = is_loopback(host)
            config = ServerConfig(
                settings.name or Path(model.model).name or model.model, keys, scorers, limits, local
            )
            _check_room(decoder, model.kv_mib, *config.least_kv(decoder))
        screen = Screen(sys.stderr)
        if not local and not keys:
            screen.print(f"warning: whoever reaches {host} can use this server; give --api-keys")
        address = f"[{host}]" if ":" in host else host
        screen.print(
            f"serving {config.model} on http://{address}:{listener.getsockname()[1]}/v1 (Ctrl-C ends it)",
            soft_wrap=True,
        )
        run(decoder, config, listener, grace=settings.grace)


def _check_room(decoder: TreeDecoder, kv_mib: int | None, least: int, size: int) -> None:
    """Refuses a pool that holds fewer than `least` tokens. size: of a page, in bytes."""
    if decoder.max_kv_tokens < least:
        got = "too little memory" if kv_mib is None else kv_mib
        raise UsageError(
            f"--kv-mib: got {got}, whose pages hold {decoder.max_kv_tokens} tokens of this model; "
            f"expected at least {-(-size // MIB)}, for {least} tokens"
        )


def _named_reader(text: str) -> tuple[str, str, str]:
    label, equals, source = text.partition("=")
    reader, colon, folder = source.partition(":")
    if not (label and equals and colon and folder):
        raise UsageError(f"--scorer: got {text!r}, expected NAME=READER:FOLDER")
    check_reader(reader)
    return label, reader, folder


def _loaded(session: Session, reader: str, folder: str, device: str) -> Scorer:
    with usage_errors():
        scorer: Any = load_reward_model(folder, reader, device=device, kv_bytes=session.kv_bytes)
    return scorer  # type: ignore[no-any-return]
