-- Settings, retention and secrets.

-- Refuses a secret that is there and cannot sign webhooks: guessable, or not as Resend shows it. One that cannot be read
-- yet may still come; status and doctor() say so.
CREATE FUNCTION activation._check_webhook_secret(reference text, value text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    problem text := activation._webhook_secret_problem(reference, value);
BEGIN
    IF problem IS NOT NULL AND activation._key_problem(reference, value) IS NULL THEN
        RAISE EXCEPTION 'webhook_secret: %', problem
            USING ERRCODE = '22023', HINT = 'Resend shows it on the webhook''s page as whsec_ and base64; put that there, whole.';
    END IF;
END
$$;

-- Mail that is not transactional can be left with one click, and that takes an address where somebody listens.
CREATE FUNCTION activation._check_leavable(public_url text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    loops text;
BEGIN
    IF public_url IS NULL THEN
        SELECT string_agg(quote_ident(l.name), ', ' ORDER BY l.name) INTO loops
          FROM activation."loop" l JOIN activation.loop_version v USING (loop_id, version) WHERE l.state <> 'archived' AND NOT v.transactional;
        IF loops IS NOT NULL THEN
            RAISE EXCEPTION 'people could not unsubscribe from mail of %', loops
                USING ERRCODE = '55000', DETAIL = 'Every mail that is not transactional carries a link for that, and public_url says nothing of where it leads.',
                      HINT = 'SELECT activation.configure(public_url => ''https://acme.dev/activation''), where your app answers as docs/consent.md shows; or define such loops with transactional => true.';
        END IF;
    END IF;
END
$$;

CREATE FUNCTION activation.configure(sender text DEFAULT NULL, reply_to text DEFAULT NULL, resend_url text DEFAULT NULL,
    api_key text DEFAULT NULL, webhook_secret text DEFAULT NULL, public_url text DEFAULT NULL, timezone text DEFAULT NULL,
    retention interval DEFAULT NULL, rate numeric DEFAULT NULL, max_per_user integer DEFAULT NULL, per interval DEFAULT NULL,
    max_per_hour integer DEFAULT NULL, condition_timeout interval DEFAULT NULL, erase_on_delete boolean DEFAULT NULL,
    webhook_id text DEFAULT NULL, sync_suppressions boolean DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    given record;
    answer jsonb;
BEGIN
    -- While a webhook's secret is rotated there are two of it.
    FOR given IN SELECT 'api_key' AS name, api_key AS value WHERE api_key <> ''
                 UNION ALL SELECT 'webhook_secret', w FROM unnest(string_to_array(nullif(webhook_secret, ''), ' ')) AS w LOOP
        IF NOT activation._is_reference(given.value) THEN
            -- The statement may hold the key itself: keep it out of the server's log.
            PERFORM set_config('log_min_error_statement', 'panic', true);
            RAISE EXCEPTION '% is not a reference to a secret', given.name
                USING ERRCODE = '22023',
                      DETAIL = 'What was given is not repeated here, in case it is the secret itself.',
                      HINT = format('Use %1$s => ''env:NAME'' or %1$s => ''file:/path'', which the server reads; or a secret that set_secret() has stored, ''secret:name''.', given.name);
        END IF;
    END LOOP;
    FOR given IN SELECT w.reference FROM unnest(string_to_array(nullif(webhook_secret, ''), ' ')) AS w(reference) LOOP
        PERFORM activation._check_webhook_secret(given.reference, activation._secret(substr(given.reference, length('secret:') + 1)));
    END LOOP;
    FOR given IN SELECT * FROM (VALUES ('sender', sender), ('reply_to', reply_to)) AS v(name, value) WHERE v.value <> '' LOOP
        answer := activation._mailbox(given.name, given.value);
        PERFORM activation._raise(answer -> 'error');
        IF given.name = 'sender' THEN
            sender := answer ->> 'mailbox';
        ELSE
            reply_to := answer ->> 'mailbox';
        END IF;
    END LOOP;
    FOR given IN SELECT * FROM (VALUES ('resend_url', resend_url), ('public_url', public_url)) AS v(name, value) WHERE v.value <> '' LOOP
        IF given.value !~ '^https?://[^\s/?#]+[^\s?#]*$' THEN
            RAISE EXCEPTION '% "%" is not a URL', given.name, given.value
                USING ERRCODE = '22023', HINT = 'Write it with its scheme and without a query: ''https://acme.dev/activation''.';
        END IF;
    END LOOP;
    IF timezone <> '' AND NOT EXISTS (SELECT FROM pg_timezone_names z WHERE lower(z.name) = lower(configure.timezone)) THEN
        RAISE EXCEPTION 'time zone "%" is not known', timezone
            USING ERRCODE = '22023', HINT = 'Names are listed in pg_timezone_names, such as ''Europe/Berlin''.';
    END IF;
    IF rate <= 0 OR rate > 10000 OR rate = 'NaN' THEN
        RAISE EXCEPTION 'rate is %', rate
            USING ERRCODE = '22023', HINT = 'Give requests a second, from 1 to 10000; one request carries up to 100 emails.';
    END IF;
    IF max_per_hour < 1 THEN
        RAISE EXCEPTION 'max_per_hour is %', max_per_hour
            USING ERRCODE = '22023', HINT = 'Give the emails that a loop may send in an hour, at least 1; to stop a loop, SELECT activation.pause_loop(…).';
    END IF;
    IF max_per_user < 0 THEN
        RAISE EXCEPTION 'max_per_user is %', max_per_user
            USING ERRCODE = '22023', HINT = 'Give how many mails a user may get in the time of per, such as max_per_user => 3, per => ''1 day''; 0 lifts the cap.';
    END IF;
    IF per NOT BETWEEN interval '1 minute' AND interval '366 days' THEN
        RAISE EXCEPTION 'per is %', per USING ERRCODE = '22023', HINT = 'Give the time in which max_per_user counts, from ''1 minute'' to ''366 days'', such as ''1 day''.';
    END IF;
    IF condition_timeout NOT BETWEEN interval '1 second' AND interval '1 hour' THEN
        RAISE EXCEPTION 'condition_timeout is %', condition_timeout
            USING ERRCODE = '22023', HINT = 'Give how long a loop''s own SQL may run at a time, from ''1 second'' to ''1 hour''.';
    END IF;
    IF retention NOT BETWEEN interval '1 hour' AND interval '100 years' THEN
        RAISE EXCEPTION 'retention is %', retention
            USING ERRCODE = '22023', HINT = 'Give how long messages, attempts and requests are kept, at least ''1 hour'', such as ''90 days''.';
    END IF;
    IF (per IS NOT NULL OR coalesce(nullif(max_per_user, 0), (activation._setting()).max_per_user) IS NOT NULL)
       AND coalesce(per, (activation._setting()).per) > coalesce(retention, (activation._setting()).retention) THEN
        RAISE EXCEPTION 'per is longer than retention'
            USING ERRCODE = '22023', DETAIL = format('per is %s, retention %s.', coalesce(per, (activation._setting()).per), coalesce(retention, (activation._setting()).retention)),
                  HINT = 'Mails are counted for as long as they are kept: raise retention, or give a shorter per.';
    END IF;

    IF webhook_id !~ '^[A-Za-z0-9_-]*$' THEN
        RAISE EXCEPTION 'webhook_id "%" is not the id of a webhook', left(webhook_id, 100)
            USING ERRCODE = '22023', HINT = 'Resend shows it on the webhook''s page, such as ''4dd369bc-aa82-4ff3-97de-514ae3000ee0''.';
    END IF;

    INSERT INTO activation.setting AS s (singleton) VALUES (true) ON CONFLICT DO NOTHING;
    UPDATE activation.setting AS s
       SET sender = CASE WHEN configure.sender IS NULL THEN s.sender ELSE nullif(configure.sender, '') END,
           reply_to = CASE WHEN configure.reply_to IS NULL THEN s.reply_to ELSE nullif(configure.reply_to, '') END,
           resend_url = CASE WHEN configure.resend_url IS NULL THEN s.resend_url ELSE nullif(configure.resend_url, '') END,
           api_key = CASE WHEN configure.api_key IS NULL THEN s.api_key ELSE nullif(configure.api_key, '') END,
           webhook_secret = CASE WHEN configure.webhook_secret IS NULL THEN s.webhook_secret ELSE nullif(configure.webhook_secret, '') END,
           public_url = CASE WHEN configure.public_url IS NULL THEN s.public_url ELSE nullif(configure.public_url, '') END,
           timezone = CASE WHEN configure.timezone IS NULL THEN s.timezone ELSE nullif(configure.timezone, '') END,
           rate = coalesce(configure.rate, s.rate),
           max_per_user = CASE WHEN configure.max_per_user IS NULL THEN s.max_per_user ELSE nullif(configure.max_per_user, 0) END,
           per = coalesce(configure.per, s.per),
           max_per_hour = coalesce(configure.max_per_hour, s.max_per_hour),
           condition_timeout = coalesce(configure.condition_timeout, s.condition_timeout),
           retention = coalesce(configure.retention, s.retention),
           erase_on_delete = coalesce(configure.erase_on_delete, s.erase_on_delete),
           webhook_id = CASE WHEN configure.webhook_id IS NULL THEN s.webhook_id ELSE nullif(configure.webhook_id, '') END,
           sync_suppressions = coalesce(configure.sync_suppressions, s.sync_suppressions);
    IF public_url = '' AND (activation._setting()).mode = 'live' THEN
        PERFORM activation._check_leavable(NULL);
    END IF;
    IF public_url <> '' THEN
        -- Links are signed from now on.
        PERFORM activation._signing_key();
    END IF;
    IF resend_url IS NOT NULL THEN
        -- Another provider has another rate.
        DELETE FROM activation.provider;
    ELSIF coalesce(sender, api_key) IS NOT NULL THEN
        -- What a pause came from may have been mended.
        PERFORM activation._end_pause();
    END IF;
END
$$;
COMMENT ON FUNCTION activation.configure(text, text, text, text, text, text, text, interval, numeric, integer, interval, integer, interval, boolean, text, boolean) IS
'Changes settings; NULL leaves one unchanged, '''' clears it. sender: From of all mail unless the loop has its own; sender and reply_to are one mailbox each. api_key, webhook_secret: references (env:NAME, file:/path, secret:name), never secrets. public_url: where the app serves activation''s pages. rate: requests a second, for a provider that names none. max_per_hour: the brake, emails a loop may send in an hour (default: 10 times its usual hour, at least 1,000). condition_timeout: how long a loop''s own SQL may run at a time (default 10 s). retention: how long messages, attempts, requests and the rest of history are kept (default 90 days; set_retention() for one kind). max_per_user, per: how many mails a user gets from all loops together in a time (no cap; 0 lifts it; per is 1 day), but for transactional ones. erase_on_delete: whether deleting a user''s row in the app does what erase() does (default false). webhook_id: the webhook whose events pull_webhooks() reads; sync_suppressions: whether Resend''s suppression list and ours are kept the same (default false).';

CREATE FUNCTION activation.set_retention(kind text, keep interval) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    s activation.setting := activation._setting();
    least_kept interval;
BEGIN
    IF kind IS NULL OR kind NOT IN ('messages', 'bodies', 'attempts', 'webhooks', 'events', 'failures') THEN
        RAISE EXCEPTION 'there is no kind of history "%"', kind USING ERRCODE = '22023', HINT = 'It is one of messages, bodies, attempts, webhooks, events, failures.';
    END IF;
    -- A webhook is repeated for a day and four hours, and known by what is kept of it.
    least_kept := CASE kind WHEN 'webhooks' THEN interval '2 days' WHEN 'messages' THEN CASE WHEN s.max_per_user IS NULL THEN interval '1 hour' ELSE s.per END ELSE interval '1 hour' END;
    IF keep < least_kept OR keep > interval '100 years' THEN
        RAISE EXCEPTION '% are to be kept for %', kind, keep
            USING ERRCODE = '22023',
                  DETAIL = CASE kind WHEN 'webhooks' THEN 'Resend repeats a webhook for more than a day.' WHEN 'messages' THEN 'Mails are counted for max_per_user for as long as they are kept.'
                                     ELSE 'That is no time to look at anything.' END,
                  HINT = format('Keep them for at least ''%s'', such as ''30 days''.', least_kept);
    END IF;
    DELETE FROM activation.retention r WHERE r.kind = set_retention.kind;
    INSERT INTO activation.retention (kind, keep) SELECT set_retention.kind, set_retention.keep WHERE set_retention.keep IS NOT NULL;
END
$$;
COMMENT ON FUNCTION activation.set_retention(text, interval) IS
'Keeps one kind of history for another time than the setting retention; NULL takes that back. kind: messages (with their requests), bodies (the words of what was sent, as people got them), attempts, webhooks (at least 2 days), events (of track()), failures (of filters, and remarks). What belongs to a message goes with it at the latest.';

CREATE FUNCTION activation.set_secret(name text, value text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM set_config('log_min_error_statement', 'panic', true);
    IF coalesce(name, '') !~ '^[A-Za-z0-9_.-]{1,63}$' THEN
        RAISE EXCEPTION 'a secret needs a name' USING ERRCODE = '22023', HINT = 'Use letters, digits, _, . and -, at most 63.';
    END IF;
    IF coalesce(value, '') = '' THEN
        DELETE FROM activation.secret s WHERE s.name = set_secret.name;
    ELSE
        IF 'secret:' || name = ANY (string_to_array((activation._setting()).webhook_secret, ' ')) THEN
            PERFORM activation._check_webhook_secret('secret:' || name, value);
        END IF;
        INSERT INTO activation.secret AS s (name, value) VALUES (set_secret.name, set_secret.value)
        ON CONFLICT ON CONSTRAINT secret_pkey DO UPDATE SET value = excluded.value;
    END IF;
    PERFORM activation._end_pause();
END
$$;
COMMENT ON FUNCTION activation.set_secret(text, text) IS
'Stores a secret under a name, to be referred to as secret:name; an empty value removes it. No role but the engine''s may read the table, and it is not dumped. Prefer a file or an environment variable of the server (file:/path, env:NAME): the value of a statement or of its parameters is logged under log_statement, log_min_duration_statement and auto_explain, unless the session sets these off first, as docs/operations.md shows. One that signs webhooks and is too short or not base64 is refused (22023).';
