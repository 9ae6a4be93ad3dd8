"""The engine against a slow oracle: whatever happens in whatever order, the same people get the same messages.

The oracle asks every condition for everybody at every step of the clock. The engine asks only whom something told it to
ask; where it overlooks a table or a way in which a row matters, the two differ.
"""

from __future__ import annotations

import datetime as dt
import itertools
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import Cluster, Connection
from loops import define

TABLES = """
    CREATE TABLE users (id bigint PRIMARY KEY, email text, plan text);
    CREATE TABLE teams (id bigint PRIMARY KEY, kind text);
    CREATE TABLE members (team_id bigint, user_id bigint);
    CREATE TABLE actions (user_id bigint, what text, due timestamptz);
    CREATE VIEW finished AS SELECT user_id AS who FROM actions WHERE what = 'done';
"""

#: The engine's clock, as a condition can see it. What it says is not a row, so that the condition is asked again.
CLOCK = "coalesce(nullif(current_setting('activation.now', true), ''), '-infinity')::timestamptz"

CONDITIONS = {
    "simple": "SELECT * FROM actions WHERE user_id = $1 AND what = 'done'",
    "view": "SELECT FROM finished WHERE who = $1",
    "join": "SELECT FROM members m JOIN actions a ON a.user_id = m.user_id WHERE m.user_id = $1 AND a.what = 'done'",
    "team": "SELECT FROM members m JOIN teams t ON t.id = m.team_id WHERE m.user_id = $1 AND t.kind = 'big'",
    "count": "SELECT FROM actions WHERE user_id = $1 GROUP BY user_id HAVING count(*) >= 2",
    "few": "SELECT FROM actions WHERE user_id = $1 AND what = 'done' HAVING count(*) = 1",
    "lacks": """SELECT FROM users u WHERE u.id = $1 AND u.plan = 'paid'
                   AND NOT EXISTS (SELECT FROM actions a WHERE a.user_id = u.id AND a.what = 'begun')""",
    "lacks too": """SELECT FROM users u WHERE u.id = $1
                       AND NOT EXISTS (SELECT FROM actions a WHERE a.user_id = $1 AND a.what = 'begun')""",
    "outer": """SELECT FROM users u LEFT JOIN actions a ON a.user_id = u.id AND a.what = 'begun'
                 WHERE u.id = $1 AND a.user_id IS NULL""",
    "except": "SELECT user_id FROM members WHERE user_id = $1 EXCEPT SELECT user_id FROM actions WHERE user_id = $1",
    "either": "SELECT FROM actions WHERE user_id = $1 AND what = 'done' UNION SELECT FROM members WHERE user_id = $1",
    "scalar": """SELECT FROM users u
                  WHERE u.id = $1 AND u.plan <> ALL (SELECT a.what FROM actions a WHERE a.user_id = $1)""",
    "due": f"SELECT FROM actions WHERE user_id = $1 AND due <= {CLOCK}",
    "everybody": "SELECT FROM users u WHERE u.id = $1 AND (SELECT count(*) FROM actions WHERE what = 'done') >= 3",
}

TIMEOUTS = [None, dt.timedelta(minutes=3.5), dt.timedelta(minutes=7.5)]
USERS = 2


@dataclass
class Person:
    """A user's pass through one loop, as the oracle sees it."""

    loop: str
    user: int
    deadline: dt.datetime | None
    state: str = "waiting"
    late: bool = False


@dataclass
class Oracle:
    """Asks everybody about everything."""

    app: Connection
    timeouts: dict[str, dt.timedelta | None]
    people: list[Person] = field(default_factory=list)

    def signed_up(self, user: int, at: dt.datetime) -> None:
        for loop, timeout in self.timeouts.items():
            if not any(person.user == user and person.loop == loop for person in self.people):
                self.people.append(Person(loop, user, at + timeout if timeout else None))

    def look(self, now: dt.datetime) -> None:
        self.app.execute("SELECT set_config('activation.now', %s, false)", [now.isoformat()])
        for person in self.people:
            if person.state == "completed" or person.late:
                continue
            query = CONDITIONS[person.loop].replace("$1", f"{person.user}::bigint")
            ((true,),) = self.app.execute(f"SELECT EXISTS ({query})").fetchall()
            if true and person.state == "waiting":
                person.state = "completed"
            elif true:
                person.late = True
            elif person.state == "waiting" and person.deadline and person.deadline <= now:
                person.state = "timed_out"

    def outcome(self) -> dict[tuple[str, int], tuple[str, bool, list[str]]]:
        """Where everybody is, whether activated, and what they were sent."""
        branch = {"completed": ["action"], "timed_out": ["otherwise"], "waiting": []}
        return {(p.loop, p.user): (p.state, p.late or p.state == "completed", branch[p.state]) for p in self.people}


