"""Nothing is embedded twice: what a rerun takes over from the parts that are there, never a wrong vector."""

import hashlib
import io
import json
import os
import shutil

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.cli import run_job
from pipelines.runtime import model_staging
from tests.support import plain_runs
from tests.support.fakes import ChannelMeans
from tests.support.gcs_server import gcs as emulated  # noqa: F401
from tests.support.image_samples import encode
from tests.support.image_samples import picture as sample_picture
from tests.support.plain_runs import StagedFake, extract, plain, rows_of
from transforms import storage
from transforms.core.spec import EmbedderSpec, Pooling
from transforms.parts import part_files
from transforms.readers.image_files import read_file


def picture(number):
    """A PNG of its own for each number, and the means of its channels."""
    pixels = np.random.default_rng(number).integers(0, 256, (32 + number % 3, 33, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue(), pixels.mean(axis=(0, 1))


class Counting:
    """Runs whose model counts the images it is given."""

    def __init__(self, patch, spec=None):
        self._patch = patch
        self._embedder = ChannelMeans(spec or EmbedderSpec("VGG16", "0" * 64, image_size=None))
        patch.setattr(model_staging, "stage_model", lambda *_, **__: StagedFake(self._embedder))

    def of(self, spec):
        """The same with a model of another spec."""
        return Counting(self._patch, spec)

    def run(self, patterns, output, *flags):
        """(exit code, images that went through the model)."""
        self._embedder.batches.clear()
        code = extract(patterns, output, *flags)
        return code, sum(shape[0] for shape in self._embedder.batches)


@pytest.fixture
def counting():
    with plain(), pytest.MonkeyPatch.context() as patch:
        yield Counting(patch)


def write_files(folder, pictures):
    """Files by name, of the pictures with these numbers; what else is in the folder goes. Others stay untouched."""
    folder.mkdir(exist_ok=True)
    for path in folder.rglob("*.png"):
        if path.relative_to(folder).as_posix() not in pictures:
            path.unlink()
    for name, number in pictures.items():
        path, data = folder / name, picture(number)[0]
        if not path.exists() or path.read_bytes() != data:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
    return folder


def flip(part, column):
    """Change one bit of a column's data in a part."""
    group = pq.ParquetFile(part).metadata.row_group(0)
    chunks = [group.column(index) for index in range(group.num_columns)]
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)
    data = bytearray(part.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 1
    part.write_bytes(data)


def assert_rows(output, folder, pictures):
    rows = rows_of(output)
    assert rows.keys() == {str(folder / name) for name in pictures}
    for name, number in pictures.items():
        np.testing.assert_allclose(rows[str(folder / name)], picture(number)[1], rtol=1e-6)


def totals(output):
    return json.loads((output / "manifest.json").read_text())["totals"]


class TestFiles:
    def test_only_added_files_are_embedded(self, counting, tmp_path):
        pictures = {f"{number:03d}.png": number for number in range(60)}
        folder, output = write_files(tmp_path / "in", pictures), tmp_path / "out"
        assert counting.run([folder], output, "--rows_per_unit", 8) == (0, 60)
        more = pictures | {f"{number:03d}-x.png": 100 + number for number in range(0, 60, 7)}
        write_files(folder, more)
        assert counting.run([folder], output, "--rows_per_unit", 8) == (0, len(more) - 60)
        assert_rows(output, folder, more)
        sums = totals(output)
        assert (sums["embedded"], sums["failed"], sums["records"]) == (len(more), 0, len(more))
        assert sums["reused"] > 0
        assert not (output / "replaced").exists()
        assert counting.run([folder], output, "--rows_per_unit", 8) == (0, 0)

    def test_rerun_writes_the_same_bytes_as_a_fresh_run(self, counting, tmp_path):
        pictures = {f"{number:03d}.png": number for number in range(40)}
        folder = write_files(tmp_path / "in", pictures)
        counting.run([folder], tmp_path / "out", "--rows_per_unit", 8)
        del pictures["007.png"]
        write_files(folder, pictures | {"003.png": 77, "0200.png": 78})
        assert counting.run([folder], tmp_path / "out", "--rows_per_unit", 8, "--prune") == (0, 2)
        counting.run([folder], tmp_path / "fresh", "--rows_per_unit", 8)
        ours, fresh = (
            {path.name: path.read_bytes() for path in (tmp_path / name / "embeddings").iterdir()}
            for name in ("out", "fresh")
        )
        assert ours == fresh

    def test_unchanged_files_are_not_opened(self, counting, tmp_path, monkeypatch):
        folder = write_files(tmp_path / "in", {f"{number}.png": number for number in range(10)})
        counting.run([folder], tmp_path / "out", "--rows_per_unit", 100)
        write_files(folder, {f"{number}.png": number for number in range(11)})
        from transforms.embed import embed_units

        opened: list[str] = []
        monkeypatch.setattr(
            embed_units, "read_file", lambda ref, limit: opened.append(ref.uri) or read_file(ref, limit)
        )
        assert counting.run([folder], tmp_path / "out", "--rows_per_unit", 100) == (0, 1)
        assert opened == [str(folder / "10.png")]

    def test_touched_files_are_reused_by_their_digest(self, counting, tmp_path):
        pictures = {f"{number}.png": number for number in range(10)}
        folder = write_files(tmp_path / "in", pictures)
        counting.run([folder], tmp_path / "out")
        for path in folder.iterdir():
            os.utime(path, (1, 1))
        assert counting.run([folder], tmp_path / "out") == (0, 0)
        assert_rows(tmp_path / "out", folder, pictures)

    def test_file_moved_to_another_class_gets_its_label(self, counting, tmp_path):
        pictures = {f"a/{number}.png": number for number in range(10)}
        folder = write_files(tmp_path / "in", pictures)
        counting.run([folder], tmp_path / "out")
        moved = {f"{'ab'[number % 2]}/{number}.png": number for number in range(10)}
        write_files(folder, moved)
        assert counting.run([folder], tmp_path / "out", "--prune") == (0, 0)
        assert_rows(tmp_path / "out", folder, moved)
        table = pq.read_table(tmp_path / "out" / "embeddings")
        assert dict(zip(table["key"].to_pylist(), table["label"].to_pylist(), strict=True)) == {
            str(folder / name): name[0] for name in moved
        }

    def test_files_with_swapped_contents_swap_vectors(self, counting, tmp_path):
        pictures = {f"{number}.png": number for number in range(10)}
        folder = write_files(tmp_path / "in", pictures)
        counting.run([folder], tmp_path / "out", "--rows_per_unit", 3)
        shifted = {f"{number}.png": (number + 3) % 10 for number in range(10)}
        write_files(folder, shifted)
        assert counting.run([folder], tmp_path / "out", "--rows_per_unit", 3) == (0, 0)
        assert_rows(tmp_path / "out", folder, shifted)

    def test_equal_files_are_embedded_once(self, counting, tmp_path):
        pictures = {f"{number:03d}.png": number % 7 for number in range(50)}
        folder = write_files(tmp_path / "in", pictures)
        assert counting.run([folder], tmp_path / "out", "--rows_per_unit", 20) == (0, 7)
        assert_rows(tmp_path / "out", folder, pictures)
        assert totals(tmp_path / "out")["equal"] == 43

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.dictionaries(st.integers(0, 30), st.integers(0, 40), min_size=1), min_size=2, max_size=4))
    def test_only_new_images_are_embedded_after_any_change(self, counting, tmp_path_factory, contents):
        tmp_path = tmp_path_factory.mktemp("changes")
        seen: set[int] = set()
        for content in contents:
            pictures = {f"{'abc'[name % 3]}/{name:02d}.png": number for name, number in content.items()}
            folder = write_files(tmp_path / "in", pictures)
            new = set(content.values()) - seen
            assert counting.run([folder], tmp_path / "out", "--rows_per_unit", 4, "--prune") == (0, len(new))
            assert_rows(tmp_path / "out", folder, pictures)
            seen = set(content.values())  # What is pruned is gone.


