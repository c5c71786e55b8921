"""The manifest: a record of the run, reconciled with its input and written last."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from transforms import storage
from transforms.core import busy
from transforms.core.errors import ImagebeamError
from transforms.core.label_counts import LabelCount
from transforms.core.sealed_json import seal, unseal
from transforms.core.spec import EmbedderSpec
from transforms.core.text import counted, printable
from transforms.images.decode import DECODERS
from transforms.models.staged import StagedEngine
from transforms.parts import part_files
from transforms.parts.part_files import Commit
from transforms.parts.stored_file import StoredFile
from transforms.readers.units import Note
from transforms.reuse.neighbours import bounds
from transforms.runs.copies import refuse_copy_as_run

MANIFEST_FILE = "manifest.json"
RUN_FILE = "run.json"
"""Says what makes two runs the same; it is there from the start of a run on."""
PREVIOUS_FILE = "manifest.previous.json"
"""The manifest before, while a run is under way."""

_KEYS = {"dimensions", "parts", "totals"}
"""Some of those that every manifest of a run has."""

_DESCRIPTIONS = (RUN_FILE, "model/spec.json")

_HASHED_AT_ONCE = 4

_NAMES = 20
"""Names of what was left out, for each kind."""

_NAME_CHARACTERS = 300

_PACKAGES = (
    *("imagebeam", "apache-beam", "keras", "numpy", "pyarrow"),
    *("jax", "nncf", "openvino", "tensorflow", "torch"),
    *sorted({package for decoder in DECODERS.values() for package in decoder.packages} - {"numpy"}),
)


class ModelFacts(Protocol):
    """What the manifest says of a run's model: of a `StagedModel`, or of a `StagedClassifier`."""

    @property
    def spec(self) -> EmbedderSpec:
        """Of the embedder."""

    @property
    def weights(self) -> dict[str, str | None]:
        """Where the weights came from."""

    @property
    def dimensions(self) -> dict[str, int]:
        """Column name -> vector length."""

    @property
    def engine(self) -> StagedEngine:
        """What runs it."""

    @property
    def files(self) -> list[str]:
        """Names of its files in OUT/model."""


@dataclass(frozen=True, slots=True)
class UnitReport:
    """What is said of one unit when it is done.

    Attributes:
        records: planned in the unit.
        commit: what its part says.
        skipped: whether an earlier run had committed it.
        worked_again: records that failed through the machine's fault in an earlier run.
        images: that the model embedded for it; None where unknown.
        model_seconds: that the model took for them; None where unknown.
        reused: rows whose vectors were taken over from parts that are there.
        equal: rows whose images are those of other rows that were made a moment ago.
        busy: seconds by stage, as `core.busy` counts them; None where unknown.
    """

    records: int
    commit: Commit
    skipped: bool
    worked_again: int = 0
    images: int | None = None
    model_seconds: float | None = None
    reused: int = 0
    equal: int = 0
    busy: dict[str, float] | None = None

    def to_json(self) -> str:
        """One line of JSON, without what is as it is by default."""
        values = _stated(UnitReport, dataclasses.asdict(self))
        return json.dumps({**values, "commit": _stated(Commit, values["commit"])}, sort_keys=True)

    @classmethod
    def from_json(cls, line: str | bytes) -> UnitReport:
        """The inverse of `to_json`."""
        values = json.loads(line)
        commit = values.pop("commit")
        files = {name: StoredFile(**commit[name]) for name in ("part", "failures_file") if commit.get(name)}
        return cls(commit=Commit(**{**commit, **files}), **values)


