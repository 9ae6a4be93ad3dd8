"""What the adversary can do. Each fault returns when it is over, and says in its record what it did."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import psycopg

from activation.sandbox import KINDS
from driver import TIMEOUT, act, sign_up
from world import GOOD_KEY, World, definition

TABLES = [
    "signal",
    "wake",
    "enrollment",
    "message",
    "request",
    "attempt",
    "sweep",
    "worker",
    "rate_permit",
    "provider",
    "loop",
]
TABLES = [f"activation.{name}" for name in TABLES] + ["users", "actions"]


@dataclass
class Record:
    """One fault: when it began and ended, and what it did. Not applied: it found nothing to act on."""

    number: int
    name: str
    began: float
    ended: float = 0
    detail: str = ""
    applied: bool = True


Fault = Callable[[World, Random, Record], None]


class NotNow(Exception):
    """There is nothing to act on."""


def _pick(rng: Random, pids: list[int]) -> int:
    if not pids:
        raise NotNow("no worker runs")
    return rng.choice(pids)


# -- the server and its workers ----------------------------------------


def kill_worker(world: World, rng: Random, record: Record) -> None:
    """SIGKILL of one backend: the server ends all of them and recovers as from a crash."""
    kind = rng.choice(["detector", "deliverer"])
    pid = _pick(rng, world.workers(kind))
    record.detail = kind
    os.kill(pid, signal.SIGKILL)


def stop_server(world: World, rng: Random, record: Record) -> None:
    """pg_ctl stop -m immediate, and start. It is over when the start is ordered."""
    world.cluster.stop("immediate")
    time.sleep(rng.uniform(0, 0.5))
    record.ended = time.time()
    world.cluster.start()


def terminate_workers(world: World, rng: Random, record: Record) -> None:
    """pg_terminate_backend of some worker, several times a second."""
    record.detail = _volley(world, rng, "pg_terminate_backend")


def cancel_workers(world: World, rng: Random, record: Record) -> None:
    """pg_cancel_backend of some worker, several times a second."""
    record.detail = _volley(world, rng, "pg_cancel_backend")


def _volley(world: World, rng: Random, function: str) -> str:
    end = time.monotonic() + rng.uniform(1, 3)
    times = 0
    while time.monotonic() < end:
        with contextlib.suppress(NotNow):
            world.order(f"SELECT {function}(%s)", _pick(rng, world.workers()))
            times += 1
        time.sleep(rng.uniform(0.05, 0.3))
    return f"{times} times"


def stalled_deliverer(world: World, rng: Random, record: Record) -> None:
    """A deliverer stands still until another one has taken its request over, and then wakes up to an answer of its own:
    an error, which it may not write down over the one who holds the request now."""
    status = rng.choice([429, 500])
    record.detail = f"status {status}"
    world.network.freeze()
    try:
        # What was answered is written down by then.
        time.sleep(0.5)
        pid, request, seconds = _in_flight(world)
        with world.halted(pid):
            if _ask(world, "SELECT lease_pid FROM activation.request WHERE request_id = %s", request) != (pid,):
                raise NotNow("the request was over")
            world.sandbox.clear_faults()
            world.sandbox.fail("status", status=status, times=16)
            world.network.thaw()
            time.sleep(min(1, seconds))
            world.sandbox.clear_faults()
            time.sleep(max(0, seconds - 3))
            world.sandbox.configure(latency_ms=1500)
            holder = _taken_over(world, request, pid)
        # The one who took it over waits for its answer all this time.
        end = time.monotonic() + 1
        while time.monotonic() < end:
            if _lost_to_another(world, request, holder):
                world.observed.append(f"request {request}")
                return
            time.sleep(0.02)
    finally:
        world.network.thaw()
        world.sandbox.configure(latency_ms=0)


def _in_flight(world: World) -> tuple[int, Any, float]:
    """A request on its way: whose it is, and for how many seconds."""
    end = time.monotonic() + 3
    while time.monotonic() < end:
        row = _ask(
            world,
            "SELECT lease_pid, request_id, extract(epoch FROM lease_until - now()) FROM activation.request"
            " WHERE state = 'open' AND lease_until > now() + interval '50 seconds' LIMIT 1",
        )
        if row:
            return row[0], row[1], float(row[2])
        time.sleep(0.02)
    raise NotNow("no request is in flight")


def _taken_over(world: World, request: object, pid: int) -> object:
    """The lease of the one who took a request over."""
    end = time.monotonic() + 15
    while time.monotonic() < end:
        row = _ask(
            world,
            "SELECT lease_id FROM activation.request WHERE request_id = %s AND state = 'open' AND lease_pid <> %s",
            request,
            pid,
        )
        if row:
            return row[0]
        time.sleep(0.01)
    raise NotNow("nobody took the request over")


def _lost_to_another(world: World, request: object, holder: object) -> bool:
    """Whether the holder of a request has lost it, though it was not accepted and its try is not over."""
    row = _ask(
        world,
        "SELECT 1 FROM activation.request r WHERE r.request_id = %s AND r.lease_id IS DISTINCT FROM %s"
        " AND NOT EXISTS (SELECT FROM activation.message m WHERE m.message_id = ANY (r.members) AND m.state = 'sent')",
        request,
        holder,
    )
    return row is not None


def _ask(world: World, query: str, *values: object) -> tuple[Any, ...] | None:
    with world.cluster.connect() as session:
        return session.execute(query.encode(), values).fetchone()


# -- the provider and the network to it ----------------------------------------


def stop_sandbox(world: World, rng: Random, record: Record) -> None:
    """Connections are lost, and new ones refused."""
    world.network.refuse()
    world.sandbox.stop()
    time.sleep(rng.uniform(0.5, 4))
    world.sandbox.start()
    world.network.start()


def half_open(world: World, rng: Random, record: Record) -> None:
    """The network falls silent; then its connections are reset, or what was under way arrives after all."""
    seconds = rng.uniform(20, 30) if world.long and rng.random() < 0.2 else rng.uniform(1, 4)
    reset = rng.random() < 0.5
    record.detail = f"{seconds:.1f} s, then {'reset' if reset else 'late'}"
    world.network.freeze()
    try:
        time.sleep(seconds)
    finally:
        if reset:
            world.network.cut()
        world.network.thaw()


def slow_provider(world: World, rng: Random, record: Record) -> None:
    """Every answer takes its time, some very long."""
    latency, jitter = rng.uniform(100, 1500), rng.uniform(0, 2000)
    record.detail = f"{latency:.0f} ms, up to {jitter:.0f} more"
    world.sandbox.configure(latency_ms=latency, jitter_ms=jitter)
    try:
        time.sleep(rng.uniform(2, 5))
    finally:
        world.sandbox.configure(latency_ms=0, jitter_ms=0)


#: What a status can mean: who is to blame differs, and so does what the engine does. None blames the content: people
#: whose address is always refused see to that. A fault would also meet the repetition of what was accepted, and a
#: provider that keeps idempotency keys does not contradict itself.
STATUSES: list[dict[str, Any]] = [
    {"status": 500},
    {"status": 503},
    {"status": 429, "headers": {"retry-after": "1"}},
    {"status": 409, "name": "concurrent_idempotent_requests"},
    {"status": 408},
    {"status": 429, "name": "daily_quota_exceeded"},
    {"status": 403, "name": "validation_error"},
    {"status": 403, "body": "error code: 1010"},
]


def provider_fault(kind: str) -> Fault:
    """One of the sandbox's own faults, for the next requests."""

    def apply(world: World, rng: Random, record: Record) -> None:
        options: dict[str, Any] = {"times": rng.randint(1, 3)}
        if kind == "status":
            options |= rng.choice(STATUSES)
            if options["status"] == 403 or options.get("name") == "daily_quota_exceeded":
                options["times"] = 1
        elif kind == "latency":
            options["ms"] = rng.uniform(500, 30_000 if world.long and rng.random() < 0.3 else 3_000)
        elif kind in ("trickle", "slow_headers"):
            options["ms"] = rng.uniform(1, 20)
        record.detail = ", ".join(f"{name} {value}" for name, value in options.items())
        world.sandbox.fail(kind, **options)
        time.sleep(rng.uniform(0.5, 3))
        world.sandbox.release()

    apply.__doc__ = KINDS[kind]
    return apply


