"""The process that decodes with tensorflow-io: ``python -m transforms.images.decoder_process FD``.

It imports TensorFlow once and forks a child that works until a file makes it crash; then it says so and forks the next
one, which takes no time. It ends when the connection does.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from transforms.images.base import Limits
from transforms.images.errors import ImageError
from transforms.images.isolated import receive, send

CPU_SECONDS = 120
"""What one image may take: the largest that pass `Limits` need a quarter of it."""

_BYTES, _BYTES_PER_PIXEL = 2 << 30, 48
"""Memory for one image: that much, and that much for each of the pixels that are allowed."""


def main(descriptor: int) -> None:
    """Serve the connection until its other end is closed."""
    connection = Connection(descriptor)
    try:
        _load()
    except Exception as error:
        send(connection, {"unavailable": f"{type(error).__name__}: {str(error)[:200]}"})
        return
    send(connection, {})
    while (how := _serve_in_a_child(connection)) is not None:
        with contextlib.suppress(OSError):
            send(connection, {"died": how})


def _load() -> None:
    """Import everything, without running an operation: TensorFlow must not have started its threads before the fork."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    core_ops = importlib.import_module("tensorflow_io.python.ops").core_ops
    for name in ("io_decode_dicom_image", "io_decode_exr", "io_decode_hdr"):
        getattr(core_ops, name)  # Raises NotImplementedError where the library does not fit TensorFlow.
    importlib.import_module("pydicom")


def _serve_in_a_child(connection: Connection) -> int | None:
    """The signal that ended the child; None if it ended because the connection did."""
    child = os.fork()
    if not child:
        with contextlib.suppress(EOFError, OSError):
            _serve(connection)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    return os.WEXITSTATUS(status) or None


def _serve(connection: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        head = receive(connection)
        reply, pixels = _decode(head["kind"], connection.recv_bytes(), Limits(**head["limits"]))
        send(connection, {"id": head["id"], **reply}, pixels)


def _decode(kind: str, data: bytes, limits: Limits) -> tuple[dict[str, Any], bytes | None]:
    """The reply to one request: the shape and the pixels, or why there are none."""
    _limit_memory(_BYTES + _BYTES_PER_PIXEL * limits.max_pixels)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # Ends the process: a loop in C++ sees no exception.
    try:
        decoded = importlib.import_module(f"transforms.images.{kind}").decode(data, limits)
        pixels = np.asarray(decoded.image)
    except ImageError as error:
        return {"error_type": error.error_type, "message": error.message}, None
    except MemoryError:
        message = f"The {kind.upper()} asks for more memory than it may."
        return {"error_type": "too_many_pixels", "message": message}, None
    except Exception as error:
        # Its text may quote the header of a DICOM file, which is nobody's business.
        message = f"The {kind.upper()} is damaged or cut short ({type(error).__name__})."
        return {"error_type": "undecodable", "message": message}, None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {"shape": pixels.shape, "width": decoded.width, "height": decoded.height}, pixels.tobytes()


def _limit_memory(most: int) -> None:
    """Let this process take `most` bytes more than it has."""
    if sys.platform != "linux":
        return
    with open("/proc/self/statm", encoding="ascii") as file:
        has = int(file.read().split()[5]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (has + most if hard < 0 else min(has + most, hard), hard))


if __name__ == "__main__":
    main(int(sys.argv[1]))
