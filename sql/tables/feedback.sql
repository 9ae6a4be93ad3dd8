-- What people want and what Resend reports: consent, suppressed addresses, webhook events,
-- erasures.

-- What people have said they want.
CREATE TABLE activation.consent (
    users      regclass NOT NULL,
    user_id    text NOT NULL,
    topic      text NOT NULL,
    subscribed boolean NOT NULL,
    at         timestamptz NOT NULL,
    source     text NOT NULL,
    PRIMARY KEY (user_id, users, topic)
);
SELECT pg_catalog.pg_extension_config_dump('activation.consent', '');
COMMENT ON TABLE activation.consent IS
    'What people unsubscribed from, and subscribed to again.';
COMMENT ON COLUMN activation.consent.topic IS
    'The empty topic is all mail that is not transactional.';

CREATE TABLE activation.suppression (
    address  text PRIMARY KEY,
    reason   text NOT NULL,
    origin   text NOT NULL CHECK (origin IN ('resend', 'operator', 'erasure')),
    noted_by text NOT NULL,
    at       timestamptz NOT NULL,
    hash     text
);
CREATE INDEX suppression_hash ON activation.suppression (hash);
SELECT pg_catalog.pg_extension_config_dump('activation.suppression', '');
COMMENT ON TABLE activation.suppression IS
    'Addresses that get no mail at all: bounced, complained of, forgotten, or put here by hand.';
COMMENT ON COLUMN activation.suppression.address IS
    'Folded: without a display name, in lower case. Of people who were forgotten, a keyed hash.';
COMMENT ON COLUMN activation.suppression.origin IS
    'Who wants no mail to go there: Resend, an operator, or somebody who was forgotten. noted_by: '
    'the webhook, list or role that said so.';
COMMENT ON COLUMN activation.suppression.hash IS
    'The keyed hash that would replace the address.';

-- Keyed hashes of addresses that people had and that no row tells of any more: of users whose row
-- was deleted, and of suppressed ones whose messages were deleted after their retention. They serve
-- to find people who are forgotten later in `suppression`.
CREATE TABLE activation.past_address (
    user_id text NOT NULL,
    hash    text NOT NULL,
    at      timestamptz NOT NULL,
    PRIMARY KEY (user_id, hash)
);
CREATE INDEX past_address_at ON activation.past_address (at);
SELECT pg_catalog.pg_extension_config_dump('activation.past_address', '');
COMMENT ON TABLE activation.past_address IS
    'Hashes of addresses that people had, for erase(): of deleted users for retention, of '
    'suppressed ones for as long as they are.';

-- What Resend has told, once for each id that it gave an event.
CREATE TABLE activation.webhook_event (
    webhook_id  text PRIMARY KEY,
    type        text NOT NULL,
    at          timestamptz NOT NULL,
    received_at timestamptz NOT NULL,
    message_id  uuid,
    applied     boolean NOT NULL,
    payload     jsonb NOT NULL,
    problem     text
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);
CREATE INDEX webhook_event_message ON activation.webhook_event (message_id)
    WHERE message_id IS NOT NULL;
CREATE INDEX webhook_event_received ON activation.webhook_event (received_at);
-- The order of what was told about an address. It is a hash index because an address may have any
-- length.
CREATE INDEX webhook_event_removed
    ON activation.webhook_event USING hash (lower(payload #>> '{data,email}'))
    WHERE type = 'suppression.removed';
CREATE INDEX webhook_event_open ON activation.webhook_event (at) WHERE NOT applied;
SELECT pg_catalog.pg_extension_config_dump('activation.webhook_event', '');
COMMENT ON TABLE activation.webhook_event IS
    'What Resend told about mails, by receive_webhook(): of an event about a message of ours what '
    'why() and the numbers tell, of any other its type and times alone; kept for retention.';
COMMENT ON COLUMN activation.webhook_event.applied IS
    'Whether the event has reached its message, or there is none that it concerns.';
COMMENT ON COLUMN activation.webhook_event.problem IS
    'Why the event could not be applied.';

-- How far pull_webhooks() has read the events of which webhook, and when Resend's suppression list
-- was last compared.
CREATE TABLE activation.pull (
    singleton  boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    webhook_id text,
    pulled_to  timestamptz,
    pulled_at  timestamptz,
    synced_at  timestamptz
);
COMMENT ON TABLE activation.pull IS
    'How far the events of Resend''s webhook were read; '
    'not dumped, since reading some again does nothing.';

-- What unsuppress() took off our list and is still to be taken off Resend's.
CREATE TABLE activation.unsuppression (
    address text PRIMARY KEY,
    at      timestamptz NOT NULL
);
SELECT pg_catalog.pg_extension_config_dump('activation.unsuppression', '');
COMMENT ON TABLE activation.unsuppression IS
    'Addresses that sync_suppressions() is to take off Resend''s list.';

-- A sequence, because it keeps counting where the call that counted raised.
CREATE SEQUENCE activation.webhook_refused;
COMMENT ON SEQUENCE activation.webhook_refused IS
    'How many webhooks were refused; not dumped.';

-- People who are to be forgotten as soon as no mail to them is on its way.
CREATE TABLE activation.erasure (
    user_id  text PRIMARY KEY,
    asked_at timestamptz NOT NULL,
    tried_at timestamptz
);
SELECT pg_catalog.pg_extension_config_dump('activation.erasure', '');
COMMENT ON TABLE activation.erasure IS
    'Users whom erase() or the deletion of their row wants forgotten, and who have a mail on its '
    'way.';
