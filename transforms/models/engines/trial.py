"""Choose the fastest engine and precision by timing them on this machine."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from transforms.core.batching import MODEL_CALLS
from transforms.core.digests import joint_sha256
from transforms.core.engines import Engine
from transforms.core.errors import ImagebeamError, last_line
from transforms.core.spec import Calibration, EmbedderSpec, Precision
from transforms.core.text import counted
from transforms.models.embedder import Embedder
from transforms.models.engines import int8, openvino_model
from transforms.models.engines.compiled import has_gpu
from transforms.models.engines.openvino_model import OpenVinoEmbedder
from transforms.models.engines.winograd import with_winograd
from transforms.models.staged import LoadedModel, StagedEngine

if TYPE_CHECKING:
    import openvino

BATCH = 8
"""Images of one call in a trial."""

FLOAT32_ERROR = 1e-5
"""Largest length of the difference between float32 vectors of two engines, as a share of the vector's length."""

AUTO_COSINE = 0.9999
"""Least cosine between float32 vectors and those at a precision that nobody asked for."""

LOWER_COSINE = 0.999
"""The same, where another engine computes at a lower precision that was asked for."""

_SECONDS, _LEAST_ROUNDS, _MOST_ROUNDS = 6.0, 2, 5
"""A trial ends after so many seconds or so many rounds, but not before two."""

PAYS_FROM_IMAGES, PAYS_FROM_SECONDS = 400, 6.0
"""A trial pays from so many images on, and as many more as Keras embeds in so many seconds.

It takes the time of about 130 images, and 2 s for the conversion. Where it finds a faster engine, it saves a third of
the rest or more.
"""

KERAS_RATE = "keras_images_per_second"
"""What Keras does at least, in a staged engine's `trial` where there was none."""

_ENGINE_GAIN, _PRECISION_GAIN = 1.05, 1.1
"""How many times faster OpenVINO must be than Keras, and a lower precision than float32, to be chosen."""


