"""The cache folder. Its files may be deleted at any time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$IMAGEBEAM_CACHE, or ~/.cache/imagebeam."""
    return Path(os.environ.get("IMAGEBEAM_CACHE") or Path.home() / ".cache" / "imagebeam")
