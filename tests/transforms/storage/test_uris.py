"""Uris as users write them."""

import os

import pytest

from transforms.core.errors import ImagebeamError
from transforms.storage.uris import absolute


@pytest.mark.parametrize(
    "uri",
    ["gs:/b/out", "gs:b/out", "GS:/b/out", "s3:/b/x", "hdfs:/namenode/x", "azfs:/a/b", "gcs:/b/out", "https:/x/y"],
)
def test_missing_slash_is_refused_with_a_suggestion(uri):
    with pytest.raises(ImagebeamError, match=r"Did you mean \w+://\w+/\w+") as error:
        absolute(uri)
    assert repr(uri) in str(error.value)


@pytest.mark.parametrize("uri", ["gs://", "gs:///", "gs:///out", "gs:////out", "s3://", "hdfs://", "gs:", "gs:/"])
def test_a_url_without_a_bucket_is_refused(uri):
    with pytest.raises(ImagebeamError, match="names no bucket"):
        absolute(uri)


@pytest.mark.parametrize("uri", ["gs://$BUCKET/out", "gs://${BUCKET}/out", "$OUT/run", "${OUT}", "s3://$B"])
def test_unexpanded_variable_is_refused(uri):
    with pytest.raises(ImagebeamError, match="expanded by a shell"):
        absolute(uri)


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///data/a b", "/data/a b"),
        ("file:///data/a%20b", "/data/a b"),
        ("file:/data/x", "/data/x"),
        ("file://localhost/data/x", "/data/x"),
        ("FILE:///data/%C3%A9", "/data/é"),
        ("file:///data/100%25", "/data/100%"),
        ("/data/a%20b", "/data/a%20b"),
        ("/data/../x", "/x"),
        ("gs://b/a%20b", "gs://b/a%20b"),
        ("GS://b/Out", "gs://b/Out"),
    ],
)
def test_uri_becomes_an_absolute_path(uri, path):
    assert absolute(uri) == path
    assert absolute(absolute(uri)) == path


@pytest.mark.parametrize("uri", ["file://server/x", "file:x", "file:", "file://"])
def test_file_url_without_a_local_path_is_refused(uri):
    with pytest.raises(ImagebeamError, match="file:///data/images"):
        absolute(uri)


def test_a_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert absolute("~/out") == f"{tmp_path}/out"
    assert absolute("~") == str(tmp_path)
    with pytest.raises(ImagebeamError, match="no such home folder"):
        absolute("~no-such-user/out")
    (tmp_path / "~odd").mkdir()
    assert absolute("~odd") == os.path.join(tmp_path, "~odd")  # it is there: taken literally


def test_a_relative_path_without_a_working_directory_is_refused(monkeypatch, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ImagebeamError, match=r"working directory is not there any more.* Received: 'photos'\."):
        absolute("photos")
    assert absolute(str(tmp_path)) == str(tmp_path)


def test_a_nul_is_no_part_of_a_path():
    """As YAML has it: `input: "photos\\0"`."""
    for uri in ("pho\0tos", "gs://bucket/\0"):
        with pytest.raises(ImagebeamError, match="NUL"):
            absolute(uri)
