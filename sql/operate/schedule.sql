-- The jobs of pg_cron that run the workers: start(), stop(), and how the jobs are.

-- Long because half of it is errors that say what to change in pg_cron's settings, with what it
-- found there.
CREATE FUNCTION activation.start(
    detectors integer DEFAULT 1, deliverers integer DEFAULT 1, pull boolean DEFAULT false
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    in_background boolean :=
        coalesce(current_setting('cron.use_background_workers', true), 'off')::boolean;
    old_cron boolean;
    max_jobs integer;
    other_jobs bigint;
    wanted record;
    job bigint;
BEGIN
    IF detectors IS NULL OR detectors NOT BETWEEN 1 AND 8
       OR deliverers IS NULL OR deliverers NOT BETWEEN 1 AND 8 OR pull IS NULL THEN
        RAISE EXCEPTION 'start(detectors => %, deliverers => %, pull => %)',
                        detectors, deliverers, pull
            USING ERRCODE = '22023', HINT = 'Ask for 1 to 8 of each, and true or false.';
    END IF;
    PERFORM activation._require_cron();
    SELECT (regexp_match(e.extversion, '^(\d+)\.(\d+)'))::integer[] < '{1,5}' INTO old_cron
      FROM pg_extension e
     WHERE e.extname = 'pg_cron';
    IF in_background AND old_cron THEN
        -- There a long job holds up every other job of the server.
        RAISE EXCEPTION
            'pg_cron before 1.5 with cron.use_background_workers = on cannot run activation''s jobs'
            USING ERRCODE = '55000',
                  DETAIL = 'Its launcher waits for a running job, and every other job of the '
                           'server with it.',
                  HINT = 'Set cron.use_background_workers = off (the default) in postgresql.conf '
                         'and restart the server; start() makes the jobs connect through the '
                         'socket.';
    END IF;
    max_jobs := coalesce(current_setting('cron.max_running_jobs', true)::integer, 32);
    SELECT count(*) INTO other_jobs
      FROM cron.job j
     WHERE j.active AND j.jobname !~ '^activation-(detect|deliver|pull)-[0-9]+$';
    IF detectors + deliverers + pull::integer > max_jobs - 1 THEN
        RAISE EXCEPTION '% workers are more than pg_cron would run',
                        detectors + deliverers + pull::integer
            USING ERRCODE = '53400',
                  DETAIL = format('cron.max_running_jobs is %s, one of which is left to others '
                                  '(%s other jobs).', max_jobs, other_jobs),
                  HINT = 'Ask for fewer, or raise cron.max_running_jobs in postgresql.conf and '
                         'restart the server.';
    END IF;

    PERFORM cron.unschedule(j.jobid)
       FROM cron.job j
      WHERE j.jobname ~ '^activation-(detect|deliver|pull)-[0-9]+$'
        AND j.database = current_database()
        AND split_part(j.jobname, '-', 3)::integer
            > CASE split_part(j.jobname, '-', 2) WHEN 'detect' THEN detectors
                                                 WHEN 'deliver' THEN deliverers
                                                 ELSE pull::integer END;
    FOR wanted IN
        SELECT k.verb, g.slot, activation._job_command(k.verb, g.slot) AS command
          FROM (VALUES ('detect', detectors), ('deliver', deliverers), ('pull', pull::integer))
               AS k(verb, slots),
               generate_series(1, k.slots) AS g(slot)
    LOOP
        SELECT cron.schedule(format('activation-%s-%s', wanted.verb, wanted.slot),
                             '* * * * *', wanted.command) INTO job;
        -- A job keeps the address of the server that made it: after a failover this one may have
        -- another.
        UPDATE cron.job j
           SET nodename = activation._cron_node(), nodeport = current_setting('port')::integer
         WHERE j.jobid = job
           AND (j.nodename, j.nodeport)
               IS DISTINCT FROM (activation._cron_node(), current_setting('port')::integer);
    END LOOP;

    -- A worker in a slot that is no longer wanted ends with its run, since its job is gone.
    INSERT INTO activation.schedule AS s (watching, detectors, deliverers, pull, stopped_at)
    VALUES (false, start.detectors, start.deliverers, start.pull, NULL)
    ON CONFLICT ON CONSTRAINT schedule_pkey DO UPDATE
       SET detectors = excluded.detectors, deliverers = excluded.deliverers,
           pull = excluded.pull, stopped_at = NULL;
    DELETE FROM activation.worker w
     WHERE w.slot > CASE w.kind WHEN 'detector' THEN start.detectors
                                WHEN 'deliverer' THEN start.deliverers
                                ELSE start.pull::integer END
       AND NOT activation._is_alive(w.pid, w.backend_start);
    IF activation._set_watching(true) THEN
        PERFORM activation._order_sweep(NULL, activation._now());
    END IF;
END
$$;
COMMENT ON FUNCTION activation.start(integer, integer, boolean) IS
'Starts the engine: makes pg_cron''s jobs activation-detect-n and activation-deliver-n, which run
within a minute and then all the time. Calling it again changes the numbers.
detectors: how many detectors, 1 to 8.
deliverers: how many deliverers, 1 to 8.
pull: whether a job activation-pull-1 calls pull_webhooks() every minute.
Raises 22023 for other numbers, 55000 where pg_cron is missing, lives in another database or
  cannot run the jobs, 53400 for more workers than pg_cron would run.';

CREATE FUNCTION activation.stop() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    cron_database text := current_setting('cron.database_name', true);
BEGIN
    IF to_regclass('cron.job') IS NOT NULL THEN
        PERFORM cron.unschedule(j.jobid)
           FROM cron.job j
          WHERE j.jobname ~ '^activation-(detect|deliver|pull)-[0-9]+$'
            AND j.database = current_database();
    END IF;
    IF cron_database <> current_database() THEN
        RAISE NOTICE 'pg_cron lives in database %; jobs that were made there for % go on',
                     quote_ident(cron_database), quote_ident(current_database())
            USING HINT = format('In %s, run SELECT cron.unschedule(jobid) FROM cron.job '
                                'WHERE database = %L AND command LIKE ''CALL activation.%%'';',
                                quote_ident(cron_database), current_database());
    END IF;
    INSERT INTO activation.schedule AS s (watching, detectors, deliverers, stopped_at)
    VALUES (false, 0, 0, clock_timestamp())
    ON CONFLICT ON CONSTRAINT schedule_pkey DO UPDATE
       SET detectors = 0, deliverers = 0, pull = false, stopped_at = excluded.stopped_at;
    PERFORM activation._set_watching(false);
END
$$;
COMMENT ON FUNCTION activation.stop() IS
'Stops the engine: removes its pg_cron jobs. Running workers end within seconds. Signups are still
recorded, and enrolled when it is started again.';

-- Removes what is over a week old from pg_cron's own log, in which each job leaves a row a minute.
CREATE FUNCTION activation._prune_job_runs() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF to_regclass('cron.job_run_details') IS NOT NULL THEN
        DELETE FROM cron.job_run_details d
         WHERE d.database = current_database()
           AND d.command ~ '^CALL activation\.(detect|deliver|pull_webhooks)\('
           AND d.start_time < now() - interval '7 days';
    END IF;
END
$$;

-- Why no job can run, and what changes that, one command a line; nothing where pg_cron runs.
CREATE FUNCTION activation._cron_problem(OUT problem text, OUT cure text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    loaded text[] := string_to_array(
        replace(current_setting('shared_preload_libraries'), ' ', ''), ',');
BEGIN
    PERFORM activation._require_cron();
EXCEPTION WHEN object_not_in_prerequisite_state THEN
    GET STACKED DIAGNOSTICS problem = MESSAGE_TEXT, cure = PG_EXCEPTION_HINT;
    cure := CASE
        WHEN activation._has_cron()
        THEN format('ALTER SYSTEM SET shared_preload_libraries = %s;  -- and restart the server',
                    (SELECT string_agg(quote_literal(x), ', ')
                       FROM unnest(loaded || 'pg_cron'::text) AS x WHERE x <> ''))
        WHEN current_setting('cron.database_name', true) = current_database()
        THEN E'CREATE EXTENSION pg_cron;\nSELECT activation.start();'
        ELSE '-- ' || cure END;
END
$$;

-- The jobs that start() asked for: what is wrong with each, if anything, and what its last run said
-- if that failed. No rows where pg_cron lives in another database.
CREATE FUNCTION activation._jobs()
RETURNS TABLE (kind text, slot integer, problem text, cure text, failure text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF to_regclass('cron.job') IS NULL OR to_regclass('cron.job_run_details') IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY
    SELECT k.kind, g.slot,
           CASE WHEN j.jobid IS NULL THEN 'is missing'
                WHEN NOT j.active THEN 'is not active'
                WHEN j.schedule <> '* * * * *'
                     OR j.command <> activation._job_command(k.verb, g.slot)
                THEN 'is not as start() made it'
                WHEN (j.nodename, j.nodeport)
                     IS DISTINCT FROM (activation._cron_node(), current_setting('port')::integer)
                THEN format('connects to %s, port %s', j.nodename, j.nodeport) END,
           CASE WHEN NOT j.active
                THEN format('UPDATE cron.job SET active = true WHERE jobid = %s;', j.jobid)
                ELSE activation._start_call(s.detectors, s.deliverers, s.pull) END,
           -- By the key, as the log of all jobs may be long.
           (SELECT CASE d.status WHEN 'failed' THEN d.return_message END
              FROM (SELECT x.* FROM cron.job_run_details x ORDER BY x.runid DESC LIMIT 1000) d
             WHERE d.jobid = j.jobid
             ORDER BY d.runid DESC LIMIT 1)
      FROM activation.schedule s
      CROSS JOIN LATERAL (VALUES ('detector', 'detect', s.detectors),
                                 ('deliverer', 'deliver', s.deliverers),
                                 ('puller', 'pull', s.pull::integer)) AS k(kind, verb, slots)
      CROSS JOIN LATERAL generate_series(1, k.slots) AS g(slot)
      LEFT JOIN cron.job j ON j.jobname = format('activation-%s-%s', k.verb, g.slot)
                          AND j.database = current_database();
END
$$;
