-- All that is refused: with this SQLSTATE, a message that names the user's object, a hint, and nothing changed.
-- docs/errors.md lists the codes.
\ir setup.sql
SELECT no_plan();

CREATE ROLE mallory;
GRANT USAGE ON SCHEMA activation TO mallory;
GRANT EXECUTE ON FUNCTION activation.define_loop, activation.import_loop, activation.on_insert, activation.query, activation.email,
    activation.set_users, activation.export_loop, activation.pause_loop, activation.resume_loop, activation.archive_loop, activation.preview,
    activation.unbind TO mallory;

CREATE TABLE users (id bigint PRIMARY KEY, email text, name text, plan text, born date);
CREATE TABLE actions (user_id bigint, what text);
CREATE TABLE bare (id bigint, email text);
CREATE TABLE pairs (a bigint, b bigint, email text, PRIMARY KEY (a, b));
CREATE TABLE nomail (id bigint PRIMARY KEY, address text);
CREATE TABLE projects (id bigint PRIMARY KEY, owner_id bigint REFERENCES users, email text);
CREATE TABLE scores (user_id text, points integer);
CREATE VIEW people AS SELECT * FROM users;
CREATE MATERIALIZED VIEW counted AS SELECT * FROM users;
CREATE TEMP TABLE passing (user_id bigint, id bigint PRIMARY KEY, email text);
CREATE TYPE grade AS ENUM ('low');
CREATE DOMAIN points AS integer CHECK (value >= 0);
CREATE TYPE scored AS (what text, points points);

-- A loop that is good but for what a case puts into it.
CREATE FUNCTION pg_temp.loop(trigger text DEFAULT $$activation.on_insert('users')$$,
                             condition text DEFAULT $$activation.query('SELECT FROM actions WHERE user_id = $1', timeout => '5m')$$,
                             action text DEFAULT $$activation.email('activation_welcome')$$,
                             more text DEFAULT '', name text DEFAULT $$'refused'$$) RETURNS text
LANGUAGE sql AS $$
    SELECT format('SELECT activation.define_loop(%s, trigger => %s, condition => %s, action => %s%s)', name, trigger, condition, action, ', ' || nullif(more, ''))
$$;

SAVEPOINT before;
SELECT is((pg_temp.outcome(pg_temp.loop())).code, '00000', 'what the cases below are made from is good in itself');
ROLLBACK TO before;

-- Tables.

SELECT pg_temp.refused(pg_temp.loop(trigger => c.trigger), c.code, c.named, c.hint, 'trigger: ' || c.trigger)
  FROM (VALUES
    ($$activation.on_insert('bare')$$, '42P16', '{"loop \"refused\"",public.bare,"no primary key"}'::text[], 'set_users'),
    ($$activation.on_insert('pairs')$$, '42P16', '{public.pairs,"several columns"}', 'set_users'),
    ($$activation.on_insert('people')$$, '42809', '{public.people,"is a view"}', 'table'),
    ($$activation.on_insert('counted')$$, '42809', '{public.counted,"is a materialized view"}', 'table'),
    ($$activation.on_insert('passing')$$, '42809', '{passing,temporary}', 'table'),
    ($$activation.on_insert('pg_catalog.pg_class')$$, '42809', '{pg_class}', 'table'),
    ($$activation.on_insert('activation.enrollment')$$, '42809', '{activation.enrollment}', 'table'),
    ($$activation.on_insert('nomail')$$, '42703', '{public.nomail,email}', $$email => '…'$$),
    ($$activation.on_insert(NULL)$$, '22004', '{on_insert}', 'on_insert'),
    ($$NULL$$, '22023', '{"loop \"refused\"","no trigger"}', 'on_insert'),
    ($$activation.on_insert('users', user_key => 'plan')$$, '22023', '{"loop \"refused\"",user_key,plan,public.users}', 'Leave user_key out'),
    ($$activation.on_insert('users', filter => 'OLD.plan = NEW.plan')$$, '42703', '{"loop \"refused\"",filter,OLD}', 'NEW, the inserted row'),
    ($$activation.on_update('users', columns => '{}')$$, '22023', '{trigger.columns}', 'on_update'),
    ($$activation.on_update('users', columns => NULL)$$, '22023', '{trigger.columns}', 'on_update'),
    ($$activation.on_update('users', columns => '{plann}')$$, '42703', '{"loop \"refused\"",plann}', ''),
    ($$activation.on_update(NULL, columns => '{plan}')$$, '22004', '{on_update}', 'on_update'),
    ($$activation.on_update('bare', columns => '{email}')$$, '42P16', '{public.bare}', 'set_users'),
    ($$activation.on_delete('users')$$, '22023', '{"loop \"refused\"",public.users,"nobody is left"}', 'leave their loops'),
    ($$activation.on_delete(NULL)$$, '22004', '{on_delete}', 'on_delete'),
    ($$activation.on_event(NULL)$$, '22023', '{trigger.event}', 'text'),
    ($$activation.on_event(' ')$$, '22023', '{trigger.event}', 'text'),
    ($$activation.on_schedule('every day', 'SELECT id FROM users')$$, '22023', '{"every day"}', 'minute, hour, day'),
    ($$activation.on_schedule('0 0 31 2 *', 'SELECT id FROM users')$$, '22023', '{"0 0 31 2 *"}', 'minute, hour, day'),
    ($$activation.on_schedule('0 9 * * *', NULL)$$, '22023', '{trigger.query}', 'text'),
    ($$activation.on_insert('users', filter => 'NEW.nope = 1')$$, '42703', '{"loop \"refused\"",filter,"no column of public.users"}', 'NEW'),
    ($$activation.on_insert('users', filter => 'NEW.plan = NEW.nope')$$, '42703', '{"loop \"refused\"",filter,nope}', 'NEW'),
    ($$activation.on_insert('users', filter => 'NEW.plan = ''a'') OR (true')$$, '42601', '{filter}', 'NEW'),
    ($$activation.on_insert('users', filter => 'NEW.plan')$$, '42804', '{filter}', 'NEW'),
    ($$activation.on_insert('users', filter => 'true')$$, '42703', '{filter,"no column"}', 'NEW'),
    ($$activation.on_insert('users', filter => ' ')$$, '22023', '{filter}', 'text')
  ) AS c(trigger, code, named, hint);

