"""Objects on Google Cloud Storage, for `transforms.storage`.

Reads and uploads carry a condition on the object's generation, which makes every request safe to repeat: all of them
are, with back-off, on 408, 429, 5xx and broken connections.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import importlib
import inspect
import itertools
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

import google.auth
import google.auth.environment_vars
import google.auth.exceptions
import google.auth.transport.requests
import google_crc32c
import requests
import urllib3
from google.api_core import exceptions
from google.api_core.retry import Retry
from google.auth.credentials import AnonymousCredentials, Credentials
from google.cloud import storage
from google.cloud.storage.fileio import BlobReader
from google.cloud.storage.retry import DEFAULT_RETRY

from transforms.core.errors import ImagebeamError
from transforms.storage.base import replaced
from transforms.storage.files import FileInfo, UriRange
from transforms.storage.globs import Glob, States, has_magic

try:
    from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
except ImportError:  # google-cloud-storage 2, which Beam 2.72 asks for, has them from a package of its own.
    _resumable_media = importlib.import_module("google.resumable_media")
    DataCorruption, InvalidResponse = _resumable_media.DataCorruption, _resumable_media.InvalidResponse

READ_CHUNK = 8 << 20
"""Bytes asked for at a time when an object is read as a stream."""

_BUCKET = re.compile(r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?", re.ASCII)
"""What the service may have; the client library refuses some of the rest in errors of Python's own."""
_NAME_BYTES = 1024
_PAYER = google.auth.environment_vars.GOOGLE_CLOUD_QUOTA_PROJECT
_CREDENTIALS = google.auth.environment_vars.CREDENTIALS
_NO_PAYER = "requester pays"
"""What the service says of such a bucket where a request names no project."""
_NO_BUCKET = "bucket does not exist"
"""What the service says where not only the object is missing."""
_UPLOAD_ATTEMPTS = 5
_DENIED_WAITS = (0.3, 1.0)
"""Seconds before a listing that was denied is tried again."""
_FOLDER_PAGES = 20
_CONNECTIONS = 64
_METADATA_TIMEOUT = 2.0
_OTHER_ERRORS = (
    exceptions.GoogleAPIError,
    google.auth.exceptions.GoogleAuthError,
    requests.RequestException,
    DataCorruption,
    InvalidResponse,
)
_IN_ONE_REQUEST: dict[str, Any] = (  # google-cloud-storage 2 knows no other way.
    {"single_shot_download": True}
    if "single_shot_download" in inspect.signature(storage.Blob.download_as_bytes).parameters
    else {}
)
_FIELDS = "items(name,size,generation),prefixes,nextPageToken"


def stat(uri: str) -> FileInfo | None:
    """The object as it is now; None where there is none."""
    bucket, name = _split(uri)
    if not _may_be(name):
        return None
    with _errors_named(uri):
        blob = _bucket(bucket).get_blob(name, retry=DEFAULT_RETRY)
    return None if blob is None else FileInfo(uri, blob.size, str(blob.generation))


def is_folder(uri: str) -> bool:
    """Whether there are objects below `uri`; a bucket is a folder."""
    bucket, name = _split(uri)
    if not name:
        return True
    if not _may_be(name):
        return False
    with _errors_named(uri):
        below = _client().list_blobs(_bucket(bucket), prefix=name.rstrip("/") + "/", max_results=1, retry=DEFAULT_RETRY)
        return any(True for _ in below)


def list_glob(glob: Glob, within: UriRange) -> Iterator[FileInfo]:
    """The objects that match, in order of their uri, a page at a time."""
    bucket, name = _split(glob.folder)
    base = f"{name}/" if name else ""
    if not within.overlaps(f"gs://{bucket}/{base}"):
        return
    folder, states = "", glob.start
    with _errors_named(glob.folder):
        for blob in _list_blobs(bucket, base + glob.prefix, glob.depth == 1, within):
            above, _, last = blob.name.removeprefix(base).rpartition("/")
            if above != folder:  # Neighbours mostly share their folder.
                folder, states = above, _descend(glob, above)
            if last and glob.end in glob.step(states, last):
                yield FileInfo(f"gs://{bucket}/{blob.name}", blob.size, str(blob.generation))


