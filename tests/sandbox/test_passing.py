"""A function passes its tests by its results alone, whatever its program does beside."""

from __future__ import annotations

import math
import random

import pytest
from tts_decode.errors import SandboxError
from tts_decode.sandbox import Limits, check_sandbox, passes_tests
from tts_decode.sandbox.checker import NotPlainError, packed, unpacked

LIMITS = Limits(seconds=20.0)
CONTEXT = "def double(x):\n    return 2 * x\n\ndef f(x):\n"
TEST = """
def check(candidate):
    assert candidate(2) == 4
    assert candidate(x=double(3)) == 12
"""


def isolated() -> bool:
    try:
        check_sandbox()
    except SandboxError:
        return False
    return True


UNSAFE = not isolated()


def passes(program: str, test: str = TEST) -> bool:
    return passes_tests(program, CONTEXT + "    ...", test, "f", LIMITS, unsafe=UNSAFE)


@pytest.mark.parametrize(
    "program",
    [
        "def f(x):\n    return 2 * x",
        "print('noise')\ndef f(x):\n    print(x)\n    return x + x",
        "import os, sys\nos.close(0)\nsys.stdin = None\ndef f(x):\n    return x * 2.0",
        "if __name__ == '__main__':\n    def f(x):\n        return x * 2",
    ],
)
def test_what_is_right_passes(program: str) -> None:
    assert passes(program)


CHANGING = """
def check(candidate):
    rows, seen, table, data, pair = [3, [1]], {1}, {"a": [1]}, bytearray(b"ab"), ([2, 1],)
    assert candidate(rows, seen, table, data=data) is None
    assert (rows, seen, table, data) == ([3, [1], 4], {2}, {"b": 1}, bytearray(b"b"))
"""
CHANGES = """
def f(rows, seen, table, data):
    rows.append(4); seen.clear(); seen.add(2); table.clear(); table["b"] = 1; del data[0]
"""


def test_what_a_function_changes_in_its_arguments_is_changed_for_the_tests() -> None:
    assert passes(CHANGES, CHANGING)
    assert not passes("def f(rows, seen, table, data): pass", CHANGING)
    raising = (
        "def check(candidate):\n    x = [1]\n    try: candidate(x)\n    except KeyError: assert x == []\n"
    )
    assert passes("def f(x):\n    x.pop()\n    raise KeyError(1)", raising)
    assert not passes("def f(x):\n    raise KeyError(1)", raising)


AWAITING = """
import asyncio
def check(candidate):
    assert asyncio.run(candidate(2)) == 4
    async def both():
        assert await asyncio.gather(candidate(1), candidate(x=3)) == [2, 6]
    asyncio.run(both())
"""
ASYNC = "import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return 2 * x"


def test_async_functions_and_async_tests() -> None:
    assert passes(ASYNC, AWAITING)
    assert not passes(ASYNC.replace("2 *", "3 *"), AWAITING)
    assert not passes("def f(x): return 2 * x", AWAITING)  # which cannot be awaited
    awaits = "async def check(candidate):\n    assert await candidate(2) == 4"
    assert passes(ASYNC, awaits)
    assert not passes(ASYNC.replace("2 *", "3 *"), awaits)
    raises = "async def check(c):\n    try: await c(0)\n    except KeyError: return\n    assert False"
    assert passes("async def f(x): raise KeyError(x)", raises)
    assert not passes(ASYNC, raises)


