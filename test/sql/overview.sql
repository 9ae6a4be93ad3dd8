-- What the dashboard shows: as one document, and what of it is counted when.
\ir setup.sql
SELECT no_plan();

SELECT is(activation.overview() -> 'loops', '[]', 'no loops');
SELECT is(activation.overview() -> 'trouble', '[]', 'no trouble');
SELECT is(activation.overview() #>> '{status,0,component}', 'mode', 'the mode comes first');
SELECT matches(activation.report(), '^<!doctype html>.*</html>\s*$', 'a report of nothing is a page');

CREATE TABLE users (id bigint PRIMARY KEY, email text, plan text);
CREATE TABLE actions (user_id bigint);
SELECT activation.configure(public_url => 'https://acme.dev/activation');
SELECT activation.define_loop('first', opinion => 'Who acts stays', trigger => activation.on_insert('users'), holdout => 0.5,
  condition => activation.query('SELECT FROM actions WHERE user_id = $1', timeout => '1 day'), action => activation.email('activation_welcome'));
SELECT activation.define_loop('gone', trigger => activation.on_insert('users'), action => activation.email('milestone'));
SELECT activation.archive_loop('gone');
INSERT INTO users SELECT g, 'u' || g || '@acme.dev' FROM generate_series(1, 10) g;
INSERT INTO actions SELECT g FROM generate_series(1, 4) g;
SELECT pg_temp.round();

SELECT results_eq($$SELECT l ->> 'name', l #>> '{definition,opinion}', l #>> '{funnel,0,people}', l #>> '{funnel,2,stage}', l #>> '{funnel,2,people}', l #>> '{waiting,0,people}',
                           l #>> '{cohorts,0,enrolled}', l #>> '{time_to_activate,activated}', l #>> '{lift,share}'
                      FROM jsonb_array_elements(activation.overview() -> 'loops') l$$,
    $$VALUES ('first', 'Who acts stays', '10', 'activated', '4', '6', '10', '4', '0.5')$$, 'a loop that is not archived, with its numbers');
SELECT activation.define_loop('first', trigger => activation.on_insert('users'), action => activation.email('milestone'));
SELECT results_eq($$SELECT l ->> 'version', l ->> 'funnel_version', l #>> '{funnel,0,people}' FROM jsonb_array_elements(activation.overview() -> 'loops') l$$,
    $$VALUES ('2', '1', '10')$$, 'a new version that nobody is in shows the funnel of the one before');
INSERT INTO users VALUES (11, 'u11@acme.dev');
SELECT pg_temp.round();
SELECT results_eq($$SELECT l ->> 'funnel_version', l #>> '{funnel,0,people}', l ->> 'in_other_versions' FROM jsonb_array_elements(activation.overview() -> 'loops') l$$,
    $$VALUES ('2', '1', '10')$$, 'and then its own, and how many are in others');

-- Numbers that take long are kept.
SELECT is((activation.overview() #>> '{loops,0,in_other_versions}')::integer, 10, 'counted');
UPDATE activation.overview_numbers SET took = '1 s', numbers = jsonb_set(numbers, '{loops,first,in_other_versions}', '99');
SELECT is((activation.overview() #>> '{loops,0,in_other_versions}')::integer, 99, 'what takes long is not counted again at once');
SELECT is((activation.overview(max_age => '-1 s') #>> '{loops,0,in_other_versions}')::integer, 10, 'but where it may not be that old');
UPDATE activation.overview_numbers SET took = '1 s', taken_at = now() - interval '2 hours', numbers = jsonb_set(numbers, '{loops,first,in_other_versions}', '99');
SELECT is((activation.overview(max_age => '3 hours') #>> '{loops,0,in_other_versions}')::integer, 99, 'older, by leave');
SELECT is((activation.overview() #>> '{loops,0,in_other_versions}')::integer, 10, 'an hour is the longest by itself');
SELECT ok(took < '1 s' AND taken_at > now() - interval '1 minute', 'and written down') FROM activation.overview_numbers;
DELETE FROM activation.overview_numbers;
SAVEPOINT before;
SET TRANSACTION READ ONLY;
SELECT is((activation.overview() #>> '{loops,0,in_other_versions}')::integer, 10, 'counted in a read-only transaction, too');
ROLLBACK TO before;
SELECT is_empty('SELECT FROM activation.overview_numbers', 'which writes nothing down');

-- What went wrong, newest first.
INSERT INTO activation.request (request_id, endpoint, body, members, mode, recovery, state, created_at, next_try_at)
SELECT '00000000-0000-0000-0000-000000000001', '/emails', '', '{}', 'live', '{}', 'done', now(), now();
INSERT INTO activation.message (message_id, enrollment_id, loop_id, version, user_id, step, branch, state, created_at, next_attempt_at, request_id, finished_at, last_error)
SELECT ('00000000-0000-0000-0000-00000000010' || n)::uuid, 100 + n, l.loop_id, 1, n::text, 1, 'action', v.state, now(), now(), request_id, finished_at, v.state || ' of ' || n
  FROM (VALUES (1, 'failed', NULL::uuid, now() - interval '4 hours'), (2, 'unknown', '00000000-0000-0000-0000-000000000001', now() - interval '3 hours'),
               (3, 'bounced', '00000000-0000-0000-0000-000000000001', NULL), (4, 'sent', '00000000-0000-0000-0000-000000000001', NULL),
               (5, 'captured', NULL, now())) v(n, state, request_id, finished_at), activation.loop l
 WHERE l.name = 'first';
INSERT INTO activation.webhook_event (webhook_id, type, at, received_at, message_id, applied, payload)
SELECT 'msg_' || n, type, now() - interval '2 hours', now(), ('00000000-0000-0000-0000-00000000010' || n)::uuid, true, '{}'
  FROM (VALUES (3, 'email.bounced'), (4, 'email.delivered')) v(n, type);
INSERT INTO activation.capture_failure SELECT now() - interval '1 hour', loop_id, '6', 'the filter raised: division by zero' FROM activation.loop WHERE name = 'first';
SELECT results_eq($$SELECT t ->> 'user_id', t ->> 'status', t ->> 'loop', t ->> 'step', t ->> 'error' FROM jsonb_array_elements(activation.overview() -> 'trouble') WITH ORDINALITY x(t, n) ORDER BY n$$,
    $$VALUES ('6', 'not enrolled', 'first', NULL, 'the filter raised: division by zero'), ('3', 'bounced', 'first', 'step1', 'bounced of 3'),
             ('2', 'unknown', 'first', 'step1', 'unknown of 2'), ('1', 'failed', 'first', 'step1', 'failed of 1')$$, 'what went wrong, newest first');
SELECT is((SELECT detail FROM activation.status WHERE component = 'queue') ~ '1 unknown', true, 'status counts what is unknown');
SELECT matches(activation.report(), 'division by zero', 'the report shows it');

-- Who may.
CREATE ROLE viewer;
SELECT is((pg_temp.outcome('SELECT activation.overview()', 'viewer')).code, '42501', 'nobody by themselves');
GRANT USAGE ON SCHEMA activation TO viewer;
GRANT EXECUTE ON FUNCTION activation.overview, activation.report TO viewer;
SELECT is((pg_temp.outcome('SELECT activation.overview(), activation.report()', 'viewer')).code, '00000', 'whoever was granted it');

-- track_all.

SELECT results_eq($$SELECT * FROM activation.track_all('[{"user_id": "1", "event": "called", "properties": {"n": 1}}, {"user_id": "99", "event": "called"}, {"user_id": "2"}, {"event": "called"},
                      {"user_id": "1", "event": "called", "once": true}, {"user_id": "2", "event": "called", "once": true}, {"user_id": "3", "event": "called", "properties": null},
                      {"user_id": "3", "event": "called", "properties": []}, {"user_id": "1", "event": "called"}]')$$,
    $$VALUES ('99', 'called', 'user 99 does not exist in public.users'), ('2', NULL, 'track needs the name of an event'), (NULL, 'called', 'track needs a user'),
             ('3', 'called', 'the properties of event "called" are not an object')$$, 'each that is refused, and why');
SELECT results_eq('SELECT user_id, event, properties FROM activation.event ORDER BY event_id',
    $$VALUES ('1', 'called', '{"n": 1}'::jsonb), ('2', 'called', '{}'), ('3', 'called', '{}'), ('1', 'called', '{}')$$, 'the others are told; once is once');
SELECT pg_temp.refused($$SELECT * FROM activation.track_all('{"user_id": "1"}')$$, '22023', '{track_all}', 'SELECT * FROM activation.track_all(');
SELECT pg_temp.refused($$SELECT * FROM activation.track_all(NULL)$$, '22023', '{track_all}');

SELECT * FROM finish();
ROLLBACK;
