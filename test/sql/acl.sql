-- Who may do what: an app that may only insert, an author, an operator, a viewer, and nobody else anything.
\ir setup.sql
SELECT no_plan();

CREATE ROLE app;
CREATE ROLE owner;
CREATE ROLE author IN ROLE owner;
CREATE ROLE operator;
CREATE ROLE viewer;
CREATE ROLE analyst;
CREATE ROLE stranger;

-- The grants of docs/operations.md.
GRANT USAGE ON SCHEMA activation TO author;
GRANT EXECUTE ON FUNCTION activation.define_loop, activation.import_loop, activation.export_loop, activation.on_insert,
  activation.query, activation.email, activation.retry, activation.step, activation.set_users, activation.preview TO author;
GRANT USAGE ON SCHEMA activation TO operator;
GRANT EXECUTE ON FUNCTION activation.start, activation.stop, activation.resume, activation.set_mode, activation.pause_loop,
  activation.resume_loop, activation.why, activation._status TO operator;
GRANT SELECT ON activation.status, activation.message_log, activation.journey TO operator;
GRANT USAGE ON SCHEMA activation TO viewer;
GRANT EXECUTE ON FUNCTION activation.why, activation.power, activation._status, activation._now, activation._two_tails,
  activation._wilson, activation._percent TO viewer;
GRANT SELECT ON activation.status, activation.message_log, activation.journey, activation.funnel, activation.cohort,
  activation.time_to_activate, activation.lift, activation.mail_numbers TO viewer;

GRANT USAGE ON SCHEMA activation TO analyst;
GRANT EXECUTE ON FUNCTION activation.suggest, activation.query, activation.on_insert, activation.email, activation._suggest_plan, activation._suggest_rank, activation._look_up TO analyst;
GRANT EXECUTE ON FUNCTION activation.simulate, activation.milestone, activation._suggest_users, activation._simulate, activation._simulate_plan, activation._simulate_query,
  activation._first_true, activation._held_out, activation._next_opening TO analyst;

CREATE TABLE users (id bigint PRIMARY KEY, email text, plan text);
CREATE TABLE actions (user_id bigint, what text);
CREATE TABLE private (user_id bigint);
ALTER TABLE users OWNER TO owner;
ALTER TABLE actions OWNER TO owner;
GRANT INSERT ON users, actions TO app;
SELECT activation.set_secret('resend', 're_stored');
SELECT activation.configure(public_url => 'https://acme.dev/activation');
SELECT activation.define_loop('not hers', trigger => activation.on_insert('users'), action => activation.email('milestone'));

CREATE FUNCTION pg_temp.code(statement text, role name) RETURNS text LANGUAGE sql AS $$ SELECT (pg_temp.outcome(statement, role)).code $$;

-- An author.

SELECT is(pg_temp.code($q$SELECT activation.define_loop('hers', trigger => activation.on_insert('users', filter => $$NEW.plan = 'free'$$),
    condition => activation.query('SELECT FROM actions WHERE user_id = $1', timeout => '1 day'), action => activation.email('activation_welcome'),
    recovery => activation.retry(1))$q$, 'author'), '00000', 'an author defines a loop on a table whose owner''s rights it has');
SELECT is(pg_temp.code($$SELECT activation.import_loop('hers', activation.export_loop('hers'))$$, 'author'), '00000', 'takes it out and puts it back');
SELECT is(pg_temp.code($$SELECT * FROM activation.preview('1', 'hers')$$, 'author'), '02000', 'looks at its mails, if there is such a user');
SELECT pg_temp.refused($$SELECT activation.import_loop('not hers', activation.export_loop('hers'))$$, '42501', '{"loop \"not hers\"",postgres}', 'author',
                       'redefines no loop of somebody else', 'author');
SELECT pg_temp.refused($$SELECT activation.define_loop('more', trigger => activation.on_insert('users'), condition => activation.query('SELECT FROM private WHERE user_id = $1'),
    action => activation.email('milestone'))$$, '42501', '{"loop \"more\"",private}', '', 'reads no table through a condition that it may not read', 'author');