def _stated(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a dataclass that are not its defaults."""
    defaults = {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(kind)
    }
    return {name: value for name, value in values.items() if value != defaults[name]}


@dataclass(frozen=True)
class Settled:
    """What was done with the parts that no report names.

    Attributes:
        superseded: parts removed because newer ones hold what they held.
        pruned: parts removed, as asked, because their inputs are not found any more.
        kept: parts whose inputs are not found any more.
        examples: a few inputs of theirs.
    """

    superseded: int = 0
    pruned: int = 0
    kept: tuple[Commit, ...] = ()
    examples: tuple[str, ...] = ()


class Times(NamedTuple):
    """When a run began and ended, in seconds since 1970."""

    started: float
    finished: float


@dataclass
class Totals:
    """A run's sums over its units.

    Attributes:
        records: planned.
        embedded: rows written, by this run or an earlier one.
        failed: records that ended as failures.
        units: work units.
        units_skipped: units an earlier run had committed.
        bytes: of the parts.
        icc_profiles_ignored: images whose ICC colour profile was not applied.
        failures: failed records by "stage/error_type".
        retryable: failed records that the next run works again, since the machine is at fault.
        worked_again: records of which this was so in an earlier run.
        not_tried_again: failed records of the units that an earlier run had committed.
        reused: of the rows written now, those whose vectors were taken over from earlier parts.
        equal: of the rows written now, those whose images are those of other rows written now.
    """

    records: int = 0
    embedded: int = 0
    failed: int = 0
    units: int = 0
    units_skipped: int = 0
    bytes: int = 0
    icc_profiles_ignored: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    retryable: int = 0
    worked_again: int = 0
    not_tried_again: int = 0
    reused: int = 0
    equal: int = 0

    @property
    def failure_rate(self) -> float:
        """Share of the records that failed, 0 to 1."""
        return self.failed / self.records if self.records else 0.0


def sum_up(reports: Iterable[UnitReport]) -> Totals:
    """The sums over a run's units."""
    totals = Totals()
    failures: Counter[str] = Counter()
    for report in reports:
        totals.records += report.records
        totals.embedded += report.commit.embedded
        totals.failed += report.commit.failed
        totals.units += 1
        totals.units_skipped += report.skipped
        totals.bytes += report.commit.part_bytes
        totals.icc_profiles_ignored += report.commit.icc_profiles_ignored
        totals.retryable += report.commit.retryable
        totals.worked_again += report.worked_again
        totals.not_tried_again += report.commit.failed if report.skipped else 0
        totals.reused += report.reused
        totals.equal += report.equal
        failures.update(report.commit.failures)
    totals.failures = dict(failures.most_common())
    return totals


def sum_up_labels(reports: Iterable[UnitReport]) -> LabelCount:
    """The labels of a run's rows."""
    total = LabelCount()
    for report in reports:
        total += LabelCount(**report.commit.labels)
    return total


def reconcile(reports: list[UnitReport], output: str, folder: str = part_files.EMBEDDINGS) -> list[str]:
    """Check the reports for consistency with each other and with storage. Returns one message per problem."""
    problems = []
    ids = Counter(report.commit.unit_id for report in reports)
    problems += [f"unit {unit_id} was reported {count} times" for unit_id, count in ids.items() if count > 1]
    for report in reports:
        ended = report.commit.embedded + report.commit.failed
        if ended != report.records:
            problems.append(f"unit {report.commit.unit_id} had {report.records} records, of which {ended} ended")
    stored = {unit_id for unit_id, _ in part_files.list_parts(storage.join(output, folder))}
    problems += [f"the part of unit {unit_id} is gone" for unit_id in ids if unit_id not in stored]
    return problems


def parts_beside(reports: Iterable[UnitReport], output: str, folder: str = part_files.EMBEDDINGS) -> int:
    """How many parts a run's folder holds that are of none of its units."""
    mine = {report.commit.unit_id for report in reports}
    return sum(unit_id not in mine for unit_id, _ in part_files.list_parts(storage.join(output, folder)))


def describe_unread(reports: Iterable[UnitReport]) -> list[str]:
    """One line for each file that was not read to its end, saying how much was not."""
    return [_describe_unread(unread) for report in reports for unread in report.commit.unread]


def _describe_unread(unread: dict[str, Any]) -> str:
    size, records = unread["bytes"], unread["records"]
    amounts = [f"{size:,} bytes"] if size else []
    if records:
        amounts.append(f"{'about ' if size else ''}{counted(records, 'record')}")
    amount = f", {' or '.join(amounts)} of it" if amounts else ""
    return printable(f"{unread['uri']} was not read to its end{amount}: {unread['reason']}")


def sum_up_notes(notes: Iterable[Note]) -> list[dict[str, Any]]:
    """What was left out of the input, by kind: how many, and the first few names."""
    found: dict[str, dict[str, Any]] = {}
    for note in sorted(notes, key=lambda note: (note.kind, note.uri)):
        kind = found.setdefault(note.kind, {"kind": note.kind, "count": 0, "names": []})
        kind["count"] += note.count
        kind["names"] += [
            printable(f"{note.uri}#{name}" if note.uri not in ("", name) else name, _NAME_CHARACTERS)
            for name in note.names[: _NAMES - len(kind["names"])]
        ]
    return list(found.values())


def refuse_foreign_files(output: str) -> None:
    """Refuse to write where another program's files have the names of a run's: they would be replaced.

    Raises:
        ImagebeamError: naming the file.
        OSError: if the folder cannot be read.
    """
    uri = storage.join(output, MANIFEST_FILE)
    is_run = read_file(output, MANIFEST_FILE).keys() >= _KEYS or _holds_run(output)
    if not is_run and storage.exists(uri):
        raise _foreign(uri)
    if (about := read_file(output, RUN_FILE)) and "rows_per_unit" not in about:
        raise _foreign(storage.join(output, RUN_FILE))


def _foreign(uri: str) -> ImagebeamError:
    return ImagebeamError(
        f"{uri} is of something else than a run of Imagebeam, which would replace it. Choose another --output."
    )


def set_aside(output: str) -> None:
    """Move the manifest aside before parts change. The next manifest still reads it."""
    uri = storage.join(output, MANIFEST_FILE)
    try:
        content = storage.read_bytes(uri)
    except FileNotFoundError:
        return
    storage.publish(storage.join(output, PREVIOUS_FILE), content)
    storage.delete(uri)


def read_file(output: str, name: str) -> dict[str, Any]:
    """The JSON object in one of a run's files; empty where there is none, or it cannot be understood."""
    try:
        content = json.loads(storage.read_bytes(storage.join(output, name)))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_previous(output: str) -> dict[str, Any]:
    """The manifest that was set aside; empty where there is none, or it cannot be understood."""
    return read_file(output, PREVIOUS_FILE)


def read_manifests(output: str) -> list[dict[str, Any]]:
    """The manifest that was set aside, and the run's own; empty where they are not there, or cannot be understood."""
    return [read_file(output, PREVIOUS_FILE), read_file(output, MANIFEST_FILE)]


class DamagedManifestError(ValueError):
    """A run's manifest that is not what the run wrote.

    Attributes:
        uri: of the manifest.
        reason: what is wrong with it.
    """

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(f"{uri}: {reason}; see imagebeam verify")
        self.uri = uri
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.uri, self.reason)


