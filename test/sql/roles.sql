-- grant_role(): each kind of role has exactly what it needs, and can do what its page says.
\ir setup.sql
SELECT no_plan();

CREATE ROLE owner;
SELECT format('CREATE ROLE %I IN ROLE owner', kind) FROM unnest('{author,migration}'::text[]) AS kind \gexec
SELECT format('CREATE ROLE %I', kind) FROM unnest('{app,operator,viewer,analyst,stranger}'::text[]) AS kind \gexec
CREATE TABLE users (id bigint PRIMARY KEY, email text);
CREATE TABLE actions (user_id bigint, what text);
ALTER TABLE users OWNER TO owner;
ALTER TABLE actions OWNER TO owner;
CREATE FUNCTION pg_temp.code(statement text, role name) RETURNS text LANGUAGE sql AS $$ SELECT (pg_temp.outcome(statement, role)).code $$;
SELECT activation.configure(public_url => 'https://acme.dev/activation');
SELECT activation.grant_role(kind, kind::name) FROM unnest('{app,author,migration,operator,viewer,analyst}'::text[]) AS kind;
INSERT INTO users VALUES (1, 'one@example.net');

-- What each may do.

SELECT is(pg_temp.code(c, r), '00000', format('%s: %s', r, c))
  FROM (VALUES
    ('author', $$SELECT activation.set_template('hello', 'Hello', body_text => 'Hi.')$$),
    ('author', $$SELECT activation.define_loop('hers', trigger => activation.on_insert('users'), condition => activation.query('SELECT FROM actions WHERE user_id = $1', timeout => '1 day'), action => activation.email('hello'), recovery => activation.retry(1))$$),
    ('author', $$SELECT activation.import_loop('hers', activation.export_loop('hers'))$$),
    ('author', $$SELECT activation.diff_loop('hers', activation.export_loop('hers'))$$),
    ('author', $$SELECT * FROM activation.preview('1', 'hers')$$),
    ('author', $$SELECT activation.unbind('users')$$),
    ('author', $$SELECT activation.bind()$$),
    ('author', $$SELECT activation.pause_loop('hers')$$),
    ('author', $$SELECT activation.resume_loop('hers')$$),
    ('author', $$SELECT activation.migrate_loop('hers')$$),
    ('author', $$SELECT name, subject FROM activation.template$$),
    ('author', $$SELECT FROM activation.event$$),
    ('author', $$SELECT activation.archive_loop('hers')$$),
    ('migration', $$SELECT activation.configure(sender => 'Acme <hello@acme.dev>')$$),
    ('migration', $$SELECT activation.set_users('users', email => 'email')$$),
    ('migration', $$SELECT activation.set_topic('tips', 'Tips')$$),
    ('migration', $$SELECT activation.define_loop('theirs', trigger => activation.on_insert('users'), action => activation.email('milestone'))$$),
    ('migration', $$SELECT name, state FROM activation.loop$$),
    ('app', $$SELECT activation.track('1', 'opened')$$),
    ('app', $$SELECT activation.track_all('[{"user_id": "1", "event": "opened"}]')$$),
    ('app', $$SELECT activation.preferences('1')$$),
    ('app', $$SELECT activation.overview()$$),
    ('app', $$SELECT * FROM activation.why('1')$$),
    ('operator', $$SELECT * FROM activation.status$$),
    ('operator', $$SELECT * FROM activation.message_log$$),
    ('operator', $$SELECT * FROM activation.journey$$),
    ('operator', $$SELECT * FROM activation.why('1')$$),
    ('operator', $$SELECT * FROM activation.doctor()$$),
    ('operator', $$SELECT activation.enroll('1', 'theirs')$$),
    ('operator', $$SELECT activation.cancel('1', 'theirs')$$),
    ('operator', $$SELECT activation.suppress('two@example.net')$$),
    ('operator', $$SELECT activation.unsuppress('two@example.net')$$),
    ('operator', $$SELECT activation.export_user('1')$$),
    ('operator', $$SELECT activation.erase('1')$$),
    ('operator', $$SELECT activation.stop()$$),
    ('operator', $$SELECT activation.set_mode('live', backlog => 'send')$$),
    ('operator', $$SELECT activation.resume()$$),
    ('viewer', $$SELECT * FROM activation.status$$),
    ('viewer', $$SELECT * FROM activation.funnel$$),
    ('viewer', $$SELECT * FROM activation.cohort$$),
    ('viewer', $$SELECT * FROM activation.time_to_activate$$),
    ('viewer', $$SELECT * FROM activation.lift$$),
    ('viewer', $$SELECT * FROM activation.mail_numbers$$),
    ('viewer', $$SELECT activation.report()$$)) AS may(r, c);
