"""What a worker of vLLM says about its attention; `worker_extension_cls` of vLLM adds the methods to it."""

from __future__ import annotations

from typing import Any


class WorkerReport:
    model_runner: Any

    def attention_report(self) -> list[tuple[str, int, int]]:
        """Of each group of layers: its backend's class, the number of layers, the steps that ours has planned
        (0 of another)."""
        return [
            (
                f"{group.backend.__module__}.{group.backend.__qualname__}",
                len(group.layer_names),
                getattr(group.get_metadata_builder(), "steps", 0),
            )
            for groups in self.model_runner.attn_groups
            for group in groups
        ]
