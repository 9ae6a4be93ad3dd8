# ruff: noqa: E501
"""Loops as Python, run: the builders are those of SQL, and every way to render a loop makes the same one."""

from __future__ import annotations

from datetime import time, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy

from activation.loops import (
    Loop,
    Template,
    email,
    on_delete,
    on_event,
    on_insert,
    on_schedule,
    on_update,
    query,
    retry,
    send_window,
    step,
)
from harness import Cluster, Database

APP = """
    CREATE TABLE users (id bigint PRIMARY KEY, email text, name text, plan text);
    CREATE TABLE "Project" (id bigint PRIMARY KEY, owner_id bigint REFERENCES users, "Kind" text);
"""
ACTED = 'SELECT 1 FROM "Project" WHERE owner_id = $1'
#: In Python, and the same in SQL.
PAIRS: list[tuple[Loop, str]] = [
    (
        Loop("a", trigger=on_insert("users", filter="NEW.plan = 'it''s\\ 100%'"), action=email("milestone")),
        """'a', trigger => activation.on_insert('users', filter => 'NEW.plan = ''it''''s\\ 100%'''), action => activation.email('milestone')""",
    ),
    (
        Loop(
            "b",
            trigger=on_update('"Project"', ["Kind", "owner_id"], user_key="owner_id"),
            condition=query(
                ACTED, timeout=timedelta(days=3, seconds=5), every="5 minutes", watch={'public."Project"': None}
            ),
            action=email("milestone", {"count": "{{ user.id }}"}, "a: b", "A <a@b.de>", "c@d.de"),
            otherwise=email("activation_nudge"),
            goal=query("SELECT 1 FROM users WHERE id = $1 AND plan = 'pro'"),
            type="retention",
            opinion="because\\ of :this",
            recovery=retry(5, "fixed", initial=timedelta(seconds=90), max="2 hours"),
            reentry=timedelta(days=90),
            per_hour=None,
            users="users",
            topic="onboarding",
            transactional=True,
            priority=-10,
            over_cap="skip",
            holdout=0.25,
            send_window=send_window("Mon-Fri", time(9), "24:00", "skip"),
            owner="postgres",
            names="public",
        ),
        """'b', trigger => activation.on_update('"Project"', '{Kind,owner_id}', 'owner_id'),
           condition => activation.query('SELECT 1 FROM "Project" WHERE owner_id = $1', '3 days 5 seconds', '5 minutes', '{"public.\\"Project\\"": null}'),
           action => activation.email('milestone', '{"count": "{{ user.id }}"}', 'a: b', 'A <a@b.de>', 'c@d.de'),
           otherwise => activation.email('activation_nudge'),
           goal => activation.query('SELECT 1 FROM users WHERE id = $1 AND plan = ''pro'''), type => 'retention',
           opinion => 'because\\ of :this', recovery => activation.retry(5, 'fixed', '90 seconds', '2 hours'), reentry => '90 days',
           users => 'users', topic => 'onboarding', transactional => true, priority => -10, over_cap => 'skip', holdout => 0.25,
           send_window => activation.send_window('Mon-Fri', '09:00', '24:00', 'skip'), owner => 'postgres', names => 'public'""",
    ),
    (
        Loop(
            "c",
            trigger=on_delete('public."Project"', "owner_id", filter="OLD.\"Kind\" = 'x'"),
            steps=[
                step("one", action=email("activation_welcome")),
                step(
                    "two",
                    "1 hour",
                    query(ACTED, "3 days"),
                    email("milestone", {"count": "1"}),
                    email("activation_nudge"),
                    "exit",
                ),
            ],
        ),
        """'c', trigger => activation.on_delete('"Project"', 'owner_id', 'OLD."Kind" = ''x'''), steps => ARRAY[
           activation.step('one', action => activation.email('activation_welcome')),
           activation.step('two', '1 hour', activation.query('SELECT 1 FROM "Project" WHERE owner_id = $1', '3 days'),
               activation.email('milestone', '{"count": "1"}'), activation.email('activation_nudge'), 'exit')]""",
    ),
    (
        Loop("d", trigger=on_event("paid"), action=email("milestone", {"count": "1"}), reentry="always"),
        """'d', trigger => activation.on_event('paid'), action => activation.email('milestone', '{"count": "1"}'), reentry => 'always'""",
    ),
    (
        Loop("e", trigger=on_schedule("0 9 * * Mon", "SELECT id FROM users"), action=email("activation_nudge")),
        """'e', trigger => activation.on_schedule('0 9 * * Mon', 'SELECT id FROM users'), action => activation.email('activation_nudge')""",
    ),
    (
        Loop("f", trigger=on_insert("users"), action=email("activation_nudge"), enroll="both", per_hour=500),
        """'f', trigger => activation.on_insert('users'), action => activation.email('activation_nudge'), enroll => 'both', per_hour => 500""",
    ),
]


@pytest.fixture(scope="module")
def app(cluster: Cluster) -> Database:
    database = cluster.create_database()
    database.sql(APP)
    database.sql("SELECT activation.set_users('users')")
    database.sql(
        Template("milestone", "{{ count | default: 1 }}: it's", body_text="It's {{ count | default: 0 }}").sql()
    )
    return database


@pytest.mark.parametrize(("loop", "written"), PAIRS, ids=lambda value: getattr(value, "name", ""))
@pytest.mark.parametrize("way", ["psycopg", "client", "prepared", "script", "backslashes"])
def test_every_way_makes_the_loop_that_sql_makes(app: Database, loop: Loop, written: str, way: str) -> None:
    with app.connect(autocommit=False) as connection:
        connection.add_notice_handler(lambda _: None)
        connection.execute(f"SELECT activation.define_loop({written})".encode())
        expected = connection.execute("SELECT activation.export_loop(%s)", [loop.name]).fetchone()
        connection.rollback()
        if way == "psycopg":
            connection.execute(*_encoded(loop.statement()))
        elif way == "client":
            psycopg.ClientCursor(connection).execute(*_encoded(loop.statement()))
        elif way == "prepared":
            psycopg.RawCursor(connection).execute(*_encoded(loop.numbered()), prepare=True)
        else:
            connection.execute(f"SET standard_conforming_strings = {'on' if way == 'script' else 'off'}".encode())
            connection.execute(loop.sql().encode())
        found = connection.execute("SELECT activation.export_loop(%s)", [loop.name]).fetchone()
        assert found == expected
        # The same again is no new version.
        assert connection.execute(*_encoded(loop.statement())).fetchone() == (1,)
        connection.rollback()


def test_through_sqlalchemy(app: Database) -> None:
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=app.connect, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        for loop, written in PAIRS:
            sql, values = loop.statement(":{}")
            assert connection.scalar(sqlalchemy.text(sql), values) == 1
            assert (
                connection.exec_driver_sql(f"SELECT activation.define_loop({written.replace('%', '%%')})").scalar() == 1
            )
        connection.rollback()


def _encoded(statement: tuple[str, Any]) -> tuple[bytes, Any]:
    return statement[0].encode(), statement[1]


def test_what_is_wrong_is_refused_by_the_server(app: Database) -> None:
    loop = Loop(
        "x",
        trigger=on_insert("users"),
        condition=query("SELECT nope FROM users WHERE id = $1"),
        action=email("milestone"),
    )
    with app.connect() as connection, pytest.raises(psycopg.errors.UndefinedColumn, match='loop "x"'):
        connection.execute(*_encoded(loop.statement()))
