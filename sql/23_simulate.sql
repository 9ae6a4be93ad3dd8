-- A loop rehearsed over the app's own history: who would have been enrolled, what each step would have decided and when, and
-- which mails would have gone out. Reads only. The app's tables, and an author's text, are read with the rights of whoever
-- asks, in whose hands that text may be no snare: it has to be their own, or that of a role which could do as much anyway.
-- And so has to be all that the text would run.

-- What would run with the caller's rights although it is of a role that has not got them, as soon as these tables are read or
-- this text is parsed: a row for each, with the table that leads to it. The tables are held until the end of the transaction.
--
-- look: {"tables": oids, "query": a text, "words": the names in it, "columns": more names of columns that are read, "names":
-- the path, "what": whose it is, to be raised at the first row}. Reading a table runs the row security policies on it;
-- planning alone runs constant parts of its indexes, statistics, checks and partition keys, and of those of its children. A
-- text may besides mean anything of such a name: views, functions, operators, casts, and types, whose literals run code
-- while they are parsed. So nothing is parsed here: what is in the catalogs under a name of the text counts.
CREATE FUNCTION activation._look(look jsonb) RETURNS TABLE (table_oid oid, object text, owner name)
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

-- The column that tells when a row was inserted: by its default, else by its name. NULL where there is none.
CREATE FUNCTION activation._time_column(table_name regclass) RETURNS name
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

-- What _look() has to see before these texts are parsed. Names in Unicode escapes would hide from it.
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

-- The loop that is to be rehearsed, in one document: its name, definition, names, and its trigger as what can be read:
-- {"table", "user_key", "made", "filter"}; look: what _look() has to see before any of it is parsed. known: of a loop that
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
        made := coalesce(timestamps ->> activation._table_name(table_name), activation._time_column(table_name)::text);
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
            made := coalesce(timestamps ->> activation._table_name(reading.root), activation._time_column(reading.root)::text);
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
    PERFORM activation._look(plan -> 'look');
    EXECUTE 'WITH span AS (SELECT u.place::integer, u.key, u.begins, least(u.ends, $4) AS ends FROM unnest($1, $2, $3) WITH ORDINALITY AS u(key, begins, ends, place)'
            ' WHERE u.begins <= $4), moment AS (SELECT s.place, s.key, s.begins AS at FROM span s' || moments || ')'
            ' SELECT array_agg(m.place), array_agg(m.at), array_agg(m.key) FROM moment m'
       INTO places, ats, moment_keys USING keys, begins, ends, until;
    IF places IS NOT NULL THEN
        PERFORM activation._look(plan -> 'look');
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

-- What simulate() counts: every mail that would have been promised, and what would have become of it; and for everybody
-- enrolled a row without a step, at: when, goal_at: when they reached the goal. notes come first, in a row of their own.
CREATE FUNCTION activation._simulate(loop text, definition jsonb, since timestamptz, until timestamptz, timestamps jsonb, names text)
RETURNS TABLE (user_id text, enrolled_at timestamptz, step text, branch text, status text, at timestamptz, goal_at timestamptz, held_out boolean, notes jsonb)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    stored record;
    plan jsonb;
    rehearsed jsonb;
    path text := _simulate.names;
    conditions jsonb := '{}'::jsonb;
    remarks text[] := '{}'::text[];
    c record;
    s record;
    asked jsonb;
    explained text;
    shown text;
    keys text[];
    enrolled timestamptz[];
    goals timestamptz[];
    held boolean[];
    zones text[];
    starts timestamptz[];
    ends timestamptz[];
    trues timestamptz[];
    goal_name text;
