-- A round takes what is due: signals, wakes, people whose time has come. Each function here and in
-- the next parts is one transaction's worth of work; the runs that call them and commit are in
-- Python.

-- Loops whose people are evaluated now: also those whose mail the brake has stopped, but none with
-- a fresh strike. Without a SET clause, so that it becomes a part of the statement that it stands
-- in.
CREATE FUNCTION activation._detect_loops(now timestamptz) RETURNS SETOF integer
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT l.loop_id
      FROM activation."loop" l
     WHERE l.state IN ('active', 'stopped')
       AND NOT EXISTS (SELECT FROM activation.strike k
                        WHERE k.loop_id = l.loop_id AND k.kind = 'detect' AND k.retry_at > now);
END;

-- What a round would find to do: signals, wakes, people whose step begins, who are at their
-- deadline or to be tried again, sweeps, and backfills. Asked many times a second and
-- without a lock, so that a worker with nothing to do costs next to nothing. Without sequential
-- scans, since a plan made while the tables were small would stay.
CREATE FUNCTION activation._detect_due(
    OUT signals boolean, OUT wakes boolean, OUT people boolean, OUT sweeps boolean,
    OUT backfills boolean
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    now timestamptz := activation._now();
    unmarked boolean := NOT EXISTS (SELECT FROM activation.wake w WHERE w.source_id = 0);
BEGIN
    signals := EXISTS (SELECT FROM activation.signal);
    wakes := unmarked OR EXISTS (SELECT FROM activation.wake w WHERE w.source_id <> 0);
    people := EXISTS (
        SELECT FROM activation._detect_loops(now) l(loop_id)
         WHERE EXISTS (SELECT FROM activation.enrollment e
                        WHERE e.loop_id = l.loop_id
                          AND e.state = 'waiting'
                          AND coalesce(e.starts_at, e.deadline) <= now
                          AND (e.retry_at IS NULL OR e.retry_at <= now))
            OR EXISTS (SELECT FROM activation.enrollment e
                        WHERE e.loop_id = l.loop_id AND e.retry_at <= now));
    sweeps := unmarked OR EXISTS (
        SELECT FROM activation.sweep w
          JOIN activation._detect_loops(now) l(loop_id) USING (loop_id)
         WHERE w.due_at <= now);
    -- Who signs up now does not wait for a multitude.
    backfills := NOT signals AND EXISTS (
        SELECT FROM activation.backfill r
          JOIN activation._detect_loops(now) l(loop_id) USING (loop_id)
         WHERE r.due_at <= now);
END
$$;

-- Takes wakes, at most `batch`, and finds whose enrollments they concern. Without sequential scans
-- its plan may stay: for hundreds of rounds a second, planning would cost more than all the rest.
CREATE FUNCTION activation._take_wakes(
    buckets integer[], batch integer, OUT taken integer, OUT ids bigint[], OUT ats timestamptz[]
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
BEGIN
    WITH wakes AS (
        DELETE FROM activation.wake
         WHERE ctid = ANY (ARRAY(
               SELECT w.ctid
                 FROM activation.wake w
                WHERE w.source_id <> 0
                  AND activation._user_bucket(w.user_id) = ANY (buckets)
                LIMIT batch))
        RETURNING source_id, user_id, at
    ), newest AS MATERIALIZED (
        SELECT t.source_id, t.user_id, max(t.at) AS at FROM wakes t GROUP BY 1, 2
    ), found AS (
        -- One look-up by (loop, user) for each woken user, whatever the statistics say: a table
        -- that has just grown from nothing would otherwise be joined by comparing all with all.
        SELECT e.enrollment_id, max(n.at) AS at
          FROM newest n
          JOIN activation.watch w ON w.source_id = n.source_id
          CROSS JOIN LATERAL (
              SELECT x.enrollment_id, x.version, x.step, x.activated_at, x.state
                FROM activation.enrollment x
               WHERE x.loop_id = w.loop_id AND x.user_id = n.user_id
              OFFSET 0) e
         WHERE e.version = w.version
           AND (w.goal AND e.activated_at IS NULL OR e.step = w.step AND e.state = 'waiting')
         GROUP BY 1
    )
    SELECT (SELECT count(*) FROM wakes), array_agg(f.enrollment_id), array_agg(f.at)
      INTO taken, ids, ats
      FROM found f;
END
$$;

-- Finds people whose step begins or is at its deadline, at most `batch`. Takes a share from each
-- loop, so that a long queue does not starve the rest. now is an argument, since an index cannot be
-- walked up to a function that reads the clock.
CREATE FUNCTION activation._find_due(buckets integer[], batch integer, now timestamptz)
RETURNS bigint[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
    SELECT array_agg(e.enrollment_id)
      FROM (SELECT d.enrollment_id
              FROM activation._detect_loops(_find_due.now) l(loop_id)
              CROSS JOIN LATERAL (
                  SELECT x.enrollment_id,
                         row_number() OVER (ORDER BY coalesce(x.starts_at, x.deadline)) AS place
                    FROM activation.enrollment x
                   WHERE x.loop_id = l.loop_id
                     AND x.state = 'waiting'
                     AND coalesce(x.starts_at, x.deadline) <= _find_due.now
                     AND (x.retry_at IS NULL OR x.retry_at <= _find_due.now)
                     AND activation._user_bucket(x.user_id) = ANY (buckets)
                   ORDER BY coalesce(x.starts_at, x.deadline)
                   LIMIT batch) d
             ORDER BY d.place
             LIMIT batch) e
$$;

-- Finds people who are to be tried again, at most `batch`, with a share from each loop like
-- _find_due().
CREATE FUNCTION activation._find_retries(buckets integer[], batch integer, now timestamptz)
RETURNS bigint[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
    SELECT array_agg(e.enrollment_id)
      FROM (SELECT d.enrollment_id
              FROM activation._detect_loops(_find_retries.now) l(loop_id)
              CROSS JOIN LATERAL (
                  SELECT x.enrollment_id, row_number() OVER (ORDER BY x.retry_at) AS place
                    FROM activation.enrollment x
                   WHERE x.loop_id = l.loop_id
                     AND x.retry_at <= _find_retries.now
                     AND activation._user_bucket(x.user_id) = ANY (buckets)
                   ORDER BY x.retry_at
                   LIMIT batch) d
             ORDER BY d.place
             LIMIT batch) e
$$;

-- Gathers who is to be evaluated now, by step: the step that somebody is at, and the goal's where
-- that is another one. Evaluated are the newly enrolled, the woken, people whose step begins or is
-- at its deadline, and those to be tried again. signals, wakes, people: what to look for, see
-- _detect_due().
--
-- It runs under the locks of the buckets that it is given, in one transaction with the evaluation:
-- an action committed before the enrollment is seen by its first evaluation, and a later one brings
-- a wake that finds it.
--
-- The first row carries no work: its `taken` is the largest count, so that the caller sees whether
-- a batch was full, and its `problem` says what could not be looked at, which does not keep the
-- rest waiting.
--
-- Long because each kind is taken in a subtransaction of its own.
CREATE FUNCTION activation._detect_take(
    buckets integer[], batch integer, signals boolean, wakes boolean, people boolean
)
RETURNS TABLE (
    loop_id integer, version integer, step integer, ids bigint[], woken_at timestamptz[],
    is_new boolean[], taken integer, problem text
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    now timestamptz := activation._now();
    enrolled record;
    woken record;
    due_ids bigint[];
    retried_ids bigint[];
    problems text;
BEGIN
    SELECT 0 AS taken, NULL::bigint[] AS ids, NULL::timestamptz[] AS ats INTO woken;
    enrolled := woken;
    IF signals THEN
        BEGIN
            SELECT s.* INTO enrolled FROM activation._take_signals(buckets, batch) s;
        EXCEPTION WHEN others THEN
            IF NOT activation._is_about_one_person(SQLSTATE) THEN
                RAISE;
            END IF;
            problems := activation._error_text('signals', SQLERRM, problems);
        END;
    END IF;
    IF wakes THEN
        BEGIN
            IF NOT activation._restore_wake_marker(now) THEN
                SELECT w.* INTO woken FROM activation._take_wakes(buckets, batch) w;
            END IF;
        EXCEPTION WHEN others THEN
            IF NOT activation._is_about_one_person(SQLSTATE) THEN
                RAISE;
            END IF;
            problems := activation._error_text('wakes', SQLERRM, problems);
        END;
    END IF;
    IF people THEN
        BEGIN
            due_ids := activation._find_due(buckets, batch, now);
            retried_ids := activation._find_retries(buckets, batch, now);
        EXCEPTION WHEN others THEN
            IF NOT activation._is_about_one_person(SQLSTATE) THEN
                RAISE;
            END IF;
            problems := activation._error_text('people who are due', SQLERRM, problems);
        END;
    END IF;
    RETURN QUERY
    SELECT 0, 0, 0, NULL::bigint[], NULL::timestamptz[], NULL::boolean[],
           greatest(enrolled.taken, woken.taken, cardinality(due_ids || retried_ids)), problems;
    IF enrolled.ids IS NULL AND woken.ids IS NULL AND due_ids IS NULL AND retried_ids IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY
    SELECT e.loop_id, e.version, q.step, array_agg(e.enrollment_id ORDER BY e.enrollment_id),
           array_agg(coalesce(c.at, p.at) ORDER BY e.enrollment_id),
           array_agg(c.is_new OR p.is_new ORDER BY e.enrollment_id),
           NULL::integer, NULL::text
      FROM (SELECT u.id, max(u.at) AS at, bool_or(u.is_new) AS is_new, bool_and(u.due) AS due
              FROM (SELECT unnest(enrolled.ids), NULL::timestamptz, true, false
                    UNION ALL
                    SELECT w.id, w.at, false, false FROM unnest(woken.ids, woken.ats) AS w(id, at)
                    UNION ALL
                    SELECT unnest(due_ids), NULL, false, true
                    UNION ALL
                    SELECT unnest(retried_ids), NULL, false, false) AS u(id, at, is_new, due)
             GROUP BY u.id) c
      CROSS JOIN LATERAL (
          SELECT x.* FROM activation.enrollment x WHERE x.enrollment_id = c.id OFFSET 0) e
      -- What _detect_defer() kept.
      CROSS JOIN LATERAL (
          SELECT e.deferred_wake AS at, coalesce(e.deferred_new, false) AS is_new) p
      JOIN activation.loop_version v ON v.loop_id = e.loop_id AND v.version = e.version
      CROSS JOIN LATERAL (
          SELECT e.step
           WHERE e.state = 'waiting' AND (e.starts_at IS NULL OR e.starts_at <= now)
          UNION
          SELECT v.goal_step
           WHERE NOT c.due AND e.activated_at IS NULL AND v.goal_step IS NOT NULL) q
      JOIN activation._detect_loops(now) l(loop_id) ON l.loop_id = e.loop_id
     GROUP BY e.loop_id, e.version, q.step
     ORDER BY coalesce((SELECT k.strikes
                          FROM activation.strike k
                         WHERE k.loop_id = e.loop_id AND k.kind = 'detect'), 0), 1, 2, 3;
END
$$;
