# ruff: noqa: E501, B008
"""The FastAPI router under uvicorn, with each kind of connections that an app may have."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import requests
from fastapi import Depends, FastAPI, Header, HTTPException, Request

from activation.fastapi import Track, Tracker, TrackingMiddleware, activation_router
from activation.sandbox import Sandbox
from harness import Cluster, Database, wait_until
from loops import tick
from web import POOLS, Site, app_role, make_app, prepare, serving, signed


def current_user(request: Request, x_user: Annotated[str | None, Header()] = None) -> str:
    if x_user is None:
        raise HTTPException(401)
    request.state.user_id = x_user
    return x_user


@pytest.fixture
def site(db: Database, sandbox: Sandbox) -> Iterator[Site]:
    prepare(db, sandbox)
    with app_role(db) as role:
        app = make_app(db, role)
        with serving(app) as url:
            yield Site(url, db, sandbox, app)


@pytest.mark.parametrize("kind", POOLS)
def test_with_any_kind_of_connections(db: Database, sandbox: Sandbox, kind: str) -> None:
    """A webhook, one click, preferences, the dashboard, a timeline, an event: all that the router and the tracker ask."""
    prepare(db, sandbox)
    with app_role(db) as role:
        app = make_app(db, role, kind)
        tracker = Tracker(lambda: app.state.pool, interval=0.01)
        app.add_middleware(TrackingMiddleware, tracker=tracker, event="called", user=lambda c: c.headers.get("x-user"))
        with serving(app) as url:
            site = Site(url, db, sandbox, app)
            token = site.nudge("ada")
            ((message_id,),) = db.sql("SELECT message_id::text FROM activation.message_log")
            body = json.dumps({"type": "email.delivered", "data": {"tags": {"activation_message": message_id}}})
            assert site.post("/activation/webhooks", data=body, headers=signed(body)).status_code == 204
            assert db.value("SELECT status FROM activation.message_log") == "delivered"
            assert (
                site.post(f"/activation/unsubscribe?token={token}", data={"List-Unsubscribe": "One-Click"}).status_code
                == 200
            )
            assert site.get(f"/activation/preferences?token={token}").text.count(" checked") == 1
            assert "first" in site.get("/activation/", headers={"x-token": "right", "x-user": "ada"}).text
            assert "unsubscribed" in site.get("/activation/people/ada", headers={"x-token": "right"}).text
            wait_until(lambda: tracker.told)
        assert db.sql("SELECT user_id, event FROM activation.event") == [("ada", "called")]
        assert db.sql(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = %s AND state = 'idle in transaction'", role
        ) == [(0,)]


def test_connections_of_another_kind(db: Database) -> None:
    app = FastAPI()
    app.include_router(activation_router(lambda: "postgresql://"))
    with serving(app) as url:
        # The text of the error is in the app's log.
        assert requests.post(f"{url}/activation/unsubscribe?token=x", timeout=30).status_code == 500


def test_following_the_link_changes_nothing_and_one_click_does(site: Site) -> None:
    token = site.nudge("ada")
    page = site.get(f"/activation/unsubscribe?token={token}")
    assert page.status_code == 200 and 'method="post"' in page.text and "Acme" in page.text
    assert site.db.value("SELECT count(*) FROM activation.consent") == 0
    assert site.get(f"/activation/preferences?token={token}").status_code == 200
    assert site.db.value("SELECT count(*) FROM activation.consent") == 0
    for _ in range(2):
        answer = site.post(f"/activation/unsubscribe?token={token}", data={"List-Unsubscribe": "One-Click"})
        assert answer.status_code == 200
    assert site.db.sql("SELECT user_id, topic, subscribed FROM activation.consent") == [("ada", "onboarding", False)]


def test_a_forged_token_has_no_effect_and_gives_no_hint(site: Site) -> None:
    token = site.nudge("ada")
    right = site.post(f"/activation/unsubscribe?token={token}")
    site.db.sql("DELETE FROM activation.consent")
    for bad in (token[:-1], token + token, "x", "%00", "", "a" * 5000, "%ff%fe"):
        answer = site.post(f"/activation/unsubscribe?token={bad}")
        assert answer.status_code == 200
        assert re.sub(r"token=[^\"]*", "", answer.text) == re.sub(r"token=[^\"]*", "", right.text)
        assert "not complete" in site.get(f"/activation/preferences?token={bad}").text
        assert site.post(f"/activation/preferences?token={bad}", data={"topic": "onboarding"}).status_code == 200
    assert site.db.value("SELECT count(*) FROM activation.consent") == 0


def test_choosing(site: Site) -> None:
    token = site.nudge("ada")
    site.db.sql("SELECT activation.set_topic('onboarding', 'Getting started', 'A few mails')")
    site.db.sql("SELECT activation.set_topic('news', 'News')")

    def chosen() -> dict[str, bool]:
        return dict(site.db.sql("SELECT topic, subscribed FROM activation.preferences('ada')"))

    page = site.get(f"/activation/preferences?token={token}").text
    assert page.count(" checked") == 3 and "A few mails" in page
    saved = site.post(f"/activation/preferences?token={token}", data=[("topic", ""), ("topic", "news")]).text
    assert "Saved" in saved and saved.count(" checked") == 2
    assert chosen() == {"": True, "news": True, "onboarding": False}
    site.post(f"/activation/preferences?token={token}", data=[("topic", "onboarding"), ("topic", "\0")])
    assert chosen() == {"": False, "news": False, "onboarding": False}
    site.post(
        f"/activation/preferences?token={token}", data=[("topic", t) for t in ("", "news", "onboarding", "made-up")]
    )
    assert chosen() == {"": True, "news": True, "onboarding": True}
    assert site.db.value("SELECT count(*) FROM activation.consent WHERE topic = 'made-up'") == 0


def test_webhooks_are_answered_as_they_deserve(site: Site) -> None:
    body = json.dumps({"type": "email.opened", "data": {}})

    def answer(content: str | bytes, headers: dict[str, str]) -> tuple[int, str]:
        response = site.post("/activation/webhooks", data=content, headers=headers)
        return response.status_code, response.headers.get("content-type", "")

    problem = "application/problem+json"
    assert answer(body, signed(body)) == (204, "")
    same = signed(body)
    assert [answer(body, same)[0] for _ in range(2)] == [204, 204]
    assert answer(body, signed(body + " ")) == (401, problem)
    assert answer(body, signed(body, at=int(time.time()) - 3600)) == (401, problem)
    assert answer(body, {}) == (400, problem)
    assert answer(b"", {}) == (400, problem)
    assert answer(b"\xff\xfe", signed(body)) == (400, problem)
    assert answer(b'{"a": "\x00"}', signed(body)) == (400, problem)
    assert answer("x" * 1_000_001, {}) == (413, problem)
    assert site.db.value("SELECT count(*) FROM activation.webhook_event") == 2
    document = site.post("/activation/webhooks", data=body).json()
    assert document["status"] == 400 and document["title"]


def test_a_header_that_came_twice_is_refused(site: Site) -> None:
    body = json.dumps({"type": "email.opened", "data": {}})
    address, port = site.url.removeprefix("http://").split(":")
    lines = [f"{name}: {value}" for name, value in signed(body).items()]
    request = "\r\n".join(
        [
            "POST /activation/webhooks HTTP/1.1",
            "Host: acme.dev",
            "Connection: close",
            f"Content-Length: {len(body)}",
            *lines,
            lines[0],
            "",
            body,
        ]
    )
    with socket.create_connection((address, int(port)), timeout=10) as connection:
        connection.sendall(request.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


@pytest.mark.anyio
async def test_an_endless_body_is_not_read_to_its_end() -> None:
    """As the server hands it over, in pieces."""
    app = FastAPI()
    app.include_router(activation_router(lambda: None))
    pieces = 0
    answers = []

    async def receive() -> dict[str, Any]:
        nonlocal pieces
        pieces += 1
        return {"type": "http.request", "body": b"x" * 100_000, "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        answers.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/activation/webhooks",
        "raw_path": b"",
        "query_string": b"",
        "headers": [],
        "scheme": "http",
    }
    await app(scope, receive, send)
    assert answers[0]["status"] == 413 and pieces == 11


@pytest.mark.parametrize(
    "method, path, allowed",
    [
        ("GET", "webhooks", "POST"),
        ("PUT", "unsubscribe", "GET, POST"),
        ("DELETE", "", "GET"),
        ("POST", "people/ada", "GET"),
    ],
)
def test_a_wrong_method(site: Site, method: str, path: str, allowed: str) -> None:
    answer = requests.request(method, f"{site.url}/activation/{path}", timeout=30)
    assert (answer.status_code, answer.headers["allow"], answer.headers["content-type"]) == (
        405,
        allowed,
        "application/problem+json",
    )


def test_the_dashboard_is_closed_but_to_whom_the_app_lets_in(site: Site) -> None:
    for path in ("", "people/ada", "people?user_id=ada"):
        assert site.get(f"/activation/{path}").status_code == 401
    assert site.get("/activation/", headers={"x-token": "right"}).status_code == 200
    closed = FastAPI()
    closed.include_router(activation_router(lambda: None))
    with serving(closed) as url:
        for path in ("", "people/ada", "people?user_id=ada"):
            answer = requests.get(f"{url}/activation/{path}", timeout=30)
            assert answer.status_code == 403 and "dashboard=" in answer.text


def test_the_dashboard_and_a_timeline(site: Site) -> None:
    site.nudge("a/b?c")
    site.sandbox.fail("status", status=422, name="validation_error", message="no such domain")
    site.sign_up("eve")
    tick(site.db)
    tick(site.db, "3 hours")
    page = site.get("/activation/", headers={"x-token": "right"})
    assert page.status_code == 200 and "script" not in page.headers["content-security-policy"]
    assert "Live: mail goes to real people" in page.text and 'href="people/eve"' in page.text
    assert page.text.count("failed") >= 1
    person = site.get("/activation/people/a%2Fb%3Fc", headers={"x-token": "right"})
    assert person.status_code == 200 and "a/b?c@acme.dev" in person.text
    found = site.get("/activation/people?user_id=a/b%3Fc", headers={"x-token": "right"})
    assert found.url.endswith("/activation/people/a%2Fb%3Fc") and "a/b?c@acme.dev" in found.text
    nobody = site.get("/activation/people/nobody", headers={"x-token": "right"})
    assert nobody.status_code == 404
    assert site.get("/activation/people/%00", headers={"x-token": "right"}).status_code == 404


def test_numbers_that_take_long_are_counted_beside_the_request(site: Site) -> None:
    """What was counted yesterday is shown at once, with its time; then it is counted again, once."""
    site.sign_up("ada")
    tick(site.db)
    operator = {"x-token": "right"}
    assert "counted at" not in site.get("/activation/", headers=operator).text
    site.db.sql(
        "UPDATE activation.overview_numbers SET took = '1 s', taken_at = now() - interval '1 day',"
        " numbers = jsonb_set(numbers, '{loops,first,funnel,0,people}', '4711')"
    )
    page = site.get("/activation/", headers=operator).text
    assert "4711" in page and "are being counted again" in page and 'http-equiv="refresh"' in page
    wait_until(lambda: site.db.value("SELECT taken_at > now() - interval '1 minute' FROM activation.overview_numbers"))
    page = site.get("/activation/", headers=operator).text
    assert "4711" not in page and "counted again" not in page


def test_nothing_that_people_write_becomes_markup(site: Site) -> None:
    hostile = "<script>alert(1)</script>"
    site.db.sql(
        "SELECT activation.define_loop(%s, opinion => %s, trigger => activation.on_insert('users'),"
        " steps => ARRAY[activation.step(%s, action => activation.email('activation_welcome', subject => %s))])",
        hostile,
        hostile,
        hostile,
        hostile + "{{ user.name }}",
    )
    site.db.sql("SELECT activation.set_topic(%s, %s, %s)", hostile, hostile, hostile)
    site.sandbox.fail("status", status=422, name="validation_error", message=hostile, times=2)
    site.db.sql("INSERT INTO users VALUES (%s, 'mallory@acme.dev', %s)", hostile, hostile)
    tick(site.db)
    token = site.nudge("ada")
    operator = {"x-token": "right"}
    for path, headers in (
        ("", operator),
        ("people/%3Cscript%3Ealert(1)%3C%2Fscript%3E", operator),
        (f"preferences?token={token}", {}),
        ("unsubscribe?token=%22%3E%3Cscript%3Ealert(1)", {}),
        ("preferences?token=%22%3E%3Cscript%3Ealert(1)", {}),
    ):
        text = site.get(f"/activation/{path}", headers=headers).text
        assert "<script" not in text, path
        if "token=%22" not in path:
            assert "&lt;script&gt;alert(1)" in text and "&amp;lt;" not in text, path
    report = site.db.value("SELECT activation.report()")
    assert "<script" not in report and "&lt;script&gt;" in report


def test_what_the_app_lacks_is_said_and_waited_for(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """An app that is deployed before its role has the rights: 503, what to do in its log, and no event is lost."""
    role = site.db.value("SELECT rolname FROM pg_roles WHERE rolname LIKE 'web_%'")
    tracker = Tracker(lambda: site.app.state.pool, interval=0.01)

    @site.app.post("/exports")
    async def export() -> None:
        tracker.track("ada", "exported")

    site.sign_up("ada")
    site.db.sql(f"REVOKE USAGE ON SCHEMA activation FROM {role}")
    with caplog.at_level(logging.WARNING, "activation"):
        assert site.post("/exports").status_code == 200
        body = json.dumps({"type": "email.opened", "data": {}})
        answer = site.post("/activation/webhooks", data=body, headers={**signed(body), "cookie": "session=mine"})
        assert answer.status_code == 503 and answer.headers["content-type"] == "application/problem+json"
        page = site.post("/activation/unsubscribe?token=x")
        assert page.status_code == 503 and "try again" in page.text
        wait_until(lambda: "keeps 1 events" in caplog.text)
    assert "docs/fastapi.md" in caplog.text and "session=mine" not in caplog.text
    site.db.sql(f"GRANT USAGE ON SCHEMA activation TO {role}")
    wait_until(lambda: tracker.told == 1, 30)
    assert (tracker.lost, tracker.refused) == (0, 0)


def test_without_a_secret_no_webhook_is_taken(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    body = json.dumps({"type": "email.opened", "data": {}})
    for secret in ("", "env:NOT_THERE"):
        site.db.sql("SELECT activation.configure(webhook_secret => %s)", secret)
        with caplog.at_level(logging.ERROR, "activation"):
            answer = site.post("/activation/webhooks", data=body, headers=signed(body))
        assert answer.status_code == 503 and "webhook" not in answer.text
    assert "no webhook_secret is configured" in caplog.text and "NOT_THERE is not set" in caplog.text


def test_openapi_describes_it(site: Site) -> None:
    paths = site.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        "/activation/webhooks",
        "/activation/unsubscribe",
        "/activation/preferences",
        "/activation/",
        "/activation/people",
        "/activation/people/{user_id}",
    }
    assert {"204", "400", "401", "413", "503"} <= set(paths["/activation/webhooks"]["post"]["responses"])
    assert all(operation["summary"] for path in paths.values() for operation in path.values())


@pytest.mark.parametrize("kind", POOLS)
def test_a_database_that_is_down(sandbox: Sandbox, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """503 at once; and what was to be told is told when it is back."""
    with Cluster(environment={"RESEND_API_KEY": "re_test"}) as cluster:
        db = cluster.create_database()
        prepare(db, sandbox)
        db.sql("INSERT INTO users VALUES ('ada', 'ada@acme.dev', 'Ada')")
        with app_role(db) as role:
            app = make_app(db, role, kind)
            tracker = Tracker(lambda: app.state.pool, interval=0.01)
            app.add_middleware(TrackingMiddleware, tracker=tracker, event="called", user=lambda c: "ada")

            @app.get("/hello")
            async def hello() -> str:
                return "hello"

            with serving(app) as url, caplog.at_level(logging.WARNING, "activation"):
                site = Site(url, db, sandbox, app)
                assert site.get("/activation/", headers={"x-token": "right"}).status_code == 200
                wait_until(lambda: tracker.told == 1)
                db.close()
                cluster.stop("immediate")
                tracker.track("ada", "exported")
                for path, method in (
                    ("webhooks", "POST"),
                    ("unsubscribe?token=x", "POST"),
                    ("preferences?token=x", "GET"),
                    ("", "GET"),
                ):
                    body = json.dumps({"type": "email.opened", "data": {}})
                    answer = requests.request(
                        method,
                        f"{url}/activation/{path}",
                        data=body,
                        headers={"x-token": "right", **signed(body)},
                        # A pool by itself waits for a connection for half a minute.
                        timeout=20,
                    )
                    assert answer.status_code == 503 and answer.headers["retry-after"], (path, answer.text)
                assert site.get("/hello").text == '"hello"'
                wait_until(lambda: "keeps 1 events" in caplog.text)
                assert tracker.waiting == 1 and tracker.lost == 0
                cluster.start()
                wait_until(lambda: tracker.told == 2, 30)
            assert db.sql("SELECT event FROM activation.event ORDER BY event_id") == [("called",), ("exported",)]


def test_the_tracker_as_a_dependency(site: Site) -> None:
    tracker = Tracker(lambda: site.app.state.pool, interval=0.01)

    @site.app.post("/exports")
    async def export(user: str, track: Track = Depends(tracker)) -> None:
        track(user, "exported", {"format": "csv"})

    @site.app.post("/blocking")
    def blocking(user: str, track: Track = Depends(tracker)) -> None:
        track(user, "blocked")

    site.sign_up("ada")
    assert site.post("/exports?user=ada").status_code == 200
    assert site.post("/exports?user=nobody").status_code == 200
    assert site.post("/blocking?user=ada").status_code == 200
    wait_until(lambda: tracker.told + tracker.refused == 3)
    assert (tracker.told, tracker.refused, tracker.lost) == (2, 1, 0)
    assert sorted(site.db.sql("SELECT user_id, event, properties FROM activation.event"), key=str) == [
        ("ada", "blocked", {}),
        ("ada", "exported", {"format": "csv"}),
    ]


@pytest.mark.anyio
async def test_who_comes_as_a_round_ends_is_told() -> None:
    """Between the last look at what waits and the task's end, which is when the event here is tracked."""
    tracker = Tracker(lambda: None, interval=0)
    told: list[list[str]] = []

    async def tell(batch: list[str]) -> list[Any]:
        told.append(batch)
        if len(told) == 1:
            asyncio.get_running_loop().call_soon(tracker.track, "ada", "late")
        return []

    tracker._tell = tell  # type: ignore[method-assign]
    tracker.track("ada", "first")
    async with asyncio.timeout(10):
        while len(told) < 2:
            await asyncio.sleep(0)
    assert tracker.waiting == 0


