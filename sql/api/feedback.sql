-- What comes back from Resend. Events come at least once and in any order. Each is kept by its id,
-- and moves its message only forwards. Their contents are not trusted: of each event the few fields
-- that are used are kept, as texts of a limited length.

-- An event; NULL for what is none: not JSON, nested too deeply for it, or with characters or
-- numbers that PostgreSQL does not take.
CREATE FUNCTION activation._parse_event(body text) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    event jsonb;
BEGIN
    event := body::jsonb;
    RETURN CASE WHEN jsonb_typeof(event) = 'object' AND jsonb_typeof(event -> 'type') = 'string'
                THEN event END;
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
    RETURN NULL;
END
$$;

-- A text in an event, cut to a length. Only a JSON string counts: the number 1e131071 has few bytes
-- in jsonb, and as a text 131,072.
CREATE FUNCTION activation._event_text(event jsonb, path text[], max_length integer DEFAULT 1000)
RETURNS text
LANGUAGE sql IMMUTABLE
RETURN CASE WHEN jsonb_typeof(event #> path) = 'string' THEN left(event #>> path, max_length) END;

-- The time that a text says; NULL where it says none, or one that cannot be true.
CREATE FUNCTION activation._event_time(written text, now timestamptz) RETURNS timestamptz
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    at timestamptz;
BEGIN
    at := written::timestamptz;
    RETURN CASE WHEN at BETWEEN '2000-01-01 UTC' AND now + interval '1 day' THEN at END;
EXCEPTION WHEN data_exception THEN
    RETURN NULL;
END
$$;

-- What is kept of an event. is_ours: it is about a message of ours. hashed: the hash that stands
-- for the address in it.
CREATE FUNCTION activation._reduced_event(event jsonb, is_ours boolean, hashed text) RETURNS jsonb
LANGUAGE sql IMMUTABLE
RETURN jsonb_strip_nulls(jsonb_build_object(
        'type', activation._event_text(event, '{type}', 100),
        'created_at', activation._event_text(event, '{created_at}', 100),
        'data', nullif(jsonb_strip_nulls(jsonb_build_object(
            'email_id', activation._event_text(event, '{data,email_id}', 200),
            'email', hashed,
            'created_at', CASE WHEN is_ours
                               THEN activation._event_text(event, '{data,created_at}', 100) END,
            'bounce', CASE WHEN is_ours AND event #> '{data,bounce}' IS NOT NULL
                THEN jsonb_build_object(
                    'type', activation._event_text(event, '{data,bounce,type}'),
                    'subType', activation._event_text(event, '{data,bounce,subType}'),
                    'message', activation._event_text(event, '{data,bounce,message}')) END,
            'failed', CASE WHEN is_ours AND event #> '{data,failed}' IS NOT NULL
                THEN jsonb_build_object(
                    'reason', activation._event_text(event, '{data,failed,reason}')) END,
            'suppressed', CASE WHEN is_ours AND event #> '{data,suppressed}' IS NOT NULL
                THEN jsonb_build_object(
                    'reason', activation._event_text(event, '{data,suppressed,reason}'),
                    'message', activation._event_text(event, '{data,suppressed,message}')) END,
            'click', CASE WHEN is_ours AND event #> '{data,click}' IS NOT NULL
                THEN jsonb_build_object(
                    'link', activation._event_text(event, '{data,click,link}', 2000)) END
        )), '{}')));

-- Brings an event to its message, and returns whether it did: not while the message's request is
-- on its way, or its answer not written down. Where an event cannot be applied because of what it
-- says, the error is kept with it, and it counts as applied.
CREATE FUNCTION activation._apply_event(wanted_webhook text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN activation._apply_event_to_message(wanted_webhook);
EXCEPTION WHEN others THEN
    IF NOT activation._is_about_one_person(SQLSTATE) THEN
        RAISE;
    END IF;
    UPDATE activation.webhook_event x
       SET applied = true, problem = activation._error_text('not applied', SQLERRM)
     WHERE x.webhook_id = wanted_webhook;
    RETURN true;
END
$$;

-- Moves the state of a message forwards by an event. Suppresses the address where the event says
-- that it bounced for good, complained, or is suppressed by Resend.
CREATE FUNCTION activation._apply_event_to_message(wanted_webhook text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    w record;
    bounced_for_good boolean;
    told_cause text;
    note text;
BEGIN
    SELECT x.webhook_id, x.type, x.at, x.received_at, x.payload, m.message_id, m.state, m.recipient
      INTO w
      FROM activation.webhook_event x JOIN activation.message m USING (message_id)
     -- Found by its id, not among all that are open, however few the statistics say those are.
     WHERE x.webhook_id = wanted_webhook AND x.applied IS DISTINCT FROM true
       AND m.state <> 'sending'
       FOR UPDATE OF x;
    IF w.webhook_id IS NULL THEN
        RETURN false;
    END IF;
    bounced_for_good := w.type = 'email.bounced'
        AND coalesce(w.payload #>> '{data,bounce,type}', 'Permanent') = 'Permanent';
    told_cause := CASE w.type
        WHEN 'email.bounced' THEN 'bounced'
        WHEN 'email.complained' THEN 'complained'
        WHEN 'email.failed' THEN 'failed_at_resend'
        WHEN 'email.suppressed' THEN 'suppressed_by_resend' END;
    note := nullif(CASE w.type
        WHEN 'email.bounced' THEN
            concat_ws(': ', w.payload #>> '{data,bounce,type}',
                      w.payload #>> '{data,bounce,subType}', w.payload #>> '{data,bounce,message}')
        WHEN 'email.failed' THEN w.payload #>> '{data,failed,reason}'
        WHEN 'email.suppressed' THEN
            concat_ws(': ', w.payload #>> '{data,suppressed,reason}',
                      w.payload #>> '{data,suppressed,message}') END, '');
    -- An event about a mail whose outcome was unknown tells that it was sent.
    UPDATE activation.message m
       SET state = CASE w.type
               WHEN 'email.complained' THEN 'complained'
               WHEN 'email.bounced' THEN
                   CASE WHEN m.state = 'complained' THEN m.state ELSE 'bounced' END
               WHEN 'email.failed' THEN
                   CASE WHEN m.state IN ('delivered', 'bounced', 'complained') THEN m.state
                        ELSE 'failed' END
               WHEN 'email.suppressed' THEN
                   CASE WHEN m.state IN ('delivered', 'bounced', 'complained') THEN m.state
                        ELSE 'suppressed' END
               WHEN 'email.delivered' THEN
                   CASE WHEN m.state IN ('sent', 'unknown') THEN 'delivered' ELSE m.state END
               ELSE CASE WHEN m.state = 'unknown' THEN 'sent' ELSE m.state END END,
           sent_at = coalesce(
               m.sent_at,
               activation._event_time(w.payload #>> '{data,created_at}', w.received_at), w.at),
           resend_id = coalesce(m.resend_id, w.payload #>> '{data,email_id}'),
           cause = coalesce(told_cause, CASE WHEN m.state <> 'unknown' THEN m.cause END),
           last_error = CASE WHEN told_cause IS NOT NULL THEN note
                             WHEN m.state <> 'unknown' THEN m.last_error END
     WHERE m.message_id = w.message_id
       AND m.state IN ('sent', 'delivered', 'bounced', 'complained', 'unknown');
    IF bounced_for_good OR w.type IN ('email.complained', 'email.suppressed') THEN
        PERFORM activation._suppress(
            w.recipient, activation._cause_text(told_cause, note), 'resend',
            'webhook ' || w.webhook_id, w.at);
    END IF;
    UPDATE activation.webhook_event x SET applied = true WHERE x.webhook_id = w.webhook_id;
    RETURN true;
END
$$;

-- Applies the events that could not be applied when they came, in the order of their time; returns
-- how many.
CREATE FUNCTION activation._apply_events() RETURNS integer
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT count(*) FILTER (WHERE activation._apply_event(o.webhook_id))::integer
      FROM (SELECT x.webhook_id
              FROM activation.webhook_event x
             WHERE NOT x.applied
             ORDER BY x.at, x.webhook_id LIMIT 1000) o
$$;

-- Keeps an event by its id and brings it where it belongs; returns applied, kept or duplicate.
-- fallback_time: when it happened, where the event itself does not say.
CREATE FUNCTION activation._keep_event(
    webhook_id text, event jsonb, fallback_time timestamptz, now timestamptz
) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    kind text := activation._event_text(event, '{type}', 100);
    happened_at timestamptz := coalesce(
        activation._event_time(activation._event_text(event, '{created_at}'), now),
        fallback_time, now);
    tags jsonb := event #> '{data,tags}';
    email text := CASE WHEN kind LIKE 'suppression.%'
                       THEN activation._event_text(event, '{data,email}') END;
    tagged text;
    tagged_message uuid;
    is_ours boolean;
    hashed text;
BEGIN
    -- Tags are an object, or, as one source has it, an array.
    tagged := CASE jsonb_typeof(tags)
        WHEN 'object' THEN activation._event_text(tags, '{activation_message}')
        WHEN 'array' THEN
            (SELECT activation._event_text(t, '{value}')
               FROM jsonb_array_elements(tags) AS t
              WHERE activation._event_text(t, '{name}') = 'activation_message' LIMIT 1) END;
    IF tagged ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN
        tagged_message := tagged::uuid;
    END IF;
    is_ours := tagged_message IS NOT NULL AND kind LIKE 'email.%'
        AND EXISTS (SELECT FROM activation.message m WHERE m.message_id = tagged_message);
    IF email IS NOT NULL THEN
        PERFORM activation._signing_key();
        hashed := activation._hash_address(activation._fold_address(email));
    END IF;
    INSERT INTO activation.webhook_event AS w
           (webhook_id, type, at, received_at, message_id, applied, payload)
    VALUES (_keep_event.webhook_id, kind, happened_at, now,
            CASE WHEN is_ours THEN tagged_message END, NOT is_ours,
            activation._reduced_event(event, is_ours, hashed))
    ON CONFLICT ON CONSTRAINT webhook_event_pkey DO NOTHING;
    IF NOT FOUND THEN
        RETURN 'duplicate';
    ELSIF is_ours THEN
        RETURN CASE WHEN activation._apply_event(_keep_event.webhook_id) THEN 'applied'
                    ELSE 'kept' END;
    ELSIF kind = 'suppression.added'
          AND NOT EXISTS (SELECT FROM activation.webhook_event w
                           WHERE w.type = 'suppression.removed'
                             AND lower(w.payload #>> '{data,email}') = hashed
                             AND w.at > happened_at)
          AND activation._suppress(
                  email,
                  coalesce(activation._event_text(event, '{data,origin}', 100),
                           'suppressed by Resend'),
                  'resend', 'webhook ' || _keep_event.webhook_id, happened_at) IS NOT NULL THEN
        RETURN 'applied';
    ELSIF kind = 'suppression.removed' AND hashed IS NOT NULL THEN
        -- What was put here by hand stays.
        DELETE FROM activation.suppression s
         WHERE s.hash = hashed AND s.origin = 'resend' AND s.at <= happened_at;
        RETURN 'applied';
    END IF;
    RETURN 'kept';
END
$$;
