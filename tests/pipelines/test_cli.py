import importlib.util
import json
import os
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import textwrap
import types
import zipfile
from importlib.metadata import PackageNotFoundError

import pyarrow as pa
import pytest

from pipelines import cli
from pipelines.common.cache import cache_folder
from pipelines.common.flags import JobParser, parse
from pipelines.options.engine import EngineOptions
from pipelines.options.extraction import (
    InputOptions,
    ModelOptions,
    OutputOptions,
    add_input_arguments,
    add_model_arguments,
    add_output_arguments,
)
from pipelines.options.kept_columns import KeptColumn, parse_kept_columns
from pipelines.options.workers import WorkerOptions, add_worker_arguments
from transforms.core.engines import Engine, PrecisionChoice
from transforms.core.errors import ImagebeamError, JobError, first_line, last_line
from transforms.core.formats import KEEP_TYPES, EmbeddingDtype, EmbeddingType, InputFormat, LabelFrom, TruncatedImages
from transforms.core.spec import Interpolation, JpegDecode, Pooling, Precision, Preprocessing, ResizeMode
from transforms.models import keras_import

HEAVY = {"apache_beam", "google", "keras", "matplotlib", "numpy", "pandas", "pyarrow", "sklearn", "tensorflow", "yaml"}
FRAME = {"--help", "--config", "--debug", "--log_format", "--quiet"}
REQUIRED = ["--input", "a.tfrecord", "--output", "out"]

# flag -> the group it belongs to, values on the command line, field, what the field must hold then
FLAGS = {
    "--input": (InputOptions, ["b", "c"], "input", ("a.tfrecord", "b", "c")),
    "--input_format": (InputOptions, ["webdataset"], "input_format", InputFormat.WEBDATASET),
    "--image_column": (InputOptions, ["jpeg"], "image_column", "jpeg"),
    "--label_column": (InputOptions, ["class"], "label_column", "class"),
    "--label_from": (InputOptions, ["last_folder"], "label_from", LabelFrom.LAST_FOLDER),
    "--uri_column": (InputOptions, ["file_name"], "uri_column", "file_name"),
    "--max_record_bytes": (InputOptions, ["1000"], "max_record_bytes", 1000),
    "--allow_uri_prefix": (InputOptions, ["/data/", "gs://b/"], "allow_uri_prefix", ("/data/", "gs://b/")),
    "--follow_links": (InputOptions, [], "follow_links", True),
    "--keep_columns": (
        InputOptions,
        ["a,b=c:int64"],
        "keep_columns",
        (KeptColumn("a", "a"), KeptColumn("b", "c", "int64")),
    ),
    "--model": (ModelOptions, ["ResNet50"], "model", "ResNet50"),
    "--weights": (ModelOptions, ["random:3"], "weights", "random:3"),
    "--layer": (ModelOptions, ["block4_pool"], "layers", ("block4_pool",)),
    "--pooling": (ModelOptions, ["max"], "pooling", Pooling.MAX),
    "--image_size": (ModelOptions, ["48x64"], "image_size", (48, 64)),
    "--interpolation": (ModelOptions, ["lanczos"], "interpolation", Interpolation.LANCZOS),
    "--preprocessing": (ModelOptions, ["torch"], "preprocessing", Preprocessing.TORCH),
    "--dicom_frame": (ModelOptions, ["middle"], "dicom_frame", "middle"),
    "--resize_mode": (ModelOptions, ["pad"], "resize_mode", ResizeMode.PAD),
    "--precision": (ModelOptions, ["bfloat16"], "precision", Precision.BFLOAT16),
    "--jpeg_decode": (ModelOptions, ["scaled"], "jpeg_decode", JpegDecode.SCALED),
    "--batch_size": (ModelOptions, ["7"], "batch_size", 7),
    "--truncated_images": (ModelOptions, ["accept"], "truncated_images", TruncatedImages.ACCEPT),
    "--max_image_pixels": (ModelOptions, ["1000"], "max_image_pixels", 1000),
    "--engine": (EngineOptions, ["openvino"], "engine", Engine.OPENVINO),
    "--int8_min_cosine": (EngineOptions, ["0.9"], "int8_min_cosine", 0.9),
    "--int8_model": (EngineOptions, ["before"], "int8_model", "before"),
    "--output": (OutputOptions, ["elsewhere"], "output", "elsewhere"),
    "--embedding_type": (OutputOptions, ["list"], "embedding_type", EmbeddingType.LIST),
    "--embedding_dtype": (OutputOptions, ["float16"], "embedding_dtype", EmbeddingDtype.FLOAT16),
    "--rows_per_unit": (OutputOptions, ["5"], "rows_per_unit", 5),
    "--overwrite": (OutputOptions, [], "overwrite", True),
    "--prune": (OutputOptions, [], "prune", True),
    "--reuse": (OutputOptions, ["a", "gs://b/c"], "reuse", ("a", "gs://b/c")),
    "--retry_failed": (OutputOptions, [], "retry_failed", True),
    "--max_failure_rate": (OutputOptions, ["0.5"], "max_failure_rate", 0.5),
    "--gpu": (WorkerOptions, ["nvidia-l4"], "gpu", "nvidia-l4"),
    "--local_workers": (WorkerOptions, ["auto"], "local_workers", "auto"),
}


