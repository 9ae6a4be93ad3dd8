-- How much a loop may send in an hour, when a window opens, how many mails a person gets, and in
-- which order.

-- The brake: how many emails of a loop may leave within an hour. A loop that would send more than
-- max_per_hour is stopped before it does, and waits for resume_loop(). Without that setting, the
-- limit is ten times its usual hour (the mean of the hours of the last four weeks in which it sent
-- any), at least 1,000.
CREATE FUNCTION activation._hourly_limit(loop_id integer, now timestamptz) RETURNS bigint
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(
        (activation._setting()).max_per_hour,
        greatest(1000, (
            SELECT 10 * avg(h.emails)
              FROM (SELECT sum(p.emails) AS emails
                      FROM activation.hourly_sends p
                     WHERE p.loop_id = _hourly_limit.loop_id
                       AND p.at > now - interval '28 days'
                       AND p.at <= now - interval '1 hour'
                     GROUP BY date_bin('1 hour', p.at, 'epoch')) h))::bigint)
$$;

-- How many emails of a loop left within the last hour, as the brake counts them: the counts are of
-- five minutes each, so that the oldest began up to 65 minutes ago. A resumed loop counts anew.
CREATE FUNCTION activation._sent_within_the_hour(loop_id integer, now timestamptz) RETURNS bigint
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(sum(p.emails), 0)
      FROM activation.hourly_sends p
     WHERE p.loop_id = _sent_within_the_hour.loop_id
       AND p.at > now - interval '1 hour 5 minutes'
       AND p.at >= coalesce(
               (SELECT l.resumed_at
                  FROM activation."loop" l
                 WHERE l.loop_id = _sent_within_the_hour.loop_id),
               '-infinity')
$$;

-- Takes the lock of a loop's brake, if nobody holds it: the row of the loop's first version.
-- Pausing and stopping do not touch that row, so they need not wait.
-- With its owner's rights: the engine's role may not lock what people declared.
CREATE FUNCTION activation._try_brake(loop_id integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM FROM activation.loop_version v
      WHERE v.loop_id = _try_brake.loop_id
        AND v.version = 1
        FOR NO KEY UPDATE SKIP LOCKED;
    RETURN FOUND;
END
$$;

-- Counts emails that are about to leave, or, with a negative number, that came back to the queue
-- after all.
CREATE FUNCTION activation._count_hourly_sends(loop_ids integer[], emails integer[]) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.hourly_sends AS p (loop_id, at, emails)
    SELECT l.loop_id,
           greatest(date_bin('5 minutes', activation._now(), 'epoch'), l.resumed_at),
           u.emails
      FROM unnest(loop_ids, emails) AS u(loop_id, emails)
      JOIN activation."loop" l USING (loop_id)
     ORDER BY 1
    ON CONFLICT ON CONSTRAINT hourly_sends_pkey DO UPDATE SET emails = p.emails + excluded.emails
$$;

-- When a send window that is closed at this moment opens next, in this time zone; NULL while it is
-- open. A window that closes before it opens goes over midnight and belongs to the day on which it
-- opens. Times are those of the clock on the wall there: a day on which the clock changes has the
-- same ones.
CREATE FUNCTION activation._next_opening(send_window jsonb, zone text, at timestamptz)
RETURNS timestamptz
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    days text[] := string_to_array(send_window ->> 'days', ',');
    opens interval := (send_window ->> 'opens')::interval;
    closes interval := (send_window ->> 'closes')::interval;
    here timestamp := at AT TIME ZONE zone;
    day timestamp := date_trunc('day', here) - interval '1 day';
    opening timestamptz;
BEGIN
    IF closes < opens THEN
        closes := closes + interval '1 day';
    END IF;
    FOR n IN 0 .. 9 LOOP
        IF (ARRAY['Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat', 'Sun'])
           [extract(isodow FROM day)::integer] = ANY (days) THEN
            IF here >= day + opens AND here < day + closes THEN
                RETURN NULL;
            END IF;
            opening := (day + opens) AT TIME ZONE zone;
            -- Where the clock jumps over the whole window, it does not open that day.
            IF opening > at AND opening AT TIME ZONE zone < day + closes THEN
                RETURN opening;
            END IF;
        END IF;
        day := day + interval '1 day';
    END LOOP;
    RETURN at + interval '1 day';
END
$$;

-- A user's time zone: the one that their row names, or the setting where the row names none or one
-- that does not exist (unknown).
CREATE FUNCTION activation._known_time_zone(named text, OUT zone text, OUT unknown boolean)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    unknown := false;
    zone := coalesce(nullif(btrim(named), ''), (activation._setting()).timezone);
    PERFORM now() AT TIME ZONE zone;
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
    unknown := true;
    zone := (activation._setting()).timezone;
END
$$;

-- Until when a user who has had as much mail as max_per_user allows waits for the next; NULL when
-- it may go now. Counted is what left, or is about to, from loops that are not transactional.
-- already_claimed: how many mails of the same claim the user gets already.
CREATE FUNCTION activation._cap_until(
    wanted_user text, users regclass, already_claimed integer, now timestamptz
) RETURNS timestamptz
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
    SELECT CASE WHEN already_claimed >= s.max_per_user THEN now + s.per ELSE (
               SELECT coalesce(m.sent_at, r.created_at) + s.per
                 FROM activation.enrollment e
                 JOIN activation.loop_version v USING (loop_id, version)
                 JOIN activation.message m USING (enrollment_id)
                 LEFT JOIN activation.request r ON r.request_id = m.request_id
                WHERE e.user_id = wanted_user
                  AND v.users = _cap_until.users
                  AND NOT v.transactional
                  AND m.state IN ('sending', 'sent', 'delivered', 'bounced', 'complained',
                                  'unknown')
                  AND coalesce(m.sent_at, r.created_at) > now - s.per
                ORDER BY coalesce(m.sent_at, r.created_at) DESC
               OFFSET s.max_per_user - already_claimed - 1
                LIMIT 1) END
      FROM activation._setting() s
     WHERE s.max_per_user IS NOT NULL
$$;

-- Messages that must wait for an earlier one of the same enrollment, which has not ended, and when
-- they may be looked at again. NULL: as soon as that one has left.
CREATE FUNCTION activation._out_of_turn(messages uuid[], now timestamptz)
RETURNS TABLE (message_id uuid, again timestamptz)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT m.message_id,
           nullif(max(least(greatest(CASE WHEN before.request_id IS NULL THEN before.next_attempt_at
                                          ELSE r.next_try_at END,
                                     now),
                            now + interval '1 hour')),
                  now)
      FROM activation.message m
      JOIN activation.step s
        ON s.loop_id = m.loop_id AND s.version = m.version AND s.step = m.step AND s.position > 1
      JOIN activation.message before
        ON before.enrollment_id = m.enrollment_id AND before.state IN ('queued', 'sending')
      JOIN activation.step b
        ON b.loop_id = before.loop_id AND b.version = before.version AND b.step = before.step
           AND b.position < s.position
      LEFT JOIN activation.request r ON r.request_id = before.request_id
     WHERE m.message_id = ANY (messages)
     GROUP BY m.message_id
$$;