SELECT is((pg_temp.outcome(pg_temp.loop(trigger => $$activation.on_insert('nowhere')$$))).code, '42P01',
          'an unknown table as an argument is PostgreSQL''s own error');

SELECT activation.set_users('users');
CREATE TABLE pairs_of (id bigint PRIMARY KEY, giver bigint REFERENCES users, taker bigint REFERENCES users, note text);
CREATE TABLE unkeyed (owner_id bigint REFERENCES users, note text);
SELECT pg_temp.refused(pg_temp.loop(trigger => c.trigger), c.code, ARRAY['loop "refused"'] || c.named, c.hint, 'trigger: ' || c.trigger)
  FROM (VALUES
    ($$activation.on_insert('pairs_of')$$, '22023', '{public.pairs_of,"names the user"}'::text[], 'user_key'),
    ($$activation.on_insert('projects', user_key => 'owner')$$, '42703', '{public.projects,owner}', 'user_key'),
    ($$activation.on_insert('projects', user_key => 'email')$$, '42804', '{public.projects,email}', 'user_key'),
    ($$activation.on_update('unkeyed', columns => '{note}')$$, '42P16', '{public.unkeyed,"primary key"}', 'ADD PRIMARY KEY'),
    ($$activation.on_delete('projects', filter => 'NEW.email IS NULL')$$, '42703', '{filter,NEW}', 'OLD, the deleted row'),
    ($$activation.on_schedule('0 9 * * *', 'SELECT email FROM users')$$, '42804', '{"schedule''s query"}', 'type bigint'),
    ($$activation.on_schedule('0 9 * * *', 'SELECT id, email FROM users')$$, '42804', '{"schedule''s query"}', 'type bigint'),
    ($$activation.on_schedule('0 9 * * *', 'DELETE FROM users RETURNING id')$$, '42601', '{"schedule''s query"}', 'one SELECT'),
    ($$activation.on_schedule('0 9 * * *', 'SELECT id FROM userz')$$, '42P01', '{"schedule''s query",userz}', 'one SELECT'),
    ($$activation.on_schedule('0 9 * * *', 'SELECT user_id FROM passing')$$, '0A000', '{"schedule''s query",temporary}', 'permanent')
  ) AS c(trigger, code, named, hint);
SAVEPOINT circle;
SELECT activation.define_loop('first of two', trigger => activation.on_schedule('0 9 * * *', $$SELECT user_id::bigint FROM activation.message_log WHERE loop = 'refused'$$),
    action => activation.email('activation_nudge'), reentry => 'always');
SELECT pg_temp.refused(pg_temp.loop(trigger => $$activation.on_schedule('0 9 * * *', 'SELECT user_id::bigint FROM activation.message_log WHERE loop = ''first of two''')$$,
                                    more => $$reentry => '1 day'$$), '22023', '{"loop \"refused\"","loop \"first of two\"",circle}', 'once', 'loops that feed each other');
ROLLBACK TO circle;

-- Conditions.

SELECT pg_temp.refused(pg_temp.loop(condition => format('activation.query(%L)', c.query)), c.code, ARRAY['loop "refused"'] || c.named, c.hint, 'condition: ' || c.query)
  FROM (VALUES
    ('SELECT FROM actions WHERE user_id = ', '42601', '{}'::text[], 'one SELECT'),
    ('SELEC FROM actions WHERE user_id = $1', '42601', '{SELEC}', 'one SELECT'),
    ('SELECT FROM actions WHERE usr_id = $1', '42703', '{usr_id}', 'user_id'),
    ('SELECT FROM acts WHERE user_id = $1', '42P01', '{acts}', 'one SELECT'),
    ('SELECT FROM no_such_function($1)', '42883', '{no_such_function}', ''),
    ('SELECT FROM actions', '42P02', '{$1}', 'user_id = $1'),
    ('SELECT FROM actions WHERE what = ''$1'' -- $1', '42P02', '{$1}', 'user_id = $1'),
    ('SELECT FROM scores WHERE user_id = $1', '42883', '{"text = bigint"}', ''),
    ('SELECT FROM actions WHERE user_id = $1 AND what = $2', '42P02', '{$2}', '$1'),
    ('SELECT FROM actions WHERE user_id = $1; SELECT 1', '42P11', '{}', 'one SELECT'),
    ('SELECT FROM actions WHERE user_id = $1; DROP TABLE users', '42P11', '{}', 'one SELECT'),
    ('SELECT FROM actions WHERE (user_id = $1', '42601', '{}', 'one SELECT'),
    ('SELECT FROM actions WHERE user_id = $1)', '42601', '{}', 'one SELECT'),
    ('SELECT 1) AS q; END; ALTER ROLE mallory SUPERUSER; SELECT (SELECT $1', '42601', '{}', 'one SELECT'),
    ('SELECT FROM actions WHERE user_id = $1 /* ', '42601', '{}', 'one SELECT'),
    ('SHOW search_path', '42601', '{"not a SELECT"}', 'one SELECT'),
    ('EXPLAIN SELECT FROM actions WHERE user_id = $1', '42601', '{"not a SELECT"}', 'one SELECT'),
    ('TABLE actions', '42P02', '{$1}', ''),
    ('DELETE FROM actions WHERE user_id = $1', '42P11', '{}', 'one SELECT'),
    ('DELETE FROM actions WHERE user_id = $1 RETURNING 1', '42601', '{"not a SELECT"}', 'one SELECT'),
    ('INSERT INTO actions (user_id) VALUES ($1)', '42P11', '{}', 'one SELECT'),
    ('UPDATE actions SET what = NULL WHERE user_id = $1 RETURNING 1', '42601', '{"not a SELECT"}', 'one SELECT'),
    ('WITH gone AS (DELETE FROM actions WHERE user_id = $1 RETURNING 1) SELECT FROM gone', '0A000', '{}', 'one SELECT'),
    ('CREATE TABLE t AS SELECT $1', '42P11', '{}', 'one SELECT'),
    ('SELECT 1 INTO t WHERE $1 > 0', '42P11', '{}', 'one SELECT'),
    ('COPY actions TO STDOUT', '42P11', '{}', 'one SELECT'),
    ('SELECT FROM actions WHERE user_id = $1 FOR UPDATE', '0A000', '{"locks rows"}', 'FOR UPDATE'),
    ('SELECT FROM (SELECT FROM actions WHERE user_id = $1 FOR SHARE) AS q', '0A000', '{"locks rows"}', 'FOR SHARE'),
    ('SELECT FROM passing WHERE user_id = $1', '0A000', '{temporary}', 'permanent'),
    ('SELECT FROM actions WHERE user_id = $1 AND ''{"(a,1)"}''::scored[] IS NOT NULL', '0A000', '{literal,scored}', 'ROW'),
    ('TABLE nowhere', '42P01', '{nowhere}', 'one SELECT')
  ) AS c(query, code, named, hint);

