-- Who works, and the rows that sessions lock: buckets of users, named mutexes, slots of workers.

-- Locks are rows, taken by SELECT … FOR UPDATE: an advisory lock can be taken by anybody who may
-- connect, and be kept. Locking a row makes no new version of it, so that transactions of any
-- isolation level may wait for it.
CREATE TABLE activation.user_bucket (bucket integer PRIMARY KEY);
COMMENT ON TABLE activation.user_bucket IS
    'One row for each bucket of users, locked by whoever moves people of that bucket; not dumped.';
INSERT INTO activation.user_bucket SELECT unnest(activation._all_buckets());

CREATE TABLE activation.mutex (name text PRIMARY KEY);
COMMENT ON TABLE activation.mutex IS
    'One row for each thing that one transaction does at a time, which locks it; not dumped.';
INSERT INTO activation.mutex
VALUES ('cap'), ('capture'), ('define'), ('housekeeping'), ('mode'), ('overview'), ('wake');

-- Waits for a lock, and holds it until the transaction ends.
CREATE FUNCTION activation._lock(name text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM FROM activation.mutex l WHERE l.name = _lock.name FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'activation.mutex has no row %', quote_literal(name)
            USING ERRCODE = '55000',
                  HINT = format('INSERT INTO activation.mutex VALUES (%L);', name);
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

-- Waits, for a few seconds, until nobody else defines anything. One definition is made at a time,
-- and an open transaction may keep the others waiting: they are told whose it is. It asks again and
-- again in no subtransaction, whose number would not tell the session.
CREATE FUNCTION activation._lock_define() RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    until timestamptz := clock_timestamp() + interval '3 seconds';
    holder record;
BEGIN
    WHILE NOT activation._try_lock('define') LOOP
        IF NOT EXISTS (SELECT FROM activation.mutex m WHERE m.name = 'define') THEN
            PERFORM activation._lock('define');
        END IF;
        IF clock_timestamp() > until THEN
            SELECT a.pid, a.usename, a.xact_start INTO holder
              FROM activation.mutex m
              JOIN pg_locks k
                ON k.locktype = 'transactionid' AND k.transactionid = m.xmax AND k.granted
              JOIN pg_stat_activity a ON a.pid = k.pid
             WHERE m.name = 'define';
            RAISE EXCEPTION
                'another transaction defines loops or templates, and has not ended within 3 s'
                USING ERRCODE = '55P03',
                      DETAIL = CASE WHEN holder.pid IS NOT NULL
                                    THEN format('It is that of %s, in the session with pid %s, '
                                                'since %s.', quote_ident(holder.usename),
                                                holder.pid, holder.xact_start)
                                    ELSE 'Its session could not be found.' END,
                      HINT = 'Try again when it is over. Whoever may do so can end it: '
                             'SELECT pg_terminate_backend(pid);';
        END IF;
        PERFORM pg_sleep(0.02);
    END LOOP;
END
$$;

-- A worker's slot is its own while pid and backend_start are those of a session that exists: a
-- lease, see _take_slot().
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
COMMENT ON TABLE activation.worker IS
    'Who works in which slot, and their heartbeats; not dumped.';
COMMENT ON COLUMN activation.worker.pid IS
    'NULL: the slot is nobody''s.';
COMMENT ON COLUMN activation.worker.struck IS
    'What the worker was stuck in when its loop got a strike for that.';

-- In which loop's code a worker is, and since when. It is one sequence for each slot: others see at
-- once what is set in a sequence, and an author's code can neither set it nor undo it. See
-- _evaluating().
DO $$
DECLARE
    sequence text;
BEGIN
    FOR sequence IN
        SELECT format('activation.%s_%s', k.kind, n.slot)
          FROM unnest('{detector,deliverer}'::text[]) AS k(kind), generate_series(1, 8) AS n(slot)
    LOOP
        EXECUTE format('CREATE UNLOGGED SEQUENCE %s MINVALUE 0 START 0', sequence);
        EXECUTE format('COMMENT ON SEQUENCE %s IS ''In which loop''''s code this worker is, '
                       'and since when; not dumped.''', sequence);
    END LOOP;
END
$$;

CREATE TABLE activation.schedule (
    singleton     boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    watching      boolean NOT NULL,
    watched_until timestamptz,
    detectors     integer NOT NULL,
    deliverers    integer NOT NULL,
    pull          boolean NOT NULL DEFAULT false,
    stopped_at    timestamptz
);
COMMENT ON TABLE activation.schedule IS
    'Whether workers run: what start() and stop() last said; '
    'not dumped, so that a restored copy is stopped.';
COMMENT ON COLUMN activation.schedule.watching IS
    'Whether capture functions write wakes.';
COMMENT ON COLUMN activation.schedule.watched_until IS
    'Until when capture functions write wakes.';
COMMENT ON COLUMN activation.schedule.detectors IS
    'How many detectors start() was asked for.';
COMMENT ON COLUMN activation.schedule.deliverers IS
    'How many deliverers start() was asked for.';

-- The slow half of overview(): over a million enrollments it takes seconds, so it is kept for a
-- while.
CREATE TABLE activation.overview_numbers (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    taken_at  timestamptz NOT NULL,
    took      interval NOT NULL,
    numbers   jsonb NOT NULL
);
COMMENT ON TABLE activation.overview_numbers IS
    'The numbers of the last overview(), and how long they took; '
    'not dumped, since they are counted again.';
