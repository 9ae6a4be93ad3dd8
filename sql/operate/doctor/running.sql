-- Checks of doctor(): what should run.

-- Whether Resend refuses all mail, so that the engine has paused sending.
CREATE FUNCTION activation._doctor_pause() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE p.paused_until WHEN 'infinity' THEN 'problem' ELSE 'warning' END,
           format('Resend refuses all mail: %s. Messages wait%s; mend the cause first',
                  p.pause_reason,
                  CASE WHEN p.paused_until < 'infinity'
                       THEN to_char(p.paused_until AT TIME ZONE 'UTC',
                                    '" until "YYYY-MM-DD HH24:MI "UTC"')
                       ELSE '' END),
           'SELECT activation.resume();'
      FROM activation.provider p
     WHERE p.paused_until > activation._now()
$$;

-- Whether a worker, or somebody's tick(), has run within the last half hour.
CREATE FUNCTION activation._doctor_runs() RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (SELECT FROM activation.schedule s
                    WHERE s.watching AND s.watched_until > activation._now())
$$;

-- Whether there is something that is to run.
CREATE FUNCTION activation._doctor_needs() RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT NOT pg_is_in_recovery()
       AND EXISTS (SELECT FROM activation."loop" l WHERE l.state <> 'archived')
$$;

-- Whether pg_cron can run jobs here, where nothing else runs the workers.
CREATE FUNCTION activation._doctor_pg_cron() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT 'problem', format('%s: nothing runs by itself', c.problem), c.cure
      FROM activation._cron_problem() c
     WHERE c.problem IS NOT NULL AND activation._doctor_needs()
       -- Somebody calls tick(), or jobs run from pg_cron's own database.
       AND (NOT activation._doctor_runs()
            OR EXISTS (SELECT FROM activation.schedule s WHERE s.detectors > 0))
$$;

-- Whether the jobs that start() asked for are as it made them.
CREATE FUNCTION activation._doctor_jobs() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT 'problem', format('pg_cron''s job for %s %s %s', j.kind, j.slot, j.problem), j.cure
      FROM activation._jobs() j
     WHERE j.problem IS NOT NULL AND NOT pg_is_in_recovery()
$$;

-- Whether each worker gives signs of life. A worker beats every few seconds; a job that start() has
-- just made may wait a minute for its first run.
CREATE FUNCTION activation._doctor_workers() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT 'problem', 'nobody enrolls or mails people: the engine is not started',
           CASE WHEN activation._has_cron() THEN 'SELECT activation.start();'
                ELSE 'CALL activation.tick();  -- every minute, from cron or systemd' END
     WHERE activation._doctor_needs() AND NOT activation._doctor_runs()
       AND NOT EXISTS (SELECT FROM activation.schedule s WHERE s.detectors > 0)
    UNION ALL
    SELECT 'problem',
           concat_ws('; ',
               format('%s %s has given no sign of life %s', k.kind, g.slot,
                      coalesce('since ' || to_char(w.beat_at AT TIME ZONE 'UTC',
                                                   'YYYY-MM-DD HH24:MI "UTC"'), 'yet')),
               CASE WHEN a.pid IS NOT NULL THEN format('its process %s hangs', a.pid) END,
               'pg_cron says: ' || j.failure),
           CASE WHEN a.pid IS NOT NULL
                THEN format('SELECT pg_terminate_backend(%s, 5000);', a.pid)
                ELSE activation._start_call(s.detectors, s.deliverers, s.pull) END
      FROM activation.schedule s
      CROSS JOIN LATERAL (VALUES ('detector', s.detectors), ('deliverer', s.deliverers))
                         AS k(kind, slots)
      CROSS JOIN LATERAL generate_series(1, k.slots) AS g(slot)
      LEFT JOIN activation.worker w ON w.kind = k.kind AND w.slot = g.slot
      LEFT JOIN pg_stat_activity a ON a.pid = w.pid AND a.backend_start = w.backend_start
      LEFT JOIN activation._jobs() j ON j.kind = k.kind AND j.slot = g.slot
     WHERE activation._doctor_needs()
       AND coalesce(w.beat_at < activation._now() - interval '2 minutes', true)
       -- start() has the tables watched for half an hour from then on.
       AND NOT (a.pid IS NULL
                AND coalesce(s.watching AND s.watched_until
                                            > activation._now() + interval '28 minutes', false))