def _list_blobs(bucket: str, prefix: str, one_level: bool, within: UriRange) -> Iterator[storage.Blob]:
    """Objects in order of their names; a listing that is denied in between is begun again where it was.

    The library tries everything again but denials, which come and go while rights and tokens are renewed.
    """
    start, waits = _name_in(bucket, within.start), iter(_DENIED_WAITS)
    last: str | None = None
    while True:
        blobs = _client().list_blobs(
            _bucket(bucket),
            prefix=prefix,
            # A pattern of one component asks for that level only; deeper ones list all that share the literal prefix.
            delimiter="/" if one_level else None,
            start_offset=start if last is None else last,
            end_offset=_name_in(bucket, within.end or ""),
            fields=_FIELDS,
            retry=DEFAULT_RETRY,
        )
        try:
            for blob in blobs:
                if blob.name != last:
                    last = blob.name
                    yield blob
        except (exceptions.Unauthorized, exceptions.Forbidden):
            pause = next(waits, None)
            if pause is None:
                raise
            time.sleep(pause)
        else:
            return


def list_folders(folder: str) -> Iterator[str]:
    """Folders right below `folder`, with their slash, in order; those of the first `_FOLDER_PAGES` pages."""
    bucket, name = _split(folder)
    with _errors_named(folder):
        listing = _client().list_blobs(
            _bucket(bucket),
            prefix=f"{name.rstrip('/')}/" if name else "",
            delimiter="/",
            fields=_FIELDS,
            retry=DEFAULT_RETRY,
        )
        for page in itertools.islice(listing.pages, _FOLDER_PAGES):
            for found in sorted(page.prefixes):
                yield f"gs://{bucket}/{found}"


def open_read(uri: str, version: str | None) -> BinaryIO:
    """A stream of the stored bytes that fetches `READ_CHUNK` at a time."""
    bucket, name = _split(uri)
    with _errors_named(uri, version):
        # One small request: a missing or replaced object is told here, and its size is needed for seeking.
        blob = _Blob(name, _bucket(bucket))
        blob.reload(if_generation_match=_generation(version), retry=DEFAULT_RETRY)
    return cast(BinaryIO, _Reader(uri, version, blob))


def read_bytes(uri: str, version: str | None) -> bytes:
    """The whole object in one request, its CRC32C checked."""
    bucket, name = _split(uri)
    with _errors_named(uri, version):
        blob = _Blob(name, _bucket(bucket))
        return blob.download_as_bytes(if_generation_match=_generation(version), checksum="crc32c", **_IN_ONE_REQUEST)


def publish(uri: str, source: bytes | Path, overwrite: bool) -> None:
    """Upload if no other process has changed the object. The server checks the CRC32C.

    An upload whose answer got lost finds its own bytes there when it is repeated, and is done.
    """
    bucket, name = _split(uri)
    checksum = _crc32c(source)
    generation = 0
    with _errors_named(uri):
        target = _bucket(bucket)
        for _ in range(_UPLOAD_ATTEMPTS):
            options = {"if_generation_match": generation, "checksum": "crc32c", "retry": DEFAULT_RETRY}
            try:
                if isinstance(source, Path):
                    target.blob(name).upload_from_filename(str(source), **options)
                else:
                    target.blob(name).upload_from_string(source, "application/octet-stream", **options)
            except exceptions.PreconditionFailed:
                found = target.get_blob(name, retry=DEFAULT_RETRY)
                if found is not None and found.crc32c == checksum:
                    return
                if found is not None and not overwrite:
                    raise FileExistsError(f"{uri} exists already") from None
                generation = 0 if found is None else found.generation
            else:
                return
    raise OSError(f"{uri} is being written by others at the same time: gave up after {_UPLOAD_ATTEMPTS} attempts")


