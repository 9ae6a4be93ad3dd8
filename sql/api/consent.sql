-- What people want: topics, unsubscribing, and addresses that get no mail. Checked when a mail is
-- claimed.

CREATE FUNCTION activation.set_topic(topic text, name text, description text DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF coalesce(btrim(set_topic.topic), '') = '' OR coalesce(btrim(set_topic.name), '') = '' THEN
        RAISE EXCEPTION 'a topic needs a name that people can read'
            USING ERRCODE = '22023',
                  HINT = 'SELECT activation.set_topic(''onboarding'', ''Getting started'', '
                         '''A few mails in your first weeks'');';
    END IF;
    INSERT INTO activation.topic AS t (topic, name, description)
    VALUES (set_topic.topic, set_topic.name, set_topic.description)
    ON CONFLICT ON CONSTRAINT topic_pkey
    DO UPDATE SET name = excluded.name, description = excluded.description;
END
$$;
COMMENT ON FUNCTION activation.set_topic(text, text, text) IS
'Says what a topic of loops is called and what it is about, where people choose what they want.
topic: the topic, as loops name it.
name: its name, for people to read.
description: a sentence about it (default: none).
Raises 22023 without a topic or a name.';

-- Whose mail an unsubscribe token is in. All NULL for a token that we did not make, or whose person
-- was erased.
CREATE FUNCTION activation._token_owner(
    token text, OUT users regclass, OUT user_id text, OUT topic text, OUT loop_name text
)
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT v.users, e.user_id, coalesce(v.definition ->> 'topic', ''), l.name
      FROM activation.enrollment e
      JOIN activation.loop_version v USING (loop_id, version)
      JOIN activation."loop" l USING (loop_id)
     WHERE e.enrollment_id = activation._read_token(activation._signing_key(), token)
$$;

-- Writes down what somebody wants, and lets them out of the loops that they want no mail of.
CREATE FUNCTION activation._subscribe(
    users regclass, user_id text, topic text, subscribed boolean, source text
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO activation.consent AS c (users, user_id, topic, subscribed, at, source)
    VALUES (_subscribe.users, _subscribe.user_id, _subscribe.topic, _subscribe.subscribed,
            activation._now(), _subscribe.source)
    ON CONFLICT ON CONSTRAINT consent_pkey
    DO UPDATE SET subscribed = excluded.subscribed, at = excluded.at, source = excluded.source
     WHERE c.subscribed <> excluded.subscribed;
    IF NOT _subscribe.subscribed THEN
        -- Not while somebody is being enrolled or evaluated.
        PERFORM activation._lock_user(_subscribe.user_id);
        PERFORM activation._exit_enrollments(
            ARRAY(SELECT e.enrollment_id
                    FROM activation.enrollment e
                    JOIN activation.loop_version v USING (loop_id, version)
                   WHERE e.user_id = _subscribe.user_id AND v.users = _subscribe.users
                     AND NOT v.transactional
                     AND (_subscribe.topic = '' OR v.definition ->> 'topic' = _subscribe.topic)),
            'unsubscribed');
    END IF;
END
$$;

-- What somebody is subscribed to: a row for everything, and one for each topic that they can
-- choose.
CREATE FUNCTION activation._preferences(of_users regclass, of_user text)
RETURNS TABLE (topic text, name text, description text, subscribed boolean)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT k.topic, coalesce(t.name, CASE k.topic WHEN '' THEN 'Everything' ELSE k.topic END),
           t.description,
           coalesce((SELECT c.subscribed
                       FROM activation.consent c
                      WHERE (c.users, c.user_id, c.topic) = (of_users, of_user, k.topic)), true)
             AND (k.topic = ''
                  OR coalesce(
                      (SELECT c.subscribed
                         FROM activation.consent c
                        WHERE (c.users, c.user_id, c.topic) = (of_users, of_user, '')), true))
      FROM (SELECT '' AS topic
            UNION
            SELECT t.topic FROM activation.topic t
            UNION
            SELECT v.definition ->> 'topic'
              FROM activation."loop" l JOIN activation.loop_version v USING (loop_id, version)
             WHERE v.users = of_users AND NOT v.transactional AND l.state <> 'archived'
               AND v.definition ->> 'topic' IS NOT NULL) k
      LEFT JOIN activation.topic t ON t.topic = k.topic
     ORDER BY k.topic <> '', k.topic COLLATE "C"
$$;

-- Whether somebody can choose this topic. Without it, whoever has a token could fill a table with
-- topics that are none.
CREATE FUNCTION activation._is_topic(users regclass, user_id text, topic text) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT EXISTS (SELECT FROM activation._preferences($1, $2) p WHERE p.topic = $3) $$;

CREATE FUNCTION activation.unsubscribe(
    token text, everything boolean DEFAULT false, topic text DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    owner record;
BEGIN
    SELECT * INTO owner FROM activation._token_owner(token);
    IF owner.user_id IS NOT NULL
       AND (unsubscribe.topic IS NULL
            OR activation._is_topic(owner.users, owner.user_id, unsubscribe.topic)) THEN
        PERFORM activation._subscribe(
            owner.users, owner.user_id,
            CASE WHEN everything THEN '' ELSE coalesce(unsubscribe.topic, owner.topic) END,
            false, 'unsubscribe link of loop ' || owner.loop_name);
    END IF;
END
$$;
COMMENT ON FUNCTION activation.unsubscribe(text, boolean, text) IS
'Unsubscribes the person whose mail has this token in its link. Their enrollments in such loops
exit at once. A token or a topic that is none does nothing and says nothing. Nor does doing it
twice.
token: the token of an unsubscribe link.
everything: whether it is from all mail that is not transactional. So it is where the mail''s loop
  has no topic.
topic: the topic to unsubscribe from (default: that of the mail''s loop).';

CREATE FUNCTION activation.resubscribe(token text, topic text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    owner record;
BEGIN
    SELECT * INTO owner FROM activation._token_owner(token);
    IF owner.user_id IS NOT NULL
       AND (resubscribe.topic IS NULL
            OR activation._is_topic(owner.users, owner.user_id, resubscribe.topic)) THEN
        PERFORM activation._subscribe(
            owner.users, owner.user_id, coalesce(resubscribe.topic, owner.topic),
            true, 'unsubscribe link of loop ' || owner.loop_name);
        IF resubscribe.topic IS NULL THEN
            PERFORM activation._subscribe(
                owner.users, owner.user_id, '',
                true, 'unsubscribe link of loop ' || owner.loop_name);
        END IF;
    END IF;
END
$$;
COMMENT ON FUNCTION activation.resubscribe(text, text) IS
'Takes an unsubscription back. People do not come back into loops that they were let out of. A
token or a topic that is none does nothing and says nothing.
token: the token of an unsubscribe link.
topic: only this topic (default: the mail''s topic, and everything).';

CREATE FUNCTION activation.preferences(user_id text DEFAULT NULL, token text DEFAULT NULL)
RETURNS TABLE (topic text, name text, description text, subscribed boolean)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    owner record;
BEGIN
    IF (preferences.user_id IS NULL) = (preferences.token IS NULL) THEN
        RAISE EXCEPTION 'preferences are of a user or of a token'
            USING ERRCODE = '22023',
                  HINT = 'SELECT * FROM activation.preferences(''42''), '
                         'or preferences(token => …).';
    END IF;
    PERFORM activation._check_key(preferences.user_id);
    IF preferences.token IS NOT NULL THEN
        SELECT o.users, o.user_id INTO owner FROM activation._token_owner(preferences.token) o;
    ELSE
        SELECT u.users, preferences.user_id AS user_id INTO owner
          FROM activation.users_table u
         ORDER BY u.users LIMIT 1;
    END IF;
    IF owner.user_id IS NOT NULL THEN
        RETURN QUERY SELECT p.* FROM activation._preferences(owner.users, owner.user_id) p;
    END IF;
END
$$;
COMMENT ON FUNCTION activation.preferences(text, text) IS
'What somebody is subscribed to. Give a user or a token.
user_id: the user''s key as text, in the first registered users table.
token: the token of an unsubscribe link.
Returns a row for everything and one for each topic, none for a token that is none.
topic: the topic. The empty one is everything that is not transactional.
name: its name, for people to read.
description: a sentence about it.
subscribed: whether mail about it goes out.
Raises 22023 for neither or both, and for a key that is too long.';

-- The only writer of plain addresses into the list. Returns whether the address was not there yet;
-- NULL for what is no address. An address that was forgotten is not written: its hash is in the
-- list already.
CREATE FUNCTION activation._suppress(
    email text, reason text, origin text, noted_by text, at timestamptz
) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    folded text := activation._fold_address(left(email, 1000));
    hashed text;
BEGIN
    -- Longer ones cannot be mailed, nor indexed.
    IF octet_length(folded) <= 320 AND folded ~ '^[^@\s<>,;]+@[^@\s<>,;]+$' THEN
        PERFORM activation._signing_key();
        hashed := activation._hash_address(folded);
        INSERT INTO activation.suppression (address, reason, origin, noted_by, at, hash)
        SELECT folded, left(_suppress.reason, 1000), _suppress.origin, _suppress.noted_by,
               _suppress.at, hashed
         WHERE NOT EXISTS (SELECT FROM activation.suppression s WHERE s.address = hashed)
        ON CONFLICT DO NOTHING;
        RETURN FOUND;
    END IF;
    RETURN NULL;
END
$$;

-- Does what suppress() says: the list notes the caller as its source.
CREATE FUNCTION activation._suppress_by_hand(caller oid, email text, reason text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF activation._suppress(email, coalesce(nullif(btrim(_suppress_by_hand.reason), ''), 'by hand'),
                            'operator', activation._role_name(caller), activation._now()) IS NULL
    THEN
        RAISE EXCEPTION '"%" is not an address', left(email, 100)
            USING ERRCODE = '22023', HINT = 'Write ''ada@acme.dev'', of 320 bytes at most.';
    END IF;
    DELETE FROM activation.unsuppression n WHERE n.address = activation._fold_address(email);
END
$$;

CREATE FUNCTION activation.suppress(email text, reason text DEFAULT 'by hand') RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.call (verb, arguments)
    VALUES ('suppress', jsonb_build_object('email', email, 'reason', reason))
$$;
COMMENT ON FUNCTION activation.suppress(text, text) IS
'Puts an address on the list of those that get no mail any more, transactional or not, whoever''s
it is. Its queued messages end as suppressed. Many at once: SELECT activation.suppress(address,
reason) FROM ….
email: the address, with or without a display name, in any case, at most 320 bytes.
reason: shown by why().
Raises 22023 for what is no address.';

CREATE FUNCTION activation.unsuppress(email text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    folded text := activation._fold_address(email);
BEGIN
    DELETE FROM activation.suppression s
     WHERE s.address IN (folded, activation._hash_address(folded));
    IF FOUND AND (activation._setting()).sync_suppressions THEN
        INSERT INTO activation.unsuppression (address, at) VALUES (folded, activation._now())
        ON CONFLICT DO NOTHING;
        RETURN true;
    END IF;
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION activation.unsuppress(text) IS
'Lets mail go to an address again, also to one that was forgotten. Resend has a list of its own,
which follows with configure(sync_suppressions => true).
email: the address, as for suppress().
Returns false where it was not suppressed.';
