"""The pool of decoder processes: start, lend to threads, end."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from transforms.core.batching import available_cores
from transforms.core.types import Image
from transforms.images.errors import ImageError
from transforms.images.isolated.messages import Link
from transforms.images.options import ImageOptions

SECONDS = 30.0
"""Of a processor that one image may take, and a second more for each million of pixels that are allowed.

The most expensive images (16-bit JPEG 2000) take a tenth of it.
"""

WAIT = 5.0
"""Times as long is the wait for a decoder that does nothing: a busy machine must not be taken for one."""

_BYTES_PER_PIXEL = 48
_ROOT = str(Path(__file__).parents[3])
"""Where this package is, if an empty path, the folder that the job was started in, has found it."""

_SECONDS_TO_START = 300.0
_SECONDS_TO_END = 5.0


class Family(enum.StrEnum):
    """Decoder processes that have the same packages in memory."""

    PLAIN = "plain"
    TENSORFLOW_IO = "tensorflow_io"


_MOST = {Family.PLAIN: available_cores(), Family.TENSORFLOW_IO: max(1, min(4, available_cores()))}
"""Decoder processes of one process at most: TensorFlow takes 800 MB in each, the others take 20."""

_BYTES = {Family.PLAIN: 1 << 30, Family.TENSORFLOW_IO: 2 << 30}
"""Memory for one image, beside twice its file and `_BYTES_PER_PIXEL` for each of the pixels that its header names."""


class DecoderProcessError(OSError):
    """The machine's fault, not the image's: a decoder process that does not start, or that was killed from outside."""


_SPENT = threading.local()


def thread_time() -> float:
    """Seconds of a processor that this thread has taken, and decoder processes for it; see `time.thread_time`."""
    return time.thread_time() + getattr(_SPENT, "seconds", 0.0)


class _DecoderProcess:
    """A running `transforms.images.isolated.decoder_process`; for one thread at a time.

    It ends when `close` is called, when nothing refers to it any more, or at the end of this process.

    Attributes:
        is_ready: whether it has answered all that it was asked. One that has not is not used again.
    """

    def __init__(self, family: Family) -> None:
        self.is_ready = False
        self._family = family
        self._asked = 0
        with self._as_machine_fault(), contextlib.ExitStack() as undo:
            self._link, theirs = Link.pair()
            undo.callback(self._link.close)
            with contextlib.closing(theirs):
                self._process = _start(theirs.descriptors, family)
            self._end = weakref.finalize(self, _end, self._link, self._process)
            undo.pop_all()
        self._poller = select.poll()
        self._poller.register(self._link.socket, select.POLLIN)
        self._link.socket.settimeout(_SECONDS_TO_START)
        try:
            with self._as_machine_fault():
                hello, _ = self._link.receive(0)
        except BaseException:
            self.close()
            raise
        self._unavailable = hello.get("unavailable")
        self.is_ready = True

    @property
    def is_quiet(self) -> bool:
        """Whether it waits for a request; one that was killed or crashed meanwhile has told so."""
        return not self._poller.poll(0)

    def decode(self, name: str, data: bytes, kind: str, options: ImageOptions) -> Image:
        """One image, resized; see `transforms.images.isolated.isolated_decoder.Isolated.decode`.

        Args:
            name: of the function that decodes: "package.module:function".
            data: an encoded image file.
            kind: the format.
            options: what to make of it.
        """
        if self._unavailable:
            self._refuse(kind)
        self._asked += 1
        self.is_ready = False
        cpu_seconds = SECONDS + options.max_image_pixels / 1e6
        request = {
            "id": self._asked,
            "decoder": name,
            "kind": kind,
            "options": _as_fields(options),
            "cpu_seconds": cpu_seconds,
            "bytes": _BYTES[self._family],
            "bytes_per_pixel": _BYTES_PER_PIXEL,
        }
        self._link.socket.settimeout(WAIT * cpu_seconds)
        with self._as_machine_fault():
            self._link.send(request, data)
            try:
                reply, pixels = self._link.receive(3 * _most_pixels(options))
            except TimeoutError:
                raise ImageError("undecodable", f"The {kind} is damaged: its decoder never comes to an end.") from None
            except ValueError:
                raise _crash(kind) from None
        if "died" in reply:
            raise self._explain_death(kind, reply["died"], cpu_seconds)
        if reply["id"] != self._asked:
            raise DecoderProcessError("A decoder process gave the reply to another request.")
        self.is_ready = True
        _SPENT.seconds = getattr(_SPENT, "seconds", 0.0) + reply["seconds"]
        if "error_type" in reply:
            raise ImageError(reply["error_type"], reply["message"])
        array = np.frombuffer(pixels, np.uint8).reshape(reply["shape"])
        return Image(array, reply["width"], reply["height"], reply["icc_profile"])

    def close(self) -> None:
        """End the process; it may be dead already."""
        self._end()

    def forget(self) -> None:
        """Let go of what is another process's: for a process that was forked."""
        self._end.detach()
        self._link.close()
        self._process.returncode = 0

    def _refuse(self, kind: str) -> None:
        if self._family == Family.PLAIN:
            raise DecoderProcessError(f"A decoder process does not work: {self._unavailable}.")
        raise ImageError(
            f"unsupported_{kind.lower()}",
            f"tensorflow-io does not work here ({self._unavailable}). Install the versions that it goes with: "
            "pip install 'imagebeam[tfio]'.",
        )

    def _explain_death(self, kind: str, how: int, cpu_seconds: float) -> Exception:
        """Why there is no reply.

        Args:
            kind: the format.
            how: an exit code, or a signal below 0.
            cpu_seconds: that it had.
        """
        if how == -signal.SIGKILL:
            return DecoderProcessError("A decoder process was killed, perhaps for want of memory.")
        self.is_ready = True  # Its next child is.
        if how == -signal.SIGPROF:
            return ImageError("undecodable", f"The {kind} takes too long: more than {cpu_seconds:.0f} s to decode.")
        return _crash(kind)

    @contextlib.contextmanager
    def _as_machine_fault(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError, ValueError) as error:
            raise DecoderProcessError(f"A decoder process ended unexpectedly ({type(error).__name__}).") from error


