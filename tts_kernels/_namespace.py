"""The name under which torch knows the operators: torch.ops.<NAMESPACE>.

It is the package's own name, so that a copy of the package under another name has operators of its own.
What is no letter, digit or underscore of ASCII, such as a dot or a hyphen, becomes an underscore.
"""

from __future__ import annotations

import re

NAMESPACE = re.sub(r"^(?=\d)|\W", "_", __package__ or "", flags=re.ASCII)
