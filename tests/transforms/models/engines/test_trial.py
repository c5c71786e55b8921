"""The choice of an engine and a precision, with models whose speed and vectors are known."""

import threading

import numpy as np
import pytest

from tests.support.fakes import ChannelMeans
from transforms.core.batching import MODEL_CALLS
from transforms.core.engines import Engine
from transforms.core.errors import ImagebeamError
from transforms.core.spec import EmbedderSpec, Precision
from transforms.models.engines import openvino_model, trial
from transforms.models.engines.trial import choose

IMAGES = list(np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3), dtype=np.uint8))


class Clock:
    """Stands in for the module `time`: what a call of a model takes is no matter of this machine."""

    def __init__(self):
        self._seconds = 0.0
        self._lock = threading.Lock()

    def perf_counter(self):
        with self._lock:
            self._seconds += 1e-9
            return self._seconds

    def sleep(self, seconds):
        with self._lock:
            self._seconds += seconds


class Taking(ChannelMeans):
    """Channel means, after some seconds, off by some share; `cold` calls take so many more."""

    def __init__(self, clock, precision, seconds, off=0.0, cold=(0, 0.0)):
        super().__init__(EmbedderSpec("ChannelMeans", "0" * 64, image_size=(6, 6), precision=precision))
        self.clock, self.seconds, self.off = clock, seconds, off
        self.cold_calls, self.more = cold

    def embed(self, images):
        self.cold_calls -= 1
        self.clock.sleep(self.seconds + (self.more if self.cold_calls >= 0 else 0.0))
        vectors = super().embed(images)["embedding"]
        return {"embedding": vectors * (1 + self.off * np.array([1, 0, -1], np.float32))}


@pytest.fixture
def machine(monkeypatch):
    """A machine where a batch takes so many seconds: {(engine, precision): seconds, or arguments of `Taking`}."""

    clock = Clock()
    monkeypatch.setattr(trial, "time", clock)

    def make(gpu=False, bfloat16=True, installed=True, **taking):
        def model(engine, precision):
            found = taking[f"{engine}_{precision}"]
            return Taking(clock, precision, *(found if isinstance(found, tuple) else (found,)))

        made: dict[Precision, object] = {}

        def at_precision(precision):
            return made.setdefault(precision, model("keras", precision))

        def openvino(spec, dimensions, converted):
            if f"{converted}_{spec.precision}" not in taking:
                raise RuntimeError("first line\nno such operation: Spin\n")
            return model(converted, spec.precision)

        monkeypatch.setattr(trial, "has_gpu", lambda: gpu)
        monkeypatch.setattr(openvino_model, "is_installed", lambda: installed)
        monkeypatch.setattr(openvino_model, "why_missing", lambda: None if installed else "it is not installed")
        monkeypatch.setattr(openvino_model, "cpu_capabilities", lambda: frozenset({"FP32", "BF16"}))
        monkeypatch.setattr(openvino_model, "runs", lambda precision: bfloat16 or precision != Precision.BFLOAT16)
        monkeypatch.setattr(openvino_model, "convert", lambda embedder: "openvino")
        monkeypatch.setattr(
            trial, "with_winograd", lambda converted: "winograd" if "winograd_float32" in taking else None
        )
        monkeypatch.setattr(trial, "OpenVinoEmbedder", openvino)
        return at_precision

    return make


def chosen(verdict):
    return verdict.loaded.engine.name, verdict.loaded.embedder.spec.precision


@pytest.mark.parametrize(
    ("keras", "openvino", "wins"),
    [(0.04, 0.01, Engine.OPENVINO), (0.01, 0.04, Engine.KERAS), (0.02, 0.02, Engine.KERAS)],
)
def test_faster_engine_wins_and_keras_wins_a_tie(machine, keras, openvino, wins):
    verdict = choose(machine(keras_float32=keras, openvino_float32=openvino), Engine.AUTO, Precision.FLOAT32, IMAGES)
    assert chosen(verdict) == (wins, "float32")
    assert (verdict.loaded.converted is not None) == (wins == Engine.OPENVINO)
    trial = verdict.loaded.engine.trial["candidates"]
    assert [(one["engine"], one["precision"]) for one in trial] == [("keras", "float32"), ("openvino", "float32")]
    assert all(one["images_per_second"] > 0 for one in trial)
    assert verdict.loaded.engine.reason == verdict.lines[0]


def test_the_line_says_where_a_faster_engine_gains_too_little(machine):
    verdict = choose(machine(keras_float32=0.01, openvino_float32=0.0098), Engine.AUTO, Precision.FLOAT32, IMAGES)
    assert chosen(verdict) == (Engine.KERAS, "float32")
    told = "800 images a second on this machine, against 816 with openvino at float32, too little more"
    assert verdict.lines[0].endswith(told)


