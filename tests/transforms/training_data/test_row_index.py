import re

import numpy as np
import pyarrow as pa
import pytest

from tests.support.embedding_sets import blobs, write_output
from transforms.core.errors import ImagebeamError
from transforms.training_data.embeddings import open_embeddings
from transforms.training_data.row_index import LabelRules, SplitRules, index_rows
from transforms.training_data.splits import DROPPED, Split

TAGS = pa.list_(pa.string())


def index(tmp_path, labels, rules=None, splits=None, **settings):
    vectors = np.zeros((len(labels), 2), np.float32)
    write_output(tmp_path, vectors, labels, **settings)
    return index_rows(open_embeddings([str(tmp_path)]), rules or LabelRules(), splits or SplitRules())


def test_classes_are_sorted_and_every_row_has_its_own(tmp_path):
    labels = [["zebra", "ant", "mole"][number * 7 % 3] for number in range(250)]
    found = index(tmp_path, labels)
    assert found.classes == ("ant", "mole", "zebra")
    assert [found.classes[number] for number in found.labels] == labels
    assert found.targets(np.array([5, 3])).tolist() == [found.labels[5], found.labels[3]]
    assert sum(len(found.rows(split)) for split in Split) == 250
    assert found.counts.sum() == 250
    assert found.counts[Split.TEST.code, 0] == sum(labels[row] == "ant" for row in found.rows(Split.TEST))


def test_whole_numbers_are_labels_in_numeric_order(tmp_path):
    numbers = [[2, 10, 1][number % 3] for number in range(60)]
    found = index(tmp_path, ["x"] * 60, LabelRules("digit"), keep={"digit": (pa.int64(), numbers)})
    assert found.classes == ("1", "2", "10")
    assert [int(found.classes[number]) for number in found.labels] == numbers


WORDS = pa.dictionary(pa.int32(), pa.large_string())


@pytest.mark.parametrize(
    ("kind", "of"),
    [
        (pa.large_string(), "ab"), (pa.string_view(), "ab"), (WORDS, "ab"), (pa.float64(), [2.0, 10.0, None, np.nan]),
        (pa.float32(), [2, 10]), (pa.decimal128(5, 2), [2, 10]),
        (pa.large_list(pa.large_string()), [["a"], ["a", "b"], None]), (pa.list_(WORDS), [["a"], ["b"]]),
    ],
    ids=str,
)  # fmt: skip
def test_labels_are_read_whatever_type_holds_them(tmp_path, kind, of):
    """As pandas and Polars store text, categories, and whole numbers of which one is missing."""
    values = [of[number % len(of)] for number in range(80)]
    is_list = isinstance(of[0], list)
    rules = LabelRules("kind", multi_label=is_list, drop_unlabeled=True)
    found = index(tmp_path, [None] * 80, rules, keep={"kind": (kind, values)})
    assert found.classes == (("2", "10") if of[0] == 2 else ("a", "b"))
    if is_list:
        given = [[found.classes[number] for number in np.flatnonzero(row)] for row in found.targets(np.arange(80))]
    else:
        given = [[found.classes[number]] for number in found.labels]
    for values_of_row, labels, code in zip(values, given, found.codes, strict=True):
        known = values_of_row is not None and values_of_row == values_of_row
        assert (code != DROPPED) == known
        assert not known or labels == (values_of_row if is_list else [f"{values_of_row}".removesuffix(".0")])


SPELLED = {"cat": ["cat", " cat ", "cat\n"], "caf\u00e9": ["caf\u00e9", "cafe\u0301"], "3": ["3", "3.0", " 3"]}
"""Label -> texts that an input's label column would give as that label."""


