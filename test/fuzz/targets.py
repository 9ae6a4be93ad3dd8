"""What is fed, with what, and what may come of it.

A target makes its n-th input from a random number generator and runs it. Whatever it returns is an answer that is
documented; it raises Escape for one that must not be, and every other exception is a crash.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time
import unicodedata
from collections.abc import Sequence
from random import Random
from typing import Any, ClassVar

import psycopg

import hostile
from activation.errors import RenderError
from activation.mail import render, unsubscribe
from activation.server import entry

Input = Any


class Escape(Exception):
    """What came out ought not to have."""


class Target:
    """weight: its share of the time. in_database: run() needs connect() first."""

    name: ClassVar[str]
    weight: ClassVar[float] = 1
    in_database: ClassVar[bool] = False

    def make(self, rng: Random) -> Input:
        raise NotImplementedError

    def run(self, given: Input) -> str:
        raise NotImplementedError


def _answered(answer: str) -> str:
    """What a validator said: a result, or a refusal with all its parts."""
    error = json.loads(answer, parse_constant=_no_json).get("error")
    if error is None:
        _for_the_database(answer)
        return "result"
    if not error["message"] or not re.fullmatch("[0-9A-Z]{5}", error["code"]):
        raise Escape(f"a refusal without message or code: {error}")
    if len(answer) > 20_000:
        raise Escape(f"a long refusal: {len(answer)} characters")
    _for_the_database(answer)
    return f"refused {error['code']}"


def _no_json(constant: str) -> None:
    raise Escape(f"{constant}, which is no JSON")


def _for_the_database(answer: str) -> None:
    """What jsonb does not take."""
    if re.search(r"(?<!\\)(?:\\\\)*\\u0000", answer):
        raise Escape("a NUL character, which the database cannot hold")
    if re.search(r"(?<!\\)(?:\\\\)*\\ud[89ab]..(?!\\ud[c-f])", answer):
        raise Escape("half a surrogate pair, which the database cannot hold")


# ---- loops ----

LOOPS: Sequence[dict[str, Any]] = [
    {
        "type": "activation",
        "opinion": "People who make a project stay.",
        "trigger": {
            "type": "database",
            "table": "users",
            "event": "insert",
            "user_key": "id",
            "filter": "NEW.plan = 'free'",
        },
        "steps": [
            {
                "name": "first",
                "delay": "1 hour",
                "condition": {
                    "type": "query",
                    "query": "SELECT * FROM actions WHERE user_id = $1;",
                    "timeout": "3 days",
                    "every": "1 hour",
                    "watch": {"public.actions": "user_id"},
                },
                "action": {
                    "type": "email",
                    "provider": "resend",
                    "template": "activation_welcome",
                    "personalization": {"name": "{{user.name}}", "activation_link": "https://acme.dev"},
                    "subject": "Welcome {{ user.name | default: 'there' }}",
                },
                "otherwise": {"template": "activation_nudge", "personalization": {"activation_link": "x"}},
                "onTimeout": "exit",
            },
            {
                "name": "second",
                "action": {"template": "milestone", "personalization": {"product": "Acme", "milestone": "x"}},
            },
        ],
        "goal": {"query": "SELECT 1 FROM actions WHERE user_id = $1 AND kind = 'paid'"},
        "recovery": {"retries": 3, "backoff": "exponential", "initial": "30 seconds", "max": "1 hour"},
        "reentry": "once",
        "enroll": "both",
        "perHour": 100,
        "holdout": 0.1,
        "topic": None,
        "transactional": False,
        "priority": 1,
        "over_cap": "skip",
        "send_window": {"days": "Mon-Fri", "opens": "9:00", "closes": "17:00", "otherwise": "next"},
    },
    {
        "trigger": {"type": "schedule", "cron": "0 9 * * Mon", "query": "SELECT id FROM users WHERE name IS NULL"},
        "action": {"template": "activation_nudge", "personalization": {"activation_link": "x"}},
        "type": "retention",
    },
    {
        "trigger": {"type": "event", "event": "limit_reached"},
        "condition": {"query": "SELECT FROM activation.event WHERE user_id = $1::text", "timeout": "1 day"},
        "otherwise": {"template": "activation_nudge", "personalization": {"activation_link": "x"}},
    },
    {
        "trigger": {
            "table": "users",
            "event": "update",
            "columns": ["plan", "email"],
            "filter": "OLD.plan <> NEW.plan",
        },
        "action": {"template": "activation_nudge", "personalization": {"activation_link": "x"}},
    },
]
KEYS = [
    *("type", "opinion", "trigger", "steps", "goal", "recovery", "reentry", "enroll", "per_hour", "perHour", "users"),
    *("topic", "transactional", "priority", "over_cap", "holdout", "send_window", "sendWindow", "condition", "action"),
    *("otherwise", "name", "delay", "on_timeout", "table", "event", "columns", "user_key", "filter", "cron", "query"),
    *("days", "opens", "closes", "timeout", "every", "watch", "template", "personalization", "subject", "retries"),
    *("backoff", "initial", "max", "conditon", "triggers", "provider"),
]
NAMES = ["first", "first", "first", "first", None, "", " ", "é" * 40, "a\tb", 'a"b', "x" * 63, "\u202e", "%s", "\x85"]


class ImportLoop(Target):
    name = "import_loop"
    weight = 3

    def make(self, rng: Random) -> Input:
        queries = ["SELECT 1 FROM actions WHERE user_id = $1", "NEW.plan = 'free'", "{{ user.name }}"]
        document = hostile.mutated_document(rng, rng.choice(LOOPS), KEYS, queries)
        return [rng.choice(NAMES), hostile.written(document)]

    def run(self, given: Input) -> str:
        return _answered(entry.normalise(*given))


# ---- what others have written ----

CONFIGS: Sequence[str] = [
    """\