#: How an example may begin, so that most of them have somebody who waits.
STARTS = st.sampled_from(
    [
        [],
        [("sign up", 0, 0), ("act", 0, 0, "begun"), ("sign up", 0, 1), ("act", 0, 1, "begun"), ("tick", 1)],
        [("sign up", 0, 0), ("pay", 0, 0), ("act", 0, 0, "begun"), ("join", 0, 0, 0), ("tick", 1)],
        [("sign up", 1, 0), ("act", 0, 0, "begun"), ("tick", 1), ("sign up", 2, 1), ("join", 2, 1, 1)],
    ]
)
USER = st.integers(0, USERS - 1)
WHAT = st.sampled_from(["begun", "done"])
#: What happens: which connection, what it does, and for whom. Connections 1 and 2 keep their transactions open.
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("sign up"), st.integers(0, 2), USER),
        st.tuples(st.just("act"), st.integers(0, 2), USER, WHAT),
        st.tuples(st.just("join"), st.integers(0, 2), USER, st.integers(0, 1)),
        st.tuples(st.just("due"), st.just(0), USER, st.integers(1, 9)),
        st.tuples(st.just("change"), st.just(0), USER, WHAT),
        st.tuples(st.just("move"), st.just(0), USER, USER),
        st.tuples(st.just("undo"), st.just(0), USER),
        st.tuples(st.just("finish"), st.just(0), USER),
        st.tuples(st.just("leave"), st.just(0), USER),
        st.tuples(st.just("grow"), st.just(0), st.integers(0, 1), st.sampled_from(["big", "small"])),
        st.tuples(st.just("pay"), st.just(0), USER),
        st.tuples(st.just("commit"), st.integers(1, 2)),
        st.tuples(st.just("rollback"), st.integers(1, 2)),
        st.tuples(st.just("tick"), st.integers(1, 3)),
        st.tuples(st.just("tick"), st.integers(1, 1)),
    ),
    min_size=5,
    max_size=40,
)


