"""The first phase of fine-tuning: evaluate the frozen vectors and train the initial head."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.common.console import say
from pipelines.options.finetuning import FinetuneOptions
from pipelines.options.search import SearchOptions
from pipelines.options.training import FitOptions, HeadOptions, SolverOptions
from pipelines.training.exact_head import describe_solution, is_exact, solve_head
from pipelines.training.head_training import Lesson, train_head
from transforms.core.errors import ImagebeamError
from transforms.core.text import counted
from transforms.models.engines.prediction import predict_rows
from transforms.training.compare import Answers, nearest_neighbours
from transforms.training.head import Solver, VectorTransform
from transforms.training_data.splits import Split
from transforms.training_data.vector_sources import MatrixSource, Sources, moments

if TYPE_CHECKING:
    import keras

    from transforms.training.checkpoint import Checkpoint
    from transforms.training_data.image_cache import ImageSet
    from transforms.training_data.row_index import RowIndex

LINEAR_PROBE, NEIGHBOURS = "linear probe", "nearest neighbours"

_VOTERS = 10
"""Nearest neighbours that vote, as by default in `imagebeam compare`."""

_BATCH_ROWS = 4096

_SAVED = "first_phase.npz"


@dataclass(frozen=True)
class FirstPhase:
    """What came of it.

    Attributes:
        head: vectors -> probabilities; what tuning begins with, or of a model that stays as it is the result.
        summary: of its training, for metrics.json.
        answers: method -> which of the held-out rows it gets right, in order; empty with several labels a row.
    """

    head: keras.Model
    summary: dict[str, Any]
    answers: dict[str, Answers]


def learn_from_vectors(
    options: FinetuneOptions,
    embedder: keras.Model,
    images: ImageSet,
    index: RowIndex,
    checkpoint: Checkpoint,
    *,
    learns: bool,
) -> FirstPhase:
    """Embed all images once and train on the vectors; a run that goes on takes what it had found.

    Args:
        options: what the head is made of, and how it learns.
        embedder: as it is before tuning.
        images: all of them.
        index: their splits and labels.
        checkpoint: of the run.
        learns: whether the model is to learn behind this.

    Raises:
        ImagebeamError: if some vectors are not finite.
    """
    import keras

    if saved := checkpoint.load_state(_SAVED):
        values, (*weights, right) = saved
        head = keras.models.model_from_json(values["head"])
        head.set_weights(weights)
        return FirstPhase(head, values["summary"], dict(zip(values["methods"], map(Answers, right), strict=True)))
    vectors = _embed(embedder, images, options.model.batch_size)
    lesson = _lesson(vectors, index)
    head, summary = _first_head(options, lesson, index, learns=learns)
    answers = {} if index.multi_label else _answers(options, lesson, vectors, index, None if learns else head)
    values = {"head": head.to_json(), "summary": summary, "methods": list(answers)}
    right = np.array([found.right for found in answers.values()])
    checkpoint.save_state(values, [*head.get_weights(), right], _SAVED)
    return FirstPhase(head, summary, answers)


def _embed(embedder: keras.Model, images: ImageSet, batch_size: int) -> np.ndarray:
    """Vectors of all images, float32 [rows, dimension]."""
    rows = len(images.table)
    say(f"Embedding {counted(rows, 'image')} for the first phase")
    vectors = np.concatenate(
        [
            predict_rows(embedder, images.pixels[start : start + batch_size], batch_size)
            for start in range(0, rows, batch_size)
        ]
    )
    if not np.isfinite(vectors).all():
        raise ImagebeamError("The model gives NaN or infinity for some images. Use other --weights.")
    return vectors


def _lesson(vectors: np.ndarray, index: RowIndex) -> Lesson:
    from sklearn.preprocessing import StandardScaler

    sources = {
        split: MatrixSource(vectors[rows], rows)
        for split in (Split.TRAIN, Split.VALIDATION)
        if len(rows := index.rows(split))
    }
    train = sources[Split.TRAIN]
    mean, deviation = moments(StandardScaler().fit(train.vectors))
    return Lesson(
        Sources(train, sources.get(Split.VALIDATION), mean, deviation),
        index.targets,
        index.counts[Split.TRAIN.code],
        index.multi_label,
    )


def _first_head(
    options: FinetuneOptions, lesson: Lesson, index: RowIndex, *, learns: bool
) -> tuple[keras.Model, dict[str, Any]]:
    """As `imagebeam train` makes it; one that goes on learning has not seen the validation rows, which stop it.

    Nor does it take roots of vectors, whose slope at zero has no end.
    """
    if not is_exact(lesson, SolverOptions(), options.head, options.head_fit, SearchOptions()):
        head, state = train_head(lesson, options.head, options.head_fit, watched=True)
        return head, {"solver": str(Solver.EPOCHS), **dataclasses.asdict(state)}
    head, solution = solve_head(
        lesson,
        index.images,
        SolverOptions(vector_transform=VectorTransform.NONE if learns else None),
        options.head_fit,
        keep_validation=learns or not len(index.rows(Split.TEST)),
    )
    return head, describe_solution(solution)


def _answers(
    options: FinetuneOptions, lesson: Lesson, vectors: np.ndarray, index: RowIndex, linear: keras.Model | None
) -> dict[str, Answers]:
    """What a linear probe and nearest neighbours say of the held-out rows.

    Args:
        options: class weights and seed.
        lesson: the training and validation rows.
        vectors: of all rows.
        index: their splits and labels.
        linear: the head, where it is what `imagebeam train` makes without flags.
    """
    tested = bool(len(index.rows(Split.TEST)))
    rest = index.rows(Split.TEST if tested else Split.VALIDATION)
    known = np.sort(np.concatenate([index.rows(split) for split in (Split.TRAIN, Split.VALIDATION)[: 1 + tested]]))
    targets = index.targets(np.arange(len(vectors)))
    if linear is None or options.head != HeadOptions():
        linear = _linear_probe(options, lesson, index, tested=tested)
    guesses = predict_rows(linear, vectors[rest], _BATCH_ROWS).argmax(axis=1)
    voted = nearest_neighbours(vectors, targets, [(known, rest)], _VOTERS)
    return {LINEAR_PROBE: Answers(guesses == targets[rest]), NEIGHBOURS: Answers(voted.right[rest])}


def _linear_probe(options: FinetuneOptions, lesson: Lesson, index: RowIndex, *, tested: bool) -> keras.Model:
    """What `imagebeam train` makes of the vectors without flags."""
    how = FitOptions(balance_classes=options.fit.balance_classes, seed=options.fit.seed)
    if is_exact(lesson, SolverOptions(), HeadOptions(), how, SearchOptions()):
        return solve_head(lesson, index.images, SolverOptions(), how, keep_validation=not tested)[0]
    return train_head(lesson, HeadOptions(), how)[0]
