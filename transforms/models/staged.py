"""The staged model: what workers load, verified, instead of downloading anything."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.core.spec import EmbedderSpec
from transforms.models.config import EmbedderConfig
from transforms.models.embedder import Embedder, resolve
from transforms.models.keras_import import pinned_keras
from transforms.models.weights import is_file

MODEL_FILE = "embedder.keras"
SPEC_FILE = "spec.json"


@dataclass(frozen=True)
class StagedModel:
    """A model folder as described by its spec.json.

    Attributes:
        folder: OUT/model.
        spec: of the embedder.
        sha256: of the model file.
        weights: where the weights came from: {"source": as --weights said, "file_sha256": of a file, else null}.
        dimensions: embedding column name -> vector length.
    """

    folder: str
    spec: EmbedderSpec
    sha256: str
    weights: dict[str, str | None]
    dimensions: dict[str, int]

    @property
    def model_uri(self) -> str:
        """The Keras model file: image in, vector out."""
        return storage.join(self.folder, MODEL_FILE)

    def load(self) -> Embedder:
        """Load the embedder, its bytes checked first.

        Raises:
            ImagebeamError: if the file is missing or is not the one that was staged.
        """
        try:
            with storage.local_file(self.model_uri) as path, pinned_keras():
                import keras

                check_sha256(path, self.sha256, self.model_uri)
                return Embedder(self.spec, keras.saving.load_model(path, compile=False, safe_mode=True))
        except FileNotFoundError as error:
            raise ImagebeamError(
                f"The staged model is missing: {self.model_uri}. The same command stages it again."
            ) from error


def stage_model(
    config: EmbedderConfig,
    folder: str,
    *,
    held: EmbedderSpec | None = None,
    load: Callable[[EmbedderConfig], Embedder] | None = None,
    check: Callable[[EmbedderSpec, EmbedderSpec], None] | None = None,
) -> StagedModel:
    """Put a model where workers can load it from: resolve the weights, build the embedder, save it into a folder.

    A folder that holds the same model already is taken as it is; nothing is loaded then.

    Args:
        config: which model.
        folder: local, gs:// or another file system that Beam knows; workers must see it.
        held: the spec of embeddings made earlier, which the model must have; None to go by the folder alone.
        load: gives the embedder; None to resolve it.
        check: raises ImagebeamError where the held spec is not the wanted one; None for a message that names the
            folder.

    Raises:
        ImagebeamError: if the folder holds a model of another spec, or the model cannot be built.
        OSError: if it cannot be stored.
    """
    folder = storage.absolute(folder)
    source = weights_source(config)
    staged = read_staged(folder)

    def refuse(spec: EmbedderSpec, wanted: EmbedderSpec) -> None:
        if differences := spec.differences(wanted):
            raise ImagebeamError(
                f"{folder} holds a model of another spec ({'; '.join(differences)}). Choose another folder."
            )

    check = check or refuse
    if staged is not None:
        check(staged.spec, config.spec(staged.spec.weights_sha256, staged.spec.graph_sha256))
        same_file = source["file_sha256"] is not None and source["file_sha256"] == staged.weights["file_sha256"]
        if same_file or source == staged.weights:
            return staged
        held = staged.spec
    embedder = (load or resolve)(config)
    if held is not None:
        check(held, embedder.spec)
    return staged or stage(embedder, folder, source)


def _check_loadable(path: Path) -> None:
    """Layers of others may save what they cannot load; better found here than by every worker."""
    import keras

    try:
        keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # whatever a layer's constructor raises
        why = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise ImagebeamError(
            f"Keras saves this part of the model, and cannot load it again: {why}. Leave --layer out to take the whole "
            "model."
        ) from error


def weights_source(config: EmbedderConfig) -> dict[str, str | None]:
    """What spec.json says of where the weights came from."""
    weights = config.model if config.has_own_weights else config.weights
    source: dict[str, str | None] = {"source": weights, "file_sha256": None}
    if config.has_own_weights or is_file(weights):
        try:
            with storage.local_file(storage.absolute(weights)) as path:
                source["file_sha256"] = file_sha256(path)
        except OSError as error:
            raise ImagebeamError(f"The weights file cannot be read: {error}") from error
    return source


def stage(embedder: Embedder, folder: str, weights: dict[str, str | None]) -> StagedModel:
    """Save an embedder into `folder`: the model file first, spec.json, which names its digest, last."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / MODEL_FILE
        embedder.model.save(path)
        if embedder.spec.preprocessing is not None:
            _check_loadable(path)
        sha256 = file_sha256(path)
        storage.publish_file(storage.join(folder, MODEL_FILE), path)
    staged = StagedModel(folder, embedder.spec, sha256, weights, embedder.dimensions)
    about: dict[str, Any] = {
        "fingerprint": embedder.spec.fingerprint,
        "spec": embedder.spec.to_dict(),
        "weights": weights,
        "dimensions": embedder.dimensions,
        "model_file": MODEL_FILE,
        "model_sha256": sha256,
    }
    storage.publish(storage.join(folder, SPEC_FILE), json.dumps(about, indent=2).encode())
    return staged


def read_staged(folder: str) -> StagedModel | None:
    """The model staged in `folder`, not loaded; None where there is none.

    Raises:
        ImagebeamError: if spec.json cannot be understood.
    """
    uri = storage.join(folder, SPEC_FILE)
    try:
        about = json.loads(storage.read_bytes(uri))
        return StagedModel(
            folder,
            EmbedderSpec.from_dict(about["spec"]),
            about["model_sha256"],
            about["weights"],
            about["dimensions"],
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ImagebeamError(
            f"{uri} cannot be understood ({error!r}). Delete the folder; the same command stages the model again."
        ) from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a local file, 64 hex digits."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def check_sha256(path: Path, expected: str, uri: str) -> None:
    """Refuse a file that changed since its digest was taken.

    Raises:
        ImagebeamError: naming both digests.
    """
    actual = file_sha256(path)
    if actual != expected:
        raise ImagebeamError(
            f"{uri} is not the file that was staged: sha256 {actual[:16]}..., not {expected[:16]}... "
            f"Delete it and give the same command again: what is committed stays."
        )