def extract_parser(beam=True):
    parser = JobParser("extract", beam=beam)
    add_input_arguments(parser)
    add_model_arguments(parser)
    EngineOptions.add_arguments(parser, "engine")
    add_output_arguments(parser)
    add_worker_arguments(parser)
    return parser


def parse_extract(*argv):
    return parse(extract_parser(), [*REQUIRED, *argv])


def config_file(folder, text):
    path = folder / "run.yaml"
    path.write_text(textwrap.dedent(text))
    return str(path)


class TestFlags:
    def test_table_names_every_flag(self):
        assert set(FLAGS) == set(extract_parser().flags) - FRAME

    @pytest.mark.parametrize("flag", FLAGS)
    def test_flag_reaches_its_options_and_no_other(self, flag, tmp_path):
        _, values, field, expected = FLAGS[flag]
        needed = []
        if flag == "--preprocessing":  # A built-in model has its own.
            with zipfile.ZipFile(tmp_path / "own.keras", "w") as archive:
                archive.writestr("config.json", '{"config": {"image_shape": [32, 32, 3]}}')
            needed = ["--model", str(tmp_path / "own.keras")]
        plain, given = (
            {
                group: vars(group.from_args(parse_extract(*needed, *argv)[0]))
                for group in (InputOptions, ModelOptions, EngineOptions, OutputOptions, WorkerOptions)
            }
            for argv in ([], [flag, *values])
        )
        changed = {
            (group, name): value
            for group, values in given.items()
            for name, value in values.items()
            if value != plain[group][name]
        }
        assert changed == {(FLAGS[flag][0], field): expected}

    @pytest.mark.parametrize("flag", FLAGS)
    def test_help_names_the_default(self, flag):
        action = extract_parser().flags[flag]
        assert action.help
        assert action.required or action.nargs == 0 or "default: " in action.help

    def test_no_flag_is_also_beams(self):
        from apache_beam.options.pipeline_options import PipelineOptions

        beams = PipelineOptions([]).get_all_options()
        assert not {flag.removeprefix("--") for flag in FLAGS} & set(beams)

    def test_repeated_layer_flags_keep_their_order(self):
        args, _ = parse_extract("--layer", "block4_pool", "--layer", "block3_pool")
        assert ModelOptions.from_args(args).layers == ("block4_pool", "block3_pool")

    @pytest.mark.parametrize(("text", "size"), [("default", (299, 299)), ("native", None), ("80x90", (80, 90))])
    def test_image_size_reaches_the_spec(self, text, size):
        args, _ = parse_extract("--model", "Xception", "--image_size", text)
        assert ModelOptions.from_args(args).config().spec("ab").image_size == size

    def test_spec_holds_the_requested_values(self):
        spec = (
            ModelOptions("VGG19", "none", ("fc1",), Pooling.MAX, (50, 60), precision=PrecisionChoice.FLOAT16)
            .config()
            .spec("ab")
        )
        assert (spec.model, spec.weights_sha256, spec.layers, spec.pooling) == ("VGG19", "ab", ("fc1",), "max")
        assert (spec.image_size, spec.precision) == ((50, 60), "float16")

    def test_kept_columns_become_arrow_types(self):
        options = InputOptions(("x",), keep_columns=tuple(KeptColumn(kind, kind, kind) for kind in KEEP_TYPES))
        kinds = dict(options.read_options().keep_columns)
        assert kinds["int64"] == pa.int64()
        assert kinds["string"] == pa.string()
        assert len(kinds) == len(KEEP_TYPES)

    @pytest.mark.parametrize(
        ("text", "column", "kind"),
        [
            ("a", KeptColumn("a", "a"), pa.null()),
            (" a=b", KeptColumn("a", "b"), pa.null()),
            ("a=b:list<float>", KeptColumn("a", "b", "list<float32>"), pa.list_(pa.float32())),
            ("a:double", KeptColumn("a", "a", "float64"), pa.float64()),
            ("a=a:uint64", KeptColumn("a", "a", "uint64"), pa.uint64()),
        ],
    )
    def test_a_kept_column_is_parsed_once(self, text, column, kind):
        assert KeptColumn.parse(text) == column
        assert column.arrow_type == kind
        assert KeptColumn.parse(str(column)) == column


