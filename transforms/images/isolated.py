"""Decode in a process of its own: whatever hostile bytes do to a decoder there costs one image, not the job.

tensorflow-io's OpenEXR and DICOM decoders are C++ that ends the process at some damaged files (a truncated EXR is
enough), so they run in `transforms.images.decoder_process`, which is started when the first such image appears.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Pipe
from typing import Any

import numpy as np
import PIL.Image

from transforms.images.base import Decoded, Limits
from transforms.images.errors import ImageError

PACKAGES = ("tensorflow_io", "pydicom")
"""What the extra ``tfio`` brings for these decoders."""

MAX_PROCESSES = max(1, min(4, os.cpu_count() or 1))
"""Decoder processes of one process at most: each holds TensorFlow, some 800 MB."""

_BEYOND_CPU_SECONDS = getattr(signal, "SIGPROF", None)


class DecoderProcessError(OSError):
    """The machine's fault, not the image's: a decoder process that does not start, or that was killed from outside."""


def isolated(kind: str) -> Callable[[bytes, Limits], Decoded]:
    """The decoder of "dicom", "exr" or "hdr" files; see the module of that name in this package."""

    def decode(data: bytes, limits: Limits) -> Decoded:
        if any(importlib.util.find_spec(package) is None for package in PACKAGES):
            raise ImageError(
                f"unsupported_{kind}",
                f"{kind.upper()} files are decoded by an extra: pip install 'imagebeam[tfio]'.",
            )
        with _POOL.lend() as process:
            return process.decode(kind, data, limits)

    return decode


class _DecoderProcess:
    """A running `transforms.images.decoder_process`; for one thread at a time."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                # -P: the folder that the job was started in is no place for modules.
                [sys.executable, "-P", "-m", "transforms.images.decoder_process", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # Decoders quote headers there, and a DICOM header names a patient.
                start_new_session=True,  # Control-C is for the job; this ends when the connection does.
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "CUDA_VISIBLE_DEVICES": "-1"},
            )
        self._asked = 0
        try:
            self._unavailable = self._receive().get("unavailable")
        except DecoderProcessError:
            self.close()
            raise

    def decode(self, kind: str, data: bytes, limits: Limits) -> Decoded:
        """One image's pixels.

        Raises:
            ImageError: as the decoder says, or because it crashed.
            DecoderProcessError: if the process is gone through no fault of the image.
        """
        if self._unavailable:
            raise ImageError(
                f"unsupported_{kind}",
                f"tensorflow-io does not work here ({self._unavailable}). Install the versions that it goes with: "
                "pip install 'imagebeam[tfio]'.",
            )
        self._asked += 1
        with self._as_machine_fault():
            send(self._connection, {"id": self._asked, "kind": kind, "limits": dataclasses.asdict(limits)}, data)
        reply = self._receive()
        if "died" in reply:
            raise self._explain_death(kind, reply["died"])
        if reply["id"] != self._asked:
            raise DecoderProcessError("A decoder process gave the reply to another request.")
        if "error_type" in reply:
            raise ImageError(reply["error_type"], reply["message"])
        with self._as_machine_fault():
            pixels = np.frombuffer(self._connection.recv_bytes(), np.uint8).reshape(reply["shape"])
        return Decoded(PIL.Image.fromarray(pixels), reply["width"], reply["height"])

    def close(self) -> None:
        """End the process; it may be dead already."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _receive(self) -> dict[str, Any]:
        with self._as_machine_fault():
            return receive(self._connection)

    @contextlib.contextmanager
    def _as_machine_fault(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            raise DecoderProcessError(f"A decoder process ended unexpectedly ({type(error).__name__}).") from error

    @staticmethod
    def _explain_death(kind: str, how: int) -> Exception:
        if how == signal.SIGKILL:
            return DecoderProcessError("A decoder process was killed, perhaps for want of memory.")
        if how == _BEYOND_CPU_SECONDS:
            return ImageError("undecodable", f"The {kind.upper()} takes too long to decode.")
        return ImageError("undecodable", f"The {kind.upper()} is damaged: its decoder crashes at it.")


class _Pool:
    """Decoder processes, started when all others are at work; lent to one thread at a time."""

    def __init__(self) -> None:
        self._idle: queue.LifoQueue[_DecoderProcess] = queue.LifoQueue()
        self._places = threading.Semaphore(MAX_PROCESSES)

    @contextlib.contextmanager
    def lend(self) -> Iterator[_DecoderProcess]:
        """A process; one at which anything but an `ImageError` is raised is not used again."""
        with self._places:
            try:
                process = self._idle.get_nowait()
            except queue.Empty:
                process = _DecoderProcess()
            try:
                yield process
            except ImageError:
                self._idle.put(process)
                raise
            except BaseException:
                process.close()
                raise
            self._idle.put(process)

    def close(self) -> None:
        """End those that are idle."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()


_POOL = _Pool()
atexit.register(lambda: _POOL.close())


def _forget_the_parents() -> None:
    """A forked process must not speak to its parent's decoders."""
    global _POOL
    _POOL = _Pool()


os.register_at_fork(after_in_child=_forget_the_parents)


def send(connection: Connection, head: dict[str, Any], payload: bytes | None = None) -> None:
    """A JSON object, and the bytes that belong to it; nothing is pickled, since the other side may be damaged."""
    connection.send_bytes(json.dumps(head).encode())
    if payload is not None:
        connection.send_bytes(payload)


def receive(connection: Connection) -> dict[str, Any]:
    """A JSON object that `send` sent."""
    head: dict[str, Any] = json.loads(connection.recv_bytes())
    return head
