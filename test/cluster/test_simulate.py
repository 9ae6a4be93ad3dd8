# ruff: noqa: E501
"""simulate(): the same history, lived through by the engine, gives the same messages to the same people."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from harness import Cluster, Database

APP = """
    CREATE TABLE users (id bigint PRIMARY KEY, email text DEFAULT 'u@acme.dev', plan text, zone text, created_at timestamptz NOT NULL DEFAULT now());
    CREATE TABLE projects (id bigserial PRIMARY KEY, owner_id bigint REFERENCES users, created_at timestamptz NOT NULL DEFAULT now());
    CREATE TABLE actions (id bigserial PRIMARY KEY, user_id bigint REFERENCES users, what text, created_at timestamptz NOT NULL DEFAULT now());
    CREATE INDEX ON projects (owner_id);
    CREATE INDEX ON actions (user_id, what);
    SELECT activation.set_users('users', timezone => 'zone');
"""
HOURS = 24 * 12
WELCOME, NUDGE, MILESTONE = (
    f"activation.email('{name}')" for name in ("activation_welcome", "activation_nudge", "milestone")
)
PROJECT = "SELECT * FROM public.projects WHERE owner_id = $1"

LOOPS = {
    "nudge": f"""trigger => activation.on_insert('users'),
        condition => activation.query($${PROJECT}$$, timeout => '2 days'), action => {WELCOME}, otherwise => {NUDGE}""",
    "sequence": f"""trigger => activation.on_insert('users', filter => 'NEW.plan = ''free'''), holdout => 0.3,
        goal => activation.query($$SELECT 1 FROM projects WHERE owner_id = $1$$),
        steps => ARRAY[activation.step('welcome', action => {WELCOME}),
            activation.step('first', delay => '1 hour', condition => activation.query($${PROJECT}$$, timeout => '3 days'), action => {MILESTONE}, otherwise => {NUDGE}),
            activation.step('tip', delay => '1 day', action => {MILESTONE}),
            activation.step('three', condition => activation.query($$SELECT 1 FROM projects p WHERE p.owner_id = $1 HAVING count(*) >= 3$$, timeout => '4 days'),
                action => {MILESTONE}, otherwise => {NUDGE}, on_timeout => 'exit'),
            activation.step('never', delay => '1 day', action => {WELCOME})]""",
    "joined": f"""trigger => activation.on_insert('projects', user_key => 'owner_id'),
        condition => activation.query($$SELECT 1 FROM actions a JOIN projects p ON p.owner_id = a.user_id WHERE a.user_id = $1 AND p.owner_id = $1 AND a.what = 'shared'$$),
        action => {MILESTONE}""",
    "without": f"""trigger => activation.on_insert('users'),
        condition => activation.query($$SELECT 1 FROM users u WHERE u.id = $1 AND NOT EXISTS (SELECT FROM actions a WHERE a.user_id = $1)$$, timeout => '1 day'),
        action => {NUDGE}""",
    "window": f"""trigger => activation.on_insert('users'), send_window => activation.send_window('Mon-Fri', '09:00', '17:00'),
        steps => ARRAY[activation.step('a', delay => '5 hours', action => {WELCOME}),
            activation.step('b', condition => activation.query($${PROJECT}$$, timeout => '2 days'), otherwise => {NUDGE})]""",
}


def history(seed: int, people: int) -> list[tuple[datetime, str, list[Any]]]:
    """What happened, on full hours, in the order of time; the last two days nobody signs up."""
    chance = random.Random(seed)
    begin = (datetime.now().astimezone() - timedelta(hours=HOURS + 24)).replace(minute=0, second=0, microsecond=0)
    found: list[tuple[datetime, str, list[Any]]] = []
    for user in range(1, people + 1):
        signup = chance.randrange(HOURS - 48)
        found.append((begin + timedelta(hours=signup), "INSERT INTO users (id, plan, zone, created_at) VALUES (%s, %s, %s, %s)",
                      [user, chance.choice(["free", "paid"]), chance.choice(["Europe/Berlin", "America/New_York", None])]))  # fmt: skip
        for table, most in (("projects", 4), ("actions", 3)):
            for _ in range(chance.randrange(most)):
                at = begin + timedelta(hours=signup + int(chance.expovariate(1 / 40)))
                columns = "owner_id" if table == "projects" else "what, user_id"
                values = [user] if table == "projects" else [chance.choice(["shared", "seen"]), user]
                found.append(
                    (
                        at,
                        f"INSERT INTO {table} ({columns}, created_at) VALUES ({', '.join(['%s'] * (len(values) + 1))})",
                        values,
                    )
                )
    return sorted(found, key=lambda event: event[0])


def live(db: Database, events: list[tuple[datetime, str, list[Any]]]) -> None:
    """The engine lives through it, an hour at a time."""
    clock, until = events[0][0], events[0][0] + timedelta(hours=HOURS)
    left = list(events)
    while clock <= until:
        while left and left[0][0] <= clock:
            at, statement, values = left.pop(0)
            db.sql(statement, *values, at)
        db.sql("UPDATE activation.signal SET at = %s WHERE at > %s", clock, clock)
        db.sql("SELECT set_config('activation.now', %s, false)", clock.isoformat())
        db.sql("CALL activation.tick()")
        clock += timedelta(hours=1)
    db.sql("RESET activation.now")


@pytest.mark.parametrize("name", LOOPS)
def test_as_the_engine_does(db: Database, name: str) -> None:
    db.sql(APP)
    db.sql(f"SELECT activation.define_loop('{name}', {LOOPS[name]})")
    events = history(len(name), 40)
    live(db, events)
    begin, until = events[0][0], events[0][0] + timedelta(hours=HOURS)
    done = db.sql(
        "SELECT user_id, step, branch, CASE status WHEN 'captured' THEN 'sent' ELSE status END FROM activation.message_log ORDER BY 1, 2, 3"
    )
    said = db.sql(
        "SELECT user_id, step, branch, status FROM activation._simulate(%s, NULL, %s, %s, NULL, 'public') WHERE step IS NOT NULL ORDER BY 1, 2, 3",
        name,
        begin,
        until,
    )
    assert said == done and len(said) > 10
    # And the same from the definition alone.
    document = db.value("SELECT activation.export_loop(%s)::text", name)
    again = db.sql(
        "SELECT user_id, step, branch, status FROM activation._simulate(%s, %s::jsonb, %s, %s, NULL, 'public') WHERE step IS NOT NULL ORDER BY 1, 2, 3",
        name,
        document,
        begin,
        until,
    )
    assert again == done
    # When a wake came is by the server's own clock, which does not move: only who.
    activated = db.sql("SELECT user_id FROM activation.journey WHERE activated_at IS NOT NULL ORDER BY 1")
    assert activated == db.sql(
        "SELECT user_id FROM activation._simulate(%s, NULL, %s, %s, NULL, 'public') WHERE step IS NULL AND goal_at IS NOT NULL ORDER BY 1",
        name,
        begin,
        until,
    )


def small(db: Database) -> None:
    db.sql(APP)
    db.sql(f"SELECT activation.define_loop('nudge', {LOOPS['nudge']})")
    db.sql("""
        INSERT INTO users (id, created_at) SELECT g, now() - interval '10 days' + g * interval '1 hour' FROM generate_series(1, 20) g;
        INSERT INTO projects (owner_id, created_at) SELECT g, now() - interval '10 days' + g * interval '1 hour' + g * interval '3 hours' FROM generate_series(1, 20) g WHERE g % 2 = 0;
        DELETE FROM activation.signal
    """)


def test_what_it_says(db: Database) -> None:
    """Read-only, with nothing left behind; in words and in figures."""
    small(db)
    with db.connect() as session:
        session.execute("SET default_transaction_read_only = on")
        rows = session.execute(
            "SELECT part, step, branch, people, share::float8, already_acted, detail FROM activation.simulate('nudge', since => now() - interval '90 days')"
        ).fetchall()
    assert rows[0][:4] == ("enrolled", None, None, 20)
    # 2, 4 … 16 within two days, that is 48 hours; 18 and 20 after their nudge.
    assert {row[1:6] for row in rows if row[0] == "mail"} == {
        ("step1", "action", 8, 0.4, 8),
        ("step1", "otherwise", 12, 0.6, 0),
    }
    ((people, share, detail),) = [(row[3], row[4], row[6]) for row in rows if row[0] == "activated"]
    assert (people, share) == (10, 0.5)
    assert detail == "half within 60:00:00, fewer than nine in ten so far"
    ((emails, detail),) = [(row[3], row[6]) for row in rows if row[0] == "emails"]
    assert emails == 20 and "20 people" in detail and "rate is not known yet" in detail
    people_shown = [row for row in rows if row[0].startswith("person ")]
    assert len(people_shown) == 10 and "step1 otherwise, sent" in people_shown[0][6] and "; goal " in people_shown[1][6]
    assert not [row for row in rows if row[0] == "note"]
    assert db.value("SELECT count(*) FROM activation.enrollment") == 0


def test_on_a_standby(cluster: Cluster) -> None:
    """Where nothing can be written at all."""
    database = cluster.create_database()
    small(database)
    with database.connect() as session:
        session.execute("BEGIN READ ONLY")
        session.execute("SET LOCAL transaction_read_only = on")
        assert session.execute("SELECT count(*) FROM activation.simulate('nudge')").fetchone()
    database.drop()


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("SELECT 1 FROM projects WHERE owner_id = $1 AND created_at < now() - interval '1 day'", "it reads the clock (now)"),
        ("SELECT 1 FROM plain WHERE user_id = $1", "no column of public.plain tells when a row came"),
        ("SELECT 1 FROM projects WHERE owner_id = $1 AND own(id)", "it calls own, which cannot be looked into"),
        ("SELECT 1 FROM projects WHERE owner_id + 1 = $1", "it reads public.projects in a way that does not tell whose row it is"),
        ("SELECT 1 FROM users WHERE id = $1 AND plan = 'pro'", "rows of public.users were updated"),
    ],
)  # fmt: skip
def test_what_cannot_be_replayed_is_said(db: Database, query: str, says: str) -> None:
    small(db)
    db.sql(
        "CREATE TABLE plain (user_id bigint); CREATE FUNCTION own(bigint) RETURNS boolean LANGUAGE sql STABLE AS 'SELECT true'"
    )
    db.sql("UPDATE users SET plan = 'pro' WHERE id = 1")
    db.sql("SELECT pg_stat_force_next_flush()")
    document = f"""jsonb_build_object('trigger', activation.on_insert('users'), 'condition', activation.query($q${query}$q$, timeout => '1 day'), 'action', {WELCOME})"""
    notes = [
        row[0]
        for row in db.sql(f"SELECT detail FROM activation.simulate(definition => {document}) WHERE part = 'note'")
    ]
    assert any(says in note for note in notes), notes
    if "cannot" in "".join(notes):
        assert db.sql(f"SELECT FROM activation.simulate(definition => {document}) WHERE part = 'mail'") == [], (
            "nothing is guessed"
        )


def test_named_timestamps(db: Database) -> None:
    small(db)
    db.sql(
        "CREATE TABLE plain (user_id bigint, noticed timestamptz); INSERT INTO plain VALUES (3, now() - interval '9 days')"
    )
    document = f"""jsonb_build_object('trigger', activation.on_insert('users'), 'condition', activation.query('SELECT 1 FROM plain WHERE user_id = $1'), 'action', {WELCOME})"""
    assert db.sql(
        f"""SELECT people FROM activation.simulate(definition => {document}, timestamps => '{{"public.plain": "noticed"}}') WHERE part = 'mail'"""
    ) == [(1,)]


def test_a_milestone_of_the_past(db: Database) -> None:
    """Of everybody, though no loop ever watched it."""
    small(db)
    rows = db.sql(
        "SELECT user_id::integer, extract(epoch FROM reached_at - signed_up_at)::integer / 3600 FROM activation.milestone(activation.query('SELECT 1 FROM projects WHERE owner_id = $1')) ORDER BY 1"
    )
    assert rows == [(g, g * 3 if g % 2 == 0 else None) for g in range(1, 21)]
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="cannot be told from the tables") as caught:
        db.sql(
            "SELECT * FROM activation.milestone(activation.query('SELECT 1 FROM projects WHERE owner_id = $1 AND now() > created_at'))"
        )
    assert "reads the clock" in str(caught.value.diag.message_detail)


def refused(db: Database, arguments: str, error: type[psycopg.Error], message: str, hint: str) -> None:
    with pytest.raises(error, match=message) as caught:
        db.sql(f"SELECT * FROM activation.simulate({arguments})")
    assert hint in str(caught.value.diag.message_hint)


def test_refusals(db: Database) -> None:
    small(db)
    wrong = psycopg.errors.InvalidParameterValue
    refused(db, "'none'", psycopg.errors.UndefinedObject, 'loop "none" does not exist', "simulate(definition =>")
    refused(db, "", wrong, "there is nothing to rehearse", "Name a loop")
    refused(
        db, "'nudge', since => now() + interval '1 day'", wrong, "cannot be rehearsed from", "since comes before until"
    )
    refused(db, "'nudge', until => now() + interval '1 day'", wrong, "until is in the future", "leave until out")
    refused(db, 'definition => \'{"trigger": {"type": "database"}}\'', wrong, "loop", "")
    document = f"jsonb_build_object('trigger', activation.on_schedule('0 9 * * *', 'SELECT id FROM users'), 'users', 'users', 'action', {WELCOME})"
    refused(
        db,
        f"definition => {document}",
        psycopg.errors.FeatureNotSupported,
        "whom a schedule enrolled cannot be told",
        "on_insert",
    )
    db.sql("CREATE TABLE members (id bigint PRIMARY KEY, email text)")
    document = f"jsonb_build_object('trigger', activation.on_insert('members'), 'action', {WELCOME})"
    refused(
        db,
        f"definition => {document}",
        psycopg.errors.ObjectNotInPrerequisiteState,
        "no column of public.members tells when a row was inserted",
        "timestamps =>",
    )
    assert db.sql(
        "SELECT detail FROM activation.simulate('nudge', since => now() - interval '1 second') WHERE part = 'note'"
    )[0][0].startswith("nobody came to public.users")


def test_an_author_s_text_is_no_snare(db: Database) -> None:
    """A superuser who rehearses the loop of a lesser role would run its text with their own rights."""
    db.sql(APP)
    db.sql("""
        CREATE ROLE author;
        GRANT USAGE ON SCHEMA activation TO author;
        GRANT EXECUTE ON FUNCTION activation.define_loop, activation.query, activation.email, activation.on_insert, activation.simulate, activation._simulate,
            activation._simulate_plan, activation._simulate_query, activation._first_true, activation._look_up, activation._held_out, activation._next_opening TO author;
        ALTER TABLE users OWNER TO author; ALTER TABLE projects OWNER TO author; ALTER TABLE actions OWNER TO author;
    """)
    try:
        with db.connect() as session:
            session.execute("SET ROLE author")
            session.execute(f"SELECT activation.define_loop('nudge', {LOOPS['nudge']})".encode())
            session.execute("INSERT INTO users (id, created_at) VALUES (1, now() - interval '5 days')")
            assert session.execute(
                "SELECT people FROM activation.simulate('nudge') WHERE part = 'mail'"
            ).fetchall() == [(1,)]
        refused(db, "'nudge'", psycopg.errors.InsufficientPrivilege, "postgres may not rehearse it", "SET ROLE author")
    finally:
        db.sql("DROP OWNED BY author CASCADE; DROP ROLE author")
