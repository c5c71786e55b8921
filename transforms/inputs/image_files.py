"""Image files of their own, named by a listing, a manifest or a row: reference -> record."""

from __future__ import annotations

from transforms import storage
from transforms.core.types import Failure, Record
from transforms.inputs.base import failure, machine_failure
from transforms.inputs.faults import MachineError, is_retryable, persist
from transforms.inputs.types import RecordRef


def read_file(ref: RecordRef) -> Record | Failure:
    """The image file of a record; a failure of stage read where it cannot be read, after tries with back-off.

    Raises:
        MachineError: if too many files in a row cannot be read, and not for what they are.
    """
    try:
        data = persist(lambda: storage.read_bytes(ref.uri, ref.version))
    except MachineError:
        raise
    except Exception as error:
        return (machine_failure if is_retryable(error) else failure)(ref.key, ref.uri, error)
    return Record(ref.key, ref.uri, data, ref.label, dict(ref.extras))
