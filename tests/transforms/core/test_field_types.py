import dataclasses
import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from transforms.core.errors import ImagebeamError
from transforms.core.field_types import convert_fields, typed
from transforms.core.spec import Interpolation


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (np.int64(5), int, 5),
        (np.uint8(5), int | str, 5),
        (5, float, 5.0),
        (np.float32(0.5), float, 0.5),
        (np.bool_(True), bool, True),
        (np.str_("a"), str, "a"),
        ([1, np.int32(2)], tuple[int, int], (1, 2)),
        (np.array([3, 4]), tuple[int, int] | None, (3, 4)),
        (["a", "b"], tuple[str, ...], ("a", "b")),
        ([("a", 1)], tuple[tuple[str, int], ...], (("a", 1),)),
        (None, tuple[int, int] | None, None),
        ("bicubic", Interpolation, Interpolation.BICUBIC),
        ("native", tuple[int, int] | Literal["native"], "native"),
    ],
)
def test_a_value_becomes_what_the_annotation_says(value, hint, expected):
    found = typed("name", value, hint)
    assert (found, type(found)) == (expected, type(expected))
    json.dumps(found)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (True, int),
        (np.bool_(True), int),
        (1, bool),
        (1.0, int),
        (np.float64(1), int),
        ("1", int),
        (Path("x"), str),
        (b"x", str),
        (np.float16, str),
        ("ab", tuple[str, ...]),
        ({"a"}, tuple[str, ...]),
        ((1, 2, 3), tuple[int, int]),
        (np.array([1.5, 2.0]), tuple[int, int]),
        ("cubic", Interpolation),
        (np.array([1, 2]), Literal["native"]),
    ],
)
def test_another_type_is_refused_by_name(value, hint):
    with pytest.raises(ImagebeamError, match=r"size is .*Received"):
        typed("size", value, hint)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    sizes: tuple[int, ...]
    name: str = "x"

    def __post_init__(self):
        convert_fields(self)


def test_fields_of_a_frozen_record_are_converted():
    assert Frozen(np.array([1, 2])) == Frozen([1, 2]) == Frozen((1, 2))  # type: ignore[arg-type]
    assert hash(Frozen([1, 2])) == hash(Frozen((1, 2)))  # type: ignore[arg-type]
    with pytest.raises(ImagebeamError, match="name is a str"):
        Frozen((), 5)  # type: ignore[arg-type]
