"""The one exception for what a user can put right: its text is one sentence, shown without a traceback."""

import errno


class UserError(ValueError):
    """Names the field or file (and line), its value and what would be right. Ends the program with exit status 2."""


# What the system says of a place where there will never be room.
WRONG_PLACE = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)


class WriteError(OSError, UserError):
    """A file or folder that cannot be written: `errno`, `strerror` and `filename` as the system has them."""

    def __str__(self) -> str:
        told = f"{self.filename} cannot be written ({self.strerror})"
        if self.errno in WRONG_PLACE:
            return f"{told}; name another place"
        return f"{told}; what is finished stays: make room or name another directory, and give the same command again."


def one_line(value: object) -> str:
    """What a library says, which may have several lines, as part of a sentence."""
    return " ".join(str(value).split())


def require(holds: bool, field: str, value: object, expected: str) -> None:
    """Raises UserError where a field's value is not what it must be: "FIELD is VALUE; it must be EXPECTED"."""
    if not holds:
        raise UserError(f"{field} is {value}; it must be {expected}")
