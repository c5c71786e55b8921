"""The dense classifier: build, compile and save a head on vectors."""

from __future__ import annotations

import enum
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transforms.core.errors import ImagebeamError, first_line
from transforms.core.text import readable_json
from transforms.models.constants import with_constant_normalization
from transforms.models.keras_import import import_keras, pinned_keras

if TYPE_CHECKING:
    import keras

LABELS_FILE = "labels.json"

_LABELS_BYTES = 64 << 20
"""Beside a classifier, and inside its `.keras` file, which is a zip: the classes' names in order of the outputs, and
what vectors they are told from."""

LOGITS = "logits"
"""The layer of a classifier before the probabilities."""

_STEPS_PER_EXECUTION = 16
"""Batches in one call of the compiled step: a dense head is so cheap that the call itself would cost as much."""


class Normalization(enum.StrEnum):
    """What happens to vectors and hidden activations before they are weighed."""

    NONE = "none"
    FITTED = "fitted"
    BATCH = "batch"


class VectorTransform(enum.StrEnum):
    """What happens to a vector before it is standardised."""

    NONE = "none"
    ROOT = "root"
    """Of each value the square root, with its sign: pooled activations have long tails, which it shortens."""

    BOTH = "both"
    """The values, and behind them their roots: twice the length."""


class Solver(enum.StrEnum):
    """How the weights of a head are found."""

    AUTO = "auto"
    EXACT = "exact"
    EPOCHS = "epochs"


class Schedule(enum.StrEnum):
    """How the learning rate changes over a run."""

    CONSTANT = "constant"
    COSINE = "cosine"


def build_head(
    dimension: int,
    classes: int,
    *,
    hidden_units: Sequence[int] = (),
    dropout: float = 0.0,
    normalization: Normalization = Normalization.FITTED,
    mean: np.ndarray | None = None,
    deviation: np.ndarray | None = None,
    transform: VectorTransform = VectorTransform.NONE,
    multi_label: bool = False,
    seed: int = 0,
) -> keras.Model:
    """A classifier of vectors, with its first weights.

    Args:
        dimension: length of the vectors.
        classes: number of outputs.
        hidden_units: widths of the hidden layers; none for softmax regression.
        dropout: share of each hidden layer's outputs that is left out while training.
        normalization: FITTED subtracts `mean` and divides by `deviation`; BATCH normalises the vectors and
            each hidden layer by batch statistics.
        mean: of what `transform` gives, for FITTED: float [dimension], or twice as many.
        deviation: standard deviation, likewise; none of it zero.
        transform: of the vectors, before anything else.
        multi_label: sigmoids, each output for itself, instead of a softmax.
        seed: of the first weights and of dropout.

    Returns:
        Keras model, float32 vectors [n, dimension] -> float32 probabilities [n, classes].
    """
    import_keras()
    import keras

    seeds = iter(range(seed * 1000, (seed + 1) * 1000))
    vectors = keras.Input((dimension,), dtype="float32", name="embedding")
    values = vectors
    if transform != VectorTransform.NONE:
        values = keras.ops.sign(vectors) * keras.ops.sqrt(keras.ops.absolute(vectors))
    if transform == VectorTransform.BOTH:
        values = keras.ops.concatenate([vectors, values], axis=1)
    if normalization == Normalization.FITTED:
        assert mean is not None
        assert deviation is not None
        # Constants of the graph and no weights, so that they survive `clone_model`, `set_weights` and every export.
        values = (values - mean) / deviation
        values = keras.layers.Activation("linear", name="normalization")(values)
    elif normalization == Normalization.BATCH:
        values = keras.layers.BatchNormalization(name="normalization")(values)
    for number, units in enumerate(hidden_units, 1):
        he_normal = keras.initializers.HeNormal(seed=next(seeds))
        values = keras.layers.Dense(units, kernel_initializer=he_normal, name=f"hidden_{number}")(values)
        if normalization == Normalization.BATCH:
            values = keras.layers.BatchNormalization(name=f"hidden_{number}_normalization")(values)
        values = keras.layers.Activation("relu", name=f"hidden_{number}_relu")(values)
        if dropout:
            values = keras.layers.Dropout(dropout, seed=next(seeds), name=f"hidden_{number}_dropout")(values)
    glorot = keras.initializers.GlorotUniform(seed=next(seeds))
    logits = keras.layers.Dense(classes, kernel_initializer=glorot, name=LOGITS)(values)
    activation = "sigmoid" if multi_label else "softmax"
    probabilities = keras.layers.Activation(activation, dtype="float32", name="probabilities")(logits)
    return keras.Model(vectors, probabilities, name="classifier")


def transform_vectors(vectors: np.ndarray, transform: VectorTransform) -> np.ndarray:
    """Transform vectors as `build_head`'s model does: [n, dimension] -> the same, or [n, 2 dimension] for BOTH."""
    if transform == VectorTransform.NONE:
        return vectors
    roots = np.sign(vectors) * np.sqrt(np.abs(vectors))
    return np.concatenate([vectors, roots], axis=1) if transform == VectorTransform.BOTH else roots


def balanced_weights(counts: np.ndarray, rows: int, *, multi_label: bool) -> np.ndarray:
    """Weights that make every class count the same, float32 [classes].

    Args:
        counts: training labels by class.
        rows: training rows.
        multi_label: whether a row has any number of labels.

    Returns:
        What each row of a class weighs, 1 on average over the rows; with multi-label what a present label weighs
        against an absent one. 1 for a class without rows.
    """
    counts = counts.astype(np.float64)
    wanted = rows - counts if multi_label else np.full(len(counts), rows / len(counts))
    weights = np.where(counts > 0, np.maximum(wanted, 1e-9) / np.maximum(counts, 1), 1.0)
    return weights.astype(np.float32)


