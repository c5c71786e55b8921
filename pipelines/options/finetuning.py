"""The flags of fine-tuning: frozen layers, learning rate, augmentation."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass, field

from pipelines.common.fields import Options, flag, refuse_both
from pipelines.options.extraction import InputOptions, ModelOptions
from pipelines.options.training import ClassifierOptions, FitOptions, HeadOptions, RowOptions, refuse_idle_patience
from transforms.core.errors import ImagebeamError
from transforms.core.spec import Precision
from transforms.training.backbone import Augmentation, Frozen

FIT = FitOptions(epochs=10, learning_rate=1e-5, patience=3)
"""What fine-tuning takes in place of the defaults of a head on vectors: an epoch costs more, and a step undoes more."""


def _augmentations(text: str) -> tuple[Augmentation, ...]:
    """Parse "flip,zoom"."""
    try:
        return tuple(Augmentation(name) for name in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"choose of {', '.join(Augmentation)}. Received: {text!r}") from None


@dataclass(frozen=True)
class TuneOptions(Options):
    """Which layers of the model learn, and when."""

    freeze_layers: int | None = flag(
        "freeze the first N layers that have weights; `imagebeam layers` numbers them (default: none)",
        None,
        type=int,
        metavar="N",
    )
    freeze_keras_layers: int | None = flag(
        "freeze the first N layers as Keras counts them, the input and pooling included: `model.layers[:N]` (default: "
        "none)",
        None,
        type=int,
        metavar="N",
    )
    freeze_until: str | None = flag(
        "freeze all layers up to and including this one (default: none)", None, metavar="LAYER"
    )
    freeze_all: bool = flag("freeze the whole model, and train the classifier alone", False, action="store_true")
    unfreeze_per_epoch: int = flag(
        "number of layers with weights that begin to learn with each epoch, from the last one backwards; with 0 all "
        "learn from the first epoch",
        0,
        type=int,
        metavar="N",
    )
    augment: tuple[Augmentation, ...] = flag(
        "random changes of the training images, in this order (default: none)",
        (),
        type=_augmentations,
        metavar="|".join(Augmentation) + ",...",
    )
    head_epochs: int = flag(
        "epochs of the classifier alone, before the backbone learns, where it is not solved exactly",
        FitOptions.epochs,
        type=int,
        metavar="N",
    )
    head_learning_rate: float = flag(
        "learning rate of AdamW in those epochs, at the start", FitOptions.learning_rate, type=float, metavar="RATE"
    )
    max_failure_rate: float = flag(
        "share of the records, from 0 to 1, that may give no image; with more, nothing is trained",
        0.01,
        type=float,
        metavar="SHARE",
    )

    def __post_init__(self) -> None:
        frozen = self.given("freeze_layers", "freeze_keras_layers", "freeze_until", "freeze_all")
        refuse_both(frozen[:1], frozen[1:], "Layers are frozen by one flag.")
        for name in ("freeze_layers", "freeze_keras_layers", "unfreeze_per_epoch"):
            if (getattr(self, name) or 0) < 0:
                raise ImagebeamError(f"--{name} is at least 0. Received: {getattr(self, name)}.")
        if not 0 <= self.max_failure_rate <= 1:
            raise ImagebeamError(f"--max_failure_rate is a share, from 0 to 1. Received: {self.max_failure_rate}.")
        if len(set(self.augment)) < len(self.augment):
            raise ImagebeamError(f"--augment takes each name once. Received: {','.join(self.augment)}.")
        for name, value, least in (
            ("head_epochs", self.head_epochs, 1),
            ("head_learning_rate", self.head_learning_rate, 0),
        ):
            if not value >= least or value == 0:
                raise ImagebeamError(f"--{name} is {'at least 1' if least else 'more than 0'}. Received: {value}.")

    def frozen(self) -> Frozen:
        """What stays as it is."""
        return Frozen(self.freeze_layers or 0, self.freeze_keras_layers or 0, self.freeze_until, self.freeze_all)


@dataclass(frozen=True)
class FinetuneOptions:
    """Everything `run` needs, checked when made.

    Attributes:
        input: which images.
        model: what embeds them, and how many at once.
        classifier: where it goes.
        rows: their labels and split.
        head: what the classifier is made of.
        fit: how model and classifier learn together.
        tune: which layers of the model learn.
    """

    input: InputOptions
    model: ModelOptions
    classifier: ClassifierOptions
    rows: RowOptions = field(default_factory=RowOptions)
    head: HeadOptions = field(default_factory=HeadOptions)
    fit: FitOptions = FIT
    tune: TuneOptions = field(default_factory=TuneOptions)

    def __post_init__(self) -> None:
        config = self.model.config()
        if config.size is None:
            raise ImagebeamError("Images are trained on in batches of one size. Give --image_size HEIGHTxWIDTH.")
        if config.precision != Precision.FLOAT32:
            raise ImagebeamError(
                f"A model learns in float32. Received: precision={config.precision}. Give it to extract, whose "
                "--weights takes what comes out of this."
            )
        if len(config.layers) > 1:
            raise ImagebeamError(f"A classifier takes one --layer. Received: {', '.join(config.layers)}.")
        learning = self.tune.given("augment", "unfreeze_per_epoch")
        refuse_both(self.tune.given("freeze_all"), learning, "A model that stays as it is does not learn.")
        refuse_idle_patience(self.rows, self.fit, FIT)

    @property
    def head_fit(self) -> FitOptions:
        """How the classifier learns alone, on vectors: before the model does, or in its place where that is frozen."""
        shared = {name: getattr(self.fit, name) for name in _SHARED}
        how = FitOptions(epochs=self.tune.head_epochs, learning_rate=self.tune.head_learning_rate, **shared)
        given = [name for name in _OF_WHAT_LEARNS if getattr(self.fit, name) != getattr(FIT, name)]
        return dataclasses.replace(how, **{name: getattr(self.fit, name) for name in given if self.tune.freeze_all})


_OF_WHAT_LEARNS = ("epochs", "learning_rate", "learning_rate_schedule", "patience")
"""Fields of `FitOptions` that are about the model, or about the classifier alone where all of the model is frozen."""

_SHARED = ("weight_decay", "label_smoothing", "balance_classes", "seed")
"""Fields of `FitOptions` that hold in both phases."""
