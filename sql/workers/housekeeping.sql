-- Housekeeping: what is older than its retention goes, each kind of it by itself.

-- Removes some of the requests that are older than `retention` with the messages that they carried,
-- some of the messages that ended without a request, and their attempts. Messages that are unknown
-- stay until somebody decides. Returns whether it found any.
CREATE FUNCTION activation._remove_old_messages(oldest timestamptz) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    requests uuid[] := ARRAY(
        SELECT r.request_id
          FROM activation.request r
         WHERE r.state = 'done' AND r.created_at < oldest
         ORDER BY r.created_at
         LIMIT 20);
    messages uuid[] := ARRAY(
        SELECT m.message_id
          FROM unnest(requests) AS q(id)
          CROSS JOIN LATERAL (
              SELECT x.request_id, x.members
                FROM activation.request x
               WHERE x.request_id = q.id
              OFFSET 0) r
          CROSS JOIN LATERAL unnest(r.members) AS u(message_id)
          CROSS JOIN LATERAL (
              SELECT x.* FROM activation.message x WHERE x.message_id = u.message_id OFFSET 0) m
         WHERE m.request_id = r.request_id
           AND m.state NOT IN ('queued', 'sending', 'unknown'));
    ended uuid[] := ARRAY(
        SELECT m.message_id
          FROM activation.message m
         WHERE m.finished_at < oldest
           AND m.finished_at IS NOT NULL
           AND m.state <> 'unknown'
         ORDER BY m.finished_at
         LIMIT 1000);
BEGIN
    -- erase() must find people whose address is suppressed without these messages, too.
    PERFORM activation._remember_addresses(array_agg(m.user_id), array_agg(s.address))
       FROM unnest(messages || ended) AS u(id)
      CROSS JOIN LATERAL (
          SELECT x.user_id, x.recipient
            FROM activation.message x
           WHERE x.message_id = u.id
          OFFSET 0) m
      CROSS JOIN LATERAL activation._fold_address(m.recipient) AS f(address)
      CROSS JOIN LATERAL (
          SELECT x.address FROM activation.suppression x WHERE x.address = f.address OFFSET 0) s
     HAVING count(*) > 0;
    DELETE FROM activation.attempt a WHERE a.message_id = ANY (messages || ended);
    DELETE FROM activation.webhook_event w WHERE w.message_id = ANY (messages || ended);
    DELETE FROM activation.message m WHERE m.message_id = ANY (messages || ended);
    DELETE FROM activation.request r WHERE r.request_id = ANY (requests);
    RETURN requests <> '{}' OR ended <> '{}';
END
$$;

-- Removes some of the bodies and of the attempts that are kept for less time than their messages,
-- whose retention ends at `oldest`. Returns whether it found any.
CREATE FUNCTION activation._remove_old_attempts(
    oldest timestamptz, oldest_body timestamptz, oldest_attempt timestamptz
) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    requests uuid[] := '{}'::uuid[];
    attempts tid[] := '{}'::tid[];
BEGIN
    IF oldest_body > oldest THEN
        requests := ARRAY(
            SELECT r.request_id
              FROM activation.request r
             WHERE r.state = 'done' AND r.body <> '' AND r.created_at < oldest_body
             ORDER BY r.created_at
             LIMIT 20);
        UPDATE activation.request r SET body = '' WHERE r.request_id = ANY (requests);
    END IF;
    IF oldest_attempt > oldest THEN
        attempts := ARRAY(
            SELECT a.ctid
              FROM activation.attempt a
             WHERE a.started_at < oldest_attempt
               -- One look-up for each attempt: as an anti join it could compare all with all.
               AND (SELECT m.state
                      FROM activation.message m
                     WHERE m.message_id = a.message_id) IN ('queued', 'sending', 'unknown')
                   IS NOT TRUE
             LIMIT 1000);
        DELETE FROM activation.attempt a WHERE a.ctid = ANY (attempts);
    END IF;
    RETURN requests <> '{}' OR attempts <> '{}';
END
$$;

-- Removes some of the failures of filters, past addresses, events, remarks and webhook events that
-- are older than their retention. Returns whether it found any.
CREATE FUNCTION activation._remove_old_events(oldest timestamptz, now timestamptz) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    found_any boolean := false;
    failures tid[];
    events bigint[];
