"""Inspect an input before a run: its formats, columns and types."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, TypeVar, cast

import pyarrow as pa

from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.core.formats import InputFormat, LabelFrom
from transforms.core.text import printable
from transforms.inputs.discover import detect_format, list_inputs, why_no_input
from transforms.inputs.manifest_rows import manifest_columns, sample_manifest
from transforms.inputs.table_formats import refuse_removed_files
from transforms.readers import webdataset
from transforms.readers.base import SampleLimits, explain
from transforms.readers.column_types import declaration, fit, is_list_type, is_open, remedy, type_of, widen
from transforms.readers.columns import as_labels, check_image_column, check_other_columns, describe, how_to_type
from transforms.readers.folders import partitions
from transforms.readers.options import ReadOptions
from transforms.readers.read import reader
from transforms.readers.units import Shard
from transforms.storage.resuming import ResumingStream

T = TypeVar("T")

LABEL_LISTS = "labels"
"""The output's column of lists of labels: `train --multi_label --label_column labels` reads it."""

_LOOKED_AT = 20
"""Inputs that are looked at, at most, for the columns of their formats before a run."""

_LISTED = 10_000
"""Inputs whose names are looked at, so that a file of another kind, or of a table, is found before the run."""

_SAMPLED_SHARDS = 16
"""Inputs, spread over those listed, that are looked at for the types of kept columns."""

_SAMPLED_RECORDS = 5_000
"""Records of all of them together."""

_LOCAL_BYTES, _REMOTE_BYTES = 1 << 30, 4 << 20
"""Of each of them: passing over a record costs nothing on a local disk, and a request elsewhere."""


def inspect_input(
    patterns: Sequence[str],
    input_format: InputFormat | None,
    options: ReadOptions,
    label_lists: str | None = None,
) -> ReadOptions:
    """Look at the input before a run: every pattern matches, and the columns asked for are there.

    Args:
        patterns: see `list_inputs`.
        input_format: likewise.
        options: which columns hold what.
        label_lists: where the label column holds lists, the kept column that gets them; None where none should.

    Returns:
        The options with the types of the kept columns filled in.

    Raises:
        ImagebeamError: naming the pattern without matches, the columns there are, the file that pyarrow cannot read,
            the kept column whose values no type holds, or the table of which other rows would be read than it has.
    """
    inputs = list_inputs(patterns, input_format, follow_links=options.follow_links)
    many = input_format in (None, InputFormat.PARQUET, InputFormat.MANIFEST) or _open_columns(options)
    listed = list(itertools.islice(inputs, _LISTED if many else _LOOKED_AT))
    if input_format is None:
        _refuse_other_kinds(listed)
    if found := [shard.file.uri for shard in listed if _is_parquet(shard)]:
        named = {shard.file.uri for shard in listed}  # Files, which have no folder to be looked at, nor a stat to cost.
        unlisted = [pattern for pattern in patterns if storage.absolute(pattern) not in named]
        roots = {root for pattern in unlisted for root in storage.roots(pattern)}
        refuse_removed_files(sorted(roots, key=len, reverse=True), found)
    seen: set[InputFormat] = set()
    for shard in listed[:_LOOKED_AT]:
        others = {one.format for one in listed} - {shard.format} if input_format is None else set()
        if (
            shard.format != InputFormat.FILES
            and shard.format not in seen
            and (schema := _look_at(shard, options, others))
        ):
            seen.add(shard.format)
            options = _keep_label_lists(options, schema, label_lists)
    if {shard.format for shard in listed[:_LOOKED_AT]} == {InputFormat.FILES}:
        _refuse_columns_of_files(options, listed)
    return _tell_types(options, listed)


def _is_parquet(shard: Shard) -> bool:
    return shard.format == InputFormat.PARQUET or (
        shard.format == InputFormat.MANIFEST and detect_format(shard.file.uri) == InputFormat.PARQUET
    )


def _refuse_columns_of_files(options: ReadOptions, files: Iterable[Shard]) -> None:
    """Refuse kept columns that no file's folders hold.

    Raises:
        ImagebeamError: naming them.
    """
    missing = list(options.kept_from.values())
    for file in files:
        missing = [name for name in missing if name not in partitions(file.file.uri)]
    if missing:
        raise ImagebeamError(
            f"Image files have no columns to keep. Received: {options.kept_by} {', '.join(missing)}. Name the files in "
            f"a manifest."
        )


def _keep_label_lists(options: ReadOptions, schema: Mapping[str, pa.DataType], name: str | None) -> ReadOptions:
    """The options, lists of labels kept under `name`, unless the user keeps them or something of that name."""
    column = options.label_column
    is_list = is_list_type(schema.get(column, pa.null())) and options.label_from in (LabelFrom.AUTO, LabelFrom.COLUMN)
    taken = {kept.casefold() for kept in options.kept_from}
    if name is None or not is_list or column in options.kept_from.values() or name in taken:
        return options
    return dataclasses.replace(
        options,
        keep_columns=(*options.keep_columns, (name, pa.list_(pa.string()))),
        renamed=(*options.renamed, (name, column)),
    )


