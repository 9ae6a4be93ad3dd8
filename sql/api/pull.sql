-- Where no webhook reaches: Resend is asked for its events, and for its list of suppressed
-- addresses.

-- What pull_webhooks() and sync_suppressions() must know first. problem: why they may not ask
-- Resend from here.
CREATE FUNCTION activation._pull_state(host text)
RETURNS TABLE (
    problem text, resend_url text, api_key text, webhook_id text, pulled_to double precision,
    sync_due boolean
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    s activation.setting := activation._setting();
    p activation.pull;
BEGIN
    SELECT * INTO p FROM activation.pull;
    RETURN QUERY SELECT
        CASE WHEN s.mode = 'capture' THEN 'mode is capture: nothing is asked of Resend'
             ELSE activation._disarmed(host) END,
        s.resend_url, s.api_key, s.webhook_id,
        -- Before the first mail there is nothing to be told about one.
        extract(epoch FROM coalesce(
            CASE WHEN s.webhook_id IS NULL OR s.webhook_id = p.webhook_id THEN p.pulled_to END,
            (SELECT min(r.created_at) FROM activation.request r),
            activation._now()))::double precision,
        s.sync_suppressions AND coalesce(p.synced_at < activation._now() - interval '1 hour', true);
END
$$;

-- Writes down up to when Resend's events were read.
CREATE FUNCTION activation._note_pull(of_webhook text, upto double precision) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.pull AS p (webhook_id, pulled_to, pulled_at)
    VALUES (of_webhook, to_timestamp(upto), activation._now())
    ON CONFLICT ON CONSTRAINT pull_pkey
    DO UPDATE SET webhook_id = excluded.webhook_id, pulled_to = excluded.pulled_to,
                  pulled_at = excluded.pulled_at
$$;

-- Which of these events are not known yet.
CREATE FUNCTION activation._unknown_events(ids text[]) RETURNS SETOF text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT i
      FROM unnest(ids) AS i
     WHERE NOT EXISTS (SELECT FROM activation.webhook_event w WHERE w.webhook_id = i)
$$;

-- Takes over a page of Resend's suppression list; returns how many were new.
CREATE FUNCTION activation._import_suppressions(addresses text[], origins text[]) RETURNS integer
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT count(*) FILTER (WHERE activation._suppress(
               u.address, coalesce(u.origin, 'suppressed by Resend'),
               'resend', 'Resend''s list', activation._now()))::integer
      FROM unnest(addresses, origins) AS u(address, origin)
     WHERE NOT EXISTS (SELECT FROM activation.unsuppression n
                        WHERE n.address = activation._fold_address(u.address))
$$;

-- Our suppressed addresses that Resend's list lacks; known: all of that list. A forgotten address
-- is not among them, as only its hash is kept.
CREATE FUNCTION activation._unexported_suppressions(known text[]) RETURNS SETOF text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT s.address
      FROM activation.suppression s
     WHERE s.origin <> 'resend' AND s.address NOT LIKE 'sha256:%'
       AND NOT EXISTS (SELECT FROM unnest(known) AS k
                        WHERE activation._fold_address(k) = s.address)
     ORDER BY s.address
$$;

-- Forgets that addresses are to be taken off Resend's list, once they were.
CREATE FUNCTION activation._note_unsuppressed(addresses text[]) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ DELETE FROM activation.unsuppression n WHERE n.address = ANY (addresses) $$;

-- Writes down that the suppression lists were compared just now.
CREATE FUNCTION activation._note_sync() RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.pull AS p (synced_at) VALUES (activation._now())
    ON CONFLICT ON CONSTRAINT pull_pkey DO UPDATE SET synced_at = excluded.synced_at
$$;
