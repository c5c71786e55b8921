"""A proxy on this machine between a job and the storage emulator, which spoils every so many requests."""

from __future__ import annotations

import collections
import contextlib
import http.client
import http.server
import itertools
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import Any

KINDS = ("unavailable", "refused", "answer lost", "cut short", "slow")
"""503 · connection reset before the request is passed on · reset after it was · reset in the middle of the answer ·
a second's pause in it."""


class FaultProxy(http.server.ThreadingHTTPServer):
    """Passes requests on to `upstream`; every `every`-th one meets the next of `kinds`, from the first on again.

    Attributes:
        requests: how many came.
        faults: kind -> how many there were.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, upstream: str, every: int, kinds: Sequence[str] = KINDS) -> None:
        self.upstream = urllib.parse.urlsplit(upstream).netloc
        self.every = every
        self.requests = 0
        self.faults: collections.Counter[str] = collections.Counter()
        self._kinds = itertools.cycle(kinds)
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def netloc(self) -> str:
        return f"127.0.0.1:{self.server_address[1]!s}"

    def next_fault(self) -> str | None:
        with self._lock:
            self.requests += 1
            if self.requests % self.every:
                return None
            kind = next(self._kinds)
            self.faults[kind] += 1
            return kind

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def log_message(self, *args: object) -> None:
        pass

    def _pass_on(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.next_fault()
        if fault == "unavailable":
            self._answer(503, [("Content-Type", "text/plain")], b"try again")
            return
        if fault == "refused":
            self._reset()
            return
        status, headers, body = self._ask(content)
        if fault == "answer lost":
            self._reset()
        else:
            self._answer(status, headers, body, fault)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _pass_on  # noqa: N815

    def _ask(self, content: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        with contextlib.closing(connection):
            connection.request(self.command, self.path, content, dict(self.headers))
            response = connection.getresponse()
            body = response.read()
            # Links to the objects' bytes and to started uploads must come this way too.
            here, there = self.server.netloc, self.server.upstream
            if "json" in (response.headers["Content-Type"] or ""):
                body = body.replace(there.encode(), here.encode())
            skipped = ("content-length", "transfer-encoding", "connection")
            headers = [(k, v.replace(there, here)) for k, v in response.getheaders() if k.lower() not in skipped]
            return response.status, headers, body

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, fault: str | None = None) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        half = len(body) // 2
        self.wfile.write(body[:half])
        if fault == "cut short":
            self._reset()
            return
        if fault == "slow":
            time.sleep(1)
        self.wfile.write(body[half:])

    def _reset(self) -> None:
        """Close so that the client gets a reset, not an end."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True


@contextlib.contextmanager
def spoil(upstream: str, every: int, kinds: Sequence[str] = KINDS) -> Iterator[FaultProxy]:
    """A running `FaultProxy`."""
    with FaultProxy(upstream, every, kinds) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
