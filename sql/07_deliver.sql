-- Delivery: claim, store, record. Functions are ordered as a message lives.

-- ---- who this server is, and whether it may send --------------------------------------------------------------------------

-- With its owner's rights: the engine's role may not see where the data is.
CREATE FUNCTION activation._this_server(host text) RETURNS activation.identity
LANGUAGE sql STABLE SECURITY DEFINER
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
               api_key text, public_url text, signing_key text, slow boolean, due boolean, expired boolean)
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
        s.sender, s.reply_to, s.resend_url, s.api_key, s.public_url, (SELECT x.key FROM activation.signing x), activation._slow_provider(),
        EXISTS (SELECT FROM activation._queues(now, mark_loops, mark_ats, mark_ids))
        OR EXISTS (SELECT FROM activation.request r
                    WHERE r.state = 'open' AND r.next_attempt_at <= now
                      AND activation._unheld(r.lease_token, r.lease_until, r.lease_pid, r.lease_start)),
        EXISTS (SELECT FROM activation.request r
                 WHERE r.state = 'open' AND r.created_at < now - interval '23 hours'
                   AND activation._unheld(r.lease_token, r.lease_until, r.lease_pid, r.lease_start));
END
$$;

-- Whether there is anything to claim or to give up, for a deliverer that has walked no queue: asked many times a second by
-- one with nothing to do. Without sequential scans, see _detect_due().
CREATE FUNCTION activation._deliver_due() RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    now timestamptz := activation._now();
BEGIN
    RETURN EXISTS (SELECT FROM activation."loop" l
                    WHERE l.state = 'active'
                      AND EXISTS (SELECT FROM activation.message m
                                   WHERE m.request_id IS NULL AND m.finished_at IS NULL AND m.loop_id = l.loop_id AND m.next_attempt_at <= now)
                      AND NOT EXISTS (SELECT FROM activation.strike s WHERE s.loop_id = l.loop_id AND s.kind = 'claim' AND s.retry_at > now))
        OR EXISTS (SELECT FROM activation.request r
                    WHERE r.state = 'open' AND (r.next_attempt_at <= now OR r.created_at < now - interval '23 hours')
                      AND activation._unheld(r.lease_token, r.lease_until, r.lease_pid, r.lease_start));
END
$$;

-- Loops that have mail due which may be claimed, by priority, then the longest due first, and where to begin in the queue
-- of each. Only who waits in these loops is looked at: what waits in a loop that is paused costs nothing.
CREATE FUNCTION activation._queues(now timestamptz, mark_loops integer[], mark_ats timestamptz[], mark_ids uuid[])
RETURNS TABLE (loop_id integer, after_at timestamptz, after_id uuid)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT l.loop_id, k.at, k.id
      FROM activation."loop" l JOIN activation.loop_version v USING (loop_id, version)
      LEFT JOIN unnest(mark_loops, mark_ats, mark_ids) AS u(loop_id, at, id) USING (loop_id)
      CROSS JOIN LATERAL (SELECT coalesce(u.at, '-infinity') AS at, coalesce(u.id, '00000000-0000-0000-0000-000000000000') AS id) k
      CROSS JOIN LATERAL (SELECT m.next_attempt_at FROM activation.message m
                           WHERE m.request_id IS NULL AND m.finished_at IS NULL AND m.loop_id = l.loop_id AND m.next_attempt_at <= now
                             AND (m.next_attempt_at, m.message_id) > (k.at, k.id)
                           ORDER BY m.next_attempt_at, m.message_id LIMIT 1) first
     WHERE l.state = 'active'
       AND NOT EXISTS (SELECT FROM activation.strike s WHERE s.loop_id = l.loop_id AND s.kind = 'claim' AND s.retry_at > now)
     ORDER BY v.priority DESC, first.next_attempt_at
$$;

CREATE FUNCTION activation._secret(secret_name text) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT s.value FROM activation.secret s WHERE s.name = secret_name $$;

-- Whether nobody holds a request: no lease, one that has run out, or one whose holder is gone.
CREATE FUNCTION activation._unheld(lease_token uuid, lease_until timestamptz, lease_pid integer, lease_start timestamptz) RETURNS boolean
LANGUAGE sql STABLE
RETURN lease_token IS NULL OR lease_until < activation._now()
    OR NOT activation._is_alive(lease_pid, lease_start);

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
           lease_start = activation._backend_start(pg_backend_pid())
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

