"""A stand-in for WebHDFS on this machine: what Beam's file system asks of one, as Hadoop's documentation answers it.

https://hadoop.apache.org/docs/stable/hadoop-project-dist/hadoop-hdfs/WebHDFS.html
"""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any


class WebHdfs(http.server.ThreadingHTTPServer):
    """Files in memory; folders are those that files lie in, or that were made.

    Attributes:
        files: path -> bytes.
        folders: paths that were made.
        written: path -> seconds since 1970.
    """

    daemon_threads = True

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.folders = {"/"}
        self.written: dict[str, float] = {}
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def is_folder(self, path: str) -> bool:
        return path in self.folders or any(name.startswith(path.rstrip("/") + "/") for name in self.files)

    def status(self, path: str, suffix: str = "") -> dict[str, Any] | None:
        if path in self.files:
            modified = int(self.written.get(path, 1e9) * 1000)
            return {"pathSuffix": suffix, "type": "FILE", "length": len(self.files[path]), "modificationTime": modified}
        if self.is_folder(path):
            return {"pathSuffix": suffix, "type": "DIRECTORY", "length": 0, "modificationTime": 10**12}
        return None

    def children(self, path: str) -> list[dict[str, Any] | None]:
        base = path.rstrip("/") + "/"
        names = {
            name.removeprefix(base).partition("/")[0] for name in [*self.files, *self.folders] if name.startswith(base)
        }
        return [self.status(base + name, name) for name in sorted(names - {""})]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebHdfs

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path, query = self._asked()
        status = self.server.status(path)
        if status is None:
            self._missing(path)
        elif query["op"] == "GETFILESTATUS":
            self._answer({"FileStatus": status})
        elif query["op"] == "LISTSTATUS":
            found = self.server.children(path) if status["type"] == "DIRECTORY" else [status]
            self._answer({"FileStatuses": {"FileStatus": found}})
        elif query["op"] == "OPEN":
            start = int(query.get("offset", 0))
            length = int(query.get("length", len(self.server.files[path])))
            self._send(200, self.server.files[path][start : start + length])
        else:
            self._send(400, b"{}")

    def do_PUT(self) -> None:
        path, query = self._asked()
        data = self._body()
        if query["op"] == "MKDIRS":
            self.server.folders.add(path)
            self._answer({"boolean": True})
        elif query["op"] == "CREATE" and "data" not in query:
            self.send_response(307)
            self.send_header("Location", f"http://127.0.0.1:{self.server.port}{self.path}&data=true")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif query["op"] == "CREATE":
            self.server.files[path] = data
            self.server.written[path] = time.time()
            self._send(201, b"")
        elif query["op"] == "RENAME":
            self.server.files[query["destination"]] = self.server.files.pop(path)
            self._answer({"boolean": True})
        else:
            self._send(400, b"{}")

    def do_DELETE(self) -> None:
        path, _ = self._asked()
        gone = [name for name in self.server.files if name == path or name.startswith(path.rstrip("/") + "/")]
        for name in gone:
            del self.server.files[name]
        self._answer({"boolean": bool(gone)})

    def _asked(self) -> tuple[str, dict[str, str]]:
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path).removeprefix("/webhdfs/v1") or "/"
        return path, {name: values[0] for name, values in urllib.parse.parse_qs(url.query).items()}

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while length := int(self.rfile.readline(), 16):
            data += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _missing(self, path: str) -> None:
        error = {"exception": "FileNotFoundException", "message": f"File does not exist: {path}"}
        self._send(404, json.dumps({"RemoteException": error}).encode())

    def _answer(self, content: dict[str, Any]) -> None:
        self._send(200, json.dumps(content).encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def serve_webhdfs() -> Iterator[WebHdfs]:
    """A server that is closed at the end of the block."""
    with WebHdfs() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
