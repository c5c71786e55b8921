"""Load the requested model and choose its engine by trial."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipelines.common.console import say
from pipelines.options.engine import EngineOptions
from pipelines.options.extraction import ModelOptions
from transforms import storage
from transforms.core.engines import Engine, PrecisionChoice
from transforms.core.errors import ImagebeamError
from transforms.core.spec import EmbedderSpec, Precision
from transforms.embed.sampling import Drawn
from transforms.models.config import EmbedderConfig
from transforms.models.embedder import Embedder, identify, load_backbone, make_embedder
from transforms.models.engines import int8, openvino_model, trial
from transforms.models.engines.compiled import has_gpu
from transforms.models.engines.trial import Verdict
from transforms.models.staged import LoadedModel, StagedEngine, StagedModel, read_staged, stage_engine

if TYPE_CHECKING:
    from pipelines.runtime.input_source import Source
    from transforms.images.options import ImageOptions

_NATIVE = (224, 224)
"""Height and width of the images that a model is tried on, where there are none of the input's."""


_AMX_HINT = (
    "  This processor has AMX: --precision auto may be several times as fast, with bfloat16, where a trial finds "
    f"that vectors keep a cosine of {trial.AUTO_COSINE} to float32"
)
"""VGG16 was seven times as fast (docs/engines.md)."""


