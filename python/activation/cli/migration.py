"""The first migration: a loop on the app's own users table, as SQL and as Python for Alembic. Every statement runs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..text import dollar_quoted, literal
from .catalog import Candidate, Users

TIMEOUT = "7 days"
#: What the app tells where no table tells of first value.
EVENT = "first_value"
#: How many candidates are worth reading.
MOST = 12

_CHOOSE = (
    "First value: what somebody does who then stays. The first table below is a guess by its name; choose another",
    "line instead, or narrow the query. SELECT * FROM activation.suggest() compares them by who stayed.",
)
_TELL = (
    "No table says whose its rows are, so the app tells of first value itself, where it happens:",
    f"SELECT activation.track('42', '{EVENT}'), with the user's key.",
)
_QUIET = (
    "After installing, the mode is capture: nothing is sent, and messages end as captured. Where mail is live already,",
    "this loop mails those who sign up from now on.",
)


@dataclass(frozen=True)
class Plan:
    """What the migration defines."""

    users: Users
    candidates: Sequence[Candidate]

    @property
    def loop(self) -> str:
        """The loop's name: first_project, of the table projects."""
        if not self.candidates:
            return EVENT
        word = re.sub(r"\W+", "_", self.candidates[0].name).strip("_").lower()
        word = re.sub(r"ies$", "y", word) if word.endswith("ies") else re.sub(r"(?<![su])s$", "", word)
        return f"first_{word or 'value'}"[:40]

    @property
    def queries(self) -> list[tuple[str, str]]:
        """What is waited for, and in words where it comes from; the first is the one that is used."""
        if not self.candidates:
            return [(f"SELECT 1 FROM activation.event WHERE user_id = $1::text AND event = '{EVENT}'", "")]
        first, *others = self.candidates[:MOST]
        # Its index is made beforehand.
        return [(first.query, _rows(first)), *((found.query, _remark(found)) for found in others)]

    @property
    def personalization(self) -> dict[str, str]:
        """A name to greet by, where the templates would not find it by themselves."""
        person = self.users.person
        if person is None or person == "name" or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", person):
            return {}
        return {"name": "{{user." + person + "}}"}

    @property
    def set_users(self) -> str:
        """The call that names the users table."""
        users = self.users
        arguments = [literal(users.table), f"key => {literal(users.key)}", f"email => {literal(users.email)}"]
        if users.timezone is not None:
            arguments.append(f"timezone => {literal(users.timezone)}")
        return f"SELECT activation.set_users({', '.join(arguments)})"

    @property
    def index(self) -> str | None:
        """The index that the condition wants, where there is none."""
        if not self.candidates or self.candidates[0].indexed:
            return None
        return f"CREATE INDEX ON {self.candidates[0].table} ({self.candidates[0].column})"


def as_sql(plan: Plan) -> str:
    """A script for psql."""
    comments = _CHOOSE if plan.candidates else _TELL
    conditions = []
    for number, (query, remark) in enumerate(plan.queries):
        start = "" if number == 0 else "-- "
        call = f"activation.query({dollar_quoted(query)}, timeout => '{TIMEOUT}')"
        conditions.append(f"  {start}condition => {call},{remark and ' -- ' + remark}")
    given = f", personalization => {literal(json.dumps(plan.personalization))}" if plan.personalization else ""
    lines = [
        "-- Written by `activation init`. Read it, change it, and run it as the owner of the tables:",
        "--   psql -X -v ON_ERROR_STOP=1 -1 -f THIS_FILE",
        *(f"-- {line}" for line in _QUIET),
        "",
        "CREATE EXTENSION IF NOT EXISTS activation CASCADE;",
        "",
        f"{plan.set_users};",
        "",
        *(
            [
                "-- The condition is asked often, for one user at a time, and no index finds their rows:",
                f"{plan.index};",
                "",
            ]
            if plan.index
            else []
        ),
        *(f"-- {line}" for line in comments),
        f"SELECT activation.define_loop({literal(plan.loop)},",
        f"  trigger   => activation.on_insert({literal(plan.users.table)}),",
        *conditions,
        f"  action    => activation.email('activation_welcome'{given}),",
        f"  otherwise => activation.email('activation_nudge'{given}));",
        "",
        "-- Who sends, and where people unsubscribe, is for you to fill in:",
        "-- SELECT activation.configure(sender => 'Acme <hello@acme.dev>', api_key => 'env:RESEND_API_KEY',",
        "--   public_url => 'https://acme.dev/activation');",
    ]
    return "\n".join(lines) + "\n"


#: What a migration for Alembic imports. The first registers op.define_loop.
IMPORTS = "import activation.alembic  # noqa: F401\nfrom activation.loops import Loop, email, on_insert, query"


def as_python(plan: Plan) -> tuple[str, str]:
    """The bodies of upgrade() and downgrade(), indented but for their first lines, as Alembic's templates take them."""
    comments = _CHOOSE if plan.candidates else _TELL
    conditions = []
    for number, (text, remark) in enumerate(plan.queries):
        start = "" if number == 0 else "# "
        call = f'query({json.dumps(text, ensure_ascii=False)}, timeout="{TIMEOUT}")'
        conditions.append(f"        {start}condition={call},{remark and '  # ' + remark}")
    given = f", personalization={json.dumps(plan.personalization)}" if plan.personalization else ""
    lines = [
        "# Written by `activation init`.",
        *(f"# {line}" for line in _QUIET),
        'op.execute("CREATE EXTENSION IF NOT EXISTS activation CASCADE")',
        _execute(plan.set_users),
        *(
            [
                "# The condition is asked often, for one user at a time, and no index finds their rows:",
                _execute(plan.index),
            ]
            if plan.index
            else []
        ),
        *(f"# {line}" for line in comments),
        "op.define_loop(",
        "    Loop(",
        f"        {json.dumps(plan.loop)},",
        f"        trigger=on_insert({json.dumps(plan.users.table, ensure_ascii=False)}),",
        *conditions,
        f'        action=email("activation_welcome"{given}),',
        f'        otherwise=email("activation_nudge"{given}),',
        "    )",
        ")",
    ]
    return "\n    ".join(lines), f"op.archive_loop({json.dumps(plan.loop)})"


def _rows(found: Candidate) -> str:
    return "" if found.rows is None else f"about {found.rows:,} rows"


def _remark(found: Candidate) -> str:
    return ", ".join(filter(None, (_rows(found), "" if found.indexed else f"no index on {found.column}")))


def _execute(statement: str) -> str:
    # op.execute() reads :name as a parameter.
    escaped = re.sub(r"(?<!:):(?=\w)", r"\:", statement)
    return f"op.execute({json.dumps(escaped, ensure_ascii=False)})"
