"""Parks daemon threads that run operators when the interpreter exits.

At exit the interpreter ends any thread that asks for the GIL by unwinding the thread's stack. If C++ frames
of torch are on that stack, the process aborts (csrc/bindings/gil.h). Parked threads never ask again. So an
`atexit` callback registered before this package was imported must not wait for such a thread.
"""

from __future__ import annotations

import sys
import threading
import time

from . import _core

_PATIENCE = 5.0  # seconds until the exit continues in any case
_STILL = 0.5  # seconds without movement after which a thread counts as blocked: asleep, or waiting for input


def park_daemon_threads() -> None:
    """Waits until each thread that ever ran an operator is parked in its next one, ended or blocked."""
    _core.park_threads()
    now = time.monotonic()
    deadline, moved, before = now + _PATIENCE, now, _positions()
    while before and now < min(deadline, moved + _STILL):
        time.sleep(0.001)  # releases the GIL
        now, positions = time.monotonic(), _positions()
        if positions != before:
            moved, before = now, positions


def _positions() -> dict[int, tuple[int, int]]:
    """Returns the frame and instruction of each thread that could still run an operator."""
    threads = _core.unparked_threads() - {threading.get_ident()}
    frames = sys._current_frames()
    return {thread: (id(frames[thread]), frames[thread].f_lasti) for thread in threads & frames.keys()}