SELECT pg_temp.refused(pg_temp.loop(condition => c.condition), c.code, c.named, c.hint)
  FROM (VALUES
    ($$activation.query('SELECT FROM actions WHERE user_id = $1', timeout => '-5m')$$, '22023', '{timeout}'::text[], 'longer than zero'),
    ($$activation.query('SELECT FROM actions WHERE user_id = $1', timeout => '0')$$, '22023', '{timeout}', 'longer than zero'),
    ($$activation.query('SELECT FROM actions WHERE user_id = $1', every => '-1 s')$$, '22023', '{every}', 'longer than zero'),
    ($$activation.query('')$$, '22023', '{condition.query}', 'text'),
    ($$activation.query(NULL)$$, '22023', '{condition.query}', 'text'),
    ($$activation.query('SELECT FROM actions WHERE user_id = $1', watch => '[1]')$$, '22023', '{condition.watch}', 'table'),
    ($$activation.query('SELECT FROM actions WHERE user_id = $1', watch => '{"acts": "user_id"}')$$, '42P01', '{"loop \"refused\"",acts}', 'schema'),
    ($$activation.query('SELECT FROM actions WHERE user_id = $1', watch => '{"public.projects": "owner"}')$$, '42703', '{projects,owner}', 'key'),
    ($$activation.query('SELECT FROM actions WHERE user_id = $1', watch => '{"public.scores": "user_id"}')$$, '42804', '{scores,user_id}', 'every'),
    ($$'{"type": "sql", "query": "SELECT $1"}'$$, '22023', '{"condition type",sql}', 'query')
  ) AS c(condition, code, named, hint);

SELECT is((pg_temp.outcome(pg_temp.loop(condition => $$activation.query('SELECT FROM actions WHERE user_id = $1', timeout => 'soon')$$))).code, '22007',
          'a malformed interval as an argument is PostgreSQL''s own error');

SELECT matches((pg_temp.outcome(pg_temp.loop(condition => $$activation.query(E'SELECT FROM actions\n WHERE usr_id = $1')$$))).detail,
               E'LINE 2:  WHERE usr_id = \\$1\n +\\^', 'the place is shown in the author''s own text');

-- Mails.

SELECT pg_temp.refused(pg_temp.loop(action => c.action), c.code, c.named, c.hint)
  FROM (VALUES
    ($$activation.email('activation_welcom')$$, '42704', '{"loop \"refused\"",activation_welcom}'::text[], 'set_template'),
    ($$activation.email(NULL)$$, '22023', '{action.template}', 'text'),
    ($$activation.email('activation_welcome', personalization => '{"name": "{{user.name"}')$$, '42601', '{"loop \"refused\"","personalization name",Liquid}', 'Liquid'),
    ($$activation.email('activation_welcome', subject => 'Hi {% if user.name %}')$$, '42601', '{"loop \"refused\"",subject,Liquid}', 'Liquid'),
    ($$activation.email('activation_welcome', personalization => '{"name": "{{user.nam}}"}')$$, '42703', '{"loop \"refused\"",activation_welcome,user.nam}', 'user.nam'),
    ($$activation.email('activation_welcome', personalization => '{"name": "{{user.name | upcas}}"}')$$, '42601', '{"loop \"refused\"","personalization name",upcas}', 'upcase'),
    ($$activation.email('activation_welcome', subject => 'Hi {{user.nam}}')$$, '42703', '{"loop \"refused\"",user.nam}', 'user.nam'),
    ($$activation.email('needy')$$, '22023', '{"loop \"refused\"",needy,projectName}', 'projectName'),
    ($$activation.email('needy', personalization => '{"projectname": "x"}')$$, '22023', '{needy,projectName}', 'projectName'),
    ($$activation.email('columned')$$, '42703', '{columned,user.city}', 'user.city'),
    ($$activation.email('activation_welcome', personalization => '[1]')$$, '22023', '{personalization}', 'user.name'),
    ($$activation.email('activation_welcome', personalization => '{"user": "x"}')$$, '22023', '{personalization,user}', 'another name'),
    ($$activation.email('activation_welcome', personalization => '{"a-b": "x"}')$$, '22023', '{personalization,a-b}', 'letters'),
    ($$activation.email('activation_welcome', personalization => '{"a": {"b": 1}}')$$, '22023', '{personalization,"\"a\""}', 'text'),
    ($$activation.email('activation_welcome', subject => E'a\nBcc: b@example.net')$$, '22023', '{action.subject,"line break"}', 'one line'),
    ($$activation.email('activation_welcome', sender => E'a@example.net\nBcc: b@example.net')$$, '22023', '{action.sender,"line break"}', 'one line'),
    ($$activation.email('activation_welcome', reply_to => E'a@example.net\r')$$, '22023', '{action.reply_to,"line break"}', 'one line'),
    ($$activation.email('activation_welcome', subject => E'a\u2028b')$$, '22023', '{action.subject,"line break"}', 'one line'),
    ($$activation.email('activation_welcome', sender => 'a@example.net, b@example.net')$$, '22023', '{action.sender,"more than one"}', 'quotes'),
    ($$activation.email('activation_welcome', reply_to => '{{ user.email }}')$$, '22023', '{action.reply_to,Liquid}', 'same for everybody'),
    ($$'{"template": "activation_welcome", "resend_template": "welcome"}'$$, '22023', '{resend_template,action}', '"template"'),
    ($$NULL$$, '22023', '{"loop \"refused\"","sends nothing"}', 'action')
  ) AS c(action, code, named, hint)
 CROSS JOIN (SELECT activation.set_template('needy', 'About {{ projectName }}', body_text => '{{ name | default: user.name }}: {{ projectName }}'),
                    activation.set_template('columned', 'Hi', body_text => '{{ user.city }}')) made;

