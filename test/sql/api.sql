-- The other verbs: settings, secrets, users tables, modes, and the shapes that people script against.
\ir setup.sql
SELECT no_plan();

-- configure.

SELECT lives_ok($$SELECT activation.configure(sender => 'Acme <hello@acme.dev>', api_key => 'env:RESEND_API_KEY', public_url => 'https://acme.dev/activation')$$, 'configure');
SELECT lives_ok($$SELECT activation.configure(reply_to => 'help@acme.dev', timezone => 'Europe/Berlin', rate => 5, resend_url => 'http://127.0.0.1:8080', webhook_secret => 'file:/etc/secret')$$, 'in several calls');
SELECT results_eq('SELECT sender, api_key, public_url, reply_to, timezone, rate, resend_url, webhook_secret FROM activation.setting',
    $$VALUES ('Acme <hello@acme.dev>', 'env:RESEND_API_KEY', 'https://acme.dev/activation', 'help@acme.dev', 'Europe/Berlin', 5::numeric, 'http://127.0.0.1:8080', 'file:/etc/secret')$$,
    'NULL leaves a setting as it was');
SELECT activation.configure(reply_to => '', timezone => '', resend_url => '', webhook_secret => '');
SELECT results_eq('SELECT sender, reply_to, timezone, resend_url, webhook_secret FROM activation._setting()',
    $$VALUES ('Acme <hello@acme.dev>', NULL, 'UTC', 'https://api.resend.com', NULL)$$, 'an empty text clears it: the default again');
SELECT lives_ok(format('SELECT activation.configure(sender => %L)', s), 'a sender may be ' || s)
  FROM unnest(ARRAY['a@example.net', '<a@example.net>', 'Åse & Co. <a@example.net>', '"Acme, Inc." <a+b@mail.example.net>']) AS s;
SELECT lives_ok(format('SELECT activation.configure(api_key => %L)', k), 'a key may be ' || k) FROM unnest(ARRAY['env:A_KEY', 'file:/run/secrets/key', 'secret:resend']) AS k;
SELECT is(count(*)::integer, 1, 'there is one row of settings') FROM activation.setting;

-- set_secret.

SELECT activation.set_secret('resend', 're_one');
SELECT activation.set_secret('resend', 're_two');
SELECT activation.set_secret('other', 'x');
SELECT activation.set_secret('other', '');
SELECT results_eq('SELECT name, value FROM activation.secret', $$VALUES ('resend', 're_two')$$, 'set_secret stores, replaces, and removes');

-- set_users.

