"""The queues of the loops, and how far they were walked."""

from __future__ import annotations

import time

from activation.engine.calls import Claimed, DeliverCalls

#: A queue is walked from its start again so often (seconds): a message may become due before one that was claimed.
AGAIN = 1.0


class Queues:
    """Claims messages. cursors: by loop, the due time and the id of the last message claimed."""

    def __init__(self, calls: DeliverCalls) -> None:
        self._calls = calls
        self.cursors: dict[int, tuple[str, str]] = {}
        self._rewound_at = 0.0

    @property
    def is_stale(self) -> bool:
        """Whether it is time to begin again at the start."""
        return time.monotonic() - self._rewound_at > AGAIN

    def rewind(self) -> bool:
        """Begin at the start of every queue again; False if it was there."""
        moved = bool(self.cursors)
        self.cursors, self._rewound_at = {}, time.monotonic()
        return moved

    def claim(self, wanted: int) -> tuple[list[Claimed], bool]:
        """At most so many messages that are to be rendered, and whether there were any, also such as ended here."""
        rows = self._calls.claim_messages(wanted, self.cursors)
        found = [row for row in rows if row.user_row is not None]
        for row in found:
            here = (row.next_attempt_at, row.message_id)
            self.cursors[row.loop_id] = max(self.cursors.get(row.loop_id, here), here)
        return found, bool(rows)
