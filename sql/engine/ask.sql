-- Asking a condition about people at one step, while saying which loop is evaluated: others watch that.

-- Where a worker says in which loop's code it is; NULL for tick and the puller, which no other session watches.
CREATE FUNCTION activation._watch_sequence(kind text, slot integer) RETURNS regclass
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN to_regclass('activation.' || kind || '_' || slot);
END
$$;

-- Says to the other workers which loop's code this one runs from now on; NULL: none any more. It is not undone with the
-- transaction, so whoever catches an author's error says NULL, too. A session that is no worker says nothing.
-- What is said: the time in whole seconds, and in the lower 31 bits the loop, or 0. That it is over is a sign of life, too.
CREATE FUNCTION activation._evaluating(loop_id integer) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- The newest: who died under the same pid may have left a lease behind.
    PERFORM setval(activation._watch_sequence(w.kind, w.slot),
                   ceil(extract(epoch FROM clock_timestamp()))::bigint << 31 | coalesce(loop_id, 0))
       FROM activation.worker w WHERE w.pid = pg_backend_pid() ORDER BY w.backend_start DESC LIMIT 1;
END
$$;

-- Whether code that was cancelled after so long was cancelled for that.
CREATE FUNCTION activation._over_condition_timeout(seconds double precision) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT seconds >= extract(epoch FROM (activation._setting()).condition_timeout) $$;

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
