"""What holds the values of two types, and values that a type holds as they are."""

import datetime
import decimal
import itertools
import json
import math

import pyarrow as pa
import pytest

from transforms.readers.column_types import declaration, fit, is_open, remedy, type_of, widen, widest

UTC, BERLIN = pa.timestamp("us", "UTC"), pa.timestamp("us", "Europe/Berlin")


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 0.5], pa.float64()),
        ([None, 1], pa.int64()),
        ([1, 2**63], pa.uint64()),
        ([1, -(2**70)], pa.decimal128(38, 0)),
        ([True, None], pa.bool_()),
        ([[], ["x"]], pa.list_(pa.string())),
        (["x", []], pa.list_(pa.string())),
        ([0.5, [1, 2]], pa.list_(pa.float64())),
        ([[[1]], [[]], [[0.5], None]], pa.list_(pa.list_(pa.float64()))),
        ([{"a": 1}, {"b": "x"}, {"a": 0.5}], pa.struct([("a", pa.float64()), ("b", pa.string())])),
        ([[{"a": 1}], [{"b": 1}]], pa.list_(pa.struct([("a", pa.int64()), ("b", pa.int64())]))),
        ([b"text", b"\xff"], pa.binary()),
        ([b"text", b"more"], pa.string()),
    ],
)
def test_type_does_not_depend_on_the_order_of_values(values, kind):
    for order in itertools.permutations(values):
        found = widest(map(type_of, order))
        if pa.types.is_struct(kind):
            assert {(field.name, field.type) for field in found} == {(field.name, field.type) for field in kind}
        elif not pa.types.is_nested(kind):
            assert found == kind
        held = [fit(value, found, declared=False) for value in order]
        array = pa.array(held, found)
        assert len(array) == len(order)
        assert not is_open(found)


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.int8(), pa.uint8(), pa.int16()),
        (pa.int64(), pa.uint64(), pa.uint64()),
        (pa.int32(), pa.float32(), pa.float64()),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.string(), pa.large_string(), pa.large_string()),
        (pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.string()), pa.string()),
        (pa.dictionary(pa.int8(), pa.string()), pa.string(), pa.string()),
        (pa.timestamp("us"), pa.timestamp("ns"), pa.timestamp("ns")),
        (pa.decimal128(5, 2), pa.decimal128(10, 4), pa.decimal128(10, 4)),
        (pa.decimal128(5, 2), pa.int32(), pa.decimal128(12, 2)),
        (pa.date32(), pa.date64(), pa.date64()),
        (pa.time32("s"), pa.time64("ns"), pa.time64("ns")),
        (pa.duration("s"), pa.duration("ns"), pa.duration("ns")),
        (pa.list_(pa.int32()), pa.large_list(pa.int64()), pa.large_list(pa.int64())),
        (pa.list_(pa.int64(), 3), pa.list_(pa.int64()), pa.list_(pa.int64())),
        (pa.list_(pa.field("element", pa.int64())), pa.list_(pa.float64()), pa.list_(pa.float64())),
        (pa.map_(pa.string(), pa.int32()), pa.map_(pa.string(), pa.int64()), pa.map_(pa.string(), pa.int64())),
    ],
    ids=str,
)
def test_common_type_of_two_shards(one, other, kind):
    for found in (widen(one, other), widen(other, one)):
        if pa.types.is_decimal(kind):
            assert pa.types.is_decimal(found)
            assert found.scale == kind.scale
        else:
            assert found == kind
    assert widen(pa.null(), one) == widen(one, pa.null()) == one


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.int64(), pa.string()),
        (pa.bool_(), pa.int64()),
        (pa.float64(), pa.string()),
        (pa.decimal128(5, 2), pa.float64()),
        (pa.timestamp("us"), UTC),
        (UTC, BERLIN),
        (pa.date32(), pa.int32()),
        (pa.struct([("a", pa.int64())]), pa.int64()),
        (pa.list_(pa.string()), pa.int64()),
        (pa.struct([("a", pa.int64())]), pa.struct([("a", pa.string())])),
        (pa.list_(pa.int64()), pa.list_(pa.string())),
    ],
    ids=str,
)
def test_types_without_a_common_type(one, other):
    for pair in ((one, other), (other, one)):
        with pytest.raises(ValueError, match="no type holds"):
            widen(*pair)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (2**53 + 1, pa.float64()),
        (10**400, pa.float64()),
        (0.1, pa.float32()),
        (1.0, pa.int64()),
        (True, pa.int64()),
        (1, pa.bool_()),
        (1, pa.string()),
        ("1", pa.int64()),
        (2**31, pa.int32()),
        (-1, pa.uint64()),
        (["a", 1], pa.list_(pa.string())),
        ({"a": 1, "b": 2}, pa.struct([("a", pa.int64())])),
        (b"\xff", pa.string()),
        (decimal.Decimal("0.1"), pa.float64()),
        (datetime.datetime(2026, 1, 1), UTC),
        (pa.scalar(1, pa.timestamp("ns")), pa.timestamp("us")),
        (pa.scalar(1, pa.timestamp("us")), UTC),
        (pa.scalar(decimal.Decimal("0.001")), pa.decimal128(5, 2)),
    ],
    ids=repr,
)
def test_value_outside_its_type_is_refused_with_a_remedy(value, kind):
    with pytest.raises(ValueError):  # noqa: PT011
        fit(value, kind, declared=False)
    name = remedy(kind, value)
    asked_for = {"string": pa.string(), "float64": pa.float64(), "int64": pa.int64(), "binary": pa.binary()}[name]
    assert fit(value, asked_for, declared=True) is not None


