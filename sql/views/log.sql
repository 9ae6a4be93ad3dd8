-- What people look at. Columns are a contract: more may follow, none goes.

CREATE VIEW activation.message_log AS
SELECT m.message_id, l.name AS loop, s.name AS step, e.user_id, m.recipient, m.subject,
       m.state AS status, m.attempts, m.created_at, m.sent_at, m.resend_id,
       nullif(concat_ws(': ', c.sentence, m.last_error), '') AS last_error, m.branch, m.cause
  FROM activation.message m
  JOIN activation.enrollment e USING (enrollment_id)
  JOIN activation.step s ON (s.loop_id, s.version, s.step) = (m.loop_id, m.version, m.step)
  JOIN activation."loop" l ON l.loop_id = m.loop_id
  LEFT JOIN activation.cause c ON c.code = m.cause;
COMMENT ON VIEW activation.message_log IS
'Every message: whom it is for, what became of it, and why.';

CREATE VIEW activation.journey AS
SELECT e.enrollment_id, l.name AS loop, e.version, e.user_id, e.state, s.name AS step,
       e.enrolled_at, e.activated_at, e.deadline, e.holdout, e.decided_at,
       coalesce(e.last_error, nullif(concat_ws(': ', c.sentence, e.exit_note), '')) AS reason,
       e.starts_at, e.exit_cause
  FROM activation.enrollment e
  JOIN activation.step s USING (loop_id, version, step)
  JOIN activation."loop" l USING (loop_id)
  LEFT JOIN activation.cause c ON c.code = e.exit_cause;
COMMENT ON VIEW activation.journey IS
'Every enrollment: where a user stands in a loop, since when, and when they reached its goal.';
