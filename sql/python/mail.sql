-- PL/Python for mail: templates, tokens in links, signatures, secrets, mailboxes.

-- Checks a template: its syntax, and with columns also that all it names exists. {} or {"error"}.
CREATE FUNCTION activation._check_template(context text, subject text, html text, body_text text,
                                           personalization jsonb, columns text[]) RETURNS jsonb
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.check_template(context, subject, html, body_text, personalization, columns)
$$;

-- A template that comes with the package: {"subject", "html", "body_text"}; NULL if there is none.
CREATE FUNCTION activation._built_in_template(name text) RETURNS jsonb
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.built_in_template(name)
$$;

-- A mail as it would be sent to a user, or {"problem"}, why it would not.
CREATE FUNCTION activation._rendered(action jsonb, loop text, user_row text, subject text,
                                     html text, body_text text) RETURNS jsonb
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.preview(action, loop, user_row, subject, html, body_text)
$$;

-- The enrollment that an unsubscribe token belongs to; NULL if we did not make the token.
CREATE FUNCTION activation._read_token(key text, token text) RETURNS bigint
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.read_token(key, token)
$$;

-- What is wrong with a webhook's signature, or NULL: {"status": to answer over HTTP, "problem"}.
-- refs: references to its secrets; secrets: those that are stored in the database under the names
-- that refs name.
CREATE FUNCTION activation._webhook_problem(body text, id text, sent_at text, signatures text,
                                            refs text, secrets jsonb, now double precision)
RETURNS jsonb
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
# Imported once a session: this runs for every webhook, and importing takes as long as the rest.
if "entry" not in SD:
    plpy.execute("SELECT activation._python()")
    from activation.server import entry
    SD["entry"] = entry
return SD["entry"].webhook_problem(body, id, sent_at, signatures, refs, secrets, now)
$$;

-- Whether a text is a reference to a secret, such as secret:resend, and not a secret itself.
CREATE FUNCTION activation._is_reference(reference text) RETURNS boolean
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.is_reference(reference)
$$;

-- {"mailbox"}: one mailbox, quoted where its name needs it; or {"error"}.
CREATE FUNCTION activation._mailbox(setting text, mailbox text) RETURNS jsonb
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.mailbox(setting, mailbox)
$$;

-- As _fold_address(), of any text.
CREATE FUNCTION activation._fold_any_address(address text) RETURNS text
LANGUAGE plpython3u STRICT
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.folded_address(address)
$$;

-- An address as it is compared: without a display name, in lower case, and all spellings of one
-- mailbox alike. What is sent is spelled in Python, which sends nothing that is not folded as it is
-- read elsewhere (mail/address.py); of most addresses the lower case is all there is to do.
CREATE FUNCTION activation._fold_address(address text) RETURNS text
LANGUAGE sql STABLE
RETURN CASE
    WHEN address COLLATE "C" ~ '^[!-;=?A-~]*@[0-9A-Za-z.-]*[0-9A-Za-z]$'
         AND address COLLATE "C" !~* 'xn--'
    THEN lower(address COLLATE "C")
    ELSE activation._fold_any_address(address) END;

-- Why the API key that a reference names cannot be read on this server, or NULL. stored: the secret
-- of that name in the database.
CREATE FUNCTION activation._key_problem(reference text, stored text) RETURNS text
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.key_problem(reference, stored)
$$;

-- As _key_problem(), for a secret that signs webhooks.
CREATE FUNCTION activation._webhook_secret_problem(reference text, stored text) RETURNS text
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.webhook_secret_problem(reference, stored)
$$;

-- The name of the machine that the server runs on.
CREATE FUNCTION activation._host_name() RETURNS text
LANGUAGE plpython3u
SET search_path = pg_catalog, pg_temp
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
return entry.host_name()
$$;
