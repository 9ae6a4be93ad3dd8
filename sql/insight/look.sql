-- What a query would run, looked up in the catalogs: an author's text may be no snare for whoever asks about it.

-- What would run with the caller's rights although it is of a role that has not got them, as soon as these tables are read or
-- this text is parsed: a row for each, with the table that leads to it. The tables are held until the end of the transaction.
--
-- look: {"tables": oids, "query": a text, "words": the names in it, "columns": more names of columns that are read, "names":
-- the path, "what": whose it is, to be raised at the first row}. Reading a table runs the row security policies on it;
-- planning alone runs constant parts of its indexes, statistics, checks and partition keys, and of those of its children. A
-- text may besides mean anything of such a name: views, functions, operators, casts, and types, whose literals run code
-- while they are parsed. So nothing is parsed here: what is in the catalogs under a name of the text counts.
CREATE FUNCTION activation._look_up(look jsonb) RETURNS TABLE (table_oid oid, object text, owner name)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    tables oid[] := ARRAY(SELECT x::oid FROM jsonb_array_elements_text(look -> 'tables') AS x);
    query text := look ->> 'query';
    words name[] := ARRAY(SELECT x::name FROM jsonb_array_elements_text(look -> 'words') AS x);
    columns name[] := ARRAY(SELECT x::name FROM jsonb_array_elements_text(look -> 'columns') AS x) || words;
    what text := look ->> 'what';
    path name[];
    schemas oid[] := '{}'::oid[];
    starts oid[];
    reached oid[];
    viewed boolean[];
    held oid[] := '{}'::oid[];
    missing oid[];
    tries integer := 0;
    held_table oid;
    shown text;
