"""Log to stderr as text or JSON lines. A failing log never fails the job."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, TextIO

from transforms.core.text import printable

FORMATS = ("text", "json")

_LINE_CHARACTERS = 10_000

_NOTES_OF_PACKAGES = (
    *("You are using a Python version", "crcmod package not found"),
    "No semi_persistent_directory found",
    "triggered tf.function retracing",
)
"""What some releases of Google's packages and Beam say while they are imported: that a Python will end in a year or so,
and that a package is not there, in whose place another is. And what each worker process of Beam's local runner says:
that it was not given a folder, whose files it does not need. And that TensorFlow traces the functions of each model, of
which a search has many."""


@dataclass
class _Settings:
    """How this process logs.

    Attributes:
        json: one JSON object a line instead of text.
        quiet: warnings and errors only.
        totals: counts of the job, for its last JSON line.
        started: when the job's command began, in seconds since 1970; None outside of one.
    """

    json: bool = False
    quiet: bool = False
    totals: dict[str, Any] | None = None
    started: float | None = None


SETTINGS = _Settings()


class Terminated(KeyboardInterrupt):
    """SIGTERM was received. It stops a job as Control-C does."""


class SteadyStream(io.TextIOBase):
    """A text stream whose failures are ignored: a full disk or a reader that left must not stop the job.

    Args:
        stream: what is written to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        """As the stream says."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """As the stream says."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """As the stream says."""
        return self._stream.encoding

    @property
    def buffer(self) -> Any:
        """As the stream says."""
        return self._stream.buffer


def open_standard_streams() -> None:
    """Open stdin, stdout and stderr on the null device where the process was started with them closed.

    Otherwise the next file that is opened takes number 1 or 2, and what libraries print lands in it. Stdout writes
    characters that its encoding does not have as codes, as stderr does: a label must not end a job in another locale.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def logging_as(arguments: Sequence[str], *, steady_stdout: bool) -> Iterator[None]:
    """Log as the flags on the command line say, Beam's and Python's own records too, until the block ends.

    Args:
        arguments: of the job; a config file may change the format later (`configure`).
        steady_stdout: ignore errors of stdout too, for a job whose results are files.
    """
    open_standard_streams()
    before = sys.stdout, sys.stderr
    handler = _Handler(level=logging.INFO if "--debug" in arguments else logging.WARNING)
    if "--debug" not in arguments:
        handler.addFilter(_concerns_the_user)
    sys.stderr = SteadyStream(before[1])
    if steady_stdout:
        sys.stdout = SteadyStream(before[0])
    root = logging.getLogger()
    root.addHandler(handler)
    logging.captureWarnings(True)
    SETTINGS.totals, SETTINGS.started = None, time.time()
    configure(_given_format(arguments), quiet="--quiet" in arguments)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        sys.stdout, sys.stderr = before
        configure("text", quiet=False)
        SETTINGS.started = None
        for number, stream in enumerate(before, start=1):
            if number == 2 or steady_stdout:
                _discard_what_cannot_be_written(stream)


def configure(log_format: str, *, quiet: bool) -> None:
    """Set the format of all further lines, and whether only warnings and errors are among them."""
    SETTINGS.json = log_format == "json"
    SETTINGS.quiet = quiet


def emit(message: str, *, severity: str = "INFO", **fields: Any) -> None:
    """Write one line to stderr.

    Args:
        message: for people; the whole line in text.
        severity: INFO, WARNING or ERROR, as Google's and most other log collectors know them.
        fields: further keys of the JSON line.
    """
    if SETTINGS.quiet and severity == "INFO" and "exit_code" not in fields:
        return
    if not SETTINGS.json:
        message = harmless(message)
    else:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "severity": severity, "message": message, **fields}
        message = json.dumps(line, ensure_ascii=True, default=str)
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def harmless(text: str) -> str:
    """Escape control characters and indent further lines, so that no name looks like a log line."""
    return "\n    ".join(printable(line, _LINE_CHARACTERS) for line in text.split("\n"))


def add_totals(**totals: Any) -> None:
    """Counts for the job's last JSON line."""
    SETTINGS.totals = {**(SETTINGS.totals or {}), **totals}


def emit_end(job: str, code: int) -> None:
    """In JSON, the last line: the exit code, and the totals where the job came that far."""
    if SETTINGS.json:
        severity = "INFO" if code == 0 else "ERROR"
        emit(f"imagebeam {job} ended with exit code {code}", severity=severity, exit_code=code, totals=SETTINGS.totals)


@contextlib.contextmanager
def stopping_on_sigterm() -> Iterator[None]:
    """Raise `Terminated` in the main thread on SIGTERM, as Python raises KeyboardInterrupt on SIGINT."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _concerns_the_user(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in _NOTES_OF_PACKAGES)


class _Handler(logging.Handler):
    """Python's log records, as `emit` writes lines."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields = {"logger": record.name}
            message = record.getMessage().rstrip()
            if record.exc_info:
                trace = "".join(traceback.format_exception(*record.exc_info)).rstrip()
                if SETTINGS.json:
                    fields["traceback"] = trace
                else:
                    message = f"{message}\n{trace}"
            severity = "DEBUG" if record.levelno < logging.INFO else record.levelname
            emit(message, severity=severity, **fields)
        except Exception:
            self.handleError(record)


def _given_format(arguments: Sequence[str]) -> str:
    """The value of --log_format, before the flags are parsed and refused."""
    found = "text"
    for index, argument in enumerate(arguments):
        if argument.startswith("--log_format="):
            found = argument.partition("=")[2]
        elif argument == "--log_format" and index + 1 < len(arguments):
            found = arguments[index + 1]
    return found


def _discard_what_cannot_be_written(stream: TextIO) -> None:
    """Python ends with exit code 120 if a standard stream cannot be flushed at its exit."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
            stream.flush()