class World:
    """The app, its connections, and the engine's clock; each example has users and teams of its own."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.app = [cluster.connect(), cluster.connect(autocommit=False), cluster.connect(autocommit=False)]
        self.asks = cluster.connect()
        self.engine = cluster.connect()
        self.first = itertools.count(1, USERS)
        self.app[0].execute(TABLES)
        self.timeouts = dict(zip(CONDITIONS, itertools.cycle(TIMEOUTS)))
        self.app[0].execute("SET client_min_messages = error")
        for loop, query in CONDITIONS.items():
            timeout = self.timeouts[loop]
            define(
                self.app[0], query, loop, timeout=timeout and f"{timeout.total_seconds()} s", otherwise=bool(timeout)
            )

    def play(self, events: list[tuple[object, ...]]) -> None:
        self.reset()
        base = next(self.first)
        oracle = Oracle(self.asks, self.timeouts)
        signing: dict[int, list[tuple[int, dt.datetime]]] = {1: [], 2: []}
        taken: set[int] = set()
        now = self.now()
        for event in [*events, ("commit", 1), ("commit", 2), ("tick", 1), ("tick", 9)]:
            match event:
                case ("sign up", int(at), int(user)):
                    # A key can be inserted once; another connection would wait for the first.
                    if user not in taken:
                        taken.add(user)
                        self.app[at].execute(
                            "INSERT INTO users (id, email) VALUES (%s, 'x@example.com')", [base + user]
                        )
                        ((began,),) = self.app[at].execute("SELECT now()").fetchall()
                        if at:
                            signing[at].append((user, began))
                        else:
                            # now() of the INSERT, which was a transaction of its own, is not to be had any more.
                            ((began,),) = (
                                self.app[0]
                                .execute(
                                    "SELECT at FROM activation.signal WHERE user_id = %s::text LIMIT 1", [base + user]
                                )
                                .fetchall()
                            )
                            oracle.signed_up(base + user, began)
                case ("act", int(at), int(user), str(what)):
                    self.app[at].execute("INSERT INTO actions VALUES (%s, %s)", [base + user, what])
                case ("join", int(at), int(user), int(team)):
                    self.app[at].execute("INSERT INTO members VALUES (%s, %s)", [base + team, base + user])
                case ("due", int(), int(user), int(minutes)):
                    due = now + dt.timedelta(minutes=minutes)
                    self.app[0].execute("INSERT INTO actions VALUES (%s, 'waits', %s)", [base + user, due])
                case ("change", int(), int(user), str(what)):
                    self.app[0].execute("UPDATE actions SET what = %s WHERE user_id = %s", [what, base + user])
                case ("move", int(), int(user), int(other)):
                    self.app[0].execute(
                        "UPDATE actions SET user_id = %s WHERE user_id = %s", [base + other, base + user]
                    )
                case ("undo", int(), int(user)):
                    self.app[0].execute("DELETE FROM actions WHERE user_id = %s", [base + user])
                case ("finish", int(), int(user)):
                    self.app[0].execute("DELETE FROM actions WHERE user_id = %s AND what = 'begun'", [base + user])
                case ("leave", int(), int(user)):
                    self.app[0].execute("DELETE FROM members WHERE user_id = %s", [base + user])
                case ("grow", int(), int(team), str(kind)):
                    self.app[0].execute(
                        "INSERT INTO teams VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET kind = excluded.kind",
                        [base + team, kind],
                    )
                case ("pay", int(), int(user)):
                    self.app[0].execute("UPDATE users SET plan = 'paid' WHERE id = %s", [base + user])
                case ("commit", int(at)):
                    self.app[at].commit()
                    for user, began in signing[at]:
                        oracle.signed_up(base + user, began)
                    signing[at].clear()
                case ("rollback", int(at)):
                    self.app[at].rollback()
                    taken -= {user for user, _ in signing[at]}
                    signing[at].clear()
                case ("tick", int(minutes)):
                    # A little more than whole minutes, so that everything asked again every minute is due.
                    now += dt.timedelta(minutes=minutes, seconds=1)
                    self.engine.execute("SELECT set_config('activation.now', %s, false)", [now.isoformat()])
                    self.engine.execute("CALL activation.tick()")
                    oracle.look(now)
                    assert self.outcome() == oracle.outcome()

    def now(self) -> dt.datetime:
        ((now,),) = self.asks.execute("SELECT clock_timestamp()").fetchall()
        assert isinstance(now, dt.datetime)
        return now

    def outcome(self) -> dict[tuple[str, int], tuple[str, bool, list[str]]]:
        rows = self.asks.execute("""
            SELECT j.loop, j.user_id::int, j.state, j.activated_at IS NOT NULL,
                   ARRAY(SELECT m.branch FROM activation.message m WHERE m.enrollment_id = j.enrollment_id ORDER BY 1)
              FROM activation.journey j
        """).fetchall()
        return {(loop, user): (state, activated, branches) for loop, user, state, activated, branches in rows}

    def reset(self) -> None:
        """The clock goes back to the present, and nobody is on the way."""
        for connection in self.app[1:]:
            connection.rollback()
        self.app[0].execute("""
            TRUNCATE users, teams, members, actions;
            DELETE FROM activation.signal; DELETE FROM activation.wake WHERE source_id <> 0;
            DELETE FROM activation.message; DELETE FROM activation.enrollment;
            UPDATE activation.sweep SET due_at = '-infinity', swept_to = 0
        """)

    def close(self) -> None:
        for connection in [*self.app, self.asks, self.engine]:
            connection.close()


def test_the_same_people_get_the_same_messages(cluster: Cluster) -> None:
    world = World(cluster)

    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(STARTS, EVENTS)
    def same(start: list[tuple[object, ...]], events: list[tuple[object, ...]]) -> None:
        world.play([*start, *events])

    try:
        same()
    finally:
        world.close()
