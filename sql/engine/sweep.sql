-- A sweep asks again, in stretches, about everybody for whom a condition is still open: who waits
-- at its step, and, where it is the goal, who has not reached that, also after the end of their
-- enrollment. It finds what no wake told.

-- Sweeps that are due, some of them, for a round that holds the locks of these buckets. Locks them:
-- what an author holds in an open transaction (resume_loop) is left out.
CREATE FUNCTION activation._detect_sweeps(buckets integer[])
RETURNS TABLE (loop_id integer, version integer, step integer, bucket integer, swept_to bigint)
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT w.loop_id, w.version, w.step, w.bucket, w.swept_to
      FROM activation.sweep w
      JOIN activation._detect_loops(activation._now()) l(loop_id) USING (loop_id)
     WHERE w.due_at <= activation._now()
       AND w.bucket = ANY (buckets)
     ORDER BY w.due_at, w.loop_id, w.version, w.step, w.bucket
     LIMIT 100
       FOR NO KEY UPDATE OF w SKIP LOCKED
$$;

-- The next people of a sweep, at most `batch`: everybody whose condition is open, but for those who
-- are tried again by themselves after an error. swept_to: the last enrollment that the sweep has
-- done.
CREATE FUNCTION activation._detect_stretch(
    loop_id integer, version integer, step integer, bucket integer, swept_to bigint, batch integer,
    OUT ids bigint[], OUT keys text[]
)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
    SELECT coalesce(array_agg(s.enrollment_id), '{}'), coalesce(array_agg(s.user_id), '{}')
      FROM (SELECT e.enrollment_id, e.user_id
              FROM activation.enrollment e
             WHERE e.loop_id = _detect_stretch.loop_id
               AND e.version = _detect_stretch.version
               AND (e.step = _detect_stretch.step
                    OR (SELECT v.goal_step = _detect_stretch.step
                          FROM activation.loop_version v
                         WHERE v.loop_id = _detect_stretch.loop_id
                           AND v.version = _detect_stretch.version))
               AND activation._user_bucket(e.user_id) = bucket
               AND e.enrollment_id > swept_to
               AND (e.activated_at IS NULL OR e.state = 'waiting')
               AND e.retry_at IS NULL
             ORDER BY e.enrollment_id
             LIMIT batch) s
$$;

-- Does a stretch of a sweep at once: asks about everybody in it, and touches only those for whom
-- the condition is true. Returns how many people it was. When it raises, the caller evaluates its
-- people like others, which finds out who is to blame.
CREATE FUNCTION activation._detect_sweep(
    loop_id integer, version integer, step integer, bucket integer, swept_to bigint, batch integer
) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    stretch record;
    swept_step record;
    true_keys text[];
BEGIN
    SELECT * INTO stretch
      FROM activation._detect_stretch(loop_id, version, step, bucket, swept_to, batch);
    IF stretch.ids <> '{}' THEN
        SELECT s.evaluate_function, v.owner INTO swept_step
          FROM activation.step s
          JOIN activation.loop_version v USING (loop_id, version)
         WHERE s.loop_id = _detect_sweep.loop_id
           AND s.version = _detect_sweep.version
           AND s.step = _detect_sweep.step;
        PERFORM activation._evaluating(loop_id);
        true_keys := activation._safe_eval(
            swept_step.evaluate_function, swept_step.owner, stretch.keys);
        PERFORM activation._evaluating(NULL);
        PERFORM activation._clear_strikes(loop_id);
        IF true_keys <> '{}' THEN
            PERFORM activation._detect_decide(
                step,
                ARRAY(SELECT u.id
                        FROM unnest(stretch.ids, stretch.keys) AS u(id, key)
                       WHERE u.key = ANY (true_keys)),
                '{}', '{}', true_keys);
        END IF;
    END IF;
    PERFORM activation._advance_sweep(loop_id, version, step, bucket, stretch.ids, batch);
    RETURN cardinality(stretch.ids);
END
$$;

-- Moves a sweep on behind a stretch: a full one goes on in the next round, otherwise the sweep is
-- over until its next time.
CREATE FUNCTION activation._advance_sweep(
    loop_id integer, version integer, step integer, bucket integer, ids bigint[], batch integer
) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE activation.sweep w
       SET due_at = CASE WHEN cardinality(ids) = batch THEN w.due_at
                         ELSE activation._now() + coalesce(
                                  (SELECT s.every
                                     FROM activation.step s
                                    WHERE s.loop_id = w.loop_id
                                      AND s.version = w.version
                                      AND s.step = w.step), '10 minutes') END,
           swept_to = CASE WHEN cardinality(ids) = batch THEN ids[batch] ELSE 0 END
     WHERE w.loop_id = _advance_sweep.loop_id
       AND w.version = _advance_sweep.version
       AND w.step = _advance_sweep.step
       AND w.bucket = _advance_sweep.bucket
$$;
