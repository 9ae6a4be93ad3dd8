-- PL/Python for mail: templates, tokens in links, signatures, secrets, mailboxes.

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
