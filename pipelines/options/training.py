"""The flags of training jobs: labels, split, head and fit."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.common.fields import Options, check_seed, flag, one_of, refuse_both
from transforms.core.errors import ImagebeamError
from transforms.core.text import spelled
from transforms.training.head import Normalization, Schedule, Solver, VectorTransform

if TYPE_CHECKING:
    from transforms.training_data.row_index import LabelRules, SplitRules


def units(text: str) -> tuple[int, ...]:
    """Parse "256,128" or "none"."""
    if text == "none":
        return ()
    try:
        return tuple(int(width) for width in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"write widths with commas between them, such as 256,128, or none. Received: {text!r}"
        ) from None


@dataclass(frozen=True)
class EmbeddingOptions(Options):
    """Which vectors are read, and how much of them at once."""

    embeddings: tuple[str, ...] = flag(
        "outputs of extract, local or gs://, all of one spec; may be given several times",
        nargs="+",
        action="extend",
        metavar="DIR",
    )
    embedding_column: str | None = flag(
        "column of the vectors, embedding_LAYER, where extract was given several layers (default: the only one)",
        None,
        metavar="NAME",
    )
    allow_unfinished: bool = flag(
        "read the committed parts of an extract run that has not finished", False, action="store_true"
    )
    max_memory_mb: int = flag(
        "memory for vectors; where they need more, each epoch reads them from a copy on the local disk (TMPDIR)",
        512,
        type=int,
        metavar="MB",
    )
    no_local_copy: bool = flag(
        "read vectors that do not fit in memory from Parquet in each epoch: this needs no disk, but is slower and "
        "mixes rows less well",
        False,
        action="store_true",
    )

    labels: str | None = flag(
        "file of corrected labels (CSV, JSON lines or Parquet, with columns key and label), used in place of those in "
        "the label column; rows without a correction keep theirs",
        None,
        metavar="FILE",
    )

    def __post_init__(self) -> None:
        if not self.embeddings or not all(self.embeddings):
            raise ImagebeamError(f"--embeddings names at least one folder. Received: {spelled(self.embeddings)}.")
        if self.max_memory_mb < 1:
            raise ImagebeamError(f"--max_memory_mb is at least 1. Received: {self.max_memory_mb}.")


@dataclass(frozen=True)
class RowOptions(Options):
    """The rows to train on, and their labels."""

    label_column: str = flag("column with the labels", "label", metavar="NAME")
    multi_label: bool = flag(
        "a row has any number of labels: the label column is a list, or text with --label_separator",
        False,
        action="store_true",
    )
    label_separator: str | None = flag(
        "separator of the labels of a row, where the label column is text", None, metavar="TEXT"
    )
    drop_unlabeled: bool = flag("leave out rows without a label (default: refuse them)", False, action="store_true")
    validation_split: float = flag(
        "share of the images that early stopping watches; 0 for none", 0.1, type=float, metavar="SHARE"
    )
    test_split: float = flag(
        "share of the images that the metrics are measured on; with 0, the validation rows",
        0.2,
        type=float,
        metavar="SHARE",
    )
    split_seed: int = flag("seed of the split: the same seed gives the same split", 0, type=int, metavar="N")
    split_column: str | None = flag(
        "column that holds train, validation or test for each row, in place of the three flags above",
        None,
        metavar="NAME",
    )

    group_column: str | None = flag(
        "column such as a patient or a product: rows with the same value go into the same split", None, metavar="NAME"
    )

    def __post_init__(self) -> None:
        refuse_both(
            self.given("split_column"),
            self.given("group_column", "validation_split", "test_split", "split_seed"),
            "A column says each row's split already.",
        )
        for name, share in (("--validation_split", self.validation_split), ("--test_split", self.test_split)):
            if not 0 <= share < 1:
                raise ImagebeamError(f"{name} is a share of the images, from 0 to below 1. Received: {share}.")
        if self.split_column is None and not 0 < self.validation_split + self.test_split < 1:
            raise ImagebeamError(
                "--validation_split and --test_split together leave rows to train on and hold some out: more than 0, "
                f"less than 1. Received: {self.validation_split} and {self.test_split}."
            )
        if self.label_separator is not None and not (self.multi_label and self.label_separator):
            raise ImagebeamError(
                f"--label_separator is some text, and goes with --multi_label. Received: {self.label_separator!r}."
            )

    def label_rules(self) -> LabelRules:
        """How labels are read."""
        from transforms.training_data.row_index import LabelRules

        return LabelRules(self.label_column, self.multi_label, self.label_separator, self.drop_unlabeled)

    def split_rules(self) -> SplitRules:
        """How rows are split."""
        from transforms.training_data.row_index import SplitRules

        return SplitRules(self.validation_split, self.test_split, self.split_seed, self.split_column, self.group_column)


@dataclass(frozen=True)
class HeadOptions(Options):
    """What the classifier is made of."""

    hidden_units: tuple[int, ...] = flag(
        "widths of the hidden layers, such as 256,128 (default: none, which is softmax regression)",
        (),
        type=units,
        metavar="N,...|none",
    )
    dropout: float = flag(
        "share of each hidden layer's outputs that training leaves out", 0.0, type=float, metavar="SHARE"
    )
    normalization: Normalization = flag(
        "fitted: subtract the training rows' mean and divide by their deviation; batch: by batch statistics, in hidden "
        "layers too",
        Normalization.FITTED,
        **one_of(Normalization),
    )

    def __post_init__(self) -> None:
        if any(width < 1 for width in self.hidden_units):
            raise ImagebeamError(f"--hidden_units are at least 1. Received: {spelled(self.hidden_units)}.")
        if not 0 <= self.dropout < 1:
            raise ImagebeamError(f"--dropout is a share, from 0 to below 1. Received: {self.dropout}.")
        if self.dropout and not self.hidden_units:
            raise ImagebeamError(
                f"--dropout needs a hidden layer to act on: give --hidden_units too. Received: dropout={self.dropout}."
            )


@dataclass(frozen=True)
class FitOptions(Options):
    """How the classifier learns."""

    epochs: int = flag("most passes over the training rows", 100, type=int, metavar="N")
    batch_size: int = flag("rows in a batch", 128, type=int, metavar="N")
    learning_rate: float = flag("learning rate of AdamW, at the start", 0.003, type=float, metavar="RATE")
    learning_rate_schedule: Schedule = flag(
        "how the learning rate changes; cosine falls to 0 over --epochs", Schedule.CONSTANT, **one_of(Schedule)
    )
    weight_decay: float = flag("weight decay of AdamW, of all weights but the biases", 0.0, type=float, metavar="RATE")
    label_smoothing: float = flag(
        "share of each target that is spread over all classes", 0.0, type=float, metavar="SHARE"
    )
    balance_classes: bool = flag(
        "weight rows so that every class counts the same, whatever its number of rows", False, action="store_true"
    )
    patience: int = flag(
        "stop after this many epochs without a lower validation loss; 0 to train all epochs. The weights of the best "
        "epoch are kept either way",
        10,
        type=int,
        metavar="EPOCHS",
    )
    seed: int = flag(
        "seed of the first weights, the order of rows and dropout: the same seed on the same machine gives the same "
        "weights",
        0,
        type=int,
        metavar="N",
    )
    checkpoint_seconds: float = flag(
        "shortest time between two saves of an unfinished run's state; a kill costs that much training",
        30.0,
        type=float,
        metavar="SECONDS",
    )

    def __post_init__(self) -> None:
        for name, value, least in (
            ("--epochs", self.epochs, 1),
            ("--batch_size", self.batch_size, 1),
            ("--patience", self.patience, 0),
            ("--checkpoint_seconds", self.checkpoint_seconds, 0),
            ("--weight_decay", self.weight_decay, 0),
        ):
            if not least <= value < math.inf:
                raise ImagebeamError(f"{name} is at least {least}. Received: {value}.")
        check_seed(self.seed)
        if not 0 < self.learning_rate < math.inf:
            raise ImagebeamError(f"--learning_rate is more than 0. Received: {self.learning_rate}.")
        if not 0 <= self.label_smoothing < 1:
            raise ImagebeamError(f"--label_smoothing is a share, from 0 to below 1. Received: {self.label_smoothing}.")


def refuse_idle_patience(rows: RowOptions, fit: FitOptions, usual: FitOptions | None = None) -> None:
    """Refuse early stopping where no row is put aside for it.

    Args:
        rows: how they are split.
        fit: how the classifier learns.
        usual: what fitting takes by default, where that is not the class's own.
    """
    if rows.split_column is None and rows.validation_split == 0 and fit.patience:
        refuse_both(
            rows.given("validation_split"), fit.given("patience", usual=usual), "Early stopping needs validation rows."
        )


@dataclass(frozen=True)
class SolverOptions(Options):
    """How the head's weights are found."""

    solver: Solver = flag(
        "exact: softmax regression solved by L-BFGS, its L2 penalty chosen by cross-validation, then solved again on "
        "training and validation rows; epochs: AdamW, as the flags of training by epochs say; auto: exact where that "
        "takes minutes at most and no flag asks for something else",
        Solver.AUTO,
        **one_of(Solver),
    )
    vector_transform: VectorTransform | None = flag(
        "for the exact solver, how a vector is changed first: root takes the square root of each value and keeps its "
        "sign; both gives the values and their roots, side by side (default: the one with the lowest cross-validated "
        "loss)",
        None,
        **one_of(VectorTransform),
    )
    folds: int = flag(
        "also cross-validate softmax regression on the training and validation rows: each is left out once, so that "
        "the accuracy has a narrower interval than on the test rows; 0 for no cross-validation",
        0,
        type=int,
        metavar="K",
    )

    def __post_init__(self) -> None:
        if self.folds < 0 or self.folds == 1:
            raise ImagebeamError(f"--folds is at least 2, or 0 for none. Received: {self.folds}.")


@dataclass(frozen=True)
class ClassifierOptions(Options):
    """The output of the classifier, and the accuracy it must reach."""

    output: str = flag("folder for the classifier, local or gs://", metavar="DIR")
    overwrite: bool = flag("replace the classifier that is there", False, action="store_true")
    skip_image_classifier: bool = flag(
        "do not write image_classifier.keras, the backbone and the head in one file", False, action="store_true"
    )
    all_probabilities: bool = flag(
        "with more than 100 classes too, predictions.parquet holds the probability of every class, not only of the 5 "
        "most probable",
        False,
        action="store_true",
    )
    assert_accuracy_at_least: float | None = flag(
        "end with exit code 3 when the accuracy on held-out rows is lower, 0 to 1", None, type=float, metavar="SHARE"
    )

    def __post_init__(self) -> None:
        if not self.output:
            raise ImagebeamError(f"--output is a folder. Received: {self.output!r}.")
        if self.assert_accuracy_at_least is not None and not 0 <= self.assert_accuracy_at_least <= 1:
            raise ImagebeamError(
                f"--assert_accuracy_at_least is a share, from 0 to 1. Received: {self.assert_accuracy_at_least}."
            )
