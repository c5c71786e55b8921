"""Whole jobs on gs://: in processes of their own, against an emulator, killed, resumed, and over a bad network."""

import csv
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.cli import run_job
from tests.support import gcs_server
from tests.support.extracting import SMALL_MODEL, embeddings, extract, small_images
from tests.support.fault_proxy import KINDS, spoil
from tests.support.gcs_server import gcs as emulated  # noqa: F401
from transforms import storage
from transforms.parts import part_files
from transforms.readers.read import open_records
from transforms.storage import gcs as gcs_store

ROOT = Path(__file__).parents[2]
IMAGES = 60
MODEL = [*SMALL_MODEL[:-1], "3"]


def job(url, name, *flags):
    """The command line of a job, started in a process that finds the storage at `url` and no credentials."""
    environment = {**os.environ, "STORAGE_EMULATOR_HOST": url, "CLOUDSDK_CONFIG": "/nonexistent"}
    environment.pop("GOOGLE_APPLICATION_CREDENTIALS", None)
    command = [sys.executable, "-m", "pipelines", name, *map(str, flags)]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, log = process.communicate(timeout=280)
    assert process.returncode == 0, log
    return log


def upload(folder, bucket, under="in"):
    for path in sorted(Path(folder).rglob("*.jpg")):
        storage.publish_file(f"gs://{bucket}/{under}/{path.relative_to(folder)}", path)


