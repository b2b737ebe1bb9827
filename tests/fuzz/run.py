"""make fuzz: calls in subprocesses, so that one that crashes is seen and named.

A call is made from its number alone: each fault is printed with the command that makes its call again.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import resource
import subprocess
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHUNK = 2000  # calls of a process
MEMORY = 6 << 30  # bytes of address space: sizes that were changed must not fill the machine


def make_call(number: int, slow: bool) -> tuple[str, Any]:
    """Raises what was wrong: an exception that is not documented, a result that is not the reference's."""
    import torch

    from fuzz.mutations import mutated
    from fuzz.targets import SLOW, TARGETS
    from tts_kernels import CapacityError, OutOfPagesError

    torch.manual_seed(number)
    rng = random.Random(number)
    targets = SLOW if slow else TARGETS
    (target,) = rng.choices(list(targets), list(targets.values()))
    case = target(rng)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        name = rng.choice(list(case.args))
        others = [value for value in case.args.values() if isinstance(value, torch.Tensor)]
        try:
            case.args[name] = mutated(case.args[name], rng, others)
        except (TypeError, ValueError):  # a plan, a weight or a selection that refuses the change itself
            return target.__name__, None
    refusals: tuple[type[Exception], ...] = (
        TypeError,
        ValueError,
        OutOfPagesError,
        CapacityError,
        MemoryError,
    )
    if case.direct:
        refusals = (*refusals, RuntimeError, AssertionError)  # torch's, about its schema and fake tensors
    try:
        result = case.call(**case.args)
    except refusals:
        return target.__name__, None
    if case.check is not None:
        case.check(case.args, result)
    return target.__name__, result


def inside(first: int, calls: int, slow: bool) -> int:
    """Makes the calls here; the number of each is on the standard output before it is made."""
    warnings.simplefilter("ignore")
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.environ.setdefault("TRITON_INTERPRET", "1")  # plain pages on the CPU
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN, outputs too
    failed = 0
    for number in range(first, first + calls):
        os.write(1, f"{number}\n".encode())
        faulthandler.dump_traceback_later(120, exit=True)
        try:
            make_call(number, slow)
        except Exception:
            failed += 1
            print(f"{_again(number, slow)}\n{traceback.format_exc()}", file=sys.stderr, flush=True)
    faulthandler.cancel_dump_traceback_later()
    return failed


def outside(first: int, calls: int, slow: bool) -> tuple[int, list[str]]:
    """Calls made, and what was wrong with those that failed or crashed, which is printed as it comes.

    A process that makes no call ends it all: there are fewer calls then than were asked for.
    """
    here = Path(__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1", "PYTHONPATH": str(here)}
    wrong, made, end, at = [], 0, first + calls, first
    while at < end:
        count = min(CHUNK, end - at)
        command = [sys.executable, "-m", "fuzz.run", "--inside", "--first", str(at), "--calls", str(count)]
        done = subprocess.run(command + ["--slow"] * slow, env=environment, capture_output=True, text=True)
        if done.stderr:
            wrong.append(done.stderr[-6000:])
            print(wrong[-1], flush=True)
        numbers = done.stdout.split()
        made += len(numbers)
        if done.returncode not in (0, 1):
            number = int(numbers[-1]) if numbers else at
            wrong.append(f"{_again(number, slow)} crashed: exit status {done.returncode}")
            print(wrong[-1], flush=True)
        at = int(numbers[-1]) + 1 if numbers else end
    return made, wrong


def _again(number: int, slow: bool) -> str:
    """Names a call and says how to make it again."""
    options = f"--inside{' --slow' if slow else ''} --first {number} --calls 1"
    return f"call {number} (again: cd tests && {sys.executable} -m fuzz.run {options})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000, help="how many (default: 100000)")
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first call, by which all are seeded"
    )
    parser.add_argument("--slow", action="store_true", help="plain pages, in Triton's interpreter")
    parser.add_argument("--inside", action="store_true", help="in this process")
    options = parser.parse_args(arguments)
    if options.inside:
        return int(inside(options.first, options.calls, options.slow) > 0)
    calls, wrong = outside(options.first, options.calls, options.slow)
    print(f"{calls} calls, {len(wrong)} reports of faults")
    return int(bool(wrong) or calls < options.calls)


if __name__ == "__main__":
    sys.exit(main())
