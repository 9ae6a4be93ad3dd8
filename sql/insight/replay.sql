-- A condition asked as of moments in the past, by the insertion times of the rows that it reads.

-- What a condition reads, by its plan: as of when it can be asked, or why not. {"sql": the query as
-- of "moment".at for "moment".key, "reads": [{"table", "column": the user's key, "made": the column
-- that tells when a row was inserted}], "columns": the names of those two, "problem", "notes"}.
-- Without a plan only the problem is told that would keep it from being planned at all.
--
-- Long because each thing that a condition may read has a refusal of its own, in the words of the
-- table that is to blame.
CREATE FUNCTION activation._simulate_query(
    query text, plan jsonb, key_expression text, key_type text, timestamps jsonb
) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    names_in_query jsonb := activation._query_names(query);
    coverage jsonb;
    columns name[] := '{}'::name[];
    reading record;
    time_column name;
    tables jsonb := '[]'::jsonb;
    reads jsonb := '[]'::jsonb;
    notes text[] := '{}'::text[];
    app_functions text;
BEGIN
    IF names_in_query ->> 'clock' IS NOT NULL THEN
        RETURN jsonb_build_object(
            'problem', format('it reads the clock (%s)', names_in_query ->> 'clock'));
    END IF;
    SELECT string_agg(DISTINCT p.proname, ', ') INTO app_functions
      FROM jsonb_array_elements_text(names_in_query -> 'called') AS c
      JOIN pg_proc p ON p.proname = c AND p.pronamespace <> 'pg_catalog'::regnamespace;
    IF app_functions IS NOT NULL THEN
        RETURN jsonb_build_object(
            'problem', format('it calls %s, which cannot be looked into', app_functions));
    END IF;
    IF plan IS NULL THEN
        RETURN '{}'::jsonb;
    END IF;
    coverage := activation._coverage(
        plan::text,
        ARRAY['(' || key_expression || ')', key_expression,
              'current_setting(''activation.key''::text, true)']);
    FOR reading IN
        SELECT DISTINCT coalesce(pg_partition_root(c.oid), c.oid)::regclass AS root, k.column_name
          FROM (SELECT x ->> 0 AS schema_name, x ->> 1 AS relation, x ->> 2 AS column_name
                  FROM jsonb_array_elements(coverage -> 'covered') AS x
                UNION ALL
                SELECT x ->> 0, x ->> 1, NULL
                  FROM jsonb_array_elements(coverage -> 'uncovered') AS x) k
          JOIN pg_namespace n ON n.nspname = k.schema_name
          JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = k.relation
    LOOP
        IF reading.root = 'activation.event'::regclass THEN
            time_column := 'at';
        ELSE
            time_column := coalesce(timestamps ->> activation._table_name(reading.root),
                                    activation._inserted_at_column(reading.root)::text);
        END IF;
        IF time_column IS NULL THEN
            RETURN jsonb_build_object(
                'problem', format('no column of %s tells when a row came',
                                  activation._table_name(reading.root)));
        ELSIF reading.column_name IS NULL THEN
            RETURN jsonb_build_object(
                'problem', format('it reads %s in a way that does not tell whose row it is',
                                  activation._table_name(reading.root)));
        END IF;
        columns := columns || reading.column_name::name || time_column;
        IF pg_stat_get_tuples_updated(reading.root) > 0 THEN
            notes := notes || format(
                'rows of %s were updated %s times: what they hold is taken as it is now',
                activation._table_name(reading.root), pg_stat_get_tuples_updated(reading.root));
        END IF;
        SELECT tables || jsonb_build_array(jsonb_build_object(
                   'schema', n.nspname, 'name', c.relname, 'made', quote_ident(time_column)))
          INTO tables
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = reading.root;
        reads := reads || jsonb_build_array(jsonb_build_object(
            'table', CASE WHEN reading.root = 'activation.event'::regclass
                          THEN 'activation.event'
                          ELSE activation._table_name(reading.root) END,
            'column', quote_ident(reading.column_name),
            'made', quote_ident(time_column)));
    END LOOP;
    IF reads = '[]' THEN
        RETURN jsonb_build_object('problem', 'it reads no table');
    ELSIF (SELECT count(DISTINCT t ->> 'name')
                  < count(DISTINCT t ->> 'schema' || '.' || (t ->> 'name'))
             FROM jsonb_array_elements(tables) AS t) THEN
        RETURN jsonb_build_object('problem', 'it reads two tables of the same name');
    END IF;
    RETURN jsonb_build_object(
        'reads', reads, 'columns', to_jsonb(columns), 'notes', to_jsonb(notes),
        'sql', activation._as_of(
            query, (SELECT jsonb_agg(DISTINCT t) FROM jsonb_array_elements(tables) AS t),
            format('("moment".key::%s)', key_type), '"moment".at'));
END
$$;

-- The first moment in each span of time at which a query became true for its user; NULL where it
-- did not. The query is asked at the beginning of the span and whenever a row of the user's came,
-- since in between nothing changes that it reads. plan: as _simulate_query() made it.
CREATE FUNCTION activation._first_true(
    plan jsonb, search_path text, keys text[], begins timestamptz[], ends timestamptz[],
    until timestamptz
) RETURNS timestamptz[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    source jsonb;
    source_moments text := '';
    -- The moments, in three arrays. Keys go along with their places: an array of texts is walked
    -- from its beginning for each of its elements.
    places integer[];
    moments timestamptz[];
    moment_keys text[];
    hits integer[];
BEGIN
    FOR source IN SELECT DISTINCT x FROM jsonb_array_elements(plan -> 'reads') AS x LOOP
        source_moments := source_moments || format(
            ' UNION ALL SELECT s.place, s.key, t.%s::timestamptz'
            ' FROM span s JOIN %s AS t ON t.%s::text COLLATE "C" = s.key'
            ' WHERE t.%1$s::timestamptz > s.begins AND t.%1$s::timestamptz <= s.ends',
            source ->> 'made', source ->> 'table', source ->> 'column');
    END LOOP;
    PERFORM activation._look_up(plan -> 'look');
    EXECUTE 'WITH span AS ('
            'SELECT u.place::integer, u.key, u.begins, least(u.ends, $4) AS ends'
            ' FROM unnest($1, $2, $3) WITH ORDINALITY AS u(key, begins, ends, place)'
            ' WHERE u.begins <= $4),'
            ' moment AS (SELECT s.place, s.key, s.begins AS at FROM span s' || source_moments || ')'
            ' SELECT array_agg(m.place), array_agg(m.at), array_agg(m.key) FROM moment m'
       INTO places, moments, moment_keys USING keys, begins, ends, until;
    IF places IS NOT NULL THEN
        PERFORM activation._look_up(plan -> 'look');
        -- On the author's path, and nothing of ours in it that the path could change.
        -- @plpgsql_check_options: security_warnings = off
        PERFORM set_config('search_path', search_path, true);
        EXECUTE 'SELECT pg_catalog.array_agg("moment".place::pg_catalog.int4)'
                ' FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2))'
                ' WITH ORDINALITY AS "moment"(key, at, place),'
                ' LATERAL (' || (plan ->> 'sql') || ') AS true_then'
           INTO hits USING moment_keys, moments;
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    END IF;
    RETURN ARRAY(
        SELECT f.at
          FROM generate_subscripts(keys, 1) AS i
          LEFT JOIN (SELECT places[h] AS place, min(moments[h]) AS at
                       FROM unnest(hits) AS h GROUP BY 1) f ON f.place = i
         ORDER BY i);
END
$$;
