-- The verbs that people call. All are SECURITY DEFINER with a pinned path: callers need EXECUTE on them and nothing else.
-- Whose rights a loop runs with comes as arguments whose defaults are evaluated at the caller: owner and names.

-- ---- builders: they return parts of a definition -------------------------------------------------------------------------

CREATE FUNCTION activation._checked(kind text, document jsonb) RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    answer jsonb := activation._fragment(kind, document);
BEGIN
    PERFORM activation._raise(answer -> 'error');
    RETURN document;
END
$$;

CREATE FUNCTION activation.on_insert(table_name regclass, user_key name DEFAULT NULL, filter text DEFAULT NULL) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF table_name IS NULL THEN
        RAISE EXCEPTION 'on_insert needs a table' USING ERRCODE = '22004', HINT = 'activation.on_insert(''users'')';
    END IF;
    RETURN activation._checked('trigger', jsonb_build_object('type', 'database', 'table', activation._table_name(table_name),
                                                             'event', 'insert', 'user_key', user_key, 'filter', filter));
END
$$;
COMMENT ON FUNCTION activation.on_insert(regclass, name, text) IS
'Trigger of a loop: a row inserted into table_name. filter: an SQL expression over NEW, the inserted row; only rows for which it is true count. user_key: the column with the user''s key where table_name is not the users table (not supported yet).';

CREATE FUNCTION activation.query(sql text, timeout interval DEFAULT NULL, every interval DEFAULT NULL, watch jsonb DEFAULT NULL) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM activation._positive('timeout', timeout), activation._positive('every', every);
    RETURN activation._checked('condition', jsonb_build_object('type', 'query', 'query', sql, 'timeout', timeout::text,
                                                               'every', every::text, 'watch', watch));
END
$$;
COMMENT ON FUNCTION activation.query(text, interval, interval, jsonb) IS
'Condition of a loop: one SELECT with $1 for the user''s key, true when it returns a row. timeout: how long to wait for it from the step''s start (for ever if absent). every: how often to ask again where changes cannot be seen. watch: {"table": "column of the user''s key"} for tables that only a function reads.';

CREATE FUNCTION activation.email(template text, personalization jsonb DEFAULT '{}', subject text DEFAULT NULL, sender text DEFAULT NULL,
                                 reply_to text DEFAULT NULL, resend_template text DEFAULT NULL) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN activation._checked('action', jsonb_build_object('type', 'email', 'provider', 'resend', 'template', template,
        'personalization', coalesce(personalization, '{}'), 'subject', subject, 'sender', sender, 'reply_to', reply_to,
        'resend_template', resend_template));
END
$$;
COMMENT ON FUNCTION activation.email(text, jsonb, text, text, text, text) IS
'Action of a step: an email from a template. personalization: {"variable": "Liquid text"}, each value rendered with the user''s row as user. subject, sender, reply_to: instead of the template''s and the settings''. resend_template: a template hosted at Resend (not supported yet).';

CREATE FUNCTION activation.retry(retries integer DEFAULT 3, backoff text DEFAULT 'exponential', initial interval DEFAULT '30 seconds',
                                 max interval DEFAULT '1 hour') RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM activation._positive('initial', initial), activation._positive('max', max);
    RETURN activation._checked('recovery', jsonb_build_object('retries', retries, 'backoff', backoff, 'initial', initial::text, 'max', max::text));
END
$$;
COMMENT ON FUNCTION activation.retry(integer, text, interval, interval) IS
'Recovery of a loop: retries, the tries after the first (0 to 20); backoff, fixed or exponential; initial, the wait before the first retry; max, the longest wait. Waits are spread by a fifth either way.';

CREATE FUNCTION activation.step(name text, delay interval DEFAULT NULL, condition jsonb DEFAULT NULL, action jsonb DEFAULT NULL,
                                otherwise jsonb DEFAULT NULL, on_timeout text DEFAULT 'continue') RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF delay < interval '0' THEN
        RAISE EXCEPTION 'delay is %', delay USING ERRCODE = '22023', HINT = 'Give a time to wait, such as ''1 hour'', or none.';
    END IF;
    RETURN jsonb_build_object('name', name, 'delay', delay::text, 'condition', condition, 'action', action,
                              'otherwise', otherwise, 'on_timeout', on_timeout);
END
$$;
COMMENT ON FUNCTION activation.step(text, interval, jsonb, jsonb, jsonb, text) IS
'Step of a loop, for define_loop(steps => ARRAY[…]). condition: activation.query(…); action: sent when it is true (or at once without one); otherwise: sent when it is still false at its timeout; on_timeout: continue or exit; delay: to wait before the step starts. More than one step, delay and exit are not supported yet.';

CREATE FUNCTION activation._positive(argument text, duration interval) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF duration <= interval '0' OR duration > interval '100 years' THEN
        RAISE EXCEPTION '% is %', argument, duration
            USING ERRCODE = '22023', HINT = 'Give a duration longer than zero, such as ''5 minutes'' or ''3 days''.';
    END IF;
END
$$;

-- ---- settings --------------------------------------------------------------------------------------------------------------

