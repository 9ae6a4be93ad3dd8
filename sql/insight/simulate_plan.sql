-- simulate(): what is to be asked, over which tables, as of when.

-- The loop that is to be rehearsed, in one document: its name, definition, conditions and search
-- path, and its trigger as rows that can be read: {"table", "user_key", "made": the column that
-- tells when a row was inserted, "filter"}. look: what _look_up() has to see before any of it is
-- parsed. known: the tables of a loop that exists, which may have other names by now: {"users",
-- "table", "key"}.
--
-- Raises what define_loop() would. Parses nothing of the text, and tells nothing that its caller
-- did not put in or could not look up.
--
-- Long because it is one pass over the definition: each check needs what the one before it found.
CREATE FUNCTION activation._simulate_plan(
    loop text, definition jsonb, known jsonb, since timestamptz, until timestamptz,
    timestamps jsonb, search_path text
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
<<here>>
DECLARE
    now timestamptz := activation._now();
    context text := format('loop "%s"', coalesce(loop, '(rehearsed)'));
    queries text[];
    normalised jsonb;
    trigger jsonb;
    table_name regclass;
    users regclass;
    registered activation.users_table;
    key_column name;
    time_column text;
    conditions jsonb;
    key_type text;
BEGIN
    IF since IS NULL OR until IS NULL OR since >= until THEN
        RAISE EXCEPTION '%: it cannot be rehearsed from % to %', context, since, until
            USING ERRCODE = '22023',
                  HINT = 'since comes before until: since => now() - interval ''90 days''.';
    ELSIF until > now + interval '1 minute' THEN
        RAISE EXCEPTION '%: until is in the future', context
            USING ERRCODE = '22023', DETAIL = format('It is %s.', until),
                  HINT = 'A rehearsal is of what was: leave until out.';
    END IF;
    IF known IS NULL THEN
        normalised := activation._normalise(coalesce(loop, '(rehearsed)'), definition);
        PERFORM activation._raise(normalised -> 'error');
        definition := activation._durations(normalised -> 'definition', context);
    END IF;
    trigger := definition -> 'trigger';
    IF trigger ->> 'type' = 'database' THEN
        table_name := coalesce(
            (known ->> 'table')::oid::regclass,
            activation._find_table(trigger ->> 'table', search_path, context));
    END IF;
    users := coalesce(
        (known ->> 'users')::oid::regclass,
        activation._users_of(
            table_name,
            CASE WHEN definition ->> 'users' IS NOT NULL
                 THEN activation._find_table(definition ->> 'users', search_path, context) END,
            context));
    SELECT u.* INTO registered FROM activation.users_table u WHERE u.users = here.users;
    IF registered.users IS NULL THEN
        registered := ROW(users, activation._primary_key_column(users), 'email', NULL);
    END IF;
    IF table_name IS NOT NULL THEN
        key_column := coalesce(
            (known ->> 'key')::name,
            activation._user_key(table_name, trigger ->> 'user_key', registered,
                                 trigger ->> 'event', context));
    END IF;
    IF trigger ->> 'type' = 'event' THEN
        table_name := 'activation.event'::regclass;
        key_column := 'user_id';
        time_column := 'at';
    ELSIF trigger ->> 'type' = 'schedule' OR trigger ->> 'event' <> 'insert' THEN
        RAISE EXCEPTION '%: whom % enrolled cannot be told from the tables as they are', context,
                        CASE trigger ->> 'type' WHEN 'schedule' THEN 'a schedule'
                                                ELSE format('an %s', trigger ->> 'event') END
            USING ERRCODE = '0A000',
                  DETAIL = 'Only inserts leave behind when they were, in a column of their own.',
                  HINT = 'Rehearse its steps with a trigger => activation.on_insert(…) '
                         'or on_event(…).';
    ELSE
        time_column := coalesce(timestamps ->> activation._table_name(table_name),
                                activation._inserted_at_column(table_name)::text);
    END IF;
    IF time_column IS NULL
       OR NOT EXISTS (SELECT FROM pg_attribute a
                       WHERE a.attrelid = table_name AND a.attname = time_column
                         AND NOT a.attisdropped) THEN
        RAISE EXCEPTION '%: no column of % tells when a row was inserted',
                        context, activation._table_name(table_name)
            USING ERRCODE = '55000',
                  DETAIL = 'It takes a timestamp with now() as its default, '
                           'or with a name such as created_at.',
                  HINT = format('Name it: timestamps => ''{"%s": "…"}''.',
                                activation._table_name(table_name));
    END IF;
    key_type := activation._type_name(activation._key_type(users, registered.key_column));
    SELECT jsonb_agg(jsonb_build_object(
               'name', c.name, 'query', c.query,
               'explained', activation._query_text(c.query, key_type) ->> 'explained'))
      INTO conditions
      FROM (SELECT '' AS name, definition #>> '{goal,query}' AS query
            UNION ALL
            SELECT step ->> 'name', step #>> '{condition,query}'
              FROM jsonb_array_elements(definition -> 'steps') AS step) c
     WHERE c.query IS NOT NULL;
    queries := ARRAY(SELECT c ->> 'query' FROM jsonb_array_elements(conditions) AS c)
               || (trigger ->> 'filter');
    RETURN jsonb_build_object(
        'loop', coalesce(loop, '(rehearsed)'),
        'look', activation._look_for(
            context, queries, search_path, ARRAY[table_name, users],
            ARRAY[key_column, time_column, registered.key_column, registered.timezone_column]),
        'conditions', coalesce(conditions, '[]'),
        'definition', definition,
        'now', now,
        'timezone', (activation._setting()).timezone,
        'rate', (SELECT coalesce(least((activation._setting()).rate, p.learnt_rate),
                                 p.learnt_rate, (activation._setting()).rate)
                   FROM (SELECT 1) x LEFT JOIN activation.provider p ON true),
        'users', activation._table_name(users),
        'key', quote_ident(registered.key_column),
        'type', key_type,
        'zone', quote_ident(registered.timezone_column),
        'table', CASE WHEN trigger ->> 'type' = 'event' THEN 'activation.event'
                      ELSE activation._table_name(table_name) END,
        'user_key', quote_ident(key_column),
        'made', quote_ident(time_column),
        'filter', CASE WHEN trigger ->> 'type' = 'event'
                       THEN format('"new".event = %L', trigger ->> 'event')
                       ELSE trigger ->> 'filter' END,
        'own_filter', trigger ->> 'type' = 'event');
END
$$;
