"""The bridge: the only module that knows plpy. PL/Python functions import it and call one function of it."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from activation import definition, keys, sqltext, watch
from activation.database import Cancelled, Failed
from activation.errors import KeyUnavailable, Refusal

#: Poll this often while there was work within the last WARM seconds, else that often (seconds).
POLL_WARM = 0.02
POLL_IDLE = 0.1
WARM = 5.0

#: Heartbeats this far apart (seconds).
BEAT = 2.0


class PlpyDatabase:
    """activation.database.Database on plpy. Plans are prepared once a call: preparing again leaks memory."""

    def __init__(self, plpy: Any) -> None:
        self._plpy = plpy
        self._plans: dict[tuple[str, tuple[str, ...]], Any] = {}

    def execute(self, sql: str, *arguments: object) -> list[dict[str, Any]]:
        types = tuple(_type(argument) for argument in arguments)
        with self._translated():
            plan = self._plans.get((sql, types))
            if plan is None:
                plan = self._plans[sql, types] = self._plpy.prepare(sql, list(types))
            return [dict(row) for row in self._plpy.execute(plan, list(arguments))]

    def commit(self) -> None:
        with self._translated():
            self._plpy.commit()

    def rollback(self) -> None:
        self._plpy.rollback()

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
            raise Failed(_message(error), error.sqlstate or "XX000") from error


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


# -- validators: they return {"message", "detail", "hint", "code"} under "error"; only SQL raises


def _answer(compute: Callable[[], dict[str, Any]]) -> str:
    try:
        return json.dumps(compute())
    except Refusal as refusal:
        return json.dumps({"error": refusal.as_dict()})


def normalise(name: str | None, document: str) -> str:
    return _answer(lambda: {"definition": definition.normalise(name, json.loads(document))})


def fragment(kind: str, document: str) -> str:
    return _answer(lambda: {"definition": definition.fragment("(being defined)", kind, json.loads(document))})


def query_text(sql: str, key_type: str) -> str:
    """The forms of a condition that the compiler needs: without semicolon, freed of `*`, and with a key to explain."""
    body = sqltext.without_terminator(sql)
    key = f"(pg_catalog.current_setting('activation.key', true)::{key_type})"
    return json.dumps(
        {"body": body, "starless": sqltext.without_star(body), "explained": sqltext.with_parameter(body, key)}
    )


def row_columns(expression: str, columns: list[str]) -> list[str]:
    return sqltext.row_columns(expression, "new", columns)


def coverage(plan: str, key_expressions: list[str]) -> str:
    found = watch.coverage(json.loads(plan), key_expressions)
    return json.dumps(
        {"covered": sorted(found.covered), "uncovered": sorted(found.uncovered), "negative": found.negative}
    )


def check_template(
    what: str, subject: str, html: str | None, text: str | None, personalization: str | None, columns: list[str] | None
) -> str:
    from activation import render

    def compute() -> dict[str, Any]:
        source = render.Source(subject, html, text)
        if columns is None:
            render.check_syntax(source, what)
        else:
            render.check(source, json.loads(personalization or "{}"), columns, what)
        return {}

    return _answer(compute)


def built_in_template(name: str) -> str | None:
    from activation import render

    source = render.built_in(name)
    return (
        None
        if source is None
        else json.dumps({"subject": source.subject, "html": source.html, "body_text": source.text})
    )


def preview(action: str, loop: str, user_row: str, subject: str, html: str | None, text: str | None) -> str:
    from activation import delivery, render
    from activation.errors import RenderError

    try:
        mail = delivery.rendered_mail(
            json.loads(action), loop, json.loads(user_row), None, render.Source(subject, html, text)
        )
    except RenderError as error:
        return json.dumps({"problem": str(error)})
    return json.dumps({"subject": mail.subject, "html": mail.html, "body_text": mail.text})


def is_reference(text: str) -> bool:
    return keys.is_reference(text)


def key_problem(reference: str | None, stored: str | None) -> str | None:
    """Why the key cannot be read on this server, or None. The key itself goes nowhere."""
    try:
        keys.resolve(reference, lambda _: stored)
    except KeyUnavailable as error:
        return str(error)
    return None


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


def host_name() -> str:
    return socket.gethostname()


class _Undo(Exception):
    """Leaves a subtransaction so that it is rolled back."""


def run(plpy: Any, names: str, statements: list[str], keep: bool) -> str:
    """Runs statements on an author's search_path in a subtransaction, and undoes them unless they are to be kept.

    Returns {"value": first column of the last statement's first row} or {"error": what the server said, with the text
    and the position in it}.
    """
    value = None
    set_path = plpy.prepare("SELECT pg_catalog.set_config('search_path', $1, true)", ["text"])
    try:
        with plpy.subtransaction():
            plpy.execute(set_path, [names])
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
                    "code": error.sqlstate,
                    "place": _place(query, position),
                }
            }
        )
    return json.dumps({"value": value})


def _place(query: str | None, position: int | None) -> str | None:
    """The line a position is in, with a caret under it, as psql shows it."""
    if not query or not position:
        return None
    before = query[: position - 1]
    number = before.count("\n") + 1
    column = len(before) - (before.rfind("\n") + 1)
    head = f"LINE {number}: "
    return f"{head}{query.splitlines()[number - 1]}\n{' ' * (len(head) + column)}^"


# -- workers ------------------------------------------------------------


def _end_of_run(db: PlpyDatabase) -> float:
    """When a run ends: one second after the next full minute, when pg_cron has queued the next one; earlier where a
    statement_timeout would end it."""
    row = db.execute(
        "SELECT extract(epoch FROM clock_timestamp())::double precision AS now,"
        " (SELECT s.setting::double precision / 1000 FROM pg_catalog.pg_settings s"
        "   WHERE s.name = 'statement_timeout') AS timeout"
    )[0]
    seconds = 61 - row["now"] % 60
    if row["timeout"]:
        seconds = min(seconds, max(row["timeout"] - 2, row["timeout"] / 2))
    return time.monotonic() + float(seconds)


@contextlib.contextmanager
def _slot(db: PlpyDatabase, kind: str, slot: int) -> Iterator[bool]:
    """Holds the lock of a worker's slot: one worker a slot. Committing workers need READ COMMITTED."""
    try:
        db.commit()
    except Failed as error:
        if error.code != "2D000":
            raise
        raise Failed(
            f"CALL activation.{kind} commits, so it cannot run inside a transaction or a function", "2D000"
        ) from None
    # A worker's statements may not be redirected by the session's search_path, nor fail for a stricter isolation level.
    kept = db.execute(
        "SELECT pg_catalog.current_setting('search_path') AS search_path,"
        " pg_catalog.current_setting('default_transaction_isolation') AS default_transaction_isolation"
    )[0]
    _set(db, "search_path", "pg_catalog, pg_temp")
    _set(db, "default_transaction_isolation", "read committed")
    db.commit()
    got = bool(
        db.execute(
            "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtext($1), $2::integer) AS got",
            f"activation {kind}",
            slot,
        )[0]["got"]
    )
    db.commit()
    try:
        yield got
    finally:
        db.rollback()
        if got:
            db.execute(
                "SELECT pg_catalog.pg_advisory_unlock(pg_catalog.hashtext($1), $2::integer)", f"activation {kind}", slot
            )
        for name, value in kept.items():
            _set(db, name, value)
        db.commit()


