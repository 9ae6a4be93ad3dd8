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

-- A worker's heartbeat. Returns whether it is to go on: false after stop(), or when start() now asks for fewer workers.
CREATE FUNCTION activation._beat(kind text, slot integer, started boolean, worked boolean, note text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    born timestamptz;
BEGIN
    INSERT INTO activation.worker AS w (kind, slot, pid, backend_start, started_at, beat_at, worked_at, note)
    SELECT _beat.kind, _beat.slot, a.pid, a.backend_start, clock_timestamp(), clock_timestamp(),
           CASE WHEN worked THEN clock_timestamp() END, _beat.note
      FROM pg_stat_activity a WHERE a.pid = pg_backend_pid()
    ON CONFLICT ON CONSTRAINT worker_pkey DO UPDATE
       SET pid = excluded.pid, backend_start = excluded.backend_start, beat_at = excluded.beat_at, note = excluded.note,
           started_at = CASE WHEN _beat.started THEN excluded.started_at ELSE w.started_at END,
           worked_at = coalesce(excluded.worked_at, w.worked_at)
    RETURNING w.started_at INTO born;
    RETURN NOT EXISTS (SELECT FROM activation.schedule s WHERE s.stopped_at > born);
END
$$;

-- Ends what other workers run for longer than condition_timeout: first by cancelling it, which their own loops survive,
-- and where that does not help by terminating them. Returns one row for each that it ended; struck: who was terminated
-- could not write down the strike itself.
CREATE FUNCTION activation._end_overdue() RETURNS TABLE (loop_id integer, seconds double precision, struck boolean)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    allowed double precision := extract(epoch FROM (activation._setting()).condition_timeout);
    overdue record;
BEGIN
    FOR overdue IN
        SELECT a.pid, w.kind, (shown.parts)[1]::integer AS loop_id, extract(epoch FROM clock_timestamp()) - (shown.parts)[2]::double precision AS seconds
          FROM activation.worker w
          JOIN pg_stat_activity a ON a.pid = w.pid AND a.backend_start = w.backend_start
          CROSS JOIN LATERAL regexp_match(a.application_name, '^activation loop (\d+) since ([\d.]+)$') AS shown(parts)
         WHERE a.pid <> pg_backend_pid() AND shown.parts IS NOT NULL
    LOOP
        loop_id := overdue.loop_id;
        seconds := overdue.seconds;
        struck := false;
        CONTINUE WHEN seconds < allowed;
        IF seconds < allowed + 10 THEN
            PERFORM pg_cancel_backend(overdue.pid);
        ELSIF pg_terminate_backend(overdue.pid, 1000) THEN
            struck := true;
            PERFORM activation._strike(loop_id, CASE overdue.kind WHEN 'detector' THEN 'detect' ELSE 'claim' END,
                                       format('its own code ran for %s s and could not be cancelled', round(overdue.seconds)));
        END IF;
        RETURN NEXT;
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
          FROM activation.worker w JOIN pg_stat_activity a ON a.pid = w.pid AND a.backend_start = w.backend_start
         WHERE w.kind = 'detector' AND w.beat_at > clock_timestamp() - interval '15 seconds'
    )
    SELECT coalesce(array_agg(p.part ORDER BY p.part), '{}')
      FROM alive, unnest(activation._all_parts()) AS p(part)
     WHERE cardinality(coalesce(alive.slots, '{}')) = 0
        OR alive.slots[1 + p.part % cardinality(alive.slots)] = _my_parts.slot
        OR NOT _my_parts.slot = ANY (alive.slots)
$$;

-- ---- housekeeping ---------------------------------------------------------------------------------------------------------

