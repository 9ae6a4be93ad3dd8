-- Checks of the time at the claim: whose send window is closed, and who has had enough mail.

-- Has messages wait whose window is closed for their user, or skips them. Returns the others.
CREATE FUNCTION activation._claim_window(
    messages uuid[], rows activation.users_row[], send_window jsonb, now timestamptz
) RETURNS uuid[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    zone record;
    opens timestamptz;
    closed uuid[] := '{}'::uuid[];
BEGIN
    FOR zone IN
        WITH mail AS MATERIALIZED (
            SELECT u.id, x.user_id
              FROM unnest(messages) AS u(id)
              CROSS JOIN LATERAL (
                  SELECT y.user_id FROM activation.message y WHERE y.message_id = u.id OFFSET 0) x
        )
        SELECT n.named, z.zone, z.unknown, n.ids
          FROM (SELECT r.zone AS named, array_agg(m.id) AS ids
                  FROM mail m
                  JOIN unnest(rows) AS r(key, email, zone, left_out, body) ON r.key = m.user_id
                 GROUP BY 1) n,
               activation._known_time_zone(n.named) z
    LOOP
        IF zone.unknown THEN
            PERFORM activation._remark(
                        m.loop_id, m.user_id, 'unknown_time_zone',
                        format('time zone "%s" of the user is not known; %s is used',
                               left(zone.named, 100), zone.zone),
                        now)
               FROM unnest(zone.ids) AS u(id)
              CROSS JOIN LATERAL (
                  SELECT x.loop_id, x.user_id
                    FROM activation.message x
                   WHERE x.message_id = u.id
                  OFFSET 0) m;
        END IF;
        opens := activation._next_opening(send_window, zone.zone, now);
        CONTINUE WHEN opens IS NULL;
        closed := closed || zone.ids;
        IF send_window ->> 'otherwise' = 'skip' THEN
            PERFORM activation._end_queued(
                zone.ids, 'cancelled', 'outside_window', format('in %s', zone.zone));
        ELSE
            PERFORM activation._postpone_queued(
                zone.ids, opens, 'waits_for_window', format('in %s', zone.zone));
        END IF;
    END LOOP;
    RETURN ARRAY(SELECT unnest(messages) EXCEPT SELECT unnest(closed));
END
$$;

-- Has messages of users who have had enough mail wait until the cap allows it, or skips them.
-- Returns the others (kept), and counts them: a claim takes a user's mail from several loops, which
-- together are no more than the cap. counts: those that the claim has taken before, by users table
-- and user.
CREATE FUNCTION activation._claim_cap(
    messages uuid[], users regclass, over_cap text, counts jsonb, now timestamptz,
    OUT kept uuid[], OUT counted jsonb
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    mail record;
    again timestamptz;
    counter text;
    already_claimed integer;
BEGIN
    kept := '{}';
    counted := counts;
    FOR mail IN
        SELECT m.message_id, m.user_id
          FROM unnest(messages) AS u(id)
          CROSS JOIN LATERAL (
              SELECT x.message_id, x.user_id, x.next_attempt_at
                FROM activation.message x
               WHERE x.message_id = u.id
              OFFSET 0) m
         ORDER BY m.next_attempt_at, m.message_id
    LOOP
        counter := format('%s %s', users::oid, mail.user_id);
        already_claimed := coalesce((counted ->> counter)::integer, 0);
        again := activation._cap_until(mail.user_id, users, already_claimed, now);
        IF again IS NULL THEN
            kept := kept || mail.message_id;
            counted := counted || jsonb_build_object(counter, already_claimed + 1);
        ELSIF over_cap = 'skip' THEN
            PERFORM activation._end_queued(ARRAY[mail.message_id], 'cancelled', 'over_cap');
        ELSE
            PERFORM activation._postpone_queued(ARRAY[mail.message_id], again, 'waits_for_cap');
        END IF;
    END LOOP;
END
$$;
