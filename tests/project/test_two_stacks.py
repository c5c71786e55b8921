"""The newest and the oldest stack give the same vectors; see `benchmarks.two_stacks` for more models."""

import pytest

from tests.support.environments import ROOT
from tests.support.real_weights import vgg16_onnx

OTHER = ROOT / ".venv-tfio" / "bin" / "python"


@pytest.mark.slow
@pytest.mark.real_weights
@pytest.mark.skipif(not OTHER.exists(), reason="no .venv-tfio here: make venv STACK=tfio")
def test_both_stacks_give_similar_vectors():
    from benchmarks import two_stacks

    vgg16_onnx()
    assert two_stacks.main(["--other", str(OTHER), "--images", "8", "--models", "VGG16"]) == 0
