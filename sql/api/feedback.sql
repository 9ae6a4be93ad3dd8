-- What comes back from Resend. Events come at least once and in any order; each is kept by its id, and moves its message
-- only forwards. What they hold is not believed: of each the few things that are used are kept, as texts of a limited length.

-- An event, or NULL for what is none: not JSON, nested too deeply for it, or with characters or numbers that PostgreSQL does
-- not take.
CREATE FUNCTION activation._parse_event(body text) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    event jsonb;
BEGIN
    event := body::jsonb;
    RETURN CASE WHEN jsonb_typeof(event) = 'object' AND jsonb_typeof(event -> 'type') = 'string' THEN event END;
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
    RETURN NULL;
END
$$;

-- A text in an event. Never that of a number or of more: 1e131071 has few bytes in jsonb, and as a text 131,072.
CREATE FUNCTION activation._event_text(event jsonb, path text[], most integer DEFAULT 1000) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN CASE WHEN jsonb_typeof(event #> path) = 'string' THEN left(event #>> path, most) END;

-- When something happened, if a text says so and it can be true.
CREATE FUNCTION activation._event_time(given text, now timestamptz) RETURNS timestamptz
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    at timestamptz;
BEGIN
    at := given::timestamptz;
    RETURN CASE WHEN at BETWEEN '2000-01-01 UTC' AND now + interval '1 day' THEN at END;
EXCEPTION WHEN data_exception THEN
    RETURN NULL;
END
$$;

-- What is kept of an event. own: about a message of ours. hashed: what stands for the address that it is about.
CREATE FUNCTION activation._reduced_event(event jsonb, own boolean, hashed text) RETURNS jsonb
LANGUAGE sql IMMUTABLE
RETURN jsonb_strip_nulls(jsonb_build_object(
        'type', activation._event_text(event, '{type}', 100), 'created_at', activation._event_text(event, '{created_at}', 100),
        'data', nullif(jsonb_strip_nulls(jsonb_build_object(
            'email_id', activation._event_text(event, '{data,email_id}', 200), 'email', hashed,
            'created_at', CASE WHEN own THEN activation._event_text(event, '{data,created_at}', 100) END,
            'bounce', CASE WHEN own AND event #> '{data,bounce}' IS NOT NULL THEN jsonb_build_object(
                'type', activation._event_text(event, '{data,bounce,type}'), 'subType', activation._event_text(event, '{data,bounce,subType}'),
                'message', activation._event_text(event, '{data,bounce,message}')) END,
            'failed', CASE WHEN own AND event #> '{data,failed}' IS NOT NULL THEN jsonb_build_object(
                'reason', activation._event_text(event, '{data,failed,reason}')) END,
            'suppressed', CASE WHEN own AND event #> '{data,suppressed}' IS NOT NULL THEN jsonb_build_object(
                'reason', activation._event_text(event, '{data,suppressed,reason}'), 'message', activation._event_text(event, '{data,suppressed,message}')) END,
            'click', CASE WHEN own AND event #> '{data,click}' IS NOT NULL THEN jsonb_build_object(
                'link', activation._event_text(event, '{data,click,link}', 2000)) END)), '{}')));

