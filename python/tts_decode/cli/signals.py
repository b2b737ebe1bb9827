"""SIGINT (Ctrl-C) and SIGTERM: the first ends the command cleanly, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import NoReturn

_TOLD = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_DROPPED = 255  # tells the thread that Python dropped `Stopped`; no signal has this number
_AGAIN_SECONDS = 0.05  # after which it is raised again
_ERASE = "\r\x1b[2K"  # erases the progress line


class Stopped(SystemExit):
    """A signal arrived. The exit code is the shells' convention: 128 plus the signal's number."""


class Signals:
    """Handles both signals after `install`.

    Before `started`, the first signal also ends the process: nothing has been computed yet, and imports must
    not be interrupted by an exception. After that it cancels the tasks of the event loop, so that searches
    close their journals and release their branches, or raises `Stopped` if no loop runs. A thread catches the
    second signal, as Python calls handlers only when C returns, possibly after a whole forward. Where Python
    drops exceptions, as in finalizers and in hooks of a fork, `Stopped` is raised again a moment later.

    Attributes:
        caught: the first signal.
    """

    def __init__(self) -> None:
        self.caught: int | None = None
        self._started = False
        self._ending = threading.Lock()

    def install(self) -> None:
        """Installs the handlers, from the main thread. Ignored signals, as in a background job, stay so."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in _TOLD:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)
        usual = sys.unraisablehook

        def dropped(event: sys.UnraisableHookArgs) -> None:
            if event.exc_type is Stopped:
                os.write(writer, bytes([_DROPPED]))
            else:
                usual(event)

        sys.unraisablehook = dropped
        threading.Thread(target=self._watch, args=(reader,), daemon=True).start()

    def started(self) -> None:
        """Makes the first signal end the command cleanly from now on."""
        self._started = True
        if self.caught is not None:
            self.end()

    def end(self) -> NoReturn:
        """Prints which signal arrived and ends the process, even if other threads are still working."""
        self._ending.acquire()  # never released: only one line is printed
        number = signal.Signals(self.caught or signal.SIGINT)
        erase = _ERASE if sys.stderr.isatty() else ""
        os.write(2, f"{erase}tts-decode: {_TOLD[number]}\n".encode())
        os._exit(128 + number)

    def _watch(self, reader: int) -> None:
        main = threading.main_thread().ident or 0
        first = 0
        while number := os.read(reader, 1)[0]:
            if number == _DROPPED and self.caught is not None:
                again, self.caught, first = self.caught, None, 0
                time.sleep(_AGAIN_SECONDS)
                signal.pthread_kill(main, again)
                continue
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
        import asyncio  # only here: at startup, a signal during the import would cause a traceback

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise Stopped(128 + number) from None

        def cancel() -> None:
            for task in asyncio.all_tasks(loop):
                task.cancel()

        loop.call_soon_threadsafe(cancel)
