"""What runs a model, from the flags to the manifest, in whole runs with small inputs and small models."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.cli import run_job
from pipelines.options.engine import EngineOptions
from pipelines.options.extraction import ModelOptions
from tests.support.extracting import embeddings, extract, manifest, photographs, small_images, write_files
from transforms.core.engines import Engine, PrecisionChoice
from transforms.core.errors import ImagebeamError
from transforms.models.engines import openvino_model, trial
from transforms.models.engines.openvino_model import is_installed

needs_openvino = pytest.mark.skipif(not is_installed(), reason="OpenVINO is not installed: the extra openvino")
MODEL = ("--model", "VGG16", "--weights", "random:0", "--layer", "block1_pool", "--image_size", "32x32")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("photos"), photographs(), 2)


def run(source, output, *flags):
    return extract(source, output, *flags, model=MODEL)


def engine_of(output):
    return json.loads(Path(output, "model", "spec.json").read_text())["engine"]


def assert_equal(ours, theirs, rtol=1e-4):
    assert ours.keys() == theirs.keys()
    for key, vector in theirs.items():
        np.testing.assert_allclose(ours[key], vector, rtol=rtol, atol=1e-5 * np.abs(vector).max(), err_msg=key)


@needs_openvino
def test_engines_agree_and_a_run_may_change_engine(photos, tmp_path):
    for engine in ("keras", "openvino"):
        assert run(photos, tmp_path / engine, "--engine", engine) == 0
        assert manifest(tmp_path / engine)["engine"] == engine_of(tmp_path / engine)
        assert engine_of(tmp_path / engine)["name"] == engine
    expected = embeddings(tmp_path / "keras")
    assert_equal(embeddings(tmp_path / "openvino"), expected)
    fingerprints = {manifest(tmp_path / engine)["fingerprint"] for engine in ("keras", "openvino")}
    assert len(fingerprints) == 1
    (candidate,) = engine_of(tmp_path / "openvino")["trial"]["candidates"]
    assert candidate["largest_difference"] < 1e-5

    for engine in ("keras", "openvino"):
        for part in (tmp_path / "keras" / "embeddings").iterdir():
            part.unlink()
        assert run(photos, tmp_path / "keras", "--engine", engine) == 0
        assert engine_of(tmp_path / "keras")["name"] == engine
        assert_equal(embeddings(tmp_path / "keras"), expected)


@needs_openvino
def test_missing_engine_files_are_staged_again(photos, tmp_path):
    assert run(photos, tmp_path / "out", "--engine", "openvino") == 0
    expected = embeddings(tmp_path / "out")
    (weights,) = (tmp_path / "out" / "model").glob("*.bin")
    weights.unlink()
    for part in (tmp_path / "out" / "embeddings").iterdir():
        part.unlink()
    assert run(photos, tmp_path / "out") == 0
    assert_equal(embeddings(tmp_path / "out"), expected)


def test_small_input_gets_no_trial(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "choose", lambda *_: pytest.fail("there was a trial"))
    assert run(photos, tmp_path / "out") == 0
    engine = engine_of(tmp_path / "out")
    assert (engine["name"], engine["asked"], engine["trial"]) == ("keras", "auto", {})


@needs_openvino
def test_large_input_gets_one_trial_whose_result_is_kept(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trial, "PAYS_FROM_IMAGES", 1)
    monkeypatch.setattr(trial, "PAYS_FROM_SECONDS", 0.0)
    assert run(photos, tmp_path / "out") == 0
    engine = engine_of(tmp_path / "out")
    assert {one["engine"] for one in engine["trial"]["candidates"]} == {"keras", "openvino"}
    assert engine["reason"] in capsys.readouterr().err
    monkeypatch.setattr(trial, "choose", lambda *_: pytest.fail("there was another trial"))
    next((tmp_path / "out" / "embeddings").iterdir()).unlink()
    assert run(photos, tmp_path / "out") == 0
    assert engine_of(tmp_path / "out") == engine


@needs_openvino
@pytest.mark.parametrize("flags", [{"amx_bf16"}, {"avx512_bf16"}])
def test_on_a_processor_with_amx_a_new_run_is_told_of_bfloat16(photos, tmp_path, monkeypatch, capsys, flags):
    """Keras' float32 and OpenVINO's had 11 and 15 images a second there, and both 80 at bfloat16 (VGG16)."""
    monkeypatch.setattr(openvino_model, "processor_flags", lambda: frozenset(flags))
    plan = ["--input", str(photos), "--output", str(tmp_path / "out"), "--engine", "openvino", *MODEL]
    assert run_job("plan", plan) == 0
    assert ("--precision auto" in capsys.readouterr().err) == ("amx_bf16" in flags)
    assert run(photos, tmp_path / "out", "--engine", "openvino") == 0
    assert ("--precision auto" in capsys.readouterr().err) == ("amx_bf16" in flags)
    assert run_job("plan", plan) == 0
    assert "--precision auto" not in capsys.readouterr().err, "the rows that are there have one already"


def test_plan_stays_with_the_precision_of_the_rows_as_extract_does(photos, tmp_path, monkeypatch):
    assert run(photos, tmp_path / "out", "--precision", "bfloat16", "--engine", "keras") == 0
    next((tmp_path / "out" / "embeddings").iterdir()).unlink()
    tried, choose = [], trial.choose
    monkeypatch.setattr(trial, "choose", lambda *given: tried.append(given[2]) or choose(*given))
    flags = ["--input", str(photos), "--output", str(tmp_path / "out"), *MODEL, "--precision", "auto"]
    assert run_job("plan", flags) == 0
    assert tried == ["bfloat16"]


@needs_openvino
def test_a_folder_that_grows_gets_its_trial_when_that_pays(photos, tmp_path, monkeypatch):
    """As a job that runs every night has it, whose first night had few images."""
    assert run(photos, tmp_path / "out") == 0
    expected = embeddings(tmp_path / "out")
    monkeypatch.setattr(trial, "PAYS_FROM_IMAGES", 1)
    assert run(photos, tmp_path / "out") == 0
    timed = engine_of(tmp_path / "out")
    assert timed["trial"]["keras_images_per_second"] > 0
    assert run(photos, tmp_path / "out") == 0
    assert engine_of(tmp_path / "out") == timed, "what is known is not timed again"
    monkeypatch.setattr(trial, "PAYS_FROM_SECONDS", 0.0)
    next((tmp_path / "out" / "embeddings").iterdir()).unlink()
    assert run(photos, tmp_path / "out") == 0
    assert {one["engine"] for one in engine_of(tmp_path / "out")["trial"]["candidates"]} == {"keras", "openvino"}
    assert_equal(embeddings(tmp_path / "out"), expected)


@needs_openvino
def test_an_engine_that_was_asked_for_stays_in_later_runs(photos, tmp_path, monkeypatch):
    assert run(photos, tmp_path / "out", "--engine", "keras") == 0
    monkeypatch.setattr(trial, "PAYS_FROM_IMAGES", 1)
    monkeypatch.setattr(trial, "PAYS_FROM_SECONDS", 0.0)
    monkeypatch.setattr(trial, "choose", lambda *_: pytest.fail("there was a trial"))
    assert run(photos, tmp_path / "out") == 0
    assert engine_of(tmp_path / "out")["asked"] == "keras"


@needs_openvino
def test_trial_is_had_where_a_manifest_lists_large_images(photos, tmp_path, monkeypatch):
    files = sorted(path for path in Path(photos).rglob("*") if path.is_file())
    (tmp_path / "list.csv").write_text("\n".join(["uri", *map(str, files)]))
    monkeypatch.setattr(trial, "PAYS_FROM_IMAGES", len(files))
    monkeypatch.setattr(trial, "PAYS_FROM_SECONDS", 0.0)
    assert run(tmp_path / "list.csv", tmp_path / "out", "--allow_uri_prefix", f"{photos}/") == 0
    assert {one["engine"] for one in engine_of(tmp_path / "out")["trial"]["candidates"]} == {"keras", "openvino"}


@needs_openvino
def test_int8_run_resumes_and_its_model_serves_other_runs(photos, tmp_path, capsys):
    int8 = ("--precision", "int8", "--int8_min_cosine", "0.9")
    assert run(photos, tmp_path / "out", *int8) == 0
    assert "of the ten nearest neighbours stay" in capsys.readouterr().err
    about = manifest(tmp_path / "out")
    assert about["spec"]["precision"] == "int8"
    assert about["engine"]["trial"]["int8"]["median_cosine"] > 0.9
    expected = embeddings(tmp_path / "out")

    assert run(photos, tmp_path / "out", *int8) == 0
    assert "Nothing to do" in capsys.readouterr().err
    next((tmp_path / "out" / "embeddings").iterdir()).unlink()
    assert run(photos, tmp_path / "out", *int8) == 0
    assert_equal(embeddings(tmp_path / "out"), expected, rtol=1e-6)

    few = small_images(tmp_path / "few", 3)
    assert run(few, tmp_path / "lent", *int8, "--int8_model", str(tmp_path / "out")) == 0
    assert manifest(tmp_path / "lent")["fingerprint"] == about["fingerprint"]
    assert run(few, tmp_path / "refused", *int8) == 2
    assert "at least 24. Received: 3" in capsys.readouterr().err
    other = (*MODEL[:3], "random:1", *MODEL[4:])
    assert extract(few, tmp_path / "other", *int8, "--int8_model", str(tmp_path / "out"), model=other) == 2
    assert "weights_sha256" in capsys.readouterr().err
    assert run(photos, tmp_path / "out", "--precision", "float32") == 2
    assert "precision: int8 != float32" in capsys.readouterr().err


@needs_openvino
@pytest.mark.slow
def test_lent_int8_model_is_measured_on_the_input(photos, tmp_path, capsys):
    assert run(photos, tmp_path / "out", "--precision", "int8", "--int8_min_cosine", "0.9") == 0
    lender = manifest(tmp_path / "out")["engine"]["trial"]["int8"]
    few = small_images(tmp_path / "few", 9)
    lent = ("--precision", "int8", "--int8_model", str(tmp_path / "out"))
    assert run(few, tmp_path / "float32") == 0
    capsys.readouterr()
    assert run(few, tmp_path / "lent", *lent, "--int8_min_cosine", "0.5") == 0
    exact, approximate = embeddings(tmp_path / "float32"), embeddings(tmp_path / "lent")
    cosines = [
        float(one @ exact[key] / np.linalg.norm(one) / np.linalg.norm(exact[key])) for key, one in approximate.items()
    ]
    recorded = manifest(tmp_path / "lent")["engine"]["trial"]["int8"]
    assert recorded["images"] == 9
    assert recorded["median_cosine"] == pytest.approx(np.median(cosines), abs=1e-6)
    assert recorded["lowest_cosine"] == pytest.approx(min(cosines), abs=1e-6)
    assert recorded["median_cosine"] != lender["median_cosine"]
    assert f"on 9 images of the input: cosine {np.median(cosines):.5f} in the median" in capsys.readouterr().err

    assert run(few, tmp_path / "refused", *lent, "--int8_min_cosine", "0.9999999") == 2
    assert "int8 costs too much: int8 against float32, on 9 images of the input" in capsys.readouterr().err
    assert not (tmp_path / "refused" / "embeddings").exists()

    assert run(photos, tmp_path / "again", *lent, "--int8_min_cosine", "0.9") == 0
    again = manifest(tmp_path / "again")["engine"]["trial"]["int8"]
    assert again["images"] == lender["images"]  # The same images measure.
    assert again["median_cosine"] == pytest.approx(lender["median_cosine"], abs=1e-5)


@needs_openvino
@pytest.mark.slow
def test_lent_int8_model_without_images_to_measure_it_says_so(photos, tmp_path, capsys):
    assert run(photos, tmp_path / "out", "--precision", "int8", "--int8_min_cosine", "0.9") == 0
    one = small_images(tmp_path / "one", 1)
    assert run(one, tmp_path / "lent", "--precision", "int8", "--int8_model", str(tmp_path / "out")) == 0
    assert "What int8 costs is not measured: 1 image of the input can be decoded" in capsys.readouterr().err


@needs_openvino
@pytest.mark.slow
def test_rerun_of_int8_is_held_to_what_was_measured_before_it(photos, tmp_path, capsys):
    def again(output, *flags):
        code = run(photos, output, "--precision", "int8", *flags)
        return code, capsys.readouterr().err

    int8 = ("--int8_min_cosine", "0.9")
    assert again(tmp_path / "out", *int8)[0] == 0
    median = manifest(tmp_path / "out")["engine"]["trial"]["int8"]["median_cosine"]
    before = embeddings(tmp_path / "out")
    next((tmp_path / "out" / "embeddings").iterdir()).unlink()
    code, told = again(tmp_path / "out", "--int8_min_cosine", "0.9999999")
    assert code == 2
    assert f"int8 costs too much: cosine {median:.5f} in the median" in told
    assert "--int8_min_cosine is 0.9999999" in told
    assert again(tmp_path / "out", *int8)[0] == 0
    assert embeddings(tmp_path / "out").keys() == before.keys()

    lent = ("--int8_model", str(tmp_path / "out"))
    assert again(tmp_path / "lent", *int8, *lent)[0] == 0
    assert again(tmp_path / "lent", *int8, *lent)[0] == 0
    assert again(tmp_path / "lent", *lent, "--int8_min_cosine", "0.9999999")[0] == 2


@needs_openvino
def test_a_classifier_of_int8_vectors_has_no_image_classifier(photos, tmp_path, capsys):
    assert run(photos, tmp_path / "out", "--precision", "int8", "--int8_min_cosine", "0.9") == 0
    assert run_job("train", ["--embeddings", str(tmp_path / "out"), "--output", str(tmp_path / "head")]) == 0
    assert "Keras has no int8 models" in capsys.readouterr().err
    assert not (tmp_path / "head" / "image_classifier.keras").exists()


def test_auto_keeps_the_precision_of_the_run(photos, tmp_path):
    assert run(photos, tmp_path / "out", "--precision", "bfloat16", "--engine", "keras") == 0
    expected = embeddings(tmp_path / "out")
    next((tmp_path / "out" / "embeddings").iterdir()).unlink()
    assert run(photos, tmp_path / "out", "--precision", "auto") == 0
    assert manifest(tmp_path / "out")["spec"]["precision"] == "bfloat16"
    assert_equal(embeddings(tmp_path / "out"), expected, rtol=1e-2)


def test_auto_takes_the_precision_of_the_trial(photos, tmp_path):
    assert run(photos, tmp_path / "out", "--precision", "auto") == 0
    about = manifest(tmp_path / "out")
    tried = {(one["engine"], one["precision"]) for one in about["engine"]["trial"]["candidates"]}
    assert {("keras", "float32"), ("keras", "bfloat16")} <= tried
    assert (about["engine"]["name"], about["spec"]["precision"]) in tried


@pytest.mark.parametrize(
    ("precision", "engine", "named"),
    [
        ("int8", EngineOptions(Engine.KERAS), "--engine keras, --precision int8"),
        ("float16", EngineOptions(Engine.OPENVINO), "--engine openvino, --precision float16"),
        ("float32", EngineOptions(int8_model="before"), "--int8_model 'before', --precision float32"),
    ],
)
def test_contradicting_options_are_refused(precision, engine, named):
    with pytest.raises(ImagebeamError) as error:
        engine.check(ModelOptions(precision=PrecisionChoice(precision)))
    assert named in str(error.value)


def test_int8_min_cosine_is_from_0_to_1():
    with pytest.raises(ImagebeamError, match="from 0 to 1"):
        EngineOptions(int8_min_cosine=1.1)


def test_missing_openvino_is_named_before_anything_is_written(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("transforms.models.engines.openvino_model.is_installed", lambda: False)
    for flags in (("--engine", "openvino"), ("--precision", "int8")):
        assert run(photos, tmp_path / "out", *flags) == 2
        assert "imagebeam[openvino]" in capsys.readouterr().err
    assert run(photos, tmp_path / "out") == 0
    assert engine_of(tmp_path / "out")["reason"] == "OpenVINO is not installed"


def test_plan_times_the_engine_that_extract_would_take(photos, capsys):
    flags = ["--input", str(photos), *MODEL, "--engine", "keras", "--format", "json"]
    assert run_job("plan", flags) == 0
    assert json.loads(capsys.readouterr().out)["estimate"]["model_images_per_second"] > 0
