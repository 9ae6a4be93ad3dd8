-- Locks of parts of the users, and the table of wakes, which a crash empties.

-- ---- detect -------------------------------------------------------------------------------------------------------------

-- Takes the locks of as many of these parts of the users as are free; with wait, all of them.
CREATE FUNCTION activation._lock_buckets(parts integer[], wait boolean) RETURNS integer[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- In this order always, so that nobody waits in a circle.
    IF wait THEN
        RETURN ARRAY(SELECT p.part FROM activation.user_bucket p WHERE p.part = ANY (parts) ORDER BY p.part FOR UPDATE);
    END IF;
    RETURN ARRAY(SELECT p.part FROM activation.user_bucket p WHERE p.part = ANY (parts) ORDER BY p.part FOR UPDATE SKIP LOCKED);
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

-- Asks for a sweep of every step with a condition (of one loop, or of all): everybody whose condition is open is asked again.
CREATE FUNCTION activation._order_sweep(loop_id integer, due_at timestamptz) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.sweep (loop_id, version, step, part, due_at)
    SELECT s.loop_id, s.version, s.step, p.part, _order_sweep.due_at
      FROM activation.step s JOIN activation."loop" l USING (loop_id), unnest(activation._all_buckets()) AS p(part)
     WHERE (_order_sweep.loop_id IS NULL OR s.loop_id = _order_sweep.loop_id)
       AND s.evaluate_function IS NOT NULL AND l.state <> 'archived'
     ORDER BY 1, 2, 3, 4
    ON CONFLICT ON CONSTRAINT sweep_pkey DO UPDATE SET due_at = excluded.due_at, mark = 0
$$;

-- The marker row of wake is gone after a crash or a promotion, and with it the wakes: sweep once, put it back.
-- The table is emptied first, so that the marker stands on its first page and is found at once.
CREATE FUNCTION activation._restore_wake_marker(now timestamptz) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM activation.wake w WHERE w.source_id = 0)
       OR NOT activation._try_lock('wake') THEN
        RETURN false;
    END IF;
    DELETE FROM activation.wake;
    INSERT INTO activation.wake (source_id, user_id) VALUES (0, 'marker');
    PERFORM activation._order_sweep(NULL, now);
    RETURN true;
END
$$;

-- Wakes that were taken leave dead rows behind, and whoever looks for wakes reads past them. When there are many, the
-- table is made anew, with the few wakes that are in it. That needs the table for itself: an app's INSERT waits for this
-- a few milliseconds at most, since nobody waits longer than lock_timeout for those before him, and the next try comes
-- later. In a transaction of its own. NULL: not yet.
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
