"""Feedback: events taken a second, signups while garbage comes in, and how long it takes to forget somebody."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import multiprocessing
import threading
import time
import uuid

import app
import psycopg
from common import Effort, Figure, pgbench, ratios, say

from harness import Cluster, Database, wait_until

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TAKE = "SELECT activation.receive_webhook(%s, %s::jsonb)"


def _signed(kind: str, message_id: str) -> tuple[str, str]:
    data = {"email_id": message_id, "to": ["u@acme.dev"], "tags": {"activation_message": message_id}}
    body = json.dumps({"type": kind, "created_at": "2026-11-22T23:41:12Z", "data": data})
    webhook_id, stamp = f"msg_{uuid.uuid4().hex}", str(int(time.time()))
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    mac = base64.b64encode(hmac.digest(key, f"{webhook_id}.{stamp}.{body}".encode(), hashlib.sha256)).decode()
    return body, json.dumps({"svix-id": webhook_id, "svix-timestamp": stamp, "svix-signature": f"v1,{mac}"})


def _take(db: Database, events: list[tuple[str, str]]) -> None:
    with db.connect() as session:
        for event in events:
            session.execute(TAKE, event)


def _intake(db: Database, messages: list[str]) -> float:
    """Events a second over eight connections: two of each message."""
    events = [_signed(kind, message) for message in messages for kind in ("email.delivered", "email.opened")]
    threads = [threading.Thread(target=_take, args=[db, events[n::8]]) for n in range(8)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(events) / (time.perf_counter() - start)


def _garbage(dsn: str, rate: int) -> None:
    """So many forged webhooks a second, until it is ended: in a process of its own, as they come from somebody else."""
    body, headers = _signed("email.delivered", str(uuid.uuid4()))
    headers = headers.replace("v1,", "v1,A")
    with psycopg.connect(dsn) as session:
        due = time.perf_counter()
        while True:
            try:
                session.execute(TAKE, [body, headers])
            except psycopg.Error:
                session.rollback()
            due += 1 / rate
            time.sleep(max(0.0, due - time.perf_counter()))


SIGN_UP = "INSERT INTO users (email, name) VALUES ('u@acme.dev', 'U')"


def measure(cluster: Cluster, effort: Effort, url: str) -> list[Figure]:
    db = cluster.create_database()
    app.install(db, url)
    db.sql("SELECT activation.set_secret('hook', %s)", SECRET)
    db.sql("SELECT activation.configure(webhook_secret => 'secret:hook')")
    people = 2_000 if effort.quick else 10_000
    say("Webhooks …")
    db.sql(app.SIGN_UP, people)
    db.sql("CALL activation.tick()")
    db.sql("UPDATE activation.message SET state = 'sent', sent_at = now()")
    messages = [row[0] for row in db.sql("SELECT message_id::text FROM activation.message")]
    taken = _intake(db, messages)
    assert db.value("SELECT count(*) FROM activation.message WHERE state = 'delivered'") == len(messages)

    def refused() -> int:
        return int(db.value("SELECT last_value FROM activation.webhook_refused"))

    def rate(with_garbage: str) -> float:
        if with_garbage != "garbage":
            return pgbench(db, SIGN_UP, effort.seconds)
        process = multiprocessing.get_context("spawn").Process(target=_garbage, args=[db.dsn(), 500], daemon=True)
        before = refused()
        process.start()
        wait_until(lambda: refused() > before + 100, 60)
        found = pgbench(db, SIGN_UP, effort.seconds)
        process.terminate()
        process.join()
        return found

    pestered = ratios(rate, "garbage", "quiet", effort.pairs)

    say("Forgetting …")
    erased = []
    for number in range(10):
        user = f"{900_000 + number}"
        db.sql(
            "INSERT INTO activation.enrollment (loop_id, version, user_id, pass, state, enrolled_at, created_at,"
            " newest_template_id) SELECT 1, 1, %s, g, 'completed', now(), now(), 0 FROM generate_series(1, 1000) g",
            user,
        )
        db.sql(
            "INSERT INTO activation.message (message_id, enrollment_id, loop_id, version, user_id, step, branch, state,"
            " created_at, next_attempt_at, request_id, recipient, sent_at) SELECT gen_random_uuid(), e.enrollment_id,"
            " 1, 1, e.user_id, 1, 'action', 'sent', now(), now(), gen_random_uuid(), 'u@acme.dev', now()"
            " FROM activation.enrollment e WHERE e.user_id = %s",
            user,
        )
        start = time.perf_counter()
        assert db.value("SELECT activation.erase(%s)", user)
        erased.append((time.perf_counter() - start) * 1000)
    db.drop()
    return [
        Figure("webhooks taken a second, 8 connections", [taken], at_least=1_000, digits=0),
        Figure("signups of 8 clients while 500 forged webhooks a second come in, ÷ without", pestered, at_least=0.9),
        Figure("erase of somebody with 1,000 messages, ms", erased, at_most=50, digits=0),
    ]
