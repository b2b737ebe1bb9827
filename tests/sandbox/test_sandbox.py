"""Programs in the sandbox reach neither network nor files nor processes, and end at their limits."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest
from tts_decode.errors import SandboxError
from tts_decode.sandbox import Limits, check_sandbox, python_tool, run_python, running


def isolated() -> bool:
    try:
        check_sandbox()
    except SandboxError:
        return False
    return True


needs_namespaces = pytest.mark.skipif(not isolated(), reason="this system refuses namespaces")
QUICK = Limits(seconds=20.0)


@pytest.mark.parametrize("unsafe", [pytest.param(False, marks=needs_namespaces), True])
def test_what_a_program_prints_and_how_it_ends(unsafe: bool) -> None:
    ran = run_python("import sys\nprint('a\u00e9')\nprint('b', file=sys.stderr)", QUICK, unsafe=unsafe)
    assert (ran.output, ran.error, ran.ended, ran.status, ran.ok) == ("a\u00e9\n", "b\n", "exit", 0, True)
    ran = run_python("raise SystemExit(3)", QUICK, unsafe=unsafe)
    assert (ran.ended, ran.status, ran.ok) == ("exit", 3, False)
    ran = run_python("import os\nos.kill(os.getpid(), 11) or os.abort()", QUICK, unsafe=unsafe)
    assert not ran.ok
    assert "ZeroDivisionError" in run_python("1 / 0", QUICK, unsafe=unsafe).error
    assert run_python("import sys\nprint(sys.stdin.read())", QUICK, unsafe=unsafe).output == "\n"


@pytest.mark.parametrize("unsafe", [pytest.param(False, marks=needs_namespaces), True])
@pytest.mark.parametrize(
    ("code", "ended"),
    [
        ("while True: pass", "time"),
        ("import time\ntime.sleep(60)", "time"),
        ("import os, time\nos.close(1)\nos.close(2)\ntime.sleep(60)", "time"),
        ("import signal, time\nfor s in (2, 15): signal.signal(s, signal.SIG_IGN)\ntime.sleep(60)", "time"),
        ("while True: print('x' * 1000)", "output"),
        ("import sys\nwhile True: sys.stderr.write('x' * 1000)", "output"),
    ],
)
def test_limits_end_it(code: str, ended: str, unsafe: bool) -> None:
    begin = time.monotonic()
    ran = run_python(code, Limits(seconds=1.5, output=10_000), unsafe=unsafe)
    assert ran.ended == ended
    assert len(ran.output) <= 10_000
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize("unsafe", [pytest.param(False, marks=needs_namespaces), True])
def test_memory_and_files_are_limited(unsafe: bool) -> None:
    limits = Limits(seconds=20.0, memory=300 << 20, files=1 << 20)
    assert "MemoryError" in run_python("b = bytearray(1 << 30)", limits, unsafe=unsafe).error
    assert run_python("b = bytearray(1 << 20)\nprint(len(b))", limits, unsafe=unsafe).ok
    assert not run_python("open('f', 'wb').write(b'x' * (8 << 20))", limits, unsafe=unsafe).ok
    assert (
        run_python("open('f', 'w').write('x')\nprint(open('f').read())", limits, unsafe=unsafe).output
        == "x\n"
    )


@needs_namespaces
def test_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 5)\nprint('reached')"
        assert run_python(code, QUICK, unsafe=True).output == "reached\n"
        ran = run_python(code, QUICK)
    assert not ran.ok
    assert "OSError" in ran.error or "Error" in ran.error


@needs_namespaces
def test_files_of_others_are_not_written(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("mine")
    for code in (
        f"open({str(kept)!r}, 'w').write('theirs')",
        f"import os\nos.remove({str(kept)!r})",
        f"import os\nos.chmod({str(kept)!r}, 0o777)",
        f"open({str(tmp_path / 'new')!r}, 'w')",
        "import ctypes, os\n"
        "c = ctypes.CDLL(None, use_errno=True)\n"
        "c.unshare(0x10000000 | 0x20000)\n"
        "c.mount(None, b'/', None, 4096 | 32, None)\n"
        f"open({str(kept)!r}, 'w').write('theirs')",
    ):
        ran = run_python(code, QUICK)
        assert not ran.ok, code
    assert kept.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@needs_namespaces
def test_other_processes_are_out_of_reach_and_nothing_stays() -> None:
    ran = run_python(f"import os\nos.kill({os.getpid()}, 9)", QUICK)
    assert "ProcessLookupError" in ran.error
    marker = f"sleep {time.time_ns() % 10**9 + 100_000}"
    ran = run_python(f"import subprocess\nsubprocess.Popen({marker.split()!r})\nprint('left')", QUICK)
    assert ran.output == "left\n"
    time.sleep(0.2)
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert marker.replace(" ", "\0").encode() + b"\0" not in commands


@pytest.mark.parametrize("unsafe", [pytest.param(False, marks=needs_namespaces), True])
def test_the_environment_is_not_handed_over(unsafe: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    code = "import os, sys\nprint('SECRET_TOKEN' in os.environ, os.listdir('.'), sys.argv)"
    assert run_python(code, QUICK, unsafe=unsafe).output == "False ['program.py'] ['program.py']\n"


@needs_namespaces
def test_many_threads_run_programs() -> None:
    outputs: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda k=k: outputs.update({k: run_python(f"print({k})", QUICK).output}))
        for k in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == {k: f"{k}\n" for k in range(6)}


def test_a_system_without_namespaces_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    source = running.CHILD.read_text().replace("c.unshare(_NEW_NAMESPACES)", "c.unshare(1)")
    child.write_text(source)
    monkeypatch.setattr(running, "CHILD", child)
    with pytest.raises(
        SandboxError, match=r"Invalid argument \(unshare\); allow unprivileged .*--unsafe-tools"
    ):
        run_python("print(1)")
    assert run_python("print(1)", QUICK, unsafe=True).output == "1\n"


@pytest.mark.parametrize("unsafe", [pytest.param(False, marks=needs_namespaces), True])
def test_the_tool_tells_output_or_the_error(unsafe: bool) -> None:
    tool = python_tool(Limits(seconds=1.5), unsafe=unsafe)
    assert tool("print(6 * 7)") == "42"
    assert tool("print(1)\n1 / 0") == "1\nZeroDivisionError: division by zero"
    assert tool("while True: pass") == "the program took too long"


def test_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="seconds: got 0"):
        Limits(seconds=0)
    with pytest.raises((TypeError, ValueError), match="memory: got"):
        Limits(memory=-1)
