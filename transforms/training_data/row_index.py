"""The label and split of every row, in a few bytes per row."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.core.errors import ImagebeamError
from transforms.core.text import counted
from transforms.readers.column_types import is_bytes, is_list_type
from transforms.readers.columns import as_label, as_labels
from transforms.training_data.embeddings import RowGroup, RowSet
from transforms.training_data.splits import (
    DROPPED,
    Split,
    assign,
    grouped_numbers,
    image_numbers,
    record_numbers,
    stratify,
)

_RECORD = ("uri", "key")
"""Columns that name the record a row was made from."""


@dataclass(frozen=True)
class LabelRules:
    """How labels are read.

    Attributes:
        column: name of the label column.
        multi_label: whether a row has any number of labels instead of one.
        separator: what stands between the labels of one row where the column is text; multi-label only.
        drop_unlabeled: leave rows without a label out instead of refusing them.
    """

    column: str = "label"
    multi_label: bool = False
    separator: str | None = None
    drop_unlabeled: bool = False


@dataclass(frozen=True)
class SplitRules:
    """How rows are split.

    Attributes:
        validation: share of the images that validate.
        test: share of the images that test.
        seed: another one gives another split.
        group_column: rows with one value in it stay in one split; None to keep equal images together and no more.
        column: a column that says train, validation or test, and overrides the above.
    """

    validation: float = 0.1
    test: float = 0.2
    seed: int = 0
    column: str | None = None
    group_column: str | None = None


@dataclass(frozen=True)
class RowIndex:
    """Split and labels of every row, by row number.

    Attributes:
        codes: int8 [rows], code of each row's split, or `splits.DROPPED`.
        labels: int32 [rows], number of each row's class; with multi-label a SciPy CSR matrix [rows, classes] of ones.
        classes: names of the classes, in order of their numbers.
        images: uint64 [rows], equal for rows that stay together: equal images, and groups where they were asked for.
        repeated: how many rows are left out because their record, by uri and key, stands in another run too.
    """

    codes: np.ndarray
    labels: Any
    classes: tuple[str, ...]
    images: np.ndarray
    repeated: int = 0

    @property
    def multi_label(self) -> bool:
        """Whether a row has any number of labels."""
        return not isinstance(self.labels, np.ndarray)

    @property
    def dropped(self) -> int:
        """Rows left out because they have no label."""
        return int((self.codes == DROPPED).sum()) - self.repeated

    def rows(self, split: Split) -> np.ndarray:
        """Numbers of a split's rows, int64, rising."""
        return np.flatnonzero(self.codes == split.code)

    def chosen(self, group: RowGroup, split: Split) -> np.ndarray:
        """Positions within a row group of the rows that are in a split."""
        return np.flatnonzero(self.codes[group.start : group.start + group.rows] == split.code)

    def targets(self, rows: np.ndarray) -> np.ndarray:
        """What a model should say of rows: int32 [n] classes, or with multi-label float32 [n, classes] of 0 and 1."""
        if self.multi_label:
            return np.asarray(self.labels[rows].toarray(), np.float32)
        return np.asarray(self.labels[rows])

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """Labels by split and class, int64 [3, classes]."""
        counts = np.zeros((len(Split), len(self.classes)), np.int64)
        for split in Split:
            labels = self.labels[self.rows(split)]
            counts[split.code] = (
                np.asarray(labels.sum(axis=0)).ravel()
                if self.multi_label
                else np.bincount(labels, minlength=len(self.classes))
            )
        return counts

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of everything here: equal digests mean the same rows in the same order."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        arrays = (self.labels.indptr, self.labels.indices) if self.multi_label else (self.labels,)
        for array in (self.codes, self.images, *arrays):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def index_rows(embeddings: RowSet, labels: LabelRules, splits: SplitRules) -> RowIndex:
    """Read labels and digests of all rows, and decide their splits.

    A record that stands in several runs, as where one is a copy of another or its input grew, counts once: in the first
    run that has a label for it. Rows are compared by 8 bytes of a digest of uri and key, the memory that the digest of
    the image costs too; only a set of several runs pays it. Such runs are not refused, since the rows that they do not
    share have no other way into one training.

    Raises:
        ImagebeamError: for a column that is missing or of the wrong type, rows without labels, fewer than two
            classes, an unknown split, or a split that leaves nothing to train on or nothing to hold out.
    """
    encoder = _LabelEncoder(embeddings.schema, labels)
    several_runs = len({group.run for group in embeddings.groups}) > 1
    columns = ["sha256", labels.column, *filter(None, (splits.column, splits.group_column))]
    columns += _RECORD if several_runs else ()
    for column, flag in ((splits.column, "--split_column"), (splits.group_column, "--group_column")):
        if column:
            kind = _check_column(embeddings.schema, column, flag)
            if pa.types.is_nested(kind) or is_bytes(kind):
                raise ImagebeamError(
                    f"{flag} names a column of texts, numbers or times. Received: column {column!r} of type {kind}."
                )
    codes, numbers, groups = [], [], []
    records: list[np.ndarray] = []
    for _, table in embeddings.read(embeddings.groups, list(dict.fromkeys(columns))):
        numbers.append(image_numbers(table.column("sha256").to_pylist(), splits.seed))
        if splits.column:
            codes.append(_codes_of(table.column(splits.column), splits.column))
        if splits.group_column:
            groups += _texts(table.column(splits.group_column)).to_pylist()
        if several_runs:
            records.append(record_numbers(table, _RECORD, splits.seed))
        encoder.add(table.column(labels.column).combine_chunks())
    images = np.concatenate(numbers)
    if splits.group_column:
        images = grouped_numbers(images, _without_null(groups, splits.group_column), splits.seed)
    all_codes = np.concatenate(codes) if splits.column else assign(images, splits.validation, splits.test)
    unlabeled = encoder.unlabeled()
    repeated = np.zeros(len(unlabeled), bool)
    if several_runs:
        runs = np.concatenate([np.full(group.rows, group.run, np.int32) for group in embeddings.groups])
        repeated = _repeated(np.concatenate(records), runs, unlabeled)
        unlabeled &= ~repeated
    if unlabeled.any() and not labels.drop_unlabeled:
        raise ImagebeamError(
            f"{int(unlabeled.sum()):,} of {len(unlabeled):,} rows have no label in column {labels.column!r}. Leave "
            "them out with --drop_unlabeled, or name another --label_column."
        )
    classes, encoded = encoder.finish()
    if not splits.column and not labels.multi_label:
        labeled = ~(unlabeled | repeated)
        all_codes[labeled] = stratify(
            images[labeled], all_codes[labeled], encoded[labeled], splits.validation, splits.test
        )
    all_codes[unlabeled | repeated] = DROPPED
    if repeated.any():
        classes, encoded = _without_unused(classes, encoded, np.flatnonzero(all_codes != DROPPED))
    index = RowIndex(all_codes, encoded, classes, images, int(repeated.sum()))
    _refuse_useless(index, labels.column, splits)
    return index


