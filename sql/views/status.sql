-- status: one row for each part of the installation, and what is wrong with it.

-- The rows of status about workers: one for each slot that is scheduled or was used.
CREATE FUNCTION activation._worker_status()
RETURNS TABLE (component text, state text, detail text, code text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    s activation.setting := activation._setting();
    scheduled activation.schedule;
BEGIN
    SELECT * INTO scheduled FROM activation.schedule;
    RETURN QUERY
    SELECT format('%s %s', k.kind, n.slot),
           CASE WHEN k.kind <> 'puller' AND a.silent THEN 'failing'
                WHEN k.kind <> 'puller' AND a.pid IS NOT NULL THEN 'ok'
                -- It ends when there is nothing more to read, and begins anew every minute.
                WHEN k.kind = 'puller' AND scheduled.pull
                     AND coalesce(a.seen_at, w.beat_at) > clock_timestamp() - interval '150 seconds'
                THEN CASE WHEN w.note IS NULL THEN 'ok' WHEN s.mode = 'capture' THEN 'waiting'
                          ELSE 'failing' END
                WHEN n.slot > coalesce(k.slots, 0) THEN 'stopped'
                WHEN a.pid IS NOT NULL THEN 'failing'
                ELSE 'waiting' END,
           concat_ws('; ',
               CASE WHEN w.beat_at IS NULL
                    THEN 'has not run yet; pg_cron starts it within a minute'
                    ELSE format('last heartbeat %s s ago',
                                round(extract(epoch FROM clock_timestamp() - w.beat_at))) END,
               'process ' || a.pid,
               CASE WHEN a.silent AND a.since IS NULL AND k.kind <> 'puller'
                    THEN format('no sign of life for %s s',
                                round(extract(epoch FROM clock_timestamp() - a.seen_at))) END,
               (SELECT format('runs code of loop %s for %s s', l.name,
                              greatest(round(extract(epoch FROM clock_timestamp() - a.since)), 0))
                  FROM activation."loop" l
                 WHERE l.loop_id = a.loop_id),
               w.note),
           CASE WHEN n.slot > coalesce(k.slots, 0) AND a.pid IS NULL THEN 'not_scheduled'
                WHEN k.kind = 'puller' AND w.note IS NOT NULL THEN 'pull_failed'
                WHEN w.beat_at IS NULL THEN 'not_started'
                WHEN a.silent AND k.kind <> 'puller' THEN 'silent'
                WHEN w.note IS NOT NULL THEN 'trouble'
                WHEN a.pid IS NOT NULL THEN 'running'
                ELSE 'between_runs' END
      FROM (VALUES ('detector', scheduled.detectors),
                   ('deliverer', scheduled.deliverers),
                   ('puller', scheduled.pull::integer)) AS k(kind, slots)
      CROSS JOIN LATERAL (
           SELECT g AS slot FROM generate_series(1, k.slots) g
           UNION
           SELECT x.slot FROM activation.worker x WHERE x.kind = k.kind) n
      LEFT JOIN activation.worker w ON w.kind = k.kind AND w.slot = n.slot
      LEFT JOIN LATERAL (
           -- In a loop's code it may be silent for as long as that may take.
           SELECT x.*,
                  x.seen_at < clock_timestamp()
                      - greatest(CASE WHEN x.since IS NOT NULL THEN s.condition_timeout END,
                                 '15 seconds') AS silent
             FROM activation._workers() x
            WHERE x.kind = k.kind AND x.slot = n.slot) a ON true
     ORDER BY k.kind DESC, n.slot;
END
$$;

-- The rows of status about loops: one for each, with what keeps people from being enrolled,
-- evaluated or written to.
-- Long because each kind of trouble has a count, a sentence and a code.
CREATE FUNCTION activation._loop_status()
RETURNS TABLE (component text, state text, detail text, code text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    now timestamptz := activation._now();
BEGIN
    RETURN QUERY
    SELECT format('loop %s', l.name),
           CASE WHEN l.state = 'active' AND NOT activation._function_exists(v.users_function)
                THEN 'failing'
                WHEN l.state = 'active' AND (k.loop_id IS NOT NULL OR bad.people > 0) THEN 'failing'
                WHEN l.state = 'active' THEN 'ok'
                WHEN l.state IN ('archived', 'stopped') THEN 'stopped'
                ELSE l.state END,
           concat_ws('; ',
               format('version %s', l.version),
               CASE WHEN l.state = 'stopped' THEN 'the brake' END || ': ' || l.reason,
               CASE WHEN l.state <> 'stopped' THEN l.reason END,
               CASE WHEN NOT activation._function_exists(v.users_function)
                    THEN 'its compiled functions are gone: define it again' END,
               CASE WHEN l.state = 'stopped'
                    THEN format('%s messages wait; SELECT activation.resume_loop(%L)',
                                q.waiting, l.name) END,
               CASE WHEN k.last_error IS DISTINCT FROM l.reason THEN k.last_error END,
               CASE WHEN r.due_at IS NULL THEN NULL
                    WHEN v.event = 'schedule'
                    THEN format('next run at %s',
                                to_char(r.due_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"'))
                    ELSE format('%s existing users enrolled so far', r.enrolled) END,
               CASE WHEN bad.people > 0
                    THEN format('%s people cannot be evaluated: %s', bad.people, bad.error) END,
               CASE WHEN f.people > 0
                    THEN format('%s people not enrolled: %s', f.people, f.error) END,
               CASE WHEN f.deleted > 0
                    THEN format('of %s people it is unclear whether they are gone: %s',
                                f.deleted, f.deleted_error) END,
               CASE WHEN u.people > 0
                    THEN format('%s people within a day had no mail: %s', u.people, u.error) END,
               CASE WHEN w.people > 0
                    THEN format('%s messages wait because its code raised: %s',
                                w.people, w.error) END),
           CASE WHEN l.state = 'stopped' THEN 'brake'
                WHEN l.state <> 'active' THEN l.state
                WHEN NOT activation._function_exists(v.users_function) THEN 'not_compiled'
                WHEN k.loop_id IS NOT NULL THEN 'code_raised'
                WHEN bad.people > 0 THEN 'people_not_evaluated'
                WHEN w.people > 0 THEN 'messages_wait'
                WHEN f.people > 0 THEN 'people_not_enrolled'
                WHEN f.deleted > 0 THEN 'deletions_unclear'
                WHEN u.people > 0 THEN 'rows_not_read'
                ELSE 'ok' END
      FROM activation."loop" l
      JOIN activation.loop_version v USING (loop_id, version)
      LEFT JOIN activation.backfill r USING (loop_id)
      LEFT JOIN LATERAL (SELECT x.*
                           FROM activation.strike x
                          WHERE x.loop_id = l.loop_id
                          ORDER BY x.struck_at DESC LIMIT 1) k ON true
      CROSS JOIN LATERAL (SELECT count(*) AS waiting
                            FROM activation.message m
                           WHERE l.state = 'stopped' AND m.loop_id = l.loop_id
                             AND m.request_id IS NULL AND m.finished_at IS NULL) q
      CROSS JOIN LATERAL (SELECT count(*) AS people, max(e.last_error) AS error
                            FROM activation.enrollment e
                           WHERE e.loop_id = l.loop_id
                             AND e.retry_at IS NOT NULL AND e.last_error IS NOT NULL) bad
      CROSS JOIN LATERAL (SELECT count(*) FILTER (WHERE c.code = 'not_captured') AS people,
                                 max(c.error) FILTER (WHERE c.code = 'not_captured') AS error,
                                 count(*) FILTER (WHERE c.code <> 'not_captured') AS deleted,
                                 max(c.error) FILTER (WHERE c.code <> 'not_captured')
                                     AS deleted_error
                            FROM activation.capture_failure c
                           WHERE c.loop_id = l.loop_id) f
      CROSS JOIN LATERAL (SELECT count(*) AS people, max(x.remark) AS error
                            FROM activation.remark x
                           WHERE x.at > now - interval '1 day' AND x.loop_id = l.loop_id
                             AND x.code = 'row_unreadable') u
      -- Those put back by a claim are due within a minute.
      CROSS JOIN LATERAL (SELECT count(*) AS people, max(m.last_error) AS error
                            FROM activation.message m
                           WHERE m.request_id IS NULL AND m.finished_at IS NULL
                             AND m.loop_id = l.loop_id
                             AND m.next_attempt_at BETWEEN now - interval '10 seconds'
                                                       AND now + interval '1 minute'
                             AND m.cause = 'user_raised') w
     ORDER BY l.name;
END
$$;

-- The rows of the view status, in the order in which people read them.
-- Long because what the provider and the queue say rests on the same counts and settings.
CREATE FUNCTION activation._status()
RETURNS TABLE (component text, state text, detail text, code text)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    now timestamptz := activation._now();
    standby boolean := pg_is_in_recovery();
    s activation.setting := activation._setting();
    host text := activation._host_name();
    disarmed text := activation._disarmed(host);
    p activation.provider;
    key_problem text;
    queued bigint;
    sending bigint;
    unknown bigint;
    signals bigint;
    scheduled activation.schedule;
BEGIN
    component := 'mode';
    state := CASE WHEN disarmed IS NOT NULL THEN 'disarmed' ELSE s.mode END;
    detail := CASE WHEN disarmed IS NOT NULL THEN
                       disarmed || '. Nothing is sent; SELECT activation.set_mode(''live'') here '
                       'if this server is to send, set_mode(''capture'') if it is a copy'
                   WHEN s.mode = 'capture' THEN 'nothing leaves; messages end as captured'
                   WHEN s.mode = 'redirect' THEN format('all mail goes to %s', s.redirect_to)
                   ELSE format('mail goes to real users from %s', s.sender) END;
    code := state;
    RETURN NEXT;

    SELECT * INTO p FROM activation.provider;
    -- Each by its index: there may be millions of others.
    SELECT count(*) INTO queued
      FROM activation.message m
     WHERE m.request_id IS NULL AND m.finished_at IS NULL;
    SELECT count(*) INTO sending
      FROM activation.request r
      CROSS JOIN LATERAL unnest(r.members) AS u(message_id)
      JOIN activation.message m USING (message_id)
     WHERE r.state = 'open' AND m.request_id = r.request_id AND m.state = 'sending';
    SELECT count(*) INTO unknown
      FROM activation.message m
     WHERE m.finished_at IS NOT NULL AND m.request_id IS NOT NULL AND m.state = 'unknown';
    key_problem := CASE WHEN s.mode <> 'capture'
                        THEN activation._key_problem(
                                 s.api_key,
                                 activation._secret(substr(s.api_key, length('secret:') + 1))) END;
    component := 'provider';
    state := CASE WHEN p.paused_until > now
                       OR (s.mode <> 'capture' AND (key_problem IS NOT NULL OR s.sender IS NULL))
                  THEN 'paused' ELSE 'ok' END;
    detail := concat_ws('; ',
        CASE WHEN key_problem IS NOT NULL THEN format('no usable key: %s', key_problem) END,
        CASE WHEN s.mode <> 'capture' AND s.sender IS NULL
             THEN 'no sender: SELECT activation.configure(sender => ''…'')' END,
        CASE WHEN p.paused_until > now
             THEN format('%s; until %s', p.pause_reason,
                         CASE WHEN p.paused_until = 'infinity'
                              THEN 'activation.resume() or new settings'
                              ELSE to_char(p.paused_until AT TIME ZONE 'UTC',
                                           'YYYY-MM-DD HH24:MI "UTC"') END) END,
        CASE WHEN state = 'paused' THEN format('%s messages wait', queued) END,
        CASE WHEN state = 'ok'
             THEN format('%s, %s', s.resend_url,
                         coalesce(least(s.rate, p.learnt_rate) || ' requests a second',
                                  'no rate named yet')) END);
    code := CASE WHEN key_problem IS NOT NULL THEN 'no_key'
                 WHEN s.mode <> 'capture' AND s.sender IS NULL THEN 'no_sender'
                 WHEN p.paused_until > now THEN 'paused'
                 ELSE 'ok' END;
    RETURN NEXT;

    -- One that is left is enough to hear with, for as long as the other is not what Resend signs
    -- with.
    SELECT 'webhooks',
           CASE count(*) FILTER (WHERE x.problem IS NULL) WHEN 0 THEN 'failing' ELSE 'waiting' END,
           string_agg(x.problem, '; ')
      INTO component, state, detail
      FROM unnest(string_to_array(s.webhook_secret, ' ')) AS w(reference),
           activation._webhook_secret_problem(
               w.reference,
               activation._secret(substr(w.reference, length('secret:') + 1))) AS x(problem);
    IF detail IS NOT NULL THEN
        code := 'secret_unreadable';
        RETURN NEXT;
    END IF;

    SELECT count(*) INTO signals FROM activation.signal;
    SELECT * INTO scheduled FROM activation.schedule;
    component := 'queue';
    state := CASE WHEN unknown > 0 THEN 'failing' WHEN queued + sending + signals > 0 THEN 'waiting'
                  ELSE 'ok' END;
    detail := format('%s queued, %s being sent, %s unknown; %s signals; wakes %s',
                     queued, sending, unknown, signals,
                     CASE WHEN standby THEN 'not kept on a standby'
                          ELSE pg_size_pretty(pg_relation_size('activation.wake')) END
                     || CASE WHEN scheduled.watching AND scheduled.watched_until < clock_timestamp()
                             THEN format(', none written since %s because no detector has run',
                                         to_char(scheduled.watched_until AT TIME ZONE 'UTC',
                                                 'YYYY-MM-DD HH24:MI "UTC"'))
                             ELSE '' END);
    code := CASE WHEN unknown > 0 THEN 'outcomes_unknown' ELSE state END;
    RETURN NEXT;

    RETURN QUERY SELECT w.* FROM activation._worker_status() w;
    RETURN QUERY SELECT l.* FROM activation._loop_status() l;
END
$$;

CREATE VIEW activation.status AS SELECT * FROM activation._status();
COMMENT ON VIEW activation.status IS
    'How the machine is: mode first, then the provider, the queue, the workers and the loops.';
COMMENT ON COLUMN activation.status.component IS
    'mode, provider, webhooks, queue, a worker such as detector 1, or a loop such as loop '
    'onboarding.';
COMMENT ON COLUMN activation.status.state IS
    'ok, waiting, paused, stopped or failing. Of mode: capture, redirect, live or disarmed.';
COMMENT ON COLUMN activation.status.detail IS
    'What is to be said of it, in words.';
COMMENT ON COLUMN activation.status.code IS
    'The same in one word, for programs.';
