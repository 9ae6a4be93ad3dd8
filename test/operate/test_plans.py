# ruff: noqa: E501
"""No plan depends on statistics: each function of the engine that reads or writes what grows visits so many rows for each
person whom it is about, whatever the planner believes of the tables.

auto_explain tells what every statement inside a function did. Counted are the rows that its nodes visited, those that they
threw away among them, and the blocks that it touched: neither depends on the machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from harness import Cluster, Connection, Database
from loops import APP, define, tick

#: So many people; a hundred thousand take some minutes.
PEOPLE = int(os.environ.get("ACTIVATION_PLANS", "10000"))

#: So many in one call, of all these: as many as the largest round takes.
BATCH = 4000

#: Rows visited and blocks touched for each person of a call, and besides for the call itself.
ROWS, BLOCKS, CALL = 100, 250, 6000

GROWING = [
    "signal",
    "wake",
    "enrollment",
    "event",
    "message",
    "attempt",
    "request",
    "capture_failure",
    "remark",
    "consent",
    "suppression",
    "webhook_event",
    "erasure",
]


@dataclass
class Visits:
    """What the statements of one call did, and their plans, by the rows that they visited."""

    rows: int = 0
    blocks: int = 0
    plans: list[tuple[int, str]] = field(default_factory=list)

    def add(self, document: dict[str, Any]) -> None:
        visited, plan = _visited(document["Plan"]), document["Plan"]
        self.rows += visited
        # That of the outermost statement holds those of the others.
        self.blocks = max(self.blocks, plan.get("Shared Hit Blocks", 0) + plan.get("Shared Read Blocks", 0))
        self.plans.append((visited, f"{document['Query Text'][:600]}\n" + "\n".join(_shown(plan))))

    @property
    def most(self) -> str:
        """The plans that visited most."""
        return "\n".join(f"{rows} rows: {plan}" for rows, plan in sorted(self.plans, reverse=True)[:3])


def _thrown(node: dict[str, Any]) -> int:
    return sum(int(node.get(f"Rows Removed by {what}", 0)) for what in ("Filter", "Join Filter", "Index Recheck"))


def _visited(node: dict[str, Any]) -> int:
    here = (node.get("Actual Rows", 0) + _thrown(node)) * node.get("Actual Loops", 0)
    return int(here) + sum(_visited(child) for child in node.get("Plans", []))


def _shown(node: dict[str, Any], depth: int = 1) -> Iterator[str]:
    where = node.get("Index Name") or node.get("Relation Name") or ""
    yield f"{' ' * depth}{node['Node Type']} {where} {node.get('Actual Rows')}+{_thrown(node)} x {node.get('Actual Loops')}"
    for child in node.get("Plans", []):
        yield from _shown(child, depth + 1)


class Meter:
    """A session in which every statement is explained."""

    def __init__(self, db: Database) -> None:
        self.connection = db.connect(autocommit=False)
        self.connection.execute(
            "LOAD 'auto_explain'; SET auto_explain.log_nested_statements = on; SET auto_explain.log_analyze = on;"
            "SET auto_explain.log_buffers = on; SET auto_explain.log_timing = off; SET auto_explain.log_format = json;"
            "SET auto_explain.log_level = notice; SET client_min_messages = notice; SET jit = off"
        )
        self.connection.commit()
        self._told: list[str] = []
        self.connection.add_notice_handler(lambda notice: self._told.append(notice.message_primary or ""))

    def call(self, sql: str, *values: object) -> tuple[list[tuple[Any, ...]], Visits]:
        """The rows of a statement, and what it took. It is undone."""
        self._told.clear()
        self.connection.execute("SET LOCAL auto_explain.log_min_duration = 0")
        try:
            rows = self.connection.execute(sql.encode(), values or None).fetchall()
        finally:
            self.connection.rollback()
        visits = Visits()
        for told in self._told:
            if "plan:\n" in told:
                visits.add(json.loads(told.partition("plan:\n")[2]))
        return rows, visits


def crowd(app: Connection) -> None:
    """People in every state that the engine knows: those who acted, at their deadline, to be tried again, with mail that
    is queued, on its way, sent long ago and not, and with all that is told of them."""
    for statement in CROWD.split(";\n"):
        app.execute(statement.replace("PEOPLE", str(PEOPLE)).replace("BATCH", str(BATCH)).encode())


CROWD = """
INSERT INTO users (id, email) SELECT g, 'u' || g || '@acme.dev' FROM generate_series(1, PEOPLE) g;
INSERT INTO activation.enrollment (loop_id, version, user_id, state, step, enrolled_at, created_at, deadline, newest_template_id)
SELECT l.loop_id, l.version, g::text, 'waiting', 1, now(), now(), now() + interval '1 hour', 0 FROM generate_series(1, PEOPLE) g, activation.loop l ORDER BY g;
INSERT INTO activation.message (message_id, enrollment_id, loop_id, version, user_id, step, branch, state, created_at, next_attempt_at, finished_at, request_id)
SELECT gen_random_uuid(), e.enrollment_id, e.loop_id, e.version, e.user_id, 1, k.branch, k.state, now(), now() - interval '2 hours',
       CASE WHEN k.state = 'captured' THEN now() - interval '2 hours' END, CASE WHEN k.state = 'sending' THEN gen_random_uuid() END
  FROM activation.enrollment e
  CROSS JOIN LATERAL (VALUES ('action', CASE WHEN e.enrollment_id % 10 = 0 THEN 'sending' ELSE 'captured' END), ('otherwise', 'queued')) AS k(branch, state);
