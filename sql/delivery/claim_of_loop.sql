-- The claim of one version of a loop: all checks of its messages, in their order.

-- A message that was claimed, with what it takes to render it.
CREATE TYPE activation.claimed AS (
    message_id uuid, loop_id integer, version integer, step integer, branch text,
    next_attempt_at timestamptz, batch_limit smallint, user_id text, email text, user_row text,
    newest_template_id integer, context text, enrollment_id bigint
);
COMMENT ON TYPE activation.claimed IS 'A message that a deliverer is to render.';

-- Takes apart what a users function returned, see _users_body().
CREATE FUNCTION activation._read_rows(rows text[]) RETURNS activation.users_row[]
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ARRAY(
        SELECT (r.head ->> 0, r.head ->> 1, r.head ->> 2, nullif(r.head -> 3, 'null'),
                nullif(split_part(r.whole, E'\n', 2), ''))::activation.users_row
          FROM (SELECT u.r AS whole, split_part(u.r, E'\n', 1)::jsonb AS head
                  FROM unnest(rows) AS u(r)
                OFFSET 0) r)
$$;

-- Asks, for nudges among these messages, the conditions that make them needless: the goal, and what
-- the step waited for. dropped: messages that nobody needs any more; unanswered: users on whom a
-- condition raised, with the error. Runs an author's code.
CREATE FUNCTION activation._ask_nudges(
    ids uuid[], owner regrole, goal_function name, now timestamptz,
    OUT dropped uuid[], OUT unanswered jsonb
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    condition record;
    answer record;
BEGIN
    dropped := '{}';
    unanswered := '{}';
    FOR condition IN
        SELECT q.function_name, q.function_name = _ask_nudges.goal_function AS goal,
               array_agg(DISTINCT m.user_id) AS keys, array_agg(m.message_id) AS ids
          FROM unnest(ids) AS u(id)
          CROSS JOIN LATERAL (
              SELECT x.* FROM activation.message x WHERE x.message_id = u.id OFFSET 0) m
          JOIN activation.step x ON (x.loop_id, x.version, x.step) = (m.loop_id, m.version, m.step)
          CROSS JOIN LATERAL (
              SELECT _ask_nudges.goal_function AS function_name
              UNION
              SELECT x.evaluate_function) q
         WHERE activation._is_nudge(x, m.branch)
           AND q.function_name IS NOT NULL
         GROUP BY 1, 2
    LOOP
        SELECT * INTO answer
          FROM activation._safe_eval_each(condition.function_name, owner, condition.keys);
        unanswered := unanswered || coalesce(
            (SELECT jsonb_object_agg(b.key, b.error)
               FROM unnest(answer.bad_keys, answer.errors) AS b(key, error)), '{}');
        CONTINUE WHEN answer.answers = '{}';
        dropped := dropped || ARRAY(
            SELECT m.message_id
              FROM unnest(condition.ids) AS u(id)
              CROSS JOIN LATERAL (
                  SELECT x.* FROM activation.message x WHERE x.message_id = u.id OFFSET 0) m
             WHERE m.user_id = ANY (answer.answers));
        IF condition.goal THEN
            PERFORM activation._claim_goal_reached(condition.ids, answer.answers, now);
        END IF;
    END LOOP;
END
$$;

-- Puts the claimed messages of a loop back whose code raised as a whole, and takes that down
-- against the loop. seconds: how long the code ran.
CREATE FUNCTION activation._claim_put_back(
    of_loop integer, ids uuid[], code text, error text, seconds double precision, now timestamptz
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    too_long boolean := code = '57014' AND activation._over_condition_timeout(seconds);
BEGIN
    IF code IN ('ACT04', 'ACT05') THEN
        PERFORM activation._fail_at_once(of_loop, 'claim', error, code = 'ACT05');
    ELSIF too_long THEN
        PERFORM activation._strike(
            of_loop, 'claim', 'cancelled while its messages were claimed: it ran too long');
    END IF;
    -- Who only met somebody else, a lock or a cancel, comes again soon.
    UPDATE activation.message m
       SET next_attempt_at = CASE WHEN too_long THEN m.next_attempt_at
                                  WHEN code IN ('40001', '40P01', '55P03', '57014')
                                  THEN now + interval '3 seconds'
                                  ELSE now + interval '30 seconds' END,
           cause = CASE WHEN too_long THEN 'loop_too_slow' ELSE 'loop_raised' END,
           last_error = CASE WHEN NOT too_long THEN activation._shortened(error) END
     WHERE m.message_id = ANY (ids);
END
$$;

-- Checks claimed messages of one version of a loop, all or (where that raises) none of them: reads
-- the users' rows, asks what makes a nudge needless, and applies one check after the other. made:
-- those that passed all; counts, counted: see _claim_cap().
-- Long because a claim is the sequence of its checks, each of which gets what the last one left.
CREATE FUNCTION activation._claim_checked(
    of_loop integer, of_version integer, ids uuid[], counts jsonb, now timestamptz,
    OUT made activation.claimed[], OUT counted jsonb
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    s activation.setting := activation._setting();
    version record;
    keys text[];
    reading record;
    rows activation.users_row[];
    unanswered jsonb := '{}'::jsonb;
    dropped uuid[] := '{}'::uuid[];
    kept uuid[] := ids;
    began timestamptz;
BEGIN
    made := '{}';
    counted := counts;
    SELECT v.owner, v.users, v.users_function, v.goal_step, v.send_window, v.over_cap,
           v.transactional, v.definition ->> 'topic' AS topic,
           s.max_per_user IS NOT NULL AND NOT v.transactional AND s.mode <> 'capture' AS capped,
           goal.evaluate_function AS goal_function,
           EXISTS (SELECT FROM activation.step x
                    WHERE x.loop_id = v.loop_id
                      AND x.version = v.version
                      AND activation._has_nudge(x)) AS nudges
      INTO version
      FROM activation.loop_version v
      LEFT JOIN activation.step goal
        ON goal.loop_id = v.loop_id AND goal.version = v.version AND goal.step = v.goal_step
     WHERE v.loop_id = of_loop
       AND v.version = of_version;
    keys := ARRAY(
        SELECT DISTINCT m.user_id
          FROM unnest(ids) AS u(id)
          CROSS JOIN LATERAL (
              SELECT x.user_id FROM activation.message x WHERE x.message_id = u.id OFFSET 0) m);
    -- Whatever the author's code does here puts back the messages of this loop only.
    began := clock_timestamp();
    BEGIN
        PERFORM activation._evaluating(of_loop);
        SELECT * INTO reading
          FROM activation._safe_eval_each(version.users_function, version.owner, keys);
        rows := activation._read_rows(reading.answers);
        IF version.nudges THEN
            SELECT n.dropped, n.unanswered INTO dropped, unanswered
              FROM activation._ask_nudges(kept, version.owner, version.goal_function, now) n;
        END IF;
        PERFORM activation._evaluating(NULL);
    EXCEPTION
        WHEN others OR assert_failure OR query_canceled THEN
            PERFORM activation._evaluating(NULL);
            PERFORM activation._claim_put_back(
                of_loop, ids, SQLSTATE, SQLERRM,
                extract(epoch FROM clock_timestamp() - began)::double precision, now);
            RETURN;
    END;
    DELETE FROM activation.strike k
     WHERE k.ctid = ANY (ARRAY(SELECT x.ctid
                                 FROM activation.strike x
                                WHERE x.loop_id = of_loop
                                  AND x.kind = 'claim'
                                  FOR UPDATE SKIP LOCKED));
    IF version.nudges THEN
        -- Who reached the goal once needs no nudge, whatever the goal says now.
        dropped := dropped || ARRAY(
            SELECT m.message_id
              FROM unnest(kept) AS u(id)
              CROSS JOIN LATERAL (
                  SELECT x.* FROM activation.message x WHERE x.message_id = u.id OFFSET 0) m
              CROSS JOIN LATERAL (
                  SELECT y.activated_at
                    FROM activation.enrollment y
                   WHERE y.enrollment_id = m.enrollment_id
                  OFFSET 0) e
              JOIN activation.step x
                ON (x.loop_id, x.version, x.step) = (m.loop_id, m.version, m.step)
             WHERE e.activated_at IS NOT NULL
               AND activation._is_nudge(x, m.branch));
    END IF;
    IF dropped <> '{}' THEN
        PERFORM activation._end_queued(dropped, 'cancelled', 'user_acted');
        kept := ARRAY(SELECT unnest(kept) EXCEPT SELECT unnest(dropped));
    END IF;
    IF reading.bad_keys <> '{}' OR unanswered <> '{}' THEN
        kept := activation._claim_raised(
            kept, reading.bad_keys, reading.errors, reading.codes, unanswered, now);
    END IF;
    kept := activation._claim_gone(kept, rows);
    kept := activation._claim_unwanted(
        kept, rows, version.users, version.topic, version.transactional, now);
    IF version.send_window IS NOT NULL THEN
        kept := activation._claim_window(kept, rows, version.send_window, now);
    END IF;
    IF version.capped THEN
        SELECT c.kept, c.counted INTO kept, counted
          FROM activation._claim_cap(kept, version.users, version.over_cap, counts, now) c;
    END IF;
    PERFORM activation._remark_left_out(kept, rows, now);
    made := ARRAY(
        WITH mail AS MATERIALIZED (
            SELECT m.*, e.newest_template_id, e.context::text AS context
              FROM unnest(kept) AS u(id)
              CROSS JOIN LATERAL (
                  SELECT x.message_id, x.loop_id, x.version, x.step, x.branch, x.next_attempt_at,
                         x.batch_limit, x.user_id, x.enrollment_id
                    FROM activation.message x
                   WHERE x.message_id = u.id
                  OFFSET 0) m
              CROSS JOIN LATERAL (
                  SELECT y.newest_template_id, y.context
                    FROM activation.enrollment y
                   WHERE y.enrollment_id = m.enrollment_id
                  OFFSET 0) e
        )
        SELECT (m.message_id, m.loop_id, m.version, m.step, m.branch, m.next_attempt_at,
                m.batch_limit, m.user_id, f.email, f.body, m.newest_template_id, m.context,
                m.enrollment_id)::activation.claimed
          FROM mail m
          JOIN unnest(rows) AS f(key, email, zone, left_out, body) ON f.key = m.user_id
         WHERE f.body IS NOT NULL
         ORDER BY m.next_attempt_at, m.message_id);
END
$$;

-- Checks claimed messages of one version of a loop. Where that raises for what may be one person's,
-- it goes on by halves until the message that raises is found: that one has failed, and the others
-- go on. made: those that passed; counts, counted: see _claim_cap().
CREATE FUNCTION activation._claim_of_loop(
    of_loop integer, of_version integer, ids uuid[], counts jsonb, now timestamptz,
    OUT made activation.claimed[], OUT counted jsonb
)
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
        SELECT c.made, c.counted INTO made, counted
          FROM activation._claim_checked(of_loop, of_version, ids, counts, now) c;
        RETURN;
    EXCEPTION WHEN others THEN
        IF NOT activation._is_about_one_person(SQLSTATE) THEN
            RAISE;
        ELSIF middle = 0 THEN
            PERFORM activation._end_queued(
                ids, 'failed', 'claim_raised', activation._shortened(SQLERRM));
            RETURN;
        END IF;
    END;
    FOR n IN 1 .. 2 LOOP
        SELECT * INTO half
          FROM activation._claim_of_loop(
                   of_loop, of_version,
                   CASE n WHEN 1 THEN ids[: middle] ELSE ids[middle + 1 :] END,
                   counted, now);
        made := made || half.made;
        counted := half.counted;
    END LOOP;
END
$$;