SELECT pg_temp.refused($$SELECT activation.define_loop('more', trigger => activation.on_insert('users'), condition => activation.query('SELECT FROM activation.secret WHERE value <> $1::text'),
    action => activation.email('milestone'))$$, '42501', '{"loop \"more\"",secret}', '', 'nor one of ours', 'author');
SELECT pg_temp.refused($q$SELECT activation.define_loop('more', trigger => activation.on_insert('users', filter => $$(SELECT true FROM activation.secret) AND NEW.plan = 'free'$$),
    action => activation.email('milestone'))$q$, '42501', '{"loop \"more\"",secret}', '', 'nor through a filter', 'author');

SELECT is_empty($$SELECT c.oid::regclass FROM pg_class c WHERE c.relnamespace = 'activation'::regnamespace
                   AND CASE WHEN c.relkind = 'S' THEN has_sequence_privilege('author', c.oid, 'USAGE, SELECT, UPDATE')
                            WHEN c.relkind IN ('r', 'v') THEN has_any_column_privilege('author', c.oid, 'SELECT, INSERT, UPDATE, REFERENCES') END
                   AND c.oid <> ALL ('{activation.call,activation.loop_definition}'::regclass[])$$,
                'an author has no right on any table of ours but on what knows its caller');
SELECT is(pg_temp.code('SELECT FROM activation.' || t, 'author'), '42501', 'and cannot read ' || t)
  FROM unnest(ARRAY['secret', 'identity', 'setting', 'enrollment', 'message', 'message_log', 'status']) AS t;
SELECT is_empty($$SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = 'activation'::regnamespace AND left(p.proname, 1) = '_'
                   AND has_function_privilege('author', p.oid, 'EXECUTE')$$, 'an author may call no private function');
SELECT is(pg_temp.code('SELECT activation.' || f, 'author'), '42501', 'such as ' || f)
  FROM unnest(ARRAY['_setting()', '_secret(text ''resend'')', '_run_on_path(''public'', ''{SELECT 1}'', true)', '_safe_eval(''x'', ''postgres'', ''{}'')', '_generate_capture(''users'')']) AS f;
SELECT is(pg_temp.code('SELECT activation.' || f, 'author'), '42501', 'or the verbs that it was not given, such as ' || f)
  FROM unnest(ARRAY['configure(sender => ''a@example.net'')', 'set_secret(''a'', ''b'')', 'set_mode(''live'')', 'set_template(''a'', ''b'', ''c'')', 'start()', 'stop()', 'bind()', 'why(''1'')']) AS f;
SELECT is(pg_temp.code('CALL activation.tick()', 'author'), '42501', 'nor does it run the engine');

-- What was compiled for it.

SELECT set_eq(
    $$SELECT format('%s owner %s definer %s', regexp_replace(split_part(p.proname, ': ', 2), '\(\d+\.', '('), pg_get_userbyid(p.proowner), p.prosecdef)
        FROM pg_proc p WHERE p.pronamespace = 'activation_compiled'::regnamespace AND p.proname LIKE 'hers: %'$$,
    ARRAY['condition (v1) owner author definer f', 'evaluate (v1) owner author definer t', 'filter (v1) owner author definer t', 'passes (v1) owner author definer t', 'users (v1) owner author definer t'],
    'what is compiled runs with the rights of the loop''s owner');
SELECT set_eq($$SELECT pg_get_userbyid(p.proowner)::text || p.prosecdef FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
                 WHERE t.tgrelid IN ('users'::regclass, 'actions'::regclass) AND NOT t.tgisinternal$$,
              ARRAY['activation_enginetrue'], 'what captures runs with the engine''s');
SELECT is_empty($$SELECT p.oid::regprocedure FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
                   WHERE p.pronamespace = 'activation_compiled'::regnamespace AND a.grantee = 0$$, 'PUBLIC may execute nothing that was generated');
