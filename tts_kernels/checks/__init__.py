"""Checks what crosses from Python into the kernels, by one description of an operator's arguments.

`Signature` holds the description: `Array` and `Number` entries that may share sizes. It refuses arguments
that do not fit, with messages generated from the description. `Guard` checks an operator's calls by signature
and by where their memory lies. `values.py` checks single Python values.
"""

from .arrays import Array, empty, require_dense
from .guard import Guard, SignatureOf
from .memory import check_storage
from .signature import Argument, Choice, Footprint, Number, Numbers, Result, Rule, Signature
from .values import (
    a_type,
    any_integer,
    choice,
    dtype_of,
    flag,
    instance,
    integer,
    is_integer,
    is_real,
    number,
    real,
    shown,
)

__all__ = [
    "Argument",
    "Array",
    "Choice",
    "Footprint",
    "Guard",
    "Number",
    "Numbers",
    "Result",
    "Rule",
    "Signature",
    "SignatureOf",
    "a_type",
    "any_integer",
    "check_storage",
    "choice",
    "dtype_of",
    "empty",
    "flag",
    "instance",
    "integer",
    "is_integer",
    "is_real",
    "number",
    "real",
    "require_dense",
    "shown",
]
