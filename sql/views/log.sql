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
COMMENT ON COLUMN activation.message_log.message_id IS
    'The message. Each email has it at Resend as the tag activation_message.';
COMMENT ON COLUMN activation.message_log.loop IS
    'The loop''s name.';
COMMENT ON COLUMN activation.message_log.step IS
    'The step that promised the message.';
COMMENT ON COLUMN activation.message_log.user_id IS
    'The user''s key as text.';
COMMENT ON COLUMN activation.message_log.recipient IS
    'The address that it goes to. NULL until it is rendered.';
COMMENT ON COLUMN activation.message_log.subject IS
    'Its subject. NULL until it is rendered.';
COMMENT ON COLUMN activation.message_log.status IS
    'The message''s state: queued, sending, sent, delivered, bounced, complained, failed, '
    'suppressed, cancelled, captured, held_out or unknown.';
COMMENT ON COLUMN activation.message_log.attempts IS
    'How many tries there were.';
COMMENT ON COLUMN activation.message_log.created_at IS
    'When it was promised.';
COMMENT ON COLUMN activation.message_log.sent_at IS
    'When Resend accepted it.';
COMMENT ON COLUMN activation.message_log.resend_id IS
    'The email''s id at Resend.';
COMMENT ON COLUMN activation.message_log.last_error IS
    'Why it waits, failed or was dropped.';
COMMENT ON COLUMN activation.message_log.branch IS
    'action, or otherwise: which of the step''s emails it is.';
COMMENT ON COLUMN activation.message_log.cause IS
    'The same as last_error in one word, for programs: a code of activation.cause. NULL where '
    'there is nothing to say.';

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
COMMENT ON COLUMN activation.journey.enrollment_id IS
    'The enrollment.';
COMMENT ON COLUMN activation.journey.loop IS
    'The loop''s name.';
COMMENT ON COLUMN activation.journey.version IS
    'The version of the loop that the user is in.';
COMMENT ON COLUMN activation.journey.user_id IS
    'The user''s key as text.';
COMMENT ON COLUMN activation.journey.state IS
    'waiting, completed, timed_out (the last step did) or exited.';
COMMENT ON COLUMN activation.journey.step IS
    'The step that the user is at, or came to.';
COMMENT ON COLUMN activation.journey.enrolled_at IS
    'When the enrollment began.';
COMMENT ON COLUMN activation.journey.activated_at IS
    'When the user reached the loop''s goal. NULL: not yet.';
COMMENT ON COLUMN activation.journey.deadline IS
    'When the timeout of the step ends. NULL: it has none, or the user was let out.';
COMMENT ON COLUMN activation.journey.holdout IS
    'Whether the user is held out, for comparison.';
COMMENT ON COLUMN activation.journey.decided_at IS
    'When the enrollment ended, or its last step was decided.';
COMMENT ON COLUMN activation.journey.reason IS
    'Why it exited, or what raised when it was last evaluated.';
COMMENT ON COLUMN activation.journey.starts_at IS
    'When the step begins. NULL once it has.';
COMMENT ON COLUMN activation.journey.exit_cause IS
    'Why it exited, in one word, for programs: a code of activation.cause. NULL where it has not.';
