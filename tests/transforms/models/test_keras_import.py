"""What Keras brings into a process of a job's own, and into one that is somebody else's."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from transforms.models import keras_import
if sys.argv[1] == "own":
    keras_import.import_without_unused()
keras_import.import_keras()
import keras
print(*sorted({"matplotlib", "sklearn"} & sys.modules.keys()))
import matplotlib.pyplot, sklearn.linear_model
try:
    keras.wrappers.SKLearnClassifier(keras.Sequential())
    print("wrappers")
except ImportError as error:
    print("scikit-learn" in str(error) or "sklearn" in str(error))
"""


@pytest.mark.parametrize(("process", "printed"), [("own", ["", "True"]), ("other", ["matplotlib sklearn", "wrappers"])])
def test_a_job_does_not_import_what_it_does_not_use(process, printed):
    run = [sys.executable, "-c", PROGRAM, process]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines() == printed
