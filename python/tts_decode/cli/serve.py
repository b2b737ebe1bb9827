"""`tts-decode serve`: runs an HTTP server of OpenAI's protocol on one decoder."""

from __future__ import annotations

import math
import sys
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tts_kernels.checks import shown

from ..extras import require
from .display import Display, Screen
from .errors import CommandError, UsageError, at_least, usage_errors
from .filled import filled
from .groups import ModelOptions
from .options import RayCpus

if TYPE_CHECKING:  # it imports FastAPI
    from .served_model import ServedModel

_CLUSTER = "Ray cluster"
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
    replicas: Annotated[
        int,
        typer.Option(
            help="Servers behind the address, on a Ray cluster, each with the model and a decoder.",
            rich_help_panel=_CLUSTER,
        ),
    ] = 1
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="Cluster of the replicas: HOST:PORT of its head, or auto. Without an address: this machine.",
            show_default=False,
            rich_help_panel=_CLUSTER,
        ),
    ] = None
    ray_cpus: RayCpus = None
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
        at_least(1, replicas=self.replicas, ray_cpus=self.ray_cpus)
        if self.ray_cpus is not None and not self.on_cluster:
            raise UsageError(
                f"--ray-cpus: got {self.ray_cpus} without --replicas or --ray, of which it says something"
            )
        for flag, text in (("--name", self.name), ("--host", self.host)):
            if text is not None and not text.strip():
                raise UsageError(f"{flag}: got {text!r}, expected a text that is not empty")

    @property
    def on_cluster(self) -> bool:
        return self.replicas > 1 or self.ray is not None

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
    from ..serve.config import Limits
    from ..serve.keys import read_keys
    from ..serve.run import is_loopback, listen
    from ..serve.run import serve as run
    from .ranks import refuse_torchrun
    from .served_model import ServedModel, named_reader

    refuse_torchrun()
    host, port = settings.host, settings.port
    with usage_errors(_LIMIT_OPTIONS):
        keys = read_keys(settings.api_keys)
        limits = Limits(**settings.limits())
    readers = [named_reader(text) for text in settings.scorer]
    name = settings.name or Path(model.model).name or model.model
    served = ServedModel(model, name, readers, keys, limits, is_loopback(host))
    try:
        listener = listen(host, port)
    except OSError as error:
        raise CommandError(f"--host {host} --port {port}: cannot listen there: {error}") from error
    with listener:
        port = listener.getsockname()[1]
        if settings.on_cluster:
            listener.close()  # Ray Serve is to listen there
            _serve_replicas(served, settings, port)
        else:
            decoder, config = served()
            _tell(served, settings, port)
            run(decoder, config, listener, grace=settings.grace)


def _serve_replicas(served: ServedModel, settings: Settings, port: int) -> None:
    """Serves replicas until a signal arrives."""
    from ..replicas.run import Replicas, serving

    device = served.model.device
    if device.partition(":")[1]:
        raise UsageError(
            f"--device: got {device!r} beside replicas, expected it without a number: Ray gives each its GPU"
        )
    address = settings.ray or "local"
    where = "on this machine" if address == "local" else f"at {address}"
    replicas = Replicas(
        served,
        settings.replicas,
        settings.host,
        port,
        address=address,
        cpus=settings.ray_cpus,
        gpus=device == "cuda",
        keys=served.keys,
        limits=served.limits,
    )
    with ExitStack() as stack:
        with Display() as display:
            display.stage(f"opening {served.model.model} on replicas of a Ray cluster {where}")
            stack.enter_context(serving(replicas, grace=settings.grace))
        _tell(served, settings, port)
        threading.Event().wait()


def _tell(served: ServedModel, settings: Settings, port: int) -> None:
    """What is served where."""
    screen, host = Screen(sys.stderr), settings.host
    if not served.loopback and not served.keys:
        screen.print(f"warning: whoever reaches {host} can use this server; give --api-keys")
    address = f"[{host}]" if ":" in host else host
    screen.print(
        f"serving {served.name} on http://{address}:{port}/v1 (Ctrl-C ends it)",
        soft_wrap=True,
    )
