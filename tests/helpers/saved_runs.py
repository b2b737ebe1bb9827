"""Files as `--save` writes them, with outcomes that a test chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tts_decode.records.record_file import RecordFile

MADE = {"date": "2026-11-29T12:00:00+00:00", "version": "0.1.0", "machine": "Abacus 9, 2 cores"}


def settings(strategy: str = "best_of_n", n: int = 4, seed: int = 0, **others: Any) -> dict[str, Any]:
    """Of a run of `problems` problems, 4 unless said."""
    return {
        "model": "tiny",
        "dtype": "float32",
        "device": "cpu",
        "threads": 1,
        "strategy": strategy,
        "options": {"n": n},
        "sparse": None,
        "problems": 4,
        "problems_crc32": 7,
        "budget_tokens": None,
        "sampling": {"temperature": 0.8, "seed": seed},
    } | others


def save_run(
    file: Path,
    about: Mapping[str, Any],
    solved: Sequence[bool | None],
    tokens: Sequence[int],
    *,
    failed: Sequence[int] = (),
    search: Mapping[str, Any] | None = None,
    made: Mapping[str, str] | None = MADE,
) -> Path:
    """A search for each entry of `solved`: with t tokens it took t / 10 seconds, t * 1e9 eFLOPs, t KiB of KV
    on average and 2 t KiB at most."""
    file.parent.mkdir(parents=True, exist_ok=True)
    record = RecordFile(file, "tts-decode/saved", 2, resume=True, error=ValueError)
    record.write({"settings": about} | ({} if made is None else {"made": made}))
    for index, (right, count) in enumerate(zip(solved, tokens, strict=True)):
        told: dict[str, Any] = {"index": index, "task": f"t{index}", "prompt": f"Question {index}?"}
        told |= {"solved": right, "generated_tokens": count, "eflops": count * 1e9, "expected": "24"}
        if index in failed:
            told |= {"error": "ValueError: no", "generated_tokens": 0, "solved": False, "search": None}
        else:
            told |= {"seconds": count / 10, "mean_kv_bytes": 1024.0 * count, "peak_kv_bytes": 2048 * count}
            told |= {"error": None, "search": search}
        record.write(told)
    record.close()
    return file
