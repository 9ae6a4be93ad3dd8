"""What a loop's definition holds: every key with its kind, default, limits and meaning.

One table for all who must agree on it. The checker of documents (authoring/definition.py) and the builders in Python
(loops.py) read it, docs/definition.md is made from it (scripts/document_schema.py), and test/define/test_schema.py
holds the builders in SQL to it. Apps import this module, so it imports nothing of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final


class _Required:
    """Stands for the default of an argument that has none."""

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Final = _Required()

#: What a value may be, by the kind of its key. The kinds of parts are the names in PARTS.
KINDS = {
    "text": "a text",
    "line": "a text of one line",
    "sql": "an SQL text",
    "choice": "{choices}",
    "whole": "a whole number from {low} to {high}",
    "share": "a number from {low} to {high}",
    "boolean": "`true` or `false`",
    "duration": "a duration, such as `3 days`",
    "reentry": "`once`, `always`, or a duration",
    "cron": "a cron expression of five fields",
    "days": "days, such as `Mon-Fri` or `Mon,Wed,Sat`",
    "time": "a time of day, such as `09:00`",
    "table": "a table, as SQL writes it",
    "users": "a users table, as SQL writes it",
    "column": "a column",
    "columns": "a list of columns",
    "mailbox": "a mailbox, such as `Acme <hello@acme.dev>`",
    "variables": "an object of names and Liquid texts",
    "watch": "an object of tables, each with a column or null",
    "steps": "a list of 1 to {high} [steps](#a-step)",
    "trigger": "a [trigger](#a-trigger)",
    "condition": "a [condition](#a-condition)",
    "email": "an [email](#an-email)",
    "recovery": "a [recovery](#a-recovery)",
    "send_window": "a [send window](#a-send-window)",
}


@dataclass(frozen=True)
class Key:
    """A key of a document.

    default: what stands in a complete definition where the document gives none. sql: the type of the builder's
    argument; "" where no argument sets it. argument: its name, where it is another one than the key's.
    argument_default: its default, where it is another one than the key's.
    """

    name: str
    kind: str
    sql: str
    meaning: str
    default: Any = None
    required: bool = False
    choices: tuple[str, ...] = ()
    limits: tuple[float, float] | None = None
    argument: str = ""
    argument_default: Any = ...

    @property
    def described(self) -> str:
        """What a value may be, in words."""
        low, high = self.limits or (0, 0)
        choices = " or ".join(f"`{choice}`" for choice in self.choices)
        return KINDS[self.kind].format(choices=choices, low=low, high=high)

    def parameter(self) -> tuple[str, tuple[str, Any]]:
        """The builder's argument: its name, its type in SQL, and its default."""
        default = self.default if self.argument_default is ... else self.argument_default
        return self.argument or self.name, (self.sql, REQUIRED if self.required else default)


@dataclass(frozen=True)
class Part:
    """A part of a document: an object with these keys, in the order of the builder's arguments."""

    keys: tuple[Key, ...]

    def __getitem__(self, name: str) -> Key:
        return next(key for key in self.keys if key.name == name)

    @property
    def names(self) -> list[str]:
        return [key.name for key in self.keys]


#: The steps of a loop.
MOST_STEPS = 1_000

_CONDITION = Key("condition", "condition", "jsonb", "what the step waits for; without one it waits for nothing")
_ACTION = Key("action", "email", "jsonb", "what is mailed when the condition is true, or at once without one")
_OTHERWISE = Key("otherwise", "email", "jsonb", "what is mailed when the condition is still false at its timeout")
#: A loop of one step may have these in place of its steps.
SHORT = (_CONDITION.name, _ACTION.name, _OTHERWISE.name)

LOOP = Part(
    (
        Key(
            "trigger",
            "trigger",
            "jsonb",
            "what starts it, which every loop needs; it may stand in the first step instead",
        ),
        _CONDITION,
        _ACTION,
        _OTHERWISE,
        Key(
            "steps",
            "steps",
            "jsonb[]",
            "what happens, in this order; or `condition`, `action` and `otherwise` of the only one",
            limits=(1, MOST_STEPS),
        ),
        Key("goal", "condition", "jsonb", "when a user counts as activated; it has no timeout"),
        Key(
            "type",
            "choice",
            "text",
            "what the loop is for, for people to read",
            default="activation",
            choices=("activation", "retention"),
        ),
        Key("opinion", "text", "text", "why you believe in the loop, for people to read"),
        Key("recovery", "recovery", "jsonb", "what happens when Resend answers an error"),
        Key("reentry", "reentry", "text", "whether, and how long afterwards, a user may enter again", default="once"),
        Key(
            "enroll",
            "choice",
            "text",
            "whose rows count: those inserted from now on, those that are there, or both",
            default="new",
            choices=("new", "existing", "both"),
        ),
        Key(
            "per_hour",
            "whole",
            "integer",
            "how many existing users enter in an hour, at most",
            limits=(1, 10_000_000),
        ),
        Key("users", "users", "regclass", "whom the loop is about, where it could be several tables"),
        Key("topic", "text", "text", "what its mails are about: users can unsubscribe from a topic"),
        Key(
            "transactional",
            "boolean",
            "boolean",
            "whether its mails go out over the cap and to those who unsubscribed",
            default=False,
        ),
        Key(
            "priority",
            "whole",
            "integer",
            "loops with a higher one mail first",
            default=0,
            limits=(-1000, 1000),
        ),
        Key(
            "over_cap",
            "choice",
            "text",
            "what is over the cap of mails a user waits, or is dropped",
            default="wait",
            choices=("wait", "skip"),
        ),
        Key(
            "holdout",
            "share",
            "numeric",
            "the share of users who get no mail, to compare with",
            default=0,
            limits=(0, 0.9),
        ),
        Key("send_window", "send_window", "jsonb", "when the loop may mail"),
    )
)

