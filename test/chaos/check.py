"""Three sources, compared: the app's tables, the engine's, and the sandbox's log. Every row found is a violation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from harness import Cluster, Connection
from ledger import Ledger
from world import RETRIES, World

#: Between the moment a claim looks at a nudge and the creation of its request lie rendering and, at worst, a wait for a
#: lock. Only who had acted so many seconds before the request certainly acted before the claim.
CLAIM = 3

#: What the other two sources know, as tables beside the engine's.
_SOURCES = """
    CREATE SCHEMA chaos;
    CREATE TABLE chaos.email (email_id text, message_id uuid, key text, recipient text);
    CREATE INDEX ON chaos.email (message_id);
    CREATE TABLE chaos.acted (user_id text PRIMARY KEY, at timestamptz);
    CREATE TABLE chaos.ledger (user_id bigint PRIMARY KEY, committed boolean);
    CREATE VIEW chaos.expected AS
        SELECT u.id::text AS user_id, l.loop_id, l.name,
               EXISTS (SELECT FROM actions a WHERE a.user_id = u.id AND (l.name = 'first' OR a.what = 'paid')) AS acted
          FROM users u JOIN activation.loop l ON l.name = 'first' OR u.plan = 'paid';
    CREATE VIEW chaos.message AS
        SELECT m.*, m.state NOT IN ('queued', 'sending') AS final,
               EXISTS (SELECT FROM chaos.email x WHERE x.message_id = m.message_id) AS accepted,
               (SELECT count(*) FROM activation.attempt a WHERE a.message_id = m.message_id
                   AND a.request_id = m.request_id AND a.outcome = 'erred') AS errors,
               (SELECT count(*) FROM activation.attempt a WHERE a.message_id = m.message_id
                   AND a.request_id = m.request_id AND a.outcome <> 'erred') AS other_tries,
               EXISTS (SELECT FROM activation.attempt a
                        WHERE a.message_id = m.message_id AND a.outcome = 'terminal') AS refused
          FROM activation.message m;
