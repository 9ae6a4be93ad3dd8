"""Names of compiled functions: whatever loops are called, no two versions share one, and none replaces another's."""

from __future__ import annotations

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import Connection, Database

#: Names that are alike for as long as functions' names are, and differ at their end.
NAMES = st.tuples(
    st.sampled_from(["a", "é", "日", '"', "'", "%s", ": condition", " (1.v1)", "$$", "\\"]),
    st.integers(1, 61),
).map(lambda given: [_cut(given[0] * 70, given[1]) + end for end in ("x", "y")])


def _cut(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")


def defined(app: Connection, name: str, marker: str) -> int:
    """Defines a loop of two steps and a goal, each of whose conditions holds its marker."""
    steps = [
        {
            "name": f"s{n}",
            "condition": {
                "query": f"SELECT FROM acts WHERE user_id = $1 AND what = '{marker} {n}'",
                "timeout": "1 day",
            },
            "action": {"type": "email", "template": "milestone"},
        }
        for n in (1, 2)
    ]
    document = {
        "trigger": {"type": "database", "table": "users", "event": "insert", "filter": f"NEW.plan <> '{marker}'"},
        "goal": {"query": f"SELECT FROM acts WHERE user_id = $1 AND what = '{marker} 0'"},
        "steps": steps,
    }
    ((version,),) = app.execute("SELECT activation.import_loop(%s, %s)", [name, json.dumps(document)]).fetchall()
    return int(version)


COMPILED = """
    SELECT l.name, s.version, s.step, pg_get_functiondef(c.oid), pg_get_functiondef(f.oid), p.functions
      FROM activation.step s JOIN activation.loop l ON l.loop_id = s.loop_id
      JOIN activation.loop_version v ON v.loop_id = s.loop_id AND v.version = s.version
      JOIN pg_proc c ON c.proname = s.condition_function AND c.pronamespace = 'activation_compiled'::regnamespace
      JOIN pg_proc e ON e.proname = s.evaluate_function AND e.pronamespace = 'activation_compiled'::regnamespace
      JOIN pg_proc f ON f.proname = v.filter_function AND f.pronamespace = 'activation_compiled'::regnamespace
      JOIN pg_proc u ON u.proname = v.users_function AND u.pronamespace = 'activation_compiled'::regnamespace
     CROSS JOIN LATERAL (SELECT ARRAY[c.oid, e.oid, f.oid, u.oid] AS functions) p
"""


def test_no_two_share_one(db: Database) -> None:
    @settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(names=NAMES)
    def holds(names: list[str]) -> None:
        with db.connect() as app:
            app.execute("SET client_min_messages = error")
            app.autocommit = False
            app.execute("CREATE TABLE users (id bigint PRIMARY KEY, email text, plan text)")
            app.execute("CREATE TABLE acts (user_id bigint, what text)")
            markers = {}
            for name in (*names, *names):
                marker = f"marker{len(markers)}"
                markers[name, defined(app, name, marker)] = marker
            found = app.execute(COMPILED).fetchall()
            assert len(found) == 3 * len(markers)
            owners: dict[int, set[tuple[str, int]]] = {}
            for name, version, step, condition, filtered, functions in found:
                assert f"'{markers[name, version]} {step}'" in condition
                assert f"'{markers[name, version]}'" in filtered
                for function in functions:
                    owners.setdefault(function, set()).add((name, version))
            assert all(len(whose) == 1 for whose in owners.values())
            app.rollback()

    holds()
