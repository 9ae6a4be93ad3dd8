-- doctor(): what is wrong with this installation, what that means, and the command that cures it.
-- Each check is a function that returns what it found; it only reads. No check plans or runs an
-- author's text: planning is execution. Conditions are called through the black box alone, with
-- nobody to ask about. Here: the server.

CREATE TYPE activation.finding AS (state text, detail text, cure text);
COMMENT ON TYPE activation.finding IS
'What a check of doctor() found: ok, warning or problem; what it means; the command that cures it.';

-- One finding, for a check to return.
CREATE FUNCTION activation._finding(state text, detail text, cure text DEFAULT NULL)
RETURNS activation.finding
LANGUAGE sql IMMUTABLE
RETURN (state, detail, cure)::activation.finding;

-- Whether the SQL, the Python package and the files on the server are of one version.
CREATE FUNCTION activation._doctor_versions() RETURNS SETOF activation.finding
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    versions record;
BEGIN
    SELECT e.extversion AS sql, x.default_version AS installed INTO versions
      FROM pg_extension e LEFT JOIN pg_available_extensions x ON x.name = e.extname
     WHERE e.extname = 'activation';
    IF versions.installed <> versions.sql THEN
        RETURN NEXT activation._finding(
            'warning',
            format('version %s is installed on the server, this database has %s',
                   versions.installed, versions.sql),
            'ALTER EXTENSION activation UPDATE;');
    END IF;
    PERFORM activation._python();
    RETURN NEXT activation._finding('ok',
                                    format('SQL and Python are version %s', versions.sql));
EXCEPTION WHEN others THEN
    -- What was returned before stays.
    RETURN NEXT activation._finding(
        'problem', replace(SQLERRM, 'plpy.Error: ', ''),
        CASE WHEN versions.installed = versions.sql THEN 'make install' END);
END
$$;

-- Whether autovacuum keeps up with our tables, and which long transaction keeps it from doing so.
CREATE FUNCTION activation._doctor_autovacuum() RETURNS SETOF activation.finding
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT 'problem', format('%s is off: tables of ours grow without end', s.name),
           format(E'ALTER SYSTEM SET %s = on;\nSELECT pg_reload_conf();', s.name)
      FROM pg_settings s
     WHERE s.name IN ('autovacuum', 'track_counts') AND s.setting = 'off';
    RETURN QUERY
    SELECT 'problem',
           format('autovacuum is switched off for %s, which grows without end', c.oid::regclass),
           format('ALTER TABLE %s RESET (autovacuum_enabled);', c.oid::regclass)
      FROM pg_class c, pg_options_to_table(c.reloptions) o
     WHERE c.relnamespace = 'activation'::regnamespace
       AND o.option_name = 'autovacuum_enabled' AND NOT o.option_value::boolean;
    RETURN QUERY
    SELECT 'warning',
           format('%s has %s dead rows and %s live ones, and was last vacuumed %s',
                  t.relid::regclass, t.n_dead_tup, t.n_live_tup,
                  coalesce('at ' || to_char(greatest(t.last_vacuum, t.last_autovacuum)
                                            AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"'),
                           'never')),
           format('VACUUM (ANALYZE) %s;', t.relid::regclass)
      FROM pg_stat_user_tables t
     WHERE t.schemaname = 'activation'
       AND t.n_dead_tup > 50000 AND t.n_dead_tup > t.n_live_tup
       AND coalesce(greatest(t.last_vacuum, t.last_autovacuum)
                    < activation._now() - interval '1 hour', true);
    RETURN QUERY
    SELECT 'warning',
           format('process %s (%s) has been in a transaction since %s; nothing that was deleted '
                  'since can be removed, and queues get slow',
                  a.pid, coalesce(nullif(a.application_name, ''), a.usename, 'unknown'),
                  to_char(a.xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"')),
           format('SELECT pg_terminate_backend(%s, 5000);', a.pid)
      FROM pg_stat_activity a
     WHERE a.backend_type = 'client backend' AND a.pid <> pg_backend_pid()
       AND a.xact_start < activation._now() - interval '1 hour'
       AND (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL)
       AND a.datname = current_database();
END
$$;

-- Whether what is older than its retention is removed, and people who asked for it are erased. Both
-- are done little by little, so that they may be a day behind.
CREATE FUNCTION activation._doctor_retention() RETURNS SETOF activation.finding
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    now timestamptz := activation._now();
    late record;
BEGIN
    FOR late IN
        SELECT k.kind, k.oldest, activation._retention_cutoff(k.kind, now) AS kept
          FROM (VALUES
                ('messages', (SELECT min(r.created_at) FROM activation.request r
                               WHERE r.state = 'done')),
                ('messages', (SELECT min(m.finished_at) FROM activation.message m
                               WHERE m.finished_at IS NOT NULL AND m.state <> 'unknown')),
                ('events', (SELECT min(e.at) FROM activation.event e)),
                ('webhooks', (SELECT min(w.received_at) FROM activation.webhook_event w)),
                ('failures', (SELECT min(c.at) FROM activation.capture_failure c)),
                ('failures', (SELECT min(k.at) FROM activation.remark k))) AS k(kind, oldest)
    LOOP
        IF late.oldest < late.kept - interval '1 day' THEN
            RETURN NEXT activation._finding(
                'problem',
                format('there are %s from %s, though they are kept for %s: nothing removes them',
                       late.kind, to_char(late.oldest AT TIME ZONE 'UTC', 'YYYY-MM-DD'),
                       now - late.kept),
                'CALL activation.tick();');
        END IF;
    END LOOP;
    RETURN QUERY
    SELECT 'problem',
           format('%s people wait to be erased since %s', count(*),
                  to_char(min(x.asked_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD')),
           'CALL activation.tick();'
      FROM activation.erasure x
    HAVING min(x.asked_at) < now - interval '2 days';
END
$$;
