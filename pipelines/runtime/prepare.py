"""What a job does before its chain runs: look at the input, claim the output folder, stage the model."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Protocol

from pipelines.common.console import say
from pipelines.options.extraction import InputOptions, OutputOptions
from transforms import storage
from transforms.core.errors import ImagebeamError, JobError
from transforms.core.formats import InputFormat, LabelFrom
from transforms.core.spec import EmbedderSpec
from transforms.inputs import plan
from transforms.inputs.shard_index import forget_cuts
from transforms.inputs.types import ReadOptions
from transforms.models import staged
from transforms.models.config import EmbedderConfig
from transforms.models.embedder import Embedder, resolve
from transforms.models.staged import MODEL_FILE, SPEC_FILE, StagedModel
from transforms.runs import manifest, part_files, reports
from transforms.training.output import ResultFile

RUN_FILE = "run.json"
_CUTS = "plan"


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
    """

    output: str
    run: dict[str, Any]
    parts: str = part_files.EMBEDDINGS

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

    def how_to_go_on(self) -> str:
        """What to tell the user when the run breaks off."""
        try:
            committed = f"{self.count_committed():,} units are committed"
        except OSError:  # What broke the run may break this too.
            committed = "What is committed stays"
        return f"{committed} in {self.output}; the same command goes on from there."


def open_input(options: InputOptions, label_lists: str | None = plan.LABEL_LISTS) -> Source:
    """Look at the input before anything runs.

    Args:
        options: which input.
        label_lists: see `plan.inspect_input`.

    Raises:
        ImagebeamError: for a pattern without matches, or a column the first shard does not have.
    """
    patterns = tuple(storage.absolute(pattern) for pattern in options.input)
    read = plan.inspect_input(patterns, options.input_format, options.read_options(), label_lists)
    return Source(patterns, options.input_format, read)


def prepare_output(options: OutputOptions, source: Described, parts: str = part_files.EMBEDDINGS) -> RunFolder:
    """Check that the output is empty, or holds an earlier attempt at this very run; empty it if asked to.

    Args:
        options: which folder, and how rows are stored.
        source: what is read.
        parts: see `RunFolder`.

    Raises:
        ImagebeamError: naming what differs from the run the folder holds, or a file in it that no run wrote, or why
            the folder cannot be written.
    """
    try:
        folder = check_output(options, source, parts)
        if options.overwrite:
            _empty(folder.output)
        storage.publish(storage.join(folder.output, RUN_FILE), json.dumps(folder.run, indent=2).encode())
        for name in (parts, part_files.FAILURES, "model", _CUTS):
            storage.remove_leftovers(storage.join(folder.output, name))
    except OSError as error:
        raise ImagebeamError(f"The output cannot be used: {error}. Received: --output {options.output!r}.") from error
    return folder


def refuse_output(options: OutputOptions, source: Described, parts: str = part_files.EMBEDDINGS) -> None:
    """The checks of `prepare_output` alone, for before the model is loaded.

    Raises:
        ImagebeamError: as `prepare_output`.
    """
    try:
        check_output(options, source, parts)
    except OSError as error:
        raise ImagebeamError(f"The output cannot be used: {error}. Received: --output {options.output!r}.") from error


def check_output(options: OutputOptions, source: Described, parts: str = part_files.EMBEDDINGS) -> RunFolder:
    """The checks of `prepare_output`, which write nothing.

    Raises:
        ImagebeamError: as `prepare_output`.
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
        return RunFolder(output, run, parts)
    if (before := _read_json(storage.join(output, RUN_FILE))) is not None:
        differences = [
            f"{name}: {before.get(name)} != {run.get(name)}"
            for name in {**before, **run}
            if before.get(name) != run.get(name)
        ]
        if differences:
            raise ImagebeamError(
                f"{output} holds another run ({'; '.join(differences)}). Choose another --output, or --overwrite."
            )
    elif next(part_files.list_parts(folder), None):
        raise ImagebeamError(
            f"{folder} holds parts, but no {RUN_FILE} says of which run. Choose another --output, or --overwrite."
        )
    return RunFolder(output, run, parts)


def read_run(folder: RunFolder) -> RunFolder:
    """The folder with what its run.json says of the run; of a job that describes itself only where it runs."""
    return dataclasses.replace(folder, run=_read_json(storage.join(folder.output, RUN_FILE)) or folder.run)


def _read_json(uri: str) -> dict[str, Any] | None:
    try:
        content = json.loads(storage.read_bytes(uri))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ImagebeamError(f"{uri} cannot be understood ({error}). Run with --overwrite to start anew.") from error
    return content if isinstance(content, dict) else {}


def _empty(output: str) -> None:
    """Delete what a run wrote, and nothing else; run.json last, so that a kill leaves a known run."""
    storage.delete(storage.join(output, manifest.MANIFEST_FILE))
    for folder in (part_files.EMBEDDINGS, part_files.PREDICTIONS, part_files.FAILURES):
        for _, uri in list(part_files.list_parts(storage.join(output, folder))):
            storage.delete(uri)
    for name in (SPEC_FILE, MODEL_FILE, ResultFile.CLASSIFIER):
        storage.delete(storage.join(output, "model", name))
    forget_cuts(storage.join(output, _CUTS))
    reports.delete_reports(output)
    storage.delete(storage.join(output, RUN_FILE))


def load_model(config: EmbedderConfig) -> Embedder:
    """Resolve the weights and build the embedder.

    Raises:
        ImagebeamError: if it cannot be built.
    """
    say(f"Loading {config.description}")
    return resolve(config)


def stage_model(config: EmbedderConfig, folder: RunFolder, loaded: Embedder | None = None) -> StagedModel:
    """The staged model this run wants: the one that is there if it is the same, else resolved, built and staged.

    Args:
        config: which model.
        folder: of the run.
        loaded: what `load_model` gave, where it was called before.

    Raises:
        ImagebeamError: if the folder was filled by another spec, naming the fields that differ, or the model cannot
            be built.
        JobError: if it cannot be stored.
    """
    held = None
    if staged.read_staged(folder.model) is None:  # Someone may have deleted model/ beside parts.
        part = next(part_files.list_parts(storage.join(folder.output, folder.parts)), None)
        held = None if part is None else part_files.read_spec(part[1])

    def check(held: EmbedderSpec, wanted: EmbedderSpec) -> None:
        check_spec(folder, held, wanted)

    def load(config: EmbedderConfig) -> Embedder:
        return loaded or load_model(config)

    try:
        return staged.stage_model(config, folder.model, held=held, load=load, check=check)
    except OSError as error:
        raise JobError(f"The model cannot be staged: {error}. {folder.how_to_go_on()}") from error


def check_spec(folder: RunFolder, held: EmbedderSpec, wanted: EmbedderSpec) -> None:
    """Refuse to mix embeddings of two specs in one folder.

    Raises:
        ImagebeamError: naming the fields that differ.
    """
    if differences := held.differences(wanted):
        raise ImagebeamError(
            f"{folder.output} holds embeddings of another spec ({'; '.join(differences)}). Choose another --output, or "
            f"--overwrite."
        )
