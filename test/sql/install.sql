\ir setup.sql
SELECT no_plan();

-- What the extension consists of.

SELECT set_eq(
    $$SELECT p.oid::regprocedure::text FROM pg_proc p WHERE p.pronamespace = 'activation'::regnamespace AND left(p.proname, 1) <> '_'$$,
    ARRAY[
        'activation.archive_loop(text)',
        'activation.bind(boolean)',
        'activation.cancel(text,text,text)',
        'activation.configure(text,text,text,text,text,text,text,interval,numeric,integer,interval,integer,interval,boolean,text,boolean)',
        'activation.define_loop(text,jsonb,jsonb,jsonb,jsonb,jsonb[],jsonb,text,text,jsonb,text,text,integer,regclass,text,boolean,integer,text,numeric,jsonb,name,text)',
        'activation.deliver(integer)',
        'activation.detect(integer)',
        'activation.diff_loop(text,jsonb,text)',
        'activation.doctor()',
        'activation.email(text,jsonb,text,text,text)',
        'activation.enroll(text,text,jsonb)',
        'activation.export_loop(text)',
        'activation.grant_role(text,name)',
        'activation.revoke_role(text,name)',
        'activation.import_journey(text,text,regclass,text[],interval,name,text)',
        'activation.import_loop(text,jsonb,name,text)',
        'activation.import_skene(text,text,name,text)',
        'activation.journey_definition(text,regclass,text[],interval,text)',
        'activation.milestone(jsonb,timestamp with time zone,regclass,jsonb,text)',
        'activation.migrate_loop(text)',
        'activation.on_delete(regclass,name,text)',
        'activation.on_event(text)',
        'activation.on_insert(regclass,name,text)',
        'activation.on_schedule(text,text)',
        'activation.on_update(regclass,name[],name,text)',
        'activation.overview(interval)',
        'activation.pause_loop(text,boolean)',
        'activation.power(text)',
        'activation.preview(text,text)',
        'activation.query(text,interval,interval,jsonb)',
        'activation.report()',
        'activation.resolve(uuid,text)',
        'activation.resume()',
        'activation.resume_loop(text,interval)',
        'activation.retry(integer,text,interval,interval)',
        'activation.send_window(text,time without time zone,time without time zone,text)',
        'activation.set_mode(text,text,text[],text)',
        'activation.set_secret(text,text)',
        'activation.set_template(text,text,text,text)',
        'activation.set_users(regclass,name,name,name)',
        'activation.skene_definition(text)',
        'activation.simulate(text,jsonb,timestamp with time zone,timestamp with time zone,jsonb,text)',
        'activation.start(integer,integer,boolean)',
        'activation.step(text,interval,jsonb,jsonb,jsonb,text)',
        'activation.stop()',
        'activation.suggest(jsonb,interval,regclass,integer,text)',
        'activation.erase(text)',
        'activation.export_user(text)',
        'activation.preferences(text,text)',
        'activation.pull_webhooks()',
        'activation.receive_webhook(text,jsonb)',
        'activation.resubscribe(text,text)',
        'activation.set_retention(text,interval)',
        'activation.set_topic(text,text,text)',
        'activation.sync_suppressions()',
        'activation.suppress(text,text)',
        'activation.unsubscribe(text,boolean,text)',
        'activation.unsuppress(text)',
        'activation.tick()',
        'activation.track(text,text,jsonb)',
        'activation.track_all(jsonb)',
        'activation.unbind(regclass)',
        'activation.why(text,text)'
    ],
    'the public routines are these');

SELECT is_empty(
    $$SELECT p.proname FROM pg_proc p WHERE p.pronamespace = 'activation'::regnamespace GROUP BY 1 HAVING count(*) > 1$$,
    'no routine has overloads');

SELECT set_eq(
    $$SELECT c.relname::text FROM pg_class c WHERE c.relnamespace = 'activation'::regnamespace AND c.relkind = 'v'$$,
    ARRAY['_span', 'call', 'cohort', 'funnel', 'journey', 'lift', 'loop_definition', 'mail_numbers', 'message_log', 'status', 'time_to_activate'],
    'the views are these');

CREATE TEMP VIEW member AS
SELECT d.classid, d.objid, e.extconfig
  FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'activation'
 WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e';

CREATE TEMP VIEW routine AS
SELECT p.* FROM member m JOIN pg_proc p ON p.oid = m.objid AND m.classid = 'pg_proc'::regclass;

SELECT is_empty(
    $$SELECT i.type, i.identity FROM member m, pg_identify_object(m.classid, m.objid, 0) i
       WHERE i.schema IS DISTINCT FROM 'activation' AND i.identity NOT IN ('activation', 'activation_compiled', 'activation_follow_table', 'activation_follow_drop')
         AND i.identity NOT LIKE 'activation.%'$$,
    'nothing is made outside of its two schemas but two event triggers');

