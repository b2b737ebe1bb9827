"""The name under which torch knows the operators: torch.ops.<NAMESPACE>.

It is the package's own name, so that a copy of the package under another name has operators of its own.
"""

from __future__ import annotations

NAMESPACE = (__package__ or "").replace(".", "_")
