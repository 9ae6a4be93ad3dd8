"""What define_loop and its kin refuse: by name, with an SQLSTATE and a hint, and nothing changed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import psycopg
import pytest

from harness import Cluster, Connection, Database

SCHEMA = """
    CREATE TABLE users (id bigint PRIMARY KEY, email text, name text, plan text, born date);
    CREATE TABLE actions (user_id bigint, what text);
    CREATE TABLE bare (id bigint, email text);
    CREATE TABLE pairs (a int, b int, email text, PRIMARY KEY (a, b));
    CREATE TABLE nomail (id bigint PRIMARY KEY);
    CREATE VIEW people AS SELECT * FROM users;
    CREATE TABLE projects (id bigint PRIMARY KEY, owner bigint REFERENCES users, email text);
    CREATE ROLE mallory; GRANT USAGE ON SCHEMA activation TO mallory;
    GRANT EXECUTE ON FUNCTION activation.define_loop, activation.on_insert, activation.query, activation.email,
        activation.set_users TO mallory;
    CREATE TEMP TABLE mine (user_id bigint);
"""
GOOD = "SELECT FROM actions WHERE user_id = $1"


@pytest.fixture(scope="module")
def database(cluster: Cluster) -> Iterator[Database]:
    made = cluster.create_database()
    yield made
    made.drop()
    cluster.sql("DROP ROLE IF EXISTS mallory")


@pytest.fixture(scope="module")
def app(database: Database) -> Iterator[Connection]:
    connection = database.connect()
    connection.execute(SCHEMA)
    yield connection
    connection.close()


def counts(connection: Connection) -> tuple[object, ...]:
    row = connection.execute(
        "SELECT (SELECT count(*) FROM activation.loop), (SELECT count(*) FROM activation.loop_version),"
        " (SELECT count(*) FROM activation.users_table), (SELECT count(*) FROM activation.source),"
        " (SELECT count(*) FROM activation.template), (SELECT count(*) FROM activation.setting),"
        " (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'activation%'),"
        " (SELECT count(*) FROM pg_proc WHERE pronamespace = 'activation_compiled'::regnamespace)"
    ).fetchone()
    assert row
    return tuple(row)


def refused(connection: Connection, sql: str, code: str, *named: str) -> psycopg.errors.Diagnostic:
    """That a statement is refused with this code, a message that names these, and a hint, and changes nothing."""
    before = counts(connection)
    with pytest.raises(psycopg.Error) as caught:
        connection.execute(sql)
    said = caught.value.diag
    assert said.sqlstate == code, (said.sqlstate, said.message_primary)
    for name in named:
        assert name in str(said.message_primary), said.message_primary
    assert said.message_hint, said.message_primary
    assert counts(connection) == before
    return said


def loop(
    query: str | None = GOOD,
    *,
    trigger: str = "activation.on_insert('users')",
    action: str = "activation.email('activation_welcome')",
    more: str = "",
    name: str = "'refused'",
) -> str:
    condition = "" if query is None else f"condition => activation.query($q${query}$q$, timeout => '5m'), "
    return f"SELECT activation.define_loop({name}, trigger => {trigger}, {condition}action => {action}{more})"


CONDITIONS = [
    ("SELECT FROM actions WHERE user_id = ", "42601", []),
    ("SELECT FROM actions WHERE usr_id = $1", "42703", ["usr_id"]),
    ("SELECT FROM acts WHERE user_id = $1", "42P01", ["acts"]),
    ("SELECT FROM actions", "42P02", ["$1"]),
    ("SELECT FROM actions WHERE user_id::text = $1", "42883", []),
    ("SELECT FROM actions WHERE user_id = $1 AND what = $2", "42P02", ["$2"]),
    ("SELECT FROM actions WHERE user_id = $1; SELECT 1", "42P11", []),
    ("SELECT 1) q; end; ALTER ROLE mallory SUPERUSER; SELECT (SELECT $1", "42601", []),
    ("SELECT FROM actions WHERE (user_id = $1", "42601", []),
    ("SHOW search_path", "42601", []),
    ("EXPLAIN SELECT FROM actions WHERE user_id = $1", "42601", []),
    ("DELETE FROM actions WHERE user_id = $1 RETURNING 1", "42601", []),
    ("INSERT INTO actions (user_id) VALUES ($1)", "42P11", []),
    ("SELECT FROM actions WHERE user_id = $1 FOR UPDATE", "0A000", []),
    ("SELECT FROM mine WHERE user_id = $1", "0A000", ["temporary"]),
    ("SELECT FROM no_such_function($1)", "42883", ["no_such_function"]),
]


@pytest.mark.parametrize(("query", "code", "named"), CONDITIONS)
def test_conditions(app: Connection, query: str, code: str, named: list[str]) -> None:
    refused(app, loop(query), code, 'loop "refused"', *named)


def test_the_place_is_shown(app: Connection) -> None:
    """With a caret in the author's own text."""
    said = refused(app, loop("SELECT FROM actions\n WHERE usr_id = $1"), "42703")
    assert "LINE 2:  WHERE usr_id = $1\n               ^" in str(said.message_detail)