SHARDS = ("tar", "tfrecord", "parquet")


def write_shard(folder, kind, numbers):
    """One shard of pictures in this order, written anew; returns the layout."""
    records = [picture(number) for number in numbers]
    if folder.exists():
        shutil.rmtree(folder)
    return plain_runs.write_layout(folder, kind, records, 1)


@pytest.mark.parametrize("kind", SHARDS)
class TestShards:
    def run(self, counting, layout, output, *flags):
        code, count = counting.run(layout.patterns, output, "--rows_per_unit", 5, *flags)
        plain_runs.assert_whole(output, layout)
        return code, count

    @pytest.mark.parametrize(
        ("numbers", "new"),
        [
            ([99, *range(40)], 1),
            ([*range(20), 99, *range(20, 40)], 1),
            ([*range(40), 99], 1),
            (range(1, 40), 0),
            (range(39, -1, -1), 0),
            ([*range(7), 99, *range(8, 40)], 1),
            ([*range(40), *range(40)], 0),
        ],
        ids=["before", "within", "behind", "one less", "backwards", "changed", "twice"],
    )
    def test_rewritten_shard_embeds_only_new_images(self, counting, tmp_path, kind, numbers, new):
        output = tmp_path / "out"
        assert self.run(counting, write_shard(tmp_path / "in", kind, range(40)), output) == (0, 40)
        layout = write_shard(tmp_path / "in", kind, numbers)
        assert self.run(counting, layout, output, "--prune") == (0, new)
        assert self.run(counting, layout, output) == (0, 0)

    def test_damaged_part_is_not_reused(self, counting, tmp_path, kind):
        output = tmp_path / "out"
        self.run(counting, write_shard(tmp_path / "in", kind, range(40)), output)
        part = max(output.glob("embeddings/*.parquet"), key=lambda path: pq.read_metadata(path).num_rows)
        flip(part, "embedding")
        code, count = self.run(counting, write_shard(tmp_path / "in", kind, [99, *range(40)]), output)
        assert (code, count) == (0, 1 + pq.read_metadata(part).num_rows)


