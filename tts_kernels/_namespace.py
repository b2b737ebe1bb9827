"""The namespace of the operators in torch: torch.ops.<NAMESPACE>.

It follows the package's own name, so that a copy of the package under another name has its own operators.
Every character except ASCII letters, digits and underscores becomes an underscore.
"""

from __future__ import annotations

import re

NAMESPACE = re.sub(r"^(?=\d)|\W", "_", __package__ or "", flags=re.ASCII)