-- Names and the other arguments.

SELECT pg_temp.refused(pg_temp.loop(name => c.name), '22023', c.named, c.hint, 'name: ' || c.name)
  FROM (VALUES
    ('NULL', '{name}'::text[], 'first argument'),
    ($$''$$, '{name}', 'first argument'),
    ($$'  '$$, '{name}', 'first argument'),
    ($$repeat('x', 64)$$, '{xxx}', '63 bytes'),
    ($$repeat('é', 32)$$, '{ééé}', '63 bytes'),
    ($$E'a\nb'$$, '{name}', 'letters')
  ) AS c(name, named, hint);

SELECT pg_temp.refused(pg_temp.loop(more => c.more), c.code, c.named, c.hint, c.more)
  FROM (VALUES
    ('recovery => activation.retry(-1)', '22023', '{retries}'::text[], '0 to 20'),
    ('recovery => activation.retry(21)', '22023', '{retries}', '0 to 20'),
    ($$recovery => activation.retry(3, 'linear')$$, '22023', '{backoff,linear}', 'exponential'),
    ($$recovery => activation.retry(3, 'exponentiel')$$, '22023', '{exponentiel}', 'Did you mean "exponential"'),
    ($$recovery => activation.retry(3, 'fixed', '-1 s')$$, '22023', '{initial}', 'longer than zero'),
    ($$recovery => activation.retry(3, 'fixed', '1 s', '0')$$, '22023', '{max}', 'longer than zero'),
    ($$recovery => '{"retry": 3}'$$, '22023', '{"loop \"refused\"",retry}', '"retries"'),
    ($$type => 'activaton'$$, '22023', '{"loop \"refused\"",activaton}', '"activation"'),
    ($$holdout => 0.95$$, '22023', '{"loop \"refused\"",holdout,0.95}', '0 to 0.9'),
    ($$holdout => -0.1$$, '22023', '{"loop \"refused\"",holdout}', '0 to 0.9'),
    ($$enroll => 'old'$$, '22023', '{"loop \"refused\"",enroll}', 'existing'),
    ($$over_cap => 'drop'$$, '22023', '{"loop \"refused\"",over_cap}', 'wait'),
    ($$priority => 1001$$, '22023', '{"loop \"refused\"",priority}', '1000'),
    ($$opinion => ''$$, '22023', '{"loop \"refused\"",opinion}', 'text'),
    ($$otherwise => '{"template": "milestone", "templat": 1}'$$, '22023', '{"loop \"refused\"",templat,otherwise}', '"template"'),
    ($$owner => 'nobody at all'$$, '42704', '{"loop \"refused\"","nobody at all"}', 'owner'),
    ($$owner => NULL$$, '42704', '{"loop \"refused\"",NULL}', 'owner'),
    ($$names => NULL$$, '22004', '{"loop \"refused\"",names}', 'search_path')
  ) AS c(more, code, named, hint);

SELECT pg_temp.refused(pg_temp.loop(more => c.more), c.code, ARRAY['loop "refused"'] || c.named, c.hint, c.more)
  FROM (VALUES
    ($$goal => activation.query('SELECT FROM actions WHERE user_id = $1', timeout => '1 day')$$, '22023', '{goal,timeout}'::text[], 'condition'),
    ($$goal => activation.query('SELECT FROM nowhere WHERE user_id = $1')$$, '42P01', '{nowhere}', 'one SELECT'),
    ($$goal => '{"query": 1}'$$, '22023', '{goal.query}', 'text'),
    ($$reentry => 'sometimes'$$, '22007', '{reentry,sometimes}', '3 days'),
    ($$reentry => '-1 day'$$, '22023', '{reentry}', 'longer than zero'),
    ($$reentry => ''$$, '22023', '{reentry}', 'text'),
    ($$per_hour => 100$$, '22023', '{per_hour}', 'existing'),
    ($$enroll => 'existing', per_hour => 0$$, '22023', '{per_hour}', 'from 1'),
    ($$topic => ' '$$, '22023', '{topic}', 'text'),
    ($$send_window => '{"days": "mon-fri"}'$$, '22023', '{send_window.opens}', 'text'),
    ($$send_window => activation.send_window('Mon-Fri', '09:00', '09:00')$$, '22023', '{"never open"}', 'two times'),
    ($$users => 'nomail'$$, '42703', '{public.nomail,email}', 'email =>'),
    ($$users => 'bare'$$, '42P16', '{public.bare}', 'set_users')
  ) AS c(more, code, named, hint)
 WHERE c.more NOT LIKE '%activation.send_window%';

