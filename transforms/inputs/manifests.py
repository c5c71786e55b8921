"""Cut manifests, which list image files, into work units."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, cast

from transforms import storage
from transforms.core.errors import StopError
from transforms.core.formats import InputFormat
from transforms.core.types import Failure, Unread
from transforms.inputs.listed_names import why_no_file
from transforms.inputs.manifest_rows import KEY_COLUMN, Row, label_names, manifest_columns, table_rows
from transforms.inputs.unique_keys import SeenKeys
from transforms.readers.allowed_paths import reach
from transforms.readers.base import RecordError, bounded, caught, failure
from transforms.readers.columns import NamedLabels, as_text, label_and_extras
from transforms.readers.folders import class_folder
from transforms.readers.options import ReadOptions
from transforms.readers.read import judge
from transforms.readers.units import ListUnit, RecordRef, Shard
from transforms.storage.files import FileInfo
from transforms.storage.resuming import ResumingStream


def cut_manifest(
    manifest: Shard, rows_per_unit: int, options: ReadOptions, seen: SeenKeys | None = None
) -> Iterator[ListUnit]:
    """A manifest's rows as work units, streamed.

    Relative uris are relative to the manifest's folder. The key is the column `key` where there is one and it is
    filled, else the manifest's uri and the row's number. Rows that cannot be understood, or whose key an earlier row
    has, are failures in the units' lists.

    Args:
        manifest: to cut.
        rows_per_unit: records in a unit at most.
        options: which columns hold what.
        seen: keys of manifests before this one, to which its own are added.

    Raises:
        MachineError: if too many reads in a row failed, and not for what the files hold.
    """
    refs = _refs(manifest.file, options, SeenKeys() if seen is None else seen)
    start = 0
    while chunk := tuple(itertools.islice(refs, rows_per_unit)):
        yield ListUnit(InputFormat.MANIFEST, chunk, start)
        start += len(chunk)


def has_keys(manifest: FileInfo, options: ReadOptions) -> bool:
    """Whether a manifest names its rows' keys itself; one that cannot be looked at may."""
    try:
        return KEY_COLUMN in manifest_columns(manifest, options)
    except Exception:
        return True


def _refs(manifest: FileInfo, options: ReadOptions, seen: SeenKeys) -> Iterator[RecordRef | Failure]:
    """A manifest's rows as records, or as the failures they are."""
    folder = storage.parent(manifest.uri)
    index = -1
    source: ResumingStream | None = None
    try:
        with ResumingStream(manifest.uri, manifest.version) as source:
            stream = cast(BinaryIO, source)
            names = label_names(stream, manifest.uri, options)
            for index, row in enumerate(table_rows(stream, manifest.uri, options)):
                key = f"{manifest.uri}#{index}"
                ref = caught(_ref, key, manifest.uri, row, folder, options, names)
                if isinstance(ref, RecordRef) and not seen.add(ref.key):
                    ref = failure(key, manifest.uri, "repeated_key: an earlier row has the same key")
                yield ref
    except StopError:
        raise
    except Exception as error:  # The rest cannot be read.
        reason, retryable = judge(source, error)
        rest = failure(f"{manifest.uri}#{index + 1}", manifest.uri, reason)
        read = 0 if source is None else min(source.tell(), manifest.size)
        left = manifest.size - read
        records = round(left * (index + 1) / read) if read else None
        unread = Unread(manifest.uri, reason, left, records)
        yield dataclasses.replace(rest, retryable=retryable, unread=unread)


def _ref(key: str, manifest: str, row: Row, folder: str, options: ReadOptions, names: NamedLabels) -> RecordRef:
    del manifest
    if isinstance(row, RecordError):
        raise row
    named = _text_in(row, options.uri_column).strip()  # "a.jpg, cat": a blank beside a comma means nothing.
    if not named:
        raise RecordError("bad_value", f"the row has no {options.uri_column}")
    uri = reach(named, folder, options)
    try:
        stored = names.label(row.get(options.label_column))
        label, extras = label_and_extras(stored, row, uri, _class(uri, folder, options), options)
        label = bounded(label)
    except ValueError as error:
        raise RecordError("bad_value", str(error)) from error
    own_key = _text_in(row, KEY_COLUMN)
    file = _look_at(uri)
    if file is None and storage.is_local(uri) and (why := why_no_file(named, uri)):
        raise why
    return RecordRef(
        own_key or key,
        uri,
        None if file is None else file.version,
        label,
        tuple(extras.items()),
        None if file is None else file.size,
    )


def _text_in(row: Mapping[str, Any], column: str) -> str:
    """The text of a key or of a file's name, "" for none; numbers may be either.

    Raises:
        RecordError: for any other value.
    """
    value = row.get(column)
    if isinstance(value, bool | list | dict):
        raise RecordError("bad_value", f"{column} holds {value!r:.80}, which is no text")
    text = as_text(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RecordError(
            "bad_value", f"{column} is not Unicode text; save the file as UTF-8 (Excel: CSV UTF-8) ({error})"
        ) from error
    return text


def _look_at(uri: str) -> FileInfo | None:
    """A local file as it is now; None where it is not there. Of a remote one asking would cost a request each."""
    try:
        return storage.stat(uri) if storage.is_local(uri) else None
    except (OSError, ValueError):  # Of a name that cannot be one, say: whoever reads it will tell.
        return None


def _class(uri: str, folder: str, options: ReadOptions) -> str | None:
    """The folder that tells the class of a row's file, where folders are asked for it."""
    if not options.label_from.is_folder:
        return None
    return class_folder(uri, folder if uri.startswith(f"{folder}/") else None, options.label_from)
