-- The engine: the only writer of state besides capture. Each function here is one transaction's worth of work; the loops
-- that call them and commit are in Python (06). Functions are ordered as a message lives: detect, claim, store, record.

-- ---- the black box -----------------------------------------------------------------------------------------------------

-- An author's compiled function is only ever called through here. It runs with its owner's rights (it is SECURITY DEFINER,
-- checked before every call), read-only, and in a subtransaction that is always rolled back: nothing but the returned
-- texts leaves it, no deferred trigger, no cursor, no setting. The engine itself never plans an author's text. one_by_one:
-- look up each key by an index where there is one, so that no row of another user is computed with.
CREATE FUNCTION activation._safe_eval(function_name name, owner name, keys text[], one_by_one boolean DEFAULT false) RETURNS text[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    answer text[];
    evaluated boolean := false;
    box record;
BEGIN
    SELECT p.oid, p.prosecdef, pg_get_userbyid(p.proowner) AS owner INTO box
      FROM pg_proc p
     WHERE p.pronamespace = 'activation_compiled'::regnamespace AND p.proname = function_name
       AND p.proargtypes = ARRAY['text[]'::regtype]::oidvector;
    IF box.oid IS NULL THEN
        RAISE EXCEPTION 'compiled function % is missing', quote_ident(function_name)
            USING ERRCODE = 'ACT02', HINT = 'Define the loop again.';
    END IF;
    IF NOT box.prosecdef OR box.owner <> _safe_eval.owner THEN
        RAISE EXCEPTION 'compiled function % no longer runs with the rights of %', quote_ident(function_name), quote_ident(_safe_eval.owner)
            USING ERRCODE = 'ACT02',
                  DETAIL = format('Its owner is %s.', quote_ident(box.owner)),
                  HINT = 'Define the loop again.';
    END IF;
    BEGIN
        PERFORM set_config('transaction_read_only', 'on', true);
        IF one_by_one THEN
            PERFORM set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true);
        END IF;
        EXECUTE format('SELECT ARRAY(SELECT k FROM activation_compiled.%I($1) AS k)', function_name) INTO answer USING keys;
        evaluated := true;
        RAISE EXCEPTION USING ERRCODE = 'ACT00';
    EXCEPTION WHEN SQLSTATE 'ACT00' THEN
        IF NOT evaluated THEN
            RAISE EXCEPTION 'the loop''s own code raised SQLSTATE ACT00' USING ERRCODE = 'ACT03';
        END IF;
    END;
    RETURN answer;
END
$$;

-- plan_cache_mode: a plan for arrays of unknown length expects ten entries, and one made while a table was small scans it
-- for as long as the session lives; both turned milliseconds into seconds. For the same reason people are looked up one by
-- one (LATERAL … OFFSET 0) where the planner could begin at the other end.

-- ---- detect -------------------------------------------------------------------------------------------------------------

-- Takes the locks of as many of these parts of the users as are free; with wait, all of them.
CREATE FUNCTION activation._lock_parts(parts integer[], wait boolean) RETURNS integer[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    part integer;
    taken integer[] := '{}'::integer[];
BEGIN
    FOREACH part IN ARRAY parts LOOP
        IF wait THEN
            PERFORM pg_advisory_xact_lock(hashtext('activation part'), part);
            taken := taken || part;
        ELSIF pg_try_advisory_xact_lock(hashtext('activation part'), part) THEN
            taken := taken || part;
        END IF;
    END LOOP;
    RETURN taken;
END
$$;

-- Asks for a sweep of every step with a condition (of one loop, or of all): everybody whose condition is open is asked again.
CREATE FUNCTION activation._sweep(loop_id integer, due_at timestamptz) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.sweep (loop_id, version, step, part, due_at)
    SELECT s.loop_id, s.version, s.step, p.part, _sweep.due_at
      FROM activation.step s JOIN activation."loop" l USING (loop_id), unnest(activation._all_parts()) AS p(part)
     WHERE (_sweep.loop_id IS NULL OR s.loop_id = _sweep.loop_id)
       AND s.evaluate_function IS NOT NULL AND l.state <> 'archived'
     ORDER BY 1, 2, 3, 4
    ON CONFLICT ON CONSTRAINT sweep_pkey DO UPDATE SET due_at = excluded.due_at, mark = 0
$$;

-- The marker row of wake is gone after a crash or a promotion, and with it the wakes: sweep once, put it back.
-- The table is emptied first, so that the marker stands on its first page and is found at once.
CREATE FUNCTION activation._mend_wake(now timestamptz) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM activation.wake w WHERE w.source_id = 0)
       OR NOT pg_try_advisory_xact_lock(hashtext('activation'), hashtext('wake')) THEN
        RETURN false;
    END IF;
    DELETE FROM activation.wake;
    INSERT INTO activation.wake (source_id, user_id) VALUES (0, 'marker');
    PERFORM activation._sweep(NULL, now);
    RETURN true;
END
$$;

-- Turns signals into enrollments and gathers who is to be evaluated now: the newly enrolled, the woken, those at their
-- deadline, those to be tried again after an error, and a stretch of each sweep that is due. Runs under the locks of the
-- parts it is given, in one transaction with the evaluation: an action committed before the enrollment is seen by its
-- first evaluation, and a later one brings a wake that finds it.
CREATE FUNCTION activation._detect_take(parts integer[], batch integer)
RETURNS TABLE (loop_id integer, version integer, step integer, ids bigint[], woken timestamptz[], fresh boolean[])
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    now timestamptz := activation._now();
    mark integer := coalesce((SELECT max(t.template_id) FROM activation.template t), 0);
    new_ids bigint[];
    woken_ids bigint[];
    woken_at timestamptz[];
    due_ids bigint[];
    swept_ids bigint[] := '{}'::bigint[];
    stretch bigint[];
    sweeping record;
