"""The staged model: the verified files that workers load."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transforms import storage
from transforms.core.digests import file_sha256
from transforms.core.engines import Engine, has_nvidia_gpu
from transforms.core.errors import ImagebeamError, last_line
from transforms.core.field_types import typed
from transforms.core.spec import EmbedderSpec, Precision
from transforms.models.config import EmbedderConfig
from transforms.models.embedder import Embedder, resolve
from transforms.models.engines import openvino_model
from transforms.models.engines.openvino_model import OpenVinoEmbedder
from transforms.models.keras_import import pinned_keras
from transforms.models.weights.load import is_file

if TYPE_CHECKING:
    import openvino

SPEC_FILE = "spec.json"
MODEL_LINK = "embedder.keras"

_NAMED_BY_CONTENT = re.compile(r"-[0-9a-f]{12}\.(keras|xml|bin)$")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StagedEngine:
    """What workers run a staged model with.

    Attributes:
        name: Keras, or OpenVINO.
        asked: what the user asked for; where it was "auto", workers may choose otherwise.
        reason: why it is this one, in words.
        files: names of its own files in the folder -> SHA-256; empty for Keras.
        processor: what the processor computes natively that it was tried on; empty where there was no trial.
        trial: what the trial gave, for the manifest.
    """

    name: Engine = Engine.KERAS
    asked: Engine = Engine.KERAS
    reason: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    processor: tuple[str, ...] = ()
    trial: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """In JSON terms."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> StagedEngine:
        """The inverse of `to_dict`; Keras for None, as in specs that were written before there was another."""
        if values is None:
            return cls()
        return cls(
            Engine(values["name"]),
            Engine(values["asked"]),
            values["reason"],
            dict(values["files"]),
            tuple(values["processor"]),
            dict(values["trial"]),
        )


@dataclass(frozen=True)
class StagedModel:
    """A model folder as described by its spec.json.

    Attributes:
        folder: OUT/model.
        spec: of the embedder.
        file: name of the Keras file in the folder, which holds a part of its digest.
        sha256: of that file.
        weights: where the weights came from: {"source": as --weights said, "file_sha256": of a file, else null}.
        dimensions: embedding column name -> vector length.
        engine: what runs it.
    """

    folder: str
    spec: EmbedderSpec
    file: str
    sha256: str
    weights: dict[str, str | None]
    dimensions: dict[str, int]
    engine: StagedEngine = field(default_factory=StagedEngine)

    @property
    def files(self) -> list[str]:
        """Names of its files in the folder."""
        return [self.file, *self.engine.files]

    @property
    def model_uri(self) -> str:
        """The Keras model file: image in, vector out."""
        return storage.join(self.folder, self.file)

    def load(self) -> Embedder | OpenVinoEmbedder:
        """Load the embedder, on the engine that it was staged for, its bytes checked first.

        A model staged for OpenVINO is run by Keras where a GPU is, or where OpenVINO cannot be imported or cannot
        compile it, at the same precision; an int8 model has nothing that could take OpenVINO's place.

        Raises:
            ImagebeamError: if a file is missing or is not the one that was staged, or OpenVINO is missing for an int8
                model or cannot run it.
        """
        if self.engine.name != Engine.OPENVINO:
            return self.load_keras()
        is_int8 = self.spec.precision == Precision.INT8
        if (why := openvino_model.why_missing()) is not None:
            if is_int8:
                raise ImagebeamError(
                    f"An int8 model runs on OpenVINO, which is missing here: {why}. {openvino_model.REMEDY}."
                )
            _log.warning("OpenVINO is missing here, so Keras runs the model: %s. %s", why, openvino_model.REMEDY)
            return self.load_keras()
        if self.engine.asked == Engine.AUTO and not is_int8 and has_nvidia_gpu():
            _log.warning("This machine has a GPU: Keras runs the model, which was staged for OpenVINO")
            return self.load_keras()
        if lacking := sorted(set(self.engine.processor) - openvino_model.cpu_capabilities()):
            _log.warning(
                "This processor lacks %s, which the one that tried the engines has: it may be much slower here, and "
                "int8 vectors may differ a little. Use equal machines, or pass --engine keras",
                ", ".join(lacking),
            )
        try:
            return self.load_converted()[0]
        except RuntimeError as error:  # OpenVINO's: another release, or a processor that the model was not tried on
            why = f"OpenVINO {openvino_model.import_openvino().__version__} cannot run it here: {last_line(error)}"
        if is_int8:
            raise ImagebeamError(f"An int8 model runs on OpenVINO. {why}. Use a machine like the one that staged it.")
        _log.warning("Keras runs the model, which was staged for OpenVINO: %s", why)
        return self.load_keras()

    def load_converted(self) -> tuple[OpenVinoEmbedder, openvino.Model]:
        """Load what OpenVINO runs, compiled and as it was staged, its bytes checked first.

        Raises:
            ImagebeamError: as `load`.
        """
        with contextlib.ExitStack() as files, _told_missing():
            paths = {}
            for name, sha256 in self.engine.files.items():
                uri = storage.join(self.folder, name)
                path = files.enter_context(storage.local_file(uri))
                check_sha256(path, sha256, uri)
                paths[Path(name).suffix] = path
            graph, numbers = (paths[Path(name).suffix] for name in openvino_model.FILES)
            model = openvino_model.import_openvino().Core().read_model(graph, numbers)
            return OpenVinoEmbedder(self.spec, self.dimensions, model), model

    def load_keras(self) -> Embedder:
        """Load the Keras model, whatever it was staged for; of an int8 model, the float32 one that it approximates.

        Raises:
            ImagebeamError: if the file is missing or is not the one that was staged.
        """
        with _told_missing(), storage.local_file(self.model_uri) as path, pinned_keras():
            import keras

            check_sha256(path, self.sha256, self.model_uri)
            return Embedder(self.spec, keras.saving.load_model(path, compile=False, safe_mode=True))


