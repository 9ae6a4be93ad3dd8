-- Capture: statement triggers on the app's tables. One function for each table and event, generated with static SQL and
-- shared by all loops. They run in the app's own transaction, so what they write is visible exactly when the row is.
--
-- A capture function is SECURITY DEFINER without a SET clause (the clause alone costs 5 points of throughput): therefore
-- every name in it is qualified and it holds no operator and no cast, which the app's search_path could redirect.

-- A name for a generated function, at most 63 bytes: what it is for, cut if need be, and a suffix that makes it unique.
CREATE FUNCTION activation._compiled_name(base text, suffix text) RETURNS name
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    cut text := base;
BEGIN
    WHILE octet_length(cut || suffix) > 63 LOOP
        cut := left(cut, -1);
    END LOOP;
    RETURN cut || suffix;
END
$$;

-- A table's columns, in their order.
CREATE FUNCTION activation._user_columns(users regclass) RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a
     WHERE a.attrelid = users AND a.attnum > 0 AND NOT a.attisdropped
$$;

-- Numbers of a table's columns, and names of those of them that still exist, in the order given.
CREATE FUNCTION activation._column_numbers(table_name regclass, columns name[]) RETURNS smallint[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ARRAY(SELECT a.attnum FROM unnest(columns) WITH ORDINALITY AS c(attname, ordinal)
                   JOIN pg_attribute a ON a.attrelid = table_name AND a.attname = c.attname AND NOT a.attisdropped ORDER BY c.ordinal)
$$;

CREATE FUNCTION activation._column_names(table_name regclass, attnums smallint[]) RETURNS name[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ARRAY(SELECT a.attname FROM unnest(attnums) WITH ORDINALITY AS c(attnum, ordinal)
                   JOIN pg_attribute a ON a.attrelid = table_name AND a.attnum = c.attnum AND NOT a.attisdropped ORDER BY c.ordinal)
$$;

-- What the old and the new version of an updated row have in common: the primary key of its table, as a condition over the
-- rows n and o. NULL without one.
CREATE FUNCTION activation._same_row(table_name regclass) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT string_agg(format('pg_catalog.format(''%%s'', n.%1$I) OPERATOR(pg_catalog.=) pg_catalog.format(''%%s'', o.%1$I)', a.attname),
                      ' AND ' ORDER BY k.ordinal)
      FROM pg_index i, unnest(i.indkey::smallint[]) WITH ORDINALITY AS k(attnum, ordinal), pg_attribute a
     WHERE i.indrelid = table_name AND i.indisprimary AND a.attrelid = table_name AND a.attnum = k.attnum
$$;

-- Columns are followed by number through renames; after a restore numbers may differ and names are right.
CREATE FUNCTION activation._sync_source(table_name regclass) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE activation.loop_version v
       SET filter_attnums = activation._column_numbers(s.table_name, v.filter_columns),
           old_attnums = activation._column_numbers(s.table_name, v.old_columns)
      FROM activation.source s
     WHERE s.table_name = _sync_source.table_name AND s.table_oid <> s.table_name
       AND v.source_id = s.source_id AND v.filter_function IS NOT NULL;
    UPDATE activation.source s
       SET key_attnum = a.attnum, table_oid = s.table_name
      FROM pg_attribute a
     WHERE s.table_name = _sync_source.table_name
       AND s.table_oid <> s.table_name
       AND a.attrelid = s.table_name AND a.attname = s.key_column AND NOT a.attisdropped;
    UPDATE activation.users_table u
       SET key_column = a.attname
      FROM activation.source s JOIN pg_attribute a ON a.attrelid = s.table_name AND a.attnum = s.key_attnum
     WHERE s.table_name = _sync_source.table_name AND u.users = s.table_name
       AND u.key_column = s.key_column AND a.attname <> s.key_column AND NOT a.attisdropped;
    UPDATE activation.source s
       SET key_column = a.attname
      FROM pg_attribute a
     WHERE s.table_name = _sync_source.table_name
       AND a.attrelid = s.table_name AND a.attnum = s.key_attnum AND NOT a.attisdropped
       AND a.attname <> s.key_column;
    UPDATE activation.loop_version v
       SET filter_columns = now.new_names, old_columns = now.old_names
      FROM (SELECT f.loop_id, f.version, activation._column_names(s.table_name, f.filter_attnums) AS new_names,
                   activation._column_names(s.table_name, f.old_attnums) AS old_names
              FROM activation.loop_version f JOIN activation.source s USING (source_id)
             WHERE s.table_name = _sync_source.table_name AND f.filter_function IS NOT NULL) now
     WHERE v.loop_id = now.loop_id AND v.version = now.version
       AND (v.filter_columns, v.old_columns) IS DISTINCT FROM (now.new_names, now.old_names)
       -- A column that is gone is told by _follow_table().
       AND cardinality(v.filter_columns || v.old_columns) = cardinality(now.new_names || now.old_names);
END
$$;

CREATE FUNCTION activation._source(table_name regclass, key_column name) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_id integer;
BEGIN
    PERFORM activation._sync_source(table_name);
    INSERT INTO activation.source (table_name, key_column, key_attnum, table_oid)
    SELECT _source.table_name, a.attname, a.attnum, _source.table_name
      FROM pg_attribute a
     WHERE a.attrelid = _source.table_name AND a.attname = _source.key_column AND NOT a.attisdropped
    ON CONFLICT DO NOTHING;
    SELECT s.source_id INTO STRICT found_id
      FROM activation.source s
     WHERE s.table_name = _source.table_name AND s.key_column = _source.key_column;
    RETURN found_id;
END
$$;

-- Whether a compiled filter can run nothing but PostgreSQL's own functions, over columns of its own types: then nothing of an
-- author's runs in the app's session, and what that holds needs no look. Row security would bring its policies.
CREATE FUNCTION activation._is_plain_filter(function_name name, table_name regclass) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT p.prosqlbody::text !~ '\{(SUBLINK|COERCETODOMAIN|CONVERTROWTYPEEXPR|ROWEXPR|WINDOWFUNC|SQLVALUEFUNCTION|XMLEXPR|JSONEXPR|NEXTVALUEEXPR)'
       AND NOT (SELECT c.relrowsecurity FROM pg_class c WHERE c.oid = table_name)
       AND NOT EXISTS (SELECT FROM unnest(p.proargtypes::oid[]) AS a(oid) JOIN pg_type t ON t.oid = a.oid WHERE t.typnamespace <> 'pg_catalog'::regnamespace)
       AND NOT EXISTS (SELECT FROM regexp_matches(p.prosqlbody::text, ':(?:funcid|opfuncid|aggfnoid) (\d+)', 'g') AS m
                         JOIN pg_proc f ON f.oid = m[1]::oid WHERE f.pronamespace <> 'pg_catalog'::regnamespace)
       AND NOT EXISTS (SELECT FROM regexp_matches(p.prosqlbody::text, ':(?:consttype|resulttype|funcresulttype|opresulttype) (\d+)', 'g') AS m
                         JOIN pg_type t ON t.oid = m[1]::oid WHERE t.typnamespace <> 'pg_catalog'::regnamespace)
      FROM pg_proc p WHERE p.pronamespace = 'activation_compiled'::regnamespace AND p.proname = function_name
$$;

-- The columns that are taken of a captured table's rows: keys, addresses, what filters name, and what tells a row that was
-- updated from others.
CREATE FUNCTION activation._captured_columns(table_name regclass, with_primary_key boolean) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)
      FROM pg_attribute a
     WHERE a.attrelid = table_name AND a.attnum > 0 AND NOT a.attisdropped
       AND (EXISTS (SELECT FROM activation.source s WHERE s.table_name = _captured_columns.table_name AND s.key_attnum = a.attnum)
            OR EXISTS (SELECT FROM activation.users_table u WHERE u.users = _captured_columns.table_name AND u.email_column = a.attname)
            OR EXISTS (SELECT FROM activation.loop_version v JOIN activation.source s USING (source_id)
                        WHERE s.table_name = _captured_columns.table_name AND a.attname = ANY (v.filter_columns || v.old_columns))
            OR with_primary_key AND EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisprimary AND a.attnum = ANY (i.indkey)))
