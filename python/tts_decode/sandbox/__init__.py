"""Python programs that a model wrote, run apart from the network, other processes and the user's files."""

from .running import Limits, Ran, check_sandbox, run_python
from .tool import python_tool

__all__ = ["Limits", "Ran", "check_sandbox", "python_tool", "run_python"]