class TestRefusals:
    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["--poolng", "max"], r"unknown flag --poolng; did you mean --pooling"),
            (["--runer=X"], r"unknown flag --runer; did you mean .*--runner"),
            (["--pool", "max"], r"unknown flag --pool\b"),
            (["--zzzzzzzz"], r"unknown flag --zzzzzzzz\."),
            (["--pooling", "mean"], r"--pooling: choose one of avg, max, flatten\. Received: 'mean'"),
            (["--input_format", "zip"], r"--input_format: choose one of auto, tfrecord, .*'zip'"),
            (["--image_size", "224"], r"--image_size: write HEIGHTxWIDTH .*'224'"),
            (["--image_size", "0x5"], r"--image_size: .*'0x5'"),
            (["--batch_size", "many"], r"--batch_size: invalid int value: 'many'"),
            (["--runner", "DirectRunner", "stray"], r"unexpected argument 'stray'"),
        ],
    )
    def test_bad_command_line_is_refused(self, argv, message):
        with pytest.raises(ImagebeamError, match=message):
            parse_extract(*argv)

    def test_misspelt_required_flag_is_named_before_the_missing_one(self):
        with pytest.raises(ImagebeamError, match=r"--imput.*--input"):
            parse(extract_parser(), ["--imput", "a", "--output", "b"])

    def test_missing_flags_are_named(self):
        with pytest.raises(ImagebeamError, match=r"--input, --output\."):
            parse(extract_parser(), [])

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: InputOptions(()), r"--input names at least one"),
            (lambda: InputOptions(("a", "")), r"--input names at least one"),
            (lambda: InputOptions(("a",), image_column=""), r"--image_column is the name of a column"),
            (lambda: KeptColumn.parse("sha256"), r"'sha256'\. Rename it: sha256=NEW"),
            (lambda: KeptColumn.parse("a=sha256:string"), r"'sha256'\. Rename it: a=NEW"),
            (lambda: KeptColumn.parse("embedding.fc1:string"), r"'embedding\.fc1'\. Rename"),
            (lambda: KeptColumn.parse("Embedding"), r"'Embedding'\. Rename"),
            (lambda: KeptColumn.parse("embedding_fc1"), r"'embedding_fc1'\. Rename"),
            (lambda: KeptColumn.parse("x:int65"), r"TYPE of string, .*'x:int65'"),
            (lambda: KeptColumn.parse("x=y:"), r"TYPE of string, .*'x=y:'"),
            (lambda: KeptColumn.parse("=y"), r"a list of NAME, .*'=y'"),
            (lambda: KeptColumn.parse("x="), r"a list of NAME, .*'x='"),
            (lambda: KeptColumn.parse("x:list<list<string>>"), r"'x:list<list<string>>'"),
            (lambda: KeptColumn.parse("x:list<null>"), r"'x:list<null>'"),
            (lambda: InputOptions(("a",), keep_columns=parse_kept_columns("x,X")), r"'x' 2 times"),
            (lambda: InputOptions(("a",), keep_columns=parse_kept_columns("x,y=x:int64")), r"'x' 2 times"),
            (lambda: ModelOptions(model="VGG61"), r"model='VGG61'.*VGG16"),
            (lambda: ModelOptions(model="Xception", image_size=(70, 80)), r"at least 71x71.*70x80"),
            (lambda: ModelOptions(image_size="native", pooling=Pooling.FLATTEN), r"varying length.*pooling=flatten"),
            (lambda: ModelOptions(weights="random"), r"'random:SEED'.*weights='random'"),
            (lambda: ModelOptions(weights="model.pkl"), r"weights='model\.pkl'"),
            (lambda: ModelOptions(layers=("fc1", "fc1")), r"--layer takes each name once\. Received: 'fc1' 2 times"),
            (lambda: ModelOptions(batch_size=0), r"--batch_size is at least 1\. Received: 0"),
            (lambda: ModelOptions(max_image_pixels=0), r"--max_image_pixels is at least 1"),
            (lambda: OutputOptions(""), r"--output is a folder"),
            (lambda: OutputOptions("o", rows_per_unit=0), r"--rows_per_unit is at least 1"),
            (lambda: OutputOptions("o", max_failure_rate=1.5), r"from 0 to 1\. Received: 1\.5"),
            (lambda: OutputOptions("o", max_failure_rate=float("nan")), r"from 0 to 1\. Received: nan"),
            (lambda: OutputOptions("o", overwrite=True, retry_failed=True), r"--overwrite .* --retry_failed as well"),
        ],
    )
    def test_bad_option_value_is_refused(self, make, message):
        with pytest.raises(ImagebeamError, match=message):
            make()


