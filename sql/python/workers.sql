-- PL/Python for workers: the procedures that commit, and talk HTTP while no transaction is open.
--
-- A procedure that commits can have no SET clause. These pin the path of the session themselves
-- while they run.

CREATE PROCEDURE activation.detect(slot integer DEFAULT 1)
LANGUAGE plpython3u
AS $$
plpy.execute("SELECT activation._python()")
from activation.server import entry
entry.detect(plpy, slot)
$$;
COMMENT ON PROCEDURE activation.detect(integer) IS
'Runs a detector until one second after the next full minute: enrolls, evaluates conditions,
promises messages. A pg_cron job calls it. It commits.
slot: tells detectors apart. A second one in the same slot returns at once.
Raises 2D000 inside a transaction or a function.';

CREATE PROCEDURE activation.deliver(slot integer DEFAULT 1)
LANGUAGE plpython3u
AS $$
folder = plpy.execute("SELECT activation._python() AS folder")[0]["folder"]
from activation.server import entry
entry.deliver(plpy, slot, folder)
$$;
COMMENT ON PROCEDURE activation.deliver(integer) IS
'Runs a deliverer until one second after the next full minute: claims due messages, sends them
through Resend, records what came of it. A pg_cron job calls it. It commits.
slot: tells deliverers apart. A second one in the same slot returns at once.
Raises 2D000 inside a transaction or a function.';

CREATE PROCEDURE activation.tick()
LANGUAGE plpython3u
AS $$
folder = plpy.execute("SELECT activation._python() AS folder")[0]["folder"]
from activation.server import entry
entry.tick(plpy, folder)
$$;
COMMENT ON PROCEDURE activation.tick() IS
'Does everything that is due now, detecting and delivering, and returns: for tests, psql and
servers without pg_cron. It commits.
Raises 2D000 inside a transaction or a function.';

CREATE PROCEDURE activation.pull_webhooks()
LANGUAGE plpython3u
AS $$
folder = plpy.execute("SELECT activation._python() AS folder")[0]["folder"]
from activation.server import entry
entry.pull_webhooks(plpy, folder)
$$;
COMMENT ON PROCEDURE activation.pull_webhooks() IS
'Asks Resend what became of mails, for a database that no webhook reaches. It reads the new events
of a webhook of the account, once each, and applies them as receive_webhook() would. start(pull =>
true) has pg_cron call it every minute, and then it also calls sync_suppressions() every hour
where that is configured. The API key must have full access. In mode capture it does nothing. It
commits.
Raises 2D000 inside a transaction or a function.';

CREATE PROCEDURE activation.sync_suppressions()
LANGUAGE plpython3u
AS $$
folder = plpy.execute("SELECT activation._python() AS folder")[0]["folder"]
from activation.server import entry
entry.sync_suppressions(plpy, folder)
$$;
COMMENT ON PROCEDURE activation.sync_suppressions() IS
'Makes our list of suppressed addresses and Resend''s the same: takes over what is only there, adds
what suppress() put only here, removes what unsuppress() took away since
configure(sync_suppressions => true). Hashes of forgotten addresses stay here. The API key must
have full access. It commits.
Raises 2D000 inside a transaction or a function.';
