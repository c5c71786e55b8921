"""Folders of Delta, Iceberg and Hudi tables: files that are not the table's are not read as if they were."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.gcs_server import gcs  # noqa: F401
from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.core.formats import InputFormat
from transforms.inputs.inspection import inspect_input
from transforms.readers.options import ReadOptions

NAMES = ("old", "new", "part=a b/third")
ADDED = [{"add": {"path": f"{name}.parquet"}} for name in ("old", "new", "part=a%20b/third")]
REMOVED = [{"remove": {"path": "old.parquet"}}]


def write_images(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [b"1"]}), path)


def write_delta(folder, *commits, first=0):
    """A table of Parquet files, and a log with these actions."""
    (folder / "_delta_log").mkdir(parents=True)
    for number, actions in enumerate(commits, start=first):
        text = "".join(json.dumps(action) + "\n" for action in actions)
        (folder / "_delta_log" / f"{number:020}.json").write_text(text)
    for name in NAMES:
        write_images(folder / f"{name}.parquet")


def is_read(*patterns):
    assert inspect_input([str(pattern) for pattern in patterns], None, ReadOptions()).image_column == "image"


def is_refused(*patterns, match):
    with pytest.raises(ImagebeamError, match=match):
        inspect_input([str(pattern) for pattern in patterns], None, ReadOptions())


# Delta.


@pytest.mark.parametrize(
    "later",
    [
        REMOVED,
        [{"remove": {"path": "part=a%20b/third.parquet"}}],
        [{"add": {"path": "new.parquet", "deletionVector": {"storageType": "u"}}}],
        [{"add": {"path": "new.parquet", "deletionVector": {"storageType": "u"}}}, {"remove": {"path": "new.parquet"}}],
    ],
    ids=["removed", "removed from a partition", "rows removed", "rows removed, told in another order"],
)
def test_a_delta_table_with_removed_files_is_refused(tmp_path, later):
    write_delta(tmp_path / "t", ADDED, later)
    for pattern in ("t", "t/*.parquet", "t/**"):
        is_refused(tmp_path / pattern, match=r"Delta table, which holds 1 file .*vacuum")


def test_a_delta_table_with_files_that_were_never_committed_is_refused(tmp_path):
    write_delta(tmp_path / "t", ADDED[1:])
    is_refused(tmp_path / "t", match=r"Delta table, which holds 1 file .*old\.parquet")


def test_files_of_a_delta_table_that_are_named_are_read_and_not_asked_for_twice(tmp_path, monkeypatch):
    write_delta(tmp_path / "t", ADDED, REMOVED)
    asked = []
    roots = storage.roots
    monkeypatch.setattr(storage, "roots", lambda pattern: asked.append(pattern) or roots(pattern))
    paths = [str(tmp_path / "t" / name) for name in ("new.parquet", "old.parquet")]
    is_read(*paths)
    assert sorted(asked) == paths


def test_a_delta_table_whose_files_are_all_its_own_is_read(tmp_path):
    gone = {"remove": {"path": "gone.parquet"}}
    write_delta(tmp_path / "t", REMOVED, ADDED, [gone, {"commitInfo": 1}])
    (tmp_path / "t" / "_delta_log" / f"{9:020}.json").write_text("no JSON\n")
    is_read(tmp_path / "t")


def test_a_delta_table_is_found_above_a_partition_and_below_the_input(tmp_path):
    write_delta(tmp_path / "lake" / "t", ADDED, [{"remove": {"path": "part=a%20b/third.parquet"}}])
    for pattern in ("lake", "lake/*/*/*.parquet", "lake/t/part=a b", "lake/t/part=a b/*.parquet"):
        is_refused(tmp_path / pattern, match=r"lake/t is the folder of a Delta table")


def test_a_partition_without_removed_files_is_read(tmp_path):
    write_delta(tmp_path / "t", ADDED, REMOVED)
    is_read(tmp_path / "t" / "part=a b")


def test_a_delta_table_of_uris_is_refused_too(tmp_path):
    write_delta(tmp_path / "t", ADDED, REMOVED)
    for path in (tmp_path / "t").rglob("*.parquet"):
        pq.write_table(pa.table({"uri": ["a.png"]}), path)
    with pytest.raises(ImagebeamError, match="Delta table"):
        inspect_input([f"{tmp_path}/t"], InputFormat.MANIFEST, ReadOptions())


def test_a_delta_table_on_gs_is_found(gcs, tmp_path):  # noqa: F811
    write_delta(tmp_path / "t", ADDED, REMOVED)
    for path in (tmp_path / "t").rglob("*.*"):
        storage.publish(f"gs://{gcs.bucket}/lake/{path.relative_to(tmp_path)}", path.read_bytes())
    is_refused(f"gs://{gcs.bucket}/lake", match=r"lake/t is the folder of a Delta table.*old\.parquet")
    is_read(f"gs://{gcs.bucket}/lake/t/part=a b")


ACTION = pa.struct([("path", pa.string()), ("deletionVector", pa.struct([("storageType", pa.string())]))])


def write_checkpoint(folder, name, rows, kind=ACTION, column="add"):
    """As the protocol of Delta has it: a row for each action, in a column of its kind."""
    path = folder / "_delta_log" / f"{name}.parquet"
    path.parent.mkdir(exist_ok=True)
    values = pa.array([None, *rows], kind)
    pq.write_table(pa.table({column: values, "txn": pa.nulls(len(values))}), path)


THIRD = "part=a%20b/third.parquet"
CHECKPOINTS = {
    # The files of a checkpoint, those of which rows are deleted, what is removed later, and the file that is refused.
    "all there": (["old.parquet", "new.parquet", THIRD], [], [], None),
    "one removed before": (["new.parquet", THIRD], [], [], "old.parquet"),
    "one removed after": (["old.parquet", "new.parquet", THIRD], [], REMOVED, "old.parquet"),
    "rows removed": (["old.parquet", THIRD], ["new.parquet"], [], "new.parquet"),
}


@pytest.mark.parametrize("layout", ["classic", "in parts", "in sidecars"])
@pytest.mark.parametrize(("whole", "changed", "later", "gone"), CHECKPOINTS.values(), ids=list(CHECKPOINTS))
def test_checkpoints_say_what_a_delta_table_has(tmp_path, whole, changed, later, gone, layout):
    """Once the log before them is cleaned up, nothing else says so."""
    write_delta(tmp_path, [{"commitInfo": 1}], later, first=10)
    rows = [{"path": path, "deletionVector": None} for path in whole]
    rows += [{"path": path, "deletionVector": {"storageType": "u"}} for path in changed]
    number = f"{10:020}.checkpoint"
    if layout == "classic":
        write_checkpoint(tmp_path, number, rows)
    elif layout == "in parts":
        write_checkpoint(tmp_path, f"{number}.0000000001.0000000002", rows[:1])
        write_checkpoint(tmp_path, f"{number}.0000000002.0000000002", rows[1:])
        write_checkpoint(tmp_path, f"{11:020}.checkpoint.0000000001.0000000002", [])  # Its other part is not there yet.
    else:
        write_checkpoint(tmp_path, "_sidecars/a", rows)
        sidecar = pa.struct([("path", pa.string())])
        uuid = "80a083e8-7026-4e79-81be-64bd76c43a11"
        write_checkpoint(tmp_path, f"{number}.{uuid}", [{"path": "a.parquet"}], sidecar, "sidecar")
    if gone is None:
        is_read(tmp_path)
    else:
        is_refused(tmp_path, match=rf"Delta table, which holds 1 file .*{gone}")


def test_commits_before_a_checkpoint_are_not_read(tmp_path, monkeypatch):
    """Of a table of years there are thousands, each of which is a request."""
    write_delta(tmp_path, *[[{"commitInfo": 1}]] * 12)
    write_checkpoint(tmp_path, f"{10:020}.checkpoint", [{"path": one["add"]["path"]} for one in ADDED])
    read = []
    real = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda uri, version=None: read.append(uri) or real(uri, version))
    is_read(tmp_path)
    assert read == [f"{tmp_path}/_delta_log/{11:020}.json"]


def test_what_a_delta_log_without_its_beginning_tells_counts(tmp_path):
    write_delta(tmp_path / "t", [{"commitInfo": 1}], first=5)
    is_read(tmp_path / "t")
    write_delta(tmp_path / "u", REMOVED, first=5)
    (tmp_path / "u" / "_delta_log" / f"{5:020}.checkpoint.parquet").write_bytes(b"damaged")
    is_refused(tmp_path / "u", match=r"Delta table, which holds 1 file")


# Iceberg.


def write_iceberg(folder, summary, name="v3.metadata.json", operations=("append",), files=("a", "p=1/b")):
    """A table whose current snapshot has this summary."""
    (folder / "metadata").mkdir(parents=True, exist_ok=True)
    snapshots = [
        {"snapshot-id": 2**62 + number, "summary": {"operation": operation}}
        for number, operation in enumerate(operations)
    ]
    snapshots[-1]["summary"] |= summary
    content = json.dumps(
        {"format-version": 2, "current-snapshot-id": snapshots[-1]["snapshot-id"], "snapshots": snapshots}
    ).encode()
    (folder / "metadata" / name).write_bytes(gzip.compress(content) if ".gz" in name else content)
    for file in files:
        write_images(folder / "data" / f"{file}.parquet")


TWO = {"total-data-files": "2", "total-delete-files": "0"}


@pytest.mark.parametrize("name", ["v10.metadata.json", "00010-ab-cd.metadata.json", "v10.gz.metadata.json"])
def test_an_iceberg_table_whose_files_are_all_its_own_is_read(tmp_path, name):
    write_iceberg(tmp_path, {"total-data-files": "7"}, "v9.metadata.json")
    write_iceberg(tmp_path, TWO, name, operations=("append", "overwrite"))
    write_images(tmp_path / "metadata" / "partition-stats-1.parquet")
    is_read(tmp_path / "data")


@pytest.mark.parametrize(
    ("summary", "message"),
    [
        ({"total-data-files": "1"}, "holds 2 Parquet files, where its current snapshot has 1"),
        ({"total-data-files": "3"}, "holds 2 Parquet files, where its current snapshot has 3"),
        ({**TWO, "total-delete-files": "1"}, "1 file of its current snapshot say which rows of others are deleted"),
        ({"operation": "overwrite"}, "has been rewritten"),
    ],
    ids=["a file left behind", "a file elsewhere", "rows deleted", "files not counted"],
)
def test_an_iceberg_table_of_other_rows_is_refused(tmp_path, summary, message):
    write_iceberg(tmp_path / "lake" / "t", summary)
    for pattern in ("lake", "lake/t", "lake/t/data", "lake/t/data/p=1", "lake/t/data/*.parquet"):
        is_refused(tmp_path / pattern, match=rf"lake/t is the folder of an Iceberg table, and .*{message}")


def test_an_iceberg_table_that_was_only_appended_to_is_read(tmp_path):
    write_iceberg(tmp_path, {}, operations=("append", "append"))
    is_read(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format-version": 2, "snapshots": [1]}', "\x1f\x8b"])
def test_metadata_of_something_else_says_nothing(tmp_path, content):
    write_iceberg(tmp_path, TWO)
    (tmp_path / "metadata" / "v4.metadata.json").write_text(content)
    is_read(tmp_path)


# Hudi.


@pytest.mark.parametrize(
    ("files", "commits", "is_fine"),
    [
        (["f1_0-1-0_1.parquet", "f2_0-1-0_1.parquet", "p/f1_0-1-0_1.parquet"], ["1.commit"], True),
        (["f1_0-1-0_1.parquet", "f1_0-2-0_2.parquet"], ["1.commit", "2.commit"], False),
        (["f1_0-1-0_1.parquet", "f2_0-2-0_2.parquet"], ["1.commit", "timeline/2_3.replacecommit"], False),
        (["f1_0-1-0_1.parquet"], ["1.deltacommit"], False),
    ],
    ids=["one version", "written again", "replaced", "merged on reading"],
)
def test_a_hudi_table_with_older_versions_is_refused(tmp_path, files, commits, is_fine):
    for name in (*commits, "hoodie.properties"):
        (tmp_path / ".hoodie" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ".hoodie" / name).touch()
    for file in files:
        write_images(tmp_path / file)
    if is_fine:
        is_read(tmp_path)
    else:
        is_refused(tmp_path, match="Hudi table")
