"""Decode in a separate process, so that a crash costs one image and not the job.

A decoder in C that crashes ends its process, and one that never returns keeps its thread: neither can be caught where
it happens. So formats of such decoders are worked in `decoder_process`, which is started when the first such image
appears and gives back resized pixels.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass

from transforms.core.installed import is_installed
from transforms.core.types import Image
from transforms.images.base import Decoded, Limits
from transforms.images.errors import ImageError
from transforms.images.isolated import decoder_pool
from transforms.images.isolated.decoder_pool import Family
from transforms.images.options import ImageOptions

PACKAGES = ("tensorflow_io", "pydicom")
"""What the extra ``tfio`` brings for its decoders."""

IS_POSSIBLE = hasattr(os, "fork")
"""Whether this system has what it takes. Linux and macOS have; only Linux bounds the memory as well."""


@dataclass(frozen=True, slots=True)
class Isolated:
    """A decoder that works in a process of its own.

    Attributes:
        name: module and function, which takes bytes and `Limits`, and gives `Decoded`: "package.module:function".
        family: of the process.
    """

    name: str
    family: Family = Family.PLAIN

    @classmethod
    def of(cls, function: Callable[[bytes, Limits], Decoded]) -> Isolated:
        """The same function in a process of its own."""
        return cls(f"{function.__module__}:{function.__qualname__}")

    def load(self) -> Callable[[bytes, Limits], Decoded]:
        """The function itself."""
        module, _, function = self.name.partition(":")
        found: Callable[[bytes, Limits], Decoded] = getattr(importlib.import_module(module), function)
        return found

    def decode(self, data: bytes, kind: str, options: ImageOptions) -> Image:
        """One image, resized.

        Raises:
            ImageError: as the decoder says, or because it crashed, or took too much time or memory.
            DecoderProcessError: if a process is gone through no fault of the image.
        """
        if self.family == Family.TENSORFLOW_IO and not is_installed(*PACKAGES):
            raise ImageError(
                f"unsupported_{kind.lower()}",
                f"{kind} files are decoded by an extra: pip install 'imagebeam[tfio]'.",
            )
        with decoder_pool.lend(self.family) as process:
            return process.decode(self.name, data, kind, options)
