"""The schema of a definition, held to what is written by hand: the builders in SQL and their documents, the durations
that SQL spells, the page of its keys. The builders in Python: test_loops_rendered.py."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from activation import schema
from activation.authoring import definition
from activation.errors import Path as Place
from activation.errors import Refusal, spelled
from activation.loops import TEMPLATE, render_value
from activation.text import literal
from harness import Cluster, Database

ROOT = Path(__file__).parents[2]
QUERY = "activation.query('SELECT 1 FROM projects WHERE owner_id = $1', '1 day')"
EMAIL = "activation.email('activation_welcome')"
SIGNATURES = [*schema.BUILDERS.items(), ("define_loop", schema.DEFINE_LOOP), ("set_template", TEMPLATE)]


@pytest.fixture(scope="module")
def app(cluster: Cluster) -> Database:
    database = cluster.create_database()
    database.sql(
        "CREATE TABLE users (id bigint PRIMARY KEY, email text, plan text);"
        "CREATE TABLE projects (id bigint PRIMARY KEY, owner_id bigint REFERENCES users)"
    )
    database.sql("SELECT activation.set_users('users')")
    return database


@pytest.mark.parametrize(("function", "signature"), SIGNATURES)
def test_arguments_in_sql(app: Database, function: str, signature: schema.Signature) -> None:
    rows = app.sql(
        """
        SELECT p.proargnames[n], format_type(p.proargtypes[n - 1], NULL), pg_get_function_arg_default(p.oid, n::integer)
          FROM pg_proc p, generate_series(1, p.pronargs) AS n
         WHERE p.pronamespace = 'activation'::regnamespace AND p.proname = %s ORDER BY n
        """,
        function,
    )
    assert [name for name, _, _ in rows] == list(signature)
    for name, kind, default in rows:
        expected_kind, expected = signature[name]
        assert kind.replace("time without time zone", "time") == expected_kind, name
        if default is None:
            assert expected is schema.REQUIRED, name
        elif function == "define_loop" and name in ("owner", "names"):
            # The caller's own.
            assert expected is None and ("CURRENT_USER" in default or "search_path" in default)
        else:
            written = json.dumps(expected) if isinstance(expected, dict) else expected
            assert app.value(f"SELECT {default} IS NOT DISTINCT FROM {render_value(written, kind, literal)}"), name


def test_no_builder_is_missing(app: Database) -> None:
    """Every public function that makes a part of a definition is in the schema; these make something else."""
    others = {"skene_definition", "journey_definition", "export_loop", "export_user", "overview"}
    names = app.sql(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'activation'::regnamespace AND prorettype = 'jsonb'::regtype"
        " AND proname NOT LIKE '\\_%'"
    )
    assert {name for (name,) in names} == set(schema.BUILDERS) | others


@pytest.mark.parametrize(
    ("call", "part"),
    [
        ("on_insert('users', 'id', 'NEW.plan IS NULL')", schema.TRIGGERS["database"]),
        ("on_update('users', '{plan}', 'id', 'NEW.plan IS NULL')", schema.TRIGGERS["database"]),
        ("on_delete('projects', 'owner_id', 'OLD.id > 1')", schema.TRIGGERS["database"]),
        ("on_event('paid')", schema.TRIGGERS["event"]),
        ("on_schedule('0 9 * * Mon', 'SELECT id FROM users')", schema.TRIGGERS["schedule"]),
        ("query('SELECT $1', '1 day', '1 hour', '{\"projects\": null}')", schema.CONDITION),
        ("email('x', '{\"a\": \"b\"}', 'c', 'd@e.fr', 'g@h.ij')", schema.EMAIL),
        ("retry(1, 'fixed', '1 minute', '2 minutes')", schema.RECOVERY),
        (f"step('a', '1 day', {QUERY}, {EMAIL}, {EMAIL}, 'exit')", schema.STEP),
        ("send_window('Mon-Fri', '09:00', '17:00', 'skip')", schema.SEND_WINDOW),
    ],
)
def test_documents_of_sql(app: Database, call: str, part: schema.Part) -> None:
    """Each builder writes all keys of its part and no other, and each argument arrives."""
    made = app.value(f"SELECT activation.{call}")
    kind = {"type"} if part in schema.TRIGGERS.values() else set()
    assert set(made) == set(part.names) | kind
    # Only the columns of an insertion are nothing.
    assert {key for key, value in made.items() if value is None} <= {"columns"}


#: For each argument of define_loop() what is not its default, and how the definition has it then.
OTHERS: dict[str, tuple[str, Any]] = {
    "goal": (QUERY.replace(", '1 day'", ""), {"query": "SELECT 1 FROM projects WHERE owner_id = $1"}),
    "type": ("'retention'", "retention"),
    "opinion": ("'so'", "so"),
    "recovery": ("activation.retry(1)", {"retries": 1}),
    "reentry": ("'always'", "always"),
    "enroll": ("'both'", "both"),
    "per_hour": ("5", 5),
    "users": ("'users'", "public.users"),
    "topic": ("'news'", "news"),
    "transactional": ("true", True),
    "priority": ("7", 7),
    "over_cap": ("'skip'", "skip"),
    "holdout": ("0.25", 0.25),
    "send_window": ("activation.send_window('Mon', '09:00', '17:00')", {"days": "Mon"}),
}


def test_the_definition_of_sql(app: Database) -> None:
    """define_loop() passes every argument on, and a definition has every key of the schema but the short form's."""
    with app.connect(autocommit=False) as connection:

        def defined(**arguments: str) -> dict[str, Any]:
            given = ", ".join(f'"{name}" => {value}' for name, value in arguments.items())
            connection.execute(
                f"SELECT activation.define_loop('x', trigger => activation.on_insert('users'), {given})".encode()
            )
            row = connection.execute("SELECT activation.export_loop('x')").fetchone()
            assert row is not None
            return dict(row[0])

        others = {name: value for name, (value, _) in OTHERS.items()}
        short = defined(condition=QUERY, action=EMAIL, otherwise=EMAIL, **others)
        assert set(short) == set(schema.LOOP.names) - set(schema.SHORT)
        assert set(OTHERS) == set(short) - {"trigger", "steps"}
        for name, (_, expected) in OTHERS.items():
            found = short[name]
            assert expected.items() <= found.items() if isinstance(expected, dict) else found == expected, name
        (step,) = short["steps"]
        assert set(step) == set(schema.STEP.names) and None not in (step["action"], step["otherwise"])
        assert set(step["condition"]) == set(schema.CONDITION.names) and set(step["action"]) == set(schema.EMAIL.names)
        steps = defined(steps=f"ARRAY[activation.step('one', action => {EMAIL})]", **others)["steps"]
        assert [step["name"] for step in steps] == ["one"]
        connection.rollback()