def _set(db: PlpyDatabase, name: str, value: str) -> None:
    db.execute("SELECT pg_catalog.set_config($1, $2, false)", name, value)


def _on_standby(db: PlpyDatabase) -> bool:
    return bool(db.execute("SELECT pg_catalog.pg_is_in_recovery() AS standby")[0]["standby"])


class _Pulse:
    """Heartbeats of one worker, and the word whether to go on."""

    def __init__(self, db: PlpyDatabase, kind: str, slot: int) -> None:
        self._db, self._kind, self._slot = db, kind, slot
        self._next = 0.0
        self._first = True
        self._worked = False
        self.go_on = True

    def beat(self, worked: bool, note: str | None) -> None:
        self._worked = self._worked or worked
        if time.monotonic() < self._next:
            return
        sql = "SELECT activation._beat($1, $2::integer, $3, $4, $5) AS go_on"
        self.go_on = bool(self._db.execute(sql, self._kind, self._slot, self._first, self._worked, note)[0]["go_on"])
        self._db.commit()
        self._first = self._worked = False
        self._next = time.monotonic() + BEAT


def detect(plpy: Any, slot: int) -> None:
    """One run of a detector: rounds until a second past the next full minute."""
    from activation.detection import Detector

    db = PlpyDatabase(plpy)
    if _on_standby(db):
        return
    with _slot(db, "detector", slot) as got:
        if not got:
            return
        detector, pulse, end, warm_until = Detector(db, slot), _Pulse(db, "detector", slot), _end_of_run(db), 0.0
        pulse.beat(False, None)
        while time.monotonic() < end and pulse.go_on:
            worked = detector.round()
            pulse.beat(worked, None)
            if worked:
                warm_until = time.monotonic() + WARM
            else:
                time.sleep(POLL_WARM if time.monotonic() < warm_until else POLL_IDLE)