SELECT pg_temp.refused('SELECT ' || c.call, '22023', c.named, c.hint)
  FROM (VALUES
    ($$activation.send_window('Mon-Fri', '09:00', '09:00')$$, '{"never open"}'::text[], 'two times'),
    ($$activation.send_window('Mon-Fri', '24:00', '09:00')$$, '{"never open"}', '00:00'),
    ($$activation.send_window('', '09:00', '17:00')$$, '{send_window.days}', 'text'),
    ($$activation.send_window('Mon-Freitag', '09:00', '17:00')$$, '{Freitag}', 'Mon-Fri'),
    ($$activation.send_window('Mon-Fri', '09:00', '17:00', 'later')$$, '{send_window.otherwise,later}', 'skip'),
    ($$activation.send_window('Mon-Fri', NULL, '17:00')$$, '{send_window.opens}', 'text')
  ) AS c(call, named, hint);
SELECT pg_temp.refused(pg_temp.loop(trigger => $$activation.on_event('called')$$, more => $$enroll => 'existing'$$), '22023', '{"loop \"refused\"",existing}', 'on_schedule',
                       'existing users of a loop that no insert starts');

SELECT pg_temp.refused(format($$SELECT activation.define_loop('refused', trigger => activation.on_insert('users'), steps => ARRAY[%s]::jsonb[])$$,
                              replace(c.steps, 'MAIL', $$activation.email('milestone')$$)), c.code, ARRAY['loop "refused"'] || c.named, c.hint)
  FROM (VALUES
    ($$activation.step('a', action => MAIL, on_timeout => 'stop')$$, '22023', '{on_timeout,stop}'::text[], 'exit'),
    ($$activation.step('goal', action => MAIL)$$, '22023', '{"named \"goal\""}', 'another name'),
    ($$activation.step('a', action => MAIL), activation.step('a', action => MAIL)$$, '22023', '{"two steps named \"a\""}', 'name of its own'),
    ($$activation.step('a', action => MAIL), activation.step(NULL, action => MAIL), activation.step('step2', action => MAIL)$$, '22023', '{step2}', 'name of its own'),
    ($$activation.step('a')$$, '22023', '{"step \"a\" sends nothing"}', 'action'),
    ($$activation.step('a', action => MAIL, otherwise => MAIL)$$, '22023', '{"otherwise that can never come"}', 'timeout'),
    ($$activation.step('a', condition => activation.query('SELECT FROM actions WHERE user_id = $1'), otherwise => MAIL)$$, '22023', '{"can never come"}', 'timeout'),
    ($$$$, '22023', '{"no steps"}', 'at least one'),
    ($$'[1]'$$, '22023', '{steps[0]}', 'object'),
    ($$'{"acton": {}}'$$, '22023', '{acton,steps[0]}', '"action"')
  ) AS c(steps, code, named, hint);

SELECT pg_temp.refused($$SELECT activation.step('a', delay => '-1 hour')$$, '22023', '{delay}', 'time to wait');
SELECT pg_temp.refused(pg_temp.loop(more => $$steps => ARRAY[activation.step('a', action => activation.email('milestone'))]$$), '22023',
                       '{"loop \"refused\"","steps and also condition and action"}', 'Put them into the steps', 'steps beside a condition');
SELECT pg_temp.refused($$SELECT activation.define_loop('refused', trigger => activation.on_insert('users'))$$, '22023',
                       '{"loop \"refused\"","nothing to do"}', 'steps', 'neither steps nor a condition');

-- Documents.

CREATE FUNCTION pg_temp.document(path text, value text) RETURNS text
LANGUAGE sql AS $$
    SELECT format('SELECT activation.import_loop(%L, %L)', 'refused', jsonb_set(
        '{"type": "activation", "steps": [{
            "trigger": {"type": "database", "table": "users", "event": "insert"},
            "condition": {"type": "query", "query": "SELECT FROM actions WHERE user_id = $1", "timeout": "5m"},
            "action": {"type": "email", "provider": "resend", "template": "activation_welcome"}}]}', path::text[], value::jsonb))
$$;

