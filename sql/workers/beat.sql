-- Slots of workers and their heartbeats.

-- Takes a slot for this session: one worker a slot. It is free when nobody holds it, when the
-- session that did is gone, or when that is this one. Returns whether it is ours now; it stays so
-- until _leave_slot() or the end of the session.
-- With its owner's rights: _end_overdue() ends the session that a slot names, so the engine's role
-- may not write that name.
CREATE FUNCTION activation._take_slot(kind text, slot integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    held activation.worker;
BEGIN
    IF _take_slot.kind <> 'tick' AND _take_slot.slot BETWEEN 1 AND 8 IS NOT TRUE THEN
        RAISE EXCEPTION 'there is no % %', _take_slot.kind, coalesce(_take_slot.slot::text, 'NULL')
            USING ERRCODE = '22023', HINT = 'The slots of a kind of worker are 1 to 8.';
    END IF;
    INSERT INTO activation.worker (kind, slot, started_at, beat_at)
    VALUES (_take_slot.kind, _take_slot.slot, clock_timestamp(), clock_timestamp())
    ON CONFLICT DO NOTHING;
    SELECT w.* INTO held
      FROM activation.worker w
     WHERE w.kind = _take_slot.kind
       AND w.slot = _take_slot.slot
       FOR UPDATE;
    -- Its holder may have connected while this one waited for the row.
    PERFORM pg_stat_clear_snapshot();
    IF held.pid <> pg_backend_pid() AND activation._is_alive(held.pid, held.backend_start) THEN
        RETURN false;
    END IF;
    -- Before others can know whose it is: what the sequence says is the last holder's.
    PERFORM setval(activation._watch_sequence(_take_slot.kind, _take_slot.slot), 0);
    UPDATE activation.worker w
       SET pid = pg_backend_pid(),
           backend_start = activation._backend_start(pg_backend_pid()),
           started_at = clock_timestamp(),
           struck = NULL
     WHERE w.kind = _take_slot.kind
       AND w.slot = _take_slot.slot;
    RETURN FOUND;
EXCEPTION WHEN lock_not_available THEN
    -- Somebody is about to end who works in it, or to take it.
    RETURN false;
END
$$;

-- Gives a slot back at the end of a worker's run, if it is still this session's.
-- With its owner's rights, like _take_slot().
CREATE FUNCTION activation._leave_slot(kind text, slot integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM activation._evaluating(NULL);
    UPDATE activation.worker w
       SET pid = NULL, backend_start = NULL
     WHERE w.kind = _leave_slot.kind
       AND w.slot = _leave_slot.slot
       AND w.pid = pg_backend_pid();
END
$$;

-- A worker's heartbeat. Returns whether it is to go on: false after stop(), or when its slot is no
-- longer its own.
CREATE FUNCTION activation._beat(kind text, slot integer, worked boolean, note text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    born timestamptz;
BEGIN
    -- A cancel may have come after an author's code and before its worker said that it was over: it
    -- is said now.
    PERFORM activation._evaluating(NULL);
    UPDATE activation.worker w
       SET beat_at = clock_timestamp(),
           note = _beat.note,
           worked_at = CASE WHEN worked THEN clock_timestamp() ELSE w.worked_at END
     WHERE w.kind = _beat.kind
       AND w.slot = _beat.slot
       AND w.pid = pg_backend_pid()
    RETURNING w.started_at INTO born;
    RETURN born IS NOT NULL
       AND NOT EXISTS (SELECT FROM activation.schedule s WHERE s.stopped_at > born);
END
$$;

-- The buckets of users that a detector looks after: each is looked after by one of the slots in
-- which somebody works. A detector whose own slot is not among those looks after all.
CREATE FUNCTION activation._my_buckets(slot integer) RETURNS integer[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH alive AS (
        SELECT array_agg(w.slot ORDER BY w.slot) AS slots
          FROM activation.worker w
         WHERE w.kind = 'detector'
           AND greatest(w.started_at, w.beat_at) > clock_timestamp() - interval '15 seconds'
           AND activation._is_alive(w.pid, w.backend_start)
    )
    SELECT coalesce(array_agg(b.bucket ORDER BY b.bucket), '{}')
      FROM alive, unnest(activation._all_buckets()) AS b(bucket)
     WHERE cardinality(coalesce(alive.slots, '{}')) = 0
        OR alive.slots[1 + b.bucket % cardinality(alive.slots)] = _my_buckets.slot
        OR NOT _my_buckets.slot = ANY (alive.slots)
$$;
