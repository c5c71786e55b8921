"""A lease on a run's folder, so that two launchers do not work on one output at once.

Each launcher writes a file of its own, ``OUT/lease-<token>.json``, and then lists them. One that finds another live
lease withdraws. Since each writes before it lists, two can never both stay. The file is written again every
`BEAT_SECONDS`; one that is older than `TIMEOUT_SECONDS` counts for nothing, and neither does one whose process ran on
this machine and is gone. A run's reports carry the token of its lease, so that the next launcher can remove the reports
of one that is gone. Ages are differences between two times of the storage's own clock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import getpass
import json
import os
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transforms import storage
from transforms.core.errors import ImagebeamError, JobError

BEAT_SECONDS = 15.0
TIMEOUT_SECONDS = 120.0

_ATTEMPTS = 4
_FILES = "lease-*.json"


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        host: name of the machine.
        user: name of the user.
        pid: of the launcher's process.
        process_started: what tells the process from a later one of the same number; empty where unknown.
        machine: names the running system that `pid` counts in.
        since: when the lease was taken, ISO 8601 in UTC.
    """

    host: str
    user: str
    pid: int
    process_started: str
    machine: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on {self.host}, since {self.since}"

    def is_alive(self, age: float) -> bool:
        """Whether the launcher still works, `age` seconds after it last wrote its lease."""
        if self.machine == _machine():
            return _process_started(self.pid) == self.process_started
        return age < TIMEOUT_SECONDS


class _Lease:
    """One launcher's lease, renewed by a thread until it is released."""

    def __init__(self, output: str) -> None:
        self.output = output
        self.token = new_token()
        self.uri = storage.join(output, f"lease-{self.token}.json")
        self.gone: list[str] = []
        self.lost = False
        self._content = json.dumps(dataclasses.asdict(_me())).encode()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def take(self) -> None:
        """Write the lease, or withdraw.

        Raises:
            ImagebeamError: naming who holds the folder.
            OSError: if the folder cannot be written or listed.
        """
        for attempt in range(_ATTEMPTS):
            if attempt == 0 and (holder := self._other(None)):  # The usual refusal writes nothing.
                break
            storage.publish(self.uri, self._content)
            holder = self._other(storage.modified(self.uri))
            if holder is None:
                self._thread.start()
                return
            self._remove()
            time.sleep(secrets.randbelow(1000) / 1000 * attempt)  # Two that began at once both withdrew.
        raise ImagebeamError(
            f"Another run is writing to {self.output}: {holder}. Wait for its end or stop it; a lease whose launcher "
            f"is gone ends by itself within {TIMEOUT_SECONDS:.0f} s."
        )

    def check(self) -> None:
        """Raise JobError if another launcher has taken the folder meanwhile."""
        if self.lost or not storage.exists(self.uri):
            raise JobError(
                f"The lease on {self.output} was lost: this launcher was not heard of for {TIMEOUT_SECONDS:.0f} s, and "
                f"another may have started. What is committed stays; give the same command again"
            )

    def release(self) -> None:
        """Stop renewing, and remove the file."""
        self._closed.set()
        self._thread.join(BEAT_SECONDS)
        self._remove()

    def _remove(self) -> None:
        try:
            storage.delete(self.uri)
        except OSError:  # Objects may be created here, not deleted: for other processes it ends by its age.
            _left.add(self.uri)

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            try:
                if not storage.exists(self.uri):
                    self.lost = True
                    return
                storage.publish(self.uri, self._content)
            except PermissionError:  # Objects may be created here, not replaced.
                return
            except (OSError, ImagebeamError):  # The network; the next beat tries again.
                continue

    def _other(self, now: float | None) -> Holder | None:
        """Another live holder; leases of launchers that are gone are removed on the way."""
        for info in list(storage.list_below(self.output, _FILES)):
            if info.uri == self.uri:
                continue
            if info.uri in _left:
                with contextlib.suppress(OSError):
                    storage.delete(info.uri)
                continue
            try:
                holder = Holder(**json.loads(storage.read_bytes(info.uri)))
                age = (time.time() if now is None else now) - storage.modified(info.uri)
            except FileNotFoundError:
                continue
            except (ValueError, TypeError):  # No lease, or one cut short by a full disk.
                holder, age = None, 0.0
            if holder is not None and holder.is_alive(age):
                if now is None and holder.machine != _machine():
                    continue  # Whether it is too old, only the storage's own clock can tell.
                return holder
            if holder is not None:
                with contextlib.suppress(OSError):
                    storage.delete(info.uri)
                    self.gone.append(storage.basename(info.uri).removeprefix("lease-").removesuffix(".json"))
        return None


_held: dict[str, _Lease] = {}
_left: set[str] = set()
"""Leases that this process has released and could not delete."""


def new_token() -> str:
    """16 hexadecimal digits, the first half of which say when it was made."""
    return f"{int(time.time()) & 0xFFFFFFFF:08x}{secrets.token_hex(4)}"


def token(output: str) -> str:
    """Of the lease that this process holds on `output`; a new one where it holds none."""
    return _held[output].token if output in _held else new_token()


def tokens_gone(output: str) -> tuple[str, ...]:
    """Of the leases on `output` whose launchers were found to be gone when this process took its own."""
    return tuple(_held[output].gone) if output in _held else ()


@contextlib.contextmanager
def hold(output: str) -> Iterator[None]:
    """Hold the lease on a run's folder.

    Raises:
        ImagebeamError: naming who holds it.
        OSError: if the folder cannot be written or listed.
    """
    lease = _Lease(output)
    lease.take()
    _held[output] = lease
    try:
        yield
    finally:
        del _held[output]
        lease.release()


def check(output: str) -> None:
    """Raise JobError if this process held the lease on `output` and has lost it."""
    if lease := _held.get(output):
        lease.check()


def _me() -> Holder:
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # A container's user without a name.
        user = f"user {os.getuid()}" if hasattr(os, "getuid") else "unknown"
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Holder(socket.gethostname(), user, os.getpid(), _process_started(os.getpid()) or "", _machine(), now)


def _machine() -> str:
    """Names the running system and the namespace that its process numbers count in."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    return f"{socket.gethostname()} {uuid.getnode():x}"


def _process_started(pid: int) -> str | None:
    """When a process of this system was started, in the system's own terms; None where there is none any more."""
    if not os.path.isdir("/proc/self"):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return ""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else fields[18]
