-- What workers do besides their work: heartbeats, the watch over each other, housekeeping.

-- ---- workers --------------------------------------------------------------------------------------------------------------

-- Whether pg_cron started this run while stop() was removing its job: it would go on for a minute, and have the tables
-- watched for nobody.
CREATE FUNCTION activation._too_late(application_name text) RETURNS boolean
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT application_name = 'pg_cron'
       AND EXISTS (SELECT FROM activation.schedule s WHERE s.stopped_at > clock_timestamp() - interval '10 seconds')
$$;

-- Takes a slot for this session: one worker a slot. It is free when nobody holds it, when the session that did is gone, or
-- when that is this one. Returns whether it is ours now; it is, until _leave_slot() or the end of the session.
-- With its owner's rights: _end_overdue() ends the session that a slot names, so the engine's role may not write that name.
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
    SELECT w.* INTO held FROM activation.worker w WHERE w.kind = _take_slot.kind AND w.slot = _take_slot.slot FOR UPDATE;
    -- Its holder may have connected while this one waited for the row.
    PERFORM pg_stat_clear_snapshot();
    IF held.pid <> pg_backend_pid() AND activation._is_alive(held.pid, held.backend_start) THEN
        RETURN false;
    END IF;
    -- Before others can know whose it is: what was said last was said by another.
    PERFORM setval(activation._said_in(_take_slot.kind, _take_slot.slot), 0);
    UPDATE activation.worker w
       SET pid = pg_backend_pid(), backend_start = activation._backend_start(pg_backend_pid()),
           started_at = clock_timestamp(), struck = NULL
     WHERE w.kind = _take_slot.kind AND w.slot = _take_slot.slot;
    RETURN FOUND;
EXCEPTION WHEN lock_not_available THEN
    -- Somebody is about to end who works in it, or to take it.
    RETURN false;
END
$$;