SELECT is(pg_temp.code($$SELECT activation.receive_webhook('{}', '{}')$$, 'app'), 'HT400', 'app: its webhooks are read');
SELECT pg_temp.refused($$SELECT activation.set_template('milestone', 'Mine', body_text => 'Mine.')$$, '42501', '{"template \"milestone\"","loop \"theirs\"",migration}', 'another name',
                       'an author stores no template that a loop of somebody else uses', 'author');

-- And nothing else.

SELECT is(pg_temp.code(c, r), '42501', format('not %s: %s', r, c))
  FROM (VALUES
    ('app', $$SELECT * FROM activation.message_log$$), ('app', $$SELECT activation.erase('1')$$),
    ('app', $$SELECT activation.define_loop('a', trigger => activation.on_insert('users'), action => activation.email('milestone'))$$),
    ('author', $$SELECT activation.configure()$$), ('author', $$SELECT activation.start()$$), ('author', $$SELECT * FROM activation.loop$$),
    ('migration', $$SELECT activation.set_mode('live')$$), ('migration', $$SELECT activation.set_secret('a', 'b')$$),
    ('operator', $$SELECT activation.configure()$$), ('operator', $$SELECT * FROM activation.secret$$),
    ('viewer', $$SELECT activation.stop()$$), ('viewer', $$SELECT activation.export_user('1')$$),
    ('analyst', $$SELECT * FROM activation.status$$), ('analyst', $$SELECT activation.why('1')$$),
    ('stranger', $$SELECT activation.query('SELECT $1')$$), ('stranger', $$SELECT activation.grant_role('viewer', 'stranger')$$)) AS may_not(r, c);
SELECT is_empty(format($$SELECT p.proname FROM pg_proc p WHERE p.pronamespace = 'activation'::regnamespace AND has_function_privilege(%L, p.oid, 'EXECUTE')
                          EXCEPT SELECT unnest((activation._rights_of(%L)).routines)$$, kind, kind), format('%s may call what is listed, and no more', kind))
  FROM unnest('{app,author,migration,operator,viewer,analyst}'::text[]) AS kind;
SELECT is_empty(format($$SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'activation'::regnamespace AND c.relkind IN ('r', 'v') AND has_any_column_privilege(%L, c.oid, 'SELECT, INSERT, UPDATE')
                          EXCEPT SELECT unnest((activation._rights_of(%L)).tables || '{call,loop_definition}')$$, kind, kind), format('%s may read what is listed, and no more', kind))
  FROM unnest('{app,author,migration,operator,viewer,analyst}'::text[]) AS kind;
-- A list that names what does not exist would give less than it says.
SELECT is_empty($$SELECT r FROM unnest('{app,author,migration,operator,viewer,analyst}'::text[]) AS kind, unnest((activation._rights_of(kind)).routines) AS r
                   EXCEPT SELECT p.proname FROM pg_proc p WHERE p.pronamespace = 'activation'::regnamespace$$, 'every routine that is listed exists');

-- Refusals, and the way back.

SELECT pg_temp.refused($$SELECT activation.grant_role('boss', 'viewer')$$, '22023', '{boss}', 'viewer', 'a kind that is none');
SELECT pg_temp.refused($$SELECT activation.grant_role('viewer', 'nobody here')$$, '42704', '{"nobody here"}', 'CREATE ROLE', 'a role that is none');
SELECT activation.grant_role('viewer', 'viewer');
SELECT activation.revoke_role('viewer', 'viewer');
SELECT is_empty($$SELECT p.proname FROM pg_proc p WHERE p.pronamespace = 'activation'::regnamespace AND has_function_privilege('viewer', p.oid, 'EXECUTE')$$,
                'revoke_role() takes back what grant_role() gave, twice or not');

SELECT * FROM finish();
ROLLBACK;
