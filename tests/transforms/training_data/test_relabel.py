"""Labels from a file in place of those of the embeddings."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.embedding_sets import write_output
from transforms.core.errors import ImagebeamError
from transforms.training_data.embeddings import open_embeddings
from transforms.training_data.relabel import relabel
from transforms.training_data.row_index import LabelRules, SplitRules, index_rows

COUNT = 40
OLD = [f"{row % 2}" for row in range(COUNT)]
LISTS = pa.list_(pa.string())


def embeddings(tmp_path, labels=OLD, **settings):
    write_output(tmp_path / "out", np.zeros((COUNT, 2), np.float32), labels, rows_per_part=15, **settings)
    return open_embeddings([str(tmp_path / "out")])


def classes(rows, rules=None):
    """The name of each row's class."""
    found = index_rows(rows, rules or LabelRules(), SplitRules())
    return [found.classes[number] for number in found.labels]


NEW = pd.DataFrame({"key": ["key-3", "key-17", "key-39", "other"], "label": ["cat", " cat ", "2.0", "x"]})


def write(frame, path):
    match path.suffix:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".tsv":
            frame.to_csv(path, index=False, sep="\t", encoding="utf-16")
        case ".jsonl":
            frame.to_json(path, orient="records", lines=True)
        case _:
            frame.to_parquet(path)


@pytest.mark.parametrize("name", ["new.csv", "new.tsv", "new.jsonl", "new.parquet"])
def test_listed_rows_are_relabelled_and_others_keep_their_labels(tmp_path, name):
    write(NEW, tmp_path / name)
    rows = relabel(embeddings(tmp_path), "label", str(tmp_path / name))
    expected = list(OLD)
    expected[3] = expected[17] = "cat"
    expected[39] = "2"
    assert classes(rows) == expected
    assert (rows.matched, rows.unmatched) == (3, 1)


def test_keys_of_no_row_are_counted_though_runs_share_the_others(tmp_path):
    """Runs by `write_output` have the same keys, from the first row on."""
    names = [write_output(tmp_path / name, np.zeros((COUNT, 2), np.float32), OLD) for name in ("one", "two")]
    NEW.to_csv(tmp_path / "new.csv", index=False)
    rows = relabel(open_embeddings(names), "label", str(tmp_path / "new.csv"))
    classes(rows)
    assert (rows.matched, rows.unmatched) == (6, 1)


def test_keys_and_labels_may_be_bytes(tmp_path):
    pq.write_table(pa.table({"key": [b"key-3"], "label": [b"cat"]}), tmp_path / "new.parquet")
    rows = relabel(embeddings(tmp_path), "label", str(tmp_path / "new.parquet"))
    assert classes(rows) == [*OLD[:3], "cat", *OLD[4:]]


def test_numbers_of_hugging_face_are_their_names(tmp_path):
    names = {"info": {"features": {"label": {"names": ["ant", "bee"], "_type": "ClassLabel"}}}}
    table = pa.table({"key": ["key-3", "key-4"], "label": [1, 0]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), tmp_path / "new.parquet")
    rows = relabel(embeddings(tmp_path), "label", str(tmp_path / "new.parquet"))
    assert classes(rows) == [*OLD[:3], "bee", "ant", *OLD[5:]]


def test_labels_for_embeddings_without_any(tmp_path):
    frame = pd.DataFrame({"key": [f"key-{row}" for row in range(COUNT)], "label": ["a", "b"] * (COUNT // 2)})
    frame.to_csv(tmp_path / "new.csv", index=False)
    base = embeddings(tmp_path, [None] * COUNT)
    assert classes(relabel(base, "label", str(tmp_path / "new.csv"))) == ["a", "b"] * (COUNT // 2)
    other = relabel(base, "species", str(tmp_path / "new.csv"))  # A column that the rows do not have.
    assert classes(other, LabelRules("species")) == ["a", "b"] * (COUNT // 2)


def test_empty_label_removes_the_row(tmp_path):
    (tmp_path / "new.csv").write_text("key,label\nkey-0,\nkey-1,nan\n")
    rows = relabel(embeddings(tmp_path), "label", str(tmp_path / "new.csv"))
    found = index_rows(rows, LabelRules(drop_unlabeled=True), SplitRules())
    assert found.dropped == 1  # "nan" in a CSV file is a text.
    assert found.classes == ("0", "1", "nan")


def test_lists_of_labels(tmp_path):
    lists = [["a"], ["a", "b"]] * (COUNT // 2)
    base = embeddings(tmp_path, keep={"labels": (LISTS, lists)})
    (tmp_path / "new.jsonl").write_text(json.dumps({"key": "key-0", "label": ["c", " a", ""]}) + "\n")
    rows = relabel(base, "labels", str(tmp_path / "new.jsonl"))
    found = index_rows(rows, LabelRules("labels", multi_label=True), SplitRules())
    names = [{found.classes[number] for number in found.labels[row].indices} for row in range(3)]
    assert names == [{"a", "c"}, {"a", "b"}, {"a"}]
    with pytest.raises(ImagebeamError, match="one label a row"):
        relabel(base, "label", str(tmp_path / "new.jsonl"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na,b\n", "has the columns key and label"),
        ("key,class\na,b\n", "has the columns key and label"),
        ("key,label\na,b\na,c\n", "have the key 'a'"),
        ("key,label\n", "has no rows"),
        ('[{"key": "a", "label": "b"}]', "one object per line .* Received: --labels"),
        ("key,label,label\na,b,c\n", "2 columns are called 'label'.* Received: --labels"),
        ("", "has no rows"),
        ("key,label\n,b\n", "Row 1 of the file has no key"),
        ('key,label\na,"b\n', "Row 1 of the file cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_unusable_label_files_are_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "new.csv").write_text(text)
    with pytest.raises(ImagebeamError, match=message) as caught:
        relabel(embeddings(tmp_path), "label", str(tmp_path / "new.csv"))
    assert "--labels" in str(caught.value)