def _repeated(records: np.ndarray, runs: np.ndarray, unlabeled: np.ndarray) -> np.ndarray:
    """Which rows are of a record that counts in another run, bool [rows].

    Args:
        records: uint64 [rows], equal for rows of one record. One run may hold such rows too, and keeps all of them.
        runs: int [rows], number of each row's run.
        unlabeled: bool [rows].
    """
    order = np.argsort(unlabeled, kind="stable")  # labelled ones first
    _, first, record = np.unique(records[order], return_index=True, return_inverse=True)
    found = np.empty(len(records), bool)
    found[order] = runs[order] != runs[order[first]][record]
    return found


def _without_unused(classes: tuple[str, ...], labels: Any, kept: np.ndarray) -> tuple[tuple[str, ...], Any]:
    """Classes and labels as `RowIndex` holds them, less the classes that none of the rows `kept` has."""
    if isinstance(labels, np.ndarray):
        used = np.isin(np.arange(len(classes)), labels[kept])
        labels = np.maximum(np.cumsum(used, dtype=np.int32) - 1, 0)[labels]
    else:
        used = np.asarray(labels[kept].sum(axis=0)).ravel() > 0
        labels = labels[:, np.flatnonzero(used)]
    return tuple(name for name, is_used in zip(classes, used, strict=True) if is_used), labels


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values as text; null where there is none: where a fraction is NaN, or a text blank."""
    texts = column.cast(pa.string())
    if pa.types.is_floating(column.type):
        return pc.if_else(pc.is_nan(column.cast(pa.float64())), None, texts)
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(texts), ""), pa.scalar(None, pa.string()), texts)


def _as_labels(texts: pa.Array) -> pa.Array:
    """Text as labels have it everywhere, whichever column it is from: see `as_label`. Null where it is none."""
    encoded = texts.dictionary_encode()
    labels = pa.array([as_label(text) for text in encoded.dictionary.to_pylist()], pa.string())
    return labels.take(encoded.indices)


def _without_null(groups: list[str | None], column: str) -> list[str]:
    """The groups as they are; rows without one would all be of one group.

    Raises:
        ImagebeamError: if a row has none.
    """
    missing = sum(group is None for group in groups)
    if missing:
        raise ImagebeamError(
            f"{missing:,} of {len(groups):,} rows have no value in --group_column. Received: {column!r}. Give each row "
            "one; a row that belongs to no group can have its key."
        )
    return [group for group in groups if group is not None]


def _refuse_useless(index: RowIndex, column: str, splits: SplitRules) -> None:
    if not (index.codes != DROPPED).any():
        raise ImagebeamError(f"No row has a label in column {column!r}. Name another --label_column.")
    if len(index.classes) < (1 if index.multi_label else 2):
        raise ImagebeamError(
            f"A classifier needs at least two classes. Received: {', '.join(index.classes) or 'none'} in column "
            f"{column!r}."
        )
    train, validation, test = (len(index.rows(split)) for split in Split)
    if not train or not validation + test:
        missing = "hold one out" if train else "train on one"
        groups = len(np.unique(index.images[index.codes != DROPPED]))
        if splits.group_column and not splits.column and 0 < splits.validation + splits.test < 1:
            raise ImagebeamError(
                f"Column {splits.group_column!r} has {counted(groups, 'group')}, too few to {missing}: a group, and "
                "groups that share an image, stay in one split. Received: --group_column "
                f"{splits.group_column!r}. Name a column of more groups, say with --split_column what each row is for, "
                "or draw again with another --split_seed."
            )
        raise ImagebeamError(
            f"The split leaves nothing to {'hold out' if train else 'train on'}. Received: {train:,} train, "
            f"{validation:,} validation and {test:,} test rows. Bring more images, or other shares."
        )


def _check_column(schema: pa.Schema, name: str, flag: str) -> pa.DataType:
    if name not in schema.names:
        names = ", ".join(field.name for field in schema if not field.name.startswith("embedding"))
        raise ImagebeamError(f"There is no such column. Received: {flag} {name!r}. The embeddings have {names}.")
    return schema.field(name).type


def _codes_of(values: pa.ChunkedArray, column: str) -> np.ndarray:
    found = pc.index_in(values.cast(pa.string()), pa.array([str(split) for split in Split]))
    if found.null_count:
        wrong = values.filter(pc.is_null(found))[0].as_py()
        raise ImagebeamError(
            f"--split_column holds {', '.join(Split)}, nothing else. Received: {wrong!r} in column {column!r}."
        )
    return np.asarray(found.to_numpy(), np.int8)


def check_label_column(schema: pa.Schema, column: str) -> pa.DataType:
    """The type that a column's labels are read as: string, integer or boolean, or a list of them.

    Raises:
        ImagebeamError: if there is no such column, or of another type.
    """
    kind = _check_column(schema, column, "--label_column")
    read_as = _label_type(kind)
    value = read_as.value_type if is_list_type(read_as) else read_as
    if not (pa.types.is_string(value) or pa.types.is_integer(value) or pa.types.is_boolean(value)):
        raise ImagebeamError(f"Labels are text, whole numbers or booleans. Received: column {column!r} of type {kind}.")
    return read_as


def _label_type(kind: pa.DataType) -> pa.DataType:
    """The type that labels of a stored type are read as; the same where it is no kind of text, number or list."""
    types = pa.types
    if is_list_type(kind):
        value = kind.value_type
        return pa.list_(value if types.is_floating(value) else _label_type(value))  # Lists of floats are vectors.
    if types.is_dictionary(kind):
        return _label_type(kind.value_type)
    if types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    # pandas makes doubles of whole numbers where one of them is missing.
    return pa.int64() if types.is_floating(kind) or types.is_decimal(kind) else kind


def _read_as(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Values of a label column as its `_label_type`, NaN as null.

    Raises:
        pa.ArrowInvalid: for a number with a fraction.
    """
    if pa.types.is_dictionary(values.type):
        return _read_as(values.dictionary, kind).take(values.indices)
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), None, values)
    return values.cast(kind)


