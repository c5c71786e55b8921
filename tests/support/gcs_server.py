"""A Google Cloud Storage on this machine: PyPI's emulator, with what it leaves out and Imagebeam relies on.

The emulator ignores generations and hands over a listing whole. Here conditions are held to (404, 412), listings come
in pages, requests are served at the same time, and faults can be asked for.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import http.server
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.storage import Storage

from transforms.storage import gcs as gcs_store


class Server(http.server.ThreadingHTTPServer):
    """Serves `bucket` at `url` until closed.

    Attributes:
        faults: statuses that the next requests are answered with instead, in order.
        requests: (method, path with query) of the requests so far.
        page_size: the most objects a listing returns at once.
        readers_pay: whether requests that name no project to be billed are refused.
    """

    daemon_threads = True
    bucket = "test-bucket"

    def __init__(self) -> None:
        self.storage = _Storage(use_memory_fs=True)
        buckets.create_bucket(self.bucket, self.storage)
        self.lock = threading.Lock()
        self.faults: collections.deque[int] = collections.deque()
        self.requests: list[tuple[str, str]] = []
        self.page_size = 3
        self.readers_pay = False
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, self.storage))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]!s}"


class _ConditionError(Exception):
    pass


class _Storage(Storage):  # type: ignore[misc]
    """What a `Storage` is, with the condition that the upload in progress carries."""

    condition: str | None = None

    def generation(self, bucket: str, name: str) -> str:
        try:
            return str(self.get_file_obj(bucket, name)["generation"])
        except NotFound:
            return "0"

    def create_file(self, bucket_name: str, file_name: str, *args: Any, **kwargs: Any) -> None:
        if self.condition not in (None, self.generation(bucket_name, file_name)):
            raise _ConditionError
        super().create_file(bucket_name, file_name, *args, **kwargs)


class _Handler(emulator.RequestHandler):  # type: ignore[misc]
    def do_GET(self) -> None:  # noqa: N802
        self._answer(super().do_GET)

    def do_POST(self) -> None:  # noqa: N802
        self._answer(super().do_POST)

    def do_PUT(self) -> None:  # noqa: N802
        self._answer(super().do_PUT)

    def do_DELETE(self) -> None:  # noqa: N802
        self._answer(super().do_DELETE)

    def _answer(self, serve: Callable[[], None]) -> None:
        with self.server.lock:
            self.server.requests.append((self.command, self.path))
            url = urllib.parse.urlsplit(self.path)
            query = {name: values[0] for name, values in urllib.parse.parse_qs(url.query).items()}
            if self.server.faults:
                self._refuse(self.server.faults.popleft(), drain=True)
            elif self.server.readers_pay and "userProject" not in query and "upload_id" not in query:
                self._refuse(400, "Bucket is a requester pays bucket but no user project provided.", drain=True)
            elif self.command == "GET" and url.path.endswith("/o"):
                self._list(url.path.split("/")[-2], query)
            elif self.command == "GET" and (status := self._violated(url.path, query)):
                self._refuse(status)
            else:
                self.server.storage.condition = query.get("ifGenerationMatch")
                try:
                    serve()
                except _ConditionError:
                    self._refuse(412)

    def _refuse(self, status: int, message: str = "", drain: bool = False) -> None:
        if drain:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
        response = emulator.Response(self)
        response.status = http.HTTPStatus(status)
        response.json({"error": {"code": status, "message": message or response.status.phrase}})
        response.close()

    def _violated(self, path: str, query: dict[str, str]) -> int | None:
        """The status of a read whose condition does not hold."""
        bucket, _, name = path.partition("/b/")[2].partition("/o/")
        if not name:
            return None
        current = self.server.storage.generation(urllib.parse.unquote(bucket), urllib.parse.unquote(name))
        if current == "0" or query.get("generation", current) != current:
            return 404
        return 412 if query.get("ifGenerationMatch", current) != current else None

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        response = emulator.Response(self)
        try:
            files, prefixes = self.storage.get_file_list(bucket, query.get("prefix"), query.get("delimiter"))
        except NotFound:
            response.status = http.HTTPStatus.NOT_FOUND
            response.json({"error": {"code": 404, "message": "The specified bucket does not exist."}})
        else:
            first, last = query.get("startOffset", ""), query.get("endOffset")
            files = [file for file in files if first <= file["name"] and (not last or file["name"] < last)]
            # Objects and prefixes are one sequence of names, in pages.
            found = sorted(
                [(file["name"], file) for file in files] + [(prefix, None) for prefix in prefixes], key=_name
            )
            start = int(query.get("pageToken", 0))
            end = start + min(int(query.get("maxResults", self.server.page_size)), self.server.page_size)
            items = [file for _, file in found[start:end] if file is not None]
            page = {
                "kind": "storage#objects",
                "items": items,
                "prefixes": [prefix for prefix, file in found[start:end] if file is None],
            }
            response.json(page | ({"nextPageToken": str(end)} if end < len(found) else {}))
        response.close()


def _name(found: tuple[str, Any]) -> str:
    return found[0]


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """A running `Server`."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A `Server` that everything in the test takes for Google's."""
    with serve() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        yield server
        gcs_store._client()._http.close()
        gcs_store._make_client.cache_clear()
