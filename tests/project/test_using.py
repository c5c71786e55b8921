"""The examples of docs/using.md."""

import re
from pathlib import Path

import pytest

from pipelines import extract
from pipelines.common.flags import JobParser, parse
from tests.support.extracting import small_images
from transforms.inputs.inspection import inspect_input
from transforms.inputs.plan import cut_shard, plan
from transforms.readers.options import ReadOptions
from transforms.readers.units import ListUnit, RecordRef

DOCUMENT = Path(__file__).parents[2] / "docs" / "using.md"


def examples(language=""):
    """The text of each block in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("example", "name"), [(0, "list.csv"), (1, "list.jsonl")])
def test_example_manifests_are_read(tmp_path, example, name):
    (tmp_path / name).write_text(examples()[example])
    options = inspect_input([f"{tmp_path}/{name}"], None, ReadOptions())
    (shard,) = plan([f"{tmp_path}/{name}"], None, 10, options=options)
    (unit,) = cut_shard(shard, 10, options)
    assert isinstance(unit, ListUnit)
    found = [(ref.uri, ref.label) for ref in unit.refs if isinstance(ref, RecordRef)]
    assert found == [(f"{tmp_path}/photos/0001.jpg", "cat"), (f"{tmp_path}/photos/0002.jpg", "dog")]


def test_example_config_is_parsed(tmp_path):
    (text,) = examples("yaml")
    (tmp_path / "run.yaml").write_text(text)
    parser = JobParser("extract", beam=True)
    extract.add_arguments(parser)
    args, beam_args = parse(parser, ["--config", str(tmp_path / "run.yaml"), "--output", "o"])
    assert args.input == ["gs://bucket/shards/*.tar"]
    assert (args.model, args.image_size) == ("ResNet50V2", (224, 224))
    assert [column.name for column in args.keep_columns] == ["camera", "taken"]
    assert beam_args == ["--runner=FlinkRunner"]


def test_first_folder_is_the_label(tmp_path):
    small_images(tmp_path / "photos", 4)
    (unit,) = plan([f"{tmp_path}/photos"], None, 10)
    assert isinstance(unit, ListUnit)
    for ref in unit.refs:
        assert isinstance(ref, RecordRef)
        assert ref.label == Path(ref.uri).relative_to(tmp_path / "photos").parts[0]
