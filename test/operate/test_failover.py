"""A streaming standby that takes over: with its address in `hosts` it goes on by itself; without it nothing leaves."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from activation.sandbox import Sandbox
from harness import Cluster, wait_until
from loops import tick
from mail import go_live, received, sign_up, status, statuses
from standby import ENVIRONMENT, standby_of


def take_over(primary: Cluster, standby: Cluster) -> None:
    primary.stop("immediate")
    assert standby.value("SELECT pg_promote()")


def move_address(primary: Cluster, standby: Cluster) -> None:
    """On two machines both servers listen in the same directory and on the same port; here the way leads to the other
    one."""
    for found in Path(primary.socket).glob(".s.PGSQL.*"):
        found.unlink()
    Path(primary.socket, f".s.PGSQL.{primary.port}").symlink_to(Path(standby.socket, f".s.PGSQL.{standby.port}"))


def test_while_messages_are_in_flight(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under pg_cron on both sides: nothing is lost, nothing doubled, nobody has done anything but promote it."""
    sandbox.clear()
    with Cluster(cron=True, environment=ENVIRONMENT) as primary, primary.connect() as app:
        go_live(app, sandbox)
        with standby_of(primary, tmp_path / "data", monkeypatch, cron=True) as standby:
            hosts = [f"%:{primary.port}", f"%:{standby.port}"]
            app.execute("SELECT activation.set_mode('live', hosts => %s)", [hosts])
            sign_up(app, 1, acts=False)
            app.execute("SELECT activation.start()")
            assert quiet(standby)
            wait_until(lambda: status(primary, "deliverer 1")[0] == "ok", 80)
            sign_up(app, 50)
            wait_until(lambda: statuses(primary).get("50") == "sent", 20)
            # Some are accepted and not answered, some are held before that, some have not left.
            sandbox.fail("stall", times=2)
            sandbox.fail("stall_before", times=1)
            for first in range(100, 400, 100):
                sign_up(app, *range(first, first + 100))
                wait_until(lambda: sandbox.held >= 1, 20)
            wait_until(lambda: sandbox.held == 3, 20)
            sign_up(app, *range(400, 420))
            app.execute("INSERT INTO actions (user_id) VALUES (1)")
            take_over(primary, standby)
            sandbox.release()
            move_address(primary, standby)
            wait_until(lambda: set(statuses(standby).values()) == {"sent"}, 130)
            everybody = {f"u{user}@acme.dev": 1 for user in (1, 50, *range(100, 420))}
            assert Counter(everybody) == received(sandbox)
            assert Counter(statuses(standby).values()) == {"sent": 322}
            assert status(standby, "mode")[0] == "live"


def quiet(standby: Cluster) -> bool:
    """Whether workers return at once there, and what people look at can be looked at."""
    with standby.connect() as connection:
        for call in ("detect()", "deliver()", "tick()"):
            connection.execute(f"CALL activation.{call}")
    components = dict(standby.sql("SELECT component, state FROM activation.status"))
    standby.sql("SELECT * FROM activation.why('1')")
    return components["mode"] == "live"


@pytest.mark.parametrize("mode", ["'live'", "'redirect', redirect_to => 'me@acme.dev'"])
def test_without_its_address(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """Nothing leaves, messages wait, status says why; set_mode there lets them go, once."""
    sandbox.clear()
    with Cluster(environment=ENVIRONMENT) as primary, primary.connect() as app:
        go_live(app, sandbox)
        app.execute(f"SELECT activation.set_mode({mode})")
        sandbox.fail("drop_after")
        sign_up(app, 1)
        tick(primary)
        sign_up(app, 2, acts=False)
        tick(primary)
        with standby_of(primary, tmp_path / "data", monkeypatch) as standby:
            assert status(standby, "mode")[0] == "disarmed"
            # The wake of this one is lost: wake is unlogged.
            app.execute("INSERT INTO actions (user_id) VALUES (2)")
            take_over(primary, standby)
            assert standby.value("SELECT count(*) FROM activation.wake") == 0
            tick(standby, "5 minutes")
            assert len(sandbox.log) == 1
            assert statuses(standby) == {"1": "sending", "2": "queued"}
            state, detail = status(standby, "mode")
            assert state == "disarmed" and "port is" in detail and "data directory is" in detail
            standby.sql(f"SELECT activation.set_mode({mode}, backlog => 'send')")
            tick(standby, "10 minutes")
            assert statuses(standby) == {"1": "sent", "2": "sent"}
            assert received(sandbox).total() == 2


def test_there_and_back(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old primary's place is taken by a new standby of the new primary, which takes over in turn."""
    sandbox.clear()
    with Cluster(environment=ENVIRONMENT) as first, first.connect() as app:
        go_live(app, sandbox)
        app.execute("SELECT activation.set_mode('live', hosts => ARRAY['%'])")
        sign_up(app, 1)
        tick(first)
        with standby_of(first, tmp_path / "second", monkeypatch) as second:
            sign_up(app, 2)
            take_over(first, second)
            tick(second)
            with standby_of(second, tmp_path / "third", monkeypatch) as third, second.connect() as app2:
                sign_up(app2, 3)
                take_over(second, third)
                tick(third)
                assert set(statuses(third).values()) == {"sent"}
                assert received(sandbox) == {f"u{user}@acme.dev": 1 for user in (1, 2, 3)}
