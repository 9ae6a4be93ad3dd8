-- Workers watch each other: one that has been evaluating a loop for too long is cancelled, and if
-- that does not help, terminated.

-- Whether pg_cron started this run while stop() was removing its job. Such a run would go on for a
-- minute, and would have the tables watched for nobody.
CREATE FUNCTION activation._started_during_stop(application_name text) RETURNS boolean
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT application_name = 'pg_cron'
       AND EXISTS (SELECT FROM activation.schedule s
                    WHERE s.stopped_at > clock_timestamp() - interval '10 seconds')
$$;

-- Who works now: their last sign of life, and in which loop's code they are since when, if in any.
CREATE FUNCTION activation._workers()
RETURNS TABLE (
    kind text, slot integer, pid integer, seen_at timestamptz, said bigint, loop_id integer,
    since timestamptz
)
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT w.kind, w.slot, w.pid, greatest(w.started_at, w.beat_at, s.at), x.said, s.loop_id,
           CASE WHEN s.loop_id IS NOT NULL THEN s.at END
      FROM activation.worker w
      CROSS JOIN LATERAL (
          SELECT nullif(pg_sequence_last_value(activation._watch_sequence(w.kind, w.slot)), 0)
                     AS said
          OFFSET 0) x
      -- See _evaluating(), which writes it.
      CROSS JOIN LATERAL (
          SELECT to_timestamp(x.said >> 31) AS at,
                 nullif((x.said & 2147483647)::integer, 0) AS loop_id) s
     WHERE w.pid IS NOT NULL
       AND activation._is_alive(w.pid, w.backend_start)
$$;

-- Writes down a strike against a loop whose code could not be cancelled. Returns whether it is
-- written: it is not where somebody holds what it needs, who may be the very worker that is stuck.
CREATE FUNCTION activation._strike_stubborn(
    worker_kind text, loop_id integer, seconds double precision
) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN activation._strike(
        loop_id, CASE worker_kind WHEN 'detector' THEN 'detect' ELSE 'claim' END,
        format('its own code ran for %s s and could not be cancelled', round(seconds))) IS NOT NULL;
END
$$;

-- Ends what other workers have been running for longer than condition_timeout, and any worker that
-- gives no sign of life for half a minute longer. First by cancelling it, which their runs
-- survive, and after ten seconds more by terminating them. Returns one row for each that it dealt
-- with, and how: cancelled, terminated, or struck. A worker that is terminated cannot write down
-- the strike itself. It is written first, and is to be committed before the next call terminates
-- the worker, so that whoever takes over does not begin with the same loop.
-- With its owner's rights, since it ends sessions of others: those that a slot of `worker` names.
CREATE FUNCTION activation._end_overdue()
RETURNS TABLE (loop_id integer, seconds double precision, deed text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '200ms'
AS $$
DECLARE
    allowed double precision := extract(epoch FROM (activation._setting()).condition_timeout);
    overdue record;
BEGIN
    FOR overdue IN
        SELECT x.kind, x.slot, x.pid, x.loop_id, x.said, a.age, a.age >= a.allowed + 10 AS stubborn,
               x.loop_id IS NOT NULL AND w.struck IS DISTINCT FROM x.said AS to_blame
          FROM activation._workers() x
          JOIN activation.worker w ON w.kind = x.kind AND w.slot = x.slot AND w.pid = x.pid
          CROSS JOIN LATERAL (
              SELECT extract(epoch FROM clock_timestamp()
                                        - coalesce(x.since, x.seen_at))::double precision AS age,
                     CASE WHEN x.since IS NULL THEN allowed + 30 ELSE allowed END AS allowed) a
         WHERE x.kind IN ('detector', 'deliverer')
           AND x.pid <> pg_backend_pid()
           AND a.age >= a.allowed
         -- One at a time deals with it, and meanwhile nobody takes its slot.
           FOR UPDATE OF w SKIP LOCKED
    LOOP
        loop_id := overdue.loop_id;
        seconds := overdue.age;
        IF NOT overdue.stubborn THEN
            deed := 'cancelled';
            PERFORM pg_cancel_backend(overdue.pid);
            RETURN NEXT;
            CONTINUE;
        END IF;
        deed := 'struck';
        IF overdue.to_blame
           AND activation._strike_stubborn(overdue.kind, overdue.loop_id, overdue.age) THEN
            UPDATE activation.worker w
               SET struck = overdue.said
             WHERE w.kind = overdue.kind
               AND w.slot = overdue.slot;
            RETURN NEXT;
        ELSIF pg_terminate_backend(overdue.pid, 1000) THEN
            deed := 'terminated';
            IF overdue.to_blame THEN
                -- The strike could not be written before: the worker held what it needs.
                PERFORM activation._strike_stubborn(overdue.kind, overdue.loop_id, overdue.age);
            END IF;
            RETURN NEXT;
        END IF;
    END LOOP;
END
$$;