def _refuse_other_kinds(inputs: Iterable[Shard]) -> None:
    """Refuse files that were named or matched, whose names tell nothing, and whose first bytes tell no image.

    Raises:
        ImagebeamError: naming the file, what it is, and the flag to read it with.
    """
    unnamed = (shard.file for shard in inputs if detect_format(shard.file.uri) is None)
    for file in itertools.islice(unnamed, _LOOKED_AT):
        if why := why_no_input(file):
            raise ImagebeamError(why)


def _refuse_choice(shard: Shard, options: ReadOptions) -> None:
    """Refuse a tar whose samples have several images unless --image_column names one.

    Raises:
        ImagebeamError: naming them.
    """
    if options.image_column != ReadOptions().image_column:
        return
    with ResumingStream(shard.file.uri, shard.file.version) as source:
        found = webdataset.several_images(cast(BinaryIO, source))
    if found is not None:
        name, images = found
        choice = " or ".join(f"--image_column {image}" for image in images)
        raise ImagebeamError(f"Sample {name!r} has {len(images)} images: {', '.join(images)}. Pass {choice}.")


def _columns(shard: Shard, options: ReadOptions) -> dict[str, pa.DataType]:
    """The columns of a shard's first records, or of its schema, and of its folders."""
    if shard.format == InputFormat.MANIFEST:
        schema = manifest_columns(shard.file, options)
    else:
        with ResumingStream(shard.file.uri, shard.file.version) as source:
            schema = reader(shard.format).columns(cast(BinaryIO, source), options)
    return {**dict.fromkeys(partitions(shard.file.uri), pa.string()), **schema} if schema else {}


def _look_at(shard: Shard, options: ReadOptions, others: Collection[InputFormat]) -> Mapping[str, pa.DataType]:
    """The checked columns of a shard; none where it is empty or damaged, which is not a mistake of the user's.

    Args:
        shard: to look at.
        options: which columns are asked for.
        others: formats of other inputs, which a user may have meant alone: img2dataset puts tables beside its tars.
    """
    try:
        schema = _columns(shard, options)
        if not schema:
            return {}
        if shard.format == InputFormat.WEBDATASET:
            if not webdataset.check_image(schema, options.image_column):
                raise ImagebeamError(
                    f"{describe(schema)}. None of the first {webdataset.SEARCHED_SAMPLES:,} samples has the image. "
                    f"Received: --image_column {options.image_column!r}. Pass the column that holds images; by default "
                    "they are told by endings such as jpg."
                )
            _refuse_choice(shard, options)
        elif shard.format != InputFormat.MANIFEST:
            check_image_column(options.image_column, schema, may_name_files=shard.format == InputFormat.PARQUET)
        if not schema.keys() >= set(options.kept_from.values()):  # Later records may have more columns.
            found = set().union(*_sample(shard, options, _SAMPLED_RECORDS))
            schema = {**dict.fromkeys(found, pa.null()), **schema}
        check_other_columns(options, schema)
    except ImagebeamError as error:
        rest = f" To read the other files alone, pass --input_format {' or '.join(sorted(others))}." if others else ""
        raise ImagebeamError(f"{shard.file.uri} ({shard.format}): {error}{rest}") from error
    except pa.ArrowNotImplementedError as error:
        raise ImagebeamError(f"{shard.file.uri} ({shard.format}): {_reason(error)}.") from error
    except Exception:
        return {}
    return schema


def _reason(error: Exception) -> str:
    """Why a file cannot be read, in the words of its failure."""
    return printable(explain(error).partition(": ")[2]).rstrip(".")


# The types of kept columns.


