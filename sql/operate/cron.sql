-- pg_cron: whether it can run jobs here, and what the jobs run. Only this part and schedule.sql say
-- `cron.`: the extension works without it, through tick().

-- Where the jobs connect to. pg_cron connects like any client; Debian's pg_hba.conf asks for a
-- password on localhost, its default, and none on the socket.
CREATE FUNCTION activation._cron_node() RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN c.host = 'localhost' AND s.directory <> ''
                 AND NOT coalesce(current_setting('cron.use_background_workers', true),
                                  'off')::boolean
                THEN s.directory ELSE c.host END
      FROM coalesce(current_setting('cron.host', true), 'localhost') AS c(host),
           btrim(split_part(current_setting('unix_socket_directories'), ',', 1), ' "')
           AS s(directory)
$$;

-- Raises, with the way out, where the jobs could not run. pg_cron lives in one database of a
-- server.
CREATE FUNCTION activation._require_cron() RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    cron_database text := current_setting('cron.database_name', true);
BEGIN
    IF to_regclass('cron.job') IS NOT NULL
       AND to_regprocedure('cron.schedule(text,text,text)') IS NOT NULL THEN
        IF coalesce(position('pg_cron' IN current_setting('shared_preload_libraries')), 0) = 0 THEN
            RAISE EXCEPTION 'pg_cron is not running on this server'
                USING ERRCODE = '55000',
                      DETAIL = 'Its extension is here, but it is not in shared_preload_libraries.',
                      HINT = 'Add pg_cron to shared_preload_libraries in postgresql.conf and '
                             'restart the server; or CALL activation.tick() by other means.';
        END IF;
        RETURN;
    END IF;
    IF cron_database IS NOT NULL AND cron_database <> current_database() THEN
        RAISE EXCEPTION 'pg_cron lives in database %, not here in %',
                        quote_ident(cron_database), quote_ident(current_database())
            USING ERRCODE = '55000',
                  -- Names of their own: cron.schedule_in_database() under the name of a job of
                  -- another database changes that job and leaves it there. Through the socket for
                  -- the reason that start() has.
                  HINT = format(
                      'In %1$s, run SELECT cron.schedule_in_database(%3$L, ''* * * * *'', '
                      '''CALL activation.detect(slot => 1)'', %2$L); '
                      'SELECT cron.schedule_in_database(%4$L, ''* * * * *'', '
                      '''CALL activation.deliver(slot => 1)'', %2$L); '
                      'UPDATE cron.job SET nodename = %5$L WHERE jobname IN (%3$L, %4$L);',
                      quote_ident(cron_database), current_database(),
                      'activation-detect-1 in ' || current_database(),
                      'activation-deliver-1 in ' || current_database(),
                      activation._cron_node());
    END IF;
    RAISE EXCEPTION 'pg_cron is not installed in this database'
        USING ERRCODE = '55000',
              HINT = CASE
                  WHEN cron_database IS NULL
                  THEN format('Install pg_cron (Debian: postgresql-15-cron), set '
                              'shared_preload_libraries = ''pg_cron'' and '
                              'cron.database_name = %L in postgresql.conf, restart the server, '
                              'then CREATE EXTENSION pg_cron; or CALL activation.tick() by other '
                              'means.', current_database())
                  ELSE 'CREATE EXTENSION pg_cron; then try again.' END;
END
$$;

-- What the job of a worker runs.
CREATE FUNCTION activation._job_command(verb text, slot integer) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE verb WHEN 'pull' THEN 'CALL activation.pull_webhooks()'
                     ELSE format('CALL activation.%s(slot => %s)', verb, slot) END
$$;

-- The call that starts so many workers, to be shown to people.
CREATE FUNCTION activation._start_call(detectors integer, deliverers integer, pull boolean)
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('SELECT activation.start(detectors => %s, deliverers => %s%s);',
                  detectors, deliverers, CASE WHEN pull THEN ', pull => true' END)
$$;

-- Whether pg_cron's extension is in this database.
CREATE FUNCTION activation._has_cron() RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT to_regclass('cron.job') IS NOT NULL $$;