def test_an_engine_that_takes_its_memory_in_its_first_calls_is_timed_after_them(machine):
    # VGG16 on OpenVINO at bfloat16 with AMX: the first two batches at once took 0.7 s, all others 0.2 s.
    cold = (0.1, 0.0, (MODEL_CALLS, 0.5))
    at_precision = machine(keras_float32=0.8, openvino_float32=0.7, keras_bfloat16=0.12, openvino_bfloat16=cold)
    verdict = choose(at_precision, Engine.AUTO, None, IMAGES)
    assert chosen(verdict) == (Engine.OPENVINO, "bfloat16")
    assert verdict.lines[0].startswith("Engine openvino at bfloat16: 80 images a second")


def test_winograds_convolutions_are_one_more_candidate_at_float32(machine):
    rates = {"keras_float32": 0.04, "openvino_float32": 0.03, "keras_bfloat16": 0.08, "openvino_bfloat16": 0.07}
    for engine in (Engine.AUTO, Engine.OPENVINO):
        for precision in (Precision.FLOAT32, None):
            verdict = choose(machine(**rates, winograd_float32=(0.02, 1e-6)), engine, precision, IMAGES)
            assert chosen(verdict) == (Engine.OPENVINO, "float32")
            assert verdict.loaded.converted == "winograd"
            assert "openvino with Winograd's convolutions at float32: 400 images a second" in verdict.lines[0]
            tried = verdict.loaded.engine.trial["candidates"]
            assert [one for one in tried if "winograd" in one] == [
                one for one in tried if one["images_per_second"] > 390
            ]
    verdict = choose(machine(**rates, winograd_float32=(0.02, 1e-3)), Engine.AUTO, Precision.FLOAT32, IMAGES)
    assert verdict.loaded.converted == "openvino"
    assert "not openvino with Winograd's convolutions at float32: its vectors differ" in verdict.lines[1]
    verdict = choose(machine(**rates, winograd_float32=0.06), Engine.AUTO, Precision.FLOAT32, IMAGES)
    assert verdict.loaded.converted == "openvino"


def test_a_fast_engine_with_other_vectors_is_not_chosen(machine):
    at_precision = machine(keras_float32=0.03, openvino_float32=(0.001, 1e-3))
    verdict = choose(at_precision, Engine.AUTO, Precision.FLOAT32, IMAGES)
    assert chosen(verdict) == (Engine.KERAS, "float32")
    assert "not openvino at float32: its vectors differ" in verdict.lines[1]


def test_keras_runs_what_openvino_cannot_convert(machine):
    verdict = choose(machine(keras_float32=0.01), Engine.AUTO, Precision.FLOAT32, IMAGES)
    assert chosen(verdict) == (Engine.KERAS, "float32")
    assert verdict.loaded.engine.trial["candidates"][1]["refused"] == "no such operation: Spin"


def test_requested_engine_is_used_or_refused(machine):
    slow = machine(keras_float32=0.001, openvino_float32=0.03)
    assert chosen(choose(slow, Engine.OPENVINO, Precision.FLOAT32, IMAGES)) == (Engine.OPENVINO, "float32")
    with pytest.raises(ImagebeamError, match=r"Spin.*--engine openvino"):
        choose(machine(keras_float32=0.001), Engine.OPENVINO, Precision.FLOAT32, IMAGES)
    with pytest.raises(ImagebeamError, match=r"its vectors differ"):
        choose(machine(keras_float32=0.001, openvino_float32=(0.1, 0.1)), Engine.OPENVINO, Precision.FLOAT32, IMAGES)
    missing = machine(keras_float32=0.001, installed=False)
    with pytest.raises(ImagebeamError, match=r"imagebeam\[openvino\]"):
        choose(missing, Engine.OPENVINO, Precision.FLOAT32, IMAGES)


def test_only_keras_is_tried_without_openvino_or_with_a_gpu(machine):
    for at_precision in (
        machine(keras_float32=0.001, openvino_float32=0.0, installed=False),
        machine(keras_float32=0.001, openvino_float32=0.0, gpu=True),
    ):
        verdict = choose(at_precision, Engine.AUTO, Precision.FLOAT32, IMAGES)
        assert len(verdict.loaded.engine.trial["candidates"]) == 1


RATES = {"keras_float32": 0.03, "openvino_float32": 0.025}