$$;

-- The body of a capture function, or NULL when nothing is to be captured there. Events: insert and update; for conditions
-- that a vanishing row can make true, and for loops that wait for a deletion, also delete; for the former also moved (an
-- update, by the row as it was); for loops that wait for an update, changed (by the row as it was and as it is). A deleted
-- row of a users table lets its user out of all loops, and its address is kept for erase(). Wakes are written until
-- watched_until; NULL: none.
CREATE FUNCTION activation._capture_body(table_name regclass, event text, watched_until timestamptz) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    signals text := '';
    wakes text := '';
    declared text := '';
    columns text := activation._captured_columns(table_name, event = 'changed');
    -- n.c would be a call of a function c, found on the app's path, as soon as the column is gone; a bare c is a column or
    -- an error. So the rows are taken apart by bare names first.
    rows text := CASE WHEN event IN ('delete', 'moved') THEN format('(SELECT %s FROM old_rows) AS n', columns)
                      WHEN event = 'changed' THEN format('(SELECT %1$s FROM new_rows) AS n JOIN (SELECT %1$s FROM old_rows) AS o ON ', columns)
                                                  || activation._same_row(table_name)
                      ELSE format('(SELECT %s FROM new_rows) AS n', columns) END;
    captured record;
    waiting record;
    needed boolean := false;
