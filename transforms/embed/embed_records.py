"""`EmbedRecords`: embed encoded images in pipelines that write the vectors themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import apache_beam as beam
from apache_beam.utils.shared import Shared
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from transforms.core.errors import ImagebeamError
from transforms.core.field_types import typed
from transforms.core.formats import OUTPUT_COLUMNS, is_output_column
from transforms.core.limits import MAX_IMAGE_PIXELS
from transforms.core.spec import EmbedderSpec
from transforms.core.types import Failure, Record, Row
from transforms.embed.embed_units import EmbedOptions, ImageModel, ModelSource, RecordsAhead
from transforms.embed.model_sources import image_options, model_source, spec_of
from transforms.images.decode import ImageOptions, prepare_pillow
from transforms.models.config import EmbedderConfig
from transforms.models.staged import StagedModel
from transforms.runs.commit_units import count_batch

if TYPE_CHECKING:
    from collections.abc import Mapping

_FAILURES = "failures"


class EmbeddedRecords(NamedTuple):
    """What `EmbedRecords` gives.

    Attributes:
        rows: PCollection of dicts with the columns of OUT/embeddings; vectors are lists of floats.
        failures: PCollection of dicts with the columns of OUT/failures.
    """

    rows: beam.PCollection
    failures: beam.PCollection


class EmbedRecords(beam.PTransform):  # type: ignore[misc]
    """Embed encoded images, for those who write the vectors to BigQuery, Iceberg or a vector store themselves.

        rows, failures = records | imagebeam.EmbedRecords(imagebeam.EmbedderConfig("VGG16", "imagenet"))

    Element in: (key, bytes), or a dict with `key`, `data` (the encoded bytes), and perhaps `uri`, `label` and
    further columns, which come out again; a further column with a name of the output, such as `width`, fails the
    pipeline. Every element ends as one row or one failure: rows are dicts with `key`, `uri`, `label`, `width`,
    `height`, `sha256`, the further columns, and `embedding` (one column for each layer where there are several);
    failures are dicts with `key`, `uri`, `stage`, `error_type`, `message`, `sha256`, `retryable` (whether the machine
    was at fault). Windows and timestamps are kept.

    Args:
        model: a folder that `stage_model` filled, or what it returned: workers must see the folder. Or an
            `EmbedderConfig`, whose weights each worker resolves itself.
        batch_size: images in one call of the model at most.
        max_image_pixels: an image of more pixels is a failure, by its header.
        images: how bytes become pixels, in place of what the model's spec says with `max_image_pixels`; for options
            that the spec leaves open, such as `accept_truncated`, and for a model without a spec.

    Raises:
        ImagebeamError: if the folder holds no model, for a batch_size below 1 or an argument of another type, or for
            images that are decoded otherwise than the model's spec says.
    """

    def __init__(
        self,
        model: EmbedderConfig | StagedModel | ModelSource | str,
        *,
        batch_size: int = 32,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        images: ImageOptions | None = None,
    ) -> None:
        super().__init__()
        self._model = model_source(model)
        images = typed("images", images, ImageOptions | None)
        known = model if isinstance(model, EmbedderConfig) else self._model
        spec = spec_of(known) if isinstance(known, EmbedderConfig | StagedModel) else getattr(known, "spec", None)
        if images is None:
            if not isinstance(known, EmbedderConfig | StagedModel):
                raise TypeError(f"images is needed for a model of this kind. Received: {type(model).__name__}.")
            images = image_options(spec_of(known), max_image_pixels)
        elif max_image_pixels != MAX_IMAGE_PIXELS:
            raise ImagebeamError(
                f"images says how large an image may be. Received: images, and max_image_pixels={max_image_pixels!r}. "
                "Give ImageOptions(max_image_pixels=...)."
            )
        elif isinstance(spec, EmbedderSpec):
            images.check_spec(spec)
        self._options = EmbedOptions(images, batch_size)

    def expand(self, records: beam.PCollection) -> EmbeddedRecords:
        """Batch, decode and embed."""
        size = self._options.batch_size
        outputs = (
            records
            | "Timestamps" >> beam.Map(_with_timestamp)  # A batch has the time at which its window ends.
            | "Batch" >> beam.BatchElements(min_batch_size=size, max_batch_size=4 * size)
            | "Embed" >> beam.ParDo(_Embed(self._model, self._options)).with_outputs(_FAILURES, main="rows")
        )
        return EmbeddedRecords(outputs["rows"], outputs[_FAILURES])


class _Embed(beam.DoFn):  # type: ignore[misc]
    def __init__(self, model: ModelSource, options: EmbedOptions) -> None:
        self._source = model
        self._options = options
        self._shared = Shared()

    def setup(self) -> None:
        prepare_pillow()
        self._model: ImageModel = self._shared.acquire(self._source.load)

    def process(
        self, elements: Sequence[tuple[Any, Timestamp]], window: Any = beam.DoFn.WindowParam
    ) -> Iterator[WindowedValue | beam.pvalue.TaggedOutput]:
        records = [as_record(element) for element, _ in elements]
        with contextlib.closing(RecordsAhead(records, self._model, self._options, count_batch)) as begun:
            begun.finish()
            outcomes = begun.outcomes
        for (_, timestamp), outcome in zip(elements, outcomes, strict=True):
            if isinstance(outcome, Failure):
                failure = WindowedValue(failure_dict(outcome), timestamp, (window,))
                yield beam.pvalue.TaggedOutput(_FAILURES, failure)
            else:
                yield WindowedValue(row_dict(outcome), timestamp, (window,))


def _with_timestamp(element: Any, timestamp: Any = beam.DoFn.TimestampParam) -> tuple[Any, Timestamp]:
    return element, timestamp


def as_record(element: tuple[str, bytes] | Mapping[str, Any] | Record) -> Record:
    """What `EmbedRecords` takes -> a `Record`.

    Raises:
        TypeError: for anything else.
        ImagebeamError: for a further column with a name that the output uses itself.
    """
    if isinstance(element, Record):
        _check_names(element.extras)
        return element
    if isinstance(element, tuple) and len(element) == 2:
        element = {"key": element[0], "data": element[1]}
    if isinstance(element, dict) and isinstance(element.get("key"), str) and isinstance(element.get("data"), bytes):
        extras = {name: value for name, value in element.items() if name not in ("key", "data", "uri", "label")}
        _check_names(extras)
        return Record(
            element["key"], element.get("uri") or element["key"], element["data"], element.get("label"), extras
        )
    raise TypeError(
        f"EmbedRecords takes (key, bytes), or a dict with key (str) and data (bytes). Received: {element!r:.200}."
    )


def _check_names(extras: Mapping[str, Any]) -> None:
    for name in extras:
        if isinstance(name, str) and is_output_column(name):
            raise ImagebeamError(
                f"A further column cannot take a name the output uses itself ({', '.join(OUTPUT_COLUMNS)}, "
                f"embedding_*), in whatever case. Received: {name!r}. Rename it before EmbedRecords."
            )


def row_dict(row: Row) -> dict[str, Any]:
    """A row as a dict; vectors as lists of floats."""
    vectors = {name: vector.tolist() for name, vector in row.vectors.items()}
    return {
        "key": row.key,
        "uri": row.uri,
        "label": row.label,
        "width": row.width,
        "height": row.height,
        "sha256": row.sha256,
        **row.extras,
        **vectors,
    }


def failure_dict(failure: Failure) -> dict[str, Any]:
    """A failure as a dict."""
    return {
        "key": failure.key,
        "uri": failure.uri,
        "stage": str(failure.stage),
        "error_type": failure.error_type,
        "message": failure.message,
        "sha256": failure.sha256,
        "retryable": failure.retryable,
    }
