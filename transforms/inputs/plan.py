"""Input files -> work units; the input looked at before a run."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pyarrow as pa

from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.core.formats import InputFormat
from transforms.inputs import webdataset
from transforms.inputs.base import explain
from transforms.inputs.columns import check_image_column, check_other_columns, describe, resolve_types
from transforms.inputs.discover import list_inputs
from transforms.inputs.manifests import cut_manifest, files_unit, manifest_columns, unit_end
from transforms.inputs.read import reader
from transforms.inputs.shard_index import CutMemory
from transforms.inputs.types import ListingPart, ReadOptions, Shard, WorkUnit
from transforms.storage.files import FileInfo

LISTED_ALONE = 200_000
"""Images that one worker lists before it shares the rest out: seconds of work, and few inputs are larger."""

LISTING_PARTS = 256
"""Parts of the rest at most."""

_LOOKED_AT = 20
"""Inputs that are looked at, at most, for the columns of their formats before a run."""


def plan(
    patterns: Sequence[str],
    input_format: InputFormat | None,
    rows_per_unit: int,
    left_out: Counter[str] | None = None,
) -> Iterator[Shard | WorkUnit]:
    """What is to be done, streamed: work units of image files, and shards and manifests still to be cut.

    Raises:
        ImagebeamError: as `list_inputs` does.
    """
    return _gather_files(list_inputs(patterns, input_format, left_out), rows_per_unit)


def plan_in_parts(
    patterns: Sequence[str],
    input_format: InputFormat | None,
    rows_per_unit: int,
    left_out: Counter[str] | None = None,
) -> Iterator[Shard | WorkUnit | ListingPart]:
    """`plan`, of a long listing of images its beginning alone: the rest is left to others, a `ListingPart` each.

    Shards do not count: a million of them are listed in seconds, and each is to be cut by whoever has time.

    Raises:
        ImagebeamError: as `list_inputs` does.
        OSError: if a folder cannot be listed.
    """
    inputs = list_inputs(patterns, input_format, left_out)
    images = 0

    def beginning() -> Iterator[Shard]:
        nonlocal images
        while images < LISTED_ALONE and (shard := next(inputs, None)):
            images += shard.format == InputFormat.FILES
            yield shard

    yield from _gather_files(beginning(), rows_per_unit)
    if rest := next(inputs, None):
        for within in storage.split_listing(patterns, rest.file.uri, LISTING_PARTS):
            yield ListingPart(tuple(patterns), input_format, within)


def plan_part(
    part: ListingPart, rows_per_unit: int, left_out: Counter[str] | None = None
) -> Iterator[Shard | WorkUnit]:
    """`plan` of a part of the listing."""
    return _gather_files(list_inputs(part.patterns, part.input_format, left_out, part.within), rows_per_unit)


def _gather_files(inputs: Iterable[Shard], rows_per_unit: int) -> Iterator[Shard | WorkUnit]:
    images: list[FileInfo] = []
    start = 0
    for shard in inputs:
        if shard.format != InputFormat.FILES:
            yield shard
            continue
        images.append(shard.file)
        if len(images) > rows_per_unit:
            end = unit_end(images, rows_per_unit)
            yield files_unit(images[:end], start)
            start += end
            del images[:end]
    if images:
        yield files_unit(images, start)


def cut_shard(
    item: Shard | WorkUnit | ListingPart, rows_per_unit: int, options: ReadOptions, memory: CutMemory | None = None
) -> Iterator[WorkUnit]:
    """A shard, a manifest or what is in a part of a listing -> its work units; a unit passes as it is.

    What cannot be found in a shard is one unit of one record, with `error` set. The counts of the units add up to the
    records of the shard.

    Args:
        item: what `plan` or `plan_in_parts` gives.
        rows_per_unit: records in a unit at most.
        options: which columns hold what.
        memory: where cuts of large shards are looked up and kept.

    Raises:
        OSError: if `memory` cannot be used.
    """
    if isinstance(item, WorkUnit):
        yield item
    elif isinstance(item, ListingPart):
        for found in plan_part(item, rows_per_unit):
            yield from cut_shard(found, rows_per_unit, options, memory)
    elif item.format == InputFormat.MANIFEST:
        yield from cut_manifest(item, rows_per_unit, options)
    elif memory is None or not memory.is_worthwhile(item):
        yield from _walk_shard(item, rows_per_unit)
    elif (units := memory.recall(item)) is not None:
        yield from units
    else:
        yield from memory.keep(item, _walk_shard(item, rows_per_unit))


def _walk_shard(shard: Shard, rows_per_unit: int) -> Iterator[WorkUnit]:
    try:
        with storage.open_read(shard.file.uri, shard.file.version) as stream:
            for cut in reader(shard.format).cut(stream, rows_per_unit):
                yield WorkUnit(shard.format, cut.count, shard, start=cut.start, offset=cut.offset, error=cut.error)
    except Exception as error:  # It did not even open.
        yield WorkUnit(shard.format, 1, shard, error=explain(error))


def inspect_input(patterns: Sequence[str], input_format: InputFormat | None, options: ReadOptions) -> ReadOptions:
    """Look at the input before a run: every pattern matches, and the columns asked for are there.

    Returns:
        The options with the types of the kept columns filled in.

    Raises:
        ImagebeamError: naming the pattern without matches, or the columns there are.
    """
    schemas: dict[InputFormat, Mapping[str, pa.DataType]] = {}
    formats = set()
    for shard in itertools.islice(list_inputs(patterns, input_format), _LOOKED_AT):
        formats.add(shard.format)
        if shard.format != InputFormat.FILES and not schemas.get(shard.format):
            schema = _look_at(shard, options)
            schemas[shard.format] = schema
            options = dataclasses.replace(options, keep_columns=resolve_types(options.keep_columns, schema))
    if options.keep_columns and formats == {InputFormat.FILES}:
        names = ", ".join(name for name, _ in options.keep_columns)
        raise ImagebeamError(
            f"Image files have no columns to keep. Received: --keep_columns {names}. Name the files in a manifest."
        )
    for name, kind in options.keep_columns:
        if pa.types.is_null(kind):
            raise ImagebeamError(
                f"The first records do not tell the type of a kept column. Received: --keep_columns {name}. Say it, as "
                f"in --keep_columns {name}:string."
            )
    return options


def _look_at(shard: Shard, options: ReadOptions) -> Mapping[str, pa.DataType]:
    """The checked columns of a shard; none where it is empty or damaged, which is not a mistake of the user's."""
    try:
        if shard.format == InputFormat.MANIFEST:
            schema = manifest_columns(shard.file)
        else:
            with storage.open_read(shard.file.uri, shard.file.version) as stream:
                schema = reader(shard.format).columns(stream)
        if not schema:
            return {}
        if shard.format == InputFormat.WEBDATASET:
            if not webdataset.check_image(schema, options.image_column):
                raise ImagebeamError(f"{describe(schema)}. Received: --image_column {options.image_column!r}.")
        elif shard.format != InputFormat.MANIFEST:
            check_image_column(options.image_column, schema)
        check_other_columns(options, schema)
    except ImagebeamError as error:
        raise ImagebeamError(f"{shard.file.uri} ({shard.format}): {error}") from error
    except Exception:
        return {}
    return schema
