-- What delivery owns: a message is one email that was promised, a request one call of Resend's API,
-- an attempt one try of one message. Beside them what the provider allows.

-- One call of Resend's API: the exact bytes, its idempotency key (the id), and who holds it now.
-- Repeated byte for byte until its outcome is known or it is 23 hours old.
CREATE TABLE activation.request (
    request_id      uuid PRIMARY KEY,
    endpoint        text NOT NULL CHECK (endpoint IN ('/emails', '/emails/batch')),
    body            text NOT NULL,
    members         uuid[] NOT NULL,
    mode            text NOT NULL,
    recovery        jsonb NOT NULL,
    state           text NOT NULL CHECK (state IN ('open', 'done')),
    created_at      timestamptz NOT NULL,
    next_try_at     timestamptz NOT NULL,
    recorded_tries  integer NOT NULL DEFAULT 0,
    error_tries     integer NOT NULL DEFAULT 0,
    open_tries      integer NOT NULL DEFAULT 1,
    lease_id        uuid,
    lease_until     timestamptz,
    lease_pid       integer,
    lease_start     timestamptz
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);
-- A hundred mails from one template compress to little, and lz4 costs a tenth of pglz; a server
-- built without it keeps pglz.
DO $$
BEGIN
    ALTER TABLE activation.request ALTER COLUMN body SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
    NULL;
END
$$;
CREATE INDEX request_open ON activation.request (created_at) WHERE state = 'open';
CREATE INDEX request_done ON activation.request (created_at) WHERE state = 'done';
CREATE INDEX request_body ON activation.request (created_at) WHERE state = 'done' AND body <> '';
SELECT pg_catalog.pg_extension_config_dump('activation.request', $$WHERE state = 'open'$$);
COMMENT ON TABLE activation.request IS
    'Calls of Resend''s API as they were sent.';
COMMENT ON COLUMN activation.request.recorded_tries IS
    'How many tries were written down, also those without an answer.';
COMMENT ON COLUMN activation.request.error_tries IS
    'How many of them met a server error.';
COMMENT ON COLUMN activation.request.open_tries IS
    'How many tries are unclear: on their way, or without an answer.';

CREATE TABLE activation.message (
    message_id      uuid PRIMARY KEY,
    enrollment_id   bigint NOT NULL,
    loop_id         integer NOT NULL,
    version         integer NOT NULL,
    user_id         text NOT NULL,
    step            integer NOT NULL,
    branch          text NOT NULL CHECK (branch IN ('action', 'otherwise')),
    state           text NOT NULL
                    CHECK (state IN ('queued', 'sending', 'sent', 'delivered', 'bounced',
                                     'complained', 'failed', 'cancelled', 'suppressed', 'held_out',
                                     'captured', 'unknown')),
    created_at      timestamptz NOT NULL,
    next_attempt_at timestamptz NOT NULL,
    batch_limit     smallint CHECK (batch_limit > 0),
    attempts        integer NOT NULL DEFAULT 0,
    request_id      uuid,
    recipient       text,
    subject         text,
    sent_at         timestamptz,
    resend_id       text,
    cause           text,
    last_error      text,
    finished_at     timestamptz,
    UNIQUE (enrollment_id, step, branch),
    CHECK ((state = 'queued') = (request_id IS NULL AND finished_at IS NULL))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);
-- A message is queued while it has neither a request nor an end. No index names `state`, so that
-- writing down an answer touches none (HOT). A user's messages are found through their enrollments.
-- The queue is by loop first, so that what waits in a paused loop costs the other loops nothing.
CREATE INDEX message_queue ON activation.message (loop_id, next_attempt_at, message_id)
    WHERE request_id IS NULL AND finished_at IS NULL;
-- For housekeeping. Sent mail is not in it: that is found through its request.
CREATE INDEX message_ended ON activation.message (finished_at) WHERE finished_at IS NOT NULL;
-- What was asked of Resend and ended badly, or of which nobody knows how it ended.
CREATE INDEX message_trouble ON activation.message (finished_at)
    WHERE finished_at IS NOT NULL AND request_id IS NOT NULL;
SELECT pg_catalog.pg_extension_config_dump('activation.message', '');
COMMENT ON TABLE activation.message IS
    'One email that an enrollment promised; it cannot exist twice.';
COMMENT ON COLUMN activation.message.cause IS
    'Why it ended or waits, see activation.cause.';
COMMENT ON COLUMN activation.message.last_error IS
    'What there is to add to the cause: an error, or what it concerns, such as a time zone.';
COMMENT ON COLUMN activation.message.batch_limit IS
    'How many emails may share a request with this one, after a shared request was refused; each '
    'time half as many.';

CREATE TABLE activation.attempt (
    message_id  uuid NOT NULL,
    attempt     integer NOT NULL,
    request_id  uuid NOT NULL,
    started_at  timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    outcome     text NOT NULL,
    http_status integer,
    error_name  text,
    error       text,
    retry_at    timestamptz
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);
CREATE INDEX attempt_message ON activation.attempt (message_id);
-- For set_retention(). It costs an insert next to nothing.
CREATE INDEX attempt_started ON activation.attempt USING brin (started_at);
SELECT pg_catalog.pg_extension_config_dump('activation.attempt', '');
COMMENT ON TABLE activation.attempt IS
    'Every try of every message: when, what came of it, and when the next one is due.';

-- What the brake counts, in steps of five minutes: the claim's emails that were about to leave.
CREATE TABLE activation.hourly_sends (
    loop_id integer NOT NULL,
    at      timestamptz NOT NULL,
    emails  integer NOT NULL,
    PRIMARY KEY (loop_id, at)
) WITH (fillfactor = 50);
SELECT pg_catalog.pg_extension_config_dump('activation.hourly_sends', '');
COMMENT ON TABLE activation.hourly_sends IS
    'How many emails each loop sent in each five minutes; '
    'no more than max_per_hour leave in an hour.';

CREATE TABLE activation.provider (
    singleton      boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    paused_until   timestamptz,
    pause_reason   text,
    paused_key     text,
    learnt_rate    numeric,
    min_rtt        double precision,
    window_min_rtt double precision,
    rtt_since      timestamptz,
    cautious_until timestamptz,
    answers        integer NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
COMMENT ON TABLE activation.provider IS
    'What is known of Resend: a pause and its reason, the rate it names, its round trips; '
    'not dumped.';
COMMENT ON COLUMN activation.provider.paused_key IS
    'Tells which API key the pause came with, and is no key.';
COMMENT ON COLUMN activation.provider.learnt_rate IS
    'The rate that Resend names, in requests a second.';
COMMENT ON COLUMN activation.provider.min_rtt IS
    'The shortest round trip, in seconds.';
COMMENT ON COLUMN activation.provider.window_min_rtt IS
    'The shortest round trip within the ten seconds since rtt_since.';
COMMENT ON COLUMN activation.provider.cautious_until IS
    'Until when permits are freed later than they could be, since a request came too early.';
COMMENT ON COLUMN activation.provider.answers IS
    'How many answers there were; counted up to 10.';

CREATE TABLE activation.rate_permit (
    n            integer PRIMARY KEY,
    free_at      timestamptz NOT NULL,
    holder_pid   integer,
    holder_start timestamptz
) WITH (fillfactor = 50);
COMMENT ON TABLE activation.rate_permit IS
    'One row for each request that may be made in a second; not dumped.';