def wrong_key(world: World, rng: Random, record: Record) -> None:
    """Somebody configures a key that the provider does not know, and then the right one again."""
    try:
        world.order("SELECT activation.configure(api_key => 'env:WRONG_KEY')")
        _until_paused(world, 3)
    finally:
        world.insist("SELECT activation.configure(api_key => 'env:RESEND_API_KEY')")


def revoked_key(world: World, rng: Random, record: Record) -> None:
    """The provider does not know our key for a while; it takes resume() to go on."""
    world.sandbox.configure(api_keys=["re_another"])
    try:
        _until_paused(world, 3)
    finally:
        world.sandbox.configure(api_keys=[GOOD_KEY])
    world.insist("SELECT activation.resume()")


def _until_paused(world: World, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not world.is_paused():
        time.sleep(0.1)


# -- the app's database ----------------------------------------


def long_transaction(world: World, rng: Random, record: Record) -> None:
    """A REPEATABLE READ transaction of the app, in which somebody signs up and acts, late or never committed."""
    with world.cluster.connect() as app:
        app.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        app.execute("SELECT count(*) FROM users, actions WHERE id = user_id")
        ids = world.ledger.new_ids(3)
        commits = rng.random() < 0.7
        if not commits:
            world.ledger.gave_up(ids)
        time.sleep(rng.uniform(1, 5))
        sign_up(app, ids)
        act(app, ids[:1], "paid")
        time.sleep(rng.uniform(1, TIMEOUT))
        act(app, ids[1:2], "paid")
        app.execute("COMMIT" if commits else "ROLLBACK")
        if commits:
            world.ledger.signed_up(ids)
            world.ledger.has_acted(ids[:2])


def held_xmin(world: World, rng: Random, record: Record) -> None:
    """A session that is idle in a transaction: nothing that dies meanwhile can be vacuumed."""
    with world.cluster.connect() as app:
        app.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        app.execute("SELECT pg_current_xact_id()")
        time.sleep(rng.uniform(4, 15))
        app.execute("ROLLBACK")


def vacuum_full(world: World, rng: Random, record: Record) -> None:
    """A table is rewritten, ours or the app's, under a lock that stops everybody."""
    record.detail = rng.choice(TABLES)
    world.order(f"VACUUM FULL {record.detail}", patience="1s")


def locked_table(world: World, rng: Random, record: Record) -> None:
    """A migration holds a table of the app, for longer than a worker waits for a lock."""
    record.detail = rng.choice(["users", "actions"])
    with world.cluster.connect() as app:
        app.execute("SET lock_timeout = '2s'")
        app.execute("BEGIN")
        app.execute(f"LOCK TABLE {record.detail} IN ACCESS EXCLUSIVE MODE")
        time.sleep(rng.uniform(0.5, 2.5))
        app.execute("ROLLBACK")


# -- the loops ----------------------------------------


def redefine(world: World, rng: Random, record: Record) -> None:
    """New versions of both loops."""
    world.order(definition(TIMEOUT - rng.randint(0, 3), f"Hello {{{{ user.name }}}}, {record.number}"))


def pause_loop(world: World, rng: Random, record: Record) -> None:
    """A loop is paused and resumed."""
    record.detail = rng.choice(["first", "paid"])
    try:
        world.order("SELECT activation.pause_loop(%s)", record.detail)
        time.sleep(rng.uniform(0.5, 3))
    finally:
        # Somebody else may have resumed it, or the server lost the order.
        world.insist(
            "SELECT activation.resume_loop(name) FROM activation.loop WHERE name = %s AND state = 'paused'",
            record.detail,
        )


#: Faults that may bring everything to a halt: one at a time, and time to recover after each.
HEAVY: dict[str, Fault] = {
    "kill_worker": kill_worker,
    "stop_server": stop_server,
    "terminate_workers": terminate_workers,
    "cancel_workers": cancel_workers,
    "stop_sandbox": stop_sandbox,
    "half_open": half_open,
    "wrong_key": wrong_key,
    "revoked_key": revoked_key,
    "locked_table": locked_table,
    "pause_loop": pause_loop,
}

#: Those after which pg_cron 1.4 needs up to a minute.
ENDS_WORKERS = {"kill_worker", "stop_server", "terminate_workers", "cancel_workers"}

#: Faults that happen at any time, also several at once.
LIGHT: dict[str, Fault] = {
    **{f"provider: {kind}": provider_fault(kind) for kind in KINDS},
    "slow_provider": slow_provider,
    "long_transaction": long_transaction,
    "held_xmin": held_xmin,
    "vacuum_full": vacuum_full,
    "redefine": redefine,
}


def apply(fault: Fault, world: World, rng: Random, record: Record) -> None:
    """Let it happen; what cannot be done now, because the server is away, was not done."""
    try:
        fault(world, rng, record)
    except NotNow as reason:
        record.applied, record.detail = False, str(reason)
    except psycopg.Error as error:
        record.detail = f"{record.detail}: {error}".strip()
        record.applied = False
        raise
    finally:
        record.ended = record.ended or time.time()
