"""The output folder of a run: its identity, its lease, and the checks before it is used."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from pipelines.options.extraction import InputOptions, OutputOptions
from transforms import storage
from transforms.core.errors import ImagebeamError, using
from transforms.core.formats import LabelFrom
from transforms.core.text import counted, differences, list_difference
from transforms.inputs.discover import cannot_be_listed
from transforms.inputs.shard_index import forget_cuts
from transforms.parts import part_files
from transforms.readers.column_types import holds, parse_type
from transforms.runs import lease, manifest
from transforms.runs.copies import refuse_copy_as_output
from transforms.runs.reports import new_reports_folder

_CUTS = "plan"
_GENERATION = "generation"
_UNSAID = {"label_from": LabelFrom.AUTO, "uri_column": "uri"}
"""What a run reads where its run.json does not say it."""
_PART_FOLDERS = (part_files.EMBEDDINGS, part_files.PREDICTIONS, part_files.FAILURES)
_WRITTEN = (
    *(f"{folder}/part-0123456789abcdef.parquet" for folder in _PART_FOLDERS),
    *(manifest.RUN_FILE, manifest.MANIFEST_FILE, "report.html", f"{_CUTS}/0123456789abcdef.json"),
)
"""Files of a run, one of each kind."""
OVERWRITES = "--overwrite replaces what it holds, once the new parts are committed."


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
            committed = f"{counted(self.count_committed(), 'unit is', 'units are')} committed"
        except OSError:  # What broke the run may break this too.
            committed = "What is committed stays"
        flags = ", without --overwrite," if self.generation else ""
        return f"{committed} in {self.output}; the same command{changed}{flags} goes on from there."


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
        ImagebeamError: naming what differs from the run the folder holds, or a file in it that no run wrote, or that
            it holds a classifier or a copy of `compact`, or who else is working on it, or why the folder cannot be
            written.
        JobError: if the folder cannot be written, and not for what the user gave.
    """
    with hold_output(options):
        yield prepare_output(options, source, parts)


@contextlib.contextmanager
def hold_output(options: OutputOptions) -> Iterator[None]:
    """Hold the output, and remove the reports of launchers that were gone when it was taken.

    Raises:
        ImagebeamError: naming who else is working on it, or why the folder cannot be written.
        JobError: if the folder cannot be written, and not for what the user gave.
    """
    output = storage.absolute(options.output)
    with contextlib.ExitStack() as stack:
        with _usable(options):
            stack.enter_context(lease.hold(output))
            for token in lease.tokens_gone(output):
                storage.delete_folder(new_reports_folder(output, token))
        yield


def prepare_output(options: OutputOptions, source: Described, parts: str = part_files.EMBEDDINGS) -> RunFolder:
    """What `claim_output` does once the output is held.

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


def _usable(options: OutputOptions) -> contextlib.AbstractContextManager[None]:
    return using("The output", f"--output {options.output!r}")


def _write_run(folder: RunFolder) -> None:
    content = {**folder.run, **({_GENERATION: folder.generation} if folder.generation else {})}
    uri = storage.join(folder.output, manifest.RUN_FILE)
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
    from transforms.training.output import holds_classifier

    output = storage.absolute(options.output)
    storage.check_can_be_folder(output)
    if holds_classifier(output):
        raise ImagebeamError(
            f"{output} holds a classifier of train or finetune, whose files a run would mix with its own. Choose "
            "another --output."
        )
    refuse_copy_as_output(output)
    manifest.refuse_foreign_files(output)
    run = {
        **source.describe(),
        "rows_per_unit": options.rows_per_unit,
        "embedding_type": options.embedding_type,
        "embedding_dtype": options.embedding_dtype,
    }
    folder = storage.join(output, parts)
    if foreign := next(part_files.list_foreign(folder), None):
        raise ImagebeamError(
            f"{foreign} is not a part of a run, and readers of the folder would read it too. Move it away, or choose "
            f"another --output."
        )
    if options.overwrite:
        return RunFolder(output, run, parts, secrets.token_hex(8))
    has_parts = next(part_files.list_parts(folder), None) is not None
    before = _read_run(output)
    if before is None and has_parts:
        raise ImagebeamError(
            f"{folder} holds parts, but no {manifest.RUN_FILE} says of which run. Choose another --output."
        )
    generation = (before or {}).pop(_GENERATION, "")
    different = _differences(before, run) if before else []
    # Nothing was committed by an attempt without parts: it binds nobody.
    committed = any(True for name in _PART_FOLDERS for _ in part_files.list_parts(storage.join(output, name)))
    if different and committed:
        raise ImagebeamError(
            f"{output} holds another run ({'; '.join(different)}). Choose another --output. ({OVERWRITES})"
            f"{_on_wildcards(before, run)}"
        )
    return RunFolder(output, run, parts, generation)


def _differences(before: dict[str, Any], run: dict[str, Any]) -> list[str]:
    """One line for each thing that makes two runs different."""
    lines = differences({**_UNSAID, **before}, {**_UNSAID, **run})
    if "input" in lines and all(isinstance(about.get("input"), list) for about in (before, run)):
        lines["input"] = list_difference("input", before["input"], run["input"])
    return [line for name, line in lines.items() if not _is_widened(name, before, run)]


def _on_wildcards(before: dict[str, Any] | None, run: dict[str, Any]) -> str:
    """What helps whose shell expands a wildcard to other files every day."""
    inputs = [about.get("input") for about in (before or {}, run)]
    if inputs[0] == inputs[1] or not all(isinstance(one, list) and len(one) > 1 for one in inputs):
        return ""
    return (
        " If a shell expanded a wildcard: in quotes, --input 'photos/*.jpg', it stays the same as files come and go, "
        "and --reuse takes over what this folder holds."
    )


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
        run = _read_json(storage.join(output, manifest.RUN_FILE))
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
    run = _read_json(storage.join(folder.output, manifest.RUN_FILE)) or dict(folder.run)
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


def open_output_apart(output: str, source: InputOptions, names: Iterable[str] = _WRITTEN) -> None:
    """Refuse an output that the input's patterns reach into: the next run would read what this one writes.

    Args:
        output: the folder, as given.
        source: which input.
        names: of what is written into the folder; those of a run.

    Raises:
        ImagebeamError: naming both flags; or that a pattern may not be listed, naming it.
        JobError: if it cannot be listed, and not for what the user gave.
    """
    written = [storage.join(storage.absolute(output), name) for name in names]
    for pattern in source.input:
        try:
            is_inside = storage.may_match(pattern, written, follow_links=source.follow_links)
        except OSError as error:
            raise cannot_be_listed(pattern, error) from error
        if is_inside:
            raise ImagebeamError(
                f"The output lies where the input is read, so that a rerun would read it too. Received: --input "
                f"{pattern!r}, --output {output!r}. Choose an --output beside the input, or name the input's "
                f"files with a glob."
            )
