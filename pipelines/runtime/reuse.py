"""Check the runs named by `--reuse` and index their image digests."""

from __future__ import annotations

import itertools

import pyarrow as pa

from pipelines.common.console import say
from pipelines.options.extraction import OutputOptions
from pipelines.runtime.run_folder import RunFolder, read_run
from transforms import storage
from transforms.core.errors import ImagebeamError, refused
from transforms.core.spec import EmbedderSpec
from transforms.core.text import counted
from transforms.images.decode import ImageOptions
from transforms.parts import part_files
from transforms.parts.part_files import DamagedPartError
from transforms.reuse.digest_index import ReusedRun, write_index
from transforms.reuse.known_rows import Conditions
from transforms.runs.copies import refuse_copy_as_run

_PARTS_LOOKED_AT = 32


def open_reused(
    options: OutputOptions, folder: RunFolder, spec: EmbedderSpec, images: ImageOptions
) -> tuple[ReusedRun, ...]:
    """The runs that --reuse names, with an index of their rows in the run's folder.

    Args:
        options: which runs, and how vectors are stored.
        folder: of this run.
        spec: of this run.
        images: how this run reads images.

    Raises:
        ImagebeamError: for a run of another spec or precision, or that read images under looser rules, naming what
            differs; or a folder that holds no embeddings, or cannot be read.
    """
    conditions = Conditions.of(images)
    try:
        runs = tuple(_open(name, folder, options, spec, conditions) for name in dict.fromkeys(options.reuse))
        rows = write_index(folder.output, runs) if runs else 0
    except DamagedPartError as error:
        run = storage.parent(storage.parent(error.uri))
        raise ImagebeamError(
            f"A run to reuse holds a damaged part: {error.uri} ({error.reason}). Received: --reuse "
            f"{' '.join(options.reuse)}. `imagebeam verify {run}` names all that is damaged there, and with --discard "
            "removes it; what is left is reused then. Or leave the run out."
        ) from error
    except OSError as error:
        message = f"The rows to reuse cannot be read: {error}. Received: --reuse {' '.join(options.reuse)}."
        raise refused(message, error) from error
    if runs:
        say(f"Images of {counted(rows, 'row')} in {counted(len(runs), 'run')} are not embedded again")
    return runs


def _open(
    name: str, folder: RunFolder, options: OutputOptions, spec: EmbedderSpec, conditions: Conditions
) -> ReusedRun:
    output = storage.absolute(name)
    generation = folder.generation if output == folder.output else read_run(RunFolder(output, {})).generation
    parts = part_files.list_parts(storage.join(output, part_files.EMBEDDINGS))
    found = 0
    for _, uri in itertools.islice(parts, _PARTS_LOOKED_AT):
        commit, schema = part_files.read_part_footer(uri) or (None, None)
        if commit is None or commit.generation != generation:
            continue
        found += 1
        if differences := part_files.read_spec(uri).differences(spec):
            raise ImagebeamError(f"--reuse {name!r} holds embeddings of another spec ({'; '.join(differences)}).")
        if looser := conditions.describe(commit.conditions):
            raise ImagebeamError(f"--reuse {name!r} holds images read under other rules ({looser}).")
        if (stored := _dtype(schema)) != options.embedding_dtype:
            raise ImagebeamError(
                f"--reuse {name!r} holds vectors of another type (embedding_dtype: {stored} != "
                f"{options.embedding_dtype}). Choose the same --embedding_dtype."
            )
    if not found and output != folder.output:
        refuse_copy_as_run(output)
        raise ImagebeamError(f"--reuse {name!r} holds no embeddings. Name the output of an extract run.")
    return ReusedRun(output, generation)


def _dtype(schema: pa.Schema) -> str:
    kinds = (field.type for field in schema if field.name.startswith("embedding"))
    return "float16" if any(pa.types.is_float16(kind.value_type) for kind in kinds) else "float32"