import { defineLoop } from '@skene/sdk';
const EVENT = 'first_project' as const;
const TEXTS = { first: 'one', more: [1, -2, 0x1f, 1_0, .5, true, null, undefined] } as const;
export default defineLoop({
  type: 'activation',
  opinion: "People who make a project" + ' stay.' + TEXTS.first, /* says who? */
  steps: [
    {
      'trigger': { type: 'database', table: 'users', event: 'insert' },
      condition: {
        type: 'query',
        query: `SELECT * FROM user_actions
                 WHERE user_id = $1 AND action_type = '${EVENT}'`,
        timeout: '5m',
      },
      action: {
        type: 'email', provider: 'resend', template: 'activation_welcome',
        personalization: { name: '{{user.name}}', n: -3, activationLink: "a\\n\\x41\\u00e9\\u{1F600}" },
      },
    },
  ],
  recovery: { retries: 3, backoff: 'exponential' },
} satisfies Loop);
""",
    """\
const parts = {
  type: 'retention',
  opinion: 'Dormant',
  steps: [{
    trigger: { type: 'schedule', cron: '0 9 * * *' }, // Daily at 9 AM
    condition: { type: 'query', query: `SELECT * FROM users WHERE last < NOW() - INTERVAL '7 days';`, timeout: '10m' },
    action: { type: 'email', provider: 'resend', template: 're_engagement' }
  }],
};
export default skene.defineLoop<Loop>({ ...parts, recovery: { retries: 3 } });
""",
    """\
export default defineLoop({
  type: 'freemium',
  steps: [{
    trigger: { type: 'api', endpoint: '/api/features/*', method: 'POST' },
    condition: { type: 'usage', limit: { free: 100, paid: Infinity }, period: '30d' },
    action: { type: 'block', message: 'You have reached your limit.' }
  }]
});
""",
]

JOURNEYS: Sequence[str] = [
    """\
product: {name: Acme, generated_at: '2026-07-06T13:38:13Z'}
layers: []
stages:
- id: activation
  order: 3
  name: Activation
  milestones:
  - id: first_project
    order: 2
    name: First Project
    description: a row in projects
    evidence:
    - {source: db, reason: owner, table: public.projects}
    - {source: code, reason: route, path: app/projects.py}
    confidence: 0.9
  - {id: first_call, order: 1, name: "First\\tCall", evidence: [{source: code, path: y}], tracked_event: api_called}
connectors: []
""",
    """\
stages:
- {id: a, name: A, milestones: [&m {id: b, name: c, evidence: [{table: users}]}]}
""",
    """\
product:
  name: >
    Acme
    Inc
stages:
  - id: "one"
    order: ~
    milestones:
      - ? id
        : x
        name: |
          X
