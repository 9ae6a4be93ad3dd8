-- Which early action goes with staying, by the app's own tables. Reads only, and what it reads of the app's it reads with
-- the rights of whoever asks: _suggest_plan() looks at the catalogs alone, suggest() runs what that returns.

-- What suggest() would read for its caller, from the catalogs: {"users", "key", "made", "days", "tables": [{"table",
-- "relname", "from": as t and its way to the user, "key": the user's column on that way, "made", "rows": an estimate,
-- "columns": [{"name", "quoted"}]}], "left_out": [why]}. Raises where there is nothing to go by.
CREATE FUNCTION activation._suggest_plan(users regclass, within interval, retained jsonb, names text) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    caller name := activation._caller();
    key name;
    made name;
    days integer[];
    tables jsonb;
    left_out text[];
    shown text;
BEGIN
    IF within IS NULL OR within < interval '1 day' OR within > interval '7 days' THEN
        RAISE EXCEPTION 'within is %', coalesce(within::text, 'NULL')
            USING ERRCODE = '22023', DETAIL = 'Whether somebody stays is seen in their second week, so that an action has to lie in the first.',
                  HINT = 'Give between one day and seven: within => ''3 days''.';
    END IF;
    SELECT x.users, x.key INTO users, key FROM jsonb_to_record(activation._suggest_users(users, names)) AS x(users regclass, key name);
    shown := activation._table_name(users);
    IF NOT has_table_privilege(caller, users, 'SELECT') THEN
        RAISE EXCEPTION '% may not read %', quote_ident(caller), shown
            USING ERRCODE = '42501', HINT = format('GRANT SELECT ON %s TO %I;', shown, caller);
    END IF;
    made := activation._time_column(users);
    IF made IS NULL THEN
        RAISE EXCEPTION 'table % has no column that tells when a user signed up', shown
            USING ERRCODE = '55000', DETAIL = 'It takes a timestamp with now() as its default, or with a name such as created_at.',
                  HINT = format('For those to come: ALTER TABLE %s ADD COLUMN created_at timestamptz NOT NULL DEFAULT now();', shown);
    END IF;
    IF retained IS NOT NULL AND (retained ->> 'query' IS NULL OR activation._query_text(retained ->> 'query', 'text') ->> 'keyed'
                                                                 = activation._query_text(retained ->> 'query', 'text') ->> 'body') THEN
        RAISE EXCEPTION 'retained does not ask about a user'
            USING ERRCODE = '22023', DETAIL = 'Its query has no $1 for the user''s key.',
                  HINT = 'Write it so: retained => activation.query(''SELECT 1 FROM subscriptions WHERE user_id = $1'').';
    END IF;

    -- Foreign keys of one column that end at the user's key, directly or over one table between.
    WITH link AS (
        SELECT c.conrelid AS from_table, f.attname AS from_column, c.confrelid AS to_table, t.attname AS to_column
          FROM pg_constraint c
          JOIN pg_attribute f ON f.attrelid = c.conrelid AND f.attnum = c.conkey[1]
          JOIN pg_attribute t ON t.attrelid = c.confrelid AND t.attnum = c.confkey[1]
          JOIN pg_class r ON r.oid = c.conrelid AND r.relkind IN ('r', 'p') AND NOT r.relispartition AND r.relpersistence <> 't'
         WHERE c.contype = 'f' AND cardinality(c.conkey) = 1 AND r.relnamespace <> 'activation'::regnamespace
    ), way AS (
        SELECT DISTINCT ON (w.table_oid) w.*
          FROM (SELECT l.from_table AS table_oid, 1 AS hops, format('%s AS t', activation._table_name(l.from_table)) AS "from", format('t.%I', l.from_column) AS key,
                       ARRAY[l.from_table] AS read, l.from_column AS first_column
                  FROM link l WHERE l.to_table = users AND l.to_column = key AND l.from_table <> users
                UNION ALL
                SELECT l.from_table, 2, format('%s AS t JOIN %s AS m ON m.%I = t.%I', activation._table_name(l.from_table), activation._table_name(m.from_table),
                                               l.to_column, l.from_column), format('m.%I', m.from_column), ARRAY[l.from_table, m.from_table], m.from_column
                  FROM link l JOIN link m ON m.from_table = l.to_table AND m.to_table = users AND m.to_column = key
                 WHERE l.from_table <> users AND m.from_table <> users AND l.from_table <> m.from_table) w
         ORDER BY w.table_oid, w.hops, w.first_column
    ), judged AS (
        SELECT w.*, activation._table_name(w.table_oid::regclass) AS name, c.relname, activation._time_column(w.table_oid::regclass) AS made,
               greatest(c.reltuples, 0) AS rows, (SELECT bool_and(has_table_privilege(caller, x, 'SELECT')) FROM unnest(w.read) AS x) AS readable
          FROM way w JOIN pg_class c ON c.oid = w.table_oid
    )
    SELECT jsonb_agg(jsonb_build_object('table', j.name, 'relname', j.relname, 'from', j."from", 'key', j.key, 'made', j.made, 'rows', j.rows, 'columns', (
               SELECT coalesce(jsonb_agg(jsonb_build_object('name', a.attname, 'quoted', quote_ident(a.attname)) ORDER BY a.attnum), '[]')
                 FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
                 LEFT JOIN pg_stats s ON s.schemaname = (SELECT n.nspname FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid WHERE c.oid = j.table_oid)
                                     AND s.tablename = j.relname AND s.attname = a.attname AND NOT s.inherited
                WHERE a.attrelid = j.table_oid AND a.attnum > 0 AND NOT a.attisdropped
                  AND (t.typtype = 'e' OR t.oid IN ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype))
                  -- As far as statistics are there; the others are counted, and left out when they turn out to hold many values.
                  AND coalesce(s.n_distinct BETWEEN 2 AND 20, true)
                  AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = j.table_oid AND k.contype IN ('p', 'u', 'f') AND a.attnum = ANY (k.conkey))))
               ORDER BY j.name) FILTER (WHERE j.made IS NOT NULL AND j.readable),
           array_agg(format('%s: %s', j.name, CASE WHEN NOT j.readable THEN 'you may not read it' ELSE 'no column tells when a row came' END) ORDER BY j.name)
               FILTER (WHERE j.made IS NULL OR NOT j.readable)
      INTO tables, left_out
      FROM judged j;
    IF tables IS NULL AND left_out IS NULL THEN
        RAISE EXCEPTION 'no table has a foreign key to %', shown
            USING ERRCODE = '55000', DETAIL = 'What people do is found by the tables that reference them.',
                  HINT = format('ALTER TABLE … ADD FOREIGN KEY (user_id) REFERENCES %s NOT VALID;', shown);
    ELSIF tables IS NULL THEN
        RAISE EXCEPTION 'none of the tables that reference % can be read along time', shown
            USING ERRCODE = '55000', DETAIL = array_to_string(left_out, '; ') || '.',
                  HINT = 'It takes a timestamp with now() as its default, or with a name such as created_at, and SELECT on the table.';
    END IF;
    days := ARRAY(SELECT DISTINCT d FROM unnest(ARRAY[1, 3, 7, floor(extract(epoch FROM within) / 86400)::integer]) AS d WHERE d * interval '1 day' <= within ORDER BY d);
    RETURN jsonb_build_object('users', shown, 'key', quote_ident(key), 'made', quote_ident(made), 'days', to_jsonb(days), 'tables', tables,
                              'left_out', to_jsonb(coalesce(left_out, '{}'::text[])), 'people', (SELECT greatest(c.reltuples, 0) FROM pg_class c WHERE c.oid = users),
                              'now', activation._now(), 'retained', CASE WHEN retained IS NOT NULL THEN activation._query_text(retained ->> 'query', activation._type_name(activation._key_type(users, key))) ->> 'keyed' END);