CREATE FUNCTION activation.configure(sender text DEFAULT NULL, reply_to text DEFAULT NULL, resend_url text DEFAULT NULL,
    api_key text DEFAULT NULL, webhook_secret text DEFAULT NULL, public_url text DEFAULT NULL, timezone text DEFAULT NULL,
    retention interval DEFAULT NULL, rate numeric DEFAULT NULL, max_per_user integer DEFAULT NULL, per interval DEFAULT NULL,
    max_per_hour integer DEFAULT NULL, condition_timeout interval DEFAULT NULL, erase_on_delete boolean DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    given record;
BEGIN
    FOR given IN SELECT * FROM (VALUES ('max_per_user', max_per_user::text), ('per', per::text),
                                       ('erase_on_delete', erase_on_delete::text)) AS v(name, value)
                  WHERE v.value IS NOT NULL LOOP
        RAISE EXCEPTION 'setting % is not supported yet', given.name USING ERRCODE = '0A000', HINT = 'Leave it out for now.';
    END LOOP;
    FOR given IN SELECT * FROM (VALUES ('api_key', api_key), ('webhook_secret', webhook_secret)) AS v(name, value) WHERE v.value <> '' LOOP
        IF NOT activation._is_reference(given.value) THEN
            -- The statement may hold the key itself: keep it out of the server's log.
            PERFORM set_config('log_min_error_statement', 'panic', true);
            RAISE EXCEPTION '% is not a reference to a secret', given.name
                USING ERRCODE = '22023',
                      DETAIL = 'What was given is not repeated here, in case it is the secret itself.',
                      HINT = format('Use ''env:NAME'', ''file:/path'', or activation.set_secret(''resend'', …) and then %s => ''secret:resend''.', given.name);
        END IF;
    END LOOP;
    FOR given IN SELECT * FROM (VALUES ('sender', sender), ('reply_to', reply_to)) AS v(name, value) WHERE v.value <> '' LOOP
        IF given.value !~ '^([^<>\r\n]*<[^@\s<>]+@[^@\s<>]+>|[^@\s<>]+@[^@\s<>]+)$' THEN
            RAISE EXCEPTION '% "%" is not an address', given.name, given.value
                USING ERRCODE = '22023', HINT = 'Write ''Acme <hello@acme.dev>'' or ''hello@acme.dev''.';
        END IF;
    END LOOP;
    FOR given IN SELECT * FROM (VALUES ('resend_url', resend_url), ('public_url', public_url)) AS v(name, value) WHERE v.value <> '' LOOP
        IF given.value !~ '^https?://[^\s/?#]+[^\s?#]*$' THEN
            RAISE EXCEPTION '% "%" is not a URL', given.name, given.value
                USING ERRCODE = '22023', HINT = 'Write it with its scheme and without a query: ''https://acme.dev/activation''.';
        END IF;
    END LOOP;
    IF timezone <> '' AND NOT EXISTS (SELECT FROM pg_timezone_names z WHERE lower(z.name) = lower(configure.timezone)) THEN
        RAISE EXCEPTION 'time zone "%" is not known', timezone
            USING ERRCODE = '22023', HINT = 'Names are listed in pg_timezone_names, such as ''Europe/Berlin''.';
    END IF;
    IF rate <= 0 OR rate > 10000 OR rate = 'NaN' THEN
        RAISE EXCEPTION 'rate is %', rate
            USING ERRCODE = '22023', HINT = 'Give requests a second, from 1 to 10000; one request carries up to 100 emails.';
    END IF;
    IF max_per_hour < 1 THEN
        RAISE EXCEPTION 'max_per_hour is %', max_per_hour
            USING ERRCODE = '22023', HINT = 'Give the emails that a loop may send in an hour, at least 1; to stop a loop, SELECT activation.pause_loop(…).';
    END IF;
    IF condition_timeout NOT BETWEEN interval '1 second' AND interval '1 hour' THEN
        RAISE EXCEPTION 'condition_timeout is %', condition_timeout
            USING ERRCODE = '22023', HINT = 'Give how long a loop''s own SQL may run at a time, from ''1 second'' to ''1 hour''.';
    END IF;
    IF retention NOT BETWEEN interval '1 hour' AND interval '100 years' THEN
        RAISE EXCEPTION 'retention is %', retention
            USING ERRCODE = '22023', HINT = 'Give how long messages, attempts and requests are kept, at least ''1 hour'', such as ''90 days''.';
    END IF;

    INSERT INTO activation.setting AS s (singleton) VALUES (true) ON CONFLICT DO NOTHING;
    UPDATE activation.setting AS s
       SET sender = CASE WHEN configure.sender IS NULL THEN s.sender ELSE nullif(configure.sender, '') END,
           reply_to = CASE WHEN configure.reply_to IS NULL THEN s.reply_to ELSE nullif(configure.reply_to, '') END,
           resend_url = CASE WHEN configure.resend_url IS NULL THEN s.resend_url ELSE nullif(configure.resend_url, '') END,
           api_key = CASE WHEN configure.api_key IS NULL THEN s.api_key ELSE nullif(configure.api_key, '') END,
           webhook_secret = CASE WHEN configure.webhook_secret IS NULL THEN s.webhook_secret ELSE nullif(configure.webhook_secret, '') END,
           public_url = CASE WHEN configure.public_url IS NULL THEN s.public_url ELSE nullif(configure.public_url, '') END,
           timezone = CASE WHEN configure.timezone IS NULL THEN s.timezone ELSE nullif(configure.timezone, '') END,
           rate = coalesce(configure.rate, s.rate),
           max_per_hour = coalesce(configure.max_per_hour, s.max_per_hour),
           condition_timeout = coalesce(configure.condition_timeout, s.condition_timeout),
           retention = coalesce(configure.retention, s.retention);
    IF resend_url IS NOT NULL THEN
        -- Another provider has another rate.
        DELETE FROM activation.provider;
    ELSIF coalesce(sender, api_key) IS NOT NULL THEN
        -- What a pause came from may have been mended.
        PERFORM activation._end_pause();
    END IF;
END
$$;
COMMENT ON FUNCTION activation.configure(text, text, text, text, text, text, text, interval, numeric, integer, interval, integer, interval, boolean) IS
'Changes settings; NULL leaves one unchanged, '''' clears it. sender: From of all mail unless the loop has its own. api_key, webhook_secret: references (env:NAME, file:/path, secret:name), never secrets. public_url: where the app serves activation''s pages. rate: requests a second, for a provider that names none. max_per_hour: the brake, emails a loop may send in an hour (default: 10 times its usual hour, at least 1,000). condition_timeout: how long a loop''s own SQL may run at a time (default 10 s). retention: how long messages, attempts and requests are kept (default 90 days). The other arguments are not supported yet.';

CREATE FUNCTION activation.set_secret(name text, value text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM set_config('log_min_error_statement', 'panic', true);
    IF coalesce(name, '') !~ '^[A-Za-z0-9_.-]{1,63}$' THEN
        RAISE EXCEPTION 'a secret needs a name' USING ERRCODE = '22023', HINT = 'Use letters, digits, _, . and -, at most 63.';
    END IF;
    IF coalesce(value, '') = '' THEN
        DELETE FROM activation.secret s WHERE s.name = set_secret.name;
    ELSE
        INSERT INTO activation.secret AS s (name, value) VALUES (set_secret.name, set_secret.value)
        ON CONFLICT ON CONSTRAINT secret_pkey DO UPDATE SET value = excluded.value;
    END IF;
    PERFORM activation._end_pause();
END
$$;
COMMENT ON FUNCTION activation.set_secret(text, text) IS
'Stores a secret under a name, to be referred to as secret:name; an empty value removes it. The table is read by nobody and not dumped. Pass the value as a bound parameter: the text of a statement may be logged.';

CREATE FUNCTION activation._check_table(users regclass, what text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    c pg_class;
BEGIN
    SELECT x.* INTO c FROM pg_class x WHERE x.oid = users;
    IF c.relkind NOT IN ('r', 'p') THEN
        RAISE EXCEPTION '%: % is a %, not a table', what, activation._table_name(users),
            CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table' WHEN 'S' THEN 'sequence'
                           WHEN 'i' THEN 'index' ELSE 'relation of another kind' END
            USING ERRCODE = '42809', HINT = 'Name the table that the app inserts its users into.';
    END IF;
    IF c.relpersistence = 't' OR c.relnamespace IN ('pg_catalog'::regnamespace, 'activation'::regnamespace) THEN
        RAISE EXCEPTION '%: % is a temporary or system table', what, activation._table_name(users)
            USING ERRCODE = '42809', HINT = 'Name the table that the app inserts its users into.';
    END IF;
    IF to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL THEN
        -- A statement trigger on a Citus distributed table breaks every INSERT.
        RAISE EXCEPTION '%: tables of a Citus cluster are not supported yet', what
            USING ERRCODE = '0A000', HINT = 'Use a server without Citus.';
    END IF;
END
$$;

-- Registers a users table, choosing what is not named: its primary key, its column email.
CREATE FUNCTION activation._register_users(users regclass, key name, email name, timezone name, what text) RETURNS activation.users_table
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    shown text := activation._table_name(users);
    registered activation.users_table;
    given record;
    primary_key name[];
BEGIN
    PERFORM activation._check_table(users, what);
    SELECT u.* INTO registered FROM activation.users_table u WHERE u.users = _register_users.users;
    SELECT array_agg(a.attname ORDER BY k.ordinal) INTO primary_key
      FROM pg_index i, unnest(i.indkey::smallint[]) WITH ORDINALITY AS k(attnum, ordinal), pg_attribute a
     WHERE i.indrelid = users AND i.indisprimary AND a.attrelid = users AND a.attnum = k.attnum;
    key := coalesce(key, registered.key_column, CASE WHEN cardinality(primary_key) = 1 THEN primary_key[1] END);
    IF key IS NULL THEN
        RAISE EXCEPTION '%: table % has %', what, shown,
            CASE WHEN primary_key IS NULL THEN 'no primary key' ELSE 'a primary key of several columns' END
            USING ERRCODE = '42P16',
                  HINT = format('Name the column that identifies a user: SELECT activation.set_users(%L, key => ''id'');', shown);
    END IF;
    email := coalesce(email, registered.email_column, 'email');
    FOR given IN SELECT * FROM (VALUES ('key', key), ('email', email), ('timezone', timezone)) AS v(what, name) WHERE v.name IS NOT NULL LOOP
        IF activation._key_type(users, given.name) IS NULL THEN
            RAISE EXCEPTION '%: table % has no column %', what, shown, quote_ident(given.name)
                USING ERRCODE = '42703',
                      DETAIL = format('It has %s.', (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM pg_attribute a
                                                      WHERE a.attrelid = users AND a.attnum > 0 AND NOT a.attisdropped)),
                      HINT = format('Name the column: SELECT activation.set_users(%L, %s => ''…'');', shown, given.what);
        END IF;
    END LOOP;
    IF NOT EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = users AND a.attnum = i.indkey[0]
                    WHERE i.indrelid = users AND i.indisvalid AND i.indpred IS NULL AND a.attname = key) THEN
        RAISE EXCEPTION '%: column % of % leads no index', what, quote_ident(key), shown
            USING ERRCODE = '55000', HINT = format('Users are looked up by it: CREATE INDEX ON %s (%I);', shown, key);
    END IF;
    IF NOT EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = users AND a.attnum = i.indkey[0]
                    WHERE i.indrelid = users AND i.indisunique AND i.indpred IS NULL AND i.indnkeyatts = 1 AND a.attname = key) THEN
        RAISE NOTICE 'column % of % is not provably unique', quote_ident(key), shown
            USING HINT = 'Rows with the same key are one user to activation.';
    END IF;
    IF registered.key_column IS NOT NULL AND registered.key_column <> key
       AND EXISTS (SELECT FROM activation.loop_version v WHERE v.users = _register_users.users) THEN
        RAISE EXCEPTION '%: the key of % is % and loops use it', what, shown, quote_ident(registered.key_column)
            USING ERRCODE = '55006', HINT = 'A users table keeps its key once a loop uses it.';
    END IF;
    INSERT INTO activation.users_table AS u (users, key_column, email_column, timezone_column)
    VALUES (_register_users.users, key, email, timezone)
    ON CONFLICT ON CONSTRAINT users_table_pkey DO UPDATE
       SET key_column = excluded.key_column, email_column = excluded.email_column,
           timezone_column = coalesce(excluded.timezone_column, u.timezone_column)
    RETURNING * INTO registered;
    RETURN registered;
END
$$;

CREATE FUNCTION activation._require_owner(role name, table_name regclass, what text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT activation._may_trigger(role, table_name) THEN
        RAISE EXCEPTION '%: % does not have the privileges of the owner of %', what, quote_ident(role), activation._table_name(table_name)
            USING ERRCODE = '42501',
                  HINT = format('Let %s do it, or grant that role to %s.',
                                (SELECT quote_ident(pg_get_userbyid(c.relowner)) FROM pg_class c WHERE c.oid = table_name), quote_ident(role));
    END IF;
END
$$;

CREATE FUNCTION activation.set_users(users regclass, key name DEFAULT NULL, email name DEFAULT NULL, timezone name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF users IS NULL THEN
        RAISE EXCEPTION 'set_users needs a table' USING ERRCODE = '22004', HINT = 'SELECT activation.set_users(''users'', email => ''email'');';
    END IF;
    PERFORM activation._require_owner(activation._caller(), users, 'set_users');
    PERFORM activation._register_users(users, key, email, timezone, 'set_users');
END
$$;
COMMENT ON FUNCTION activation.set_users(regclass, name, name, name) IS
'Registers a users table. key: the column that identifies a user and leads an index (default: the primary key); email: the column with the address (default: email); timezone: a column with the user''s time zone. For the table''s owner.';

-- ---- templates -------------------------------------------------------------------------------------------------------------

CREATE FUNCTION activation._user_columns(users regclass) RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a
     WHERE a.attrelid = users AND a.attnum > 0 AND NOT a.attisdropped
$$;

-- A template by name: the newest of this database, else the built-in.
CREATE FUNCTION activation._find_template(template text) RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce((SELECT jsonb_build_object('subject', t.subject, 'html', t.html, 'body_text', t.body_text)
                       FROM activation._template(template, 2147483647) t),
                    activation._built_in_template(template))
$$;

-- Refuses an email that could not be rendered: its template, its personalization, the columns it names.
CREATE FUNCTION activation._check_email(what text, email jsonb, users regclass, source jsonb) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    answer jsonb;
BEGIN
    IF source IS NULL THEN
        RAISE EXCEPTION '%: template "%" does not exist', what, email ->> 'template'
            USING ERRCODE = '42704',
                  DETAIL = format('There are %s.', (SELECT string_agg(DISTINCT n.name, ', ')
                      FROM (SELECT t.name FROM activation.template t
                            UNION SELECT unnest(ARRAY['activation_welcome', 'activation_nudge', 'milestone'])) n)),
                  HINT = format('Make it first: SELECT activation.set_template(%L, subject => …, html => …);', email ->> 'template');
    END IF;
    answer := activation._check_template(format('%s: template "%s"', what, email ->> 'template'), coalesce(email ->> 'subject', source ->> 'subject'),
                                         source ->> 'html', source ->> 'body_text', email -> 'personalization', activation._user_columns(users));
    PERFORM activation._raise(answer -> 'error');
END
$$;

CREATE FUNCTION activation.set_template(name text, subject text, html text DEFAULT NULL, body_text text DEFAULT NULL) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    used record;
    made integer;
    answer jsonb;
    source jsonb := jsonb_build_object('subject', subject, 'html', html, 'body_text', body_text);
BEGIN
    IF coalesce(name, '') !~ '^[A-Za-z0-9_.-]{1,63}$' THEN
        RAISE EXCEPTION 'a template needs a name' USING ERRCODE = '22023', HINT = 'Use letters, digits, _, . and -, at most 63.';
    END IF;
    IF coalesce(btrim(subject), '') = '' OR subject ~ '[\r\n]' THEN
        RAISE EXCEPTION 'template "%" needs a subject of one line', name USING ERRCODE = '22023', HINT = 'set_template(name, subject => ''Welcome'', html => …)';
    END IF;
    IF coalesce(html, body_text) IS NULL THEN
        RAISE EXCEPTION 'template "%" has no body', name USING ERRCODE = '22023', HINT = 'Give html, body_text, or both.';
    END IF;
    answer := activation._check_template(format('template "%s"', name), subject, html, body_text, NULL, NULL);
    PERFORM activation._raise(answer -> 'error');
    PERFORM pg_advisory_xact_lock(hashtext('activation'), hashtext('define'));
    FOR used IN
        SELECT l.name AS loop_name, v.users, b.email
          FROM activation."loop" l JOIN activation.loop_version v USING (loop_id, version) JOIN activation.step s USING (loop_id, version),
               unnest(ARRAY[s.action, s.otherwise]) AS b(email)
         WHERE l.state <> 'archived' AND b.email ->> 'template' = set_template.name
    LOOP
        PERFORM activation._check_email(format('loop "%s"', used.loop_name), used.email, used.users, source);
    END LOOP;
    INSERT INTO activation.template (name, version, subject, html, body_text, created_at)
    SELECT set_template.name, coalesce(max(t.version), 0) + 1, set_template.subject, set_template.html, set_template.body_text, activation._now()
      FROM activation.template t WHERE t.name = set_template.name
    RETURNING template.version INTO made;
    RETURN made;
END
$$;
COMMENT ON FUNCTION activation.set_template(text, text, text, text) IS
'Stores a new version of a template, in Liquid, and returns its number. Enrollments made from then on use it; earlier ones keep theirs. Text is derived from html where body_text is absent. Refused, naming the loop, when a loop in use would lack a variable.';

-- ---- define ----------------------------------------------------------------------------------------------------------------

-- A table named in a document, looked up on the author's path.
CREATE FUNCTION activation._find_table(table_name text, names text, what text) RETURNS regclass
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    answer jsonb := activation._run(names, ARRAY[format('SELECT pg_catalog.to_regclass(%L)::pg_catalog.oid::pg_catalog.int8', table_name)], false);
BEGIN
    IF answer ->> 'value' IS NULL THEN
        RAISE EXCEPTION '%: table "%" does not exist', what, table_name
            USING ERRCODE = CASE WHEN answer ? 'error' THEN answer #>> '{error,code}' ELSE '42P01' END,
                  DETAIL = coalesce(answer #>> '{error,message}', ''),
                  HINT = format('It was looked for on the path %s. Write it with its schema, and quoted where it is mixed-case: "app"."User".', names);
    END IF;
    RETURN (answer ->> 'value')::oid::regclass;
END
$$;

-- A duration in a document, in the server's one spelling.
CREATE FUNCTION activation._duration(duration text, what text, or_none boolean DEFAULT false) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET intervalstyle = 'postgres'
AS $$
DECLARE
    parsed interval;
BEGIN
    IF duration IS NULL THEN
        RETURN NULL;
    END IF;
    BEGIN
        parsed := duration::interval;
    EXCEPTION WHEN data_exception THEN
        RAISE EXCEPTION '% is not a duration: "%"', what, duration
            USING ERRCODE = '22007', HINT = 'Write it as PostgreSQL does: ''5m'', ''90 seconds'', ''3 days''.';
    END;
    IF or_none AND parsed = interval '0' THEN
        RETURN parsed::text;
    END IF;
    IF parsed <= interval '0' OR parsed > interval '100 years' THEN
        RAISE EXCEPTION '% is %', what, duration
            USING ERRCODE = '22023', HINT = 'Give a duration longer than zero, such as ''5 minutes'' or ''3 days''.';
    END IF;
    RETURN parsed::text;
END
$$;

CREATE FUNCTION activation._durations(definition jsonb, what text) RETURNS jsonb
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    path text[];
BEGIN
    FOR path IN
        SELECT p.path FROM (VALUES (ARRAY['recovery', 'initial']), (ARRAY['recovery', 'max'])) AS p(path)
        UNION ALL
        SELECT ARRAY['steps', (i.n - 1)::text, 'condition', k.key]
          FROM jsonb_array_elements(definition -> 'steps') WITH ORDINALITY AS i(step, n), (VALUES ('timeout'), ('every')) AS k(key)
         WHERE i.step #>> ARRAY['condition', k.key] IS NOT NULL
        UNION ALL
        SELECT ARRAY['steps', (i.n - 1)::text, 'delay'] FROM jsonb_array_elements(definition -> 'steps') WITH ORDINALITY AS i(step, n)
    LOOP
        definition := jsonb_set(definition, path, to_jsonb(activation._duration(
            definition #>> path, format('%s: %s', what, path[cardinality(path)]), path[cardinality(path)] = 'delay')));
    END LOOP;
    RETURN definition;
END
$$;

CREATE FUNCTION activation._define(name text, document jsonb, owner name, names text) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
<<here>>
DECLARE
    answer jsonb := activation._normalise(name, document);
    definition jsonb := answer -> 'definition';
    what text := format('loop "%s"', name);
    users regclass;
    registered activation.users_table;
    known activation.loop;
    current_version activation.loop_version;
    made integer;
    source_id integer;
    generation integer;
    step jsonb;
    captured regclass;
BEGIN
    PERFORM activation._raise(answer -> 'error');
    IF NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = _define.owner) THEN
        RAISE EXCEPTION '%: role % does not exist', what, coalesce(quote_ident(owner), 'NULL')
            USING ERRCODE = '42704', HINT = 'Leave owner out to use your own role.';
    END IF;
    IF NOT pg_has_role(activation._caller(), owner, 'MEMBER') THEN
        RAISE EXCEPTION '%: % is not a member of role %', what, quote_ident(activation._caller()), quote_ident(owner)
            USING ERRCODE = '42501', HINT = 'A loop runs with the rights of its owner; leave owner out to use your own role.';
    END IF;
    IF names IS NULL THEN
        RAISE EXCEPTION '%: names is NULL', what USING ERRCODE = '22004', HINT = 'It is the search_path for the loop''s SQL; leave it out to use yours.';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('activation'), hashtext('define'));
    IF EXISTS (SELECT FROM activation."loop" l WHERE l.name = _define.name) THEN
        PERFORM activation._own_loop(name);
    END IF;

    users := activation._find_table(definition #>> '{trigger,table}', names, what);
    IF definition ->> 'users' IS NOT NULL AND activation._find_table(definition ->> 'users', names, what) <> users THEN
        RAISE EXCEPTION '%: argument users is not supported yet', what
            USING ERRCODE = '0A000', HINT = 'The trigger''s table is the users table for now; leave users out.';
    END IF;
    PERFORM activation._check_table(users, what);
    PERFORM activation._require_owner(owner, users, what);
    IF NOT EXISTS (SELECT FROM activation.users_table u WHERE u.users = here.users)
       AND EXISTS (SELECT FROM pg_constraint c JOIN activation.users_table u ON u.users = c.confrelid WHERE c.contype = 'f' AND c.conrelid = here.users) THEN
        RAISE EXCEPTION '%: a trigger on a table that is not the users table is not supported yet', what
            USING ERRCODE = '0A000', DETAIL = format('Table %s references a users table by a foreign key.', activation._table_name(users)),
                  HINT = 'Put the trigger on the users table, and name this table in the condition.';
    END IF;
    registered := activation._register_users(users, NULL, NULL, NULL, what);
    definition := jsonb_set(jsonb_set(activation._durations(definition, what),
        '{trigger,table}', to_jsonb(activation._table_name(users))), '{users}', to_jsonb(activation._table_name(users)));
    FOR step IN SELECT * FROM jsonb_array_elements(definition -> 'steps') LOOP
        IF step -> 'action' <> 'null' THEN
            PERFORM activation._check_email(what, step -> 'action', users, activation._find_template(step #>> '{action,template}'));
        END IF;
        IF step -> 'otherwise' <> 'null' THEN
            PERFORM activation._check_email(what, step -> 'otherwise', users, activation._find_template(step #>> '{otherwise,template}'));
        END IF;
    END LOOP;

    -- The same definition again is no new version, unless what it was compiled to is gone.
    SELECT l.* INTO known FROM activation."loop" l WHERE l.name = _define.name;
    SELECT v.* INTO current_version FROM activation.loop_version v WHERE v.loop_id = known.loop_id AND v.version = known.version;
    IF current_version.definition = definition AND current_version.owner = _define.owner AND current_version.names = _define.names
       AND known.state IN ('active', 'paused')
       AND activation._compiled(known.loop_id, known.version) THEN
        RETURN known.version;
    END IF;

    IF known.loop_id IS NULL THEN
        INSERT INTO activation.loop (name, version, created_at) VALUES (_define.name, 1, activation._now()) RETURNING * INTO known;
        made := 1;
    ELSE
        SELECT max(v.version) + 1 INTO made FROM activation.loop_version v WHERE v.loop_id = known.loop_id;
    END IF;
    source_id := activation._source(users, registered.key_column);
    -- A loop that comes to a table (anew) enrolls nobody whose signal was written before it came.
    IF current_version.source_id = source_id AND known.state <> 'archived' AND current_version.filter_function IS NULL THEN
        generation := current_version.generation;
    ELSE
        UPDATE activation.source s SET generation = s.generation + 1 WHERE s.source_id = here.source_id RETURNING s.generation INTO generation;
    END IF;
    INSERT INTO activation.loop_version (loop_id, version, definition, owner, names, users, source_id, event, generation, created_at)
    VALUES (known.loop_id, made, definition, _define.owner, _define.names, here.users, here.source_id, definition #>> '{trigger,event}',
            here.generation, activation._now());
    INSERT INTO activation.step (loop_id, version, step, name, delay, timeout, action, otherwise, on_timeout)
    SELECT known.loop_id, made, n.number, n.step ->> 'name', (n.step ->> 'delay')::interval, (n.step #>> '{condition,timeout}')::interval,
           nullif(n.step -> 'action', 'null'), nullif(n.step -> 'otherwise', 'null'), n.step ->> 'on_timeout'
      FROM jsonb_array_elements(definition -> 'steps') WITH ORDINALITY AS n(step, number);
    PERFORM activation._compile_version(known.loop_id, made);
    IF current_version.source_id = source_id AND known.state <> 'archived' AND current_version.filter_function IS NULL
       AND definition #>> '{trigger,filter}' IS NOT NULL THEN
        -- Who signed up while the loop had no filter is in it.
        INSERT INTO activation.signal (at, source_id, generation, loop_id, user_id)
        SELECT g.at, g.source_id, g.generation, known.loop_id, g.user_id FROM activation.signal g
         WHERE g.source_id = here.source_id AND g.loop_id IS NULL AND g.generation >= current_version.generation;
    END IF;
    UPDATE activation."loop" l
       SET version = made, reason = NULL, state = CASE WHEN l.state = 'paused' THEN 'paused' ELSE 'active' END
     WHERE l.loop_id = known.loop_id;
    DELETE FROM activation.strike k WHERE k.loop_id = known.loop_id;

    -- Last, because a new trigger locks its table.
    FOR captured IN
        SELECT DISTINCT s.table_name::oid::regclass FROM activation.source s
         WHERE s.source_id = here.source_id
            OR s.source_id IN (SELECT w.source_id FROM activation.watch w WHERE w.loop_id = known.loop_id AND w.version IN (made, current_version.version))
    LOOP
        PERFORM activation._generate_capture(captured);
    END LOOP;
    -- A table of two rows that was never analyzed is taken for one of hundreds, and every plan that joins it is off.
    ANALYZE activation.loop, activation.loop_version, activation.step, activation.source, activation.watch;
    RETURN made;
END
$$;

CREATE FUNCTION activation.define_loop(name text, trigger jsonb DEFAULT NULL, condition jsonb DEFAULT NULL, action jsonb DEFAULT NULL,
    otherwise jsonb DEFAULT NULL, steps jsonb[] DEFAULT NULL, goal jsonb DEFAULT NULL, type text DEFAULT 'activation',
    opinion text DEFAULT NULL, recovery jsonb DEFAULT NULL, reentry text DEFAULT 'once', enroll text DEFAULT 'new',
    per_hour integer DEFAULT NULL, users regclass DEFAULT NULL, topic text DEFAULT NULL, transactional boolean DEFAULT false,
    priority integer DEFAULT 0, over_cap text DEFAULT 'wait', holdout numeric DEFAULT 0, send_window jsonb DEFAULT NULL,
    owner name DEFAULT current_user, names text DEFAULT current_setting('search_path')) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN activation._define(name, jsonb_build_object(
        'type', type, 'opinion', opinion, 'trigger', trigger, 'condition', condition, 'action', action, 'otherwise', otherwise,
        'steps', CASE WHEN steps IS NOT NULL THEN to_jsonb(steps) END, 'goal', goal, 'recovery', recovery, 'reentry', reentry,
        'enroll', enroll, 'per_hour', per_hour, 'users', activation._table_name(users), 'topic', topic, 'transactional', transactional,
        'priority', priority, 'over_cap', over_cap, 'holdout', holdout, 'send_window', send_window), owner, names);
END
$$;
COMMENT ON FUNCTION activation.define_loop(text, jsonb, jsonb, jsonb, jsonb, jsonb[], jsonb, text, text, jsonb, text, text, integer, regclass, text, boolean, integer, text, numeric, jsonb, name, text) IS
'Defines a loop, or a new version of it, and returns the version; the same definition again is no new one. Transactional: it works in a migration and rolls back. trigger: activation.on_insert(…); condition: activation.query(…); action, otherwise: activation.email(…); recovery: activation.retry(…). opinion: what the loop is for, in words. owner: the role with whose rights its SQL runs (default: you); names: the search_path for it (default: yours). Refused definitions change nothing.';

CREATE FUNCTION activation.import_loop(name text, definition jsonb, owner name DEFAULT current_user, names text DEFAULT current_setting('search_path'))
RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF definition IS NULL THEN
        RAISE EXCEPTION 'loop "%": the definition is NULL', name USING ERRCODE = '22004', HINT = 'Give a JSON document, such as export_loop() returns.';
    END IF;
    RETURN activation._define(name, definition, owner, names);
END
$$;
COMMENT ON FUNCTION activation.import_loop(text, jsonb, name, text) IS
'Defines a loop from one document and returns its version; import_loop(export_loop(x)) is x. Keys may be camelCase; the trigger may stand in the first step. owner and names as in define_loop.';

CREATE FUNCTION activation._loop(name text) RETURNS activation.loop
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_loop activation.loop;
BEGIN
    SELECT l.* INTO found_loop FROM activation."loop" l WHERE l.name = _loop.name;
    IF found_loop.loop_id IS NULL THEN
        RAISE EXCEPTION 'loop "%" does not exist', name
            USING ERRCODE = '42704',
                  HINT = coalesce('There are ' || (SELECT string_agg(format('"%s"', l.name), ', ' ORDER BY l.name) FROM activation."loop" l) || '.',
                                  'None is defined yet: activation.define_loop(…).');
    END IF;
    RETURN found_loop;
END
$$;

CREATE FUNCTION activation.export_loop(name text) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    l activation.loop := activation._loop(name);
BEGIN
    RETURN (SELECT v.definition FROM activation.loop_version v WHERE v.loop_id = l.loop_id AND v.version = l.version);
END
$$;
COMMENT ON FUNCTION activation.export_loop(text) IS
'The current definition of a loop as one document: every default written out, tables with their schema.';

-- Who may change a loop: whoever may act as its owner.
CREATE FUNCTION activation._own_loop(name text) RETURNS activation.loop
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    l activation.loop := activation._loop(name);
    owner name := (SELECT v.owner FROM activation.loop_version v WHERE v.loop_id = l.loop_id AND v.version = l.version);
BEGIN
    IF EXISTS (SELECT FROM pg_roles r WHERE r.rolname = owner) AND NOT pg_has_role(activation._caller(), owner, 'MEMBER') THEN
        RAISE EXCEPTION 'loop "%" belongs to %', name, quote_ident(owner)
            USING ERRCODE = '42501', HINT = format('%s is not a member of that role.', quote_ident(activation._caller()));
    END IF;
    RETURN l;
END
$$;

CREATE FUNCTION activation.pause_loop(name text, cancel boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    l activation.loop := activation._own_loop(name);
BEGIN
    IF l.state = 'archived' THEN
        RAISE EXCEPTION 'loop "%" is archived', name USING ERRCODE = '55000', HINT = 'Define it again to bring it back.';
    END IF;
    UPDATE activation."loop" x SET state = 'paused', reason = NULL WHERE x.loop_id = l.loop_id;
    IF cancel THEN
        UPDATE activation.message m
           SET state = 'cancelled', finished_at = activation._now(), last_error = 'cancelled when the loop was paused'
         WHERE m.loop_id = l.loop_id AND m.state = 'queued';
    END IF;
END
$$;
COMMENT ON FUNCTION activation.pause_loop(text, boolean) IS
'Pauses a loop: people are still enrolled and clocks run, but nothing is evaluated or claimed until resume_loop(). cancel: cancel what is queued.';

CREATE FUNCTION activation.resume_loop(name text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    l activation.loop := activation._own_loop(name);
BEGIN
    IF l.state NOT IN ('paused', 'failing', 'stopped') AND NOT EXISTS (SELECT FROM activation.strike k WHERE k.loop_id = l.loop_id) THEN
        RAISE EXCEPTION 'loop "%" is not stopped', name
            USING ERRCODE = '55000', DETAIL = format('It is %s.', l.state),
                  HINT = CASE l.state WHEN 'archived' THEN 'Define it again to bring it back.' ELSE 'Only a loop that is paused, failing or stopped by the brake can be resumed.' END;
    END IF;
    UPDATE activation."loop" x SET state = 'active', reason = NULL, resumed_at = activation._now() WHERE x.loop_id = l.loop_id;
    DELETE FROM activation.strike k WHERE k.loop_id = l.loop_id;
    PERFORM activation._sweep(l.loop_id, activation._now());
END
$$;
COMMENT ON FUNCTION activation.resume_loop(text) IS
'Resumes a loop that is paused, failing, or stopped by the brake: everybody who waits is evaluated, then timed out where the deadline has passed, then mail goes out. The brake counts anew from now.';

CREATE FUNCTION activation.resolve(message_id uuid, verdict text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    m activation.message;
BEGIN
    IF verdict IS NULL OR verdict NOT IN ('sent', 'resend') THEN
        RAISE EXCEPTION 'verdict is %', coalesce(quote_literal(verdict), 'NULL')
            USING ERRCODE = '22023', HINT = 'Give ''sent'' if it reached Resend, ''resend'' to make and send it anew: the user may then have it twice.';
    END IF;
    SELECT x.* INTO m FROM activation.message x WHERE x.message_id = resolve.message_id FOR UPDATE;
    IF m.message_id IS NULL THEN
        RAISE EXCEPTION 'message % does not exist', coalesce(message_id::text, 'NULL')
            USING ERRCODE = '42704', HINT = 'Messages of which nobody knows: SELECT * FROM activation.message_log WHERE status = ''unknown'';';
    END IF;
    PERFORM activation._own_loop((SELECT l.name FROM activation."loop" l WHERE l.loop_id = m.loop_id));
    IF m.state <> 'unknown' THEN
        RAISE EXCEPTION 'message % is not unknown', message_id
            USING ERRCODE = '55000', DETAIL = format('It is %s.', m.state),
                  HINT = 'Only a message of which nobody knows whether it was sent needs a decision.';
    END IF;
    PERFORM activation._resolve(message_id, verdict, activation._caller());
END
$$;
COMMENT ON FUNCTION activation.resolve(uuid, text) IS
'Decides what became of a message whose status is unknown. verdict: sent, or resend, which makes and sends it anew: the user may then have it twice. Refused for any other message.';

CREATE FUNCTION activation.archive_loop(name text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    l activation.loop := activation._own_loop(name);
    captured regclass;
BEGIN
    UPDATE activation."loop" x SET state = 'archived', reason = NULL WHERE x.loop_id = l.loop_id;
    UPDATE activation.enrollment e SET state = 'exited', decided_at = activation._now(), reason = 'the loop was archived'
     WHERE e.loop_id = l.loop_id AND e.state = 'waiting';
    UPDATE activation.message m SET state = 'cancelled', finished_at = activation._now(), last_error = 'the loop was archived'
     WHERE m.loop_id = l.loop_id AND m.state = 'queued';
    DELETE FROM activation.signal g WHERE g.loop_id = l.loop_id AND g.error IS NULL;
    DELETE FROM activation.sweep w WHERE w.loop_id = l.loop_id;
    DELETE FROM activation.strike k WHERE k.loop_id = l.loop_id;
    FOR captured IN
        SELECT DISTINCT s.table_name::oid::regclass FROM activation.source s
         WHERE s.source_id IN (SELECT v.source_id FROM activation.loop_version v WHERE v.loop_id = l.loop_id
                               UNION SELECT w.source_id FROM activation.watch w WHERE w.loop_id = l.loop_id)
    LOOP
        PERFORM activation._generate_capture(captured);
    END LOOP;
END
$$;
COMMENT ON FUNCTION activation.archive_loop(text) IS
'Ends a loop: nobody is enrolled any more, who waits leaves it, what is queued is cancelled. Its history stays. Defining it again brings it back.';

-- ---- around an ALTER COLUMN TYPE ------------------------------------------------------------------------------------------

CREATE FUNCTION activation.unbind(table_name regclass) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = warning
AS $$
DECLARE
    bound regprocedure;
BEGIN
    IF table_name IS NULL THEN
        RAISE EXCEPTION 'unbind needs a table' USING ERRCODE = '22004', HINT = 'SELECT activation.unbind(''users'');';
    END IF;
    PERFORM activation._require_owner(activation._caller(), table_name, 'unbind');
    PERFORM pg_advisory_xact_lock(hashtext('activation'), hashtext('define'));
    -- What depends on the table, and the filters on it, whose arguments have the types of its columns.
    FOR bound IN
        SELECT DISTINCT p.oid::regprocedure
          FROM pg_proc p
         WHERE p.pronamespace = 'activation_compiled'::regnamespace
           AND (EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid
                           AND d.refclassid = 'pg_class'::regclass AND d.refobjid = unbind.table_name)
                OR p.proname IN (SELECT v.filter_function FROM activation.loop_version v WHERE v.users = unbind.table_name))
    LOOP
        -- CASCADE: the evaluation of a condition hangs on the condition.
        CONTINUE WHEN NOT EXISTS (SELECT FROM pg_proc p WHERE p.oid = bound);
        EXECUTE format('DROP FUNCTION %s CASCADE', bound);
    END LOOP;
END
$$;
COMMENT ON FUNCTION activation.unbind(regclass) IS
'Drops the compiled functions that hold on to a table, so that a column of it can change its type. Call activation.bind() afterwards, in the same transaction. For the table''s owner.';

CREATE FUNCTION activation.bind() RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    unbound record;
    made integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('activation'), hashtext('define'));
    FOR unbound IN
        SELECT v.loop_id, v.version, l.name, l.version = v.version AS is_current
          FROM activation.loop_version v JOIN activation."loop" l USING (loop_id)
         WHERE l.state <> 'archived' AND NOT activation._compiled(v.loop_id, v.version)
         ORDER BY v.loop_id, v.version
    LOOP
        BEGIN
            PERFORM activation._compile_version(unbound.loop_id, unbound.version);
            UPDATE activation."loop" l SET state = 'active', reason = NULL
             WHERE l.loop_id = unbound.loop_id AND l.state = 'failing' AND unbound.is_current;
            PERFORM activation._sweep(unbound.loop_id, activation._now());
            made := made + 1;
        EXCEPTION WHEN others THEN
            UPDATE activation."loop" l SET state = 'failing', reason = format('version %s no longer fits: %s', unbound.version, SQLERRM)
             WHERE l.loop_id = unbound.loop_id;
            RAISE WARNING 'loop "%" no longer fits: %', unbound.name, SQLERRM
                USING HINT = 'It is failing until it is defined again.';
        END;
    END LOOP;
    RETURN made;
END
$$;
COMMENT ON FUNCTION activation.bind() IS
'Compiles again what unbind() or a DROP … CASCADE removed, and returns how many versions it compiled. A loop that no longer fits is set to failing, with a WARNING.';

-- ---- mode ------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION activation.set_mode(mode text, redirect_to text DEFAULT NULL, hosts text[] DEFAULT NULL, backlog text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    host text := activation._host_name();
    s activation.setting := activation._setting();
    here activation.identity := activation._this_server(host);
    was_armed boolean := s.mode <> 'capture' AND activation._disarmed(host) IS NULL;
    waiting bigint;
    midway bigint;
BEGIN
    IF mode IS NULL OR mode NOT IN ('capture', 'redirect', 'live') THEN
        RAISE EXCEPTION 'unknown mode "%"', mode USING ERRCODE = '22023', HINT = 'It is one of capture, redirect, live.';
    END IF;
    IF backlog IS NOT NULL AND backlog NOT IN ('send', 'cancel') THEN
        RAISE EXCEPTION 'unknown backlog "%"', backlog USING ERRCODE = '22023', HINT = 'It is one of send, cancel.';
    END IF;
    IF (mode = 'redirect') <> (redirect_to IS NOT NULL) THEN
        RAISE EXCEPTION '%', CASE WHEN mode = 'redirect' THEN 'mode redirect needs an address' ELSE 'redirect_to goes with mode redirect only' END
            USING ERRCODE = '22023', HINT = 'SELECT activation.set_mode(''redirect'', redirect_to => ''you@acme.dev'');';
    END IF;
    IF redirect_to !~ '^[^@\s<>]+@[^@\s<>]+$' THEN
        RAISE EXCEPTION 'redirect_to "%" is not an address', redirect_to USING ERRCODE = '22023', HINT = 'Write ''you@acme.dev''.';
    END IF;
    IF hosts IS NOT NULL AND mode <> 'capture'
       AND NOT EXISTS (SELECT FROM unnest(hosts) AS h(pattern) WHERE format('%s:%s', here.host, here.port) LIKE h.pattern) THEN
        RAISE EXCEPTION 'hosts matches nothing here: this server is %:%', here.host, here.port
            USING ERRCODE = '22023', HINT = 'Patterns are those of LIKE over host:port, such as ''db%.acme.dev:5432''.';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('activation'), hashtext('mode'));

    IF mode <> 'capture' AND NOT was_armed THEN
        SELECT (SELECT count(*) FROM activation.message m WHERE m.state IN ('queued', 'sending')) INTO waiting;
        IF waiting > 0 AND backlog IS NULL THEN
            RAISE EXCEPTION '% messages wait from before', waiting
                USING ERRCODE = '55000',
                      HINT = format('Say what to do with them: SELECT activation.set_mode(%L, …, backlog => ''send''); or backlog => ''cancel''.', mode);
        END IF;
        IF waiting > 0 AND backlog = 'cancel' THEN
            UPDATE activation.message m
               SET state = CASE m.state WHEN 'queued' THEN 'cancelled' ELSE 'unknown' END, finished_at = activation._now(),
                   last_error = CASE m.state WHEN 'queued' THEN 'cancelled by set_mode' ELSE 'given up by set_mode while its outcome was not known' END
             WHERE m.state IN ('queued', 'sending');
            UPDATE activation.request r SET state = 'done', lease_token = NULL WHERE r.state = 'open';
        ELSIF waiting > 0 THEN
            -- Requests made in another mode are not repeated in this one.
            UPDATE activation.request r SET mode = set_mode.mode WHERE r.state = 'open';
        END IF;
        SELECT count(*) INTO midway FROM activation.enrollment e WHERE e.state = 'waiting';
        IF midway > 0 THEN
            RAISE NOTICE '% people are in the middle of a loop and may now be mailed', midway
                USING HINT = 'activation.journey shows them; activation.archive_loop(name) lets them out.';
        END IF;
    END IF;

    INSERT INTO activation.setting (singleton) VALUES (true) ON CONFLICT DO NOTHING;
    UPDATE activation.setting x
       SET mode = set_mode.mode, redirect_to = set_mode.redirect_to,
           hosts = CASE WHEN set_mode.mode = 'capture' THEN x.hosts ELSE set_mode.hosts END;
    DELETE FROM activation.identity;
    IF mode <> 'capture' THEN
        INSERT INTO activation.identity SELECT (here).*;
    END IF;
END
$$;
COMMENT ON FUNCTION activation.set_mode(text, text, text[], text) IS
'Says where mail goes: capture (default: nothing leaves, messages end as captured), redirect (all mail to redirect_to), live. Mail leaves only on the server this was called on: a copy of the database is disarmed. hosts: LIKE patterns over host:port, for standbys and containers, instead of the exact host, port and data directory. backlog: send or cancel, needed while messages wait from before.';

CREATE FUNCTION activation.resume() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE activation.provider p SET paused_until = NULL, pause_reason = NULL, paused_key = NULL WHERE p.paused_until > activation._now();
    IF NOT FOUND THEN
        RAISE NOTICE 'the provider was not paused';
    END IF;
END
$$;
COMMENT ON FUNCTION activation.resume() IS 'Ends a pause of the provider (a bad key, an unverified domain, a quota), after its cause was mended.';
