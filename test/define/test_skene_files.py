# ruff: noqa: E501
"""A skene.config.ts and a journey.yaml, read."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from activation.authoring import definition, journey, skene
from activation.errors import Refusal

ACTIVATION = """\
// skene.config.ts
import { defineLoop } from '@skene/sdk';

const EVENT = 'first_project_created' as const;

export default defineLoop({
  type: 'activation',
  opinion: "People who make a project on their first day" + ' stay.', /* says who? */
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
        type: 'email',
        provider: 'resend',
        template: 'activation_welcome',
        personalization: { name: '{{user.name}}', activationLink: '{{user.activation_link}}' },
      },
    },
  ],
  recovery: { retries: 3, backoff: 'exponential' },
} satisfies Loop);
"""

RETENTION = """\
import { defineLoop } from '@skene/sdk';
export default defineLoop({
  type: 'retention',
  opinion: 'Detect dormant users',
  steps: [{
    trigger: { type: 'schedule', cron: '0 9 * * *' }, // Daily at 9 AM
    condition: {
      type: 'query',
      query: `SELECT * FROM users WHERE last_activity_at < NOW() - INTERVAL '7 days';`,
      timeout: '10m'
    },
    action: { type: 'email', provider: 'resend', template: 're_engagement' }
  }],
  recovery: { retries: 3, backoff: 'exponential' }
});
"""

#: As it is published: with an apostrophe that ends the text.
FREEMIUM = """\
export default defineLoop({
  type: 'freemium',
  steps: [{
    trigger: { type: 'api', endpoint: '/api/features/*', method: 'POST' },
    condition: { type: 'usage', limit: { free: 100, paid: Infinity }, period: '30d' },
    action: { type: 'block', message: 'You've reached your limit. Upgrade to continue.' }
  }]
});
"""

#: What tree-sitter makes something of until the end of time.
ENDLESS = (
    "expor\tt default defineLoop({\n  type: 'freemium',\n  steps: [{\n&#0;api/featur}#', method: 0xffffffffffffffffffff'POST' },\n"
    "    condition: { type: 'usage', "
    + "&lt;${" * 23
    + "1e999"
    + "&lt;${" * 23
    + "limit: { free: 100, paid: Infinity }, period:pe: 'block', "
    "message: 'You have reached your limit.' }\n  }]\n});\n"
)

USERS = [{"table": "public.users", "key": "id"}]


def read(text: str, users: list[dict[str, Any]] = USERS) -> dict[str, Any]:
    return dict(skene.read("first", text, users)["definition"])


def refused(text: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        skene.read("first", text, USERS)
    assert caught.value.message.startswith('loop "first": ') and caught.value.hint
    return caught.value


def a_loop(**parts: str) -> str:
    """A good config, but for what a case puts into it; each part on a line of its own."""
    lines = {
        "type": "type: 'activation'",
        "trigger": "trigger: { type: 'database', table: 'users', event: 'insert' }",
        "condition": "condition: { type: 'query', query: 'SELECT 1 FROM projects WHERE owner_id = $1' }",
        "action": "action: { type: 'email', template: 'milestone' }",
        **parts,
    }
    return "export default defineLoop({\n  " + ",\n  ".join(lines.values()) + ",\n});\n"


def test_activation() -> None:
    found = read(ACTIVATION)
    assert found["opinion"] == "People who make a project on their first day stay."
    (step,) = found["steps"]
    assert step["trigger"] == {"type": "database", "table": "users", "event": "insert"}
    assert " ".join(step["condition"]["query"].split()) == (
        "SELECT * FROM user_actions WHERE user_id = $1 AND action_type = 'first_project_created'"
    )
    assert step["action"]["personalization"]["activationLink"] == "{{user.activation_link}}"
    assert found["recovery"] == {"retries": 3, "backoff": "exponential"}
    assert definition.normalise("first", found)["steps"][0]["condition"]["timeout"] == "5m"


def test_retention() -> None:
    """The query of a scheduled condition says whom it is about: it goes to the trigger, and what it waited for is told."""
    answer = skene.read("back", RETENTION, USERS)
    (step,) = answer["definition"]["steps"]
    assert step["trigger"] == {
        "type": "schedule",
        "cron": "0 9 * * *",
        "query": "SELECT due.id FROM (\nSELECT * FROM users WHERE last_activity_at < NOW() - INTERVAL '7 days'\n) AS due",
    }
    assert list(step) == ["trigger", "action"]
    assert answer["notices"] == ['loop "back": timeout of the scheduled condition has no effect']


def test_a_schedule_that_says_whom_is_left_alone() -> None:
    trigger = "trigger: { type: 'schedule', cron: '0 9 * * *', query: 'SELECT id FROM users' }"
    found = read(a_loop(trigger=trigger))
    assert found["condition"]["query"] == "SELECT 1 FROM projects WHERE owner_id = $1"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT owner_id FROM projects", "SELECT owner_id FROM projects"),
        (
            "SELECT u.id, u.name FROM users u -- all",
            "SELECT due.id FROM (\nSELECT u.id, u.name FROM users u -- all\n) AS due",
        ),
        ("SELECT max(a, b) FROM users", "SELECT max(a, b) FROM users"),
        ("WITH x AS (SELECT * FROM users) SELECT id FROM x", "WITH x AS (SELECT * FROM users) SELECT id FROM x"),
        (
            "WITH x AS (SELECT 1) SELECT * FROM x",
            "SELECT due.id FROM (\nWITH x AS (SELECT 1) SELECT * FROM x\n) AS due",
        ),
        (
            "SELECT * FROM actions WHERE user_id = $1",
            'SELECT "activation user".id FROM public.users AS "activation user" WHERE EXISTS (\n'
            'SELECT * FROM actions WHERE user_id = "activation user".id\n)',
        ),
    ],
)
def test_audience(query: str, expected: str) -> None:
    assert skene.audience(query, "public.users", "id") == expected


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("'it\\'s'", "it's"),
        ('"a\\n\\t\\x41\\u00e9\\u{1F600}\\ud83d\\ude00"', "a\n\tAé😀😀"),
        ("'a\\\nb'", "ab"),
        ("`a\\`${1 + 1 ? '' : ''}`", None),
        ("`a\\`\n${'b'}${3}\\${c}`", "a`\nb3${c}"),
        ("'a' + 'b' + `c`", "abc"),
        ("WORD", "word"),
        ("TEXTS.first", "one"),
        ("TEXTS.second", None),
        ("('a' as string)", "a"),
        ("process.env.OPINION", None),
        ("text()", None),
        ("() => 'a'", None),
        ("sql`a`", None),
        ("LATER", None),
        ("AROUND", None),
        ("'\\0'", None),
        ("'\\ud83d'", None),
        ("WORD!", "word"),
    ],
)
def test_texts(written: str, meant: str | None) -> None:
    above = (
        "const WORD = 'word'; export const TEXTS = { first: 'one' } as const; let LATER = 'x'; const AROUND = AROUND;\n"
    )
    text = above + a_loop(opinion=f"opinion: {written}")
    if meant is not None:
        assert read(text)["opinion"] == meant
    else:
        refusal = refused(text)
        assert (
            refusal.code == "0A000" and "is not a constant" in refusal.message and "Line 7: opinion:" in refusal.detail
        )


@pytest.mark.parametrize(
    ("written", "meant"), [("1_0", 10), ("0x1f", 31), ("-3", -3), ("0.5", 0.5), ("undefined", None), ("null", None)]
)
def test_numbers(written: str, meant: float | None) -> None:
    text = a_loop(
        condition="condition: null",
        action=f"action: {{ type: 'email', template: 'milestone', personalization: {{ n: {written} }} }}",
    )
    assert read(text)["action"]["personalization"]["n"] == meant


@pytest.mark.parametrize(
    "text",
    [
        "const loop = defineLoop(" + a_loop()[len("export default defineLoop(") : -3] + ");\nexport default loop;",
        "\ufeff" + a_loop().replace("\n", "\r\n"),
        a_loop().replace("defineLoop(", "skene.defineLoop("),
        a_loop().replace("defineLoop(", "defineLoop<Loop>("),
        "const parts = {"
        + a_loop()[len("export default defineLoop({") : -4]
        + "};\nexport default defineLoop({ ...parts });",
        "const type = 'activation';\n" + a_loop(type="type"),
    ],
)
def test_ways_to_write_it(text: str) -> None:
    assert read(text) == read(a_loop())


def test_foreign_kinds() -> None:
    """What cannot be said is named, all of it, with its line."""
    refusal = refused(FREEMIUM.replace("You've", "You have"))
    assert refusal.code == "0A000" and 'type "freemium"' in refusal.message
    assert [line.split(":")[0] for line in refusal.detail.splitlines()] == ["Line 2", "Line 4", "Line 5", "Line 6"]
    for kind in ('trigger type "api"', 'condition type "usage"', 'action type "block"'):
        assert kind in refusal.detail
    assert "on_event" in refusal.hint


def test_foreign_kinds_in_what_does_not_parse() -> None:
    refusal = refused(FREEMIUM)
    assert refusal.code == "0A000" and 'type "freemium"' in refusal.message and "Line 5:" in refusal.detail


@pytest.mark.parametrize(
    ("text", "code", "message", "line"),
    [
        (a_loop(more="recovery: { retires: 3 }"), "22023", 'unknown key "retires" in recovery', "Line 6: recovery"),
        (a_loop(more="cooldown: '3d'"), "22023", 'unknown key "cooldown"', "Line 6: cooldown"),
        (a_loop(type="type: 'virality'"), "22023", 'unknown type "virality"', "Line 2: type"),
        (a_loop(more="recovery: {\n retries: 99 }"), "22023", "retries is 99", "Line 7: retries"),
        (
            a_loop(trigger="trigger: { type: 'database',\n table: 'users',\n event: 'upsert' }"),
            "22023",
            '"upsert"',
            "Line 5: event",
        ),
        (a_loop(trigger="trigger: { type: 'webhook' }"), "22023", 'trigger type "webhook"', "Line 3: trigger"),
        (a_loop(action="action: { type: 'sms' }"), "22023", 'action type "sms"', "Line 5: action"),
        (
            a_loop(action="action: { type: 'email',\n provider: 'sendgrid', template: 'x' }"),
            "22023",
            '"sendgrid"',
            "Line 6: provider",
        ),
        (
            a_loop(trigger="trigger: { type: 'schedule', cron: 'daily', query: 'SELECT 1' }"),
            "22023",
            '"daily"',
            "Line 3: trigger",
        ),
        (a_loop(trigger="// none"), "22023", "no trigger", "Line 1: export default"),
        (a_loop(more="type: 'retention'"), "22023", 'key "type" stands twice', "Line 6: type"),
        (a_loop(type="type: 'activation"), "42601", "not TypeScript", "Line 2: type"),
        (a_loop(more="...rest"), "0A000", "`rest` is not a constant", "Line 6: ...rest"),
        (a_loop(more="run() { return 1 }"), "0A000", "is not a constant", "Line 6: run()"),
        (a_loop(more="[key]: 1"), "0A000", "is not a constant", "Line 6: [key]"),
        ("export const loop = defineLoop({});", "22023", "exports no loop", ""),
        ("export default defineLoop(a, b);", "22023", "exports no loop", "Line 1"),
        ("export default [defineLoop({})];", "22023", "exports no loop", "Line 1"),
        ("export default defineConfig({});", "22023", "exports no loop", "Line 1"),
        ("", "22023", "exports no loop", ""),
        ("{}", "22023", "exports no loop", ""),
        ("x" * 200_001, "22023", "too long", ""),
        ("export default defineLoop(" + "[\n" * 5000 + "]\n" * 5000 + ");", "22023", "nested too deeply", ""),
        ("export default defineLoop(" + "[\n" * 20_000, "42601", "not TypeScript", "Line"),
        # Over these the parser took minutes; over the last one, for ever.
        ("export default defineLoop(" + "+*\n" * 15_000, "42601", "not TypeScript", ""),
        ("export default defineLoop(" + ("/[" * 900 + "\n") * 20, "42601", "not TypeScript", ""),
        (ENDLESS, "42601", "not TypeScript", ""),
        # Half a minute: each key was looked for in the message by an expression of its own.
        (a_loop(more=",".join(f"k{n}: 1\n" for n in range(3_000))), "22023", 'unknown key "k0"', "Line 6: k0"),
        # 600 MB.
        (
            f"const A = '{'x' * 1900}';\n" + a_loop(opinion="opinion: [" + "A,\n" * 15_000 + "]"),
            "22023",
            "too large",
            "",
        ),
        (a_loop(opinion="opinion: 1e999"), "0A000", "`1e999` is not a constant", "Line 6"),
        (a_loop(opinion="opinion: `${0x" + "f" * 1900 + "}`"), "0A000", "is not a constant", "Line 6"),
        (
            "const a0 = 'x';\n"
            + "".join(f"const a{n + 1} = a{n} + a{n};\n" for n in range(40))
            + a_loop(opinion="opinion: a40"),
            "22023",
            "too large",
            "Line",
        ),
    ],
)
def test_refusals(text: str, code: str, message: str, line: str) -> None:
    refusal = refused(text)
    assert (refusal.code, message in refusal.message, line in refusal.detail) == (code, True, True), refusal.as_dict()


def test_two_steps() -> None:
    """A trigger belongs to the first step; Skene lets each have one."""
    step = "{ trigger: { type: 'database', table: 'users', event: 'insert' },\n action: { type: 'email', template: 'milestone' } }"
    refusal = refused(f"export default defineLoop({{ steps: [\n{step},\n{step}] }});")
    assert 'unknown key "trigger" in steps[1]' in refusal.message and refusal.detail.startswith("Line 4:")


def test_which_users_table() -> None:
    two = [*USERS, {"table": "crm.person", "key": '"personId"'}]
    text = RETENTION.replace("type: 'retention'", "type: 'retention', users: 'crm.person'")
    assert 'SELECT due."personId" FROM' in read(text, two)["steps"][0]["trigger"]["query"]
    assert 'SELECT due."personId" FROM' in read(text.replace("crm.", ""), two)["steps"][0]["trigger"]["query"]


def test_parsers_come_when_they_are_called() -> None:
    code = (
        "import sys; from activation.authoring import journey, skene; from activation.server import entry;"
        " print([m for m in ('tree_sitter', 'yaml') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


JOURNEY = """\
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
  - {id: first_call, order: 1, name: First Call, description: x, evidence: [{source: code, reason: x, path: y}], tracked_event: api_called}
- id: onboarding
  order: 2
  name: Onboarding
  subtitle: The Setup
  milestones:
  - {id: account_created, order: 1, name: Account Created, evidence: [{source: db, reason: x, table: users}]}
  kpis: []
connectors: []
"""


def test_journey() -> None:
    found = journey.read("ours", JOURNEY)
    assert found["product"] == "Acme"
    assert [(m["ref"], m["tables"], m["event"], m["line"]) for m in found["milestones"]] == [
        ("onboarding.account_created", ["users"], None, 22),
        ("activation.first_call", [], "api_called", 16),
        ("activation.first_project", ["public.projects"], None, 8),
    ]


@pytest.mark.parametrize(
    ("text", "code", "message", "line"),
    [
        ("", "22023", "is empty", ""),
        ("- a", "22023", "the journey is not an object", "Line 1"),
        ("stages: [", "42601", "not YAML", "Line 1"),
        ("product: {name: x}", "22023", "has no stages", ""),
        (JOURNEY.replace("milestones:", "milestone:", 1), "22023", 'unknown key "milestone" in the stage', "Line 7"),
        (
            JOURNEY.replace("confidence:", "confidense:"),
            "22023",
            'unknown key "confidense" in the milestone',
            "Line 15",
        ),
        (
            JOURNEY.replace("id: first_project", "id: first_call"),
            "22023",
            'two milestones are "activation.first_call"',
            "Line 16",
        ),
        (JOURNEY.replace("order: 3", "order: third"), "22023", "order is not a number", "Line 5"),
        (
            JOURNEY.replace("    name: First Project\n", ""),
            "22023",
            'milestone "activation.first_project" has no name',
            "Line 8",
        ),
        ("a: &a {x: 1}\nb: *c", "42601", "not YAML", "Line 2"),
        ("stages:\n- &s {id: a, milestones: [{id: b, name: c}]}\n- *s", "0A000", "the stage is an alias", "Line 2"),
        ("stages: !!python/object:os.system {}", "22023", "has no stages", ""),
        ("[" * 100 + "]" * 100, "22023", "nested too deeply", ""),
        ("[" * 5000, "42601", "not YAML", "Line 1"),
        ("a\x07b", "42601", "not YAML", ""),
        ("x" * 200_001, "22023", "too long", ""),
        ("- " * 5000, "22023", "nested too deeply", ""),
        ("&a [*a]", "22023", "not an object", ""),
        ('a: "\\UFFFFFFFF"', "42601", "not YAML", "Line 1"),
        ('stages: [{id: "a\\0b", milestones: [{id: b, name: c}]}]', "22023", "id is not a text", "Line 1"),
        ("stages: [{id: a, order: .nan, milestones: [{id: b, name: c}]}]", "22023", "order is not a number", "Line 1"),
        ("stages: [{id: a, order: 1e999, milestones: [{id: b, name: c}]}]", "22023", "order is not a number", "Line 1"),
        # As a text, this key would be larger than any memory.
        (
            "? [&a [x], "
            + ", ".join(f"&{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]" for n in range(20))
            + "]\n: x",
            "22023",
            'unknown key "?" in the journey',
            "Line 1",
        ),
    ],
)
def test_journey_refusals(text: str, code: str, message: str, line: str) -> None:
    with pytest.raises(Refusal) as caught:
        journey.read("ours", text)
    refusal = caught.value
    assert refusal.hint
    assert (refusal.code, message in refusal.message, line in refusal.detail) == (code, True, True), refusal.as_dict()


@pytest.mark.parametrize(
    ("product", "name"),
    [("Acme", None), ("[a, b]", None), ("{name: [a]}", None), ("{[a]: b, name: Acme}", "Acme"), ("", None)],
)
def test_products(product: str, name: str | None) -> None:
    """What else there is of a product may be anything."""
    assert (
        journey.read("ours", f"product: {product}\nstages: [{{id: a, milestones: [{{id: b, name: c}}]}}]")["product"]
        == name
    )
