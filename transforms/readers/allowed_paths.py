"""Restrict which files the data may name, since manifests and shards may come from strangers."""

from __future__ import annotations

import os

from transforms import storage
from transforms.readers.base import RecordError
from transforms.readers.options import ReadOptions


def reach(named: str, folder: str, options: ReadOptions) -> str:
    """The absolute uri of a file that a row names.

    Args:
        named: as the row has it; relative to `folder`, or absolute.
        folder: uri of the manifest's or shard's own folder.
        options: says what else may be named.

    Raises:
        RecordError: if the file is neither below `folder` nor below a prefix that --allow_uri_prefix gives. Web
            addresses are never read.
    """
    uri = storage.resolve(folder, named)
    if uri.partition("://")[0].lower() in ("http", "https", "ftp", "ftps"):
        raise RecordError("not_allowed", "the row names a web address, which is never read; fetch the files first")
    allowed = (storage.join(folder, ""), *options.allow_uri_prefix)
    if not any(_is_below(uri, prefix) for prefix in allowed):
        raise RecordError(
            "not_allowed",
            f"the row names a file outside {folder}; pass --allow_uri_prefix {storage.parent(uri)}/ if that is meant",
        )
    return uri


def _is_below(uri: str, prefix: str) -> bool:
    """Whether a file is below a prefix, links of the file system resolved; a prefix may end within a name."""
    if not storage.is_local(uri):
        return uri.startswith(prefix) and ".." not in uri.split("/")
    if not storage.is_local(prefix):
        return False
    real = os.path.realpath(prefix)
    if prefix.endswith("/"):
        real = storage.join(real, "")
    return uri.startswith(prefix) and os.path.realpath(uri).startswith(real)