def delete(uri: str) -> None:
    """Remove the object; a missing one is fine."""
    bucket, name = _split(uri)
    with _errors_named(uri), contextlib.suppress(exceptions.NotFound):
        _bucket(bucket).blob(name).delete(retry=DEFAULT_RETRY)


def modified(uri: str) -> float:
    """When the object was last written, by the service's clock."""
    bucket, name = _split(uri)
    with _errors_named(uri):
        blob = _bucket(bucket).get_blob(name, retry=DEFAULT_RETRY)
    if blob is None:
        raise FileNotFoundError(f"{uri} does not exist")
    return float(blob.updated.timestamp())


def make_dirs(uri: str) -> None:
    """Nothing: objects need no folders."""


def remove_leftovers(uri: str) -> None:
    """Nothing: an upload that was broken off shows no object."""


class _Blob(storage.Blob):  # type: ignore[misc]
    """A `Blob` whose downloads are repeated whatever part of the answer breaks off.

    The library's own retries end before it reads the body of an error's answer, so a broken "not found" would be an
    unknown error. And what breaks off a raw body has urllib3's types, which google-cloud-storage 2 does not try again.
    """

    def download_as_bytes(self, *args: Any, retry: Retry = DEFAULT_RETRY, **kwargs: Any) -> bytes:
        return cast(bytes, retry(self._download_once)(*args, **kwargs))

    def _download_once(self, *args: Any, **kwargs: Any) -> bytes:
        try:
            return cast(bytes, super().download_as_bytes(*args, retry=None, **kwargs))
        except (urllib3.exceptions.ProtocolError, urllib3.exceptions.TimeoutError) as error:
            raise requests.exceptions.ConnectionError(error) from error


class _Reader(BlobReader):  # type: ignore[misc]
    """A `BlobReader` pinned to one generation, whose errors name the object."""

    def __init__(self, uri: str, version: str | None, blob: storage.Blob) -> None:
        # Raw, or an object with `Content-Encoding: gzip` would ignore byte ranges.
        super().__init__(
            blob, chunk_size=READ_CHUNK, if_generation_match=blob.generation, raw_download=True, retry=DEFAULT_RETRY
        )
        self._uri = uri
        self._version = version or str(blob.generation)

    def read(self, size: int | None = -1) -> bytes:
        try:
            with _errors_named(self._uri, self._version):
                return cast(bytes, super().read(-1 if size is None else size))
        except FileNotFoundError as error:  # It was there when it was opened.
            raise replaced(self._uri, self._version, "gone") from error


def _split(uri: str) -> tuple[str, str]:
    """Bucket and name.

    Raises:
        ImagebeamError: for a bucket that cannot be.
    """
    bucket, _, name = uri.removeprefix("gs://").partition("/")
    if not bucket or has_magic(bucket):
        raise ImagebeamError(f"A gs:// path starts with the name of one bucket. Received: {uri!r}.")
    if not _BUCKET.fullmatch(bucket):
        raise ImagebeamError(
            f"There is no such bucket: the name of one has letters, digits, -, _ and . only, and starts and ends with "
            f"a letter or digit. Received: 'gs://{bucket}'."
        )
    return bucket, name


def _may_be(name: str) -> bool:
    """Whether an object may have the name; a pattern's braces may be longer, and a request too long for the service."""
    return 0 < len(name.encode("utf-8", "surrogatepass")) <= _NAME_BYTES


def _name_in(bucket: str, uri: str) -> str | None:
    """What follows the bucket in a uri of it; None of any other."""
    return uri.removeprefix(f"gs://{bucket}/") if uri.startswith(f"gs://{bucket}/") else None


def _generation(version: str | None) -> int | None:
    return None if version is None else int(version)


def _descend(glob: Glob, folder: str) -> States:
    states = glob.start
    for name in folder.split("/") if folder else ():
        states = glob.step(states, name)
    return states


