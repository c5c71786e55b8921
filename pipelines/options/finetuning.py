"""The flags of fine-tuning: which layers learn, and how."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

from pipelines.common.fields import Options, flag
from pipelines.options.extraction import InputOptions, ModelOptions
from pipelines.options.training import ClassifierOptions, FitOptions, HeadOptions, RowOptions
from transforms.core.errors import ImagebeamError
from transforms.core.spec import Precision
from transforms.training.backbone import Augmentation


def _augmentations(text: str) -> tuple[Augmentation, ...]:
    """Parse "flip,zoom"."""
    try:
        return tuple(Augmentation(name) for name in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"choose of {', '.join(Augmentation)}. Received: {text!r}") from None


@dataclass(frozen=True)
class TuneOptions(Options):
    """What learns besides the head, and how: the second phase."""

    freeze_layers: int | None = flag(
        "leave the first N layers of the model as they are, counted as `imagebeam layers` lists them (default: none)",
        None,
        type=int,
        metavar="N",
    )
    freeze_until: str | None = flag("leave all layers up to and with this one as they are", None, metavar="LAYER")
    freeze_all: bool = flag("leave the whole model as it is and train the classifier alone", False, action="store_true")
    augment: tuple[Augmentation, ...] = flag(
        "random changes of the training images, in this order (default: none)",
        (),
        type=_augmentations,
        metavar="|".join(Augmentation) + ",...",
    )
    tune_epochs: int = flag("times the training images are seen, at most", 10, type=int, metavar="N")
    tune_learning_rate: float = flag("AdamW's, at the start", 1e-5, type=float, metavar="RATE")
    tune_patience: int = flag(
        "stop after so many epochs without a lower validation loss; 0 to do all epochs", 3, type=int, metavar="EPOCHS"
    )
    max_failure_rate: float = flag(
        "train only if no larger share of the records gives no image, 0 to 1", 0.01, type=float, metavar="SHARE"
    )

    def __post_init__(self) -> None:
        frozen = {"freeze_layers": self.freeze_layers, "freeze_until": self.freeze_until, "freeze_all": self.freeze_all}
        given = [f"--{name}" for name, value in frozen.items() if value is not None and value is not False]
        if len(given) > 1:
            raise ImagebeamError(f"Layers are frozen by one flag. Received: {', '.join(given)}.")
        if self.freeze_layers is not None and self.freeze_layers < 0:
            raise ImagebeamError(f"--freeze_layers is at least 0. Received: {self.freeze_layers}.")
        if self.tune_patience < 0:
            raise ImagebeamError(f"--tune_patience is at least 0. Received: {self.tune_patience}.")
        if not 0 <= self.max_failure_rate <= 1:
            raise ImagebeamError(f"--max_failure_rate is a share, from 0 to 1. Received: {self.max_failure_rate}.")
        if len(set(self.augment)) < len(self.augment):
            raise ImagebeamError(f"--augment takes each name once. Received: {','.join(self.augment)}.")
        FitOptions(epochs=self.tune_epochs, learning_rate=self.tune_learning_rate)


@dataclass(frozen=True)
class FinetuneOptions:
    """Everything `run` needs, checked when made."""

    input: InputOptions
    model: ModelOptions
    classifier: ClassifierOptions
    rows: RowOptions = field(default_factory=RowOptions)
    head: HeadOptions = field(default_factory=HeadOptions)
    fit: FitOptions = field(default_factory=FitOptions)
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
