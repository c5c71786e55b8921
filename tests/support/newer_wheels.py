"""Wheels without content: newer releases of what the locks pin, to offer pip beside the registry.

It needs Python alone, since it runs before there is an environment:
`python tests/support/newer_wheels.py FOLDER LOCK...`.
"""

from __future__ import annotations

import base64
import hashlib
import re
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path


def write_wheel(folder: Path, name: str, version: str, requires: Iterable[str] = ()) -> Path:
    """Write a wheel that holds its metadata alone."""
    stem = f"{re.sub('[-.]+', '_', name)}-{version}"
    extras = sorted({extra for line in requires for extra in re.findall(r"""extra == ['"]([^'"]+)""", line)})
    lines = [
        *("Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"),
        *(f"Provides-Extra: {extra}" for extra in extras),
        *(f"Requires-Dist: {line}" for line in requires),
    ]
    files = {
        f"{stem}.dist-info/METADATA": "\n".join(lines) + "\n",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{stem}.dist-info/RECORD"
    rows = [f"{path},sha256={_digest(content)},{len(content)}" for path, content in files.items()]
    files[record] = "\n".join([*rows, f"{record},,", ""])
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for member, content in files.items():
            wheel.writestr(member, content)
    return path


def _digest(content: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()


def write_newer_wheels(folder: Path, locks: Iterable[Path]) -> Path:
    """Release 99.0 of each package that a lock pins, needing nothing: what pip would rather take."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in {name for lock in locks for name in re.findall(r"^([\w.-]+)==", lock.read_text(), re.MULTILINE)}:
        write_wheel(folder, name, "99.0")
    return folder


if __name__ == "__main__":
    write_newer_wheels(Path(sys.argv[1]), map(Path, sys.argv[2:]))