def test_durations_are_spelled_by_the_server(app: Database) -> None:
    """All that the schema has: SQL lists where they are."""
    condition = {"query": "SELECT 1 FROM projects WHERE owner_id = $1"}
    mail = {"template": "activation_welcome"}
    hours = {
        kind: {key.name: "90m" for key in part.keys if key.kind == "duration"}
        for kind, part in (("step", schema.STEP), ("condition", schema.CONDITION), ("recovery", schema.RECOVERY))
    }
    document = {
        "trigger": {"table": "users", "event": "insert"},
        "goal": {**condition, **hours["condition"], "timeout": None},
        "steps": [{**hours["step"], "condition": {**condition, **hours["condition"]}, "action": mail}],
        "recovery": hours["recovery"],
        "reentry": "90m",
    }
    app.sql("SELECT activation.import_loop('hours', %s::jsonb)", json.dumps(document))
    made = app.value("SELECT activation.export_loop('hours')")
    (step,) = made["steps"]
    for found, kind in ((step, "step"), (step["condition"], "condition"), (made["recovery"], "recovery")):
        assert {name: found[name] for name in hours[kind]} == dict.fromkeys(hours[kind], "01:30:00")
    assert (made["goal"]["every"], made["reentry"]) == ("01:30:00", "01:30:00")


def loop(**parts: Any) -> dict[str, Any]:
    return {"trigger": {"table": "users", "event": "insert"}, "action": {"template": "x"}, **parts}


@pytest.mark.parametrize(
    ("document", "path"),
    [
        (loop(opinoin="x"), ("opinoin",)),
        (loop(holdout=2), ("holdout",)),
        (loop(perHour=5), ("per_hour",)),
        (loop(action={"template": "x", "replyTo": "x"}), ("action", "reply_to")),
        (loop(action={"template": "x", "personalization": {"user": "x"}}), ("action", "personalization", "user")),
        (loop(condition={"type": "sql"}), ("condition", "type")),
        (loop(goal={"query": "SELECT $1", "timeout": "1 day"}), ("goal", "timeout")),
        (loop(trigger={"table": "users", "event": "insert", "columns": ["a"]}), ("trigger", "columns")),
        (loop(trigger={"type": "schedule", "cron": "daily", "query": "SELECT 1"}), ("trigger", "cron")),
        (loop(sendWindow={"days": "Mon", "opens": "9:00"}), ("send_window", "closes")),
        (loop(recovery={"retries": 99}), ("recovery", "retries")),
        (loop(trigger=None), ()),
        (loop(otherwise={"template": "x"}), ("otherwise",)),
        (loop(steps=[{"action": {"template": "x"}}]), ("action",)),
        (
            {"steps": [loop(), {"action": {"template": "x"}, "condition": {"query": ""}}]},
            ("steps", 1, "condition", "query"),
        ),
        ({"steps": [loop(trigger={"type": "event"})]}, ("steps", 0, "trigger", "event")),
        ({"steps": [loop(name="a"), {"name": "a", "action": {"template": "x"}}]}, ("steps", 1, "name")),
        ({"steps": [loop(), {"name": "b"}]}, ("steps", 1)),
    ],
)
def test_a_refusal_says_where(document: dict[str, Any], path: Place) -> None:
    with pytest.raises(Refusal) as caught:
        definition.normalise("first", document)
    assert caught.value.path == path


def test_a_place_is_spelled() -> None:
    assert spelled(("steps", 1, "condition", "timeout")) == "steps[1].condition.timeout"
    assert spelled(()) == ""


def test_defaults_are_those_of_the_schema() -> None:
    made = definition.normalise("first", loop())
    for key in schema.LOOP.keys:
        if key.name not in (*schema.SHORT, "trigger", "steps", "recovery"):
            assert made[key.name] == key.default, key.name
    assert made["recovery"] == {key.name: key.default for key in schema.RECOVERY.keys}
    assert definition.normalise("first", made) == made


def test_the_page_is_current() -> None:
    """docs/definition.md; python3 scripts/document_schema.py writes it."""
    page = (ROOT / "docs" / "definition.md").read_text()
    assert runpy.run_path(str(ROOT / "scripts" / "document_schema.py"))["written"](page) == page