@dataclass(frozen=True)
class ModelLoader:
    """Load the requested model and choose its engine.

    Attributes:
        model: the flags of the model.
        engine: the flags of its engine.
        source: the input, whose images it is tried and calibrated on; None where it is not known yet.
        elsewhere_on_gpus: whether GPUs of other machines run it.
    """

    model: ModelOptions
    engine: EngineOptions
    source: Source | None = None
    elsewhere_on_gpus: bool = False

    def config(self, held: EmbedderSpec | None) -> EmbedderConfig:
        """The request, where a run goes on with what was settled for it before.

        Args:
            held: the spec of the run's embeddings or of its staged model.

        Raises:
            ImagebeamError: if there is no int8 model where one is to be taken from.
        """
        config = self.model.config()
        if held is None:
            return config
        if self.model.precision == PrecisionChoice.AUTO and held.precision != Precision.INT8:
            config = dataclasses.replace(config, precision=held.precision)
        if config.precision == Precision.INT8:
            lender = self.engine.int8_model
            calibration = _read_lent(lender).spec.calibration if lender else held.calibration
            config = dataclasses.replace(config, calibration=calibration)
        return config

    def load(self, config: EmbedderConfig, *, settled: bool = False) -> LoadedModel:
        """Resolve the weights, build the embedder, and choose its engine.

        Args:
            config: as `config` gives it.
            settled: whether its precision is that of embeddings made earlier.

        Raises:
            ImagebeamError: if it cannot be built, or not in the way that was asked for.
        """
        verdict = self.try_out(config, settled=settled)
        for line in verdict.lines:
            say(line)
        return verdict.loaded

    def try_out(self, config: EmbedderConfig, drawn: Drawn | None = None, *, settled: bool = False) -> Verdict:
        """`load`, with the model ready to embed, and with what is to be said of it.

        Args:
            config: see `load`.
            drawn: images to try the model on; None to draw some of the input.
            settled: see `load`.

        Raises:
            ImagebeamError: likewise.
        """
        say(f"Loading {config.description}")
        at_precision = _builder(config)
        is_auto = self.model.precision == PrecisionChoice.AUTO and not settled
        if config.precision == Precision.INT8:
            return self._int8(at_precision, None if drawn is None else drawn.images)
        precision = None if is_auto else Precision(config.precision)
        if (why := self._why_keras(precision, drawn or self.source)) is not None:
            return self._keras(at_precision(Precision(config.precision)), why)
        drawn = drawn or self._draw(at_precision(Precision.FLOAT32).spec, trial.BATCH)
        if self.engine.engine == Engine.AUTO and precision == Precision.FLOAT32:
            keras = trial.forgo(lambda: at_precision(Precision.FLOAT32), drawn.images, drawn.records)
            if keras is not None:
                return Verdict(LoadedModel(at_precision(precision), keras), at_precision(precision), ())
        images = drawn.images or _noise(config.size)
        verdict = trial.choose(at_precision, self.engine.engine, precision, images[: trial.BATCH])
        if precision == Precision.FLOAT32 and not settled and "amx_bf16" in openvino_model.processor_flags():
            return dataclasses.replace(verdict, lines=(*verdict.lines, _AMX_HINT))
        return verdict

    def settle(self, staged: StagedModel) -> StagedModel:
        """A model that was staged before, with the engine that is asked for now; what a trial chose stays.

        Raises:
            ImagebeamError: if the engine that was asked for does not run it, or an int8 model costs more than is
                allowed now.
            OSError: if it cannot be stored.
        """
        asked, spec = self.engine.engine, staged.spec
        if spec.precision == Precision.INT8:
            self._check_recorded(staged)
            return staged
        if asked == Engine.AUTO and (
            spec.precision != Precision.FLOAT32 or self._why_keras(spec.precision, self.source) is not None
        ):
            return staged
        config = self.config(spec)
        at_precision = _builder(config)
        if spec.precision == Precision.FLOAT32:
            at_precision = functools.cache(lambda _: staged.load_keras())
        return _settle(staged, asked, at_precision, lambda: self._draw(spec, trial.BATCH), config.size)

    def _why_keras(self, precision: Precision | None, images: Drawn | Source | None) -> str | None:
        """Why Keras runs the model without a trial; None where there is something to try."""
        if self.engine.engine == Engine.OPENVINO or precision is None:
            return None
        if self.elsewhere_on_gpus or has_gpu():
            return "GPUs run it"
        if self.engine.engine == Engine.KERAS and precision == Precision.FLOAT32:
            return "asked for"
        if precision != Precision.FLOAT32:
            return None  # A lower precision may be slower, which is told.
        if not openvino_model.is_installed():
            return "OpenVINO is not installed"
        return "the input is not known yet" if images is None else None

    def _keras(self, embedder: Embedder, why: str) -> Verdict:
        engine = StagedEngine(Engine.KERAS, self.engine.engine, why)
        return Verdict(LoadedModel(embedder, engine), embedder, ())

    def _int8(
        self,
        at_precision: Callable[[Precision], Embedder],
        images: list[np.ndarray] | None,
    ) -> Verdict:
        float32, spec = at_precision(Precision.FLOAT32), at_precision(Precision.INT8).spec
        if self.engine.int8_model:
            return self._take_int8(self.engine.int8_model, float32, spec, images)
        if images is not None:
            digests = [str(number) for number in range(len(images))]
        elif self.source is None:
            raise ImagebeamError(
                "An int8 model is calibrated on the input, which is not known yet. Received: precision='int8'. Give "
                "int8_model, the folder of an earlier run."
            )
        else:
            drawn = self.source.draw_images(self.model.image_options(spec), int8.IMAGES)
            images, digests = drawn.images, drawn.digests
        say(f"Calibrating an int8 model on {len(images) // 2:,} images of the input, measuring it on as many")
        return trial.calibrate(float32, spec, images, digests, self.engine.int8_min_cosine)

    def _take_int8(
        self, folder: str, float32: Embedder, spec: EmbedderSpec, images: list[np.ndarray] | None
    ) -> Verdict:
        """The int8 model of an earlier run, whose float32 model must be this one, measured on this input.

        Raises:
            ImagebeamError: naming what differs; or if there is none, or it costs too much on this input.
        """
        trial.require_openvino("--precision int8")
        staged = _read_lent(folder)
        spec = dataclasses.replace(spec, calibration=staged.spec.calibration)
        if differences := staged.spec.differences(spec):
            raise ImagebeamError(
                f"The int8 model in {folder} is of another model ({'; '.join(differences)}). Give the same flags, or "
                "calibrate one on this input."
            )
        model, converted = staged.load_converted()
        engine = dataclasses.replace(staged.engine, reason=f"the int8 model of {staged.folder}")
        loaded = LoadedModel(Embedder(spec, float32.model), engine, converted)
        if images is None and self.source is None:
            return Verdict(loaded, model, ("What int8 costs is not measured: the input is not known yet",))
        if images is None:
            images = self._draw(float32.spec, int8.IMAGES).images
        return trial.measure_int8(loaded, model, images, self.engine.int8_min_cosine)

    def _check_recorded(self, staged: StagedModel) -> None:
        """Refuse an int8 model whose cost, as measured before the run's first start, is above what is allowed now."""
        cost = staged.engine.trial.get("int8", {})
        if (median := cost.get("median_cosine")) is not None:
            told = (
                f"cosine {median:.5f} in the median, measured on {cost['images']} images before the run's first start"
            )
            int8.check_median(median, told, self.engine.int8_min_cosine)

    def _draw(self, spec: EmbedderSpec, count: int) -> Drawn:
        return Drawn() if self.source is None else self.source.draw_images(self.model.image_options(spec), count)


