"""Runs a model's Python programs isolated from the network, other processes and the user's files."""

from .functions import passes_tests
from .running import Limits, Ran, check_sandbox, run_python
from .tool import python_tool

__all__ = ["Limits", "Ran", "check_sandbox", "passes_tests", "python_tool", "run_python"]
