-- why(): everything that happened to one user, and what does not happen and why.

-- The rows of why(), oldest first.
-- Long because each kind of row is a branch of one UNION over the same enrollments and mails.
CREATE FUNCTION activation._why(wanted_user text, only_loop text)
RETURNS TABLE (at timestamptz, loop text, event text, detail text, code text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    wanted_loop integer := CASE WHEN only_loop IS NOT NULL
                                THEN (activation._loop(only_loop)).loop_id END;
BEGIN
    RETURN QUERY
    WITH enrolled AS (
        SELECT e.*, l.name AS loop_name, l.state AS loop_state, s.name AS step_name, s.position,
               s.timeout, s.evaluate_function, v.definition, v.goal_step,
               v.event AS trigger_event, first.step AS first_step,
               first.evaluate_function AS first_function, first.delay AS first_delay,
               EXISTS (SELECT FROM activation.step x
                        WHERE x.loop_id = e.loop_id AND x.version = e.version
                          AND x.position > 1) AS several
          FROM activation.enrollment e
          JOIN activation.step s USING (loop_id, version, step)
          JOIN activation.loop_version v USING (loop_id, version)
          JOIN activation."loop" l USING (loop_id)
          JOIN activation.step first
            ON first.loop_id = e.loop_id AND first.version = e.version AND first.position = 1
         WHERE e.user_id = wanted_user AND (wanted_loop IS NULL OR e.loop_id = wanted_loop)
    ), steps AS (
        -- Steps as they were decided; the last one is not in the history.
        SELECT e.enrollment_id, e.loop_name, d.branch, d.at, s.name, s.timeout,
               s.evaluate_function, s.position
          FROM enrolled e
          CROSS JOIN LATERAL (SELECT (h ->> 0)::integer AS step, h ->> 1 AS branch,
                                     (h ->> 2)::timestamptz AS at
                                FROM jsonb_array_elements(coalesce(e.history, '[]')) AS h) d
          JOIN activation.step s
            ON s.loop_id = e.loop_id AND s.version = e.version AND s.step = d.step
         WHERE e.several
    ), mail AS (
        SELECT m.*, e.loop_name, b.email ->> 'template' AS template,
               CASE WHEN e.several THEN format('step %s, ', s.name) ELSE '' END AS of_step
          FROM enrolled e
          JOIN activation.message m ON m.enrollment_id = e.enrollment_id
          JOIN activation.step s
            ON s.loop_id = m.loop_id AND s.version = m.version AND s.step = m.step
          CROSS JOIN LATERAL (SELECT CASE m.branch WHEN 'action' THEN s.action
                                                   ELSE s.otherwise END AS email) b
    ), told (at, position, loop, event, detail, code) AS (
        SELECT e.enrolled_at, 1, e.loop_name, 'enrolled',
               format('in version %s, %s', e.version, coalesce(
                   e.enrolled_by,
                   CASE e.trigger_event
                       WHEN 'insert' THEN
                           'by an insert into ' || (e.definition #>> '{trigger,table}')
                       WHEN 'update' THEN
                           'by an update of ' || (e.definition #>> '{trigger,table}')
                       WHEN 'delete' THEN
                           'by a deletion from ' || (e.definition #>> '{trigger,table}')
                       WHEN 'event' THEN
                           format('by event "%s"', e.definition #>> '{trigger,event}')
                       ELSE 'by its schedule' END))
               || CASE WHEN e.pass > 1 THEN format(', for the %s. time', e.pass) ELSE '' END,
               'enrolled'
          FROM enrolled e
        UNION ALL
        SELECT e.enrolled_at, 2, e.loop_name, 'held out',
               'for comparison: this user gets no mail from the loop',
               'held_out'
          FROM enrolled e
         WHERE e.holdout
        UNION ALL
        SELECT e.created_at, 2, e.loop_name, 'evaluated',
               CASE WHEN e.activated_at = e.enrolled_at THEN 'condition true at enrollment'
                    ELSE 'condition false at enrollment' END,
               CASE WHEN e.activated_at = e.enrolled_at THEN 'true_at_enrollment'
                    ELSE 'false_at_enrollment' END
          FROM enrolled e
         WHERE e.first_function IS NOT NULL AND e.goal_step = e.first_step
           AND e.first_delay = interval '0' AND e.loop_state = 'active'
           AND e.deferred_new IS DISTINCT FROM true
        UNION ALL
        SELECT e.decided_at, 3, e.loop_name, 'evaluated',
               format('condition still false at the deadline, %s after enrollment', e.timeout),
               'timed_out'
          FROM enrolled e
         WHERE e.state = 'timed_out' AND NOT e.several
        UNION ALL
        SELECT d.at, 3, d.loop_name, 'step',
               format('%s: %s', d.name,
                      CASE WHEN d.branch = 'otherwise'
                           THEN format('condition still false at its deadline, %s after it began',
                                       d.timeout)
                           WHEN d.evaluate_function IS NULL THEN 'its time came'
                           ELSE 'condition true' END),
               CASE WHEN d.branch = 'otherwise' THEN 'step_timed_out'
                    WHEN d.evaluate_function IS NULL THEN 'step_due'
                    ELSE 'step_true' END
          FROM steps d
        UNION ALL
        SELECT e.activated_at, 3, e.loop_name, 'activated',
               CASE WHEN e.goal_step = 0 THEN 'goal reached' ELSE 'condition true' END
               || CASE WHEN e.state = 'timed_out' THEN ', after the deadline' ELSE '' END,
               'activated'
          FROM enrolled e
         WHERE e.activated_at IS NOT NULL
        UNION ALL
        SELECT e.decided_at, 9, e.loop_name, e.state,
               activation._cause_text(e.exit_cause, e.exit_note), coalesce(e.exit_cause, e.state)
          FROM enrolled e
         WHERE e.state = 'exited' OR e.several AND e.state <> 'waiting'
        UNION ALL
        SELECT m.created_at, 4, m.loop_name, 'message promised',
               format('%s%s: template %s', m.of_step,
                      CASE m.branch WHEN 'action' THEN 'action' ELSE 'otherwise' END, m.template),
               'message_promised'
          FROM mail m
        UNION ALL
        SELECT r.created_at, 5, m.loop_name, 'message rendered',
               format('"%s" to %s', m.subject, m.recipient),
               'message_rendered'
          FROM mail m JOIN activation.request r ON r.request_id = m.request_id
        UNION ALL
        SELECT a.finished_at, 6, m.loop_name, 'attempt',
               concat_ws(', ', format('number %s: %s', a.attempt, a.outcome),
                         'HTTP ' || a.http_status, a.error_name, a.error,
                         'next try at ' || a.retry_at),
               a.outcome
          FROM mail m JOIN activation.attempt a ON a.message_id = m.message_id
        UNION ALL
        SELECT coalesce(m.finished_at, m.sent_at), 7, m.loop_name, m.state,
               concat_ws(', ',
                         CASE WHEN m.subject IS NOT NULL
                              THEN format('"%s" to %s', m.subject, m.recipient)
                              ELSE format('%stemplate %s', m.of_step, m.template) END,
                         activation._cause_text(m.cause, m.last_error),
                         'id at Resend ' || m.resend_id),
               coalesce(m.cause, m.state)
          FROM mail m
         WHERE coalesce(m.finished_at, m.sent_at) IS NOT NULL
        UNION ALL
        SELECT activation._now(), 10, m.loop_name, m.state,
               concat_ws(', ',
                         coalesce(activation._cause_text(m.cause, m.last_error),
                                  'waits to be sent'),
                         CASE WHEN m.state = 'queued' AND m.next_attempt_at > activation._now()
                              THEN format('not before %s', m.next_attempt_at) END),
               coalesce(m.cause, m.state)
          FROM mail m
         WHERE m.state IN ('queued', 'sending')
        UNION ALL
        SELECT activation._now(), 10, e.loop_name, 'waiting',
               CASE WHEN e.starts_at > activation._now()
                    THEN format('step %s begins at %s', e.step_name, e.starts_at)
                    ELSE concat_ws('; ',
                             CASE WHEN e.several THEN 'at step ' || e.step_name END,
                             CASE WHEN e.loop_state <> 'active'
                                  THEN format('the loop is %s', e.loop_state)
                                  WHEN e.evaluate_function IS NOT NULL
                                  THEN 'condition is now '
                                       || activation._condition_now(e.enrollment_id) END,
                             coalesce('deadline ' || e.deadline, 'no deadline'), e.last_error) END,
               CASE WHEN e.starts_at > activation._now() THEN 'waits_for_step'
                    WHEN e.loop_state <> 'active' THEN 'loop_' || e.loop_state
                    WHEN e.last_error IS NOT NULL THEN 'not_evaluated'
                    WHEN e.evaluate_function IS NOT NULL THEN 'waits_for_condition'
                    ELSE 'waits' END
          FROM enrolled e
         WHERE e.state = 'waiting'
        UNION ALL
        SELECT w.at, 8, m.loop_name, 'told by Resend',
               concat_ws(', ', w.type, w.payload #>> '{data,bounce,type}',
                         w.payload #>> '{data,bounce,message}',
                         w.payload #>> '{data,failed,reason}',
                         w.payload #>> '{data,suppressed,message}',
                         w.payload #>> '{data,click,link}', w.problem),
               w.type
          FROM mail m JOIN activation.webhook_event w ON w.message_id = m.message_id
        UNION ALL
        SELECT r.at, 5, l.name, 'noticed', r.remark, r.code
          FROM activation.remark r JOIN activation."loop" l USING (loop_id)
         WHERE r.user_id = wanted_user AND (wanted_loop IS NULL OR r.loop_id = wanted_loop)
        UNION ALL
        SELECT c.at, 1, l.name,
               CASE c.code WHEN 'not_captured' THEN 'not enrolled' ELSE 'deletion unclear' END,
               c.error, c.code
          FROM activation.capture_failure c JOIN activation."loop" l USING (loop_id)
         WHERE c.user_id = wanted_user AND (wanted_loop IS NULL OR c.loop_id = wanted_loop)
        UNION ALL
        SELECT s.at, 1, l.name, 'signal', 'written, not yet taken by a detector',
               'signal_waits'
          FROM activation.signal s
          JOIN activation.loop_version v
            ON v.loop_id = s.loop_id AND s.source_id IN (0, v.source_id)
               OR s.loop_id IS NULL AND v.source_id = s.source_id AND v.event = 'insert'
                  AND v.filter_function IS NULL AND v.generation <= s.generation
          JOIN activation."loop" l
            ON l.loop_id = v.loop_id AND l.version = v.version AND l.state <> 'archived'
         WHERE s.user_id = wanted_user AND (wanted_loop IS NULL OR l.loop_id = wanted_loop)
           AND s.error IS NULL AND s.user_deleted IS NULL
    )
    SELECT t.at, t.loop, t.event, t.detail, t.code FROM (
        SELECT t.* FROM told t
        UNION ALL
        SELECT c.at, 8, NULL,
               CASE WHEN c.subscribed THEN 'subscribed again' ELSE 'unsubscribed' END,
               format('%s, by %s',
                      CASE c.topic WHEN '' THEN 'everything that is not transactional'
                                   ELSE 'topic ' || c.topic END, c.source),
               CASE WHEN c.subscribed THEN 'subscribed' ELSE 'unsubscribed' END
          FROM activation.consent c
         WHERE c.user_id = wanted_user AND wanted_loop IS NULL
        UNION ALL
        SELECT activation._now(), 11, l.name, 'not enrolled',
               n.detail, n.code
          -- Only of loops that say nothing else is it asked, which may run their code.
          FROM (SELECT u.loop_id, u.name
                  FROM activation."loop" u
                 WHERE (wanted_loop IS NULL AND u.state <> 'archived' OR u.loop_id = wanted_loop)
                   AND NOT EXISTS (SELECT FROM told x WHERE x.loop = u.name)
                OFFSET 0) l
          CROSS JOIN LATERAL activation._why_not(wanted_user, l.loop_id) n) t
     ORDER BY t.at, t.position;
END
$$;

-- In SQL, since PL/pgSQL refuses an argument and a column of one name (loop).
CREATE FUNCTION activation.why(user_id text, loop text DEFAULT NULL)
RETURNS TABLE (at timestamptz, loop text, event text, detail text, code text)
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$ SELECT w.at, w.loop, w.event, w.detail, w.code FROM activation._why($1, $2) w $$;
COMMENT ON FUNCTION activation.why(text, text) IS
'One user''s timeline, oldest first: enrolled, evaluated, messages promised, every attempt, and why
a mail was or was not sent.
user_id: the user''s key as text.
loop: only this loop (default: all of them).
Returns a row for each event.
at: when it happened. What holds now comes last.
loop: the loop''s name. NULL for what concerns all of them.
event: what happened, in one or two words, such as enrolled, attempt or sent.
detail: more about it, in words.
code: the same in one word, for programs.';
