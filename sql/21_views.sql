-- What people look at. Columns are a contract: more may follow, none goes.

CREATE VIEW activation.message_log AS
SELECT m.message_id, l.name AS loop, s.name AS step, e.user_id, m.recipient, m.subject, m.state AS status, m.attempts,
       m.created_at, m.sent_at, m.resend_id, m.last_error, m.branch
  FROM activation.message m JOIN activation.enrollment e USING (enrollment_id)
  JOIN activation.step s ON (s.loop_id, s.version, s.step) = (m.loop_id, m.version, m.step)
  JOIN activation."loop" l ON l.loop_id = m.loop_id;
COMMENT ON VIEW activation.message_log IS 'Every message: whom it is for, what became of it, and why.';

CREATE VIEW activation.journey AS
SELECT e.enrollment_id, l.name AS loop, e.version, e.user_id, e.state, s.name AS step, e.enrolled_at, e.activated_at, e.deadline,
       e.holdout, e.decided_at, coalesce(e.last_error, e.reason) AS reason, e.starts_at
  FROM activation.enrollment e JOIN activation.step s USING (loop_id, version, step) JOIN activation."loop" l USING (loop_id);
COMMENT ON VIEW activation.journey IS 'Every enrollment: where a user stands in a loop, since when, and when they reached its goal.';

