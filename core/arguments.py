"""Argument parsing whose errors are one sentence, as all of a user's errors are."""

import argparse
from typing import NoReturn

from earlybert.core.errors import UserError


class ArgumentParser(argparse.ArgumentParser):
    """argparse without its usage text in front of an error."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")
