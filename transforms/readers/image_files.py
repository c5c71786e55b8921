"""Read image files named by a listing, a manifest or a row."""

from __future__ import annotations

from transforms import storage
from transforms.core.limits import MAX_RECORD_BYTES
from transforms.core.text import storable
from transforms.core.types import Failure, Record
from transforms.readers.base import failure, machine_failure, too_large
from transforms.readers.units import RecordRef
from transforms.storage.retry import MachineError, is_retryable, persist


def read_file(ref: RecordRef, limit: int = MAX_RECORD_BYTES) -> Record | Failure:
    """The image file of a record; a failure of stage read where it cannot be read, after tries with back-off.

    Args:
        ref: which file.
        limit: bytes of it at most; a larger one is not read.

    Raises:
        MachineError: if too many files in a row cannot be read, and not for what they are.
    """
    try:
        data = persist(lambda: _read(ref, limit))
    except MachineError:
        raise
    except Exception as error:
        return (machine_failure if is_retryable(error) else failure)(ref.key, ref.uri, error)
    return Record(ref.key, storable(ref.uri), data, ref.label, dict(ref.extras))


def _read(ref: RecordRef, limit: int) -> bytes:
    size = ref.size
    # Without a version nobody notices that a local file grew after it was listed, and asking costs little.
    if size is None or (ref.version is None and storage.is_local(ref.uri)):
        found = storage.stat(ref.uri)
        size = None if found is None else found.size
    if size is not None and size > limit:
        raise too_large(size, limit)
    return storage.read_bytes(ref.uri, ref.version)