def rows(output):
    """Vectors by the image's name below its folder; a row that comes twice is an error."""
    vectors = {}
    for info in storage.list_folder(f"{output}/embeddings"):
        table = pq.read_table(io.BytesIO(storage.read_bytes(info.uri)))
        for key, vector in zip(table["key"].to_pylist(), table["embedding"].to_pylist(), strict=True):
            name = "/".join(key.split("/")[-2:])
            assert name not in vectors
            vectors[name] = np.array(vector, np.float32)
    return vectors


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, vector in expected.items():
        np.testing.assert_allclose(found[name], vector, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return small_images(tmp_path_factory.mktemp("images"), IMAGES)


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    """Rows of a run on local files."""
    output = tmp_path_factory.mktemp("local") / "out"
    assert extract(f"{images}/**/*.jpg", output, model=MODEL) == 0
    vectors = {"/".join(key.split("/")[-2:]): vector for key, vector in embeddings(output).items()}
    assert len(vectors) == IMAGES
    return vectors


@pytest.fixture(scope="module")
def emulator():
    """PyPI's gcp-storage-emulator as it comes, in a process of its own, with the bucket "shop"."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = str(Path(sys.executable).with_name("gcp-storage-emulator"))
    options = ["--port", str(port), "-H", "127.0.0.1", "-q", "-M", "--default-bucket", "shop"]
    process = subprocess.Popen([program, "start", *options], stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}/storage/v1/b/shop/o", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STORAGE_EMULATOR_HOST", url)
            yield url
            gcs_store._client()._http.close()
            gcs_store._make_client.cache_clear()
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def resumed(emulator, images, undisturbed):
    """The folder of a run that was killed twice, after a random number of units each time."""
    upload(images, "shop")
    output = "gs://shop/out"
    chance = random.Random(0)
    flags = ["--input", "gs://shop/in/**/*.jpg", "--output", output, *MODEL]
    for _ in range(2):
        process = job(emulator, "extract", *flags)
        before = sum(1 for _ in part_files.list_parts(f"{output}/embeddings"))
        wanted = before + chance.randint(1, 5)
        while process.poll() is None and sum(1 for _ in part_files.list_parts(f"{output}/embeddings")) < wanted:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not storage.exists(f"{output}/manifest.json")
        assert 0 < len(rows(output)) < IMAGES
    log = finish(job(emulator, "extract", *flags))
    return output, log


@pytest.mark.slow
class TestKilledAndResumed:
    def test_has_the_rows_of_an_undisturbed_run(self, resumed, undisturbed):
        assert_same(rows(resumed[0]), undisturbed)

    def test_resumes_where_it_stopped(self, resumed):
        totals = json.loads(storage.read_bytes(f"{resumed[0]}/manifest.json"))["totals"]
        assert (totals["embedded"], totals["failed"]) == (IMAGES, 0)
        assert 0 < totals["units_skipped"] < totals["units"]

    def test_leaves_no_temporary_files(self, resumed):
        names = {info.uri.removeprefix(resumed[0] + "/").partition("/")[0] for info in storage.list_files(resumed[0])}
        assert names == {"embeddings", "model", "run.json", "manifest.json"}

    def test_a_report_is_written_beside_it(self, emulator, resumed):
        finish(job(emulator, "report", resumed[0]))
        page = storage.read_bytes(f"{resumed[0]}/report.html").decode()
        assert f">{IMAGES}<" in page
        storage.delete(f"{resumed[0]}/report.html")

    def test_a_classifier_trains_from_it(self, emulator, resumed):
        output = "gs://shop/classifier"
        flags = ["--embeddings", resumed[0], "--output", output, "--epochs", "5"]
        finish(job(emulator, "train", *flags))
        names = {storage.basename(info.uri) for info in storage.list_files(output)}
        assert {"classifier.keras", "labels.json", "metrics.json"} <= names
        assert not {name for name in names if name.startswith("checkpoint-")}


@pytest.mark.slow
def test_bad_network_loses_and_doubles_nothing(images, undisturbed, monkeypatch):
    with gcs_server.serve() as server, spoil(server.url, every=20) as proxy:
        server.page_size = 1000
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        upload(images, server.bucket)
        flags = ["--input", f"gs://{server.bucket}/in/**/*.jpg", "--output", f"gs://{server.bucket}/out", *MODEL]
        finish(job(f"http://{proxy.netloc}", "extract", *flags))
        assert set(proxy.faults) == set(KINDS)
        assert proxy.faults.total() == proxy.requests // 20
        assert_same(rows(f"gs://{server.bucket}/out"), undisturbed)
        totals = json.loads(storage.read_bytes(f"gs://{server.bucket}/out/manifest.json"))["totals"]
        assert (totals["records"], totals["embedded"], totals["failed"]) == (IMAGES, IMAGES, 0)
        gcs_store._client()._http.close()
        gcs_store._make_client.cache_clear()


def test_broken_answer_is_requested_again(emulated, monkeypatch):  # noqa: F811
    uri = f"gs://{emulated.bucket}/there"
    storage.publish(uri, b"content")
    with spoil(emulated.url, every=2, kinds=["cut short"]) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{proxy.netloc}")
        for _ in range(2):  # every other request fails, whichever came first
            with pytest.raises(FileNotFoundError, match="/none does not exist"):
                storage.read_bytes(f"gs://{emulated.bucket}/none")
            assert storage.read_bytes(uri) == b"content"
            with storage.open_read(uri) as stream:
                assert stream.read(3) + stream.read(100) + stream.read(1) == b"content"
            with pytest.raises(storage.ReplacedError):
                storage.read_bytes(uri, "1")
        assert proxy.faults["cut short"] >= 6
        gcs_store._client()._http.close()


@pytest.mark.slow
def test_weights_manifest_and_config_can_be_on_gs(emulated, tmp_path):  # noqa: F811
    import keras

    base = f"gs://{emulated.bucket}"
    folder = small_images(tmp_path / "images", 4)
    upload(folder, emulated.bucket)
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.jpg"))]
    table = io.StringIO()
    csv.writer(table).writerows([("uri", "label", "key"), *((f"in/{name}", "x", name) for name in names)])
    storage.publish(f"{base}/list.csv", table.getvalue().encode())
    keras.utils.set_random_seed(5)
    model = keras.applications.MobileNetV3Small(include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg")
    model.save_weights(tmp_path / "w.weights.h5")
    storage.publish_file(f"{base}/w.weights.h5", tmp_path / "w.weights.h5")
    config = {"input": f"{base}/list.csv", "output": f"{base}/out", "weights": f"{base}/w.weights.h5"}
    config |= {"model": "MobileNetV3Small", "image_size": "32x32"}
    storage.publish(f"{base}/run.yaml", json.dumps(config).encode())
    assert run_job("extract", ["--config", f"{base}/run.yaml"]) == 0
    (part,) = storage.list_folder(f"{base}/out/embeddings")
    found = pq.read_table(io.BytesIO(storage.read_bytes(part.uri)))
    assert found["key"].to_pylist() == names
    pixels = np.stack([_pixels(folder / name) for name in names])
    np.testing.assert_allclose(
        np.stack(found["embedding"].to_numpy()), model.predict(pixels, verbose=0), rtol=1e-4, atol=1e-5
    )
    assert json.loads(storage.read_bytes(f"{base}/out/model/spec.json"))["weights"]["source"] == f"{base}/w.weights.h5"


def _pixels(path):
    import PIL.Image

    with PIL.Image.open(path) as image:
        resized = image.convert("RGB").resize((32, 32), PIL.Image.Resampling.BILINEAR)
        return np.asarray(resized, np.float32)


@pytest.mark.parametrize(
    ("name", "flags", "named"),
    [
        ("extract", "--input gs://nobucket/in --output {}/out", "--input 'gs://nobucket/in'"),
        ("extract", "--input gs://nobucket/in/*.jpg --output {}/out", "--input 'gs://nobucket/in/*.jpg'"),
        ("plan", "--input gs://nobucket/in", "--input 'gs://nobucket/in'"),
        ("finetune", "--input gs://nobucket/in --output {}/out", "--input 'gs://nobucket/in'"),
        ("extract", "--input {} --output gs://nobucket/out", "--output 'gs://nobucket/out'"),
        ("train", "--embeddings gs://nobucket/in --output {}/out", "--embeddings 'gs://nobucket/in'"),
        ("classify", "--input {} --classifier gs://nobucket/c --output {}/out", "gs://nobucket/c"),
        ("train", "--embeddings {} --output gs://nobucket/out", "--output 'gs://nobucket/out'"),
        ("verify", "gs://nobucket/run", "gs://nobucket/run"),
        ("report", "gs://nobucket/run", "gs://nobucket/run"),
        ("compact", "gs://nobucket/run --output {}/out", "gs://nobucket/run"),
    ],
)
def test_a_missing_bucket_is_the_users_to_mend(emulated, images, tmp_path, capsys, name, flags, named):  # noqa: F811
    words = flags.replace("{}/out", str(tmp_path / "out")).replace("{}", str(images)).split()
    model = MODEL if name in ("extract", "plan", "finetune") else []
    model = model if name != "finetune" else model[: model.index("--image_size")]
    assert run_job(name, [*words, *model]) == 2
    assert named in capsys.readouterr().err


def test_object_replaced_after_planning_is_embedded_by_the_next_run(emulated, tmp_path, monkeypatch):  # noqa: F811
    from transforms.embed import embed_units

    base = f"gs://{emulated.bucket}"
    folder = small_images(tmp_path / "images", 4)
    upload(folder, emulated.bucket)
    victim = next(storage.list_files(f"{base}/in")).uri

    def replace_first(unit, options):
        storage.publish(victim, (folder / "b/0001.jpg").read_bytes())
        return open_records(unit, options)

    with monkeypatch.context() as patch:
        patch.setattr(embed_units, "open_records", replace_first)
        assert extract(f"{base}/in/**/*.jpg", f"{base}/out", "--max_failure_rate", "1") == 3
    assert len(rows(f"{base}/out")) == 3
    (part,) = storage.list_folder(f"{base}/out/failures")
    failures = pq.read_table(io.BytesIO(storage.read_bytes(part.uri))).to_pylist()
    assert [(row["key"], row["stage"]) for row in failures] == [(victim, "read")]
    assert "was replaced after it was listed" in failures[0]["message"]
    assert extract(f"{base}/in/**/*.jpg", f"{base}/out") == 0
    assert len(rows(f"{base}/out")) == 4


def test_job_without_credentials_does_not_wait(emulated, tmp_path, monkeypatch):  # noqa: F811
    """Looking for credentials takes Beam's gs:// and google-auth about 25 seconds; the job must not do it at all."""
    import google.auth

    lookups: list[tuple[object, ...]] = []
    monkeypatch.setattr(google.auth, "default", lambda *args, **kwargs: lookups.append(args) or (None, None))
    upload(small_images(tmp_path / "images", 2), emulated.bucket)
    base = f"gs://{emulated.bucket}"
    assert extract(f"{base}/in/**/*.jpg", f"{base}/out") == 0
    assert not lookups