INSERT INTO activation.request (request_id, endpoint, body, members, mode, recovery, state, created_at, next_try_at)
SELECT m.request_id, '/emails', '{}', ARRAY[m.message_id], 'live', activation.retry(), CASE WHEN m.enrollment_id % 20 = 0 THEN 'open' ELSE 'done' END,
       now() - CASE WHEN m.enrollment_id % 40 = 0 THEN interval '24 hours' ELSE '2 hours' END, now() - interval '2 hours' FROM activation.message m WHERE m.request_id IS NOT NULL;
INSERT INTO activation.attempt (message_id, attempt, request_id, started_at, finished_at, outcome)
SELECT m.message_id, 1, coalesce(m.request_id, gen_random_uuid()), now() - interval '2 hours', now(), 'erred' FROM activation.message m;
INSERT INTO activation.signal (source_id, generation, user_id) SELECT s.source_id, s.generation, (PEOPLE + g)::text
  FROM activation.source s, generate_series(1, PEOPLE) g WHERE s.table_name = 'users'::regclass;
INSERT INTO activation.wake (source_id, user_id) VALUES (0, 'marker');
INSERT INTO activation.wake (source_id, user_id) SELECT s.source_id, g::text FROM activation.source s, generate_series(1, PEOPLE) g WHERE s.table_name = 'actions'::regclass;
INSERT INTO activation.event (at, user_id, event, properties) SELECT now() - interval '2 hours', g::text, 'met', '{}' FROM generate_series(1, PEOPLE) g;
INSERT INTO activation.capture_failure SELECT now() - interval '2 hours', 1, g::text, 'no' FROM generate_series(1, PEOPLE) g;
INSERT INTO activation.remark SELECT now() - interval '2 hours', 1, g::text, 'row_too_large', 'no' FROM generate_series(1, PEOPLE) g;
INSERT INTO activation.consent SELECT 'users', g::text, '', true, now(), 'test' FROM generate_series(1, PEOPLE) g;
INSERT INTO activation.suppression SELECT 'x' || g || '@acme.dev', 'no', 'operator', 'test', now() FROM generate_series(1, PEOPLE) g;
INSERT INTO activation.unsuppression SELECT 'y' || g || '@acme.dev', now() FROM generate_series(1, PEOPLE) g;
INSERT INTO activation.webhook_event (webhook_id, type, at, received_at, message_id, applied, payload)
SELECT m.message_id::text, 'email.delivered', now() - interval '2 hours', now() - interval '2 hours', m.message_id, false, '{"data": {"to": ["x@acme.dev"]}}'
  FROM activation.message m;