BEGIN
    IF rows IS NULL THEN
        RETURN NULL;
    END IF;
    FOR captured IN
        SELECT s.source_id, s.generation, format('pg_catalog.format(''%%s'', n.%I)', a.attname) AS key,
               CASE WHEN _capture_body.event = 'changed' THEN
                         format(' WHERE pg_catalog.format(''%%s'', n.%1$I) OPERATOR(pg_catalog.=) pg_catalog.format(''%%s'', o.%1$I) AND n.%1$I IS NOT NULL', a.attname)
                    WHEN NOT a.attnotnull THEN format(' WHERE n.%I IS NOT NULL', a.attname) ELSE '' END AS which,
               _capture_body.event = 'insert' AND EXISTS (
                   SELECT FROM activation.loop_version v JOIN activation."loop" l USING (loop_id, version)
                    WHERE v.source_id = s.source_id AND v.event = 'insert' AND v.filter_function IS NULL AND l.state <> 'archived') AS unfiltered,
               _capture_body.event IN ('insert', 'update', 'delete', 'moved') AND EXISTS (
                   SELECT FROM activation.watch w JOIN activation."loop" l USING (loop_id)
                    WHERE w.source_id = s.source_id AND l.state <> 'archived'
                      AND (_capture_body.event IN ('insert', 'update') OR w.on_delete)) AS watched,
               _capture_body.event = 'delete' AND EXISTS (
                   SELECT FROM activation.users_table u JOIN activation.loop_version v USING (users) JOIN activation."loop" l USING (loop_id)
                    WHERE u.users = s.table_name AND u.key_column = s.key_column AND l.state <> 'archived') AS leaving,
               -- Only texts: the output function of another type might raise.
               (SELECT format('pg_catalog.left(pg_catalog.format(''%%s'', n.%I), 1000)', x.attname)
                  FROM activation.users_table u JOIN pg_attribute x ON x.attrelid = u.users AND x.attname = u.email_column AND NOT x.attisdropped
                  JOIN pg_type t ON t.oid = x.atttypid
                 WHERE u.users = s.table_name AND x.attnum > 0 AND t.typcategory = 'S') AS address
          FROM activation.source s
          JOIN pg_attribute a ON a.attrelid = s.table_name AND a.attnum = s.key_attnum AND NOT a.attisdropped
         WHERE s.table_name = _capture_body.table_name
         ORDER BY s.source_id
    LOOP
        IF captured.unfiltered THEN
            needed := true;
            signals := signals || format(
                E'    INSERT INTO activation.signal (source_id, generation, user_id)\n'
                '    SELECT %s, %s, %s FROM %s%s;\n', captured.source_id, captured.generation, captured.key, rows, captured.which);
        END IF;
        IF captured.leaving THEN
            needed := true;
            signals := signals || format(
                E'    INSERT INTO activation.signal (source_id, generation, user_id, gone, address)\n'
                '    SELECT %s, %s, %s, true, %s FROM %s%s;\n', captured.source_id, captured.generation, captured.key,
                coalesce(captured.address, 'NULL'), rows, captured.which);
        END IF;
        FOR waiting IN
            SELECT v.loop_id, l.name, v.names, v.filter_function, coalesce(activation._is_plain_filter(v.filter_function, _capture_body.table_name), true) AS plain,
                   concat_ws(', ', (SELECT string_agg(format('%s.%I', CASE _capture_body.event WHEN 'changed' THEN 'o' ELSE 'n' END, c), ', ' ORDER BY ordinal)
                                      FROM unnest(v.old_columns) WITH ORDINALITY AS u(c, ordinal)),
                                   (SELECT string_agg(format('n.%I', c), ', ' ORDER BY ordinal)
                                      FROM unnest(v.filter_columns) WITH ORDINALITY AS u(c, ordinal))) AS columns
              FROM activation.loop_version v JOIN activation."loop" l USING (loop_id, version)
             WHERE v.source_id = captured.source_id AND v.event = CASE _capture_body.event WHEN 'changed' THEN 'update' WHEN 'update' THEN NULL ELSE _capture_body.event END
               AND (v.filter_function IS NOT NULL OR v.event <> 'insert') AND l.state <> 'archived'
             ORDER BY v.loop_id
        LOOP
            needed := true;
            IF waiting.filter_function IS NULL THEN
                signals := signals || format(
                    E'    INSERT INTO activation.signal (source_id, generation, loop_id, user_id)\n'
                    '    SELECT %s, %s, %s, %s FROM %s%s;\n',
                    captured.source_id, captured.generation, waiting.loop_id, captured.key, rows, captured.which);
                CONTINUE;
            END IF;
            declared := E'DECLARE\n    activation_passed pg_catalog.text[];\n    activation_evaluated pg_catalog.bool;\n    activation_problem pg_catalog.text;\n    activation_held activation.held_statement[];\n    activation_locks pg_catalog.text[];\n    activation_harm pg_catalog.text;\n';
            -- The author's code runs in a read-only subtransaction that is always rolled back: nothing but the keys that
            -- passed leaves it, no deferred trigger, no cursor, no setting.
            signals := signals || format(
                $body$
    activation_evaluated := false;
    activation_problem := NULL;
    activation_passed := NULL;
    activation_harm := NULL;
%12$s    BEGIN
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
            USING HINT = 'Your statement was not affected. These rows were not enrolled in the loop.';
    END IF;
$body$,
                captured.source_id, captured.generation, captured.key, rows,
                CASE captured.which WHEN '' THEN ' WHERE' ELSE captured.which || ' AND' END, waiting.names,
                waiting.filter_function, waiting.columns, waiting.loop_id, captured.which, waiting.name,
                CASE WHEN NOT waiting.plain THEN E'    activation_held := activation._held_statements();\n    activation_locks := activation._held_locks();\n' END,
                CASE WHEN NOT waiting.plain THEN
                    E'    activation_harm := activation._check_app_session(activation_held, activation_locks, pg_catalog.current_setting(''search_path''));\n'
                    '    IF activation_harm IS NOT NULL THEN\n        activation_problem := activation_harm;\n    END IF;\n' END);
        END LOOP;
        IF captured.watched THEN
            needed := true;
            IF watched_until IS NOT NULL THEN
                wakes := wakes || format(
                    E'        INSERT INTO activation.wake (source_id, user_id)\n'
                    '        SELECT %s, %s FROM %s%s;\n', captured.source_id, captured.key, rows, captured.which);
            END IF;
        END IF;
    END LOOP;
    IF NOT needed THEN
        RETURN NULL;
    END IF;
    IF wakes <> '' THEN
        wakes := format(E'    IF pg_catalog.timestamptz_lt(pg_catalog.now(), pg_catalog.to_timestamp(%s)) THEN\n', extract(epoch FROM watched_until)::bigint)
                 || wakes || E'    END IF;\n';
    END IF;
    RETURN E'#variable_conflict use_column\n' || declared || E'BEGIN\n' || signals || wakes || E'    RETURN NULL;\nEND';
