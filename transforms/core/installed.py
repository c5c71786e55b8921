"""Which packages are installed, found out without importing them."""

from __future__ import annotations

import importlib.util

from transforms.core.errors import ImagebeamError

EXTRAS = {"matplotlib": "train", "scipy": "train", "sklearn": "train", "onnx": "onnx", "pillow_heif": "heif"}
"""Modules that an extra of the distribution brings -> that extra."""


def missing(*modules: str) -> list[str]:
    """Those of these modules that are not installed."""
    return [module for module in modules if not _is_there(module)]


def is_installed(*modules: str) -> bool:
    """Whether all of them are installed."""
    return not missing(*modules)


def require(*modules: str) -> None:
    """Stop before the work where a job could not finish without these modules of an extra.

    Raises:
        ImagebeamError: for the first that is not installed, with the extra to install.
    """
    for module in missing(*modules):
        raise lacking(module)


def lacking(module: str) -> ImagebeamError:
    """The error for a module that an extra brings, a key of `EXTRAS`."""
    return ImagebeamError(f"The package {module} is not installed: pip install 'imagebeam[{EXTRAS[module]}]'")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it
        return False