""",
]
USERS = [{"table": "public.users", "key": "id"}, {"table": "crm.person", "key": '"personId"'}]


class ImportSkene(Target):
    name = "import_skene"
    weight = 4

    def make(self, rng: Random) -> Input:
        text = hostile.mutated(rng, rng.choice(CONFIGS), CONFIGS)
        return ["first", text.replace("\0", ""), json.dumps(USERS[: rng.randrange(3)])]

    def run(self, given: Input) -> str:
        return _answered(entry.skene_config(*given))


class ImportJourney(Target):
    name = "import_journey"
    weight = 5

    def make(self, rng: Random) -> Input:
        return ["first", hostile.mutated(rng, rng.choice(JOURNEYS), JOURNEYS).replace("\0", "")]

    def run(self, given: Input) -> str:
        return _answered(entry.journey(*given))


# ---- what the world sends ----

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
OTHER = "whsec_" + base64.b64encode(b"another secret of thirty-two b.!").decode()
EVENTS: Sequence[dict[str, Any]] = [
    {
        "type": "email.bounced",
        "created_at": "2026-01-01T00:00:00Z",
        "data": {
            "email_id": "4ef9a417-02e9-4d39-ad75-9611e0fcc33c",
            "created_at": "2026-01-01T00:00:00.5+00:00",
            "to": ["u1@acme.dev"],
            "bounce": {"type": "Permanent", "subType": "General", "message": "gone"},
            "tags": {"activation_message": "00000000-0000-0000-0000-000000000001"},
        },
    },
    {
        "type": "email.complained",
        "created_at": "2026-01-01T00:00:00Z",
        "data": {"to": ["u1@acme.dev"], "tags": [{"name": "activation_message", "value": "x"}]},
    },
    {"type": "suppression.added", "created_at": "now", "data": {"email": "A@acme.dev", "origin": "manual"}},
    {"type": "suppression.removed", "data": {"email": "a@acme.dev"}},
]
EVENT_KEYS = ["type", "created_at", "data", "to", "email", "tags", "bounce", "failed", "reason", "activation_message"]
NOW = 1_767_225_600


def _signed(secret: str, webhook_id: str, timestamp: str, body: str) -> str:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    mac = hmac.digest(key, f"{webhook_id}.{timestamp}.{body}".encode(), hashlib.sha256)
    return "v1," + base64.b64encode(mac).decode()


def _event(rng: Random) -> str:
    kinds = ["email.sent", "email.delivered", "email.failed", "email.suppressed", "contact.created"]
    document = hostile.mutated_document(rng, rng.choice(EVENTS), EVENT_KEYS, kinds)
    if isinstance(document, dict) and rng.random() < 0.3:
        document["type"] = rng.choice(kinds)
    text = hostile.written(document)
    return hostile.mutated(rng, text, [text]) if rng.random() < 0.2 else text


class Webhook(Target):
    """The signature alone."""

    name = "receive_webhook"

    def make(self, rng: Random) -> Input:
        body, webhook_id, timestamp = _event(rng), "msg_1", str(NOW + rng.choice((0, 0, 299, -299, 301)))
        signature = _signed(rng.choice((SECRET, SECRET, OTHER)), webhook_id, timestamp, body)
        given = [body, webhook_id, timestamp, signature]
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            place = rng.randrange(4)
            given[place] = hostile.mutated(rng, given[place], [signature, body], 200)
        reference = rng.choice(
            ("secret:one", "secret:one secret:two", "secret:none", "", None, "env:", hostile.text(rng))
        )
        stored = {"one": SECRET, "two": rng.choice((OTHER, "whsec_", "é", "x", hostile.text(rng)))}
        return [*(part.replace("\0", "") for part in given), reference, json.dumps(stored)]

    def run(self, given: Input) -> str:
        body, webhook_id, timestamp, signatures, reference, stored = given
        problem = entry.webhook_problem(body, webhook_id, timestamp, signatures, reference, stored, float(NOW))
        if problem is not None:
            found = json.loads(problem)
            if found["status"] not in (401, 503) or not found["problem"]:
                raise Escape(f"a problem without a status: {problem}")
            return str(found["status"])
        wanted = (reference or "").split()
        known = [SECRET] * ("secret:one" in wanted) + [json.loads(stored)["two"]] * ("secret:two" in wanted)
        good = [_signed(secret, webhook_id, timestamp, body) for secret in known if secret in (SECRET, OTHER)]
        if not set(good) & set(signatures.split(" ")) or abs(int(timestamp) - NOW) > 300:
            raise Escape("a signature was believed that nobody made")
        return "believed"


class Tokens(Target):
    """Those of the links by which people leave."""

    name = "tokens"

    def make(self, rng: Random) -> Input:
        key = rng.choice(("k" * 32, "é", ""))
        token = unsubscribe.make(
            rng.choice((key, key, "other")), rng.choice((1, 2**63 - 1, 2**64 - 1, rng.randrange(2**40)))
        )
        match rng.randrange(5):
            case 0:
                token = hostile.mutated(rng, token, [token], 100)
            case 1:
                place = rng.randrange(len(token))
                token = token[:place] + rng.choice("ABCabc019-_+/= \n\u0661é") + token[place + 1 :]
            case 2:
                token = rng.choice(
                    (token.replace("-", "+"), token + "=", token + "\n", token[:-1], token.swapcase(), "")
                )
            case 3:
                token = hostile.text(rng)
        return [key, token]

    def run(self, given: Input) -> str:
        key, token = given
        found = unsubscribe.read(key, token)
        if found is None:
            return "none"
        if unsubscribe.make(key, found) != token:
            raise Escape(f"a token was believed that nobody made: enrollment {found}")
        return "believed"


# ---- templates ----

COLUMNS = ["id", "name", "email", "n", "data", "made"]
MARK = "<script>MARK"
EXPRESSIONS = [
    *("user.name", "user.n", "user.data", "user.made", "user.email", "user.missing", "user['name']", "user.data[0].a"),
    *(
        "user",
        "enrollment.context",
        "loop.name",
        "unsubscribe_url",
        "own",
        "nil",
        "empty",
        "blank",
        "'x'",
        "1",
        "-1",
        "(1..5)",
    ),
    *(
        "(1..user.n)",
        "(user.n..99)",
        "user.name.size",
        "user.data.first",
        "user.data.last",
        "own.size",
        "1e9",
        "forloop.index",
    ),
]
FILTERS = [
    *(
        "abs",
        "append: user.name",
        "at_least: 1",
        "capitalize",
        "ceil",
        "compact",
        "concat: user.data",
        "date: '%Y'",
        "first",
    ),
    *(
        "date: user.name",
        "default: 'there'",
        "divided_by: user.n",
        "divided_by: 0",
        "downcase",
        "escape",
        "escape_once",
    ),
    *(
        "floor",
        "join: user.name",
        "join",
        "last",
        "lstrip",
        "map: 'a'",
        "minus: 1",
        "modulo: 0",
        "newline_to_br",
        "size",
    ),
    *(
        "plus: user.n",
        "prepend: '<'",
        "remove: 'a'",
        "replace: 'a', user.name",
        "replace: '', 'ab'",
        "reverse",
        "round: 99",
    ),
    *(
        "slice: -3, 2",
        "slice: user.n",
        "sort",
        "sort: 'a'",
        "split: ''",
        "split: user.name",
        "strip",
        "strip_html",
        "sum",
    ),
    *(
        "strip_newlines",
        "times: user.n",
        "times: 99",
        "truncate: 5",
        "truncatewords: 99",
        "uniq",
        "upcase",
        "url_decode",
    ),
    *(
        "url_encode",
        "where: 'a', 1",
        "greeting",
        "base64_decode",
        "base64_encode",
        "nofilter",
        "find: 'a'",
        "reject: 'a'",
    ),
]
LITERALS = [
    "",
    "Hi ",
    "<p>",
    "</p>",
    "<a href='https://acme.dev'>",
    "</a>",
    "<br>",
    "<!--",
    "<![x]>",
    "&amp;",
    "\n",
    "<style>",
]
ROW_VALUES: Sequence[Any] = [
    *(
        None,
        "",
        " ",
        "Ada",
        MARK + "</script>",
        f'">{MARK}',
        f"'{MARK}",
        "a\r\nBcc: x@y.z",
        "\u2028",
        "\x85",
        "\x01",
        "x" * 300,
    ),
    *(
        "%3Cscript%3EMARK",
        "&lt;script&gt;MARK",
        "PHNjcmlwdD5NQVJL",
        "<script",
        ">MARK",
        "{{ user.email }}",
        "{% raw %}",
        "javascript:x",
    ),
    *(
        0,
        1,
        -1,
        3,
        50,
        10**30,
        1.5,
        1e300,
        True,
        [],
        {},
        [1, "a", None, [MARK]],
        {"a": MARK, "first": {"a": 1}},
        [{"a": 1}, {"a": MARK}],
    ),
    *("2026-01-01", "now", "9" * 50, "\u202eabc", "ß", "İ", "é" * 50, "a b c", ["a"] * 300),
]


def _output(rng: Random) -> str:
    filters = "".join(f" | {rng.choice(FILTERS)}" for _ in range(rng.choice((0, 0, 1, 1, 2, 4))))
    return "{{ " + rng.choice(EXPRESSIONS) + filters + " }}"


def _template(rng: Random, depth: int = 0) -> str:
    parts = []
    for _ in range(rng.randrange(1, 4)):
        some, inside = rng.choice(EXPRESSIONS), _template(rng, depth + 1) if depth < 2 else _output(rng)
        parts.append(
            rng.choice(
                (
                    rng.choice(LITERALS),
                    _output(rng),
                    _output(rng),
                    f"{{% if {some} %}}{inside}{{% else %}}{_output(rng)}{{% endif %}}",
                    f"{{% unless {some} == {rng.choice(EXPRESSIONS)} %}}{inside}{{% endunless %}}",
                    f"{{% for i in {some} %}}{{{{ i }}}}{inside}{{% endfor %}}",
                    f"{{% assign own = {some} | {rng.choice(FILTERS)} %}}{inside}",
                    f"{{% capture own %}}{inside}{{% endcapture %}}{{{{ own }}}}",
                    f"{{% case {some} %}}{{% when 1 %}}{inside}{{% endcase %}}",
                    f"{{% cycle 'a', {some} %}}{{% tablerow i in {some} %}}{{{{ i }}}}{{% endtablerow %}}",
                    f"{{% raw %}}{inside}{{% endraw %}}{{% comment %}}{inside}{{% endcomment %}}{{% echo {some} %}}",
                )
            )
        )
    return "".join(parts)


def _mails(rng: Random) -> dict[str, Any]:
    subject, html, text = (_template(rng) for _ in range(3))
    if rng.random() < 0.15:
        html = hostile.mutated(rng, html, LITERALS)
    if html and "\0" in html:
        html = html.replace("\0", "")
    return {
        "subject": subject[:300] if rng.random() < 0.9 else hostile.text(rng).replace("\0", ""),
        "html": None if rng.random() < 0.1 else html,
        "text": None if rng.random() < 0.5 else text,
        "personalization": {"own": _output(rng)} if rng.random() < 0.7 else {"own": rng.choice(ROW_VALUES)},
        "row": {column: rng.choice(ROW_VALUES) for column in COLUMNS},
        "context": rng.choice((None, {}, {"properties": {"a": MARK}}, [1])),
    }


class Templates(Target):
    """What set_template and define_loop check, then a mail for a row of anything."""

    name = "set_template"
    weight = 4

    def make(self, rng: Random) -> Input:
        return _mails(rng)

    def run(self, given: Input) -> str:
        parts = given["subject"], given["html"], given["text"]
        checked = _answered(entry.check_template('template "x"', *parts, None, None))
        _answered(entry.check_template('loop "x"', *parts, json.dumps(given["personalization"]), COLUMNS))
        try:
            variables = render.variables_of(
                given["personalization"], given["row"], "first", given["context"], "https://x.y/u"
            )
            mail = render.render(render.Source(*parts), variables)
        except RenderError as error:
            if len(str(error)) > 5_000:
                raise Escape(f"a long error: {len(str(error))} characters") from None
            return f"{checked}, no mail"
        odd = [c for c in mail.subject if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs")]
        if odd:
            raise Escape(f"a subject with a control character: {mail.subject!a:.200}")
        if mail.html and MARK.lower() in mail.html.lower():
            raise Escape(f"data as markup: {mail.html:.500}")
        return f"{checked}, mail"


# ---- in the database ----

#: The SQLSTATEs of refusals, as the documentation has them; what an author's SQL raises is the author's.
REFUSALS = ("22023", "22004", "42601", "0A000", "02000", "42703", "42P01", "42883", "42804", "42501", "42704", "42P18")
SCHEMA = """
CREATE TABLE users (id bigint PRIMARY KEY, email text, name text, plan text, n numeric, data jsonb, last timestamptz);
CREATE TABLE actions (id bigserial PRIMARY KEY, user_id bigint REFERENCES users, kind text);
CREATE TABLE user_actions (id bigserial PRIMARY KEY, user_id bigint REFERENCES users, action_type text);
CREATE TABLE projects (id bigserial PRIMARY KEY, user_id bigint REFERENCES users);
SELECT activation.set_users('users', email => 'email');
SELECT activation.set_secret('hook', '{secret}');
SELECT activation.configure(webhook_secret => 'secret:hook', sender => 'Acme <hello@acme.dev>', public_url => 'https://acme.dev');
SELECT activation.set_template('re_engagement', 'Come back', '<p>Hi</p>');
INSERT INTO users (id, email, name) SELECT n, 'u' || n || '@acme.dev', 'U' FROM generate_series(1, 20) AS n;
SELECT activation.define_loop('there', trigger => activation.on_event('limit_reached'),
    action => activation.email('re_engagement'));