BEGIN
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
        RAISE EXCEPTION 'the app''s tables are not read in a transaction that is %', current_setting('transaction_isolation')
            USING ERRCODE = '55000', DETAIL = 'What a table or a name leads to would be looked at as it was, and run as it is.',
                  HINT = 'Ask in a transaction of its own: SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED;';
    END IF;
    LOOP
        IF query IS NOT NULL THEN
            -- @plpgsql_check_options: security_warnings = off
            PERFORM set_config('search_path', look ->> 'names', true);
            path := pg_catalog.current_schemas(true);
            PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
            schemas := ARRAY(SELECT n.oid FROM pg_namespace n WHERE n.nspname = ANY (path || words));
        END IF;
        -- From the tables to their children, partitions to the whole, and views to what they read. What initdb made is ours.
        WITH RECURSIVE relation(start, oid, viewed) AS (
            SELECT c.oid, c.oid, false FROM pg_class c
             WHERE c.oid = ANY (tables) OR c.oid >= 16384 AND c.relname = ANY (words) AND c.relnamespace = ANY (schemas)
            UNION
            SELECT r.start, x.oid, r.viewed OR x.viewed
              FROM relation r CROSS JOIN LATERAL (
                   SELECT i.inhrelid, false FROM pg_inherits i WHERE i.inhparent = r.oid
                   UNION ALL SELECT i.inhparent, false FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhrelid = r.oid AND c.relispartition
                   UNION ALL SELECT d.refobjid, true FROM pg_rewrite w JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
                    WHERE w.ev_class = r.oid AND w.ev_type = '1' AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> r.oid) AS x(oid, viewed)
             WHERE x.oid >= 16384
        )
        SELECT array_agg(r.start), array_agg(r.oid), array_agg(r.viewed) INTO starts, reached, viewed FROM relation r;
        missing := ARRAY(SELECT DISTINCT c.oid FROM pg_class c
                          WHERE c.oid = ANY (reached) AND c.oid <> ALL (held) AND c.relkind IN ('r', 'p') AND NOT pg_has_role(c.relowner, current_user, 'USAGE') ORDER BY 1);
        EXIT WHEN missing = '{}';
        tries := tries + 1;
        IF tries > 10 THEN
            RAISE EXCEPTION 'tables that are asked about go on changing' USING ERRCODE = '55006', HINT = 'Ask again.';
        END IF;
        FOREACH held_table IN ARRAY missing LOOP
            -- Who may read a table may keep it from being altered or dropped; who may write to it, also from getting an index,
            -- statistics or a child.
            shown := (SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                       WHERE c.oid = held_table AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'));
            IF shown IS NOT NULL THEN
                EXECUTE format('LOCK TABLE ONLY %s IN %s MODE', shown, CASE
                    WHEN NOT pg_is_in_recovery() AND has_table_privilege(held_table, 'UPDATE, DELETE, TRUNCATE') THEN 'SHARE UPDATE EXCLUSIVE' ELSE 'ACCESS SHARE' END);
                CONTINUE WHEN to_regclass(shown) IS DISTINCT FROM held_table::regclass;
            END IF;
            held := held || held_table;
        END LOOP;
    END LOOP;

    FOR table_oid, object, owner IN
        WITH RECURSIVE relation AS (
            SELECT x.start, x.oid, x.viewed, c.relkind, c.relowner, c.reltype, c.relrowsecurity AND (x.viewed OR row_security_active(x.oid)) AS policed
              FROM unnest(starts, reached, viewed) AS x(start, oid, viewed) JOIN pg_class c ON c.oid = x.oid
        ), holder AS (
            -- What has expressions of its own.
            SELECT r.start, 'pg_rewrite'::regclass AS classid, w.oid AS objid FROM relation r JOIN pg_rewrite w ON w.ev_class = r.oid AND w.ev_type = '1'
            UNION ALL SELECT r.start, 'pg_policy'::regclass, p.oid FROM relation r JOIN pg_policy p ON p.polrelid = r.oid WHERE r.policed
            UNION ALL SELECT r.start, 'pg_class'::regclass, i.indexrelid FROM relation r JOIN pg_index i ON i.indrelid = r.oid
            UNION ALL SELECT r.start, 'pg_statistic_ext'::regclass, e.oid FROM relation r JOIN pg_statistic_ext e ON e.stxrelid = r.oid
            UNION ALL SELECT r.start, 'pg_constraint'::regclass, k.oid FROM relation r JOIN pg_constraint k ON k.conrelid = r.oid WHERE k.contype = 'c'
            UNION ALL SELECT r.start, 'pg_class'::regclass, r.oid FROM relation r WHERE r.relkind = 'p'
        ), bound AS (
            SELECT h.start, h.classid AS by, d.refclassid AS classid, d.refobjid AS objid, d.refobjsubid
              FROM holder h JOIN pg_depend d ON d.classid = h.classid AND d.objid = h.objid
        ), type(start, oid, read) AS (
            -- The types of what is read, with what they are made of; and of what may be read as part of a row.
            SELECT x.start, x.oid, x.read
              FROM (SELECT r.start, a.atttypid, a.attname = ANY (columns) FROM relation r JOIN pg_attribute a ON a.attrelid = r.oid WHERE a.attnum > 0 AND NOT a.attisdropped
                    UNION ALL SELECT b.start, a.atttypid, true FROM bound b JOIN pg_attribute a ON a.attrelid = b.objid AND a.attnum = b.refobjsubid
                                      WHERE b.by = 'pg_rewrite'::regclass AND b.classid = 'pg_class'::regclass
                    UNION ALL SELECT b.start, b.objid, true FROM bound b WHERE b.by IN ('pg_rewrite'::regclass, 'pg_policy'::regclass) AND b.classid = 'pg_type'::regclass
                    UNION ALL SELECT r.start, r.reltype, false FROM relation r
                    UNION ALL SELECT 0, t.oid, true FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
                               WHERE t.typname = ANY (words) AND t.typnamespace = ANY (schemas) AND coalesce(c.relkind, 'c') = 'c'
                    UNION ALL SELECT 0, p.prorettype, false FROM pg_proc p WHERE p.proname = ANY (words) AND p.pronamespace = ANY (schemas)) AS x(start, oid, read)
             WHERE query IS NOT NULL AND x.oid >= 16384
            UNION
            SELECT t.start, x.oid, t.read AND x.read
              FROM type t JOIN pg_type p ON p.oid = t.oid CROSS JOIN LATERAL (
                   VALUES (p.typelem, true), (p.typbasetype, true), (p.typarray, false)
                   UNION ALL SELECT g.rngsubtype, true FROM pg_range g WHERE p.oid IN (g.rngtypid, g.rngmultitypid)
                   UNION ALL SELECT a.atttypid, true FROM pg_attribute a WHERE a.attrelid = p.typrelid AND a.attnum > 0 AND NOT a.attisdropped) AS x(oid, read)
             WHERE x.oid >= 16384
        ), found AS (
            SELECT r.start, 'pg_class'::regclass AS classid, r.oid AS objid, r.relowner AS owner FROM relation r WHERE r.relkind IN ('v', 'm', 'f')
            UNION ALL SELECT r.start, 'pg_foreign_server'::regclass, f.oid, f.srvowner
              FROM relation r JOIN pg_foreign_table t ON t.ftrelid = r.oid JOIN pg_foreign_server f ON f.oid = t.ftserver
            UNION ALL SELECT r.start, 'pg_policy'::regclass, p.oid, r.relowner FROM relation r JOIN pg_policy p ON p.polrelid = r.oid WHERE r.policed
            UNION ALL SELECT b.start, b.classid, b.objid, p.proowner FROM bound b JOIN pg_proc p ON b.classid = 'pg_proc'::regclass AND p.oid = b.objid
            UNION ALL SELECT b.start, b.classid, b.objid, o.oprowner FROM bound b JOIN pg_operator o ON b.classid = 'pg_operator'::regclass AND o.oid = b.objid
            UNION ALL SELECT b.start, b.classid, b.objid, c.collowner FROM bound b JOIN pg_collation c ON b.classid = 'pg_collation'::regclass AND c.oid = b.objid
                       WHERE b.by IN ('pg_rewrite'::regclass, 'pg_policy'::regclass)
            UNION ALL SELECT r.start, 'pg_collation'::regclass, c.oid, c.collowner FROM relation r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attname = ANY (columns)
                        JOIN pg_collation c ON c.oid = a.attcollation WHERE query IS NOT NULL
            UNION ALL SELECT t.start, 'pg_type'::regclass, t.oid, p.typowner FROM type t JOIN pg_type p ON p.oid = t.oid WHERE t.read
            UNION ALL SELECT 0, 'pg_proc'::regclass, p.oid, p.proowner FROM pg_proc p WHERE p.oid >= 16384 AND p.proname = ANY (words) AND p.pronamespace = ANY (schemas)
            UNION ALL SELECT 0, 'pg_collation'::regclass, c.oid, c.collowner FROM pg_collation c WHERE c.oid >= 16384 AND c.collname = ANY (words) AND c.collnamespace = ANY (schemas)
            -- Those that are written, and those that stand behind IN, LIKE, BETWEEN, IS DISTINCT FROM and the like.
            UNION ALL SELECT 0, 'pg_operator'::regclass, o.oid, o.oprowner FROM pg_operator o
                       WHERE o.oid >= 16384 AND o.oprnamespace = ANY (schemas)
                         AND (strpos(query, o.oprname) > 0 OR o.oprname IN ('=', '<>', '<', '<=', '>', '>=', '~~', '!~~', '~~*', '!~~*', '~', '!~'))
            -- A cast has no owner: its function has.
            UNION ALL SELECT 0, 'pg_cast'::regclass, k.oid, p.proowner FROM pg_cast k JOIN pg_proc p ON p.oid = k.castfunc
                       WHERE k.oid >= 16384 AND (k.castsource < 16384 OR k.castsource IN (SELECT t.oid FROM type t))
                         AND (k.casttarget < 16384 OR k.casttarget IN (SELECT t.oid FROM type t))
        )
        -- A view or a policy rather than what it calls.
        SELECT f.start, pg_describe_object(f.classid, f.objid, 0), pg_get_userbyid(f.owner)
          FROM found f WHERE NOT pg_has_role(f.owner, current_user, 'USAGE')
         GROUP BY f.start, f.classid, f.objid, f.owner
         ORDER BY f.classid NOT IN ('pg_class'::regclass, 'pg_policy'::regclass), f.start, 2
    LOOP
        IF what IS NOT NULL THEN
            RAISE EXCEPTION '%: % of % would run with the rights of %', what, object, quote_ident(owner), quote_ident(current_user)
                USING ERRCODE = '42501', DETAIL = 'What is asked about reads it, or names something of that name.',
                      HINT = format('Ask as that role: SET ROLE %I; …; RESET ROLE; or leave it out.', owner);
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;

-- What _look_up() has to see before these texts are parsed. Names in Unicode escapes would hide from it.
CREATE FUNCTION activation._look_for(what text, texts text[], names text, tables regclass[], columns name[]) RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    said jsonb := (SELECT coalesce(jsonb_agg(activation._query_names(t)), '[]') FROM unnest(texts) AS t WHERE t IS NOT NULL);
BEGIN
    IF jsonb_path_exists(said, '$[*] ? (@.escaped == true)') THEN
        RAISE EXCEPTION '%: a name is written in Unicode escapes', what USING ERRCODE = '0A000', HINT = 'Write it out: "größe" instead of U&"gr\00F6\00DFe".';
    END IF;
    RETURN jsonb_build_object('what', what, 'query', array_to_string(texts, E'\n'), 'names', names, 'words', jsonb_path_query_array(said, '$[*].names[*]'),
                              'tables', to_jsonb(array_remove(tables, NULL)::oid[]), 'columns', to_jsonb(array_remove(columns, NULL)));
END
$$;

-- The column that tells when a row was inserted: by its default, else by its name. NULL where there is none.
CREATE FUNCTION activation._inserted_at_column(table_name regclass) RETURNS name
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT a.attname FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
     WHERE a.attrelid = table_name AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypid IN ('timestamptz'::regtype, 'timestamp'::regtype)
       AND lower(a.attname) !~ '(updat|modif|chang|delet|expir|last)'
       AND (pg_get_expr(d.adbin, d.adrelid) ~* '^\(?\(?(now\(\)|CURRENT_TIMESTAMP|LOCALTIMESTAMP|clock_timestamp\(\)|statement_timestamp\(\)|transaction_timestamp\(\))'
            OR lower(replace(a.attname, '_', '')) IN ('createdat', 'insertedat', 'created', 'inserted', 'createdon', 'addedat', 'occurredat', 'happenedat', 'datejoined',
                                                      'joinedat', 'registeredat', 'signedupat', 'timestamp', 'at', 'ts', 'time'))
     ORDER BY lower(replace(a.attname, '_', '')) IN ('createdat', 'insertedat', 'created', 'inserted') DESC, a.attnum LIMIT 1
$$;

-- The table of users that is meant, and its key, where it may not be registered yet: {"users", "key"}.
CREATE FUNCTION activation._suggest_users(users regclass, names text) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    keyed integer;
    shown text;
    key name;
BEGIN
    IF users IS NULL THEN
        SELECT count(*), min(u.users::oid)::regclass INTO keyed, users FROM activation.users_table u;
        IF keyed > 1 THEN
            RAISE EXCEPTION 'there are several tables of users'
                USING ERRCODE = '22023', DETAIL = format('%s.', (SELECT string_agg(activation._table_name(u.users), ', ') FROM activation.users_table u)),
                      HINT = 'Say which: suggest(users => …).';
        END IF;
        IF users IS NULL THEN
            PERFORM set_config('search_path', names, true);
            users := pg_catalog.to_regclass('users');
            PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        END IF;
        IF users IS NULL THEN
            RAISE EXCEPTION 'there is no table of users to go by' USING ERRCODE = '42P01', HINT = 'Name it: suggest(users => ''members'').';
        END IF;
    END IF;
    shown := activation._table_name(users);
    IF shown IS NULL OR (SELECT c.relkind NOT IN ('r', 'p') FROM pg_class c WHERE c.oid = users) THEN
        RAISE EXCEPTION '% is not a table', coalesce(shown, users::text) USING ERRCODE = '42809', HINT = 'Name the table whose rows are users.';
    END IF;
    key := coalesce((SELECT u.key_column FROM activation.users_table u WHERE u.users = _suggest_users.users), (SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
                                             WHERE i.indrelid = users AND i.indisprimary AND i.indnkeyatts = 1));
    IF key IS NULL THEN
        RAISE EXCEPTION 'table % has no primary key of one column', shown
            USING ERRCODE = '42P16', HINT = format('Say what identifies a user: SELECT activation.set_users(%L, key => ''id'');', shown);
    END IF;
    RETURN jsonb_build_object('users', shown, 'key', key);
END
$$;