END
$$;

-- Brings functions and triggers of a table up to what loops and watches ask for. Only a table that lacks a trigger is
-- locked (SHARE ROW EXCLUSIVE, after at most 3 s of waiting); otherwise only a function is swapped. only_known: a table
-- without our trigger gets none (it may be in the middle of a restore, which brings its own); new partitions of one do.
CREATE FUNCTION activation._generate_capture(table_name regclass, only_known boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
<<here>>
DECLARE
    watched_until timestamptz := (SELECT s.watched_until FROM activation.schedule s WHERE s.watching);
    wanted record;
    body text;
    function_name name;
    relation regclass;
    old_timeout text := current_setting('lock_timeout');
BEGIN
    -- One at a time a table: a transaction that has changed one table holds up no other.
    PERFORM FROM activation.source s WHERE s.table_name = _generate_capture.table_name ORDER BY s.source_id FOR NO KEY UPDATE;
    PERFORM activation._sync_source(table_name);
    IF NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = _generate_capture.table_name AND c.relnamespace <> 'activation'::regnamespace) THEN
        -- What becomes an event is told by track() itself.
        RETURN;
    END IF;
    FOR wanted IN
        SELECT * FROM (VALUES ('insert', 'insert', 'new'), ('update', 'update', 'new'), ('delete', 'delete', 'old'), ('moved', 'update', 'old'),
                              ('changed', 'update', NULL)) AS e(event, command, side)
    LOOP
        body := activation._capture_body(table_name, wanted.event, watched_until);
        SELECT p.proname INTO function_name
          FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
         WHERE t.tgrelid = table_name AND t.tgname = 'activation_' || wanted.event
           -- A trigger of the table's owner may have this name, too.
           AND p.pronamespace = 'activation_compiled'::regnamespace;
        CONTINUE WHEN function_name IS NULL AND (body IS NULL OR only_known);
        IF function_name IS NULL THEN
            SELECT activation._compiled_name(c.relname, format(': %s (%s)', wanted.event, min(s.source_id))) INTO function_name
              FROM pg_class c JOIN activation.source s ON s.table_name = c.oid
             WHERE c.oid = _generate_capture.table_name GROUP BY c.relname;
        END IF;
        EXECUTE format('CREATE OR REPLACE FUNCTION activation_compiled.%I() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS %L',
                       function_name, coalesce(body, E'BEGIN\n    RETURN NULL;\nEND'));
        EXECUTE format('REVOKE ALL ON FUNCTION activation_compiled.%I() FROM PUBLIC', function_name);
        -- What runs in the app's session has the right to leave word for the engine, and no superuser's.
        EXECUTE format('ALTER FUNCTION activation_compiled.%I() OWNER TO activation_engine', function_name);
        FOR relation IN
            SELECT r.oid::regclass
              FROM (SELECT _generate_capture.table_name::oid AS oid
                     UNION SELECT relid::oid FROM pg_partition_tree(_generate_capture.table_name)) r
              JOIN pg_class c ON c.oid = r.oid
             WHERE c.relkind IN ('r', 'p')
               AND NOT EXISTS (SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
                                WHERE t.tgrelid = r.oid AND t.tgname = 'activation_' || wanted.event
                                  AND p.pronamespace = 'activation_compiled'::regnamespace AND p.proname = here.function_name)
             ORDER BY r.oid
        LOOP
            CONTINUE WHEN body IS NULL;
            BEGIN
                PERFORM set_config('lock_timeout', '3s', true);
                EXECUTE CASE WHEN wanted.side IS NULL THEN
                    format('CREATE TRIGGER %I AFTER %I ON %s REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION activation_compiled.%I()',
                           'activation_' || wanted.event, wanted.command, relation, function_name)
                ELSE
                    format('CREATE TRIGGER %I AFTER %I ON %s REFERENCING %I TABLE AS %I FOR EACH STATEMENT EXECUTE FUNCTION activation_compiled.%I()',
                           'activation_' || wanted.event, wanted.command, relation, wanted.side, wanted.side || '_rows', function_name)
                END;
            EXCEPTION WHEN lock_not_available THEN
                RAISE EXCEPTION 'table % is busy: its trigger could not be made within 3 seconds', activation._table_name(relation)
                    USING ERRCODE = 'lock_not_available',
                          DETAIL = coalesce((SELECT format('Held by process %s (%s), in a transaction since %s.', l.pid,
                                                           coalesce(nullif(a.application_name, ''), a.usename, 'unknown'), a.xact_start)
                                               FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
                                              WHERE l.relation = here.relation AND l.granted AND l.pid <> pg_backend_pid()
                                              ORDER BY a.xact_start NULLS LAST LIMIT 1), 'The holder has gone meanwhile.'),
                          HINT = 'Nothing was changed. Try again when that transaction has ended; it is needed once for each table.';
            END;
            PERFORM set_config('lock_timeout', old_timeout, true);
        END LOOP;
    END LOOP;
