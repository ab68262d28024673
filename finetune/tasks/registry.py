"""The tasks there are, in the order of tables. A new one is a file with a `Task` in this folder and one line here."""

from earlybert.core.arguments import alternatives
from earlybert.core.errors import UserError
from earlybert.finetune.tasks.glue import GLUE
from earlybert.finetune.tasks.squad import SQUAD
from earlybert.finetune.tasks.task import Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *GLUE.values(),
        SQUAD,
    )
}


def require_known(option: str, names: list[str], known: tuple[str, ...]) -> None:
    """Raises UserError, with the nearest one, for a name that is none of the known ones."""
    for name in names:
        if name not in known:
            raise UserError(f"{option} is {name!r}, which is not known{alternatives(name, known)}")
