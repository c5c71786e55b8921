"""The packages that extras of the distribution bring."""

from __future__ import annotations

import importlib.util

EXTRAS = {"matplotlib": "train", "scipy": "train", "sklearn": "train", "onnx": "onnx", "pillow_heif": "heif"}
"""Modules that an extra brings -> that extra."""


def require(*modules: str) -> None:
    """Stop before the work where the job could not finish without these modules.

    Raises:
        ModuleNotFoundError: for the first that is not installed; `pipelines.cli` names its extra.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