SELECT is_empty($$SELECT r, k FROM unnest(ARRAY['app', 'owner', 'author', 'operator', 'viewer', 'stranger']) r, unnest(ARRAY['USAGE', 'CREATE']) k
                   WHERE has_schema_privilege(r, 'activation_compiled', k)$$, 'nobody has a right on the schema of what was generated, not even its owner');
SELECT is(pg_temp.code(replace(c, '(2.v1)', format('(%s.v1)', l.loop_id)), 'author'), '42501', 'so that its owner cannot ' || c)
  FROM activation.loop l, unnest(ARRAY['ALTER FUNCTION activation_compiled."hers: condition (2.v1)"(bigint) SECURITY DEFINER', 'DROP FUNCTION activation_compiled."hers: evaluate (2.v1)"(text[])',
                    'SELECT activation_compiled."hers: evaluate (2.v1)"(''{1}'')', 'CREATE FUNCTION activation_compiled.f() RETURNS int RETURN 1',
                    'ALTER FUNCTION activation_compiled."users: insert (1)"() RESET ALL']) AS c WHERE l.name = 'hers';
SELECT is_empty($$SELECT FROM pg_namespace n, aclexplode(n.nspacl) a WHERE n.nspname = 'activation_compiled' AND a.grantee NOT IN (n.nspowner, 'activation_engine'::regrole)$$,
                'no grant is left of compiling');

-- An app that may only insert.

SELECT activation._set_watching(true);
DELETE FROM activation.signal;
SELECT is(pg_temp.code($$INSERT INTO users VALUES (1, 'one@example.net', 'free'), (2, 'two@example.net', 'paid')$$, 'app'), '00000', 'an app role inserts a user');
SELECT results_eq($$SELECT l.name, s.user_id, s.error FROM activation.signal s LEFT JOIN activation.loop l USING (loop_id) ORDER BY 1 NULLS FIRST, 2$$,
                  $$VALUES (NULL, '1', NULL), (NULL, '2', NULL), ('hers', '1', NULL)$$, 'and signals appear, by the filter');
SELECT is(pg_temp.code($$INSERT INTO actions VALUES (1, 'made')$$, 'app'), '00000', 'inserts an action');
SELECT results_eq($$SELECT w.user_id FROM activation.wake w JOIN activation.source s USING (source_id) WHERE s.table_name = 'actions'::regclass$$, ARRAY['1'], 'and a wake appears');
SELECT pg_temp.round();
SELECT results_eq($$SELECT user_id, state FROM activation.journey WHERE loop = 'hers'$$, $$VALUES ('1', 'completed')$$, 'that the engine finds');
SELECT is_empty($$SELECT n FROM unnest(ARRAY['activation', 'activation_compiled']) n WHERE has_schema_privilege('app', n, 'USAGE')
                  UNION ALL SELECT c.oid::regclass::text FROM pg_class c WHERE c.relnamespace = 'activation'::regnamespace AND CASE WHEN c.relkind IN ('r', 'v') THEN has_any_column_privilege('app', c.oid, 'SELECT, INSERT, UPDATE, REFERENCES') END
                     AND c.oid <> ALL ('{activation.call,activation.loop_definition}'::regclass[])
                  UNION ALL SELECT p.oid::regprocedure::text FROM pg_proc p WHERE p.pronamespace IN ('activation'::regnamespace, 'activation_compiled'::regnamespace) AND has_function_privilege('app', p.oid, 'EXECUTE')$$,
                'an app role has no right on anything of ours');
SELECT is(pg_temp.code('INSERT INTO activation.signal (source_id, generation, user_id) VALUES (1, 1, ''3'')', 'app'), '42501', 'and writes no signal itself');

-- An operator and a viewer.

