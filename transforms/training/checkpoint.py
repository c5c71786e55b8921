"""Checkpoints of training, so that the same command resumes after a kill."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.core.text import differences

_PREFIX = "checkpoint-"
_RUN, _STATE = "run.json", "state.npz"


class Checkpoint:
    """Files in an output folder that say which run is unfinished there, and hold what it needs to go on.

    Every file appears in one step, so a kill at any moment leaves the state of one moment.

    Args:
        folder: the output, local or gs://. The files' names begin with "checkpoint-".
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def exists(self) -> bool:
        """Whether there is an unfinished run."""
        return storage.exists(self._uri(_RUN))

    def claim(self, run: Mapping[str, Any], *, overwrite: bool) -> bool:
        """Begin or resume a run.

        Args:
            run: everything that decides its result, in JSON terms.
            overwrite: throw another run's state away instead of refusing.

        Returns:
            Whether there is a run to go on with.

        Raises:
            ImagebeamError: if the folder holds another unfinished run, naming what differs.
        """
        run = json.loads(json.dumps(run))  # tuples become lists, as they do when saved
        before = self.load_json(_RUN)
        if before is not None:
            different = differences({name: before.get(name) for name in run}, run)
            if not different:
                return True
            if not overwrite:
                raise ImagebeamError(
                    f"{self._folder} holds an unfinished run with other options ({'; '.join(different.values())}). "
                    "Finish it with those, choose another --output, or throw it away with --overwrite."
                )
            self.remove()
        self.save_json(_RUN, run)
        return False

    def load_json(self, name: str) -> Any:
        """What was saved under a name; None where nothing was."""
        content = self._read(name)
        return None if content is None else json.loads(content)

    def save_json(self, name: str, content: Any) -> None:
        """Save something under a name."""
        storage.publish(self._uri(name), json.dumps(content).encode())

    def load_state(self, name: str = _STATE) -> tuple[dict[str, Any], list[np.ndarray]] | None:
        """The JSON values and arrays of the last `save_state` under a name; None where there was none."""
        content = self._read(name)
        if content is None:
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            values = json.loads(archive["values"].tobytes())
            return values, [archive[str(number)] for number in range(len(archive.files) - 1)]

    def save_state(self, values: Mapping[str, Any], arrays: Sequence[np.ndarray], name: str = _STATE) -> None:
        """Save JSON values and arrays, in place of the last ones of that name."""
        buffer = io.BytesIO()
        named: dict[str, Any] = {str(number): array for number, array in enumerate(arrays)}
        np.savez(buffer, values=np.frombuffer(json.dumps(values).encode(), np.uint8), **named)
        storage.publish(self._uri(name), buffer.getvalue())

    def remove(self) -> None:
        """Delete everything; what says whose it is last."""
        for info in list(storage.list_folder(self._folder)):
            name = storage.basename(info.uri)
            if name.startswith(_PREFIX) and name != _PREFIX + _RUN:
                storage.delete(info.uri)
        storage.delete(self._uri(_RUN))

    def _read(self, name: str) -> bytes | None:
        try:
            return storage.read_bytes(self._uri(name))
        except FileNotFoundError:
            return None

    def _uri(self, name: str) -> str:
        return storage.join(self._folder, _PREFIX + name)
