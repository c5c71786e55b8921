"""WebDataset shards: tar archives, plain or compressed, in which neighbours of one name are a sample.

A member's stem is its path up to the first dot of its name, as in the webdataset library; members without a dot, or
whose name starts with one, belong to no sample. A name that has further dots, as in ``photo.0001.jpg, photo.0002.jpg``,
is a sample of its own where that library would see one sample of many images: see `_starts_sample`. Where a name comes
back later in the shard, that later sample is a failure, so that keys stay unique.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from transforms.core.formats import LabelFrom
from transforms.core.text import printable, storable
from transforms.core.types import Failure, Record
from transforms.images.decode import IMAGE_EXTENSIONS
from transforms.readers.base import (
    Cut,
    LeftOut,
    Place,
    RecordError,
    SampleLimits,
    caught,
    cut_at,
    make_record,
    shard_folder,
    too_large,
)
from transforms.readers.columns import PEEKED_RECORDS, infer
from transforms.readers.compression import Inflated, buffered, content
from transforms.readers.compression import is_archive_compressed as is_compressed
from transforms.readers.folders import class_folder
from transforms.readers.options import ReadOptions
from transforms.readers.units import ShardSlice

_REPEATED = "repeated_key: a sample of that name stands earlier in the shard; members of a sample must be neighbours"

_VIEWS = (
    "several_images: a plain member follows images of one name, {}, which are one sample then; say with --image_column "
    "which one is meant, or put the plain member first"
)

_HEADER_BYTES = 1 << 20
"""Bytes of a long name or of a member's extended header at most."""

_READ_BYTES = 10 << 10
"""Read at once: headers come in blocks of 512 bytes, and an archive ends with up to twenty empty ones."""

SEARCHED_SAMPLES = 1 << 15
"""Samples whose names are looked at for an image at most, before a shard is said to have none; planning walks all."""

_NAMES_SHOWN = 10

_PEEKED_BYTES = 16 << 20
"""Bytes of a member that is looked at for its type."""

Sample = dict[str, bytes]
"""Extension (what follows the sample's name and a dot, in lower case) -> content, in order of the members."""


@dataclass(frozen=True, slots=True)
class _Member:
    """A file of a sample.

    Attributes:
        info: its header.
        stem: its path up to the first dot of its name.
        base: its path up to the last dot of its name.
        extension: what follows `stem` and its dot, in lower case.
        data: its content, if it was wanted.
        error: why it was not read although it was wanted.
    """

    info: tarfile.TarInfo
    stem: str
    base: str
    extension: str
    data: bytes = b""
    error: RecordError | None = None

    @property
    def is_image(self) -> bool:
        return _is_image(self.extension)

    @property
    def is_dotted(self) -> bool:
        """Whether the name has more than one dot."""
        return self.base != self.stem

    @property
    def end(self) -> int:
        """Where its content and padding end in the archive."""
        size = 0 if self.info.islnk() or self.info.issym() else self.info.size
        return self.info.offset_data + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def cut(stream: BinaryIO, rows_per_unit: int, options: ReadOptions, left_out: LeftOut) -> Iterator[Cut]:
    """Walk the members, contents skipped; see `base.ShardReader`."""
    source = content(stream, is_compressed)
    entry = 0 if isinstance(source, Inflated) else None
    return cut_at(_places(source, options, left_out), rows_per_unit, entry)


def read(stream: BinaryIO, part: ShardSlice, options: ReadOptions) -> Iterator[Record | Failure]:
    """The slice's samples; see `base.ShardReader`."""
    uri = part.shard.file.uri
    wanted = {"json", "cls", "txt", options.image_column, options.label_column}
    wanted.update(options.kept_from.values())
    contents = _Contents(options.max_record_bytes, frozenset(wanted))
    folder = shard_folder(part.shard, options)
    with _open(stream, part.offset) as tar:
        for members in itertools.islice(_samples(tar, options, LeftOut(), contents), part.count):
            yield caught(_record, f"{uri}#{_name(members)}", uri, members, options, folder)


def _record(key: str, uri: str, members: list[_Member], options: ReadOptions, folder: str | None) -> Record | Failure:
    named = _by_extension(members)
    extension = _image_extension(list(named), options.image_column)
    if extension is None:
        names = ", ".join([*named][:_NAMES_SHOWN])
        raise RecordError("no_image", f"the sample has no image member; its members are {names}")
    info = named[extension].info
    if not info.isreg():
        kind = "hard" if info.islnk() else "symbolic"
        raise RecordError(
            "link",
            f"the image is a {kind} link to {printable(info.linkname)}, which holds no bytes; archive the files "
            "themselves (tar --dereference --hard-dereference)",
        )
    for member in named.values():
        if member.error is not None:
            raise member.error
    sample = {name: member.data for name, member in named.items()}
    fields = _wanted_fields(sample, options)
    label = _label(sample, fields, options.label_column)
    folder = class_folder(storable(info.name), "", options.label_from) or folder
    return make_record(key, uri, sample[extension], label, fields | sample, options, folder)