SELECT is_empty(
    $$SELECT c.oid::regclass::text FROM pg_class c WHERE c.relnamespace IN ('activation'::regnamespace, 'activation_compiled'::regnamespace)
         AND c.relkind IN ('r', 'v', 'S') AND NOT EXISTS (SELECT FROM member m WHERE m.objid = c.oid AND m.classid = 'pg_class'::regclass)
      UNION ALL
      SELECT p.oid::regprocedure::text FROM pg_proc p WHERE p.pronamespace = 'activation'::regnamespace
         AND NOT EXISTS (SELECT FROM routine r WHERE r.oid = p.oid)$$,
    'all that stands in schema activation is a member');

SELECT is(
    format('superuser %s, trusted %s, relocatable %s, schema %s, requires %s', superuser, trusted, relocatable, schema, requires),
    'superuser t, trusted f, relocatable f, schema pg_catalog, requires {plpython3u}',
    'for superusers, never trusted; needs PL/Python and nothing else')
  FROM pg_available_extension_versions WHERE name = 'activation' AND installed;

-- Hygiene. Each of these must find nothing.

SELECT is_empty(
    $$SELECT r.oid::regprocedure, r.proconfig FROM routine r
       WHERE r.prosqlbody IS NULL AND NOT coalesce(r.proconfig, '{}') @> ARRAY['search_path=pg_catalog, pg_temp']
         AND NOT (r.prokind = 'p' AND r.proname IN ('detect', 'deliver', 'tick', 'pull_webhooks', 'sync_suppressions'))$$,
    'every routine pins its search_path, has a body bound by the server, or is one of those that commit');

-- What takes an author's text, a table or a loop's name must know its caller: it is a function with its caller's rights, and
-- goes by activation.call, or reads what the caller may read.
SELECT set_eq(
    $$SELECT r.proname::text FROM routine r WHERE r.prokind = 'f' AND NOT r.prosecdef AND r.prosrc ~ 'INSERT INTO activation\.call'$$,
    ARRAY['define_loop', 'import_loop', 'import_skene', 'import_journey', 'set_users', 'set_template', 'bind', 'unbind', 'preview', 'diff_loop',
          'migrate_loop', 'pause_loop', 'resume_loop', 'archive_loop', 'resolve', 'enroll', 'suppress'],
    'verbs that must know their caller go by activation.call');
SELECT set_eq(
    $$SELECT r.proname::text FROM routine r, regexp_matches(r.prosrc, 'INSERT INTO activation\.call \(verb, arguments\)\s+VALUES \(''(\w+)''', 'g') AS m
       WHERE m[1] = r.proname AND (SELECT c.prosrc FROM routine c WHERE c.proname = '_call') ~ format('WHEN ''%s'' THEN', m[1])$$,
    $$SELECT r.proname::text FROM routine r WHERE r.prosrc ~ 'INSERT INTO activation\.call'$$,
    'each under its own name, which is answered');
SELECT is_empty($$SELECT r.oid::regprocedure FROM routine r WHERE r.prosrc ~* '\msession_user\M'$$, 'nothing believes session_user');
SELECT set_eq(
    $$SELECT r.proname::text FROM routine r WHERE left(r.proname, 1) <> '_' AND r.prokind = 'f' AND NOT r.prosecdef AND r.prosrc !~ 'INSERT INTO activation\.call'$$,
    ARRAY['suggest', 'simulate', 'milestone', 'export_loop', 'grant_role', 'revoke_role'],
    'callers need EXECUTE on a public function and no right besides: each other one is SECURITY DEFINER, but for those that read, or hand out rights, as their caller');

SELECT is_empty(
    $$SELECT r.oid::regprocedure FROM routine r WHERE left(r.proname, 1) <> '_' AND coalesce(obj_description(r.oid, 'pg_proc'), '') = ''$$,
    'every public routine has a comment');

SELECT is_empty(
    $$SELECT c.oid::regclass FROM member m JOIN pg_class c ON c.oid = m.objid AND m.classid = 'pg_class'::regclass
       WHERE c.relkind IN ('r', 'v') AND coalesce(obj_description(c.oid, 'pg_class'), '') = ''$$,
    'every table and view has a comment');

SELECT is_empty(
    $$SELECT c.oid::regclass FROM member m JOIN pg_class c ON c.oid = m.objid AND m.classid = 'pg_class'::regclass
       WHERE c.relkind IN ('r', 'p', 'S') AND c.oid <> ALL (coalesce(m.extconfig, '{}'))
         AND coalesce(obj_description(c.oid, 'pg_class'), '') !~ 'not dumped'$$,
    'pg_dump carries every table and sequence, or its comment says that it is not dumped');

