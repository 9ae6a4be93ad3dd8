-- Forgetting a person: erase(), at once or as soon as nothing holds what is to go.

-- Forgets a person, unless a mail to them is on its way: then it only lets them out of all loops,
-- and returns false. It raises where somebody holds what is to go. Under the lock of the user.
-- Long because every table that may hold something about a person has a statement of its own.
CREATE FUNCTION activation._erase(of_user text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
SET lock_timeout = '100ms'
AS $$
DECLARE
    messages uuid[];
    addresses text[];
    spellings text[];
    hashes text[];
    requests uuid[];
    shared_messages uuid[];
    redacted text := 'an error that named somebody who was forgotten since';
BEGIN
    messages := activation._messages_of(of_user);
    IF EXISTS (SELECT FROM activation.message m
                 JOIN activation.request r ON r.request_id = m.request_id
                WHERE m.message_id = ANY (messages) AND r.state = 'open') THEN
        PERFORM activation._exit_enrollments(
            ARRAY(SELECT e.enrollment_id FROM activation.enrollment e WHERE e.user_id = of_user),
            'erased');
        RETURN false;
    END IF;
    -- The address that mode redirect sends everybody's mail to is not theirs.
    WITH deleted AS (
        DELETE FROM activation.signal s WHERE s.user_id = of_user RETURNING s.address
    )
    SELECT array_agg(activation._fold_address(a.address)), array_agg(lower(btrim(a.address)))
      INTO addresses, spellings
      FROM (SELECT m.recipient AS address
              FROM unnest(messages) AS u(id)
              CROSS JOIN LATERAL (SELECT x.recipient
                                    FROM activation.message x
                                   WHERE x.message_id = u.id OFFSET 0) m
             WHERE m.recipient IS DISTINCT FROM (activation._setting()).redirect_to
            UNION
            SELECT r.value FROM jsonb_each_text(activation._user_addresses(of_user)) AS r
            UNION
            SELECT d.address FROM deleted d) a;
    -- What is no address, though it stands in a column of addresses, does not tell one person from
    -- another.
    addresses := ARRAY(SELECT a FROM unnest(addresses) AS a WHERE a LIKE '_%@_%');
    spellings := addresses
        || ARRAY(SELECT a FROM unnest(spellings) AS a WHERE a LIKE '_%@_%');
    PERFORM activation._signing_key();
    hashes := ARRAY(SELECT activation._hash_address(a) FROM unnest(addresses) AS a
                    UNION
                    SELECT p.hash FROM activation.past_address p WHERE p.user_id = of_user);
    -- The bytes of their requests go. Other people's mails in the same request are not sent again
    -- either, since their outcome is known. A mail that was refused was in several requests.
    requests := ARRAY(SELECT m.request_id
                        FROM unnest(messages) AS u(id)
                        CROSS JOIN LATERAL (SELECT x.request_id
                                              FROM activation.message x
                                             WHERE x.message_id = u.id OFFSET 0) m
                       WHERE m.request_id IS NOT NULL
                      UNION
                      SELECT a.request_id
                        FROM activation.attempt a
                       WHERE a.message_id = ANY (messages));
    shared_messages := ARRAY(SELECT u.id
                               FROM activation.request r, unnest(r.members) AS u(id)
                              WHERE r.request_id = ANY (requests) AND u.id <> ALL (messages));
    UPDATE activation.request r
       SET body = '',
           members = ARRAY(SELECT unnest(r.members) EXCEPT SELECT unnest(messages))
     WHERE r.request_id = ANY (requests);
    -- An error may quote an address, and is stored with all who shared the request, the statement,
    -- or the loop.
    UPDATE activation.attempt a SET error = redacted
     WHERE a.message_id = ANY (shared_messages)
       AND EXISTS (SELECT FROM unnest(spellings) AS x WHERE position(x IN lower(a.error)) > 0);
    UPDATE activation.message m SET last_error = redacted
     WHERE m.message_id = ANY (shared_messages)
       AND EXISTS (SELECT FROM unnest(spellings) AS x WHERE position(x IN lower(m.last_error)) > 0);
    UPDATE activation.capture_failure f SET error = redacted
      FROM activation.capture_failure x
     WHERE x.user_id = of_user AND f.at = x.at AND f.error = x.error AND f.user_id <> of_user
       AND position('"' IN x.error) > 0;
    UPDATE activation.strike k SET last_error = redacted
     WHERE EXISTS (SELECT FROM unnest(spellings) AS x WHERE position(x IN lower(k.last_error)) > 0);
    UPDATE activation."loop" l SET reason = redacted
     WHERE EXISTS (SELECT FROM unnest(spellings) AS x WHERE position(x IN lower(l.reason)) > 0);
    DELETE FROM activation.attempt a WHERE a.message_id = ANY (messages);
    DELETE FROM activation.webhook_event w WHERE w.message_id = ANY (messages);
    DELETE FROM activation.message m WHERE m.message_id = ANY (messages);
    DELETE FROM activation.enrollment e WHERE e.user_id = of_user;
    DELETE FROM activation.event e WHERE e.user_id = of_user;
    DELETE FROM activation.consent c WHERE c.user_id = of_user;
    DELETE FROM activation.remark r WHERE r.user_id = of_user;
    DELETE FROM activation.capture_failure f WHERE f.user_id = of_user;
    DELETE FROM activation.wake w WHERE w.user_id = of_user;
    DELETE FROM activation.erasure e WHERE e.user_id = of_user;
    DELETE FROM activation.past_address p WHERE p.user_id = of_user;
    DELETE FROM activation.unsuppression n WHERE activation._hash_address(n.address) = ANY (hashes);
    -- A forgotten person is not written to again: the hash of their address stays in the list.
    DELETE FROM activation.suppression s WHERE s.hash = ANY (hashes);
    INSERT INTO activation.suppression (address, reason, origin, noted_by, at)
    SELECT h, 'erased', 'erasure', 'erase', activation._now() FROM unnest(hashes) AS h
    ON CONFLICT DO NOTHING;
    RETURN true;
END
$$;

-- Forgets a person, as _erase() does, or lets them out of all loops where somebody's transaction
-- holds something about them: an author may hold the people of a loop for as long as they like.
-- Returns whether the person is forgotten.
CREATE FUNCTION activation._try_erase(of_user text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- Not while they are being enrolled or evaluated.
    PERFORM activation._lock_user(of_user);
    BEGIN
        RETURN activation._erase(of_user);
    EXCEPTION WHEN lock_not_available THEN
        PERFORM activation._exit_enrollments(
            ARRAY(SELECT e.enrollment_id FROM activation.enrollment e WHERE e.user_id = of_user),
            'erased');
        RETURN false;
    END;
END
$$;

-- Forgets those who could not be forgotten when it was asked. Returns how many, and why one of them
-- still could not be. Whoever could not comes last from then on.
CREATE FUNCTION activation._erase_due(OUT done integer, OUT problem text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    due_user text;
    began timestamptz := clock_timestamp();
BEGIN
    done := 0;
    FOR due_user IN
        SELECT x.user_id
          FROM activation.erasure x
         ORDER BY coalesce(x.tried_at, x.asked_at) LIMIT 100
    LOOP
        -- Each may wait for a moment, and all are locked until the end.
        EXIT WHEN clock_timestamp() > began + interval '1 second';
        BEGIN
            IF activation._try_erase(due_user) THEN
                done := done + 1;
            ELSE
                UPDATE activation.erasure x SET tried_at = activation._now()
                 WHERE x.user_id = due_user;
            END IF;
        EXCEPTION WHEN others THEN
            IF NOT activation._is_about_one_person(SQLSTATE) THEN
                RAISE;
            END IF;
            problem := activation._error_text(format('user %s cannot be forgotten', due_user),
                                              SQLERRM);
            UPDATE activation.erasure x SET tried_at = activation._now() WHERE x.user_id = due_user;
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
        RAISE EXCEPTION 'erase needs a user'
            USING ERRCODE = '22004',
                  HINT = 'Give the user''s key as text: SELECT activation.erase(''42'');';
    END IF;
    IF activation._try_erase(erase.user_id) THEN
        RETURN true;
    END IF;
    INSERT INTO activation.erasure (user_id, asked_at) VALUES (erase.user_id, activation._now())
    ON CONFLICT DO NOTHING;
    IF EXISTS (SELECT FROM activation.message m
                 JOIN activation.request r ON r.request_id = m.request_id
                WHERE m.message_id = ANY (activation._messages_of(erase.user_id))
                  AND r.state = 'open') THEN
        RAISE NOTICE 'a mail to user % is on its way', erase.user_id
            USING DETAIL = 'What may have been accepted has to be asked for again, '
                           'with the same words, until that is known. They left all loops.',
                  HINT = 'They are forgotten by the workers as soon as that is known, '
                         'within a minute mostly and a day at most.';
    ELSE
        RAISE NOTICE 'another transaction holds something about user %', erase.user_id
            USING DETAIL = 'It moves, archives, pauses or defines a loop that they are in.',
                  HINT = 'They are forgotten by the workers when it has ended.';
    END IF;
    RETURN false;
END
$$;
COMMENT ON FUNCTION activation.erase(text) IS
'Forgets a person. Nothing of theirs is left in any table of activation but a keyed hash of their
address, so that they stay unmailed: unsuppress(email) takes that back. They no longer count in
any number. Delete their row in the app first, or they may be enrolled again. The address that it
held is known from its deletion, unless that was a TRUNCATE.
user_id: the user''s key as text. Of several users tables all who have it.
Returns true, or false with a NOTICE while a mail to them is on its way, or while somebody''s open
  transaction changes a loop that they are in: then the workers do it as soon as that is over.
Raises 22004 without a user.';
