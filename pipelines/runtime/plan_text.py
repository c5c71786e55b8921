"""Format the result of `imagebeam plan` as text and JSON."""

from __future__ import annotations

import dataclasses
import datetime
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transforms.core.text import printable

if TYPE_CHECKING:
    from transforms.embed.inventory import Inventory
    from transforms.embed.sampling import Sample

_BAR = 40


@dataclass(frozen=True)
class Estimate:
    """What is still to do, on this machine.

    Attributes:
        records: still to do.
        images: of these, those that will decode if the sample tells the truth.
        seconds: until the job is done.
        startup_seconds: of these, until the model is loaded and compiled.
        model_images_per_second: the model alone.
        decode_images_per_second: decoding and resizing alone, on all cores.
        output_bytes: of the parts, if the vectors do not compress.
    """

    records: int
    images: int
    seconds: float
    startup_seconds: float
    model_images_per_second: float
    decode_images_per_second: float
    output_bytes: int


@dataclass(frozen=True)
class Plan:
    """What was found.

    Attributes:
        model: its name.
        dimensions: embedding column name -> vector length.
        inventory: the whole input, counted.
        sample: some of its records, looked at.
        estimate: None where not one record of the sample decodes.
        output: where an earlier attempt was looked for, if anywhere.
        max_failure_rate: share of failures above which extract ends with another exit code than 0.
    """

    model: str
    dimensions: dict[str, int]
    inventory: Inventory
    sample: Sample
    estimate: Estimate | None
    output: str | None
    max_failure_rate: float


def size_histogram(sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(from, to, images): images by their longer side in pixels, in powers of two without gaps; both ends count."""
    bins = Counter(max(size).bit_length() for size in sizes)
    if not bins:
        return []
    return [(1 << (bits - 1), (1 << bits) - 1, bins[bits]) for bits in range(min(bins), max(bins) + 1)]


def to_dict(plan: Plan) -> dict[str, Any]:
    """The plan as plain JSON values."""
    inventory, sample = plan.inventory, plan.sample
    return {
        "formats": {name: dataclasses.asdict(count) for name, count in sorted(inventory.formats.items())},
        "units": inventory.units,
        "records": inventory.records,
        "left_out": dict(inventory.left_out.most_common()),
        "unreadable": inventory.unreadable,
        "output": plan.output,
        "committed": dataclasses.asdict(inventory.committed),
        "model": plan.model,
        "dimensions": plan.dimensions,
        "sample": {
            "records": sample.records,
            "failed": sample.failures.total(),
            "failure_rate": sample.failure_rate,
            "failures": dict(sample.failures.most_common()),
            "labels": dataclasses.asdict(sample.labels),
            "formats": dict(sample.formats.most_common()),
            "longer_side": [
                {"from": low, "to": high, "images": images} for low, high, images in size_histogram(sample.sizes)
            ],
        },
        "estimate": None if plan.estimate is None else dataclasses.asdict(plan.estimate),
    }


def to_text(plan: Plan) -> str:
    """The plan for a person to read."""
    sections = (_input_lines(plan.inventory), _output_lines(plan), _sample_lines(plan), _estimate_lines(plan))
    return "\n\n".join("\n".join(map(printable, lines)) for lines in sections)


def _input_lines(inventory: Inventory) -> Iterator[str]:
    yield f"{'Input':<14}{'files':>14}{'units':>14}{'records':>16}"
    for name, count in sorted(inventory.formats.items()):
        yield f"  {name:<12}{count.files:>14,}{count.units:>14,}{count.records:>16,}"
    if len(inventory.formats) > 1:
        files = sum(count.files for count in inventory.formats.values())
        yield f"  {'all':<12}{files:>14,}{inventory.units:>14,}{inventory.records:>16,}"
    if inventory.left_out:
        yield f"  left out of folders: {_counts(inventory.left_out)}"
    for uri, reason in inventory.unreadable.items():
        yield f"  cannot be read to its end: {uri}: {reason}"


def _output_lines(plan: Plan) -> Iterator[str]:
    vectors = ", ".join(f"{column} of {dimension:,}" for column, dimension in plan.dimensions.items())
    yield f"Vectors of {plan.model}: {vectors}"
    if plan.output is not None:
        committed = plan.inventory.committed
        yield f"Output in {plan.output}"
        yield f"  committed before: {committed.units:,} of {plan.inventory.units:,} units"
        again = f", and {committed.tried_again:,} are tried again" if committed.tried_again else ""
        yield f"  records in those: {committed.records:,}, of which {committed.failed:,} failed{again}"


def _sample_lines(plan: Plan) -> Iterator[str]:
    sample = plan.sample
    yield f"Sample of {sample.records:,} records"
    limit = plan.max_failure_rate
    more = f", more than --max_failure_rate {limit}" if sample.failure_rate > limit else ""
    yield f"  {sample.failures.total():,} fail to decode ({sample.failure_rate:.1%}{more})"
    for kind, count in sample.failures.most_common():
        yield f"    {kind.replace('/', ': ')}: {count:,}"
    if sample.labels.rows:
        yield f"  {sample.labels.describe()}"
    if not sample.sizes:
        return
    yield f"  formats: {_counts(sample.formats)}"
    for name, values in zip(("width", "height"), zip(*sample.sizes, strict=True), strict=True):
        low, middle, high = min(values), statistics.median_low(values), max(values)
        spread = f"{low:,} to {high:,} pixels, half of them up to {middle:,}"
        yield f"  {name}: {spread if low < high else f'{low:,} pixels'}"
    yield "  longer side, pixels:"
    bins = size_histogram(sample.sizes)
    most = max(images for _, _, images in bins)
    for low, high, images in bins:
        yield f"  {f'{low:,}-{high:,}':>15} {images:>7,} {'#' * math.ceil(_BAR * images / most)}".rstrip()


def _estimate_lines(plan: Plan) -> Iterator[str]:
    estimate = plan.estimate
    if estimate is None:
        yield "No estimate: not one record of the sample decodes."
        return
    if not estimate.records:
        yield "Nothing to do: every unit is committed."
        return
    duration = datetime.timedelta(seconds=math.ceil(estimate.seconds))
    yield f"Estimate for {estimate.records:,} records, on this machine"
    yield f"  time: {duration} (h:mm:ss), {estimate.startup_seconds:,.1f} s of it to load the model"
    yield f"  model: {estimate.model_images_per_second:,.1f} images/s"
    yield f"  decoding: {estimate.decode_images_per_second:,.1f} images/s on {plan.sample.cores} cores"
    yield f"  output: up to {_bytes(estimate.output_bytes)}"


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common())


def _bytes(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:,.3g} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"