class TestManifests:
    @pytest.mark.parametrize("keyed", [False, True])
    def test_changed_rows_embed_only_new_images(self, counting, tmp_path, keyed):
        folder = write_files(tmp_path / "images", {f"{number}.png": number for number in range(60)})
        path, output = tmp_path / "list.csv", tmp_path / "out"

        def run(numbers, label):
            keys = {number: hashlib.sha256(str(number).encode()).hexdigest() for number in numbers}
            lines = [f"images/{number}.png,{label}{number % 3}" + f",{keys[number]}" * keyed for number in numbers]
            path.write_text("\n".join(["uri,label" + ",key" * keyed, *lines]))
            code, count = counting.run([path], output, "--rows_per_unit", 6, "--prune")
            rows = rows_of(output)
            assert len(rows) == len(numbers)
            for index, number in enumerate(numbers):
                key = keys[number] if keyed else f"{path}#{index}"
                np.testing.assert_allclose(rows[key], picture(number)[1], rtol=1e-6)
            table = pq.read_table(output / "embeddings")
            assert {label[:-1] for label in table["label"].to_pylist()} == {label}
            return code, count

        assert folder.is_dir()
        assert run(range(40), "a") == (0, 40)
        assert run([50, *range(20), 51, *range(21, 40)], "a") == (0, 2)
        assert run([50, *range(20), 51, *range(21, 40)], "b") == (0, 0)

    def test_changed_and_missing_files_are_noticed(self, counting, tmp_path):
        pictures = {f"{number}.png": number for number in range(10)}
        folder = write_files(tmp_path / "images", pictures)
        path, output = tmp_path / "list.csv", tmp_path / "out"
        path.write_text("\n".join(["uri,key", *(f"images/{number}.png,{number}" for number in range(11))]))

        def assert_pictures(expected):
            rows = rows_of(output)
            assert rows.keys() == {str(row) for row in expected}
            for row, number in expected.items():
                np.testing.assert_allclose(rows[str(row)], picture(number)[1], rtol=1e-6)

        expected = {number: number for number in range(10)}
        assert counting.run([path], output, "--rows_per_unit", 4) == (0, 10)
        assert_pictures(expected)
        assert counting.run([path], output, "--rows_per_unit", 4) == (0, 0)
        write_files(folder, pictures | {"3.png": 33, "10.png": 10})
        assert counting.run([path], output, "--rows_per_unit", 4) == (0, 2)
        assert_pictures(expected | {3: 33, 10: 10})
        assert counting.run([path], output, "--rows_per_unit", 4) == (0, 0)
        (folder / "5.png").unlink()
        assert counting.run([path], output, "--rows_per_unit", 4) == (0, 0)
        assert_pictures({row: number for row, number in (expected | {3: 33, 10: 10}).items() if row != 5})
        assert plain_runs.failed_of(output) == {"5"}


