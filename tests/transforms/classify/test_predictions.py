"""Predictions from vectors: how the rows of a part are read."""

import numpy as np
import pyarrow as pa
import pytest

from tests.support.embedding_sets import write_output
from transforms.classify import predictions
from transforms.parts.part_files import PartOptions
from transforms.readers.units import WorkUnit
from transforms.training_data.embeddings import open_embeddings


@pytest.mark.parametrize(
    ("kind", "values"),
    [(pa.string_view(), ["2", "10"]), (pa.decimal128(5, 2), [2, 10]), (pa.float64(), [2.0, 10.0])],
    ids=str,
)
def test_labels_of_kept_columns_are_text_whatever_type_holds_them(tmp_path, kind, values):
    write_output(tmp_path / "run", np.zeros((4, 2), np.float32), [None] * 4, keep={"kind": (kind, values * 2)})
    embeddings = open_embeddings([str(tmp_path / "run")])
    work = predictions._LabelVectors(embeddings, PartOptions(keep_columns=(("kind", kind),)), "kind")
    (unit,) = predictions._cut_part(embeddings.groups[0].uri)
    assert isinstance(unit, WorkUnit)
    assert [row.label for row in work.read(unit)] == ["2", "10", "2", "10"]