def _crc32c(source: bytes | Path) -> str:
    """As the service writes it: base64 of the big-endian value."""
    if isinstance(source, Path):
        checksum = google_crc32c.Checksum()
        with source.open("rb") as stream:
            while chunk := stream.read(READ_CHUNK):
                checksum.update(chunk)
    else:
        checksum = google_crc32c.Checksum(source)
    return base64.b64encode(checksum.digest()).decode()


@contextlib.contextmanager
def _errors_named(uri: str, version: str | None = None) -> Iterator[None]:
    """Turns the library's errors into OSErrors that name the object."""
    try:
        yield
    except exceptions.PreconditionFailed as error:
        raise replaced(uri, version or "unknown", "another generation") from error
    except exceptions.NotFound as error:
        which = f": there is no bucket {_split(uri)[0]!r}" if _NO_BUCKET in str(error) else ""
        raise FileNotFoundError(f"{uri} does not exist{which}") from error
    except (exceptions.Unauthorized, exceptions.Forbidden, google.auth.exceptions.InvalidOperation) as error:
        _deny(uri, error)  # Where nobody is signed in the service says 401, after which the library asks to sign in.
    except exceptions.BadRequest as error:
        if _NO_PAYER not in str(error):
            raise OSError(f"{uri}: {error}") from error
        raise PermissionError(
            f"{uri} is in a bucket whose readers pay: set {_PAYER}=PROJECT in the environment, of workers too"
        ) from error
    except _OTHER_ERRORS as error:
        raise OSError(f"{uri}: {error}") from error


def _deny(uri: str, error: Exception) -> NoReturn:
    anonymous = isinstance(_client()._credentials, AnonymousCredentials)
    remedy = "no credentials were found; run `gcloud auth application-default login`" if anonymous else str(error)
    raise PermissionError(f"{uri} may not be accessed: {remedy}") from error


def _bucket(name: str) -> storage.Bucket:
    """A bucket, whose requests are billed to the project that the environment names, as requester-pays ones ask."""
    return _client().bucket(name, user_project=os.environ.get(_PAYER) or None)


def _client() -> storage.Client:
    """One client a process (its sockets must not cross a fork) and emulator."""
    return _make_client(os.getpid(), os.environ.get("STORAGE_EMULATOR_HOST"))


@functools.lru_cache(maxsize=4)
def _make_client(pid: int, emulator: str | None) -> storage.Client:
    del pid
    credentials, project = (AnonymousCredentials(), None) if emulator else _find_credentials()
    client = storage.Client(project=project or "<none>", credentials=credentials)
    # The default pool drops connections beyond ten, which every further thread would then open anew.
    adapter = requests.adapters.HTTPAdapter(pool_connections=_CONNECTIONS, pool_maxsize=_CONNECTIONS)
    for scheme in ("https://", "http://"):
        client._http.mount(scheme, adapter)
    return client


def _find_credentials() -> tuple[Credentials, str | None]:
    """The application's default credentials; anonymous ones, which read public buckets, where there are none.

    Raises:
        PermissionError: if the environment names a file of credentials that cannot be used.
    """
    try:
        credentials, project = google.auth.default(
            scopes=["https://www.googleapis.com/auth/devstorage.read_write"], request=_ask_metadata_server_once
        )
    except google.auth.exceptions.DefaultCredentialsError as error:
        if os.environ.get(_CREDENTIALS):
            raise PermissionError(f"{_CREDENTIALS} names no credentials that can be used: {error}") from error
        return AnonymousCredentials(), None
    return credentials, project


class _NoMetadataServer:
    status = 404
    headers: dict[str, str] = {}  # noqa: RUF012
    data = b""


def _ask_metadata_server_once(*args: Any, timeout: float = 0.0, **kwargs: Any) -> Any:
    """Probe for the metadata server of Google's machines without the half minute that google-auth spends elsewhere."""
    del timeout
    try:
        return google.auth.transport.requests.Request()(*args, timeout=_METADATA_TIMEOUT, **kwargs)
    except google.auth.exceptions.TransportError:
        return _NoMetadataServer()