@pytest.mark.parametrize("kind", ["one label", "list", "separated"])
def test_texts_of_one_label_are_one_class_in_any_column(tmp_path, kind):
    texts = [(label, text) for label, spellings in SPELLED.items() for text in spellings] * 10
    values = [[text] if kind == "list" else text for _, text in texts]
    rules = LabelRules("kind", kind != "one label", "|" if kind == "separated" else None)
    keep = {"kind": (TAGS if kind == "list" else pa.string(), values)}
    found = index(tmp_path, [None] * len(texts), rules, keep=keep)
    assert found.classes == ("3", "caf\u00e9", "cat")
    targets = found.targets(np.arange(len(texts)))
    numbers = targets if kind == "one label" else targets.argmax(axis=1)
    assert [found.classes[number] for number in numbers] == [label for label, _ in texts]


def test_rows_without_labels_are_refused_or_dropped(tmp_path):
    labels = [None if number % 5 == 0 else f"{number % 2}" for number in range(100)]
    with pytest.raises(ImagebeamError, match=r"20 of 100 .*'label'.*--drop_unlabeled"):
        index(tmp_path / "a", labels)
    found = index(tmp_path / "b", labels, LabelRules(drop_unlabeled=True))
    assert found.dropped == 20
    assert np.flatnonzero(found.codes == DROPPED).tolist() == list(range(0, 100, 5))
    assert found.counts.sum() == 80


def test_a_set_without_any_label_is_refused(tmp_path):
    with pytest.raises(ImagebeamError, match="No row has a label"):
        index(tmp_path, [None] * 30, LabelRules(drop_unlabeled=True))


def test_one_class_is_refused(tmp_path):
    with pytest.raises(ImagebeamError, match=r"two classes.*cat in column 'label'"):
        index(tmp_path, ["cat"] * 30)


def test_an_unknown_column_is_refused_naming_the_others(tmp_path):
    with pytest.raises(ImagebeamError, match="key, uri, label"):
        index(tmp_path, ["a", "b"] * 20, LabelRules("lable"))


def test_a_column_of_fractions_is_no_label(tmp_path):
    with pytest.raises(ImagebeamError, match="column 'score' of type double"):
        index(tmp_path, ["a"] * 40, LabelRules("score"), keep={"score": (pa.float64(), [0.5] * 40)})


def test_a_column_of_vectors_is_no_label(tmp_path):
    with pytest.raises(ImagebeamError, match="Labels are text"):
        index(tmp_path, ["a"] * 40, LabelRules("embedding", multi_label=True))


def tag_lists(count):
    random = np.random.default_rng(0)
    return [[tag for tag in ("cat", "dog", "eel") if random.random() < 0.4] for _ in range(count)]


def test_lists_become_rows_of_0_and_1(tmp_path):
    tags = tag_lists(150)
    tags[7] = ["dog", "dog"]
    found = index(tmp_path, [None] * 150, LabelRules("tags", multi_label=True), keep={"tags": (TAGS, tags)})
    assert found.classes == ("cat", "dog", "eel")
    expected = np.array([[float(tag in row) for tag in found.classes] for row in tags], np.float32)
    assert np.array_equal(found.targets(np.arange(150)), expected)
    assert found.targets(np.arange(150)).dtype == np.float32
    assert np.array_equal(found.counts.sum(axis=0), expected.sum(axis=0))
    assert np.array_equal(found.counts[Split.TEST.code], expected[found.rows(Split.TEST)].sum(axis=0))


def test_text_with_a_separator_is_a_list(tmp_path):
    tags = tag_lists(80)
    rules = LabelRules(multi_label=True, separator="|")
    found = index(tmp_path, [" | ".join(row) for row in tags], rules)
    expected = [[float(tag in row) for tag in found.classes] for row in tags]
    assert found.targets(np.arange(80)).tolist() == expected


def test_a_null_list_is_no_label_and_an_empty_one_is(tmp_path):
    tags = [["a"], ["b"], [], None] * 20
    keep = {"tags": (TAGS, tags)}
    found = index(tmp_path, [None] * 80, LabelRules("tags", True, drop_unlabeled=True), keep=keep)
    assert found.dropped == 20
    assert found.targets(np.array([0, 1, 2])).tolist() == [[1, 0], [0, 1], [0, 0]]