class TestOtherRuns:
    @pytest.fixture
    def finished(self, counting, tmp_path):
        """A folder of 30 pictures, and the output of a run over it."""
        folder = write_files(tmp_path / "in", {f"{number}.png": number for number in range(30)})
        counting.run([folder], tmp_path / "before", "--rows_per_unit", 7)
        return folder, tmp_path / "before"

    @pytest.mark.parametrize("kind", plain_runs.KINDS)
    def test_other_run_is_reused_for_any_layout_of_its_images(self, counting, tmp_path, finished, kind):
        _, before = finished
        order = np.random.default_rng(0).permutation(35).tolist()
        layout = plain_runs.write_layout(tmp_path / "new", kind, [picture(number) for number in order], 3)
        output = tmp_path / "out"
        assert counting.run(layout.patterns, output, "--rows_per_unit", 4, "--reuse", before) == (0, 5)
        plain_runs.assert_whole(output, layout)
        assert totals(output)["reused"] == 30
        assert not (output / "reuse").exists()

    def test_own_run_is_reused_for_files_moved_far_away(self, counting, tmp_path):
        pictures = {f"a/{number:03d}.png": number for number in range(200)}
        folder, output = write_files(tmp_path / "in", pictures), tmp_path / "out"
        counting.run([folder], output, "--rows_per_unit", 2)
        moved = {f"z/{199 - number:03d}.png": number for number in range(200)}
        write_files(folder, moved)
        assert counting.run([folder], output, "--rows_per_unit", 2, "--reuse", output, "--prune") == (0, 0)
        assert_rows(output, folder, moved)

    def test_run_of_another_spec_is_refused(self, counting, tmp_path, finished, capsys):
        folder, before = finished
        other = counting.of(EmbedderSpec("VGG16", "0" * 64, image_size=None, pooling=Pooling.MAX))
        assert other.run([folder], tmp_path / "out", "--reuse", before) == (2, 0)
        assert "pooling: avg != max" in capsys.readouterr().err

    def test_run_of_another_embedding_dtype_is_refused(self, counting, tmp_path, finished, capsys):
        folder, before = finished
        flags = ("--reuse", before, "--embedding_dtype", "float16")
        assert counting.run([folder], tmp_path / "out", *flags) == (2, 0)
        assert "embedding_dtype: float32 != float16" in capsys.readouterr().err

    def test_run_with_truncated_images_is_refused(self, counting, tmp_path, finished, capsys):
        folder, _ = finished
        counting.run([folder], tmp_path / "loose", "--truncated_images", "accept")
        assert counting.run([folder], tmp_path / "out", "--reuse", tmp_path / "loose") == (2, 0)
        assert "truncated_images" in capsys.readouterr().err

    @pytest.mark.parametrize("damage", ["cut", "sha256"])
    def test_damaged_part_that_is_found_before_the_start_is_refused(self, counting, tmp_path, finished, damage, capsys):
        folder, before = finished
        part = sorted(before.glob("embeddings/*.parquet"))[1]
        if damage == "cut":
            part.write_bytes(part.read_bytes()[:-100])
        else:
            flip(part, "sha256")
        assert counting.run([folder], tmp_path / "out", "--reuse", before) == (2, 0)
        told = " ".join(capsys.readouterr().err.split())
        assert str(part) in told
        assert f"--reuse {before}" in told
        assert f"imagebeam verify {before}" in told
        assert "delete it" not in told
        assert run_job("verify", [str(before), "--discard"]) == 3
        rows = sum(pq.read_metadata(path).num_rows for path in before.glob("embeddings/*.parquet"))
        assert 0 < rows < 30
        assert counting.run([folder], tmp_path / "out", "--reuse", before) == (0, 30 - rows)

    @pytest.mark.parametrize("column", ["embedding", "width"])
    def test_damaged_part_that_is_found_on_the_way_is_told_once(self, counting, tmp_path, finished, column, capsys):
        folder, before = finished
        part = max(before.glob("embeddings/*.parquet"), key=lambda path: pq.read_metadata(path).num_rows)
        flip(part, column)
        expected = (0, pq.read_metadata(part).num_rows)
        output = tmp_path / "out"
        assert counting.run([folder], output, "--rows_per_unit", 2, "--reuse", before) == expected
        (warning,) = [line for line in capsys.readouterr().err.splitlines() if "embedded again: " in line]
        assert str(part) in warning
        assert_rows(output, folder, {f"{number}.png": number for number in range(30)})

    @pytest.mark.parametrize("flags", [("--reuse", "nowhere"), ("--overwrite", "--reuse", "before")])
    def test_missing_run_and_overwrite_are_refused(self, counting, tmp_path, finished, flags, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert counting.run([finished[0]], tmp_path / "out", *flags) == (2, 0)


class TestWhatIsNotTakenOver:
    @pytest.fixture
    def run(self, counting, tmp_path):
        folder, output = tmp_path / "in", tmp_path / "out"

        def run(pictures, *flags):
            write_files(folder, pictures)
            return counting.run([folder], output, *flags)

        return run

    def test_overwrite_embeds_everything(self, run):
        pictures = {f"{number}.png": number for number in range(10)}
        run(pictures)
        assert run(pictures | {"x.png": 99}, "--overwrite") == (0, 11)
        assert run(pictures | {"x.png": 99, "y.png": 98}) == (0, 1)

    def test_stricter_image_rules_reuse_nothing(self, run):
        pictures = {f"{number}.png": number for number in range(10)}
        run(pictures, "--max_image_pixels", 2000)
        assert run(pictures | {"x.png": 99}, "--max_image_pixels", 1500) == (0, 11)
        assert run(pictures | {"x.png": 99, "y.png": 98}, "--max_image_pixels", 2000) == (0, 1)

    def test_stricter_image_rules_leave_no_row_of_looser_ones(self, run, tmp_path):
        """Of unchanged input, too: what a fresh run makes a failure of is one."""
        pictures = {f"{number}.png": number for number in range(10)}
        small = [f"{number}.png" for number in range(10) if number % 3 < 2]
        assert run(pictures, "--max_image_pixels", 2000) == (0, 10)
        assert run(pictures, "--max_image_pixels", 1100) == (0, len(small))
        assert_rows(tmp_path / "out", tmp_path / "in", {name: pictures[name] for name in small})
        assert run(pictures, "--max_image_pixels", 1100) == (0, 0)
        assert run(pictures, "--max_image_pixels", 2000) == (0, 10 - len(small))
        assert_rows(tmp_path / "out", tmp_path / "in", pictures)
        assert run(pictures, "--max_image_pixels", 1100) == (0, len(small))

    def test_large_records_are_rows_once_they_are_accepted(self, run, tmp_path):
        pictures = {f"{number}.png": number for number in range(10)}
        sizes = sorted(len(picture(number)[0]) for number in pictures.values())
        flags = ("--max_failure_rate", 1, "--max_record_bytes")
        small = sum(size <= sizes[4] for size in sizes)
        assert run(pictures, *flags, sizes[4]) == (0, small)
        assert run(pictures, *flags, sizes[4]) == (0, 0)
        assert run(pictures, *flags, sizes[-1]) == (0, 10 - small)
        assert run(pictures, *flags, sizes[4]) == (0, 0)
        assert_rows(tmp_path / "out", tmp_path / "in", pictures)

    def test_truncated_images_are_rows_once_they_are_accepted(self, run, tmp_path):
        (tmp_path / "in").mkdir()
        whole = encode(sample_picture(64, 64, seed=1), "JPEG")
        (tmp_path / "in" / "cut.jpg").write_bytes(whole[: len(whole) * 3 // 4])
        pictures = {f"{number}.png": number for number in range(10)}
        assert run(pictures, "--max_failure_rate", 1) == (0, 10)
        assert run(pictures, "--truncated_images", "accept") == (0, 1)

    def test_failures_are_embedded_again(self, run, tmp_path):
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "bad.png").write_bytes(picture(1)[0][:50])
        pictures = {f"{number}.png": number for number in range(10)}
        run(pictures | {})
        (tmp_path / "in" / "bad.png").write_bytes(picture(1)[0][:50])
        assert run(pictures)[1] == 0


def test_killed_run_still_reuses_replaced_rows(counting, tmp_path, monkeypatch):
    """Rows whose part was written over are still there for the units that want them."""
    output = tmp_path / "out"
    layout = write_shard(tmp_path / "in", "tfrecord", range(40))
    counting.run(layout.patterns, output, "--rows_per_unit", 5)
    layout = write_shard(tmp_path / "in", "tfrecord", [99, *range(40)])
    write_unit, done = part_files.write_unit, list[object]()

    def dies(*args, **settings):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(args)
        return write_unit(*args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(part_files, "write_unit", dies)
        assert counting.run(layout.patterns, output, "--rows_per_unit", 5)[1] == 1
    assert (output / "replaced").exists()
    assert counting.run(layout.patterns, output, "--rows_per_unit", 5) == (0, 0)
    plain_runs.assert_whole(output, layout)
    assert not (output / "replaced").exists()


def test_retried_records_are_reused_from_other_runs(counting, tmp_path):
    folder = write_files(tmp_path / "in", {f"{number}.png": number for number in range(10)})
    counting.run([folder], tmp_path / "before")
    status = (folder / "3.png").stat()
    (folder / "3.png").write_bytes(bytes(status.st_size))
    os.utime(folder / "3.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    counting.run([folder], tmp_path / "out", "--reuse", tmp_path / "before")


def test_reuse_works_on_object_storage(counting, tmp_path, emulated):  # noqa: F811
    base = f"gs://{emulated.bucket}"
    for number in range(20):
        storage.publish(f"{base}/in/{number:02d}.png", picture(number)[0])
    assert counting.run([f"{base}/in"], f"{base}/out", "--rows_per_unit", 6) == (0, 20)
    storage.publish(f"{base}/in/07-x.png", picture(99)[0])
    storage.publish(f"{base}/in/03.png", picture(98)[0])
    assert counting.run([f"{base}/in"], f"{base}/out", "--rows_per_unit", 6) == (0, 2)
    layout = plain_runs.write_layout(tmp_path / "tars", "tar", [picture(number) for number in (*range(20), 97)], 2)
    assert counting.run(layout.patterns, f"{base}/other", "--reuse", f"{base}/out") == (0, 2)  # 3 was replaced
    names = {info.uri for info in storage.list_files(f"{base}/out")} | {
        info.uri for info in storage.list_files(f"{base}/other")
    }
    assert not [name for name in names if "/reuse/" in name or "/replaced/" in name]
