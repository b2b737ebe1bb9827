"""Answers whose right and wrong variants are known by construction: nothing here compares formulas."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import NamedTuple


class Case(NamedTuple):
    kind: str
    expected: str
    answer: str


def _coprime(rng: random.Random, low: int = 2, high: int = 19) -> tuple[int, int]:
    while True:
        a, b = rng.randint(low, high), rng.randint(low, high)
        if a != b and math.gcd(a, b) == 1:
            return a, b


def _formulas(rng: random.Random) -> list[tuple[str, float]]:
    """Constants in LaTeX with their values."""
    a, b = _coprime(rng)
    n, k = rng.randint(2, 30), rng.randint(2, 9)
    return [
        (f"{n}", n),
        (f"-{n}", -n),
        (rf"\sqrt{{{n}}}", math.sqrt(n)),
        (rf"\sqrt[3]{{{n}}}", n ** (1 / 3)),
        (rf"{k}\sqrt{{{n}}}", k * math.sqrt(n)),
        (rf"\frac{{{a}}}{{{b}}}", a / b),
        (rf"-\frac{{{a}}}{{{b}}}", -a / b),
        (rf"\frac{{\sqrt{{{n}}}}}{{{k}}}", math.sqrt(n) / k),
        (rf"{n}\pi", n * math.pi),
        (rf"\frac{{{n}\pi}}{{{b}}}", n * math.pi / b),
        (f"{n}^{{{k}}}", float(n) ** k),
        (f"{n}^{{-{k}}}", float(n) ** -k),
        (rf"{n}+\sqrt{{{k}}}", n + math.sqrt(k)),
        (rf"{n}-\sqrt{{{k}}}", n - math.sqrt(k)),
        (rf"\log {n}", math.log(n)),
        (f"{k}!", float(math.factorial(k))),
        (f"{n}.{k}", float(f"{n}.{k}")),
        (rf"\binom{{{n + k}}}{{{k}}}", float(math.comb(n + k, k))),
        (f"e^{{{k}}}", math.exp(k)),
        (rf"{n} \frac{{1}}{{{b}}}", n + 1 / b),
    ]


def wrong_constants(seed: int, count: int) -> Iterator[Case]:
    """Two constants of different value."""
    rng = random.Random(seed)
    while count:
        (first, x), (second, y) = rng.sample(_formulas(rng) + _formulas(rng), 2)
        if abs(x - y) > 1e-3 * max(1.0, abs(x), abs(y)):
            count -= 1
            yield Case("constants", first, second)


def wrong_roots() -> Iterator[Case]:
    """A number that stands inside the answer, which is another one."""
    for n in range(2, 22):
        for answer in (rf"\sqrt{{{n}}}", rf"\frac{{1}}{{{n}}}", f"-{n}", rf"{n}\pi", f"{n}x", f"x^{{{n}}}"):
            yield Case("number inside", str(n), answer)


def wrong_structures(seed: int, count: int) -> Iterator[Case]:
    """Values in another order, in other brackets, with other ends; other units, letters, bases, matrices."""
    rng = random.Random(seed)
    for _ in range(count):
        a, b = sorted(rng.sample(range(1, 40), 2))
        c, d = _coprime(rng)
        root = rf"\sqrt{{{rng.choice((2, 3, 5, 7, 11))}}}"
        x, y = rng.sample("xyzabmnt", 2)
        yield Case("order of a pair", f"({a},{b})", f"({b},{a})")
        yield Case("order of a triple", f"({a},{root},{b})", f"({a},{b},{root})")
        yield Case("brackets", f"({a},{b})", rng.choice((f"[{a},{b}]", f"({a},{b}]", rf"\{{{a},{b}\}}")))
        yield Case("interval", f"[{a},{b})", rng.choice((f"({a},{b}]", f"[{a},{b + 1})", f"[{a},{b}]")))
        yield Case("set", rf"\{{{a},{b},{c + 40}\}}", rf"\{{{a},{b}\}}")
        yield Case("set", rf"\{{{a},{b}\}}", rf"\{{{a},{b + 1}\}}")
        yield Case("list", f"{a}, {b}", rng.choice((f"{a}", f"{a}, {b}, {b + 1}", f"{a}, {b + 1}")))
        yield Case("union", rf"(-\infty,{a})\cup({b},\infty)", rf"(-\infty,{a}]\cup({b},\infty)")
        yield Case("inequality", rf"{x}>{a}", rng.choice((rf"{x}\ge {a}", f"{x}<{a}", f"{x}>{b}")))
        yield Case("inequality", rf"{a}<{x}\le {b}", rf"{a}<{x}<{b}")
        yield Case("inequality for interval", rf"{x}\ge {a}", rf"({a},\infty)")
        yield Case("equation", f"{y}={a}{x}+{c}", rng.choice((f"{y}={a}{x}+{c + 1}", f"{y}={b}{x}+{c}")))
        yield Case("equation", f"{x}+{y}={a}", f"{x}+{y}={b}")
        yield Case("assignment", f"{x}={a}", rng.choice((f"{y}={a}", f"{x}={b}")))
        yield Case(
            "polynomial", f"{a}{x}^2+{c}", rng.choice((f"{a}{x}^3+{c}", f"{a}{x}^2-{c}", f"{b}{x}^2+{c}"))
        )
        yield Case("variable", f"{a}{x}+{b}", f"{a}{y}+{b}")
        yield Case("rational", rf"\frac{{{x}+{a}}}{{{x}+{b}}}", rf"\frac{{{x}+{b}}}{{{x}+{a}}}")
        yield Case("index", f"{x}_{{{a}}}", f"{x}_{{{b}}}")
        yield Case("units", rf"{a} \text{{ cm}}", rng.choice((rf"{a} \text{{ m}}", rf"{a} \text{{ cm}}^2")))
        yield Case("currency", rf"\${a}", f"{a} cents")
        yield Case("half of the day", f"{a % 12 + 1} am", f"{a % 12 + 1} pm")
        yield Case("base", f"1{a % 2}01_2", f"1{a % 2}01_3")
        yield Case("choice", "ABCD"[a % 4], "ABCD"[(a + 1 + b % 3) % 4])
        yield Case("word", rng.choice(("yes", r"\text{even}", "Monday")), rng.choice(("no", "odd", "Friday")))
        yield Case("complex", f"{a}+{b}i", rng.choice((f"{a}-{b}i", f"{b}+{a}i", f"{a}+{b}")))
        yield Case("matrix", _matrix("pmatrix", a, b, c + 40, d), _matrix("pmatrix", a, c + 40, b, d))
        yield Case("ratio", f"{c}:{d}", f"{d}:{c}")
        yield Case("decimal", f"0.{a}{b}1", f"0.{a}{b}2")
        yield Case("large", f"{10**12 + a}", f"{10**12 + b}")
        yield Case("small", f"0.00000000{a}", f"0.00000000{b}")
        yield Case("comma", f"{a},{b}", f"{a}{b}")
        yield Case("near", rf"\sqrt{{10^{{40}}+{a}}}", "10^{20}")
        yield Case("rounded too far", rf"\frac{{{c}}}{{{7 * d + 3}}}", f"{c / (7 * d + 3):.2f}9")


def _matrix(name: str, *entries: int) -> str:
    a, b, c, d = entries
    return rf"\begin{{{name}}} {a} & {b} \\ {c} & {d} \end{{{name}}}"


def harmless(seed: int, count: int) -> Iterator[Case]:
    """The same answer, written otherwise."""
    rng = random.Random(seed)
    for _ in range(count):
        a, b = _coprime(rng)
        m, n = sorted(rng.sample(range(2, 40), 2))
        x, y = rng.sample("xyzabmnt", 2)
        p, q, r, s = (rng.randint(1, 9) for _ in range(4))
        fraction = rf"\frac{{{a}}}{{{b}}}"
        root = rng.choice((2, 3, 5, 7, 11, 13))
        yield Case("dfrac", fraction, rf"\dfrac{{{a}}}{{{b}}}")
        yield Case("tfrac", fraction, rf"\tfrac{{{a}}}{{{b}}}")
        yield Case("slash", fraction, f"{a}/{b}")
        yield Case("sign of a fraction", f"-{fraction}", rng.choice((rf"\frac{{-{a}}}{{{b}}}", f"-{a}/{b}")))
        yield Case("not reduced", fraction, rf"\frac{{{a * p}}}{{{b * p}}}")
        yield Case("frac without braces", rf"\frac{{{p}}}{{{q}}}", rf"\frac{p}{q}")
        yield Case("dyadic", rf"\frac{{{2 * m + 1}}}{{8}}", f"{(2 * m + 1) / 8}")
        yield Case("six digits", rf"\frac{{{a}}}{{{b}}}", f"{a / b:.9f}")
        yield Case("mixed number", rf"\frac{{{m * b + 1}}}{{{b}}}", rf"{m}\frac{{1}}{{{b}}}")
        yield Case("mixed number in plain text", rf"\frac{{{m * b + 1}}}{{{b}}}", f"{m} 1/{b}")
        yield Case("repeating", rf"\frac{{{p}}}{{9}}", rf"0.\overline{{{p}}}" if p < 9 else "1")
        yield Case("left and right", rf"\left({fraction},{n}\right)", f"({a}/{b}, {n})")
        yield Case(
            "spaces", f"({m},{n})", rng.choice((rf"(\,{m},\;{n}\,)", f"( {m} , {n} )", rf"({m},\ {n})"))
        )
        yield Case("big brackets", f"[{m},{n})", rf"\big[{m},{n}\big)")
        yield Case(
            "marks", f"{m}", rng.choice((f"${m}$", rf"\({m}\)", rf"\boxed{{{m}}}", f"{m}.", f"**{m}**"))
        )
        yield Case(
            "thousands",
            f"{1000 * n + m}",
            rng.choice((f"{1000 * n + m:,}", rf"{n}{{,}}{m:03d}", rf"{n}\,{m:03d}")),
        )
        yield Case("decimal zeros", f"{m}.5", rng.choice((f"{m}.50", f"{m}.500")))
        yield Case("leading zero", f"0.{n}", f".{n}")
        yield Case(
            "root",
            rf"{m}\sqrt{{{root}}}",
            rng.choice((rf"{m}\sqrt {root}", f"{m}*sqrt({root})", f"{m}\u221a{root}")),
        )
        yield Case("root as power", rf"\sqrt{{{root}}}", f"{root}^{{1/2}}")
        yield Case("rationalised", rf"\frac{{1}}{{\sqrt{{{root}}}}}", rf"\frac{{\sqrt{{{root}}}}}{{{root}}}")
        yield Case(
            "product", rf"{m}\pi", rng.choice((rf"{m}\cdot\pi", rf"\pi\cdot {m}", f"{m}\u03c0", f"{m}*pi"))
        )
        yield Case("times", rf"{p} \times 10^{{{q}}}", rng.choice((rf"{p} \cdot 10^{q}", f"{p * 10**q}")))
        yield Case("order of a sum", f"{m}+{n}{x}", f"{n}{x}+{m}")
        yield Case("expanded", f"({p}{x}+{q})({r}{x}+{s})", f"{p * r}{x}^2+{p * s + q * r}{x}+{q * s}")
        yield Case("braces of a power", f"{x}^{{{p}}}", f"{x}^{p}")
        yield Case("order of a product", f"{m}{x}{y}", f"{m}{y}{x}")
        yield Case("set order", rf"\{{{m},{n},{n + 1}\}}", rf"\{{ {n + 1}, {m}, {n} \}}")
        yield Case(
            "list order", f"{m}, {n}", rng.choice((f"{n}, {m}", rf"{n} \text{{ and }} {m}", f"{n} or {m}"))
        )
        yield Case("plus and minus", rf"{m}\pm\sqrt{{{root}}}", rf"{m}+\sqrt{{{root}}}, {m}-\sqrt{{{root}}}")
        yield Case("assignment", f"{m}", rng.choice((f"{x}={m}", f"{x} = {m}")))
        yield Case("membership", f"[{m},{n}]", rf"{x} \in [{m}, {n}]")
        yield Case(
            "inequality",
            rf"{x}\ge {m}",
            rng.choice((rf"{x} \geq {m}", rf"{m}\le {x}", f"{x}>={m}", rf"[{m},\infty)")),
        )
        yield Case("union order", rf"(-\infty,{m})\cup({n},\infty)", rf"({n},\infty) \cup (-\infty,{m})")
        yield Case("equation turned", f"{y}={p}{x}+{q}", rng.choice((f"{p}{x}+{q}={y}", f"{y}-{p}{x}={q}")))
        yield Case("equation scaled", f"{x}+{y}={m}", f"2{x}+2{y}={2 * m}")
        yield Case("unit", f"{m}", rng.choice((rf"{m}\text{{ cm}}", f"{m} meters", rf"{m}\,\mathrm{{kg}}")))
        yield Case("unit spelled out", rf"{m} \text{{ cm}}^2", f"{m} square centimeters")
        yield Case(
            "degrees", f"{m}", rng.choice((rf"{m}^\circ", rf"{m}^{{\circ}}", f"{m}\u00b0", f"{m} degrees"))
        )
        yield Case("currency", f"{m}", rng.choice((rf"\${m}", f"${m}.00", f"{m} dollars")))
        yield Case("percent", rf"{m}\%", rng.choice((f"{m}%", f"{m} percent", f"{m / 100}")))
        yield Case("word", "blue", rng.choice((r"\text{blue}", "Blue", r"\textbf{Blue}", "blue.")))
        yield Case("choice", "C", rng.choice(("(C)", r"\text{C}", r"\mathrm{(C)}", "C.")))
        yield Case("base", f"1{m % 2}01_2", f"1{m % 2}01_{{2}}")
        yield Case("matrix", _matrix("pmatrix", m, n, p, q), _matrix("bmatrix", m, n, p, q))
        yield Case("complex", f"{m}+{n}i", f"{n}i+{m}")
        yield Case("function", rf"\sin^2 {x}", rf"(\sin {x})^2")
        yield Case("minus of Unicode", f"-{m}", f"\u2212{m}")


def calculations(seed: int, count: int) -> Iterator[Case]:
    """Calculations, as questions hold them, and their results."""
    rng = random.Random(seed)
    for _ in range(count):
        a, b = _coprime(rng)
        m, n, k = rng.randint(2, 40), rng.randint(2, 40), rng.randint(2, 6)
        yield Case("sum", f"{m + n}", rng.choice((f"{m} + {n}", f"{m}+{n}", f"${m} + ${n}")))
        yield Case("difference", f"{m - n}", rng.choice((f"{m} - {n}", f"{m}-{n}", f"{m} \u2212 {n}")))
        yield Case("product", f"{m * n}", rng.choice((f"{m} \u00d7 {n}", rf"{m} \times {n}", f"{m} * {n}")))
        yield Case("quotient", f"{m}", rng.choice((f"{m * n} / {n}", f"{m * n} \u00f7 {n}")))
        yield Case("fraction", f"{m}", rf"\{rng.choice('dt ').strip()}frac{{{m * n}}}{{{n}}}")
        total = rf"\frac{{{a * n + m * b}}}{{{b * n}}}"
        yield Case("fractions", total, rf"\frac{{{a}}}{{{b}}} + \frac{{{m}}}{{{n}}}")
        yield Case("power", f"{m**k}", rng.choice((f"{m}^{k}", f"{m}^{{{k}}}", f"{m}**{k}")))
        yield Case("power", f"{(-m) ** k}", f"(-{m})^{k}")
        yield Case("power", rf"\frac{{1}}{{{m**k}}}", f"{m}^{{-{k}}}")
        yield Case("square", f"{m**2} cm", rf"{m}^2 \text{{ cm}}")
        yield Case("root", f"{m}", rng.choice((rf"\sqrt{{{m * m}}}", f"sqrt({m * m})", f"\u221a{m * m}")))
        yield Case("root", f"{m}", rf"\sqrt[3]{{{m**3}}}")
        yield Case("root", f"{m}", f"{m * m}^{{1/2}}")
        yield Case("binomial", f"{math.comb(m, k)}", rf"\binom{{{m}}}{{{k}}}")
        yield Case("logarithm", f"{k}", rf"\log_{{{m}}} {m**k}")
        yield Case("floor", f"{m}", rf"\lfloor {m}.{k} \rfloor")
        yield Case("decimals", f"{(m + k) / 10}", f"{m / 10} + .{k}")
