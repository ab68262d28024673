"""The tasks there are, in the order of tables. A new one is a file with a `Task` in this folder and one line here."""

from earlybert.core.arguments import alternatives
from earlybert.core.errors import UserError
from earlybert.finetune.config import Settings
from earlybert.finetune.tasks.glue import GLUE
from earlybert.finetune.tasks.own_texts import OWN_TEXTS
from earlybert.finetune.tasks.own_words import OWN_WORDS
from earlybert.finetune.tasks.squad import SQUAD
from earlybert.finetune.tasks.task import Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *GLUE.values(),
        SQUAD,
        OWN_TEXTS,
        OWN_WORDS,
    )
}


def require_known(option: str, names: list[str], known: tuple[str, ...]) -> None:
    """Raises UserError, with the nearest one, for a name that is none of the known ones."""
    for name in names:
        if name not in known:
            raise UserError(f"{option} is {name!r}, which is not known{alternatives(name, known)}")


def require_read(names: list[str], settings: Settings) -> None:
    """Raises UserError for a file or column that none of the tasks named reads."""
    readers: dict[str, list[str]] = {}
    for task in TASKS.values():
        for setting in task.reads:
            readers.setdefault(setting, []).append(task.name)
    for setting, tasks in readers.items():
        if (value := getattr(settings, setting)) is not None and not {*tasks} & {*names}:
            raise UserError(f"{setting} is {value!r}, which is for --task {' or '.join(tasks)}, not {', '.join(names)}")