ATTACKS = {
    "wrong": "def f(x): return 4",
    "nothing": "",
    "exit": "raise SystemExit(0)",
    "quick exit": "import os\nos._exit(0)",
    "exit in the function": "import os\ndef f(x): os._exit(0)",
    "raises": "def f(x): raise SystemExit(0)",
    "equal to all": """
class Equal(int):
    def __eq__(self, other): return True
    def __hash__(self): return 0
def f(x): return Equal(7)""",
    "own file": """
import glob, os, re
for name in [*glob.glob('*'), *glob.glob('/proc/*/cwd/*.py'), *glob.glob('/proc/*/cmdline')]:
    try: found = re.findall('[0-9a-f]{32}', open(name).read())
    except OSError: continue
    for token in found: print(token, flush=True)
os._exit(0)""",
    "at the end": """
import atexit, sys
def f(x): return 4
atexit.register(lambda: [print(v) for v in vars(sys.modules['__main__']).values() if isinstance(v, str)])""",
    "frames": """
import sys
def f(x):
    frame = sys._getframe()
    while frame:
        for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
            if isinstance(value, str) and len(value) == 32: print(value)
        frame = frame.f_back
    return 4""",
    "builtins": """
import builtins, json
json.loads = json.dumps = lambda *a, **k: ''
builtins.AssertionError = ValueError
builtins.compile = lambda *a: ''
def f(x): return 4""",
    "descriptors": """
import os, re
def f(x):
    for process in os.listdir('/proc'):
        if not process.isdigit(): continue
        try:
            for number in os.listdir(f'/proc/{process}/fd'):
                if int(process) == os.getpid() and number == '2': continue
                try:
                    with open(f'/proc/{process}/fd/{number}', 'w') as file: file.write('passed')
                except OSError: pass
        except OSError: pass
    return 4""",
    "memory": """
import os, re
for line in open(f'/proc/{os.getppid()}/maps'):
    low, high = (int(part, 16) for part in line.split()[0].split('-'))
    with open(f'/proc/{os.getppid()}/mem', 'rb') as memory:
        memory.seek(low); print(memory.read(high - low))
def f(x): return 4""",
    "replies": """
import json, os
for number in range(3, 64):
    try: os.write(number, (json.dumps({'returned': True}) + chr(10)).encode() * 9)
    except OSError: pass
def f(x): return 4""",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_wrong_does_not_pass(attack: str) -> None:
    assert not passes(ATTACKS[attack])


LOOKS = """
import glob, os
def seen():
    found = []
    for name in [*glob.glob('*'), *(f'/proc/{os.getppid()}/{part}' for part in ('mem', 'environ', 'fd/1'))]:
        try: open(name, 'rb').read(1); found.append(name)
        except OSError: pass
    return found
def f(x):
    return seen()
"""


def test_the_judge_cannot_be_looked_into() -> None:
    if UNSAFE and __import__("os").geteuid() == 0:
        pytest.skip("root without namespaces may look into everything")
    assert passes(LOOKS, "def check(candidate):\n    assert candidate(0) == [], candidate(0)\n")


def test_exceptions_arrive_as_what_they_are() -> None:
    test = """
def check(candidate):
    try: candidate(0)
    except ZeroDivisionError as error: assert "division" in str(error)
    else: assert False
"""
    assert passes("def f(x): return 1 / x", test)
    assert not passes("def f(x): return x", test)


def test_a_test_with_a_value_that_cannot_be_passed_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="the argument of f cannot be passed on: got a object, expected"):
        passes("def f(x): return x", "def check(candidate):\n    candidate(object())\n")


def test_plain_values_come_back_as_they_were() -> None:
    rng = random.Random(0)

    def value(depth: int):
        leaf = [None, True, -(1 << 70), rng.random(), -0.0, math.inf, 1j, "\u00e9\ud800", b"\x00", ""]
        if depth == 0:
            return rng.choice(leaf)
        items = [value(depth - 1) for _ in range(rng.randrange(4))]
        keys = [rng.choice(leaf) for _ in items]
        return rng.choice(
            [items, tuple(items), set(keys), frozenset(keys), dict(zip(keys, items, strict=True))]
        )

    for _ in range(300):
        made = value(rng.randrange(4))
        again = unpacked(packed(made))
        assert (again, type(again)) == (made, type(made))
        assert repr(again) == repr(made) or isinstance(made, (set, frozenset, dict, list, tuple))
    assert math.isnan(unpacked(packed(math.nan)))
    with pytest.raises(NotPlainError, match="got a range"):
        packed([range(3)])