def compile_head(
    head: keras.Model,
    *,
    steps: int,
    learning_rate: float = 1e-3,
    schedule: Schedule = Schedule.CONSTANT,
    weight_decay: float = 0.0,
    label_smoothing: float = 0.0,
    class_weights: np.ndarray | None = None,
    multi_label: bool = False,
    first_steps: Mapping[int, int] | None = None,
) -> keras.Model:
    """The head as it is trained: the same layers and weights, ending in logits, with AdamW and its loss.

    Targets are int32 class numbers [n], or with `multi_label` float32 [n, classes] of 0 and 1.

    Args:
        head: as `build_head` makes it.
        steps: batches of the whole run: when a cosine schedule reaches zero.
        learning_rate: AdamW's, at the start.
        schedule: how it changes.
        weight_decay: AdamW's; biases and normalisation do not decay.
        label_smoothing: share of a target that goes to the other classes, 0 to 1.
        class_weights: float [classes], as `balanced_weights` gives them.
        multi_label: as for `build_head`.
        first_steps: `id` of a variable -> step with which it begins to learn, where that is not the first.
    """
    import keras

    from transforms.training.gradual_unfreezing import thawing_adamw

    rate: Any = learning_rate
    if schedule == Schedule.COSINE:
        rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    optimizer = (
        thawing_adamw(rate, weight_decay, first_steps)
        if first_steps
        else keras.optimizers.AdamW(rate, weight_decay=weight_decay)
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    if multi_label:
        loss = _multi_label_loss(label_smoothing, class_weights)
        accuracy = keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)  # of logits: a probability of 0.5
    else:
        loss = _single_label_loss(head.output_shape[-1], label_smoothing, class_weights)
        accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    trained = keras.Model(head.input, head.get_layer(LOGITS).output, name="training")
    backend = keras.backend.backend()
    trained.compile(
        optimizer,
        loss,
        metrics=[accuracy],
        # To TensorFlow XLA gains nothing on a few small matrix products, and costs a compilation for every shape of
        # batch. JAX has no other way to compile.
        jit_compile=backend == "jax",
        steps_per_execution=1 if backend == "torch" else _STEPS_PER_EXECUTION,
    )
    return trained


def _single_label_loss(classes: int, label_smoothing: float, class_weights: np.ndarray | None) -> Any:
    from keras import losses, ops

    def cross_entropy(labels: Any, logits: Any) -> Any:
        labels = ops.cast(ops.reshape(labels, (-1,)), "int32")
        loss = losses.categorical_crossentropy(
            ops.one_hot(labels, classes, dtype=logits.dtype),
            logits,
            from_logits=True,
            label_smoothing=label_smoothing,
        )
        return loss if class_weights is None else loss * ops.take(ops.convert_to_tensor(class_weights), labels)

    return cross_entropy


def _multi_label_loss(label_smoothing: float, class_weights: np.ndarray | None) -> Any:
    from keras import ops

    def cross_entropy(targets: Any, logits: Any) -> Any:
        smooth = targets * (1.0 - label_smoothing) + 0.5 * label_smoothing
        loss = ops.binary_crossentropy(smooth, logits, from_logits=True)
        if class_weights is not None:
            loss = loss * (1.0 + targets * (ops.convert_to_tensor(class_weights) - 1.0))
        return ops.mean(loss, axis=-1)

    return cross_entropy


def join(embedder: keras.Model, column: str, head: keras.Model) -> keras.Model:
    """Images to probabilities: the embedder and the head as one functional model, for inference.

    Args:
        embedder: images -> vectors, or -> a dict of them by column name.
        column: the column that the head was trained on.
        head: vectors -> probabilities.
    """
    import keras

    vectors = embedder.output[column] if isinstance(embedder.output, dict) else embedder.output
    return with_constant_normalization(keras.Model(embedder.input, head(vectors), name="image_classifier"))


def embedder_of(whole: keras.Model) -> keras.Model:
    """The embedder of what `join` gives: images -> the vectors that its last layer, the head, takes."""
    import keras

    return keras.Model(whole.input, whole.layers[-2].output, name="embedder")


def save(model: keras.Model, labels: Mapping[str, Any], path: Path) -> None:
    """Write a `.keras` file that plain Keras loads in safe mode, with the content of `LABELS_FILE` in it."""
    model.save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(LABELS_FILE, to_json(labels))


def load(path: Path | str) -> keras.Model:
    """A model as `save` writes it, in Keras' safe mode.

    Raises:
        ImagebeamError: if it is none.
    """
    try:
        with pinned_keras():
            import keras

            return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras lets whatever a damaged or foreign configuration causes through.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ImagebeamError(
            f"{path} is not a model that Keras loads in safe mode ({first_line(error)}). Train or save it again."
        ) from error


def read_labels(path: Path | str) -> dict[str, Any]:
    """What `save` put into a file beside the model.

    Raises:
        ValueError: if there is nothing of that kind.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(LABELS_FILE).file_size > _LABELS_BYTES:
                raise ValueError(f"its {LABELS_FILE} is too large")
            labels = json.loads(archive.read(LABELS_FILE))
    except (zipfile.BadZipFile, KeyError, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"it holds no {LABELS_FILE} ({error})") from error
    if not isinstance(labels, dict):
        raise ValueError(f"its {LABELS_FILE} holds no object")
    return labels


def to_json(labels: Mapping[str, Any]) -> bytes:
    """The content of `LABELS_FILE`, which goes by the key "labels"."""
    return readable_json(labels, indent=1)