def columns(stream: BinaryIO, options: ReadOptions) -> dict[str, pa.DataType]:
    """The extensions and JSON fields of the first few samples; see `base.ShardReader`.

    Where none of them has an image, that of the first one further on is added: annotations may come first.
    """
    rows: list[dict[str, Any]] = []
    contents = _Contents(_PEEKED_BYTES, None)
    with _open(stream, 0) as tar:
        for members in itertools.islice(_samples(tar, options, LeftOut(), contents), PEEKED_RECORDS):
            sample = {name: member.data for name, member in _by_extension(members).items()}
            rows.append(sample)
            with contextlib.suppress(RecordError):
                rows[-1] = _fields(sample) | sample
    found = infer(rows)
    if found and _image_extension(list(found), options.image_column) is None:
        stream.seek(0)
        with _open(stream, 0) as tar:
            for members in itertools.islice(_samples(tar, options, LeftOut()), SEARCHED_SAMPLES):
                extension = _image_extension(list(_by_extension(members)), options.image_column)
                if extension is not None:
                    return found | {extension: pa.binary()}
    return found


def sample(stream: BinaryIO, options: ReadOptions, limits: SampleLimits) -> Iterator[dict[str, Any]]:
    """The kept members and JSON fields of the first samples, which cost little; see `base.ShardReader`."""
    wanted = options.kept_from.values()
    contents = _Contents(_PEEKED_BYTES, frozenset({"json", *wanted}), images=False)
    with _open(stream, 0) as tar:
        for members in itertools.islice(_samples(tar, options, LeftOut(), contents), limits.records):
            if stream.tell() > limits.bytes:
                return
            held = {name: member.data for name, member in _by_extension(members).items() if contents.wants(member)}
            with contextlib.suppress(RecordError):
                row = _fields(held) | held
                yield {name: row[name] for name in wanted if name in row}


def check_image(names: Iterable[str], image_column: str) -> bool:
    """Whether a sample with members of these extensions has an image."""
    return _image_extension(list(names), image_column) is not None


def several_images(stream: BinaryIO) -> tuple[str, list[str]] | None:
    """Find a sample with several images among the first few: its name and the extensions. None if there is none."""
    before: list[_Member] = []
    with _open(stream, 0) as tar:
        for members in itertools.islice(_samples(tar, ReadOptions(), LeftOut()), PEEKED_RECORDS):
            images = [extension for extension, member in _by_extension(members).items() if member.is_image]
            images = _views(before, members) or images
            if len(images) > 1:
                return printable(_name(members)), images
            before = members
    return None


class _StrictTarInfo(tarfile.TarInfo):
    """Says so where a header is damaged, which `tarfile` takes for the end of the archive, and bounds its size.

    Attributes:
        damage: why this member alone is of no use; None where it is sound.
    """

    damage: str | None = None

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _StrictTarInfo:
        source: Any = tarfile_.fileobj
        block = source.read(tarfile.BLOCKSIZE)
        if block and not block.strip(b"\0") and tarfile_.offset + len(block) > tarfile.BLOCKSIZE - 1:
            tarfile_.is_ended = True  # type: ignore[attr-defined]
            raise tarfile.EOFHeaderError("end of file header")  # type: ignore[attr-defined]
        try:
            info = cls.frombuf(block, tarfile_.encoding or "utf-8", tarfile_.errors or "surrogateescape")
            info.offset = source.tell() - tarfile.BLOCKSIZE
            if times := _GNU_TIMES.match(block, 257):
                info.name = info.name.removeprefix(f"{times[1].decode()}/")
            if info.size < 0:  # It would lead back, for ever.
                raise tarfile.ReadError(f"a member has {info.size:,} bytes by its header")
            if info.type in _EXTENSION_TYPES and info.size > _HEADER_BYTES:
                raise tarfile.ReadError(f"a member has an extended header of {info.size:,} bytes")
            tarfile_.is_ended = False  # type: ignore[attr-defined]
            return info._proc_member(tarfile_)  # type: ignore[attr-defined, no-any-return]
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"the header of a member is damaged: {error}") from error

    def _proc_gnusparse_00(self, following: _StrictTarInfo, *rest: Any) -> None:
        self._map_holes("_proc_gnusparse_00", following, *rest)

    def _proc_gnusparse_01(self, following: _StrictTarInfo, *rest: Any) -> None:
        self._map_holes("_proc_gnusparse_01", following, *rest)

    def _proc_gnusparse_10(self, following: _StrictTarInfo, *rest: Any) -> None:
        self._map_holes("_proc_gnusparse_10", following, *rest)

    def _map_holes(self, name: str, following: _StrictTarInfo, *rest: Any) -> None:
        """Read where the holes of a sparse member are: its own matter, since the next header does not depend on it."""
        try:
            getattr(super(), name)(following, *rest)
        except (ValueError, LookupError, tarfile.TarError) as error:
            following.damage = f"its map of holes cannot be read ({error})"


