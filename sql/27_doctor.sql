-- doctor(): what is wrong with this installation, what that means, and the command that cures it. Each check is a function
-- that returns what it found; it only reads. No check plans or runs an author's text: planning is execution. Conditions are
-- called through the black box alone, with nobody to ask about.

CREATE TYPE activation.finding AS (state text, detail text, cure text);
COMMENT ON TYPE activation.finding IS 'What a check of doctor() found: ok, warning or problem; what it means; the command that cures it.';

CREATE FUNCTION activation._finding(state text, detail text, cure text DEFAULT NULL) RETURNS activation.finding
LANGUAGE sql IMMUTABLE
RETURN (state, detail, cure)::activation.finding;

-- ---- the server -------------------------------------------------------------------------------------------------------------

CREATE FUNCTION activation._doctor_versions() RETURNS SETOF activation.finding
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    here record;
BEGIN
    SELECT e.extversion AS sql, x.default_version AS installed INTO here
      FROM pg_extension e LEFT JOIN pg_available_extensions x ON x.name = e.extname WHERE e.extname = 'activation';
    IF here.installed <> here.sql THEN
        RETURN NEXT activation._finding('warning', format('version %s is installed on the server, this database has %s', here.installed, here.sql),
                        'ALTER EXTENSION activation UPDATE;');
    END IF;
    PERFORM activation._python();
    RETURN NEXT activation._finding('ok', format('SQL and Python are version %s', here.sql));
EXCEPTION WHEN others THEN
    -- What was returned before stays.
    RETURN NEXT activation._finding('problem', replace(SQLERRM, 'plpy.Error: ', ''), CASE WHEN here.installed = here.sql THEN 'make install' END);
END
$$;