@dataclass(frozen=True)
class LoadedModel:
    """A model on its way to a folder.

    Attributes:
        embedder: on Keras.
        engine: what is to run it; its files are not known yet.
        converted: the model, or its int8 model, as OpenVINO runs it; None for Keras.
    """

    embedder: Embedder
    engine: StagedEngine = field(default_factory=StagedEngine)
    converted: openvino.Model | None = None


@contextlib.contextmanager
def _told_missing() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ImagebeamError(
            f"The staged model is missing: {error.filename or error}. The same command stages it again."
        ) from error


def stage_model(
    config: EmbedderConfig,
    folder: str,
    *,
    held: EmbedderSpec | None = None,
    load: Callable[[EmbedderConfig], LoadedModel] | None = None,
    check: Callable[[EmbedderSpec, EmbedderSpec], None] | None = None,
) -> StagedModel:
    """Put a model where workers can load it from: resolve the weights, build the embedder, save it into a folder.

    A folder that holds the same model already is taken as it is; nothing is loaded then.

    Args:
        config: which model.
        folder: local, gs:// or another file system that Beam knows; workers must see it.
        held: the spec of embeddings made earlier, which the model must have; None to go by the folder alone.
        load: gives the model; None to resolve it, for Keras.
        check: raises ImagebeamError where the held spec is not the wanted one; None for a message that names the
            folder.

    Raises:
        ImagebeamError: if the folder holds a model of another spec, or the model cannot be built, such as an int8 one
            that is not there yet; or for what is no config or folder.
        OSError: if it cannot be stored.
    """
    typed("config", config, EmbedderConfig)
    folder = storage.absolute(typed("folder", folder, str))
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
    loaded = (load or _resolve)(config)
    if held is not None:
        check(held, loaded.embedder.spec)
    return staged or stage(loaded, folder, source)


def _resolve(config: EmbedderConfig) -> LoadedModel:
    return LoadedModel(resolve(config))


