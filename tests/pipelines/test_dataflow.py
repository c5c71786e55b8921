"""The job that Dataflow is asked to run, held against what docs/dataflow.md promises, and the template's parameters."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import apache_beam as beam
import pytest
from apache_beam.internal.gcp import auth
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_fn_api_pb2, beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner, execution
from apache_beam.runners.worker import bundle_processor

from pipelines import flex_template
from pipelines.cli import run_job
from pipelines.common.flags import parse
from pipelines.extract import ExtractOptions
from pipelines.options import dataflow
from pipelines.options.engine import EngineOptions
from pipelines.options.extraction import InputOptions, ModelOptions, OutputOptions
from pipelines.options.workers import WorkerOptions, complete
from tests.support import gcs_server
from tests.support.environments import pins
from tests.support.extracting import extract, small_images
from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.images.decode import ImageOptions, decode_image
from transforms.runs import lease
from transforms.storage import gcs as gcs_store

ROOT = Path(__file__).parents[2]
HERE = f"py{sys.version_info.major}.{sys.version_info.minor}-beam{beam.__version__}"
IMAGE = f"us-central1-docker.pkg.dev/shop/images/imagebeam:0.1.0-{HERE}-gpu"
JOB = ["--runner=DataflowRunner", "--project=shop", "--region=us-central1", "--temp_location=gs://test-bucket/tmp"]
JOB += [f"--sdk_container_image={IMAGE}"]
L4 = "worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"


def completed(*beam_args, gpu=None, patterns=("gs://b/in/*",), output="gs://b/out"):
    return complete(beam_args, WorkerOptions(gpu), patterns=patterns, output=output, batch_size=32)


def added(*beam_args, gpu=None):
    given = (*JOB, *beam_args)
    done = completed(*given, gpu=gpu)
    assert done[: len(given)] == given
    return set(done[len(given) :])


SETTINGS = {
    "--no_save_main_session",
    "--experiments=no_use_multiple_sdk_containers",
    "--number_of_worker_harness_threads=2",
}
GPU_SETTINGS = {f"--dataflow_service_options={L4}", "--machine_type=g2-standard-8", "--disk_size_gb=50"}


class TestSettings:
    def test_one_model_per_machine(self):
        assert added() == SETTINGS

    def test_gpu_brings_machine_disk_and_driver(self):
        assert added(gpu="nvidia-l4") == SETTINGS | GPU_SETTINGS

    @pytest.mark.parametrize(
        ("flag", "replaces"),
        [
            ("--experiments=use_multiple_sdk_containers", "--experiments="),
            ("--number_of_worker_harness_threads=7", "--number_of_worker_harness_threads="),
            ("--save_main_session", "--no_save_main_session"),
            ("--worker_machine_type=g2-standard-32", "--machine_type="),
            ("--disk_size_gb=200", "--disk_size_gb="),
            (
                "--dataflow_service_options=worker_accelerator=type:nvidia-l4;count:2;install-nvidia-driver",
                "--dataflow_service_options=",
            ),
        ],
    )
    def test_given_flags_win(self, flag, replaces):
        left_out = {setting for setting in SETTINGS | GPU_SETTINGS if setting.startswith(replaces)}
        assert len(left_out) == 1
        assert added(flag, gpu="nvidia-l4") == (SETTINGS | GPU_SETTINGS) - left_out

    @pytest.mark.parametrize(
        "flag", ["--experiments=upload_graph", "--dataflow_service_options=enable_google_cloud_profiler"]
    )
    def test_flags_of_the_same_name_add_up(self, flag):
        assert added(flag, gpu="nvidia-l4") == SETTINGS | GPU_SETTINGS

    @pytest.mark.parametrize("runner", [[], ["--runner=FnApiRunner"], ["--runner", "FlinkRunner"]])
    def test_other_runners_get_nothing_and_no_gpu(self, runner):
        assert completed(*runner, patterns=["in"], output="out") == tuple(runner)
        with pytest.raises(ImagebeamError, match=r"--gpu nvidia-l4 with (\w+Runner|the local runner)\."):
            completed(*runner, gpu="nvidia-l4")

    @pytest.mark.parametrize(
        "name", ["DataflowRunner", "dataflow", "apache_beam.runners.dataflow.dataflow_runner.DataflowRunner"]
    )
    def test_dataflow_is_known_by_all_names_beam_takes(self, name):
        with pytest.raises(ImagebeamError, match="needs --project"):
            completed(f"--runner={name}")


class TestRefusals:
    @pytest.mark.parametrize("name", ["project", "region", "temp_location", "sdk_container_image"])
    def test_missing_flag_is_named(self, name):
        given = [flag for flag in JOB if not flag.startswith(f"--{name}=")]
        with pytest.raises(ImagebeamError, match=rf"needs --{name} too"):
            completed(*given)

    def test_equivalent_flags_are_accepted(self):
        given = [flag for flag in JOB if not flag.startswith(("--temp_location", "--sdk_container_image"))]
        assert completed(*given, "--staging_location=gs://b/staging", "--setup_file=setup.py")

    def test_local_folders_are_refused(self):
        with pytest.raises(ImagebeamError, match=r"--output.*gs://.*'out'"):
            completed(*JOB, output="out")
        with pytest.raises(ImagebeamError, match=r"--input.*gs://.*'/photos'"):
            completed(*JOB, patterns=["gs://b/in", "/photos"])

    def test_template_with_dry_run_is_refused(self):
        with pytest.raises(ImagebeamError, match=r"--template_location 't\.json' with --dry_run"):
            completed(*JOB, "--template_location=t.json", "--dry_run=True")

    def test_refusal_comes_before_frameworks_load(self, tmp_path):
        """In a process of its own, which must not have imported TensorFlow when it gives up."""
        script = (
            "import sys; from pipelines.cli import run_job; "
            "code = run_job('extract', sys.argv[1:]); sys.exit(9 if 'tensorflow' in sys.modules else code)"
        )
        argv = ["--input", "in", "--output", str(tmp_path / "out"), *JOB]
        done = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True, cwd=ROOT)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"imagebeam: error: Dataflow's workers see no files .*\n", done.stderr)
        assert not list(tmp_path.iterdir())

    def test_unknown_gpu_is_refused_with_the_nearest(self, capsys):
        assert run_job("extract", ["--input", "gs://b/in", "--output", "gs://b/out", "--gpu", "nvidia-14", *JOB]) == 2
        assert re.search(r"--gpu: Did you mean nvidia-l4, .* Received: 'nvidia-14'", capsys.readouterr().err)

    @pytest.mark.parametrize(
        ("tag", "what"),
        [
            ("0.1.0-py3.12-beam2.77.0", "Python 3.12, this launcher runs 3.11"),
            ("0.1.0-py3.11-beam2.76.0-gpu", "Beam 2.76.0, this launcher runs 2.77.0"),
            ("py3.1-beam2.77.0", "Python 3.1, "),
        ],
    )
    def test_image_of_other_versions_is_refused(self, monkeypatch, tag, what):
        monkeypatch.setattr(sys, "version_info", type("Version", (), {"major": 3, "minor": 11}))
        monkeypatch.setattr(beam, "__version__", "2.77.0")
        with pytest.raises(ImagebeamError, match=what):
            dataflow.check_image(f"host:5000/images/imagebeam:{tag}")

    @pytest.mark.parametrize(
        "image",
        ["a/b:0.1.0-py3.11-beam2.77.0-gpu", "host:5000/a/imagebeam:1", "a/happy3.9-beam1", "a/b@sha256:1", None],
    )
    def test_images_of_matching_or_unknown_versions_pass(self, monkeypatch, image):
        monkeypatch.setattr(sys, "version_info", type("Version", (), {"major": 3, "minor": 11}))
        monkeypatch.setattr(beam, "__version__", "2.77.0")
        dataflow.check_image(image)


class Described:
    """A job as written by a launcher: its description, the pipeline it stages, and what the launcher stored."""

    def __init__(self, server, template):
        self.server = server
        self.job = json.loads(template.read_text())
        options = self.job["environment"]["sdkPipelineOptions"]["options"]
        self.graph = storage.read_bytes(options["pipelineUrl"])
        self.pipeline = beam_runner_api_pb2.Pipeline.FromString(self.graph)
        self.options = options
        self.requests = list(server.requests)

    @property
    def environment(self):
        return self.job["environment"]

    @property
    def pool(self):
        (pool,) = self.environment["workerPools"]
        return pool


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataflow")
    small_images(folder / "images", 12)
    with gcs_server.serve() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", server.url)
        patch.setattr(lease, "BEAT_SECONDS", 600.0)  # so that uploads can be counted
        # Beam would look for credentials for half a minute.
        patch.setattr(auth._Credentials, "_credentials_init", True)
        for path in (folder / "images").rglob("*.jpg"):
            storage.publish_file(f"gs://{server.bucket}/in/{path.parent.name}/{path.name}", path)
        server.requests.clear()
        job = [*JOB, "--gpu=nvidia-l4", "--no_auth", f"--template_location={folder / 'job.json'}"]
        assert extract("gs://test-bucket/in/**/*.jpg", "gs://test-bucket/out", *job) == 0
        yield Described(server, folder / "job.json")
        gcs_store._client()._http.close()
        gcs_store._make_client.cache_clear()


class TestJob:
    def test_has_a_gpu_on_every_worker(self, described):
        assert described.environment["serviceOptions"] == [L4]
        assert described.pool["machineType"] == "g2-standard-8"
        assert described.pool["diskSizeGb"] == 50

    def test_runs_one_process_with_two_threads_per_worker(self, described):
        experiments = described.environment["experiments"]
        assert "no_use_multiple_sdk_containers" in experiments
        assert "use_multiple_sdk_containers" not in experiments
        assert described.pool["numThreadsPerWorker"] == 2

    def test_runs_in_the_image_given_and_no_other(self, described):
        assert described.pool["workerHarnessContainerImage"] == IMAGE
        assert [image["containerImage"] for image in described.pool["sdkHarnessContainerImages"]] == [IMAGE]

    def test_stages_no_session_and_no_code(self, described):
        assert described.options["save_main_session"] is False
        assert [package["name"] for package in described.pool["packages"]] == [
            "submission_environment_dependencies.txt"
        ]

    def test_is_a_batch_job_of_the_project(self, described):
        assert described.job["type"] == "JOB_TYPE_BATCH"
        assert described.options["project"] == "shop"
        assert described.options["region"] == "us-central1"
        assert described.environment["tempStoragePrefix"].startswith("storage.googleapis.com/test-bucket/tmp/")

    def test_stages_the_weights_once_and_outside_the_graph(self, described):
        uploads = [path for method, path in described.requests if method == "POST" and "ifGenerationMatch" in path]
        assert len(uploads) == 4  # these three, and the lease, which has been given back
        names = [info.uri for info in storage.list_files("gs://test-bucket/out")]
        assert [re.sub("-[0-9a-f]{12}", "-DIGEST", name) for name in names] == [
            f"gs://test-bucket/out/{name}" for name in ("model/embedder-DIGEST.keras", "model/spec.json", "run.json")
        ]
        assert len(described.graph) < 200_000

    def test_sets_no_resource_hints_on_transforms(self, described):
        """A resource hint of a transform gives it an environment of its own, which parts it from its neighbours."""
        environments = described.pipeline.components.environments
        used = {step.environment_id for step in described.pipeline.components.transforms.values()} - {""}
        assert len(used) == 1
        assert not environments[used.pop()].resource_hints

    def test_is_refused_by_a_worker_of_another_beam(self, described, monkeypatch):
        """What docs/dataflow.md says of images whose tag names no versions."""
        bundle = beam_fn_api_pb2.ProcessBundleDescriptor(
            transforms=described.pipeline.components.transforms, environments=described.pipeline.components.environments
        )
        bundle_processor._verify_descriptor_created_in_a_compatible_env(bundle)
        mine = re.escape(beam.__version__)
        monkeypatch.setattr(beam.version, "__version__", "2.70.0")
        with pytest.raises(RuntimeError, match=rf"Submission environment: .*{mine}\. Runtime environment: .*2\.70\.0"):
            bundle_processor._verify_descriptor_created_in_a_compatible_env(bundle)

    def test_run_elsewhere_writes_rows_and_passes_no_pixels(self, described, monkeypatch):
        """The staged graph itself, run by Beam's local runner: the launcher is gone by then."""
        crossed = []
        append = execution.ListBuffer.append

        def record(self, element):
            crossed.append(bytes(element))
            append(self, element)

        monkeypatch.setattr(execution.ListBuffer, "append", record)
        pipeline = beam_runner_api_pb2.Pipeline()
        pipeline.CopyFrom(described.pipeline)
        for environment in pipeline.components.environments.values():
            environment.urn = python_urns.EMBEDDED_PYTHON
        FnApiRunner().run_via_runner_api(pipeline, beam.options.pipeline_options.PipelineOptions([]))

        manifest = json.loads(storage.read_bytes("gs://test-bucket/out/manifest.json"))
        assert manifest["totals"]["embedded"] == 12
        images = [storage.read_bytes(info.uri) for info in storage.list_files("gs://test-bucket/in")]
        assert len(images) == 12
        assert crossed
        assert not [element for element in crossed if any(image[-200:-150] in element for image in images)]
        pixels = [decode_image(image, ImageOptions(image_size=(32, 32))).pixels for image in images]
        decoded = [form[1000:1050] for image in pixels for form in (image.tobytes(), image.astype("float32").tobytes())]
        assert not [element for element in crossed if any(part in element for part in decoded)]
        assert max(map(len, crossed)) < 6000  # the longest are reports


