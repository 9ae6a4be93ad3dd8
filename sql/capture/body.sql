-- The text of a capture function, generated for each table and event with static SQL, and shared by
-- all loops. Such a function runs in the app's own transaction, so what it writes is visible
-- exactly when the row is.
--
-- A capture function is SECURITY DEFINER without a SET clause (the clause alone costs 5 points of
-- throughput): therefore every name in it is qualified, and it holds no cast and no operator but
-- OPERATOR(pg_catalog.=): the app's search_path could redirect them.

-- Whether a compiled filter can run nothing but PostgreSQL's own functions, over columns of
-- PostgreSQL's own types. Then no code of an author's runs in the app's session, and what the
-- session holds need not be compared. PostgreSQL's own volatile functions may take locks, and what
-- makes XML of a query or a view runs it. A table with row security does not count: its policies
-- would run, too.
CREATE FUNCTION activation._is_plain_filter(function_name name, table_name regclass)
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT p.prosqlbody::text !~
           '\{(SUBLINK|COERCETODOMAIN|CONVERTROWTYPEEXPR|ROWEXPR|WINDOWFUNC'
           '|SQLVALUEFUNCTION|XMLEXPR|JSONEXPR|NEXTVALUEEXPR)'
       AND NOT (SELECT c.relrowsecurity FROM pg_class c WHERE c.oid = table_name)
       AND NOT EXISTS (SELECT FROM unnest(p.proargtypes::oid[]) AS a(oid)
                         JOIN pg_type t ON t.oid = a.oid
                        WHERE t.typnamespace <> 'pg_catalog'::regnamespace)
       AND NOT EXISTS (SELECT FROM regexp_matches(p.prosqlbody::text,
                                   ':(?:funcid|opfuncid|aggfnoid) (\d+)', 'g') AS m
                         JOIN pg_proc f ON f.oid = m[1]::oid
                        WHERE f.pronamespace <> 'pg_catalog'::regnamespace
                           OR f.provolatile = 'v' OR f.proname ~ '_to_xml')
       AND NOT EXISTS (SELECT FROM regexp_matches(p.prosqlbody::text,
                                   ':(?:consttype|resulttype|funcresulttype|opresulttype) (\d+)',
                                   'g') AS m
                         JOIN pg_type t ON t.oid = m[1]::oid
                        WHERE t.typnamespace <> 'pg_catalog'::regnamespace)
      FROM pg_proc p
     WHERE p.pronamespace = 'activation_compiled'::regnamespace AND p.proname = function_name
$$;

-- The columns that are taken of a captured table's rows: keys, addresses, what filters name, and
-- what tells a row that was updated from others.
CREATE FUNCTION activation._captured_columns(table_name regclass, with_primary_key boolean)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)
      FROM pg_attribute a
     WHERE a.attrelid = table_name AND a.attnum > 0 AND NOT a.attisdropped
       AND (EXISTS (SELECT FROM activation.source s
                     WHERE s.table_name = _captured_columns.table_name
                       AND s.key_attnum = a.attnum)
            OR EXISTS (SELECT FROM activation.users_table u
                        WHERE u.users = _captured_columns.table_name
                          AND u.email_column = a.attname)
            OR EXISTS (SELECT FROM activation.loop_version v
                         JOIN activation.source s USING (source_id)
                        WHERE s.table_name = _captured_columns.table_name
                          AND a.attname = ANY (v.filter_columns || v.old_columns))
            OR with_primary_key AND a.attname = ANY (activation._primary_key(table_name)))
$$;

