"""What the engine's loops need of a database: the same code runs on plpy in the server and on psycopg outside."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol


class Cancelled(Exception):
    """The statement was cancelled: by an operator, a timeout, or another worker."""


class Failed(Exception):
    """The statement raised. text: the server's message. code: its SQLSTATE."""

    #: Met others on its way: serialization_failure, deadlock_detected, lock_not_available.
    PASSING = ("40001", "40P01", "55P03")

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.text = text
        self.code = code

    @property
    def passing(self) -> bool:
        """Whether the same may well succeed a moment later."""
        return self.code in self.PASSING


class Database(Protocol):
    """execute: runs one statement with $1, $2 … and returns its rows; raises Cancelled or Failed."""

    def execute(self, sql: str, *arguments: object) -> list[dict[str, Any]]: ...

    def commit(self) -> None: ...

    def rollback(self) -> None: ...

    def subtransaction(self) -> AbstractContextManager[object]: ...
