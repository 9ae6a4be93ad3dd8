-- Requests that are open: who holds them, and which are to be repeated.

-- Whether nobody holds a request: no lease, one that has run out, or one whose holder is gone.
CREATE FUNCTION activation._lease_is_free(
    lease_id uuid, lease_until timestamptz, lease_pid integer, lease_start timestamptz
) RETURNS boolean
LANGUAGE sql STABLE
RETURN lease_id IS NULL OR lease_until < activation._now()
    OR NOT activation._is_alive(lease_pid, lease_start);

-- Gives requests up whose outcome was not known for 23 hours: Resend forgets their key after 24.
-- Their messages end as unknown.
CREATE FUNCTION activation._expire_requests() RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    WITH old AS (
        UPDATE activation.request r
           SET state = 'done', lease_id = NULL
         WHERE r.state = 'open'
           AND r.created_at < activation._now() - interval '23 hours'
           AND activation._lease_is_free(r.lease_id, r.lease_until, r.lease_pid, r.lease_start)
        RETURNING r.request_id, r.members
    )
    UPDATE activation.message m
       SET state = 'unknown',
           finished_at = activation._now(),
           cause = 'never_known'
      FROM old
     WHERE m.message_id = ANY (old.members)
       AND m.request_id = old.request_id
       AND m.state = 'sending'
$$;

-- Claims requests that are to be repeated: their outcome is not known, and nobody holds them. They
-- go out unchecked and byte for byte, since to the user they were already sent; and only in the
-- mode they were made in.
CREATE FUNCTION activation._claim_requests(new_lease_id uuid, lease interval, wanted integer)
RETURNS TABLE (request_id uuid, endpoint text, body text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    now timestamptz := activation._now();
    current_mode text := (activation._setting()).mode;
BEGIN
    RETURN QUERY
    WITH due AS (
        SELECT r.request_id
          FROM activation.request r
         WHERE r.state = 'open'
           AND r.mode = current_mode
           AND r.next_try_at <= now
           AND r.created_at >= now - interval '23 hours'
           AND activation._lease_is_free(r.lease_id, r.lease_until, r.lease_pid, r.lease_start)
         ORDER BY r.created_at
         LIMIT wanted
           FOR UPDATE SKIP LOCKED
    )
    UPDATE activation.request r
       SET lease_id = new_lease_id,
           lease_until = now + lease,
           lease_pid = pg_backend_pid(),
           lease_start = activation._backend_start(pg_backend_pid()),
           open_tries = r.open_tries + 1
      FROM due
     WHERE r.request_id = due.request_id
    RETURNING r.request_id, r.endpoint, r.body;
END
$$;
