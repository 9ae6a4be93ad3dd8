-- Definitions: the owner's loop as calls and as a document, versions, and who is in or out of a loop.
\ir setup.sql
SELECT no_plan();

CREATE TABLE users (id bigint PRIMARY KEY, email text, name text, activation_link text);
CREATE TABLE user_actions (id bigint PRIMARY KEY, user_id bigint REFERENCES users, action_type text);
SELECT activation.set_users('users', email => 'email');

-- As calls.

SELECT is(
    activation.define_loop('first_project',
      trigger   => activation.on_insert('users'),
      condition => activation.query($$SELECT * FROM user_actions WHERE user_id = $1 AND action_type = 'first_project_created'$$, timeout => '5m'),
      action    => activation.email('activation_welcome',
                     personalization => '{"name": "{{user.name}}", "activationLink": "{{user.activation_link}}"}'),
      recovery  => activation.retry(3, 'exponential')),
    1, 'the first definition is version 1');

SELECT is(activation.export_loop('first_project'), '{
    "type": "activation", "opinion": null, "users": "public.users",
    "trigger": {"type": "database", "table": "public.users", "event": "insert", "user_key": null, "filter": null, "columns": null},
    "steps": [{
        "name": "step1", "delay": "00:00:00", "on_timeout": "continue", "otherwise": null,
        "condition": {"type": "query", "timeout": "00:05:00", "every": null, "watch": null,
                      "query": "SELECT * FROM user_actions WHERE user_id = $1 AND action_type = ''first_project_created''"},
        "action": {"type": "email", "provider": "resend", "template": "activation_welcome", "subject": null, "sender": null, "reply_to": null,
                   "personalization": {"name": "{{user.name}}", "activationLink": "{{user.activation_link}}"}}}],
    "recovery": {"retries": 3, "backoff": "exponential", "initial": "00:00:30", "max": "01:00:00"},
    "goal": null, "reentry": "once", "enroll": "new", "per_hour": null, "topic": null, "transactional": false, "priority": 0,
    "over_cap": "wait", "holdout": 0, "send_window": null}'::jsonb,
    'export_loop writes out every default and tables with their schema');

SELECT set_eq(
    $$SELECT tgname::text FROM pg_trigger WHERE tgrelid = 'users'::regclass AND NOT tgisinternal AND tgname LIKE 'activation%'$$,
    ARRAY['activation_delete', 'activation_insert'], 'the users table has a trigger for those who come and one for those who go');
SELECT set_eq(
    $$SELECT tgname::text FROM pg_trigger WHERE tgrelid = 'user_actions'::regclass AND NOT tgisinternal$$,
    ARRAY['activation_insert', 'activation_update'], 'the table of the condition is watched');

-- The same as a document.

SELECT is(
    activation.import_loop('document', '{"type":"activation","opinion":"Who made a project stays.","steps":[{
      "trigger":{"type":"database","table":"users","event":"insert"},
      "condition":{"type":"query","query":"SELECT * FROM user_actions WHERE user_id = $1 AND action_type = ''first_project_created''","timeout":"5m"},
      "action":{"type":"email","provider":"resend","template":"activation_welcome",
                "personalization":{"name":"{{user.name}}","activationLink":"{{user.activation_link}}"}}}],
      "recovery":{"retries":3,"backoff":"exponential"}}'),
    1, 'import_loop defines it, too');
SELECT is(activation.export_loop('document') - 'opinion', activation.export_loop('first_project') - 'opinion', 'and both are equal but for the opinion');
SELECT is(activation.export_loop('document') ->> 'opinion', 'Who made a project stays.', 'which is kept');

SELECT is(activation.import_loop('document', activation.export_loop('document')), 1, 'import_loop(export_loop(x)) is x: no new version');
SELECT is(activation.import_loop('copy', activation.export_loop('document')), 1, 'under another name it is another loop');
SELECT is(activation.export_loop('copy'), activation.export_loop('document'), 'of the same definition');

SELECT activation.import_loop('camel', '{"sendWindow": null, "perHour": null, "overCap": "wait", "steps": [{
    "trigger": {"table": "users", "event": "insert", "userKey": null},
    "action": {"template": "milestone", "replyTo": "a@example.net", "personalization": {"activationLink": "x"}}, "onTimeout": "continue"}]}');
