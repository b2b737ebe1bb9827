"""Lets pytest find `benches` after all installed packages, so that it hides none of them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
