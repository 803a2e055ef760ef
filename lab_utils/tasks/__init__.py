"""Tasks: rows become chat prompts, and each task has the one definition of a correct answer."""

from .. import WorkshopError
from .base import Completion, Row, RowError, Task, completion_text, visible
from .countdown import Countdown
from .gsm8k import GSM8K


def load_task(name: str, response_format: str | None = None) -> Task:
    """Return a task by name, in one of its response formats (the first when None).

    >>> load_task("gsm8k", "hash").extract("4 + 4 = 8, so #### 8")
    '8'
    """
    tasks = {task.name: task for task in (GSM8K, Countdown)}
    if name not in tasks:
        raise WorkshopError(f"There is no task {name!r}: choose one of {', '.join(sorted(tasks))}.")
    return tasks[name](response_format)
