-- suggest(): which early action goes with staying, by the app's own tables. Reads only, and reads
-- the app's tables with the rights of whoever asks. Whoever owns these tables must not gain by it.

-- Volatile, so that each statement sees the tables as they are now. Everybody's keys are an array
-- that is joined to each table, and hashing it beats sorting texts. There are hundreds of
-- statements, and JIT would compile each for longer than it runs.
--
-- Long because everything is counted with the caller's rights: a function of its own for each part
-- would need a grant of its own for whoever may call suggest(), and would be handed everybody's
-- keys again.
CREATE FUNCTION activation.suggest(
    retained jsonb DEFAULT NULL, within interval DEFAULT '7 days', users regclass DEFAULT NULL,
    sample integer DEFAULT 200000, names text DEFAULT current_setting('search_path')
) RETURNS TABLE (
    rank integer, action text, table_name text, column_name text, value text, at_least integer,
    first_days interval, n bigint, did bigint, rate_with numeric, rate_without numeric,
    difference numeric, low numeric, high numeric, phi numeric, ppv numeric, q double precision,
    holds_later boolean, summary text, loop text
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET jit = off
SET work_mem = '64MB'
SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    plan jsonb;
    reads oid[];
    looked_up oid[];
    problems jsonb;
    reason text;
    left_out text[] := '{}'::text[];
    tables jsonb := '[]'::jsonb;
    sample_filter text := '';
    -- A place in each of these for everybody who signed up: their key, when they came, and in how
    -- many tables they were active in their second week.
    keys text[];
    signed_up timestamptz[];
    active integer[];
    active_places integer[] := '{}'::integer[];
    places integer[];
    half integer;
    counted_table jsonb;
    counted_column jsonb;
    table_number integer;
    windows text;
    counted jsonb := '[]'::jsonb;
    rows jsonb;
    answer jsonb;
BEGIN
    -- Planned again once what is to be read is held and looked at, until that is all there is.
    LOOP
        plan := activation._suggest_plan(users, suggest.within, retained, names);
        IF NOT has_table_privilege((plan ->> 'users_oid')::oid, 'SELECT') THEN
            RAISE EXCEPTION '% may not read %', quote_ident(current_user), plan ->> 'users'
                USING ERRCODE = '42501',
                      HINT = format('GRANT SELECT ON %s TO %I;', plan ->> 'users', current_user);
        END IF;
        reads := (plan ->> 'users_oid')::oid
                 || ARRAY(SELECT DISTINCT r::oid
                            FROM jsonb_array_elements(plan -> 'tables') AS x,
                                 jsonb_array_elements_text(x -> 'reads') AS r
                           ORDER BY 1);
        EXIT WHEN reads <@ looked_up;
        problems := (
            SELECT coalesce(jsonb_object_agg(l.table_oid, l.why), '{}')
              FROM (SELECT l.table_oid,
                           min(format('%s of %s would run with your rights',
                                      l.object, quote_ident(l.owner))) AS why
                      FROM activation._look_up(jsonb_build_object('tables', to_jsonb(reads))) l
                     GROUP BY 1) l);
        looked_up := reads;
    END LOOP;
    IF problems ? (plan ->> 'users_oid') THEN
        RAISE EXCEPTION '%: %', plan ->> 'users', problems ->> (plan ->> 'users_oid')
            USING ERRCODE = '42501',
                  HINT = 'Ask as that role: SET ROLE …; SELECT * FROM activation.suggest(); '
                         'RESET ROLE;';
    END IF;
    FOR counted_table IN SELECT x FROM jsonb_array_elements(plan -> 'tables') AS x LOOP
        reason := (SELECT coalesce(min(CASE WHEN NOT has_table_privilege(r::oid, 'SELECT')
                                            THEN 'you may not read it' END),
                                   min(problems ->> r))
                     FROM jsonb_array_elements_text(counted_table -> 'reads') AS r);
        IF reason IS NOT NULL THEN
            left_out := left_out || format('%s: %s', counted_table ->> 'table', reason);
        ELSE
            -- Columns of 2 to 20 values, as far as statistics are there. The others are counted,
            -- and left out when they turn out to hold many values.
            tables := tables || jsonb_set(counted_table, '{columns}', (
                SELECT coalesce(jsonb_agg(c.x ORDER BY c.n), '[]')
                  FROM jsonb_array_elements(counted_table -> 'columns')
                       WITH ORDINALITY AS c(x, n)
                 WHERE NOT EXISTS (
                       SELECT FROM pg_stats s
                         JOIN pg_class r ON r.oid = (counted_table #>> '{reads,0}')::oid
                         JOIN pg_namespace n ON n.oid = r.relnamespace
                        WHERE s.schemaname = n.nspname AND s.tablename = r.relname
                          AND s.attname = c.x ->> 'name'
                          AND NOT s.inherited AND s.n_distinct NOT BETWEEN 2 AND 20)));
        END IF;
    END LOOP;
    left_out := left_out || ARRAY(SELECT jsonb_array_elements_text(plan -> 'left_out'));
    IF tables = '[]' THEN
        RAISE EXCEPTION 'none of the tables that reference % can be read along time',
                        plan ->> 'users'
            USING ERRCODE = '55000', DETAIL = array_to_string(left_out, '; ') || '.',
                  HINT = 'It takes a timestamp with now() as its default, or with a name such as '
                         'created_at, and SELECT on the table.';
    END IF;
    plan := jsonb_set(plan, '{tables}', tables);
    IF (plan ->> 'people')::double precision > sample THEN
        sample_filter := format(
            ' AND hashtext(%s) & 1073741823 < %s', plan ->> 'key_text',
            floor(sample / (plan ->> 'people')::double precision * 1073741824));
        RAISE NOTICE 'a sample of % of about % users is read',
                     sample, (plan ->> 'people')::double precision::bigint;
    END IF;
    IF left_out <> '{}' THEN
        RAISE NOTICE 'left out: %',
                     (SELECT string_agg(x, '; ' ORDER BY x) FROM unnest(left_out) AS x);
    END IF;
    -- Days are counted as 24 hours: adding those takes a tenth of the time that adding days of the
    -- calendar does.
    -- Those who signed up two weeks ago or earlier, in that order; the earlier half is where
    -- actions are found.
    EXECUTE format('SELECT array_agg(p.key ORDER BY p.made, p.key),'
                   ' array_agg(p.made ORDER BY p.made, p.key)'
                   ' FROM (SELECT %1$s AS key, u.%2$s::timestamptz AS made FROM %3$s AS u'
                   ' WHERE u.%2$s::timestamptz <= $1 - interval ''14 days''%4$s) AS p',
                   plan ->> 'key_text', plan ->> 'made', plan ->> 'users', sample_filter)
       INTO keys, signed_up USING (plan ->> 'now')::timestamptz;
    half := cardinality(keys) / 2;
    IF coalesce(cardinality(keys), 0) < 200 THEN
        RAISE EXCEPTION 'only % users of % signed up at least 14 days ago',
                        coalesce(cardinality(keys), 0), plan ->> 'users'
            USING ERRCODE = '55000', DETAIL = 'It takes 200 to tell a marker from chance.',
                  HINT = 'Ask again when there are more of them.';
    END IF;
    IF plan ->> 'retained' IS NOT NULL THEN
        PERFORM activation._look_up(plan -> 'look');
        -- The caller's own text, with the caller's rights and on the caller's path, and nothing of
        -- ours in it that the path could change.
        -- @plpgsql_check_options: security_warnings = off
        PERFORM set_config('search_path', names, true);
        EXECUTE 'SELECT pg_catalog.array_agg("activation key".place::pg_catalog.int4)'
                ' FROM pg_catalog.unnest($1) WITH ORDINALITY AS "activation key"(key, place),'
                ' LATERAL (SELECT 1 FROM (' || (plan ->> 'retained') || ') AS answer LIMIT 1)'
                ' AS stays'
           INTO places USING keys;
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        active := ARRAY(SELECT coalesce(x.stays, 0)
                          FROM generate_subscripts(keys, 1) AS i
                          LEFT JOIN (SELECT k AS place, 1 AS stays FROM unnest(places) AS k) x
                            ON x.place = i
                         ORDER BY i);
    ELSE
        -- In how many tables somebody does anything in their second week.
        FOR counted_table IN SELECT x FROM jsonb_array_elements(plan -> 'tables') AS x LOOP
            PERFORM activation._look_up(jsonb_build_object(
                'tables', counted_table -> 'reads', 'what', counted_table -> 'table'));
            EXECUTE format('SELECT array_agg(DISTINCT p.place::integer)'
                           ' FROM unnest($1, $2) WITH ORDINALITY AS p(key, made, place)'
                           ' JOIN %s ON %s = p.key'
                           ' WHERE t.%I::timestamptz >= p.made + interval ''168 hours'''
                           ' AND t.%3$I::timestamptz < p.made + interval ''336 hours''',
                           counted_table ->> 'from', counted_table ->> 'key_text',
                           counted_table ->> 'made')
               INTO places USING keys, signed_up;
            active_places := active_places || coalesce(places, '{}');
        END LOOP;
        active := ARRAY(SELECT coalesce(x.tables, 0)
                          FROM generate_subscripts(keys, 1) AS i
                          LEFT JOIN (SELECT b AS place, count(*)::integer AS tables
                                       FROM unnest(active_places) AS b GROUP BY 1) x
                            ON x.place = i
                         ORDER BY i);
    END IF;
    windows := (SELECT string_agg(format('least(count(*) FILTER (WHERE r.made < p.made'
                                         ' + interval ''%s hours''), 10)', d::integer * 24), ', ')
                  FROM jsonb_array_elements_text(plan -> 'days') AS d);
    table_number := -1;
    FOR counted_table IN SELECT x FROM jsonb_array_elements(plan -> 'tables') AS x LOOP
        table_number := table_number + 1;
        PERFORM activation._look_up(jsonb_build_object(
            'tables', counted_table -> 'reads', 'what', counted_table -> 'table'));
        -- null: the table's rows as such. What comes within seconds of the signup is made by it,
        -- not by the person.
        FOR counted_column IN
            SELECT 'null'::jsonb
            UNION ALL
            SELECT x FROM jsonb_array_elements(counted_table -> 'columns') AS x
        LOOP
            EXECUTE format(
                'SELECT jsonb_agg(jsonb_build_object(''value'', v.value, ''rows'', v.rows)) FROM ('
                'SELECT g.value, jsonb_agg(to_jsonb('
                'ARRAY[g.late::integer, g.by_others::integer, g.stays::integer] || g.times)'
                ' || to_jsonb(g.people)) AS rows FROM ('
                'SELECT s.value, s.late, s.by_others,'
                ' CASE WHEN $5 THEN s.by_others'
                ' ELSE s.tables - (s.in_table > 0)::integer > 0 OR s.in_table - s.own > 0 END'
                ' AS stays,'
                ' s.times, count(*)::integer AS people FROM ('
                'SELECT p.place, p.place > $4 AS late, p.tables > 0 AS by_others, p.tables,'
                ' r.value, ARRAY[%s]::integer[] AS times,'
                ' count(*) FILTER (WHERE r.made >= p.made + interval ''168 hours'') AS own,'
                ' sum(count(*) FILTER (WHERE r.made >= p.made + interval ''168 hours''))'
                ' OVER (PARTITION BY p.place) AS in_table'
                ' FROM unnest($1, $2, $3) WITH ORDINALITY AS p(key, made, tables, place)'
                ' JOIN (SELECT %s AS key, t.%I::timestamptz AS made, %s AS value FROM %s) AS r'
                ' ON r.key = p.key'
                ' WHERE r.made > p.made + interval ''10 seconds'''
                ' AND r.made < p.made + interval ''336 hours'''
                ' GROUP BY p.place, p.made, p.tables, r.value) AS s GROUP BY 1, 2, 3, 4, 5) AS g'
                ' WHERE g.value IS NOT NULL GROUP BY g.value LIMIT 21) AS v',
                windows, counted_table ->> 'key_text', counted_table ->> 'made',
                CASE WHEN counted_column = 'null' THEN '''''' ELSE counted_column ->> 'text' END,
                counted_table ->> 'from')
               INTO rows USING keys, signed_up, active, half, plan ->> 'retained' IS NOT NULL;
            IF counted_column = 'null' OR jsonb_array_length(rows) BETWEEN 2 AND 20 THEN
                counted := counted || (
                    SELECT coalesce(jsonb_agg(jsonb_build_object(
                               'table', table_number,
                               'column', counted_column ->> 'name',
                               'quoted', counted_column ->> 'quoted',
                               'value', CASE WHEN counted_column <> 'null' THEN x ->> 'value' END,
                               'rows', x -> 'rows')), '[]')
                      FROM jsonb_array_elements(rows) AS x);
            END IF;
        END LOOP;
    END LOOP;
    answer := activation._suggest_rank(plan, counted, (
        SELECT jsonb_agg(jsonb_build_array(x.late, x.stays, x.people))
          FROM (SELECT a.place > half AS late, a.tables > 0 AS stays, count(*) AS people
                  FROM unnest(active) WITH ORDINALITY AS a(tables, place)
                 GROUP BY 1, 2) x));
    RETURN QUERY
    SELECT f.place::integer, x.action, x.table_name, x.column_name, x.value, x.at_least, x.within,
           x.n, x.did, x.rate_with, x.rate_without, x.difference, x.low, x.high, x.phi, x.ppv, x.q,
           x.holds_later, x.summary, x.loop
      FROM jsonb_array_elements(answer -> 'found') WITH ORDINALITY AS f(row, place),
           LATERAL jsonb_to_record(f.row) AS x(
               action text, table_name text, column_name text, value text, at_least integer,
               within interval, n bigint, did bigint, rate_with numeric, rate_without numeric,
               difference numeric, low numeric, high numeric, phi numeric, ppv numeric,
               q double precision, holds_later boolean, summary text, loop text);
    IF NOT FOUND THEN
        RAISE NOTICE 'nothing goes with staying beyond chance'
            USING DETAIL = format('%s variants of %s actions of %s people were compared.',
                                  answer ->> 'tried', answer ->> 'actions', cardinality(keys)),
                  HINT = 'With more people smaller differences show; '
                         'retained => activation.query(…) asks for another kind of staying.';
    END IF;
END
$$;
COMMENT ON FUNCTION activation.suggest(jsonb, interval, regclass, integer, text) IS
'Which early action goes with staying. An action is a row in a table with a foreign key to the
users table (over up to one other table) and an insertion time, or one with a certain value in a
text or enum column: at least 1, 2, 3, 5 or 10 of them in the first 1, 3 or 7 days. Users who
signed up at least 14 days ago are looked at. What comes within 10 seconds of the signup does not
count, and what under 5 % or over 95 % do is left out. It finds a marker, not proof of cause. It
only reads, with the caller''s rights, and leaves out tables that would run code of a role that
has not got them.
retained: what staying is, activation.query(…) of $1 (default: any activity in days 8 to 14 but
  the action itself).
within: the longest time after the signup in which an action counts.
users: the users table (default: the registered one).
sample: of more users than this, so many are read, by a hash of their key.
names: the search_path for retained.
Returns a row for each action, the strongest first.
rank: its place, from 1.
action: the action in words.
table_name: the table of its rows.
column_name: the column with the value, NULL for a row with any.
value: the value, NULL for a row with any.
at_least: how many such rows.
first_days: in how long after the signup.
n: how many users were looked at.
did: how many of them did it.
rate_with: the share of those who did it that stayed.
rate_without: the share of the others that stayed.
difference: rate_with less rate_without.
low: the lower end of the difference''s 95 % interval (Newcombe 1998, method 10).
high: its upper end.
phi: the correlation of doing it and staying.
ppv: the same as rate_with, under its name in statistics.
q: the share of false discoveries (Benjamini and Hochberg 1995), on the earlier half of signups.
holds_later: whether the interval lies above 0 on the later half of signups.
summary: the finding in one sentence.
loop: a define_loop() with a holdout of half, which finds out what causes what.
Raises 42P01, 42809 or 42P16 without a usable users table, 42501 for what may not be read, 22023
  for an argument that is none, 0A000 for a key of a type that it cannot read, 55000 where there
  is too little to tell.';
