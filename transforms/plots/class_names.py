"""Prepare class names for plots."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from transforms.core.text import printable

_NAME_LENGTH = 24

_RIGHT_TO_LEFT = ("R", "AL", "RLE", "RLO", "RLI", "AN")
"""Bidirectional categories that matplotlib lays out letter by letter from the left, unjoined."""

_JOINED = range(0x0900, 0x1100)
"""Scripts of India and its neighbours, whose letters change with those beside them, which needs a shaping engine."""


def shown_names(names: Sequence[str], numbers: Sequence[int]) -> tuple[list[str], bool]:
    """Names cut to a readable length; "#12" for one that cannot be drawn as it is written.

    That is a name with letters that the font lacks (Chinese, Japanese, Korean, emoji) or that need laying out (Arabic,
    Hebrew, Hindi): a row of boxes would tell nothing, and letters in the wrong order something false.

    Args:
        names: of classes.
        numbers: theirs, from 0, in order of labels.json.

    Returns:
        What to draw; and whether some are numbers.
    """
    drawable = [_can_be_drawn(name) for name in names]
    shown = [
        _shorten(name) if is_plain else f"#{number}"
        for name, number, is_plain in zip(names, numbers, drawable, strict=True)
    ]
    return shown, not all(drawable)


def _shorten(name: str) -> str:
    name = printable(name, 10 * _NAME_LENGTH)
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…"


def _can_be_drawn(name: str) -> bool:
    text = _shorten(name)
    if text.isascii():
        return True
    if any(unicodedata.bidirectional(one) in _RIGHT_TO_LEFT or ord(one) in _JOINED for one in text):
        return False
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    return all(font.get_char_index(ord(one)) for one in text)