@pytest.mark.parametrize(
    ("lower", "wins"),
    [
        ({"keras_bfloat16": 0.005, "openvino_bfloat16": 0.012}, (Engine.KERAS, "bfloat16")),
        ({"keras_bfloat16": 0.012, "openvino_bfloat16": 0.005}, (Engine.OPENVINO, "bfloat16")),
        ({"keras_bfloat16": 0.10, "openvino_bfloat16": 0.08}, (Engine.OPENVINO, "float32")),
        ({"keras_bfloat16": (0.005, 0.05), "openvino_bfloat16": (0.005, 0.05)}, (Engine.OPENVINO, "float32")),
    ],
    ids=["keras faster", "openvino faster", "slower", "too far off"],
)
def test_auto_takes_the_fastest_precision_that_keeps_the_vectors(machine, lower, wins):
    assert chosen(choose(machine(**RATES, **lower), Engine.AUTO, None, IMAGES)) == wins


def test_auto_skips_precisions_the_processor_lacks(machine):
    at_precision = machine(**RATES, keras_bfloat16=0.2, openvino_bfloat16=0.001, bfloat16=False)
    verdict = choose(at_precision, Engine.AUTO, None, IMAGES)
    assert chosen(verdict) == (Engine.OPENVINO, "float32")
    assert any("this processor has no bfloat16" in line for line in verdict.lines)


def test_slower_precision_is_used_with_a_warning(machine):
    at_precision = machine(keras_float32=0.01, keras_bfloat16=0.05, openvino_bfloat16=0.06)
    verdict = choose(at_precision, Engine.AUTO, Precision.BFLOAT16, IMAGES)
    assert chosen(verdict) == (Engine.KERAS, "bfloat16")
    assert any(line.startswith("WARNING: on this machine bfloat16 is slower than float32") for line in verdict.lines)
    at_precision = machine(keras_float32=0.05, keras_bfloat16=0.01, openvino_bfloat16=0.06)
    assert not any("WARNING" in line for line in choose(at_precision, Engine.AUTO, Precision.BFLOAT16, IMAGES).lines)


def test_images_of_several_sizes_are_tried_one_by_one(machine):
    images = [np.zeros((4, 5, 3), np.uint8), np.ones((6, 3, 3), np.uint8), np.ones((4, 5, 3), np.uint8)]
    verdict = choose(machine(keras_float32=0.001, openvino_float32=0.001), Engine.AUTO, Precision.FLOAT32, images)
    assert chosen(verdict)[1] == "float32"


@pytest.mark.parametrize(
    ("records", "seconds", "calls", "pays"),
    [
        (399, 100.0, 0, False),  # few images
        (430, 8.0, 2, True),  # a second each
        (430, 1.0, 1, False),  # an eighth of it
        (449, 1.0, 2, True),
        (900, 0.08, 1, False),  # a hundred a second
        (1_010, 0.08, 2, True),
        (1_000_000, 0.001, 2, True),
    ],
)
def test_a_trial_is_had_where_keras_would_work_for_long(monkeypatch, records, seconds, calls, pays):
    clock = Clock()
    monkeypatch.setattr(trial, "time", clock)
    timed = []

    class Timed(Taking):
        def embed(self, images):
            timed.append(len(images))
            return super().embed(images)

    engine = trial.forgo(lambda: Timed(clock, Precision.FLOAT32, seconds), IMAGES, records)
    assert (engine is None) == pays
    assert timed == [8] * calls


def test_the_first_call_which_compiles_does_not_make_a_trial_pay(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(trial, "time", clock)

    class Compiled(Taking):
        def embed(self, images):
            found = super().embed(images)
            self.seconds = 0.1
            return found

    model = Compiled(clock, Precision.FLOAT32, 4.0)
    engine = trial.forgo(lambda: model, IMAGES, 800)
    assert engine is not None
    assert "Keras embeds 80 images a second or more, and the input has about 800" in engine.reason
    assert engine.trial == {"keras_images_per_second": pytest.approx(80, rel=1e-3)}


def test_without_an_image_there_is_no_trial():
    assert trial.forgo(lambda: pytest.fail("nothing to time"), [], 1_000_000) is not None


def test_a_rate_that_is_known_is_enough(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(trial, "time", clock)
    model = Taking(clock, Precision.FLOAT32, 0.1)
    first = trial.forgo(lambda: model, IMAGES, 500)
    assert first is not None
    again = trial.forgo(lambda: pytest.fail("timed again"), IMAGES, 800, first.trial)
    assert again is not None
    assert again.trial == first.trial
    assert trial.forgo(lambda: model, IMAGES, 10_000, first.trial) is None