BEGIN
    failures := ARRAY(
        SELECT c.ctid
          FROM activation.capture_failure c
         WHERE c.at < activation._retention_cutoff('failures', now)
         ORDER BY c.at
         LIMIT 1000);
    DELETE FROM activation.capture_failure c WHERE c.ctid = ANY (failures);
    DELETE FROM activation.past_address p
     WHERE p.ctid = ANY (ARRAY(
           SELECT x.ctid
             FROM activation.past_address x
            WHERE x.at < oldest
              AND NOT EXISTS (SELECT FROM activation.suppression s WHERE s.hash = x.hash)
            ORDER BY x.at
            LIMIT 1000));
    found_any := found_any OR FOUND;
    events := ARRAY(
        SELECT x.event_id
          FROM activation.event x
         WHERE x.at < activation._retention_cutoff('events', now)
         ORDER BY x.at
         LIMIT 1000);
    DELETE FROM activation.event x WHERE x.event_id = ANY (events);
    DELETE FROM activation.remark k
     WHERE k.ctid = ANY (ARRAY(
           SELECT x.ctid
             FROM activation.remark x
            WHERE x.at < activation._retention_cutoff('failures', now)
            ORDER BY x.at
            LIMIT 1000));
    found_any := found_any OR FOUND;
    DELETE FROM activation.webhook_event w
     WHERE w.webhook_id = ANY (ARRAY(
           SELECT x.webhook_id
             FROM activation.webhook_event x
            WHERE x.received_at < activation._retention_cutoff('webhooks', now)
            ORDER BY x.received_at
            LIMIT 1000));
    found_any := found_any OR FOUND;
    RETURN found_any OR failures <> '{}' OR events <> '{}';
END
$$;

-- Sums up what the brake counts: five minutes become one hour after three hours, and go after four
-- weeks.
CREATE FUNCTION activation._sum_hourly_sends(now timestamptz) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    DELETE FROM activation.hourly_sends p WHERE p.at < now - interval '28 days';
    WITH fine AS (
        DELETE FROM activation.hourly_sends p
         WHERE p.at < now - interval '3 hours'
           AND p.at <> date_bin('1 hour', p.at, 'epoch')
        RETURNING *
    )
    INSERT INTO activation.hourly_sends AS p (loop_id, at, emails)
    SELECT f.loop_id, date_bin('1 hour', f.at, 'epoch'), sum(f.emails)
      FROM fine f
     GROUP BY 1, 2
     ORDER BY 1, 2
    ON CONFLICT ON CONSTRAINT hourly_sends_pkey DO UPDATE SET emails = p.emails + excluded.emails;
END
$$;

-- Removes a little of all that is older than its retention, and sums up what the brake counts.
-- Enrollments stay, since a user is enrolled once. One worker does it at a time. A part that raises
-- does not stop the others. Returns whether there is more (more), and what raised (problem).
CREATE FUNCTION activation._housekeep(OUT more boolean, OUT problem text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    now timestamptz := activation._now();
    oldest timestamptz := activation._retention_cutoff('messages', now);
    oldest_body timestamptz := activation._retention_cutoff('bodies', now);
    oldest_attempt timestamptz := activation._retention_cutoff('attempts', now);
BEGIN
    more := false;
    IF NOT activation._try_lock('housekeeping') THEN
        RETURN;
    END IF;
    BEGIN
        more := activation._remove_old_messages(oldest) OR more;
    EXCEPTION WHEN others THEN
        IF NOT activation._is_about_one_person(SQLSTATE) THEN
            RAISE;
        END IF;
        problem := activation._error_text('messages of the past', SQLERRM, problem);
    END;
    BEGIN
        more := activation._remove_old_attempts(oldest, oldest_body, oldest_attempt) OR more;
    EXCEPTION WHEN others THEN
        IF NOT activation._is_about_one_person(SQLSTATE) THEN
            RAISE;
        END IF;
        problem := activation._error_text('bodies and attempts of the past', SQLERRM, problem);
    END;
    BEGIN
        more := activation._remove_old_events(oldest, now) OR more;
    EXCEPTION WHEN others THEN
        IF NOT activation._is_about_one_person(SQLSTATE) THEN
            RAISE;
        END IF;
        problem := activation._error_text('events and failures of the past', SQLERRM, problem);
    END;
    BEGIN
        PERFORM activation._sum_hourly_sends(now);
    EXCEPTION WHEN others THEN
        IF NOT activation._is_about_one_person(SQLSTATE) THEN
            RAISE;
        END IF;
        problem := activation._error_text('what the brake counts', SQLERRM, problem);
    END;
END
$$;