"""

#: Each query finds what must not be: whose it is, which message, and what is wrong.
INVARIANTS = {
    "committed signups without an enrollment": """
        SELECT x.user_id, NULL::uuid, 'not enrolled in ' || x.name FROM chaos.expected x
         WHERE NOT EXISTS (SELECT FROM activation.enrollment e WHERE e.loop_id = x.loop_id AND e.user_id = x.user_id)
    """,
    "rolled-back signups with an enrollment": """
        SELECT e.user_id, NULL::uuid, 'enrolled in loop ' || e.loop_id FROM activation.enrollment e
         WHERE NOT EXISTS (SELECT FROM chaos.expected x WHERE x.loop_id = e.loop_id AND x.user_id = e.user_id)
    """,
    "users who acted unnoticed": """
        SELECT x.user_id, NULL::uuid, x.name || ': acted, and is ' || e.state
          FROM chaos.expected x JOIN activation.enrollment e USING (loop_id, user_id)
         WHERE x.acted AND e.activated_at IS NULL
    """,
    "users activated who did not act": """
        SELECT x.user_id, NULL::uuid, x.name || ': did not act, and is activated'
          FROM chaos.expected x JOIN activation.enrollment e USING (loop_id, user_id)
         WHERE NOT x.acted AND e.activated_at IS NOT NULL
    """,
    "activated users without their message in a final state": """
        SELECT e.user_id, m.message_id, format('enrollment is %s, message %s', e.state, coalesce(m.state, 'not there'))
          FROM activation.enrollment e
          LEFT JOIN chaos.message m ON m.enrollment_id = e.enrollment_id
               AND m.branch = CASE e.state WHEN 'completed' THEN 'action' ELSE 'otherwise' END
         WHERE (e.state IN ('completed', 'timed_out') AND NOT coalesce(m.final, false))
            OR (e.state = 'waiting' AND e.deadline < now())
    """,
    "messages accepted twice": """
        SELECT m.user_id, m.message_id, format('%s times, keys %s', count(*), string_agg(DISTINCT x.key, ', '))
          FROM chaos.email x JOIN activation.message m USING (message_id)
         GROUP BY 1, 2 HAVING count(*) > 1
    """,
    "emails at the sandbox without a message": """
        SELECT m.user_id, x.message_id, format('email %s to %s', x.email_id, x.recipient)
          FROM chaos.email x LEFT JOIN activation.message m USING (message_id)
         WHERE NOT EXISTS (SELECT FROM users u WHERE u.id::text = m.user_id AND u.email = x.recipient)
    """,
    "users mailed a nudge after they had acted before the claim": f"""
        SELECT m.user_id, m.message_id, format('acted at %s, request made at %s', a.at, r.created_at)
          FROM chaos.message m JOIN activation.request r USING (request_id) JOIN chaos.acted a USING (user_id)
         WHERE m.branch = 'otherwise' AND m.accepted AND a.at < r.created_at - interval '{CLAIM} seconds'
    """,
    "messages stuck": """
        SELECT m.user_id, m.message_id, format('%s: %s', m.state, m.last_error) FROM chaos.message m WHERE NOT m.final
    """,
    "attempts beyond the policy": f"""
        SELECT m.user_id, m.message_id, format('%s tries of one request were answered by an error', count(*))
          FROM activation.attempt a JOIN activation.message m USING (message_id)
         WHERE a.outcome = 'erred' GROUP BY 1, 2, a.request_id HAVING count(*) > {RETRIES} + 1
    """,
    "messages sent that were never accepted": """
        SELECT m.user_id, m.message_id, 'recorded as sent with id ' || m.resend_id FROM chaos.message m
         WHERE m.state = 'sent'
           AND NOT EXISTS (SELECT FROM chaos.email x WHERE x.message_id = m.message_id AND x.email_id = m.resend_id)
    """,
    # A provider that accepts, and answers each of the tries with an error, is believed.
    "messages accepted that are neither sent nor unknown": """
        SELECT m.user_id, m.message_id, format('accepted, and is %s: %s', m.state, m.last_error) FROM chaos.message m
         WHERE m.accepted AND m.state NOT IN ('sent', 'unknown') AND NOT (m.state = 'failed' AND m.other_tries = 0)
    """,
    "messages unknown, failed or cancelled without a reason": f"""
        SELECT m.user_id, m.message_id, format('%s: %s', m.state, m.last_error)
          FROM chaos.message m LEFT JOIN activation.request r USING (request_id)
         WHERE CASE m.state
               WHEN 'queued' THEN false WHEN 'sending' THEN false WHEN 'sent' THEN false
               WHEN 'unknown' THEN coalesce(r.open_tries, 0) = 0
               WHEN 'failed' THEN NOT m.refused AND m.errors <= {RETRIES}
               WHEN 'cancelled' THEN m.branch = 'action'
                    OR NOT EXISTS (SELECT FROM actions a WHERE a.user_id::text = m.user_id)
               ELSE true END
    """,
    "users whose commit the server forgot or made up": """
        SELECT l.user_id::text, NULL::uuid,
               CASE WHEN l.committed THEN 'committed, and gone' ELSE 'rolled back, and there' END
          FROM chaos.ledger l WHERE l.committed <> EXISTS (SELECT FROM users u WHERE u.id = l.user_id)
    """,
}

OVERRULED = "requests recorded over the worker who held them"
OVER_THE_RATE = "requests over the rate"
APP_ERRORS = "statements of the app that failed for no fault of the server"
OPERATOR_ERRORS = "orders of an operator that failed for no fault of the server"
NOT_QUIET = "work left when all was healthy again"

#: What is still to be done. Requests that wait for ever are not: their tries are spent, and they end as unknown.
_WORK = """
    SELECT (SELECT count(*) FROM activation.signal) AS signals,
           (SELECT count(*) FROM activation.wake WHERE source_id <> 0) AS wakes,
           (SELECT count(*) FROM activation.wake WHERE source_id = 0) <> 1 AS no_marker,
           (SELECT count(*) FROM activation.enrollment WHERE state = 'waiting' AND deadline IS NOT NULL) AS waiting,
           (SELECT count(*) FROM activation.enrollment WHERE retry_at IS NOT NULL) AS set_aside,
           (SELECT count(*) FROM activation.sweep WHERE due_at <= now()) AS sweeps,
           (SELECT count(*) FROM activation.strike) AS strikes,
           (SELECT count(*) FROM activation.message WHERE state = 'queued') AS queued,
           (SELECT count(*) FROM activation.request WHERE state = 'open' AND next_try_at < 'infinity') AS open