SELECT is(activation.export_loop('camel') #>> '{steps,0,action,reply_to}', 'a@example.net', 'keys may be camelCase');
SELECT is(activation.export_loop('camel') #> '{steps,0,action,personalization}', '{"activationLink": "x"}', 'but a personalization''s are its own');

SELECT activation.define_loop('everything', type => 'retention', opinion => 'Say it twice.',
    trigger   => activation.on_insert('users', filter => $$NEW.name <> ''$$),
    condition => activation.query('SELECT FROM user_actions WHERE user_id = $1', timeout => '3 days', every => '2 hours', watch => '{"public.user_actions": "user_id"}'),
    action    => activation.email('milestone', subject => 'Well done', sender => 'Acme <a@example.net>', reply_to => 'b@example.net'),
    otherwise => activation.email('activation_nudge'),
    recovery  => activation.retry(0, 'fixed', '5 s', '1 min'));
SELECT is(activation.import_loop('everything', activation.export_loop('everything')), 1, 'a loop with every argument that is supported comes back the same');
SELECT activation.import_loop('everything again', activation.export_loop('everything'));
SELECT is(activation.export_loop('everything again'), activation.export_loop('everything'), 'also under another name');

SELECT activation.define_loop('stepped', trigger => activation.on_insert('users'), steps => ARRAY[
    activation.step('welcome', action => activation.email('activation_welcome'))]);
SELECT activation.define_loop('unstepped', trigger => activation.on_insert('users'), action => activation.email('activation_welcome'));
SELECT is(jsonb_set(activation.export_loop('stepped'), '{steps,0,name}', '"step1"'), activation.export_loop('unstepped'),
          'one step and none are the same but for its name');

-- Versions.

SELECT is(
    activation.define_loop('first_project',
      trigger   => activation.on_insert('public.users'),
      condition => activation.query($$SELECT * FROM user_actions WHERE user_id = $1 AND action_type = 'first_project_created'$$, timeout => '300 s'),
      action    => activation.email('activation_welcome',
                     personalization => '{"activationLink": "{{user.activation_link}}", "name": "{{user.name}}"}')),
    1, 'the same in other words is no new version');
SELECT pg_temp.everything() AS unchanged \gset
SELECT activation.import_loop('first_project', activation.export_loop('first_project'));
SELECT is(pg_temp.everything(), :'unchanged'::jsonb, 'and changes nothing');

SAVEPOINT before;
SELECT is(activation.import_loop('first_project', jsonb_set(activation.export_loop('first_project'), '{recovery,retries}', '5')), 2, 'another definition is another version');
SELECT is(activation.import_loop('first_project', jsonb_set(activation.export_loop('first_project'), '{recovery,retries}', '3')), 3, 'the first again is the third');
SELECT results_eq('SELECT v.version FROM activation.loop_version v JOIN activation.loop l USING (loop_id) WHERE l.name = ''first_project'' ORDER BY 1',
                  'VALUES (1), (2), (3)', 'all are kept');
SELECT set_eq($$SELECT proname::text FROM pg_proc WHERE pronamespace = 'activation_compiled'::regnamespace AND proname LIKE 'first_project%'$$,
    $$SELECT format('first_project: %s (%s.v%s)', k, (SELECT l.loop_id FROM activation.loop l WHERE l.name = 'first_project'), v) FROM unnest(ARRAY['condition', 'evaluate', 'users']) k, generate_series(1, 3) v$$,
    'each with functions of its own');
SELECT results_eq($$SELECT count(*)::integer FROM pg_trigger WHERE tgrelid IN ('users'::regclass, 'user_actions'::regclass) AND tgname LIKE 'activation%'$$,
                  'VALUES (4)', 'and no more triggers');
ROLLBACK TO before;
SELECT is(pg_temp.everything(), :'unchanged'::jsonb, 'rolled back, nothing of it is left');

SAVEPOINT before;
SET LOCAL search_path = tap, public;
SELECT is(activation.import_loop('first_project', activation.export_loop('first_project')), 2, 'another path for its names is another version');
ROLLBACK TO before;

SAVEPOINT before;
CREATE ROLE app;
ALTER TABLE users OWNER TO app;
ALTER TABLE user_actions OWNER TO app;
GRANT CREATE ON SCHEMA public TO app;
SELECT is(activation.import_loop('first_project', activation.export_loop('first_project'), owner => 'app'), 2, 'another owner is another version');
SELECT set_eq($$SELECT DISTINCT pg_get_userbyid(proowner)::text FROM pg_proc WHERE pronamespace = 'activation_compiled'::regnamespace AND proname LIKE 'first_project: % (%.v2)'$$,
                  ARRAY['app'], 'that owns its functions');
ROLLBACK TO before;

SAVEPOINT before;
SELECT p.oid::regprocedure AS condition FROM pg_proc p
 WHERE p.pronamespace = 'activation_compiled'::regnamespace AND p.proname LIKE 'first_project: condition %.v1)' \gset
DROP FUNCTION :condition CASCADE;
SELECT is(activation.bind(), 1, 'what was dropped is compiled again');
SELECT is(activation.import_loop('first_project', activation.export_loop('first_project')), 1, 'and the version is the same');
ROLLBACK TO before;

-- People keep the version that they came into.

SAVEPOINT before;
INSERT INTO users VALUES (1, 'one@example.net', 'One', 'https://example.net/1');
SELECT pg_temp.round();
SELECT activation.import_loop('first_project', jsonb_set(activation.export_loop('first_project'), '{steps,0,condition,timeout}', '"7 days"'));
INSERT INTO users VALUES (2, 'two@example.net', 'Two', 'https://example.net/2');
SELECT pg_temp.round();
SELECT results_eq($$SELECT user_id, version, deadline - enrolled_at FROM activation.journey WHERE loop = 'first_project' ORDER BY 1$$,
                  $$VALUES ('1', 1, interval '5 minutes'), ('2', 2, interval '7 days')$$, 'who is in a loop keeps its version');
INSERT INTO user_actions VALUES (1, 1, 'first_project_created'), (2, 2, 'first_project_created');
UPDATE activation.sweep SET due_at = activation._now();
SELECT pg_temp.round();
SELECT results_eq($$SELECT user_id, version, state FROM activation.journey WHERE loop = 'first_project' ORDER BY 1$$,
                  $$VALUES ('1', 1, 'completed'), ('2', 2, 'completed')$$, 'and is asked by it');
ROLLBACK TO before;

-- Pause, resume, archive.

SAVEPOINT before;
INSERT INTO users VALUES (1, 'one@example.net');
SELECT pg_temp.round();
INSERT INTO user_actions VALUES (1, 1, 'first_project_created');
SELECT activation.pause_loop('first_project');
INSERT INTO users VALUES (2, 'two@example.net');
UPDATE activation.sweep SET due_at = activation._now();
SELECT pg_temp.round();
SELECT is(detail, 'version 1', 'status of a paused loop') FROM activation.status WHERE component = 'loop first_project' AND state = 'paused';
SELECT is(state, 'waiting', 'a paused loop decides nothing') FROM activation.journey WHERE loop = 'first_project' AND user_id = '1';
SELECT is(activation.import_loop('first_project', activation.export_loop('first_project')), 1, 'defining it again leaves it paused');
SELECT is(state, 'paused', 'indeed') FROM activation.loop WHERE name = 'first_project';
SELECT activation.resume_loop('first_project');
SELECT pg_temp.round(); SELECT pg_temp.round();
SELECT results_eq($$SELECT user_id, state FROM activation.journey WHERE loop = 'first_project' ORDER BY 1$$,
                  $$VALUES ('1', 'completed'), ('2', 'waiting')$$, 'resumed, it decides, and has enrolled who came meanwhile');
SELECT activation.pause_loop('first_project', cancel => true);
SELECT results_eq($$SELECT user_id, status, last_error FROM activation.message_log WHERE loop = 'first_project'$$,
                  $$VALUES ('1', 'cancelled', 'cancelled when the loop was paused')$$, 'pause_loop can cancel what is queued');
SELECT activation.resume_loop('first_project');
ROLLBACK TO before;

SAVEPOINT before;
INSERT INTO users VALUES (1, 'one@example.net'), (2, 'two@example.net');
INSERT INTO user_actions VALUES (1, 1, 'first_project_created');
SELECT pg_temp.round();
SELECT activation.archive_loop('first_project');
SELECT results_eq($$SELECT user_id, state, reason FROM activation.journey WHERE loop = 'first_project' ORDER BY 1$$,
                  $$VALUES ('1', 'completed', NULL), ('2', 'exited', 'the loop was archived')$$, 'an archived loop lets out who waits');
SELECT results_eq($$SELECT status FROM activation.message_log WHERE loop = 'first_project'$$, ARRAY['cancelled'], 'and cancels what is queued');
INSERT INTO users VALUES (3, 'three@example.net');
SELECT pg_temp.round();
SELECT is_empty($$SELECT FROM activation.journey WHERE loop = 'first_project' AND user_id = '3'$$, 'enrolls nobody');
SELECT pg_temp.refused($$SELECT activation.pause_loop('first_project')$$, '55000', '{first_project,archived}', 'Define it again');
SELECT pg_temp.refused($$SELECT activation.resume_loop('first_project')$$, '55000', '{first_project}', 'Define it again');
SELECT is(activation.import_loop('first_project', activation.export_loop('first_project')), 2, 'defined again it comes back, as a new version');
INSERT INTO users VALUES (4, 'four@example.net');
SELECT pg_temp.round();
SELECT results_eq($$SELECT user_id, version FROM activation.journey WHERE loop = 'first_project' AND state = 'waiting'$$,
                  $$VALUES ('4', 2)$$, 'for those who come from then on');
ROLLBACK TO before;

-- A condition holds on to what it needs, and to no other column.

SAVEPOINT before;
SELECT lives_ok('ALTER TABLE user_actions DROP COLUMN id', 'SELECT * needs no column but those it compares');
SELECT throws_ok('ALTER TABLE user_actions DROP COLUMN action_type', '2BP01', NULL, 'a column that a loop needs is not dropped in passing');
SELECT throws_ok('ALTER TABLE user_actions ALTER COLUMN user_id TYPE numeric', '0A000', NULL, 'nor does it change its type');
SELECT activation.archive_loop(name) FROM activation.loop WHERE name <> 'first_project';
SELECT activation.unbind('user_actions');
SELECT lives_ok('ALTER TABLE user_actions ALTER COLUMN user_id TYPE integer', 'but after unbind()');
SELECT is(activation.bind(), 1, 'and bind() makes what is in use fit again');
ROLLBACK TO before;

SAVEPOINT before;
SELECT activation.archive_loop(name) FROM activation.loop WHERE name <> 'first_project';
SELECT activation.unbind('user_actions');
ALTER TABLE user_actions DROP COLUMN action_type;
SELECT throws_like('SELECT activation.bind(or_fail => true)', 'loop "first_project" no longer fits: %', 'bind() can be told to raise');
SELECT is((SELECT state FROM activation.loop WHERE name = 'first_project'), 'active', 'and then changes nothing');
SET LOCAL client_min_messages = error;
SELECT is(activation.bind(), 0, 'else it warns');
SELECT is((SELECT state FROM activation.loop WHERE name = 'first_project'), 'failing', 'and the loop is failing');
SELECT is(activation.bind(or_fail => true), 0, 'for what was failing before it does not raise');
RESET client_min_messages;
ROLLBACK TO before;

-- What may be called anything.

SELECT lives_ok(format($$SELECT activation.define_loop(%L, trigger => activation.on_insert('users'),
    condition => activation.query('SELECT FROM user_actions WHERE user_id = $1'), action => activation.email('milestone'))$$, n), 'a loop named ' || n)
  FROM unnest(ARRAY[repeat('é', 31) || 'a', repeat('é', 31) || 'b', 'it''s "a" loop', '%s %1$I', '$$ $1 --', '/* x', 'first_project: condition (1.v1)', '日本語', 'x; DROP TABLE users']) AS n;
SELECT is(count(*)::integer, 2, 'names that differ only at the end have functions of their own') FROM pg_proc
 WHERE pronamespace = 'activation_compiled'::regnamespace AND proname LIKE 'ééé%: evaluate%';

-- Comments, semicolons and dollars in a condition.

SELECT lives_ok(format($$SELECT activation.define_loop('spelled', trigger => activation.on_insert('users'),
    condition => activation.query(%L), action => activation.email('milestone'))$$, q), 'a condition written as ' || q)
  FROM unnest(ARRAY['SELECT * FROM user_actions WHERE user_id = $1;', 'SELECT * FROM user_actions WHERE user_id = $1 ; -- done;', E'-- who?\nSELECT 1 FROM user_actions WHERE user_id = $1 /* ; */',
                    'SELECT FROM user_actions WHERE user_id = $1 AND action_type = '';''', 'WITH a AS (SELECT * FROM user_actions) SELECT * FROM a WHERE user_id = $1',
                    '(SELECT user_id FROM user_actions WHERE user_id = $1)', 'SELECT 1 FROM user_actions WHERE user_id = $1 UNION ALL SELECT 2 FROM users WHERE id = $1 LIMIT 1',
                    'SELECT FROM user_actions WHERE user_id = $1 AND action_type = $q$it''s; $2$q$', 'select*from user_actions where user_id=$1']) AS q;

-- A renamed column is followed.

ALTER TABLE user_actions RENAME COLUMN action_type TO kind;
INSERT INTO users VALUES (1, 'one@example.net');
INSERT INTO user_actions VALUES (1, 1, 'first_project_created');
SELECT pg_temp.round();
SELECT is(state, 'completed', 'a renamed column is followed') FROM activation.journey WHERE loop = 'first_project';

SELECT * FROM finish();
ROLLBACK;