class TriedModel(Protocol):
    """An embedder on any engine.

    Attributes:
        spec: what the numbers are a function of.
        dimensions: embedding column name -> vector length.
    """

    spec: EmbedderSpec
    dimensions: dict[str, int]

    def embed(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Uint8 RGB [n, height, width, 3] -> column name -> float32 [n, dimension]."""


@dataclass
class Candidate:
    """An engine at a precision.

    Attributes:
        engine: of it.
        precision: of it.
        model: that embeds; None where it cannot.
        reference: on Keras, at that precision.
        converted: what OpenVINO runs.
        winograd: whether that has Winograd's convolutions.
        eligible: whether it may be chosen, or is tried to compare others with.
        difference: of its vectors from Keras' float32 ones: the largest length, as a share of the vector's.
        cosine: with them, the least.
        rate: images a second, the best of a few rounds; 0 before the trial.
        refused: why it is out, in words.
    """

    engine: Engine
    precision: Precision
    model: TriedModel | None
    reference: Embedder
    converted: openvino.Model | None = None
    winograd: bool = False
    eligible: bool = True
    difference: float = 0.0
    cosine: float = 1.0
    rate: float = 0.0
    refused: str = ""

    @property
    def name(self) -> str:
        """In words."""
        how = " with Winograd's convolutions" if self.winograd else ""
        return f"{self.engine}{how} at {self.precision}"

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "engine": str(self.engine),
            "precision": str(self.precision),
            **({"winograd": True} if self.winograd else {}),
            "images_per_second": round(self.rate, 2),
            "largest_difference": float(f"{self.difference:.2g}"),
            "lowest_cosine": round(self.cosine, 7),
            **({"refused": self.refused} if self.refused else {}),
        }


@dataclass(frozen=True)
class Verdict:
    """The result of a trial.

    Attributes:
        loaded: the model, to be staged.
        model: the same, ready to embed.
        lines: for the user.
    """

    loaded: LoadedModel
    model: TriedModel
    lines: tuple[str, ...]


def forgo(
    keras: Callable[[], TriedModel],
    images: Sequence[np.ndarray],
    records: int,
    earlier: Mapping[str, Any] | None = None,
) -> StagedEngine | None:
    """Keras, where a trial of the engines would take longer than it saves; None where it pays.

    Args:
        keras: gives the embedder on Keras, which is timed on the images where there are many records.
        images: uint8 RGB [height, width, 3] of the input.
        records: that the input has, about.
        earlier: the `trial` that this gave for another input; its rate is not measured again where it is enough.
    """
    if not images or records < PAYS_FROM_IMAGES:
        return StagedEngine(Engine.KERAS, Engine.AUTO, "the input is too small for a trial to pay", trial=earlier or {})
    batch = _batches(images[:BATCH])[0]
    rate = (earlier or {}).get(KERAS_RATE, 0.0)
    for _ in range(2):  # The first call compiles the model.
        if records < _pays_from(rate):
            break
        model = keras()
        began = time.perf_counter()
        model.embed(batch)
        rate = round(len(batch) / (time.perf_counter() - began), 3)
    if records >= _pays_from(rate):
        return None
    why = f"a trial does not pay: Keras embeds {rate:.3g} images a second or more, and the input has about {records:,}"
    return StagedEngine(Engine.KERAS, Engine.AUTO, why, trial={KERAS_RATE: rate})


def _pays_from(rate: float) -> float:
    return PAYS_FROM_IMAGES + PAYS_FROM_SECONDS * rate


def is_open(engine: StagedEngine) -> bool:
    """Whether no trial was had, and nobody asked for this engine: another input may be worth one."""
    return engine.asked == Engine.AUTO and "candidates" not in engine.trial


def choose(
    at_precision: Callable[[Precision], Embedder],
    engine: Engine,
    precision: Precision | None,
    images: Sequence[np.ndarray],
) -> Verdict:
    """Time the installed engines, and choose the fastest whose vectors are right.

    Args:
        at_precision: gives the embedder on Keras.
        engine: asked for; AUTO to try them all.
        precision: asked for, not int8; None for the fastest that keeps `AUTO_COSINE`.
        images: uint8 RGB [height, width, 3], at least one: the vectors are compared on them.

    Raises:
        ImagebeamError: if OpenVINO was asked for and is not installed, cannot run the model, or gives other vectors.
    """
    if engine == Engine.OPENVINO:
        require_openvino("--engine openvino")
    exact = _vectors(at_precision(Precision.FLOAT32), images)
    tried = list(_candidates(at_precision, engine, precision))
    for candidate in tried:
        _compare(candidate, exact, images, AUTO_COSINE if precision is None else LOWER_COSINE)
    if not any(candidate.eligible and not candidate.refused for candidate in tried):
        why = next(candidate.refused for candidate in tried if candidate.eligible)
        raise ImagebeamError(
            f"OpenVINO does not run this model at this precision: {why}. Received: --engine openvino. Pass --engine "
            "keras."
        )
    _time(tried, images)
    return _judge(tried, engine, asked_precision=precision is not None)


def require_openvino(received: str) -> None:
    """Refuse where OpenVINO is missing.

    Raises:
        ImagebeamError: naming the extra.
    """
    if (why := openvino_model.why_missing()) is not None:
        raise ImagebeamError(f"OpenVINO is missing: {why}. Received: {received}. {openvino_model.REMEDY}.")


def _candidates(
    at_precision: Callable[[Precision], Embedder], engine: Engine, precision: Precision | None
) -> Iterator[Candidate]:
    """In the order in which they are preferred where none is faster."""
    on_gpu = has_gpu()
    # In float32 whatever it will compute in; a failure is tried again, and fails as before.
    convert = functools.cache(lambda: openvino_model.convert(at_precision(Precision.FLOAT32)))
    lower = [Precision.BFLOAT16, Precision.FLOAT16] if on_gpu else [Precision.BFLOAT16]
    wanted = [Precision.FLOAT32, *lower] if precision is None else [precision]
    for one in wanted:
        if engine != Engine.OPENVINO:
            reference = at_precision(one)
            yield Candidate(Engine.KERAS, one, reference, reference)
        if engine == Engine.OPENVINO or (engine == Engine.AUTO and not on_gpu and openvino_model.is_installed()):
            converted = _converted(convert, at_precision(one))
            yield converted
            yield from _with_winograd(converted)
    if precision not in (None, Precision.FLOAT32) and not on_gpu:
        float32 = at_precision(Precision.FLOAT32)
        yield Candidate(Engine.KERAS, Precision.FLOAT32, float32, float32, eligible=False)


def _converted(convert: Callable[[], openvino.Model], reference: Embedder) -> Candidate:
    precision = reference.spec.precision
    candidate = Candidate(Engine.OPENVINO, precision, None, reference)
    try:
        if not openvino_model.runs(precision):
            candidate.refused = f"this processor has no {precision} that OpenVINO uses"
            return candidate
        candidate.converted = convert()
        candidate.model = OpenVinoEmbedder(reference.spec, reference.dimensions, candidate.converted)
    except Exception as error:  # TensorFlow and OpenVINO raise what they like.
        candidate.refused = last_line(error)
    return candidate


def _with_winograd(plain: Candidate) -> Iterator[Candidate]:
    """The same with Winograd's convolutions, where the model is fit for them; a lower precision is not."""
    if plain.converted is None or plain.precision != Precision.FLOAT32:
        return
    candidate = dataclasses.replace(plain, model=None, winograd=True)
    try:
        candidate.converted = with_winograd(plain.converted)
        if candidate.converted is None:
            return
        reference = plain.reference
        candidate.model = OpenVinoEmbedder(reference.spec, reference.dimensions, candidate.converted)
    except Exception as error:  # OpenVINO raises what it likes.
        candidate.refused = last_line(error)
    yield candidate


def _vectors(model: TriedModel, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    found = [model.embed(batch) for batch in _batches(images)]
    return {column: np.concatenate([vectors[column] for vectors in found]) for column in found[0]}


def _batches(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Batches of `BATCH`; of one image, where they differ in shape."""
    if len({image.shape for image in images}) > 1:
        return [image[np.newaxis] for image in images]
    return [np.stack(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]


def _compare(
    candidate: Candidate, exact: Mapping[str, np.ndarray], images: Sequence[np.ndarray], least_cosine: float
) -> None:
    """Fill in how far the vectors are from Keras' float32 ones, and whether that is too far."""
    if candidate.model is None:
        return
    model = candidate.model
    # OpenVINO's first calls, as many as run at once, take their memory: 0.5 s for VGG16, which no turn should count.
    # The second one costs no time here: a batch of a trial is one inference, which leaves half of the cores idle.
    calls = MODEL_CALLS if candidate.engine == Engine.OPENVINO else 1
    try:
        with ThreadPoolExecutor(calls) as pool:
            vectors, *_ = pool.map(lambda _: _vectors(model, images), range(calls))
    except Exception as error:  # the engine's own
        candidate.refused = last_line(error)
        return
    for column, right in exact.items():
        lengths = np.maximum(np.linalg.norm(right, axis=1), 1e-30)
        apart = np.linalg.norm(vectors[column] - right, axis=1) / lengths
        candidate.difference = max(candidate.difference, float(apart.max()))
        candidate.cosine = min(candidate.cosine, float(int8.cosines(right, vectors[column]).min()))
    if candidate.precision == Precision.FLOAT32:
        if not candidate.difference <= FLOAT32_ERROR:  # NaN is refused too.
            candidate.refused = f"its vectors differ from Keras' by {candidate.difference:.1e} of their length"
    elif not candidate.cosine >= least_cosine and (candidate.engine != Engine.KERAS or least_cosine == AUTO_COSINE):
        candidate.refused = f"the cosine of its vectors to float32 is {candidate.cosine:.5f}, less than {least_cosine}"


def _time(tried: Sequence[Candidate], images: Sequence[np.ndarray]) -> None:
    """Fill in the rates: in turns, as many calls at once as in a run, the best of a few rounds."""
    candidates = [candidate for candidate in tried if not candidate.refused]
    batches = _batches(images[:BATCH]) * MODEL_CALLS
    began = time.perf_counter()
    with ThreadPoolExecutor(MODEL_CALLS) as pool:
        for number in range(_MOST_ROUNDS):
            if number >= _LEAST_ROUNDS and time.perf_counter() - began > _SECONDS:
                break
            fastest = max(candidate.rate for candidate in candidates)
            for candidate in candidates:
                if candidate.model is None or (number and candidate.rate < fastest / 2):
                    continue  # A slow one is not timed twice.
                started = time.perf_counter()
                list(pool.map(candidate.model.embed, batches))
                seconds = time.perf_counter() - started
                candidate.rate = max(candidate.rate, sum(map(len, batches)) / seconds)


def _judge(tried: Sequence[Candidate], asked: Engine, *, asked_precision: bool) -> Verdict:
    eligible = [candidate for candidate in tried if candidate.eligible and not candidate.refused]
    best = eligible[0]
    for candidate in eligible[1:]:
        gain = _ENGINE_GAIN if candidate.precision == best.precision else _PRECISION_GAIN
        if candidate.rate > gain * best.rate:
            best = candidate
    assert best.model is not None
    lines = tuple(_lines(best, tried, asked_precision=asked_precision))
    loaded = LoadedModel(best.reference, _engine(best, asked, tried, lines[0]), best.converted)
    return Verdict(loaded, best.model, lines)


def _engine(best: Candidate, asked: Engine, tried: Sequence[Candidate], reason: str, **more: Any) -> StagedEngine:
    processor = tuple(sorted(openvino_model.cpu_capabilities())) if best.engine == Engine.OPENVINO else ()
    trial = {"candidates": [candidate.to_dict() for candidate in tried], **more}
    return StagedEngine(best.engine, asked, reason, processor=processor, trial=trial)


def _lines(best: Candidate, tried: Sequence[Candidate], *, asked_precision: bool) -> Iterator[str]:
    others = [candidate for candidate in tried if candidate is not best and candidate.rate]
    against = ", ".join(
        f"{other.rate:.3g} with {other.name}{', too little more' if other.eligible and other.rate > best.rate else ''}"
        for other in others
    )
    yield (
        f"Engine {best.name}: {best.rate:.3g} images a second on this machine"
        f"{f', against {against}' if against else ''}"
    )
    for candidate in tried:
        if candidate.refused and candidate.engine == Engine.OPENVINO:
            yield f"  not {candidate.name}: {candidate.refused}"
    float32 = max((one.rate for one in tried if one.precision == Precision.FLOAT32), default=0.0)
    if asked_precision and best.precision != Precision.FLOAT32 and best.rate < float32:
        yield (
            f"WARNING: on this machine {best.precision} is slower than float32: {best.rate:.1f} against {float32:.1f} "
            "images a second. Leave --precision out, unless other machines do the work."
        )


def calibrate(
    float32: Embedder,
    spec: EmbedderSpec,
    images: Sequence[np.ndarray],
    digests: Sequence[str],
    least_median: float,
) -> Verdict:
    """Quantise an embedder to int8, and measure its accuracy and speed.

    Args:
        float32: the embedder on Keras.
        spec: its spec with int8 for a precision.
        images: uint8 RGB [height, width, 3]; half of them calibrate, the others measure.
        digests: SHA-256 of their files, 64 hex digits each.
        least_median: the median cosine to float32 that it must reach.

    Raises:
        ImagebeamError: if there are too few images, OpenVINO cannot run such a model, or it does not reach
            `least_median`.
    """
    require_openvino("--precision int8")
    if len(images) < int8.FEWEST_IMAGES:
        raise ImagebeamError(
            f"An int8 model is calibrated on images of the input, at least {int8.FEWEST_IMAGES}. Received: "
            f"{len(images)} that can be decoded. Take more, another --precision, or --int8_model of an earlier run."
        )
    calibrating, measuring = images[::2], images[1::2]
    exact = _converted(lambda: openvino_model.convert(float32), float32)
    if exact.model is None or exact.converted is None:
        raise ImagebeamError(f"OpenVINO does not run this model: {exact.refused}. Choose another --precision.")
    _compare(exact, _vectors(float32, measuring[:BATCH]), measuring[:BATCH], AUTO_COSINE)
    if not exact.cosine >= LOWER_COSINE:  # Rounding alone is far below what int8 changes.
        raise ImagebeamError(f"OpenVINO does not run this model: {exact.refused}. Choose another --precision.")
    exact.refused = ""
    wanted = _vectors(exact.model, measuring)

    def compiled(model: openvino.Model) -> OpenVinoEmbedder:
        return OpenVinoEmbedder(spec, float32.dimensions, model)

    def cost_of(model: openvino.Model) -> int8.Cost:
        return int8.measure(wanted, _vectors(compiled(model), measuring))

    model, cost, preset = int8.quantize(exact.converted, calibrating, cost_of, least_median)
    told = f"int8 against float32, on {cost.describe()}"
    int8.check_median(cost.median_cosine, told, least_median)
    calibration = Calibration(joint_sha256(list(digests[::2])), openvino_model.digest(model))
    reference = Embedder(dataclasses.replace(spec, calibration=calibration), float32.model)
    ours = Candidate(Engine.OPENVINO, Precision.INT8, compiled(model), reference, model, cosine=cost.lowest_cosine)
    keras = Candidate(Engine.KERAS, Precision.FLOAT32, float32, float32, eligible=False)
    exact.eligible = False
    tried = [ours, exact, keras]
    _time(tried, measuring)
    lines = [*_lines(ours, tried, asked_precision=True), told]
    about = {"preset": preset, "calibrated_on": len(calibrating), **dataclasses.asdict(cost)}
    engine = _engine(ours, Engine.OPENVINO, tried, lines[0], int8=about)
    assert ours.model is not None
    return Verdict(LoadedModel(reference, engine, model), ours.model, tuple(lines))


def measure_int8(loaded: LoadedModel, model: TriedModel, images: Sequence[np.ndarray], least_median: float) -> Verdict:
    """Measure the accuracy of an int8 model that was calibrated on other images; its speed stays as it was recorded.

    Args:
        loaded: the model, its embedder that of float32 on Keras.
        model: the same, ready to embed.
        images: uint8 RGB [height, width, 3] of the input. They are drawn as for `calibrate`, and where there are as
            many as that takes, the half of them that measures there does so here.
        least_median: see `calibrate`.

    Raises:
        ImagebeamError: if it does not reach `least_median`.
    """
    if len(images) < 2:
        return Verdict(
            loaded,
            model,
            (f"What int8 costs is not measured: {counted(len(images), 'image')} of the input can be decoded",),
        )
    measuring = images[1::2] if len(images) >= int8.FEWEST_IMAGES else images
    cost = int8.measure(_vectors(loaded.embedder, measuring), _vectors(model, measuring))
    told = f"int8 against float32, on {cost.describe()}"
    int8.check_median(cost.median_cosine, told, least_median)
    trial = loaded.engine.trial
    about = {**trial.get("int8", {}), **dataclasses.asdict(cost)}
    engine = dataclasses.replace(loaded.engine, trial={**trial, "int8": about})
    return Verdict(dataclasses.replace(loaded, engine=engine), model, (told,))
