"""Parse paths and URLs from users, and suggest corrections for likely mistakes."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Callable
from typing import NamedTuple

from transforms.core.errors import ImagebeamError
from transforms.core.installed import is_installed

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

_FILE = re.compile(r"file:", re.IGNORECASE)
_LOCAL_HOSTS = ("", "localhost", "127.0.0.1")


class _Extra(NamedTuple):
    """Of Imagebeam: its name, and a module that it brings."""

    name: str
    module: str


_EXTRAS = {
    "gs": None,
    "hdfs": _Extra("hdfs", "hdfs"),
    "s3": _Extra("s3", "boto3"),
    "azfs": _Extra("azure", "azure.storage.blob"),
}
"""Scheme -> the extra that brings its file system; None where none is needed."""

_MEANT = {
    "gcs": "gs",
    "s3a": "s3",
    "s3n": "s3",
    "az": "azfs",
    "abfs": "azfs",
    "abfss": "azfs",
    "wasb": "azfs",
    "wasbs": "azfs",
    "azure": "azfs",
    "webhdfs": "hdfs",
}
"""Schemes of other tools -> the one Beam has for the same storage."""

_WEB = ("http", "https", "ftp", "ftps", "sftp")
_REMOTE = "|".join(sorted({*_EXTRAS, *_MEANT, *_WEB}, key=len, reverse=True))
_SLASH_LOST = re.compile(rf"({_REMOTE}):(?!//)/?(?=[^/\\])", re.IGNORECASE)
_NO_HOST = re.compile(rf"({_REMOTE}):(?:/+)?$|({_REMOTE}):///+", re.IGNORECASE)
_VARIABLE = re.compile(r"(?:^|://)(\$(?:\w+|\{\w+\}))")


def is_local(uri: str) -> bool:
    """Whether `uri` is a path on this machine rather than a URL."""
    return SCHEME.match(uri) is None


def absolute(uri: str, exists: Callable[[str], bool] = os.path.lexists) -> str:
    """Make a path or URL absolute, with its scheme in lower case.

    `~` is expanded, and a ``file:`` URL becomes the path it means.

    Args:
        uri: path or URL.
        exists: tells whether a local path is there; a file of an odd name is taken literally.

    Raises:
        ImagebeamError: for a URL that lacks a slash or a bucket, another machine's ``file:`` URL, an unknown user's
            home, a variable that no shell has expanded, a relative path where there is no working directory, or a
            NUL, which no name has.
    """
    if "\0" in uri:
        raise ImagebeamError(f"No path or URL has a NUL in it. Received: {uri!r}.")
    if _FILE.match(uri):
        return from_file_url(uri)
    if match := SCHEME.match(uri):
        _check_url(uri)
        return match[0].lower() + uri[match.end() :]
    if exists(uri):
        return from_here(uri)
    _check_url(uri)
    if uri.startswith("~"):
        expanded = os.path.expanduser(uri)
        if expanded.startswith("~"):
            raise ImagebeamError(
                f"There is no such home folder: {uri.partition('/')[0]!r}. Write the path out, or ./{uri} for a file "
                f"of that name. Received: {uri!r}."
            )
        uri = expanded
    return from_here(uri)


def from_here(path: str) -> str:
    """A local path made absolute.

    Raises:
        ImagebeamError: if it is relative, and the working directory was removed.
    """
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        raise ImagebeamError(
            f"The working directory is not there any more, so a relative path means nothing. Received: {path!r}. Go to "
            "a folder that exists, or write the path out."
        ) from None


def from_file_url(uri: str) -> str:
    """The local path of a ``file:`` URL: ``file:/x``, ``file:///x``, ``file://localhost/x``, ``%20`` decoded.

    Raises:
        ImagebeamError: for another machine's file, or a URL without an absolute path.
    """
    rest = uri[len("file:") :]
    host, path = "", rest
    if rest.startswith("//"):
        host, slash, below = rest[2:].partition("/")
        path = slash + below
    if host.lower() not in _LOCAL_HOSTS or not path.startswith("/"):
        raise ImagebeamError(
            f"A file: URL names an absolute path of this machine, as in file:///data/images. Received: {uri!r}."
        )
    return os.path.abspath(urllib.parse.unquote(path, errors="surrogateescape"))


def lacks_extra(uri: str) -> bool:
    """Whether the extra that brings the URL's file system is not installed.

    Beam has some of the file systems without it and fails late, in its own words.
    """
    extra = _EXTRAS.get(uri.partition("://")[0])
    return extra is not None and not is_installed(extra.module)


def missing_file_system(uri: str) -> ImagebeamError:
    """The error for a URL of a scheme whose file system is not installed, with what to install or to write."""
    scheme = uri.partition("://")[0]
    extra = _EXTRAS.get(scheme)
    if scheme in _WEB:
        remedy = "Files are not read from web servers; download them first."
    elif extra is not None:
        remedy = f"Install it with pip install 'imagebeam[{extra.name}]'."
    elif scheme in _MEANT:
        remedy = f"Did you mean {_MEANT[scheme]}://?"
    else:
        remedy = "Known are local paths, gs://, s3:// (extra s3), azfs:// (extra azure) and hdfs:// (extra hdfs)."
    return ImagebeamError(f"No file system is installed for {scheme}://. {remedy} Received: {uri!r}.")


def _check_url(uri: str) -> None:
    if match := _SLASH_LOST.match(uri):
        scheme = match[1].lower()
        raise ImagebeamError(
            f"A URL has two slashes behind its scheme. Did you mean {_MEANT.get(scheme, scheme)}://"
            f"{uri[match.end() :]}? Received: {uri!r}."
        )
    if match := _NO_HOST.match(uri):
        scheme = (match[1] or match[2]).lower()
        raise ImagebeamError(
            f"The URL names no bucket; was a variable in it empty? Write {scheme}://BUCKET/FOLDER. Received: {uri!r}."
        )
    if match := _VARIABLE.search(uri):
        raise ImagebeamError(f"Variables such as {match[1]} are expanded by a shell, not here. Received: {uri!r}.")
