-- What a person may ask for: everything that is kept about them, and that nothing is.

CREATE FUNCTION activation._mails_of(of_user text) RETURNS uuid[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(array_agg(m.message_id), '{}')
      FROM activation.enrollment e
      CROSS JOIN LATERAL (SELECT x.message_id FROM activation.message x WHERE x.enrollment_id = e.enrollment_id OFFSET 0) m
     WHERE e.user_id = of_user
$$;

-- The addresses of a user by users table, of those that have a row of this key and that a loop can read.
CREATE FUNCTION activation._user_addresses(of_user text) RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v record;
    read activation.users_row[];
    found jsonb := '{}'::jsonb;
BEGIN
    FOR v IN SELECT DISTINCT ON (x.users) x.users, x.users_function, x.owner FROM activation.loop_version x JOIN activation."loop" l USING (loop_id, version)
              WHERE activation._function_exists(x.users_function) ORDER BY x.users, x.loop_id
    LOOP
        BEGIN
            -- Only what stands first: whatever else is in the row, its address is known.
            read := activation._read_rows((activation._safe_eval_each(v.users_function, v.owner, ARRAY[of_user], first_lines => true)).answers);
            IF read <> '{}' THEN
                found := found || jsonb_build_object(activation._table_name(v.users), read[1].email);
            END IF;
        EXCEPTION WHEN undefined_table OR insufficient_privilege THEN
            NULL;
        END;
    END LOOP;
    RETURN found;
END
$$;

CREATE FUNCTION activation.export_user(user_id text) RETURNS jsonb
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_build_object(
        'user_id', $1, 'exported_at', activation._now(),
        'enrollments', (SELECT coalesce(jsonb_agg(to_jsonb(j) ORDER BY j.enrolled_at), '[]') FROM activation.journey j WHERE j.user_id = $1),
        'messages', (SELECT coalesce(jsonb_agg(to_jsonb(m) ORDER BY m.created_at), '[]') FROM activation.message_log m WHERE m.message_id = ANY (activation._mails_of($1))),
        'attempts', (SELECT coalesce(jsonb_agg(to_jsonb(a) ORDER BY a.started_at), '[]') FROM activation.attempt a WHERE a.message_id = ANY (activation._mails_of($1))),
        'webhooks', (SELECT coalesce(jsonb_agg(to_jsonb(w) ORDER BY w.at), '[]') FROM activation.webhook_event w WHERE w.message_id = ANY (activation._mails_of($1))),
        'events', (SELECT coalesce(jsonb_agg(to_jsonb(e) ORDER BY e.at), '[]') FROM activation.event e WHERE e.user_id = $1),
        'consent', (SELECT coalesce(jsonb_agg(to_jsonb(c) ORDER BY c.at), '[]') FROM activation.consent c WHERE c.user_id = $1),
        'suppressions', (SELECT coalesce(jsonb_agg(to_jsonb(s)), '[]') FROM activation.suppression s
                          WHERE s.address IN (SELECT activation._fold_address(m.recipient) FROM activation.message m WHERE m.message_id = ANY (activation._mails_of($1))
                                              UNION SELECT activation._fold_address(r.value) FROM jsonb_each_text(activation._user_addresses($1)) AS r)),
        'remarks', (SELECT coalesce(jsonb_agg(to_jsonb(r)), '[]') FROM activation.remark r WHERE r.user_id = $1),
        'failures', (SELECT coalesce(jsonb_agg(to_jsonb(f)), '[]') FROM activation.capture_failure f WHERE f.user_id = $1),
        'signals', (SELECT coalesce(jsonb_agg(to_jsonb(s)), '[]') FROM activation.signal s WHERE s.user_id = $1))
$$;
COMMENT ON FUNCTION activation.export_user(text) IS
'Everything that activation holds about a person, as one document. user_id: the user''s key as text; of several users tables all who have it.';

-- Forgets a person, unless a mail to them is on its way: then it only lets them out of all loops, and returns false.
CREATE FUNCTION activation._erase(of_user text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    mails uuid[];
    addresses text[];
BEGIN
    -- Not while they are being enrolled or evaluated.
    PERFORM pg_advisory_xact_lock(hashtext('activation part'), activation._part(of_user));
    mails := activation._mails_of(of_user);
    IF EXISTS (SELECT FROM activation.message m JOIN activation.request r ON r.request_id = m.request_id WHERE m.message_id = ANY (mails) AND r.state = 'open') THEN
        PERFORM activation._leave(ARRAY(SELECT e.enrollment_id FROM activation.enrollment e WHERE e.user_id = of_user), 'the user is to be erased');
        RETURN false;
    END IF;
    addresses := ARRAY(SELECT activation._fold_address(m.recipient) FROM activation.message m WHERE m.message_id = ANY (mails) AND m.recipient IS NOT NULL
                       UNION SELECT activation._fold_address(r.value) FROM jsonb_each_text(activation._user_addresses(of_user)) AS r WHERE r.value <> '');
    -- Its words are gone; other people's mails that shared it are not sent again either, since all is known of them.
    UPDATE activation.request r SET body = '', members = ARRAY(SELECT unnest(r.members) EXCEPT SELECT unnest(mails))
     WHERE r.request_id IN (SELECT m.request_id FROM activation.message m WHERE m.message_id = ANY (mails));
    DELETE FROM activation.attempt a WHERE a.message_id = ANY (mails);
    DELETE FROM activation.webhook_event w WHERE w.message_id = ANY (mails);
    DELETE FROM activation.webhook_event w WHERE w.type ~ '^(suppression|contact)\.' AND activation._fold_address(w.payload #>> '{data,email}') = ANY (addresses);
    DELETE FROM activation.message m WHERE m.message_id = ANY (mails);
    DELETE FROM activation.enrollment e WHERE e.user_id = of_user;
    DELETE FROM activation.event e WHERE e.user_id = of_user;
    DELETE FROM activation.consent c WHERE c.user_id = of_user;
    DELETE FROM activation.remark r WHERE r.user_id = of_user;
    DELETE FROM activation.capture_failure f WHERE f.user_id = of_user;
    DELETE FROM activation.signal s WHERE s.user_id = of_user;
    DELETE FROM activation.wake w WHERE w.user_id = of_user;
    DELETE FROM activation.erasure e WHERE e.user_id = of_user;
    DELETE FROM activation.unsuppression n WHERE n.address = ANY (addresses);
    -- Whoever was forgotten is not written to again, and their address does not stand here.
    PERFORM activation._signing_key();
    DELETE FROM activation.suppression s WHERE s.address = ANY (addresses);
    INSERT INTO activation.suppression (address, reason, source, at)
    SELECT activation._hash_address(a), 'erased', 'erase', activation._now() FROM unnest(addresses) AS a ON CONFLICT DO NOTHING;
    RETURN true;
END
$$;

-- Those who are still to be forgotten; returns how many were, and what kept one from being forgotten, who comes last from then on.
CREATE FUNCTION activation._erase_due(OUT done integer, OUT problem text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    due text;
BEGIN
    done := 0;
    FOR due IN SELECT x.user_id FROM activation.erasure x ORDER BY x.asked_at LIMIT 100 LOOP
        BEGIN
            done := done + activation._erase(due)::integer;
        EXCEPTION WHEN others THEN
            problem := activation._problem(format('user %s cannot be forgotten', due), SQLSTATE, SQLERRM);
            UPDATE activation.erasure x SET asked_at = activation._now() WHERE x.user_id = due;
        END;
    END LOOP;
END
$$;

CREATE FUNCTION activation.erase(user_id text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF erase.user_id IS NULL THEN
        RAISE EXCEPTION 'erase needs a user' USING ERRCODE = '22004', HINT = 'Give the user''s key as text: SELECT activation.erase(''42'');';
    END IF;
    IF activation._erase(erase.user_id) THEN
        RETURN true;
    END IF;
    INSERT INTO activation.erasure (user_id, asked_at) VALUES (erase.user_id, activation._now()) ON CONFLICT DO NOTHING;
    RAISE NOTICE 'a mail to user % is on its way', erase.user_id
        USING DETAIL = 'What may have been accepted has to be asked for again, with the same words, until that is known. They left all loops.',
              HINT = 'They are forgotten by the workers as soon as that is known, within a minute mostly and a day at most.';
    RETURN false;
END
$$;
COMMENT ON FUNCTION activation.erase(text) IS
'Forgets a person: nothing of theirs is left in any table of activation but a keyed hash of their address, so that they stay unmailed (unsuppress(email) takes that back). They no longer count in any number. user_id: the user''s key as text; of several users tables all who have it. Delete their row in the app first, or they may be enrolled again. Returns false, with a NOTICE, while a mail to them is on its way: then the workers do it as soon as its outcome is known.';
