"""Import Keras quietly, and ignore the user's Keras configuration file."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

from transforms.core.errors import ImagebeamError
from transforms.core.installed import is_installed

UNUSED = ("matplotlib", "sklearn")
"""What Keras imports for its galleries and wrappers where it is installed; no job uses those."""

_BACKENDS = ("tensorflow", "jax", "torch", "openvino")
"""Keras' backends, but for NumPy's, which needs JAX as well. OpenVINO's trains nothing, and is not chosen unasked."""

_import_lock = threading.Lock()
_without: tuple[str, ...] = ()
_pin_lock = threading.RLock()
_pins = 0
_before: list[tuple[Callable[[Any], None], Any]] = []


def import_keras() -> None:
    """Import Keras and its backend, quietly where `TF_CPP_MIN_LOG_LEVEL` asks for quiet (2 or more).

    TensorFlow 2.21 prints notes on CPU features and missing CUDA libraries to the process's stderr before it reads
    that variable. They are held back, and shown if the import fails.

    A process that had not imported Keras keeps its default settings from now on, whatever keras.json says. A process
    that had keeps its own; `pinned_keras` then sets the defaults where models are built, loaded and called.
    """
    with _import_lock:
        if "keras" in sys.modules:
            return
        _choose_backend()
        with _held_back(_without):
            if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "0") < "2":
                importlib.import_module("keras")
            else:
                _import_quietly()
        for setter, _, value in _settings():
            setter(value)


def import_without_unused() -> None:
    """Let `import_keras` hold back the packages of `UNUSED`: a third of its seconds. For processes of one's own only.

    `keras.wrappers` and `keras.visualization` then say that they miss those packages, for good.
    """
    global _without
    _without = UNUSED


@contextlib.contextmanager
def _held_back(names: tuple[str, ...]) -> Iterator[None]:
    """Context in which importing these packages fails, unless they are imported already."""
    held = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(held))  # type: ignore[arg-type]  # None is how Python marks what cannot be had.
    try:
        yield
    finally:
        for name in held:
            del sys.modules[name]


def _choose_backend() -> None:
    """Choose JAX, or else PyTorch, if no backend is configured and TensorFlow is not installed.

    Raises:
        ImagebeamError: if one is configured that Keras does not have, or that is not installed.
    """
    if "KERAS_BACKEND" in os.environ:
        configured = os.environ["KERAS_BACKEND"]
        if configured and not (configured in _BACKENDS and is_installed(configured)):
            installed = ", ".join(filter(is_installed, _BACKENDS)) or "none"
            raise ImagebeamError(
                f"KERAS_BACKEND names what runs the models, and here {installed} is installed. Received: "
                f"KERAS_BACKEND={configured!r}. Name another one, or leave the variable out."
            )
        return
    backend = next((name for name in ("tensorflow", "jax", "torch") if is_installed(name)), "tensorflow")
    if backend != "tensorflow":
        os.environ["KERAS_BACKEND"] = backend


def chosen_backend() -> str:
    """The backend that Keras has, or will have once it is imported (unless keras.json alone says otherwise)."""
    if "keras" in sys.modules:
        return str(importlib.import_module("keras").backend.backend())
    _choose_backend()
    return os.environ.get("KERAS_BACKEND", "tensorflow")


@contextlib.contextmanager
def pinned_keras() -> Iterator[None]:
    """Inside, Keras' global settings are its defaults: a number must depend on nothing that the spec doesn't name.

    Settings come from keras.json (in `KERAS_HOME`), from environment variables or from `keras.config` calls earlier
    in the process. Nested and concurrent uses share one pin; the last one to leave restores the caller's settings.
    """
    global _pins
    import_keras()
    with _pin_lock:
        if not _pins:
            for setter, getter, value in _settings():
                _before.append((setter, getter()))
                setter(value)
        _pins += 1
    try:
        yield
    finally:
        with _pin_lock:
            _pins -= 1
            while not _pins and _before:
                setter, value = _before.pop()
                setter(value)


def _settings() -> list[tuple[Callable[[Any], None], Callable[[], Any], Any]]:
    """(setter, getter, default) of every global setting that can change a result."""
    from keras import config

    return [
        (config.set_floatx, config.floatx, "float32"),
        (config.set_epsilon, config.epsilon, 1e-7),
        (config.set_image_data_format, config.image_data_format, "channels_last"),
        (config.set_dtype_policy, config.dtype_policy, "float32"),
        (config.set_max_epochs, config.max_epochs, None),
        (config.set_max_steps_per_epoch, config.max_steps_per_epoch, None),
    ]


def _import_quietly() -> None:
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            backend = importlib.import_module("keras").backend.backend()
            if backend == "tensorflow":
                importlib.import_module("tensorflow").config.list_physical_devices()  # looks for CUDA, and says so
        except BaseException:
            os.dup2(stderr, 2)
            notes.seek(0)
            shutil.copyfileobj(notes, sys.stderr.buffer)
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
