"""Ctrl-C and SIGTERM in a terminal of its own: one line, the terminal as it was, nothing lost."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_commands import SMALL, compare, default_signals, write_files
from tts_decode.cli.app import run

WHOLE = "from tts_decode.cli import main; main()"
STUB = """if True:
    import asyncio, hashlib, sys, time
    from pathlib import Path
    from types import ModuleType
    def run(arguments, imported):
        imported()
        print("ready", flush=True)
        {body}
    sys.modules["tts_decode.cli.app"] = app = ModuleType("app")
    app.run = run
    from tts_decode.cli import main
    main()
"""
ENDS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]


class InTerminal:
    """A Python process whose three streams are a terminal."""

    def __init__(self, code: str, *arguments: str, before: Callable[[], object] = default_signals) -> None:
        ours, self._theirs = pty.openpty()
        self.settings = termios.tcgetattr(self._theirs)
        self.output = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            start_new_session=True,
            preexec_fn=before,
        )
        self._ours = ours
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while block := os.read(self._ours, 1 << 16):
                self.output += block
        except OSError:
            pass  # the other end was closed

    def wait_for(self, there: Callable[[], object]) -> None:
        deadline = time.monotonic() + 120
        while not there():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.01)

    def wait_for_text(self, text: bytes) -> None:
        self.wait_for(lambda: text in self.output)

    def ended(self) -> tuple[int, str]:
        """Exit code and the last line that the terminal shows; its settings are as they were."""
        code = self.process.wait(timeout=60)
        assert termios.tcgetattr(self._theirs) == self.settings
        os.close(self._theirs)
        self._reader.join()
        shown = self.output.decode()
        assert "?25l" not in shown  # the cursor was never hidden
        assert "Traceback" not in shown
        assert shown.count("tts-decode: ") == 1
        return code, shown.rpartition("\x1b[2K")[2]


@contextmanager
def terminal(
    code: str, *arguments: str, before: Callable[[], object] = default_signals
) -> Iterator[InTerminal]:
    made = InTerminal(code, *arguments, before=before)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
            made.process.wait()


@pytest.mark.parametrize(("number", "code", "told"), ENDS)
def test_during_imports(number: signal.Signals, code: int, told: str) -> None:
    with terminal(WHOLE, "info") as command:
        command.wait_for_text(b"starting ...")
        command.process.send_signal(number)
        assert command.ended() == (code, f"tts-decode: {told}\r\n")


@pytest.mark.parametrize(("number", "code", "told"), ENDS)
@pytest.mark.parametrize(
    "body",
    ["while True: time.sleep(0.01)", "sys.stdin.read()", "asyncio.run(asyncio.sleep(60))"],
    ids=["python", "read", "loop"],
)
def test_while_it_works(body: str, number: signal.Signals, code: int, told: str) -> None:
    with terminal(STUB.format(body=body)) as command:
        command.wait_for_text(b"ready")
        command.process.send_signal(number)
        assert command.ended() == (code, f"tts-decode: {told}\r\n")


def test_what_is_in_flight_is_put_in_order(tmp_path: Path) -> None:
    body = """
        async def task(i):
            try:
                print("started", i, flush=True)
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0)
                Path(sys.argv[1], str(i)).touch()
        async def tasks():
            await asyncio.gather(*map(task, range(3)))
        asyncio.run(tasks())
    """
    with terminal(STUB.format(body=body), str(tmp_path)) as command:
        command.wait_for_text(b"started 2")
        command.process.send_signal(signal.SIGTERM)
        assert command.ended()[0] == 143
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]


def outlives_the_first_signal(command: InTerminal) -> None:
    """Sends it two signals, the second one after it went on for a while."""
    command.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert command.process.poll() is None
    command.process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize(("number", "code"), [end[:2] for end in ENDS])
def test_a_signal_in_a_finalizer_ends_it_too(number: signal.Signals, code: int) -> None:
    """Python drops what a finalizer raises, as it does in hooks of a fork, which start Ray's processes."""
    script = f"""if True:
        import os, time
        from tts_decode.cli.signals import Signals
        signals = Signals()
        signals.install()
        signals.started()
        class Ends:
            def __del__(self):
                os.kill(os.getpid(), {int(number)})
                time.sleep(0.01)
        ends = Ends()
        del ends
        time.sleep(30)
        print("went on")
    """
    ended = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=20,
        preexec_fn=default_signals,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", "")


