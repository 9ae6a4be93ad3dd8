-- Who works, and the rows that sessions lock: parts of the users, named mutexes, slots of workers.

-- Locks are rows, taken by SELECT … FOR UPDATE: an advisory lock can be taken by anybody who may connect, and be kept. A row
-- that is locked is no new version of it, so that transactions of any isolation level may wait for it.
CREATE TABLE activation.user_bucket (part integer PRIMARY KEY);
COMMENT ON TABLE activation.user_bucket IS 'One row for each part of the users, locked by who moves people of that part; not dumped.';
INSERT INTO activation.user_bucket SELECT unnest(activation._all_buckets());

CREATE TABLE activation.mutex (name text PRIMARY KEY);
COMMENT ON TABLE activation.mutex IS 'One row for each thing that one transaction does at a time, which locks it; not dumped.';
INSERT INTO activation.mutex VALUES ('cap'), ('capture'), ('define'), ('housekeeping'), ('mode'), ('overview'), ('wake');

-- Waits for a lock, and holds it until the transaction ends.
CREATE FUNCTION activation._lock(name text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM FROM activation.mutex l WHERE l.name = _lock.name FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'activation.mutex has no row %', quote_literal(name)
            USING ERRCODE = '55000', HINT = format('INSERT INTO activation.mutex VALUES (%L);', name);
    END IF;
END
$$;

-- Takes a lock if nobody holds it. Returns whether it did.
CREATE FUNCTION activation._try_lock(name text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM FROM activation.mutex l WHERE l.name = _try_lock.name FOR UPDATE SKIP LOCKED;
    RETURN FOUND;
END
$$;

-- A worker's slot is its own while pid and backend_start are those of a session that exists: a lease, see _take_slot().
-- NULL: nobody's. struck: what it was stuck in when its loop got a strike for that.
CREATE TABLE activation.worker (
    kind          text NOT NULL CHECK (kind IN ('detector', 'deliverer', 'puller', 'tick')),
    slot          integer NOT NULL,
    pid           integer,
    backend_start timestamptz,
    started_at    timestamptz NOT NULL,
    beat_at       timestamptz NOT NULL,
    worked_at     timestamptz,
    note          text,
    struck        bigint,
    PRIMARY KEY (kind, slot)
) WITH (fillfactor = 50);
COMMENT ON TABLE activation.worker IS 'Who works in which slot, and their heartbeats; not dumped.';

-- In which loop's code a worker is, and since when: one sequence a slot, since others see at once what is set in a sequence,
-- and an author's code can neither set it nor undo it. See _evaluating().
DO $$
DECLARE
    place text;
BEGIN
    FOR place IN
        SELECT format('activation.%s_%s', k.kind, n.slot) FROM unnest('{detector,deliverer}'::text[]) AS k(kind), generate_series(1, 8) AS n(slot)
    LOOP
        EXECUTE format('CREATE UNLOGGED SEQUENCE %s MINVALUE 0 START 0', place);
        EXECUTE format('COMMENT ON SEQUENCE %s IS ''In which loop''''s code this worker is, and since when; not dumped.''', place);
    END LOOP;
END
$$;

-- Whether the wake part stands in the capture functions and until when it writes, and how many workers start() was asked
-- for.
CREATE TABLE activation.schedule (
    singleton  boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    watching   boolean NOT NULL,
    watched_until timestamptz,
    detectors  integer NOT NULL,
    deliverers integer NOT NULL,
    pull       boolean NOT NULL DEFAULT false,
    stopped_at timestamptz
);
COMMENT ON TABLE activation.schedule IS 'Whether workers run: what start() and stop() last said; not dumped, so that a restored copy is stopped.';

-- The slow half of overview(): over a million enrollments it takes seconds, so it is kept for a while.
CREATE TABLE activation.overview_numbers (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    taken_at  timestamptz NOT NULL,
    took      interval NOT NULL,
    numbers   jsonb NOT NULL
);
COMMENT ON TABLE activation.overview_numbers IS 'The numbers of the last overview(), and how long they took; not dumped, since they are counted again.';
