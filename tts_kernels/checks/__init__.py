"""What may cross from Python into the kernels: one description of an operator's arguments, checked here.

`Signature` holds the description: `Array` and `Number` entries, with sizes that several of them share, and
refuses what does not fit, in words made from it. `Guard` checks an operator's calls by it and by where their
memory lies. `values.py` checks single Python values.
"""

from .arrays import Array, empty, require_dense
from .guard import Guard, SignatureOf
from .memory import check_storage
from .signature import Argument, Choice, Footprint, Number, Numbers, Result, Rule, Signature
from .values import (
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