END
$$;

-- The wake part stands in the capture functions only while somebody reads wakes, and writes no longer than half an hour
-- after a worker last said so: where workers vanish without stop(), the table of wakes stops growing. Workers say so at
-- the start of each run; the functions are made anew every quarter of an hour. Returns whether rows may have come that left
-- no wake, so that everybody is to be swept.
CREATE FUNCTION activation._set_watching(watching boolean) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '1s'
AS $$
DECLARE
    now timestamptz := clock_timestamp();
    was activation.schedule;
    captured regclass;
BEGIN
    PERFORM activation._sync_owners();
    SELECT * INTO was FROM activation.schedule;
    IF watching IS NOT DISTINCT FROM coalesce(was.watching, false) AND (NOT watching OR was.watched_until > now + interval '15 minutes') THEN
        RETURN false;
    END IF;
    PERFORM activation._lock('capture');
    SELECT * INTO was FROM activation.schedule;
    INSERT INTO activation.schedule AS s (watching, watched_until, detectors, deliverers)
    VALUES (_set_watching.watching, CASE WHEN _set_watching.watching THEN now + interval '30 minutes' END, 0, 0)
    ON CONFLICT ON CONSTRAINT schedule_pkey DO UPDATE SET watching = excluded.watching, watched_until = excluded.watched_until;
    FOR captured IN
        SELECT DISTINCT s.table_name::oid::regclass FROM activation.source s JOIN pg_class c ON c.oid = s.table_name
    LOOP
        BEGIN
            PERFORM activation._generate_capture(captured);
        EXCEPTION WHEN lock_not_available THEN
            -- Somebody is in the middle of changing this table. Its wakes are as they were; sweeps make up for them.
            RAISE WARNING 'activation could not renew what captures %: it is being changed', activation._table_name(captured);
        END;
    END LOOP;
    RETURN watching AND NOT coalesce(was.watching AND was.watched_until > now, false);
