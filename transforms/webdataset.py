"""WebDataset shards: tar archives, plain or gzip, whose consecutive members of one name stem are a sample."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from transforms.columns import Columns, as_label, missing_column
from transforms.errors import ImagebeamError
from transforms.images import IMAGE_EXTENSIONS
from transforms.readers import Cut, RecordError, ShardError
from transforms.types import ReadOptions, Record, WorkUnit

_LABEL_EXTENSIONS = ("cls", "txt")
_BLOCK = tarfile.BLOCKSIZE

Sample = tuple[str, int, list[tarfile.TarInfo]]
"""Key, offset of the first member's header, members."""


def cut(stream: BinaryIO, size: int, rows_per_unit: int) -> Iterator[Cut]:  # noqa: ARG001 - the archive ends itself
    """Walk the members, payloads skipped; see `readers.ShardReader`.

    A sample key that comes again later in the shard ends what can be read: keys would not be unique.
    """
    source = _decompressed(stream)
    seen: set[str] = set()
    index, start, offset = 0, 0, 0
    try:
        with _open(source) as tar:
            for key, sample_offset, _ in _samples(tar):
                if key in seen:
                    raise OSError(f"the sample key {key!r} comes twice, and not one after the other")
                seen.add(key)
                if index == start:
                    offset = sample_offset
                index += 1
                if index - start == rows_per_unit:
                    yield Cut(start, rows_per_unit, offset)
                    start = index
    except (tarfile.TarError, OSError, EOFError) as error:
        if index > start:
            yield Cut(start, index - start, offset)
        raise ShardError(index, str(error)) from error
    if index > start:
        yield Cut(start, index - start, offset)


def read(stream: BinaryIO, unit: WorkUnit, options: ReadOptions) -> Iterator[Record | RecordError]:
    """The unit's samples; see `readers.ShardReader`."""
    assert unit.shard is not None
    uri = unit.shard.file.uri
    columns = Columns(options.keep_columns)
    source = _decompressed(stream)
    source.seek(unit.offset)
    with _open(source) as tar:
        samples = _samples(tar)
        for _ in range(unit.count):
            sample = next(samples, None)
            if sample is None:
                raise EOFError("the archive ends before the unit does")
            key = f"{uri}#{sample[0]}"
            try:
                yield _record(key, uri, _contents(tar, sample[2]), options, columns)
            except ValueError as error:
                yield RecordError(key, "bad_record", str(error))


def check_columns(stream: BinaryIO, options: ReadOptions) -> ReadOptions:
    """Refuse an extension that the first sample does not have; see `readers.ShardReader`."""
    source = _decompressed(stream)
    try:
        with _open(source) as tar:
            sample = next(_samples(tar), None)
            if sample is None:
                return options
            contents = _contents(tar, sample[2])
    except tarfile.TarError as error:
        raise ImagebeamError(f"not a tar archive ({error})") from error
    if _image(contents, options) is None:
        raise missing_column("--image_column", options.image_column, "members of the first sample", contents)
    fields = _fields(contents)
    for name, _ in options.keep_columns:
        if name not in contents and name not in fields:
            raise missing_column("--keep_columns", name, "members and JSON fields", [*contents, *fields])
    return options


def _open(source: BinaryIO) -> tarfile.TarFile:
    return tarfile.open(fileobj=source, mode="r:")


def _decompressed(stream: BinaryIO) -> BinaryIO:
    head = stream.read(2)
    stream.seek(0)
    return cast(BinaryIO, gzip.GzipFile(fileobj=stream)) if head == b"\x1f\x8b" else stream


def _samples(tar: tarfile.TarFile) -> Iterator[Sample]:
    """Consecutive members with one stem, in order.

    Raises:
        tarfile.TarError, OSError: if the archive is damaged or ends early.
    """
    sample: Sample | None = None
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined] # else the archive's whole index stays in memory
        if not member.isfile() or PurePosixPath(member.name).name.startswith("."):
            continue
        key = _stem(member.name)
        if sample is None or sample[0] != key:
            if sample is not None:
                yield sample
            sample = (key, member.offset, [])
        sample[2].append(member)
    _check_end(tar)
    if sample is not None:
        yield sample


def _check_end(tar: tarfile.TarFile) -> None:
    """`tarfile` takes a damaged header for the end of the archive: see that zeros, or nothing, follow."""
    source = cast(BinaryIO, tar.fileobj)
    source.seek(tar.offset)
    block = source.read(_BLOCK)
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"a damaged header at byte {tar.offset:,}")


def _stem(name: str) -> str:
    """Folder and name up to the first dot: what WebDataset groups by."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _contents(tar: tarfile.TarFile, members: list[tarfile.TarInfo]) -> dict[str, bytes]:
    """Extension (what follows the stem and its dot, lower case) -> bytes.

    Raises:
        OSError: if a member is cut short.
    """
    contents = {}
    for member in members:
        extension = member.name.rpartition("/")[2].partition(".")[2].lower()
        source = cast(BinaryIO, tar.fileobj)
        source.seek(member.offset_data)
        data = source.read(member.size)
        if len(data) < member.size:
            raise EOFError(f"the archive ends inside {member.name}")
        contents[extension] = data
    return contents


def _record(key: str, uri: str, contents: dict[str, bytes], options: ReadOptions, columns: Columns) -> Record:
    data = _image(contents, options)
    if data is None:
        raise ValueError(f"the sample has no image member; its members are {', '.join(contents)}")
    fields = _fields(contents)
    label: Any = next((contents[one] for one in _LABEL_EXTENSIONS if one in contents), None)
    label = label.decode(errors="replace").strip() if label is not None else fields.get(options.label_column)
    values = {name: _kept(name, contents, fields) for name, _ in options.keep_columns}
    return Record(key, uri, data, as_label(label), columns.convert(values))


def _image(contents: dict[str, bytes], options: ReadOptions) -> bytes | None:
    """The member with the named extension; for the default name the first with an image's extension."""
    if options.image_column != ReadOptions().image_column:
        return contents.get(options.image_column)
    names = (name for name in contents if f".{name.rpartition('.')[2]}" in IMAGE_EXTENSIONS)
    return contents.get(next(names, ""))


def _fields(contents: dict[str, bytes]) -> dict[str, Any]:
    """The JSON member's fields; none where there is no such member.

    Raises:
        ValueError: if it is not a JSON object.
    """
    if "json" not in contents:
        return {}
    fields = json.loads(contents["json"])
    if not isinstance(fields, dict):
        raise ValueError("the .json member is not an object")
    return fields


def _kept(name: str, contents: dict[str, bytes], fields: dict[str, Any]) -> Any:
    return contents[name].decode(errors="replace").strip() if name in contents else fields.get(name)
