-- Transitions that several parts share: the states of loops, how messages end and wait, and how
-- people leave a loop.

-- Puts a loop into a state, if it is in one of those that are given. reason: what status adds.
CREATE FUNCTION activation._set_loop_state(
    of_loop integer, state text, reason text DEFAULT NULL,
    from_states text[] DEFAULT '{active,paused,failing,stopped,archived}'
) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE activation."loop" l
       SET state = _set_loop_state.state,
           reason = _set_loop_state.reason
     WHERE l.loop_id = of_loop
       AND l.state = ANY (from_states)
$$;

-- As _set_loop_state(), for the engine, which waits for no author: where somebody's open
-- transaction holds the loop, its state stays as it is. What called for another one comes again.
CREATE FUNCTION activation._try_loop_state(
    of_loop integer, state text, reason text, from_states text[]
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM FROM activation."loop" l
      WHERE l.loop_id = of_loop
        AND l.state = ANY (from_states)
        FOR NO KEY UPDATE SKIP LOCKED;
    IF FOUND THEN
        PERFORM activation._set_loop_state(of_loop, state, reason, from_states);
    END IF;
END
$$;

-- Ends queued messages without sending them. A message that is queued no more is left as it is.
CREATE FUNCTION activation._end_queued(
    messages uuid[], state text, cause text, note text DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    -- No index names the state, so that this statement cannot walk the whole queue.
    UPDATE activation.message m
       SET state = _end_queued.state,
           finished_at = activation._now(),
           cause = _end_queued.cause,
           last_error = note
     WHERE m.message_id = ANY (messages)
       AND m.state = 'queued';
END
$$;

-- Has queued messages wait.
CREATE FUNCTION activation._postpone_queued(
    messages uuid[], until timestamptz, cause text, note text DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    UPDATE activation.message m
       SET next_attempt_at = until,
           cause = _postpone_queued.cause,
           last_error = note
     WHERE m.message_id = ANY (messages)
       AND m.state = 'queued';
END
$$;

-- Cancels all that a loop has queued, or what of it was made before a time.
CREATE FUNCTION activation._cancel_queue_of_loop(
    of_loop integer, cause text, made_before timestamptz DEFAULT 'infinity'
) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE activation.message m
       SET state = 'cancelled',
           finished_at = activation._now(),
           cause = _cancel_queue_of_loop.cause,
           last_error = NULL
     WHERE m.loop_id = of_loop
       AND m.request_id IS NULL
       AND m.finished_at IS NULL
       AND m.created_at < made_before
$$;

-- Lets people out of a loop: they are exited, and what is queued for them is cancelled. cause: see
-- activation.cause; note: what there is to add. What somebody's open transaction holds stays: an
-- author may hold the people of a loop for as long as they like. Whoever gets no mail any more for
-- another reason is let out at their next claim, which asks for that reason again.
CREATE FUNCTION activation._exit_enrollments(
    ids bigint[], cause text, note text DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    places tid[] := ARRAY(
        SELECT x.ctid
          FROM unnest(ids) AS u(id)
          CROSS JOIN LATERAL (
              SELECT e.ctid, e.state
                FROM activation.enrollment e
               WHERE e.enrollment_id = u.id
                 FOR NO KEY UPDATE SKIP LOCKED OFFSET 0) x
         WHERE x.state = 'waiting');
    mails uuid[] := ARRAY(
        SELECT m.message_id
          FROM unnest(ids) AS u(id)
          CROSS JOIN LATERAL (
              SELECT x.message_id, x.state
                FROM activation.message x
               WHERE x.enrollment_id = u.id
                 FOR NO KEY UPDATE SKIP LOCKED OFFSET 0) m
         WHERE m.state = 'queued');
BEGIN
    UPDATE activation.enrollment e
       SET state = 'exited',
           decided_at = activation._now(),
           exit_cause = _exit_enrollments.cause,
           exit_note = _exit_enrollments.note,
           deadline = NULL
     WHERE e.ctid = ANY (places);
    PERFORM activation._end_queued(mails, 'cancelled', cause, note);
END
$$;
