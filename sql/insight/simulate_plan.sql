-- simulate(), what is to be asked: which query, over which tables, as of when.

-- The loop that is to be rehearsed, in one document: its name, definition, names, and its trigger as what can be read:
-- {"table", "user_key", "made", "filter"}; look: what _look_up() has to see before any of it is parsed. known: of a loop that
-- there is, its tables, which may have other names by now: {"users", "table", "key"}. Raises what define_loop() would. It
-- parses nothing of the text, and tells nothing that its caller did not put in or could not look up.
CREATE FUNCTION activation._simulate_plan(loop text, definition jsonb, known jsonb, since timestamptz, until timestamptz, timestamps jsonb, names text) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
<<here>>
DECLARE
    now timestamptz := activation._now();
    what text := format('loop "%s"', coalesce(loop, '(rehearsed)'));
    texts text[];
    answer jsonb;
    trigger jsonb;
    table_name regclass;
    users regclass;
    registered activation.users_table;
    key_column name;
    made text;
    conditions jsonb;
    key_type text;
BEGIN
    IF since IS NULL OR until IS NULL OR since >= until THEN
        RAISE EXCEPTION '%: it cannot be rehearsed from % to %', what, since, until
            USING ERRCODE = '22023', HINT = 'since comes before until: since => now() - interval ''90 days''.';
    ELSIF until > now + interval '1 minute' THEN
        RAISE EXCEPTION '%: until is in the future', what USING ERRCODE = '22023', DETAIL = format('It is %s.', until), HINT = 'A rehearsal is of what was: leave until out.';
    END IF;
    IF known IS NULL THEN
        answer := activation._normalise(coalesce(loop, '(rehearsed)'), definition);
        PERFORM activation._raise(answer -> 'error');
        definition := activation._durations(answer -> 'definition', what);
    END IF;
    trigger := definition -> 'trigger';
    IF trigger ->> 'type' = 'database' THEN
        table_name := coalesce((known ->> 'table')::oid::regclass, activation._find_table(trigger ->> 'table', names, what));
    END IF;
    users := coalesce((known ->> 'users')::oid::regclass,
                      activation._users_of(table_name, CASE WHEN definition ->> 'users' IS NOT NULL THEN activation._find_table(definition ->> 'users', names, what) END, what));
    SELECT u.* INTO registered FROM activation.users_table u WHERE u.users = here.users;
    IF registered.users IS NULL THEN
        registered := ROW(users, (SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
                                   WHERE i.indrelid = users AND i.indisprimary AND i.indnkeyatts = 1), 'email', NULL);
    END IF;
    IF table_name IS NOT NULL THEN
        key_column := coalesce((known ->> 'key')::name, activation._user_key(table_name, trigger ->> 'user_key', registered, trigger ->> 'event', what));
    END IF;
    IF trigger ->> 'type' = 'event' THEN
        table_name := 'activation.event'::regclass;
        key_column := 'user_id';
        made := 'at';
    ELSIF trigger ->> 'type' = 'schedule' OR trigger ->> 'event' <> 'insert' THEN
        RAISE EXCEPTION '%: whom % enrolled cannot be told from the tables as they are', what,
                        CASE trigger ->> 'type' WHEN 'schedule' THEN 'a schedule' ELSE format('an %s', trigger ->> 'event') END
            USING ERRCODE = '0A000', DETAIL = 'Only inserts leave behind when they were, in a column of their own.',
                  HINT = 'Rehearse its steps with a trigger => activation.on_insert(…) or on_event(…).';
    ELSE
        made := coalesce(timestamps ->> activation._table_name(table_name), activation._inserted_at_column(table_name)::text);
    END IF;
    IF made IS NULL OR NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = table_name AND a.attname = made AND NOT a.attisdropped) THEN
        RAISE EXCEPTION '%: no column of % tells when a row was inserted', what, activation._table_name(table_name)
            USING ERRCODE = '55000', DETAIL = 'It takes a timestamp with now() as its default, or with a name such as created_at.',
                  HINT = format('Name it: timestamps => ''{"%s": "…"}''.', activation._table_name(table_name));
    END IF;
    key_type := activation._type_name(activation._key_type(users, registered.key_column));
    SELECT jsonb_agg(jsonb_build_object('name', c.name, 'query', c.query, 'explained', activation._query_text(c.query, key_type) ->> 'explained')) INTO conditions
      FROM (SELECT '' AS name, definition #>> '{goal,query}' AS query
            UNION ALL SELECT x ->> 'name', x #>> '{condition,query}' FROM jsonb_array_elements(definition -> 'steps') AS x) c
     WHERE c.query IS NOT NULL;
    texts := ARRAY(SELECT c ->> 'query' FROM jsonb_array_elements(conditions) AS c) || (trigger ->> 'filter');
    RETURN jsonb_build_object(
        'loop', coalesce(loop, '(rehearsed)'), 'look', activation._look_for(what, texts, names, ARRAY[table_name, users], ARRAY[key_column, made, registered.key_column, registered.timezone_column]),
        'conditions', coalesce(conditions, '[]'), 'definition', definition, 'now', now, 'timezone', (activation._setting()).timezone,
        'rate', (SELECT coalesce(least((activation._setting()).rate, p.learnt_rate), p.learnt_rate, (activation._setting()).rate) FROM (SELECT 1) x LEFT JOIN activation.provider p ON true),
        'users', activation._table_name(users), 'key', quote_ident(registered.key_column), 'type', key_type,
        'zone', quote_ident(registered.timezone_column),
        'table', CASE WHEN trigger ->> 'type' = 'event' THEN 'activation.event' ELSE activation._table_name(table_name) END,
        'user_key', quote_ident(key_column), 'made', quote_ident(made),
        'filter', CASE WHEN trigger ->> 'type' = 'event' THEN format('"new".event = %L', trigger ->> 'event') ELSE trigger ->> 'filter' END,
        'own_filter', trigger ->> 'type' = 'event');
END
$$;

-- What a condition reads, by its plan: as of when it can be asked, or why not. {"sql": the query as of "moment".at for
-- "moment".key, "reads": [{"table", "column": the user's key, "made"}], "columns": those by name, "problem", "notes"}.
-- Without a plan only the problem is told that would keep it from being planned at all.
CREATE FUNCTION activation._simulate_query(query text, plan jsonb, shown text, key_type text, timestamps jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    said jsonb := activation._query_names(query);
    found jsonb;
    columns name[] := '{}'::name[];
    reading record;
    made name;
    tables jsonb := '[]'::jsonb;
    reads jsonb := '[]'::jsonb;
    notes text[] := '{}'::text[];
    own text;
BEGIN
    IF said ->> 'clock' IS NOT NULL THEN
        RETURN jsonb_build_object('problem', format('it reads the clock (%s)', said ->> 'clock'));
    END IF;
    SELECT string_agg(DISTINCT p.proname, ', ') INTO own
      FROM jsonb_array_elements_text(said -> 'called') AS c JOIN pg_proc p ON p.proname = c AND p.pronamespace <> 'pg_catalog'::regnamespace;
    IF own IS NOT NULL THEN
        RETURN jsonb_build_object('problem', format('it calls %s, which cannot be looked into', own));
    END IF;
    IF plan IS NULL THEN
        RETURN '{}'::jsonb;
    END IF;
    found := activation._coverage(plan::text, ARRAY['(' || shown || ')', shown, 'current_setting(''activation.key''::text, true)']);
    FOR reading IN
        SELECT DISTINCT coalesce(pg_partition_root(c.oid), c.oid)::regclass AS root, k.column_name
          FROM (SELECT x ->> 0 AS schema_name, x ->> 1 AS relation, x ->> 2 AS column_name FROM jsonb_array_elements(found -> 'covered') AS x
                UNION ALL SELECT x ->> 0, x ->> 1, NULL FROM jsonb_array_elements(found -> 'uncovered') AS x) k
          JOIN pg_namespace n ON n.nspname = k.schema_name
          JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = k.relation
    LOOP
        IF reading.root = 'activation.event'::regclass THEN
            made := 'at';
        ELSE
            made := coalesce(timestamps ->> activation._table_name(reading.root), activation._inserted_at_column(reading.root)::text);
        END IF;
        IF made IS NULL THEN
            RETURN jsonb_build_object('problem', format('no column of %s tells when a row came', activation._table_name(reading.root)));
        ELSIF reading.column_name IS NULL THEN
            RETURN jsonb_build_object('problem', format('it reads %s in a way that does not tell whose row it is', activation._table_name(reading.root)));
        END IF;
        columns := columns || reading.column_name::name || made;
        IF pg_stat_get_tuples_updated(reading.root) > 0 THEN
            notes := notes || format('rows of %s were updated %s times: what they hold is taken as it is now', activation._table_name(reading.root), pg_stat_get_tuples_updated(reading.root));
        END IF;
        SELECT tables || jsonb_build_array(jsonb_build_object('schema', n.nspname, 'name', c.relname, 'made', quote_ident(made))) INTO tables
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = reading.root;
        reads := reads || jsonb_build_array(jsonb_build_object('table', CASE WHEN reading.root = 'activation.event'::regclass THEN 'activation.event' ELSE activation._table_name(reading.root) END,
                                                               'column', quote_ident(reading.column_name), 'made', quote_ident(made)));
    END LOOP;
    IF reads = '[]' THEN
        RETURN jsonb_build_object('problem', 'it reads no table');
    ELSIF (SELECT count(DISTINCT t ->> 'name') < count(DISTINCT t ->> 'schema' || '.' || (t ->> 'name')) FROM jsonb_array_elements(tables) AS t) THEN
        RETURN jsonb_build_object('problem', 'it reads two tables of the same name');
    END IF;
    RETURN jsonb_build_object('reads', reads, 'columns', to_jsonb(columns), 'notes', to_jsonb(notes), 'sql', activation._as_of(
        query, (SELECT jsonb_agg(DISTINCT t) FROM jsonb_array_elements(tables) AS t), format('("moment".key::%s)', key_type), '"moment".at'));
END
$$;

-- The first moment in each span of time at which a query became true for its user, NULL where it did not: asked at its
-- beginning and whenever a row of the user's came; in between nothing changes that it reads. plan: as _simulate_query()
-- made it.
CREATE FUNCTION activation._first_true(plan jsonb, names text, keys text[], begins timestamptz[], ends timestamptz[], until timestamptz) RETURNS timestamptz[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- Keys go along with their places: an array of texts is walked from its beginning for each of its elements.
    moments text := '';
    r jsonb;
    places integer[];
    ats timestamptz[];
    moment_keys text[];
    hits integer[];
BEGIN
    FOR r IN SELECT DISTINCT x FROM jsonb_array_elements(plan -> 'reads') AS x LOOP
        moments := moments || format(
            ' UNION ALL SELECT s.place, s.key, t.%s::timestamptz FROM span s JOIN %s AS t ON t.%s::text COLLATE "C" = s.key WHERE t.%1$s::timestamptz > s.begins AND t.%1$s::timestamptz <= s.ends',
            r ->> 'made', r ->> 'table', r ->> 'column');
    END LOOP;
    PERFORM activation._look_up(plan -> 'look');
    EXECUTE 'WITH span AS (SELECT u.place::integer, u.key, u.begins, least(u.ends, $4) AS ends FROM unnest($1, $2, $3) WITH ORDINALITY AS u(key, begins, ends, place)'
            ' WHERE u.begins <= $4), moment AS (SELECT s.place, s.key, s.begins AS at FROM span s' || moments || ')'
            ' SELECT array_agg(m.place), array_agg(m.at), array_agg(m.key) FROM moment m'
       INTO places, ats, moment_keys USING keys, begins, ends, until;
    IF places IS NOT NULL THEN
        PERFORM activation._look_up(plan -> 'look');
        -- On the author's path, and nothing of ours in it that the path could change.
        -- @plpgsql_check_options: security_warnings = off
        PERFORM set_config('search_path', names, true);
        EXECUTE 'SELECT pg_catalog.array_agg("moment".place::pg_catalog.int4) FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) WITH ORDINALITY AS "moment"(key, at, place),'
                ' LATERAL (' || (plan ->> 'sql') || ') AS true_then'
           INTO hits USING moment_keys, ats;
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    END IF;
    RETURN ARRAY(SELECT f.at FROM generate_subscripts(keys, 1) AS i
                   LEFT JOIN (SELECT places[h] AS place, min(ats[h]) AS at FROM unnest(hits) AS h GROUP BY 1) f ON f.place = i ORDER BY i);
END
$$;