CREATE FUNCTION activation._leave_slot(kind text, slot integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM activation._evaluating(NULL);
    UPDATE activation.worker w SET pid = NULL, backend_start = NULL
     WHERE w.kind = _leave_slot.kind AND w.slot = _leave_slot.slot AND w.pid = pg_backend_pid();
END
$$;

-- A worker's heartbeat. Returns whether it is to go on: false after stop(), when start() now asks for fewer workers, or when
-- its slot is no longer its own.
CREATE FUNCTION activation._beat(kind text, slot integer, worked boolean, note text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    born timestamptz;
BEGIN
    -- Where a cancel came between an author's code and this word, it is said now.
    PERFORM activation._evaluating(NULL);
    UPDATE activation.worker w
       SET beat_at = clock_timestamp(), note = _beat.note,
           worked_at = CASE WHEN worked THEN clock_timestamp() ELSE w.worked_at END
     WHERE w.kind = _beat.kind AND w.slot = _beat.slot AND w.pid = pg_backend_pid()
    RETURNING w.started_at INTO born;
    RETURN born IS NOT NULL AND NOT EXISTS (SELECT FROM activation.schedule s WHERE s.stopped_at > born);
END
$$;

-- Who works now, the last sign of life, and in which loop's code since when, if in any.
CREATE FUNCTION activation._workers()
RETURNS TABLE (kind text, slot integer, pid integer, seen_at timestamptz, said bigint, loop_id integer, since timestamptz)
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT w.kind, w.slot, w.pid, greatest(w.started_at, w.beat_at, s.at), x.said, s.loop_id, CASE WHEN s.loop_id IS NOT NULL THEN s.at END
      FROM activation.worker w
      CROSS JOIN LATERAL (SELECT nullif(pg_sequence_last_value(activation._said_in(w.kind, w.slot)), 0) AS said OFFSET 0) x
      CROSS JOIN LATERAL (SELECT to_timestamp(x.said >> 31) AS at, nullif((x.said & 2147483647)::integer, 0) AS loop_id) s
     WHERE w.pid IS NOT NULL AND activation._is_alive(w.pid, w.backend_start)
$$;

-- A strike against a loop whose code could not be cancelled. Returns whether it is written: not where somebody holds what it
-- needs, who may be the one that is stuck.
CREATE FUNCTION activation._strike_stubborn(worker_kind text, loop_id integer, seconds double precision) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM activation._strike(loop_id, CASE worker_kind WHEN 'detector' THEN 'detect' ELSE 'claim' END,
                               format('its own code ran for %s s and could not be cancelled', round(seconds)));
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END
$$;

-- Ends what other workers run for longer than condition_timeout, and who gives no sign of life for half a minute longer,
-- whatever they run: first by cancelling it, which their own loops survive, and after ten seconds more by terminating
-- them. Returns one row for each that it dealt with, and how: cancelled, terminated, or struck. A worker that is terminated
-- cannot write down the strike itself. It is written first, and is to be committed before the next call terminates the
-- worker, so that whoever takes over does not begin with the same loop.
CREATE FUNCTION activation._end_overdue() RETURNS TABLE (loop_id integer, seconds double precision, deed text)
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
               SELECT extract(epoch FROM clock_timestamp() - coalesce(x.since, x.seen_at))::double precision AS age,
                      CASE WHEN x.since IS NULL THEN allowed + 30 ELSE allowed END AS allowed) a
         WHERE x.kind IN ('detector', 'deliverer') AND x.pid <> pg_backend_pid() AND a.age >= a.allowed
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
        IF overdue.to_blame AND activation._strike_stubborn(overdue.kind, overdue.loop_id, overdue.age) THEN
            UPDATE activation.worker w SET struck = overdue.said WHERE w.kind = overdue.kind AND w.slot = overdue.slot;
            RETURN NEXT;
        ELSIF pg_terminate_backend(overdue.pid, 1000) THEN
            deed := 'terminated';
            IF overdue.to_blame THEN
                -- It held what the strike needs.
                PERFORM activation._strike_stubborn(overdue.kind, overdue.loop_id, overdue.age);
            END IF;
            RETURN NEXT;
        END IF;
    END LOOP;
END
$$;

-- The parts of the users that a detector looks after: those of its slot, and those of slots nobody works in now.
CREATE FUNCTION activation._my_parts(slot integer) RETURNS integer[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH alive AS (
        SELECT array_agg(w.slot ORDER BY w.slot) AS slots
          FROM activation.worker w
         WHERE w.kind = 'detector' AND greatest(w.started_at, w.beat_at) > clock_timestamp() - interval '15 seconds'
           AND activation._is_alive(w.pid, w.backend_start)
    )
    SELECT coalesce(array_agg(p.part ORDER BY p.part), '{}')
      FROM alive, unnest(activation._all_parts()) AS p(part)
     WHERE cardinality(coalesce(alive.slots, '{}')) = 0
        OR alive.slots[1 + p.part % cardinality(alive.slots)] = _my_parts.slot
        OR NOT _my_parts.slot = ANY (alive.slots)
$$;

-- ---- housekeeping ---------------------------------------------------------------------------------------------------------

-- Removes a little of what is older than `retention`: requests and the messages they carried, messages that ended without
-- one, their attempts, failures of filters, events and remarks. It also sums up what the brake counts. Messages that are
-- unknown stay until somebody decides; enrollments stay, since a user is enrolled once. One worker does it at a time. A part
-- that raises does not stop the others. Returns whether there is more (more), and what raised (problem).
CREATE FUNCTION activation._housekeep(OUT more boolean, OUT problem text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    now timestamptz := activation._now();
    oldest timestamptz := activation._oldest('messages', now);
    bodies timestamptz := activation._oldest('bodies', now);
    attempts timestamptz := activation._oldest('attempts', now);
    spoken uuid[];
    tried tid[];
    requests uuid[];
    messages uuid[];
    ended uuid[];
    failures tid[];
    events bigint[];
BEGIN
    more := false;
    IF NOT activation._try_lock('housekeeping') THEN
        RETURN;
    END IF;
    BEGIN
        requests := ARRAY(SELECT r.request_id FROM activation.request r
                           WHERE r.state = 'done' AND r.created_at < oldest ORDER BY r.created_at LIMIT 20);
        messages := ARRAY(SELECT m.message_id
                            FROM unnest(requests) AS q(id)
                           CROSS JOIN LATERAL (SELECT x.request_id, x.members FROM activation.request x WHERE x.request_id = q.id OFFSET 0) r
                           CROSS JOIN LATERAL unnest(r.members) AS u(message_id)
                           CROSS JOIN LATERAL (SELECT x.* FROM activation.message x WHERE x.message_id = u.message_id OFFSET 0) m
                           WHERE m.request_id = r.request_id AND m.state NOT IN ('queued', 'sending', 'unknown'));
        ended := ARRAY(SELECT m.message_id FROM activation.message m
                        WHERE m.finished_at < oldest AND m.finished_at IS NOT NULL AND m.state <> 'unknown' ORDER BY m.finished_at LIMIT 1000);
        -- Whoever is suppressed is to be found by erase() without these, too.
        PERFORM activation._remember_addresses(array_agg(m.user_id), array_agg(s.address))
           FROM unnest(messages || ended) AS u(id)
          CROSS JOIN LATERAL (SELECT x.user_id, x.recipient FROM activation.message x WHERE x.message_id = u.id OFFSET 0) m
          CROSS JOIN LATERAL activation._fold_address(m.recipient) AS f(address)
          CROSS JOIN LATERAL (SELECT x.address FROM activation.suppression x WHERE x.address = f.address OFFSET 0) s
         HAVING count(*) > 0;
        DELETE FROM activation.attempt a WHERE a.message_id = ANY (messages || ended);
        DELETE FROM activation.webhook_event w WHERE w.message_id = ANY (messages || ended);
        DELETE FROM activation.message m WHERE m.message_id = ANY (messages || ended);
        DELETE FROM activation.request r WHERE r.request_id = ANY (requests);
    EXCEPTION WHEN others THEN
        IF NOT activation._of_a_person(SQLSTATE) THEN
            RAISE;
        END IF;
        problem := activation._problem('messages of the past', SQLERRM, problem);
        requests := '{}';
        ended := '{}';
    END;
    BEGIN
        IF bodies > oldest THEN
            spoken := ARRAY(SELECT r.request_id FROM activation.request r
                             WHERE r.state = 'done' AND r.body <> '' AND r.created_at < bodies ORDER BY r.created_at LIMIT 20);
            UPDATE activation.request r SET body = '' WHERE r.request_id = ANY (spoken);
        END IF;
        IF attempts > oldest THEN
            tried := ARRAY(SELECT a.ctid FROM activation.attempt a WHERE a.started_at < attempts AND NOT EXISTS (
                               SELECT FROM activation.message m WHERE m.message_id = a.message_id AND m.state IN ('queued', 'sending', 'unknown')) LIMIT 1000);
            DELETE FROM activation.attempt a WHERE a.ctid = ANY (tried);
        END IF;
    EXCEPTION WHEN others THEN
        IF NOT activation._of_a_person(SQLSTATE) THEN
            RAISE;
        END IF;
        problem := activation._problem('bodies and attempts of the past', SQLERRM, problem);
        spoken := '{}';
        tried := '{}';
    END;
    BEGIN
        failures := ARRAY(SELECT c.ctid FROM activation.capture_failure c WHERE c.at < activation._oldest('failures', now) ORDER BY c.at LIMIT 1000);
        DELETE FROM activation.capture_failure c WHERE c.ctid = ANY (failures);
        DELETE FROM activation.past_address p WHERE p.ctid = ANY (ARRAY(
            SELECT x.ctid FROM activation.past_address x
             WHERE x.at < oldest AND NOT EXISTS (SELECT FROM activation.suppression s WHERE s.hash = x.hash) ORDER BY x.at LIMIT 1000));
        more := more OR FOUND;
        events := ARRAY(SELECT x.event_id FROM activation.event x WHERE x.at < activation._oldest('events', now) ORDER BY x.at LIMIT 1000);
        DELETE FROM activation.event x WHERE x.event_id = ANY (events);
        DELETE FROM activation.remark k WHERE k.ctid = ANY (ARRAY(
            SELECT x.ctid FROM activation.remark x WHERE x.at < activation._oldest('failures', now) ORDER BY x.at LIMIT 1000));
        more := more OR FOUND;
        DELETE FROM activation.webhook_event w WHERE w.webhook_id = ANY (ARRAY(
            SELECT x.webhook_id FROM activation.webhook_event x WHERE x.received_at < activation._oldest('webhooks', now) ORDER BY x.received_at LIMIT 1000));
        more := more OR FOUND;
    EXCEPTION WHEN others THEN
        IF NOT activation._of_a_person(SQLSTATE) THEN
            RAISE;
        END IF;
        problem := activation._problem('events and failures of the past', SQLERRM, problem);
        failures := '{}';
        events := '{}';
        more := false;
    END;
    BEGIN
        DELETE FROM activation.pace p WHERE p.at < now - interval '28 days';
        WITH fine AS (
            DELETE FROM activation.pace p WHERE p.at < now - interval '3 hours' AND p.at <> date_bin('1 hour', p.at, 'epoch') RETURNING *
        )
        INSERT INTO activation.pace AS p (loop_id, at, emails)
        SELECT f.loop_id, date_bin('1 hour', f.at, 'epoch'), sum(f.emails) FROM fine f GROUP BY 1, 2 ORDER BY 1, 2
        ON CONFLICT ON CONSTRAINT pace_pkey DO UPDATE SET emails = p.emails + excluded.emails;
    EXCEPTION WHEN others THEN
        IF NOT activation._of_a_person(SQLSTATE) THEN
            RAISE;
        END IF;
        problem := activation._problem('what the brake counts', SQLERRM, problem);
    END;
    more := more OR coalesce(requests <> '{}' OR ended <> '{}' OR failures <> '{}' OR events <> '{}' OR spoken <> '{}' OR tried <> '{}', false);
END
$$;