SELECT pg_temp.refused(pg_temp.document(c.path, c.value), c.code, ARRAY['loop "refused"'] || c.named, c.hint, format('document: %s = %s', c.path, c.value))
  FROM (VALUES
    ('{opinoin}', '"x"', '22023', '{opinoin}'::text[], 'Did you mean "opinion"?'),
    ('{steps,0,condtion}', '{}', '22023', '{condtion,steps[0]}', 'Did you mean "condition"?'),
    ('{steps,0,condition,querry}', '"x"', '22023', '{querry,steps[0].condition}', 'Did you mean "query"?'),
    ('{steps,0,trigger,tabel}', '"x"', '22023', '{tabel,steps[0].trigger}', 'Did you mean "table"?'),
    ('{steps,0,action,templat}', '"x"', '22023', '{templat,steps[0].action}', 'Did you mean "template"?'),
    ('{recovery}', '{"retrys": 3}', '22023', '{retrys,recovery}', 'Did you mean "retries"?'),
    ('{steps,0,trigger,event}', '"inserted"', '22023', '{event,inserted}', 'Did you mean "insert"?'),
    ('{steps,0,trigger,event}', '"update"', '22023', '{trigger.columns}', 'on_update'),
    ('{steps,0,trigger,event}', '"delete"', '22023', '{public.users}', 'leave their loops'),
    ('{steps,0,trigger,type}', '"schedule"', '22023', '{"unknown key",trigger}', 'cron'),
    ('{steps,0,trigger,type}', '"event"', '22023', '{"unknown key",table}', 'event'),
    ('{steps,0,trigger,type}', '"webhook"', '22023', '{webhook}', 'database'),
    ('{steps,0,trigger,table}', '"userz"', '42P01', '{userz}', 'schema'),
    ('{steps,0,trigger,table}', 'null', '22023', '{trigger.table}', 'text'),
    ('{steps,0,trigger,filter}', '1', '22023', '{trigger.filter}', 'text'),
    ('{trigger}', '{"type": "database", "table": "users", "event": "insert"}', '22023', '{"two triggers"}', 'not in both'),
    ('{steps,0,condition,timeout}', '"five minutes"', '22007', '{timeout,"five minutes"}', '3 days'),
    ('{steps,0,condition,timeout}', '"-5m"', '22023', '{timeout}', 'longer than zero'),
    ('{steps,0,condition,timeout}', '0', '22023', '{timeout}', 'longer than zero'),
    ('{steps,0,condition,every}', '"often"', '22007', '{every,often}', '3 days'),
    ('{recovery}', '{"initial": "soon"}', '22007', '{initial,soon}', '3 days'),
    ('{steps,0,delay}', '"soon"', '22007', '{delay,soon}', '3 days'),
    ('{steps,0,action,provider}', '"sendgrid"', '22023', '{provider,sendgrid}', 'resend'),
    ('{steps,0,action,type}', '"sms"', '22023', '{"action type",sms}', 'email'),
    ('{recovery}', '{"retries": -1}', '22023', '{retries}', '0 to 20'),
    ('{recovery}', '{"retries": "3"}', '22023', '{retries}', 'whole number'),
    ('{recovery}', '{"backoff": "linear"}', '22023', '{linear}', 'exponential'),
    ('{type}', '"freemium"', '22023', '{type,freemium}', 'activation'),
    ('{holdout}', '"0.1"', '22023', '{holdout}', '0 to 0.9'),
    ('{goal}', '{"type": "query", "query": "SELECT 1"}', '42P02', '{$1}', 'user_id = $1'),
    ('{sendWindow}', '{"days": "Mon", "opens": "9", "closes": "17:00"}', '22023', '{send_window.opens}', '09:00'),
    ('{sendWindow}', '{"days": "Mon", "opens": "09:00", "closes": "25:00"}', '22023', '{send_window.closes}', '09:00'),
    ('{steps}', '[]', '22023', '{"no steps"}', 'at least one'),
    ('{steps}', '"x"', '22023', '{"no steps"}', 'at least one'),
    ('{steps,0}', '1', '22023', '{steps[0]}', 'object'),
    ('{steps,0,name}', '1', '22023', '{steps[0].name}', 'text')
  ) AS c(path, value, code, named, hint);

SELECT pg_temp.refused($$SELECT activation.import_loop('refused', '[]')$$, '22023', '{"loop \"refused\"",definition}', 'object');
SELECT pg_temp.refused($$SELECT activation.import_loop('refused', NULL)$$, '22004', '{"loop \"refused\"",NULL}', 'export_loop');
SELECT pg_temp.refused($$SELECT activation.import_loop(NULL, '{}')$$, '22023', '{name}', '');

-- Rights.

GRANT SELECT ON ALL TABLES IN SCHEMA public TO mallory;
CREATE TABLE hers (id bigint PRIMARY KEY, email text);
ALTER TABLE hers OWNER TO mallory;
SELECT pg_temp.refused(pg_temp.loop(), '42501', '{"loop \"refused\"",mallory,public.users}', 'postgres', 'a caller without the privileges of the table''s owner', 'mallory');
SELECT pg_temp.refused(pg_temp.loop(more => $$owner => 'postgres'$$), '42501', '{"loop \"refused\"",mallory,postgres}', 'owner', 'somebody else as the owner', 'mallory');
SELECT pg_temp.refused(pg_temp.document('{opinion}', '"x"'), '42501', '{"loop \"refused\"",mallory,public.users}', 'postgres', 'the same as a document', 'mallory');
SELECT pg_temp.refused($$SELECT activation.set_users('users')$$, '42501', '{set_users,mallory,public.users}', 'postgres', 'set_users, likewise', 'mallory');
SELECT pg_temp.refused($$SELECT activation.unbind('users')$$, '42501', '{unbind,mallory,public.users}', 'postgres', 'unbind, likewise', 'mallory');
REVOKE SELECT ON actions FROM mallory;
SELECT pg_temp.refused(pg_temp.loop(trigger => $$activation.on_insert('hers')$$), '42501', '{"loop \"refused\"",actions}', 'one SELECT',
                       'a condition over a table that its owner may not read', 'mallory');

SELECT activation.define_loop('in use', trigger => activation.on_insert('users'),
    action => activation.email('needy', personalization => '{"projectName": "{{user.name}}"}'));
SELECT pg_temp.refused($$SELECT activation.pause_loop('in use')$$, '42501', '{"loop \"in use\"",postgres}', 'mallory', 'pausing somebody else''s loop', 'mallory');
SELECT pg_temp.refused($$SELECT activation.resume_loop('in use')$$, '42501', '{"loop \"in use\"",postgres}', 'mallory', 'resuming it', 'mallory');
SELECT pg_temp.refused($$SELECT activation.archive_loop('in use')$$, '42501', '{"loop \"in use\"",postgres}', 'mallory', 'archiving it', 'mallory');
SELECT pg_temp.refused($$SELECT * FROM activation.preview('1', 'in use')$$, '42501', '{"loop \"in use\"",postgres}', 'mallory', 'previewing it', 'mallory');
SELECT pg_temp.refused(pg_temp.loop(name => $$'in use'$$, trigger => $$activation.on_insert('hers')$$, condition => 'NULL'), '42501', '{"loop \"in use\"",postgres}', '',
                       'taking it over', 'mallory');

-- Loops and templates in use.

