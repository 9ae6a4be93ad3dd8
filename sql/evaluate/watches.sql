-- What can wake a condition: columns that its plan compares with the user's key, and columns that
-- its author names.

-- Which columns can wake a condition, as the plan of its text tells: see _coverage().
CREATE FUNCTION activation._condition_coverage(owner oid, search_path text, explained text,
                                               type_name text) RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    explain_body text := 'DECLARE plan pg_catalog.text; '
                         'BEGIN EXECUTE %L INTO plan; RETURN plan; END';
    plan text;
    shown_key text;
BEGIN
    plan := activation._as_author(owner, search_path, format(
        explain_body, 'EXPLAIN (VERBOSE, FORMAT JSON) ' || explained)) ->> 'value';
    shown_key := (activation._as_author(owner, search_path, format(
        explain_body,
        format('EXPLAIN (VERBOSE, FORMAT JSON) '
               'SELECT (pg_catalog.current_setting(''activation.key'', true)::%s)', type_name)))
        ->> 'value')::jsonb #>> '{0,Plan,Output,0}';
    IF plan IS NULL OR shown_key IS NULL THEN
        RETURN '{"covered": [], "negative": true}'::jsonb;
    END IF;
    -- The planner drops a cast to varchar that is cast to text again, and shows the setting bare.
    RETURN activation._coverage(plan, ARRAY['(' || shown_key || ')', shown_key,
                                            'current_setting(''activation.key''::text, true)']);
END
$$;

-- Which of the tables that a condition reads can wake it, by which column, as [table, column]; and
-- the names of the others. covered: from _coverage(); named: what the condition says with watch.
CREATE FUNCTION activation._read_watches(tables regclass[], covered jsonb, named jsonb, owner oid,
                                         key_type oid, OUT watches jsonb, OUT unwatched text[])
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    table_read regclass;
    root regclass;
    watch_column name;
    is_named boolean;
BEGIN
    watches := '[]';
    unwatched := '{}';
    -- A table read only in branches that the planner proved empty is not in the plan; it counts as
    -- not covered.
    FOREACH table_read IN ARRAY tables LOOP
        root := coalesce(pg_partition_root(table_read), table_read);
        watch_column := NULL;
        SELECT w.value, true INTO watch_column, is_named
          FROM jsonb_each_text(named) AS w
         WHERE to_regclass(w.key) = root;
        -- A table named with null is to carry no trigger.
        IF is_named IS NULL THEN
            SELECT c.column_name INTO watch_column
              FROM (SELECT entry ->> 2 AS column_name,
                           coalesce(pg_partition_root(t.oid), t.oid) AS covered_root
                      FROM jsonb_array_elements(covered) AS entry
                      JOIN pg_namespace n ON n.nspname = entry ->> 0
                      JOIN pg_class t ON t.relnamespace = n.oid AND t.relname = entry ->> 1) c
             WHERE c.covered_root = root
             LIMIT 1;
        END IF;
        -- track() wakes whom an event concerns, whatever the type of the users' key.
        IF root = 'activation.event'::regclass AND watch_column = 'user_id'
           OR watch_column IS NOT NULL
           AND EXISTS (SELECT FROM pg_class c
                        WHERE c.oid = root AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
                          AND c.relnamespace <> 'pg_catalog'::regnamespace
                          AND c.relnamespace <> 'activation'::regnamespace)
           AND activation._may_trigger(owner, root)
           AND activation._same_keys(activation._key_type(root, watch_column), key_type) THEN
            watches := watches
                || jsonb_build_array(jsonb_build_array(root::oid::bigint, watch_column));
        ELSE
            unwatched := unwatched || activation._table_name(root);
        END IF;
    END LOOP;
END
$$;

-- Adds to a condition's watches the tables that it names with watch and that the plan does not
-- show, since a function reads them. Raises where one cannot be watched.
CREATE FUNCTION activation._add_named_watches(loop text, watches jsonb, named jsonb, owner oid,
                                              key_type oid) RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    watch record;
BEGIN
    FOR watch IN
        SELECT w.key, to_regclass(w.key) AS table_name, w.value::name AS key_column
          FROM jsonb_each_text(named) AS w
    LOOP
        IF watch.table_name IS NULL THEN
            RAISE EXCEPTION 'loop "%": watch names table %, which does not exist', loop, watch.key
                USING ERRCODE = '42P01',
                      HINT = 'Write the table with its schema: {"public.orders": "user_id"}.';
        ELSIF watch.key_column IS NULL THEN
            CONTINUE;
        ELSIF activation._key_type(watch.table_name, watch.key_column) IS NULL THEN
            RAISE EXCEPTION 'loop "%": watch names column % of %, which does not exist',
                loop, watch.key_column, watch.table_name
                USING ERRCODE = '42703', HINT = 'Name the column that holds the user''s key.';
        ELSIF NOT activation._same_keys(activation._key_type(watch.table_name, watch.key_column),
                                        key_type) THEN
            RAISE EXCEPTION USING
                MESSAGE = format('loop "%s": column %s of %s, named by watch, '
                                 'is not of the type of the user''s key',
                                 loop, watch.key_column, watch.table_name),
                ERRCODE = '42804',
                HINT = 'Name the column that holds the user''s key, or use every => instead.';
        ELSIF NOT activation._may_trigger(owner, watch.table_name) THEN
            RAISE EXCEPTION 'loop "%": % may not put a trigger on %',
                loop, activation._role_name(owner), watch.table_name
                USING ERRCODE = '42501',
                      HINT = 'Let the owner of the table define the loop, '
                             'or leave it out of watch.';
        ELSIF NOT watches @> jsonb_build_array(
                  jsonb_build_array(watch.table_name::oid::bigint, watch.key_column)) THEN
            watches := watches || jsonb_build_array(
                jsonb_build_array(watch.table_name::oid::bigint, watch.key_column));
        END IF;
    END LOOP;
    RETURN watches;
END
$$;
