-- What a person may ask for: everything that is kept about them. Nothing: see the next part.

-- All messages of a user, in any loop.
CREATE FUNCTION activation._messages_of(of_user text) RETURNS uuid[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(array_agg(m.message_id), '{}')
      FROM activation.enrollment e
      CROSS JOIN LATERAL (SELECT x.message_id
                            FROM activation.message x
                           WHERE x.enrollment_id = e.enrollment_id OFFSET 0) m
     WHERE e.user_id = of_user
$$;

-- The addresses of a user, by users table. Only tables that have a row with this key and that a
-- loop can read.
CREATE FUNCTION activation._user_addresses(of_user text) RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v record;
    user_rows activation.users_row[];
    addresses jsonb := '{}'::jsonb;
BEGIN
    PERFORM activation._refuse_cursors();
    FOR v IN
        SELECT DISTINCT ON (x.users) x.loop_id, x.users, x.users_function, x.owner
          FROM activation.loop_version x JOIN activation."loop" l USING (loop_id, version)
         WHERE activation._function_exists(x.users_function)
         ORDER BY x.users, x.loop_id
    LOOP
        BEGIN
            -- Only what stands first: whatever else is in the row, its address is known.
            PERFORM activation._evaluating(v.loop_id);
            user_rows := activation._read_rows((activation._safe_eval_each(
                v.users_function, v.owner, ARRAY[of_user], first_lines => true)).answers);
            IF user_rows <> '{}' THEN
                addresses := addresses || jsonb_build_object(activation._table_name(v.users),
                                                             user_rows[1].email);
            END IF;
        EXCEPTION
            WHEN lock_not_available OR serialization_failure OR deadlock_detected THEN
                PERFORM activation._evaluating(NULL);
                RAISE;
            WHEN SQLSTATE 'ACT04' OR SQLSTATE 'ACT05' THEN
                PERFORM activation._fail_at_once(v.loop_id, 'detect', SQLERRM, SQLSTATE = 'ACT05');
            WHEN others THEN
                -- An unreadable table must not stop the request; whoever asks is told.
                RAISE WARNING 'the address of user % in % could not be read: %',
                    of_user, activation._table_name(v.users), SQLERRM
                    USING HINT = 'Where it matters, mend that and call the same again.';
        END;
        PERFORM activation._evaluating(NULL);
    END LOOP;
    RETURN addresses;
END
$$;

CREATE FUNCTION activation.export_user(user_id text) RETURNS jsonb
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_build_object(
        'user_id', $1,
        'exported_at', activation._now(),
        'enrollments',
            (SELECT coalesce(jsonb_agg(to_jsonb(j) ORDER BY j.enrolled_at), '[]')
               FROM activation.journey j WHERE j.user_id = $1),
        'messages',
            (SELECT coalesce(jsonb_agg(to_jsonb(m) ORDER BY m.created_at), '[]')
               FROM activation.message_log m
              WHERE m.message_id = ANY (activation._messages_of($1))),
        'attempts',
            (SELECT coalesce(jsonb_agg(to_jsonb(a) ORDER BY a.started_at), '[]')
               FROM activation.attempt a WHERE a.message_id = ANY (activation._messages_of($1))),
        'webhooks',
            (SELECT coalesce(jsonb_agg(to_jsonb(w) ORDER BY w.at), '[]')
               FROM activation.webhook_event w
              WHERE w.message_id = ANY (activation._messages_of($1))),
        'events',
            (SELECT coalesce(jsonb_agg(to_jsonb(e) ORDER BY e.at), '[]')
               FROM activation.event e WHERE e.user_id = $1),
        'consent',
            (SELECT coalesce(jsonb_agg(to_jsonb(c) ORDER BY c.at), '[]')
               FROM activation.consent c WHERE c.user_id = $1),
        'suppressions',
            (SELECT coalesce(jsonb_agg(to_jsonb(s) - 'hash'), '[]')
               FROM activation.suppression s
              WHERE s.address IN (
                        SELECT activation._fold_address(m.recipient)
                          FROM activation.message m
                         WHERE m.message_id = ANY (activation._messages_of($1))
                        UNION
                        SELECT activation._fold_address(r.value)
                          FROM jsonb_each_text(activation._user_addresses($1)) AS r)),
        'remarks',
            (SELECT coalesce(jsonb_agg(to_jsonb(r)), '[]')
               FROM activation.remark r WHERE r.user_id = $1),
        'failures',
            (SELECT coalesce(jsonb_agg(to_jsonb(f)), '[]')
               FROM activation.capture_failure f WHERE f.user_id = $1),
        'signals',
            (SELECT coalesce(jsonb_agg(to_jsonb(s)), '[]')
               FROM activation.signal s WHERE s.user_id = $1))
$$;
COMMENT ON FUNCTION activation.export_user(text) IS
'Everything that activation holds about a person, as one document.
user_id: the user''s key as text. Of several users tables all who have it.
Returns an object with an array for each kind of thing.';