SELECT pg_temp.refused($$SELECT activation.resume_loop('in use')$$, '55000', '{"loop \"in use\""}', 'paused');
SELECT pg_temp.refused($$SELECT activation.set_template('needy', 'Hi', body_text => '{{ name }}')$$, '22023', '{"loop \"in use\"",needy,name}', 'personalization');
SELECT pg_temp.refused($$SELECT activation.set_template('needy', 'Hi', body_text => '{{ user.city }}')$$, '42703', '{"loop \"in use\"",user.city}', 'user.city');
SELECT pg_temp.refused(format('SELECT %s', c.call), c.code, c.named, c.hint)
  FROM (VALUES
    ($$activation.export_loop('nope')$$, '42704', '{"loop \"nope\""}'::text[], '"in use"'),
    ($$activation.pause_loop('nope')$$, '42704', '{"loop \"nope\""}', '"in use"'),
    ($$activation.resume_loop('nope')$$, '42704', '{"loop \"nope\""}', '"in use"'),
    ($$activation.archive_loop('nope')$$, '42704', '{"loop \"nope\""}', '"in use"'),
    ($$activation.preview('1', 'nope')$$, '42704', '{"loop \"nope\""}', '"in use"'),
    ($$activation.why('1', 'nope')$$, '42704', '{"loop \"nope\""}', '"in use"'),
    ($$activation.preview('1', 'in use')$$, '02000', '{"user 1",public.users}', 'key'),
    ($$activation.unbind(NULL)$$, '22004', '{unbind}', 'users'),
    ($$activation.set_users('users', key => 'email')$$, '55000', '{email,public.users,"no index"}', 'CREATE INDEX')
  ) AS c(call, code, named, hint);

CREATE INDEX ON users (email);
SELECT pg_temp.refused($$SELECT activation.set_users('users', key => 'email')$$, '55006', '{public.users,id}', 'keeps its key', 'another key for a table that loops use');

-- Settings.

SELECT pg_temp.refused(format('SELECT activation.%s', c.call), c.code, c.named, c.hint)
  FROM (VALUES
    ($$configure(sender => 'nobody')$$, '22023', '{sender,nobody}'::text[], 'hello@acme.dev'),
    ($$configure(sender => E'a@example.net\nBcc: b@example.net')$$, '22023', '{sender,"line break"}', 'one line'),
    ($$configure(sender => 'a@example.net, b@example.net')$$, '22023', '{sender,"more than one"}', 'quotes'),
    ($$configure(reply_to => 'Team: a@example.net;')$$, '22023', '{reply_to,"more than one"}', 'quotes'),
    ($$configure(sender => '{{ user.manager_email }}')$$, '22023', '{sender,user.manager_email,Liquid}', 'same for everybody'),
    ($$configure(reply_to => 'Acme <>')$$, '22023', '{reply_to}', 'hello@acme.dev'),
    ($$configure(resend_url => 'ftp://example.net')$$, '22023', '{resend_url,ftp}', 'https://'),
    ($$configure(public_url => 'acme.dev')$$, '22023', '{public_url,acme.dev}', 'https://'),
    ($$configure(timezone => 'Mars/Olympus')$$, '22023', '{Mars/Olympus}', 'pg_timezone_names'),
    ($$configure(rate => 0)$$, '22023', '{rate}', 'requests a second'),
    ($$configure(rate => 'NaN')$$, '22023', '{rate}', 'requests a second'),
    ($$configure(rate => -1)$$, '22023', '{rate}', 'requests a second'),
    ($$configure(rate => 10001)$$, '22023', '{rate}', 'requests a second'),
    ($$configure(retention => '59 minutes')$$, '22023', '{retention,00:59:00}', '1 hour'),
    ($$configure(retention => '-1 day')$$, '22023', '{retention}', '1 hour'),
    ($$configure(max_per_user => -1)$$, '22023', '{max_per_user}', 'per =>'),
    ($$configure(per => '1 second')$$, '22023', '{per}', '1 minute'),
    ($$configure(per => '100 days')$$, '22023', '{per,retention}', 'raise retention'),
    ($$enroll(NULL, 'in use')$$, '22004', '{enroll}', 'key'),
    ($$enroll('1', 'nope')$$, '42704', '{"loop \"nope\""}', '"in use"'),
    ($$enroll('1', 'in use')$$, '02000', '{"user 1",public.users}', 'key'),
    ($$enroll('one', 'in use')$$, '02000', '{"user one",public.users}', 'key'),
    ($$enroll('1', 'in use', '[1]')$$, '22023', '{"user 1",context}', 'object'),
    ($$cancel(NULL, 'in use')$$, '22004', '{cancel}', 'key'),
    ($$cancel('1', 'nope')$$, '42704', '{"loop \"nope\""}', '"in use"'),
    ($$track(NULL, 'called')$$, '22004', '{track}', 'key'),
    ($$track('1', ' ')$$, '22023', '{event}', 'name'),
    ($$track('1', 'called', '"x"')$$, '22023', '{called,properties}', 'object'),
    ($$track('1', 'called')$$, '02000', '{"user 1",public.users}', 'key'),
    ($$diff_loop('nope', '{}')$$, '42704', '{"loop \"nope\""}', '"in use"'),
    ($$diff_loop('in use', '{"stepz": 1}')$$, '22023', '{"loop \"in use\"",stepz}', '"steps"'),
    ($$migrate_loop('nope')$$, '42704', '{"loop \"nope\""}', '"in use"'),
    ($$resume_loop('in use', '-1 day')$$, '22023', '{drop_older_than}', 'age'),
    ($$configure(max_per_hour => 0)$$, '22023', '{max_per_hour}', 'pause_loop'),
    ($$configure(max_per_hour => -5)$$, '22023', '{max_per_hour,-5}', 'pause_loop'),
    ($$configure(condition_timeout => '0')$$, '22023', '{condition_timeout}', '1 second'),
    ($$configure(condition_timeout => '2 hours')$$, '22023', '{condition_timeout,02:00:00}', '1 hour'),
    ($$set_secret('', 'x')$$, '22023', '{secret,name}', 'letters'),
    ($$set_secret('a b', 'x')$$, '22023', '{secret,name}', 'letters'),
    ($$set_users(NULL)$$, '22004', '{set_users}', 'users'),
    ($$set_users('users', key => 'uid')$$, '42703', '{public.users,uid}', $$key => '…'$$),
    ($$set_users('users', key => 'plan')$$, '55000', '{plan,public.users,"no index"}', 'CREATE INDEX'),
    ($$set_users('users', email => 'mail')$$, '42703', '{public.users,mail}', $$email => '…'$$),
    ($$set_users('users', timezone => 'tz')$$, '42703', '{public.users,tz}', $$timezone => '…'$$),
    ($$set_users('bare')$$, '42P16', '{public.bare,"no primary key"}', 'key =>'),
    ($$set_users('pairs')$$, '42P16', '{public.pairs,"several columns"}', 'key =>'),
    ($$set_users('people')$$, '42809', '{public.people,"is a view"}', 'table'),
    ($$set_users('nomail')$$, '42703', '{public.nomail,email}', $$email => '…'$$),
    ($$set_template('a b', 'Hi', body_text => 'Hi')$$, '22023', '{template,name}', 'letters'),
    ($$set_template(NULL, 'Hi', body_text => 'Hi')$$, '22023', '{template,name}', 'letters'),
    ($$set_template('t', '', body_text => 'Hi')$$, '22023', '{"template \"t\"",subject}', 'subject =>'),
    ($$set_template('t', E'Hi\nBcc: b@example.net', body_text => 'Hi')$$, '22023', '{"template \"t\"",subject}', 'subject =>'),
    ($$set_template('t', 'Hi')$$, '22023', '{"template \"t\"",body}', 'html'),
    ($$set_template('t', 'Hi', body_text => '{% if %}')$$, '42601', '{"template \"t\"",Liquid}', 'Liquid'),
    ($$set_template('t', 'Hi', html => '{{ user.name')$$, '42601', '{"template \"t\"",html,Liquid}', 'Liquid'),
    ($$set_template('t', 'Hi {{ name | upcas }}', html => 'x')$$, '42601', '{"template \"t\"",subject,upcas}', 'upcase'),
    ($$set_template('t', 'Hi', html => '{% if false %}{% include "foot" %}{% endif %}')$$, '0A000', '{"template \"t\"",html,include}', 'itself'),
    ($$set_mode('alive')$$, '22023', '{alive}', 'live'),
    ($$set_mode(NULL)$$, '22023', '{mode}', 'live'),
    ($$set_mode('redirect')$$, '22023', '{redirect,address}', 'redirect_to'),
    ($$set_mode('live', redirect_to => 'a@example.net')$$, '22023', '{redirect_to}', 'redirect_to'),
    ($$set_mode('redirect', redirect_to => 'nobody')$$, '22023', '{redirect_to,nobody}', 'you@acme.dev'),
    ($$set_mode('live', hosts => ARRAY['elsewhere:%'])$$, '22023', '{hosts}', 'LIKE'),
    ($$set_mode('live', backlog => 'drop')$$, '22023', '{backlog,drop}', 'cancel'),
    ($$start(detectors => 0)$$, '22023', '{detectors}', '1 to 8'),
    ($$start(deliverers => 9)$$, '22023', '{deliverers}', '1 to 8'),
    ($$start(detectors => NULL)$$, '22023', '{detectors}', '1 to 8')
  ) AS c(call, code, named, hint);

