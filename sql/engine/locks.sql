-- Locks of buckets of users, the orders for sweeps, and the table of wakes, which a crash empties.

-- Takes the locks of as many of these buckets of users as are free; with `wait`, of all of them.
CREATE FUNCTION activation._lock_buckets(buckets integer[], wait boolean) RETURNS integer[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- Always in this order, so that nobody waits in a circle.
    IF wait THEN
        RETURN ARRAY(
            SELECT b.bucket
              FROM activation.user_bucket b
             WHERE b.bucket = ANY (buckets)
             ORDER BY b.bucket
               FOR UPDATE);
    END IF;
    RETURN ARRAY(
        SELECT b.bucket
          FROM activation.user_bucket b
         WHERE b.bucket = ANY (buckets)
         ORDER BY b.bucket
           FOR UPDATE SKIP LOCKED);
END
$$;

-- Waits until nobody else moves this user.
CREATE FUNCTION activation._lock_user(user_id text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM activation._lock_buckets(ARRAY[activation._user_bucket(user_id)], true);
END
$$;

-- Orders a sweep of every step with a condition, of one loop or of all (NULL): everybody whose
-- condition is open is asked about again. Returns whether all are ordered: nobody waits for one
-- that a detector is just making, or that an author's open transaction holds.
CREATE FUNCTION activation._order_sweep(loop_id integer, due_at timestamptz) RETURNS boolean
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    WITH wanted AS MATERIALIZED (
        SELECT s.loop_id, s.version, s.step, b.bucket, w.ctid AS place
          FROM activation.step s
          JOIN activation."loop" l USING (loop_id)
          CROSS JOIN unnest(activation._all_buckets()) AS b(bucket)
          LEFT JOIN activation.sweep w
            ON (w.loop_id, w.version, w.step, w.bucket) = (s.loop_id, s.version, s.step, b.bucket)
         WHERE (_order_sweep.loop_id IS NULL OR s.loop_id = _order_sweep.loop_id)
           AND s.evaluate_function IS NOT NULL
           AND l.state <> 'archived'
    ), free AS MATERIALIZED (
        SELECT w.ctid AS place
          FROM activation.sweep w
         WHERE w.ctid = ANY (ARRAY(SELECT x.place FROM wanted x))
           FOR NO KEY UPDATE SKIP LOCKED
    ), moved AS (
        UPDATE activation.sweep w
           SET due_at = _order_sweep.due_at, swept_to = 0
         WHERE w.ctid = ANY (ARRAY(SELECT f.place FROM free f))
    ), made AS (
        INSERT INTO activation.sweep (loop_id, version, step, bucket, due_at)
        SELECT x.loop_id, x.version, x.step, x.bucket, _order_sweep.due_at
          FROM wanted x
         WHERE x.place IS NULL
         ORDER BY 1, 2, 3, 4
        ON CONFLICT DO NOTHING
    )
    SELECT (SELECT count(x.place) FROM wanted x) = (SELECT count(*) FROM free)
$$;

-- Notices that a crash or a promotion has emptied the table of wakes: its marker row is gone. Then
-- a sweep is ordered and the marker put back. Returns whether that was so.
CREATE FUNCTION activation._restore_wake_marker(now timestamptz) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM activation.wake w WHERE w.source_id = 0)
       OR NOT activation._try_lock('wake') THEN
        RETURN false;
    END IF;
    -- Emptied first, so that the marker stands on the first page and is found at once.
    DELETE FROM activation.wake;
    INSERT INTO activation.wake (source_id, user_id) VALUES (0, 'marker');
    PERFORM activation._order_sweep(NULL, now);
    RETURN true;
END
$$;

-- Makes the table of wakes anew when it has grown: wakes that were taken leave dead rows behind,
-- and whoever looks for wakes reads past them. That needs the table for itself: an app's INSERT
-- waits for this a few milliseconds at most, since this waits no longer than lock_timeout for those
-- before it, and the next try comes later. In a transaction of its own. NULL: there was no need
-- yet; false: it could not be done now.
CREATE FUNCTION activation._renew_wake() RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '5ms'
AS $$
DECLARE
    kept activation.wake[];
BEGIN
    IF pg_relation_size('activation.wake') < 2 * 1024 * 1024 THEN
        RETURN NULL;
    END IF;
    LOCK TABLE activation.wake IN ACCESS EXCLUSIVE MODE;
    kept := ARRAY(SELECT w FROM activation.wake w LIMIT 1001);
    IF cardinality(kept) > 1000 THEN
        RETURN false;
    END IF;
    TRUNCATE activation.wake;
    INSERT INTO activation.wake SELECT w.* FROM unnest(kept) w ORDER BY w.source_id <> 0;
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END
$$;