-- The key columns of a captured table, and what is to be done on an event. key: the key of a row n,
-- as an expression; which: a WHERE clause, of rows that have one; unfiltered: a loop without a
-- filter waits for insertions; watched: a condition is woken; leaving: the row that goes is a
-- user's; address: the user's address in a row n, as an expression.
CREATE FUNCTION activation._captured_keys(table_name regclass, event text)
RETURNS TABLE (source_id integer, generation integer, key text, which text, unfiltered boolean,
               watched boolean, leaving boolean, address text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT s.source_id, s.generation,
           format('pg_catalog.format(''%%s'', n.%I)', a.attname),
           CASE WHEN _captured_keys.event = 'changed' THEN
                     format(' WHERE pg_catalog.format(''%%s'', n.%1$I) OPERATOR(pg_catalog.=)'
                            ' pg_catalog.format(''%%s'', o.%1$I) AND n.%1$I IS NOT NULL', a.attname)
                WHEN NOT a.attnotnull THEN format(' WHERE n.%I IS NOT NULL', a.attname)
                ELSE '' END,
           _captured_keys.event = 'insert' AND EXISTS (
               SELECT FROM activation.loop_version v
                 JOIN activation."loop" l USING (loop_id, version)
                WHERE v.source_id = s.source_id AND v.event = 'insert'
                  AND v.filter_function IS NULL AND l.state <> 'archived'),
           _captured_keys.event IN ('insert', 'update', 'delete', 'moved') AND EXISTS (
               SELECT FROM activation.watch w JOIN activation."loop" l USING (loop_id)
                WHERE w.source_id = s.source_id AND l.state <> 'archived'
                  AND (_captured_keys.event IN ('insert', 'update') OR w.on_delete)),
           _captured_keys.event = 'delete' AND EXISTS (
               SELECT FROM activation.users_table u
                 JOIN activation.loop_version v USING (users)
                 JOIN activation."loop" l USING (loop_id)
                WHERE u.users = s.table_name AND u.key_column = s.key_column
                  AND l.state <> 'archived'),
           -- Only texts: the output function of another type might raise.
           (SELECT format('pg_catalog.left(pg_catalog.format(''%%s'', n.%I), 1000)', x.attname)
              FROM activation.users_table u
              JOIN pg_attribute x ON x.attrelid = u.users AND x.attname = u.email_column
                                 AND NOT x.attisdropped
              JOIN pg_type t ON t.oid = x.atttypid
             WHERE u.users = s.table_name AND x.attnum > 0 AND t.typcategory = 'S')
      FROM activation.source s
      JOIN pg_attribute a ON a.attrelid = s.table_name AND a.attnum = s.key_attnum
                         AND NOT a.attisdropped
     WHERE s.table_name = _captured_keys.table_name
     ORDER BY s.source_id
$$;

-- The statements that ask one loop's filter about the rows of the app's statement, and signal the
-- users whom it lets pass. The author's code runs in a read-only subtransaction that is always
-- rolled back: nothing but the keys that passed leaves it, no deferred trigger, no cursor, no
-- setting. plain: see _is_plain_filter(); key, which: see _captured_keys(); rows: a FROM item;
-- insertion: the row as it is later tells what it told.
CREATE FUNCTION activation._filter_statements(loop_id integer, loop_name text, search_path text,
                                              function_name name, arguments text, plain boolean,
                                              source_id integer, generation integer, key text,
                                              rows text, which text, insertion boolean)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format(
                $body$
    activation_evaluated := false;
    activation_problem := NULL;
    activation_passed := NULL;
    activation_harm := NULL;
%12$s%14$s    BEGIN
        PERFORM pg_catalog.set_config('transaction_read_only', 'on', true);
        PERFORM pg_catalog.set_config('search_path', %6$L, true);
        SELECT pg_catalog.array_agg(%3$s) INTO activation_passed
          FROM %4$s%5$s activation_compiled.%7$I(%8$s);
        activation_evaluated := true;
        RAISE EXCEPTION USING ERRCODE = 'ACT00';
    EXCEPTION WHEN others OR assert_failure OR query_canceled THEN
        IF NOT activation_evaluated THEN
            activation_problem := SQLERRM;
        END IF;
    END;
%13$s    IF activation_problem IS NULL THEN
        INSERT INTO activation.signal (source_id, generation, loop_id, user_id)
        SELECT %1$s, %2$s, %9$s, k.user_id FROM pg_catalog.unnest(activation_passed) AS k(user_id);
    ELSE
        INSERT INTO activation.signal (source_id, generation, loop_id, user_id, error, harm)
        SELECT %1$s, %2$s, %9$s, %3$s, activation_problem, activation_harm FROM %4$s%10$s;
        RAISE WARNING 'the filter of activation loop %% raised: %%', %11$L, activation_problem
            USING HINT = 'Your statement was not affected. '
                         'These rows were not enrolled in the loop.';
    END IF;
%15$s$body$,
                source_id, generation, key, rows,
                CASE which WHEN '' THEN ' WHERE' ELSE which || ' AND' END, search_path,
                function_name, arguments, loop_id, which, loop_name,
                CASE WHEN NOT plain THEN
                    E'    activation_held := activation._held_statements();\n'
                    '    activation_locks := activation._held_locks();\n' END,
                CASE WHEN NOT plain THEN
                    E'    activation_harm := activation._check_app_session('
                    'activation_held, activation_locks,'
                    ' pg_catalog.current_setting(''search_path''));\n'
                    '    IF activation_harm IS NOT NULL THEN\n'
                    '        activation_problem := activation_harm;\n'
                    '    END IF;\n' END,
                -- Where the session has cursors, which the filter could use, a detector asks it.
                CASE WHEN NOT plain THEN
                    E'    IF EXISTS (SELECT FROM pg_catalog.pg_cursors c'
                    ' WHERE pg_catalog.textne(c.name, ''''))\n'
                    '       AND activation._has_cursors() THEN\n'
                    || format(CASE WHEN insertion THEN
                           E'        INSERT INTO activation.signal'
                           ' (source_id, generation, loop_id, user_id, unasked)\n'
                           '        SELECT %1$s, %2$s, %3$s, %4$s, true FROM %5$s%6$s;\n'
                       ELSE
                           E'        INSERT INTO activation.signal'
                           ' (source_id, generation, loop_id, user_id, error)\n'
                           '        SELECT %1$s, %2$s, %3$s, %4$s, %7$L FROM %5$s%6$s;\n'
                       END, source_id, generation, loop_id, key, rows, which,
                       'it was not asked, since the session had open cursors')
                    || E'    ELSE\n' END,
                CASE WHEN NOT plain THEN E'    END IF;\n' END)
$$;

-- The body of a capture function, or NULL when nothing is to be captured there. Events: insert and
-- update; for conditions that a vanishing row can make true, and for loops that wait for a
-- deletion, also delete; for the former also moved (an update, by the row as it was); for loops
-- that wait for an update, changed (by the row as it was and as it is). A deleted row of a users
-- table lets its user out of all loops, and its address is kept for erase(). Wakes are written
-- until watched_until; NULL: none. Long because it is the one place that shows which statements a
-- capture function has, in their order.
CREATE FUNCTION activation._capture_body(table_name regclass, event text,
                                         watched_until timestamptz) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    signals text := '';
    wakes text := '';
    declared text := '';
    columns text := activation._captured_columns(table_name, event = 'changed');
    -- n.c would be a call of a function c, found on the app's path, as soon as the column is gone;
    -- a bare c is a column or an error. So the rows are taken apart by bare names first.
    rows text := CASE
        WHEN event IN ('delete', 'moved') THEN format('(SELECT %s FROM old_rows) AS n', columns)
        WHEN event = 'changed' THEN
            format('(SELECT %1$s FROM new_rows) AS n JOIN (SELECT %1$s FROM old_rows) AS o ON ',
                   columns)
            || activation._same_row_condition(table_name)
        ELSE format('(SELECT %s FROM new_rows) AS n', columns) END;
    captured record;
    waiting_loop record;
    needed boolean := false;
BEGIN
    IF rows IS NULL THEN
        RETURN NULL;
    END IF;
    FOR captured IN SELECT k.* FROM activation._captured_keys(table_name, event) k LOOP
        IF captured.unfiltered THEN
            needed := true;
            signals := signals || format(
                E'    INSERT INTO activation.signal (source_id, generation, user_id)\n'
                '    SELECT %s, %s, %s FROM %s%s;\n',
                captured.source_id, captured.generation, captured.key, rows, captured.which);
        END IF;
        IF captured.leaving THEN
            needed := true;
            signals := signals || format(
                E'    INSERT INTO activation.signal'
                ' (source_id, generation, user_id, user_deleted, address)\n'
                '    SELECT %s, %s, %s, true, %s FROM %s%s;\n',
                captured.source_id, captured.generation, captured.key,
                coalesce(captured.address, 'NULL'), rows, captured.which);
        END IF;
        FOR waiting_loop IN
            SELECT v.loop_id, l.name, v.names AS search_path, v.filter_function,
                   coalesce(activation._is_plain_filter(v.filter_function,
                                                        _capture_body.table_name), true) AS plain,
                   concat_ws(', ',
                       (SELECT string_agg(format('%s.%I', CASE _capture_body.event
                                                          WHEN 'changed' THEN 'o' ELSE 'n' END, c),
                                          ', ' ORDER BY ordinal)
                          FROM unnest(v.old_columns) WITH ORDINALITY AS u(c, ordinal)),
                       (SELECT string_agg(format('n.%I', c), ', ' ORDER BY ordinal)
                          FROM unnest(v.filter_columns) WITH ORDINALITY AS u(c, ordinal))
                   ) AS arguments
              FROM activation.loop_version v JOIN activation."loop" l USING (loop_id, version)
             WHERE v.source_id = captured.source_id
               AND v.event = CASE _capture_body.event WHEN 'changed' THEN 'update'
                                                      WHEN 'update' THEN NULL
                                                      ELSE _capture_body.event END
               AND (v.filter_function IS NOT NULL OR v.event <> 'insert')
               AND l.state <> 'archived'
             ORDER BY v.loop_id
        LOOP
            needed := true;
            IF waiting_loop.filter_function IS NULL THEN
                signals := signals || format(
                    E'    INSERT INTO activation.signal (source_id, generation, loop_id, user_id)\n'
                    '    SELECT %s, %s, %s, %s FROM %s%s;\n',
                    captured.source_id, captured.generation, waiting_loop.loop_id, captured.key,
                    rows, captured.which);
                CONTINUE;
            END IF;
            declared := E'DECLARE\n'
                '    activation_passed pg_catalog.text[];\n'
                '    activation_evaluated pg_catalog.bool;\n'
                '    activation_problem pg_catalog.text;\n'
                '    activation_held activation.held_statement[];\n'
                '    activation_locks pg_catalog.text[];\n'
                '    activation_harm pg_catalog.text;\n';
            signals := signals || activation._filter_statements(
                waiting_loop.loop_id, waiting_loop.name, waiting_loop.search_path,
                waiting_loop.filter_function, waiting_loop.arguments, waiting_loop.plain,
                captured.source_id, captured.generation, captured.key, rows, captured.which,
                event = 'insert');
        END LOOP;
        IF captured.watched THEN
            needed := true;
            IF watched_until IS NOT NULL THEN
                wakes := wakes || format(
                    E'        INSERT INTO activation.wake (source_id, user_id)\n'
                    '        SELECT %s, %s FROM %s%s;\n',
                    captured.source_id, captured.key, rows, captured.which);
            END IF;
        END IF;
    END LOOP;
    IF NOT needed THEN
        RETURN NULL;
    END IF;
    IF wakes <> '' THEN
        wakes := format(E'    IF pg_catalog.timestamptz_lt(pg_catalog.now(),'
                        ' pg_catalog.to_timestamp(%s)) THEN\n',
                        extract(epoch FROM watched_until)::bigint)
                 || wakes || E'    END IF;\n';
    END IF;
    RETURN E'#variable_conflict use_column\n' || declared || E'BEGIN\n' || signals || wakes
           || E'    RETURN NULL;\nEND';
END
$$;
