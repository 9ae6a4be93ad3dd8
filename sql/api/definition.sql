-- Reads a definition: the tables, columns and durations that it names.

-- Finds a table that a document names, on the author's path.
CREATE FUNCTION activation._find_table(table_name text, search_path text, context text)
RETURNS regclass
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    answer jsonb := activation._run_on_path(search_path, ARRAY[format(
        'SELECT pg_catalog.to_regclass(%L)::pg_catalog.oid::pg_catalog.int8', table_name)], false);
BEGIN
    IF answer ->> 'value' IS NULL THEN
        RAISE EXCEPTION '%: table "%" does not exist', context, table_name
            USING ERRCODE = CASE WHEN answer ? 'error' THEN answer #>> '{error,code}'
                                 ELSE '42P01' END,
                  DETAIL = coalesce(answer #>> '{error,message}', ''),
                  HINT = format('It was looked for on the path %s. Write it with its schema, and '
                                'quoted where it is mixed-case: "app"."User".', search_path);
    END IF;
    RETURN (answer ->> 'value')::oid::regclass;
END
$$;

-- Spells a duration of a document as the server does. or_none: it may be zero.
CREATE FUNCTION activation._duration(
    duration text, context text, or_none boolean DEFAULT false
) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET intervalstyle = 'postgres'
AS $$
DECLARE
    parsed interval;
BEGIN
    IF duration IS NULL THEN
        RETURN NULL;
    END IF;
    BEGIN
        parsed := duration::interval;
    EXCEPTION WHEN data_exception THEN
        RAISE EXCEPTION '% is not a duration: "%"', context, duration
            USING ERRCODE = '22007',
                  HINT = 'Write it as PostgreSQL does: ''5m'', ''90 seconds'', ''3 days''.';
    END;
    IF or_none AND parsed = interval '0' THEN
        RETURN parsed::text;
    END IF;
    IF parsed <= interval '0' OR parsed > interval '100 years' THEN
        RAISE EXCEPTION '% is %', context, duration
            USING ERRCODE = '22023',
                  HINT = 'Give a duration longer than zero, such as ''5 minutes'' or ''3 days''.';
    END IF;
    RETURN parsed::text;
END
$$;

-- Spells every duration of a definition as the server does, so that equal definitions are the same
-- document.
CREATE FUNCTION activation._durations(definition jsonb, context text) RETURNS jsonb
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    path text[];
BEGIN
    FOR path IN
        SELECT p.path
          FROM (VALUES (ARRAY['recovery', 'initial']), (ARRAY['recovery', 'max'])) AS p(path)
        UNION ALL
        SELECT ARRAY['steps', (i.n - 1)::text, 'condition', k.key]
          FROM jsonb_array_elements(definition -> 'steps') WITH ORDINALITY AS i(step, n),
               (VALUES ('timeout'), ('every')) AS k(key)
         WHERE i.step #>> ARRAY['condition', k.key] IS NOT NULL
        UNION ALL
        SELECT ARRAY['steps', (i.n - 1)::text, 'delay']
          FROM jsonb_array_elements(definition -> 'steps') WITH ORDINALITY AS i(step, n)
        UNION ALL
        SELECT ARRAY['reentry'] WHERE definition ->> 'reentry' NOT IN ('once', 'always')
        UNION ALL
        SELECT ARRAY['goal', 'every'] WHERE definition #>> '{goal,every}' IS NOT NULL
    LOOP
        definition := jsonb_set(definition, path, to_jsonb(activation._duration(
            definition #>> path, format('%s: %s', context, path[cardinality(path)]),
            path[cardinality(path)] = 'delay')));
    END LOOP;
    RETURN definition;
END
$$;

-- Finds the users table of a loop. It is the one that the loop names; else the trigger's table,
-- where that is a users table or references none; else the one that the trigger's table references.
-- A loop without a trigger's table is about the only users table there is.
CREATE FUNCTION activation._users_of(table_name regclass, named_users regclass, context text)
RETURNS regclass
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    candidates regclass[];
BEGIN
    IF named_users IS NOT NULL THEN
        RETURN named_users;
    END IF;
    IF table_name IS NULL THEN
        candidates := ARRAY(
            SELECT u.users FROM activation.users_table u JOIN pg_class c ON c.oid = u.users);
        IF cardinality(candidates) = 0 THEN
            RAISE EXCEPTION '%: no users table is registered', context
                USING ERRCODE = '55000',
                      HINT = 'SELECT activation.set_users(''users'', email => ''email'');';
        END IF;
    ELSIF EXISTS (SELECT FROM activation.users_table u WHERE u.users = table_name) THEN
        RETURN table_name;
    ELSE
        candidates := ARRAY(
            SELECT DISTINCT u.users
              FROM pg_constraint c JOIN activation.users_table u ON u.users = c.confrelid
             WHERE c.contype = 'f' AND c.conrelid = table_name);
        IF cardinality(candidates) = 0 THEN
            RETURN table_name;
        END IF;
    END IF;
    IF cardinality(candidates) > 1 THEN
        RAISE EXCEPTION '%: it could be about users of %', context,
            (SELECT string_agg(activation._table_name(c), ' or ') FROM unnest(candidates) AS c)
            USING ERRCODE = '22023',
                  HINT = format('Say which: users => %L.', activation._table_name(candidates[1]));
    END IF;
    RETURN candidates[1];
END
$$;

-- Finds the column of the trigger's table that holds the user's key: the one that is named, the key
-- of a users table, or the only column that references the users table.
-- Long because each way not to find one has an error that says what to do.
CREATE FUNCTION activation._user_key(
    table_name regclass, given name, registered activation.users_table, event text, context text
) RETURNS name
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    referencing name[];
    table_label text := activation._table_name(table_name);
    users_label text := activation._table_name(registered.users);
    given_type oid := activation._key_type(table_name, given);
    key_type oid := activation._key_type(registered.users, registered.key_column);
BEGIN
    IF event = 'update' AND activation._same_row_condition(table_name) IS NULL THEN
        RAISE EXCEPTION '%: table % has no primary key', context, table_label
            USING ERRCODE = '42P16',
                  HINT = format('A row as it was and as it is are told to be the same by it: '
                                'ALTER TABLE %s ADD PRIMARY KEY (…);', table_label);
    END IF;
    IF table_name = registered.users THEN
        IF given <> registered.key_column THEN
            RAISE EXCEPTION '%: user_key is %, and the key of the users table % is %', context,
                quote_ident(given), table_label, quote_ident(registered.key_column)
                USING ERRCODE = '22023',
                      HINT = 'Leave user_key out for a trigger on the users table.';
        END IF;
        IF event = 'delete' THEN
            RAISE EXCEPTION '%: nobody is left to mail when a row of the users table % is deleted',
                context, table_label
                USING ERRCODE = '22023',
                      HINT = 'Deleted users leave their loops by themselves. For accounts that are '
                             'closed but kept, use activation.on_update(…).';
        END IF;
        RETURN registered.key_column;
    END IF;
    IF given IS NULL THEN
        SELECT array_agg(DISTINCT a.attname) INTO referencing
          FROM pg_constraint c
          JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
         WHERE c.contype = 'f' AND c.conrelid = table_name AND c.confrelid = registered.users
           AND cardinality(c.conkey) = 1
           AND activation._same_keys(a.atttypid, key_type);
        IF cardinality(referencing) = 1 THEN
            RETURN referencing[1];
        END IF;
        RAISE EXCEPTION '%: which column of % names the user?', context, table_label
            USING ERRCODE = '22023',
                  DETAIL = CASE WHEN referencing IS NULL
                                THEN format('No column references %s.', users_label)
                                ELSE format('These reference it: %s.',
                                            array_to_string(referencing, ', ')) END,
                  HINT = format('Name it: activation.on_%s(%L, user_key => ''user_id'').',
                                event, table_label);
    END IF;
    IF given_type IS NULL THEN
        RAISE EXCEPTION '%: table % has no column %', context, table_label, quote_ident(given)
            USING ERRCODE = '42703',
                  HINT = 'user_key names the column of the trigger''s table that holds the user''s '
                         'key.';
    END IF;
    IF NOT activation._same_keys(given_type, key_type) THEN
        RAISE EXCEPTION '%: column % of % is not of the type of the user''s key', context,
            quote_ident(given), table_label
            USING ERRCODE = '42804',
                  DETAIL = format('It is %s, and the key of %s is %s.',
                                  format_type(given_type, NULL), users_label,
                                  format_type(key_type, NULL)),
                  HINT = 'user_key names the column of the trigger''s table that holds the user''s '
                         'key.';
    END IF;
    RETURN given;
END
$$;

-- Refuses a second loop whose schedule enrolls, again and again, by what loops have done: two of
-- them would feed each other for ever.
CREATE FUNCTION activation._check_circle(name text, definition jsonb, context text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    other text;
BEGIN
    IF NOT activation._enrolls_by_own_tables(definition) THEN
        RETURN;
    END IF;
    SELECT l.name INTO other
      FROM activation."loop" l JOIN activation.loop_version v USING (loop_id, version)
     WHERE l.name <> _check_circle.name AND l.state <> 'archived'
       AND activation._enrolls_by_own_tables(v.definition)
     ORDER BY 1 LIMIT 1;
    IF other IS NOT NULL THEN
        RAISE EXCEPTION '%: it and loop "%" would feed each other in a circle', context, other
            USING ERRCODE = '22023',
                  DETAIL = 'The schedule of each enrolls users by what loops have done, and lets '
                           'them in again and again.',
                  HINT = 'Let one of them take each user once (reentry => ''once''), or put both '
                         'into one loop of two steps.';
    END IF;
END
$$;

-- Whether a definition's schedule enrolls users more than once, by what activation's own tables
-- say.
CREATE FUNCTION activation._enrolls_by_own_tables(definition jsonb) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(
        definition #>> '{trigger,type}' = 'schedule'
        AND definition ->> 'reentry' <> 'once'
        AND definition #>> '{trigger,query}'
            ~* '\mactivation\s*\.\s*'
               '(message_log|journey|message|enrollment|attempt|request)\M', false)
$$;