def deliver(plpy: Any, slot: int) -> None:
    """One run of a deliverer: turns until a second past the next full minute, then until nothing is in flight."""
    from activation.delivery import Deliverer

    db = PlpyDatabase(plpy)
    if _on_standby(db):
        return
    with _slot(db, "deliverer", slot) as got:
        if not got:
            return
        pulse, end, warm_until = _Pulse(db, "deliverer", slot), _end_of_run(db), 0.0
        deliverer = Deliverer(db, host_name())
        try:
            pulse.beat(False, None)
            while (claim := time.monotonic() < end and pulse.go_on) or deliverer.busy:
                worked = deliverer.turn(claim)
                pulse.beat(worked, deliverer.note)
                if worked:
                    warm_until = time.monotonic() + WARM
                else:
                    _watch(db, deliverer, POLL_WARM if deliverer.busy or time.monotonic() < warm_until else POLL_IDLE)
        finally:
            deliverer.close()


def _watch(db: PlpyDatabase, deliverer: Any, seconds: float) -> None:
    """Waits with no transaction open, then touches the server once, so that a cancel or a shutdown gets through."""
    deliverer.wait(seconds)
    db.execute("SELECT 1 AS one")
    db.rollback()


def tick(plpy: Any) -> None:
    """Everything that is due: rounds and turns until there is nothing left to do now."""
    from activation.delivery import Deliverer
    from activation.detection import Detector

    db = PlpyDatabase(plpy)
    if _on_standby(db):
        return
    with _slot(db, "tick", 0):
        db.execute(
            "SELECT CASE WHEN activation._set_watching(true) THEN activation._sweep(NULL, activation._now()) END"
        )
        db.commit()
        detector, deliverer = Detector(db, None), Deliverer(db, host_name())
        try:
            while True:
                worked = detector.round()
                while deliverer.turn() or deliverer.busy or _token_soon(db, deliverer):
                    worked = True
                    if deliverer.busy:
                        _watch(db, deliverer, 0.05)
                if not worked:
                    break
        finally:
            deliverer.close()


def _token_soon(db: PlpyDatabase, deliverer: Any) -> bool:
    """Whether messages only wait for the rate limit, which frees them within a second; waits a moment if so."""
    if deliverer.note:
        return False
    rows = db.execute(
        "SELECT EXISTS (SELECT FROM activation.message m JOIN activation.loop l USING (loop_id)"
        "  WHERE m.state = 'queued' AND m.next_attempt_at <= activation._now() AND l.state = 'active') AS waiting"
    )
    db.rollback()
    if not rows[0]["waiting"]:
        return False
    time.sleep(0.02)
    return True