TABLES = [
    ("activation.on_insert('bare')", "42P16", ["public.bare", "primary key"]),
    ("activation.on_insert('pairs')", "42P16", ["public.pairs", "several columns"]),
    ("activation.on_insert('people')", "42809", ["public.people", "view"]),
    ("activation.on_insert('nomail')", "42703", ["public.nomail", "email"]),
    ("activation.on_insert('mine')", "42809", ["temporary"]),
    ("activation.on_insert('users', user_key => 'id')", "0A000", ["user_key"]),
    ("activation.on_insert('users', filter => 'NEW.nope = 1')", "42703", []),
    ("activation.on_insert('users', filter => 'NEW.plan = ''a'') OR (true')", "42601", []),
    ("activation.on_insert('users', filter => 'true')", "42703", []),
    ("NULL", "22023", ["no trigger"]),
]


@pytest.mark.parametrize(("trigger", "code", "named"), TABLES)
def test_triggers(app: Connection, trigger: str, code: str, named: list[str]) -> None:
    refused(app, loop(trigger=trigger), code, *named)


MAILS = [
    ("activation.email('activation_welcom')", "42704", ["activation_welcom"]),
    (
        "activation.email('activation_welcome', personalization => '{\"name\": \"{{user.nam}}\"}')",
        "42703",
        ["user.nam"],
    ),
    ("activation.email('activation_welcome', personalization => '{\"name\": \"{{user.name\"}')", "42601", ["Liquid"]),
    ("activation.email('activation_welcome', personalization => '[1]')", "22023", ["personalization"]),
    ("activation.email('activation_welcome', subject => E'a\\nb')", "22023", ["line break"]),
    ("activation.email('activation_welcome', resend_template => 'x')", "0A000", ["resend_template"]),
    ("NULL", "22023", ["sends nothing"]),
]


@pytest.mark.parametrize(("action", "code", "named"), MAILS)
def test_mails(app: Connection, action: str, code: str, named: list[str]) -> None:
    refused(app, loop(action=action), code, *named)


ARGUMENTS = [
    ("recovery => activation.retry(-1)", "22023", "retries"),
    ("recovery => activation.retry(21)", "22023", "retries"),
    ("recovery => activation.retry(3, 'exponentiel')", "22023", "exponentiel"),
    ("recovery => activation.retry(3, 'fixed', '-1 s')", "22023", "initial"),
    ("type => 'freemium'", "22023", "freemium"),
    ("holdout => 0.95", "22023", "holdout"),
    ("holdout => -0.1", "22023", "holdout"),
    ("holdout => 0.5", "0A000", "holdout"),
    ("goal => activation.query('SELECT FROM actions WHERE user_id = $1')", "0A000", "goal"),
    ("reentry => 'always'", "0A000", "reentry"),
    ("enroll => 'both'", "0A000", "enroll"),
    ("enroll => 'old'", "22023", "enroll"),
    ("per_hour => 5", "0A000", "per_hour"),
    ("topic => 'news'", "0A000", "topic"),
    ("transactional => true", "0A000", "transactional"),
    ("priority => 5", "0A000", "priority"),
    ("over_cap => 'skip'", "0A000", "over_cap"),
    ("over_cap => 'drop'", "22023", "over_cap"),
    ("send_window => '{}'", "0A000", "send_window"),
    ("steps => ARRAY[activation.step('a', action => activation.email('milestone'))]", "22023", "steps"),
    ("owner => 'nobody at all'", "42704", "nobody at all"),
]