-- Brings an event to its message, unless that one's request is still on its way, or the answer not written down; returns
-- whether it did. Where it cannot be brought there, whatever it says, that is written down with it, and it is done with.
CREATE FUNCTION activation._apply_event(wanted text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN activation._apply_event_to_message(wanted);
EXCEPTION WHEN others THEN
    IF NOT activation._is_about_one_person(SQLSTATE) THEN
        RAISE;
    END IF;
    UPDATE activation.webhook_event x SET applied = true, problem = activation._error_text('not applied', SQLERRM) WHERE x.webhook_id = wanted;
    RETURN true;
END
$$;

CREATE FUNCTION activation._apply_event_to_message(wanted text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    w record;
    bounced_for_good boolean;
    why text;
BEGIN
    SELECT x.webhook_id, x.type, x.at, x.received_at, x.payload, m.message_id, m.state, m.recipient INTO w
      FROM activation.webhook_event x JOIN activation.message m USING (message_id)
     -- Found by its id, not among all that are open, however few the statistics say those are.
     WHERE x.webhook_id = wanted AND x.applied IS DISTINCT FROM true AND m.state <> 'sending' FOR UPDATE OF x;
    IF w.webhook_id IS NULL THEN
        RETURN false;
    END IF;
    bounced_for_good := w.type = 'email.bounced' AND coalesce(w.payload #>> '{data,bounce,type}', 'Permanent') = 'Permanent';
    why := CASE w.type WHEN 'email.bounced' THEN concat_ws(': ', 'bounced', w.payload #>> '{data,bounce,type}', w.payload #>> '{data,bounce,subType}', w.payload #>> '{data,bounce,message}')
                       WHEN 'email.complained' THEN 'complained'
                       WHEN 'email.failed' THEN concat_ws(': ', 'failed', w.payload #>> '{data,failed,reason}')
                       WHEN 'email.suppressed' THEN concat_ws(': ', 'suppressed by Resend', w.payload #>> '{data,suppressed,reason}', w.payload #>> '{data,suppressed,message}') END;
    -- A mail of which nobody knew is known to have been sent by whatever is told of it.
    UPDATE activation.message m
       SET state = CASE w.type WHEN 'email.complained' THEN 'complained'
                               WHEN 'email.bounced' THEN CASE WHEN m.state = 'complained' THEN m.state ELSE 'bounced' END
                               WHEN 'email.failed' THEN CASE WHEN m.state IN ('delivered', 'bounced', 'complained') THEN m.state ELSE 'failed' END
                               WHEN 'email.suppressed' THEN CASE WHEN m.state IN ('delivered', 'bounced', 'complained') THEN m.state ELSE 'suppressed' END
                               WHEN 'email.delivered' THEN CASE WHEN m.state IN ('sent', 'unknown') THEN 'delivered' ELSE m.state END
                               ELSE CASE WHEN m.state = 'unknown' THEN 'sent' ELSE m.state END END,
           sent_at = coalesce(m.sent_at, activation._event_time(w.payload #>> '{data,created_at}', w.received_at), w.at),
           resend_id = coalesce(m.resend_id, w.payload #>> '{data,email_id}'), last_error = coalesce(why, CASE WHEN m.state <> 'unknown' THEN m.last_error END)
     WHERE m.message_id = w.message_id AND m.state IN ('sent', 'delivered', 'bounced', 'complained', 'unknown');
    IF bounced_for_good OR w.type IN ('email.complained', 'email.suppressed') THEN
        PERFORM activation._suppress(w.recipient, why, 'webhook ' || w.webhook_id, w.at);
    END IF;
    UPDATE activation.webhook_event x SET applied = true WHERE x.webhook_id = w.webhook_id;
    RETURN true;
END
$$;

-- Those that could not be applied when they came, in the order of their time; returns how many could now.
CREATE FUNCTION activation._apply_events() RETURNS integer
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT count(*) FILTER (WHERE activation._apply_event(o.webhook_id))::integer
      FROM (SELECT x.webhook_id FROM activation.webhook_event x WHERE NOT x.applied ORDER BY x.at, x.webhook_id LIMIT 1000) o
$$;

-- Refuses a webhook. The last three digits of the code are the HTTP status to answer.
CREATE FUNCTION activation._refuse_webhook(status integer, problem text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM nextval('activation.webhook_refused');
    RAISE EXCEPTION 'webhook refused: %', problem
        USING ERRCODE = 'HT' || status, HINT = format('Answer it with HTTP status %s.', status);
END
$$;

-- Keeps an event by its id and brings it where it belongs. happened: when, if the event itself does not say.
CREATE FUNCTION activation._keep_event(webhook_id text, event jsonb, happened timestamptz, now timestamptz) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    kind text := activation._event_text(event, '{type}', 100);
    happened_at timestamptz := coalesce(activation._event_time(activation._event_text(event, '{created_at}'), now), happened, now);
    tags jsonb := event #> '{data,tags}';
    email text := CASE WHEN kind LIKE 'suppression.%' THEN activation._event_text(event, '{data,email}') END;
    tagged text;
    about uuid;
    own boolean;
    hashed text;
BEGIN
    -- Tags are an object, or, as one source has it, an array.
    tagged := CASE jsonb_typeof(tags) WHEN 'object' THEN activation._event_text(tags, '{activation_message}')
                                      WHEN 'array' THEN (SELECT activation._event_text(t, '{value}') FROM jsonb_array_elements(tags) AS t
                                                          WHERE activation._event_text(t, '{name}') = 'activation_message' LIMIT 1) END;
    IF tagged ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN
        about := tagged::uuid;
    END IF;
    own := about IS NOT NULL AND kind LIKE 'email.%' AND EXISTS (SELECT FROM activation.message m WHERE m.message_id = about);
    IF email IS NOT NULL THEN
        PERFORM activation._signing_key();
        hashed := activation._hash_address(activation._fold_address(email));
    END IF;
    INSERT INTO activation.webhook_event AS w (webhook_id, type, at, received_at, message_id, applied, payload)
    VALUES (_keep_event.webhook_id, kind, happened_at, now, CASE WHEN own THEN about END, NOT own, activation._reduced_event(event, own, hashed))
    ON CONFLICT ON CONSTRAINT webhook_event_pkey DO NOTHING;
    IF NOT FOUND THEN
        RETURN 'duplicate';
    ELSIF own THEN
        RETURN CASE WHEN activation._apply_event(_keep_event.webhook_id) THEN 'applied' ELSE 'kept' END;
    ELSIF kind = 'suppression.added'
          AND NOT EXISTS (SELECT FROM activation.webhook_event w WHERE w.type = 'suppression.removed' AND lower(w.payload #>> '{data,email}') = hashed AND w.at > happened_at)
          AND activation._suppress(email, coalesce(activation._event_text(event, '{data,origin}', 100), 'suppressed by Resend'), 'webhook ' || _keep_event.webhook_id, happened_at) IS NOT NULL THEN
        RETURN 'applied';
    ELSIF kind = 'suppression.removed' AND hashed IS NOT NULL THEN
        -- What was put here by hand stays.
        DELETE FROM activation.suppression s WHERE s.hash = hashed AND s.source ~ '^(webhook |Resend)' AND s.at <= happened_at;
        RETURN 'applied';
    END IF;
    RETURN 'kept';
END
$$;

CREATE FUNCTION activation.receive_webhook(body text, headers jsonb) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    now timestamptz := activation._now();
    s activation.setting;
    given record;
    problem text;
    event jsonb;
BEGIN
    IF octet_length(coalesce(body, '')) > 1000000 THEN
        PERFORM activation._refuse_webhook(413, format('its body has %s bytes', octet_length(body)));
    ELSIF coalesce(body, '') = '' THEN
        PERFORM activation._refuse_webhook(400, 'it has no body');
    ELSIF jsonb_typeof(headers) IS DISTINCT FROM 'object' OR pg_column_size(headers) > 100000 THEN
        PERFORM activation._refuse_webhook(400, 'its headers are not an object of texts');
    END IF;
    SELECT count(*) FILTER (WHERE k.name = 'id') AS ids, count(*) FILTER (WHERE k.name = 'timestamp') AS timestamps, count(*) FILTER (WHERE k.name = 'signature') AS signatures,
           min(t.value) FILTER (WHERE k.name = 'id') AS id, min(t.value) FILTER (WHERE k.name = 'timestamp') AS timestamp,
           min(t.value) FILTER (WHERE k.name = 'signature') AS signature, bool_and(t.value IS NOT NULL) AS texts
      INTO given
      FROM jsonb_each(headers) AS h(key, value), substring(lower(h.key COLLATE "C") FROM '^(?:svix|webhook)-(id|timestamp|signature)$') AS k(name),
           activation._event_text(h.value, '{}', 10000) AS t(value)
     WHERE k.name IS NOT NULL;
    IF given.ids <> 1 OR given.timestamps <> 1 OR given.signatures <> 1 OR NOT given.texts OR octet_length(given.id) NOT BETWEEN 1 AND 256 THEN
        PERFORM activation._refuse_webhook(400, 'it needs svix-id, svix-timestamp and svix-signature, each once');
    END IF;
    s := activation._setting();
    problem := activation._webhook_problem(body, given.id, given.timestamp, given.signature, s.webhook_secret,
        (SELECT jsonb_object_agg(x.name, x.value) FROM activation.secret x WHERE 'secret:' || x.name = ANY (string_to_array(s.webhook_secret, ' '))),
        extract(epoch FROM now)::double precision);
    IF problem IS NOT NULL THEN
        PERFORM activation._refuse_webhook(left(problem, 3)::integer, substr(problem, 5));
    END IF;
    event := activation._parse_event(body);
    IF event IS NULL THEN
        PERFORM activation._refuse_webhook(400, 'its body is not an event');
    END IF;
    RETURN activation._keep_event(given.id, event, NULL, now);
END
$$;
COMMENT ON FUNCTION activation.receive_webhook(text, jsonb) IS
'Takes a webhook of Resend. body: as it came, byte for byte; headers: an object, names in any case. Whatever they hold, it does not raise anything else than what follows. Returns applied (it reached its message), kept (of no message of ours, of a type that changes nothing, or the message''s own request is still on its way) or duplicate: answer 200 to all of them. Refuses with SQLSTATE HT400, HT401, HT413 or HT503, whose digits are the HTTP status to answer, and stores nothing but a count (the sequence activation.webhook_refused). The secret is configure(webhook_secret => …): one reference, or two with a space between while it is rotated.';