STEP = Part(
    (
        Key(
            "name",
            "text",
            "text",
            "what the step is called; no other step has the name, and none is called `goal`. Default: `step1`, "
            "`step2` …",
            argument_default=REQUIRED,
        ),
        Key(
            "delay",
            "duration",
            "interval",
            "how long to wait before the step begins",
            default="00:00:00",
            argument_default=None,
        ),
        _CONDITION,
        _ACTION,
        _OTHERWISE,
        Key(
            "on_timeout",
            "choice",
            "text",
            "what follows when the condition is still false at its timeout: the next step, or the loop's end",
            default="continue",
            choices=("continue", "exit"),
        ),
    )
)

#: A trigger has the key `type`, which is one of these, and the keys that go with it.
TRIGGERS = {
    "database": Part(
        (
            Key("table", "table", "regclass", "the table whose rows count", required=True, argument="table_name"),
            Key(
                "event",
                "choice",
                "",
                "what happens to a row",
                required=True,
                choices=("insert", "update", "delete"),
            ),
            Key(
                "columns",
                "columns",
                "name[]",
                "the columns whose change counts; for updates only, which need it",
                argument_default=REQUIRED,
            ),
            Key("user_key", "column", "name", "the column with the user's key, where it is not the users table"),
            Key("filter", "sql", "text", "an expression over `NEW` and `OLD`; only rows for which it is true count"),
        )
    ),
    "event": Part((Key("event", "text", "text", "the event, as `activation.track()` tells it", required=True),)),
    "schedule": Part(
        (
            Key("cron", "cron", "text", "when the query is asked", required=True),
            Key("query", "sql", "text", "one `SELECT` of one column: the keys of the users who enter", required=True),
        )
    ),
}
TRIGGER_TYPE = Key("type", "choice", "", "what the trigger listens to", default="database", choices=tuple(TRIGGERS))

CONDITION = Part(
    (
        Key("type", "choice", "", "what kind of condition it is", default="query", choices=("query",)),
        Key(
            "query",
            "sql",
            "text",
            "one `SELECT` with `$1` for the user's key, true when it returns a row",
            required=True,
            argument="sql",
        ),
        Key("timeout", "duration", "interval", "how long to wait from the step's start; for ever without one"),
        Key("every", "duration", "interval", "how often to ask again where changes cannot be seen"),
        Key("watch", "watch", "jsonb", "tables that only a function reads, with the column of the user's key"),
    )
)

EMAIL = Part(
    (
        Key("type", "choice", "", "what kind of action it is", default="email", choices=("email",)),
        Key("provider", "choice", "", "who delivers it", default="resend", choices=("resend",)),
        Key("template", "text", "text", "the name of a template", required=True),
        Key(
            "personalization",
            "variables",
            "jsonb",
            "variables of the template, each rendered with the user's row as `user`",
            default={},
        ),
        Key("subject", "line", "text", "in place of the template's"),
        Key("sender", "mailbox", "text", "in place of the settings'"),
        Key("reply_to", "mailbox", "text", "in place of the settings'"),
    )
)

RECOVERY = Part(
    (
        Key("retries", "whole", "integer", "the tries after the first", default=3, limits=(0, 20)),
        Key(
            "backoff",
            "choice",
            "text",
            "whether each wait is as long as the one before, or twice as long",
            default="exponential",
            choices=("fixed", "exponential"),
        ),
        Key("initial", "duration", "interval", "the wait before the first retry", default="30 seconds"),
        Key("max", "duration", "interval", "the longest wait", default="1 hour"),
    )
)

SEND_WINDOW = Part(
    (
        Key("days", "days", "text", "on the user's own clock", required=True),
        Key("opens", "time", "time", "on the user's own clock", required=True),
        Key("closes", "time", "time", "earlier than `opens`: on the next day. `24:00` is a day's end", required=True),
        Key(
            "otherwise",
            "choice",
            "text",
            "what is due outside waits for the next window, or is dropped",
            default="next",
            choices=("next", "skip"),
        ),
    )
)

#: The parts, by the kind of the keys that hold them. A trigger's depend on its type.
PARTS = {"condition": CONDITION, "email": EMAIL, "recovery": RECOVERY, "send_window": SEND_WINDOW}

#: The arguments of a function: their types in SQL and their defaults.
Signature = dict[str, tuple[str, Any]]


def _signature(part: Part, *left_out: str) -> Signature:
    return dict(key.parameter() for key in part.keys if key.sql and key.name not in left_out)


#: The functions that make a part, in SQL and in Python alike.
BUILDERS: dict[str, Signature] = {
    "on_insert": _signature(TRIGGERS["database"], "columns"),
    "on_update": _signature(TRIGGERS["database"]),
    "on_delete": _signature(TRIGGERS["database"], "columns"),
    "on_event": _signature(TRIGGERS["event"]),
    "on_schedule": _signature(TRIGGERS["schedule"]),
    "query": _signature(CONDITION),
    "email": _signature(EMAIL),
    "retry": _signature(RECOVERY),
    "step": _signature(STEP),
    "send_window": _signature(SEND_WINDOW),
}
#: define_loop(). owner and names are not of the document; without them they are the caller's own.
DEFINE_LOOP: Signature = {
    "name": ("text", REQUIRED),
    **_signature(LOOP),
    "owner": ("name", None),
    "names": ("text", None),
}
