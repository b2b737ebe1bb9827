"""Where pytest finds `benches`: behind everything installed, of which it hides nothing."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