CREATE FUNCTION activation._status() RETURNS TABLE (component text, state text, detail text)
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
                       disarmed || '. Nothing is sent; SELECT activation.set_mode(''live'') here if this server is to send, set_mode(''capture'') if it is a copy'
                   WHEN s.mode = 'capture' THEN 'nothing leaves; messages end as captured'
                   WHEN s.mode = 'redirect' THEN format('all mail goes to %s', s.redirect_to)
                   ELSE format('mail goes to real users from %s', s.sender) END;
    RETURN NEXT;

    SELECT * INTO p FROM activation.provider;
    -- Each by its index: there may be millions of others.
    SELECT count(*) INTO queued FROM activation.message m WHERE m.request_id IS NULL AND m.finished_at IS NULL;
    SELECT count(*) INTO sending
      FROM activation.request r CROSS JOIN LATERAL unnest(r.members) AS u(message_id) JOIN activation.message m USING (message_id)
     WHERE r.state = 'open' AND m.request_id = r.request_id AND m.state = 'sending';
    SELECT count(*) INTO unknown FROM activation.message m WHERE m.finished_at IS NOT NULL AND m.request_id IS NOT NULL AND m.state = 'unknown';
    key_problem := CASE WHEN s.mode <> 'capture'
                        THEN activation._key_problem(s.api_key, activation._secret(substr(s.api_key, length('secret:') + 1))) END;
    component := 'provider';
    state := CASE WHEN p.paused_until > now OR (s.mode <> 'capture' AND (key_problem IS NOT NULL OR s.sender IS NULL)) THEN 'paused' ELSE 'ok' END;
    detail := concat_ws('; ',
        CASE WHEN key_problem IS NOT NULL THEN format('no usable key: %s', key_problem) END,
        CASE WHEN s.mode <> 'capture' AND s.sender IS NULL THEN 'no sender: SELECT activation.configure(sender => ''…'')' END,
        CASE WHEN p.paused_until > now THEN format('%s; until %s', p.pause_reason,
            CASE WHEN p.paused_until = 'infinity' THEN 'activation.resume() or new settings' ELSE to_char(p.paused_until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"') END) END,
        CASE WHEN state = 'paused' THEN format('%s messages wait', queued) END,
        CASE WHEN state = 'ok' THEN format('%s, %s', s.resend_url, coalesce(least(s.rate, p.learnt_rate) || ' requests a second', 'no rate named yet')) END);
    RETURN NEXT;

    -- One that is left is enough to hear with, for as long as the other is not what Resend signs with.
    SELECT 'webhooks', CASE count(*) FILTER (WHERE x.problem IS NULL) WHEN 0 THEN 'failing' ELSE 'waiting' END, string_agg(x.problem, '; ')
      INTO component, state, detail
      FROM unnest(string_to_array(s.webhook_secret, ' ')) AS w(reference),
           activation._webhook_secret_problem(w.reference, activation._secret(substr(w.reference, length('secret:') + 1))) AS x(problem);
    IF detail IS NOT NULL THEN
        RETURN NEXT;
    END IF;

    SELECT count(*) INTO signals FROM activation.signal;
    SELECT * INTO scheduled FROM activation.schedule;
    component := 'queue';
    state := CASE WHEN unknown > 0 THEN 'failing' WHEN queued + sending + signals > 0 THEN 'waiting' ELSE 'ok' END;
    detail := format('%s queued, %s being sent, %s unknown; %s signals; wakes %s', queued, sending, unknown, signals,
                     CASE WHEN standby THEN 'not kept on a standby' ELSE pg_size_pretty(pg_relation_size('activation.wake')) END
                     || CASE WHEN scheduled.watching AND scheduled.watched_until < clock_timestamp()
                             THEN format(', none written since %s because no detector has run', to_char(scheduled.watched_until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"'))
                             ELSE '' END);
    RETURN NEXT;

    FOR component, state, detail IN
        SELECT format('%s %s', k.kind, n.slot),
               CASE WHEN k.kind <> 'puller' AND a.silent THEN 'failing'
                    WHEN k.kind <> 'puller' AND a.pid IS NOT NULL THEN 'ok'
                    -- It ends when there is nothing more to read, and begins anew every minute.
                    WHEN k.kind = 'puller' AND scheduled.pull AND coalesce(a.seen_at, w.beat_at) > clock_timestamp() - interval '150 seconds'
                    THEN CASE WHEN w.note IS NULL THEN 'ok' WHEN s.mode = 'capture' THEN 'waiting' ELSE 'failing' END
                    WHEN n.slot > coalesce(CASE k.kind WHEN 'detector' THEN scheduled.detectors WHEN 'deliverer' THEN scheduled.deliverers ELSE scheduled.pull::integer END, 0) THEN 'stopped'
                    WHEN a.pid IS NOT NULL THEN 'failing' ELSE 'waiting' END,
               concat_ws('; ', CASE WHEN w.beat_at IS NULL THEN 'has not run yet; pg_cron starts it within a minute'
                                    ELSE format('last heartbeat %s s ago', round(extract(epoch FROM clock_timestamp() - w.beat_at))) END,
                         'process ' || a.pid,
                         CASE WHEN a.silent AND a.since IS NULL AND k.kind <> 'puller'
                              THEN format('no sign of life for %s s', round(extract(epoch FROM clock_timestamp() - a.seen_at))) END,
                         (SELECT format('runs code of loop %s for %s s', l.name, greatest(round(extract(epoch FROM clock_timestamp() - a.since)), 0))
                            FROM activation."loop" l WHERE l.loop_id = a.loop_id), w.note)
          FROM (VALUES ('detector'), ('deliverer'), ('puller')) AS k(kind)
          CROSS JOIN LATERAL (
               SELECT g AS slot FROM generate_series(1, CASE k.kind WHEN 'detector' THEN scheduled.detectors WHEN 'deliverer' THEN scheduled.deliverers ELSE scheduled.pull::integer END) g
               UNION SELECT x.slot FROM activation.worker x WHERE x.kind = k.kind) n
          LEFT JOIN activation.worker w ON w.kind = k.kind AND w.slot = n.slot
          LEFT JOIN LATERAL (
               -- In a loop's code it may be silent for as long as that may take.
               SELECT x.*, x.seen_at < clock_timestamp() - greatest(CASE WHEN x.since IS NOT NULL THEN s.condition_timeout END, '15 seconds') AS silent
                 FROM activation._workers() x WHERE x.kind = k.kind AND x.slot = n.slot) a ON true
         ORDER BY k.kind DESC, n.slot
    LOOP
        RETURN NEXT;
    END LOOP;

    FOR component, state, detail IN
        SELECT format('loop %s', l.name),
               CASE WHEN l.state = 'active' AND NOT activation._function_exists(v.users_function) THEN 'failing'
                    WHEN l.state = 'active' AND (k.loop_id IS NOT NULL OR bad.people > 0) THEN 'failing'
                    WHEN l.state = 'active' THEN 'ok'
                    WHEN l.state IN ('archived', 'stopped') THEN 'stopped'
                    ELSE l.state END,
               concat_ws('; ', format('version %s', l.version), l.reason,
                         CASE WHEN NOT activation._function_exists(v.users_function) THEN 'its compiled functions are gone: define it again' END,
                         CASE WHEN l.state = 'stopped' THEN format('%s messages wait; SELECT activation.resume_loop(%L)', q.waiting, l.name) END,
                         CASE WHEN k.last_error IS DISTINCT FROM l.reason THEN k.last_error END,
                         CASE WHEN r.due_at IS NULL THEN NULL
                              WHEN v.event = 'schedule' THEN format('next run at %s', to_char(r.due_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"'))
                              ELSE format('%s existing users enrolled so far', r.enrolled) END,
                         CASE WHEN bad.people > 0 THEN format('%s people cannot be evaluated: %s', bad.people, bad.error) END,
                         CASE WHEN f.people > 0 THEN format('%s people not enrolled: %s', f.people, f.error) END,
                         CASE WHEN u.people > 0 THEN format('%s people within a day had no mail: %s', u.people, u.error) END,
                         CASE WHEN w.people > 0 THEN format('%s messages wait because its code raised: %s', w.people, w.error) END)
          FROM activation."loop" l JOIN activation.loop_version v USING (loop_id, version)
          LEFT JOIN activation.roll r USING (loop_id)
          LEFT JOIN LATERAL (SELECT x.* FROM activation.strike x WHERE x.loop_id = l.loop_id ORDER BY x.struck_at DESC LIMIT 1) k ON true
          CROSS JOIN LATERAL (SELECT count(*) AS waiting FROM activation.message m
                               WHERE l.state = 'stopped' AND m.loop_id = l.loop_id AND m.request_id IS NULL AND m.finished_at IS NULL) q
          CROSS JOIN LATERAL (SELECT count(*) AS people, max(e.last_error) AS error FROM activation.enrollment e
                               WHERE e.loop_id = l.loop_id AND e.retry_at IS NOT NULL AND e.last_error IS NOT NULL) bad
          CROSS JOIN LATERAL (SELECT count(*) AS people, max(c.error) AS error FROM activation.capture_failure c WHERE c.loop_id = l.loop_id) f
          CROSS JOIN LATERAL (SELECT count(*) AS people, max(x.remark) AS error FROM activation.remark x
                               WHERE x.at > now - interval '1 day' AND x.loop_id = l.loop_id AND x.remark LIKE 'the user''s row cannot be read: %') u
          -- Those put back by a claim are due within a minute.
          CROSS JOIN LATERAL (SELECT count(*) AS people, max(m.last_error) AS error FROM activation.message m
                               WHERE m.request_id IS NULL AND m.finished_at IS NULL AND m.loop_id = l.loop_id
                                 AND m.next_attempt_at BETWEEN now - interval '10 seconds' AND now + interval '1 minute'
                                 AND m.last_error LIKE 'the loop''s own code raised for this user: %') w
         ORDER BY l.name
    LOOP
        RETURN NEXT;
    END LOOP;
END
$$;

CREATE VIEW activation.status AS SELECT * FROM activation._status();
COMMENT ON VIEW activation.status IS 'How the machine is: mode first, then the provider, the queue, the workers and the loops.';

-- Whether the condition of an enrollment holds right now, in words: asked through the black box.
CREATE FUNCTION activation._now_true(enrollment_id bigint) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    asked record;
BEGIN
    SELECT x.user_id, s.evaluate_function, v.owner INTO asked
      FROM activation.enrollment x JOIN activation.step s USING (loop_id, version, step) JOIN activation.loop_version v USING (loop_id, version)
     WHERE x.enrollment_id = _now_true.enrollment_id;
    IF asked.evaluate_function IS NULL THEN
        RETURN NULL;
    END IF;
    RETURN CASE WHEN asked.user_id = ANY (activation._safe_eval(asked.evaluate_function, asked.owner, ARRAY[asked.user_id]))
                THEN 'true' ELSE 'false' END;
EXCEPTION WHEN others OR assert_failure THEN
    RETURN 'an error: ' || SQLERRM;
END
$$;

-- Why a user is not in a loop, in words: which trigger or filter did not match, by the row as it is.
CREATE FUNCTION activation._why_not(wanted_user text, wanted_loop integer) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v activation.loop_version;
    trigger jsonb;
    since text;
BEGIN
    SELECT x.* INTO STRICT v FROM activation.loop_version x JOIN activation."loop" l USING (loop_id, version) WHERE l.loop_id = wanted_loop;
    trigger := v.definition -> 'trigger';
    SELECT format('since the loop was defined at %s', min(x.created_at)) INTO since FROM activation.loop_version x WHERE x.loop_id = wanted_loop;
    IF activation._user_exists(v.users, wanted_user) IS FALSE THEN
        RETURN format('there is no user %s in %s', wanted_user, v.definition ->> 'users');
    END IF;
    RETURN CASE v.event
        WHEN 'schedule' THEN 'its schedule''s query has not returned this user, or is not due yet'
        WHEN 'event' THEN
            CASE WHEN EXISTS (SELECT FROM activation.event x WHERE x.user_id = wanted_user AND x.event = trigger ->> 'event')
                 THEN format('event "%s" was told before the loop was defined', trigger ->> 'event')
                 ELSE format('no event "%s" of this user was told by track()', trigger ->> 'event') END
        WHEN 'update' THEN format('no update of %s that changed %s for this user%s was captured %s', trigger ->> 'table',
                                  (SELECT string_agg(c, ' or ') FROM jsonb_array_elements_text(trigger -> 'columns') AS c),
                                  coalesce(' and passed its filter ' || (trigger ->> 'filter'), ''), since)
        WHEN 'delete' THEN format('no row of this user%s was deleted from %s %s', coalesce(' that passed its filter ' || (trigger ->> 'filter'), ''),
                                  trigger ->> 'table', since)
        ELSE CASE
            WHEN v.passes_function IS NULL THEN format('no insert of user %s into %s was captured %s', wanted_user, trigger ->> 'table', since)
            WHEN wanted_user = ANY (activation._safe_eval(v.passes_function, v.owner, ARRAY[wanted_user]))
            THEN format('no insert of user %s into %s was captured %s that its filter let pass: %s; it would let the row pass as it is now',
                        wanted_user, trigger ->> 'table', since, trigger ->> 'filter')
            ELSE format('no insert of user %s into %s was captured %s that its filter let pass: %s; it does not let the row pass as it is now, either',
                        wanted_user, trigger ->> 'table', since, trigger ->> 'filter') END
        END;
EXCEPTION WHEN others OR assert_failure THEN
    RETURN 'it cannot be told: ' || SQLERRM;
END
$$;

CREATE FUNCTION activation._why(wanted_user text, only_loop text) RETURNS TABLE (at timestamptz, loop text, event text, detail text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    wanted_loop integer := CASE WHEN only_loop IS NOT NULL THEN (activation._loop(only_loop)).loop_id END;
BEGIN
    RETURN QUERY
    WITH enrolled AS (
        SELECT e.*, l.name AS loop_name, l.state AS loop_state, s.name AS step_name, s.position, s.timeout, s.evaluate_function, v.definition, v.goal_step,
               v.event AS trigger_event, first.step AS first_step, first.evaluate_function AS first_function, first.delay AS first_delay,
               EXISTS (SELECT FROM activation.step x WHERE x.loop_id = e.loop_id AND x.version = e.version AND x.position > 1) AS several
          FROM activation.enrollment e JOIN activation.step s USING (loop_id, version, step)
          JOIN activation.loop_version v USING (loop_id, version) JOIN activation."loop" l USING (loop_id)
          JOIN activation.step first ON first.loop_id = e.loop_id AND first.version = e.version AND first.position = 1
         WHERE e.user_id = wanted_user AND (wanted_loop IS NULL OR e.loop_id = wanted_loop)
    ), steps AS (
        -- Steps as they were decided; the last one is not in the history.
        SELECT e.enrollment_id, e.loop_name, d.branch, d.at, s.name, s.timeout, s.evaluate_function, s.position
          FROM enrolled e
          CROSS JOIN LATERAL (SELECT (h ->> 0)::integer AS step, h ->> 1 AS branch, (h ->> 2)::timestamptz AS at
                                FROM jsonb_array_elements(coalesce(e.history, '[]')) AS h) d
          JOIN activation.step s ON s.loop_id = e.loop_id AND s.version = e.version AND s.step = d.step
         WHERE e.several
    ), mail AS (
        SELECT m.*, e.loop_name, b.email ->> 'template' AS template, CASE WHEN e.several THEN format('step %s, ', s.name) ELSE '' END AS of_step
          FROM enrolled e JOIN activation.message m ON m.enrollment_id = e.enrollment_id
          JOIN activation.step s ON s.loop_id = m.loop_id AND s.version = m.version AND s.step = m.step
          CROSS JOIN LATERAL (SELECT CASE m.branch WHEN 'action' THEN s.action ELSE s.otherwise END AS email) b
    ), told (at, position, loop, event, detail) AS (
        SELECT e.enrolled_at, 1, e.loop_name, 'enrolled',
               format('in version %s, %s', e.version, coalesce(e.how,
                   CASE e.trigger_event WHEN 'insert' THEN 'by an insert into ' || (e.definition #>> '{trigger,table}')
                                        WHEN 'update' THEN 'by an update of ' || (e.definition #>> '{trigger,table}')
                                        WHEN 'delete' THEN 'by a deletion from ' || (e.definition #>> '{trigger,table}')
                                        WHEN 'event' THEN format('by event "%s"', e.definition #>> '{trigger,event}')
                                        ELSE 'by its schedule' END))
               || CASE WHEN e.pass > 1 THEN format(', for the %s. time', e.pass) ELSE '' END
          FROM enrolled e
        UNION ALL
        SELECT e.enrolled_at, 2, e.loop_name, 'held out', 'for comparison: this user gets no mail from the loop' FROM enrolled e WHERE e.holdout
        UNION ALL
        SELECT e.created_at, 2, e.loop_name, 'evaluated',
               CASE WHEN e.activated_at = e.enrolled_at THEN 'condition true at enrollment' ELSE 'condition false at enrollment' END
          FROM enrolled e WHERE e.first_function IS NOT NULL AND e.goal_step = e.first_step AND e.first_delay = interval '0'
           AND e.loop_state = 'active' AND e.retry_at IS DISTINCT FROM '-infinity'
        UNION ALL
        SELECT e.decided_at, 3, e.loop_name, 'evaluated', format('condition still false at the deadline, %s after enrollment', e.timeout)
          FROM enrolled e WHERE e.state = 'timed_out' AND NOT e.several
        UNION ALL
        SELECT d.at, 3, d.loop_name, 'step',
               format('%s: %s', d.name, CASE WHEN d.branch = 'otherwise' THEN format('condition still false at its deadline, %s after it began', d.timeout)
                                             WHEN d.evaluate_function IS NULL THEN 'its time came' ELSE 'condition true' END) FROM steps d
        UNION ALL
        SELECT e.activated_at, 3, e.loop_name, 'activated',
               CASE WHEN e.goal_step = 0 THEN 'goal reached' ELSE 'condition true' END || CASE WHEN e.state = 'timed_out' THEN ', after the deadline' ELSE '' END
          FROM enrolled e WHERE e.activated_at IS NOT NULL
        UNION ALL
        SELECT e.decided_at, 9, e.loop_name, e.state, e.reason FROM enrolled e WHERE e.state = 'exited' OR e.several AND e.state <> 'waiting'
        UNION ALL
        SELECT m.created_at, 4, m.loop_name, 'message promised',
               format('%s%s: template %s', m.of_step, CASE m.branch WHEN 'action' THEN 'action' ELSE 'otherwise' END, m.template) FROM mail m
        UNION ALL
        SELECT r.created_at, 5, m.loop_name, 'message rendered', format('"%s" to %s', m.subject, m.recipient)
          FROM mail m JOIN activation.request r ON r.request_id = m.request_id
        UNION ALL
        SELECT a.finished_at, 6, m.loop_name, 'attempt',
               concat_ws(', ', format('number %s: %s', a.attempt, a.outcome), 'HTTP ' || a.http_status, a.error_name, a.error,
                         'next try at ' || a.retry_at)
          FROM mail m JOIN activation.attempt a ON a.message_id = m.message_id
        UNION ALL
        SELECT coalesce(m.finished_at, m.sent_at), 7, m.loop_name, m.state,
               concat_ws(', ', CASE WHEN m.subject IS NOT NULL THEN format('"%s" to %s', m.subject, m.recipient)
                                    ELSE format('%stemplate %s', m.of_step, m.template) END, m.last_error, 'id at Resend ' || m.resend_id)
          FROM mail m WHERE coalesce(m.finished_at, m.sent_at) IS NOT NULL
        UNION ALL
        SELECT activation._now(), 10, m.loop_name, m.state,
               concat_ws(', ', coalesce(m.last_error, 'waits to be sent'), CASE WHEN m.state = 'queued' AND m.next_attempt_at > activation._now() THEN format('not before %s', m.next_attempt_at) END)
          FROM mail m WHERE m.state IN ('queued', 'sending')
        UNION ALL
        SELECT activation._now(), 10, e.loop_name, 'waiting',
               CASE WHEN e.starts_at > activation._now() THEN format('step %s begins at %s', e.step_name, e.starts_at)
                    ELSE concat_ws('; ', CASE WHEN e.several THEN 'at step ' || e.step_name END,
                                   CASE WHEN e.loop_state <> 'active' THEN format('the loop is %s', e.loop_state)
                                        WHEN e.evaluate_function IS NOT NULL THEN 'condition is now ' || activation._now_true(e.enrollment_id) END,
                                   coalesce('deadline ' || e.deadline, 'no deadline'), e.last_error) END
          FROM enrolled e WHERE e.state = 'waiting'
        UNION ALL
        SELECT w.at, 8, m.loop_name, 'told by Resend',
               concat_ws(', ', w.type, w.payload #>> '{data,bounce,type}', w.payload #>> '{data,bounce,message}', w.payload #>> '{data,failed,reason}',
                         w.payload #>> '{data,suppressed,message}', w.payload #>> '{data,click,link}', w.problem)
          FROM mail m JOIN activation.webhook_event w ON w.message_id = m.message_id
        UNION ALL
        SELECT r.at, 5, l.name, 'noticed', r.remark
          FROM activation.remark r JOIN activation."loop" l USING (loop_id)
         WHERE r.user_id = wanted_user AND (wanted_loop IS NULL OR r.loop_id = wanted_loop)
        UNION ALL
        SELECT c.at, 1, l.name, 'not enrolled', c.error
          FROM activation.capture_failure c JOIN activation."loop" l USING (loop_id)
         WHERE c.user_id = wanted_user AND (wanted_loop IS NULL OR c.loop_id = wanted_loop)
        UNION ALL
        SELECT s.at, 1, l.name, 'signal', 'written, not yet taken by a detector'
          FROM activation.signal s JOIN activation.loop_version v ON v.loop_id = s.loop_id AND s.source_id IN (0, v.source_id)
               OR s.loop_id IS NULL AND v.source_id = s.source_id AND v.event = 'insert' AND v.filter_function IS NULL AND v.generation <= s.generation
          JOIN activation."loop" l ON l.loop_id = v.loop_id AND l.version = v.version AND l.state <> 'archived'
         WHERE s.user_id = wanted_user AND (wanted_loop IS NULL OR l.loop_id = wanted_loop) AND s.error IS NULL AND s.gone IS NULL
    )
    SELECT t.at, t.loop, t.event, t.detail FROM (
        SELECT t.* FROM told t
        UNION ALL
        SELECT c.at, 8, NULL, CASE WHEN c.subscribed THEN 'subscribed again' ELSE 'unsubscribed' END,
               format('%s, by %s', CASE c.topic WHEN '' THEN 'everything that is not transactional' ELSE 'topic ' || c.topic END, c.source)
          FROM activation.consent c WHERE c.user_id = wanted_user AND wanted_loop IS NULL
        UNION ALL
        SELECT activation._now(), 11, l.name, 'not enrolled', activation._why_not(wanted_user, l.loop_id)
          FROM activation."loop" l
         WHERE (wanted_loop IS NULL AND l.state <> 'archived' OR l.loop_id = wanted_loop)
           AND NOT EXISTS (SELECT FROM told x WHERE x.loop = l.name)) t
     ORDER BY t.at, t.position;
END
$$;
-- plpgsql would not have an argument and a column of one name.
CREATE FUNCTION activation.why(user_id text, loop text DEFAULT NULL) RETURNS TABLE (at timestamptz, loop text, event text, detail text)
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$ SELECT w.at, w.loop, w.event, w.detail FROM activation._why($1, $2) w $$;
COMMENT ON FUNCTION activation.why(text, text) IS
'One user''s timeline, oldest first: enrolled, evaluated true or false, messages promised, every attempt, and why a mail was or was not sent. user_id: the user''s key as text; loop: only this loop.';

CREATE FUNCTION activation._preview(caller oid, wanted_user text, loop_name text)
RETURNS TABLE (step text, branch text, purpose text, recipient text, subject text, html text, body_text text, problem text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    l activation.loop := activation._own_loop(caller, loop_name);
    v activation.loop_version;
    read record;
    rows activation.users_row[];
    mail record;
    source jsonb;
    shown jsonb;
BEGIN
    SELECT x.* INTO v FROM activation.loop_version x WHERE x.loop_id = l.loop_id AND x.version = l.version;
    SELECT * INTO read FROM activation._safe_eval_each(v.users_function, v.owner, ARRAY[wanted_user]);
    rows := activation._read_rows(read.answers);
    IF cardinality(rows) = 0 AND activation._user_exists(v.users, wanted_user) IS NOT TRUE THEN
        RAISE EXCEPTION 'user % does not exist in %', wanted_user, activation._table_name(v.users)
            USING ERRCODE = '02000', HINT = 'Give the user''s key as text, as it stands in the users table.';
    END IF;
    FOR mail IN
        SELECT s.name, b.branch, b.email FROM activation.step s, LATERAL (VALUES ('action', s.action), ('otherwise', s.otherwise)) AS b(branch, email)
         WHERE s.loop_id = l.loop_id AND s.version = l.version AND b.email IS NOT NULL ORDER BY s.position, b.branch
    LOOP
        source := activation._find_template(mail.email ->> 'template');
        shown := CASE WHEN cardinality(rows) = 0 THEN jsonb_build_object('problem', 'the user''s row cannot be read: ' || read.errors[1])
                      ELSE activation._rendered(mail.email, l.name, rows[1].body, source ->> 'subject', source ->> 'html', source ->> 'body_text') END;
        RETURN QUERY SELECT mail.name, mail.branch, v.definition ->> 'opinion', rows[1].email,
                            shown ->> 'subject', shown ->> 'html', shown ->> 'body_text', shown ->> 'problem';
    END LOOP;
END
$$;
CREATE FUNCTION activation.preview(user_id text, loop text)
RETURNS TABLE (step text, branch text, purpose text, recipient text, subject text, html text, body_text text, problem text)
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    WITH asked AS (
        INSERT INTO activation.call (verb, arguments) VALUES ('preview', jsonb_build_object('user_id', $1, 'loop', $2)) RETURNING answer
    )
    SELECT p.* FROM asked, jsonb_to_recordset(asked.answer)
           AS p(step text, branch text, purpose text, recipient text, subject text, html text, body_text text, problem text)
$$;
COMMENT ON FUNCTION activation.preview(text, text) IS
'The mails of a loop as this user would get them now, one row a step and branch, with the loop''s opinion as their purpose; problem says why one could not be rendered. Sends nothing.';
