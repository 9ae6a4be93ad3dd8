-- Asking a condition about people at one step. While it runs, the worker says which loop's code it
-- is in, so that others can watch it.

-- The sequence in which a worker says which loop's code it runs; NULL for tick and the puller,
-- which no other session watches.
CREATE FUNCTION activation._watch_sequence(kind text, slot integer) RETURNS regclass
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN to_regclass('activation.' || kind || '_' || slot);
END
$$;

-- Says to the other workers which loop's code this one runs from now on; NULL: none any more. It is
-- not undone with the transaction, so whoever catches an author's error says NULL, too. A session
-- that is no worker says nothing. What is said: the time in whole seconds, and in the lower 31 bits
-- the loop, or 0. The end of a loop's code is a sign of life, too.
CREATE FUNCTION activation._evaluating(loop_id integer) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- The newest row: one that died under the same pid may have left its lease behind.
    PERFORM setval(activation._watch_sequence(w.kind, w.slot),
                   ceil(extract(epoch FROM clock_timestamp()))::bigint << 31 | coalesce(loop_id, 0))
       FROM activation.worker w
      WHERE w.pid = pg_backend_pid()
      ORDER BY w.backend_start DESC
      LIMIT 1;
END
$$;

-- Whether code that was cancelled after so many seconds was cancelled because it ran too long.
CREATE FUNCTION activation._over_condition_timeout(seconds double precision) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT seconds >= extract(epoch FROM (activation._setting()).condition_timeout) $$;

-- Asks the condition of a step about these enrollments, and returns the keys for which it is true;
-- NULL where the step has no condition. This and the sweep (_detect_sweep) are where a round runs
-- an author's conditions, so what they raise is the author's error.
CREATE FUNCTION activation._detect_ask(
    loop_id integer, version integer, step integer, ids bigint[], one_by_one boolean DEFAULT false
) RETURNS text[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    asked_step record;
    true_keys text[];
BEGIN
    SELECT s.evaluate_function, v.owner INTO asked_step
      FROM activation.step s
      JOIN activation.loop_version v USING (loop_id, version)
     WHERE s.loop_id = _detect_ask.loop_id
       AND s.version = _detect_ask.version
       AND s.step = _detect_ask.step;
    IF asked_step.evaluate_function IS NULL THEN
        RETURN NULL;
    END IF;
    PERFORM activation._evaluating(_detect_ask.loop_id);
    true_keys := activation._safe_eval(
        asked_step.evaluate_function, asked_step.owner,
        ARRAY(SELECT e.user_id
                FROM unnest(ids) AS a(id)
                JOIN activation.enrollment e ON e.enrollment_id = a.id),
        one_by_one);
    PERFORM activation._evaluating(NULL);
    RETURN true_keys;
END
$$;