class TestBeamFlags:
    def test_beam_flags_pass_through_in_order(self):
        args, rest = parse_extract(
            "--runner=DataflowRunner", "--pooling", "max", "--experiments", "x", "--experiments=y"
        )
        assert rest == ["--runner=DataflowRunner", "--experiments", "x", "--experiments=y"]
        assert args.pooling == Pooling.MAX

    def test_bad_value_is_refused_before_the_run(self):
        with pytest.raises(ImagebeamError, match=r"--flink_version: invalid choice: '0\.1'"):
            parse_extract("--flink_version", "0.1")

    def test_beam_flags_are_unknown_to_a_job_without_beam(self):
        with pytest.raises(ImagebeamError, match="unknown flag --runner"):
            parse(extract_parser(beam=False), [*REQUIRED, "--runner=DirectRunner"])


class TestConfig:
    def test_config_sets_flags_of_every_kind(self, tmp_path):
        path = config_file(
            tmp_path,
            """
            input: [a, "b*"]
            output: out
            layer: block4_pool
            image_size: 48x48
            weights: none
            batch_size: 7
            max_failure_rate: 0.25
            overwrite: true
            retry_failed: false
            runner: DirectRunner
            experiments: [x, y]
            """,
        )
        args, rest = parse(extract_parser(), ["--config", path])
        assert InputOptions.from_args(args).input == ("a", "b*")
        assert ModelOptions.from_args(args) == ModelOptions(
            weights="none", layers=("block4_pool",), image_size=(48, 48), batch_size=7
        )
        assert OutputOptions.from_args(args) == OutputOptions("out", overwrite=True, max_failure_rate=0.25)
        assert rest == ["--runner=DirectRunner", "--experiments=x", "--experiments=y"]

    def test_flags_override_the_config(self, tmp_path):
        path = config_file(tmp_path, "{input: [a, b], pooling: max, output: out, layer: [fc1, fc2], batch_size: 7}")
        args, _ = parse(extract_parser(), ["--input=c", f"--config={path}", "--pooling", "avg", "--layer=block4_pool"])
        assert (args.input, args.pooling, args.layers, args.batch_size) == (["c"], Pooling.AVG, ["block4_pool"], 7)

    def test_config_may_be_empty(self, tmp_path):
        args, _ = parse_extract("--config", config_file(tmp_path, ""))
        assert OutputOptions.from_args(args) == OutputOptions("out")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("poolng: max", r"run\.yaml: unknown key 'poolng'; did you mean pooling"),
            ("zzzzzz: 1", r"unknown key 'zzzzzz'; valid are log_format, quiet, input, .*max_failure_rate"),
            ("debug: true", r"unknown key 'debug'"),
            ("pooling: mean", r"run\.yaml: .*--pooling: choose one of avg, max, flatten\. Received: 'mean'"),
            ("batch_size: many", r"run\.yaml: .*--batch_size: invalid int value: 'many'"),
            ("batch_size: [1, 2]", r"batch_size takes one value .*\[1, 2\]"),
            ("batch_size:", r"batch_size takes one value .*None"),
            ("label_column: no", r"label_column takes one value \(quote .*False"),
            ("layer: [{a: b}]", r"layer takes a value or a list of values .*\{'a': 'b'\}"),
            ("overwrite: 1", r"overwrite is true or false\. Received: 1"),
            ("- a\n- b", r"expected lines of `flag: value`\. Received: a list"),
            ("a: [", r"run\.yaml: not a YAML file"),
            ("batch_size: .nan", r"`imagebeam extract --help`"),
            ("direct_num_workers: x", r"invalid int value: 'x'\. Apache Beam explains"),
        ],
    )
    def test_bad_config_is_refused(self, tmp_path, text, message):
        with pytest.raises(ImagebeamError, match=message):
            parse_extract("--config", config_file(tmp_path, text))

    def test_missing_config_is_named(self, tmp_path):
        with pytest.raises(ImagebeamError, match=r"--config.*none\.yaml"):
            parse_extract("--config", str(tmp_path / "none.yaml"))


