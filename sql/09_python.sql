-- The only plpython3u code: import and call. Logic in one of these bodies would be a mistake.

-- Puts the package of this version on the path and checks that Python and SQL agree. Every body below starts with it. With its
-- owner's rights: the engine's role may not see where the server's files are.
CREATE FUNCTION activation._python() RETURNS text
LANGUAGE plpython3u SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
import sys
found = plpy.execute("SELECT c.setting, e.extversion FROM pg_catalog.pg_config c, pg_catalog.pg_extension e"
                     " WHERE c.name = 'PKGLIBDIR' AND e.extname = 'activation'")[0]
folder = f"{found['setting']}/activation-{found['extversion']}"
if folder not in sys.path:
    sys.path.insert(0, folder)
try:
    import activation
except ImportError as error:
    plpy.error(f"the Python package of activation {found['extversion']} is not installed", detail=str(error),
               hint=f"Run make install on the server; it belongs in {folder}.", sqlstate="58P01")
if activation.__version__ != found["extversion"]:
    plpy.error(f"extension activation is version {found['extversion']}, its Python package in this session is {activation.__version__}",
               hint="Open a new session; if that does not help, run make install and ALTER EXTENSION activation UPDATE.",
               sqlstate="55000")
return folder
$$;

CREATE FUNCTION activation._normalise(name text, document jsonb) RETURNS jsonb
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.normalise(name, document)
$$;

CREATE FUNCTION activation._fragment(kind text, document jsonb) RETURNS jsonb
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.fragment(kind, document)
$$;

-- An author's text with a parameter in place of each string, from `parameters` + 1 on: {"text": without its end, "prepared",
-- "strings": how many}, or {"error"}.
CREATE FUNCTION activation._query_strings(query text, parameters integer) RETURNS jsonb
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.query_strings(query, parameters)
$$;

CREATE FUNCTION activation._query_text(query text, key_type text, string_types text[] DEFAULT NULL) RETURNS jsonb
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.query_text(query, key_type, string_types)
$$;

CREATE FUNCTION activation._row_columns(expression text, row_name text, columns text[]) RETURNS text[]
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.row_columns(expression, row_name, columns)
$$;

-- When a cron expression is due next after a time, on the clock of a time zone.
CREATE FUNCTION activation._next_run(cron text, timezone text, after timestamptz) RETURNS timestamptz
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET datestyle = 'ISO'
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.next_run(cron, timezone, after)
$$;

CREATE FUNCTION activation._coverage(plan text, key_expressions text[]) RETURNS jsonb
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.coverage(plan, key_expressions)
$$;

-- The enrollment that a token of ours is of, else NULL.
CREATE FUNCTION activation._read_token(key text, token text) RETURNS bigint
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.read_token(key, token)
$$;

-- What is wrong with a webhook's signature, or NULL. secrets: those stored under the names that references name.
CREATE FUNCTION activation._webhook_problem(body text, id text, sent_at text, signatures text, refs text, secrets jsonb, now double precision)
RETURNS text
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
# Once a session: it comes for every webhook, and would take as long as the rest.
if "entry" not in SD:
    plpy.execute("SELECT activation._python()")
    from activation.server import entry
    SD["entry"] = entry
return SD["entry"].webhook_problem(body, id, sent_at, signatures, refs, secrets, now)
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

-- What a query calls, and whether it reads the clock.
CREATE FUNCTION activation._query_names(query text) RETURNS jsonb
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.query_names(query)
$$;

-- A query about a user, as of an earlier moment.
CREATE FUNCTION activation._as_of(query text, tables jsonb, key text, at text) RETURNS text
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.as_of(query, tables, key, at)
$$;

-- What goes with staying, from what suggest() counted. With its owner's rights, for callers who may not call _python().
CREATE FUNCTION activation._suggest_rank(plan jsonb, counted jsonb, totals jsonb) RETURNS jsonb
LANGUAGE plpython3u SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.suggest_rank(plan, counted, totals)
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

-- Runs statements on an author's path; {"value"} of the last or {"error"}. Undone unless keep. shown: see _in_box().
CREATE FUNCTION activation._run(names text, statements text[], keep boolean, shown text DEFAULT NULL) RETURNS jsonb
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.run(plpy, names, statements, keep, shown)
$$;

