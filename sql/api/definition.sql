-- A definition is read: tables, keys and durations that it names.

-- ---- define ----------------------------------------------------------------------------------------------------------------

-- A table named in a document, looked up on the author's path.
CREATE FUNCTION activation._find_table(table_name text, names text, what text) RETURNS regclass
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    answer jsonb := activation._run_on_path(names, ARRAY[format('SELECT pg_catalog.to_regclass(%L)::pg_catalog.oid::pg_catalog.int8', table_name)], false);
BEGIN
    IF answer ->> 'value' IS NULL THEN
        RAISE EXCEPTION '%: table "%" does not exist', what, table_name
            USING ERRCODE = CASE WHEN answer ? 'error' THEN answer #>> '{error,code}' ELSE '42P01' END,
                  DETAIL = coalesce(answer #>> '{error,message}', ''),
                  HINT = format('It was looked for on the path %s. Write it with its schema, and quoted where it is mixed-case: "app"."User".', names);
    END IF;
    RETURN (answer ->> 'value')::oid::regclass;
END
$$;

-- A duration in a document, in the server's one spelling.
CREATE FUNCTION activation._duration(duration text, what text, or_none boolean DEFAULT false) RETURNS text
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
        RAISE EXCEPTION '% is not a duration: "%"', what, duration
            USING ERRCODE = '22007', HINT = 'Write it as PostgreSQL does: ''5m'', ''90 seconds'', ''3 days''.';
    END;
    IF or_none AND parsed = interval '0' THEN
        RETURN parsed::text;
    END IF;
    IF parsed <= interval '0' OR parsed > interval '100 years' THEN
        RAISE EXCEPTION '% is %', what, duration
            USING ERRCODE = '22023', HINT = 'Give a duration longer than zero, such as ''5 minutes'' or ''3 days''.';
    END IF;
    RETURN parsed::text;
END
$$;

CREATE FUNCTION activation._durations(definition jsonb, what text) RETURNS jsonb
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    path text[];
BEGIN
    FOR path IN
        SELECT p.path FROM (VALUES (ARRAY['recovery', 'initial']), (ARRAY['recovery', 'max'])) AS p(path)
        UNION ALL
        SELECT ARRAY['steps', (i.n - 1)::text, 'condition', k.key]
          FROM jsonb_array_elements(definition -> 'steps') WITH ORDINALITY AS i(step, n), (VALUES ('timeout'), ('every')) AS k(key)
         WHERE i.step #>> ARRAY['condition', k.key] IS NOT NULL
        UNION ALL
        SELECT ARRAY['steps', (i.n - 1)::text, 'delay'] FROM jsonb_array_elements(definition -> 'steps') WITH ORDINALITY AS i(step, n)
        UNION ALL
        SELECT ARRAY['reentry'] WHERE definition ->> 'reentry' NOT IN ('once', 'always')
        UNION ALL
        SELECT ARRAY['goal', 'every'] WHERE definition #>> '{goal,every}' IS NOT NULL
    LOOP
        definition := jsonb_set(definition, path, to_jsonb(activation._duration(
            definition #>> path, format('%s: %s', what, path[cardinality(path)]), path[cardinality(path)] = 'delay')));
    END LOOP;
    RETURN definition;
END
$$;

-- The users table of a loop: the one that is named, else the trigger's own, if it is one or references none, else the one
-- that the trigger's table references; without a trigger's table the only one there is.
CREATE FUNCTION activation._users_of(table_name regclass, named regclass, what text) RETURNS regclass
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found regclass[];
BEGIN
    IF named IS NOT NULL THEN
        RETURN named;
    END IF;
    IF table_name IS NULL THEN
        found := ARRAY(SELECT u.users FROM activation.users_table u JOIN pg_class c ON c.oid = u.users);
        IF cardinality(found) = 0 THEN
            RAISE EXCEPTION '%: no users table is registered', what
                USING ERRCODE = '55000', HINT = 'SELECT activation.set_users(''users'', email => ''email'');';
        END IF;
    ELSIF EXISTS (SELECT FROM activation.users_table u WHERE u.users = table_name) THEN
        RETURN table_name;
    ELSE
        found := ARRAY(SELECT DISTINCT u.users FROM pg_constraint c JOIN activation.users_table u ON u.users = c.confrelid
                        WHERE c.contype = 'f' AND c.conrelid = table_name);
        IF cardinality(found) = 0 THEN
            RETURN table_name;
        END IF;
    END IF;
    IF cardinality(found) > 1 THEN
        RAISE EXCEPTION '%: it could be about users of %', what, (SELECT string_agg(activation._table_name(f), ' or ') FROM unnest(found) AS f)
            USING ERRCODE = '22023', HINT = format('Say which: users => %L.', activation._table_name(found[1]));
    END IF;
    RETURN found[1];
END
$$;

-- The column of the trigger's table that names the user: the one that is given, the key of a users table, or the only column
-- that references it.
CREATE FUNCTION activation._user_key(table_name regclass, given name, registered activation.users_table, event text, what text) RETURNS name
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found name[];
    shown text := activation._table_name(table_name);
BEGIN
    IF event = 'update' AND activation._same_row_condition(table_name) IS NULL THEN
        RAISE EXCEPTION '%: table % has no primary key', what, shown
            USING ERRCODE = '42P16', HINT = format('A row as it was and as it is are told to be the same by it: ALTER TABLE %s ADD PRIMARY KEY (…);', shown);
    END IF;
    IF table_name = registered.users THEN
        IF given <> registered.key_column THEN
            RAISE EXCEPTION '%: user_key is %, and the key of the users table % is %', what, quote_ident(given), shown, quote_ident(registered.key_column)
                USING ERRCODE = '22023', HINT = 'Leave user_key out for a trigger on the users table.';
        END IF;
        IF event = 'delete' THEN
            RAISE EXCEPTION '%: nobody is left to mail when a row of the users table % is deleted', what, shown
                USING ERRCODE = '22023', HINT = 'Deleted users leave their loops by themselves. For accounts that are closed but kept, use activation.on_update(…).';
        END IF;
        RETURN registered.key_column;
    END IF;
    IF given IS NULL THEN
        SELECT array_agg(DISTINCT a.attname) INTO found
          FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
         WHERE c.contype = 'f' AND c.conrelid = table_name AND c.confrelid = registered.users AND cardinality(c.conkey) = 1
           AND activation._same_keys(a.atttypid, activation._key_type(registered.users, registered.key_column));
        IF cardinality(found) = 1 THEN
            RETURN found[1];
        END IF;
        RAISE EXCEPTION '%: which column of % names the user?', what, shown
            USING ERRCODE = '22023', DETAIL = CASE WHEN found IS NULL THEN format('No column references %s.', activation._table_name(registered.users))
                                                   ELSE format('These reference it: %s.', array_to_string(found, ', ')) END,
                  HINT = format('Name it: activation.on_%s(%L, user_key => ''user_id'').', event, shown);
    END IF;
    IF activation._key_type(table_name, given) IS NULL THEN
        RAISE EXCEPTION '%: table % has no column %', what, shown, quote_ident(given)
            USING ERRCODE = '42703', HINT = 'user_key names the column of the trigger''s table that holds the user''s key.';
    END IF;
    IF NOT activation._same_keys(activation._key_type(table_name, given), activation._key_type(registered.users, registered.key_column)) THEN
        RAISE EXCEPTION '%: column % of % is not of the type of the user''s key', what, quote_ident(given), shown
            USING ERRCODE = '42804', DETAIL = format('It is %s, and the key of %s is %s.', format_type(activation._key_type(table_name, given), NULL),
                                                     activation._table_name(registered.users), format_type(activation._key_type(registered.users, registered.key_column), NULL)),
                  HINT = 'user_key names the column of the trigger''s table that holds the user''s key.';
    END IF;
    RETURN given;
END
$$;

-- Two loops whose schedules enroll whom other loops have mailed, again and again, would feed each other for ever.
CREATE FUNCTION activation._check_circle(name text, definition jsonb, what text) RETURNS void
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
     WHERE l.name <> _check_circle.name AND l.state <> 'archived' AND activation._enrolls_by_own_tables(v.definition) ORDER BY 1 LIMIT 1;
    IF other IS NOT NULL THEN
        RAISE EXCEPTION '%: it and loop "%" would feed each other in a circle', what, other
            USING ERRCODE = '22023', DETAIL = 'The schedule of each enrolls users by what loops have done, and lets them in again and again.',
                  HINT = 'Let one of them take each user once (reentry => ''once''), or put both into one loop of two steps.';
    END IF;
END
$$;

-- Whether a definition's schedule enrolls users, more than once, by what activation's own tables say.
CREATE FUNCTION activation._enrolls_by_own_tables(definition jsonb) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(definition #>> '{trigger,type}' = 'schedule' AND definition ->> 'reentry' <> 'once'
                    AND definition #>> '{trigger,query}' ~* '\mactivation\s*\.\s*(message_log|journey|message|enrollment|attempt|request)\M', false)
$$;