def read_manifest(output: str) -> dict[str, Any]:
    """The manifest of a finished run.

    Raises:
        ImagebeamError: if there is none, or it is of something else than a run, or the folder is a copy of `compact`.
        DamagedManifestError: if its bytes are not those that were written.
        OSError: if it cannot be read.
    """
    uri = storage.join(output, MANIFEST_FILE)
    try:
        content = unseal(storage.read_bytes(uri))
    except FileNotFoundError:
        refuse_copy_as_run(output)
        remedy = (
            "Give the run's own command again, which finishes it."
            if _holds_run(output)
            else "Name the --output of extract or classify."
        )
        raise ImagebeamError(f"There is no finished run in {output}: it has no {MANIFEST_FILE}. {remedy}") from None
    except ValueError as error:
        if _holds_run(output):
            raise DamagedManifestError(uri, str(error)) from error
        content = {}
    if not content.keys() >= _KEYS:
        raise ImagebeamError(
            f"There is no run of Imagebeam in {output}: its {MANIFEST_FILE} is of something else. Name the --output of "
            "extract or classify."
        )
    return content


def _holds_run(output: str) -> bool:
    """Whether other files than the manifest say that a run was here."""
    folders = (storage.join(output, name) for name in (part_files.EMBEDDINGS, part_files.PREDICTIONS))
    try:
        return any(storage.exists(storage.join(output, name)) for name in _DESCRIPTIONS) or any(
            True for folder in folders for _ in part_files.list_parts(folder)
        )
    except FileNotFoundError:  # There is not even a bucket.
        return False


