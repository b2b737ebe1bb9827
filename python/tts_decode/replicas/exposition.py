"""Merges the metrics of several replicas into one text for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "replica"


def merged(texts: Mapping[str, str]) -> bytes:
    """Returns the samples of all texts, each labelled with the name of its text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Told(texts))
    return generate_latest(registry)


class _Told(Collector):
    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        found: dict[str, Metric] = {}
        for name, text in self._texts.items():
            for family in text_string_to_metric_families(text):
                into = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    labels = {LABEL: name, **sample.labels}
                    into.add_sample(sample.name, labels, sample.value)
        yield from found.values()