class _LabelEncoder:
    """Encode labels as class numbers, in order of the sorted names."""

    def __init__(self, schema: pa.Schema, rules: LabelRules) -> None:
        kind = check_label_column(schema, rules.column)
        self._kind = kind
        self._rules = rules
        self._is_list = is_list_type(kind)
        value = kind.value_type if self._is_list else kind
        if self._is_list and not rules.multi_label:
            raise ImagebeamError(
                f"Column {rules.column!r} holds lists of labels ({kind}). Train on it with --multi_label."
            )
        if rules.multi_label and not self._is_list and (rules.separator is None or not pa.types.is_string(value)):
            raise ImagebeamError(
                f"--multi_label needs a column of lists, or text with a --label_separator. Received: column "
                f"{rules.column!r} of type {kind}."
            )
        self._numbers: dict[Any, int] = {}
        self._encoded: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []
        self._unlabeled: list[np.ndarray] = []

    def add(self, values: pa.Array) -> None:
        """Take the labels of more rows; blank text is no label.

        Raises:
            ImagebeamError: for a number with a fraction, or a list with a label that is none.
        """
        try:
            values = _read_as(values, self._kind)
        except pa.ArrowInvalid as error:
            raise ImagebeamError(
                f"Labels are text, whole numbers or booleans. Received: column {self._rules.column!r} of type "
                f"{values.type} ({error}). Name another --label_column, or give each row its class with --labels FILE."
            ) from error
        if pa.types.is_string(values.type) and not self._rules.multi_label:
            values = _as_labels(values)
        self._unlabeled.append(values.is_null().to_numpy(zero_copy_only=False))
        if self._rules.multi_label:
            values = values if self._is_list else self._split(values)
            lengths = pc.fill_null(pc.list_value_length(values), 0)
            self._lengths.append(lengths.to_numpy().astype(np.int64))
            values = pc.list_flatten(values)
            values = _as_labels(values) if pa.types.is_string(values.type) else values
            if values.null_count:
                raise ImagebeamError(
                    f"Column {self._rules.column!r} has a list with a null or blank text in it; leave such labels out."
                )
        encoded = values.dictionary_encode()
        known = [self._numbers.setdefault(name, len(self._numbers)) for name in encoded.dictionary.to_pylist()]
        positions = pc.fill_null(encoded.indices, 0).to_numpy()
        self._encoded.append(np.asarray(known or [0], np.int32)[positions])

    def _split(self, values: pa.Array) -> pa.Array:
        """Text -> lists of text; "" and what is between two separators without text is no label."""
        separator = self._rules.separator
        lists = [None if text is None else as_labels(text.split(separator)) for text in values.to_pylist()]
        return pa.array(lists, pa.list_(pa.string()))

    def unlabeled(self) -> np.ndarray:
        """Which rows have no label (null; an empty list is one), bool [rows]."""
        return np.concatenate(self._unlabeled)

    def finish(self) -> tuple[tuple[str, ...], Any]:
        """The classes' names, and the labels as `RowIndex` holds them."""
        order = sorted(self._numbers)
        ranks = np.empty(max(1, len(order)), np.int32)
        for rank, name in enumerate(order):
            ranks[self._numbers[name]] = rank
        labels = ranks[np.concatenate(self._encoded)]
        classes = tuple(str(name) for name in order)
        if not self._rules.multi_label:
            return classes, labels
        from scipy.sparse import csr_matrix

        starts = np.concatenate([[0], np.cumsum(np.concatenate(self._lengths))])
        matrix = csr_matrix((np.ones(len(labels), np.float32), labels, starts), shape=(len(starts) - 1, len(classes)))
        matrix.sum_duplicates()
        matrix.data[:] = 1.0  # a label that a row has twice counts once
        return classes, matrix
