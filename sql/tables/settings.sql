-- What people declare: settings, users tables, topics, templates. Only the public verbs write
-- these, except for the signing key, which is made when it is first needed, and users_table, whose
-- columns follow when they are renamed (_sync_source).

CREATE TABLE activation.setting (
    singleton         boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    mode              text NOT NULL DEFAULT 'capture'
                      CHECK (mode IN ('capture', 'redirect', 'live')),
    redirect_to       text,
    hosts             text[],
    sender            text,
    reply_to          text,
    resend_url        text,
    api_key           text,
    webhook_secret    text,
    public_url        text,
    timezone          text,
    rate              numeric,
    max_per_user      integer,
    per               interval,
    max_per_hour      integer,
    condition_timeout interval,
    retention         interval,
    erase_on_delete   boolean,
    webhook_id        text,
    sync_suppressions boolean
);
SELECT pg_catalog.pg_extension_config_dump('activation.setting', '');
COMMENT ON TABLE activation.setting IS
    'What configure() and set_mode() were told; at most one row.';

-- The settings with their defaults. Defaults live here and not in a row of the table, so that a
-- restored dump meets no row of ours.
CREATE FUNCTION activation._setting() RETURNS activation.setting
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    setting activation.setting;
BEGIN
    SELECT * INTO setting FROM activation.setting;
    setting.mode := coalesce(setting.mode, 'capture');
    setting.resend_url := coalesce(setting.resend_url, 'https://api.resend.com');
    setting.timezone := coalesce(setting.timezone, 'UTC');
    setting.erase_on_delete := coalesce(setting.erase_on_delete, false);
    setting.sync_suppressions := coalesce(setting.sync_suppressions, false);
    setting.condition_timeout := coalesce(setting.condition_timeout, '10 seconds');
    setting.per := coalesce(setting.per, '1 day');
    setting.retention := coalesce(setting.retention, '90 days');
    RETURN setting;
END
$$;

-- What is kept for another time than the setting `retention`.
CREATE TABLE activation.retention (
    kind text PRIMARY KEY
         CHECK (kind IN ('messages', 'bodies', 'attempts', 'webhooks', 'events', 'failures')),
    keep interval NOT NULL
);
SELECT pg_catalog.pg_extension_config_dump('activation.retention', '');
COMMENT ON TABLE activation.retention IS
    'How long kinds of history are kept, where that differs from the setting retention; '
    'written by set_retention().';
COMMENT ON COLUMN activation.retention.kind IS
    'bodies: the bytes of requests, which may be deleted before their messages are.';

-- The time before which history of a kind is old.
CREATE FUNCTION activation._retention_cutoff(of_kind text, now timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT now - coalesce((SELECT r.keep FROM activation.retention r WHERE r.kind = of_kind),
                          (activation._setting()).retention)
$$;

CREATE TABLE activation.secret (
    name  text PRIMARY KEY,
    value text NOT NULL
);
COMMENT ON TABLE activation.secret IS
    'Secrets stored by set_secret(); no role but the engine''s may read it; '
    'not dumped, so that a copy of the database holds no key.';

CREATE TABLE activation.identity (
    singleton         boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    system_identifier bigint NOT NULL,
    database          text NOT NULL,
    host              text NOT NULL,
    data_directory    text NOT NULL,
    port              integer NOT NULL,
    armed_at          timestamptz NOT NULL
);
COMMENT ON TABLE activation.identity IS
    'The server that set_mode() was called on; mail leaves only there; '
    'not dumped, so that a restored copy is disarmed.';

CREATE TABLE activation.users_table (
    users           regclass PRIMARY KEY,
    key_column      name NOT NULL,
    email_column    name NOT NULL,
    timezone_column name
);
SELECT pg_catalog.pg_extension_config_dump('activation.users_table', '');
COMMENT ON TABLE activation.users_table IS
    'Tables whose rows are users, registered by set_users() or by the first loop on them.';

-- Signs the links in mails, and hashes the addresses of forgotten people. It is made once, and
-- dumped, because links in mails that were sent long ago have to go on working after a restore.
CREATE TABLE activation.signing (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    key       text NOT NULL
);
SELECT pg_catalog.pg_extension_config_dump('activation.signing', '');
COMMENT ON TABLE activation.signing IS
    'The key of unsubscribe links and of hashed addresses. '
    'Whoever has it can unsubscribe people, nothing else.';

-- The signing key, made when it is first needed: 244 random bits.
CREATE FUNCTION activation._signing_key() RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO activation.signing (key)
    SELECT encode(sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8')),
                  'hex')
     WHERE NOT EXISTS (SELECT FROM activation.signing)
    ON CONFLICT DO NOTHING;
    RETURN (SELECT s.key FROM activation.signing s);
END
$$;

-- The keyed hash that is kept instead of the address of somebody who was forgotten.
CREATE FUNCTION activation._hash_address(folded text) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT 'sha256:' || encode(sha256(convert_to(s.key || ' ' || folded, 'UTF8')), 'hex')
      FROM activation.signing s
$$;

-- The numbers of roles mean something on one server only. In a row of another installation (a
-- restored dump) the names count.
CREATE TABLE activation.installation (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    id        uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO activation.installation DEFAULT VALUES;
COMMENT ON TABLE activation.installation IS
    'Which CREATE EXTENSION made these tables; not dumped, so that a restored copy has another.';

CREATE TABLE activation.topic (
    topic       text PRIMARY KEY,
    name        text NOT NULL,
    description text
);
SELECT pg_catalog.pg_extension_config_dump('activation.topic', '');
COMMENT ON TABLE activation.topic IS
    'Names and descriptions of topics, for people to read on the page where they choose.';

CREATE TABLE activation.template (
    template_id integer GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    name        text NOT NULL,
    version     integer NOT NULL,
    subject     text NOT NULL,
    html        text,
    body_text   text,
    created_at  timestamptz NOT NULL,
    UNIQUE (name, version)
);
SELECT pg_catalog.pg_extension_config_dump('activation.template', '');
SELECT pg_catalog.pg_extension_config_dump('activation.template_template_id_seq', '');
COMMENT ON TABLE activation.template IS
    'Versions of templates made by set_template(). The built-in ones are files of the Python '
    'package; a template of the same name takes precedence over them.';
