"""Loops as Python: the builders of SQL under the same names, with the same arguments and defaults.

    from activation.loops import Loop, email, on_insert, query

    welcome = Loop(
        "first_project",
        trigger=on_insert("users"),
        condition=query("SELECT 1 FROM projects WHERE owner_id = $1", timeout="5m"),
        action=email("activation_welcome"),
    )
    connection.execute(*welcome.statement())      # psycopg; one SELECT activation.define_loop(…)

The functions and the class have the arguments and defaults that activation.schema names: they are written out here for
editors and type checkers, and a test compares. Nothing is checked here: the server checks a loop when it is defined,
and its errors say what to do. Two loops are equal when they are written alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import time, timedelta
from decimal import Decimal
from typing import Any

from activation import schema
from activation.schema import REQUIRED
from activation.text import literal

__all__ = [
    "Action",
    "Condition",
    "Loop",
    "Recovery",
    "SendWindow",
    "Step",
    "Template",
    "Trigger",
    "email",
    "on_delete",
    "on_event",
    "on_insert",
    "on_schedule",
    "on_update",
    "query",
    "retry",
    "send_window",
    "step",
]

Interval = str | timedelta
Values = dict[str, str]
#: Takes a value as text, and returns what stands for it in the statement.
Bind = Callable[[str], str]


class Statement:
    """What can be run: one SELECT."""

    def render(self, bind: Bind) -> str:
        """What is selected. bind: takes a value as text, returns what stands for it."""
        raise NotImplementedError

    def statement(self, placeholder: str = "%({})s") -> tuple[str, Values]:
        """One SELECT and the values that are bound in it, all of them texts.

        placeholder: how the driver writes a parameter, {} being its name: as it is for psycopg, `:{}` for SQLAlchemy's
        text(). For those that count them, see numbered().
        """
        values: Values = {}

        def bind(value: str) -> str:
            name = f"p{len(values) + 1}"
            values[name] = value
            return placeholder.format(name)

        return f"SELECT {self.render(bind)}", values

    def numbered(self) -> tuple[str, list[str]]:
        """The same for a driver that counts its parameters ($1, $2 …), such as asyncpg: `execute(sql, *values)`."""
        values: list[str] = []

        def bind(value: str) -> str:
            values.append(value)
            return f"${len(values)}"

        return f"SELECT {self.render(bind)}", values

    def sql(self) -> str:
        """The same statement with the values written into it, for scripts and offline migrations."""
        return f"SELECT {self.render(literal)}"


@dataclass(frozen=True)
class Call(Statement):
    """A call of one of activation's functions: what the builders return. Make it with them."""

    function: str
    #: Name, type in SQL and value of the arguments that differ from their defaults.
    arguments: tuple[tuple[str, str, Any], ...]

    def __repr__(self) -> str:
        return f"{self.function}({', '.join(f'{name}={value!r}' for name, _, value in self.arguments)})"

    def render(self, bind: Bind) -> str:
        """The call in SQL."""
        given = ", ".join(f'"{name}" => {render_value(value, kind, bind)}' for name, kind, value in self.arguments)
        return f"activation.{self.function}({given})"


class Trigger(Call):
    """When a loop begins."""


class Condition(Call):
    """What a step waits for, or a loop's goal."""


class Action(Call):
    """What a step mails."""


class Recovery(Call):
    """What happens when Resend answers an error."""


class SendWindow(Call):
    """When a loop may mail."""


class Step(Call):
    """A step of a loop."""


@dataclass(frozen=True, repr=False)
class Loop(Statement):
    """A loop, as activation.define_loop() takes it; see docs/loops.md for what each argument means.

    owner and names are the role and the search_path that define it unless they are given.
    """

    name: str
    trigger: Trigger | None = None
    condition: Condition | None = None
    action: Action | None = None
    otherwise: Action | None = None
    steps: Sequence[Step] | None = None
    goal: Condition | None = None
    type: str = "activation"
    opinion: str | None = None
    recovery: Recovery | None = None
    reentry: Interval = "once"
    enroll: str = "new"
    per_hour: int | None = None
    users: str | None = None
    topic: str | None = None
    transactional: bool = False
    priority: int = 0
    over_cap: str = "wait"
    holdout: float | Decimal = 0
    send_window: SendWindow | None = None
    owner: str | None = None
    names: str | None = None

    def __post_init__(self) -> None:
        # A list would make it impossible to hash.
        if self.steps is not None:
            object.__setattr__(self, "steps", tuple(self.steps))

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, _, value in self._arguments()[1:])
        return f"Loop({self.name!r}{given and ', ' + given})"

    def render(self, bind: Bind) -> str:
        """The call of define_loop() in SQL."""
        return Call("define_loop", self._arguments()).render(bind)

    def functions(self) -> set[str]:
        """The names of the builders that it is made with."""
        return _functions(self._arguments())

    def _arguments(self) -> tuple[tuple[str, str, Any], ...]:
        return _given(schema.DEFINE_LOOP, {name: getattr(self, name) for name in schema.DEFINE_LOOP})


@dataclass(frozen=True, repr=False)
class Template(Statement):
    """A template of the database's own, as activation.set_template() takes it; see docs/templates.md."""

    name: str
    subject: str
    html: str | None = None
    body_text: str | None = None

    def __repr__(self) -> str:
        given = "".join(
            f", {name}={getattr(self, name)!r}" for name in ("html", "body_text") if getattr(self, name) is not None
        )
        return f"Template({self.name!r}, {self.subject!r}{given})"

    def render(self, bind: Bind) -> str:
        """The call of set_template() in SQL."""
        return Call("set_template", _given(TEMPLATE, {name: getattr(self, name) for name in TEMPLATE})).render(bind)


