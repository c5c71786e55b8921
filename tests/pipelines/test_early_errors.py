"""An error that can be known early comes before TensorFlow and Beam are imported."""

import subprocess
import sys

import pytest

from pipelines.common import beam_flags

SCRIPT = """
import resource, sys
from pipelines.cli import main

code = main(sys.argv[1:])
usage = resource.getrusage(resource.RUSAGE_SELF)
heavy = sorted({"tensorflow", "keras", "sklearn", "apache_beam", "matplotlib"} & set(sys.modules))
print(code, round(usage.ru_utime + usage.ru_stime, 2), *heavy)
"""
TINY = ("--model", "MobileNet", "--weights", "random:0")

CASES = {
    "extract, unknown flag": (["extract", "--modl", "X"], "--modl"),
    "extract, unknown model": (["extract", "--input", "in", "--output", "o", "--model", "VG16"], "VG16"),
    "extract, unknown value": (["extract", "--input", "in", "--output", "o", "--pooling", "mean"], "mean"),
    "extract, missing flag": (["extract", "--input", "in"], "--output"),
    "extract, missing input": (["extract", "--input", "no", "--output", "o", *TINY], "no"),
    "extract, missing weights": (["extract", "--input", "in", "--output", "o", "--weights", "w.h5"], "w.h5"),
    "extract, missing model": (["extract", "--input", "in", "--output", "o", "--model", "m.keras"], "m.keras"),
    "extract, unknown layer": (["extract", "--input", "in", "--output", "o", *TINY, "--layer", "x"], "layer='x'"),
    "extract, output is a file": (["extract", "--input", "in", "--output", "in/0.png", *TINY], "in/0.png"),
    "extract, foreign output": (["extract", "--input", "in", "--output", "other", *TINY], "other"),
    "extract, unknown runner": (["extract", "--input", "in", "--output", "o", "--runner", "Flinkruner"], "flinkrunner"),
    "extract, missing config": (["extract", "--config", "no.yaml"], "no.yaml"),
    "extract, output in the input by a link": (
        ["extract", "--input", "in", "--output", "link/out", *TINY],
        "--output 'link/out'",
    ),
    "extract, output in the linked input": (
        ["extract", "--input", "link", "--output", "in/out", *TINY],
        "--output 'in/out'",
    ),
    "extract, bucket that cannot be": (["extract", "--input", "in", "--output", "gs://a_/x", *TINY], "'gs://a_'"),
    "extract, input's bucket that cannot be": (
        ["extract", "--input", "gs://Test_Bucket!/in", "--output", "o", *TINY],
        "'gs://Test_Bucket!'",
    ),
    "plan, missing input": (["plan", "--input", "no", *TINY], "no"),
    "plan, unknown flag": (["plan", "--inptu", "no"], "--inptu"),
    "plan, unknown layer": (["plan", "--input", "in", *TINY, "--layer", "x"], "layer='x'"),
    "train, missing embeddings": (["train", "--embeddings", "no", "--output", "o"], "no"),
    "train, no embeddings": (["train", "--embeddings", "in", "--output", "o"], "in"),
    "train, bucket that cannot be": (["train", "--embeddings", "gs://-a/x", "--output", "o"], "'gs://-a'"),
    "train, bad value": (["train", "--embeddings", "in", "--output", "o", "--epochs", "0"], "--epochs"),
    "train, unknown flag": (["train", "--epoch", "3"], "--epochs"),
    "classify, missing classifier": (["classify", "--input", "in", "--classifier", "no", "--output", "o"], "no"),
    "classify, neither input": (["classify", "--classifier", "no", "--output", "o"], "--embeddings"),
    "classify, unknown flag": (["classify", "--clasifier", "no"], "--classifier"),
    "classify, taken column": (
        ["classify", "--input", "in", "--classifier", "no", "--output", "o", "--keep_columns", "top_labels"],
        "top_labels",
    ),
    "finetune, missing input": (["finetune", "--input", "no", "--output", "o", *TINY], "no"),
    "finetune, output in the input": (["finetune", "--input", "in", "--output", "link/o", *TINY], "--output 'link/o'"),
    "finetune, missing weights": (["finetune", "--input", "in", "--output", "o", "--weights", "w.h5"], "w.h5"),
    "finetune, unknown layer": (["finetune", "--input", "in", "--output", "o", *TINY, "--freeze_until", "x"], "x"),
    "finetune, unknown flag": (["finetune", "--freeze", "3"], "--freeze"),
    "report, missing run": (["report", "no"], "no"),
    "report, unknown flag": (["report", "no", "--clasifier", "x"], "--classifier"),
    "layers, unknown model": (["layers", "--model", "VG16"], "VG16"),
    "layers, unknown flag": (["layers", "--modle", "VGG16"], "--model"),
    "demo, bad value": (["demo", "--images", "0"], "--images"),
    "unknown job": (["extrac"], "extract"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("early")
    (folder / "in").mkdir()
    for number in range(2):
        Image.new("RGB", (40, 40)).save(folder / "in" / f"{number}.png")
    (folder / "link").symlink_to("in")
    (folder / "other" / "embeddings").mkdir(parents=True)
    (folder / "other" / "embeddings" / "mine.parquet").write_text("")
    return folder


@pytest.mark.parametrize("case", CASES)
def test_error_comes_before_frameworks_load(folder, case):
    argv, named = CASES[case]
    command = [sys.executable, "-c", SCRIPT, *argv]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    code, seconds, *heavy = done.stdout.split()[-100:]
    assert (code, heavy) == ("2", []), done.stderr
    assert named in done.stderr
    # Of the processor: other tests run beside this one.
    assert float(seconds) < 2


@pytest.mark.parametrize("argv", [["layers"], ["layers", "--model", "NASNetLarge", "--format", "json"]])
def test_layers_loads_no_framework(folder, argv):
    done = subprocess.run([sys.executable, "-c", SCRIPT, *argv], cwd=folder, capture_output=True, text=True, check=True)
    code, seconds, *heavy = done.stdout.splitlines()[-1].split()
    assert (code, heavy) == ("0", [])
    assert float(seconds) < 2


def test_listed_flags_and_runners_match_the_installed_beam():
    import apache_beam
    from apache_beam.runners.runner import _RUNNER_MAP

    from pipelines.common.flags import _beam_parser

    assert set(_beam_parser().flags) == beam_flags.FLAGS[apache_beam.__version__]
    assert set(_RUNNER_MAP) == beam_flags.RUNNERS[apache_beam.__version__]


@pytest.mark.parametrize("runner", ["flink", "FlinkRunner", "FLINKRUNNER", "my.module.Runner", "DirectRunner"])
def test_known_runners_pass(runner):
    from pipelines.common.flags import JobParser, parse

    assert parse(JobParser("extract", beam=True), ["--runner", runner])[1] == ["--runner", runner]
