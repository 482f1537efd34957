"""The filesystem broker without a race of its own, for the worker and for its client."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from kombu.transport import filesystem


class AtomicChannel(filesystem.Channel):
    """The filesystem broker, except that a message shows up only when it has been written.

    kombu's own creates the file under its final name and writes then, so that a reader can take an
    empty message and lose it.
    """

    def _put(self, queue: str, payload: Any, **kwargs: Any) -> None:
        final = self.data_folder_out
        hidden = Path(final) / f".writing-{uuid.uuid4()}"
        hidden.mkdir()
        self.data_folder_out = str(hidden)
        try:
            super()._put(queue, payload, **kwargs)
            for message in hidden.iterdir():
                message.rename(Path(final) / message.name)
        finally:
            self.data_folder_out = final
            hidden.rmdir()


filesystem.Transport.Channel = AtomicChannel