def test_the_second_signal_ends_a_long_call_into_c() -> None:
    def computed() -> float:
        fields = Path(f"/proc/{command.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) / os.sysconf("SC_CLK_TCK")  # utime

    with terminal(STUB.format(body="hashlib.pbkdf2_hmac('sha256', b'', b'', 1 << 30)")) as command:
        command.wait_for_text(b"ready")
        before = computed()
        command.wait_for(lambda: computed() > before + 0.2)  # so it is in the call
        outlives_the_first_signal(command)
        assert command.ended() == (130, "tts-decode: interrupted\r\n")


def test_the_second_signal_ends_cleaning_up_that_hangs() -> None:
    body = """
        try:
            print("inside", flush=True)
            time.sleep(60)
        finally:
            time.sleep(60)
    """
    with terminal(STUB.format(body=body)) as command:
        command.wait_for_text(b"inside")
        outlives_the_first_signal(command)
        assert command.ended() == (130, "tts-decode: interrupted\r\n")


def test_a_signal_that_is_ignored_stays_so() -> None:
    def ignored() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    with terminal(STUB.format(body="sys.stdin.read()"), before=ignored) as command:
        command.wait_for_text(b"ready")
        outlives_the_first_signal(command)
        assert command.ended() == (143, "tts-decode: terminated\r\n")


def test_a_run_goes_on_after_a_signal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    """The real command, in the middle of its searches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_files(tmp_path)
    asked = ["--limit", "4", "-s", "rebase", "-o", "n=4", "--stop", "zzz", "--max-tokens", "200"]
    arguments = [
        "compare",
        "-m",
        str(tmp_path / "tiny.gguf"),
        *SMALL,
        *asked,
        "--save",
        str(tmp_path / "out"),
    ]
    journals = tmp_path / "out" / "rebase"
    with terminal(WHOLE, *arguments) as command:
        command.wait_for(lambda: any(j.stat().st_size > 2000 for j in journals.glob("*.journal")))
        command.process.send_signal(signal.SIGTERM)
        code, line = command.ended()
        assert (code, line) == (143, "tts-decode: terminated\r\n")
    assert list(journals.glob("*.journal"))
    assert compare(tmp_path, *asked, "--save", str(tmp_path / "out"), "--resume", "--json") == 0
    resumed = json.loads(capsys.readouterr().out)["strategies"][0]
    assert compare(tmp_path, *asked, "--json") == 0
    whole = json.loads(capsys.readouterr().out)["strategies"][0]
    assert [o["answer"] for o in resumed["outcomes"]] == [o["answer"] for o in whole["outcomes"]]


def test_a_sweep_goes_on_after_ctrl_c(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    """In the middle of its second setting; until then the terminal shows how it goes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_files(tmp_path)
    asked = ["sweep", "-m", str(tmp_path / "tiny.gguf"), *SMALL, "--limit", "2", "-s", "rebase"]
    asked += ["--widths", "2,4", "--stop", "zzz", "--max-tokens", "200"]
    out = ["--save", str(tmp_path / "out")]
    journals = tmp_path / "out" / "rebase-width4-seed0"
    with terminal(WHOLE, *asked, *out) as command:
        command.wait_for_text("2/4 · solved ".encode())
        command.wait_for(lambda: any(j.stat().st_size > 2000 for j in journals.glob("*.journal")))
        command.process.send_signal(signal.SIGINT)
        assert command.ended() == (130, "tts-decode: interrupted\r\n")
        assert b" left" in command.output
    assert run([*asked, *out, "--resume", "--json"]) == 0
    resumed = json.loads(capsys.readouterr().out)
    assert run([*asked, "--save", str(tmp_path / "whole"), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert resumed["estimates"] == whole["estimates"]
    assert [s["tokens"] for s in resumed["searches"]] == [s["tokens"] for s in whole["searches"]]