def test_lists_and_multi_label_go_together(tmp_path):
    keep = {"tags": (TAGS, [["a"]] * 30)}
    with pytest.raises(ImagebeamError, match="Train on it with --multi_label"):
        index(tmp_path / "a", ["x"] * 30, LabelRules("tags"), keep=keep)
    with pytest.raises(ImagebeamError, match="--label_separator"):
        index(tmp_path / "b", ["x"] * 30, LabelRules(multi_label=True))


def test_a_split_column_is_followed(tmp_path):
    fold = ["train", "test", "train", "validation", "train"] * 20
    keep = {"fold": (pa.string(), fold)}
    found = index(tmp_path, ["a", "b"] * 50, splits=SplitRules(column="fold"), keep=keep)
    assert [list(Split)[code] for code in found.codes] == fold


@pytest.mark.parametrize("value", ["dev", None])
def test_a_split_column_with_another_word_is_refused(tmp_path, value):
    keep = {"fold": (pa.string(), ["train"] * 39 + [value])}
    with pytest.raises(ImagebeamError, match=f"Received: {value!r} in column 'fold'"):
        index(tmp_path, ["a", "b"] * 20, splits=SplitRules(column="fold"), keep=keep)


def test_a_split_that_leaves_nothing_is_refused(tmp_path):
    keep = {"fold": (pa.string(), ["train"] * 40)}
    with pytest.raises(ImagebeamError, match=r"40 train, 0 validation and 0 test"):
        index(tmp_path, ["a", "b"] * 20, splits=SplitRules(column="fold"), keep=keep)


def test_digest_differs_between_sets(tmp_path):
    _, labels = blobs(60)
    same = [index(tmp_path / name, labels).sha256 for name in "ab"]
    images = [f"other {number}" for number in range(60)]
    other = index(tmp_path / "c", labels, images=images).sha256
    relabeled = index(tmp_path / "d", [*labels[:-1], "class-9"]).sha256
    assert same[0] == same[1]
    assert len({same[0], other, relabeled}) == 3


class TestSeveralRuns:
    """Runs by `write_output` have the same uris and keys, from the first row on."""

    def runs(self, tmp_path, *labels, rules=None):
        names = []
        for number, values in enumerate(labels):
            vectors = np.zeros((len(values), 2), np.float32)
            names.append(write_output(tmp_path / f"{number}", vectors, values))
        return index_rows(open_embeddings(names), rules or LabelRules(), SplitRules())

    def test_a_record_of_two_runs_counts_once(self, tmp_path):
        few = ["ab"[number % 2] for number in range(120)]
        many = ["ab"[number % 2] for number in range(200)]
        found = self.runs(tmp_path, few, many)
        alone = index(tmp_path / "alone", many)
        assert (found.codes != DROPPED).sum() == 200
        assert found.repeated == 120
        assert found.dropped == 0
        assert np.flatnonzero(found.codes == DROPPED).tolist() == list(range(120, 240))
        assert found.counts.tolist() == alone.counts.tolist()

    def test_the_first_label_counts(self, tmp_path):
        first = [None if number < 60 else "ab"[number % 2] for number in range(120)]
        found = self.runs(tmp_path, first, ["xy"[number % 2] for number in range(120)])
        assert found.classes == ("a", "b", "x", "y")
        assert found.counts.sum(axis=0).tolist() == [30, 30, 30, 30]
        assert np.flatnonzero(found.codes == DROPPED).tolist() == [*range(60), *range(180, 240)]
        assert found.repeated == 120

    def test_labels_that_do_not_count_are_no_classes(self, tmp_path):
        found = self.runs(tmp_path, ["b", "c"] * 50, ["a", "d"] * 50)
        assert found.classes == ("b", "c")
        assert [found.classes[number] for number in found.labels[:100]] == ["b", "c"] * 50

    def test_nor_are_those_of_lists(self, tmp_path):
        names = []
        for number, values in enumerate([[["b"], ["c", "e"]] * 50, [["a"], ["d"]] * 60]):
            keep = {"tags": (TAGS, values)}
            names.append(
                write_output(tmp_path / f"{number}", np.zeros((len(values), 2), np.float32), [None] * 120, keep=keep)
            )
        found = index_rows(open_embeddings(names), LabelRules("tags", multi_label=True), SplitRules())
        assert found.classes == ("a", "b", "c", "d", "e")
        assert found.counts.sum(axis=0).tolist() == [10, 50, 50, 10, 50]

    def test_repeated_records_of_one_run_all_count(self, tmp_path):
        """Archives may hold two samples of one name; of one run nothing is taken away."""
        assert self.runs(tmp_path, ["a", "b"] * 50).repeated == 0

    def test_a_run_given_twice_is_refused(self, tmp_path, monkeypatch):
        name = write_output(tmp_path / "run", np.zeros((100, 2), np.float32), ["a", "b"] * 50)
        (tmp_path / "link").symlink_to(name)
        monkeypatch.chdir(tmp_path)
        for other in (name, f"{name}/", "run", "./x/../run", f"file://{name}", "link"):
            with pytest.raises(ImagebeamError, match="An output is given twice") as error:
                open_embeddings([name, other])
            assert repr(other) in str(error.value)


