"""`EmbedImages`: `imagebeam extract` as one transform for other pipelines."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, TypeVar, get_type_hints

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindows

from pipelines.common.fields import Options
from pipelines.options.engine import EngineOptions
from pipelines.options.extraction import InputOptions, ModelOptions, OutputOptions
from pipelines.runtime import input_source, model_staging, run_folder
from pipelines.runtime.finish import Finish, Run
from pipelines.runtime.model_loader import ModelLoader
from pipelines.runtime.reuse import open_reused
from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.core.field_types import plain, typed
from transforms.embed.embed_units import EmbedOptions, EmbedUnits
from transforms.inputs.plan_units import PlanUnits
from transforms.parts.part_files import PartOptions
from transforms.runs import manifest
from transforms.runs.reports import new_reports_folder

_GROUPS: tuple[type[Options], ...] = (InputOptions, ModelOptions, EngineOptions, OutputOptions)
_NEEDS_A_LAUNCHER = {
    "input": "the patterns are the elements of the input",
    "overwrite": "a transform cannot know whether its pipeline will run; delete the folder, or choose another output",
}

_outputs: weakref.WeakKeyDictionary[beam.Pipeline, set[str]] = weakref.WeakKeyDictionary()
"""The folders that the `EmbedImages` of a pipeline write to."""

O = TypeVar("O", bound=Options)  # noqa: E741


class EmbedImages(beam.PTransform):  # type: ignore[misc]
    """Embed the images that patterns name, into a folder: `imagebeam extract` as a transform.

        patterns | imagebeam.EmbedImages("gs://bucket/out", model="VGG16", weights="imagenet", image_size=(224, 224))

    Element in: a file, folder or pattern with wildcards, as `str`. Element out: the URI of OUT/manifest.json, once,
    when every unit is committed, the run is reconciled and the manifest is written; all windows of the patterns are
    one run, and the URI is in the global one. What the folder holds is what `imagebeam extract` writes: `imagebeam
    train`, `classify` and `ReadEmbeddings` take it. Run the pipeline again and it goes on where it was; a folder with
    embeddings of another spec, input or layout is refused.

    The weights are resolved, and the model is staged into OUT/model, where the pipeline is built; workers load it from
    there. A folder that another launcher works on is refused when the pipeline is built, and when it starts; later
    nothing keeps another launcher out. The keywords are the flags of `imagebeam extract` (`imagebeam extract --help`),
    with the same defaults: strings as on the command line, or Python values such as `image_size=(224, 224)`,
    `layer=["block4_pool"]`, `keep_columns={"camera": "string"}`. The types of kept columns must be given.

    Args:
        output: folder of the run, local, gs:// or another file system that Beam knows.
        **flags: see above.

    Raises:
        ImagebeamError: for a bad value, when constructed; for an output of another run or weights that cannot be had,
            when applied. What only the workers can see (a pattern without matches) fails the pipeline.
        JobError: fails the pipeline where the finished run does not add up, or too many records failed.
    """

    def __init__(self, output: str, **flags: Any) -> None:
        super().__init__()
        values = _read_flags({**flags, "output": typed("output", output, str)})
        self.model_options = _options(ModelOptions, values)
        self.engine_options = _options(EngineOptions, values)
        self.engine_options.check(self.model_options)
        self.output_options = _options(OutputOptions, values)
        # The patterns come later; all else of the input is checked now.
        self.input_options = _options(InputOptions, {**values, "input": ("*",)})
        for name, kind in self.input_options.read_options().keep_columns:
            if pa.types.is_null(kind):
                raise ImagebeamError(
                    f"keep_columns needs the type of each column. Received: {name!r} without one. Say it, as in "
                    f"keep_columns={{{name!r}: 'string'}}."
                )

    def expand(self, patterns: beam.PCollection) -> beam.PCollection:
        """Stage the model; then plan, embed and finish."""
        if not patterns.is_bounded:
            raise ImagebeamError(
                f"EmbedImages takes patterns that come to an end, since all are one run. Received: an unbounded "
                f"collection, {patterns.producer.full_label!r}. EmbedRecords takes images without end."
            )
        read = self.input_options.read_options()
        options = self.output_options
        folder = run_folder.read_run(run_folder.RunFolder(storage.absolute(options.output), {}))
        outputs = _outputs.setdefault(patterns.pipeline, set())
        if folder.output in outputs:
            raise ImagebeamError(
                f"One folder holds one run, and two EmbedImages of this pipeline write to it. Received: "
                f"output={options.output!r}. Give all patterns to one (beam.Flatten joins collections), or choose "
                "another output."
            )
        with run_folder.hold_output(options):
            staged = model_staging.stage_model(ModelLoader(self.model_options, self.engine_options), folder)
        outputs.add(folder.output)
        run = Run(
            folder,
            staged,
            None,
            new_reports_folder(folder.output),
            options.max_failure_rate,
            time.time(),
            detached=True,
            prune=options.prune,
        )
        images = self.model_options.image_options(staged.spec)
        reuse = open_reused(options, folder, staged.spec, images)
        return (
            patterns
            | "Global window" >> beam.WindowInto(GlobalWindows())  # All patterns are one run.
            | "Patterns" >> beam.Map(pattern_of).with_output_types(str)
            | "All patterns" >> beam.combiners.ToList()
            | "Open run" >> beam.Map(_open_run, self.input_options, options)
            # A stage of its own: what follows may be tried again without the run being opened again.
            | "Opened" >> beam.Reshuffle()
            | "Plan units"
            >> PlanUnits(
                self.input_options.input_format, options.rows_per_unit, read, folder.cuts, leave_compressed=True
            )
            | "Embed units"
            >> EmbedUnits(
                model=staged,
                output=folder.output,
                read=read,
                embed=EmbedOptions(images, self.model_options.batch_size),
                part=PartOptions(options.embedding_type, options.embedding_dtype, read.keep_columns),
                retry_failed=options.retry_failed,
                generation=folder.generation,
                reuse=reuse,
            )
            | "Finish" >> Finish(run)
            | "Manifest" >> beam.Map(_manifest_uri, output=folder.output).with_output_types(str)
        )


def pattern_of(element: Any) -> str:
    """The pattern in an element: a str, or a row (of Beam YAML, say) whose only field is one.

    Raises:
        ImagebeamError: for anything else.
    """
    fields = list(element._asdict().values()) if hasattr(element, "_asdict") else [element]
    if len(fields) == 1 and isinstance(fields[0], str) and fields[0]:
        return fields[0]
    raise ImagebeamError(f"EmbedImages takes patterns, one str each. Received: {element!r}.")


def _open_run(patterns: Sequence[str], options: InputOptions, output: OutputOptions) -> tuple[str, ...]:
    """Look at the input, and claim the output folder for it; the patterns in the order that the run knows."""
    if not patterns:
        raise ImagebeamError("EmbedImages got no patterns. Its input holds files, folders or patterns, one str each.")
    folder = storage.absolute(output.output)
    ordered = _in_known_order({storage.absolute(pattern) for pattern in patterns}, folder)
    options = dataclasses.replace(options, input=ordered)
    run_folder.open_output_apart(output.output, options)
    source = input_source.open_input(options)
    with run_folder.hold_output(output):
        run_folder.prepare_output(output, source)
        manifest.set_aside(folder)
    return source.patterns


def _in_known_order(patterns: set[str], output: str) -> tuple[str, ...]:
    """A collection has no order, but a run's input has: that of an earlier attempt, else the alphabet's."""
    before = manifest.read_file(output, manifest.RUN_FILE).get("input")
    if isinstance(before, list) and set(map(str, before)) == patterns:
        return tuple(before)
    return tuple(sorted(patterns))


def _manifest_uri(_: object, output: str) -> str:
    return storage.join(output, manifest.MANIFEST_FILE)


def _fields() -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """(keyword, field) of every option, by the name of its flag."""
    for group in _GROUPS:
        for field in dataclasses.fields(group):
            yield _keyword(field), field


def _keyword(field: dataclasses.Field[Any]) -> str:
    return (field.metadata["name"] or field.name).removeprefix("--")


def _read_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Convert keywords to options by field, parsing text as the command line does.

    Raises:
        ImagebeamError: for a keyword that is no flag, or a value that the flag does not take.
    """
    known = dict(_fields())
    aliases = {field.name: keyword for keyword, field in known.items()}
    values = {}
    for name, value in flags.items():
        keyword = aliases.get(name, name)
        if keyword not in known:
            nearest = difflib.get_close_matches(name, known, n=3)
            hint = f"Did you mean {' or '.join(nearest)}?" if nearest else "`imagebeam extract --help` lists them."
            raise ImagebeamError(f"EmbedImages has no keyword {name!r}. {hint}")
        if keyword in _NEEDS_A_LAUNCHER and value:
            raise ImagebeamError(f"EmbedImages takes no {keyword}: {_NEEDS_A_LAUNCHER[keyword]}. Received: {value!r}.")
        if value is not None:
            values[known[keyword].name] = _read(keyword, known[keyword], value)
        elif keyword == "image_size":  # As a spec says it; None otherwise leaves the default.
            values[keyword] = "native"
    return values


