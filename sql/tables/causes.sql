-- Why something ended or waits, as codes. What is stored is a code, and a note where there is more
-- to say; sentences are made of both where people look.

CREATE TABLE activation.cause (
    code     text PRIMARY KEY,
    sentence text
);
COMMENT ON TABLE activation.cause IS
    'What each code says that enrollment.exit_cause and message.cause may have. Views show the '
    'sentence, a colon, and the note. Filled when the extension is made; not dumped.';
INSERT INTO activation.cause (code, sentence) VALUES
    -- Why somebody left a loop, and why what was queued for them was cancelled.
    ('user_deleted', 'the user was deleted'),
    ('unsubscribed', 'the user has unsubscribed'),
    ('cancelled', 'cancelled'),
    ('loop_archived', 'the loop was archived'),
    ('erased', 'the user is to be erased'),
    ('step_timed_out', 'timed out at step'),
    -- Why a message was not sent.
    ('held_out', 'held out'),
    ('goal_reached', 'the user had reached the goal'),
    ('user_acted', 'the user acted before it was sent'),
    ('due_in_pause', 'it came due while the loop was paused'),
    ('cancelled_by_pause', 'cancelled when the loop was paused'),
    ('cancelled_by_mode', 'cancelled by set_mode'),
    ('outside_window', 'outside the send window'),
    ('over_cap', 'over the cap of mails a user'),
    ('suppressed', 'the address gets no mail'),
    ('row_unreadable', 'the user''s row cannot be read'),
    ('claim_raised', 'it could not be claimed'),
    -- The note says it all.
    ('not_rendered', NULL),
    -- Why a message waits.
    ('waits_for_window', 'waits for the send window'),
    ('waits_for_cap', 'waits for the cap of mails a user'),
    ('user_raised', 'the loop''s own code raised for this user'),
    ('loop_raised', 'the loop''s own code raised'),
    ('loop_too_slow', 'the loop''s own code was cancelled: it ran too long'),
    -- What Resend said of it.
    ('rejected', 'Resend rejected it'),
    ('not_accepted', 'it was not accepted yet'),
    ('unclear', 'its outcome is not known yet'),
    ('never_known', 'its outcome was not known for 23 hours'),
    ('given_up', 'given up by set_mode while its outcome was not known'),
    ('bounced', 'bounced'),
    ('complained', 'complained'),
    ('failed_at_resend', 'failed'),
    ('suppressed_by_resend', 'suppressed by Resend');

-- What a code and its note say together. NULL where there is neither.
CREATE FUNCTION activation._cause_text(cause text, note text) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT nullif(concat_ws(': ', (SELECT c.sentence FROM activation.cause c WHERE c.code = cause),
                            note), '')
$$;
