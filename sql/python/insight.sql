-- PL/Python for insight: a query as of a time, what suggest() counted, and the report's page.

-- A query about a user, rewritten to see the tables as of an earlier moment.
CREATE FUNCTION activation._as_of(query text, tables jsonb, key text, at text) RETURNS text
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.as_of(query, tables, key, at)
$$;

-- What goes with staying, from what suggest() counted. It has its owner's rights, for callers who
-- may not call _python().
CREATE FUNCTION activation._suggest_rank(plan jsonb, counted jsonb, totals jsonb) RETURNS jsonb
LANGUAGE plpython3u SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.suggest_rank(plan, counted, totals)
$$;

-- The dashboard as a page, from what overview() returns.
CREATE FUNCTION activation._report(overview jsonb) RETURNS text
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.report(overview)
$$;
