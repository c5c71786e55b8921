"""The trial of a lower precision before a run, with models whose speed is known."""

import time

import pytest

from pipelines.runtime import launch, precision
from tests.support.fakes import ChannelMeans
from transforms.models.config import EmbedderConfig


class Taking(ChannelMeans):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def embed(self, images):
        time.sleep(self.seconds)
        return super().embed(images)


@pytest.fixture
def float32(monkeypatch):
    """A float32 model that takes a tenth of a second for a batch; the configurations it was asked for with."""
    asked = []

    def resolve(config):
        asked.append(config)
        return Taking(0.1)

    monkeypatch.setattr(precision, "resolve", resolve)
    monkeypatch.setattr(precision, "has_gpu", lambda: False)
    return asked


def test_a_precision_that_is_slower_here_is_told(float32, capsys):
    precision.warn_if_slower(EmbedderConfig(precision="bfloat16"), Taking(0.3))
    told = capsys.readouterr().err
    assert "WARNING: on this machine bfloat16 is slower than float32: 13" in told
    assert [config.precision for config in float32] == ["float32"]


def test_one_that_is_faster_is_not(float32, capsys):
    precision.warn_if_slower(EmbedderConfig(precision="bfloat16"), Taking(0.02))
    assert "slower" not in capsys.readouterr().err
    assert float32


def test_nothing_is_tried_for_float32_or_on_a_gpu(float32, monkeypatch):
    precision.warn_if_slower(EmbedderConfig(), Taking(0.3))
    monkeypatch.setattr(precision, "has_gpu", lambda: True)
    precision.warn_if_slower(EmbedderConfig(precision="float16"), Taking(0.3))
    assert not float32


def test_only_the_local_runner_works_here():
    assert launch.works_here(launch.open_pipeline([]))
    assert launch.works_here(launch.open_pipeline(["--direct_num_workers=2"]))
    assert not launch.works_here(launch.open_pipeline(["--runner=PortableRunner", "--job_endpoint=embed"]))