def write_manifest(
    output: str,
    run: dict[str, Any],
    staged: ModelFacts,
    reports: list[UnitReport],
    *,
    folder: str = part_files.EMBEDDINGS,
    notes: Iterable[Note] = (),
    generation: str = "",
    settled: Settled | None = None,
    times: Times,
    previous: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write OUT/manifest.json, and return its content.

    Args:
        output: the run's folder.
        run: what makes two runs the same but for the model.
        staged: the model.
        reports: of all units.
        folder: which holds the parts.
        generation: of the parts.
        settled: what was done with the parts that no report names.
        times: when the run began and ended.
        previous: the manifest before; what it says of the parts that were skipped stays true.
        notes: on what was left out of the input.
    """
    settled = settled or Settled()
    previous = previous or {}
    known = {part["path"]: part for part in previous.get("parts", ())}
    commits = [*((report, report.commit) for report in reports), *((None, commit) for commit in settled.kept)]
    parts = [
        _describe_part(folder, commit, report, known)
        for report, commit in sorted(commits, key=lambda pair: pair[1].unit_id)
    ]
    _fill_digests(output, parts)
    worked = [report for report in reports if not report.skipped]
    engine: StagedEngine | None = getattr(staged, "engine", None)  # A model of somebody's own need not say.
    stays = not worked and {"timings", "versions"} <= previous.keys()
    manifest: dict[str, Any] = {
        "totals": dataclasses.asdict(sum_up(reports)),
        "labels": dataclasses.asdict(sum_up_labels(reports)),
        "superseded_parts_removed": settled.superseded,
        "pruned_parts_removed": settled.pruned,
        "missing_inputs": {"parts": len(settled.kept), "rows": sum(commit.embedded for commit in settled.kept)},
        "unread": [unread for report in reports for unread in report.commit.unread],
        "left_out": sum_up_notes(notes),
        "run": run,
        "generation": generation,
        "fingerprint": staged.spec.fingerprint,
        "spec": staged.spec.to_dict(),
        "weights": staged.weights,
        "dimensions": staged.dimensions,
        "engine": None if engine is None else engine.to_dict(),
        "versions": previous["versions"] if stays else versions(),
        "decoders": {kind.value: list(decoder.packages) for kind, decoder in DECODERS.items()},
        "timings": previous["timings"] if stays else _timings(worked, parts, times),
        "files": _small_files(output),
        "parts": parts,
    }
    storage.publish(storage.join(output, MANIFEST_FILE), seal(manifest, indent=1))
    with contextlib.suppress(PermissionError):
        if storage.exists(storage.join(output, PREVIOUS_FILE)):
            storage.delete(storage.join(output, PREVIOUS_FILE))
    return manifest


def _describe_part(
    folder: str, commit: Commit, report: UnitReport | None, known: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    path = f"{folder}/{part_files.part_name(commit.unit_id)}"
    before = known.get(path, {})
    same = before.get("footer_sha256") == commit.part.footer_sha256
    part = {
        "path": path,
        "rows": commit.embedded,
        "failed": commit.failed,
        "version": commit.version,
        "inputs": bounds(commit.inputs),
        **dataclasses.asdict(commit.part),
        "model_seconds": before.get("model_seconds") if same else None,
        "failures": commit.failures_file and dataclasses.asdict(commit.failures_file),
    }
    if part["sha256"] is None and same:
        part["sha256"] = before.get("sha256")
    if report is None:
        part["input_missing"] = True
    elif not report.skipped:
        part["model_seconds"] = _seconds(report, before)
    return part


def _seconds(report: UnitReport, before: Mapping[str, Any]) -> float | None:
    """What the model took for all rows of a unit that was worked; of a retry, with what it took before.

    None where rows were taken over: what they took is not known.
    """
    if report.images is None or report.model_seconds is None or report.reused:
        return None
    if report.images + report.equal == report.commit.embedded:
        return round(report.model_seconds, 6)
    earlier = before.get("model_seconds")
    return None if earlier is None else round(earlier + report.model_seconds, 6)


def _small_files(output: str) -> dict[str, str]:
    """Digests of the files that describe the run."""
    digests = {}
    for name in _DESCRIPTIONS:
        with contextlib.suppress(FileNotFoundError):
            digests[name] = stored_sha256(storage.join(output, name))
    return digests


def _fill_digests(output: str, parts: list[dict[str, Any]]) -> None:
    """Digests of whole local files that an earlier run committed; of remote ones, footer and data have to do."""
    if not storage.is_local(output):
        return
    unknown = [part for part in parts if part["sha256"] is None]
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
        uris = [storage.join(output, part["path"]) for part in unknown]
        for part, digest in zip(unknown, pool.map(stored_sha256, uris), strict=True):
            part["sha256"] = digest


def stored_sha256(uri: str) -> str:
    """Digest of a stored file's bytes; raises as `storage.read_bytes`."""
    return hashlib.sha256(storage.read_bytes(uri)).hexdigest()


def _timings(worked: list[UnitReport], parts: list[dict[str, Any]], times: Times) -> dict[str, Any]:
    images = [report.images for report in worked]
    seconds = [part["model_seconds"] for part in parts if "input_missing" not in part]
    return {
        "started": _iso(times.started),
        "finished": _iso(times.finished),
        "seconds": round(times.finished - times.started, 3),
        "images_embedded_by_this_launcher": None if None in images else sum(images),
        "model_seconds": None if None in seconds else round(sum(seconds), 3),
        "busy": busy.shares(report.busy for report in worked),
    }


def _iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Installed versions of what the numbers depend on; and, once Keras is imported, which backend it computes with."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if "keras" in sys.modules:
        found["keras-backend"] = sys.modules["keras"].backend.backend()
    return found
