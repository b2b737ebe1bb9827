"""The process that compares mathematics. It is run as a file, not imported: it loads nothing of this package.

Arguments: bytes of memory, seconds per request, and the folders of modules as JSON. Each line of standard
input is a JSON list: "equal" and two formulas, "rounds", a decimal and a formula, or "marks" and a formula.
Each line of output is true, false, the marks or the name of what went wrong. Before the first request it
prints "ready". It reads text from a model: nothing of it is evaluated, and whatever could leave the process
is refused.
"""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import signal
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

# What SymPy compiles: numbers and names, which it reads by evaluating them one by one, and products of
# monomials, from its own templates. Nothing else passes.
_COMPILED = re.compile(
    r"from sympy import \*|\s*[-+]?\s*(?:Integer|Float)\s*\(\s*'?[\d.eE+-]{1,4000}'?\s*\)\s*"
    r"|Symbol\s*\('\w{1,40}'\s*\)\s*"
    r"|\s*def monomial_\w+\([ABk, ]+\):[\w\s(),:<>=+*\[\]-]*"
)
_LEAVING = ("os.exec", "os.fork", "os.posix_spawn", "os.system", "subprocess.", "socket.")


def main() -> None:
    memory, seconds, folders = int(sys.argv[1]), float(sys.argv[2]), json.loads(sys.argv[3])
    sys.path[:] = folders
    requests, replies = sys.stdin, os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a library's output is no reply
    with suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    questions = comparison()
    sys.addaudithook(refuse)
    print(json.dumps("ready"), file=replies, flush=True)
    for line in requests:
        signal.setitimer(signal.ITIMER_REAL, 2 * seconds)  # ends the process if its parent is gone
        question, *formulas = json.loads(line)
        try:
            reply: Any = questions[question](*formulas)
        except (Exception, RecursionError) as error:
            reply = type(error).__name__
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), file=replies, flush=True)
        if reply == "MemoryError":
            return


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Blocks calls that evaluate text, open a file to write, or reach another process or the network."""
    if event == "open":
        mode, flags = arguments[1], arguments[2]
        written = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        bad = bool(written or (isinstance(mode, str) and set(mode) & set("wax+")))
    elif event == "compile":
        source, file = arguments[0], str(arguments[1] or "")
        text = source.decode(errors="replace") if isinstance(source, bytes) else source
        bad = not file.endswith(".py") and not (isinstance(text, str) and _COMPILED.fullmatch(text))
    else:
        bad = event.startswith(
            ("os.exec", "os.fork", "os.posix_spawn", "os.system", "subprocess.", "socket.")
        )
    if bad:
        raise PermissionError(event)


def comparison() -> dict[str, Callable[..., Any]]:
    """Loads the algebra. Its functions raise ValueError for text that cannot be read."""
    import sympy.physics.units  # noqa: F401  # simplify loads it late, and evaluates names for it
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from math_verify import verify
    from sympy import Add, Eq, Expr, Float, I, MatrixBase, Rational, S, Symbol, simplify
    from sympy.core.relational import Relational

    # Not math-verify's own reader: it finds formulas in prose, evaluates plain ones, and takes `A` for `a`.
    spelling = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    cased = ConversionConfig(lowercase_symbols=False)
    imaginary = Symbol("i", real=True)

    def read(text: str) -> Any:
        latex = normalize_latex(text, spelling)
        value = latex2sympy(
            latex, is_real=True, convert_degrees=True, normalization_config=None, conversion_config=cased
        )
        if value is None:
            raise ValueError("not read")
        exact = {number: Rational(str(number)) for number in value.atoms(Float)}
        if imaginary in value.free_symbols and "\\sum" not in text and "_" not in text:
            exact[imaginary] = I
        return value.xreplace(exact) if exact else value

    def side(value: Any, other: Any) -> Any:
        """Returns the right side of `x = ...` when compared with something that is no equation."""
        if isinstance(value, Eq) and not isinstance(other, Relational):
            return value.rhs if value.lhs.is_Symbol or value.lhs.is_Function else value
        return value

    def equal(first: str, second: str) -> bool:
        a, b = read(first), read(second)
        a, b = side(a, b), side(b, a)
        if isinstance(a, Relational) != isinstance(b, Relational):
            return False
        if isinstance(a, Eq):
            if not isinstance(b, Eq) or a.free_symbols != b.free_symbols:
                return False
            left, right = (simplify((eq.lhs - eq.rhs).doit()) for eq in (a, b))
            if S.Zero in (left, right):
                return bool(left == right)
            ratio = simplify(left / right)
            return bool(left.free_symbols and ratio.is_number and ratio.is_finite and ratio != 0)
        numbers = isinstance(a, Expr) and isinstance(b, Expr) and a.is_number and b.is_number
        if numbers:
            infinite = {S.Infinity, S.NegativeInfinity, S.ComplexInfinity}
            if infinite & {a, b}:
                return bool(a == b != S.ComplexInfinity)
            x, y = a.evalf(30), b.evalf(30)
            if abs(x - y) > Rational(1, 10**20) * max(abs(x), abs(y)):
                return False
        if not verify(a, b, float_rounding=30, timeout_seconds=None):
            return False
        return not numbers or bool((a.doit() - b.doit()).equals(0))  # verify compares 15 digits

    def rounds(decimal: str, formula: str) -> bool:
        value, last = read(formula), Rational(10) ** -len(decimal.partition(".")[2])
        if not (isinstance(value, Expr) and value.is_number and value.is_real):
            return False
        exact, given = value.doit().evalf(60), Rational(decimal)
        cut = exact * given >= 0 and 0 <= abs(exact) - abs(given) < last
        return bool(abs(exact - given) <= last / 2 or cut)

    def at(value: Expr, letter: str) -> complex | None:
        """Returns an expression's value at pseudorandom variables; None if it is too large.

        Each variable is a number between 1 and 2, drawn from its name and `letter`.
        """
        points = {
            symbol: 1 + Rational(zlib.crc32(f"{letter}{symbol}".encode()) % 9973, 9973)
            for symbol in value.free_symbols
        }
        found = complex(value.subs(points).doit().evalf(20))
        return found if abs(found) < 1e100 else None

    def marks(text: str) -> list[list[float] | None]:
        """Returns value and ratio, as in `mathematics.Marks`, each as real and imaginary part."""
        formula = read(text)
        value = ratio = None
        if isinstance(formula, Eq):
            first, second = (at(formula.lhs - formula.rhs, letter) for letter in "xy")
            ratio = first / second if first and second else None
        named = side(formula, S.Zero)
        if isinstance(named, MatrixBase):  # row and column vectors share one mark
            named = Add(*(entry / (i + 3) for i, entry in enumerate(named)))
        if isinstance(named, Expr) and (ratio is not None or not isinstance(formula, Eq)):
            value = at(named, "x")
        return [None if mark is None else [mark.real, mark.imag] for mark in (value, ratio)]

    return {"equal": equal, "rounds": rounds, "marks": marks}


if __name__ == "__main__":
    main()