BEGIN
    IF _simulate.definition IS NULL THEN
        SELECT d.* INTO stored FROM activation.loop_definition d WHERE d.loop = _simulate.loop AND d.visible;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'loop "%" does not exist', _simulate.loop
                USING ERRCODE = '42704', DETAIL = 'Or it belongs to a role that you may not act as.',
                      HINT = 'Rehearse a definition before there is a loop: simulate(definition => …, since => …).';
        ELSIF NOT coalesce(pg_has_role(stored.owner, current_user, 'USAGE'), false) THEN
            RAISE EXCEPTION 'loop "%": % may not rehearse it', _simulate.loop, quote_ident(current_user)
                USING ERRCODE = '42501', DETAIL = format('Its SQL is of %s, and would run with your rights.', coalesce(quote_ident(stored.owner), 'a role that is gone')),
                      HINT = format('SET ROLE %I; SELECT * FROM activation.simulate(%L, …); RESET ROLE;', coalesce(stored.owner, '…'), _simulate.loop);
        END IF;
        path := stored.names;
        plan := activation._simulate_plan(_simulate.loop, stored.definition, jsonb_build_object('users', stored.users::oid, 'table', stored.table_name::oid, 'key', stored.key_column),
                                          since, until, timestamps, path);
    ELSE
        plan := activation._simulate_plan(_simulate.loop, _simulate.definition, NULL, since, until, timestamps, path);
    END IF;
    rehearsed := plan -> 'definition';
    goal_name := CASE WHEN rehearsed -> 'goal' <> 'null' THEN '' ELSE (SELECT x.step ->> 'name' FROM jsonb_array_elements(rehearsed -> 'steps') WITH ORDINALITY AS x(step, n)
                                                                        WHERE x.step -> 'condition' <> 'null' ORDER BY x.n LIMIT 1) END;
    PERFORM activation._look(plan -> 'look');
    -- Which conditions can be replayed. A step whose cannot ends the rehearsal there.
    EXECUTE format('EXPLAIN (VERBOSE, FORMAT JSON) SELECT (pg_catalog.current_setting(''activation.key'', true)::%s)', plan ->> 'type') INTO shown;
    shown := shown::jsonb #>> '{0,Plan,Output,0}';
    FOR c IN SELECT x ->> 'name' AS name, x ->> 'query' AS query, x ->> 'explained' AS explained FROM jsonb_array_elements(plan -> 'conditions') AS x LOOP
        -- Planning is running: what cannot be looked into is not planned.
        asked := activation._simulate_query(c.query, NULL, shown, plan ->> 'type', timestamps);
        IF asked ->> 'problem' IS NULL THEN
            PERFORM activation._look(plan -> 'look');
            -- @plpgsql_check_options: security_warnings = off
            PERFORM set_config('search_path', path, true);
            EXECUTE 'EXPLAIN (VERBOSE, FORMAT JSON) ' || c.explained INTO explained;
            PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
            asked := activation._simulate_query(c.query, explained::jsonb, shown, plan ->> 'type', timestamps);
            asked := asked || jsonb_build_object('look', jsonb_set(plan -> 'look', '{columns}', (plan #> '{look,columns}') || coalesce(asked -> 'columns', '[]')));
        END IF;
        conditions := conditions || jsonb_build_object(c.name, asked);
        remarks := remarks || ARRAY(SELECT jsonb_array_elements_text(coalesce(asked -> 'notes', '[]')));
        IF asked ->> 'problem' IS NOT NULL THEN
            remarks := remarks || format('%s cannot be replayed: %s', CASE c.name WHEN '' THEN 'the goal' ELSE format('step "%s" and what follows it', c.name) END, asked ->> 'problem');
        END IF;
    END LOOP;
    IF rehearsed ->> 'reentry' <> 'once' THEN
        remarks := remarks || format('reentry %s is not replayed: everybody is enrolled once, by their first', rehearsed ->> 'reentry');
    END IF;
    IF rehearsed ->> 'enroll' <> 'new' THEN
        remarks := remarks || 'existing users are not enrolled in a rehearsal, only those who came since'::text;
    END IF;

    PERFORM activation._look(plan -> 'look');
    -- @plpgsql_check_options: security_warnings = off
    PERFORM set_config('search_path', CASE WHEN (plan ->> 'own_filter')::boolean THEN 'pg_catalog, pg_temp' ELSE path END, true);
    EXECUTE format('SELECT pg_catalog.array_agg(x.key ORDER BY x.at, x.key), pg_catalog.array_agg(x.at ORDER BY x.at, x.key)'
                   ' FROM (SELECT "new".%1$s::pg_catalog.text COLLATE pg_catalog."C" AS key, pg_catalog.min("new".%2$s::pg_catalog.timestamptz) AS at FROM %3$s AS "new"'
                   ' WHERE "new".%1$s IS NOT NULL AND "new".%2$s::pg_catalog.timestamptz OPERATOR(pg_catalog.>=) $1 AND "new".%2$s::pg_catalog.timestamptz OPERATOR(pg_catalog.<) $2'
                   ' AND (%4$s) GROUP BY 1) AS x', plan ->> 'user_key', plan ->> 'made', plan ->> 'table', coalesce(plan ->> 'filter', 'true'))
       INTO keys, enrolled USING since, until;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    IF keys IS NULL THEN
        remarks := remarks || format('nobody came to %s between %s and %s', plan ->> 'table', since, until);
        keys := '{}';
        enrolled := '{}';
    END IF;
    held := CASE WHEN (rehearsed ->> 'holdout')::numeric = 0 THEN array_fill(false, ARRAY[cardinality(keys)])
                 ELSE ARRAY(SELECT activation._held_out(plan ->> 'loop', u.key, (rehearsed ->> 'holdout')::numeric) FROM unnest(keys) WITH ORDINALITY AS u(key, n) ORDER BY u.n) END;
    IF rehearsed -> 'send_window' <> 'null' THEN
        IF plan ->> 'zone' IS NOT NULL THEN
            PERFORM activation._look(plan -> 'look');
            EXECUTE format('SELECT array_agg(t.%s::text ORDER BY u.n) FROM unnest($1) WITH ORDINALITY AS u(key, n) LEFT JOIN %s AS t ON t.%s::text COLLATE "C" = u.key',
                           plan ->> 'zone', plan ->> 'users', plan ->> 'key') INTO zones USING keys;
        END IF;
        zones := ARRAY(SELECT coalesce(z.name, plan ->> 'timezone') FROM unnest(keys, zones) WITH ORDINALITY AS u(key, zone, n) LEFT JOIN pg_timezone_names z ON z.name = u.zone ORDER BY u.n);
    END IF;
    IF goal_name IS NOT NULL AND conditions #>> ARRAY[goal_name, 'problem'] IS NULL THEN
        goals := activation._first_true(conditions -> goal_name, path, keys, enrolled, array_fill(until, ARRAY[cardinality(keys)]), until);
    END IF;
    RETURN QUERY SELECT NULL::text, NULL::timestamptz, NULL::text, NULL::text, NULL::text, NULL::timestamptz, NULL::timestamptz, NULL::boolean,
                        jsonb_build_object('notes', (SELECT jsonb_agg(DISTINCT n) FROM unnest(remarks) AS n), 'rate', plan -> 'rate', 'goal', goal_name IS NOT NULL);
    RETURN QUERY SELECT u.key, u.at, NULL::text, NULL::text, NULL::text, u.at, u.goal_at, u.held, NULL::jsonb FROM unnest(keys, enrolled, goals, held) AS u(key, at, goal_at, held);

    starts := enrolled;
    FOR s IN
        SELECT x.step ->> 'name' AS name, coalesce((x.step ->> 'delay')::interval, '0') AS delay, x.step -> 'condition' AS condition,
               (x.step #>> '{condition,timeout}')::interval AS timeout, x.step -> 'action' <> 'null' AS acts, x.step -> 'otherwise' <> 'null' AS nudges, x.step ->> 'on_timeout' AS on_timeout
          FROM jsonb_array_elements(rehearsed -> 'steps') WITH ORDINALITY AS x(step, n) ORDER BY x.n
    LOOP
        -- starts is NULL for those who have left or whom the rehearsal's end has met.
        starts := ARRAY(SELECT CASE WHEN u.at + s.delay <= until THEN u.at + s.delay END FROM unnest(starts) WITH ORDINALITY AS u(at, n) ORDER BY u.n);
        IF s.condition <> 'null' THEN
            EXIT WHEN conditions #>> ARRAY[s.name, 'problem'] IS NOT NULL;
            ends := ARRAY(SELECT coalesce(u.at + s.timeout, 'infinity') FROM unnest(starts) WITH ORDINALITY AS u(at, n) ORDER BY u.n);
            trues := CASE WHEN s.name = goal_name AND starts = enrolled
                          -- Asked already, up to the rehearsal's end.
                          THEN ARRAY(SELECT CASE WHEN u.at <= u.until THEN u.at END FROM unnest(goals, ends) WITH ORDINALITY AS u(at, until, n) ORDER BY u.n)
                          ELSE activation._first_true(conditions -> s.name, path, keys, starts, ends, until) END;
        ELSE
            ends := NULL;
            trues := starts;
        END IF;
        RETURN QUERY
        SELECT m.key, m.enrolled_at, s.name, m.branch,
               CASE WHEN m.held THEN 'held_out'
                    WHEN (m.branch = 'otherwise' OR s.condition = 'null' AND s.delay > interval '0') AND m.goal_at <= m.sent_at THEN 'cancelled'
                    WHEN m.sent_at <> m.decided_at AND rehearsed #>> '{send_window,otherwise}' = 'skip' THEN 'cancelled'
                    WHEN m.sent_at > until THEN 'queued' ELSE 'sent' END,
               m.sent_at, m.goal_at, m.held, NULL::jsonb
          FROM (SELECT d.*, coalesce(CASE WHEN rehearsed -> 'send_window' <> 'null' AND NOT d.held
                                          THEN activation._window_opens(rehearsed -> 'send_window', d.zone, d.decided_at) END, d.decided_at) AS sent_at
                  FROM (SELECT u.key, u.enrolled_at, u.held, u.goal_at, u.zone, CASE WHEN u.true_at IS NOT NULL THEN 'action' WHEN u.ends_at <= until THEN 'otherwise' END AS branch,
                               coalesce(u.true_at, u.ends_at) AS decided_at
                          FROM unnest(keys, enrolled, held, goals, zones, trues, ends, starts) AS u(key, enrolled_at, held, goal_at, zone, true_at, ends_at, begins)
                         WHERE u.begins IS NOT NULL) d
                 WHERE d.branch = 'action' AND s.acts OR d.branch = 'otherwise' AND s.nudges) m;
        starts := ARRAY(SELECT CASE WHEN u.true_at IS NOT NULL THEN u.true_at WHEN u.ends_at <= until AND s.on_timeout <> 'exit' THEN u.ends_at END
                          FROM unnest(trues, ends, keys) WITH ORDINALITY AS u(true_at, ends_at, key, n) ORDER BY u.n);
    END LOOP;
END
$$;

CREATE FUNCTION activation.simulate(loop text DEFAULT NULL, definition jsonb DEFAULT NULL, since timestamptz DEFAULT now() - interval '90 days',
                                    until timestamptz DEFAULT now(), timestamps jsonb DEFAULT NULL, names text DEFAULT current_setting('search_path'))
RETURNS TABLE (part text, step text, branch text, status text, people bigint, share numeric, first_at timestamptz, median_after interval, already_acted bigint, detail text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
-- Compiling its statements would take longer than running them; sorts of everybody's days fit into this.
SET jit = off
SET work_mem = '64MB'
AS $$
#variable_conflict use_column
BEGIN
    IF (simulate.loop IS NULL) = (simulate.definition IS NULL) AND simulate.definition IS NULL THEN
        RAISE EXCEPTION 'there is nothing to rehearse' USING ERRCODE = '22023', HINT = 'Name a loop, or give a definition: simulate(definition => …).';
    END IF;
    RETURN QUERY
    WITH found AS MATERIALIZED (
        SELECT * FROM activation._simulate(simulate.loop, simulate.definition, simulate.since, simulate.until, simulate.timestamps, simulate.names)
    ), about AS (
        SELECT f.notes -> 'notes' AS notes, (f.notes ->> 'rate')::numeric AS rate, (f.notes ->> 'goal')::boolean AS goal FROM found f WHERE f.notes IS NOT NULL
    ), person AS (
        SELECT f.user_id, f.at AS enrolled_at, f.goal_at, f.held_out FROM found f WHERE f.step IS NULL AND f.notes IS NULL
    ), mail AS (
        SELECT f.* FROM found f WHERE f.step IS NOT NULL
    ), total AS (
        SELECT count(*) AS people, count(p.goal_at) AS activated, min(p.enrolled_at) AS first_at FROM person p
    ), place AS (
        -- As in time_to_activate.
        SELECT s.seconds, s.acted, t.people + 1 - row_number() OVER (ORDER BY s.seconds, s.acted DESC) AS n
          FROM (SELECT p.goal_at IS NOT NULL AS acted, date_part('epoch', coalesce(p.goal_at, simulate.until) - p.enrolled_at)::bigint AS seconds FROM person p) s, total t
    ), curve AS (
        SELECT p.seconds, exp(sum(CASE WHEN NOT p.acted THEN 0 WHEN p.n = 1 THEN '-Infinity' ELSE ln((p.n - 1) / p.n::double precision) END)
                                  OVER (ORDER BY p.seconds, p.acted DESC ROWS UNBOUNDED PRECEDING)) AS still_waiting FROM place p
    ), time AS (
        SELECT make_interval(secs => min(c.seconds) FILTER (WHERE c.still_waiting <= 0.5 + 1e-9)) AS median,
               make_interval(secs => min(c.seconds) FILTER (WHERE c.still_waiting <= 0.1 + 1e-9)) AS p90 FROM curve c
    ), busiest AS (
        SELECT m.at::date AS day, count(*) AS emails FROM mail m WHERE m.status = 'sent' GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 1
    ), line AS (
        SELECT 1 AS place, 0 AS sub, 'enrolled' AS part, NULL::text AS step, NULL::text AS branch, NULL::text AS status, t.people, 1.0 AS share, t.first_at,
               NULL::interval AS median_after, NULL::bigint AS already_acted, NULL::text AS detail FROM total t
        UNION ALL
        SELECT 2, row_number() OVER (ORDER BY min(m.at - m.enrolled_at), m.step, m.branch, m.status)::integer, 'mail', m.step, m.branch, m.status, count(*),
               round(count(*)::numeric / nullif((SELECT t.people FROM total t), 0), 4), min(m.at),
               make_interval(secs => percentile_disc(0.5) WITHIN GROUP (ORDER BY date_part('epoch', m.at - m.enrolled_at))), count(*) FILTER (WHERE m.goal_at <= m.at),
               CASE m.status WHEN 'sent' THEN 'would have been sent' WHEN 'held_out' THEN 'would have been held back, to measure' WHEN 'queued' THEN 'would still wait for the send window'
                             ELSE 'would not have been sent: the goal was reached, or it was outside the send window' END
          FROM mail m GROUP BY m.step, m.branch, m.status
        UNION ALL
        SELECT 3, 0, 'activated', NULL, NULL, NULL, t.activated, round(t.activated::numeric / nullif(t.people, 0), 4), NULL, time.median, NULL,
               concat_ws(', ', CASE WHEN time.median IS NULL THEN 'fewer than half so far' ELSE format('half within %s', time.median) END,
                         CASE WHEN time.median IS NULL THEN NULL WHEN time.p90 IS NULL THEN 'fewer than nine in ten so far' ELSE format('nine in ten within %s', time.p90) END)
          FROM total t, time, about a WHERE a.goal
        UNION ALL
        SELECT 4, 0, 'emails', NULL, NULL, NULL, count(*), NULL, min(m.at), NULL, NULL,
               format('%s people, %s; most on %s: %s, in %s or more requests%s', count(DISTINCT m.user_id), CASE WHEN count(*) = 0 THEN 'no day' ELSE format('%s days', count(DISTINCT m.at::date)) END,
                      coalesce((SELECT b.day::text FROM busiest b), 'none'), coalesce((SELECT b.emails FROM busiest b), 0), ceil(coalesce((SELECT b.emails FROM busiest b), 0) / 100.0),
                      (SELECT CASE WHEN a.rate IS NULL THEN '; the provider''s rate is not known yet'
                                   ELSE format(', %s s at %s a second', ceil(ceil(coalesce((SELECT b.emails FROM busiest b), 0) / 100.0) / a.rate), a.rate) END FROM about a))
          FROM mail m WHERE m.status = 'sent'
        UNION ALL
        SELECT 5, row_number() OVER (ORDER BY p.enrolled_at, p.user_id)::integer, 'person ' || p.user_id, NULL, NULL, NULL, NULL, NULL, p.enrolled_at, p.goal_at - p.enrolled_at, NULL,
               concat_ws('; ', (SELECT string_agg(format('%s: %s %s, %s', to_char(m.at, 'YYYY-MM-DD HH24:MI'), m.step, m.branch, m.status), '; ' ORDER BY m.at) FROM mail m WHERE m.user_id = p.user_id),
                         'goal ' || to_char(p.goal_at, 'YYYY-MM-DD HH24:MI'))
          FROM (SELECT * FROM person p ORDER BY p.enrolled_at, p.user_id LIMIT 10) p
        UNION ALL
        SELECT 6, n.number::integer, 'note', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, n.note FROM about a, jsonb_array_elements_text(coalesce(nullif(a.notes, 'null'), '[]')) WITH ORDINALITY AS n(note, number)
    )
    SELECT l.part, l.step, l.branch, l.status, l.people, l.share, l.first_at, l.median_after, l.already_acted, l.detail FROM line l ORDER BY l.place, l.sub;
END
$$;
COMMENT ON FUNCTION activation.simulate(text, jsonb, timestamptz, timestamptz, jsonb, text) IS
'Rehearses a loop, or a definition, over what the app''s tables say happened between since and until; writes nothing. Rows by part: enrolled; mail (by step, branch and what would have become of it, how long after enrollment in the median, and to how many who had reached the goal by then); activated (rate, median and ninth tenth by Kaplan and Meier); emails (days, the busiest one, requests at the provider''s rate); person (the first ten with their timelines); note (what cannot be replayed, and why). A condition is asked as of each moment at which a row of the user''s came, with the rows that had come by then: timestamps names columns that tell, {"public.projects": "made_on"}, where they are not found. Deleted and updated rows, caps, and other loops are not known to it. Reads with the caller''s rights, and refuses what would run code of a role that has not got them (42501); raises 42704, 22023, 55000, 0A000.';

CREATE FUNCTION activation.milestone(condition jsonb, since timestamptz DEFAULT '-infinity', users regclass DEFAULT NULL, timestamps jsonb DEFAULT NULL,
                                     names text DEFAULT current_setting('search_path'))
RETURNS TABLE (user_id text, signed_up_at timestamptz, reached_at timestamptz)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    whose jsonb := activation._suggest_users(users, names);
    problem text;
    row record;
BEGIN
    FOR row IN
        SELECT s.* FROM activation._simulate('(milestone)', jsonb_build_object('trigger', activation.on_insert((whose ->> 'users')::regclass), 'condition', condition,
                                             'action', activation.email('milestone')), milestone.since, now(), milestone.timestamps, milestone.names) s
    LOOP
        IF row.notes IS NOT NULL THEN
            SELECT n INTO problem FROM jsonb_array_elements_text(coalesce(nullif(row.notes -> 'notes', 'null'), '[]')) AS n WHERE n LIKE '%cannot be replayed%' LIMIT 1;
            IF problem IS NOT NULL THEN
                RAISE EXCEPTION 'when people reached this milestone cannot be told from the tables'
                    USING ERRCODE = '55000', DETAIL = regexp_replace(problem, '^.*cannot be replayed: (.*)$', '\1') || '.',
                          HINT = 'Name the column that tells: timestamps => ''{"public.projects": "made_on"}''.';
            END IF;
        ELSIF row.step IS NULL THEN
            user_id := row.user_id;
            signed_up_at := row.at;
            reached_at := row.goal_at;
            RETURN NEXT;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION activation.milestone(jsonb, timestamptz, regclass, jsonb, text) IS
'When each user reached a milestone, a condition as activation.query() makes it, from their signup to now, whether or not any loop has ever watched it: by the insertion times of the rows that it reads. A row for everybody who signed up since; reached_at is NULL for those who have not. Reads only, with the caller''s rights, and refuses what would run code of a role that has not got them (42501); raises 55000 where the tables do not tell.';
