"""Open a trained classifier, check that it fits the vectors, and stage it for workers."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transforms import storage
from transforms.core.digests import file_sha256
from transforms.core.errors import ImagebeamError
from transforms.core.spec import EmbedderSpec
from transforms.models.embedder import Embedder, columns
from transforms.models.engines.openvino_model import OpenVinoEmbedder
from transforms.models.engines.prediction import predict_rows
from transforms.models.graph_digest import graph_sha256
from transforms.models.staged import (
    LoadedModel,
    StagedEngine,
    StagedModel,
    check_sha256,
    name_by_content,
    read_sound,
    stage,
)
from transforms.models.weights.load import values_sha256
from transforms.training.head import embedder_of, load, read_labels
from transforms.training.output import ResultFile

if TYPE_CHECKING:
    import keras

_BATCH_ROWS = 4096
"""Vectors labelled at once, at most."""

PROBABILITIES, EMBEDDING = "probabilities", "embedding"
"""Columns that a `Classifier` gives."""


@dataclass(frozen=True)
class TrainedClassifier:
    """The output of train or finetune, its models not loaded.

    Attributes:
        folder: absolute.
        labels: names of the classes, in order of the probabilities.
        multi_label: whether the probabilities are each for itself.
        column: the embedding column it was trained on.
        spec: of the vectors it takes.
        sha256: of classifier.keras, which holds the labels and the spec too: the classifier's identity.
        about: the content of labels.json.
    """

    folder: str
    labels: tuple[str, ...]
    multi_label: bool
    column: str
    spec: EmbedderSpec
    sha256: str
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def own_spec(self) -> EmbedderSpec:
        """Of the one vector it takes, where it was trained on one of several layers."""
        if len(self.spec.layers) <= 1:
            return self.spec
        layers = dict(zip(columns(self.spec.layers), self.spec.layers, strict=True))
        # Before 0.2 a layer's column was "embedding.<layer>".
        layer = layers.get(self.column) or self.column.removeprefix(f"{EMBEDDING}.")
        return dataclasses.replace(self.spec, layers=(layer,))

    def check(self, spec: EmbedderSpec, folder: str) -> None:
        """Refuse vectors of another spec.

        Raises:
            ImagebeamError: naming the fields that differ.
        """
        if differences := self.spec.differences(spec):
            raise ImagebeamError(
                f"The classifier in {self.folder} was trained on vectors of another spec than those in {folder} "
                f"({'; '.join(differences)}). Extract the images with the spec of the classifier, or classify them "
                "with --input."
            )


def open_classifier(folder: str) -> TrainedClassifier:
    """Look at a trained classifier.

    Raises:
        ImagebeamError: if there is none, or it is unfinished.
    """
    folder = storage.absolute(folder)
    missing = [
        name
        for name in (ResultFile.LABELS, ResultFile.CLASSIFIER, ResultFile.METRICS)
        if not storage.exists(storage.join(folder, name))
    ]
    if missing:
        raise ImagebeamError(
            f"There is no finished classifier in {folder}: it has no {', '.join(missing)}. --classifier is what train "
            "or finetune was given as --output."
        )
    uri = storage.join(folder, ResultFile.LABELS)
    try:
        about = json.loads(storage.read_bytes(uri))
        with storage.local_file(storage.join(folder, ResultFile.CLASSIFIER)) as path:
            _refuse_other_training(path, about, storage.join(folder, ResultFile.CLASSIFIER))
            return TrainedClassifier(
                folder,
                tuple(about["labels"]),
                about["multi_label"],
                about["embedding_column"],
                EmbedderSpec.from_dict(about["spec"]),
                file_sha256(path),
                about,
            )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ImagebeamError(f"{uri} cannot be understood ({error!r}). Train the classifier again.") from error


def _refuse_other_training(path: Path | str, about: Any, uri: str) -> None:
    """A model says itself which labels and spec it is of; the file beside it must say the same.

    Raises:
        ImagebeamError: if it does not.
    """
    try:
        inside = read_labels(path)
    except ValueError as error:
        raise ImagebeamError(
            f"{uri} is not what train or finetune wrote: {error}. Train the classifier again."
        ) from error
    if inside != about:
        names = sorted({*inside, *about} if isinstance(about, dict) else inside)
        differing = [name for name in names if not isinstance(about, dict) or inside.get(name) != about.get(name)]
        raise ImagebeamError(
            f"{uri} is not of the training that {ResultFile.LABELS} beside it is of: they differ in "
            f"{', '.join(differing)}. Take all files of one training."
        )


class Classifier:
    """Loaded models that label vectors, and images where there is an embedder; safe to call from several threads.

    Args:
        head: Keras model, vectors -> probabilities.
        spec: of the vectors.
        embedder: images -> vectors; None where only vectors are labelled.
        keep_embedding: give the vectors too.

    Attributes:
        spec: likewise.
        dimensions: column name -> length.
    """

    def __init__(
        self,
        head: keras.Model,
        spec: EmbedderSpec,
        embedder: Embedder | OpenVinoEmbedder | None = None,
        *,
        keep_embedding: bool = False,
    ) -> None:
        self.spec = spec
        self.dimensions = _dimensions(head.input_shape[-1], head.output_shape[-1], keep_embedding=keep_embedding)
        self._head = head
        self._embedder = embedder
        self._lock = threading.Lock()  # as in `Embedder`: Keras' compiled call is not re-entrant

    def embed(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Images of one shape, uint8 RGB [n, height, width, 3] -> float32 [n, classes] and, if kept, [n, dimension]."""
        assert self._embedder is not None
        (vectors,) = self._embedder.embed(images).values()
        return self.label(vectors)

    def label(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """Vectors, float32 [n, dimension] -> float32 [n, classes] and, if kept, the vectors themselves."""
        with self._lock:
            columns = {PROBABILITIES: predict_rows(self._head, vectors, _BATCH_ROWS), EMBEDDING: vectors}
        return {name: columns[name] for name in self.dimensions}


def _dimensions(dimension: int, classes: int, *, keep_embedding: bool) -> dict[str, int]:
    return {PROBABILITIES: classes, **({EMBEDDING: dimension} if keep_embedding else {})}


@dataclass(frozen=True)
class StagedClassifier:
    """What workers load: the head, and the embedder where images are labelled.

    Attributes:
        head_uri: of the head in OUT/model; its name holds a part of its digest.
        head_sha256: of that file.
        spec: of the vectors.
        weights: where both came from, for the manifest.
        dimensions: what a `Classifier` gives.
        embedder: None where only vectors are labelled.
    """

    head_uri: str
    head_sha256: str
    spec: EmbedderSpec
    weights: dict[str, str | None]
    dimensions: dict[str, int]
    embedder: StagedModel | None

    @property
    def files(self) -> list[str]:
        """Names of its files in OUT/model."""
        return [storage.basename(self.head_uri), *(() if self.embedder is None else self.embedder.files)]

    @property
    def engine(self) -> StagedEngine:
        """What runs the embedder."""
        return StagedEngine() if self.embedder is None else self.embedder.engine

    def load(self) -> Classifier:
        """Load both, their bytes checked first.

        Raises:
            ImagebeamError: if a file is missing or is not the one that was staged.
        """
        try:
            with storage.local_file(self.head_uri) as path:
                check_sha256(path, self.head_sha256, self.head_uri)
                head = load(path)
        except FileNotFoundError as error:
            raise ImagebeamError(
                f"The staged classifier is missing: {self.head_uri}. The same command stages it again."
            ) from error
        embedder = self.embedder.load() if self.embedder is not None else None
        return Classifier(head, self.spec, embedder, keep_embedding=EMBEDDING in self.dimensions)


def stage_classifier(
    classifier: TrainedClassifier, folder: str, *, keep_embedding: bool, images: bool
) -> StagedClassifier:
    """Copy a classifier's models into `folder`; what an earlier run of the same classifier staged there stays.

    Args:
        classifier: what to stage.
        folder: OUT/model of a run, which may hold models of an earlier one.
        keep_embedding: whether rows hold the embedding too.
        images: whether images are labelled, for which the embedder is taken out of image_classifier.keras.

    Raises:
        ImagebeamError: if the classifier was saved without the backbone.
    """
    uri = storage.join(folder, name_by_content(ResultFile.CLASSIFIER, classifier.sha256))
    with storage.local_file(storage.join(classifier.folder, ResultFile.CLASSIFIER)) as path:
        check_sha256(path, classifier.sha256, str(path))
        head = load(path)
        if not storage.exists(uri):
            storage.publish_file(uri, path)
    (dimension,), (classes,) = head.input_shape[1:], head.output_shape[1:]
    if classes != len(classifier.labels):
        raise ImagebeamError(
            f"{classifier.folder} is not of one training: the model tells {classes:,} classes apart, "
            f"{ResultFile.LABELS} names {len(classifier.labels):,}. Take all files of one training."
        )
    embedder = (_find_embedder(classifier, folder) or _stage_embedder(classifier, folder, head)) if images else None
    return StagedClassifier(
        uri,
        classifier.sha256,
        classifier.own_spec,
        {"source": classifier.folder, "file_sha256": classifier.sha256},
        _dimensions(dimension, classes, keep_embedding=keep_embedding),
        embedder,
    )


def _find_embedder(classifier: TrainedClassifier, folder: str) -> StagedModel | None:
    """The embedder that is staged in a folder, where it is the classifier's: another run may have been there before."""
    found = read_sound(folder)
    return found if found is not None and found.spec.fingerprint == classifier.own_spec.fingerprint else None


def _stage_embedder(classifier: TrainedClassifier, folder: str, head: keras.Model) -> StagedModel:
    uri = storage.join(classifier.folder, ResultFile.IMAGE_CLASSIFIER)
    try:
        with storage.local_file(uri) as path:
            sha256 = file_sha256(path)
            _refuse_other_training(path, classifier.about, uri)
            whole = load(path)
    except FileNotFoundError as error:
        raise ImagebeamError(
            f"{uri} is missing: the classifier was trained with --skip_image_classifier. Classify embeddings with "
            "--embeddings, or train without it."
        ) from error
    if not _are_equal(head, whole.layers[-1]):
        raise ImagebeamError(
            f"{uri} does not end in the classifier beside it: it is of another training. Take all files of one "
            "training."
        )
    model = embedder_of(whole)
    # Classifiers of earlier versions do not say it.
    if (told := classifier.about.get("embedder_sha256")) and told != values_sha256(model):
        raise ImagebeamError(
            f"{uri} has other weights before its classifier than {ResultFile.LABELS} says, and would give others. "
            "Take all files of one training."
        )
    embedder = Embedder(classifier.own_spec, model)
    return stage(LoadedModel(embedder), folder, {"source": uri, "file_sha256": sha256})


def _are_equal(one: keras.Model, other: keras.Model) -> bool:
    """Whether two heads compute the same: in their weights, and in the constants of their graphs."""
    ours, theirs = one.get_weights(), other.get_weights()
    if len(ours) != len(theirs) or not all(map(np.array_equal, ours, theirs)):
        return False
    return graph_sha256(one) == graph_sha256(other)
