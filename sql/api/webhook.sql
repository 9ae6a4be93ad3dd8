-- receive_webhook(): where the app hands on what Resend posts to it.

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

CREATE FUNCTION activation.receive_webhook(body text, headers jsonb) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    now timestamptz := activation._now();
    s activation.setting;
    signed record;
    refusal jsonb;
    event jsonb;
BEGIN
    IF octet_length(coalesce(body, '')) > 1000000 THEN
        PERFORM activation._refuse_webhook(
            413, format('its body has %s bytes', octet_length(body)));
    ELSIF coalesce(body, '') = '' THEN
        PERFORM activation._refuse_webhook(400, 'it has no body');
    ELSIF jsonb_typeof(headers) IS DISTINCT FROM 'object' OR pg_column_size(headers) > 100000 THEN
        PERFORM activation._refuse_webhook(400, 'its headers are not an object of texts');
    END IF;
    SELECT count(*) FILTER (WHERE k.name = 'id') AS ids,
           count(*) FILTER (WHERE k.name = 'timestamp') AS timestamps,
           count(*) FILTER (WHERE k.name = 'signature') AS signatures,
           min(t.value) FILTER (WHERE k.name = 'id') AS id,
           min(t.value) FILTER (WHERE k.name = 'timestamp') AS timestamp,
           min(t.value) FILTER (WHERE k.name = 'signature') AS signature,
           bool_and(t.value IS NOT NULL) AS texts
      INTO signed
      FROM jsonb_each(headers) AS h(key, value),
           substring(lower(h.key COLLATE "C")
                     FROM '^(?:svix|webhook)-(id|timestamp|signature)$') AS k(name),
           activation._event_text(h.value, '{}', 10000) AS t(value)
     WHERE k.name IS NOT NULL;
    IF signed.ids <> 1 OR signed.timestamps <> 1 OR signed.signatures <> 1 OR NOT signed.texts
       OR octet_length(signed.id) NOT BETWEEN 1 AND 256 THEN
        PERFORM activation._refuse_webhook(
            400, 'it needs svix-id, svix-timestamp and svix-signature, each once');
    END IF;
    s := activation._setting();
    refusal := activation._webhook_problem(
        body, signed.id, signed.timestamp, signed.signature, s.webhook_secret,
        (SELECT jsonb_object_agg(x.name, x.value)
           FROM activation.secret x
          WHERE 'secret:' || x.name = ANY (string_to_array(s.webhook_secret, ' '))),
        extract(epoch FROM now)::double precision);
    IF refusal IS NOT NULL THEN
        PERFORM activation._refuse_webhook((refusal -> 'status')::integer, refusal ->> 'problem');
    END IF;
    event := activation._parse_event(body);
    IF event IS NULL THEN
        PERFORM activation._refuse_webhook(400, 'its body is not an event');
    END IF;
    RETURN activation._keep_event(signed.id, event, NULL, now);
END
$$;
COMMENT ON FUNCTION activation.receive_webhook(text, jsonb) IS
'Takes a webhook of Resend''s. Whatever it holds, nothing else is raised than what follows, and
what is refused leaves only a count behind (the sequence activation.webhook_refused). The secret
is configure(webhook_secret => …).
body: the body as it came, byte for byte, at most 1 MB.
headers: an object, names in any case.
Returns applied (it reached its message), kept (of no message of ours, of a type that changes
  nothing, or the message''s own request is still on its way) or duplicate: answer 200 to all of
  them.
Raises HT400 for what is no webhook, HT401 for a signature or an age that does not hold, HT413 for
  over 1 MB, HT503 without a usable secret: the digits are the HTTP status to answer.';