@dataclasses.dataclass
class _Seen:
    """What was seen of a kept column.

    Attributes:
        name: in the output.
        source: in the input.
        kept_by: the flag that names it.
        kinds: the types that were seen, each with where.
        values: all of them that were seen.
        unread: the files that could not be looked at, each with the reason.
    """

    name: str
    source: str
    kept_by: str
    kinds: dict[pa.DataType, str] = dataclasses.field(default_factory=dict)
    values: list[tuple[Any, str]] = dataclasses.field(default_factory=list)
    unread: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, value: Any, uri: str) -> None:
        """Take a value into account.

        Raises:
            ImagebeamError: for one that has no type.
        """
        try:
            self.kinds.setdefault(type_of(value), f"{value!r:.40} in {uri}")
        except ValueError as error:
            raise self._refusal(f"{value!r:.80} in {uri}: {error}", "string") from error
        self.values.append((value, uri))

    def kind(self) -> pa.DataType:
        """The type that fits all values seen.

        Raises:
            ImagebeamError: naming two types that nothing holds, that no value was seen, or the file that could not be
                read, and the flag to pass.
        """
        kind = pa.null()
        for other, where in self.kinds.items():
            try:
                kind = widen(kind, other)
            except ValueError:
                before = next(text for one, text in self.kinds.items() if not _are_alike(one, other))
                raise self._refusal(f"{kind} ({before}) and {other} ({where})", "string") from None
        if is_open(kind):
            why = "The records that were looked at do not tell the type of a kept column."
            for uri, reason in itertools.islice(self.unread.items(), 1):
                why = f"The type of a kept column is not known, since {uri} could not be read: {reason}."
            raise ImagebeamError(
                f"{why} Received: {self.kept_by} {self.name}. "
                f"{how_to_type(self.kept_by, self.name, self.source, declaration(kind))}."
            )
        for value, uri in self.values:
            try:
                fit(value, kind, declared=False)
            except ValueError:
                raise self._refusal(f"{kind}, and {value!r:.80} in {uri}", remedy(kind, value)) from None
        return kind

    def _refusal(self, what: str, kind: str) -> ImagebeamError:
        return ImagebeamError(
            f"The kept column {self.name!r} holds {what}, which no one type does. "
            f"{how_to_type(self.kept_by, self.name, self.source, kind)}."
        )


def _are_alike(one: pa.DataType, other: pa.DataType) -> bool:
    with contextlib.suppress(ValueError):
        widen(one, other)
        return True
    return False


def _open_columns(options: ReadOptions) -> dict[str, str]:
    """The kept columns without a declared type: output name -> input name."""
    sources = options.kept_from
    return {name: sources[name] for name, kind in options.keep_columns if pa.types.is_null(kind)}


def _tell_types(options: ReadOptions, listed: Sequence[Shard]) -> ReadOptions:
    """The options, kept columns whose type was left open with the one that holds the values of a sample.

    Raises:
        ImagebeamError: where there is none.
    """
    columns = [_Seen(name, source, options.kept_by) for name, source in _open_columns(options).items()]
    if not columns:
        return options
    shards = [shard for found in _by_format(listed).values() for shard in _spread(found, _SAMPLED_SHARDS)]
    for shard in shards:
        for column in columns:
            if column.source in partitions(shard.file.uri):
                column.kinds.setdefault(pa.string(), f"in the folders of {shard.file.uri}")
        if shard.format != InputFormat.FILES:
            _see(shard, columns, options, max(1, _SAMPLED_RECORDS // len(shards)))
    kinds = {column.name: column.kind() for column in columns}
    kept = tuple((name, kinds.get(name, kind)) for name, kind in options.keep_columns)
    return dataclasses.replace(options, keep_columns=kept, inferred=tuple(kinds))


def _see(shard: Shard, columns: Iterable[_Seen], options: ReadOptions, records: int) -> None:
    """Record the types of a shard's columns, or why it could not be read, which its failure says too."""
    uri = shard.file.uri
    schema: Mapping[str, pa.DataType] = {}
    rows = 0
    try:
        for row in _sample(shard, options, records):
            rows += 1
            for column in columns:
                column.add(_as_read(row.get(column.source), column.source, options), uri)
        schema = {} if rows else _columns(shard, options)
    except ImagebeamError:
        raise
    except Exception as error:
        for column in columns:
            column.unread[uri] = _reason(error)
        return
    for column in columns:
        kind = schema.get(column.source, pa.null())
        if column.source == options.label_column and is_list_type(kind):
            kind = pa.list_(pa.string())
        column.kinds.setdefault(kind, f"in {uri}")


def _as_read(value: Any, source: str, options: ReadOptions) -> Any:
    """A value as readers give it: labels are text."""
    return as_labels(value) if source == options.label_column and isinstance(value, list) else value


def _sample(shard: Shard, options: ReadOptions, records: int) -> Iterator[Mapping[str, Any]]:
    """Some records of a shard without a schema; none of others."""
    limits = SampleLimits(records, _LOCAL_BYTES if storage.is_local(shard.file.uri) else _REMOTE_BYTES)
    if shard.format == InputFormat.MANIFEST:
        yield from sample_manifest(shard.file, options, limits)
        return
    with ResumingStream(shard.file.uri, shard.file.version) as source:
        yield from reader(shard.format).sample(cast(BinaryIO, source), options, limits)


def _by_format(shards: Iterable[Shard]) -> dict[InputFormat, list[Shard]]:
    found: dict[InputFormat, list[Shard]] = {}
    for shard in shards:
        found.setdefault(shard.format, []).append(shard)
    return found


def _spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[number * (len(items) - 1) // (count - 1)] for number in range(count)]