@pytest.fixture
def job(monkeypatch):
    """Registers a function as the job "fake" and runs it through the command line."""

    def run(main, *argv):
        module = types.ModuleType("fake_job")
        monkeypatch.setattr(module, "main", main, raising=False)
        monkeypatch.setitem(sys.modules, "fake_job", module)
        monkeypatch.setitem(cli.JOBS, "fake", cli.Job("fake_job", "for a test"))
        return cli.main(["fake", *argv])

    return run


def raising(error):
    def main(argv):
        raise error

    return main


class TestExitCodes:
    @pytest.mark.parametrize("code", [0, 1, 3])
    def test_job_decides_its_exit_code(self, job, code):
        assert job(lambda argv: code) == code

    def test_job_gets_its_arguments(self, job):
        seen: list[str] = []
        job(lambda argv: seen.extend(argv) or 0, "--a", "b")
        assert seen == ["--a", "b"]

    def test_user_mistake_is_one_line(self, job, capsys):
        assert job(raising(ImagebeamError("No such model."))) == 2
        assert capsys.readouterr().err == "imagebeam: error: No such model.\n"

    def test_failed_job_is_one_line(self, job, capsys):
        assert job(raising(JobError("The runner stopped."))) == 1
        assert capsys.readouterr().err == "imagebeam: error: The runner stopped.\n"

    def test_no_temporary_folder_is_the_users_to_mend(self, job, capsys, monkeypatch):
        """As in a container whose root is read-only."""
        monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc"])
        monkeypatch.setattr(tempfile, "tempdir", None)
        assert job(lambda argv: tempfile.mkdtemp()) == 2
        assert "['/proc']. Set TMPDIR to a folder that can be written." in capsys.readouterr().err

    def test_backend_of_keras_that_is_not_there_is_the_users_to_mend(self, job, capsys, monkeypatch):
        monkeypatch.delitem(sys.modules, "keras", raising=False)
        for name in ("theano", "numpy"):
            monkeypatch.setenv("KERAS_BACKEND", name)
            assert job(lambda argv: keras_import.import_keras()) == 2
            assert f"is installed. Received: KERAS_BACKEND='{name}'." in capsys.readouterr().err

    def test_python_without_docstrings_is_the_users_to_mend(self, job, capsys, monkeypatch):
        """Beam cannot be imported there."""
        monkeypatch.setattr(sys, "flags", types.SimpleNamespace(optimize=2))
        assert job(raising(AttributeError("'NoneType' object has no attribute 'split'"))) == 2
        assert "PYTHONOPTIMIZE=2" in capsys.readouterr().err

    def test_other_exception_is_one_line(self, job, capsys):
        assert job(raising(ValueError("bad\nand more"))) == 1
        expected = "imagebeam: internal error: ValueError: bad; run again with --debug for the traceback\n"
        assert capsys.readouterr().err == expected

    def test_worker_traceback_is_cut_to_its_last_line(self, job, capsys):
        text = "Traceback (most recent call last):\n  File x\nKeyError: 'jpg' [while running 'Embed units']\n\n"
        assert job(raising(RuntimeError(text))) == 1
        assert "internal error: KeyError: 'jpg' [while running 'Embed units'];" in capsys.readouterr().err

    def test_what_keras_adds_to_an_error_is_cut(self, job, capsys):
        """The reason comes first, and behind it the arguments of a call, or the whole model."""
        called = "Exception encountered when calling Functional.call().\n\n\x1b[1m'b 1' is no scope name\x1b[0m\n\n"
        listed = "Arguments received by Functional.call():\n  • inputs=tf.Tensor([[1\n 2]])\n  • kwargs=<class 'x'>"
        text = f"Traceback (most recent call last):\nValueError: {called}{listed} [while running 'Embed units']\n"
        assert job(raising(RuntimeError(text))) == 1
        assert "internal error: 'b 1' is no scope name;" in capsys.readouterr().err
        both = f"{text}\n\nDuring handling of the above exception, another:\n\nStopError: nothing can be embedded"
        assert last_line(RuntimeError(both)) == "StopError: nothing can be embedded"
        assert first_line(ValueError("No class. Full object config: {'layers': [1]}")) == "No class."

    @pytest.mark.parametrize(("error", "code"), [(ImagebeamError("x"), 2), (ValueError("x"), 1)])
    def test_debug_prints_the_traceback(self, job, capsys, error, code):
        assert job(raising(error), "--debug") == code
        err = capsys.readouterr().err
        assert err.startswith("Traceback (most recent call last):")
        assert err.splitlines()[-1].startswith("imagebeam: ")
        assert "run again" not in err

    def test_interrupt_exits_with_130(self, job, capsys):
        assert job(raising(KeyboardInterrupt())) == 130
        assert "Traceback" not in capsys.readouterr().err

    def test_closed_pipe_prints_no_traceback(self):
        script = (
            "import sys, types; from pipelines import cli; m = types.ModuleType('m'); sys.modules['m'] = m\n"
            "m.main = lambda argv: [print('line') for _ in range(500_000)] and 0\n"
            "cli.JOBS['plan'] = cli.Job('m', ''); sys.exit(cli.main(['plan']))"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "line\n"
            process.stdout.close()
            assert process.stderr.read() == ""
        assert process.returncode == 1

    def test_no_job(self, capsys):
        assert cli.main([]) == 2
        assert "jobs:" in capsys.readouterr().err

    def test_unknown_job(self, capsys):
        assert cli.main(["extrct"]) == 2
        assert "no such job: 'extrct'. Did you mean extract?" in capsys.readouterr().err

    def test_version(self, capsys):
        from importlib.metadata import version

        with pytest.raises(SystemExit) as exit_:
            cli.main(["--version"])
        assert not exit_.value.code
        assert capsys.readouterr().out == f"imagebeam {version('imagebeam')}\n"

    def test_version_of_what_is_not_installed(self, capsys, monkeypatch):
        def version(name):
            raise PackageNotFoundError(name)

        monkeypatch.setattr("importlib.metadata.version", version)
        with pytest.raises(SystemExit) as exit_:
            cli.main(["--version"])
        assert not exit_.value.code
        assert "not installed" in capsys.readouterr().out

    def test_user_without_a_home(self, capsys, monkeypatch):
        """A container's user may have none: HOME unset, and no entry in /etc/passwd."""

        def home():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("IMAGEBEAM_CACHE", raising=False)
        monkeypatch.setattr("pathlib.Path.home", home)
        assert cli.main(["layers", "--model", "VGG16"]) == 0
        assert "block5_pool" in capsys.readouterr().out
        with pytest.raises(ImagebeamError, match="IMAGEBEAM_CACHE"):
            cache_folder()


def run_python(*argv):
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=True)