def grouped(tmp_path, kind, groups, **rules):
    keep = {"group": (kind, groups)}
    return index(
        tmp_path, ["ab"[row % 2] for row in range(len(groups))], None, SplitRules(group_column="group"), keep=keep
    )


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        (pa.float64(), float("nan")),
        (pa.float32(), float("nan")),
        (pa.string(), ""),
        (pa.string(), " "),
        (pa.int64(), None),
    ],
)
def test_rows_of_no_group_are_refused(tmp_path, kind, missing):
    def value(row):
        return str(row) if kind == pa.string() else row

    with pytest.raises(ImagebeamError, match=r"20 of 100 rows .* no value in --group_column\. Received: 'group'"):
        grouped(tmp_path, kind, [missing if row % 5 == 0 else value(row) for row in range(100)])


def test_fractions_are_groups(tmp_path):
    found = grouped(tmp_path, pa.float64(), [row // 4 + 0.5 for row in range(100)])
    assert (found.images.reshape(25, 4) == found.images[::4, None]).all()
    assert len(np.unique(found.images)) == 25


@pytest.mark.parametrize(
    ("kind", "value"), [(TAGS, ["x"]), (pa.struct({"a": pa.int64()}), {"a": 1}), (pa.binary(), b"\xff")]
)
@pytest.mark.parametrize(
    ("flag", "rules"),
    [("--group_column", SplitRules(group_column="made of")), ("--split_column", SplitRules(column="made of"))],
)
def test_groups_and_splits_are_single_values(tmp_path, kind, value, flag, rules):
    keep = {"made of": (kind, [value] * 40)}
    with pytest.raises(ImagebeamError, match=f"{flag} names a column of .* 'made of' of type {kind}".split("<", 1)[0]):
        index(tmp_path, ["a", "b"] * 20, None, rules, keep=keep)


def test_too_few_groups_are_counted(tmp_path):
    keep = {"group": (pa.string(), ["left", "right"] * 50)}
    write_output(tmp_path, np.zeros((100, 2), np.float32), ["a", "b"] * 50, keep=keep)
    embeddings = open_embeddings([str(tmp_path)])
    useless = []
    for seed in range(20):
        try:
            index_rows(embeddings, LabelRules(), SplitRules(group_column="group", seed=seed))
        except ImagebeamError as error:
            useless.append(str(error))
    assert useless
    for message in useless:
        assert re.match(r"Column 'group' has 2 groups, too few to (hold|train on) one", message)
        assert "--split_column" in message


def test_blank_text_is_no_label(tmp_path):
    names = [" " if row % 5 == 0 else ("" if row % 5 == 1 else "ab"[row % 2]) for row in range(100)]
    found = index(tmp_path, ["x"] * 100, LabelRules("kind", drop_unlabeled=True), keep={"kind": (pa.string(), names)})
    assert found.classes == ("a", "b")
    assert found.dropped == 40
