-- The bytes of a request are stored before it is sent.

-- What a deliverer needs to render a branch of a step. It keeps the answer, since versions never
-- change.
CREATE FUNCTION activation._step_email(
    loop_id integer, version integer, step integer, branch text
)
RETURNS TABLE (loop text, action text, recovery text, transactional boolean)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT l.name,
           (CASE _step_email.branch WHEN 'action' THEN s.action ELSE s.otherwise END)::text,
           (v.definition -> 'recovery')::text,
           v.transactional
      FROM activation.step s
      JOIN activation.loop_version v USING (loop_id, version)
      JOIN activation."loop" l USING (loop_id)
     WHERE s.loop_id = _step_email.loop_id
       AND s.version = _step_email.version
       AND s.step = _step_email.step
$$;

-- The newest version of a template that an enrollment may use, which began when newest_template_id
-- was the newest of all. No row: the built-in template of that name.
CREATE FUNCTION activation._template(template_name text, newest_template_id integer)
RETURNS TABLE (version integer, subject text, html text, body_text text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT t.version, t.subject, t.html, t.body_text
      FROM activation.template t
     WHERE t.name = template_name
       AND t.template_id <= newest_template_id
     ORDER BY t.version DESC
     LIMIT 1
$$;

-- Stores a request before it is sent, held by this worker's lease. members, recipients and subjects
-- are in the order of the body.
CREATE FUNCTION activation._store_request(
    request_id uuid, endpoint text, body text, members uuid[], recipients text[], subjects text[],
    mode text, recovery jsonb, lease_id uuid, lease interval
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    now timestamptz := activation._now();
BEGIN
    INSERT INTO activation.request (
        request_id, endpoint, body,
        members, mode, recovery,
        state, created_at, next_try_at,
        lease_id, lease_until, lease_pid, lease_start)
    VALUES (
        _store_request.request_id, _store_request.endpoint, _store_request.body,
        _store_request.members, _store_request.mode, _store_request.recovery,
        'open', now, now,
        _store_request.lease_id, now + lease, pg_backend_pid(),
        activation._backend_start(pg_backend_pid()));
    UPDATE activation.message m
       SET state = 'sending',
           request_id = _store_request.request_id,
           recipient = u.recipient,
           subject = u.subject
      FROM unnest(members, recipients, subjects) AS u(message_id, recipient, subject)
     WHERE m.message_id = u.message_id;
END
$$;