class TestHelp:
    @pytest.mark.parametrize("argv", [["--help"], ["extract", "--help"], ["layers", "--help"]])
    def test_help_imports_no_framework(self, argv):
        log = run_python("-X", "importtime", "-m", "pipelines", *argv).stderr
        imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in log.splitlines() if "|" in line}
        assert "argparse" in imported  # the log was understood
        assert not imported & HEAVY

    @pytest.mark.parametrize("argv", [["--help"], ["extract", "--help"]])
    def test_help_takes_less_than_half_a_second(self, argv):
        times = []
        for _ in range(3):
            start = resource.getrusage(resource.RUSAGE_CHILDREN)
            run_python("-m", "pipelines", *argv)
            end = resource.getrusage(resource.RUSAGE_CHILDREN)
            # Of the processor, not of the clock: other tests run beside this one.
            times.append(end.ru_utime - start.ru_utime + end.ru_stime - start.ru_stime)
        assert min(times) < 0.5

    @pytest.mark.parametrize("name", cli.JOBS)
    def test_help_names_every_job_and_each_has_its_own(self, name):
        assert re.search(rf"^  {name} +\S", run_python("-m", "pipelines", "--help").stdout, re.MULTILINE)
        assert f"usage: imagebeam {name}" in run_python("-m", "pipelines", name, "--help").stdout
        assert f"usage: imagebeam {name}" in run_python("-m", cli.JOBS[name].module, "--help").stdout

    @pytest.mark.parametrize("name", cli.JOBS)
    def test_help_ends_with_two_valid_commands(self, name):
        module = importlib.import_module(cli.JOBS[name].module)
        parser = JobParser(name, module.DESCRIPTION, module.EXAMPLES, beam=True)
        module.add_arguments(parser)
        assert parser.format_help().splitlines()[-3:] == ["examples:", *(f"  {one}" for one in module.EXAMPLES)]
        for command in module.EXAMPLES:
            program, job, *argv = shlex.split(command)
            assert (program, job) == ("imagebeam", name)
            assert parse(parser, argv)[1] == []


