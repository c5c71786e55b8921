"""WebDataset shards: tar archives, plain or gzip, in which neighbours of one name stem are a sample.

A member's stem is its path up to the first dot of its name; members without a dot, or whose name starts with one,
belong to no sample. Members of one sample stand next to each other: where a stem comes back later in the shard, that
later sample is a failure, so that keys stay unique.
"""

from __future__ import annotations

import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from transforms.core.types import Failure, Record
from transforms.images.decode import IMAGE_EXTENSIONS
from transforms.inputs.base import Cut, Place, RecordError, cut_at, failure, make_record
from transforms.inputs.columns import PEEKED_RECORDS, infer
from transforms.inputs.compression import inflate, is_gzip
from transforms.inputs.types import ReadOptions, WorkUnit

_REPEATED = "repeated_key: a sample of that name stands earlier in the shard; members of a sample must be neighbours"

Sample = dict[str, bytes]
"""Extension (what follows the stem and its dot, in lower case) -> content, in order of the members."""


def cut(stream: BinaryIO, rows_per_unit: int) -> Iterator[Cut]:
    """Walk the members, contents skipped; see `readers.ShardReader`."""
    return cut_at(_places(stream), rows_per_unit)


def read(stream: BinaryIO, unit: WorkUnit, options: ReadOptions) -> Iterator[Record | Failure]:
    """The unit's samples; see `readers.ShardReader`."""
    assert unit.shard is not None
    uri = unit.shard.file.uri
    wanted = {"json", "cls", "txt", options.image_column, options.label_column}
    wanted.update(name for name, _ in options.keep_columns)
    with _open(stream, unit.offset) as tar:
        for name, members in itertools.islice(_samples(tar), unit.count):
            key = f"{uri}#{name}"
            sample = _contents(tar, members, wanted)
            try:
                image, fields = _image(sample, options.image_column), _fields(sample)
            except RecordError as error:
                yield failure(key, uri, error)
            else:
                label = _label(sample, fields, options.label_column)
                yield make_record(key, uri, image, label, fields | sample, options)


def columns(stream: BinaryIO) -> dict[str, pa.DataType]:
    """The extensions and JSON fields of the first few samples; see `readers.ShardReader`."""
    rows: list[dict[str, Any]] = []
    with _open(stream, 0) as tar:
        for _, members in itertools.islice(_samples(tar), PEEKED_RECORDS):
            sample = _contents(tar, members, None)
            rows.append(_fields(sample) | sample)
    return infer(rows)


def check_image(names: Iterable[str], image_column: str) -> bool:
    """Whether a sample with members of these extensions has an image."""
    return _image_extension(list(names), image_column) is not None


class _StrictTarInfo(tarfile.TarInfo):
    """Says so where a header is damaged, which `tarfile` takes for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _StrictTarInfo:
        try:
            return super().fromtarfile(tarfile_)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"the header of a member is damaged: {error}") from error


def _open(stream: BinaryIO, offset: int) -> tarfile.TarFile:
    head = stream.read(2)
    stream.seek(0)
    if not head:
        raise EOFError("the shard is empty")
    source = inflate(stream) if is_gzip(head) else stream
    source.seek(offset)
    return tarfile.open(fileobj=source, mode="r:", tarinfo=_StrictTarInfo)


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """(stem, member) of the members that belong to a sample."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined] # Else the archive's whole index stays in memory.
        folder, slash, name = _text(member.name).rpartition("/")
        stem, dot, _ = name.partition(".")
        if member.isreg() and stem and dot:
            yield folder + slash + stem, member


def _text(name: str) -> str:
    """A member's name; bytes of it that are not UTF-8, as in old archives, are written out as Python does it."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, Iterator[tarfile.TarInfo]]]:
    """(stem, members) of each sample; the members are to be read before the next sample is asked for."""
    for stem, group in itertools.groupby(_members(tar), key=lambda found: found[0]):
        yield stem, (member for _, member in group)


def _places(stream: BinaryIO) -> Iterator[Place]:
    """Where each sample starts. The one before a damaged header is lost too: what is damaged may be a part of it."""
    seen: set[str] = set()
    with _open(stream, 0) as tar:
        for stem, members in _samples(tar):
            offset = next(members).offset
            for _ in members:
                pass
            yield Place(offset, _REPEATED if stem in seen else None)
            seen.add(stem)


def _contents(tar: tarfile.TarFile, members: Iterable[tarfile.TarInfo], wanted: set[str] | None) -> Sample:
    """The contents of the images and the wanted members; None wants all."""
    sample: Sample = {}
    for member in members:
        extension = member.name.rpartition("/")[2].partition(".")[2].lower()
        if extension not in sample and (wanted is None or extension in wanted or _is_image(extension)):
            source = tar.extractfile(member)
            sample[extension] = source.read() if source else b""
        else:
            sample.setdefault(extension, b"")
    return sample


def _is_image(extension: str) -> bool:
    """Whether the last suffix is an image's: "jpg", and "left.png" too."""
    return f".{extension.rpartition('.')[2]}" in IMAGE_EXTENSIONS


def _image_extension(names: list[str], image_column: str) -> str | None:
    """The named one; by the default name the first that is an image's as a whole, else by its last suffix."""
    if image_column != ReadOptions().image_column:
        return image_column if image_column in names else None
    whole = (name for name in names if f".{name}" in IMAGE_EXTENSIONS)
    return next(itertools.chain(whole, filter(_is_image, names)), None)


def _image(sample: Sample, image_column: str) -> bytes:
    extension = _image_extension(list(sample), image_column)
    if extension is None:
        raise RecordError("no_image", f"the sample has no image member; its members are {', '.join(sample)}")
    return sample[extension]


def _fields(sample: Sample) -> dict[str, Any]:
    if "json" not in sample:
        return {}
    try:
        fields = json.loads(sample["json"])
    except ValueError as error:
        raise RecordError("bad_value", f"the .json member is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise RecordError("bad_value", f"the .json member holds a {type(fields).__name__}, not an object")
    return fields


def _label(sample: Sample, fields: dict[str, Any], label_column: str) -> Any:
    """From the member of that name, else .cls, else the JSON field of that name, else .txt."""
    member = next((name for name in (label_column, "cls") if name in sample), None)
    if member is None and label_column in fields:
        return fields[label_column]
    return sample[member or "txt"].strip() if member or "txt" in sample else None
