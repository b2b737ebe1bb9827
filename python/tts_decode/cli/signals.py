"""SIGINT (Ctrl-C) and SIGTERM: the first ends the command in order, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

_TOLD = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_ERASE = "\r\x1b[2K"  # the line that progress is shown on


class Stopped(SystemExit):
    """A signal came. The code is the one that shells give: 128 and the signal's number."""


class Signals:
    """Takes both signals from `install` on.

    Until `started` the first ends the process too: nothing was computed yet, and imports are no place to
    raise an exception in. After that it cancels the tasks of the event loop, so that searches close their
    journals and release their branches, or raises `Stopped` where none runs. A second signal is seen by a
    thread: Python calls handlers when C returns, which may take a whole forward.

    Attributes:
        caught: the first signal.
    """

    def __init__(self) -> None:
        self.caught: int | None = None
        self._started = False
        self._ending = threading.Lock()

    def install(self) -> None:
        """For the main thread. A signal that is ignored, as in a shell's background, stays so."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in _TOLD:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)
        threading.Thread(target=self._watch, args=(reader,), daemon=True).start()

    def started(self) -> None:
        """From now on the first signal ends the command in order."""
        self._started = True
        if self.caught is not None:
            self.end()

    def end(self) -> NoReturn:
        """Says in a line which signal came and ends the process: other threads may work on, unheard."""
        self._ending.acquire()  # for good: one line
        number = signal.Signals(self.caught or signal.SIGINT)
        erase = _ERASE if sys.stderr.isatty() else ""
        os.write(2, f"{erase}tts-decode: {_TOLD[number]}\n".encode())
        os._exit(128 + number)

    def _watch(self, reader: int) -> None:
        first = 0
        while number := os.read(reader, 1)[0]:
            if number not in _TOLD:
                continue
            if first or not self._started:
                self.caught = self.caught or first or number
                self.end()
            first = number

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self.caught = self.caught is None, self.caught or number
        if not (first and self._started):
            return  # the thread ends the process
        import asyncio  # only here: it takes a while, in which a signal would end in a traceback

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise Stopped(128 + number) from None

        def cancel() -> None:
            for task in asyncio.all_tasks(loop):
                task.cancel()

        loop.call_soon_threadsafe(cancel)