# Output shapes of VGG16 at 224x224, from table 1 of arXiv:1409.1556 (configuration D).
VGG16 = {
    "input_layer": [224, 224, 3],
    **{f"block1_conv{i}": [224, 224, 64] for i in (1, 2)},
    "block1_pool": [112, 112, 64],
    **{f"block2_conv{i}": [112, 112, 128] for i in (1, 2)},
    "block2_pool": [56, 56, 128],
    **{f"block3_conv{i}": [56, 56, 256] for i in (1, 2, 3)},
    "block3_pool": [28, 28, 256],
    **{f"block4_conv{i}": [28, 28, 512] for i in (1, 2, 3)},
    "block4_pool": [14, 14, 512],
    **{f"block5_conv{i}": [14, 14, 512] for i in (1, 2, 3)},
    "block5_pool": [7, 7, 512],
    "flatten": [25088],
    "fc1": [4096],
    "fc2": [4096],
    "predictions": [1000],
}


class TestLayers:
    def layers(self, capsys, *argv):
        assert cli.main(["layers", "--format=json", *argv]) == 0
        about = json.loads(capsys.readouterr().out)
        return about, {re.sub(r"_\d+$", "", layer["name"]): layer for layer in about["layers"]}

    def test_lists_all_layers_at_the_default_size(self, capsys):
        about, layers = self.layers(capsys)
        assert (about["model"], about["image_size"], about["min_size"]) == ("VGG16", [224, 224], 32)
        assert {name: layer["output_shape"] for name, layer in layers.items()} == VGG16
        assert {name: layer["dimension"] for name, layer in layers.items()} == {n: s[-1] for n, s in VGG16.items()}

    def test_smaller_size_leaves_out_the_classifier(self, capsys):
        _, layers = self.layers(capsys, "--image_size", "48x64")
        assert layers["block4_pool"]["output_shape"] == [3, 4, 512]
        assert list(layers)[-1] == "block5_pool"

    def test_native_size_leaves_the_shape_open(self, capsys):
        _, layers = self.layers(capsys, "--image_size", "native")
        assert layers["block4_pool"]["output_shape"] == [None, None, 512]
        assert layers["block4_pool"]["dimension"] == 512

    def test_prints_a_table(self, capsys):
        assert cli.main(["layers", "--image_size=native"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "VGG16, image size native; default 224x224, smallest 32x32"
        rows = [line.split() for line in lines]
        assert ["block4_pool", "MaxPooling2D", "?x?x512", "512", "15", "-"] in rows
        assert ["block4_conv3", "Conv2D", "?x?x512", "512", "14", "10"] in rows

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["--model", "VGG61"], "model='VGG61'"),
            (["--image_size", "31x40"], "at least 32x32"),
            (["x"], "argument 'x'"),
        ],
    )
    def test_bad_request_is_refused(self, capsys, argv, message):
        assert cli.main(["layers", *argv]) == 2
        assert message in capsys.readouterr().err