INSERT INTO activation.enrollment (loop_id, version, user_id, state, enrolled_at, created_at, newest_template_id)
SELECT loop_id, version, n, 'completed', now(), now(), 0 FROM activation.loop, generate_series(1, 2) AS n;
INSERT INTO activation.message (message_id, enrollment_id, loop_id, version, user_id, step, branch, state, created_at,
    next_attempt_at, request_id, recipient, finished_at)
SELECT format('00000000-0000-0000-0000-00000000000%s', user_id)::uuid, enrollment_id, loop_id, version, user_id, 1,
    'action', CASE user_id WHEN '1' THEN 'unknown' ELSE 'sent' END, now(), now(),
    gen_random_uuid(), 'u1@acme.dev', now()
  FROM activation.enrollment;
"""


class InDatabase(Target):
    """A public function, undone after each call."""

    in_database = True
    weight = 0.4
    call: ClassVar[str]
    #: The parameters that are jsonb: what the server does not take as such never reaches us.
    documents: ClassVar[Sequence[int]] = ()

    def connect(self, dsn: str) -> None:
        self.connection = psycopg.connect(dsn)
        self.connection.execute("SET statement_timeout = '30s'; SET client_min_messages = error; SET jit = off")
        self.connection.commit()

    def run(self, given: Input) -> str:
        try:
            for place in self.documents:
                self.connection.execute("SELECT %s::jsonb", [given[place]])
        except psycopg.Error:
            self.connection.rollback()
            return "not jsonb"
        try:
            row = self.connection.execute(self.call, given).fetchone()
            return self.judge(given, row)
        except psycopg.Error as error:
            if error.sqlstate is None or not self.refused(error.sqlstate, str(error.diag.message_primary)):
                raise
            return f"refused {error.sqlstate}"
        finally:
            if not self.connection.closed:
                self.connection.rollback()

    def refused(self, sqlstate: str, message: str) -> bool:
        return sqlstate in REFUSALS

    def judge(self, given: Input, row: Any) -> str:
        return "result"


def _named(message: str) -> bool:
    return message.startswith(
        ('loop "', "a loop needs", "the name of", 'template "', "a template needs", "users table")
    )


class SqlImportLoop(InDatabase):
    name = "import_loop in SQL"
    call = "SELECT activation.import_loop(%s, %s::jsonb)"
    documents = (1,)
    weight = 0.8

    def make(self, rng: Random) -> Input:
        name, document = ImportLoop().make(rng)
        return [name, document]

    def refused(self, sqlstate: str, message: str) -> bool:
        # The author's own SQL may be wrong in any way; intervals are cast by the database.
        return _named(message) and not message.startswith("plpy")


class SqlImportSkene(InDatabase):
    name = "import_skene in SQL"
    call = "SELECT activation.import_skene(%s, %s)"

    def make(self, rng: Random) -> Input:
        return ImportSkene().make(rng)[:2]

    def refused(self, sqlstate: str, message: str) -> bool:
        return _named(message)


class SqlImportJourney(InDatabase):
    name = "import_journey in SQL"
    call = "SELECT activation.import_journey(%s, %s)"

    def make(self, rng: Random) -> Input:
        return ImportJourney().make(rng)

    def refused(self, sqlstate: str, message: str) -> bool:
        return _named(message)


class SqlTemplate(InDatabase):
    name = "set_template in SQL"
    call = "SELECT activation.set_template(%s, %s, %s, %s)"

    def make(self, rng: Random) -> Input:
        mail = _mails(rng)
        given = [
            rng.choice(("x", "x", "re_engagement", hostile.text(rng))),
            mail["subject"],
            mail["html"],
            mail["text"],
        ]
        return [None if part is None else part.replace("\0", "") for part in given]


class SqlWebhook(InDatabase):
    name = "receive_webhook in SQL"
    call = "SELECT activation.receive_webhook(%s, %s::jsonb)"
    documents = (1,)

    def make(self, rng: Random) -> Input:
        body = _event(rng).replace("\0", "")
        if rng.random() < 0.003:
            body = body + " " * 1_000_001
        headers: dict[str, Any] = {"svix-id": f"msg_{rng.randrange(9)}", "SVIX-Timestamp": None, "svix-signature": None}
        if rng.random() < 0.1:
            headers = hostile.mutated_document(rng, headers, ["webhook-id", "svix-id", "SVIX-ID"], ["v1,"])
        if isinstance(headers, dict):
            headers = {key: None if isinstance(item, hostile.Raw) else item for key, item in headers.items()}
        return [body, headers if isinstance(headers, dict) else {}]

    def run(self, given: Input) -> str:
        # Signed when it is sent: a signature ages.
        body, headers = given
        timestamp = str(int(time.time()))
        webhook_id = headers.get("svix-id")
        signature = _signed(SECRET, webhook_id if isinstance(webhook_id, str) else "", timestamp, body)
        filled = {"SVIX-Timestamp": timestamp, "svix-signature": signature}
        sent = {key: filled.get(key) if item is None else item for key, item in headers.items()}
        return super().run([body, json.dumps(sent)])

    def refused(self, sqlstate: str, message: str) -> bool:
        return sqlstate in ("HT400", "HT401", "HT413", "HT503")

    def judge(self, given: Input, row: Any) -> str:
        if row[0] not in ("applied", "kept", "duplicate"):
            raise Escape(f"it said {row[0]}")
        return str(row[0])


class SqlTrack(InDatabase):
    name = "track in SQL"
    call = "SELECT activation.track(%s, %s, %s::jsonb)"
    documents = (2,)

    def make(self, rng: Random) -> Input:
        user = str(rng.randrange(25)) if rng.random() < 0.7 else rng.choice((None, "9" * 40, hostile.text(rng)))
        event = "limit_reached" if rng.random() < 0.5 else rng.choice((None, "x" * 201, hostile.text(rng)))
        properties = hostile.written({"a": hostile.value(rng)} if rng.random() < 0.8 else hostile.value(rng))
        return [user and user.replace("\0", ""), event and event.replace("\0", ""), properties]


class SqlTrackAll(InDatabase):
    name = "track_all in SQL"
    call = "SELECT count(*) FROM activation.track_all(%s::jsonb)"
    documents = (0,)

    def make(self, rng: Random) -> Input:
        one = {"user_id": "1", "event": "limit_reached", "properties": {"a": 1}, "once": True}
        given = hostile.mutated_document(rng, [one, {"user_id": "99", "event": "x"}, one], list(one), ["1", "x"])
        # Each event takes its time, and all of them as long as there are events.
        return [hostile.written(given[:100] if isinstance(given, list) else given)]


class SqlTokens(InDatabase):
    name = "unsubscribe in SQL"
    call = "SELECT activation.unsubscribe(%s, false, %s), activation.resubscribe(%s)"

    def make(self, rng: Random) -> Input:
        token = Tokens().make(rng)[1].replace("\0", "")
        return [token, rng.choice((None, None, hostile.text(rng).replace("\0", ""))), token]


TARGETS: Sequence[type[Target]] = [
    *(ImportLoop, ImportSkene, ImportJourney, Webhook, Tokens, Templates),
    *(SqlImportLoop, SqlImportSkene, SqlImportJourney, SqlTemplate, SqlWebhook, SqlTrack, SqlTrackAll, SqlTokens),
]
