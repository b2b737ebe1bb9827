"""Counters for Prometheus, in the server's own registry."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ..core.stats import DecoderStats
from .job import Usage

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter("requests", "Requests answered", "path", "status")
        self._cancelled = self._counter("cancelled_requests", "Requests whose client went away")
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts")
        self._cached = self._counter("cached_prompt_tokens", "Tokens of prompts that were resident")
        self._generated = self._counter("generated_tokens", "Tokens sampled for requests")
        self._seconds = self._histogram("request_seconds", "From a request's body to the end of its answer")
        self._first = self._histogram("first_piece_seconds", "From a request's body to its first piece")
        self._gauges = {
            name: Gauge(f"tts_decode_{name}", about, registry=self._registry)
            for name, about in {
                "running_sequences": "Sequences that are generated now",
                "retained_texts": "Finished texts kept for requests that go on with them",
                "kv_bytes": "Bytes of the KV pages in use",
                "kv_tokens": "Distinct tokens in KV pages",
                "branches": "Live branches of the tree",
                "pins": "Prefixes pinned in the tree",
                "forward_tokens": "Tokens that went through the model",
                "model_steps": "Forwards of the model",
            }.items()
        }

    def answered(self, path: str, status: int) -> None:
        self._requests.labels(path, str(status)).inc()

    def cancelled(self) -> None:
        self._cancelled.inc()

    def began(self, seconds: float) -> None:
        self._first.observe(seconds)

    def replied(self, seconds: float) -> None:
        self._seconds.observe(seconds)

    def used(self, usage: Usage) -> None:
        self._prompt.inc(usage.prompt)
        self._cached.inc(usage.cached)
        self._generated.inc(usage.completion)

    def exposed(self, stats: DecoderStats, running: int, retained: int) -> bytes:
        """Returns the text that Prometheus reads. stats, retained: as the engine's thread saw them."""
        values = {
            "running_sequences": running,
            "retained_texts": retained,
            "kv_bytes": stats.resident_bytes,
            "kv_tokens": stats.unique_tokens,
            "branches": stats.branches,
            "pins": stats.pins,
            "forward_tokens": stats.forward_tokens,
            "model_steps": stats.steps,
        }
        for name, value in values.items():
            self._gauges[name].set(value)
        return generate_latest(self._registry)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"tts_decode_{name}", about, labels, registry=self._registry)

    def _histogram(self, name: str, about: str) -> Histogram:
        return Histogram(f"tts_decode_{name}", about, registry=self._registry, buckets=_SECONDS)