@pytest.mark.parametrize(("more", "code", "named"), ARGUMENTS)
def test_arguments(app: Connection, more: str, code: str, named: str) -> None:
    refused(app, loop(more=f", {more}"), code, named)


STEPS = [
    ("activation.step('a', action => {0}), activation.step('a', action => {0})", "22023", 'two steps named "a"'),
    ("activation.step('a', action => {0}), activation.step('b', action => {0})", "0A000", "steps"),
    ("activation.step('a', delay => '1 hour', action => {0})", "0A000", "delay"),
    ("activation.step('a', action => {0}, on_timeout => 'exit')", "0A000", "on_timeout"),
    ("activation.step('a', action => {0}, on_timeout => 'stop')", "22023", "on_timeout"),
    ("activation.step('a', action => {0}, otherwise => {0})", "22023", "can never come"),
]


@pytest.mark.parametrize(("steps", "code", "named"), STEPS)
def test_steps(app: Connection, steps: str, code: str, named: str) -> None:
    array = steps.format("activation.email('milestone')")
    sql = f"SELECT activation.define_loop('refused', trigger => activation.on_insert('users'), steps => ARRAY[{array}])"
    refused(app, sql, code, named)


@pytest.mark.parametrize("name", ["NULL", "''", "'  '", "repeat('x', 64)", "repeat('é', 32)", "E'a\\nb'"])
def test_names(app: Connection, name: str) -> None:
    refused(app, loop(name=name), "22023")


def test_a_name_of_63_bytes(app: Connection) -> None:
    """And two that differ at the end only."""
    app.execute("BEGIN")
    for end in "ab":
        app.execute(loop(name=f"repeat('é', 31) || '{end}'"))
    made = app.execute(
        "SELECT count(*) FROM pg_proc"
        " WHERE pronamespace = 'activation_compiled'::regnamespace AND proname LIKE '%evaluate%'"
    ).fetchone()
    app.execute("ROLLBACK")
    assert made == (2,)


def document(**changes: object) -> str:
    base: dict[str, object] = {
        "type": "activation",
        "steps": [
            {
                "trigger": {"type": "database", "table": "users", "event": "insert"},
                "condition": {"type": "query", "query": GOOD, "timeout": "5m"},
                "action": {"type": "email", "provider": "resend", "template": "activation_welcome"},
            }
        ],
    }
    for path, value in changes.items():
        keys = path.split("__")
        place: dict[str, object] = base if keys[0] in ("top",) else base["steps"][0][keys[0]]  # type: ignore[index]
        place[keys[1]] = value
    return "SELECT activation.import_loop('refused', $d$" + json.dumps(base) + "$d$)"


DOCUMENTS: list[tuple[dict[str, object], str, str]] = [
    ({"condition__querry": GOOD}, "22023", "querry"),
    ({"top__opinoin": "x"}, "22023", "opinoin"),
    ({"trigger__event": "inserted"}, "22023", "inserted"),
    ({"trigger__event": "update"}, "0A000", "update"),
    ({"trigger__type": "schedule"}, "0A000", "schedule"),
    ({"trigger__type": "webhook"}, "22023", "webhook"),
    ({"trigger__table": "userz"}, "42P01", "userz"),
    ({"condition__timeout": "five minutes"}, "22007", "timeout"),
    ({"condition__timeout": "-5m"}, "22023", "timeout"),
    ({"action__provider": "sendgrid"}, "22023", "sendgrid"),
    ({"top__recovery": {"retries": "3"}}, "22023", "retries"),
    ({"top__recovery": {"backoff": "linear"}}, "22023", "linear"),
    ({"top__steps": []}, "22023", "no steps"),
    ({"top__steps": "x"}, "22023", "no steps"),
]


@pytest.mark.parametrize(("changes", "code", "named"), DOCUMENTS)
def test_documents(app: Connection, changes: dict[str, object], code: str, named: str) -> None:
    said = refused(app, document(**changes), code, named, 'loop "refused"')
    near = {"querry": '"query"', "opinoin": '"opinion"', "inserted": '"insert"'}.get(named)
    assert near is None or near in str(said.message_hint)