def _start(descriptors: tuple[int, int], family: Family) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        # -P: the folder that the job was started in is no place for modules.
        [sys.executable, "-P", "-m", "transforms.images.isolated.decoder_process", *map(str, descriptors), family],
        pass_fds=descriptors,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # Decoders quote headers there, and a DICOM header names a patient.
        start_new_session=True,  # Control-C is for the job; this ends when the link does.
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(filter(None, [*sys.path, _ROOT])), "CUDA_VISIBLE_DEVICES": "-1"},
    )


def _end(link: Link, process: subprocess.Popen[bytes]) -> None:
    link.close()
    try:
        process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _crash(kind: str) -> ImageError:
    return ImageError("undecodable", f"The {kind} is damaged: its decoder crashes at it.")


@functools.lru_cache(maxsize=16)
def _as_fields(options: ImageOptions) -> dict[str, Any]:
    return dataclasses.asdict(options)


def _most_pixels(options: ImageOptions) -> int:
    height, width = options.image_size or (1, 1)
    return max(options.max_image_pixels, height * width)


class _Pool:
    """Decoder processes, started when all others are at work; lent to one thread at a time. They end with the pool."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._idle: queue.LifoQueue[_DecoderProcess] = queue.LifoQueue()
        self._all: set[_DecoderProcess] = set()
        self._places = threading.Semaphore(_MOST[family])

    @contextlib.contextmanager
    def lend(self) -> Iterator[_DecoderProcess]:
        """A process; one that is not ready afterwards is ended."""
        with self._places:
            process = self._take()
            try:
                yield process
            finally:
                if process.is_ready:
                    self._idle.put(process)
                else:
                    self._end(process)

    def forget(self) -> None:
        """Let go of all: for a process that was forked."""
        for process in self._all:
            process.forget()

    def _take(self) -> _DecoderProcess:
        with contextlib.suppress(queue.Empty):
            while True:
                process = self._idle.get_nowait()
                if process.is_quiet:
                    return process
                self._end(process)
        process = _DecoderProcess(self._family)
        self._all.add(process)
        return process

    def _end(self, process: _DecoderProcess) -> None:
        self._all.discard(process)
        process.close()


_POOLS = {family: _Pool(family) for family in Family}


def lend(family: Family) -> contextlib.AbstractContextManager[_DecoderProcess]:
    """A process for this thread, which waits for one where all are at work."""
    return _POOLS[family].lend()


def _forget_the_parents() -> None:
    """A forked process must not speak to its parent's decoders, nor keep them alive."""
    global _POOLS
    for pool in _POOLS.values():
        pool.forget()
    _POOLS = {family: _Pool(family) for family in Family}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents)
