"""A vLLM worker's report on its attention; vLLM adds these methods to it by `worker_extension_cls`."""

from __future__ import annotations

from typing import Any


class WorkerReport:
    model_runner: Any

    def attention_report(self) -> list[tuple[str, int, int]]:
        """Returns, per group of layers, its backend's class, number of layers and planned steps.

        The steps are 0 for another backend.
        """
        return [
            (
                f"{group.backend.__module__}.{group.backend.__qualname__}",
                len(group.layer_names),
                getattr(group.get_metadata_builder(), "steps", 0),
            )
            for groups in self.model_runner.attn_groups
            for group in groups
        ]
