-- What people declare. Written by the public verbs alone.

CREATE TABLE activation.setting (
    singleton         boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    mode              text NOT NULL DEFAULT 'capture' CHECK (mode IN ('capture', 'redirect', 'live')),
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
COMMENT ON TABLE activation.setting IS 'What configure() and set_mode() were told; at most one row.';

-- Defaults live here and not in a row of the table, so that a restored dump meets no row of ours.
CREATE FUNCTION activation._setting() RETURNS activation.setting
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    s activation.setting;
BEGIN
    SELECT * INTO s FROM activation.setting;
    s.mode := coalesce(s.mode, 'capture');
    s.resend_url := coalesce(s.resend_url, 'https://api.resend.com');
    s.timezone := coalesce(s.timezone, 'UTC');
    s.erase_on_delete := coalesce(s.erase_on_delete, false);
    s.sync_suppressions := coalesce(s.sync_suppressions, false);
    s.condition_timeout := coalesce(s.condition_timeout, '10 seconds');
    s.per := coalesce(s.per, '1 day');
    s.retention := coalesce(s.retention, '90 days');
    RETURN s;
END
$$;

-- What is kept for another time than `retention`. Bodies are the words of requests, which go before their messages do.
CREATE TABLE activation.retention (
    kind text PRIMARY KEY CHECK (kind IN ('messages', 'bodies', 'attempts', 'webhooks', 'events', 'failures')),
    keep interval NOT NULL
);
SELECT pg_catalog.pg_extension_config_dump('activation.retention', '');
COMMENT ON TABLE activation.retention IS 'How long kinds of history are kept, where that differs from the setting retention; written by set_retention().';

CREATE TABLE activation.secret (
    name  text PRIMARY KEY,
    value text NOT NULL
);
COMMENT ON TABLE activation.secret IS 'Secrets stored by set_secret(); no role but the engine''s may read it; not dumped, so that a copy of the database holds no key.';

CREATE TABLE activation.identity (
    singleton         boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    system_identifier bigint NOT NULL,
    database          text NOT NULL,
    host              text NOT NULL,
    data_directory    text NOT NULL,
    port              integer NOT NULL,
    armed_at          timestamptz NOT NULL
);
COMMENT ON TABLE activation.identity IS 'The server that set_mode() was called on; mail leaves only there; not dumped, so that a restored copy is disarmed.';

CREATE TABLE activation.users_table (
    users           regclass PRIMARY KEY,
    key_column      name NOT NULL,
    email_column    name NOT NULL,
    timezone_column name
);
SELECT pg_catalog.pg_extension_config_dump('activation.users_table', '');
COMMENT ON TABLE activation.users_table IS 'Tables whose rows are users, registered by set_users() or by the first loop on them.';

-- What links in mails are signed with, and addresses of forgotten people hashed with: made once, and dumped, because links in
-- mails that were sent long ago have to go on working after a restore.
CREATE TABLE activation.signing (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    key       text NOT NULL
);
SELECT pg_catalog.pg_extension_config_dump('activation.signing', '');
COMMENT ON TABLE activation.signing IS 'The key of unsubscribe links and of hashed addresses. Whoever has it can unsubscribe people, nothing else.';

-- The signing key, made when it is first needed: 244 random bits.
CREATE FUNCTION activation._signing_key() RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO activation.signing (key) SELECT encode(sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8')), 'hex')
     WHERE NOT EXISTS (SELECT FROM activation.signing) ON CONFLICT DO NOTHING;
    RETURN (SELECT s.key FROM activation.signing s);
END
$$;

-- An address as it is compared: without a display name, in lower case.
CREATE FUNCTION activation._fold_address(address text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT lower(btrim(coalesce((regexp_match(address, '<([^<>]*)>\s*$'))[1], address))) $$;

-- What stands for the address of somebody who was forgotten.
CREATE FUNCTION activation._hash_address(folded text) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT 'sha256:' || encode(sha256(convert_to(s.key || ' ' || folded, 'UTF8')), 'hex') FROM activation.signing s $$;

-- Numbers of roles mean something on one server only. A row of another installation (a restored dump) goes by names.
CREATE TABLE activation.installation (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    id        uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO activation.installation DEFAULT VALUES;
COMMENT ON TABLE activation.installation IS 'Which CREATE EXTENSION made these tables; not dumped, so that a restored copy has another.';

CREATE TABLE activation.topic (
    topic       text PRIMARY KEY,
    name        text NOT NULL,
    description text
);
SELECT pg_catalog.pg_extension_config_dump('activation.topic', '');
COMMENT ON TABLE activation.topic IS 'Names and descriptions of topics, for people to read on the page where they choose.';

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
COMMENT ON TABLE activation.template IS 'Versions of templates made by set_template(). The built-in ones are files of the Python package; a template of the same name goes before them.';

CREATE TABLE activation.loop (
    loop_id    integer GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    name       text NOT NULL UNIQUE CHECK (octet_length(name) BETWEEN 1 AND 63),
    state      text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'paused', 'failing', 'stopped', 'archived')),
    reason     text,
    version    integer NOT NULL,
    created_at timestamptz NOT NULL,
    resumed_at timestamptz,
    drop_before timestamptz
);
SELECT pg_catalog.pg_extension_config_dump('activation.loop', '');
SELECT pg_catalog.pg_extension_config_dump('activation.loop_loop_id_seq', '');
COMMENT ON TABLE activation.loop IS 'Loops and the version that new enrollments get. stopped: by the brake; people are evaluated, nothing is claimed. drop_before: what came due earlier, while it was paused, is not sent.';

-- A column of a table that holds users' keys: the users table's own key, or what a condition compares with $1.
CREATE TABLE activation.source (
    source_id  integer GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    table_name regclass NOT NULL,
    key_column name NOT NULL,
    key_attnum smallint NOT NULL,
    table_oid  oid NOT NULL,
    generation integer NOT NULL DEFAULT 0,
    UNIQUE (table_name, key_attnum)
);
SELECT pg_catalog.pg_extension_config_dump('activation.source', '');
SELECT pg_catalog.pg_extension_config_dump('activation.source_source_id_seq', '');
COMMENT ON TABLE activation.source IS 'Columns of the app''s tables that hold users'' keys and are captured by triggers. table_oid differs from table_name after a restore, when key_attnum may be stale and key_column is right; generation counts the loops that came to the table, so that a signal from before a loop does not enroll in it.';

CREATE TABLE activation.loop_version (
    loop_id         integer NOT NULL REFERENCES activation.loop,
    version         integer NOT NULL,
    definition      jsonb NOT NULL,
    owner           oid NOT NULL,
    owner_name      name NOT NULL,
    installation    uuid NOT NULL,
    names           text NOT NULL,
    users           regclass NOT NULL,
    event           text NOT NULL CHECK (event IN ('insert', 'update', 'delete', 'existing', 'event', 'schedule')),
    source_id       integer REFERENCES activation.source,
    generation      integer NOT NULL,
    filter_function name,
    old_columns     name[],
    old_attnums     smallint[],
    filter_columns  name[],
    filter_attnums  smallint[],
    users_function  name,
    roll_function   name,
    passes_function name,
    goal_step       integer,
    reentry         interval,
    holdout         numeric NOT NULL DEFAULT 0,
    transactional   boolean NOT NULL DEFAULT false,
    priority        integer NOT NULL DEFAULT 0,
    over_cap        text NOT NULL DEFAULT 'wait' CHECK (over_cap IN ('wait', 'skip')),
    send_window     jsonb,
    created_at      timestamptz NOT NULL,
    PRIMARY KEY (loop_id, version),
    CHECK ((source_id IS NULL) = (event IN ('event', 'schedule')))
);
SELECT pg_catalog.pg_extension_config_dump('activation.loop_version', '');
COMMENT ON TABLE activation.loop_version IS 'Every version of every loop: its definition in full, whose rights it runs with (owner; owner_name is what a dump carries, and where the row is another installation''s, all that holds), the path its names were looked up on, and its compiled functions. source_id: the captured column that names the user in a row of the trigger''s table. event: existing, for an insert that only those who were there before count for. goal_step: the step whose condition is the goal; 0, one of its own; NULL, none. reentry: how long after an enrollment the next may begin; NULL, never. filter_columns, old_columns: what the filter takes of NEW and OLD. roll_function: the users that a schedule''s query or an existing table enrolls, in order; passes_function: which of some users the filter lets pass by their rows as they are.';

CREATE TABLE activation.step (
    loop_id            integer NOT NULL,
    version            integer NOT NULL,
    step               integer NOT NULL,
    position           integer NOT NULL,
    name               text NOT NULL,
    delay              interval NOT NULL,
    timeout            interval,
    every              interval,
    condition_function name,
    evaluate_function  name,
    action             jsonb,
    otherwise          jsonb,
    on_timeout         text NOT NULL,
    PRIMARY KEY (loop_id, version, step),
    FOREIGN KEY (loop_id, version) REFERENCES activation.loop_version
);
SELECT pg_catalog.pg_extension_config_dump('activation.step', '');
COMMENT ON TABLE activation.step IS 'Steps of every version, in the order of position; step 0 is a goal of its own. A name has the same number in all versions of a loop, so that who moves to another one is where they were and gets nothing twice. `every` is set where a condition can change without a captured row: then all who wait are asked again at that interval.';

CREATE TABLE activation.watch (
    loop_id   integer NOT NULL,
    version   integer NOT NULL,
    step      integer NOT NULL,
    source_id integer NOT NULL REFERENCES activation.source,
    on_delete boolean NOT NULL,
    goal      boolean NOT NULL,
    PRIMARY KEY (loop_id, version, step, source_id),
    FOREIGN KEY (loop_id, version, step) REFERENCES activation.step
);
SELECT pg_catalog.pg_extension_config_dump('activation.watch', '');
COMMENT ON TABLE activation.watch IS 'Which captured columns wake which condition; on_delete: a row that goes away can make it true too; goal: it is the goal of its version.';

-- Owners of loops are kept by number, so that a renamed one keeps its loops and nobody gets them by taking its name. After a
-- restore, names are looked up once; a role that is not there is looked up again until it is.
CREATE FUNCTION activation._sync_owners() RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    here uuid := (SELECT i.id FROM activation.installation i);
BEGIN
    IF EXISTS (SELECT FROM activation.loop_version v WHERE v.installation <> here) THEN
        UPDATE activation.loop_version v
           SET owner = coalesce(r.oid, 0), installation = CASE WHEN r.oid IS NULL THEN v.installation ELSE here END
          FROM activation.loop_version x LEFT JOIN pg_roles r ON r.rolname = x.owner_name
         WHERE x.installation <> here AND (v.loop_id, v.version) = (x.loop_id, x.version);
    END IF;
    IF EXISTS (SELECT FROM activation.loop_version v JOIN pg_roles r ON r.oid = v.owner WHERE r.rolname <> v.owner_name) THEN
        UPDATE activation.loop_version v SET owner_name = r.rolname FROM pg_roles r WHERE r.oid = v.owner AND r.rolname <> v.owner_name;
    END IF;
END
$$;