$$;

-- Whether people or messages have waited for longer than workers take.
CREATE FUNCTION activation._doctor_lag() RETURNS SETOF activation.finding
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    now timestamptz := activation._now();
    late record;
BEGIN
    FOR late IN
        SELECT 'people to enroll' AS what, min(g.at) AS since, interval '5 minutes' AS allowed
          FROM activation.signal g
        UNION ALL
        SELECT 'people whose step is due', min(e.due), '5 minutes'
          FROM activation._detect_loops(now) l(loop_id)
          CROSS JOIN LATERAL (
               SELECT coalesce(x.starts_at, x.deadline) AS due
                 FROM activation.enrollment x
                WHERE x.loop_id = l.loop_id AND x.state = 'waiting' AND x.retry_at IS NULL
                  AND coalesce(x.starts_at, x.deadline) < now
                ORDER BY coalesce(x.starts_at, x.deadline) LIMIT 1) e
        UNION ALL
        SELECT 'messages', min(m.next_attempt_at), '10 minutes'
          FROM activation."loop" l
          CROSS JOIN LATERAL (
               SELECT x.next_attempt_at
                 FROM activation.message x
                WHERE x.loop_id = l.loop_id AND x.request_id IS NULL AND x.finished_at IS NULL
                ORDER BY x.next_attempt_at LIMIT 1) m
         WHERE l.state = 'active'
           AND NOT EXISTS (SELECT FROM activation.provider p WHERE p.paused_until > now)
    LOOP
        CONTINUE WHEN pg_is_in_recovery() OR late.since IS NULL
                   OR late.since > now - late.allowed;
        RETURN NEXT activation._finding(
            'warning',
            format('%s wait since %s; if workers run and this stays, start more: '
                   'activation.start(detectors => 2, deliverers => 2)', late.what,
                   to_char(late.since AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"')),
            'CALL activation.tick();');
    END LOOP;
END
$$;

-- Whether requests hang. Any deliverer takes over an expired lease: one that nobody has taken over
-- is stuck. Requests of another mode do not count: they are not repeated in this one, and become
-- unknown in time.
CREATE FUNCTION activation._doctor_leases() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT 'problem',
           format('%s requests hang since %s%s', count(*),
                  to_char(min(r.lease_until) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"'),
                  ', held by process ' || a.pid),
           concat_ws(E'\n', 'SELECT pg_terminate_backend(' || a.pid || ', 5000);',
                     'CALL activation.tick();')
      FROM activation.request r
      LEFT JOIN pg_stat_activity a ON a.pid = r.lease_pid AND a.backend_start = r.lease_start
                                  AND a.pid <> pg_backend_pid()
     WHERE r.state = 'open' AND r.mode = (activation._setting()).mode AND r.lease_id IS NOT NULL
       AND r.lease_until < activation._now() - interval '5 minutes' AND NOT pg_is_in_recovery()
     GROUP BY a.pid
$$;

-- Messages of which nobody knows whether they were sent: only a person can find out.
CREATE FUNCTION activation._doctor_unknown() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT 'problem',
           format('nobody knows whether message %s to %s was sent: look for it in Resend''s '
                  'dashboard', m.message_id, m.recipient),
           format('SELECT activation.resolve(%L, ''sent'');  -- or ''resend'', if it is not there',
                  m.message_id)
      FROM activation.message m
     WHERE m.state = 'unknown'
     ORDER BY m.created_at LIMIT 10
$$;
