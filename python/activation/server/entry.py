"""What the PL/Python functions call.

Validators return {"message", "detail", "hint", "code"} under "error": only SQL raises, because an error raised in
PL/Python carries a traceback. What needs liquid or requests imports it when it is called: a detector does without.
"""

from __future__ import annotations

import datetime
import json
import socket
from collections.abc import Callable
from typing import Any

from activation.authoring import definition, literals, sqltext
from activation.errors import KeyUnavailable, Refusal
from activation.resend import credentials
from activation.server import bridge

run = bridge.run


def _answer(compute: Callable[[], dict[str, Any]], what: str = "the text") -> str:
    """What it computes, or the refusal. what: the user's object."""
    try:
        return json.dumps(compute())
    except Refusal as refusal:
        return json.dumps({"error": refusal.as_dict()})
    except RecursionError:
        # The server takes jsonb some thousand levels deep.
        deep = Refusal(f"{what}: is nested too deeply", hint="Nothing in it needs more than ten levels.")
        return json.dumps({"error": deep.as_dict()})


def _read(what: str, document: str) -> Any:
    """A jsonb. Its numbers may be of more digits than Python takes."""
    try:
        return json.loads(document)
    except ValueError:
        raise Refusal(
            f"{what}: holds a number that is too long", hint="No number in it needs over 20 digits."
        ) from None


def normalise(name: str | None, document: str) -> str:
    """A definition with every default, or what is wrong with it. name: None where it has none yet."""
    what = f'loop "{name}"'
    return _answer(lambda: {"definition": definition.normalise(name, _read(what, document))}, what)


def fragment(kind: str, document: str) -> str:
    """A part of a definition, as a builder returns it, or what is wrong with it."""
    loop = "(being defined)"
    what = f'loop "{loop}"'
    return _answer(lambda: {"definition": definition.fragment(loop, kind, _read(what, document))}, what)


def query_strings(sql: str, parameters: int) -> str:
    """A query without semicolon, and the same with a parameter in place of each string that the server would read."""

    def compute() -> dict[str, Any]:
        text = sqltext.without_terminator(sql)
        strings = literals.literals(text, parameters)
        return {
            "text": text,
            "prepared": literals.with_parameters(text, strings, parameters + 1),
            "strings": len(strings),
        }

    return _answer(compute, "it")


def query_text(sql: str, key_type: str | None, string_types: list[str] | None = None) -> str:
    """The forms of a query about a user: without semicolon, freed of `*`, with a key to explain, and with the key of a
    row named "activation key". string_types: the types of its strings, to be written out."""
    body = sqltext.without_terminator(sql)
    if string_types is not None:
        body = literals.with_types(body, literals.literals(body, 1), string_types)
    key = f"(pg_catalog.current_setting('activation.key', true)::{key_type})"
    return json.dumps(
        {
            "body": body,
            "starless": sqltext.without_star(body),
            "explained": sqltext.with_parameter(body, key),
            "keyed": sqltext.with_parameter(body, f'("activation key".key::{key_type})'),
        }
    )


def row_columns(expression: str, row: str, columns: list[str]) -> list[str]:
    """The columns of a row that an expression names."""
    return sqltext.row_columns(expression, row, columns)


def next_run(expression: str, timezone: str, after: str) -> str:
    """When a cron expression is due next after a time, on the clock of a time zone."""

    from activation.authoring import cron

    return cron.next_after(expression, timezone, datetime.datetime.fromisoformat(after)).isoformat()


def coverage(plan: str, key_expressions: list[str]) -> str:
    """Which tables can make a condition true, read from its plan."""

    from activation.authoring import coverage

    found = coverage.coverage(json.loads(plan), key_expressions)
    return json.dumps(
        {"covered": sorted(found.covered), "uncovered": sorted(found.uncovered), "negative": found.negative}
    )


def read_token(key: str, token: str | None) -> int | None:
    """The enrollment that a link to unsubscribe is of. None for a token that is not ours."""

    from activation.mail import unsubscribe

    return unsubscribe.read(key, token) if token is not None else None


def webhook_problem(
    body: str, webhook_id: str, timestamp: str, signatures: str, references: str | None, stored: str | None, now: float
) -> str | None:
    """Why a webhook is not believed: {"status", "problem"}, the HTTP status to answer and a sentence. None: it is."""
    from activation.resend import signature

    known = json.loads(stored or "{}")
    readable: list[bytes] = []
    problems: list[str] = []
    for reference in (references or "").split():
        try:
            readable.append(credentials.webhook_key(reference, known.get))
        except KeyUnavailable as problem:
            # While a secret is rotated there are two, and one that cannot be read takes nothing from the other.
            problems.append(str(problem))
    if not readable:
        return json.dumps({"status": 503, "problem": "; ".join(problems) or "no webhook_secret is configured"})
    try:
        signature.verify(body, webhook_id, timestamp, signatures, readable, now)
    except signature.BadSignature as problem:
        return json.dumps({"status": 401, "problem": "; ".join([str(problem), *problems])})
    return None