BEGIN
    PERFORM activation._mend_wake(now);

    IF EXISTS (SELECT FROM activation.signal) THEN
        WITH taken AS (
            DELETE FROM activation.signal
             WHERE ctid = ANY (ARRAY(SELECT s.ctid FROM activation.signal s WHERE activation._part(s.user_id) = ANY (parts) LIMIT batch))
            RETURNING *
        ), failed AS (
            INSERT INTO activation.capture_failure (at, loop_id, user_id, error)
            SELECT t.at, t.loop_id, t.user_id, t.error FROM taken t WHERE t.error IS NOT NULL
        ), enrolled AS (
            INSERT INTO activation.enrollment (loop_id, version, user_id, state, enrolled_at, created_at, deadline, template_mark)
            SELECT DISTINCT ON (l.loop_id, t.user_id)
                   l.loop_id, v.version, t.user_id, 'waiting', t.at, now, t.at + s.delay + s.timeout, mark
              FROM taken t
              -- Who passed the filter of an earlier version of a loop is in it.
              JOIN activation.loop_version v ON v.source_id = t.source_id
                   AND (v.loop_id = t.loop_id OR t.loop_id IS NULL AND v.filter_function IS NULL AND v.generation <= t.generation)
              JOIN activation."loop" l ON l.loop_id = v.loop_id AND l.version = v.version AND l.state <> 'archived'
              JOIN activation.step s ON s.loop_id = v.loop_id AND s.version = v.version AND s.step = 1
             WHERE t.error IS NULL
             ORDER BY l.loop_id, t.user_id, t.at
            ON CONFLICT DO NOTHING
            RETURNING enrollment_id
        )
        SELECT array_agg(e.enrollment_id) INTO new_ids FROM enrolled e;
    END IF;

    IF EXISTS (SELECT FROM activation.wake w WHERE w.source_id <> 0) THEN
        WITH taken AS (
            DELETE FROM activation.wake
             WHERE ctid = ANY (ARRAY(SELECT w.ctid FROM activation.wake w
                                      WHERE w.source_id <> 0 AND activation._part(w.user_id) = ANY (parts) LIMIT batch))
            RETURNING source_id, user_id, at
        ), newest AS MATERIALIZED (
            SELECT t.source_id, t.user_id, max(t.at) AS at FROM taken t GROUP BY 1, 2
        ), found AS (
            -- One look-up by (loop, user) for each woken user, whatever the statistics say: a table that has just grown
            -- from nothing would otherwise be joined by comparing all with all.
            SELECT e.enrollment_id, max(n.at) AS at
              FROM newest n
              JOIN activation.watch w ON w.source_id = n.source_id
              CROSS JOIN LATERAL (SELECT x.enrollment_id, x.version, x.step, x.activated_at, x.state FROM activation.enrollment x
                                   WHERE x.loop_id = w.loop_id AND x.user_id = n.user_id OFFSET 0) e
             WHERE e.version = w.version AND e.step = w.step AND e.activated_at IS NULL AND e.state <> 'exited'
             GROUP BY 1
        )
        SELECT array_agg(f.enrollment_id), array_agg(f.at) INTO woken_ids, woken_at FROM found f;
    END IF;

    SELECT array_agg(e.enrollment_id) INTO due_ids
      FROM (SELECT d.enrollment_id
              FROM activation.enrollment d JOIN activation."loop" l USING (loop_id)
             WHERE d.state = 'waiting' AND d.deadline <= now AND (d.retry_at IS NULL OR d.retry_at <= now)
               AND l.state IN ('active', 'stopped') AND activation._part(d.user_id) = ANY (parts)
               AND NOT EXISTS (SELECT FROM activation.strike k WHERE k.loop_id = d.loop_id AND k.kind = 'detect' AND k.retry_at > now)
             ORDER BY d.deadline LIMIT batch) e;
    SELECT due_ids || array_agg(e.enrollment_id) INTO due_ids
      FROM (SELECT d.enrollment_id
              FROM activation.enrollment d JOIN activation."loop" l USING (loop_id)
             WHERE d.retry_at <= now AND l.state IN ('active', 'stopped') AND activation._part(d.user_id) = ANY (parts)
               AND NOT EXISTS (SELECT FROM activation.strike k WHERE k.loop_id = d.loop_id AND k.kind = 'detect' AND k.retry_at > now)
             ORDER BY d.retry_at LIMIT batch) e;

    FOR sweeping IN
        SELECT w.loop_id, w.version, w.step, w.part, w.mark, s.every
          FROM activation.sweep w JOIN activation.step s USING (loop_id, version, step)
          JOIN activation."loop" l USING (loop_id)
         WHERE w.due_at <= now AND w.part = ANY (parts) AND l.state IN ('active', 'stopped')
           AND NOT EXISTS (SELECT FROM activation.strike k WHERE k.loop_id = w.loop_id AND k.kind = 'detect' AND k.retry_at > now)
         ORDER BY w.due_at
    LOOP
        EXIT WHEN cardinality(swept_ids) >= batch;
        stretch := ARRAY(SELECT e.enrollment_id FROM activation.enrollment e
                          WHERE e.loop_id = sweeping.loop_id AND e.version = sweeping.version AND e.step = sweeping.step
                            AND activation._part(e.user_id) = sweeping.part AND e.enrollment_id > sweeping.mark
                            AND e.activated_at IS NULL AND e.state <> 'exited'
                          ORDER BY e.enrollment_id LIMIT batch);
        -- A stretch cut short by the limit goes on in the next round; otherwise the sweep is over until its next time.
        UPDATE activation.sweep w
           SET due_at = CASE WHEN cardinality(stretch) = batch THEN w.due_at ELSE now + coalesce(sweeping.every, '10 minutes') END,
               mark = CASE WHEN cardinality(stretch) = batch THEN stretch[batch] ELSE 0 END
         WHERE w.loop_id = sweeping.loop_id AND w.version = sweeping.version AND w.step = sweeping.step AND w.part = sweeping.part;
        swept_ids := swept_ids || stretch;
    END LOOP;

    RETURN QUERY
    SELECT e.loop_id, e.version, e.step, array_agg(e.enrollment_id ORDER BY e.enrollment_id),
           array_agg(c.at ORDER BY e.enrollment_id), array_agg(c.fresh ORDER BY e.enrollment_id)
      FROM (SELECT u.id, max(u.at) AS at, bool_or(u.fresh) AS fresh
              FROM (SELECT unnest(new_ids), NULL::timestamptz, true
                    UNION ALL SELECT w.id, w.at, false FROM unnest(woken_ids, woken_at) AS w(id, at)
                    UNION ALL SELECT unnest(due_ids), NULL, false
                    UNION ALL SELECT unnest(swept_ids), NULL, false) AS u(id, at, fresh)
             GROUP BY u.id) c
      CROSS JOIN LATERAL (SELECT x.* FROM activation.enrollment x WHERE x.enrollment_id = c.id OFFSET 0) e
      JOIN activation."loop" l ON l.loop_id = e.loop_id AND l.state IN ('active', 'stopped')
     WHERE NOT EXISTS (SELECT FROM activation.strike k WHERE k.loop_id = e.loop_id AND k.kind = 'detect' AND k.retry_at > now)
     GROUP BY e.loop_id, e.version, e.step
     ORDER BY coalesce((SELECT k.strikes FROM activation.strike k WHERE k.loop_id = e.loop_id AND k.kind = 'detect'), 0), e.loop_id, e.version, e.step;
END
$$;

-- Says to the other workers, in pg_stat_activity, which loop's code this one runs and since when: what it writes into
-- tables they cannot see before it commits. NULL: none any more.
CREATE FUNCTION activation._evaluating(loop_id integer) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM set_config('application_name',
                       CASE WHEN loop_id IS NULL THEN 'activation'
                            ELSE format('activation loop %s since %s', loop_id, extract(epoch FROM clock_timestamp())) END, true);
END
$$;

