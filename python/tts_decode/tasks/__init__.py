"""Problems with a verifier: a fixed set from reasoning-gym, files, and data sets from the hub."""

from .answers import final_answer, final_number
from .default import default_tasks
from .formats import FORMATS
from .reading import read_tasks
from .task import Task, TaskFileError

__all__ = ["FORMATS", "Task", "TaskFileError", "default_tasks", "final_answer", "final_number", "read_tasks"]