#: The arguments of set_template(). A test compares them with the server's.
TEMPLATE: schema.Signature = {
    "name": ("text", REQUIRED),
    "subject": ("text", REQUIRED),
    "html": ("text", None),
    "body_text": ("text", None),
}


def on_insert(table_name: str, user_key: str | None = None, filter: str | None = None) -> Trigger:
    """A row inserted into a table.

    table_name: as SQL writes it, with its schema where that is not on the path. user_key: the column with the user's
    key where it is not the users table. filter: an SQL expression over NEW; only rows for which it is true count.
    """
    return Trigger("on_insert", _arguments("on_insert", locals()))


def on_update(
    table_name: str, columns: Sequence[str], user_key: str | None = None, filter: str | None = None
) -> Trigger:
    """A row in which one of columns changed. filter: an SQL expression over OLD and NEW; the rest as for on_insert().

    Raises TypeError if columns is one text.
    """
    if isinstance(columns, str):
        raise TypeError(f'on_update: columns is a text; give a list of names, such as ["{columns}"]')
    columns = tuple(columns)
    return Trigger("on_update", _arguments("on_update", locals()))


def on_delete(table_name: str, user_key: str | None = None, filter: str | None = None) -> Trigger:
    """A row deleted from a table other than the users table. filter: an SQL expression over OLD; the rest as for
    on_insert()."""
    return Trigger("on_delete", _arguments("on_delete", locals()))


def on_event(event: str) -> Trigger:
    """An event told by activation.track(user_id, event, …)."""
    return Trigger("on_event", _arguments("on_event", locals()))


def on_schedule(cron: str, query: str) -> Trigger:
    """Everybody whom a query returns, at the times of a cron expression. query: one SELECT of a column, users' keys."""
    return Trigger("on_schedule", _arguments("on_schedule", locals()))


def query(
    sql: str,
    timeout: Interval | None = None,
    every: Interval | None = None,
    watch: Mapping[str, str | None] | None = None,
) -> Condition:
    """A condition: one SELECT with $1 for the user's key, true when it returns a row.

    timeout: how long to wait for it (for ever without one). every: how often to ask again where changes cannot be seen.
    watch: {"table": "column of the user's key"} for tables that only a function reads.
    """
    return Condition("query", _arguments("query", locals()))


def email(
    template: str,
    personalization: Mapping[str, str] | None = None,
    subject: str | None = None,
    sender: str | None = None,
    reply_to: str | None = None,
) -> Action:
    """An email from a template.

    personalization: {"variable": "Liquid text"}, each rendered with the user's row as user; None: none. subject,
    sender, reply_to: instead of the template's and the settings'.
    """
    personalization = personalization or {}
    return Action("email", _arguments("email", locals()))


def retry(
    retries: int = 3, backoff: str = "exponential", initial: Interval = "30 seconds", max: Interval = "1 hour"
) -> Recovery:
    """How often and when a mail is tried again after Resend answered an error.

    retries: the tries after the first. backoff: exponential or fixed. initial, max: the first wait and the longest.
    """
    return Recovery("retry", _arguments("retry", locals()))


def step(
    name: str,
    delay: Interval | None = None,
    condition: Condition | None = None,
    action: Action | None = None,
    otherwise: Action | None = None,
    on_timeout: str = "continue",
) -> Step:
    """A step, for Loop(steps=[…]).

    delay: to wait before it begins. action: mailed when the condition is true, or at once without one. otherwise:
    mailed when it is still false at its timeout. on_timeout: continue or exit.
    """
    return Step("step", _arguments("step", locals()))


def send_window(days: str, opens: str | time, closes: str | time, otherwise: str = "next") -> SendWindow:
    """When a loop may mail, on the user's own clock.

    days: such as Mon-Fri. opens, closes: times of day; "24:00" is a day's end. otherwise: next, or skip what is due
    outside.
    """
    return SendWindow("send_window", _arguments("send_window", locals()))


def _arguments(function: str, values: Mapping[str, Any]) -> tuple[tuple[str, str, Any], ...]:
    return _given(schema.BUILDERS[function], values)


def _given(signature: schema.Signature, values: Mapping[str, Any]) -> tuple[tuple[str, str, Any], ...]:
    """What differs from the defaults. Mappings are kept as JSON, which can be hashed and cannot be changed."""
    return tuple(
        (name, kind, _Json(json.dumps(values[name])) if isinstance(values[name], Mapping) else values[name])
        for name, (kind, default) in signature.items()
        if default is REQUIRED or values[name] != default
    )


def _functions(arguments: tuple[tuple[str, str, Any], ...]) -> set[str]:
    calls = [
        c for _, _, value in arguments for c in (value if isinstance(value, tuple) else [value]) if isinstance(c, Call)
    ]
    return {call.function for call in calls}.union(*(_functions(call.arguments) for call in calls))


class _Json(str):
    """A document as text, shown as it was written."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(json.loads(self))


def render_value(value: Any, kind: str, bind: Bind) -> str:
    """A value in SQL. Every value is bound as a text and cast, which all drivers and poolers understand alike."""
    if value is None:
        return "NULL"
    if isinstance(value, Call):
        return value.render(bind)
    if kind.endswith("[]"):
        return f"CAST(ARRAY[{', '.join(render_value(item, kind[:-2], bind) for item in value)}] AS {kind})"
    text = f"CAST({bind(_text(value))} AS text)"
    return text if kind == "text" else f"CAST({text} AS {kind})"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, timedelta):
        return f"{value.days} days {value.seconds} seconds {value.microseconds} microseconds"
    if isinstance(value, time):
        return value.isoformat()
    return str(value)