SETTINGS = [
    ("configure(sender => 'nobody')", "22023", "sender"),
    ("configure(sender => E'a@b.de\\nBcc: c@d.de')", "22023", "sender"),
    ("configure(resend_url => 'ftp://x')", "22023", "resend_url"),
    ("configure(public_url => 'acme.dev')", "22023", "public_url"),
    ("configure(timezone => 'Mars/Olympus')", "22023", "Mars/Olympus"),
    ("configure(rate => 0)", "22023", "rate"),
    ("configure(rate => 'NaN')", "22023", "rate"),
    ("configure(retention => '1 day')", "0A000", "retention"),
    ("configure(max_per_user => 3)", "0A000", "max_per_user"),
    ("configure(condition_timeout => '1 s')", "0A000", "condition_timeout"),
    ("configure(erase_on_delete => true)", "0A000", "erase_on_delete"),
    ("set_users('users', key => 'uid')", "42703", "uid"),
    ("set_users('users', key => 'plan')", "55000", "plan"),
    ("set_users('users', email => 'mail')", "42703", "mail"),
    ("set_users('pairs')", "42P16", "public.pairs"),
    ("set_template('x y', 'Hello', body_text => 'Hello')", "22023", "name"),
    ("set_template('x', '', body_text => 'Hello')", "22023", '"x"'),
    ("set_template('x', 'Hello')", "22023", '"x"'),
    ("set_template('x', 'Hello', body_text => '{% if %}')", "42601", '"x"'),
    ("set_mode('alive')", "22023", "alive"),
    ("set_mode('redirect')", "22023", "redirect"),
    ("set_mode('live', hosts => ARRAY['elsewhere:%'])", "22023", "hosts"),
    ("export_loop('none')", "42704", "none"),
    ("pause_loop('none')", "42704", "none"),
    ("start(detectors => 0)", "22023", "detectors"),
]


@pytest.mark.parametrize(("call", "code", "named"), SETTINGS)
def test_settings(app: Connection, call: str, code: str, named: str) -> None:
    refused(app, f"SELECT activation.{call}", code, named)


@pytest.mark.parametrize("argument", ["api_key", "webhook_secret"])
def test_a_literal_key(app: Connection, database: Database, argument: str) -> None:
    """Refused, and repeated nowhere: not in the error, not in the server's log."""
    said = refused(app, f"SELECT activation.configure({argument} => 're_secret_123')", "22023", argument)
    shown = " ".join(str(getattr(said, part)) for part in dir(said) if not part.startswith("_"))
    assert "re_secret_123" not in shown
    assert "re_secret_123" not in database.cluster.log


def test_without_the_privileges_of_the_tables_owner(app: Connection) -> None:
    app.execute("SET ROLE mallory")
    app.execute("SET ROLE NONE")
    app.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO mallory")
    said = refused(app, "SET ROLE mallory; " + loop(), "42501", "mallory", "public.users")
    app.execute("RESET ROLE")
    assert "postgres" in str(said.message_hint)
    refused(app, "SET ROLE mallory; SELECT activation.set_users('users')", "42501", "mallory")
    app.execute("RESET ROLE")
    refused(app, "SET ROLE mallory; " + loop(more=", owner => 'postgres'"), "42501", "mallory")
    app.execute("RESET ROLE")


def test_a_template_in_use(app: Connection) -> None:
    """A new version that a loop in use could not fill is refused, naming the loop."""
    app.execute("BEGIN")
    app.execute("SELECT activation.set_template('mine', 'Hi', body_text => 'Hi {{ name }}')")
    action = "activation.email('mine', personalization => '{\"name\": \"{{user.name}}\"}')"
    app.execute(loop(action=action, name="'in use'"))
    app.execute("SAVEPOINT before")
    with pytest.raises(psycopg.Error, match='loop "in use"') as caught:
        app.execute("SELECT activation.set_template('mine', 'Hi', body_text => 'Hi {{ nam }}')")
    assert caught.value.diag.sqlstate == "22023"
    app.execute("ROLLBACK TO before; ROLLBACK")