_GNU_TIMES = re.compile(rb"ustar  \0.{80}([0-7]{11})\0[0-7]{11}\0", re.DOTALL)
"""GNU's own header where it has times, as those of incremental archives: `tarfile` takes them for a folder's name."""

_EXTENSION_TYPES = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class _Archive(tarfile.TarFile):
    """Reads on behind end marks, as archives that were put one behind the other have them."""

    tarinfo = _StrictTarInfo
    ignore_zeros = True
    is_ended = False
    """Whether the last member was whole: an end mark, or the end of the file, followed it."""


def _open(stream: BinaryIO, offset: int) -> _Archive:
    source = content(stream, is_compressed)
    if not isinstance(source, Inflated):
        source = buffered(source, _READ_BYTES)
        if not source.read(1):
            raise EOFError("the shard is empty")
    source.seek(offset)
    return _Archive(fileobj=source, mode="r")


def _members(tar: _Archive, left_out: LeftOut) -> Iterator[_Member]:
    """The members that belong to a sample; the others are counted in `left_out`.

    Raises:
        EOFError: if the archive ends without an end mark.
    """
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined] # Else the archive's whole index stays in memory.
        path = storable(info.name)
        folder, slash, name = path.rpartition("/")
        stem, dot, extension = name.partition(".")
        member = _Member(info, folder + slash + stem, path.rpartition(".")[0], extension.lower())
        if info.isdir():
            continue
        if not stem:
            left_out.add("hidden members of tars", path)
        elif not dot:
            left_out.add("members of tars without an extension", path)
        elif info.isreg() or ((info.islnk() or info.issym()) and member.is_image):
            yield member
        else:
            left_out.add("links and special files in tars", path)
    if not tar.is_ended:
        tar.is_ended = True
        raise EOFError("the archive has no end mark: it may have been cut off between two members")


@dataclass(frozen=True, slots=True)
class _Contents:
    """Which members' contents are read.

    Attributes:
        limit: bytes of one at most.
        wanted: extensions beside those of images; None for all.
        images: whether those of images are.
    """

    limit: int
    wanted: frozenset[str] | None
    images: bool = True

    def wants(self, member: _Member) -> bool:
        """Whether a member's content is read."""
        names = (member.extension, member.extension.rpartition(".")[2])
        return self.wanted is None or (self.images and member.is_image) or not self.wanted.isdisjoint(names)

    def read(self, tar: _Archive, member: _Member) -> _Member:
        """The member with its content, where it is wanted and holds any."""
        if not self.wants(member) or not member.info.isreg():
            return member
        if damage := getattr(member.info, "damage", None):
            return dataclasses.replace(member, error=RecordError("corrupt", damage))
        if member.info.size > self.limit:
            return dataclasses.replace(member, error=too_large(member.info.size, self.limit))
        source = tar.extractfile(member.info)
        return dataclasses.replace(member, data=source.read() if source else b"")


def _samples(
    tar: _Archive, options: ReadOptions, left_out: LeftOut, contents: _Contents | None = None
) -> Iterator[list[_Member]]:
    """The members of each sample, with their contents if these are asked for."""
    sample: list[_Member] = []
    try:
        for member in _members(tar, left_out):
            if sample and _starts_sample(sample, member, options):
                yield sample
                sample = []
            sample.append(member if contents is None else contents.read(tar, member))
    except (EOFError, tarfile.TarError):
        if sample and tar.is_ended:  # Else what is damaged may be a part of it.
            yield sample
        raise
    if sample:
        yield sample


