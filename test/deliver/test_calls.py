"""The seam between the engine and the database says of each function what the catalog says."""

from __future__ import annotations

import re
from pathlib import Path

from activation.engine import calls
from harness import Database


def called(functions: list[calls.Function]) -> list[calls.Function]:
    """Those, and those that compute an argument of theirs."""
    nested = [kind for function in functions for kind in function.arguments.values() if not isinstance(kind, str)]
    return functions + (called(nested) if nested else [])


FUNCTIONS = called(calls.FUNCTIONS)

CATALOG = """
    SELECT coalesce(a.names, '{}'), coalesce(a.types, '{}'), p.pronargdefaults
      FROM pg_proc p
      CROSS JOIN LATERAL (
          SELECT array_agg(u.name ORDER BY u.place) AS names,
                 array_agg(format_type(u.type, NULL) ORDER BY u.place) AS types
            FROM unnest(p.proargnames, coalesce(p.proallargtypes, p.proargtypes::oid[]), p.proargmodes)
                 WITH ORDINALITY AS u(name, type, mode, place)
           WHERE u.name IS NOT NULL AND coalesce(u.mode, 'i') IN ('i', 'b')) a
     WHERE p.pronamespace = 'activation'::regnamespace AND p.proname = %s
"""


def declared(kind: str | calls.Function, db: Database) -> str:
    """The type that an argument has."""
    if isinstance(kind, str):
        return {calls.UNIX_TIME: "timestamp with time zone", calls.SECONDS: "interval"}.get(
            kind, kind.replace("timestamptz", "timestamp with time zone")
        )
    return str(db.value("SELECT format_type(prorettype, NULL) FROM pg_proc WHERE proname = %s", kind.name))


def test_the_catalog_has_them(db: Database) -> None:
    """One function of each name, with these arguments; what is not given has a default."""
    for function in FUNCTIONS:
        ((names, types, defaults),) = db.sql(CATALOG, function.name)
        given = {name: declared(kind, db) for name, kind in function.arguments.items()}
        kinds = dict(zip(names, types, strict=True))
        assert given == {name: kind for name, kind in kinds.items() if name in given}, function.name
        assert set(names[: len(names) - defaults]) <= set(given), function.name


def test_the_server_reads_them(db: Database) -> None:
    """The columns that are read exist, and parameters have numbers without a gap."""
    for function in FUNCTIONS:
        db.sql(f"PREPARE p AS {function.sql}")
        db.sql("DEALLOCATE p")
        numbers = {int(number) for number in re.findall(r"\$(\d+)", function.sql)}
        assert numbers == set(range(1, len(numbers) + 1)), function.sql


def test_nothing_else_is_called() -> None:
    """No other module calls a function of ours."""
    package = Path(calls.__file__).parents[1]
    for file in [*package.glob("engine/*.py"), package / "server" / "bridge.py"]:
        if file.name != "calls.py":
            code = "\n".join(line for line in file.read_text().splitlines() if not line.strip().startswith("#"))
            assert not re.findall(r"activation\._[a-z]\w*", code), file.name