"""


@dataclass(frozen=True)
class Offence:
    """One violation: of what, whose, and how."""

    invariant: str
    user_id: str | None
    message_id: str | None
    detail: str


def work_left(cluster: Cluster) -> dict[str, int]:
    """What the engine still has to do; empty when it is quiet."""
    with cluster.connect() as session:
        cursor = session.execute(_WORK)
        row = cursor.fetchone()
        assert row and cursor.description
        return {column.name: int(value) for column, value in zip(cursor.description, row, strict=True) if value}


def expire(cluster: Cluster) -> None:
    """Lets a day pass for the requests that nobody can know the outcome of: their messages become unknown."""
    with cluster.connect() as session:
        if session.execute("SELECT FROM activation.request WHERE state = 'open'").rowcount:
            session.execute(
                "SELECT set_config('activation.now', (clock_timestamp() + interval '24 hours')::text, false)"
            )
            session.execute("CALL activation.tick()")


def states(cluster: Cluster) -> Counter[str]:
    """How many messages ended how."""
    with cluster.connect() as session:
        return Counter(dict(session.execute("SELECT state, count(*) FROM activation.message GROUP BY 1").fetchall()))


def load(session: Connection, world: World) -> None:
    """Puts what the sandbox and the clients know beside what the engine knows."""
    session.execute(_SOURCES)
    _copy(session, "chaos.email", [
        (e.id, e.tags.get("activation_message"), e.idempotency_key, e.to[0]) for e in world.sandbox.emails
    ])  # fmt: skip
    ledger = world.ledger
    _copy(session, "chaos.acted", [(str(user), datetime.fromtimestamp(at, UTC)) for user, at in ledger.acted.items()])
    _copy(session, "chaos.ledger", [(user, user in ledger.committed) for user in ledger.committed | ledger.rolled_back])
    session.execute("ANALYZE")


def _copy(session: Connection, table: str, rows: list[tuple[Any, ...]]) -> None:
    with session.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def offences(world: World, quiet: dict[str, int], stormy: list[tuple[float, float]]) -> list[Offence]:
    """Everything that must not be. quiet: what work_left() said last. stormy: when the server was made to go away."""
    found: list[Offence] = []
    with world.cluster.connect() as session:
        load(session, world)
        for name, query in INVARIANTS.items():
            for user, message, detail in session.execute(query.encode()).fetchall():
                found.append(Offence(name, user, message and str(message), detail))
    found += [Offence(OVER_THE_RATE, None, None, f"at {at:.3f}") for at in over_the_rate(world, bunched=False)]
    found += [Offence(OVERRULED, None, None, request) for request in world.observed]
    found += complaints(world.ledger, stormy)
    found += [Offence(NOT_QUIET, None, None, f"{count} {what}") for what, count in quiet.items()]
    return found


def over_the_rate(world: World, *, bunched: bool) -> list[float]:
    """When a request came that was one too many. bunched: those that came with what the network had held back and
    delivered within a second, which no sender can prevent; otherwise the others."""
    over = [entry.at for entry in world.sandbox.log if entry.status == 429 and entry.fault is None]
    return [at for at in over if bunched == any(thaw <= at <= thaw + 1 for thaw in world.network.thaws)]


def complaints(ledger: Ledger, stormy: list[tuple[float, float]]) -> list[Offence]:
    """Failed statements that no crash of the server explains."""
    return [
        Offence(
            APP_ERRORS if complaint.who.startswith("client") else OPERATOR_ERRORS,
            None,
            None,
            f"{complaint.who} at {complaint.at:.3f}: {complaint.text}",
        )
        for complaint in ledger.complaints
        if not (complaint.lost and any(began <= complaint.at <= ended for began, ended in stormy))
    ]


NAMES = [*INVARIANTS, OVERRULED, OVER_THE_RATE, APP_ERRORS, OPERATOR_ERRORS, NOT_QUIET]
