-- Parts of _claim_checked(), which has all checks in their order and drops the needless nudges.
-- Here is what a user's row decides: on whom the loop's code raised, whose row is gone, who wants
-- no mail. Here is also what a claim writes down of users: that they reached the goal, and what was
-- out of order in their data. A suppressed message gets its state and its address in one statement,
-- which is why this part writes message itself.

-- A user's row as a claim has it. left_out: names of columns that are too large; body: the row as
-- templates see it, NULL where the claim has no more room for it. The rest is what the engine
-- itself looks at.
CREATE TYPE activation.users_row AS (
    user_id text, email text, zone text, left_out jsonb, body text
);
COMMENT ON TYPE activation.users_row IS
    'A user''s row on its way between functions of a claim.';

-- Writes down that users have reached the goal, where a claim is what noticed it. Whom somebody
-- else holds, a detector notices later.
CREATE FUNCTION activation._claim_goal_reached(messages uuid[], keys text[], now timestamptz)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    places tid[] := ARRAY(
        SELECT e.ctid
          FROM unnest(messages) AS u(id)
          CROSS JOIN LATERAL (
              SELECT x.user_id, x.enrollment_id
                FROM activation.message x
               WHERE x.message_id = u.id
              OFFSET 0) m
          CROSS JOIN LATERAL (
              SELECT y.ctid, y.activated_at
                FROM activation.enrollment y
               WHERE y.enrollment_id = m.enrollment_id
                 FOR NO KEY UPDATE SKIP LOCKED OFFSET 0) e
         WHERE m.user_id = ANY (keys)
           AND e.activated_at IS NULL);
BEGIN
    UPDATE activation.enrollment e SET activated_at = now WHERE e.ctid = ANY (places);
END
$$;

