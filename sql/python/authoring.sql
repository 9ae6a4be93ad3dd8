-- PL/Python for authoring: what defining a loop needs. All plpython3u code is in this folder, and a
-- body only imports and calls; logic in it would be a mistake.

-- Puts the package of this version on the path and checks that Python and SQL agree. Every body
-- below starts with it. It has its owner's rights, because the engine's role may not see where the
-- server's files are.
CREATE FUNCTION activation._python() RETURNS text
LANGUAGE plpython3u SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
import sys
found = plpy.execute("SELECT c.setting, e.extversion"
                     "  FROM pg_catalog.pg_config c, pg_catalog.pg_extension e"
                     " WHERE c.name = 'PKGLIBDIR' AND e.extname = 'activation'")[0]
folder = f"{found['setting']}/activation-{found['extversion']}"
if folder not in sys.path:
    sys.path.insert(0, folder)
try:
    import activation
except ImportError as error:
    plpy.error(f"the Python package of activation {found['extversion']} is not installed",
               detail=str(error),
               hint=f"Run make install on the server; it belongs in {folder}.",
               sqlstate="58P01")
if activation.__version__ != found["extversion"]:
    plpy.error(f"extension activation is version {found['extversion']},"
               f" its Python package in this session is {activation.__version__}",
               hint="Open a new session; if that does not help, run make install"
                    " and ALTER EXTENSION activation UPDATE.",
               sqlstate="55000")
return folder
$$;

-- Checks a loop's definition and writes out its defaults: {"definition"}, or {"error"}.
CREATE FUNCTION activation._normalise(name text, document jsonb) RETURNS jsonb
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.normalise(name, document)
$$;

-- Checks one part of a definition, such as a trigger or a step, in the same way.
CREATE FUNCTION activation._fragment(kind text, document jsonb) RETURNS jsonb
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.fragment(kind, document)
$$;

-- An author's text with a parameter in place of each string, from `parameters` + 1 on: {"text":
-- without its end, "prepared", "strings": how many}, or {"error"}.
CREATE FUNCTION activation._query_strings(query text, parameters integer) RETURNS jsonb
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.query_strings(query, parameters)
$$;

-- The forms of a query about a user that are compiled, explained, and asked about many users at
-- once.
CREATE FUNCTION activation._query_text(query text, key_type text, string_types text[] DEFAULT NULL)
RETURNS jsonb
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.query_text(query, key_type, string_types)
$$;

-- Which columns of a table an expression takes from one of its rows, from NEW for example.
CREATE FUNCTION activation._row_columns(expression text, row_name text, columns text[])
RETURNS text[]
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.row_columns(expression, row_name, columns)
$$;

-- When a cron expression is due next after a time, on the clock of a time zone.
CREATE FUNCTION activation._next_run(cron text, timezone text, after timestamptz)
RETURNS timestamptz
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET datestyle = 'ISO'
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.next_run(cron, timezone, after)
$$;

-- Which tables of a condition are restricted to the user by a column of their own, from its plan,
-- and whether a row that goes away can make it true: {"covered", "negative"}.
CREATE FUNCTION activation._coverage(plan text, key_expressions text[]) RETURNS jsonb
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.coverage(plan, key_expressions)
$$;

-- What a query calls, and whether it reads the clock.
CREATE FUNCTION activation._query_names(query text) RETURNS jsonb
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.query_names(query)
$$;

-- What a skene.config.ts says. users: [{"table", "key"}] of the users tables, as SQL writes them.
CREATE FUNCTION activation._skene_config(name text, config text, users jsonb) RETURNS jsonb
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.skene_config(name, config, users)
$$;

-- What a journey.yaml says.
CREATE FUNCTION activation._journey_text(name text, journey text) RETURNS jsonb
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.journey(name, journey)
$$;

-- Runs statements on a search_path, such as an author's. Returns {"value"} of the last or
-- {"error"}. What they do is undone unless keep. shown: see _in_box().
CREATE FUNCTION activation._run_on_path(search_path text, statements text[], keep boolean,
                                        shown text DEFAULT NULL) RETURNS jsonb
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.run(plpy, search_path, statements, keep, shown)
$$;
