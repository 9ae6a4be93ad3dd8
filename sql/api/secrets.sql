-- How long history is kept, and secrets: what people set one at a time.

CREATE FUNCTION activation.set_retention(kind text, keep interval) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    s activation.setting := activation._setting();
    least_kept interval;
BEGIN
    IF kind IS NULL
       OR kind NOT IN ('messages', 'bodies', 'attempts', 'webhooks', 'events', 'failures') THEN
        RAISE EXCEPTION 'there is no kind of history "%"', kind
            USING ERRCODE = '22023',
                  HINT = 'It is one of messages, bodies, attempts, webhooks, events, failures.';
    END IF;
    -- Resend repeats a webhook for a day and four hours. What is kept of it tells a repetition.
    least_kept := CASE kind
        WHEN 'webhooks' THEN interval '2 days'
        WHEN 'messages' THEN CASE WHEN s.max_per_user IS NULL THEN interval '1 hour' ELSE s.per END
        ELSE interval '1 hour'
    END;
    IF keep < least_kept OR keep > interval '100 years' THEN
        RAISE EXCEPTION '% are to be kept for %', kind, keep
            USING ERRCODE = '22023',
                  DETAIL = CASE kind
                      WHEN 'webhooks' THEN 'Resend repeats a webhook for more than a day.'
                      WHEN 'messages' THEN
                          'Mails are counted for max_per_user for as long as they are kept.'
                      ELSE 'That is no time to look at anything.'
                  END,
                  HINT = format('Keep them for at least ''%s'', such as ''30 days''.', least_kept);
    END IF;
    DELETE FROM activation.retention r WHERE r.kind = set_retention.kind;
    INSERT INTO activation.retention (kind, keep)
    SELECT set_retention.kind, set_retention.keep WHERE set_retention.keep IS NOT NULL;
END
$$;
COMMENT ON FUNCTION activation.set_retention(text, interval) IS
'Keeps one kind of history for another time than the setting retention. What belongs to a message
goes with it at the latest.
kind: messages (with their requests), bodies (the words of what was sent), attempts, webhooks,
  events (of track()) or failures (of filters, and remarks).
keep: for how long, at least 1 hour, for webhooks 2 days. NULL gives the kind back to retention.
Raises 22023 for another kind or a shorter time.';

CREATE FUNCTION activation.set_secret(name text, value text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM set_config('log_min_error_statement', 'panic', true);
    IF coalesce(name, '') !~ '^[A-Za-z0-9_.-]{1,63}$' THEN
        RAISE EXCEPTION 'a secret needs a name'
            USING ERRCODE = '22023', HINT = 'Use letters, digits, _, . and -, at most 63.';
    END IF;
    IF coalesce(value, '') = '' THEN
        DELETE FROM activation.secret s WHERE s.name = set_secret.name;
    ELSE
        IF 'secret:' || name
           = ANY (string_to_array((activation._setting()).webhook_secret, ' ')) THEN
            PERFORM activation._check_webhook_secret('secret:' || name, value);
        END IF;
        INSERT INTO activation.secret AS s (name, value) VALUES (set_secret.name, set_secret.value)
        ON CONFLICT ON CONSTRAINT secret_pkey DO UPDATE SET value = excluded.value;
    END IF;
    PERFORM activation._end_pause();
END
$$;
COMMENT ON FUNCTION activation.set_secret(text, text) IS
'Stores a secret under a name, to be referred to as secret:name. No role but the engine''s may read
the table, and it is not dumped. Prefer a file or an environment variable of the server
(file:/path, env:NAME): the value of a statement or of its parameters is logged under
log_statement, log_min_duration_statement and auto_explain, unless the session sets these off
first, as docs/operations.md shows.
name: the secret''s name, of letters, digits, _, . and -, at most 63.
value: the secret. An empty one removes it.
Raises 22023 for a name that is none, and for a secret in use that cannot sign webhooks.';
