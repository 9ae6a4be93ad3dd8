"""What is left of capture's queues after a crash, and of the whole after a dump and restore."""

from __future__ import annotations

from harness import Cluster, Database
from loops import APP, define, enrolled, journey, loop_status, tick


def test_a_crash_with_wakes_pending() -> None:
    """wake is unlogged: after a crash it is empty, and the sweep finds who had acted."""
    people = 500
    with Cluster(fsync=True) as cluster:
        app = cluster.connect()
        app.execute(APP)
        define(app)
        app.execute(
            "INSERT INTO users (id, email) SELECT n, n || '@example.com' FROM generate_series(1, %s) n", [people]
        )
        tick(cluster)
        assert cluster.value("SELECT count(*) FROM activation.journey WHERE state = 'waiting'") == people
        # Half of them act, some sign up; nobody looks before the crash.
        app.execute("INSERT INTO actions (user_id) SELECT n FROM generate_series(1, %s, 2) n", [people])
        app.execute("INSERT INTO users (id) SELECT n FROM generate_series(1001, 1010) n")
        assert cluster.value("SELECT count(*) FROM activation.wake WHERE source_id <> 0") == people // 2
        app.close()
        cluster.kill9()
        cluster.start()
        assert cluster.value("SELECT count(*) FROM activation.wake") == 0
        assert cluster.value("SELECT count(*) FROM activation.signal") == 10
        acted = cluster.value("SELECT count(DISTINCT user_id) FROM actions")
        tick(cluster)
        assert acted == people // 2
        assert cluster.sql("SELECT state, count(*) FROM activation.journey GROUP BY 1 ORDER BY 1") == [
            ("completed", acted),
            ("waiting", people - acted + 10),
        ]
        # The marker is back, and wakes work again.
        assert cluster.value("SELECT count(*) FROM activation.wake WHERE source_id = 0") == 1
        cluster.sql("INSERT INTO actions (user_id) VALUES (2)")
        tick(cluster)
        assert cluster.value("SELECT count(*) FROM activation.journey WHERE state = 'completed'") == acted + 1


def test_a_clean_restart_keeps_wakes() -> None:
    with Cluster() as cluster:
        with cluster.connect() as app:
            app.execute(APP)
            define(app)
            app.execute("INSERT INTO users (id) VALUES (1), (2)")
            tick(cluster)
            app.execute("INSERT INTO actions (user_id) VALUES (1)")
        cluster.restart()
        assert cluster.sql("SELECT source_id = 0, user_id FROM activation.wake ORDER BY 1 DESC") == [
            (True, "marker"),
            (False, "1"),
        ]
        tick(cluster)
        assert journey(cluster) == {"1": "completed", "2": "waiting"}


def test_dump_and_restore(db: Database) -> None:
    """In another database everything goes on: loops, filters, people who wait, and the triggers of the next signup."""
    with db.connect() as app:
        app.execute("CREATE TABLE gone (x int); DROP TABLE gone")
        app.execute(APP)
        # A column that is gone gives the restored table other column numbers.
        app.execute("ALTER TABLE users DROP COLUMN id; ALTER TABLE users ADD COLUMN id bigint PRIMARY KEY")
        app.execute("ALTER TABLE users DROP COLUMN name; ALTER TABLE users ADD COLUMN name text")
        app.execute("ALTER TABLE actions DROP COLUMN user_id; ALTER TABLE actions ADD COLUMN user_id bigint")
        app.execute("""
            CREATE TABLE parts (id bigint PRIMARY KEY, email text) PARTITION BY HASH (id);
            CREATE TABLE parts_0 PARTITION OF parts FOR VALUES WITH (MODULUS 1, REMAINDER 0);
        """)
        define(app, timeout="1 hour", otherwise=True)
        define(app, "SELECT FROM actions WHERE user_id = $1", "filtered", filter="NEW.name = 'free'")
        define(app, "SELECT FROM actions WHERE user_id = $1", "parted", table="parts")
        tick(db)
        app.execute("INSERT INTO users (id, name) VALUES (1, 'free'), (2, 'paid'), (3, 'free')")
        app.execute("INSERT INTO parts VALUES (1)")
        tick(db)
        app.execute("INSERT INTO actions (user_id) VALUES (3)")
        tick(db)
        # On the way at the time of the dump: a signup, and an action.
        app.execute("INSERT INTO users (id, name) VALUES (4, 'free'); INSERT INTO actions (user_id) VALUES (2)")
    dump = db.run("pg_dump")
    name = f"{db.name}_copy"
    db.cluster.postgres.sql(f'CREATE DATABASE "{name}" TEMPLATE template0')
    copy = Database(db.cluster, name)
    copy.psql(dump)
    triggers = """
        SELECT tgrelid::regclass::text, tgname, tgfoid::regproc::text FROM pg_trigger
         WHERE tgname LIKE 'activation%' ORDER BY 1, 2
    """
    assert copy.sql(triggers) == db.sql(triggers)
    assert journey(copy) == {"1": "waiting", "2": "waiting", "3": "completed"}
    tick(copy)
    assert journey(copy) == {"1": "waiting", "2": "completed", "3": "completed", "4": "waiting"}
    copy.sql("INSERT INTO users (id, name) VALUES (5, 'free'), (6, 'paid'); INSERT INTO actions (user_id) VALUES (1)")
    copy.sql("INSERT INTO parts_0 VALUES (2)")
    tick(copy)
    assert journey(copy)["1"] == "completed"
    assert sorted(journey(copy, "filtered")) == ["1", "3", "4", "5"]
    assert sorted(journey(copy, "parted")) == ["1", "2"]
    # A change of the table there is followed there.
    copy.sql("ALTER TABLE users RENAME COLUMN id TO uid; ALTER TABLE users RENAME COLUMN name TO tier")
    copy.sql("INSERT INTO users (uid, tier) VALUES (7, 'free')")
    copy.sql("ALTER TABLE parts RENAME COLUMN id TO uid; INSERT INTO parts VALUES (3)")
    assert "7" in enrolled(copy)
    assert "7" in journey(copy, "filtered")
    assert "3" in journey(copy, "parted")
    assert [loop_status(copy, loop)[0] for loop in ("first", "filtered", "parted")] == ["ok", "ok", "ok"]
    with copy.connect() as app:
        # The same definition is still the same version, and a new one works.
        assert (
            define(app, "SELECT FROM actions WHERE user_id = $1 AND what = 'x'", "filtered", filter="NEW.tier = 'x'")
            == 2
        )
        app.execute("INSERT INTO users (uid, tier) VALUES (8, 'x')")
    tick(copy)
    assert "8" in journey(copy, "filtered")
    # Nothing of it reached the original.
    assert sorted(journey(db)) == ["1", "2", "3"]
    copy.drop()
