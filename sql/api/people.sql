-- What the app and operators say about one user.

-- Refuses a key that no table of ours could hold.
CREATE FUNCTION activation._check_key(user_id text) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT activation._key_fits(user_id) THEN
        RAISE EXCEPTION 'the key of user %… has % bytes', left(user_id, 40), octet_length(user_id)
            USING ERRCODE = '22023',
                  HINT = format('A user''s key may have %s bytes as text: '
                                'use a column with shorter keys, such as an id.',
                                activation._longest_key());
    END IF;
END
$$;

-- Whether a user exists; NULL where no loop can tell.
CREATE FUNCTION activation._user_exists(users regclass, wanted_user text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '1s'
AS $$
BEGIN
    RETURN wanted_user = ANY (activation._existing_users(users, ARRAY[wanted_user]));
EXCEPTION WHEN others OR assert_failure THEN
    -- An owner of the table, or somebody who holds it locked, must not stop those who tell of a
    -- user.
    PERFORM activation._evaluating(NULL);
    RETURN NULL;
END
$$;

-- Whether a user exists, asked in the app's session: NULL also where that would run somebody's
-- code, which could take as long as its author likes, or where somebody holds the table.
CREATE FUNCTION activation._app_user_exists(users regclass, wanted_user text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms'
AS $$
BEGIN
    IF activation._reads_plainly(users) THEN
        RETURN wanted_user = ANY (activation._existing_users(users, ARRAY[wanted_user]));
    END IF;
    RETURN NULL;
EXCEPTION WHEN others OR assert_failure THEN
    RETURN NULL;
END
$$;

-- Does what enroll() says: writes a signal for the user, which a detector takes like a signup.
CREATE FUNCTION activation._enroll(caller oid, user_id text, loop text, context jsonb) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    l activation.loop := activation._loop(_enroll.loop);
    v activation.loop_version;
BEGIN
    IF _enroll.user_id IS NULL THEN
        RAISE EXCEPTION 'enroll needs a user'
            USING ERRCODE = '22004',
                  HINT = 'Give the user''s key as text: '
                         'SELECT activation.enroll(''42'', ''onboarding'');';
    END IF;
    PERFORM activation._check_key(_enroll.user_id);
    IF jsonb_typeof(_enroll.context) <> 'object' THEN
        RAISE EXCEPTION 'the context of user % is not an object', _enroll.user_id
            USING ERRCODE = '22023',
                  HINT = 'Give an object: ''{"coupon": "WELCOME10"}''; '
                         'templates read it as {{ enrollment.context.coupon }}.';
    END IF;
    IF l.state = 'archived' THEN
        RAISE EXCEPTION 'loop "%" is archived', _enroll.loop
            USING ERRCODE = '55000', HINT = 'Define it again to bring it back.';
    END IF;
    SELECT x.* INTO v
      FROM activation.loop_version x
     WHERE x.loop_id = l.loop_id AND x.version = l.version;
    IF activation._app_user_exists(v.users, _enroll.user_id) IS FALSE THEN
        RAISE EXCEPTION 'user % does not exist in %',
            _enroll.user_id, activation._table_name(v.users)
            USING ERRCODE = '02000',
                  HINT = 'Give the user''s key as text, as it stands in the users table.';
    END IF;
    INSERT INTO activation.signal
           (at, source_id, generation, loop_id, user_id, enrolled_by, context)
    VALUES (activation._now(), 0, 0, l.loop_id, _enroll.user_id,
            format('by hand, by %s', activation._role_name(caller)), _enroll.context);
END
$$;

CREATE FUNCTION activation.enroll(user_id text, loop text, context jsonb DEFAULT NULL) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.call (verb, arguments)
    VALUES ('enroll', jsonb_build_object('user_id', user_id, 'loop', loop, 'context', context))
$$;
COMMENT ON FUNCTION activation.enroll(text, text, jsonb) IS
'Enrolls a user in a loop by hand, as its trigger would. The loop''s reentry decides whether
somebody who was in it comes in again.
user_id: the user''s key as text, at most 1,000 bytes.
loop: the loop''s name.
context: an object that templates read as enrollment.context (default: none).
Raises 22004 without a user, 02000 for a user who does not exist, 42704 for an unknown loop, 55000
  for an archived one, 22023 for a key that is too long or a context that is no object.';

-- Takes a user's enrollments in a loop, and what is queued for them, away from whoever holds them;
-- raises where that is a transaction that does not end soon (migrate_loop, archive_loop). Taken
-- before the bucket of the user, for which everybody waits.
CREATE FUNCTION activation._wait_for_enrollments(of_user text, loop text, of_loop integer)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '3s'
AS $$
BEGIN
    PERFORM FROM activation.enrollment e
      WHERE e.user_id = of_user AND e.loop_id = of_loop
        FOR NO KEY UPDATE;
    PERFORM FROM activation.message m
      WHERE m.enrollment_id IN (SELECT e.enrollment_id FROM activation.enrollment e
                                 WHERE e.user_id = of_user AND e.loop_id = of_loop)
        AND m.state = 'queued'
        FOR NO KEY UPDATE;
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION 'another transaction holds user % in loop "%", and has not ended within 3 s',
        of_user, loop
        USING ERRCODE = '55P03',
              DETAIL = 'It moves, archives, pauses or resumes the people of the loop.',
              HINT = 'Try again when it is over.';
END
$$;

CREATE FUNCTION activation.cancel(user_id text, loop text, reason text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    l activation.loop := activation._loop(cancel.loop);
    last activation.enrollment;
BEGIN
    IF cancel.user_id IS NULL THEN
        RAISE EXCEPTION 'cancel needs a user'
            USING ERRCODE = '22004',
                  HINT = 'Give the user''s key as text: '
                         'SELECT activation.cancel(''42'', ''onboarding'', ''asked by phone'');';
    END IF;
    PERFORM activation._check_key(cancel.user_id);
    PERFORM activation._wait_for_enrollments(cancel.user_id, cancel.loop, l.loop_id);
    -- Not while somebody is being enrolled or evaluated.
    PERFORM activation._lock_user(cancel.user_id);
    SELECT e.* INTO last
      FROM activation.enrollment e
     WHERE e.user_id = cancel.user_id AND e.loop_id = l.loop_id
     ORDER BY e.pass DESC LIMIT 1;
    IF last.state = 'waiting'
       OR EXISTS (SELECT FROM activation.message m
                   WHERE m.enrollment_id = last.enrollment_id AND m.state = 'queued') THEN
        PERFORM activation._exit_enrollments(
            ARRAY[last.enrollment_id], 'cancelled', nullif(btrim(cancel.reason), ''));
        RETURN true;
    END IF;
    RAISE NOTICE 'user % is not in loop "%"', cancel.user_id, cancel.loop
        USING DETAIL = coalesce(format('The enrollment of %s is %s.', last.enrolled_at, last.state),
                                'There is no enrollment.'),
              HINT = 'SELECT * FROM activation.why(user_id, loop) tells what happened.';
    RETURN false;
END
$$;
COMMENT ON FUNCTION activation.cancel(text, text, text) IS
'Lets a user out of a loop: the enrollment exits, no further step begins, and what is queued is
cancelled.
user_id: the user''s key as text.
loop: the loop''s name.
reason: shown by why() (default: cancelled).
Returns true, or false with a NOTICE when there is nothing to cancel.
Raises 22004 without a user, 42704 for an unknown loop, 22023 for a key that is too long, 55P03
  where somebody''s transaction holds the loop''s people for 3 s.';

CREATE FUNCTION activation.track(user_id text, event text, properties jsonb DEFAULT '{}')
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    now timestamptz := activation._now();
    is_known boolean;
    users_table regclass;
BEGIN
    IF track.user_id IS NULL THEN
        RAISE EXCEPTION 'track needs a user'
            USING ERRCODE = '22004',
                  HINT = 'Give the user''s key as text: '
                         'SELECT activation.track(''42'', ''first_api_call'');';
    END IF;
    PERFORM activation._check_key(track.user_id);
    IF coalesce(btrim(track.event), '') = '' OR octet_length(track.event) > 200 THEN
        RAISE EXCEPTION 'track needs the name of an event'
            USING ERRCODE = '22023',
                  HINT = 'Give a name of at most 200 bytes: '
                         'SELECT activation.track(''42'', ''first_api_call'');';
    END IF;
    IF jsonb_typeof(coalesce(track.properties, '{}')) <> 'object' THEN
        RAISE EXCEPTION 'the properties of event "%" are not an object', track.event
            USING ERRCODE = '22023', HINT = 'Give an object: ''{"plan": "free"}''.';
    END IF;
    FOR users_table IN
        SELECT u.users::oid::regclass
          FROM activation.users_table u JOIN pg_class c ON c.oid = u.users
    LOOP
        is_known := activation._app_user_exists(users_table, track.user_id);
        -- Who may be a user is taken for one: a claim reads their row. So this waits for one table
        -- at most.
        EXIT WHEN is_known IS NOT FALSE;
    END LOOP;
    IF is_known IS FALSE THEN
        RAISE EXCEPTION 'user % does not exist in %', track.user_id,
            (SELECT string_agg(activation._table_name(u.users), ' or ')
               FROM activation.users_table u JOIN pg_class c ON c.oid = u.users)
            USING ERRCODE = '02000',
                  HINT = 'Give the user''s key as text, as it stands in the users table.';
    END IF;
    INSERT INTO activation.event (at, user_id, event, properties)
    VALUES (now, track.user_id, track.event, coalesce(track.properties, '{}'));
    INSERT INTO activation.signal (at, source_id, generation, loop_id, user_id, context)
    SELECT now, 0, 0, l.loop_id, track.user_id,
           jsonb_build_object('event', track.event, 'properties', coalesce(track.properties, '{}'))
      FROM activation."loop" l JOIN activation.loop_version v USING (loop_id, version)
     WHERE v.event = 'event' AND v.definition #>> '{trigger,event}' = track.event
       AND l.state <> 'archived';
    INSERT INTO activation.wake (at, source_id, user_id)
    SELECT now, s.source_id, track.user_id
      FROM activation.source s, activation.schedule c
     WHERE s.table_name = 'activation.event'::regclass
       AND c.watching AND c.watched_until > clock_timestamp();
END
$$;
COMMENT ON FUNCTION activation.track(text, text, jsonb) IS
'Tells an event, for which there is no table: that a user did something. It enrolls the user in
loops with on_event(event), and conditions that read activation.event see it. It is as
transactional as an INSERT.
user_id: the user''s key as text.
event: the event''s name, at most 200 bytes.
properties: an object, kept with the event. Templates read it as enrollment.context.properties.
Raises 22004 without a user, 02000 for a user who does not exist, 22023 for a key, event or object
  that is none.';

CREATE FUNCTION activation.track_all(events jsonb)
RETURNS TABLE (user_id text, event text, problem text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    entry jsonb;
BEGIN
    IF coalesce(jsonb_typeof(track_all.events), '') <> 'array' THEN
        RAISE EXCEPTION 'track_all needs an array of events'
            USING ERRCODE = '22023',
                  HINT = 'SELECT * FROM activation.track_all(''[{"user_id": "42", '
                         '"event": "first_api_call", "properties": {}, "once": true}]'');';
    END IF;
    -- Not a query's loop: code of a users table's owner could read on in it.
    FOREACH entry IN ARRAY ARRAY(SELECT e FROM jsonb_array_elements(track_all.events) AS e) LOOP
        user_id := entry ->> 'user_id';
        event := entry ->> 'event';
        BEGIN
            CONTINUE WHEN entry -> 'once' = 'true'
                      AND EXISTS (SELECT FROM activation.event x
                                   WHERE x.user_id = entry ->> 'user_id'
                                     AND x.event = entry ->> 'event');
            PERFORM activation.track(
                user_id, event,
                CASE WHEN entry -> 'properties' <> 'null' THEN entry -> 'properties' ELSE '{}' END);
        EXCEPTION WHEN SQLSTATE '02000' OR invalid_parameter_value OR null_value_not_allowed THEN
            problem := SQLERRM;
            RETURN NEXT;
        END;
    END LOOP;
END
$$;
COMMENT ON FUNCTION activation.track_all(jsonb) IS
'Tells many events at once, each as track() does. One that is refused does not stop the others.
events: an array of objects with user_id, event, and if wanted properties and once. With "once":
  true an event that the user has already, as far back as retention keeps it, is not told again.
Returns a row for each event that was refused.
user_id: the user''s key.
event: the event''s name.
problem: why it was refused.
Raises 22023 for what is no array.';
