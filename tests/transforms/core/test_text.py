import pytest

from transforms.core.text import counted, differences, spelled


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "none"),
        ([], "none"),
        ("", "none"),
        (0, "0"),
        (False, "false"),
        ([48, 48], "48, 48"),
        (["block4_pool"], "block4_pool"),
        ({"camera": "string", "taken": None}, "camera: string, taken: none"),
    ],
)
def test_values_are_not_python_literals(value, expected):
    assert spelled(value) == expected


def test_differences_name_what_differs_and_what_only_one_has():
    found = differences({"pooling": "avg", "layers": [], "same": 1}, {"layers": ["fc1"], "same": 1, "frame": "middle"})
    assert found == {
        "pooling": "pooling: avg != none",
        "layers": "layers: none != fc1",
        "frame": "frame: none != middle",
    }


@pytest.mark.parametrize(
    ("count", "words", "expected"),
    [
        (0, ("unit",), "0 units"),
        (1, ("unit",), "1 unit"),
        (2_000, ("unit",), "2,000 units"),
        (1, ("unit is", "units are"), "1 unit is"),
        (3, ("class", "classes"), "3 classes"),
    ],
)
def test_plurals_agree(count, words, expected):
    assert counted(count, *words) == expected
