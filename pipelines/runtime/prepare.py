"""What a job does before its chain runs: look at the input, claim the output folder, stage the model."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pipelines.options.extraction import InputOptions, OutputOptions
from transforms import storage
from transforms.core.errors import ImagebeamError, JobError, refused
from transforms.core.formats import InputFormat, LabelFrom
from transforms.core.spec import EmbedderSpec
from transforms.inputs import inspection
from transforms.inputs.shard_index import forget_cuts
from transforms.models import staged
from transforms.models.config import EmbedderConfig
from transforms.models.staged import LoadedModel, StagedModel
from transforms.readers.column_types import holds, parse_type
from transforms.readers.options import ReadOptions
from transforms.runs import lease, manifest, part_files

if TYPE_CHECKING:
    from pipelines.runtime.engines import ModelLoader
    from transforms.embed.sampling import Drawn
    from transforms.images.decode import ImageOptions

RUN_FILE = "run.json"
_CUTS = "plan"
_GENERATION = "generation"
_PARTS_LOOKED_AT = 32
_PART_FOLDERS = (part_files.EMBEDDINGS, part_files.PREDICTIONS, part_files.FAILURES)
_OVERWRITES = "--overwrite replaces what it holds, once the new parts are committed."


@dataclass(frozen=True)
class Source:
    """The input, looked at: every pattern matches something, and the columns are there."""

    patterns: tuple[str, ...]
    input_format: InputFormat | None
    read: ReadOptions

    def describe(self) -> dict[str, Any]:
        """In JSON terms, for run.json."""
        described = {
            "input": list(self.patterns),
            "input_format": self.input_format or "auto",
            "image_column": self.read.image_column,
            "label_column": self.read.label_column,
            "keep_columns": {name: str(kind) for name, kind in self.read.keep_columns},
        }
        if self.read.label_from != LabelFrom.AUTO:  # Runs of earlier versions do not say it.
            described["label_from"] = self.read.label_from
        if self.read.uri_column != "uri":
            described["uri_column"] = self.read.uri_column
        if self.read.renamed:
            described["renamed"] = dict(self.read.renamed)
        return described

    def draw_images(self, options: ImageOptions, count: int, least_bytes: int = 0) -> Drawn:
        """Images of the input, always the same: see `sampling.draw_images`."""
        from transforms.embed.sampling import draw_images

        return draw_images(self.patterns, self.input_format, self.read, options, count, least_bytes=least_bytes)


class Described(Protocol):
    """What a run reads, and all else that decides its rows but for the model and the flags of the output."""

    def describe(self) -> dict[str, Any]:
        """In JSON terms."""


@dataclass(frozen=True)
class RunFolder:
    """The output folder, found fit for this run.

    Attributes:
        output: absolute.
        run: what makes two runs the same but for the model.
        parts: the folder below that holds the parts; also what their rows are called.
        generation: of its parts: empty at first, another after every --overwrite.
    """

    output: str
    run: dict[str, Any]
    parts: str = part_files.EMBEDDINGS
    generation: str = ""

    @property
    def model(self) -> str:
        """Where the model is staged."""
        return storage.join(self.output, "model")

    @property
    def cuts(self) -> str:
        """Where the cuts of large shards are remembered."""
        return storage.join(self.output, _CUTS)

    def count_committed(self) -> int:
        """Units whose part is there.

        Raises:
            OSError: if the folder cannot be listed.
        """
        return sum(1 for _ in part_files.list_parts(storage.join(self.output, self.parts)))

    def how_to_go_on(self, changed: str = "") -> str:
        """What to tell the user when the run breaks off, where the command is to be `changed` with those words."""
        try:
            committed = f"{self.count_committed():,} units are committed"
        except OSError:  # What broke the run may break this too.
            committed = "What is committed stays"
        flags = ", without --overwrite," if self.generation else ""
        return f"{committed} in {self.output}; the same command{changed}{flags} goes on from there."


def open_input(options: InputOptions, label_lists: str | None = inspection.LABEL_LISTS) -> Source:
    """Look at the input before anything runs.

    Args:
        options: which input.
        label_lists: see `inspection.inspect_input`.

    Raises:
        ImagebeamError: for a pattern without matches, or a column the first shard does not have.
    """
    patterns = tuple(storage.absolute(pattern) for pattern in options.input)
    read = inspection.inspect_input(patterns, options.input_format, options.read_options(), label_lists)
    return Source(patterns, options.input_format, read)


@contextlib.contextmanager
def claim_output(options: OutputOptions, source: Described, parts: str = part_files.EMBEDDINGS) -> Iterator[RunFolder]:
    """Hold the output for this run: it is empty, or holds an earlier attempt at this very run, or may be overwritten.

    Nothing that was committed is removed: with --overwrite a new generation of parts begins, which takes the place of
    the old one as it is committed.

    The checks are those of `refuse_output`, which comes first: a folder that is refused is not written to. They are
    made again once the folder is held, since another launcher may have been at work in between.

    Args:
        options: which folder, and how rows are stored.
        source: what is read.
        parts: see `RunFolder`.

    Raises:
        ImagebeamError: naming what differs from the run the folder holds, or a file in it that no run wrote, or who
            else is working on it, or why the folder cannot be written.
        JobError: if the folder cannot be written, and not for what the user gave.
    """
    with contextlib.ExitStack() as stack:
        with _usable(options):
            stack.enter_context(lease.hold(storage.absolute(options.output)))
        yield prepare_output(options, source, parts)


def prepare_output(options: OutputOptions, source: Described, parts: str = part_files.EMBEDDINGS) -> RunFolder:
    """What `claim_output` does without holding the output; for jobs that no launcher waits for.

    Raises:
        ImagebeamError: as `claim_output`.
    """
    with _usable(options):
        folder = check_output(options, source, parts)
        _write_run(folder)
        if options.overwrite:
            forget_cuts(folder.cuts)
        storage.remove_leftovers(folder.output)
        for name in (parts, part_files.FAILURES, "model", _CUTS):
            storage.remove_leftovers(storage.join(folder.output, name))
    return folder


def refuse_output(options: OutputOptions, source: Described, parts: str = part_files.EMBEDDINGS) -> None:
    """The checks of `claim_output` that write nothing, for before the model is loaded.

    Raises:
        ImagebeamError: as `claim_output`.
    """
    with _usable(options):
        check_output(options, source, parts)


@contextlib.contextmanager
def _usable(options: OutputOptions) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"The output cannot be used: {error}. Received: --output {options.output!r}."
        raise refused(message, error) from error


def _write_run(folder: RunFolder) -> None:
    content = {**folder.run, **({_GENERATION: folder.generation} if folder.generation else {})}
    uri = storage.join(folder.output, RUN_FILE)
    with contextlib.suppress(ImagebeamError):  # One that cannot be understood is written anew.
        if _read_json(uri) == content:
            return
    storage.publish(uri, json.dumps(content, indent=2).encode())


def check_output(options: OutputOptions, source: Described, parts: str = part_files.EMBEDDINGS) -> RunFolder:
    """The checks of `claim_output`, which write nothing.

    Raises:
        ImagebeamError: as `claim_output`.
        OSError: if the folder cannot be read.
    """
    output = storage.absolute(options.output)
    run = {
        **source.describe(),
        "rows_per_unit": options.rows_per_unit,
        "embedding_type": options.embedding_type,
        "embedding_dtype": options.embedding_dtype,
    }
    folder = storage.join(output, parts)
    if foreign := next(part_files.list_foreign(folder), None):
        raise ImagebeamError(
            f"{foreign} is no part of a run, and whoever reads the folder would read it too. Move it away, or choose "
            f"another --output."
        )
    if options.overwrite:
        return RunFolder(output, run, parts, secrets.token_hex(8))
    has_parts = next(part_files.list_parts(folder), None) is not None
    before = _read_run(output)
    if before is None and has_parts:
        raise ImagebeamError(f"{folder} holds parts, but no {RUN_FILE} says of which run. Choose another --output.")
    generation = (before or {}).pop(_GENERATION, "")
    differences = [
        f"{name}: {before.get(name)} != {run.get(name)}"
        for name in {**(before or {}), **run}
        if before and before.get(name) != run.get(name) and not _is_widened(name, before, run)
    ]
    # Nothing was committed by an attempt without parts: it binds nobody.
    committed = any(True for name in _PART_FOLDERS for _ in part_files.list_parts(storage.join(output, name)))
    if differences and committed:
        raise ImagebeamError(
            f"{output} holds another run ({'; '.join(differences)}). Choose another --output. ({_OVERWRITES})"
        )
    return RunFolder(output, run, parts, generation)


def _is_widened(name: str, before: dict[str, Any], run: dict[str, Any]) -> bool:
    """Whether a run differs by wider types of its kept columns alone: its parts are written again then, as they are."""
    kept, wanted = before.get(name), run.get(name)
    if name != "keep_columns" or not isinstance(kept, dict) or not isinstance(wanted, dict):
        return False
    if [*kept] != [*wanted]:
        return False
    pairs = [
        (parse_type(kept[column]), parse_type(wanted[column])) for column in kept if kept[column] != wanted[column]
    ]
    return all(narrow is not None and wide is not None and holds(wide, narrow) for narrow, wide in pairs)


def _read_run(output: str) -> dict[str, Any] | None:
    """What run.json says; where it is missing or damaged, what the run's manifest says of it.

    Raises:
        ImagebeamError: if run.json cannot be understood, and there is no manifest.
    """
    try:
        run = _read_json(storage.join(output, RUN_FILE))
    except ImagebeamError:
        if (run := _run_of_manifest(output)) is None:
            raise
    return run if run is not None else _run_of_manifest(output)


def _run_of_manifest(output: str) -> dict[str, Any] | None:
    for name in (manifest.MANIFEST_FILE, manifest.PREVIOUS_FILE):
        with contextlib.suppress(ImagebeamError):
            about = _read_json(storage.join(output, name)) or {}
            if isinstance(about.get("run"), dict):
                return {**about["run"], **({_GENERATION: about[_GENERATION]} if about.get(_GENERATION) else {})}
    return None


def read_run(folder: RunFolder) -> RunFolder:
    """The folder with what its run.json says of the run; of a job that describes itself only where it runs."""
    run = _read_json(storage.join(folder.output, RUN_FILE)) or dict(folder.run)
    generation = run.pop(_GENERATION, folder.generation)
    return dataclasses.replace(folder, run=run, generation=generation)


def _read_json(uri: str) -> dict[str, Any] | None:
    try:
        content = json.loads(storage.read_bytes(uri))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ImagebeamError(f"{uri} cannot be understood ({error}). Choose another --output.") from error
    return content if isinstance(content, dict) else {}


def open_output_apart(options: OutputOptions, patterns: Iterable[str]) -> None:
    """Refuse an output that the input's patterns reach into: the next run would read what this one writes.

    Raises:
        ImagebeamError: naming both flags.
    """
    output = storage.absolute(options.output)
    written = [
        storage.join(output, name)
        for name in (
            *(f"{folder}/part-0123456789abcdef.parquet" for folder in _PART_FOLDERS),
            *(RUN_FILE, manifest.MANIFEST_FILE, "report.html", f"{_CUTS}/0123456789abcdef.json"),
        )
    ]
    for pattern in patterns:
        if any(storage.may_match(pattern, uri) for uri in written):
            raise ImagebeamError(
                f"The output lies where the input is read, so that a rerun would read it too. Received: --input "
                f"{pattern!r}, --output {options.output!r}. Choose an --output beside the input, or name the input's "
                f"files with a glob."
            )


def stage_model(
    loader: ModelLoader, folder: RunFolder, loaded: LoadedModel | None = None, *, overwrite: bool = False
) -> StagedModel:
    """The staged model this run wants: the one that is there if it is the same, else resolved, built and staged.

    Args:
        loader: of the model.
        folder: of the run.
        loaded: what the loader gave, where it was asked before.
        overwrite: whether the parts that are there will be replaced, whatever their spec.

    Raises:
        ImagebeamError: if the folder was filled by another spec, naming the fields that differ, or the model cannot
            be built.
        JobError: if it cannot be stored.
    """
    held = None if overwrite else _held_spec(folder)

    def check(held: EmbedderSpec, wanted: EmbedderSpec) -> None:
        check_spec(folder, held, wanted)

    def load(config: EmbedderConfig) -> LoadedModel:
        return loaded or loader.load(config, settled=held is not None)

    try:
        found = None if overwrite else _read_sound(folder.model)
        config = loader.config(held or (found.spec if found is not None else None))
        if found is not None and held is not None:
            return loader.settle(staged.stage_model(config, folder.model, held=held, load=load, check=check))
        source = staged.weights_source(config)
        if found is not None and (found.weights, found.spec) == (
            source,
            config.spec(found.spec.weights_sha256, found.spec.graph_sha256),
        ):
            return loader.settle(found)
        model = load(config if held is not None else loader.config(None))
        if held is not None:  # Someone deleted or damaged model/ beside parts.
            check_spec(folder, held, model.embedder.spec)
        return staged.stage(model, folder.model, source)
    except OSError as error:
        raise JobError(f"The model cannot be staged: {error}. {folder.how_to_go_on()}") from error


def _held_spec(folder: RunFolder) -> EmbedderSpec | None:
    """The spec of a part of the run's generation; those of an earlier one are to be replaced, whatever theirs.

    After an --overwrite that was stopped early, most parts are such. So only the first are looked at: the workers
    compare each part with the spec.
    """
    parts = part_files.list_parts(storage.join(folder.output, folder.parts))
    for _, uri in itertools.islice(parts, _PARTS_LOOKED_AT):
        commit = part_files.read_commit(uri)
        if commit is not None and commit.generation == folder.generation:
            return part_files.read_spec(uri)
    return None


def _read_sound(folder: str) -> StagedModel | None:
    """The staged model; None where a file is missing or its spec.json cannot be understood: it is staged again."""
    try:
        found = staged.read_staged(folder)
    except ImagebeamError:
        return None
    if found is None:
        return None
    return found if all(storage.exists(storage.join(folder, name)) for name in found.files) else None


def check_spec(folder: RunFolder, held: EmbedderSpec, wanted: EmbedderSpec) -> None:
    """Refuse to mix embeddings of two specs in one folder.

    Raises:
        ImagebeamError: naming the fields that differ.
    """
    if differences := held.differences(wanted):
        raise ImagebeamError(
            f"{folder.output} holds embeddings of another spec ({'; '.join(differences)}). Choose another --output. "
            f"({_OVERWRITES})"
        )
