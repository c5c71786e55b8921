"""Shards, units and records as their own types, which a test that meets another type fails at."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from transforms import storage
from transforms.core.formats import InputFormat
from transforms.readers.units import Shard, WorkUnit
from transforms.storage.files import FileInfo

T = TypeVar("T")


def all_of(kind: type[T], items: Iterable[object]) -> list[T]:
    """The items, each of which is a `kind`."""
    found = []
    for item in items:
        assert isinstance(item, kind), item
        found.append(item)
    return found


def units_in(items: Iterable[object]) -> list[WorkUnit]:
    """The items, each of which is a work unit of either kind."""
    found = []
    for item in items:
        assert isinstance(item, WorkUnit), item
        found.append(item)
    return found


def file_at(path: str | Path) -> FileInfo:
    """A file that is there."""
    file = storage.stat(str(path))
    assert file is not None, path
    return file


def shard_at(path: str | Path, input_format: InputFormat | str) -> Shard:
    """A shard as planning gives it."""
    return Shard(file_at(path), InputFormat(input_format))