-- Sorts out messages of people on whom the loop's code raised, and returns those of everybody else.
-- bad_keys, errors, codes: whose row could not be read. Its data is at fault and the message has
-- failed; for any other error it waits a minute. unanswered: on whom a condition raised, with the
-- error; these wait, too.
CREATE FUNCTION activation._claim_raised(
    messages uuid[], bad_keys text[], errors text[], codes text[], unanswered jsonb,
    now timestamptz
) RETURNS uuid[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    bad record;
    aside uuid[] := '{}'::uuid[];
BEGIN
    FOR bad IN
        WITH mail AS MATERIALIZED (
            SELECT m.message_id, m.loop_id, m.user_id
              FROM unnest(messages) AS u(id)
              CROSS JOIN LATERAL (
                  SELECT x.* FROM activation.message x WHERE x.message_id = u.id OFFSET 0) m
        )
        SELECT m.message_id, m.loop_id, m.user_id, b.error,
               left(b.code, 2) IN ('21', '22', '54', 'XX') AS of_the_data
          FROM mail m
          JOIN (SELECT k.key, k.error, k.code
                  FROM unnest(bad_keys, errors, codes) AS k(key, error, code)
                 UNION ALL
                SELECT j.key, j.value, ''
                  FROM jsonb_each_text(unanswered) AS j(key, value)
                 WHERE j.key <> ALL (bad_keys)) b ON b.key = m.user_id
    LOOP
        aside := aside || bad.message_id;
        IF bad.of_the_data THEN
            PERFORM activation._end_queued(
                ARRAY[bad.message_id], 'failed', 'row_unreadable', bad.error);
            PERFORM activation._remark(
                bad.loop_id, bad.user_id, 'row_unreadable',
                'the user''s row cannot be read: ' || bad.error, now);
        ELSE
            PERFORM activation._postpone_queued(
                ARRAY[bad.message_id], now + interval '1 minute', 'user_raised', bad.error);
        END IF;
    END LOOP;
    RETURN ARRAY(SELECT unnest(messages) EXCEPT SELECT unnest(aside));
END
$$;

-- Writes down, once, what was out of order in a user's data and harmed nothing. It is cut, since it
-- is a part of a key.
CREATE FUNCTION activation._remark(
    of_loop integer, of_user text, code text, remark text, now timestamptz
) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.remark (at, loop_id, user_id, code, remark)
    VALUES (now, of_loop, of_user, code, left(remark, 300))
    ON CONFLICT DO NOTHING
$$;

-- Writes down for which users a template does not see the whole row, since columns are too large.
CREATE FUNCTION activation._remark_left_out(
    messages uuid[], rows activation.users_row[], now timestamptz
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    IF EXISTS (SELECT FROM unnest(rows) AS r(key, email, zone, left_out, body)
                WHERE r.left_out IS NOT NULL) THEN
        WITH mail AS MATERIALIZED (
            SELECT x.loop_id, x.user_id
              FROM unnest(messages) AS u(id)
              CROSS JOIN LATERAL (
                  SELECT y.loop_id, y.user_id
                    FROM activation.message y
                   WHERE y.message_id = u.id
                  OFFSET 0) x
        )
        INSERT INTO activation.remark (at, loop_id, user_id, code, remark)
        SELECT now, m.loop_id, m.user_id, 'row_too_large',
               left('the user''s row is too large for a mail: without ' || (
                        SELECT string_agg(quote_ident(c), ', ' ORDER BY c)
                          FROM jsonb_array_elements_text(r.left_out) AS c),
                    300)
          FROM mail m
          JOIN unnest(rows) AS r(key, email, zone, left_out, body) ON r.key = m.user_id
         WHERE r.left_out IS NOT NULL
           AND r.body IS NOT NULL
        ON CONFLICT DO NOTHING;
    END IF;
END
$$;

-- Ends messages of users whose row is gone, and with them their way through the loop. Returns the
-- others.
CREATE FUNCTION activation._claim_gone(messages uuid[], rows activation.users_row[]) RETURNS uuid[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    there text[] := ARRAY(
        SELECT r.key FROM unnest(rows) AS r(key, email, zone, left_out, body));
    gone uuid[];
    leaving bigint[];
BEGIN
    SELECT array_agg(u.id), array_agg(m.enrollment_id) INTO gone, leaving
      FROM unnest(messages) AS u(id)
      CROSS JOIN LATERAL (
          SELECT x.user_id, x.enrollment_id
            FROM activation.message x
           WHERE x.message_id = u.id
          OFFSET 0) m
     WHERE m.user_id <> ALL (there);
    IF gone IS NULL THEN
        RETURN messages;
    END IF;
    PERFORM activation._exit_enrollments(leaving, 'user_deleted');
    RETURN ARRAY(SELECT unnest(messages) EXCEPT SELECT unnest(gone));
END
$$;

-- Ends messages to suppressed addresses as suppressed, and messages that their user has
-- unsubscribed from as cancelled, with the rest of their way through the loop. Returns the others.
CREATE FUNCTION activation._claim_unwanted(
    messages uuid[], rows activation.users_row[], users regclass, topic text,
    transactional boolean, now timestamptz
) RETURNS uuid[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    ended uuid[] := '{}'::uuid[];
    suppressed uuid[];
    unsubscribed uuid[];
    leaving bigint[];
BEGIN
    IF NOT transactional THEN
        SELECT array_agg(u.id), array_agg(m.enrollment_id) INTO unsubscribed, leaving
          FROM unnest(messages) AS u(id)
          CROSS JOIN LATERAL (
              SELECT x.user_id, x.enrollment_id
                FROM activation.message x
               WHERE x.message_id = u.id
              OFFSET 0) m
         WHERE (SELECT bool_or(NOT c.subscribed)
                  FROM activation.consent c
                 WHERE c.user_id = m.user_id
                   AND c.users = _claim_unwanted.users
                   AND c.topic IN ('', coalesce(_claim_unwanted.topic, '')));
        IF unsubscribed IS NOT NULL THEN
            PERFORM activation._exit_enrollments(leaving, 'unsubscribed');
            ended := unsubscribed;
        END IF;
    END IF;
    IF EXISTS (SELECT FROM activation.suppression) THEN
        WITH mail AS MATERIALIZED (
            SELECT x.message_id, x.user_id
              FROM unnest(messages) AS u(id)
              CROSS JOIN LATERAL (
                  SELECT y.message_id, y.user_id
                    FROM activation.message y
                   WHERE y.message_id = u.id
                  OFFSET 0) x
             WHERE u.id <> ALL (ended)
        ), found AS MATERIALIZED (
            SELECT m.message_id, a.folded, p.reason, p.at
              FROM mail m
              JOIN unnest(rows) AS r(key, email, zone, left_out, body) ON r.key = m.user_id
              CROSS JOIN LATERAL (SELECT activation._fold_address(r.email) AS folded OFFSET 0) a
              CROSS JOIN LATERAL (
                  SELECT x.reason, x.at
                    FROM activation.suppression x
                   WHERE x.address IN (a.folded, activation._hash_address(a.folded))
                   LIMIT 1) p
        ), changed AS (
            UPDATE activation.message m
               SET state = 'suppressed',
                   finished_at = now,
                   recipient = f.folded,
                   cause = 'suppressed',
                   last_error = format('%s, since %s', activation._shortened(f.reason), f.at)
              FROM found f
             WHERE m.message_id = f.message_id
            RETURNING m.message_id
        )
        SELECT array_agg(c.message_id) INTO suppressed FROM changed c;
        ended := ended || suppressed;
    END IF;
    RETURN CASE WHEN ended = '{}' THEN messages
                ELSE ARRAY(SELECT unnest(messages) EXCEPT SELECT unnest(ended)) END;
END
$$;