def _starts_sample(sample: list[_Member], member: _Member, options: ReadOptions) -> bool:
    """Whether `member` begins the next sample rather than belonging to `sample`.

    Names with several dots are ambiguous: ``a.left.png, a.right.png`` may be two views in one sample. They are one
    where the sample has a member ``a.EXT`` as well, or where --image_column says which view is meant; else each image
    is a sample, so that none is passed over.
    """
    if member.stem != sample[0].stem or any(member.extension == one.extension for one in sample):
        return True
    if options.image_column != ReadOptions().image_column or not member.is_dotted:
        return False
    if any(not one.is_dotted or one.base == member.base for one in sample):
        return False
    is_series = len(sample) > 1 and len({one.base for one in sample}) == 1
    return any(one.is_image for one in sample) and (member.is_image or is_series)


def _views(before: list[_Member], members: list[_Member]) -> list[str]:
    """The extensions of images that turn out to be of one sample, since a plain member of their name comes last.

    Args:
        before: the sample before.
        members: of a sample.
    """
    if not before or before[0].stem != members[0].stem or all(member.is_dotted for member in members):
        return []
    images = [member.extension for member in (*before, *members) if member.is_dotted and member.is_image]
    return images if len(set(images)) > 1 else []


def _name(members: list[_Member]) -> str:
    """A sample's name: what its members have in common."""
    bases = {member.base for member in members}
    return bases.pop() if len(bases) == 1 else members[0].stem


def _by_extension(members: list[_Member]) -> dict[str, _Member]:
    """The members by what follows the sample's name, in lower case, in order."""
    start = len(_name(members)) + 1
    return {f"{member.base}.{member.info.name.rpartition('.')[2]}"[start:].lower(): member for member in members}


def _places(stream: BinaryIO, options: ReadOptions, left_out: LeftOut) -> Iterator[Place]:
    """Where each sample starts. The one before a damaged header is lost too: what is damaged may be a part of it."""
    seen: set[str] = set()
    before: list[_Member] = []
    with _open(stream, 0) as tar:
        for members in _samples(tar, options, left_out):
            name = _name(members)
            views = _views(before, members) if options.image_column == ReadOptions().image_column else []
            before = members
            named = _by_extension(members)
            chosen = _image_extension(list(named), options.image_column)
            for extension, member in named.items():
                if member.is_image and extension != chosen:
                    left_out.add("further images of samples", storable(member.info.name))
            problem = _VIEWS.format(", ".join(views)) if views else _REPEATED if name in seen else None
            yield Place(members[0].info.offset, members[-1].end, problem)
            seen.add(name)


def _is_image(extension: str) -> bool:
    """Whether the last suffix is an image's: "jpg", and "left.png" too."""
    return f".{extension.rpartition('.')[2]}" in IMAGE_EXTENSIONS


def _image_extension(names: list[str], image_column: str) -> str | None:
    """The named one; by default the first that is an image's as a whole, else by its last suffix, else so called."""
    if image_column != ReadOptions().image_column:
        return image_column if image_column in names else None
    whole = (name for name in names if f".{name}" in IMAGE_EXTENSIONS)
    called = (name for name in names if name == image_column)
    return next(itertools.chain(whole, filter(_is_image, names), called), None)


class _NoObjectError(RecordError):
    """A .json member that is JSON, and no object."""


def _fields(sample: Sample) -> dict[str, Any]:
    if "json" not in sample:
        return {}
    try:
        fields = json.loads(sample["json"])
    except ValueError as error:
        raise RecordError("bad_value", f"the .json member is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise _NoObjectError("bad_value", f"the .json member holds a {type(fields).__name__}, not an object")
    return fields


def _wanted_fields(sample: Sample, options: ReadOptions) -> dict[str, Any]:
    """The .json member's fields, where a label or a kept column may be one of them.

    Raises:
        RecordError: if it is no JSON, or no object where a column of it was asked for.
    """
    kept = any(name not in sample for name in options.kept_from.values())
    asked = kept or options.label_from == LabelFrom.COLUMN
    if not asked and (options.label_from != LabelFrom.AUTO or options.label_column in sample or "cls" in sample):
        return {}
    try:
        return _fields(sample)
    except _NoObjectError:  # Boxes of objects, say.
        if asked:
            raise
        return {}


def _label(sample: Sample, fields: dict[str, Any], label_column: str) -> Any:
    """From the member of that name, else .cls, else the JSON field of that name, else .txt."""
    member = next((name for name in (label_column, "cls") if name in sample), None)
    if member is None and label_column in fields:
        return fields[label_column]
    return sample[member or "txt"] if member or "txt" in sample else None
