-- What a query would run, looked up in the catalogs: simulate() and suggest() read an author's text
-- and the app's tables with the rights of whoever asks, so both must be safe for that person.

-- Finds code that would run with the caller's rights although a role without those rights owns it,
-- as soon as these tables are read or this text is parsed. Returns a row for each piece of code,
-- with the table that leads to it. Holds the tables until the end of the transaction.
--
-- look: {"tables": oids, "query": a text, "words": the names in it, "columns": more names of
-- columns that are read, "names": the search path, "what": whose text it is; where that is given,
-- the first row is raised as an error}.
--
-- Reading a table runs the row security policies on it. Planning alone runs constant parts of its
-- indexes, statistics, checks and partition keys, and of those of its children. A text may mean
-- anything that bears a name in it: views, functions, operators, casts, and types, whose literals
-- run code while they are parsed. So nothing is parsed here: whatever the catalogs hold under a
-- name of the text counts.
--
-- Long because every kind of object that can run code is one line of the same UNION, and a reviewer
-- has to see that none is left out; and because a function of its own for each part would need a
-- grant of its own for whoever may call suggest() or simulate().
CREATE FUNCTION activation._look_up(look jsonb)
RETURNS TABLE (table_oid oid, object text, owner name)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    tables oid[] := ARRAY(SELECT x::oid FROM jsonb_array_elements_text(look -> 'tables') AS x);
    query text := look ->> 'query';
    words name[] := ARRAY(SELECT x::name FROM jsonb_array_elements_text(look -> 'words') AS x);
    columns name[] := ARRAY(SELECT x::name FROM jsonb_array_elements_text(look -> 'columns') AS x)
                      || words;
    context text := look ->> 'what';
    path name[];
    schemas oid[] := '{}'::oid[];
    -- Relations that are reached, in three arrays: from which table, which one, whether by a view.
    starts oid[];
    reached oid[];
    viewed boolean[];
    held oid[] := '{}'::oid[];
    not_held oid[];
    tries integer := 0;
    held_table oid;
    quoted_name text;
