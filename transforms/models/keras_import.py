"""Keras' first import, without the notes TensorFlow's native libraries print at it."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
import threading

_lock = threading.Lock()


def import_keras() -> None:
    """Import Keras and its backend, quietly where `TF_CPP_MIN_LOG_LEVEL` asks for quiet (2 or more).

    TensorFlow 2.21 prints notes on CPU features and missing CUDA libraries to the process's stderr before it reads
    that variable. They are held back, and shown if the import fails. A later call does nothing.
    """
    with _lock:
        if "keras" in sys.modules:
            return
        if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "0") < "2":
            importlib.import_module("keras")
            return
        _import_quietly()


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
