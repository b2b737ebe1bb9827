"""Words that name units of measure."""

from __future__ import annotations

_SAME = {
    "%": "percent percentage pct",
    "deg": "degree degrees",
    "$": "dollar dollars usd",
    "cent": "cents",
    "m": "meter meters metre metres",
    "cm": "centimeter centimeters centimetre centimetres",
    "dm": "decimeter decimeters decimetre decimetres",
    "mm": "millimeter millimeters millimetre millimetres",
    "km": "kilometer kilometers kilometre kilometres",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard yards",
    "mi": "mile miles",
    "g": "gram grams",
    "mg": "milligram milligrams",
    "kg": "kilogram kilograms",
    "lb": "pound pounds lbs",
    "oz": "ounce ounces",
    "l": "liter liters litre litres",
    "ml": "milliliter milliliters",
    "s": "second seconds sec secs",
    "min": "minute minutes mins",
    "h": "hour hours hr hrs",
    "day": "days",
    "mph": "mi/h",
    "unit": "units",
    **{"am": "a.m", "pm": "p.m"},
}
_CANONICAL = {name: unit for unit, names in _SAME.items() for name in (unit, *names.split())}


def unit_named(word: str) -> str | None:
    """Returns the unit that a word is known to name, in one spelling."""
    return _CANONICAL.get(word.casefold())