-- Asks the condition of a step for these enrollments: the keys for which it is true. The only part of a round that runs
-- an author's code, and so the only one whose errors are an author's.
CREATE FUNCTION activation._detect_ask(loop_id integer, version integer, step integer, ids bigint[], one_by_one boolean DEFAULT false) RETURNS text[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    asked record;
    true_keys text[];
BEGIN
    SELECT s.evaluate_function, v.owner INTO asked
      FROM activation.step s JOIN activation.loop_version v USING (loop_id, version)
     WHERE s.loop_id = _detect_ask.loop_id AND s.version = _detect_ask.version AND s.step = _detect_ask.step;
    IF asked.evaluate_function IS NULL THEN
        RETURN NULL;
    END IF;
    PERFORM activation._evaluating(_detect_ask.loop_id);
    true_keys := activation._safe_eval(asked.evaluate_function, asked.owner,
        ARRAY(SELECT e.user_id FROM unnest(ids) AS a(id) JOIN activation.enrollment e ON e.enrollment_id = a.id), one_by_one);
    PERFORM activation._evaluating(NULL);
    RETURN true_keys;
END
$$;

-- Writes down what the answer changed, and nothing for the others: true is activation and the action's message; still
-- false at the deadline is the end of waiting and the otherwise message; NULL, a step without a condition, is decided by
-- its own start.
CREATE FUNCTION activation._detect_decide(ids bigint[], woken timestamptz[], fresh boolean[], true_keys text[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    now timestamptz := activation._now();
    acted bigint[];
    late bigint[];
BEGIN
    IF true_keys IS NULL THEN
        WITH changed AS (
            UPDATE activation.enrollment e SET state = 'completed', decided_at = now
              FROM unnest(ids) AS a(id) WHERE e.enrollment_id = a.id AND e.state = 'waiting'
            RETURNING e.enrollment_id
        )
        SELECT array_agg(c.enrollment_id) INTO acted FROM changed c;
    ELSE
        IF cardinality(true_keys) > 0 THEN
            WITH asked AS (
                SELECT e.enrollment_id, e.state, a.at, a.fresh
                  FROM unnest(ids, woken, fresh) AS a(id, at, fresh) JOIN activation.enrollment e ON e.enrollment_id = a.id
                  JOIN unnest(true_keys) AS k(user_id) ON k.user_id = e.user_id
                 WHERE e.activated_at IS NULL AND e.state <> 'exited'
                   FOR UPDATE OF e
            ), changed AS (
                UPDATE activation.enrollment e
                   SET activated_at = CASE WHEN a.fresh THEN e.enrolled_at ELSE coalesce(a.at, now) END,
                       state = CASE a.state WHEN 'waiting' THEN 'completed' ELSE a.state END,
                       decided_at = CASE a.state WHEN 'waiting' THEN now ELSE e.decided_at END,
                       retry_at = NULL, last_error = NULL
                  FROM asked a WHERE e.enrollment_id = a.enrollment_id
                RETURNING e.enrollment_id, a.state
            )
            SELECT array_agg(c.enrollment_id) FILTER (WHERE c.state = 'waiting') INTO acted FROM changed c;
        END IF;
        WITH changed AS (
            UPDATE activation.enrollment e SET state = 'timed_out', decided_at = now, retry_at = NULL
              FROM unnest(ids) AS a(id)
             WHERE e.enrollment_id = a.id AND e.state = 'waiting' AND e.deadline <= now
            RETURNING e.enrollment_id
        )
        SELECT array_agg(c.enrollment_id) INTO late FROM changed c;
        -- Who could not be evaluated before, and now was, has no error any more.
        UPDATE activation.enrollment e SET retry_at = NULL, last_error = NULL
          FROM unnest(ids) AS a(id) WHERE e.enrollment_id = a.id AND e.retry_at IS NOT NULL;
    END IF;

    IF acted IS NOT NULL OR late IS NOT NULL THEN
        INSERT INTO activation.message (message_id, enrollment_id, loop_id, version, user_id, step, branch, state, created_at, next_attempt_at)
        SELECT gen_random_uuid(), e.enrollment_id, e.loop_id, e.version, e.user_id, e.step, b.branch, 'queued', now, now
          FROM (SELECT unnest(acted) AS id, 'action' AS branch UNION ALL SELECT unnest(late), 'otherwise') b
          CROSS JOIN LATERAL (SELECT x.* FROM activation.enrollment x WHERE x.enrollment_id = b.id OFFSET 0) e
          CROSS JOIN LATERAL (SELECT CASE b.branch WHEN 'action' THEN s.action ELSE s.otherwise END AS email FROM activation.step s
                               WHERE s.loop_id = e.loop_id AND s.version = e.version AND s.step = e.step OFFSET 0) s
         WHERE s.email IS NOT NULL
        ON CONFLICT DO NOTHING;
    END IF;
END
$$;

-- One user on whom the condition raises: kept aside and tried again, without harm to the others.
CREATE FUNCTION activation._detect_bad_user(id bigint, error text) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE activation.enrollment e
       SET last_error = error, retry_at = activation._now() + interval '1 minute'
     WHERE e.enrollment_id = id
$$;

-- A strike against a loop whose code raised as a whole or ran too long. It is tried again after a while; after the third
-- strike it is failing and left alone until resume_loop().
CREATE FUNCTION activation._strike(loop_id integer, kind text, error text) RETURNS timestamptz
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    now timestamptz := activation._now();
    k activation.strike;
BEGIN
    INSERT INTO activation.strike AS x (loop_id, kind, strikes, retry_at, last_error, struck_at)
    VALUES (_strike.loop_id, _strike.kind, 1, now + interval '10 seconds', error, now)
    ON CONFLICT ON CONSTRAINT strike_pkey DO UPDATE
       SET strikes = x.strikes + 1, retry_at = now + interval '10 seconds' * (x.strikes + 1),
           last_error = excluded.last_error, struck_at = excluded.struck_at
    RETURNING x.* INTO k;
    IF k.strikes >= 3 THEN
        UPDATE activation."loop" l SET state = 'failing', reason = error WHERE l.loop_id = _strike.loop_id AND l.state IN ('active', 'stopped');
    END IF;
    RETURN k.retry_at;
END
$$;

-- The condition of a loop struck; its people are swept when it is tried again.
CREATE FUNCTION activation._detect_strike(loop_id integer, error text) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ SELECT activation._sweep(loop_id, activation._strike(loop_id, 'detect', 'its condition raised: ' || error)) $$;

-- The condition waited for a lock of the app: nobody's fault, no strike. Its people are swept a little later.
CREATE FUNCTION activation._detect_postpone(loop_id integer, error text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    again timestamptz := activation._now() + interval '3 seconds';
BEGIN
    INSERT INTO activation.strike AS x (loop_id, kind, strikes, retry_at, last_error, struck_at)
    VALUES (_detect_postpone.loop_id, 'detect', 0, again, 'its condition waited for a lock: ' || error, activation._now())
    ON CONFLICT ON CONSTRAINT strike_pkey DO UPDATE
       SET retry_at = excluded.retry_at, last_error = excluded.last_error, struck_at = excluded.struck_at;
    PERFORM activation._sweep(_detect_postpone.loop_id, again);
END
$$;

CREATE FUNCTION activation._detect_well(loop_id integer) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ DELETE FROM activation.strike k WHERE k.loop_id = _detect_well.loop_id AND k.kind = 'detect' $$;

-- ---- who this server is, and whether it may send --------------------------------------------------------------------------

CREATE FUNCTION activation._this_server(host text) RETURNS activation.identity
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT true, c.system_identifier, current_database()::text, host,
           current_setting('data_directory'), current_setting('port')::integer, activation._now()
      FROM pg_control_system() c
$$;

-- NULL when mail may leave this server in the present mode, else the reason why not.
CREATE FUNCTION activation._disarmed(host text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    s activation.setting := activation._setting();
    was activation.identity;
    here activation.identity := activation._this_server(host);
    difference text;
BEGIN
    IF s.mode = 'capture' THEN
        RETURN NULL;
    END IF;
    SELECT * INTO was FROM activation.identity;
    IF was.singleton IS NULL THEN
        RETURN format('mode %s was set on another server: this one is a copy', s.mode);
    END IF;
    IF s.hosts IS NULL THEN
        SELECT string_agg(format('%s is %s and was %s', d.what, d.actual, d.armed), '; ') INTO difference
          FROM (VALUES ('system identifier', here.system_identifier::text, was.system_identifier::text),
                       ('database', here.database, was.database),
                       ('host name', here.host, was.host),
                       ('data directory', here.data_directory, was.data_directory),
                       ('port', here.port::text, was.port::text)) AS d(what, actual, armed)
         WHERE d.actual <> d.armed;
    ELSE
        SELECT string_agg(format('%s is %s and was %s', d.what, d.actual, d.armed), '; ') INTO difference
          FROM (VALUES ('system identifier', here.system_identifier::text, was.system_identifier::text),
                       ('database', here.database, was.database)) AS d(what, actual, armed)
         WHERE d.actual <> d.armed;
        IF NOT EXISTS (SELECT FROM unnest(s.hosts) AS h(pattern) WHERE format('%s:%s', here.host, here.port) LIKE h.pattern) THEN
            difference := concat_ws('; ', difference, format('%s:%s matches none of hosts', here.host, here.port));
        END IF;
    END IF;
    RETURN CASE WHEN difference IS NOT NULL THEN format('mode %s was set on another server: %s', s.mode, difference) END;
END
$$;

-- ---- claim, store, record -------------------------------------------------------------------------------------------------

-- What a deliverer must know before it claims: the mode, whether it may send at all and why not, what to send with, and
-- whether there is anything to claim or to give up. marks: how far the queue of each loop was walked, see _claim_messages.
CREATE FUNCTION activation._deliver_state(host text, mark_loops integer[], mark_ats timestamptz[], mark_ids uuid[])
RETURNS TABLE (mode text, redirect_to text, disarmed text, paused text, paused_key text, sender text, reply_to text, resend_url text,
               api_key text, due boolean, expired boolean)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    now timestamptz := activation._now();
    s activation.setting := activation._setting();
    p activation.provider;
BEGIN
    SELECT * INTO p FROM activation.provider;
    RETURN QUERY SELECT s.mode, s.redirect_to, activation._disarmed(host),
        CASE WHEN p.paused_until > now THEN p.pause_reason END, p.paused_key,
        s.sender, s.reply_to, s.resend_url, s.api_key,
        EXISTS (SELECT FROM activation._queues(now, mark_loops, mark_ats, mark_ids))
        OR EXISTS (SELECT FROM activation.request r
                    WHERE r.state = 'open' AND r.next_attempt_at <= now
                      AND activation._unheld(r.lease_token, r.lease_until, r.lease_pid, r.lease_start)),
        EXISTS (SELECT FROM activation.request r
                 WHERE r.state = 'open' AND r.created_at < now - interval '23 hours'
                   AND activation._unheld(r.lease_token, r.lease_until, r.lease_pid, r.lease_start));
END
$$;

-- Loops that have mail due which may be claimed, the longest due first, and where to begin in the queue of each. Only who
-- waits in these loops is looked at: what waits in a loop that is paused costs nothing.
CREATE FUNCTION activation._queues(now timestamptz, mark_loops integer[], mark_ats timestamptz[], mark_ids uuid[])
RETURNS TABLE (loop_id integer, after_at timestamptz, after_id uuid)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT l.loop_id, k.at, k.id
      FROM activation."loop" l
      LEFT JOIN unnest(mark_loops, mark_ats, mark_ids) AS u(loop_id, at, id) USING (loop_id)
      CROSS JOIN LATERAL (SELECT coalesce(u.at, '-infinity') AS at, coalesce(u.id, '00000000-0000-0000-0000-000000000000') AS id) k
      CROSS JOIN LATERAL (SELECT m.next_attempt_at FROM activation.message m
                           WHERE m.state = 'queued' AND m.loop_id = l.loop_id AND m.next_attempt_at <= now
                             AND (m.next_attempt_at, m.message_id) > (k.at, k.id)
                           ORDER BY m.next_attempt_at, m.message_id LIMIT 1) first
     WHERE l.state = 'active'
       AND NOT EXISTS (SELECT FROM activation.strike s WHERE s.loop_id = l.loop_id AND s.kind = 'claim' AND s.retry_at > now)
     ORDER BY first.next_attempt_at
$$;

CREATE FUNCTION activation._secret(secret_name text) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT s.value FROM activation.secret s WHERE s.name = secret_name $$;

-- Whether nobody holds a request: no lease, one that has run out, or one whose holder is gone.
CREATE FUNCTION activation._unheld(lease_token uuid, lease_until timestamptz, lease_pid integer, lease_start timestamptz) RETURNS boolean
LANGUAGE sql STABLE
RETURN lease_token IS NULL OR lease_until < activation._now()
    OR NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = lease_pid AND a.backend_start = lease_start);

-- Locks up to `wanted` tokens, permissions for one request each, that are free now or within `ahead`: n, and the time
-- before which its request must not leave. They are taken by _take_tokens() in the same transaction, or stay as they are.
-- Without a known rate there is no limit (n is 0), but until the first answer has come, one request at a time.
-- A token whose holder is gone is free a second later: its request may have been sent up to the last moment.
-- unheld: the token is not to be held until the answer comes, which from a provider that always takes its time is too late.
CREATE FUNCTION activation._lock_tokens(wanted integer, ahead interval) RETURNS TABLE (n integer, free_at timestamptz, unheld boolean)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    now timestamptz := clock_timestamp();
    allowed numeric := activation._rate();
    size integer;
    slow boolean := coalesce((SELECT p.min_rtt > 0.5 AND p.answers >= 10 AND coalesce(p.careful_until < now, true)
                                FROM activation.provider p), false);
BEGIN
    IF allowed IS NULL THEN
        RETURN QUERY SELECT 0, now, true FROM generate_series(1, wanted);
        RETURN;
    END IF;
    size := greatest(floor(allowed), 1);
    IF (SELECT count(*) FROM activation.token t) <> size THEN
        INSERT INTO activation.token (n, free_at) SELECT g, now FROM generate_series(1, size) g ON CONFLICT DO NOTHING;
        DELETE FROM activation.token t WHERE t.n > size;
    END IF;
    UPDATE activation.token t SET free_at = now + interval '1 second', holder_pid = NULL, holder_start = NULL
     WHERE t.holder_pid IS NOT NULL
       AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = t.holder_pid AND a.backend_start = t.holder_start);
    RETURN QUERY
    SELECT t.n, t.free_at, slow FROM activation.token t
     WHERE t.free_at <= now + ahead ORDER BY t.free_at LIMIT wanted FOR UPDATE SKIP LOCKED;
END
$$;

-- How many requests may be made in a second: what the provider names or configure() set, the lower of both; NULL without
-- a limit. Before the first answer, when neither is known, one.
CREATE FUNCTION activation._rate() RETURNS numeric
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p activation.provider;
BEGIN
    SELECT * INTO p FROM activation.provider;
    RETURN CASE WHEN p.answers > 0 THEN least((activation._setting()).rate, p.learnt_rate)
                ELSE least((activation._setting()).rate, 1) END;
END
$$;

-- How long after a request the next one with the same token may leave: a second, unless the rate is a fraction, and 20 ms
-- for ways there that are not alike.
CREATE FUNCTION activation._token_period() RETURNS interval
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT make_interval(secs => coalesce(greatest(floor(r), 1) / r, 1)) + interval '20 milliseconds' FROM activation._rate() r $$;

CREATE FUNCTION activation._take_tokens(tokens integer[], lease interval, unheld boolean) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE activation.token t
       SET free_at = CASE WHEN unheld THEN greatest(t.free_at, clock_timestamp()) + activation._token_period() ELSE clock_timestamp() + lease END,
           holder_pid = CASE WHEN NOT unheld THEN me.pid END, holder_start = CASE WHEN NOT unheld THEN me.backend_start END
      FROM (SELECT a.pid, a.backend_start FROM pg_stat_activity a WHERE a.pid = pg_backend_pid()) me
     WHERE t.n = ANY (tokens)
$$;

-- Gives a token back after its request was answered, so that no second of the provider's sees one request too many. A
-- provider counts a request when it arrives, and most of a round trip is what it does afterwards: a second after this one
-- left, the next one may leave. That is not so for a request that had to make
-- its connection first, nor, as a 429 shows, for every provider: then it counts as having arrived at the last moment, the
-- shortest way back before its answer came, and the next one as arriving the shortest way there after it leaves; together
-- that is the shortest round trip, of which half is believed: a shorter one may still come. Among the first ten answers
-- there may have been no short one, so up to 100 ms are added.
CREATE FUNCTION activation._free_token(token integer, started_at timestamptz, finished_at timestamptz, fresh boolean) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p activation.provider;
    period interval := activation._token_period();
    shortest double precision;
BEGIN
    SELECT * INTO p FROM activation.provider;
    shortest := greatest(coalesce(least(extract(epoch FROM finished_at - started_at), p.min_rtt), 0) - 0.01 * (10 - p.answers), 0) / 2;
    UPDATE activation.token t
       SET holder_pid = NULL, holder_start = NULL,
           free_at = CASE WHEN fresh OR p.careful_until > clock_timestamp()
                          THEN finished_at + greatest(period - interval '18 milliseconds' - make_interval(secs => shortest), interval '0')
                          ELSE started_at + period END
     WHERE t.n = token;
END
$$;

-- Requests whose outcome was not known for 23 hours end as unknown: Resend forgets their key after 24.
CREATE FUNCTION activation._expire_requests() RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    WITH old AS (
        UPDATE activation.request r SET state = 'done', lease_token = NULL
         WHERE r.state = 'open' AND r.created_at < activation._now() - interval '23 hours'
           AND activation._unheld(r.lease_token, r.lease_until, r.lease_pid, r.lease_start)
        RETURNING r.request_id, r.members
    )
    UPDATE activation.message m
       SET state = 'unknown', finished_at = activation._now(),
           last_error = coalesce(m.last_error || '; ', '') || 'its outcome was not known for 23 hours'
      FROM old WHERE m.message_id = ANY (old.members) AND m.request_id = old.request_id AND m.state = 'sending'
$$;

-- Requests that are to be repeated: their outcome is not known, and nobody holds them. Unchecked and byte for byte: to
-- the user they were already sent. Only in the mode they were made in.
CREATE FUNCTION activation._claim_requests(token uuid, lease interval, wanted integer)
RETURNS TABLE (request_id uuid, endpoint text, body text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    now timestamptz := activation._now();
    current_mode text := (activation._setting()).mode;
BEGIN
    RETURN QUERY
    WITH due AS (
        SELECT r.request_id FROM activation.request r
         WHERE r.state = 'open' AND r.mode = current_mode AND r.next_attempt_at <= now
           AND r.created_at >= now - interval '23 hours'
           AND activation._unheld(r.lease_token, r.lease_until, r.lease_pid, r.lease_start)
         ORDER BY r.created_at LIMIT wanted FOR UPDATE SKIP LOCKED
    )
    UPDATE activation.request r
       SET lease_token = token, lease_until = now + lease, lease_pid = pg_backend_pid(), unclear = r.unclear + 1,
           lease_start = (SELECT a.backend_start FROM pg_stat_activity a WHERE a.pid = pg_backend_pid())
      FROM due WHERE r.request_id = due.request_id
    RETURNING r.request_id, r.endpoint, r.body;
END
$$;

-- The brake: how many more emails of a loop may leave now. A loop that would send more than max_per_hour is stopped
-- before it does, and waits for resume_loop(); without that setting, the limit is ten times its usual hour (the mean of
-- the hours of the last four weeks in which it sent any), at least 1,000. A resumed loop counts anew.
CREATE FUNCTION activation._hourly_limit(loop_id integer, now timestamptz) RETURNS bigint
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce((activation._setting()).max_per_hour,
                    greatest(1000, (SELECT 10 * avg(h.emails) FROM (
                        SELECT sum(p.emails) AS emails FROM activation.pace p
                         WHERE p.loop_id = _hourly_limit.loop_id AND p.at > now - interval '28 days' AND p.at <= now - interval '1 hour'
                         GROUP BY date_bin('1 hour', p.at, 'epoch')) h))::bigint)
$$;

CREATE FUNCTION activation._sent_within_the_hour(loop_id integer, now timestamptz) RETURNS bigint
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(sum(p.emails), 0) FROM activation.pace p
     WHERE p.loop_id = _sent_within_the_hour.loop_id AND p.at > now - interval '1 hour 5 minutes' AND p.at >= coalesce(
        (SELECT l.resumed_at FROM activation."loop" l WHERE l.loop_id = _sent_within_the_hour.loop_id), '-infinity')
$$;

-- Counts emails that are about to leave, or, with a negative number, that came back to the queue after all.
CREATE FUNCTION activation._count_pace(loop_ids integer[], emails integer[]) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.pace AS p (loop_id, at, emails)
    SELECT l.loop_id, greatest(date_bin('5 minutes', activation._now(), 'epoch'), l.resumed_at), u.emails
      FROM unnest(loop_ids, emails) AS u(loop_id, emails) JOIN activation."loop" l USING (loop_id) ORDER BY 1
    ON CONFLICT ON CONSTRAINT pace_pkey DO UPDATE SET emails = p.emails + excluded.emails
$$;

-- Locks due messages, oldest first, and checks what may have changed since they were promised: the user still exists,
-- and has not meanwhile done what a nudge would ask for. What fails a check is cancelled here; the rest is returned with
-- the user's row as it is now, to be rendered and stored in this same transaction. Those that ended or were put back come
-- without a user_row, so that the caller knows a claim without mail from an empty queue.
-- marks: the low-water mark of each loop's queue, so that dead entries before it are not walked again.
CREATE FUNCTION activation._claim_messages(wanted integer, mark_loops integer[], mark_ats timestamptz[], mark_ids uuid[])
RETURNS TABLE (message_id uuid, loop_id integer, version integer, step integer, branch text, next_attempt_at timestamptz,
               batch_limit smallint, user_id text, email text, user_row text, template_mark integer, context text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    now timestamptz := activation._now();
    live boolean := (activation._setting()).mode <> 'capture';
    queue record;
    take integer;
    hourly bigint;
    sent bigint;
    found uuid[];
    claimed uuid[] := '{}'::uuid[];
    owned record;
    rows text[];
    acted text[];
    kept uuid[];
    one_loop integer;
    returned integer := 0;
BEGIN
    FOR queue IN SELECT q.* FROM activation._queues(now, mark_loops, mark_ats, mark_ids) q LOOP
        take := wanted - cardinality(claimed);
        EXIT WHEN take = 0;
        IF live THEN
            hourly := activation._hourly_limit(queue.loop_id, now);
            sent := activation._sent_within_the_hour(queue.loop_id, now);
            IF sent + 10000 > hourly THEN
                -- So near to the limit, what others have claimed and not yet committed matters.
                PERFORM pg_advisory_xact_lock(hashtext('activation brake'), queue.loop_id);
                sent := activation._sent_within_the_hour(queue.loop_id, now);
            END IF;
            IF sent >= hourly THEN
                UPDATE activation."loop" l
                   SET state = 'stopped', reason = format('the brake: %s emails within an hour, and the limit is %s', sent, hourly)
                 WHERE l.loop_id = queue.loop_id AND l.state = 'active';
                CONTINUE;
            END IF;
            take := least(take, hourly - sent);
        END IF;
        found := ARRAY(SELECT m.message_id FROM activation.message m
                        WHERE m.state = 'queued' AND m.loop_id = queue.loop_id AND m.next_attempt_at <= now
                          AND (m.next_attempt_at, m.message_id) > (queue.after_at, queue.after_id)
                        ORDER BY m.next_attempt_at, m.message_id
                        LIMIT take FOR UPDATE SKIP LOCKED);
        claimed := claimed || found;
    END LOOP;
    IF claimed = '{}' THEN
        RETURN;
    END IF;
    FOR owned IN
        SELECT m.loop_id, m.version, v.owner, v.users_function, array_agg(m.message_id) AS ids,
               array_agg(DISTINCT m.user_id) AS keys,
               array_agg(DISTINCT m.user_id) FILTER (WHERE m.branch = 'otherwise') AS nudged
          FROM activation.message m JOIN activation.loop_version v USING (loop_id, version)
         WHERE m.message_id = ANY (claimed)
         GROUP BY m.loop_id, m.version, v.owner, v.users_function
    LOOP
        kept := owned.ids;
        -- Whatever the author's code does here puts back the messages of this loop only.
        BEGIN
            PERFORM activation._evaluating(owned.loop_id);
            rows := activation._safe_eval(owned.users_function, owned.owner, owned.keys);
            acted := '{}';
            IF owned.nudged IS NOT NULL THEN
                SELECT coalesce(array_agg(k), '{}') INTO acted
                  FROM activation.step s, unnest(activation._safe_eval(s.evaluate_function, owned.owner, owned.nudged)) AS k
                 WHERE s.loop_id = owned.loop_id AND s.version = owned.version AND s.step = 1 AND s.evaluate_function IS NOT NULL;
            END IF;
            PERFORM activation._evaluating(NULL);
        EXCEPTION
            WHEN query_canceled THEN
                PERFORM activation._claim_strike(owned.loop_id, 'cancelled while its messages were claimed: it ran too long');
                UPDATE activation.message m SET last_error = 'the loop''s own code was cancelled: it ran too long'
                 WHERE m.message_id = ANY (owned.ids);
                CONTINUE;
            WHEN others OR assert_failure THEN
                -- Who only met somebody else's lock comes again soon.
                UPDATE activation.message m
                   SET next_attempt_at = now + CASE WHEN SQLSTATE IN ('40001', '40P01', '55P03') THEN interval '3 seconds' ELSE interval '30 seconds' END,
                       last_error = SQLERRM
                 WHERE m.message_id = ANY (owned.ids);
                CONTINUE;
        END;
        DELETE FROM activation.strike k WHERE k.loop_id = owned.loop_id AND k.kind = 'claim';
        IF cardinality(acted) > 0 THEN
            UPDATE activation.enrollment e SET activated_at = now
              FROM activation.message m
             WHERE m.message_id = ANY (kept) AND m.branch = 'otherwise' AND m.user_id = ANY (acted)
               AND e.enrollment_id = m.enrollment_id AND e.activated_at IS NULL;
            WITH cancelled AS (
                UPDATE activation.message m
                   SET state = 'cancelled', finished_at = now, last_error = 'the user acted before it was sent'
                 WHERE m.message_id = ANY (kept) AND m.branch = 'otherwise' AND m.user_id = ANY (acted)
                RETURNING m.message_id
            )
            SELECT ARRAY(SELECT unnest(kept) EXCEPT SELECT c.message_id FROM cancelled c) INTO kept;
        END IF;
        RETURN QUERY
        WITH found AS MATERIALIZED (
            SELECT r::jsonb ->> 0 AS key, r::jsonb ->> 1 AS email, (r::jsonb -> 2)::text AS user_row FROM unnest(rows) AS r
        ), gone AS (
            UPDATE activation.message m
               SET state = 'cancelled', finished_at = now, last_error = 'the user no longer exists'
             WHERE m.message_id = ANY (kept) AND NOT EXISTS (SELECT FROM found f WHERE f.key = m.user_id)
        )
        SELECT m.message_id, m.loop_id, m.version, m.step, m.branch, m.next_attempt_at, m.batch_limit, m.user_id,
               f.email, f.user_row, e.template_mark, e.context::text
          FROM activation.message m JOIN found f ON f.key = m.user_id
          JOIN activation.enrollment e ON e.enrollment_id = m.enrollment_id
         WHERE m.message_id = ANY (kept)
         ORDER BY m.next_attempt_at, m.message_id;
        GET DIAGNOSTICS one_loop = ROW_COUNT;
        returned := returned + one_loop;
    END LOOP;
    IF returned < cardinality(claimed) THEN
        RETURN QUERY
        SELECT m.message_id, m.loop_id, m.version, m.step, m.branch, m.next_attempt_at, m.batch_limit, m.user_id,
               NULL::text, NULL::text, NULL::integer, NULL::text
          FROM activation.message m
         WHERE m.message_id = ANY (claimed) AND (m.state <> 'queued' OR m.next_attempt_at > now);
    END IF;
END
$$;

-- A strike from a deliverer, who never waits long for another worker: a detector may hold the loop's rows while it runs
-- code of an author that only this deliverer can cancel. A strike that is lost comes again.
CREATE FUNCTION activation._claim_strike(loop_id integer, error text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '200ms'
AS $$
BEGIN
    PERFORM activation._strike(loop_id, 'claim', error);
EXCEPTION WHEN lock_not_available THEN
    NULL;
END
$$;

-- What a deliverer needs to render a branch of a step; it keeps the answer, since versions never change.
CREATE FUNCTION activation._branch(loop_id integer, version integer, step integer, branch text)
RETURNS TABLE (loop text, action text, recovery text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT l.name, (CASE _branch.branch WHEN 'action' THEN s.action ELSE s.otherwise END)::text, (v.definition -> 'recovery')::text
      FROM activation.step s JOIN activation.loop_version v USING (loop_id, version) JOIN activation."loop" l USING (loop_id)
     WHERE s.loop_id = _branch.loop_id AND s.version = _branch.version AND s.step = _branch.step
$$;

-- The newest version of a template that an enrollment with this mark may use; none: the built-in of that name.
CREATE FUNCTION activation._template(template_name text, mark integer)
RETURNS TABLE (version integer, subject text, html text, body_text text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT t.version, t.subject, t.html, t.body_text
      FROM activation.template t
     WHERE t.name = template_name AND t.template_id <= mark
     ORDER BY t.version DESC LIMIT 1
$$;

-- Stores a request before it is sent: members and subjects in the order of the body, held by this worker's lease.
CREATE FUNCTION activation._store(request_id uuid, endpoint text, body text, members uuid[], recipients text[], subjects text[],
                                  mode text, recovery jsonb, token uuid, lease interval) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    now timestamptz := activation._now();
BEGIN
    INSERT INTO activation.request (request_id, endpoint, body, members, mode, recovery, state, created_at, next_attempt_at,
                                    lease_token, lease_until, lease_pid, lease_start)
    SELECT _store.request_id, _store.endpoint, _store.body, _store.members, _store.mode, _store.recovery, 'open', now, now,
           token, now + lease, a.pid, a.backend_start
      FROM pg_stat_activity a WHERE a.pid = pg_backend_pid();
    UPDATE activation.message m
       SET state = 'sending', request_id = _store.request_id, recipient = u.recipient, subject = u.subject
      FROM unnest(members, recipients, subjects) AS u(message_id, recipient, subject)
     WHERE m.message_id = u.message_id;
END
$$;

-- Messages that end at the claim: captured (nothing leaves in capture mode), or failed because they cannot be rendered or
-- have nowhere to go.
CREATE FUNCTION activation._finish(members uuid[], states text[], recipients text[], subjects text[], errors text[]) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE activation.message m
       SET state = u.state, recipient = u.recipient, subject = u.subject, last_error = u.error, finished_at = activation._now()
      FROM unnest(members, states, recipients, subjects, errors) AS u(message_id, state, recipient, subject, error)
     WHERE m.message_id = u.message_id
$$;

-- How long to wait before try number n + 1, as the loop's recovery says: fixed or doubling, capped, and spread by a fifth
-- either way so that many who failed together do not come back together.
CREATE FUNCTION activation._backoff(recovery jsonb, n integer) RETURNS interval
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT least((recovery ->> 'max')::interval,
                 (recovery ->> 'initial')::interval * CASE recovery ->> 'backoff' WHEN 'fixed' THEN 1 ELSE 2 ^ least(n - 1, 20) END)
           * (0.8 + 0.4 * random())
$$;

-- Writes down what came of one try of a request. Outcomes:
--   sent        accepted; resend_ids in the order of the members
--   refused     this try was certainly not accepted, and it is nobody's fault (no connection, 429): no try is spent
--   split       a batch refused for its content: back to queued, to be sent one by one
--   terminal    refused for good: failed
--   erred       answered by an error, perhaps accepted: repeated byte for byte until the tries are spent
--   unanswered  no usable answer, perhaps accepted: repeated byte for byte, no try spent
--   unknowable  the provider says that it has seen this key with another body: never sent again
-- A refusal sends the messages back to the queue, to be made anew under a new key, only if no other try of this request
-- can have been accepted. A refusal by name is an answer about the key: an accepted one would have been told again.
--
-- A worker that has lost its lease records nothing over the one who took over: returns false. Its try is still an attempt,
-- and if it was accepted that is the end of the matter, whatever the other one is still trying.
CREATE FUNCTION activation._record(request_id uuid, token uuid, outcome text, resend_ids text[], http_status integer,
                                   error_name text, error text, retry_after double precision,
                                   started_at timestamptz, finished_at timestamptz) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    now timestamptz := activation._now();
    r activation.request;
    mine boolean;
    retries integer;
    again timestamptz;
    message_state text;
BEGIN
    SELECT * INTO r FROM activation.request x WHERE x.request_id = _record.request_id FOR UPDATE;
    IF r.request_id IS NULL THEN
        RETURN false;
    END IF;
    mine := r.state = 'open' AND r.lease_token IS NOT DISTINCT FROM token;
    retries := (r.recovery ->> 'retries')::integer;
    r.tries := r.tries + 1;
    IF outcome <> 'unanswered' THEN
        r.unclear := greatest(r.unclear - 1, 0);
    END IF;
    IF outcome IN ('split', 'terminal') AND error_name IS NULL AND r.unclear + r.errors > 0 THEN
        outcome := 'erred';
    END IF;
    IF outcome = 'erred' THEN
        r.errors := r.errors + 1;
    END IF;

    CASE outcome
        WHEN 'sent' THEN
            message_state := 'sent';
        WHEN 'split' THEN
            message_state := 'queued';
            again := now;
        WHEN 'refused' THEN
            message_state := CASE WHEN r.unclear + r.errors = 0 THEN 'queued' ELSE 'sending' END;
            again := now + CASE WHEN retry_after IS NOT NULL THEN make_interval(secs => retry_after)
                                ELSE activation._backoff(r.recovery, least(r.tries, 3)) END;
        WHEN 'terminal' THEN
            message_state := 'failed';
        WHEN 'unknowable' THEN
            message_state := 'unknown';
        WHEN 'erred' THEN
            -- Tries spent, but one of them may have been accepted: it is not sent again and ends as unknown.
            message_state := CASE WHEN r.errors > retries AND r.unclear = 0 THEN 'failed' ELSE 'sending' END;
            again := CASE WHEN r.errors <= retries THEN now + activation._backoff(r.recovery, r.errors) ELSE 'infinity'::timestamptz END;
        WHEN 'unanswered' THEN
            message_state := 'sending';
            again := now + CASE WHEN retry_after IS NOT NULL THEN make_interval(secs => retry_after)
                                ELSE activation._backoff(r.recovery, r.tries) END;
    END CASE;

    IF mine OR outcome = 'sent' THEN
        UPDATE activation.request x
           SET tries = r.tries, errors = r.errors, unclear = r.unclear,
               lease_token = NULL, lease_until = NULL, lease_pid = NULL, lease_start = NULL,
               state = CASE message_state WHEN 'sending' THEN 'open' ELSE 'done' END,
               next_attempt_at = coalesce(again, x.next_attempt_at)
         WHERE x.request_id = r.request_id;
    ELSE
        UPDATE activation.request x SET tries = r.tries, errors = r.errors, unclear = r.unclear WHERE x.request_id = r.request_id;
    END IF;
    WITH tried AS (
        UPDATE activation.message m
           SET attempts = m.attempts + 1,
               state = message_state,
               batch_limit = CASE outcome WHEN 'split' THEN (cardinality(r.members) + 1) / 2 ELSE m.batch_limit END,
               next_attempt_at = CASE message_state WHEN 'queued' THEN again ELSE m.next_attempt_at END,
               request_id = CASE message_state WHEN 'queued' THEN NULL ELSE r.request_id END,
               sent_at = CASE message_state WHEN 'sent' THEN now END,
               resend_id = u.resend_id,
               last_error = CASE message_state WHEN 'sent' THEN NULL ELSE concat_ws(': ', _record.error_name, _record.error) END,
               finished_at = CASE WHEN message_state IN ('failed', 'unknown') THEN now END
          FROM unnest(r.members, resend_ids) AS u(message_id, resend_id)
         WHERE m.message_id = ANY (r.members) AND m.message_id = u.message_id
           AND (mine AND m.request_id = r.request_id AND m.state = 'sending'
                OR outcome = 'sent' AND m.state IN ('sending', 'queued', 'failed', 'unknown') AND coalesce(m.request_id, r.request_id) = r.request_id)
        RETURNING m.message_id, m.attempts
    ), late AS (
        UPDATE activation.message m SET attempts = m.attempts + 1
         WHERE m.message_id = ANY (r.members) AND NOT mine AND NOT EXISTS (SELECT FROM tried t WHERE t.message_id = m.message_id)
        RETURNING m.message_id, m.attempts
    )
    INSERT INTO activation.attempt (message_id, attempt, request_id, started_at, finished_at, outcome, http_status, error_name, error, retry_at)
    SELECT t.message_id, t.attempts, r.request_id, _record.started_at, _record.finished_at, _record.outcome,
           _record.http_status, _record.error_name, _record.error, CASE WHEN mine THEN nullif(again, 'infinity') END
      FROM (SELECT * FROM tried UNION ALL SELECT * FROM late) t;
    IF mine AND message_state = 'queued' THEN
        PERFORM activation._count_pace(array_agg(b.loop_id), array_agg(-b.emails))
           FROM (SELECT m.loop_id, count(*)::integer AS emails FROM activation.message m WHERE m.message_id = ANY (r.members) GROUP BY 1) b;
    END IF;
    RETURN mine;
END
$$;

-- What a person decided about a message of which nobody could know whether it was sent.
CREATE FUNCTION activation._resolve(id uuid, verdict text, person name) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.attempt (message_id, attempt, request_id, started_at, finished_at, outcome, error)
    SELECT m.message_id, m.attempts, m.request_id, activation._now(), activation._now(), 'resolved', format('%s said %s', person, verdict)
      FROM activation.message m WHERE m.message_id = id;
    UPDATE activation.message m
       SET state = CASE verdict WHEN 'sent' THEN 'sent' ELSE 'queued' END,
           sent_at = CASE verdict WHEN 'sent' THEN activation._now() END,
           request_id = CASE verdict WHEN 'sent' THEN m.request_id END,
           next_attempt_at = activation._now(), finished_at = NULL, last_error = NULL
     WHERE m.message_id = id
$$;

-- What an answer taught about the provider: the rate it names, the shortest round trip, and whether to pause, for how long.
-- too_many: the provider counted more requests than it allows, so tokens return more carefully for an hour.
-- A way that has become longer is noticed, but slowly (a quarter and 10 ms each 10 seconds): a network that held everything
-- up for a moment has not become longer. A pause without an end ends
-- with resume(), with a change of the settings it came from, or when the key is another (key_mark tells keys apart and is
-- no key).
CREATE FUNCTION activation._learn(rate numeric, rtt double precision, pause_reason text, pause_until timestamptz, key_mark text,
                                  too_many boolean) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    stretch timestamptz := date_bin('10 seconds', clock_timestamp(), 'epoch');
BEGIN
    INSERT INTO activation.provider AS p (paused_until, pause_reason, paused_key, learnt_rate, min_rtt, stretch_rtt, rtt_since, careful_until, answers)
    VALUES (_learn.pause_until, _learn.pause_reason, CASE WHEN pause_until IS NOT NULL THEN key_mark END, _learn.rate, _learn.rtt, _learn.rtt,
            CASE WHEN _learn.rtt IS NOT NULL THEN stretch END, CASE WHEN too_many THEN clock_timestamp() + interval '1 hour' END, (_learn.rtt IS NOT NULL)::integer)
    ON CONFLICT (singleton) DO UPDATE
       SET (paused_until, pause_reason, paused_key) = (SELECT x.until, x.reason, x.key FROM (
               VALUES (excluded.paused_until, excluded.pause_reason, excluded.paused_key), (p.paused_until, p.pause_reason, p.paused_key)) AS x(until, reason, key)
             ORDER BY x.until DESC NULLS LAST LIMIT 1),
           learnt_rate = coalesce(excluded.learnt_rate, p.learnt_rate),
           min_rtt = CASE WHEN p.rtt_since = stretch OR excluded.min_rtt IS NULL THEN least(excluded.min_rtt, p.min_rtt)
                          ELSE least(excluded.min_rtt, p.stretch_rtt, p.min_rtt * 1.25 + 0.01) END,
           stretch_rtt = CASE WHEN p.rtt_since = stretch OR excluded.min_rtt IS NULL THEN least(excluded.min_rtt, p.stretch_rtt)
                              ELSE excluded.min_rtt END,
           rtt_since = coalesce(excluded.rtt_since, p.rtt_since),
           careful_until = coalesce(excluded.careful_until, p.careful_until),
           answers = least(p.answers + excluded.answers, 10)
     WHERE p.answers < 10 OR excluded.pause_reason IS NOT NULL
        OR excluded.learnt_rate IS DISTINCT FROM coalesce(p.learnt_rate, excluded.learnt_rate)
        OR (p.learnt_rate IS NULL AND excluded.learnt_rate IS NOT NULL)
        OR excluded.min_rtt < p.stretch_rtt OR p.min_rtt IS NULL OR p.rtt_since IS DISTINCT FROM excluded.rtt_since;
END
$$;

-- The pause was another key's.
CREATE FUNCTION activation._end_pause() RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ UPDATE activation.provider SET paused_until = NULL, pause_reason = NULL, paused_key = NULL $$;

-- ---- workers --------------------------------------------------------------------------------------------------------------

-- A worker's heartbeat. Returns whether it is to go on: false after stop(), or when start() now asks for fewer workers.
CREATE FUNCTION activation._beat(kind text, slot integer, started boolean, worked boolean, note text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    born timestamptz;
BEGIN
    INSERT INTO activation.worker AS w (kind, slot, pid, backend_start, started_at, beat_at, worked_at, note)
    SELECT _beat.kind, _beat.slot, a.pid, a.backend_start, clock_timestamp(), clock_timestamp(),
           CASE WHEN worked THEN clock_timestamp() END, _beat.note
      FROM pg_stat_activity a WHERE a.pid = pg_backend_pid()
    ON CONFLICT ON CONSTRAINT worker_pkey DO UPDATE
       SET pid = excluded.pid, backend_start = excluded.backend_start, beat_at = excluded.beat_at, note = excluded.note,
           started_at = CASE WHEN _beat.started THEN excluded.started_at ELSE w.started_at END,
           worked_at = coalesce(excluded.worked_at, w.worked_at)
    RETURNING w.started_at INTO born;
    RETURN NOT EXISTS (SELECT FROM activation.schedule s WHERE s.stopped_at > born);
END
$$;

-- Ends what other workers run for longer than condition_timeout: first by cancelling it, which their own loops survive,
-- and where that does not help by terminating them. Returns one row for each that it ended; struck: who was terminated
-- could not write down the strike itself.
CREATE FUNCTION activation._end_overdue() RETURNS TABLE (loop_id integer, seconds double precision, struck boolean)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    allowed double precision := extract(epoch FROM (activation._setting()).condition_timeout);
    overdue record;
BEGIN
    FOR overdue IN
        SELECT a.pid, w.kind, (shown.parts)[1]::integer AS loop_id, extract(epoch FROM clock_timestamp()) - (shown.parts)[2]::double precision AS seconds
          FROM activation.worker w
          JOIN pg_stat_activity a ON a.pid = w.pid AND a.backend_start = w.backend_start
          CROSS JOIN LATERAL regexp_match(a.application_name, '^activation loop (\d+) since ([\d.]+)$') AS shown(parts)
         WHERE a.pid <> pg_backend_pid() AND shown.parts IS NOT NULL
    LOOP
        loop_id := overdue.loop_id;
        seconds := overdue.seconds;
        struck := false;
        CONTINUE WHEN seconds < allowed;
        IF seconds < allowed + 10 THEN
            PERFORM pg_cancel_backend(overdue.pid);
        ELSIF pg_terminate_backend(overdue.pid, 1000) THEN
            struck := true;
            PERFORM activation._strike(loop_id, CASE overdue.kind WHEN 'detector' THEN 'detect' ELSE 'claim' END,
                                       format('its own code ran for %s s and could not be cancelled', round(overdue.seconds)));
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;

-- The parts of the users that a detector looks after: those of its slot, and those of slots nobody works in now.
CREATE FUNCTION activation._my_parts(slot integer) RETURNS integer[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH alive AS (
        SELECT array_agg(w.slot ORDER BY w.slot) AS slots
          FROM activation.worker w JOIN pg_stat_activity a ON a.pid = w.pid AND a.backend_start = w.backend_start
         WHERE w.kind = 'detector' AND w.beat_at > clock_timestamp() - interval '15 seconds'
    )
    SELECT coalesce(array_agg(p.part ORDER BY p.part), '{}')
      FROM alive, unnest(activation._all_parts()) AS p(part)
     WHERE cardinality(coalesce(alive.slots, '{}')) = 0
        OR alive.slots[1 + p.part % cardinality(alive.slots)] = _my_parts.slot
        OR NOT _my_parts.slot = ANY (alive.slots)
$$;

-- ---- housekeeping ---------------------------------------------------------------------------------------------------------

-- Removes a little of what is older than `retention`: requests and the messages they carried, messages that ended without
-- one, their attempts, failures of filters; and sums up what the brake counts. Messages that are unknown stay, somebody is
-- to decide; enrollments stay, a user is enrolled once. Returns whether there is more; one worker at a time.
CREATE FUNCTION activation._housekeep() RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    now timestamptz := activation._now();
    oldest timestamptz := now - (activation._setting()).retention;
    requests uuid[];
    messages uuid[];
    ended uuid[];
    failures tid[];
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('activation'), hashtext('housekeeping')) THEN
        RETURN false;
    END IF;
    requests := ARRAY(SELECT r.request_id FROM activation.request r
                       WHERE r.state = 'done' AND r.created_at < oldest ORDER BY r.created_at LIMIT 20);
    messages := ARRAY(SELECT m.message_id
                        FROM activation.request r, unnest(r.members) AS u(message_id)
                       CROSS JOIN LATERAL (SELECT x.* FROM activation.message x WHERE x.message_id = u.message_id OFFSET 0) m
                       WHERE r.request_id = ANY (requests) AND m.request_id = r.request_id AND m.state NOT IN ('queued', 'sending', 'unknown'));
    ended := ARRAY(SELECT m.message_id FROM activation.message m
                    WHERE m.finished_at < oldest AND m.finished_at IS NOT NULL AND m.state <> 'unknown' ORDER BY m.finished_at LIMIT 1000);
    failures := ARRAY(SELECT c.ctid FROM activation.capture_failure c WHERE c.at < oldest ORDER BY c.at LIMIT 1000);
    DELETE FROM activation.attempt a WHERE a.message_id = ANY (messages || ended);
    DELETE FROM activation.message m WHERE m.message_id = ANY (messages || ended);
    DELETE FROM activation.request r WHERE r.request_id = ANY (requests);
    DELETE FROM activation.capture_failure c WHERE c.ctid = ANY (failures);

    DELETE FROM activation.pace p WHERE p.at < now - interval '28 days';
    WITH fine AS (
        DELETE FROM activation.pace p WHERE p.at < now - interval '3 hours' AND p.at <> date_bin('1 hour', p.at, 'epoch') RETURNING *
    )
    INSERT INTO activation.pace AS p (loop_id, at, emails)
    SELECT f.loop_id, date_bin('1 hour', f.at, 'epoch'), sum(f.emails) FROM fine f GROUP BY 1, 2 ORDER BY 1, 2
    ON CONFLICT ON CONSTRAINT pace_pkey DO UPDATE SET emails = p.emails + excluded.emails;
    RETURN requests <> '{}' OR ended <> '{}' OR failures <> '{}';
END
$$;