def _read(keyword: str, field: dataclasses.Field[Any], value: Any) -> Any:
    parse = field.metadata.get("type")
    value = plain(value)
    if keyword == "keep_columns":
        value = _column_list(value)
    if isinstance(value, str):
        try:
            value = parse(value) if parse else value
        except (argparse.ArgumentTypeError, ValueError) as error:
            raise ImagebeamError(f"{keyword}: {error}.") from None
        return (value,) if field.metadata.get("action") in ("append", "extend") else value
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, bytes | Mapping | Set) else value


def _column_list(value: Any) -> str | tuple[()]:
    """{"a": "int64"} or ["a:int64"] -> "a:int64".

    Raises:
        ImagebeamError: for anything else.
    """
    if isinstance(value, Mapping):
        return ",".join(f"{name}:{kind}" for name, kind in value.items())
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return ",".join(value) or ()
    if isinstance(value, str):
        return value
    raise ImagebeamError(f"keep_columns is {{NAME: TYPE, ...}} or ['NAME:TYPE', ...]. Received: {value!r}.")


def _options(group: type[O], values: Mapping[str, Any]) -> O:
    kinds = get_type_hints(group)
    return group(
        **{
            field.name: typed(_keyword(field), values[field.name], kinds[field.name])
            for field in dataclasses.fields(group)
            if field.name in values
        }
    )


def _signature() -> inspect.Signature:
    """What `help` and editors show: every flag with its default."""
    parameters = [inspect.Parameter("output", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation="str")]
    for keyword, field in _fields():
        if keyword != "output" and keyword not in _NEEDS_A_LAUNCHER:
            default = str(field.default) if isinstance(field.default, str) else field.default
            parameters.append(inspect.Parameter(keyword, inspect.Parameter.KEYWORD_ONLY, default=default))
    return inspect.Signature(parameters)


EmbedImages.__signature__ = _signature()
