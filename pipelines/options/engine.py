"""The flags that choose the inference engine."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.common.fields import Options, flag, one_of
from pipelines.options.extraction import ModelOptions
from transforms.core.engines import Engine, PrecisionChoice
from transforms.core.errors import ImagebeamError

INT8_MIN_COSINE = 0.995

ENGINE_HELP = "what runs the model on CPUs; auto tries both for a few seconds and takes the faster one, where that pays"


@dataclass(frozen=True)
class EngineOptions(Options):
    """The inference engine, and the options of int8 models."""

    engine: Engine = flag(
        ENGINE_HELP,
        Engine.AUTO,
        **one_of(Engine),
    )
    int8_min_cosine: float = flag(
        "refuse --precision int8 where the median cosine between its vectors and those of float32 is lower",
        INT8_MIN_COSINE,
        type=float,
        metavar="COSINE",
    )
    int8_model: str | None = flag(
        "output of an earlier run whose int8 model is used, so that vectors of both can be compared (default: "
        "calibrate one on the input)",
        None,
        metavar="OUT",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.int8_min_cosine <= 1:
            raise ImagebeamError(f"--int8_min_cosine is a cosine, from 0 to 1. Received: {self.int8_min_cosine}.")

    def check(self, model: ModelOptions) -> None:
        """Refuse contradictory options.

        Raises:
            ImagebeamError: naming both flags.
        """
        if self.engine == Engine.KERAS and model.precision == PrecisionChoice.INT8:
            raise ImagebeamError("Keras has no int8 models. Received: --engine keras, --precision int8. Leave one out.")
        if self.engine == Engine.OPENVINO and model.precision == PrecisionChoice.FLOAT16:
            raise ImagebeamError(
                "OpenVINO does not compute in float16 on CPUs. Received: --engine openvino, --precision float16. Leave "
                "one out."
            )
        if self.int8_model and model.precision != PrecisionChoice.INT8:
            raise ImagebeamError(
                f"--int8_model is for --precision int8. Received: --int8_model {self.int8_model!r}, --precision "
                f"{model.precision}. Give both, or neither."
            )