def test_told_from_many_threads(site: Site) -> None:
    """None is forgotten between two rounds, though nobody comes after it."""
    tracker = Tracker(lambda: site.app.state.pool, interval=0.001)

    @site.app.post("/first")
    async def first(track: Track = Depends(tracker)) -> None:
        track("ada", "first")

    site.sign_up("ada")
    assert site.post("/first").status_code == 200

    def tell() -> None:
        for number in range(100):
            tracker.track("ada", f"event {number}")
            if number % 20 == 0:
                # So that rounds end while others go on.
                wait_until(lambda: tracker.waiting == 0)

    threads = [threading.Thread(target=tell) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: tracker.told == 801)
    assert (tracker.waiting, tracker.lost, tracker.refused) == (0, 0, 0)


def test_the_middleware_tells_of_whom_the_app_knows(site: Site) -> None:
    tracker = Tracker(lambda: site.app.state.pool, interval=0.01)

    api = FastAPI()
    api.add_middleware(TrackingMiddleware, tracker=tracker, event="first_api_call", paths=("/api/",))

    @api.get("/api/things")
    def things(user: Annotated[str, Depends(current_user)]) -> str:
        return user

    @api.get("/api/broken")
    def broken(user: Annotated[str, Depends(current_user)]) -> None:
        raise HTTPException(404)

    @api.get("/home")
    def home(user: Annotated[str, Depends(current_user)]) -> str:
        return user

    site.sign_up("ada", "bob")
    with serving(api) as url:

        def call(path: str, user: str | None) -> int:
            return requests.get(url + path, headers={"x-user": user} if user else {}, timeout=30).status_code

        assert [call("/api/things", None), call("/api/broken", "bob"), call("/home", "bob")] == [401, 404, 200]
        for _ in range(3):
            assert call("/api/things", "ada") == 200
        wait_until(lambda: tracker.told == 1)
        # Another process, which knows of nobody yet.
        tracker.track("ada", "first_api_call", once=True)
        tracker.track("bob", "other")
        wait_until(lambda: tracker.told == 3)
    assert site.db.sql("SELECT user_id, event FROM activation.event ORDER BY 1, 2") == [
        ("ada", "first_api_call"),
        ("bob", "other"),
    ]