END
$$;

-- Everybody's key is an array that is joined to each table: hashing it beats sorting texts, and there are hundreds of statements,
-- each of which would be compiled for longer than it runs.
CREATE FUNCTION activation.suggest(retained jsonb DEFAULT NULL, within interval DEFAULT '7 days', users regclass DEFAULT NULL, sample integer DEFAULT 200000,
                                   names text DEFAULT current_setting('search_path'))
RETURNS TABLE (rank integer, action text, table_name text, column_name text, value text, at_least integer, first_days interval, n bigint, did bigint,
               rate_with numeric, rate_without numeric, difference numeric, low numeric, high numeric, phi numeric, ppv numeric, q double precision,
               holds_later boolean, summary text, loop text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET jit = off
SET work_mem = '64MB'
SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    plan jsonb := activation._suggest_plan(users, suggest.within, retained, names);
    of_sample text := '';
    keys text[];
    signed_up timestamptz[];
    active integer[];
    busy integer[] := '{}'::integer[];
    places integer[];
    half integer;
    t jsonb;
    place integer;
    c jsonb;
    windows text;
    counted jsonb := '[]'::jsonb;
    rows jsonb;
    answer jsonb;
BEGIN
    IF (plan ->> 'people')::double precision > sample THEN
        of_sample := format(' AND hashtext(u.%s::text) & 1073741823 < %s', plan ->> 'key', floor(sample / (plan ->> 'people')::double precision * 1073741824));
        RAISE NOTICE 'a sample of % of about % users is read', sample, (plan ->> 'people')::double precision::bigint;
    END IF;
    IF jsonb_array_length(plan -> 'left_out') > 0 THEN
        RAISE NOTICE 'left out: %', (SELECT string_agg(x, '; ') FROM jsonb_array_elements_text(plan -> 'left_out') AS x);
    END IF;
    -- Days are counted as 24 hours: adding those takes a tenth of the time that adding days of the calendar does.
    -- Those who signed up two weeks ago or earlier, in that order; the earlier half is where actions are found.
    EXECUTE format('SELECT array_agg(p.key ORDER BY p.made, p.key), array_agg(p.made ORDER BY p.made, p.key)'
                   ' FROM (SELECT u.%1$s::text AS key, u.%2$s::timestamptz AS made FROM %3$s AS u WHERE u.%2$s::timestamptz <= $1 - interval ''14 days''%4$s) AS p',
                   plan ->> 'key', plan ->> 'made', plan ->> 'users', of_sample)
       INTO keys, signed_up USING (plan ->> 'now')::timestamptz;
    half := cardinality(keys) / 2;
    IF coalesce(cardinality(keys), 0) < 200 THEN
        RAISE EXCEPTION 'only % users of % signed up at least 14 days ago', coalesce(cardinality(keys), 0), plan ->> 'users'
            USING ERRCODE = '55000', DETAIL = 'It takes 200 to tell a marker from chance.', HINT = 'Ask again when there are more of them.';
    END IF;
    IF plan ->> 'retained' IS NOT NULL THEN
        -- The caller's own text, with the caller's rights and on the caller's path, and nothing of ours in it that the path could change.
        -- @plpgsql_check_options: security_warnings = off
        PERFORM set_config('search_path', names, true);
        EXECUTE 'SELECT pg_catalog.array_agg("activation key".place::pg_catalog.int4) FROM pg_catalog.unnest($1) WITH ORDINALITY AS "activation key"(key, place),'
                ' LATERAL (SELECT 1 FROM (' || (plan ->> 'retained') || ') AS answer LIMIT 1) AS stays'
           INTO places USING keys;
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        active := ARRAY(SELECT coalesce(x.stays, 0) FROM generate_subscripts(keys, 1) AS i LEFT JOIN (SELECT k AS place, 1 AS stays FROM unnest(places) AS k) x ON x.place = i ORDER BY i);
    ELSE
        -- In how many tables somebody does anything in their second week.
        FOR t IN SELECT x FROM jsonb_array_elements(plan -> 'tables') AS x LOOP
            EXECUTE format('SELECT array_agg(DISTINCT p.place::integer) FROM unnest($1, $2) WITH ORDINALITY AS p(key, made, place) JOIN %s ON %s::text = p.key'
                           ' WHERE t.%I::timestamptz >= p.made + interval ''168 hours'' AND t.%3$I::timestamptz < p.made + interval ''336 hours''',
                           t ->> 'from', t ->> 'key', t ->> 'made')
               INTO places USING keys, signed_up;
            busy := busy || coalesce(places, '{}');
        END LOOP;
        active := ARRAY(SELECT coalesce(x.tables, 0) FROM generate_subscripts(keys, 1) AS i
                          LEFT JOIN (SELECT b AS place, count(*)::integer AS tables FROM unnest(busy) AS b GROUP BY 1) x ON x.place = i ORDER BY i);
    END IF;
    windows := (SELECT string_agg(format('least(count(*) FILTER (WHERE r.made < p.made + interval ''%s hours''), 10)', d::integer * 24), ', ') FROM jsonb_array_elements_text(plan -> 'days') AS d);
    place := -1;
    FOR t IN SELECT x FROM jsonb_array_elements(plan -> 'tables') AS x LOOP
        place := place + 1;
        -- What comes within seconds of the signup is made by it, not by the person.
        FOR c IN SELECT 'null'::jsonb UNION ALL SELECT x FROM jsonb_array_elements(t -> 'columns') AS x LOOP
            EXECUTE format('SELECT jsonb_agg(jsonb_build_object(''value'', v.value, ''rows'', v.rows)) FROM ('
                           'SELECT g.value, jsonb_agg(to_jsonb(ARRAY[g.late::integer, g.by_others::integer, g.stays::integer] || g.times) || to_jsonb(g.people)) AS rows FROM ('
                           'SELECT s.value, s.late, s.by_others, CASE WHEN $5 THEN s.by_others ELSE s.tables - (s.in_table > 0)::integer > 0 OR s.in_table - s.own > 0 END AS stays,'
                           ' s.times, count(*)::integer AS people FROM ('
                           'SELECT p.place, p.place > $4 AS late, p.tables > 0 AS by_others, p.tables, r.value, ARRAY[%s]::integer[] AS times,'
                           ' count(*) FILTER (WHERE r.made >= p.made + interval ''168 hours'') AS own,'
                           ' sum(count(*) FILTER (WHERE r.made >= p.made + interval ''168 hours'')) OVER (PARTITION BY p.place) AS in_table'
                           ' FROM unnest($1, $2, $3) WITH ORDINALITY AS p(key, made, tables, place)'
                           ' JOIN (SELECT %s::text AS key, t.%I::timestamptz AS made, %s AS value FROM %s) AS r ON r.key = p.key'
                           ' WHERE r.made > p.made + interval ''10 seconds'' AND r.made < p.made + interval ''336 hours'''
                           ' GROUP BY p.place, p.made, p.tables, r.value) AS s GROUP BY 1, 2, 3, 4, 5) AS g'
                           ' WHERE g.value IS NOT NULL GROUP BY g.value LIMIT 21) AS v',
                           windows, t ->> 'key', t ->> 'made', CASE WHEN c = 'null' THEN '''''' ELSE format('t.%s::text', c ->> 'quoted') END, t ->> 'from')
               INTO rows USING keys, signed_up, active, half, plan ->> 'retained' IS NOT NULL;
            IF c = 'null' OR jsonb_array_length(rows) BETWEEN 2 AND 20 THEN
                counted := counted || (SELECT coalesce(jsonb_agg(jsonb_build_object('table', place, 'column', c ->> 'name', 'quoted', c ->> 'quoted',
                    'value', CASE WHEN c <> 'null' THEN x ->> 'value' END, 'rows', x -> 'rows')), '[]') FROM jsonb_array_elements(rows) AS x);
            END IF;
        END LOOP;
    END LOOP;
    answer := activation._suggest_rank(plan, counted, (SELECT jsonb_agg(jsonb_build_array(x.late, x.stays, x.people)) FROM (
        SELECT a.place > half AS late, a.tables > 0 AS stays, count(*) AS people FROM unnest(active) WITH ORDINALITY AS a(tables, place) GROUP BY 1, 2) x));
    RETURN QUERY
    SELECT f.place::integer, x.action, x.table_name, x.column_name, x.value, x.at_least, x.within, x.n, x.did, x.rate_with, x.rate_without, x.difference,
           x.low, x.high, x.phi, x.ppv, x.q, x.holds_later, x.summary, x.loop
      FROM jsonb_array_elements(answer -> 'found') WITH ORDINALITY AS f(row, place),
           LATERAL jsonb_to_record(f.row) AS x(action text, table_name text, column_name text, value text, at_least integer, within interval, n bigint, did bigint,
               rate_with numeric, rate_without numeric, difference numeric, low numeric, high numeric, phi numeric, ppv numeric, q double precision,
               holds_later boolean, summary text, loop text);
    IF NOT FOUND THEN
        RAISE NOTICE 'nothing goes with staying beyond chance'
            USING DETAIL = format('%s variants of %s actions of %s people were compared.', answer ->> 'tried', answer ->> 'actions', cardinality(keys)),
                  HINT = 'With more people smaller differences show; retained => activation.query(…) asks for another kind of staying.';
    END IF;
END
$$;
COMMENT ON FUNCTION activation.suggest(jsonb, interval, regclass, integer, text) IS
'Which early action goes with staying: a row for each, the strongest first. An action is a row in a table with a foreign key to users (over up to one other table) and an insertion time, or one with a certain value in a text or enum column: at least 1, 2, 3, 5 or 10 of them in the first 1, 3 or 7 days, within at most. Staying is any activity in days 8 to 14 but the action itself, or what the query retained says of $1. Of users who signed up at least 14 days ago; made within 10 seconds of the signup counts for nothing; what under 5 % or over 95 % do is left out. n, did: people in all and who did it; rate_with (ppv), rate_without: how many of them stay; low, high: 95 % interval of the difference (Newcombe 1998, method 10); phi: their correlation; q: the share of false discoveries (Benjamini and Hochberg 1995) on the earlier half of signups; holds_later: whether the interval lies above 0 on the later half. A marker, not proof of cause: loop is a define_loop() with a holdout of half that finds out. Reads only, with the caller''s rights; sample: of more users than this, some by a hash of their key. Raises 42P01, 42809, 42P16, 42501, 22023, 55000.';