def _check_loadable(path: Path) -> None:
    """Check that the saved model loads, before every worker fails to."""
    import keras

    try:
        keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # whatever a layer's constructor raises
        raise ImagebeamError(
            f"Keras saves this part of the model, and cannot load it again: {last_line(error)}. Leave --layer out to "
            "take the whole model."
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


def stage(loaded: LoadedModel, folder: str, weights: dict[str, str | None]) -> StagedModel:
    """Save a model into `folder`: its files first, spec.json, which names them and their digests, last.

    The names hold the digests, so that another process that stages another model here at the same time replaces none
    of its files. The link "embedder.keras", on a local disk, is for people.

    Args:
        loaded: to save.
        folder: to save it into.
        weights: where its weights came from.
    """
    embedder = loaded.embedder
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / MODEL_LINK
        try:
            embedder.model.save(path)
        except OSError as error:  # Keras names no file, and the output's disk would be blamed.
            reason = f"{error.strerror or error}, in the temporary folder (TMPDIR)"
            raise OSError(error.errno or errno.EIO, reason, temporary) from error
        if embedder.spec.preprocessing is not None:
            _check_loadable(path)
        name, sha256 = _publish(path, folder)
    staged = StagedModel(folder, embedder.spec, name, sha256, weights, embedder.dimensions)
    return stage_engine(staged, loaded.engine, loaded.converted)


def stage_engine(staged: StagedModel, engine: StagedEngine, converted: openvino.Model | None = None) -> StagedModel:
    """Write spec.json for a model whose Keras file is there, and before it the files of its engine.

    Args:
        staged: what is there.
        engine: takes the place of what was there.
        converted: see `LoadedModel`.
    """
    files: dict[str, str] = {}
    if converted is not None:
        with tempfile.TemporaryDirectory() as temporary:
            openvino_model.save(converted, Path(temporary))
            files = dict(_publish(path, staged.folder) for path in sorted(Path(temporary).iterdir()))
    staged = dataclasses.replace(staged, engine=dataclasses.replace(engine, files=files))
    about: dict[str, Any] = {
        "fingerprint": staged.spec.fingerprint,
        "spec": staged.spec.to_dict(),
        "weights": staged.weights,
        "dimensions": staged.dimensions,
        "model_file": staged.file,
        "model_sha256": staged.sha256,
        "engine": staged.engine.to_dict(),
    }
    storage.publish(storage.join(staged.folder, SPEC_FILE), json.dumps(about, indent=2).encode())
    storage.point_to(staged.model_uri, MODEL_LINK)
    return staged


def name_by_content(name: str, sha256: str) -> str:
    """The name of a model's file in a folder: "embedder-0123456789ab.keras"."""
    path = Path(name)
    return f"{path.stem}-{sha256[:12]}{path.suffix}"


def delete_superseded(folder: str, used: Collection[str], older_than: float) -> None:
    """Delete files of models in `folder` that are that much older than the newest there.

    Args:
        folder: OUT/model.
        used: names of files to keep.
        older_than: seconds.
    """
    models = [info.uri for info in storage.list_folder(folder) if _NAMED_BY_CONTENT.search(info.uri)]
    superseded = [uri for uri in models if storage.basename(uri) not in used]
    if not superseded:
        return
    newest = max(map(storage.modified, models))
    for uri in superseded:
        if newest - storage.modified(uri) > older_than:
            storage.delete(uri)


def _publish(path: Path, folder: str) -> tuple[str, str]:
    """Put a file into `folder`: its name there, and its SHA-256."""
    sha256 = file_sha256(path)
    name = name_by_content(path.name, sha256)
    storage.publish_file(storage.join(folder, name), path)
    return name, sha256


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
            about["model_file"],
            about["model_sha256"],
            about["weights"],
            about["dimensions"],
            StagedEngine.from_dict(about.get("engine")),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ImagebeamError(
            f"{uri} cannot be understood ({error!r}). Delete the folder; the same command stages the model again."
        ) from error


def read_sound(folder: str) -> StagedModel | None:
    """`read_staged`; None too where a file is missing or spec.json cannot be understood: it is staged again then."""
    try:
        found = read_staged(folder)
    except ImagebeamError:
        return None
    if found is None:
        return None
    return found if all(storage.exists(storage.join(folder, name)) for name in found.files) else None


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
