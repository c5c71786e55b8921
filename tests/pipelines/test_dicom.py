"""DICOM files through extract, against pydicom's pixels and plain Keras; what a header holds stays where it is."""

import hashlib
import io
import tarfile

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest

from pipelines.cli import run_job
from tests.pipelines.test_extract import assert_vectors, plain_vgg16
from tests.support import dicom
from tests.support.dicom import pydicom
from tests.support.extracting import SMALL_MODEL, SMALL_SIZE, embeddings, extract, failures, manifest

NAMES = (
    *("CT_small", "MR_small_RLE", "693_J2KI", "JPGExtended", "MR_small_jpeg_ls_lossless", "examples_overlay"),
    *("SC_rgb_jpeg_dcmtk", "SC_rgb_jpeg_gdcm", "SC_rgb_rle_2frame", "examples_palette", "examples_ybr_color", "rtdose"),
)
PATIENT = "Canary^Patient"
SECRETS = {
    "PatientName": PATIENT,
    "PatientID": "1931-canary",
    "PatientBirthDate": "19310203",
    "InstitutionName": "canary-institute",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.19311",
    "SeriesInstanceUID": "1.2.826.0.1.3680043.8.498.19312",
    "SOPInstanceUID": "1.2.826.0.1.3680043.8.498.19313",
    "PatientComments": "canary-comment",
    "WindowCenterWidthExplanation": "canary-window",
    "private": "canary-private",
}


def patient(**elements):
    """A file with a patient in its header, wherever one may be."""
    values = np.arange(4096, dtype=np.int16).reshape(64, 64)
    referring = pydicom.Dataset()
    referring.PatientName = PATIENT
    return dicom.write(values, 16, **SECRETS, SharedFunctionalGroupsSequence=[referring], **elements)


def damaged(data, count):
    """Files that differ from this one in a byte of the header; of some the error quotes what it read."""
    random = np.random.default_rng(0)
    for _ in range(count):
        position = random.integers(132, len(data) - 8192)
        yield data[:position] + random.bytes(1) + data[position + 1 :]


def write_files(folder):
    for name in NAMES:
        (folder / f"{name}.dcm").write_bytes(dicom.find(name))
    return folder


def write_shard(folder):
    """With names that say something else."""
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for name in NAMES:
            data = dicom.find(name)
            info = tarfile.TarInfo(f"{name}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return folder / "shard.tar"


@pytest.mark.parametrize("write", [write_files, write_shard])
def test_vectors_equal_plain_keras_on_pydicom_pixels(tmp_path, output, write):
    import keras

    (tmp_path / "in").mkdir()
    assert extract(write(tmp_path / "in"), output) == 0
    embed = plain_vgg16(SMALL_SIZE, "block1_pool", keras.layers.GlobalAveragePooling2D())
    expected = {}
    for name in NAMES:
        data = dicom.find(name)
        image = PIL.Image.fromarray(dicom.shown(data)).resize(SMALL_SIZE[::-1], PIL.Image.Resampling.BILINEAR)
        expected[hashlib.sha256(data).hexdigest()] = embed(np.asarray(image))
    assert_vectors(embeddings(output, by="sha256"), expected)
    assert manifest(output)["decoders"]["DICOM"] == ["tensorflow_io", "pydicom"]
    assert manifest(output)["versions"]["tensorflow_io"]


def test_another_frame_is_another_run(tmp_path, output):
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.dcm").write_bytes(dicom.find("examples_ybr_color"))
    assert extract(source, output, "--dicom_frame", "12") == 0
    assert extract(source, tmp_path / "first") == 0
    assert manifest(output)["spec"]["dicom_frame"] == 12
    assert "dicom_frame" not in manifest(tmp_path / "first")["spec"]
    (chosen,), (first,) = (embeddings(folder).values() for folder in (output, tmp_path / "first"))
    assert np.abs(chosen - first).max() > 1e-3
    assert extract(source, output) == 2


def test_no_header_value_is_disclosed(tmp_path, output, capfd):
    """Neither by a run nor by what reads it, of sound files and of damaged ones, in any byte that is written."""
    source = tmp_path / "in"
    source.mkdir()
    sound = patient()
    assert all(secret.encode() in sound for secret in SECRETS.values())
    (source / "sound.dcm").write_bytes(sound)
    (source / "cut.dcm").write_bytes(sound[:-500])
    (source / "cut-header.dcm").write_bytes(sound[: sound.index(b"LO", 400) + 20])
    (source / "odd.dcm").write_bytes(patient(PhotometricInterpretation=PATIENT[:16]))
    (source / "odd-window.dcm").write_bytes(
        patient(WindowCenter=1, WindowWidth=2).replace(b"DS\x02\x002 ", b"DS\x02\x00Ca")
    )
    (source / "odd-bits.dcm").write_bytes(patient(BitsAllocated=17))
    for number, data in enumerate(damaged(sound, 50)):
        (source / f"damaged-{number}.dcm").write_bytes(data)
    assert extract(source, output, "--max_failure_rate", "1", "--log_format", "json", "--debug") == 0
    assert len(embeddings(output)) >= 1
    assert len(failures(output)) >= 10
    assert run_job("report", [str(output)]) == 0
    assert "cut-header.dcm" in (output / "report.html").read_text()
    assert run_job("verify", [str(output)]) == 0
    assert run_job("plan", ["--input", str(source), *SMALL_MODEL, "--format", "json"]) == 0
    said = capfd.readouterr()
    assert "56 records" in said.err
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent != source]
    rows = [pq.read_table(path) for path in files if path.suffix == ".parquet"]
    shown = [repr((table.to_pylist(), table.schema.metadata)) for table in rows]
    shown += [path.read_bytes().decode("latin-1") for path in files]
    shown += [said.out, said.err]
    for secret in (*SECRETS.values(), PATIENT[:8]):
        assert not [text for text in shown if secret.lower() in text.lower()], secret


def test_requested_column_is_kept(tmp_path, output):
    import pyarrow as pa

    table = pa.table({"image": [patient()], "patient": [PATIENT], "ward": ["7"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert extract(tmp_path / "a.parquet", output, "--keep_columns", "ward") == 0
    (part,) = (output / "embeddings").glob("*.parquet")
    assert pq.read_table(part).column("ward").to_pylist() == ["7"]
    assert PATIENT not in repr(pq.read_table(part).to_pylist())