def test_remedy_names_a_type_that_holds_the_value():
    assert remedy(pa.int64(), 0.5) == "float64"
    assert remedy(pa.int32(), 2**40) == "int64"
    assert remedy(pa.float32(), 0.1) == "float64"
    assert remedy(pa.float64(), 2**53 + 1) == "string"
    assert remedy(pa.float64(), [0.5, 1]) == "list<float64>"
    assert remedy(pa.string(), b"\xff") == "binary"
    assert remedy(pa.int64(), "x") == remedy(pa.int64(), {"a": 1}) == "string"
    assert declaration(pa.list_(pa.null())) == "list<string>"


@pytest.mark.parametrize(
    ("value", "kind", "held"),
    [
        (1, pa.float64(), 1.0),
        (2**53, pa.float64(), float(2**53)),
        (0.5, pa.float32(), 0.5),
        (math.inf, pa.float32(), math.inf),
        (3, pa.decimal128(38, 0), decimal.Decimal(3)),
        (2**64 - 1, pa.uint64(), 2**64 - 1),
        ("x", pa.list_(pa.string()), ["x"]),
        ("x", pa.binary(), b"x"),
        (b"x", pa.string(), "x"),
        ({"a": 1}, pa.struct([("a", pa.float64()), ("b", pa.string())]), {"a": 1.0, "b": None}),
        (datetime.date(2026, 1, 2), pa.date32(), pa.scalar(datetime.date(2026, 1, 2))),
        (pa.scalar(1, pa.timestamp("us")), pa.timestamp("ns"), pa.scalar(1000, pa.timestamp("ns"))),
        (pa.scalar(None, pa.timestamp("us")), pa.timestamp("ns"), None),
        (pa.scalar(decimal.Decimal("1.50")), pa.decimal128(10, 4), decimal.Decimal("1.5")),
    ],
    ids=str,
)
def test_values_a_type_holds(value, kind, held):
    found = fit(value, kind, declared=False)
    assert pa.array([found], kind) == pa.array([held], kind)


@pytest.mark.parametrize(
    ("value", "kind", "held"),
    [
        ("3", pa.int64(), 3),
        ("0.1", pa.float64(), 0.1),
        (0.1, pa.float32(), 0.10000000149011612),
        ("true", pa.bool_(), True),
        (1, pa.bool_(), True),
        (0.0, pa.bool_(), False),
        (True, pa.int32(), 1),
        (2.0, pa.int64(), 2),
        (3, pa.string(), "3"),
        (2**70, pa.string(), str(2**70)),
        (True, pa.string(), "true"),
        ([1, "é"], pa.string(), '[1, "é"]'),
        ({"a": [0.5, None]}, pa.string(), '{"a": [0.5, null]}'),
        ([b"x"], pa.string(), '["x"]'),
        ([{"a": 1}, "b"], pa.list_(pa.string()), ['{"a": 1}', "b"]),
        (pa.scalar(0, UTC), pa.string(), "1970-01-01 00:00:00.000000Z"),
        (pa.scalar({"d": datetime.date(2026, 1, 2)}), pa.string(), '{"d": "2026-01-02"}'),
        (pa.scalar([("a", 1)], pa.map_(pa.string(), pa.int32())), pa.string(), '[["a", 1]]'),
    ],
    ids=repr,
)
def test_declared_type_converts_values(value, kind, held):
    found = fit(value, kind, declared=True)
    assert pa.array([found], kind).to_pylist() == [held]
    if isinstance(value, list | dict) and isinstance(found, str) and value != [b"x"]:
        assert json.loads(found) == value


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (2, pa.bool_()),
        (0.5, pa.bool_()),
        (1.5, pa.int64()),
        (2**53 + 1, pa.float64()),
        (str(2**53 + 1), pa.float64()),
        (1e300, pa.float32()),
        ("1e300", pa.float32()),
        ("x", pa.int64()),
        (-1, pa.uint64()),
        ("-1", pa.uint64()),
        ([1, 2], pa.int64()),
        (b"\xff", pa.string()),
    ],
    ids=repr,
)
def test_declared_type_refuses_lossy_values(value, kind):
    with pytest.raises(ValueError):  # noqa: PT011
        fit(value, kind, declared=True)