SELECT is(pg_temp.code(c, r), '00000', format('%s: %s', r, c))
  FROM (VALUES ('viewer', 'SELECT * FROM activation.status'), ('viewer', 'SELECT * FROM activation.message_log'), ('viewer', 'SELECT * FROM activation.journey'),
               ('viewer', 'SELECT * FROM activation.why(''1'')'),
               ('viewer', 'SELECT * FROM activation.funnel'), ('viewer', 'SELECT * FROM activation.cohort'), ('viewer', 'SELECT * FROM activation.lift'),
               ('viewer', 'SELECT * FROM activation.time_to_activate'), ('viewer', 'SELECT * FROM activation.mail_numbers'), ('operator', 'SELECT * FROM activation.status'), ('operator', 'SELECT activation.stop()'),
               ('operator', 'SELECT activation.set_mode(''live'', backlog => ''send'')'), ('operator', 'SELECT activation.resume()')) AS v(r, c);
SELECT is(pg_temp.code(c, r), '42501', format('not %s: %s', r, c))
  FROM (VALUES ('viewer', 'SELECT activation.set_mode(''capture'')'), ('viewer', 'SELECT activation.stop()'), ('viewer', 'SELECT * FROM activation.secret'), ('viewer', 'SELECT * FROM activation.message'),
               ('operator', 'SELECT * FROM activation.secret'), ('operator', 'SELECT activation.set_secret(''a'', ''b'')'), ('operator', 'SELECT activation.configure()'),
               ('stranger', 'SELECT * FROM activation.status'), ('stranger', 'SELECT activation.why(''1'')'), ('stranger', 'SELECT activation.query(''SELECT $1'')')) AS v(r, c);
SELECT pg_temp.refused($$SELECT activation.pause_loop('hers')$$, '42501', '{"loop \"hers\"",author}', 'operator', 'an operator pauses the loops of roles whose member it is', 'operator');
GRANT author TO operator;
SELECT is(pg_temp.code($$SELECT activation.pause_loop('hers')$$, 'operator'), '00000', 'indeed');

-- An analyst, who is nobody's member: no loop is shown to them, and no right of ours is lacking.

SELECT is(ARRAY(SELECT format('%s of %s', loop, owner) COLLATE "C" FROM activation.loop_definition ORDER BY 1), ARRAY['hers of author', 'not hers of postgres'], 'a superuser sees the definitions of all loops');
SET LOCAL ROLE analyst;
SELECT is_empty('SELECT FROM activation.loop_definition WHERE visible OR definition IS NOT NULL OR names IS NOT NULL', 'an analyst those of roles whose member they are: none');
RESET ROLE;
GRANT author TO analyst;
SET LOCAL ROLE analyst;
SELECT results_eq('SELECT loop::text FROM activation.loop_definition WHERE visible', ARRAY['hers'], 'or some');
RESET ROLE;
REVOKE author FROM analyst;
SELECT is(pg_temp.code('SELECT * FROM activation.simulate(''hers'')', 'analyst'), '42704', 'a loop that is not shown cannot be rehearsed');
GRANT SELECT ON users TO analyst;
SELECT is(pg_temp.code(c, 'analyst'), '55000', 'an analyst may ask, and is told what is missing: ' || c)
  FROM unnest(ARRAY['SELECT * FROM activation.suggest()', 'SELECT * FROM activation.milestone(activation.query(''SELECT FROM actions WHERE user_id = $1''))']) AS c;

-- A loop whose owner lost its rights stops; the app goes on.

REVOKE owner FROM author;
REVOKE author FROM operator;
SET LOCAL client_min_messages = error;
SELECT is(pg_temp.code($$INSERT INTO users VALUES (3, 'three@example.net', 'free')$$, 'app'), '00000', 'a filter whose owner lost its rights does not stop the app');
SET LOCAL client_min_messages = warning;
SELECT results_eq($$SELECT l.name, s.error FROM activation.signal s LEFT JOIN activation.loop l USING (loop_id) WHERE s.user_id = '3' ORDER BY 1 NULLS FIRST$$,
                  $$VALUES (NULL, NULL), ('hers', 'permission denied for table users')$$, 'and is written down; other loops go on');
SELECT is(pg_temp.code($$SELECT activation.import_loop('hers', activation.export_loop('hers'))$$, 'author'), '42501', 'who lost the owner''s rights defines no more');

SELECT * FROM finish();
ROLLBACK;
