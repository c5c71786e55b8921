"""The errors that users see. The command line imports this module, so it imports nothing heavy."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator


class ImagebeamError(Exception):
    """A mistake the user can mend: the message names the thing, the value received and the remedy."""


class JobError(Exception):
    """A job that started could not finish: the message says what stopped it and what to do next."""


class FailureError(Exception):
    """Why a record becomes no embedding, for its row in failures.

    Attributes:
        error_type: short stable name.
        message: the reason.
    """

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(error_type, message)
        self.error_type = error_type
        self.message = message

    def __str__(self) -> str:
        return self.message


def first_line(error: Exception) -> str:
    """What an error of many lines says first; its type's name if it says nothing."""
    return _lines(error)[0]


def last_line(error: Exception) -> str:
    """What an error of many lines says in the end; its type's name if it says nothing."""
    return _lines(error)[-1]


def _lines(error: Exception) -> list[str]:
    text = without_arguments(str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    return [line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..." for line in lines]


_LONGEST = 200
"""Characters of a line."""


_ARGUMENTS = re.compile(
    r"(\n\s*Arguments received by [^\n]*:\n| Full object config: )"
    r".*?(?=\n\n(?:During handling of|The above exception)|\Z)",
    re.DOTALL,
)
_NODE = re.compile(r"\n\s*\[\[\{\{node .*")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def without_arguments(message: str) -> str:
    """A message of Keras without the tensors, the node or the model's whole configuration that follow the reason."""
    for what in (_ARGUMENTS, _NODE, _COLOURS):
        message = what.sub("", message)
    return message


_MISTAKES = (PermissionError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
_MISTAKEN_CODES = (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EILSEQ)


def refused(message: str, cause: OSError) -> ImagebeamError | JobError:
    """The error for a file or folder that cannot be used.

    Args:
        message: what cannot be used, and why.
        cause: a wrong name or a missing right is the user's to mend; a disk that is full or fails, or a network that
            is away, is the machine's, and the same command may work later.
    """
    if isinstance(cause, _MISTAKES) or cause.errno in _MISTAKEN_CODES:
        return ImagebeamError(message)
    return JobError(f"{message} The same command goes on once that works again.")


@contextlib.contextmanager
def using(what: str, received: str) -> Iterator[None]:
    """Name what the block uses where that cannot be used.

    Args:
        what: "The output", say.
        received: the flag and its value.

    Raises:
        ImagebeamError: as `refused`.
        JobError: likewise.
    """
    try:
        yield
    except OSError as error:
        raise refused(f"{what} cannot be used: {error}. Received: {received}.", error) from error


class StopError(Exception):
    """The job cannot go on. Nothing in progress should be committed, and no record is at fault."""


class ColumnTypeError(StopError, ImagebeamError):
    """A kept column has a value that does not fit the type of its first records. The message names the remedy."""
