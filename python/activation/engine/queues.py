"""The queues of the loops, and how far they were walked."""

from __future__ import annotations

import time
from typing import Any

from activation.engine.protocol import Database

#: A queue is walked from its start again so often (seconds): a message may become due before one that was claimed.
AGAIN = 1.0


class Queues:
    """Claims messages. cursors: by loop, the due time and the id of the last message claimed."""

    def __init__(self, db: Database) -> None:
        self._db = db
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

    def claim(self, wanted: int) -> tuple[list[dict[str, Any]], bool]:
        """At most so many messages that are to be rendered, and whether there were any, also such as ended here."""
        rows = self._db.execute(
            "SELECT message_id::text, loop_id, version, step, branch, next_attempt_at::text, batch_limit, email,"
            " user_row, template_mark, context, enrollment_id"
            f" FROM activation._claim_messages($1::integer, {cursors_sql(2)})",
            wanted,
            *self.columns(),
        )
        found = [row for row in rows if row["user_row"] is not None]
        for row in found:
            here = (row["next_attempt_at"], row["message_id"])
            self.cursors[row["loop_id"]] = max(self.cursors.get(row["loop_id"], here), here)
        return found, bool(rows)

    def columns(self) -> tuple[list[str], list[str], list[str]]:
        """The cursors as arguments."""
        cursors = self.cursors
        return (
            [str(loop_id) for loop_id in cursors],
            [at for at, _ in cursors.values()],
            [id_ for _, id_ in cursors.values()],
        )


def cursors_sql(first: int) -> str:
    """The columns of the cursors as parameters, the first of which has this number."""
    return f"${first}::text[]::integer[], ${first + 1}::text[]::timestamptz[], ${first + 2}::text[]::uuid[]"
