"""Jobs on a Dask engine that is there already, on one machine or many that share the files."""

import os
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any, TypeVar

from earlybert.core.errors import UserError, one_line

Result = TypeVar("Result")
# How long the scheduler may take to answer, in seconds.
PATIENCE = "20s"


class DaskEngine:
    """What `Workers` uses in place of its own processes. A job whose worker is lost goes to another one."""

    def __init__(self, address: str) -> None:
        """Connect to a scheduler, such as tcp://10.0.0.1:8786.

        Raises:
            UserError: The package is missing, or nobody answers.
        """
        try:
            import distributed
        except ImportError:
            raise UserError(
                f"dask is {address}, but the package distributed is missing; pip install earlybert[dask]."
            ) from None
        try:
            self._client = distributed.Client(address, timeout=PATIENCE, set_as_default=False)
        # Addresses that are none are ValueErrors, what does not answer is an OSError.
        except (OSError, ValueError) as error:
            raise UserError(f"dask is {address}, where no scheduler answers ({one_line(error)}).") from None
        # Never pure: what a job does is write files, so an equal one of before has not done it.
        self._executor = self._client.get_executor(pure=False)
        self.lost: tuple[type[BaseException], ...] = (distributed.KilledWorker, CancelledError)

    def submit(self, function: Callable[..., Result], *job: Any) -> "Future[Result]":
        """As `Executor.submit`."""
        future: Future[Result] = self._executor.submit(_in_folder, str(Path.cwd()), function, *job)
        return future

    def everywhere(self, function: Callable[..., Result], *arguments: Any) -> dict[str, Result]:
        """What a function gives on every worker, by the worker's address.

        Raises:
            UserError: A worker cannot call it.
        """
        try:
            found: dict[str, Result] = self._client.run(_in_folder, str(Path.cwd()), function, *arguments)
        # Whatever a worker lacks, the package itself included.
        except Exception as error:
            raise UserError(f"dask: a worker cannot take part ({type(error).__name__}: {one_line(error)}).") from error
        return found

    def shutdown(self, *, cancel_futures: bool) -> None:
        """Let go of the engine, which stays; jobs of this program end."""
        self._executor.shutdown(wait=not cancel_futures)
        self._client.close()


def _in_folder(folder: str, function: Callable[..., Result], *job: Any) -> Result:
    """A worker's part: names of files are relative to the folder of the command."""
    os.chdir(folder)
    # The engine has a worker for each core.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return function(*job)