SELECT is_empty(
    $$SELECT c.oid::regclass FROM member m JOIN pg_class c ON c.oid = m.objid AND m.classid = 'pg_class'::regclass
       WHERE c.oid = ANY (m.extconfig) AND obj_description(c.oid, 'pg_class') ~ 'not dumped'$$,
    'and none is that says it is not');

SELECT is_empty(
    $$SELECT a.attrelid::regclass, a.attname FROM member m JOIN pg_attribute a ON a.attrelid = m.objid AND m.classid = 'pg_class'::regclass
       WHERE a.attnum > 0 AND NOT a.attisdropped
         AND a.atttypid = ANY ('{regproc,regprocedure,regoper,regoperator,regconfig,regdictionary,regcollation,regnamespace}'::regtype[])$$,
    'no column has a type that stops pg_upgrade');

SELECT is_empty(
    $$SELECT r.oid::regprocedure::text FROM routine r, aclexplode(coalesce(r.proacl, acldefault('f', r.proowner))) a WHERE a.grantee = 0
      UNION ALL
      SELECT c.oid::regclass::text FROM member m JOIN pg_class c ON c.oid = m.objid AND m.classid = 'pg_class'::regclass,
             aclexplode(c.relacl) a WHERE a.grantee = 0 AND c.oid <> 'activation.loop_definition'::regclass
      UNION ALL
      SELECT n.nspname FROM pg_namespace n, aclexplode(n.nspacl) a WHERE n.nspname IN ('activation', 'activation_compiled') AND a.grantee = 0$$,
    'PUBLIC has a right on nothing but on the view that shows each reader what is theirs');

SELECT is_empty(
    $$SELECT a.attname FROM pg_attribute a, aclexplode(a.attacl) x WHERE a.attrelid = 'activation.call'::regclass AND x.grantee = 0
         AND (a.attname, x.privilege_type) NOT IN (('verb', 'INSERT'), ('arguments', 'INSERT'), ('answer', 'SELECT'))$$,
    'nobody says who calls');

SELECT is_empty(
    $$SELECT r.oid::regprocedure FROM routine r JOIN pg_language l ON l.oid = r.prolang
       WHERE l.lanname NOT IN ('sql', 'plpgsql') AND r.provolatile <> 'v'$$,
    'what can do I/O is volatile');

SELECT is_empty(
    $$SELECT r.oid::regprocedure FROM routine r JOIN pg_language l ON l.oid = r.prolang
       WHERE l.lanname = 'plpython3u' AND r.proname NOT IN ('_python', '_webhook_problem') AND cardinality(string_to_array(btrim(r.prosrc, E'\n'), E'\n')) > 3$$,
    'a PL/Python body is a check, an import and a call; that for webhooks checks once a session');

SELECT set_eq(
    $$SELECT r.proname::text FROM routine r WHERE r.prosrc ~ '\mcron\.(job|schedule|unschedule)'$$,
    ARRAY['_has_cron', '_jobs', '_prune_job_runs', '_require_cron', 'start', 'stop'],
    'only the schedule speaks of pg_cron');

SELECT is_empty('SELECT FROM activation.setting UNION ALL SELECT FROM activation.template', 'a fresh database holds no row that a dump would bring again');
SELECT is(count(*)::integer, 2, 'two event triggers') FROM pg_event_trigger WHERE evtname LIKE 'activation\_%' AND evtenabled = 'O';

-- It goes as it came.

CREATE TABLE users (id bigint PRIMARY KEY, email text);
SELECT activation.define_loop('greeting', trigger => activation.on_insert('users'), action => activation.email('activation_welcome'));
SELECT throws_ok('DROP EXTENSION activation', '2BP01', NULL, 'a database with loops does not lose them to a plain DROP EXTENSION');
SELECT lives_ok('DROP EXTENSION activation CASCADE', 'CASCADE takes it');
SELECT is_empty($$SELECT nspname FROM pg_namespace WHERE nspname LIKE 'activation%'$$, 'with both schemas and what was compiled');
SELECT is_empty($$SELECT tgname FROM pg_trigger WHERE tgrelid = 'users'::regclass AND NOT tgisinternal$$, 'and its triggers on the app''s tables');
SELECT is_empty($$SELECT evtname FROM pg_event_trigger WHERE evtname LIKE 'activation%'$$, 'and the event trigger');
SELECT lives_ok($$INSERT INTO users VALUES (1, 'a@example.net')$$, 'and the app goes on');
SELECT lives_ok('CREATE EXTENSION activation', 'it can be created again');
SELECT lives_ok('DROP EXTENSION activation', 'and, unused, dropped without CASCADE');

SELECT * FROM finish();
ROLLBACK;