END
$$;

-- A renamed or dropped key column would make every INSERT of the app fail. This follows the rename, or empties the capture
-- of the table and stops the loops that need it.
CREATE FUNCTION activation._follow(changed regclass) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM activation._sync_source(changed);
    UPDATE activation."loop" l
       SET state = 'failing',
           reason = format('column %I of %s, the key of this loop''s users, was dropped: define the loop again', s.key_column, s.table_name)
      FROM activation.loop_version v JOIN activation.source s USING (source_id)
     WHERE l.loop_id = v.loop_id AND l.version = v.version AND l.state IN ('active', 'paused') AND s.table_name = changed
       AND NOT EXISTS (SELECT FROM pg_attribute a
                        WHERE a.attrelid = s.table_name AND a.attnum = s.key_attnum AND NOT a.attisdropped);
    UPDATE activation."loop" l
       SET state = 'failing', reason = format('a column of %s that the filter reads was dropped: define the loop again', s.table_name)
      FROM activation.loop_version v JOIN activation.source s USING (source_id)
     WHERE l.loop_id = v.loop_id AND l.version = v.version AND l.state IN ('active', 'paused') AND s.table_name = changed
       AND EXISTS (SELECT FROM unnest(v.filter_attnums || v.old_attnums) AS f(attnum)
                     JOIN pg_attribute a ON a.attrelid = s.table_name AND a.attnum = f.attnum WHERE a.attisdropped);
    PERFORM activation._generate_capture(changed, only_known => true);
