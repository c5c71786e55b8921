"""Group image files into work units, with their labels and columns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from transforms.core.formats import InputFormat
from transforms.core.text import storable
from transforms.readers.columns import choose_label, convert
from transforms.readers.folders import class_folder, partitions
from transforms.readers.options import ReadOptions
from transforms.readers.units import ListUnit, RecordRef, Shard
from transforms.storage.files import FileInfo


def files_unit(files: Iterable[Shard], start: int, options: ReadOptions) -> ListUnit:
    """Image files as one work unit; the key is the uri, the label by default that of the first folder of the input."""
    refs = tuple(_file_ref(file.file, file.root, options) for file in files)
    return ListUnit(InputFormat.FILES, refs, start)


def unit_end(files: Sequence[FileInfo], rows_per_unit: int) -> int:
    """How many of `files` make up the next work unit, where there are more than `rows_per_unit`.

    The unit ends, in the second half of what it may hold, after the file whose name has the lowest digest. So where a
    unit ends depends on the files about there and not on how many came before: a file that is added or removed
    changes its own unit and perhaps a few next to it, and all later ones are what they were. (Content-defined
    chunking, as backup programs cut files.)
    """
    places = range((rows_per_unit + 1) // 2, rows_per_unit + 1)
    return min(places, key=lambda place: _digest(files[place - 1].uri))


def _digest(uri: str) -> bytes:
    """Of the folder's and the file's name alone: a copy of the input elsewhere is cut at the same places."""
    name = "/".join(uri.rsplit("/", 2)[-2:])
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _file_ref(file: FileInfo, root: str | None, options: ReadOptions) -> RecordRef:
    uri = storable(file.uri)
    label = choose_label(None, uri, class_folder(uri, root, options.label_from), options)
    extras = tuple(convert(partitions(uri), options).items())
    return RecordRef(uri, file.uri, file.version, label, extras, size=file.size)
