"""Tasks: rows become chat prompts, and each task has the one definition of a correct answer."""

from .. import WorkshopError
from ..config import TaskSettings, is_own, own_code, short_name
from .base import Completion, RowReport, Task, completion_text, visible
from .countdown import Countdown
from .gsm8k import GSM8K
from .sources import Row, RowError


def load_task(task: str | TaskSettings, response_format: str | None = None) -> Task:
    """Return a task by name or by its settings, in one of its response formats.

    Args:
        task: "countdown", "gsm8k", "qa" or a reference to a class in a file of your own, "my_task.py" or
            "my_task.py:MyTask"; or a run's `config.task`, which also says how its data names the columns.
        response_format: None for that of the settings, or the first that the task has.

    >>> load_task("gsm8k", "hash").extract("4 + 4 = 8, so #### 8")
    '8'
    """
    name = task if isinstance(task, str) else task.name
    tasks = {known.name: known for known in (GSM8K, Countdown, Task)}
    if name in tasks:
        kind = tasks[name]
    elif is_own(name):
        kind = own_code.load_object(name, "subclass of lab_utils.tasks.Task",
                                    lambda value: isinstance(value, type) and issubclass(value, Task))
        kind.own, kind.name = True, kind.__dict__.get("name", short_name(name))
    else:
        raise WorkshopError(f"There is no task {name!r}: choose one of {', '.join(sorted(tasks))}, or give the path of "
                            "your own .py file.")
    arguments = (response_format,) if isinstance(task, str) else \
        (response_format or task.response_format, task.columns, task.drop_bad_rows)
    try:
        return kind(*arguments)
    except TypeError as error:
        if not kind.own:
            raise
        raise WorkshopError(f"{short_name(name)}: {error}. `__init__` of a task must take what that of Task takes, and "
                            "pass it on: def __init__(self, *arguments): super().__init__(*arguments).") from error