class TestTemplate:
    def test_metadata_is_what_the_parser_gives(self):
        there = json.loads((ROOT / "deploy/dataflow/metadata.json").read_text())
        assert there == flex_template.metadata(), (
            "run: python -m pipelines.flex_template > deploy/dataflow/metadata.json"
        )

    def parameters(self):
        return {parameter["name"]: parameter for parameter in flex_template.metadata()["parameters"]}

    def test_parameters_are_the_flags(self):
        from tests.pipelines.test_cli import FLAGS

        flags = {name.removeprefix("--") for name in FLAGS.keys() - set(flex_template.LAUNCHER_FLAGS)}
        assert set(self.parameters()) == flags | {"config", "sdk_container_image"}

    def test_every_parameter_is_explained(self):
        for parameter in self.parameters().values():
            assert set(parameter) == {"name", "label", "helpText", "isOptional", "regexes"}
            assert parameter["label"]
            assert parameter["helpText"].endswith(".")
            assert "local" not in parameter["helpText"]
            assert all(regex[0] + regex[-1] == "^$" and re.compile(regex) for regex in parameter["regexes"])

    # parameter -> values it takes, values it refuses
    VALUES: ClassVar = {
        "config": (["gs://bucket/run.yaml"], ["run.yaml", "gs://bucket/run.txt"]),
        "input": (["gs://bucket/a/{b,c}/**/*.tar", "gs://bucket"], ["/photos", "s3://bucket/x", "gs://a"]),
        "input_format": (["auto", "tfrecord", "manifest"], ["csv", "tfrecords"]),
        "image_column": (["image", "jpeg bytes"], [""]),
        "label_column": (["label"], [""]),
        "label_from": (["auto", "first_folder", "none"], ["folder"]),
        "uri_column": (["file_name"], [""]),
        "keep_columns": (
            ["a", "a,b:int64", "a:list<string>,b", "a=b,c=d:int64", "a:double,b:list<uint64>"],
            ["a,", "a=", "=b", ":int64", "a:int", "a:list<int>", "a:list<string"],
        ),
        "model": (["VGG16"], [""]),
        "weights": (
            ["imagenet", "none", "random:3"]
            + [f"gs://bucket/w{end}" for end in (".weights.h5", ".h5", ".keras", ".npz", ".safetensors", ".onnx")],
            ["random:", "w.h5", "gs://bucket/w.pkl"],
        ),
        "layer": (["block4_pool"], [""]),
        "pooling": (["avg", "max", "flatten"], ["mean"]),
        "image_size": (["224x224", "native", "default"], ["224", "0x9", "224x224x3"]),
        "interpolation": (["bilinear", "lanczos"], ["linear"]),
        "resize_mode": (["stretch", "stretch_aliased", "center_crop", "pad"], ["crop"]),
        "precision": (["float32", "bfloat16", "int8", "auto"], ["float64", "float32 "]),
        "engine": (["auto", "keras", "openvino"], ["tensorflow"]),
        "int8_min_cosine": (["0.99", "1"], ["1.5", "-0.1"]),
        "dicom_frame": (["1", "12", "middle"], ["0", "last", "1.5"]),
        "jpeg_decode": (["exact", "scaled"], ["draft"]),
        "batch_size": (["1", "32"], ["0", "-1", "1.5"]),
        "max_image_pixels": (["1000"], ["0", "1e6"]),
        "truncated_images": (["refuse", "accept"], ["", "yes"]),
        "output": (["gs://bucket/out"], ["out", "/out"]),
        "embedding_type": (["list", "fixed_size_list"], ["array"]),
        "embedding_dtype": (["float16"], ["float64"]),
        "rows_per_unit": (["2048"], ["0"]),
        "overwrite": (["true", "false"], ["yes", ""]),
        "retry_failed": (["true", "false"], ["1"]),
        "max_failure_rate": (["0", "0.01", "1", "1.0"], ["1.5", "-0.1", "1%"]),
        "gpu": (list(dataflow.GPUS), ["l4", "nvidia-k80"]),
    }

    @pytest.mark.parametrize("name", VALUES)
    def test_regex_accepts_what_the_parser_accepts(self, name):
        (regex,) = self.parameters()[name]["regexes"]
        good, bad = self.VALUES[name]
        for value in good:
            assert re.match(regex, value)
            self.options(name, value)
        for value in bad:
            assert not re.match(regex, value)

    def options(self, name, value):
        """The job's options as the template's launcher would make them."""
        required = {"input": "gs://b/in", "output": "gs://b/out"}
        flags = flex_template.arguments([f"--{key}={text}" for key, text in (required | {name: value}).items()])
        if name == "config":
            assert flags[-1] == f"--config={value}"
            return None
        args, _ = parse(flex_template.extract_parser(), flags)
        if name in ("layer", "keep_columns"):
            return args
        if value.startswith("gs://") or name == "model":
            InputOptions.from_args(args)
            return args
        return ExtractOptions(
            InputOptions.from_args(args),
            ModelOptions.from_args(args),
            OutputOptions.from_args(args),
            EngineOptions.from_args(args),
            WorkerOptions.from_args(args),
        )

    @pytest.mark.parametrize(("text", "expected"), [("true", True), ("false", False)])
    def test_switches_are_given_as_values(self, text, expected):
        assert self.options("overwrite", text).output.overwrite is expected

    def test_switch_with_another_value_is_refused(self):
        with pytest.raises(ImagebeamError, match=r"--overwrite.*'yes'"):
            self.options("overwrite", "yes")

    def test_defaults_pass_their_own_regex(self):
        parser = flex_template.extract_parser()
        for name, parameter in self.parameters().items():
            default = getattr(parser.flags.get(f"--{name}"), "default", None)
            if default not in (None, argparse.SUPPRESS, False):
                assert re.match(parameter["regexes"][0], str(default)), name

    def test_image_parameter_accepts_registry_names(self):
        (regex,) = self.parameters()["sdk_container_image"]["regexes"]
        assert re.match(regex, IMAGE)
        assert re.match(regex, IMAGE.rpartition(":")[0] + "@sha256:" + "0" * 64)
        assert not re.match(regex, "imagebeam:1")

    def test_entry_point_runs_extract_with_the_launchers_arguments(self, tmp_path):
        entry = ROOT / "deploy/dataflow/extract.py"
        argv = ["--runner=DataflowRunner", "--overwrite=false", "--input=gs://b/in", "--output=gs://b/out"]
        argv += ["--staging_location=gs://b/s", "--template_location=/x/job_object", '--labels={"a": "b"}']
        done = subprocess.run([sys.executable, entry, *argv], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 2
        assert "needs --project, --sdk_container_image too" in done.stderr

    def test_image_starts_that_entry_point(self):
        dockerfile = (ROOT / "Dockerfile").read_text()
        (target,) = re.findall(r"^COPY deploy/dataflow/extract\.py (\S+)$", dockerfile, re.MULTILINE)
        assert f"ENV FLEX_TEMPLATE_PYTHON_PY_FILE={target}\n" in dockerfile
        minor = re.search(r"python:(\d)\.(\d+)-", dockerfile)
        assert minor
        assert f"python{minor[1]}{minor[2]}-template-launcher-base" in dockerfile


class TestDocument:
    TEXT = (ROOT / "docs/dataflow.md").read_text()

    def test_names_the_versions_of_the_image_in_its_tag(self):
        (tag,) = set(
            re.findall(r"imagebeam:(\d[\w.-]+)", self.TEXT + (ROOT / "deploy/dataflow/launch.json").read_text())
        )
        python, *_ = re.findall(r"^FROM python:(\d+\.\d+)-", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        (release,) = re.findall(r'version="(.+)"', (ROOT / "setup.py").read_text())
        assert tag == f"{release}-py{python}-beam{pins('requirements-gpu.lock')['apache-beam']}-gpu"

    def test_lists_every_gpu_with_its_machine(self):
        table = re.findall(r"^\| (`nvidia-.*) \| `(.+)` \|$", self.TEXT, re.MULTILINE)
        shown = {gpu.strip("` "): machine for gpus, machine in table for gpu in gpus.split(",")}
        assert shown == dataflow.GPUS

    def test_lists_every_setting(self):
        shown = set(re.findall(r"^\| `(--\S+)` \|", self.TEXT, re.MULTILINE)) - {"--gpu"}
        settings = {setting.replace("nvidia-l4", "TYPE") for setting in SETTINGS | GPU_SETTINGS}
        assert shown == {setting.replace("=g2-standard-8", "") for setting in settings}

    def test_schedule_request_has_known_parameters(self):
        request = json.loads((ROOT / "deploy/dataflow/launch.json").read_text())["launchParameter"]
        text = (
            json.dumps(request).replace("BUCKET", "bucket").replace("PROJECT", "shop").replace("REGION", "us-central1")
        )
        metadata = {one["name"]: one for one in flex_template.metadata()["parameters"]}
        for name, value in json.loads(text)["parameters"].items():
            assert re.match(metadata[name]["regexes"][0], value)

    def test_parameters_of_its_commands_exist(self):
        names = {one["name"] for one in flex_template.metadata()["parameters"]}
        given = re.findall(r"(?:--parameters=|,)(\w+)=[\"$\w]", self.TEXT)
        assert {"input", "output", "gpu", "sdk_container_image"} == set(given) <= names

    def test_hours_follow_from_the_rates(self):
        for rate, hours in re.findall(r"^\| ([\d,.]+), \w+ \| .* \| ([\d.]+) \w+ hours", self.TEXT, re.MULTILINE):
            exact = 1e6 / float(rate.replace(",", "")) / 3600
            assert float(hours) == pytest.approx(exact, abs=0.051 if exact > 1 else 0.0051)