CREATE FUNCTION activation._doctor_autovacuum() RETURNS SETOF activation.finding
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT 'problem', format('%s is off: tables of ours grow without end', s.name), format(E'ALTER SYSTEM SET %s = on;\nSELECT pg_reload_conf();', s.name)
      FROM pg_settings s WHERE s.name IN ('autovacuum', 'track_counts') AND s.setting = 'off';
    RETURN QUERY
    SELECT 'problem', format('autovacuum is switched off for %s, which grows without end', c.oid::regclass),
           format('ALTER TABLE %s RESET (autovacuum_enabled);', c.oid::regclass)
      FROM pg_class c, pg_options_to_table(c.reloptions) o
     WHERE c.relnamespace = 'activation'::regnamespace AND o.option_name = 'autovacuum_enabled' AND NOT o.option_value::boolean;
    RETURN QUERY
    SELECT 'warning', format('%s has %s dead rows and %s live ones, and was last vacuumed %s', t.relid::regclass, t.n_dead_tup, t.n_live_tup,
                             coalesce('at ' || to_char(greatest(t.last_vacuum, t.last_autovacuum) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"'), 'never')),
           format('VACUUM (ANALYZE) %s;', t.relid::regclass)
      FROM pg_stat_user_tables t
     WHERE t.schemaname = 'activation' AND t.n_dead_tup > 50000 AND t.n_dead_tup > t.n_live_tup
       AND coalesce(greatest(t.last_vacuum, t.last_autovacuum) < activation._now() - interval '1 hour', true);
    RETURN QUERY
    SELECT 'warning', format('process %s (%s) has been in a transaction since %s; nothing that was deleted since can be removed, and queues get slow',
                             a.pid, coalesce(nullif(a.application_name, ''), a.usename, 'unknown'), to_char(a.xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"')),
           format('SELECT pg_terminate_backend(%s, 5000);', a.pid)
      FROM pg_stat_activity a
     WHERE a.backend_type = 'client backend' AND a.pid <> pg_backend_pid() AND a.xact_start < activation._now() - interval '1 hour'
       AND (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL) AND a.datname = current_database();
END
$$;

-- Little by little, so that it may be a day behind.
CREATE FUNCTION activation._doctor_retention() RETURNS SETOF activation.finding
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    now timestamptz := activation._now();
    late record;
BEGIN
    FOR late IN
        SELECT k.kind, k.oldest, activation._oldest(k.kind, now) AS kept
          FROM (VALUES ('messages', (SELECT min(r.created_at) FROM activation.request r WHERE r.state = 'done')),
                       ('messages', (SELECT min(m.finished_at) FROM activation.message m WHERE m.finished_at IS NOT NULL AND m.state <> 'unknown')),
                       ('events', (SELECT min(e.at) FROM activation.event e)),
                       ('webhooks', (SELECT min(w.received_at) FROM activation.webhook_event w)),
                       ('failures', (SELECT min(c.at) FROM activation.capture_failure c)),
                       ('failures', (SELECT min(k.at) FROM activation.remark k))) AS k(kind, oldest)
    LOOP
        IF late.oldest < late.kept - interval '1 day' THEN
            RETURN NEXT activation._finding('problem', format('there are %s from %s, though they are kept for %s: nothing removes them', late.kind, to_char(late.oldest AT TIME ZONE 'UTC', 'YYYY-MM-DD'), now - late.kept),
                            'CALL activation.tick();');
        END IF;
    END LOOP;
    RETURN QUERY
    SELECT 'problem', format('%s people wait to be erased since %s', count(*), to_char(min(x.asked_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD')), 'CALL activation.tick();'
      FROM activation.erasure x HAVING min(x.asked_at) < now - interval '2 days';
END
$$;

-- ---- what was set -----------------------------------------------------------------------------------------------------------

-- Never proposes to go live: on a copy of production that would mail real users.
CREATE FUNCTION activation._doctor_mode() RETURNS SETOF activation.finding
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    host text := activation._host_name();
    disarmed text := activation._disarmed(host);
    s activation.setting := activation._setting();
    was activation.identity;
BEGIN
    IF disarmed IS NULL THEN
        RETURN NEXT activation._finding('ok', CASE s.mode WHEN 'capture' THEN 'capture: nothing leaves this server'
                                          WHEN 'redirect' THEN format('redirect: all mail goes to %s', s.redirect_to)
                                          ELSE 'live: mail goes to users' END, NULL);
    ELSIF pg_is_in_recovery() THEN
        SELECT * INTO was FROM activation.identity;
        RETURN NEXT activation._finding('warning', format('once promoted, this standby would send nothing: %s', disarmed),
                        format('SELECT activation.set_mode(%L%s, hosts => ARRAY[%L, %L]);  -- on the primary', s.mode, ', redirect_to => ' || quote_literal(s.redirect_to),
                               format('%s:%s', was.host, was.port), format('%s:%s', host, current_setting('port'))));
    ELSE
        RETURN NEXT activation._finding('problem', format('disarmed, nothing is sent: %s. The cure is for a copy; if it is this server that is to send, set its mode again', disarmed),
                        'SELECT activation.set_mode(''capture'');');
    END IF;
END
$$;

-- Whether what a reference names can be read on this server, and used, and what to do if not.
CREATE FUNCTION activation._doctor_secret(setting text, reference text, usual text) RETURNS SETOF activation.finding
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    place text := substr(reference, position(':' IN reference) + 1);
    value text := activation._secret(CASE WHEN reference LIKE 'secret:%' THEN place END);
    webhooks boolean := setting = 'webhook_secret';
    problem text := CASE WHEN webhooks THEN activation._webhook_secret_problem(reference, value) ELSE activation._key_problem(reference, value) END;
    elsewhere text := CASE WHEN webhooks THEN activation._webhook_secret_problem('env:' || usual, NULL) ELSE activation._key_problem('env:' || usual, NULL) END;
BEGIN
    IF problem IS NULL THEN
        RETURN;
    END IF;
    RETURN NEXT activation._finding('problem', problem,
        CASE WHEN elsewhere IS NULL THEN format('SELECT activation.configure(%s => %L);', setting, 'env:' || usual)
             WHEN reference LIKE 'secret:%' THEN format('SELECT activation.set_secret(%L, ''…'');  -- with logging off, as docs/operations.md shows', place)
             WHEN reference LIKE 'file:%' THEN format('-- put it into %s, where the server''s user can read it', place)
             ELSE format('-- set %s in the server''s environment (Debian: /etc/postgresql/%s/main/environment) and restart it', coalesce(place, usual),
                         current_setting('server_version_num')::integer / 10000) END);
END
$$;

CREATE FUNCTION activation._doctor_key() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT f.* FROM activation._setting() s, activation._doctor_secret('api_key', s.api_key, 'RESEND_API_KEY') f WHERE s.mode <> 'capture'
$$;

-- Whether somebody calls pull_webhooks() by other means than start().
CREATE FUNCTION activation._pulled_lately() RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT p.pulled_at > activation._now() - interval '1 day' FROM activation.pull p $$;

CREATE FUNCTION activation._doctor_webhooks() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT f.* FROM activation._setting() s, unnest(string_to_array(s.webhook_secret, ' ')) AS w(reference),
                    activation._doctor_secret('webhook_secret', w.reference, 'RESEND_WEBHOOK_SECRET') f
    UNION ALL
    SELECT CASE s.mode WHEN 'live' THEN 'warning' ELSE 'ok' END,
           'neither webhooks nor a pull are set up: bounces and complaints are not heard of, and such people are mailed again',
           CASE WHEN s.mode <> 'live' THEN NULL
                WHEN NOT activation._has_cron() THEN 'CALL activation.pull_webhooks();  -- every minute, by what calls tick(); or configure(webhook_secret => …), see docs/consent.md'
                ELSE activation._start_call(greatest(c.detectors, 1), greatest(c.deliverers, 1), true) || '  -- or configure(webhook_secret => …), see docs/consent.md' END
      FROM activation._setting() s LEFT JOIN activation.schedule c ON true
     WHERE s.webhook_secret IS NULL AND NOT coalesce(c.pull, false) AND activation._pulled_lately() IS NOT TRUE
$$;

-- Loops that mail goes out for: the versions that new people get.
CREATE FUNCTION activation._doctor_mails() RETURNS TABLE (loop text, transactional boolean, sender text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT l.name, v.transactional, coalesce(e.email ->> 'sender', (activation._setting()).sender)
      FROM activation."loop" l JOIN activation.loop_version v USING (loop_id, version) JOIN activation.step s USING (loop_id, version)
      CROSS JOIN LATERAL (VALUES (s.action), (s.otherwise)) AS e(email)
     WHERE l.state <> 'archived' AND e.email IS NOT NULL AND (activation._setting()).mode <> 'capture'
$$;

CREATE FUNCTION activation._doctor_sender() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT DISTINCT 'problem', 'there is no sender: messages wait', 'SELECT activation.configure(sender => ''…'');  -- yours, such as Acme <hello@acme.dev>'
      FROM activation._doctor_mails() m WHERE m.sender IS NULL
    UNION ALL
    SELECT DISTINCT 'problem', format('mail from %s: that domain cannot be verified as yours at Resend%s', d.domain,
                                      CASE d.domain WHEN 'resend.dev' THEN ', which delivers from it to your own address only' ELSE '' END),
           'SELECT activation.configure(sender => ''…'');  -- of a domain that you have verified at Resend'
      FROM activation._doctor_mails() m, lower(substring(m.sender FROM '@([^@>\s]+)>?$')) AS d(domain)
     WHERE d.domain ~ '^(resend\.dev|gmail\.com|googlemail\.com|outlook\.com|hotmail\.com|yahoo\.com|icloud\.com|localhost|(.*\.)?(example\.(com|net|org)|test|example|invalid|local))$'
$$;

-- Only the form of it: nothing is called.
CREATE FUNCTION activation._doctor_public_url() RETURNS SETOF activation.finding
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    s activation.setting := activation._setting();
    host text := lower(substring(s.public_url FROM '^https?://(?:[^/@]*@)?(\[[^]]*\]|[^/:]+)'));
    proposed text := coalesce('SELECT activation.configure(public_url => ''https://' || substring(s.sender FROM '@([^@>\s]+)>?$') || '/activation'');  -- where your app serves its pages',
                              'SELECT activation.configure(public_url => ''…'');  -- where your app serves its pages');
BEGIN
    IF s.mode <> 'live' THEN
        RETURN;
    ELSIF s.public_url IS NULL THEN
        RETURN QUERY SELECT 'problem', format('nobody could unsubscribe from mail of %s', string_agg(DISTINCT quote_ident(m.loop), ', ')), proposed
                       FROM activation._doctor_mails() m WHERE NOT m.transactional HAVING count(*) > 0;
    ELSIF host ~ '^(localhost|127\.|10\.|192\.168\.|172\.(1[6-9]|2\d|3[01])\.|169\.254\.|0\.|\[|[^.]+$|.*\.(localhost|local|internal|lan|test|example|invalid)$)' THEN
        RETURN NEXT activation._finding('problem', format('%s is no address that people outside can open: links in their mail lead nowhere', s.public_url), proposed);
    ELSIF s.public_url LIKE 'http:%' THEN
        RETURN NEXT activation._finding('warning', format('%s is not https: mail programs do not offer to unsubscribe with one click', s.public_url),
                        format('SELECT activation.configure(public_url => %L);', 'https' || substr(s.public_url, 5)));
    END IF;
END
$$;

-- A column that is renamed is followed only where it is the key.
CREATE FUNCTION activation._doctor_users() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT 'problem', format('%s has no column %I, which is to hold the %s', activation._table_name(u.users), c.attname,
                             CASE c.what WHEN 'email' THEN 'address: every mail to its people fails' ELSE 'time zone' END),
           format('SELECT activation.set_users(%L, %s => %L);', activation._table_name(u.users), c.what,
                  coalesce((SELECT a.attname FROM pg_attribute a WHERE a.attrelid = u.users AND a.attnum > 0 AND NOT a.attisdropped
                              AND a.attname ~* CASE c.what WHEN 'email' THEN 'mail' ELSE 'time_?zone|^tz$' END ORDER BY a.attnum LIMIT 1), '…'))
      FROM activation.users_table u
      JOIN pg_class t ON t.oid = u.users
      CROSS JOIN LATERAL (VALUES ('email', u.email_column), ('timezone', u.timezone_column)) AS c(what, attname)
     WHERE c.attname IS NOT NULL AND activation._key_type(u.users, c.attname) IS NULL
       AND EXISTS (SELECT FROM activation.loop_version v JOIN activation."loop" l USING (loop_id, version) WHERE v.users = u.users AND l.state <> 'archived')
$$;

-- ---- what runs --------------------------------------------------------------------------------------------------------------

CREATE FUNCTION activation._doctor_pause() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE p.paused_until WHEN 'infinity' THEN 'problem' ELSE 'warning' END,
           format('Resend refuses all mail: %s. Messages wait%s; mend the cause first', p.pause_reason,
                  CASE WHEN p.paused_until < 'infinity' THEN to_char(p.paused_until AT TIME ZONE 'UTC', '" until "YYYY-MM-DD HH24:MI "UTC"') ELSE '' END),
           'SELECT activation.resume();'
      FROM activation.provider p WHERE p.paused_until > activation._now()
$$;

-- Whether a worker, or somebody's tick(), has run within the last half hour.
CREATE FUNCTION activation._doctor_runs() RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (SELECT FROM activation.schedule s WHERE s.watching AND s.watched_until > activation._now())
$$;

-- Whether there is something that is to run.
CREATE FUNCTION activation._doctor_needs() RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT NOT pg_is_in_recovery() AND EXISTS (SELECT FROM activation."loop" l WHERE l.state <> 'archived')
$$;

CREATE FUNCTION activation._doctor_pg_cron() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT 'problem', format('%s: nothing runs by itself', c.problem), c.cure
      FROM activation._cron_problem() c
     WHERE c.problem IS NOT NULL AND activation._doctor_needs()
       -- Somebody calls tick(), or jobs run from pg_cron's own database.
       AND (NOT activation._doctor_runs() OR EXISTS (SELECT FROM activation.schedule s WHERE s.detectors > 0))
$$;

CREATE FUNCTION activation._doctor_jobs() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT 'problem', format('pg_cron''s job for %s %s %s', j.kind, j.slot, j.problem), j.cure
      FROM activation._jobs() j WHERE j.problem IS NOT NULL AND NOT pg_is_in_recovery()
$$;

-- A worker beats every few seconds; a job that start() has just made may wait a minute for its first run.
CREATE FUNCTION activation._doctor_workers() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT 'problem', 'nobody enrolls or mails people: the engine is not started',
           CASE WHEN activation._has_cron() THEN 'SELECT activation.start();' ELSE 'CALL activation.tick();  -- every minute, from cron or systemd' END
     WHERE activation._doctor_needs() AND NOT activation._doctor_runs() AND NOT EXISTS (SELECT FROM activation.schedule s WHERE s.detectors > 0)
    UNION ALL
    SELECT 'problem',
           concat_ws('; ', format('%s %s has given no sign of life %s', k.kind, g.slot,
                                  coalesce('since ' || to_char(w.beat_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"'), 'yet')),
                     CASE WHEN a.pid IS NOT NULL THEN format('its process %s hangs', a.pid) END, 'pg_cron says: ' || j.failure),
           CASE WHEN a.pid IS NOT NULL THEN format('SELECT pg_terminate_backend(%s, 5000);', a.pid)
                ELSE activation._start_call(s.detectors, s.deliverers, s.pull) END
      FROM activation.schedule s
      CROSS JOIN LATERAL (VALUES ('detector', s.detectors), ('deliverer', s.deliverers)) AS k(kind, slots)
      CROSS JOIN LATERAL generate_series(1, k.slots) AS g(slot)
      LEFT JOIN activation.worker w ON w.kind = k.kind AND w.slot = g.slot
      LEFT JOIN pg_stat_activity a ON a.pid = w.pid AND a.backend_start = w.backend_start
      LEFT JOIN activation._jobs() j ON j.kind = k.kind AND j.slot = g.slot
     WHERE activation._doctor_needs() AND coalesce(w.beat_at < activation._now() - interval '2 minutes', true)
       -- start() has the tables watched for half an hour from then on.
       AND NOT (a.pid IS NULL AND coalesce(s.watching AND s.watched_until > activation._now() + interval '28 minutes', false))
$$;

CREATE FUNCTION activation._doctor_lag() RETURNS SETOF activation.finding
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    now timestamptz := activation._now();
    late record;
BEGIN
    FOR late IN
        SELECT 'people to enroll' AS what, min(g.at) AS since, interval '5 minutes' AS allowed FROM activation.signal g
        UNION ALL
        SELECT 'people whose step is due', min(e.due), '5 minutes'
          FROM activation._detect_loops(now) l(loop_id)
          CROSS JOIN LATERAL (SELECT coalesce(x.starts_at, x.deadline) AS due FROM activation.enrollment x
                               WHERE x.loop_id = l.loop_id AND x.state = 'waiting' AND x.retry_at IS NULL AND coalesce(x.starts_at, x.deadline) < now
                               ORDER BY coalesce(x.starts_at, x.deadline) LIMIT 1) e
        UNION ALL
        SELECT 'messages', min(m.next_attempt_at), '10 minutes'
          FROM activation."loop" l
          CROSS JOIN LATERAL (SELECT x.next_attempt_at FROM activation.message x
                               WHERE x.loop_id = l.loop_id AND x.request_id IS NULL AND x.finished_at IS NULL ORDER BY x.next_attempt_at LIMIT 1) m
         WHERE l.state = 'active' AND NOT EXISTS (SELECT FROM activation.provider p WHERE p.paused_until > now)
    LOOP
        CONTINUE WHEN pg_is_in_recovery() OR late.since IS NULL OR late.since > now - late.allowed;
        RETURN NEXT activation._finding('warning', format('%s wait since %s; if workers run and this stays, start more: activation.start(detectors => 2, deliverers => 2)', late.what,
                                          to_char(late.since AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"')), 'CALL activation.tick();');
    END LOOP;
END
$$;

-- An expired lease is taken over by any deliverer; one that is not is stuck. What was made in another mode is not repeated
-- in this one, until it is unknown.
CREATE FUNCTION activation._doctor_leases() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT 'problem', format('%s requests hang since %s%s', count(*), to_char(min(r.lease_until) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"'),
                             ', held by process ' || a.pid),
           concat_ws(E'\n', 'SELECT pg_terminate_backend(' || a.pid || ', 5000);', 'CALL activation.tick();')
      FROM activation.request r LEFT JOIN pg_stat_activity a ON a.pid = r.lease_pid AND a.backend_start = r.lease_start AND a.pid <> pg_backend_pid()
     WHERE r.state = 'open' AND r.mode = (activation._setting()).mode AND r.lease_token IS NOT NULL AND r.lease_until < activation._now() - interval '5 minutes' AND NOT pg_is_in_recovery()
     GROUP BY a.pid
$$;

CREATE FUNCTION activation._doctor_unknown() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT 'problem', format('nobody knows whether message %s to %s was sent: look for it in Resend''s dashboard', m.message_id, m.recipient),
           format('SELECT activation.resolve(%L, ''sent'');  -- or ''resend'', if it is not there', m.message_id)
      FROM activation.message m WHERE m.state = 'unknown' ORDER BY m.created_at LIMIT 10
$$;

-- ---- loops ------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION activation._doctor_loops() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE l.state WHEN 'failing' THEN 'problem' WHEN 'stopped' THEN 'problem' ELSE 'warning' END,
           concat_ws(': ', format('loop %I %s', l.name, CASE l.state WHEN 'paused' THEN 'is paused: nobody is evaluated or mailed'
                                                                     WHEN 'stopped' THEN 'was stopped by the brake'
                                                                     WHEN 'failing' THEN 'is failing'
                                                                     ELSE 'raises and is tried again' END),
                     coalesce(regexp_replace(l.reason, '^the brake: ', ''), (SELECT k.last_error FROM activation.strike k WHERE k.loop_id = l.loop_id ORDER BY k.struck_at DESC LIMIT 1))),
           format('SELECT activation.resume_loop(%L);', l.name)
      FROM activation."loop" l
     WHERE l.state IN ('failing', 'stopped', 'paused') OR l.state = 'active' AND EXISTS (SELECT FROM activation.strike k WHERE k.loop_id = l.loop_id)
     ORDER BY l.name
$$;

-- Triggers that loops ask for on the app's tables and their partitions; and the one that follows renames.
CREATE FUNCTION activation._doctor_triggers() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH captured AS MATERIALIZED (
        SELECT s.table_name, e.event
          FROM (SELECT DISTINCT x.table_name::oid::regclass AS table_name FROM activation.source x JOIN pg_class c ON c.oid = x.table_name
                 WHERE c.relnamespace <> 'activation'::regnamespace) s
          CROSS JOIN unnest(ARRAY['insert', 'update', 'delete', 'moved', 'changed']) AS e(event)
         WHERE activation._capture_body(s.table_name, e.event, NULL) IS NOT NULL
    ), wanted AS (
        SELECT c.table_name, r.oid::regclass AS relation, 'activation_' || c.event AS name
          FROM captured c
          CROSS JOIN LATERAL (SELECT c.table_name::oid AS oid UNION SELECT p.relid::oid FROM pg_partition_tree(c.table_name) p) r
          JOIN pg_class t ON t.oid = r.oid AND t.relkind IN ('r', 'p')
    )
    SELECT 'problem', format('trigger %s on %s is %s: what happens there is not seen', w.name, activation._table_name(w.relation),
                             CASE WHEN t.oid IS NULL THEN 'missing' ELSE 'disabled' END),
           CASE WHEN t.oid IS NULL THEN format('SELECT activation._generate_capture(%L);', activation._table_name(w.table_name))
                ELSE format('ALTER TABLE %s ENABLE TRIGGER %I;', activation._table_name(w.relation), w.name) END
      FROM wanted w
      LEFT JOIN (pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid AND p.pronamespace = 'activation_compiled'::regnamespace)
        ON t.tgrelid = w.relation AND t.tgname = w.name
     WHERE t.oid IS NULL OR t.tgenabled NOT IN ('O', 'A')
    UNION ALL
    SELECT 'problem', 'an event trigger that follows renamed and dropped columns is off: after a migration INSERTs of the app could fail',
           format('ALTER EVENT TRIGGER %I ENABLE;', e.evtname)
      FROM pg_event_trigger e WHERE e.evtname IN ('activation_follow_table', 'activation_follow_drop') AND e.evtenabled NOT IN ('O', 'A')
$$;

-- What a loop's owner may not read of what its condition reads.
CREATE FUNCTION activation._doctor_grants(condition_function name, owner oid) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT string_agg(format('GRANT SELECT ON %s TO %s;', activation._table_name(t), activation._role_name(owner)), E'\n')
      FROM activation._reads(condition_function) r, unnest(r.tables) AS t
     WHERE NOT has_any_column_privilege(owner, t, 'SELECT')
$$;

-- Compiled conditions are there, run with their owner's rights, and run at all: asked about nobody.
CREATE FUNCTION activation._doctor_conditions() RETURNS SETOF activation.finding
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    box record;
BEGIN
    RETURN QUERY
    SELECT 'problem', format(CASE WHEN EXISTS (SELECT FROM activation._boxes(v.loop_id, v.version) b WHERE b.there AND NOT b.intact)
                                  THEN 'a compiled function of loop %I, version %s, no longer runs with the rights of %s'
                                  ELSE 'compiled functions of loop %I, version %s, are gone: nobody is evaluated' END,
                             l.name, v.version, activation._role_name(v.owner)), 'SELECT activation.bind();'
      FROM activation."loop" l JOIN activation.loop_version v USING (loop_id)
     WHERE l.state <> 'archived' AND NOT activation._compiled(v.loop_id, v.version);
    FOR box IN
        SELECT l.name, v.owner, s.condition_function, s.evaluate_function, b.intact
          FROM activation."loop" l JOIN activation.loop_version v USING (loop_id, version) JOIN activation.step s USING (loop_id, version)
          JOIN activation._boxes(l.loop_id, l.version) b ON b.function_name = s.evaluate_function AND b.there
         WHERE l.state <> 'archived' ORDER BY l.name, s.step
    LOOP
        CONTINUE WHEN NOT box.intact;
        BEGIN
            PERFORM activation._safe_eval(box.evaluate_function, box.owner, '{}');
        EXCEPTION
            WHEN lock_not_available THEN
                RETURN NEXT activation._finding('warning', format('the condition of loop %I waits for a lock, as of a migration', box.name),
                                'SELECT * FROM pg_locks WHERE mode = ''AccessExclusiveLock'' AND granted;');
            WHEN others OR assert_failure THEN
                RETURN NEXT activation._finding('problem', format('the condition of loop %I does not run: %s', box.name, SQLERRM),
                                coalesce(activation._doctor_grants(box.condition_function, box.owner), format('-- define loop %I again', box.name)));
        END;
    END LOOP;
END
$$;

-- Whether an index finds the rows of a user: the column leads it, or comes after columns that the condition uses, too.
CREATE FUNCTION activation._doctor_index(relation oid, key_column name, used name[]) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (
        SELECT FROM pg_index i
          CROSS JOIN LATERAL (SELECT array_agg(a.attname ORDER BY k.ordinal) AS columns
                                FROM unnest(i.indkey::smallint[]) WITH ORDINALITY AS k(attnum, ordinal)
                                LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum AND k.attnum > 0
                               WHERE k.ordinal <= i.indnkeyatts) x
         WHERE i.indrelid = relation AND i.indisvalid
           AND coalesce(x.columns[1:array_position(x.columns, key_column) - 1] <@ used, false))
$$;

-- The tables that a condition is woken by are those whose rows the planner looks up by the user's key; without an index each
-- round reads them whole.
CREATE FUNCTION activation._doctor_indexes() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH lookup AS (
        SELECT s.table_name::oid AS root, a.attname, l.name AS loop,
               ARRAY(SELECT u.attname FROM pg_depend d JOIN pg_attribute u ON u.attrelid = d.refobjid AND u.attnum = d.refobjsubid
                      WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = s.table_name
                        AND d.objid IN (SELECT p.oid FROM pg_proc p WHERE p.pronamespace = 'activation_compiled'::regnamespace AND p.proname = t.condition_function)) AS used
          FROM activation.watch w JOIN activation."loop" l USING (loop_id, version) JOIN activation.step t USING (loop_id, version, step)
          JOIN activation.source s USING (source_id)
          JOIN pg_attribute a ON a.attrelid = s.table_name AND a.attname = s.key_column AND NOT a.attisdropped
         WHERE l.state <> 'archived'
        UNION ALL
        SELECT u.users::oid, u.key_column, l.name, '{}'
          FROM activation.users_table u JOIN activation.loop_version v USING (users) JOIN activation."loop" l USING (loop_id, version) WHERE l.state <> 'archived'
    ), slow AS (
        SELECT c.oid::regclass AS root, k.attname, c.relkind, string_agg(DISTINCT quote_ident(k.loop), ', ') AS loops
          FROM lookup k JOIN pg_class c ON c.oid = k.root
         WHERE EXISTS (SELECT FROM (SELECT k.root AS oid UNION SELECT p.relid FROM pg_partition_tree(k.root) p) r JOIN pg_class t ON t.oid = r.oid AND t.relkind = 'r'
                        WHERE NOT activation._doctor_index(t.oid, k.attname, k.used))
         GROUP BY c.oid, k.attname, c.relkind
    )
    SELECT 'warning', format('no index finds a user''s rows of %s by %I: each round of %s reads the whole table', activation._table_name(x.root), x.attname, x.loops),
           format('CREATE INDEX %sON %s (%I);', CASE x.relkind WHEN 'r' THEN 'CONCURRENTLY ' ELSE '' END, activation._table_name(x.root), x.attname)
      FROM slow x
$$;

-- ---- doctor -----------------------------------------------------------------------------------------------------------------

-- One row for each check; one that raises is a row like any other.
CREATE FUNCTION activation._doctor() RETURNS TABLE (name text, state text, detail text, cure text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    FOREACH name IN ARRAY ARRAY['versions', 'mode', 'key', 'sender', 'public_url', 'webhooks', 'pause', 'pg_cron', 'jobs', 'workers', 'lag', 'leases',
                                   'unknown', 'loops', 'users', 'triggers', 'conditions', 'indexes', 'autovacuum', 'retention'] LOOP
        BEGIN
            EXECUTE format(
                'SELECT CASE WHEN bool_or(f.state = ''problem'') THEN ''problem'' WHEN bool_or(f.state = ''warning'') THEN ''warning'' ELSE ''ok'' END,'
                '       coalesce(string_agg(f.detail, ''; '') FILTER (WHERE f.state <> ''ok''), string_agg(f.detail, ''; ''), ''nothing found''),'
                '       string_agg(DISTINCT f.cure, E''\n'')'
                '  FROM activation.%I() f', '_doctor_' || name) INTO state, detail, cure;
        EXCEPTION WHEN others OR assert_failure THEN
            state := 'problem';
            GET STACKED DIAGNOSTICS detail = MESSAGE_TEXT, cure = PG_EXCEPTION_HINT;
            detail := 'this could not be looked at: ' || detail;
            cure := nullif(cure, '');
        END;
        RETURN NEXT;
    END LOOP;
END
$$;
-- lock_timeout: a migration that holds a table must not hold whoever looks for what is wrong.
CREATE FUNCTION activation.doctor() RETURNS TABLE ("check" text, state text, detail text, cure text)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms'
AS $$ SELECT d.name, d.state, d.detail, d.cure FROM activation._doctor() d $$;
COMMENT ON FUNCTION activation.doctor() IS
'Looks for what is wrong with this installation, a row for each check: state (ok, warning, problem), what it means, and the commands that cure it, one a line. It only reads, also on a standby; a check that fails is a problem like any other.';
