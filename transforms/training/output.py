"""The output folder of a training job: its files, checks and write order."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transforms import storage
from transforms.core.errors import ImagebeamError, using
from transforms.core.text import readable_json
from transforms.runs.copies import refuse_copy_as_output
from transforms.runs.manifest import MANIFEST_FILE, RUN_FILE
from transforms.training.checkpoint import Checkpoint
from transforms.training.head import LABELS_FILE


class ResultFile(enum.StrEnum):
    """Names of the files that a finished job writes."""

    CLASSIFIER = "classifier.keras"
    IMAGE_CLASSIFIER = "image_classifier.keras"
    BACKBONE = "backbone.weights.h5"
    LABELS = LABELS_FILE
    PREDICTIONS = "predictions.parquet"
    CURVES = "training_curves.png"
    CONFUSION = "confusion_matrix.png"
    METRICS = "metrics.json"
    """Published last: without it the other files are not those of a finished run."""


def holds_classifier(uri: str) -> bool:
    """Whether a training job finished, or is unfinished, in a folder (`METRICS` is no sign: classify has one too).

    Raises:
        OSError: if the folder cannot be read.
    """
    names = (ResultFile.CLASSIFIER, ResultFile.IMAGE_CLASSIFIER)
    return any(storage.exists(storage.join(uri, name)) for name in names) or Checkpoint(uri).exists()


class ClassifierFolder:
    """A job's output folder.

    Args:
        uri: local or gs://.
        overwrite: whether what is there may be replaced.

    Attributes:
        uri: absolute.
        checkpoint: the state of an unfinished run.

    Raises:
        JobError: if the folder cannot be read, and not for what the user gave.
        ImagebeamError: if the folder holds results, and neither belongs to an unfinished run nor may be replaced; or
            if it is that of a run of extract or classify, or a copy of compact, which none may replace; or if it is
            a file.
    """

    def __init__(self, uri: str, *, overwrite: bool) -> None:
        self.uri = storage.absolute(uri)
        try:
            storage.check_can_be_folder(self.uri)
        except NotADirectoryError as error:
            raise ImagebeamError(
                f"{error.filename} is a file, and no folder. Received: --output {uri!r}. Choose another --output."
            ) from error
        self._received = f"--output {uri!r}"
        with self._used():
            refuse_copy_as_output(self.uri)
        self.checkpoint = Checkpoint(self.uri)
        self._overwrite = overwrite
        for name in (RUN_FILE, MANIFEST_FILE):
            if storage.exists(storage.join(self.uri, name)):
                raise ImagebeamError(
                    f"{self.uri} holds a run of extract or classify ({name}), whose files a classifier would mix with "
                    "its own. Choose another --output."
                )
        there = [name for name in ResultFile if storage.exists(storage.join(self.uri, name))]
        if there and not overwrite and not self.checkpoint.exists():
            raise ImagebeamError(
                f"{self.uri} already holds {', '.join(there)}. Choose another --output, or replace what is there with "
                "--overwrite."
            )

    def claim(self, run: Mapping[str, Any]) -> bool:
        """Begin or resume a run, as `Checkpoint.claim`, and remove what killed runs left half written."""
        with self._used():
            storage.remove_leftovers(self.uri)
            return self.checkpoint.claim(run, overwrite=self._overwrite)

    def publish(self, files: Mapping[ResultFile, bytes | Path], metrics: Mapping[str, Any]) -> None:
        """Put a run's results into the folder in place of earlier ones, and forget its checkpoint."""
        with self._used():
            for name in (ResultFile.METRICS, *(name for name in ResultFile if name not in files)):
                storage.delete(storage.join(self.uri, name))
            for name, content in files.items():
                uri = storage.join(self.uri, name)
                if isinstance(content, Path):
                    storage.publish_file(uri, content)
                else:
                    storage.publish(uri, content)
            storage.publish(storage.join(self.uri, ResultFile.METRICS), readable_json(metrics, indent=1))
            self.checkpoint.remove()

    def _used(self) -> contextlib.AbstractContextManager[None]:
        return using("The output", self._received)