CREATE FUNCTION activation._check_template(what text, subject text, html text, body_text text, personalization jsonb, columns text[])
RETURNS jsonb
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.check_template(what, subject, html, body_text, personalization, columns)
$$;

CREATE FUNCTION activation._built_in_template(name text) RETURNS jsonb
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.built_in_template(name)
$$;

CREATE FUNCTION activation._rendered(action jsonb, loop text, user_row text, subject text, html text, body_text text) RETURNS jsonb
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.preview(action, loop, user_row, subject, html, body_text)
$$;

CREATE FUNCTION activation._is_reference(reference text) RETURNS boolean
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.is_reference(reference)
$$;

-- {"mailbox"}: one mailbox, quoted where its name needs it; or {"error"}. what: the name of the setting.
CREATE FUNCTION activation._mailbox(what text, mailbox text) RETURNS jsonb
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.mailbox(what, mailbox)
$$;

CREATE FUNCTION activation._key_problem(reference text, stored text) RETURNS text
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.key_problem(reference, stored)
$$;

-- As _key_problem(), of a secret that signs webhooks.
CREATE FUNCTION activation._webhook_secret_problem(reference text, stored text) RETURNS text
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.webhook_secret_problem(reference, stored)
$$;

CREATE FUNCTION activation._host_name() RETURNS text
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.host_name()
$$;

-- These commit, so they can have no SET clause; they pin the path of the session themselves while they run.

CREATE PROCEDURE activation.detect(slot integer DEFAULT 1)
LANGUAGE plpython3u
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
entry.detect(plpy, slot)
$$;
COMMENT ON PROCEDURE activation.detect(integer) IS
'Runs a detector until one second after the next full minute: enrolls, evaluates conditions, promises messages. A pg_cron job calls it; slot tells detectors apart, and a second one in the same slot returns at once. Commits, so it cannot run inside a transaction.';

CREATE PROCEDURE activation.deliver(slot integer DEFAULT 1)
LANGUAGE plpython3u
AS $$
folder = plpy.execute("SELECT activation._python() AS folder")[0]["folder"]
from activation.server import entry
entry.deliver(plpy, slot, folder)
$$;
COMMENT ON PROCEDURE activation.deliver(integer) IS
'Runs a deliverer until one second after the next full minute: claims due messages, sends them through Resend, records what came of it. A pg_cron job calls it; slot tells deliverers apart. Commits, so it cannot run inside a transaction.';

CREATE PROCEDURE activation.tick()
LANGUAGE plpython3u
AS $$
folder = plpy.execute("SELECT activation._python() AS folder")[0]["folder"]
from activation.server import entry
entry.tick(plpy, folder)
$$;
COMMENT ON PROCEDURE activation.tick() IS
'Does everything that is due now, detecting and delivering, and returns: for tests, psql and servers without pg_cron. Commits, so it cannot run inside a transaction.';

CREATE PROCEDURE activation.pull_webhooks()
LANGUAGE plpython3u
AS $$
folder = plpy.execute("SELECT activation._python() AS folder")[0]["folder"]
from activation.server import entry
entry.pull_webhooks(plpy, folder)
$$;
COMMENT ON PROCEDURE activation.pull_webhooks() IS
'Asks Resend what became of mails, for a database that no webhook reaches: reads the new events of a webhook of the account, once each, and brings them where receive_webhook() would. Which one says configure(webhook_id => …), unless there is only one. start(pull => true) has pg_cron call it every minute; then it also calls sync_suppressions() every hour where configure(sync_suppressions => true). The API key must be one with full access. Commits, so it cannot run inside a transaction.';

CREATE PROCEDURE activation.sync_suppressions()
LANGUAGE plpython3u
AS $$
folder = plpy.execute("SELECT activation._python() AS folder")[0]["folder"]
from activation.server import entry
entry.sync_suppressions(plpy, folder)
$$;
COMMENT ON PROCEDURE activation.sync_suppressions() IS
'Makes our list of suppressed addresses and Resend''s the same: takes over what is only there, adds what suppress() put only here, removes what unsuppress() took away since configure(sync_suppressions => true). Hashes of forgotten addresses stay here. The API key must be one with full access. Commits, so it cannot run inside a transaction.';