def test_what_waits_is_told_before_the_app_ends(db: Database, sandbox: Sandbox) -> None:
    prepare(db, sandbox)
    db.sql("INSERT INTO users VALUES ('ada', 'ada@acme.dev', 'Ada')")
    with app_role(db) as role:
        app = make_app(db, role)
        tracker = Tracker(lambda: app.state.pool, interval=3600)
        app.add_middleware(TrackingMiddleware, tracker=tracker, event="called", user=lambda c: "ada")
        with serving(app) as url:
            assert requests.get(f"{url}/openapi.json", timeout=30).status_code == 200
            assert tracker.waiting == 1
        assert (tracker.waiting, tracker.told) == (0, 1)
    assert db.value("SELECT count(*) FROM activation.event") == 1


def test_nothing_is_lost_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    """More than it can keep, or an end without a database: counted and logged; the app's answers are as ever."""
    app = FastAPI()
    tracker = Tracker(lambda: None, capacity=2, interval=3600)
    app.add_middleware(TrackingMiddleware, tracker=tracker, event="called", user=lambda c: 1 / 0)

    @app.get("/")
    async def hello() -> str:
        return "hello"

    with caplog.at_level(logging.ERROR, "activation"):
        with serving(app) as url:
            assert requests.get(url, timeout=30).json() == "hello"
            assert "could not tell who called" in caplog.text
            for n in range(5):
                tracker.track(n, "called")
            assert (tracker.waiting, tracker.lost) == (2, 3)
            assert "lost events, 1 so far: 2 wait already" in caplog.text
        assert (tracker.waiting, tracker.lost) == (0, 5)


def test_an_event_that_cannot_be_kept_spoils_no_other(site: Site) -> None:
    tracker = Tracker(lambda: site.app.state.pool, interval=0.01)

    @site.app.post("/odd")
    async def odd() -> None:
        endless: dict[str, object] = {}
        endless["itself"] = endless
        for value in (float("nan"), "\0", "\ud800", endless, {(1, 2): 3}):
            tracker.track("ada", "odd", {"value": value})
        tracker.track("ada\0", "odd")
        tracker.track("ada", "when", {"at": Path("/as/text"), "text": "a \\ and “more”"})

    site.sign_up("ada")
    assert site.post("/odd").status_code == 200
    wait_until(lambda: tracker.told)
    assert (tracker.told, tracker.lost, tracker.refused) == (1, 6, 0)
    assert site.db.value("SELECT properties FROM activation.event") == {"at": "/as/text", "text": "a \\ and “more”"}
