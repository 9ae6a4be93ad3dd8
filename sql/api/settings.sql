-- Settings: configure(), and the checks of what it is given.

-- Refuses a webhook secret that cannot be trusted to sign: guessable, or not as Resend shows it.
-- One that cannot be read yet passes, since it may still come; status and doctor() say so.
CREATE FUNCTION activation._check_webhook_secret(reference text, value text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    problem text := activation._webhook_secret_problem(reference, value);
BEGIN
    IF problem IS NOT NULL AND activation._key_problem(reference, value) IS NULL THEN
        RAISE EXCEPTION 'webhook_secret: %', problem
            USING ERRCODE = '22023',
                  HINT = 'Resend shows it on the webhook''s page as whsec_ and base64; put that '
                         'there, whole.';
    END IF;
END
$$;

-- Refuses to go without public_url while a loop needs it: mail that is not transactional carries
-- an unsubscribe link, and public_url is where that link leads.
CREATE FUNCTION activation._check_leavable(public_url text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    loops text;
BEGIN
    IF public_url IS NULL THEN
        SELECT string_agg(quote_ident(l.name), ', ' ORDER BY l.name) INTO loops
          FROM activation."loop" l
          JOIN activation.loop_version v USING (loop_id, version)
         WHERE l.state <> 'archived' AND NOT v.transactional;
        IF loops IS NOT NULL THEN
            RAISE EXCEPTION 'people could not unsubscribe from mail of %', loops
                USING ERRCODE = '55000',
                      DETAIL = 'Every mail that is not transactional carries a link for that, and '
                               'public_url says nothing of where it leads.',
                      HINT = 'SELECT activation.configure('
                             'public_url => ''https://acme.dev/activation''), where your app '
                             'answers as docs/consent.md shows; or define such loops with '
                             'transactional => true.';
        END IF;
    END IF;
END
$$;

-- Refuses what is no reference to a secret, and a webhook secret that cannot sign. What was given
-- may be the secret itself, so neither the error nor the server's log may repeat it.
CREATE FUNCTION activation._check_references(api_key text, webhook_secret text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    given record;
    reference text;
BEGIN
    -- While a webhook's secret is rotated there are two of it.
    FOR given IN
        SELECT 'api_key' AS name, api_key AS value WHERE api_key <> ''
        UNION ALL
        SELECT 'webhook_secret', w
          FROM unnest(string_to_array(nullif(webhook_secret, ''), ' ')) AS w
    LOOP
        IF NOT activation._is_reference(given.value) THEN
            -- The statement may hold the key itself: keep it out of the server's log.
            PERFORM set_config('log_min_error_statement', 'panic', true);
            RAISE EXCEPTION '% is not a reference to a secret', given.name
                USING ERRCODE = '22023',
                      DETAIL = 'What was given is not repeated here, in case it is the secret '
                               'itself.',
                      HINT = format(
                          'Use %1$s => ''env:NAME'' or %1$s => ''file:/path'', which the server '
                          'reads; or a secret that set_secret() has stored, ''secret:name''.',
                          given.name);
        END IF;
    END LOOP;
    FOREACH reference IN ARRAY coalesce(string_to_array(nullif(webhook_secret, ''), ' '), '{}') LOOP
        PERFORM activation._check_webhook_secret(
            reference, activation._secret(substr(reference, length('secret:') + 1)));
    END LOOP;
END
$$;

-- Refuses numbers and durations that configure() cannot keep to. NULL passes, since it leaves a
-- setting as it is; where two settings have to fit, the stored one counts then.
CREATE FUNCTION activation._check_limits(
    rate numeric, max_per_hour integer, max_per_user integer, per interval,
    condition_timeout interval, retention interval
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    s activation.setting := activation._setting();
BEGIN
    IF rate <= 0 OR rate > 10000 OR rate = 'NaN' THEN
        RAISE EXCEPTION 'rate is %', rate
            USING ERRCODE = '22023',
                  HINT = 'Give requests a second, from 1 to 10000; one request carries up to 100 '
                         'emails.';
    END IF;
    IF max_per_hour < 1 THEN
        RAISE EXCEPTION 'max_per_hour is %', max_per_hour
            USING ERRCODE = '22023',
                  HINT = 'Give the emails that a loop may send in an hour, at least 1; to stop a '
                         'loop, SELECT activation.pause_loop(…).';
    END IF;
    IF max_per_user < 0 THEN
        RAISE EXCEPTION 'max_per_user is %', max_per_user
            USING ERRCODE = '22023',
                  HINT = 'Give how many mails a user may get in the time of per, such as '
                         'max_per_user => 3, per => ''1 day''; 0 lifts the cap.';
    END IF;
    IF per NOT BETWEEN interval '1 minute' AND interval '366 days' THEN
        RAISE EXCEPTION 'per is %', per
            USING ERRCODE = '22023',
                  HINT = 'Give the time in which max_per_user counts, from ''1 minute'' '
                         'to ''366 days'', such as ''1 day''.';
    END IF;
    IF condition_timeout NOT BETWEEN interval '1 second' AND interval '1 hour' THEN
        RAISE EXCEPTION 'condition_timeout is %', condition_timeout
            USING ERRCODE = '22023',
                  HINT = 'Give how long a loop''s own SQL may run at a time, from ''1 second'' '
                         'to ''1 hour''.';
    END IF;
    IF retention NOT BETWEEN interval '1 hour' AND interval '100 years' THEN
        RAISE EXCEPTION 'retention is %', retention
            USING ERRCODE = '22023',
                  HINT = 'Give how long messages, attempts and requests are kept, '
                         'at least ''1 hour'', such as ''90 days''.';
    END IF;
    IF (per IS NOT NULL OR coalesce(nullif(max_per_user, 0), s.max_per_user) IS NOT NULL)
       AND coalesce(per, s.per) > coalesce(retention, s.retention) THEN
        RAISE EXCEPTION 'per is longer than retention'
            USING ERRCODE = '22023',
                  DETAIL = format('per is %s, retention %s.',
                                  coalesce(per, s.per), coalesce(retention, s.retention)),
                  HINT = 'Mails are counted for as long as they are kept: raise retention, or give '
                         'a shorter per.';
    END IF;
END
$$;

-- Long because each setting is checked, and written only when it was given.
CREATE FUNCTION activation.configure(
    sender text DEFAULT NULL, reply_to text DEFAULT NULL, resend_url text DEFAULT NULL,
    api_key text DEFAULT NULL, webhook_secret text DEFAULT NULL, public_url text DEFAULT NULL,
    timezone text DEFAULT NULL, retention interval DEFAULT NULL, rate numeric DEFAULT NULL,
    max_per_user integer DEFAULT NULL, per interval DEFAULT NULL,
    max_per_hour integer DEFAULT NULL, condition_timeout interval DEFAULT NULL,
    erase_on_delete boolean DEFAULT NULL, webhook_id text DEFAULT NULL,
    sync_suppressions boolean DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    given record;
    answer jsonb;
BEGIN
    PERFORM activation._check_references(api_key, webhook_secret);
    FOR given IN
        SELECT *
          FROM (VALUES ('sender', sender), ('reply_to', reply_to)) AS v(name, value)
         WHERE v.value <> ''
    LOOP
        answer := activation._mailbox(given.name, given.value);
        PERFORM activation._raise(answer -> 'error');
        IF given.name = 'sender' THEN
            sender := answer ->> 'mailbox';
        ELSE
            reply_to := answer ->> 'mailbox';
        END IF;
    END LOOP;
    FOR given IN
        SELECT *
          FROM (VALUES ('resend_url', resend_url), ('public_url', public_url)) AS v(name, value)
         WHERE v.value <> ''
    LOOP
        IF given.value !~ '^https?://[^\s/?#]+[^\s?#]*$' THEN
            RAISE EXCEPTION '% "%" is not a URL', given.name, given.value
                USING ERRCODE = '22023',
                      HINT = 'Write it with its scheme and without '
                             'a query: ''https://acme.dev/activation''.';
        END IF;
    END LOOP;
    IF timezone <> '' AND NOT EXISTS (
        SELECT FROM pg_timezone_names z WHERE lower(z.name) = lower(configure.timezone)
    ) THEN
        RAISE EXCEPTION 'time zone "%" is not known', timezone
            USING ERRCODE = '22023',
                  HINT = 'Names are listed in pg_timezone_names, such as ''Europe/Berlin''.';
    END IF;
    PERFORM activation._check_limits(
        rate, max_per_hour, max_per_user, per, condition_timeout, retention);
    IF webhook_id !~ '^[A-Za-z0-9_-]*$' THEN
        RAISE EXCEPTION 'webhook_id "%" is not the id of a webhook', left(webhook_id, 100)
            USING ERRCODE = '22023',
                  HINT = 'Resend shows it on the webhook''s page, '
                         'such as ''4dd369bc-aa82-4ff3-97de-514ae3000ee0''.';
    END IF;

    INSERT INTO activation.setting AS s (singleton) VALUES (true) ON CONFLICT DO NOTHING;
    UPDATE activation.setting AS s
       SET sender = CASE WHEN configure.sender IS NULL THEN s.sender
                         ELSE nullif(configure.sender, '') END,
           reply_to = CASE WHEN configure.reply_to IS NULL THEN s.reply_to
                           ELSE nullif(configure.reply_to, '') END,
           resend_url = CASE WHEN configure.resend_url IS NULL THEN s.resend_url
                             ELSE nullif(configure.resend_url, '') END,
           api_key = CASE WHEN configure.api_key IS NULL THEN s.api_key
                          ELSE nullif(configure.api_key, '') END,
           webhook_secret = CASE WHEN configure.webhook_secret IS NULL THEN s.webhook_secret
                                 ELSE nullif(configure.webhook_secret, '') END,
           public_url = CASE WHEN configure.public_url IS NULL THEN s.public_url
                             ELSE nullif(configure.public_url, '') END,
           timezone = CASE WHEN configure.timezone IS NULL THEN s.timezone
                           ELSE nullif(configure.timezone, '') END,
           rate = coalesce(configure.rate, s.rate),
           max_per_user = CASE WHEN configure.max_per_user IS NULL THEN s.max_per_user
                               ELSE nullif(configure.max_per_user, 0) END,
           per = coalesce(configure.per, s.per),
           max_per_hour = coalesce(configure.max_per_hour, s.max_per_hour),
           condition_timeout = coalesce(configure.condition_timeout, s.condition_timeout),
           retention = coalesce(configure.retention, s.retention),
           erase_on_delete = coalesce(configure.erase_on_delete, s.erase_on_delete),
           webhook_id = CASE WHEN configure.webhook_id IS NULL THEN s.webhook_id
                             ELSE nullif(configure.webhook_id, '') END,
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
COMMENT ON FUNCTION activation.configure(
    text, text, text, text, text, text, text, interval, numeric, integer, interval, integer,
    interval, boolean, text, boolean
) IS
'Changes settings. NULL leaves a setting unchanged, '''' clears it.
sender: From of all mail unless an action has its own. One mailbox, such as Acme <hello@acme.dev>.
reply_to: where answers go, one mailbox (default: to the sender).
resend_url: the address of Resend''s API (default: https://api.resend.com).
api_key: where the API key is, never the key itself: env:NAME, file:/path or secret:name.
webhook_secret: where the webhooks'' secret is, as for api_key. Two with a space between while it
  is rotated.
public_url: where the app serves activation''s pages, such as https://acme.dev/activation.
  Unsubscribe links lead there.
timezone: the time zone of schedules, weeks, and users without one of their own (default: UTC).
retention: how long messages, attempts, requests, webhooks and events are kept, at least 1 hour
  (default: 90 days). set_retention() differs for one kind.
rate: requests a second at most, over 0 to 10,000. The lower of this and the rate that Resend
  names holds (default: that).
max_per_user: the cap, how many mails one user gets in the time of per, from all loops together
  but transactional ones. 0 lifts it (default: no cap).
per: the time in which max_per_user counts, 1 minute to 366 days and no longer than retention
  (default: 1 day).
max_per_hour: the brake, how many mails one loop may send in an hour (default: 10 times its usual
  hour, at least 1,000).
condition_timeout: how long a loop''s own SQL may run at a time, 1 second to 1 hour (default: 10
  seconds).
erase_on_delete: whether deleting a user''s row in the app does what erase() does (default:
  false).
webhook_id: the webhook of Resend''s whose events pull_webhooks() reads (default: the only one).
sync_suppressions: whether Resend''s suppression list and ours are kept the same (default: false).
Raises 22023 for a value that is none of these, or for a key or secret in place of its reference,
  55000 where public_url goes while loops are live whose mail people could then not leave.';