CREATE TABLE users (id bigint PRIMARY KEY, email text, mail text, zone text, nick text UNIQUE);
CREATE TABLE "User" ("userId" uuid PRIMARY KEY DEFAULT gen_random_uuid(), "eMail" text);
CREATE TABLE teams (team bigint, member bigint, email text, PRIMARY KEY (team, member));
CREATE TABLE plain (id text, email varchar(80));
CREATE INDEX ON plain (id);
CREATE TABLE halves (id bigint, email text, gone boolean);
CREATE UNIQUE INDEX ON halves (id) WHERE NOT gone;
CREATE TABLE parts (id bigint, email text, region text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE parts_eu PARTITION OF parts FOR VALUES IN ('eu');

CREATE FUNCTION pg_temp.registered(call text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    found text;
BEGIN
    EXECUTE 'SELECT ' || call;
    SELECT format('%s: %s, %s, %s', users, key_column, email_column, coalesce(timezone_column, '-')) INTO found FROM activation.users_table;
    DELETE FROM activation.users_table;
    RETURN found;
END
$$;
SELECT is(pg_temp.registered(call), found, call)
  FROM (VALUES
    ($$activation.set_users('users')$$, 'users: id, email, -'),
    ($$activation.set_users('users', email => 'mail', timezone => 'zone')$$, 'users: id, mail, zone'),
    ($$activation.set_users('users', key => 'nick')$$, 'users: nick, email, -'),
    ($$activation.set_users('"User"', email => 'eMail')$$, '"User": userId, eMail, -'),
    ($$activation.set_users('teams', key => 'team')$$, 'teams: team, email, -'),
    ($$activation.set_users('plain', key => 'id')$$, 'plain: id, email, -'),
    ($$activation.set_users('parts', key => 'id')$$, 'parts: id, email, -')
  ) AS c(call, found);
SELECT pg_temp.refused($$SELECT activation.set_users('teams', key => 'member')$$, '55000', '{member,public.teams,"no index"}', 'CREATE INDEX', 'a key that is second in an index');
SELECT pg_temp.refused($$SELECT activation.set_users('halves', key => 'id')$$, '55000', '{id,public.halves,"no index"}', 'CREATE INDEX', 'a partial index is none');

SELECT activation.set_users('users', email => 'mail', timezone => 'zone');
SELECT activation.set_users('users', email => 'email');
SELECT results_eq('SELECT key_column, email_column, timezone_column FROM activation.users_table', $$VALUES ('id'::name, 'email'::name, 'zone'::name)$$, 'again: only what is named changes');
SELECT activation.set_users('plain', key => 'id');
SELECT is(count(*)::integer, 2, 'several users tables may be registered') FROM activation.users_table;

-- Loops over all of these.

INSERT INTO "User" VALUES ('00000000-0000-0000-0000-00000000000a', 'a@example.net');
CREATE TABLE "Done" ("userId" uuid);
SELECT activation.set_users('"User"', email => 'eMail');
SELECT lives_ok($q$SELECT activation.define_loop('quoted', trigger => activation.on_insert('"User"'),
    condition => activation.query('SELECT * FROM "Done" WHERE "userId" = $1'),
    action => activation.email('milestone', personalization => '{"name": "{{user.eMail}}"}'))$q$, 'a loop over a quoted, mixed-case table with uuid keys');
SELECT is(activation.export_loop('quoted') ->> 'users', 'public."User"', 'its name is stored quoted');
SELECT results_eq($$SELECT recipient, problem FROM activation.preview('00000000-0000-0000-0000-00000000000a', 'quoted')$$, $$VALUES ('a@example.net', NULL::text)$$, 'users are found by their key as text');
INSERT INTO "User" VALUES ('00000000-0000-0000-0000-00000000000b', 'b@example.net');
INSERT INTO "Done" VALUES ('00000000-0000-0000-0000-00000000000b');
SELECT lives_ok($q$SELECT activation.define_loop('texts', trigger => activation.on_insert('plain'), action => activation.email('milestone'))$q$, 'one with text keys');
INSERT INTO plain VALUES (E'it''s "a", {key}\\', 'c@example.net');
SELECT lives_ok($q$SELECT activation.define_loop('parts', trigger => activation.on_insert('teams'), action => activation.email('milestone'))$q$
    , 'one whose key is named by set_users') FROM (SELECT activation.set_users('teams', key => 'team')) s;
INSERT INTO teams VALUES (7, 1, 'd@example.net'), (7, 2, 'e@example.net');
SELECT pg_temp.round();
SELECT results_eq('SELECT loop, user_id, state FROM activation.journey ORDER BY 1, 2',
    $$VALUES ('parts', '7', 'completed'), ('quoted', '00000000-0000-0000-0000-00000000000b', 'completed'), ('texts', E'it''s "a", {key}\\', 'completed')$$,
    'keys of every kind come through; rows of one key are one user');
SELECT activation.archive_loop(name) FROM activation.loop;

-- set_mode.

SELECT is(state, 'capture', 'nothing leaves by default') FROM activation.status WHERE component = 'mode';
SELECT activation.set_mode('live', backlog => 'cancel');
SELECT is(state, 'live', 'live') FROM activation.status WHERE component = 'mode';
SELECT is(format('%s:%s', database, port), format('%s:%s', current_database(), current_setting('port')), 'on this server') FROM activation.identity;
SELECT activation.set_mode('redirect', redirect_to => 'me@example.net');
SELECT matches(detail, 'me@example.net', 'redirect') FROM activation.status WHERE component = 'mode' AND state = 'redirect';
SELECT activation.set_mode('live', hosts => ARRAY['nowhere:%', '%:' || current_setting('port')]);
SELECT is(state, 'live', 'live on hosts') FROM activation.status WHERE component = 'mode';
UPDATE activation.identity SET data_directory = '/elsewhere';
SELECT is(state, 'live', 'by pattern, wherever its data lies') FROM activation.status WHERE component = 'mode';
SELECT activation.set_mode('live');
UPDATE activation.identity SET port = 1;
SELECT is(state, 'disarmed', 'a server that it was not called on sends nothing') FROM activation.status WHERE component = 'mode';
SELECT activation.set_mode('capture');
SELECT is_empty('SELECT FROM activation.identity', 'capture forgets the server');

CREATE TABLE people (id bigint PRIMARY KEY, email text);
SELECT activation.define_loop('greeting', trigger => activation.on_insert('people'), action => activation.email('milestone'), opinion => 'Say hello.',
                              condition => activation.query('SELECT FROM people WHERE id = $1 AND email <> ''''', timeout => '1 day'), otherwise => activation.email('activation_nudge'));
INSERT INTO people VALUES (1, 'one@example.net'), (2, '');
SELECT pg_temp.round();
SELECT pg_temp.refused($$SELECT activation.set_mode('live')$$, '55000', '{"1 messages wait"}', 'backlog => ''send''', 'going live with messages that wait asks what to do with them');
SAVEPOINT before;
SELECT activation.set_mode('live', backlog => 'send');
SELECT results_eq($$SELECT status FROM activation.message_log WHERE loop = 'greeting'$$, ARRAY['queued'], 'send');
SELECT lives_ok($$SELECT activation.set_mode('redirect', redirect_to => 'me@example.net')$$, 'asked only when nothing left before');
ROLLBACK TO before;
SELECT activation.set_mode('live', backlog => 'cancel');
SELECT results_eq($$SELECT status, last_error FROM activation.message_log WHERE loop = 'greeting'$$, $$VALUES ('cancelled', 'cancelled by set_mode')$$, 'or cancel');

-- Shapes. More columns may follow, none goes.

CREATE FUNCTION pg_temp.columns(shape text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    found text;
BEGIN
    EXECUTE format('CREATE TEMP VIEW shape AS SELECT * FROM %s', shape);
    SELECT string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum) INTO found FROM pg_attribute a WHERE a.attrelid = 'pg_temp.shape'::regclass;
    DROP VIEW pg_temp.shape;
    RETURN found;
END
$$;
SELECT alike(pg_temp.columns('activation.message_log'), 'message_id uuid, loop text, step text, user_id text, recipient text, subject text, status text, attempts integer, '
    'created_at timestamp with time zone, sent_at timestamp with time zone, resend_id text, last_error text%', 'message_log');
SELECT alike(pg_temp.columns('activation.journey'), 'enrollment_id bigint, loop text, version integer, user_id text, state text, step text, enrolled_at timestamp with time zone, '
    'activated_at timestamp with time zone, deadline timestamp with time zone, holdout boolean%', 'journey');
SELECT alike(pg_temp.columns('activation.status'), 'component text, state text, detail text%', 'status');
SELECT is(pg_temp.columns('activation.why(''1'')'), 'at timestamp with time zone, loop text, event text, detail text, code text', 'why');
SELECT is(pg_temp.columns('activation.preview(''1'', ''greeting'')'), 'step text, branch text, purpose text, recipient text, subject text, html text, body_text text, problem text', 'preview');

-- What they show.

SELECT results_eq($$SELECT step, branch, purpose, recipient, subject <> '', problem FROM activation.preview('1', 'greeting')$$,
    $$VALUES ('step1', 'action', 'Say hello.', 'one@example.net', true, NULL::text), ('step1', 'otherwise', 'Say hello.', 'one@example.net', true, NULL)$$,
    'preview: one row a branch, with the opinion as its purpose');

SELECT results_eq($$SELECT component, state FROM activation.status$$,
    $$VALUES ('mode', 'live'), ('provider', 'ok'), ('queue', 'ok'), ('loop greeting', 'ok'), ('loop parts', 'stopped'), ('loop quoted', 'stopped'), ('loop texts', 'stopped')$$,
    'status: mode first, then the provider, the queue and the loops');
SELECT activation.configure(api_key => 'env:NO_SUCH_VARIABLE');
SELECT matches(detail, 'no usable key: .*NO_SUCH_VARIABLE', 'with the reason') FROM activation.status WHERE component = 'provider';
SELECT is_empty($$SELECT * FROM activation.status WHERE state NOT IN ('ok', 'waiting', 'paused', 'failing', 'stopped', 'capture', 'redirect', 'live', 'disarmed')$$, 'states are these');

INSERT INTO people VALUES (3, '');
SELECT set_config('activation.now', (now() + interval '1 hour')::text, true);
SELECT pg_temp.round();
SELECT results_eq($$SELECT at = activation._now(), event, detail FROM activation.why('3')$$,
    $$VALUES (false, 'enrolled', 'in version 1, by an insert into public.people'), (true, 'evaluated', 'condition false at enrollment'),
             (true, 'waiting', 'condition is now false; deadline ' || now() + interval '1 day')$$, 'why: who waits');
SELECT set_config('activation.now', (now() + interval '2 days')::text, true);
SELECT pg_temp.round();
SELECT results_eq($$SELECT event, detail FROM activation.why('3', 'greeting')$$,
    $$VALUES ('enrolled', 'in version 1, by an insert into public.people'), ('evaluated', 'condition false at enrollment'),
             ('evaluated', 'condition still false at the deadline, 1 day after enrollment'), ('message promised', 'otherwise: template activation_nudge'),
             ('queued', 'waits to be sent')$$, 'why: who was timed out');
SELECT results_eq($$SELECT event FROM activation.why('1', 'greeting')$$,
    $$VALUES ('enrolled'), ('activated'), ('evaluated'), ('message promised'), ('cancelled')$$, 'why: who acted, and whose mail was cancelled');
SELECT results_eq($$SELECT loop, event, detail FROM activation.why('99', 'greeting')$$,
    $$VALUES ('greeting', 'not enrolled', 'there is no user 99 in public.people')$$, 'why: who was never seen');
INSERT INTO people VALUES (4, '');
SELECT results_eq($$SELECT event FROM activation.why('4', 'greeting')$$, ARRAY['signal'], 'why: who was not taken yet');

-- Without pg_cron's launcher a schedule is only rows; they roll back with the rest.

SELECT lives_ok('SELECT activation.start(detectors => 2)', 'start');
SELECT set_eq($$SELECT format('%s %s %s', jobname, schedule, command) FROM cron.job WHERE database = current_database() AND jobname LIKE 'activation%'$$,
    ARRAY['activation-detect-1 * * * * * CALL activation.detect(slot => 1)', 'activation-detect-2 * * * * * CALL activation.detect(slot => 2)',
          'activation-deliver-1 * * * * * CALL activation.deliver(slot => 1)'], 'makes named jobs');
SELECT activation.start();
SELECT set_eq($$SELECT jobname FROM cron.job WHERE jobname LIKE 'activation%'$$, ARRAY['activation-detect-1', 'activation-deliver-1'], 'start again: as many as are asked for');
SELECT set_eq($$SELECT component, state FROM activation.status WHERE component ~ '^de'$$, $$VALUES ('detector 1', 'waiting'), ('deliverer 1', 'waiting')$$, 'status shows the workers');
SELECT activation.stop();
SELECT is_empty($$SELECT jobname FROM cron.job WHERE jobname LIKE 'activation%'$$, 'stop removes them');

-- A verb leaves the session's settings as it found them. (But for set_secret: the text of a statement that follows it in the
-- same transaction may be the same text, and is kept out of the log.)

CREATE FUNCTION pg_temp.settings_after(call text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    before jsonb := (SELECT jsonb_object_agg(name, setting) FROM pg_settings);
BEGIN
    EXECUTE 'SELECT ' || call;
    RETURN (SELECT string_agg(format('%s: %s, before %s', s.name, s.setting, before ->> s.name), '; ') FROM pg_settings s WHERE s.setting IS DISTINCT FROM before ->> s.name);
END
$$;
SET LOCAL client_min_messages = error;
SELECT is(pg_temp.settings_after(call), NULL, 'settings are as they were after ' || call)
  FROM unnest(ARRAY[$$activation.set_users('people')$$, $$activation.import_loop('greeting', activation.export_loop('greeting'))$$,
                    $$activation.import_loop('again', activation.export_loop('greeting'))$$, $$activation.unbind('people')$$, 'activation.bind()',
                    $$activation.configure(sender => 'a@example.net')$$, $$activation.preview('1', 'greeting')$$, $$activation.why('1')$$,
                    $$activation.set_mode('capture')$$, $$activation.archive_loop('again')$$]) AS call;

SELECT * FROM finish();
ROLLBACK;