END
$$;

-- These run inside the app's migration and must never raise.
CREATE FUNCTION activation._follow_table() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    changed regclass;
BEGIN
    FOR changed IN
        SELECT DISTINCT s.table_name::oid::regclass
          FROM pg_event_trigger_ddl_commands() d
          JOIN activation.source s ON s.table_name = d.objid OR s.table_name = (SELECT pg_partition_root(d.objid))
         WHERE d.classid = 'pg_class'::regclass
    LOOP
        PERFORM activation._follow(changed);
    END LOOP;
EXCEPTION WHEN others THEN
    RAISE WARNING 'activation could not follow this change of a table: %', SQLERRM
        USING HINT = 'SELECT * FROM activation.status shows the loops that need attention.';
END
$$;
CREATE EVENT TRIGGER activation_follow_table ON ddl_command_end
    -- ALTER VIEW renames columns of tables, too.
    WHEN TAG IN ('ALTER TABLE', 'CREATE TABLE', 'ALTER VIEW', 'ALTER MATERIALIZED VIEW')
    EXECUTE FUNCTION activation._follow_table();

-- Whatever is dropped with CASCADE may take columns with it: a type, a domain, a collation, an extension, a schema.
CREATE FUNCTION activation._follow_drop() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    changed regclass;
BEGIN
    IF tg_tag = 'ALTER TABLE' THEN
        RETURN;  -- The other one follows it.
    END IF;
    FOR changed IN
        SELECT DISTINCT s.table_name::oid::regclass
          FROM pg_event_trigger_dropped_objects() d JOIN activation.source s ON s.table_name = d.objid
         WHERE d.classid = 'pg_class'::regclass AND d.objsubid > 0
    LOOP
        PERFORM activation._follow(changed);
    END LOOP;
EXCEPTION WHEN others THEN
    RAISE WARNING 'activation could not follow what was dropped with a table''s column: %', SQLERRM
        USING HINT = 'SELECT * FROM activation.status shows the loops that need attention.';
END
$$;
CREATE EVENT TRIGGER activation_follow_drop ON sql_drop EXECUTE FUNCTION activation._follow_drop();