-- What commits cannot run inside a transaction.

SELECT is((pg_temp.outcome('CALL activation.' || c)).code, '2D000', c || ' inside a transaction') FROM unnest(ARRAY['detect()', 'deliver()', 'tick()']) AS c;

-- A literal key is refused and repeated nowhere.

CREATE FUNCTION pg_temp.literal(argument text, key text, OUT code text, OUT said text)
LANGUAGE plpgsql AS $$
DECLARE
    message text;
    detail text;
    hint text;
    context text;
BEGIN
    IF argument = 'api_key' THEN
        PERFORM activation.configure(api_key => key);
    ELSE
        PERFORM activation.configure(webhook_secret => key);
    END IF;
EXCEPTION WHEN others THEN
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL,
                            hint = PG_EXCEPTION_HINT, context = PG_EXCEPTION_CONTEXT;
    said := concat_ws(E'\n', message, detail, hint, context);
END
$$;
SELECT is(l.said LIKE '%' || argument || '%env:NAME%' AND l.code = '22023' AND position(left(key, 8) IN l.said) = 0, true,
          format('a literal %s is refused, saying which, and no part of the error repeats it', argument))
  FROM (VALUES ('api_key', 're_abcdefgh_123456789'), ('api_key', 'Re_abcdefgh'), ('api_key', 'envRESEND_API_KEY'),
               ('webhook_secret', 'whsec_abcdefgh')) AS g(argument, key),
       pg_temp.literal(argument, key) AS l;

-- docs/errors.md has them all.

\set documented `cat docs/errors.md`
\set raised `grep -rohE "ERRCODE = '[0-9A-Z]{5}'|(code|sqlstate)=\"[0-9A-Z]{5}\"|'code', '[0-9A-Z]{5}'" sql python/activation`
SELECT is_empty(format($$
    SELECT code FROM (SELECT code FROM refused_with UNION SELECT m[1] FROM regexp_matches(%L, '[''"]([0-9A-Z]{5})[''"]', 'g') AS m) AS used
     WHERE code <> 'ACT00' AND position('| ' || code || ' ' IN %L) = 0$$, :'raised', :'documented'), 'docs/errors.md lists every code');

SELECT * FROM finish();
ROLLBACK;
