"""The check of archives finds what is missing, and what strayed in."""

from __future__ import annotations

from benches.check_dist import sdist_faults, wheel_faults

TRACKED = {"README.md", ".ci/run", "tts_kernels/pool.py", "python/tts_decode/py.typed", "tests/test_pool.py"}
SDIST = {"top/PKG-INFO", "top/README.md", "top/tts_kernels/pool.py", "top/python/tts_decode/py.typed"}
CORE = "tts_kernels/_core.cpython-311-x86_64-linux-gnu.so"
WHEEL = {"tts_kernels/pool.py", "tts_decode/py.typed", CORE, "tts_kernels-0.1.0.dist-info/METADATA"}


def test_sdist() -> None:
    assert sdist_faults(SDIST | {"top/tests/test_pool.py"}, TRACKED) == []
    assert sdist_faults(SDIST | {"top/notes.txt"}, TRACKED) == [
        "sdist: lacks tests/test_pool.py",
        "sdist: holds notes.txt, which is no part of it",
    ]


def test_wheel() -> None:
    assert wheel_faults(WHEEL, TRACKED) == []
    assert wheel_faults(WHEEL - {CORE, "tts_decode/py.typed"} | {"tests/test_pool.py"}, TRACKED) == [
        "wheel: got 0 compiled modules, expected 1",
        "wheel: lacks tts_decode/py.typed",
        "wheel: holds tests/test_pool.py, which is no part of it",
    ]
