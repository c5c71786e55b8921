"""Labels and Hive columns (``split=train/label=cat``) from folder names."""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Mapping
from urllib.parse import unquote

from transforms import storage
from transforms.core.formats import LabelFrom

_NULL = "__HIVE_DEFAULT_PARTITION__"
"""How Hive, Spark and pyarrow name the folder of rows without a value."""

_HIDDEN = ("_", ".")
_SPELLED = ("_", ".", "{_", "{.", "[_")

_OF_SYSTEMS = frozenset(
    (
        "@eadir",
        "#recycle",
        "#snapshot",
        "@recycle",
        "@recently-snapshot",
        "$recycle.bin",
        "system volume information",
    )
)
"""Folders of Synology, QNAP and Windows, in small letters: thumbnails, deleted files, and copies of all others."""


def partitions(uri: str) -> Mapping[str, str | None]:
    """The columns in the names of a file's folders: name -> value, as text."""
    return _partitions(storage.parent(uri))


@functools.lru_cache(maxsize=1024)
def _partitions(folder: str) -> Mapping[str, str | None]:
    pairs = (name.partition("=") for name in folder.split("/") if "=" in name)
    return {unquote(name): None if value == _NULL else unquote(value) for name, _, value in pairs if name}


def class_folder(path: str, root: str | None, label_from: LabelFrom) -> str | None:
    """The folder whose name is the class of a file.

    Args:
        path: of the file.
        root: folder of the input; "" where `path` is relative to it, None where no folder was named.
        label_from: LAST_FOLDER for the folder that holds the file; else the first below `root`, as Keras and
            torchvision have it. Where no folder lies between, one that was not named as the input.

    A path that leads out of `root` (``../up/1.png``, a member of a tar) tells none.
    """
    if root is None:
        return _folder_name(path)
    folders = posixpath.normpath(path[len(root) :].lstrip("/")).split("/")[:-1]
    if folders[:1] == [".."]:
        return None
    if label_from == LabelFrom.LAST_FOLDER:
        return folders[-1] if folders else _folder_name(path)
    return next((name for name in folders if "=" not in name), None)


def _folder_name(path: str) -> str | None:
    """The name of the folder a file lies in; a bucket's name says nothing of what is in it."""
    if "/" not in path:
        return None
    folder = storage.parent(path)
    return None if storage.parent(folder) == folder else storage.basename(folder)


def is_hidden(uri: str, root: str) -> bool:
    """Whether a name below `root` begins with a dot: `.git/index`, `.DS_Store`."""
    return any(name.startswith(".") for name in uri[len(root) :].split("/"))


def is_of_system(uri: str, root: str | None, pattern: str) -> bool:
    """Whether a file below `root` is in a folder that a NAS or Windows makes beside a person's own files.

    A pattern that spells such a folder means it.
    """
    if root is None:
        return False
    folders = {name.casefold() for name in uri[len(root) :].split("/")[:-1]} & _OF_SYSTEMS
    return bool(folders) and folders.isdisjoint(pattern.casefold().split("/"))


def is_set_aside(uri: str, root: str | None, pattern: str, *, may_begin_with_underscore: bool) -> bool:
    """Whether a file below `root` is none of the data, by the custom of Spark, Hive and pyarrow.

    Names that begin with _ or . are none: `_SUCCESS`, `_temporary/...`, `_delta_log/...`, `.part-0.crc`. A pattern that
    spells such a name means it.

    Args:
        uri: of the file.
        root: folder of the input; None where the file was named itself.
        pattern: that found it.
        may_begin_with_underscore: whether its own name may, as those of some cameras' images do: `_DSC0001.jpg`.
    """
    if root is None or any(part.startswith(_SPELLED) for part in pattern[len(root) :].split("/")):
        return False
    *folders, name = uri[len(root) :].lstrip("/").split("/")
    hidden = "." if may_begin_with_underscore else _HIDDEN
    return name.startswith(hidden) or any(folder.startswith(_HIDDEN) for folder in folders)
