"""The bridge to the server: the only module that knows plpy."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from activation.engine.calls import end_session, settle
from activation.engine.protocol import Cancelled, Failed


class PlpyDatabase:
    """activation.engine.protocol.Database on plpy. Plans are prepared once a call: preparing again leaks memory."""

    def __init__(self, plpy: Any) -> None:
        self._plpy = plpy
        self._plans: dict[tuple[str, tuple[str, ...]], Any] = {}

    def execute(self, sql: str, *arguments: object) -> list[dict[str, Any]]:
        types = tuple(_type(argument) for argument in arguments)
        with self._translated():
            plan = self._plans.get((sql, types))
            if plan is None:
                plan = self._plans[sql, types] = self._plpy.prepare(sql, list(types))
            try:
                return [dict(row) for row in self._plpy.execute(plan, list(arguments))]
            except (ValueError, TypeError, OverflowError, MemoryError, RecursionError) as error:
                # A value that Python cannot read, such as bytes that are no text: raised on the way from one to the
                # other, and a fault of that value.
                raise Failed(f"{type(error).__name__}: {_message(error)}", "22000") from error

    def commit(self) -> None:
        # What an author's code would have left for the commit runs before it, where nobody can take other rights; and
        # the path is ours again, whatever it was set to.
        trusted = settle(self)
        with self._translated():
            self._plpy.commit()
        if not trusted:
            end_session(self)

    def commit_settings(self) -> None:
        """Commits where no author's code has run since the last commit: what was set stays."""
        with self._translated():
            self._plpy.commit()

    def rollback(self) -> None:
        self._plpy.rollback()

    def refuse(self, message: str, hint: str, code: str) -> None:
        self._plpy.error(message, hint=hint, sqlstate=code)

    def warn(self, message: str) -> None:
        self._plpy.warning(message)

    def notice(self, message: str) -> None:
        self._plpy.notice(message)

    @contextlib.contextmanager
    def subtransaction(self) -> Iterator[None]:
        with self._translated(), self._plpy.subtransaction():
            yield

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._plpy.spiexceptions.QueryCanceled as error:
            raise Cancelled(str(error)) from error
        except self._plpy.SPIError as error:
            raise Failed(_message(error), _sqlstate(error)) from error


def _sqlstate(error: Any) -> str:
    # PL/Python has exceptions for the states that it knows; for any other, ours among them, there is only the number.
    if code := getattr(error, "sqlstate", None):
        return str(code)
    number = (getattr(error, "spidata", None) or (0,))[0] or 0
    return "".join(chr(ord("0") + (number >> 6 * i & 63)) for i in range(5)) if number else "XX000"


def _message(error: BaseException) -> str:
    return str(error.args[0]) if error.args else type(error).__name__


def _type(argument: object) -> str:
    if isinstance(argument, list):
        return "text[]"
    if isinstance(argument, bool):
        return "boolean"
    if isinstance(argument, int):
        return "bigint"
    if isinstance(argument, float):
        return "double precision"
    return "text"


def check_origin(plpy: Any, folder: str) -> None:
    """The first import of a module wins in a session: another PL/Python function may have loaded an older requests."""
    import liquid
    import requests

    for module in (requests, liquid):
        if not str(module.__file__).startswith(folder):
            plpy.error(
                f"{module.__name__} was loaded from {module.__file__} by other code of this session",
                hint="Call activation from a session of its own.",
                sqlstate="55000",
            )


class _Undo(Exception):
    """Leaves a subtransaction so that it is rolled back."""


def run(plpy: Any, names: str, statements: list[str], keep: bool, shown: str | None = None) -> str:
    """Runs statements on an author's search_path in a subtransaction, and undoes them unless they are to be kept.
    shown: what the author wrote, where a statement that is prepared holds something else in the same places.

    Returns {"value": first column of the last statement's first row} or {"error": what the server said, with the text
    and the position in it}.
    """
    value = None
    set_path = plpy.prepare("SELECT pg_catalog.set_config('search_path', $1, true)", ["text"])
    try:
        with plpy.subtransaction():
            plpy.execute(set_path, [names])
            # As the texts were read here, whatever the session says about backslashes.
            plpy.execute("SELECT pg_catalog.set_config('standard_conforming_strings', 'on', true)")
            for statement in statements:
                result = plpy.execute(statement)
                if result.nrows() and result.colnames():
                    value = next(iter(result[0].values()))
            if not keep:
                raise _Undo
            plpy.execute(set_path, ["pg_catalog, pg_temp"])
    except _Undo:
        pass
    except plpy.SPIError as error:
        # spidata: code, detail, hint, internal query, internal position (in characters, from 1), names of objects
        _, detail, hint, query, position = (tuple(getattr(error, "spidata", None) or ()) + (None,) * 5)[:5]
        return json.dumps(
            {
                "error": {
                    "message": _message(error),
                    "detail": detail,
                    "hint": hint,
                    "code": _sqlstate(error),
                    "place": _place(query, position, shown),
                }
            }
        )
    return json.dumps({"value": value})


def _place(query: str | None, position: int | None, shown: str | None) -> str | None:
    """The line a position is in, with a caret under it, as psql shows it."""
    if not query or not position:
        return None
    if shown is not None and query.startswith("PREPARE "):
        position -= query.index("\n") + 1
        query = shown
        if not 0 < position <= len(query) + 1:
            return None
    before = query[: position - 1]
    number = before.count("\n") + 1
    column = len(before) - (before.rfind("\n") + 1)
    head = f"LINE {number}: "
    return f"{head}{query.split(chr(10))[number - 1]}\n{' ' * (len(head) + column)}^"
