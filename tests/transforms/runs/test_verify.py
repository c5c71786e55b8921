"""`verify` finds any byte of a run that is not what was written."""

import json
import random

import numpy as np
import pytest

from pipelines.cli import run_job
from tests.transforms.runs.test_settle import MODEL, commit, copy_part, report
from transforms.core.errors import ImagebeamError
from transforms.core.sealed_json import seal, unseal
from transforms.models.staged import StagedModel
from transforms.parts import part_files
from transforms.runs.manifest import Times, write_manifest
from transforms.runs.verify import discard, verify

STAGED = StagedModel(
    "m", MODEL.spec, "embedder.keras", "ab" * 32, {"source": "random:0", "file_sha256": None}, MODEL.dimensions
)


def finish(output, reports):
    write_manifest(str(output), {"input": ["/in"]}, STAGED, reports, times=Times(0, 1))
    return output


@pytest.fixture
def finished(tmp_path):
    """A run of three parts, one with failures, and the files beside them."""
    (tmp_path / "run.json").write_text('{"input": ["/in"]}')
    (tmp_path / "model").mkdir()
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "0123456789abcdef.json").write_bytes(seal({"of": {}, "cuts": [[1, 0, 0]], "notes": []}))
    (tmp_path / "model" / "embedder.keras").write_bytes(bytes(range(256)))
    digest = "40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880"  # sha256sum of those 256 bytes
    (tmp_path / "model" / "embedder.bin").write_bytes(bytes(range(256)))
    engine = {"name": "openvino", "files": {"embedder.bin": digest}}
    about = {"model_file": "embedder.keras", "model_sha256": digest, "engine": engine}
    (tmp_path / "model" / "spec.json").write_text(json.dumps(about))
    names = [["a", "b", "c"], ["d", "e"], ["f"]]
    return finish(tmp_path, [report(tmp_path, unit, failed=["e"] if "e" in unit else []) for unit in names])


def test_sound_run_has_no_damage(finished, capsys):
    verdict = verify(str(finished))
    assert (verdict.parts, verdict.rows, verdict.damages) == (3, 5, [])
    assert run_job("verify", [str(finished)]) == 0


def test_any_flipped_byte_is_found(finished):
    chance = random.Random(1)
    files = sorted(path for path in finished.rglob("*") if path.is_file())
    assert len(files) == 10
    for number in range(1000):
        path = files[number % len(files)]
        data = path.read_bytes()
        damaged = bytearray(data)
        damaged[chance.randrange(len(data))] ^= chance.randrange(1, 256)
        path.write_bytes(damaged)
        assert verify(str(finished)).damages, path
        path.write_bytes(data)
    assert not verify(str(finished)).damages


@pytest.mark.slow
def test_any_flipped_byte_of_a_footer_is_found(finished):
    path = next(finished.glob("failures/*"))
    data = path.read_bytes()
    length = int.from_bytes(data[-8:-4], "little") + 8
    for place in range(len(data) - length, len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert [damage.uri for damage in verify(str(finished)).damages] == [str(path)]


@pytest.mark.parametrize("harm", ["cut", "delete", "empty", "swap"])
def test_other_damage_to_a_part_is_found(finished, harm):
    path, other = sorted(finished.glob("embeddings/*"))[:2]
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif harm == "delete":
        path.unlink()
    elif harm == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(other.read_bytes())
    damages = verify(str(finished)).damages
    assert str(path) in {damage.uri for damage in damages}
    discard(damages)
    assert not path.exists()
    assert other.exists()


def test_part_missing_from_the_manifest_is_found(finished):
    old = commit(finished, ["z"])
    damages = verify(str(finished)).damages
    assert [(damage.uri, damage.discard) for damage in damages] == [
        (part_files.embeddings_uri(str(finished), old.unit_id), ())
    ]


def test_copy_of_a_part_is_discarded_alone(finished, capsys):
    part = sorted(finished.glob("embeddings/*"))[-1]
    copy = copy_part(finished, part.stem.removeprefix("part-"))
    assert [damage.discard for damage in verify(str(finished)).damages] == [(str(copy),)]
    assert run_job("verify", [str(finished), "--discard"]) == 3
    assert "Removed: 1 file." in capsys.readouterr().err
    assert not copy.exists()
    assert run_job("verify", [str(finished)]) == 0


def test_renamed_part_is_told_and_stays(finished):
    part = sorted(finished.glob("embeddings/*"))[-1]
    renamed = part.rename(part.with_name(part_files.part_name("f" * 16)))
    damages = verify(str(finished)).damages
    assert {damage.uri for damage in damages} == {str(part), str(renamed)}
    discard(damages)
    assert renamed.exists()


def test_damaged_file_beside_the_parts_is_discarded(finished):
    stray = finished / "embeddings" / part_files.part_name("f" * 16)
    stray.write_bytes(b"PAR1")
    damages = verify(str(finished)).damages
    assert [(damage.uri, damage.discard) for damage in damages] == [(str(stray), (str(stray),))]


def test_files_that_are_gone_are_not_counted_as_removed(finished):
    next(finished.glob("embeddings/*")).unlink()
    assert discard(verify(str(finished)).damages) == 0


@pytest.mark.parametrize("content", ['{"name": "app", "icons": []}', "[]", "", "{}"])
@pytest.mark.parametrize("neighbour", ["index.html", "model/weights.bin", "embeddings/words.parquet"])
def test_manifest_of_something_else_stays(tmp_path, capsys, content, neighbour):
    manifest = tmp_path / "manifest.json"
    manifest.write_text(content)
    (tmp_path / neighbour).parent.mkdir(exist_ok=True)
    (tmp_path / neighbour).write_text("mine")
    assert run_job("verify", [str(tmp_path), "--discard"]) == 2
    assert "no run of Imagebeam" in capsys.readouterr().err
    assert manifest.read_text() == content


def test_sealed_file_that_is_no_manifest_stays(tmp_path):
    manifest = tmp_path / "manifest.json"
    manifest.write_bytes(seal({"of": {}, "cuts": []}))
    (tmp_path / "run.json").write_text("{}")
    assert run_job("verify", [str(tmp_path), "--discard"]) == 2
    assert manifest.exists()


def test_foreign_files_are_ignored(finished):
    (finished / "plan" / "mine.json").write_text("{")
    (finished / "notes.txt").write_text("mine")
    assert verify(str(finished)).damages == []


def test_key_in_two_parts_is_found(tmp_path):
    finish(tmp_path, [report(tmp_path, ["a", "b"]), report(tmp_path, ["b"])])
    (damage,) = verify(str(tmp_path)).damages
    assert "'b'" in damage.problem


def test_nan_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(np, "zeros", lambda shape, dtype: np.full(shape, np.nan, dtype))
    finish(tmp_path, [report(tmp_path, ["a"])])
    (damage,) = verify(str(tmp_path)).damages
    assert "NaN" in damage.problem


def test_unfinished_run_is_refused(tmp_path):
    with pytest.raises(ImagebeamError, match=r"no manifest\.json"):
        verify(str(tmp_path))
    assert run_job("verify", [str(tmp_path)]) == 2


@pytest.mark.parametrize("content", [{"a": {"b": [1, "}"]}}, {"text": "}\n} }"}])
@pytest.mark.parametrize("indent", [None, 1])
def test_sealed_json_round_trips(content, indent):
    data = seal(content, indent)
    assert json.loads(data).keys() == {*content, "sha256_of_the_above"}
    assert unseal(data) == content
