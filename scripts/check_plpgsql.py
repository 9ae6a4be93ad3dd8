"""Runs plpgsql_check over every PL/pgSQL function of the extension, in a throwaway cluster. Part of `make lint`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "test" / "support"))

from harness import Cluster

# A trigger function is checked for each table that it serves.
CHECK = """
SELECT p.oid::regprocedure::text, c.lineno, c.level, c.message, c.detail, c.hint
  FROM pg_depend d
  JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'activation'
  JOIN pg_proc p ON p.oid = d.objid AND d.classid = 'pg_proc'::regclass
  JOIN pg_language l ON l.oid = p.prolang AND l.lanname = 'plpgsql'
  LEFT JOIN (SELECT DISTINCT tgfoid, tgrelid FROM pg_trigger) t ON t.tgfoid = p.oid,
       plpgsql_check_function_tb(p.oid, coalesce(t.tgrelid, 0), fatal_errors => false, security_warnings => true,
                                 without_warnings => false, extra_warnings => true) c
 WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
 ORDER BY 1, 2
"""


def main() -> int:
    """Print what was found; 1 if there is anything."""
    with Cluster(cron=True) as cluster:
        cluster.sql("CREATE EXTENSION plpgsql_check")
        found = cluster.sql(CHECK)
    for function, line, level, message, detail, hint in found:
        more = "".join(f" ({text})" for text in (detail, hint) if text)
        print(f"{function}, line {line}: {level}: {message}{more}")
    print(f"plpgsql_check: {len(found)} problems" if found else "plpgsql_check: nothing found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