-- Removes a little of what is older than `retention`: requests and the messages they carried, messages that ended without
-- one, their attempts, failures of filters, events, remarks; and sums up what the brake counts. Messages that are unknown stay, somebody is
-- to decide; enrollments stay, a user is enrolled once. Returns whether there is more; one worker at a time.
CREATE FUNCTION activation._housekeep() RETURNS boolean
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
    IF NOT pg_try_advisory_xact_lock(hashtext('activation'), hashtext('housekeeping')) THEN
        RETURN false;
    END IF;
    requests := ARRAY(SELECT r.request_id FROM activation.request r
                       WHERE r.state = 'done' AND r.created_at < oldest ORDER BY r.created_at LIMIT 20);
    messages := ARRAY(SELECT m.message_id
                        FROM activation.request r, unnest(r.members) AS u(message_id)
                       CROSS JOIN LATERAL (SELECT x.* FROM activation.message x WHERE x.message_id = u.message_id OFFSET 0) m
                       WHERE r.request_id = ANY (requests) AND m.request_id = r.request_id AND m.state NOT IN ('queued', 'sending', 'unknown'));
    ended := ARRAY(SELECT m.message_id FROM activation.message m
                    WHERE m.finished_at < oldest AND m.finished_at IS NOT NULL AND m.state <> 'unknown' ORDER BY m.finished_at LIMIT 1000);
    -- Whoever is suppressed is to be found by erase() without these, too.
    PERFORM activation._remember_addresses(array_agg(m.user_id), array_agg(s.address))
       FROM activation.message m, activation._fold_address(m.recipient) AS f(address)
      CROSS JOIN LATERAL (SELECT x.address FROM activation.suppression x WHERE x.address = f.address OFFSET 0) s
      WHERE m.message_id = ANY (messages || ended) HAVING count(*) > 0;
    DELETE FROM activation.past_address p WHERE p.ctid = ANY (ARRAY(
        SELECT x.ctid FROM activation.past_address x
         WHERE x.at < oldest AND NOT EXISTS (SELECT FROM activation.suppression s WHERE s.hash = x.hash) ORDER BY x.at LIMIT 1000));
    failures := ARRAY(SELECT c.ctid FROM activation.capture_failure c WHERE c.at < activation._oldest('failures', now) ORDER BY c.at LIMIT 1000);
    DELETE FROM activation.attempt a WHERE a.message_id = ANY (messages || ended);
    DELETE FROM activation.webhook_event w WHERE w.message_id = ANY (messages || ended);
    DELETE FROM activation.message m WHERE m.message_id = ANY (messages || ended);
    DELETE FROM activation.request r WHERE r.request_id = ANY (requests);
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
    DELETE FROM activation.capture_failure c WHERE c.ctid = ANY (failures);
    events := ARRAY(SELECT x.event_id FROM activation.event x WHERE x.at < activation._oldest('events', now) ORDER BY x.at LIMIT 1000);
    DELETE FROM activation.event x WHERE x.event_id = ANY (events);
    DELETE FROM activation.remark k WHERE k.at < activation._oldest('failures', now);
    DELETE FROM activation.webhook_event w WHERE w.webhook_id = ANY (ARRAY(
        SELECT x.webhook_id FROM activation.webhook_event x WHERE x.received_at < activation._oldest('webhooks', now) ORDER BY x.received_at LIMIT 1000));

    DELETE FROM activation.pace p WHERE p.at < now - interval '28 days';
    WITH fine AS (
        DELETE FROM activation.pace p WHERE p.at < now - interval '3 hours' AND p.at <> date_bin('1 hour', p.at, 'epoch') RETURNING *
    )
    INSERT INTO activation.pace AS p (loop_id, at, emails)
    SELECT f.loop_id, date_bin('1 hour', f.at, 'epoch'), sum(f.emails) FROM fine f GROUP BY 1, 2 ORDER BY 1, 2
    ON CONFLICT ON CONSTRAINT pace_pkey DO UPDATE SET emails = p.emails + excluded.emails;
    RETURN requests <> '{}' OR ended <> '{}' OR failures <> '{}' OR events <> '{}' OR spoken <> '{}' OR tried <> '{}';
END
$$;
