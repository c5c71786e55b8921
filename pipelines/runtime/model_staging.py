"""Stage the model of a run, or reuse the one staged in its folder."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from transforms import storage
from transforms.core.errors import ImagebeamError, JobError
from transforms.core.spec import EmbedderSpec
from transforms.models import staged
from transforms.models.config import EmbedderConfig
from transforms.models.staged import LoadedModel, StagedModel
from transforms.parts import part_files

if TYPE_CHECKING:
    from pipelines.runtime.model_loader import ModelLoader

from pipelines.runtime.run_folder import OVERWRITES, RunFolder

_PARTS_LOOKED_AT = 32


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
        found = None if overwrite else staged.read_sound(folder.model)
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
        try:
            commit = part_files.read_commit(uri)
        except part_files.MisnamedPartError:
            continue
        if commit is not None and commit.generation == folder.generation:
            return part_files.read_spec(uri)
    return None


def check_spec(folder: RunFolder, held: EmbedderSpec, wanted: EmbedderSpec) -> None:
    """Refuse to mix embeddings of two specs in one folder.

    Raises:
        ImagebeamError: naming the fields that differ.
    """
    if differences := held.differences(wanted):
        raise ImagebeamError(
            f"{folder.output} holds embeddings of another spec ({'; '.join(differences)}). Choose another --output. "
            f"({OVERWRITES})"
        )