-- Takes the lock of a loop's brake, if nobody holds it: the row of the loop's first version. Pausing and stopping do not
-- touch that row, so they need not wait.
CREATE FUNCTION activation._try_brake(loop_id integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM FROM activation.loop_version v WHERE v.loop_id = _try_brake.loop_id AND v.version = 1 FOR NO KEY UPDATE SKIP LOCKED;
    RETURN FOUND;
END
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

-- When a send window that is closed at this moment opens next, in this time zone; NULL while it is open. A window that
-- closes before it opens goes over midnight and belongs to the day on which it opens. Times are those of the clock on the
-- wall there: a day on which the clock changes has the same ones.
CREATE FUNCTION activation._window_opens(send_window jsonb, zone text, at timestamptz) RETURNS timestamptz
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    days text[] := string_to_array(send_window ->> 'days', ',');
    opens interval := (send_window ->> 'opens')::interval;
    closes interval := (send_window ->> 'closes')::interval;
    here timestamp := at AT TIME ZONE zone;
    day timestamp := date_trunc('day', here) - interval '1 day';
    opening timestamptz;
BEGIN
    IF closes < opens THEN
        closes := closes + interval '1 day';
    END IF;
    FOR n IN 0 .. 9 LOOP
        IF (ARRAY['Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat', 'Sun'])[extract(isodow FROM day)::integer] = ANY (days) THEN
            IF here >= day + opens AND here < day + closes THEN
                RETURN NULL;
            END IF;
            opening := (day + opens) AT TIME ZONE zone;
            -- Where the clock jumps over the whole window, it does not open that day.
            IF opening > at AND opening AT TIME ZONE zone < day + closes THEN
                RETURN opening;
            END IF;
        END IF;
        day := day + interval '1 day';
    END LOOP;
    RETURN at + interval '1 day';
END
$$;

-- A user's time zone: as their row has it, else, or where there is none of this name, the setting.
CREATE FUNCTION activation._zone(named text, OUT zone text, OUT unknown boolean)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    unknown := false;
    zone := coalesce(nullif(btrim(named), ''), (activation._setting()).timezone);
    PERFORM now() AT TIME ZONE zone;
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
    unknown := true;
    zone := (activation._setting()).timezone;
END
$$;

-- How long a user who has had as much mail as max_per_user allows waits for the next: until, or NULL when it may go now.
-- Counted is what left, or is about to, from loops that are not transactional.
CREATE FUNCTION activation._over_cap(wanted_user text, users regclass, also integer, now timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
    SELECT CASE WHEN also >= s.max_per_user THEN now + s.per ELSE (
        SELECT coalesce(m.sent_at, r.created_at) + s.per
          FROM activation.enrollment e JOIN activation.loop_version v USING (loop_id, version)
          JOIN activation.message m USING (enrollment_id) LEFT JOIN activation.request r ON r.request_id = m.request_id
         WHERE e.user_id = wanted_user AND v.users = _over_cap.users AND NOT v.transactional
           AND m.state IN ('sending', 'sent', 'delivered', 'bounced', 'complained', 'unknown') AND coalesce(m.sent_at, r.created_at) > now - s.per
         ORDER BY coalesce(m.sent_at, r.created_at) DESC OFFSET s.max_per_user - also - 1 LIMIT 1) END
      FROM activation._setting() s WHERE s.max_per_user IS NOT NULL
$$;

-- Messages before which others of the same enrollment have not ended: when they may be looked at again. NULL: as soon as
-- those have left.
CREATE FUNCTION activation._out_of_turn(messages uuid[], now timestamptz) RETURNS TABLE (message_id uuid, again timestamptz)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT m.message_id, nullif(max(least(greatest(CASE WHEN before.request_id IS NULL THEN before.next_attempt_at ELSE r.next_attempt_at END, now), now + interval '1 hour')), now)
      FROM activation.message m
      JOIN activation.step s ON s.loop_id = m.loop_id AND s.version = m.version AND s.step = m.step AND s.position > 1
      JOIN activation.message before ON before.enrollment_id = m.enrollment_id AND before.state IN ('queued', 'sending')
      JOIN activation.step b ON b.loop_id = before.loop_id AND b.version = before.version AND b.step = before.step AND b.position < s.position
      LEFT JOIN activation.request r ON r.request_id = before.request_id
     WHERE m.message_id = ANY (messages)
     GROUP BY m.message_id
$$;

-- A user's row as a claim has it. left_out: names of columns that are too large; body: the row as templates see it, NULL
-- where the claim has no more room for it. The rest is what the engine itself looks at.
CREATE TYPE activation.users_row AS (user_id text, email text, zone text, left_out jsonb, body text);
COMMENT ON TYPE activation.users_row IS 'A user''s row on its way between functions of a claim.';

-- A message that was claimed, with what it takes to render it.
CREATE TYPE activation.claimed AS (message_id uuid, loop_id integer, version integer, step integer, branch text, next_attempt_at timestamptz,
                                   batch_limit smallint, user_id text, email text, user_row text, template_mark integer, context text, enrollment_id bigint);
COMMENT ON TYPE activation.claimed IS 'A message that a deliverer is to render.';

-- What a users function returned, see _users_body().
CREATE FUNCTION activation._read_rows(rows text[]) RETURNS activation.users_row[]
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ARRAY(SELECT (r.head ->> 0, r.head ->> 1, r.head ->> 2, nullif(r.head -> 3, 'null'), nullif(split_part(r.whole, E'\n', 2), ''))::activation.users_row
                   FROM (SELECT u.r AS whole, split_part(u.r, E'\n', 1)::jsonb AS head FROM unnest(rows) AS u(r) OFFSET 0) r)
$$;

-- Locks due messages, oldest first, and checks what may have changed since they were promised: those before it have left,
-- the user still exists and has not meanwhile done what a nudge would ask for, the window is open, the cap not reached.
-- What fails a check ends here or is put back; the rest is returned with
-- the user's row as it is now, to be rendered and stored in this same transaction. Those that ended or were put back come
-- without a user_row, so that the caller knows a claim without mail from an empty queue.
-- marks: the low-water mark of each loop's queue, so that dead entries before it are not walked again.
CREATE FUNCTION activation._claim_messages(wanted integer, mark_loops integer[], mark_ats timestamptz[], mark_ids uuid[])
RETURNS SETOF activation.claimed
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    now timestamptz := activation._now();
    s activation.setting := activation._setting();
    live boolean := s.mode <> 'capture';
    queue record;
    take integer;
    hourly bigint;
    sent bigint;
    found uuid[];
    early uuid[];
    claimed uuid[] := '{}'::uuid[];
    owned record;
    made activation.claimed[];
    counts jsonb := '{}'::jsonb;
    returned integer := 0;
BEGIN
    IF live AND s.max_per_user IS NOT NULL THEN
        -- Two deliverers must not both find room for a user's last mail.
        PERFORM activation._lock('cap');
    END IF;
    FOR queue IN SELECT q.* FROM activation._queues(now, mark_loops, mark_ats, mark_ids) q LOOP
        take := wanted - cardinality(claimed);
        EXIT WHEN take = 0;
        IF live THEN
            hourly := activation._hourly_limit(queue.loop_id, now);
            sent := activation._sent_within_the_hour(queue.loop_id, now);
            IF sent + 10000 > hourly THEN
                -- So near to the limit, what others have claimed and not yet committed matters: who comes second leaves this
                -- loop's mail to them for now.
                CONTINUE WHEN NOT activation._try_brake(queue.loop_id);
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
                        WHERE m.request_id IS NULL AND m.finished_at IS NULL AND m.loop_id = queue.loop_id AND m.next_attempt_at <= now
                          AND (m.next_attempt_at, m.message_id) > (queue.after_at, queue.after_id)
                        ORDER BY m.next_attempt_at, m.message_id
                        LIMIT take FOR UPDATE SKIP LOCKED);
        IF EXISTS (SELECT FROM activation.step x WHERE x.loop_id = queue.loop_id AND x.position > 1) THEN
            WITH early AS (
                SELECT t.* FROM activation._out_of_turn(found, now) t
            ), put_back AS (
                UPDATE activation.message m SET next_attempt_at = t.again FROM early t WHERE m.message_id = t.message_id AND t.again IS NOT NULL
            )
            SELECT array_agg(t.message_id) INTO early FROM early t;
            found := ARRAY(SELECT f.id FROM unnest(found) AS f(id) WHERE f.id = ANY (early) IS NOT TRUE);
        END IF;
        claimed := claimed || found;
    END LOOP;
    IF claimed = '{}' THEN
        RETURN;
    END IF;
    FOR owned IN
        SELECT m.loop_id, m.version, v.priority, array_agg(m.message_id) AS ids
          FROM unnest(claimed) AS u(id)
          CROSS JOIN LATERAL (SELECT x.loop_id, x.version, x.message_id, x.next_attempt_at FROM activation.message x WHERE x.message_id = u.id OFFSET 0) m
          JOIN activation.loop_version v USING (loop_id, version)
         GROUP BY m.loop_id, m.version, v.priority
         ORDER BY v.priority DESC, min(m.next_attempt_at)
    LOOP
        SELECT c.made, c.counted INTO made, counts FROM activation._claim_of_loop(owned.loop_id, owned.version, owned.ids, counts, now) c;
        RETURN QUERY SELECT u.* FROM unnest(made) u;
        returned := returned + cardinality(made);
    END LOOP;
    IF returned < cardinality(claimed) THEN
        RETURN QUERY
        SELECT m.message_id, m.loop_id, m.version, m.step, m.branch, m.next_attempt_at, m.batch_limit, m.user_id,
               NULL::text, NULL::text, NULL::integer, NULL::text, NULL::bigint
          FROM unnest(claimed) AS u(id)
          CROSS JOIN LATERAL (SELECT x.* FROM activation.message x WHERE x.message_id = u.id OFFSET 0) m
         WHERE m.state <> 'queued' OR m.next_attempt_at > now;
    END IF;
END
$$;

-- Checks claimed messages of one version of a loop. Where that raises for what may be one person's, by halves, until the one
-- that raises is found: it has failed, and the others go on.
CREATE FUNCTION activation._claim_of_loop(of_loop integer, of_version integer, ids uuid[], counts jsonb, now timestamptz,
                                          OUT made activation.claimed[], OUT counted jsonb)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    middle integer := cardinality(ids) / 2;
    half record;
BEGIN
    made := '{}';
    counted := counts;
    BEGIN
        SELECT c.made, c.counted INTO made, counted FROM activation._claim_checked(of_loop, of_version, ids, counts, now) c;
        RETURN;
    EXCEPTION WHEN others THEN
        IF NOT activation._of_a_person(SQLSTATE) THEN
            RAISE;
        ELSIF middle = 0 THEN
            PERFORM activation._fail(ids, activation._short(SQLERRM));
            RETURN;
        END IF;
    END;
    FOR n IN 1 .. 2 LOOP
        SELECT * INTO half FROM activation._claim_of_loop(of_loop, of_version, CASE n WHEN 1 THEN ids[: middle] ELSE ids[middle + 1 :] END, counted, now);
        made := made || half.made;
        counted := half.counted;
    END LOOP;
END
$$;

-- Queued messages that cannot be made for a reason of their own end as failed.
CREATE FUNCTION activation._fail(messages uuid[], problem text) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE activation.message m SET state = 'failed', finished_at = activation._now(), last_error = problem
     WHERE m.message_id = ANY (messages) AND m.state = 'queued'
$$;

CREATE FUNCTION activation._claim_checked(of_loop integer, of_version integer, ids uuid[], counts jsonb, now timestamptz,
                                          OUT made activation.claimed[], OUT counted jsonb)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    s activation.setting := activation._setting();
    owned record;
    keys text[];
    asked record;
    answer record;
    rows activation.users_row[];
    unread record;
    unasked jsonb := '{}'::jsonb;
    dropped uuid[] := '{}'::uuid[];
    kept uuid[] := ids;
    began timestamptz;
    too_long boolean;
BEGIN
    made := '{}';
    counted := counts;
    SELECT v.owner, v.users, v.users_function, v.goal_step, v.send_window, v.over_cap, v.transactional, v.definition ->> 'topic' AS topic,
           s.max_per_user IS NOT NULL AND NOT v.transactional AND s.mode <> 'capture' AS capped, goal.evaluate_function AS goal_function,
           EXISTS (SELECT FROM activation.step x WHERE x.loop_id = v.loop_id AND x.version = v.version AND activation._nudges(x)) AS nudges
      INTO owned
      FROM activation.loop_version v
      LEFT JOIN activation.step goal ON goal.loop_id = v.loop_id AND goal.version = v.version AND goal.step = v.goal_step
     WHERE v.loop_id = of_loop AND v.version = of_version;
    keys := ARRAY(SELECT DISTINCT m.user_id FROM unnest(ids) AS u(id)
                   CROSS JOIN LATERAL (SELECT x.user_id FROM activation.message x WHERE x.message_id = u.id OFFSET 0) m);
    -- Whatever the author's code does here puts back the messages of this loop only.
    began := clock_timestamp();
    BEGIN
        PERFORM activation._evaluating(of_loop);
        SELECT * INTO unread FROM activation._safe_eval_each(owned.users_function, owned.owner, keys);
        rows := activation._read_rows(unread.answers);
        -- Not wanted any more by those who have reached the goal, or done what the step waited for.
        IF owned.nudges THEN
            FOR asked IN
                SELECT q.function_name, q.function_name = owned.goal_function AS goal, array_agg(DISTINCT m.user_id) AS keys, array_agg(m.message_id) AS ids
                  FROM unnest(kept) AS u(id)
                  CROSS JOIN LATERAL (SELECT x.* FROM activation.message x WHERE x.message_id = u.id OFFSET 0) m
                  JOIN activation.step x ON (x.loop_id, x.version, x.step) = (m.loop_id, m.version, m.step)
                  CROSS JOIN LATERAL (SELECT owned.goal_function AS function_name UNION SELECT x.evaluate_function) q
                 WHERE activation._nudge(x, m.branch) AND q.function_name IS NOT NULL
                 GROUP BY 1, 2
            LOOP
                SELECT * INTO answer FROM activation._safe_eval_each(asked.function_name, owned.owner, asked.keys);
                unasked := unasked || coalesce((SELECT jsonb_object_agg(b.key, b.error) FROM unnest(answer.bad_keys, answer.errors) AS b(key, error)), '{}');
                CONTINUE WHEN answer.answers = '{}';
                dropped := dropped || ARRAY(
                    SELECT m.message_id FROM unnest(asked.ids) AS u(id)
                     CROSS JOIN LATERAL (SELECT x.* FROM activation.message x WHERE x.message_id = u.id OFFSET 0) m
                     WHERE m.user_id = ANY (answer.answers));
                IF asked.goal THEN
                    PERFORM activation._claim_reached(asked.ids, answer.answers, now);
                END IF;
            END LOOP;
        END IF;
        PERFORM activation._evaluating(NULL);
    EXCEPTION
        WHEN others OR assert_failure OR query_canceled THEN
            PERFORM activation._evaluating(NULL);
            too_long := SQLSTATE = '57014' AND activation._too_long(extract(epoch FROM clock_timestamp() - began));
            IF SQLSTATE IN ('ACT04', 'ACT05') THEN
                PERFORM activation._fail_at_once(of_loop, 'claim', SQLERRM, SQLSTATE = 'ACT05');
            ELSIF too_long THEN
                PERFORM activation._claim_strike(of_loop, 'cancelled while its messages were claimed: it ran too long');
            END IF;
            -- Who only met somebody else, a lock or a cancel, comes again soon.
            UPDATE activation.message m
               SET next_attempt_at = CASE WHEN too_long THEN m.next_attempt_at
                                          WHEN SQLSTATE IN ('40001', '40P01', '55P03', '57014') THEN now + interval '3 seconds'
                                          ELSE now + interval '30 seconds' END,
                   last_error = CASE WHEN too_long THEN 'the loop''s own code was cancelled: it ran too long' ELSE activation._short(SQLERRM) END
             WHERE m.message_id = ANY (ids);
            RETURN;
    END;
    DELETE FROM activation.strike k WHERE k.loop_id = of_loop AND k.kind = 'claim';
    IF owned.nudges THEN
        -- Who reached the goal once needs no nudge, whatever the goal says now.
        dropped := dropped || ARRAY(
            SELECT m.message_id FROM unnest(kept) AS u(id)
             CROSS JOIN LATERAL (SELECT x.* FROM activation.message x WHERE x.message_id = u.id OFFSET 0) m
             CROSS JOIN LATERAL (SELECT y.activated_at FROM activation.enrollment y WHERE y.enrollment_id = m.enrollment_id OFFSET 0) e
              JOIN activation.step x ON (x.loop_id, x.version, x.step) = (m.loop_id, m.version, m.step)
             WHERE e.activated_at IS NOT NULL AND activation._nudge(x, m.branch));
    END IF;
    IF dropped <> '{}' THEN
        UPDATE activation.message m
           SET state = 'cancelled', finished_at = now, last_error = 'the user acted before it was sent'
         WHERE m.message_id = ANY (dropped);
        kept := ARRAY(SELECT unnest(kept) EXCEPT SELECT unnest(dropped));
    END IF;
    IF unread.bad_keys <> '{}' OR unasked <> '{}' THEN
        kept := activation._claim_raised(kept, unread.bad_keys, unread.errors, unread.codes, unasked, now);
    END IF;
    kept := activation._claim_gone(kept, rows);
    kept := activation._claim_unwanted(kept, rows, owned.users, owned.topic, owned.transactional, now);
    IF owned.send_window IS NOT NULL THEN
        kept := activation._claim_window(kept, rows, owned.send_window, now);
    END IF;
    IF owned.capped THEN
        SELECT c.kept, c.counted INTO kept, counted FROM activation._claim_cap(kept, owned.users, owned.over_cap, counts, now) c;
    END IF;
    PERFORM activation._remark_left_out(kept, rows, now);
    made := ARRAY(
        WITH mail AS MATERIALIZED (
            SELECT m.*, e.template_mark, e.context::text AS context
              FROM unnest(kept) AS u(id)
              CROSS JOIN LATERAL (SELECT x.message_id, x.loop_id, x.version, x.step, x.branch, x.next_attempt_at, x.batch_limit, x.user_id, x.enrollment_id
                                    FROM activation.message x WHERE x.message_id = u.id OFFSET 0) m
              CROSS JOIN LATERAL (SELECT y.template_mark, y.context FROM activation.enrollment y WHERE y.enrollment_id = m.enrollment_id OFFSET 0) e
        )
        SELECT (m.message_id, m.loop_id, m.version, m.step, m.branch, m.next_attempt_at, m.batch_limit, m.user_id,
                f.email, f.body, m.template_mark, m.context, m.enrollment_id)::activation.claimed
          FROM mail m JOIN unnest(rows) AS f(key, email, zone, left_out, body) ON f.key = m.user_id
         WHERE f.body IS NOT NULL
         ORDER BY m.next_attempt_at, m.message_id);
END
$$;

-- Nobody needs a nudge who has reached the goal: when that was noticed at a claim.
CREATE FUNCTION activation._claim_reached(messages uuid[], keys text[], now timestamptz) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    places tid[] := ARRAY(
        SELECT e.ctid FROM unnest(messages) AS u(id)
         CROSS JOIN LATERAL (SELECT x.user_id, x.enrollment_id FROM activation.message x WHERE x.message_id = u.id OFFSET 0) m
         CROSS JOIN LATERAL (SELECT y.ctid, y.activated_at FROM activation.enrollment y WHERE y.enrollment_id = m.enrollment_id FOR NO KEY UPDATE OFFSET 0) e
         WHERE m.user_id = ANY (keys) AND e.activated_at IS NULL);
BEGIN
    UPDATE activation.enrollment e SET activated_at = now WHERE e.ctid = ANY (places);
END
$$;

-- Messages of people on whom the loop's code raised. Where the row cannot be read, its data is at fault and the message has
-- failed; for any other error it waits a minute. Returns the messages of everybody else.
CREATE FUNCTION activation._claim_raised(messages uuid[], bad_keys text[], errors text[], codes text[], unasked jsonb, now timestamptz) RETURNS uuid[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    one record;
    aside uuid[] := '{}'::uuid[];
BEGIN
    FOR one IN
        WITH mail AS MATERIALIZED (
            SELECT m.message_id, m.loop_id, m.user_id
              FROM unnest(messages) AS u(id) CROSS JOIN LATERAL (SELECT x.* FROM activation.message x WHERE x.message_id = u.id OFFSET 0) m
        )
        SELECT m.message_id, m.loop_id, m.user_id, b.error, left(b.code, 2) IN ('21', '22', '54', 'XX') AS of_the_data
          FROM mail m
          JOIN (SELECT k.key, k.error, k.code FROM unnest(bad_keys, errors, codes) AS k(key, error, code)
                 UNION ALL SELECT j.key, j.value, '' FROM jsonb_each_text(unasked) AS j(key, value) WHERE j.key <> ALL (bad_keys)) b ON b.key = m.user_id
    LOOP
        aside := aside || one.message_id;
        IF one.of_the_data THEN
            PERFORM activation._fail(ARRAY[one.message_id], 'the user''s row cannot be read: ' || one.error);
            PERFORM activation._remark(one.loop_id, one.user_id, 'the user''s row cannot be read: ' || one.error, now);
        ELSE
            UPDATE activation.message m
               SET next_attempt_at = now + interval '1 minute', last_error = 'the loop''s own code raised for this user: ' || one.error
             WHERE m.message_id = one.message_id;
        END IF;
    END LOOP;
    RETURN ARRAY(SELECT unnest(messages) EXCEPT SELECT unnest(aside));
END
$$;

-- Cut, since it is a part of a key.
CREATE FUNCTION activation._remark(of_loop integer, of_user text, remark text, now timestamptz) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.remark (at, loop_id, user_id, remark) VALUES (now, of_loop, of_user, left(remark, 300)) ON CONFLICT DO NOTHING
$$;

CREATE FUNCTION activation._remark_left_out(messages uuid[], rows activation.users_row[], now timestamptz) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    IF EXISTS (SELECT FROM unnest(rows) AS r(key, email, zone, left_out, body) WHERE r.left_out IS NOT NULL) THEN
        WITH mail AS MATERIALIZED (
            SELECT x.loop_id, x.user_id
              FROM unnest(messages) AS u(id) CROSS JOIN LATERAL (SELECT y.loop_id, y.user_id FROM activation.message y WHERE y.message_id = u.id OFFSET 0) x
        )
        INSERT INTO activation.remark (at, loop_id, user_id, remark)
        SELECT now, m.loop_id, m.user_id, left('the user''s row is too large for a mail: without ' || (
                   SELECT string_agg(quote_ident(c), ', ' ORDER BY c) FROM jsonb_array_elements_text(r.left_out) AS c), 300)
          FROM mail m JOIN unnest(rows) AS r(key, email, zone, left_out, body) ON r.key = m.user_id
         WHERE r.left_out IS NOT NULL AND r.body IS NOT NULL
        ON CONFLICT DO NOTHING;
    END IF;
END
$$;

-- Messages of users whose row is gone end, and so does their way through the loop. The others are returned.
CREATE FUNCTION activation._claim_gone(messages uuid[], rows activation.users_row[]) RETURNS uuid[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    there text[] := ARRAY(SELECT r.key FROM unnest(rows) AS r(key, email, zone, left_out, body));
    gone uuid[];
    left_loop bigint[];
BEGIN
    SELECT array_agg(u.id), array_agg(m.enrollment_id) INTO gone, left_loop
      FROM unnest(messages) AS u(id)
      CROSS JOIN LATERAL (SELECT x.user_id, x.enrollment_id FROM activation.message x WHERE x.message_id = u.id OFFSET 0) m
     WHERE m.user_id <> ALL (there);
    IF gone IS NULL THEN
        RETURN messages;
    END IF;
    PERFORM activation._leave(left_loop, 'the user no longer exists');
    RETURN ARRAY(SELECT unnest(messages) EXCEPT SELECT unnest(gone));
END
$$;

-- Messages to suppressed addresses end as suppressed, those that their user has unsubscribed from as cancelled, with the
-- rest of their way through the loop. The others are returned.
CREATE FUNCTION activation._claim_unwanted(messages uuid[], rows activation.users_row[], users regclass, topic text, transactional boolean, now timestamptz) RETURNS uuid[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    ended uuid[] := '{}'::uuid[];
    suppressed uuid[];
    unsubscribed uuid[];
    left_loop bigint[];
BEGIN
    IF NOT transactional THEN
        SELECT array_agg(u.id), array_agg(m.enrollment_id) INTO unsubscribed, left_loop
          FROM unnest(messages) AS u(id)
          CROSS JOIN LATERAL (SELECT x.user_id, x.enrollment_id FROM activation.message x WHERE x.message_id = u.id OFFSET 0) m
         WHERE (SELECT bool_or(NOT c.subscribed) FROM activation.consent c
                 WHERE c.user_id = m.user_id AND c.users = _claim_unwanted.users AND c.topic IN ('', coalesce(_claim_unwanted.topic, '')));
        IF unsubscribed IS NOT NULL THEN
            PERFORM activation._leave(left_loop, 'the user has unsubscribed');
            ended := unsubscribed;
        END IF;
    END IF;
    IF EXISTS (SELECT FROM activation.suppression) THEN
        WITH mail AS MATERIALIZED (
            SELECT x.message_id, x.user_id
              FROM unnest(messages) AS u(id)
              CROSS JOIN LATERAL (SELECT y.message_id, y.user_id FROM activation.message y WHERE y.message_id = u.id OFFSET 0) x
             WHERE u.id <> ALL (ended)
        ), found AS MATERIALIZED (
            SELECT m.message_id, a.folded, p.reason, p.at
              FROM mail m
              JOIN unnest(rows) AS r(key, email, zone, left_out, body) ON r.key = m.user_id
              CROSS JOIN LATERAL (SELECT activation._fold_address(r.email) AS folded OFFSET 0) a
              CROSS JOIN LATERAL (SELECT x.reason, x.at FROM activation.suppression x
                                   WHERE x.address IN (a.folded, activation._hash_address(a.folded)) LIMIT 1) p
        ), changed AS (
            UPDATE activation.message m
               SET state = 'suppressed', finished_at = now, recipient = f.folded, last_error = format('%s, since %s', activation._short(f.reason), f.at)
              FROM found f WHERE m.message_id = f.message_id
            RETURNING m.message_id
        )
        SELECT array_agg(c.message_id) INTO suppressed FROM changed c;
        ended := ended || suppressed;
    END IF;
    RETURN CASE WHEN ended = '{}' THEN messages ELSE ARRAY(SELECT unnest(messages) EXCEPT SELECT unnest(ended)) END;
END
$$;

-- Messages whose window is closed for their user wait for it, or are skipped. The others are returned.
CREATE FUNCTION activation._claim_window(messages uuid[], rows activation.users_row[], send_window jsonb, now timestamptz) RETURNS uuid[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    zone record;
    opens timestamptz;
    closed uuid[] := '{}'::uuid[];
BEGIN
    FOR zone IN
        WITH mail AS MATERIALIZED (
            SELECT u.id, x.user_id
              FROM unnest(messages) AS u(id) CROSS JOIN LATERAL (SELECT y.user_id FROM activation.message y WHERE y.message_id = u.id OFFSET 0) x
        )
        SELECT n.named, z.zone, z.unknown, n.ids
          FROM (SELECT r.zone AS named, array_agg(m.id) AS ids
                  FROM mail m JOIN unnest(rows) AS r(key, email, zone, left_out, body) ON r.key = m.user_id
                 GROUP BY 1) n,
               activation._zone(n.named) z
    LOOP
        IF zone.unknown THEN
            PERFORM activation._remark(m.loop_id, m.user_id, format('time zone "%s" of the user is not known; %s is used', left(zone.named, 100), zone.zone), now)
               FROM unnest(zone.ids) AS u(id)
               CROSS JOIN LATERAL (SELECT x.loop_id, x.user_id FROM activation.message x WHERE x.message_id = u.id OFFSET 0) m;
        END IF;
        opens := activation._window_opens(send_window, zone.zone, now);
        CONTINUE WHEN opens IS NULL;
        closed := closed || zone.ids;
        IF send_window ->> 'otherwise' = 'skip' THEN
            UPDATE activation.message m SET state = 'cancelled', finished_at = now, last_error = format('outside the send window, at %s', zone.zone)
             WHERE m.message_id = ANY (zone.ids);
        ELSE
            UPDATE activation.message m SET next_attempt_at = opens, last_error = format('waits for the send window, in %s', zone.zone)
             WHERE m.message_id = ANY (zone.ids);
        END IF;
    END LOOP;
    RETURN ARRAY(SELECT unnest(messages) EXCEPT SELECT unnest(closed));
END
$$;

-- Messages of users who have had enough mail wait until the cap allows it, or are skipped. The others are returned, and
-- counted: those that one claim takes from several loops are together no more than the cap.
CREATE FUNCTION activation._claim_cap(messages uuid[], users regclass, over_cap text, counts jsonb, now timestamptz, OUT kept uuid[], OUT counted jsonb)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    one record;
    again timestamptz;
    counter text;
BEGIN
    kept := '{}';
    counted := counts;
    FOR one IN
        SELECT m.message_id, m.user_id
          FROM unnest(messages) AS u(id)
          CROSS JOIN LATERAL (SELECT x.message_id, x.user_id, x.next_attempt_at FROM activation.message x WHERE x.message_id = u.id OFFSET 0) m
         ORDER BY m.next_attempt_at, m.message_id
    LOOP
        counter := format('%s %s', users::oid, one.user_id);
        again := activation._over_cap(one.user_id, users, coalesce((counted ->> counter)::integer, 0), now);
        IF again IS NULL THEN
            kept := kept || one.message_id;
            counted := counted || jsonb_build_object(counter, coalesce((counted ->> counter)::integer, 0) + 1);
        ELSIF over_cap = 'skip' THEN
            UPDATE activation.message m SET state = 'cancelled', finished_at = now, last_error = 'over the cap of mails a user'
             WHERE m.message_id = one.message_id;
        ELSE
            UPDATE activation.message m SET next_attempt_at = again, last_error = 'waits for the cap of mails a user' WHERE m.message_id = one.message_id;
        END IF;
    END LOOP;
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
RETURNS TABLE (loop text, action text, recovery text, transactional boolean)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT l.name, (CASE _branch.branch WHEN 'action' THEN s.action ELSE s.otherwise END)::text, (v.definition -> 'recovery')::text, v.transactional
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
    VALUES (_store.request_id, _store.endpoint, _store.body, _store.members, _store.mode, _store.recovery, 'open', now, now,
            token, now + lease, pg_backend_pid(), activation._backend_start(pg_backend_pid()));
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
--   split       a batch refused for its content: back to queued, to be sent in halves
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
               resend_id = resend_ids[array_position(r.members, m.message_id)],
               last_error = CASE message_state WHEN 'sent' THEN NULL ELSE concat_ws(': ', _record.error_name, _record.error) END,
               finished_at = CASE WHEN message_state IN ('failed', 'unknown') THEN now END
         WHERE m.message_id = ANY (r.members)
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