BEGIN
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
        RAISE EXCEPTION 'the app''s tables are not read in a transaction that is %',
                        current_setting('transaction_isolation')
            USING ERRCODE = '55000',
                  DETAIL = 'What a table or a name leads to would be looked at as it was, '
                           'and run as it is.',
                  HINT = 'Ask in a transaction of its own: SET SESSION CHARACTERISTICS AS '
                         'TRANSACTION ISOLATION LEVEL READ COMMITTED;';
    END IF;
    LOOP
        IF query IS NOT NULL THEN
            -- @plpgsql_check_options: security_warnings = off
            PERFORM set_config('search_path', look ->> 'names', true);
            path := pg_catalog.current_schemas(true);
            PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
            schemas := ARRAY(SELECT n.oid FROM pg_namespace n
                              WHERE n.nspname = ANY (path || words));
        END IF;
        -- Goes from the tables to their children, from partitions to the whole, and from views to
        -- what they read. Objects that initdb made (their oid is under 16384) are trusted.
        WITH RECURSIVE relation(start, oid, viewed) AS (
            SELECT c.oid, c.oid, false FROM pg_class c
             WHERE c.oid = ANY (tables)
                OR c.oid >= 16384 AND c.relname = ANY (words) AND c.relnamespace = ANY (schemas)
            UNION
            SELECT r.start, x.oid, r.viewed OR x.viewed
              FROM relation r CROSS JOIN LATERAL (
                   SELECT i.inhrelid, false FROM pg_inherits i WHERE i.inhparent = r.oid
                   UNION ALL
                   SELECT i.inhparent, false
                     FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                    WHERE i.inhrelid = r.oid AND c.relispartition
                   UNION ALL
                   SELECT d.refobjid, true
                     FROM pg_rewrite w
                     JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
                    WHERE w.ev_class = r.oid AND w.ev_type = '1'
                      AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> r.oid
                   ) AS x(oid, viewed)
             WHERE x.oid >= 16384
        )
        SELECT array_agg(r.start), array_agg(r.oid), array_agg(r.viewed)
          INTO starts, reached, viewed
          FROM relation r;
        not_held := ARRAY(SELECT DISTINCT c.oid FROM pg_class c
                           WHERE c.oid = ANY (reached) AND c.oid <> ALL (held)
                             AND c.relkind IN ('r', 'p')
                             AND NOT pg_has_role(c.relowner, current_user, 'USAGE')
                           ORDER BY 1);
        EXIT WHEN not_held = '{}';
        tries := tries + 1;
        IF tries > 10 THEN
            RAISE EXCEPTION 'tables that are asked about go on changing'
                USING ERRCODE = '55006', HINT = 'Ask again.';
        END IF;
        FOREACH held_table IN ARRAY not_held LOOP
            -- Who may read a table may keep it from being altered or dropped. Who may write to it
            -- may also keep it from getting an index, statistics or a child.
            quoted_name := (SELECT format('%I.%I', n.nspname, c.relname)
                              FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                             WHERE c.oid = held_table
                               AND has_schema_privilege(n.oid, 'USAGE')
                               AND has_table_privilege(c.oid, 'SELECT'));
            IF quoted_name IS NOT NULL THEN
                EXECUTE format('LOCK TABLE ONLY %s IN %s MODE', quoted_name, CASE
                    WHEN NOT pg_is_in_recovery()
                     AND has_table_privilege(held_table, 'UPDATE, DELETE, TRUNCATE')
                    THEN 'SHARE UPDATE EXCLUSIVE' ELSE 'ACCESS SHARE' END);
                CONTINUE WHEN to_regclass(quoted_name) IS DISTINCT FROM held_table::regclass;
            END IF;
            held := held || held_table;
        END LOOP;
    END LOOP;

    FOR table_oid, object, owner IN
        WITH RECURSIVE relation AS (
            SELECT x.start, x.oid, x.viewed, c.relkind, c.relowner, c.reltype,
                   c.relrowsecurity AND (x.viewed OR row_security_active(x.oid)) AS policed
              FROM unnest(starts, reached, viewed) AS x(start, oid, viewed)
              JOIN pg_class c ON c.oid = x.oid
        ), holder AS (
            -- What has expressions of its own.
            SELECT r.start, 'pg_rewrite'::regclass AS classid, w.oid AS objid
              FROM relation r JOIN pg_rewrite w ON w.ev_class = r.oid AND w.ev_type = '1'
            UNION ALL
            SELECT r.start, 'pg_policy'::regclass, p.oid
              FROM relation r JOIN pg_policy p ON p.polrelid = r.oid
             WHERE r.policed
            UNION ALL
            SELECT r.start, 'pg_class'::regclass, i.indexrelid
              FROM relation r JOIN pg_index i ON i.indrelid = r.oid
            UNION ALL
            SELECT r.start, 'pg_statistic_ext'::regclass, e.oid
              FROM relation r JOIN pg_statistic_ext e ON e.stxrelid = r.oid
            UNION ALL
            SELECT r.start, 'pg_constraint'::regclass, k.oid
              FROM relation r JOIN pg_constraint k ON k.conrelid = r.oid
             WHERE k.contype = 'c'
            UNION ALL
            SELECT r.start, 'pg_class'::regclass, r.oid FROM relation r WHERE r.relkind = 'p'
        ), bound AS (
            -- What those expressions depend on.
            SELECT h.start, h.classid AS by, d.refclassid AS classid, d.refobjid AS objid,
                   d.refobjsubid
              FROM holder h JOIN pg_depend d ON d.classid = h.classid AND d.objid = h.objid
        ), type(start, oid, read) AS (
            -- The types of what is read, with what they are made of; and of what may be read as
            -- part of a row.
            SELECT x.start, x.oid, x.read
              FROM (SELECT r.start, a.atttypid, a.attname = ANY (columns)
                      FROM relation r JOIN pg_attribute a ON a.attrelid = r.oid
                     WHERE a.attnum > 0 AND NOT a.attisdropped
                    UNION ALL
                    SELECT b.start, a.atttypid, true
                      FROM bound b
                      JOIN pg_attribute a ON a.attrelid = b.objid AND a.attnum = b.refobjsubid
                     WHERE b.by = 'pg_rewrite'::regclass AND b.classid = 'pg_class'::regclass
                    UNION ALL
                    SELECT b.start, b.objid, true FROM bound b
                     WHERE b.by IN ('pg_rewrite'::regclass, 'pg_policy'::regclass)
                       AND b.classid = 'pg_type'::regclass
                    UNION ALL
                    SELECT r.start, r.reltype, false FROM relation r
                    UNION ALL
                    SELECT 0, t.oid, true
                      FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
                     WHERE t.typname = ANY (words) AND t.typnamespace = ANY (schemas)
                       AND coalesce(c.relkind, 'c') = 'c'
                    UNION ALL
                    SELECT 0, p.prorettype, false FROM pg_proc p
                     WHERE p.proname = ANY (words) AND p.pronamespace = ANY (schemas)
                   ) AS x(start, oid, read)
             WHERE query IS NOT NULL AND x.oid >= 16384
            UNION
            SELECT t.start, x.oid, t.read AND x.read
              FROM type t JOIN pg_type p ON p.oid = t.oid CROSS JOIN LATERAL (
                   VALUES (p.typelem, true), (p.typbasetype, true), (p.typarray, false)
                   UNION ALL
                   SELECT g.rngsubtype, true FROM pg_range g
                    WHERE p.oid IN (g.rngtypid, g.rngmultitypid)
                   UNION ALL
                   SELECT a.atttypid, true FROM pg_attribute a
                    WHERE a.attrelid = p.typrelid AND a.attnum > 0 AND NOT a.attisdropped
                   ) AS x(oid, read)
             WHERE x.oid >= 16384
        ), found AS (
            SELECT r.start, 'pg_class'::regclass AS classid, r.oid AS objid, r.relowner AS owner
              FROM relation r
             WHERE r.relkind IN ('v', 'm', 'f')
            UNION ALL
            SELECT r.start, 'pg_foreign_server'::regclass, f.oid, f.srvowner
              FROM relation r
              JOIN pg_foreign_table t ON t.ftrelid = r.oid
              JOIN pg_foreign_server f ON f.oid = t.ftserver
            UNION ALL
            SELECT r.start, 'pg_policy'::regclass, p.oid, r.relowner
              FROM relation r JOIN pg_policy p ON p.polrelid = r.oid
             WHERE r.policed
            UNION ALL
            SELECT b.start, b.classid, b.objid, p.proowner
              FROM bound b
              JOIN pg_proc p ON b.classid = 'pg_proc'::regclass AND p.oid = b.objid
            UNION ALL
            SELECT b.start, b.classid, b.objid, o.oprowner
              FROM bound b
              JOIN pg_operator o ON b.classid = 'pg_operator'::regclass AND o.oid = b.objid
            UNION ALL
            SELECT b.start, b.classid, b.objid, c.collowner
              FROM bound b
              JOIN pg_collation c ON b.classid = 'pg_collation'::regclass AND c.oid = b.objid
             WHERE b.by IN ('pg_rewrite'::regclass, 'pg_policy'::regclass)
            UNION ALL
            SELECT r.start, 'pg_collation'::regclass, c.oid, c.collowner
              FROM relation r
              JOIN pg_attribute a ON a.attrelid = r.oid AND a.attname = ANY (columns)
              JOIN pg_collation c ON c.oid = a.attcollation
             WHERE query IS NOT NULL
            UNION ALL
            SELECT t.start, 'pg_type'::regclass, t.oid, p.typowner
              FROM type t JOIN pg_type p ON p.oid = t.oid
             WHERE t.read
            UNION ALL
            SELECT 0, 'pg_proc'::regclass, p.oid, p.proowner
              FROM pg_proc p
             WHERE p.oid >= 16384 AND p.proname = ANY (words) AND p.pronamespace = ANY (schemas)
            UNION ALL
            SELECT 0, 'pg_collation'::regclass, c.oid, c.collowner
              FROM pg_collation c
             WHERE c.oid >= 16384 AND c.collname = ANY (words) AND c.collnamespace = ANY (schemas)
            UNION ALL
            -- Operators that the text writes, and those behind IN, LIKE, BETWEEN, IS DISTINCT FROM
            -- and the like.
            SELECT 0, 'pg_operator'::regclass, o.oid, o.oprowner
              FROM pg_operator o
             WHERE o.oid >= 16384 AND o.oprnamespace = ANY (schemas)
               AND (strpos(query, o.oprname) > 0
                    OR o.oprname IN ('=', '<>', '<', '<=', '>', '>=',
                                     '~~', '!~~', '~~*', '!~~*', '~', '!~'))
            UNION ALL
            -- A cast has no owner: its function has.
            SELECT 0, 'pg_cast'::regclass, k.oid, p.proowner
              FROM pg_cast k JOIN pg_proc p ON p.oid = k.castfunc
             WHERE k.oid >= 16384
               AND (k.castsource < 16384 OR k.castsource IN (SELECT t.oid FROM type t))
               AND (k.casttarget < 16384 OR k.casttarget IN (SELECT t.oid FROM type t))
        )
        -- A view or a policy comes before what it calls, since it is what people know by name.
        SELECT f.start, pg_describe_object(f.classid, f.objid, 0), pg_get_userbyid(f.owner)
          FROM found f
         WHERE NOT pg_has_role(f.owner, current_user, 'USAGE')
         GROUP BY f.start, f.classid, f.objid, f.owner
         ORDER BY f.classid NOT IN ('pg_class'::regclass, 'pg_policy'::regclass), f.start, 2
    LOOP
        IF context IS NOT NULL THEN
            RAISE EXCEPTION '%: % of % would run with the rights of %',
                            context, object, quote_ident(owner), quote_ident(current_user)
                USING ERRCODE = '42501',
                      DETAIL = 'What is asked about reads it, or names something of that name.',
                      HINT = format('Ask as that role: SET ROLE %I; …; RESET ROLE; '
                                    'or leave it out.', owner);
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;

-- What _look_up() has to see before these texts are parsed. Refuses names in Unicode escapes: they
-- would hide from it.
CREATE FUNCTION activation._look_for(
    context text, texts text[], search_path text, tables regclass[], columns name[]
) RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    names_in_texts jsonb := (SELECT coalesce(jsonb_agg(activation._query_names(t)), '[]')
                               FROM unnest(texts) AS t WHERE t IS NOT NULL);
BEGIN
    IF jsonb_path_exists(names_in_texts, '$[*] ? (@.escaped == true)') THEN
        RAISE EXCEPTION '%: a name is written in Unicode escapes', context
            USING ERRCODE = '0A000',
                  HINT = 'Write it out: "größe" instead of U&"gr\00F6\00DFe".';
    END IF;
    RETURN jsonb_build_object(
        'what', context,
        'query', array_to_string(texts, E'\n'),
        'names', search_path,
        'words', jsonb_path_query_array(names_in_texts, '$[*].names[*]'),
        'tables', to_jsonb(array_remove(tables, NULL)::oid[]),
        'columns', to_jsonb(array_remove(columns, NULL)));
END
$$;