def test_a_notebooks_backend_of_matplotlib_is_not_asked_for():
    """`!imagebeam train` in a notebook: its kernel names a backend that only its own environment has."""
    code = (
        "import sys\nfrom pipelines import cli\nsys.argv[1:] = ['nothing']\ncli.main()\n"
        "import matplotlib\nprint(matplotlib.rcParams['backend'])"
    )
    environment = {**os.environ, "MPLBACKEND": "module://not_installed.backend_inline"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.stdout == "agg\n", run.stderr


def test_config_refuses_yaml_aliases(tmp_path, capsys):
    """Nine lines of them stand for gigabytes."""
    from pipelines.cli import run_job

    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    path = tmp_path / "run.yaml"
    path.write_text("\n".join(lines))
    assert run_job("extract", ["--config", str(path)]) == 2
    assert "aliases" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["input: a\noutput: out\ninput: b\n", '{"input": "a", "output": "out", "input": "b"}']
)
def test_config_refuses_repeated_keys(tmp_path, capsys, content):
    """PyYAML takes the last one: images of the first input would be missing in silence."""
    from pipelines.cli import run_job

    path = tmp_path / "run.yaml"
    path.write_text(content)
    assert run_job("extract", ["--config", str(path)]) == 2
    assert f"{path}: not a YAML file: the key 'input' stands there twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("train --embeddings run --output out", "matplotlib"),
        ("finetune --input images --output out", "matplotlib"),
        ("report run", "matplotlib"),
        ("demo", "matplotlib"),
        ("compare one two --label_column label", "sklearn"),
        ("classify --input images --classifier classifier --output out", "sklearn"),
    ],
)
def test_a_package_that_the_end_needs_is_asked_for_at_the_start(command, missing, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest))
    assert cli.main(shlex.split(command)) == 2
    told = f"imagebeam: error: The package {missing} is not installed: pip install 'imagebeam[train]'"
    assert capsys.readouterr().err.strip() == told
