-- The claim: due messages become sending, with all that rendering needs. Functions are ordered as a message lives.

-- A message that was claimed, with what it takes to render it.
CREATE TYPE activation.claimed AS (message_id uuid, loop_id integer, version integer, step integer, branch text, next_attempt_at timestamptz,
                                   batch_limit smallint, user_id text, email text, user_row text, newest_template_id integer, context text, enrollment_id bigint);
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
    FOR queue IN SELECT q.* FROM activation._due_loops(now, mark_loops, mark_ats, mark_ids) q LOOP
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
        IF NOT activation._is_about_one_person(SQLSTATE) THEN
            RAISE;
        ELSIF middle = 0 THEN
            PERFORM activation._fail_messages(ids, activation._shortened(SQLERRM));
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
           EXISTS (SELECT FROM activation.step x WHERE x.loop_id = v.loop_id AND x.version = v.version AND activation._has_nudge(x)) AS nudges
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
                 WHERE activation._is_nudge(x, m.branch) AND q.function_name IS NOT NULL
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
                    PERFORM activation._claim_goal_reached(asked.ids, answer.answers, now);
                END IF;
            END LOOP;
        END IF;
        PERFORM activation._evaluating(NULL);
    EXCEPTION
        WHEN others OR assert_failure OR query_canceled THEN
            PERFORM activation._evaluating(NULL);
            too_long := SQLSTATE = '57014' AND activation._over_condition_timeout(extract(epoch FROM clock_timestamp() - began));
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
                   last_error = CASE WHEN too_long THEN 'the loop''s own code was cancelled: it ran too long' ELSE activation._shortened(SQLERRM) END
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
             WHERE e.activated_at IS NOT NULL AND activation._is_nudge(x, m.branch));
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
            SELECT m.*, e.newest_template_id, e.context::text AS context
              FROM unnest(kept) AS u(id)
              CROSS JOIN LATERAL (SELECT x.message_id, x.loop_id, x.version, x.step, x.branch, x.next_attempt_at, x.batch_limit, x.user_id, x.enrollment_id
                                    FROM activation.message x WHERE x.message_id = u.id OFFSET 0) m
              CROSS JOIN LATERAL (SELECT y.newest_template_id, y.context FROM activation.enrollment y WHERE y.enrollment_id = m.enrollment_id OFFSET 0) e
        )
        SELECT (m.message_id, m.loop_id, m.version, m.step, m.branch, m.next_attempt_at, m.batch_limit, m.user_id,
                f.email, f.body, m.newest_template_id, m.context, m.enrollment_id)::activation.claimed
          FROM mail m JOIN unnest(rows) AS f(key, email, zone, left_out, body) ON f.key = m.user_id
         WHERE f.body IS NOT NULL
         ORDER BY m.next_attempt_at, m.message_id);
END
$$;
