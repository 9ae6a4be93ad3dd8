-- What a deliverer looks at before it claims.

-- What a deliverer must know before it claims: the mode, whether it may send at all and why not,
-- what to send with, and whether there is anything to claim or to give up. cursor_…: how far it has
-- walked the queue of each loop, see _claim_messages().
CREATE FUNCTION activation._deliver_state(
    host text, cursor_loops integer[], cursor_times timestamptz[], cursor_ids uuid[]
)
RETURNS TABLE (
    mode text, redirect_to text, disarmed text, paused text, paused_key text, sender text,
    reply_to text, resend_url text, api_key text, public_url text, signing_key text, slow boolean,
    due boolean, expired boolean
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    now timestamptz := activation._now();
    s activation.setting := activation._setting();
    p activation.provider;
BEGIN
    SELECT * INTO p FROM activation.provider;
    RETURN QUERY
    SELECT s.mode, s.redirect_to, activation._disarmed(host),
           CASE WHEN p.paused_until > now THEN p.pause_reason END, p.paused_key,
           s.sender, s.reply_to, s.resend_url, s.api_key, s.public_url,
           (SELECT x.key FROM activation.signing x), activation._slow_provider(),
           EXISTS (SELECT FROM activation._due_loops(now, cursor_loops, cursor_times, cursor_ids))
           OR EXISTS (
               SELECT FROM activation.request r
                WHERE r.state = 'open'
                  AND r.next_try_at <= now
                  AND activation._lease_is_free(
                          r.lease_id, r.lease_until, r.lease_pid, r.lease_start)),
           EXISTS (
               SELECT FROM activation.request r
                WHERE r.state = 'open'
                  AND r.created_at < now - interval '23 hours'
                  AND activation._lease_is_free(
                          r.lease_id, r.lease_until, r.lease_pid, r.lease_start));
END
$$;

-- Whether there is anything to claim or to give up, for a deliverer that has walked no queue: asked
-- many times a second by one with nothing to do. Without sequential scans, see _detect_due().
CREATE FUNCTION activation._deliver_due() RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    now timestamptz := activation._now();
BEGIN
    RETURN EXISTS (
               SELECT FROM activation."loop" l
                WHERE l.state = 'active'
                  AND EXISTS (SELECT FROM activation.message m
                               WHERE m.request_id IS NULL
                                 AND m.finished_at IS NULL
                                 AND m.loop_id = l.loop_id
                                 AND m.next_attempt_at <= now)
                  AND NOT EXISTS (SELECT FROM activation.strike s
                                   WHERE s.loop_id = l.loop_id
                                     AND s.kind = 'claim'
                                     AND s.retry_at > now))
        OR EXISTS (
               SELECT FROM activation.request r
                WHERE r.state = 'open'
                  AND (r.next_try_at <= now OR r.created_at < now - interval '23 hours')
                  AND activation._lease_is_free(
                          r.lease_id, r.lease_until, r.lease_pid, r.lease_start));
END
$$;

-- Loops that have mail due which may be claimed, by priority, then the longest due first, and where
-- to begin in the queue of each. Only who waits in these loops is looked at: what waits in a loop
-- that is paused costs nothing.
CREATE FUNCTION activation._due_loops(
    now timestamptz, cursor_loops integer[], cursor_times timestamptz[], cursor_ids uuid[]
)
RETURNS TABLE (loop_id integer, after_at timestamptz, after_id uuid)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT l.loop_id, k.at, k.id
      FROM activation."loop" l
      JOIN activation.loop_version v USING (loop_id, version)
      LEFT JOIN unnest(cursor_loops, cursor_times, cursor_ids) AS u(loop_id, at, id) USING (loop_id)
      CROSS JOIN LATERAL (
          SELECT coalesce(u.at, '-infinity') AS at,
                 coalesce(u.id, '00000000-0000-0000-0000-000000000000') AS id) k
      CROSS JOIN LATERAL (
          SELECT m.next_attempt_at
            FROM activation.message m
           WHERE m.request_id IS NULL
             AND m.finished_at IS NULL
             AND m.loop_id = l.loop_id
             AND m.next_attempt_at <= now
             AND (m.next_attempt_at, m.message_id) > (k.at, k.id)
           ORDER BY m.next_attempt_at, m.message_id
           LIMIT 1) first
     WHERE l.state = 'active'
       AND NOT EXISTS (SELECT FROM activation.strike s
                        WHERE s.loop_id = l.loop_id AND s.kind = 'claim' AND s.retry_at > now)
     ORDER BY v.priority DESC, first.next_attempt_at
$$;
