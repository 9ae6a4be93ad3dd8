-- What wakes a condition, as found when it is defined: which columns are captured, whether deletes count, and whether it
-- has to be asked again at intervals because something can change unseen.
\ir setup.sql
SELECT no_plan();

CREATE TABLE users (id bigint PRIMARY KEY, email text, plan text, team_id bigint, born date);
CREATE TABLE actions (id bigint PRIMARY KEY, user_id bigint, what text, at timestamptz);
CREATE TABLE projects (id bigint PRIMARY KEY, owner_id bigint, team_id bigint);
CREATE TABLE members (team_id bigint, user_id integer);
CREATE TABLE notes (user_id text, short varchar(40), num numeric);
CREATE TABLE events (user_id bigint, at date) PARTITION BY RANGE (at);
CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM ('2021-01-01') TO ('2022-01-01') PARTITION BY LIST (user_id);
CREATE TABLE events_2a PARTITION OF events_2 DEFAULT;
CREATE TABLE "Order" ("userId" bigint, "Total" numeric);
CREATE VIEW made AS SELECT user_id AS who, what FROM actions WHERE what IS NOT NULL;
CREATE VIEW made_twice AS SELECT who FROM made GROUP BY who HAVING count(*) > 1;
CREATE VIEW recent AS SELECT user_id FROM actions WHERE at > now() - interval '1 day';
CREATE MATERIALIZED VIEW daily AS SELECT user_id, count(*) AS n FROM actions GROUP BY 1;
CREATE FUNCTION acted(who bigint) RETURNS boolean LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN EXISTS (SELECT FROM actions WHERE user_id = who); END $$;
CREATE FUNCTION acted_inline(who bigint) RETURNS boolean LANGUAGE sql STABLE AS $$ SELECT EXISTS (SELECT FROM actions WHERE user_id = who) $$;
CREATE FUNCTION is_long(t text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT length(t) > 3 $$;
CREATE ROLE author;
CREATE TABLE others (user_id bigint);

-- What was found for a condition: watched columns, "-" before them if deletes count, and then the interval.
CREATE FUNCTION pg_temp.found(condition jsonb, owner name DEFAULT current_user) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    made activation.step;
    loop_name text := 'watching ' || md5(condition::text);
BEGIN
    PERFORM activation.define_loop(loop_name, trigger => activation.on_insert('users'), condition => condition,
                                   action => activation.email('milestone'), owner => owner);
    SELECT s.* INTO STRICT made FROM activation.step s JOIN activation.loop l USING (loop_id, version) WHERE l.name = loop_name;
    RETURN concat_ws(' ',
        (SELECT string_agg(CASE WHEN w.on_delete THEN '-' ELSE '' END || format('%s.%I', c.table_name, c.key_column), ' ' ORDER BY c.table_name::text COLLATE "C")
           FROM activation.watch w JOIN activation.source c USING (source_id) WHERE (w.loop_id, w.version, w.step) = (made.loop_id, made.version, made.step)),
        'every ' || made.every);
END
$$;

SELECT is(pg_temp.found(activation.query(c.query)), c.found, c.query)
  FROM (VALUES
    -- One table.
    ('SELECT * FROM actions WHERE user_id = $1', 'actions.user_id'),
    ('SELECT 1 FROM actions WHERE $1 = user_id AND what = ''made''', 'actions.user_id'),
    ('SELECT FROM actions AS a WHERE a.what LIKE ''m%'' AND a.user_id = $1 AND a.at < ''2030-01-01''', 'actions.user_id'),
    ('SELECT FROM actions WHERE user_id IN ($1)', 'actions.user_id'),
    ('SELECT FROM "Order" WHERE "userId" = $1 AND "Total" > 10', '"Order"."userId"'),
    ('SELECT FROM users WHERE id = $1 AND plan = ''paid''', 'users.id'),
    ('SELECT FROM members WHERE user_id = $1', 'members.user_id'),
    ('SELECT FROM members WHERE user_id::bigint = $1', 'members.user_id'),
    ('SELECT FROM actions WHERE user_id = $1 AND is_long(what)', 'actions.user_id'),
    ('SELECT FROM actions WHERE user_id = $1 AND (what = ''a'' OR what = ''b'')', 'actions.user_id'),
    ('SELECT FROM actions WHERE user_id = $1 ORDER BY at', 'actions.user_id'),
    ('SELECT FROM actions WHERE user_id = $1 FETCH FIRST ROW ONLY', '-actions.user_id'),
    ('SELECT FROM actions WHERE user_id = $1 AND what IS NOT NULL', 'actions.user_id'),
    -- Several.
    ('SELECT FROM actions a JOIN users u ON u.id = a.user_id WHERE u.id = $1', 'actions.user_id users.id'),
    ('SELECT FROM users u WHERE u.id = $1 AND EXISTS (SELECT FROM actions a WHERE a.user_id = u.id)', 'actions.user_id users.id'),
    ('SELECT FROM users u WHERE u.id = $1 AND EXISTS (SELECT FROM actions a WHERE a.user_id = $1)', '-actions.user_id -users.id'),
    ('SELECT FROM users WHERE id = $1 AND id IN (SELECT user_id FROM actions)', 'actions.user_id users.id'),
    ('SELECT FROM actions WHERE user_id = $1 UNION ALL SELECT FROM projects WHERE owner_id = $1', 'actions.user_id projects.owner_id'),
    ('WITH a AS (SELECT * FROM actions) SELECT FROM a WHERE user_id = $1', 'actions.user_id'),
    ('SELECT FROM actions a LEFT JOIN projects p ON p.owner_id = a.user_id WHERE a.user_id = $1 AND p.id IS NULL', '-actions.user_id -projects.owner_id'),
    -- Rows that vanish count.
    ('SELECT FROM users u WHERE id = $1 AND NOT EXISTS (SELECT FROM actions a WHERE a.user_id = u.id)', '-actions.user_id -users.id'),
    ('SELECT FROM users WHERE id = $1 AND id NOT IN (SELECT user_id FROM actions WHERE user_id = $1)', '-actions.user_id -users.id'),
    ('SELECT FROM actions WHERE user_id = $1 HAVING count(*) >= 3', '-actions.user_id'),
    ('SELECT user_id FROM actions WHERE user_id = $1 GROUP BY user_id HAVING count(DISTINCT what) = 2', '-actions.user_id'),
    ('SELECT FROM users WHERE id = $1 AND (SELECT count(*) FROM actions WHERE user_id = $1) > 2', '-actions.user_id -users.id'),
    ('SELECT user_id FROM actions WHERE user_id = $1 EXCEPT SELECT owner_id FROM projects WHERE owner_id = $1', '-actions.user_id -projects.owner_id'),
    -- Views and partitions.
    ('SELECT FROM made WHERE who = $1', 'actions.user_id'),
    ('SELECT FROM made_twice WHERE who = $1', '-actions.user_id'),
    ('SELECT FROM events WHERE user_id = $1', 'events.user_id'),
    ('SELECT FROM events WHERE user_id = $1 AND at > ''2021-06-01''', 'events.user_id'),
    -- What is read without regard to the user is asked again.
    ('SELECT FROM projects p JOIN members m USING (team_id) WHERE m.user_id = $1', 'members.user_id every 00:01:00'),
    ('SELECT FROM actions WHERE user_id = $1 OR what = ''all''', 'every 00:01:00'),
    ('SELECT FROM actions WHERE user_id > $1', 'every 00:01:00'),
    ('SELECT FROM actions WHERE user_id + 0 = $1', 'every 00:01:00'),
    ('SELECT FROM actions WHERE user_id = $1 AND what = (SELECT max(what) FROM actions)', 'every 00:01:00'),
    ('SELECT FROM actions WHERE user_id = $1 AND EXISTS (SELECT FROM projects)', '-actions.user_id every 00:01:00'),
    ('SELECT FROM notes WHERE num = $1', 'every 00:01:00'),
    ('SELECT FROM daily WHERE user_id = $1', 'every 00:01:00'),
    ('SELECT FROM pg_stat_activity WHERE pid = $1', 'every 00:01:00'),
    ('SELECT FROM actions WHERE user_id = $1 AND false', 'every 00:01:00'),
    ('SELECT WHERE $1 > 5', 'every 00:01:00'),
    -- So is what depends on the time, the session, or a function that cannot be looked into.
    ('SELECT FROM actions WHERE user_id = $1 AND at > now() - interval ''1 day''', 'actions.user_id every 00:01:00'),
    ('SELECT FROM actions WHERE user_id = $1 AND at < CURRENT_TIMESTAMP', 'actions.user_id every 00:01:00'),
    ('SELECT FROM users WHERE id = $1 AND born < CURRENT_DATE', 'users.id every 00:01:00'),
    ('SELECT FROM users WHERE id = $1 AND age(born) > interval ''18 years''', 'users.id every 00:01:00'),
    ('SELECT FROM users WHERE id = $1 AND age(timestamptz ''2030-01-01'', born) > interval ''18 years''', 'users.id'),
    ('SELECT FROM actions WHERE user_id = $1 AND at > clock_timestamp()', 'actions.user_id every 00:01:00'),
    ('SELECT FROM actions WHERE user_id = $1 AND random() < 0.5', 'actions.user_id every 00:01:00'),
    ('SELECT FROM recent WHERE user_id = $1', 'actions.user_id every 00:01:00'),
    ('SELECT FROM users WHERE id = $1 AND acted(id)', 'users.id every 00:01:00'),
    ('SELECT FROM users WHERE id = $1 AND acted_inline(id)', 'users.id every 00:01:00'),
    ('SELECT WHERE acted($1)', 'every 00:01:00')
  ) AS c(query, found);

-- What an author says goes before.

SELECT is(pg_temp.found(activation.query('SELECT FROM actions WHERE user_id + 0 = $1', every => '2 hours')), 'every 02:00:00', 'every, as given');
SELECT is(pg_temp.found(activation.query('SELECT FROM actions WHERE user_id = $1', every => '2 hours')), 'actions.user_id every 02:00:00', 'also beside what is watched');
SELECT is(pg_temp.found(activation.query('SELECT FROM actions WHERE user_id + 0 = $1', watch => '{"public.actions": "user_id"}')), 'actions.user_id', 'watch names the column');
SELECT is(pg_temp.found(activation.query('SELECT FROM actions WHERE user_id = $1', watch => '{"public.actions": null}')), 'every 00:01:00', 'watch forbids a trigger');
SELECT is(pg_temp.found(activation.query('SELECT FROM users WHERE id = $1 AND acted(id)', watch => '{"public.actions": "user_id"}')), 'actions.user_id users.id every 00:01:00',
          'or a table that only a function reads');

-- Keys of other types.

CREATE FUNCTION pg_temp.keyed(type text) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TABLE %I (id %s PRIMARY KEY, email text); CREATE TABLE %I (user_id %s)', type || ' users', type, type || ' done', type);
    PERFORM activation.define_loop('keys ' || type, trigger => activation.on_insert(format('%I', type || ' users')), action => activation.email('milestone'),
                                   condition => activation.query(format('SELECT FROM %I WHERE user_id = $1', type || ' done')));
    RETURN (SELECT concat_ws(' ', string_agg(c.key_column, ' '), 'every ' || s.every) FROM activation.step s JOIN activation.loop l USING (loop_id, version)
              LEFT JOIN activation.watch w USING (loop_id, version, step) LEFT JOIN activation.source c USING (source_id)
             WHERE l.name = 'keys ' || type GROUP BY s.every);
END
$$;
SELECT is(pg_temp.keyed(t), 'user_id', format('keys of type %s are watched', t))
  FROM unnest(ARRAY['bigint', 'integer', 'smallint', 'uuid', 'text', 'varchar(40)', 'varchar']) AS t;

-- Without the right to put a trigger there, a table is asked again instead.

ALTER TABLE users OWNER TO author;
GRANT SELECT ON others TO author;
GRANT USAGE ON SCHEMA activation TO author;
SELECT is(pg_temp.found(activation.query('SELECT FROM others WHERE user_id = $1'), owner => 'author'), 'every 00:01:00', 'no trigger where the owner may not put one');

SELECT * FROM finish();
ROLLBACK;