def _builder(config: EmbedderConfig) -> Callable[[Precision], Embedder]:
    """Gives the embedder at any precision, of weights that are loaded once; at int8, Keras' float32 model."""

    @functools.cache
    def backbone_and_spec() -> tuple[object, EmbedderSpec]:
        backbone = load_backbone(config)
        return backbone, identify(config, backbone)

    @functools.cache
    def at_precision(precision: Precision) -> Embedder:
        backbone, spec = backbone_and_spec()
        spec = dataclasses.replace(spec, precision=precision)
        return make_embedder(config, spec, backbone)

    return at_precision


def settle_staged(
    staged: StagedModel, asked: Engine, source: Source, options: ImageOptions, *, elsewhere_on_gpus: bool
) -> StagedModel:
    """A model that was staged as Keras has it, with the engine that is asked for; what a trial chose stays.

    Args:
        staged: of a classifier, without flags of its own.
        asked: the engine.
        source: the input, whose images it is tried on.
        options: how they are decoded.
        elsewhere_on_gpus: whether GPUs of other machines run it.

    Raises:
        ImagebeamError: if OpenVINO is asked for and does not run it.
        OSError: if it cannot be stored.
    """
    precision = staged.spec.precision
    on_gpus = elsewhere_on_gpus or has_gpu()
    if asked == Engine.AUTO and (precision != Precision.FLOAT32 or on_gpus or not openvino_model.is_installed()):
        return staged
    if asked == Engine.OPENVINO and precision != Precision.FLOAT32:
        raise ImagebeamError(
            f"OpenVINO runs classifiers of float32 vectors. Received: --engine openvino, with a classifier of "
            f"{precision} ones. Leave --engine out."
        )
    keras = functools.cache(lambda _: staged.load_keras())
    return _settle(staged, asked, keras, lambda: source.draw_images(options, trial.BATCH), options.image_size)


def _settle(
    staged: StagedModel,
    asked: Engine,
    at_precision: Callable[[Precision], Embedder],
    draw: Callable[[], Drawn],
    size: tuple[int, int] | None,
) -> StagedModel:
    """A staged model with the engine that is asked for: for AUTO, tried once, as soon as an input is large enough."""
    engine = staged.engine
    if engine.reason and (asked == engine.name or (asked == Engine.AUTO and not trial.is_open(engine))):
        return staged
    if asked == Engine.KERAS:
        return stage_engine(staged, StagedEngine(asked, asked, "asked for"))
    drawn = draw()
    if asked == Engine.AUTO:
        keras = trial.forgo(lambda: at_precision(Precision.FLOAT32), drawn.images, drawn.records, engine.trial)
        if keras is not None:
            is_new = not engine.reason or keras.trial != engine.trial
            return stage_engine(staged, keras) if is_new else staged
    verdict = trial.choose(at_precision, asked, staged.spec.precision, drawn.images or _noise(size))
    for line in verdict.lines:
        say(line)
    return stage_engine(staged, verdict.loaded.engine, verdict.loaded.converted)


def _noise(size: tuple[int, int] | None) -> list[np.ndarray]:
    height, width = size or _NATIVE
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(trial.BATCH)]


def _read_lent(folder: str) -> StagedModel:
    """The int8 model of an earlier run, not loaded.

    Raises:
        ImagebeamError: if there is none.
    """
    staged = read_staged(storage.join(storage.absolute(folder), "model"))
    if staged is None or staged.spec.calibration is None:
        raise ImagebeamError(
            f"There is no int8 model in {folder}/model. --int8_model is the --output of a run with --precision int8."
        )
    return staged