def query_names(sql: str) -> str:
    """What simulate() must know of a query: its names, what it calls, and whether it asks the clock."""

    from activation.insight import as_of

    return json.dumps(
        {
            "clock": as_of.depends_on_clock(sql),
            "called": as_of.called(sql),
            "names": as_of.names(sql),
            "escaped": as_of.has_escaped_names(sql),
        }
    )


def as_of(sql: str, tables: str, key: str, at: str) -> str:
    """A query as it would have answered at an earlier moment."""

    from activation.insight import as_of

    return as_of.as_of(sql, [as_of.TimedTable(**table) for table in json.loads(tables)], key, at)


def suggest_rank(plan: str, counted: str, totals: str) -> str:
    """The actions that go with staying, best first, from what was counted."""

    from activation.insight import suggestion

    return json.dumps(suggestion.rank(json.loads(plan), json.loads(counted), json.loads(totals)))


def skene_config(name: str | None, config: str, users: str) -> str:
    """A skene.config.ts as a definition, or what is wrong with it."""

    from activation.authoring import skene

    return _answer(lambda: skene.read(name, config, json.loads(users)), f'loop "{name}"')


def journey(name: str | None, text: str) -> str:
    """The milestones of a journey.yaml, or what is wrong with it."""

    from activation.authoring import journey

    return _answer(lambda: journey.read(name, text), f'loop "{name}"')


def check_template(
    what: str, subject: str, html: str | None, text: str | None, personalization: str | None, columns: list[str] | None
) -> str:
    """What is wrong with a template, if anything. columns: of the users table, None if unknown."""

    from activation.mail import render

    def compute() -> dict[str, Any]:
        source = render.Source(subject, html, text)
        if columns is None:
            render.check_syntax(source, what)
        else:
            render.check(source, _read(what, personalization or "{}"), columns, what)
        return {}

    return _answer(compute, what)


def built_in_template(name: str) -> str | None:
    """The template of that name that comes with the package."""

    from activation.mail import render

    source = render.built_in(name)
    return (
        None
        if source is None
        else json.dumps({"subject": source.subject, "html": source.html, "body_text": source.text})
    )


def preview(action: str, loop: str, user_row: str, subject: str, html: str | None, text: str | None) -> str:
    """A mail for one user's row, or why it cannot be made."""

    from activation.mail import compose, render

    try:
        mail = compose.rendered_mail(json.loads(action), loop, user_row, None, render.Source(subject, html, text))
    except Exception as error:
        return json.dumps({"problem": compose.reason(error)})
    return json.dumps({"subject": mail.subject, "html": mail.html, "body_text": mail.text})


def is_reference(text: str) -> bool:
    """Whether a setting leads to a secret, and is none itself."""
    return credentials.is_reference(text)


def mailbox(what: str, text: str) -> str:
    """A sender as mail programs read it, or what is wrong with it."""

    from activation.mail import mailbox

    return _answer(lambda: {"mailbox": mailbox.mailbox(what, text)}, what)


def folded_address(text: str) -> str:
    """What an address is compared by."""

    from activation.mail import address

    return address.folded(text)


def key_problem(reference: str | None, stored: str | None) -> str | None:
    """Why the key cannot be read on this server, or None. The key itself goes nowhere."""
    try:
        credentials.resolve(reference, lambda _: stored)
    except KeyUnavailable as error:
        return str(error)
    return None


def webhook_secret_problem(reference: str, stored: str | None) -> str | None:
    """As key_problem(), of a secret that signs webhooks."""
    try:
        credentials.webhook_key(reference, lambda _: stored)
    except KeyUnavailable as error:
        return str(error)
    return None


def host_name() -> str:
    """The name of this machine."""
    return socket.gethostname()


def detect(plpy: Any, slot: int) -> None:
    """One run of a detector."""

    from activation.engine import workers

    workers.detect(bridge.PlpyDatabase(plpy), slot)


def deliver(plpy: Any, slot: int, folder: str) -> None:
    """One run of a deliverer. folder: where the package of this version is."""

    from activation.engine import workers

    bridge.check_origin(plpy, folder)
    workers.deliver(bridge.PlpyDatabase(plpy), slot)


def tick(plpy: Any, folder: str) -> None:
    """All that is due now. folder: see deliver()."""

    from activation.engine import workers

    bridge.check_origin(plpy, folder)
    workers.tick(bridge.PlpyDatabase(plpy))


def pull_webhooks(plpy: Any, folder: str) -> None:
    """One run of a puller. folder: see deliver()."""

    from activation.engine import workers

    bridge.check_origin(plpy, folder)
    workers.pull_webhooks(bridge.PlpyDatabase(plpy))


def sync_suppressions(plpy: Any, folder: str) -> None:
    """Make Resend's list of suppressed addresses and ours the same. folder: see deliver()."""

    from activation.engine import workers

    bridge.check_origin(plpy, folder)
    workers.sync_suppressions(bridge.PlpyDatabase(plpy))


def report(overview: str) -> str:
    """The dashboard as a page, from what overview() returns."""

    from activation import pages

    return pages.dashboard(json.loads(overview))
