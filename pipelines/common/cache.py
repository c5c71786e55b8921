"""The cache folder. Its files may be deleted at any time."""

from __future__ import annotations

import os
from pathlib import Path

from transforms.core.errors import ImagebeamError


def cache_folder() -> Path:
    """$IMAGEBEAM_CACHE, or ~/.cache/imagebeam.

    Raises:
        ImagebeamError: where neither is known: a container's user may have no home.
    """
    if given := os.environ.get("IMAGEBEAM_CACHE"):
        return Path(given)
    try:
        return Path.home() / ".cache" / "imagebeam"
    except RuntimeError:
        raise ImagebeamError("This user has no home folder. Set IMAGEBEAM_CACHE to a folder for downloads.") from None