INSERT INTO activation.erasure SELECT (PEOPLE + g)::text, now() FROM generate_series(1, PEOPLE) g
"""


def nothing(db: Database) -> None:
    """No statistics at all."""


def of_empty_tables(db: Database) -> None:
    """Somebody analyzed them when there was nothing in them."""
    db.sql("ANALYZE")


def of_a_quiet_time(db: Database) -> None:
    """They had their size, and nobody waited, nothing was queued, due or open."""
    with db.connect() as app:
        crowd(app)
        app.execute("UPDATE activation.enrollment SET state = 'completed', activated_at = now(), deadline = NULL")
        app.execute(
            "UPDATE activation.message SET state = 'sent', request_id = coalesce(request_id, message_id), finished_at = NULL"
        )
        app.execute("UPDATE activation.request SET state = 'done'; UPDATE activation.webhook_event SET applied = true")
        db.sql("VACUUM ANALYZE")
        app.execute("TRUNCATE users, " + ", ".join(f"activation.{table}" for table in [*GROWING, "unsuppression"]))
        # Empty, they would be taken for such; the numbers stay what they were.


@pytest.fixture(scope="module")
def quiet() -> Iterator[Cluster]:
    with Cluster(settings={"autovacuum": False, "shared_buffers": "256MB"}) as server:
        yield server


@pytest.fixture(scope="module", params=[nothing, of_empty_tables, of_a_quiet_time])
def meter(quiet: Cluster, request: pytest.FixtureRequest) -> Iterator[Meter]:
    db = quiet.create_database()
    with db.connect() as app:
        app.execute(APP)
        app.execute(
            "SELECT activation.configure(sender => 'a@acme.dev', public_url => 'https://acme.dev', retention => '1 hour', sync_suppressions => true)"
        )
        define(app, timeout="1 hour", otherwise=True)
        tick(db)
        request.param(db)
        app.execute("TRUNCATE activation.signal, activation.wake")
        crowd(app)
    made = Meter(db)
    yield made
    made.connection.close()
    db.drop()


#: Each function, as the engine calls it, and for how many people. IDS: enrollments; MAILS: queued messages; ENDED: those
#: that ended; KEYS: users; EVENTS: what Resend told.
_ = "ARRAY(SELECT {} FROM {} ORDER BY 1 LIMIT {})"
NAMES = {
    "IDS": f"ARRAY(SELECT enrollment_id FROM activation.enrollment LIMIT {BATCH})",
    "MAILS": f"ARRAY(SELECT message_id FROM activation.message WHERE branch = 'otherwise' LIMIT {BATCH})",
    "KEYS": f"ARRAY(SELECT g::text FROM generate_series(1, {BATCH}) g)",
    "PARTS": "activation._all_buckets()",
    "ROWS": "activation._read_rows(activation._safe_eval((SELECT users_function FROM activation.loop_version), 'postgres', KEYS))",
    "DECIDED": "ARRAY(SELECT (id, 'action', now(), false)::activation.decided FROM unnest(IDS) AS id)",
    "ONE_MAIL": "(SELECT message_id FROM activation.message WHERE state = 'sending' LIMIT 1)",
    "REQUEST": "(SELECT request_id FROM activation.request WHERE state = 'open' LIMIT 1)",
}
NO_MARKS = "'{}', '{}', '{}'"
CALLS: dict[str, tuple[str, int]] = {
    "_advance": ("_advance(1, DECIDED, now())", BATCH),
    "_ask_nudges": ("_ask_nudges(MAILS, 'postgres', (SELECT evaluate_function FROM activation.step), now())", BATCH),
    "_apply_event": ("_apply_event((SELECT min(webhook_id) FROM activation.webhook_event))", 1),
    "_apply_events": ("_apply_events()", 1000),
    "_apply_event_to_message": ("_apply_event_to_message((SELECT min(webhook_id) FROM activation.webhook_event))", 1),
    "_note_unreadable_deletion": ("_note_unreadable_deletion('users', KEYS, 'no')", BATCH),
    "_claim_cap": ("_claim_cap((MAILS)[:100], 'users', 'wait', '{}', now())", 100),
    "_claim_checked": ("_claim_checked(1, 1, MAILS, '{}', now())", BATCH),
    "_claim_gone": ("_claim_gone(MAILS, '{}')", BATCH),
    "_claim_messages": (f"_claim_messages({BATCH}, {NO_MARKS})", BATCH),
    "_claim_of_loop": ("_claim_of_loop(1, 1, MAILS, '{}', now())", BATCH),
    "_claim_put_back": ("_claim_put_back(1, MAILS, '22012', 'no', 1, now())", BATCH),
    "_claim_raised": ("_claim_raised((MAILS)[:100], (KEYS)[:100], (KEYS)[:100], (KEYS)[:100], '{}', now())", 100),
    "_claim_goal_reached": ("_claim_goal_reached(MAILS, KEYS, now())", BATCH),
    "_claim_requests": ("_claim_requests(gen_random_uuid(), interval '1 minute', 100)", 100),
    "_claim_unwanted": ("_claim_unwanted(MAILS, ROWS, 'users', NULL, false, now())", BATCH),
    "_claim_window": ("_claim_window(MAILS, ROWS, activation.send_window('Mon', '08:00', '08:01'), now())", BATCH),
    "_deliver_due": ("_deliver_due()", 1),
    "_deliver_state": (f"_deliver_state('here', {NO_MARKS})", 1),
    "_detect_ask": ("_detect_ask(1, 1, 1, IDS)", BATCH),
    "_detect_bad_user": ("_detect_bad_user((IDS)[1], 'no')", 1),
    "_detect_decide": ("_detect_decide(1, IDS, '{}', '{}', KEYS)", BATCH),
    "_detect_defer": ("_detect_defer(IDS, '{}', '{}')", BATCH),
    "_detect_due": ("_detect_due()", 1),
    "_detect_stretch": (f"_detect_stretch(1, 1, 1, 3, 0, {BATCH})", BATCH),
    "_detect_sweep": (f"_detect_sweep(1, 1, 1, 3, 0, {BATCH})", BATCH),
    "_detect_take": (f"_detect_take(PARTS, {BATCH}, true, true, true)", 3 * BATCH),
    "_ask_filters": (f"_ask_filters(ARRAY(SELECT ctid FROM activation.signal LIMIT {BATCH}))", BATCH),
    "_enroll_signals": (f"_enroll_signals(ARRAY(SELECT ctid FROM activation.signal LIMIT {BATCH}))", BATCH),
    "_erase": ("_erase('77')", 1),
    "_erase_due": ("_erase_due()", 100),
    "_expire_requests": ("_expire_requests()", PEOPLE),
    "_find_due": (f"_find_due(PARTS, {BATCH}, now() + interval '2 hours')", BATCH),
    "_find_retries": (f"_find_retries(PARTS, {BATCH}, now())", BATCH),
    "_finish_messages": (
        f"_finish_messages(MAILS, array_fill('captured'::text, ARRAY[{BATCH}]), KEYS, KEYS, KEYS)",
        BATCH,
    ),
    "_housekeep": ("_housekeep()", 6 * 1000),
    "_import_suppressions": ("_import_suppressions(KEYS, KEYS)", BATCH),
    "_keep_event": (
        """_keep_event('new', '{"type": "suppression.added", "data": {"email": "z@acme.dev"}}', now(), now())""",
        1,
    ),
    "_exit_enrollments": ("_exit_enrollments(IDS, 'no')", BATCH),
    "_lock_enrollments": ("_lock_enrollments(DECIDED)", BATCH),
    "_messages_of": ("_messages_of('77')", 1),
    "_out_of_turn": ("_out_of_turn(MAILS, now())", BATCH),
    "_cap_until": ("_cap_until('77', 'users', 0, now())", 1),
    "_due_loops": (f"_due_loops(now(), {NO_MARKS})", 1),
    "_record_try": ("_record_try(REQUEST, NULL, 'sent', '{a}', 200, NULL, NULL, NULL, now(), now())", 1),
    "_remark": ("_remark(1, '77', 'odd', 'odd', now())", 1),
    "_remark_left_out": (
        "_remark_left_out(MAILS, ARRAY(SELECT (u.user_id, '', '', '[\"a\"]', '{}')::activation.users_row FROM unnest(KEYS) u(user_id)), now())",
        BATCH,
    ),
    "_remove_old_attempts": ("_remove_old_attempts(now() - interval '1 day', now(), now())", 2 * 1000),
    "_remove_old_events": ("_remove_old_events(now(), now())", 5 * 1000),
    "_remove_old_messages": ("_remove_old_messages(now())", 1000),
    "_resolve": ("_resolve(ONE_MAIL, 'sent', 'me')", 1),
    "_set_signal_aside": ("_set_signal_aside((SELECT ctid FROM activation.signal LIMIT 1), 'no')", 1),
    "_store_request": (
        "_store_request(gen_random_uuid(), '/emails', '{}', MAILS, KEYS, KEYS, 'live', '{}', gen_random_uuid(), interval '1 minute')",
        BATCH,
    ),
    "_subscribe": ("_subscribe('users', '77', '', false, 'me')", 1),
    "_take_deletions": (
        f"_take_deletions(array_fill((SELECT source_id FROM activation.source WHERE table_name = 'users'::regclass), ARRAY[{BATCH}]), KEYS, KEYS, now())",
        BATCH,
    ),
    "_next_signals": (f"_next_signals(PARTS, {BATCH})", BATCH),
    "_take_signals": (f"_take_signals(PARTS, {BATCH})", BATCH),
    "_take_these_signals": (f"_take_these_signals(ARRAY(SELECT ctid FROM activation.signal LIMIT {BATCH}))", BATCH),
    "_take_wakes": (f"_take_wakes(PARTS, {BATCH})", BATCH),
    "_unknown_events": ("_unknown_events(KEYS)", BATCH),
    "_note_unsuppressed": ("_note_unsuppressed(KEYS)", BATCH),
    "_end_queued": ("_end_queued(MAILS, 'cancelled', 'loop_archived')", BATCH),
    "_postpone_queued": ("_postpone_queued(MAILS, now(), 'waits_for_cap')", BATCH),
    "_try_erase": ("_try_erase('77')", 1),
    "_wait_for_enrollments": ("_wait_for_enrollments('77', 'first', 1)", 1),
    "cancel": ("cancel('77', 'first')", 1),
    "_enroll": ("_enroll(10, '77', 'first', NULL)", 1),
    "erase": ("erase('77')", 1),
    "track": ("track('77', 'met')", 1),
    "unsuppress": ("unsuppress('x77@acme.dev')", 1),
    "_suppress": ("_suppress('me@acme.dev', 'no', 'operator', 'me', now())", 1),
    "_remember_addresses": ("_remember_addresses(KEYS, KEYS)", BATCH),
}

# A claim is smaller than a round, and its plans may be others.
CALLS |= {
    f"{name} of few": (
        call.replace(f"({BATCH}", "(500").replace("MAILS", "(MAILS)[:500]").replace("KEYS", "(KEYS)[:500]"),
        500,
    )
    for name, (call, people) in CALLS.items()
    if (people == BATCH and "MAILS" in call) or name == "_claim_messages"
}

#: They look through signals, wakes, and what Resend told of addresses, which have no index by user: for each person once.
THROUGH = {"_erase": 1, "_try_erase": 1, "erase": 1, "_erase_due": 100}

#: Functions that name what grows and are not called above.
EXEMPT = set(
    # For people who look or define, and for orders about a whole loop or everybody.
    [
        "_status",
        "_loop_status",
        "_why",
        "_why_not",
        "_condition_now",
        "_trouble",
        "_overview_numbers",
        "_journey",
        "export_user",
        "_preferences",
        "_diff_loop",
        "_doctor_lag",
        "_doctor_leases",
        "_doctor_retention",
        "_doctor_unknown",
        "_simulate_plan",
        "_simulate_query",
        "power",
        "_bind",
        "_define",
        "_read_watches",
        "_capture_body",
        "_filter_statements",
        "_migrate_loop",
        "_cancel_queue_of_loop",
        "_pause_loop",
        "_resume_loop",
        "_archive_loop",
        "set_mode",
        "_restore_wake_marker",
        "_pull_state",
        "_unexported_suppressions",
        "_token_owner",
        "_resolve_message",
        "track_all",
        "_renew_wake",
        "_backfill_chunk",
    ]
)


def parts(letters: str) -> str:
    for _depth in range(3):
        for name, sql in NAMES.items():
            letters = letters.replace(name, sql)
    return letters


@pytest.mark.parametrize("name", CALLS)
def test_rows_for_each_person(meter: Meter, name: str) -> None:
    call, people = CALLS[name]
    arguments = parts(call)
    # What the arguments take is not the function's; sequences and settings stay as they were.
    _, visits = meter.call(f"SELECT count(*) FROM activation.{arguments}")
    bare = arguments.partition("(")[2].removesuffix(")")
    _, before = meter.call(f"SELECT {bare}") if bare else ([], Visits())
    rows, blocks = visits.rows - before.rows, visits.blocks - before.blocks
    rows, blocks = (visited - THROUGH.get(name, 0) * 12 * PEOPLE for visited in (rows, blocks))
    assert rows <= ROWS * people + CALL, f"{rows} rows for {people} people; the most by\n{visits.most}"
    assert blocks <= BLOCKS * people + CALL, f"{blocks} blocks for {people} people"


def test_every_function_is_asked(quiet: Cluster) -> None:
    """One that names a table which grows is called here, or said not to be."""
    db = quiet.create_database()
    names = db.sql(
        "SELECT p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
        " WHERE n.nspname = 'activation' AND coalesce(p.prosqlbody::text, '') || p.prosrc ~ %s AND p.prorettype <> 'event_trigger'::regtype",
        rf"activation\.({'|'.join(GROWING)})\M",
    )
    db.drop()
    named = {name for (name,) in names}
    assert sorted(named - set(CALLS) - EXEMPT) == []
