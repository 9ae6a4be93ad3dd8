-- Delivery: claim, store, record. Functions are ordered as a message lives.

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
               api_key text, slow boolean, due boolean, expired boolean)
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
        s.sender, s.reply_to, s.resend_url, s.api_key, activation._slow_provider(),
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
-- one with nothing to do. Without sequential scans and JIT, see _detect_due().
CREATE FUNCTION activation._deliver_due() RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET jit = off
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
                           WHERE m.request_id IS NULL AND m.finished_at IS NULL AND m.loop_id = l.loop_id AND m.next_attempt_at <= now
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
    began timestamptz;
    too_long boolean;
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
                        WHERE m.request_id IS NULL AND m.finished_at IS NULL AND m.loop_id = queue.loop_id AND m.next_attempt_at <= now
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
        began := clock_timestamp();
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
            WHEN others OR assert_failure OR query_canceled THEN
                too_long := SQLSTATE = '57014' AND activation._too_long(extract(epoch FROM clock_timestamp() - began));
                IF too_long THEN
                    PERFORM activation._claim_strike(owned.loop_id, 'cancelled while its messages were claimed: it ran too long');
                END IF;
                -- Who only met somebody else, a lock or a cancel, comes again soon.
                UPDATE activation.message m
                   SET next_attempt_at = CASE WHEN too_long THEN m.next_attempt_at
                                              WHEN SQLSTATE IN ('40001', '40P01', '55P03', '57014') THEN now + interval '3 seconds'
                                              ELSE now + interval '30 seconds' END,
                       last_error = CASE WHEN too_long THEN 'the loop''s own code was cancelled: it ran too long' ELSE SQLERRM END
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
            SELECT r.j ->> 0 AS key, r.j ->> 1 AS email, (r.j -> 2)::text AS user_row
              FROM (SELECT u.r::jsonb AS j FROM unnest(rows) AS u(r) OFFSET 0) r
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
