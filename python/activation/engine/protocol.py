"""What the engine needs of a database. server/bridge.py has it on plpy, outside.py on psycopg."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol


class Cancelled(Exception):
    """The statement was cancelled: by an operator, a timeout, or another worker."""


class Failed(Exception):
    """The statement raised. text: the server's message. code: its SQLSTATE."""

    #: Met others on its way: serialization_failure, deadlock_detected, lock_not_available.
    PASSING = ("40001", "40P01", "55P03")

    #: Classes of errors that are never about one person's data, as activation._is_about_one_person() has them.
    GENERAL = ("08", "25", "2D", "40", "42", "53", "55", "57", "58", "AC")

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.text = text
        self.code = code

    @property
    def passing(self) -> bool:
        """Whether the same may well succeed a moment later."""
        return self.code in self.PASSING

    @property
    def of_a_person(self) -> bool:
        """Whether it may come from one person's data."""
        return self.code[:2] not in self.GENERAL


def storable(text: str | None, length: int = 1000) -> str | None:
    """As much of a text as is worth keeping and can be stored: whatever somebody else wrote may hold NULs and halves of
    characters, and have any length."""
    return text and text[:length].encode("utf-8", "replace").decode().replace("\x00", "")


class Database(Protocol):
    """A session of its own. Values are those of plpy: times, UUIDs and JSON come as text."""

    def execute(self, sql: str, *arguments: object) -> list[dict[str, Any]]:
        """Run one statement with $1, $2 … and return its rows. Raises Cancelled or Failed."""

    def commit(self) -> None:
        """Commit, once what an author's code left for the commit has run."""

    def rollback(self) -> None:
        """Undo what is not committed."""

    def subtransaction(self) -> AbstractContextManager[object]:
        """A part that is undone by itself where it raises."""
