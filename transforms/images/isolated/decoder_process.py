"""The decoder process: ``python -m transforms.images.isolated.decoder_process SOCKET FILE FAMILY``.

It imports the decoders once and forks a child that works until a file makes it crash; then it says so and forks the
next one, which takes no time. It ends when the link does, and its child with it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import select
import signal
import socket
import sys
import time
from typing import Any

import numpy as np

from transforms.images.decode import decode_here, prepare_pillow
from transforms.images.errors import ImageError, explain
from transforms.images.isolated.decoder_pool import Family
from transforms.images.isolated.isolated_decoder import Isolated
from transforms.images.isolated.messages import Link
from transforms.images.options import ImageOptions


def main(connection: int, shared: int, family: Family) -> None:
    """Serve the link until its other end is closed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # A signal to all says nothing of an image.
        signal.signal(number, signal.SIG_IGN)
    with contextlib.closing(Link(socket.socket(fileno=connection), shared)) as link:
        try:
            _load(family)
        except Exception as error:
            link.send({"unavailable": f"{type(error).__name__}: {str(error)[:200]}"})
            return
        link.send({})
        while (how := _serve_in_a_child(link, family)) is not None:
            with contextlib.suppress(OSError):
                link.send({"died": how})


def _load(family: Family) -> None:
    """Import everything, without running an operation: TensorFlow must not have started its threads before the fork."""
    prepare_pillow()
    if family == Family.TENSORFLOW_IO:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        core_ops = importlib.import_module("tensorflow_io.python.ops").core_ops
        for name in ("io_decode_dicom_image", "io_decode_exr", "io_decode_hdr"):
            getattr(core_ops, name)  # Raises NotImplementedError where the library does not fit TensorFlow.
        importlib.import_module("pydicom")


def _serve_in_a_child(link: Link, family: Family) -> int | None:
    """The exit code of the child, or minus the signal that ended it; None if the link was closed."""
    end, held_by_child = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(EOFError, OSError):
            _serve(link, family)
        os._exit(0)
    os.close(held_by_child)
    poller = select.poll()
    poller.register(link.socket, 0)  # 0: nothing but that the other end is closed.
    poller.register(end, 0)
    ended = {descriptor for descriptor, _ in poller.poll()}
    os.close(end)
    if link.socket.fileno() in ended:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return None if link.socket.fileno() in ended else os.waitstatus_to_exitcode(status)


def _serve(link: Link, family: Family) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _go_first()
    counted = time.process_time()
    while True:
        head, data = link.receive()
        signal.setitimer(signal.ITIMER_PROF, head["cpu_seconds"])  # Ends the process: a loop in C sees no exception.
        reply, pixels = _decode(head, data, family)
        signal.setitimer(signal.ITIMER_PROF, 0)
        before, counted = counted, time.process_time()
        link.send({"id": head["id"], "seconds": counted - before, **reply}, pixels)


def _decode(head: dict[str, Any], data: bytes, family: Family) -> tuple[dict[str, Any], bytes | memoryview]:
    """The reply to one request: the shape and the pixels, or why there are none."""
    kind = head["kind"]
    memory = _Memory(head["bytes"] + 2 * len(data), head["bytes_per_pixel"])
    try:
        decode = Isolated(head["decoder"]).load()
        options = ImageOptions.from_json(head["options"])
        image = decode_here(decode, data, options, killable=True, on_size=memory.allow)
    except Exception as error:
        known = error if isinstance(error, ImageError) else _explain(data, kind, error, family)
        return {"error_type": known.error_type, "message": known.message}, b""
    about = {"width": image.width, "height": image.height, "icc_profile": image.icc_profile_ignored}
    return {"shape": image.pixels.shape, **about}, np.ascontiguousarray(image.pixels).data


def _explain(data: bytes, kind: str, error: Exception, family: Family) -> ImageError:
    if family == Family.PLAIN or isinstance(error, MemoryError):
        return explain(data, kind, error)
    # Its text may quote the header of a DICOM file, which is nobody's business.
    return ImageError("undecodable", f"The {kind} is damaged or cut short ({type(error).__name__}).")


class _Memory:
    """What one image may take beyond what this process has."""

    def __init__(self, least: int, per_pixel: int) -> None:
        self._least = least
        self._per_pixel = per_pixel
        self._pixels = -1
        self.allow(0)

    def allow(self, pixels: int) -> None:
        """Memory for an image of that size; it stays for the largest that was named."""
        if pixels > self._pixels:
            self._pixels = pixels
            _limit_memory(self._least + self._per_pixel * pixels)


def _limit_memory(most: int) -> None:
    """Let this process take `most` bytes more than it has."""
    if sys.platform != "linux":
        return
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            has = int(file.read().split()[5]) * resource.getpagesize()
    except FileNotFoundError:  # Where /proc is not mounted, memory is not bounded.
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (has + most if hard < 0 else min(has + most, hard), hard))


def _go_first() -> None:
    """Where memory is short, the kernel is to end this process and not the job."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Family(sys.argv[3]))
