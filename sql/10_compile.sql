-- Compile: an author's SQL becomes functions in activation_compiled, bound by the server when the loop is defined.
--
-- The parser runs code: it reads the string of an array, a row or a range, and domains in it are checked by their own
-- functions. So the author's text is first prepared with a parameter in place of each string, in the author's rights,
-- read-only and undone. The server says of what type each string is, and has read none. A string of a type whose reading
-- would run code is refused. Every other string gets its type written out; where that type is not built in, the string is
-- read as text and converted when the function runs. Only then does the text become the body of a function: the parser has
-- nothing of the author's left to run. Whatever plans or runs it does so in the author's rights, and is undone.

CREATE FUNCTION activation._type_name(type oid) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('%I.%I', n.nspname, t.typname) FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.oid = type
$$;

CREATE FUNCTION activation._key_type(table_name regclass, key_column name) RETURNS oid
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT a.atttypid FROM pg_attribute a
     WHERE a.attrelid = table_name AND a.attname = key_column AND a.attnum > 0 AND NOT a.attisdropped
$$;

CREATE FUNCTION activation._may_trigger(role oid, table_name regclass) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT pg_has_role(role, c.relowner, 'USAGE') FROM pg_class c WHERE c.oid = table_name
$$;

-- Statements run read-only and undone on an author's path, with what a session holds compared. {"value"} of the last or
-- {"error"}. shown: what an error's place is looked up in, where the text that runs is not what the author wrote.
CREATE FUNCTION activation._in_box(names text, statements text[], shown text DEFAULT NULL) RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    held activation.held_statement[] := activation._held_statements();
    locks text[] := activation._held_locks();
    last integer := cardinality(statements);
    answer jsonb;
BEGIN
    answer := activation._run(names, statements[:last - 1] || 'SELECT pg_catalog.set_config(''transaction_read_only'', ''on'', true)'::text || statements[last:],
                              false, shown);
    PERFORM activation._check_session(held, locks);
    RETURN answer;
END
$$;

-- A statement's worth of plpgsql, run like that as the author.
CREATE FUNCTION activation._as_author(owner oid, names text, body text, shown text DEFAULT NULL) RETURNS jsonb
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT activation._in_box(names, ARRAY[
        format('CREATE FUNCTION activation_compiled."check"() RETURNS pg_catalog.text LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS %L', body),
        format('ALTER FUNCTION activation_compiled."check"() OWNER TO %s', owner::regrole),
        'SELECT activation_compiled."check"()'], shown)
$$;

-- What the server makes of an author's text without reading its strings: the type of each of them, in their order, and the path
-- that names are looked up on, of the schemas that the author may use. {"types", "path"} or {"error"}.
CREATE FUNCTION activation._prepared(owner oid, names text, prepared jsonb, key_type text) RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    name text := 'activation ' || gen_random_uuid();
    types text[] := array_fill('pg_catalog.unknown'::text, ARRAY[(prepared ->> 'strings')::integer]);
    head text;
    answer jsonb;
    unknown integer;
BEGIN
    LOOP
        head := format('PREPARE %I', name) || coalesce('(' || nullif(array_to_string(array_remove(ARRAY[key_type], NULL) || types, ', '), '') || ')', '')
                || E' AS\n';
        -- The statement is gone before anybody looks at what the session holds.
        answer := activation._as_author(owner, names, format(
            $body$
DECLARE
    answer pg_catalog.text;
BEGIN
    EXECUTE %1$L;
    SELECT pg_catalog.jsonb_build_object('types', p.parameter_types::pg_catalog.oid[]::pg_catalog.int8[], 'path',
               (SELECT pg_catalog.string_agg(pg_catalog.quote_ident(s.name), ', ' ORDER BY s.n) FROM pg_catalog.unnest(pg_catalog.current_schemas(false)) WITH ORDINALITY AS s(name, n)))::pg_catalog.text
      INTO answer FROM pg_catalog.pg_prepared_statements p WHERE p.name OPERATOR(pg_catalog.=) %2$L;
    EXECUTE %3$L;
    RETURN answer;
END
$body$, head || (prepared ->> 'prepared'), name, format('DEALLOCATE %I', name)), prepared ->> 'text');
        IF answer #>> '{error,code}' IS DISTINCT FROM '42P18' THEN
            EXIT;
        END IF;
        -- Nothing says of what type it is: then it is text.
        unknown := substring(answer #>> '{error,message}' FROM '\$(\d+)')::integer - (key_type IS NOT NULL)::integer;
        EXIT WHEN unknown IS NULL OR types[unknown] IS DISTINCT FROM 'pg_catalog.unknown';
        types[unknown] := 'pg_catalog.text';
    END LOOP;
    IF answer ? 'error' THEN
        RETURN answer;
    END IF;
    answer := (answer ->> 'value')::jsonb;
    RETURN CASE WHEN key_type IS NULL THEN answer ELSE jsonb_set(answer, '{types}', (answer -> 'types') - 0) END;
END
$$;

-- Whether reading a text of this type runs code that belongs to a type of the app's: one made of others may hold domains.
CREATE FUNCTION activation._checks_when_read(type oid) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH RECURSIVE part AS (
        SELECT type AS oid, false AS inside
        UNION
        SELECT u.oid, u.inside
          FROM part p JOIN pg_type t ON t.oid = p.oid
          CROSS JOIN LATERAL (
               SELECT t.typelem, true WHERE t.typelem <> 0 AND t.typsubscript = 'array_subscript_handler'::regproc
               UNION ALL SELECT t.typbasetype, p.inside WHERE t.typtype = 'd'
               UNION ALL SELECT r.rngsubtype, true FROM pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
               UNION ALL SELECT a.atttypid, true FROM pg_attribute a WHERE t.typrelid <> 0 AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) u(oid, inside)
    )
    SELECT EXISTS (SELECT FROM part p JOIN pg_type t ON t.oid = p.oid
                    WHERE p.inside AND t.typtype = 'd' AND t.typnamespace <> 'pg_catalog'::regnamespace
                       OR t.typtype IN ('c', 'm', 'r') AND t.typnamespace <> 'pg_catalog'::regnamespace)
$$;

-- An author's text in the forms that are compiled and explained, see server.query_text(), with the type of each string
-- written out; and the path on which it is compiled. Raises what the server says about the text, and refuses strings that would
-- run code while they are read.
CREATE FUNCTION activation._bound_text(loop text, what text, owner oid, names text, prepared jsonb, key_type text) RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    answer jsonb;
    literal oid;
    types text[];
    texts jsonb;
    path text;
BEGIN
    PERFORM activation._raise_compile(loop, what, prepared -> 'error');
    answer := activation._prepared(owner, names, prepared, key_type);
    PERFORM activation._raise_compile(loop, what, answer -> 'error');
    SELECT t.oid::oid INTO literal FROM jsonb_array_elements_text(answer -> 'types') AS t(oid) WHERE activation._checks_when_read(t.oid::oid) LIMIT 1;
    IF literal IS NOT NULL THEN
        RAISE EXCEPTION 'loop "%": the % holds a literal of type %', loop, what, literal::regtype
            USING ERRCODE = '0A000',
                  HINT = format('Domains in such a type would check it while it is read. Cast its parts: ARRAY[''…'']::%1$s, ROW(…)::%1$s.', literal::regtype);
    END IF;
    types := ARRAY(SELECT activation._type_name(t.oid::oid) FROM jsonb_array_elements_text(answer -> 'types') WITH ORDINALITY AS t(oid, n) ORDER BY t.n);
    path := coalesce(answer ->> 'path', 'pg_catalog');
    texts := activation._query_text(prepared ->> 'text', key_type, types);
    -- One statement that returns rows: planned, not run.
    answer := activation._as_author(owner, names, format(
        'DECLARE c pg_catalog.refcursor; BEGIN OPEN c FOR EXECUTE %L%s; CLOSE c; RETURN NULL; END', texts ->> 'body', ' USING NULL::' || key_type));
    PERFORM activation._raise_compile(loop, what, answer -> 'error');
    RETURN texts || jsonb_build_object('path', path);
END
$$;

-- What the server said about an author's text, as an error of the loop.
CREATE FUNCTION activation._raise_compile(loop text, what text, error jsonb) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF error IS NULL THEN
        RETURN;
    END IF;
    RAISE EXCEPTION USING
        MESSAGE = format('loop "%s": the %s does not compile: %s', loop, what, error ->> 'message'),
        DETAIL = concat_ws(E'\n', error ->> 'place', error ->> 'detail'),
        HINT = concat_ws(' ', error ->> 'hint',
            CASE what WHEN 'filter' THEN 'A filter is an expression over NEW, the row as it is, and for updates and deletions over OLD, the row as it was: NEW.plan = ''free''.'
                      WHEN 'schedule''s query' THEN 'It is one SELECT of one column, the users'' keys: SELECT id FROM users WHERE …'
                 ELSE 'A condition is one SELECT with $1 for the user''s key; it is true when it returns a row.' END),
        ERRCODE = coalesce(error ->> 'code', '42601');
END
$$;

CREATE FUNCTION activation._function_exists(function_name name) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = 'activation_compiled'::regnamespace AND p.proname = function_name)
$$;

-- Statements that give a compiled function to its owner. The engine calls those that are called from outside.
CREATE FUNCTION activation._own(signature text, owner oid, called boolean DEFAULT true) RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT array_remove(ARRAY[format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', signature),
                              format('ALTER FUNCTION %s OWNER TO %s', signature, owner::regrole),
                              CASE WHEN called THEN format('GRANT EXECUTE ON FUNCTION %s TO activation_engine', signature) END], NULL)
$$;

-- The tables a compiled condition reads, through views, and whether it can change while no row does: it asks for the time,
-- or calls functions we cannot look into.
CREATE FUNCTION activation._reads(function_name name) RETURNS TABLE (tables regclass[], unseen boolean)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH RECURSIVE f AS (
        SELECT p.oid, p.prosqlbody::text AS tree FROM pg_proc p
         WHERE p.pronamespace = 'activation_compiled'::regnamespace AND p.proname = function_name
    ), relation(oid) AS (
        SELECT d.refobjid FROM f JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = f.oid
         WHERE d.refclassid = 'pg_class'::regclass
        UNION
        SELECT d.refobjid FROM relation r JOIN pg_rewrite w ON w.ev_class = r.oid
          JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
         WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid <> r.oid
    ), tree AS (
        SELECT f.tree FROM f
        UNION ALL SELECT w.ev_action::text FROM relation r JOIN pg_rewrite w ON w.ev_class = r.oid
    ), called AS (
        SELECT DISTINCT m[1]::oid AS oid FROM tree, regexp_matches(tree.tree, ':(?:funcid|opfuncid|aggfnoid|winfnoid) (\d+)', 'g') AS m
    )
    SELECT ARRAY(SELECT c.oid::regclass FROM relation r JOIN pg_class c ON c.oid = r.oid WHERE c.relkind IN ('r', 'p', 'm', 'f') ORDER BY 1),
           EXISTS (SELECT FROM tree WHERE tree.tree LIKE '%{SQLVALUEFUNCTION%')
           OR EXISTS (SELECT FROM called c JOIN pg_proc p ON p.oid = c.oid
                       WHERE p.provolatile = 'v'
                          OR p.provolatile = 's' AND (p.pronamespace <> 'pg_catalog'::regnamespace
                             OR p.proname IN ('now', 'transaction_timestamp', 'statement_timestamp', 'current_setting')
                             OR p.proname = 'age' AND p.pronargs = 1))
$$;

-- Compiles the condition of a step into two functions: the condition itself (an invoker SQL function, so that the planner
-- inlines it) and the evaluation of many keys, which runs with its owner's rights. Returns what the loop must know:
-- names, which columns wake it, and whether it has to be asked again at intervals.
CREATE FUNCTION activation._compile_condition(loop text, base text, suffix text, condition jsonb, key_type oid,
                                              owner oid, names text) RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
<<here>>
DECLARE
    condition_name name := activation._compiled_name(base, ': condition' || suffix);
    evaluate_name name := activation._compiled_name(base, ': evaluate' || suffix);
    type_name text := activation._type_name(key_type);
    texts jsonb := activation._bound_text(loop, 'condition', owner, names, activation._query_strings(condition ->> 'query', 1), type_name);
    signature text := format('activation_compiled.%I(%s)', condition_name, type_name);
    evaluate_signature text := format('activation_compiled.%I(pg_catalog.text[])', evaluate_name);
    answer jsonb;
    wrapped text;
    tree text;
    plan text;
    shown text;
    reads record;
    found jsonb;
    watches jsonb := '[]'::jsonb;
    unwatched text[] := '{}'::text[];
    reading regclass;
    root regclass;
    watch_column name;
    named boolean;
    covering record;
    every interval := (condition ->> 'every')::interval;
BEGIN
    FOREACH wrapped IN ARRAY array_remove(ARRAY[texts ->> 'starless', texts ->> 'body'], NULL) LOOP
        answer := activation._run(texts ->> 'path', ARRAY[format(
            E'CREATE FUNCTION %s RETURNS SETOF pg_catalog.int4 LANGUAGE sql STABLE\nBEGIN ATOMIC SELECT 1 WHERE EXISTS (\n%s\n); END',
            signature, wrapped)], true);
        EXIT WHEN answer -> 'error' IS NULL;
    END LOOP;
    IF answer ? 'error' AND answer #>> '{error,code}' = '42601' THEN
        PERFORM activation._raise(jsonb_build_object(
            'message', format('loop "%s": the condition is not a SELECT', loop),
            'detail', answer #>> '{error,message}',
            'hint', 'A condition is one SELECT with $1 for the user''s key; it is true when it returns a row.',
            'code', '42601'));
    END IF;
    PERFORM activation._raise_compile(loop, 'condition', answer -> 'error');
    SELECT p.prosqlbody::text INTO tree FROM pg_proc p
     WHERE p.pronamespace = 'activation_compiled'::regnamespace AND p.proname = condition_name;
    IF tree NOT LIKE '%{PARAM :paramkind 0 :paramid 1 %' THEN
        RAISE EXCEPTION 'loop "%": the condition does not use $1', loop
            USING ERRCODE = '42P02', HINT = 'It would be the same for every user. Compare a column with $1, the user''s key: WHERE user_id = $1.';
    END IF;
    IF tree LIKE '%{ROWMARKCLAUSE%' THEN
        RAISE EXCEPTION 'loop "%": the condition locks rows', loop
            USING ERRCODE = '0A000', HINT = 'Leave out FOR UPDATE or FOR SHARE: a condition only looks.';
    END IF;
    SELECT r.* INTO reads FROM activation._reads(condition_name) r;
    IF EXISTS (SELECT FROM pg_class c WHERE c.oid = ANY (reads.tables::oid[]) AND c.relpersistence = 't') THEN
        RAISE EXCEPTION 'loop "%": the condition reads a temporary table', loop
            USING ERRCODE = '0A000', HINT = 'It is gone when you disconnect. Use a permanent table.';
    END IF;

    answer := activation._run(names, ARRAY[format(
        E'CREATE FUNCTION %s RETURNS SETOF pg_catalog.text LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT\n'
        'BEGIN ATOMIC SELECT k.key FROM pg_catalog.unnest($1) AS k(key), LATERAL activation_compiled.%I(k.key::%s) AS c; END',
        evaluate_signature, condition_name, type_name)]
        || activation._own(signature, owner, false) || activation._own(evaluate_signature, owner), true);
    PERFORM activation._raise_compile(loop, 'condition', answer -> 'error');

    -- One run with a NULL key.
    answer := activation._try_eval(evaluate_name, owner, ARRAY[NULL::text]);
    IF answer #>> '{error,code}' = '42501' THEN
        RAISE EXCEPTION 'loop "%": its owner % may not run the condition: %', loop, activation._role_name(owner), answer #>> '{error,message}'
            USING ERRCODE = '42501', HINT = format('Grant it to %s, or let a role that has it define the loop.', activation._role_name(owner));
    ELSIF answer ? 'error' THEN
        RAISE WARNING 'loop "%": the condition raised when it was tried without a user: %', loop, answer #>> '{error,message}'
            USING HINT = 'That may be right for real users; people on whom it raises are kept waiting and shown by activation.status.';
    ELSIF (answer ->> 'value')::bigint > 0 THEN
        RAISE WARNING 'loop "%": the condition is true for a user who does not exist', loop
            USING HINT = 'A SELECT without FROM or with an aggregate always returns a row: use HAVING, or WHERE EXISTS.';
    END IF;

    -- What can wake it, from the planner.
    answer := activation._as_author(owner, names, format(
        'DECLARE plan pg_catalog.text; BEGIN EXECUTE %L INTO plan; RETURN plan; END',
        'EXPLAIN (VERBOSE, FORMAT JSON) ' || (texts ->> 'explained')));
    plan := answer ->> 'value';
    answer := activation._as_author(owner, names, format(
        'DECLARE plan pg_catalog.text; BEGIN EXECUTE %L INTO plan; RETURN plan; END',
        format('EXPLAIN (VERBOSE, FORMAT JSON) SELECT (pg_catalog.current_setting(''activation.key'', true)::%s)', type_name)));
    shown := (answer ->> 'value')::jsonb #>> '{0,Plan,Output,0}';
    -- The planner drops a cast to varchar that is cast to text again, and shows the setting bare.
    found := CASE WHEN plan IS NULL OR shown IS NULL THEN '{"covered": [], "negative": true}'::jsonb
                  ELSE activation._coverage(plan, ARRAY['(' || shown || ')', shown, 'current_setting(''activation.key''::text, true)']) END;

    -- A table read only in branches that the planner proved empty is not in the plan; it counts as not covered.
    FOREACH reading IN ARRAY reads.tables LOOP
        root := coalesce(pg_partition_root(reading), reading);
        watch_column := NULL;
        SELECT w.value, true INTO watch_column, named FROM jsonb_each_text(coalesce(nullif(condition -> 'watch', 'null'), '{}')) AS w
         WHERE to_regclass(w.key) = root;
        -- A table named with null is to carry no trigger.
        IF named IS NULL THEN
            SELECT c.column_name INTO watch_column
              FROM (SELECT x ->> 2 AS column_name, coalesce(pg_partition_root(t.oid), t.oid) AS root
                      FROM jsonb_array_elements(found -> 'covered') AS x
                      JOIN pg_namespace n ON n.nspname = x ->> 0
                      JOIN pg_class t ON t.relnamespace = n.oid AND t.relname = x ->> 1) c
             WHERE c.root = here.root LIMIT 1;
        END IF;
        -- What becomes an event is told by track(), whatever the type of the key.
        IF root = 'activation.event'::regclass AND watch_column = 'user_id'
           OR watch_column IS NOT NULL
           AND EXISTS (SELECT FROM pg_class c WHERE c.oid = root AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
                          AND c.relnamespace <> 'pg_catalog'::regnamespace AND c.relnamespace <> 'activation'::regnamespace)
           AND activation._may_trigger(owner, root)
           AND activation._same_keys(activation._key_type(root, watch_column), key_type) THEN
            watches := watches || jsonb_build_array(jsonb_build_array(root::oid::bigint, watch_column));
        ELSE
            unwatched := unwatched || activation._table_name(root);
        END IF;
    END LOOP;
    -- Tables named by watch that the plan does not show (a function reads them).
    FOR covering IN
        SELECT to_regclass(w.key) AS named, w.key, w.value::name AS key_column
          FROM jsonb_each_text(coalesce(nullif(condition -> 'watch', 'null'), '{}')) AS w
    LOOP
        IF covering.named IS NULL THEN
            RAISE EXCEPTION 'loop "%": watch names table %, which does not exist', loop, covering.key
                USING ERRCODE = '42P01', HINT = 'Write the table with its schema: {"public.orders": "user_id"}.';
        ELSIF covering.key_column IS NULL THEN
            CONTINUE;
        ELSIF activation._key_type(covering.named, covering.key_column) IS NULL THEN
            RAISE EXCEPTION 'loop "%": watch names column % of %, which does not exist', loop, covering.key_column, covering.named
                USING ERRCODE = '42703', HINT = 'Name the column that holds the user''s key.';
        ELSIF NOT activation._same_keys(activation._key_type(covering.named, covering.key_column), key_type) THEN
            RAISE EXCEPTION 'loop "%": column % of %, named by watch, is not of the type of the user''s key', loop, covering.key_column, covering.named
                USING ERRCODE = '42804', HINT = 'Name the column that holds the user''s key, or use every => instead.';
        ELSIF NOT activation._may_trigger(owner, covering.named) THEN
            RAISE EXCEPTION 'loop "%": % may not put a trigger on %', loop, activation._role_name(owner), covering.named
                USING ERRCODE = '42501', HINT = 'Let the owner of the table define the loop, or leave it out of watch.';
        ELSIF NOT watches @> jsonb_build_array(jsonb_build_array(covering.named::oid::bigint, covering.key_column)) THEN
            watches := watches || jsonb_build_array(jsonb_build_array(covering.named::oid::bigint, covering.key_column));
        END IF;
    END LOOP;

    IF every IS NULL AND (unwatched <> '{}' OR reads.unseen OR watches = '[]') THEN
        every := '1 minute';
        RAISE NOTICE 'loop "%": its condition is asked again every minute for all who wait', loop
            USING DETAIL = CASE WHEN unwatched <> '{}'
                                THEN format('It reads %s in a way that does not tell whose row changed, or watch says that no trigger is to be there.', array_to_string(unwatched, ', '))
                                ELSE 'It depends on the time or on a function that cannot be looked into.' END,
                  HINT = 'Another interval: activation.query(…, every => ''5 minutes''); a table that tells: watch => ''{"table": "column"}''.';
    END IF;
    RETURN jsonb_build_object('condition', condition_name, 'evaluate', evaluate_name, 'watches', watches,
                              'on_delete', coalesce((found ->> 'negative')::boolean, true), 'every', every);
END
$$;

-- Whether keys of two types have the same text, so that a captured one finds the other.
CREATE FUNCTION activation._same_keys(a oid, b oid) RETURNS boolean
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(a = b
        OR a = ANY (ARRAY['int2', 'int4', 'int8']::regtype[]::oid[]) AND b = ANY (ARRAY['int2', 'int4', 'int8']::regtype[]::oid[])
        OR a = ANY (ARRAY['text', 'varchar']::regtype[]::oid[]) AND b = ANY (ARRAY['text', 'varchar']::regtype[]::oid[]), false)
$$;

-- Compiles a filter into a function over the columns it names, so that it serves partitions too and pins no other column.
-- Of a trigger on updates also whether one of its columns changed. Arguments: the columns of OLD, then those of NEW.
CREATE FUNCTION activation._compile_filter(loop text, base text, suffix text, trigger jsonb, table_name regclass, owner oid, names text) RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    function_name name := activation._compiled_name(base, ': filter' || suffix);
    filter text := trigger ->> 'filter';
    changed text := (SELECT string_agg(format('OLD.%1$I IS DISTINCT FROM NEW.%1$I', c), ' OR ') FROM jsonb_array_elements_text(nullif(trigger -> 'columns', 'null')) AS c);
    whole text := concat_ws(' AND ', E'(\n' || filter || E'\n)', '(' || changed || ')');
    known text[] := activation._user_columns(table_name);
    columns text[] := activation._row_columns(whole, 'new', known);
    old_columns text[] := activation._row_columns(whole, 'old', known);
    rows record;
    signature text;
    answer jsonb;
    texts jsonb;
    head text;
BEGIN
    IF trigger ->> 'event' = 'insert' AND old_columns <> '{}' OR trigger ->> 'event' = 'delete' AND columns <> '{}' THEN
        RAISE EXCEPTION 'loop "%": the filter names %, and %', loop, CASE trigger ->> 'event' WHEN 'insert' THEN 'OLD' ELSE 'NEW' END,
            CASE trigger ->> 'event' WHEN 'insert' THEN 'an inserted row has no earlier form' ELSE 'a deleted row has no later form' END
            USING ERRCODE = '42703', HINT = format('Use %s.', CASE trigger ->> 'event' WHEN 'insert' THEN 'NEW, the inserted row' ELSE 'OLD, the deleted row' END);
    END IF;
    IF EXISTS (SELECT FROM jsonb_array_elements_text(nullif(trigger -> 'columns', 'null')) AS c WHERE c <> ALL (known)) THEN
        RAISE EXCEPTION 'loop "%": table % has no column %', loop, activation._table_name(table_name),
            (SELECT string_agg(quote_ident(c), ', ') FROM jsonb_array_elements_text(trigger -> 'columns') AS c WHERE c <> ALL (known))
            USING ERRCODE = '42703', DETAIL = format('It has %s.', array_to_string(known, ', ')),
                  HINT = 'Name the columns whose change counts: activation.on_update(''users'', columns => ''{plan}'').';
    END IF;
    IF columns || old_columns = '{}' OR filter IS NOT NULL AND activation._row_columns(filter, 'new', known) || activation._row_columns(filter, 'old', known) = '{}' THEN
        RAISE EXCEPTION 'loop "%": the filter names no column of %', loop, table_name
            USING ERRCODE = '42703', HINT = 'A filter is an expression over NEW, the row as it is, and for updates and deletions over OLD, the row as it was: NEW.plan = ''free''.';
    END IF;
    -- For each row that it names: its columns as NULLs, as arguments, and as they are in the table.
    SELECT string_agg(c.type, ', ' ORDER BY c.ordinal) AS arguments,
           string_agg(format('NULL::%s', c.type), ', ' ORDER BY c.ordinal) AS no_arguments,
           string_agg(c.nulls, ', ' ORDER BY c.first) FILTER (WHERE c.nulls IS NOT NULL) AS nulls,
           string_agg(c.bound, ', ' ORDER BY c.first) FILTER (WHERE c.bound IS NOT NULL) AS bound
      INTO rows
      FROM (SELECT x.ordinal, x.type, CASE WHEN x.ordinal = x.first THEN x.first END AS first,
                   CASE WHEN x.ordinal = x.first THEN format('(SELECT %s) AS %I', string_agg(format('NULL::%s AS %I', x.type, x.attname), ', ') OVER w, x.row) END AS nulls,
                   CASE WHEN x.ordinal = x.first THEN format('(SELECT %s UNION ALL SELECT %s FROM %s WHERE false) AS %I',
                       string_agg(format('$%s AS %I', x.ordinal, x.attname), ', ') OVER w, string_agg(quote_ident(x.attname), ', ') OVER w,
                       activation._table_name(table_name), x.row) END AS bound
              FROM (SELECT u.ordinal, u.row, u.attname, activation._type_name(a.atttypid) AS type, min(u.ordinal) OVER (PARTITION BY u.row) AS first
                      FROM (SELECT row_number() OVER (ORDER BY n.which, n.ordinal) AS ordinal, n.row, n.attname
                              FROM (SELECT 1 AS which, 'old' AS row, o.attname, o.ordinal FROM unnest(old_columns) WITH ORDINALITY AS o(attname, ordinal)
                                    UNION ALL SELECT 2, 'new', o.attname, o.ordinal FROM unnest(columns) WITH ORDINALITY AS o(attname, ordinal)) n) u
                      JOIN pg_attribute a ON a.attrelid = table_name AND a.attname = u.attname AND NOT a.attisdropped) x
            WINDOW w AS (PARTITION BY x.row ORDER BY x.ordinal ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)) c;
    signature := format('activation_compiled.%I(%s)', function_name, rows.arguments);
    -- With and without brackets around it: only a condition is valid in both forms.
    head := format('SELECT FROM %s WHERE ', rows.nulls);
    texts := activation._bound_text(loop, 'filter', owner, names, activation._query_strings(head || whole, 0), NULL);
    IF filter IS NOT NULL THEN
        PERFORM activation._bound_text(loop, 'filter', owner, names, activation._query_strings(head || E'\n' || filter || E'\n', 0), NULL);
    END IF;
    -- It reads no row of the table: the second half makes it depend on the columns, so that none of them changes its type
    -- under the call in the capture function, where a cast would run with the rights of that function's owner.
    answer := activation._run(texts ->> 'path', ARRAY[format(
        E'CREATE FUNCTION %s RETURNS pg_catalog.bool LANGUAGE sql STABLE SECURITY DEFINER\n'
        'BEGIN ATOMIC SELECT (%s)::pg_catalog.bool FROM %s; END', signature, substr(texts ->> 'body', length(head) + 1), rows.bound)]
        || activation._own(signature, owner), true);
    PERFORM activation._raise_compile(loop, 'filter', answer -> 'error');
    answer := activation._in_box(names, ARRAY[format('SELECT activation_compiled.%I(%s)', function_name, rows.no_arguments)]);
    IF answer #>> '{error,code}' = '42501' THEN
        RAISE EXCEPTION 'loop "%": its owner % may not run the filter: %', loop, activation._role_name(owner), answer #>> '{error,message}'
            USING ERRCODE = '42501', HINT = format('Grant it to %s, or let a role that has it define the loop.', activation._role_name(owner));
    END IF;
    RETURN jsonb_build_object('function', function_name, 'columns', columns, 'old_columns', old_columns);
END
$$;

-- The path on which a column of this type has its operators, and nothing of an author's.
CREATE FUNCTION activation._type_path(type oid) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT concat_ws(', ', 'pg_catalog', CASE WHEN n.nspname <> 'pg_catalog' THEN quote_ident(n.nspname) END, 'pg_temp')
      FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.oid = type
$$;

-- Makes a function over the app's own tables that is called through the black box: the body is ours, on a path that holds
-- nothing of an author's, and it runs with the owner's rights.
CREATE FUNCTION activation._compile_box(function_name name, key_type oid, body text, owner oid) RETURNS name
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    signature text := format('activation_compiled.%I(pg_catalog.text[])', function_name);
    answer jsonb;
BEGIN
    answer := activation._run(activation._type_path(key_type), ARRAY[format(
        E'CREATE FUNCTION %s RETURNS SETOF pg_catalog.text LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT\n'
        'BEGIN ATOMIC %s; END', signature, body)] || activation._own(signature, owner), true);
    PERFORM activation._raise(answer -> 'error');
    RETURN function_name;
END
$$;

-- The call of a filter on insertions for a row n.
CREATE FUNCTION activation._filter_call(filter jsonb) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('activation_compiled.%I(%s)', filter ->> 'function', string_agg(format('n.%I', c), ', ' ORDER BY o))
      FROM jsonb_array_elements_text(filter -> 'columns') WITH ORDINALITY AS u(c, o)
$$;

-- Which of some users a filter on insertions lets pass by their rows as they are.
CREATE FUNCTION activation._compile_passes(base text, suffix text, table_name regclass, key_column name, filter jsonb, owner oid) RETURNS name
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    key_type oid := activation._key_type(table_name, key_column);
BEGIN
    RETURN activation._compile_box(activation._compiled_name(base, ': passes' || suffix), key_type, format(
        'SELECT DISTINCT k.key FROM pg_catalog.unnest($1) AS k(key) JOIN %s AS n ON n.%I = k.key::%s WHERE %s',
        activation._table_name(table_name), key_column, activation._type_name(key_type), activation._filter_call(filter)), owner);
END
$$;

-- A walk over users who were there before a loop, oldest first, in chunks. Called with how many, the mark that the last chunk
-- ended with, and where to stop; returns marks: [key, time]. The oldest are those with the smallest number, or, where keys
-- are none, with the earliest time of a column that tells when a row was made.
CREATE FUNCTION activation._compile_existing(base text, suffix text, table_name regclass, key_column name, filter jsonb, owner oid) RETURNS name
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    key_type oid := activation._key_type(table_name, key_column);
    made name := activation._made_column(table_name, key_column);
BEGIN
    RETURN activation._compile_box(activation._compiled_name(base, ': roll' || suffix), key_type, format(
        CASE WHEN made IS NULL THEN
            E'SELECT pg_catalog.jsonb_build_array(k.key::pg_catalog.text, NULL)::pg_catalog.text\n'
            '  FROM (SELECT DISTINCT n.%2$I AS key FROM %1$s AS n\n'
            '         WHERE n.%2$I IS NOT NULL AND ($1[2] IS NULL OR n.%2$I > $1[2]::%3$s) AND ($1[4] IS NULL OR n.%2$I <= $1[4]::%3$s) AND %5$s\n'
            '         ORDER BY 1 LIMIT $1[1]::pg_catalog.int4) AS k ORDER BY k.key'
        ELSE
            E'SELECT pg_catalog.jsonb_build_array(k.key::pg_catalog.text, k.made)::pg_catalog.text\n'
            '  FROM (SELECT n.%2$I AS key, n.%4$I AS made FROM %1$s AS n\n'
            '         WHERE n.%2$I IS NOT NULL AND ($1[2] IS NULL OR (n.%4$I, n.%2$I) > ($1[3]::pg_catalog.timestamptz, $1[2]::%3$s))\n'
            '           AND ($1[4] IS NULL OR n.%4$I <= $1[4]::pg_catalog.timestamptz) AND %5$s\n'
            '         ORDER BY n.%4$I, n.%2$I LIMIT $1[1]::pg_catalog.int4) AS k ORDER BY k.made, k.key'
        END, activation._table_name(table_name), key_column, activation._type_name(key_type), made,
        CASE WHEN filter IS NULL THEN 'true' ELSE activation._filter_call(filter) END), owner);
END
$$;

-- The column that tells when a row was made, where the key itself does not: NULL for keys that are numbers, and where
-- there is no such column.
CREATE FUNCTION activation._made_column(table_name regclass, key_column name) RETURNS name
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT a.attname FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
     WHERE a.attrelid = table_name AND a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull AND a.atttypid = 'timestamptz'::regtype
       AND activation._key_type(table_name, key_column) <> ALL (ARRAY['int2', 'int4', 'int8']::regtype[]::oid[])
       -- Only where each user has one row.
       AND EXISTS (SELECT FROM pg_index i JOIN pg_attribute k ON k.attrelid = i.indrelid AND k.attnum = i.indkey[0]
                    WHERE i.indrelid = table_name AND i.indisunique AND i.indnkeyatts = 1 AND i.indpred IS NULL AND k.attname = key_column)
       AND (a.attname IN ('created_at', 'inserted_at', 'created', 'createdAt', 'date_joined', 'joined_at', 'registered_at', 'signed_up_at')
            OR pg_get_expr(d.adbin, d.adrelid) IN ('now()', 'CURRENT_TIMESTAMP', 'clock_timestamp()', 'statement_timestamp()'))
     ORDER BY a.attname IN ('created_at', 'inserted_at', 'created', 'createdAt') DESC, a.attnum LIMIT 1
$$;

-- The walk over whom a schedule's query returns, in the order of their keys; called like that over existing users.
CREATE FUNCTION activation._compile_schedule(loop text, base text, suffix text, query text, key_type oid, owner oid, names text) RETURNS name
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    function_name name := activation._compiled_name(base, ': roll' || suffix);
    query_name name := activation._compiled_name(base, ': schedule' || suffix);
    type_name text := activation._type_name(key_type);
    texts jsonb := activation._bound_text(loop, 'schedule''s query', owner, names, activation._query_strings(query, 0), NULL);
    answer jsonb;
    reads record;
BEGIN
    answer := activation._run(texts ->> 'path', ARRAY[format(
        E'CREATE FUNCTION activation_compiled.%I() RETURNS SETOF %s LANGUAGE sql STABLE\nBEGIN ATOMIC SELECT * FROM (\n%s\n) AS q; END', query_name, type_name,
        texts ->> 'body')], true);
    IF answer #>> '{error,code}' IN ('42P13', '42804') THEN
        RAISE EXCEPTION 'loop "%": the schedule''s query does not return the users'' keys', loop
            USING ERRCODE = '42804', DETAIL = concat_ws(' ', answer #>> '{error,message}', answer #>> '{error,detail}'),
                  HINT = format('Let it return one column of type %s, the key of the users table: SELECT id FROM users WHERE …', format_type(key_type, NULL));
    END IF;
    PERFORM activation._raise_compile(loop, 'schedule''s query', answer -> 'error');
    SELECT r.* INTO reads FROM activation._reads(query_name) r;
    IF EXISTS (SELECT FROM pg_class c WHERE c.oid = ANY (reads.tables::oid[]) AND c.relpersistence = 't') THEN
        RAISE EXCEPTION 'loop "%": the schedule''s query reads a temporary table', loop
            USING ERRCODE = '0A000', HINT = 'It is gone when you disconnect. Use a permanent table.';
    END IF;
    answer := activation._run(names, ARRAY[format(
        E'CREATE FUNCTION activation_compiled.%1$I(pg_catalog.text[]) RETURNS SETOF pg_catalog.text LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT\n'
        'BEGIN ATOMIC SELECT pg_catalog.jsonb_build_array(k.key::pg_catalog.text, NULL)::pg_catalog.text\n'
        '  FROM (SELECT DISTINCT s.key FROM activation_compiled.%2$I() AS s(key)\n'
        '         WHERE s.key IS NOT NULL AND ($1[2] IS NULL OR s.key > $1[2]::%3$s) ORDER BY 1 LIMIT $1[1]::pg_catalog.int4) AS k ORDER BY k.key; END',
        function_name, query_name, type_name)]
        || activation._own(format('activation_compiled.%I()', query_name), owner, false)
        || activation._own(format('activation_compiled.%I(pg_catalog.text[])', function_name), owner), true);
    PERFORM activation._raise_compile(loop, 'schedule''s query', answer -> 'error');
    answer := activation._try_eval(function_name, owner, ARRAY['1', NULL, NULL, NULL]);
    IF answer #>> '{error,code}' = '42501' THEN
        RAISE EXCEPTION 'loop "%": its owner % may not run the schedule''s query: %', loop, activation._role_name(owner), answer #>> '{error,message}'
            USING ERRCODE = '42501', HINT = format('Grant it to %s, or let a role that has it define the loop.', activation._role_name(owner));
    ELSIF answer ? 'error' THEN
        RAISE WARNING 'loop "%": the schedule''s query raised when it was tried: %', loop, answer #>> '{error,message}';
    END IF;
    RETURN function_name;
END
$$;

-- What reads users' rows: a text for each, whose first line is an array of the key, the address, the time zone and the names of
-- columns that were left out; the rest is the row as the templates see it. The engine parses the first line only, whatever
-- the app keeps in its rows. Where the first key is NULL there are first lines only: who is there at all.
-- Each value but the key is taken as the server writes it, so that no cast of an author's is called. The row goes through
-- convert_to(), since a text that is none in its encoding could not be read later. Of a row of over 1 MB, columns of over
-- 100 kB stay out, or where that is not enough those of over 500 bytes; and rows come until there are 32 MB of them: who
-- has none is asked about later.
CREATE FUNCTION activation._users_body(users regclass) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format($body$SELECT pg_catalog.jsonb_build_array(k.key, pg_catalog.format('%%s', u.%1$I), %2$s, r.made -> 1)::pg_catalog.text
       || CASE WHEN t.body IS NULL THEN ''
               WHEN pg_catalog.row_number() OVER () = 1 OR pg_catalog.sum(t.size) OVER (ROWS UNBOUNDED PRECEDING) <= 32000000
               THEN E'\n' || coalesce((r.made -> 0)::pg_catalog.text, t.body) ELSE E'\n' END
  FROM pg_catalog.unnest($1) AS k(key) JOIN %3$s AS u ON u.%4$I = k.key::%5$s
  CROSS JOIN LATERAL (SELECT CASE WHEN $1[1] IS NOT NULL THEN pg_catalog.to_jsonb(u) END AS whole OFFSET 0) AS j
  CROSS JOIN LATERAL (SELECT x.body, pg_catalog.octet_length(pg_catalog.convert_to(x.body, 'UTF8')) AS size
                        FROM (SELECT j.whole::pg_catalog.text AS body OFFSET 0) AS x OFFSET 0) AS t
  CROSS JOIN LATERAL (SELECT CASE WHEN t.size > 1000000 THEN (
       SELECT pg_catalog.jsonb_build_array(coalesce(pg_catalog.jsonb_object_agg(c.key, c.value) FILTER (WHERE c.size <= c.most), '{}'),
                                           pg_catalog.jsonb_agg(c.key) FILTER (WHERE c.size > c.most))
         FROM (SELECT s.key, s.value, s.size, CASE WHEN pg_catalog.sum(s.size) FILTER (WHERE s.size <= 100000) OVER () > 1000000 THEN 500 ELSE 100000 END AS most
                 FROM (SELECT e.key, e.value, pg_catalog.octet_length(e.value::pg_catalog.text) AS size
                         FROM pg_catalog.jsonb_each(j.whole) AS e(key, value)) AS s) AS c) END AS made OFFSET 0) AS r$body$,
                  u.email_column, CASE WHEN u.timezone_column IS NULL THEN 'NULL' ELSE format('pg_catalog.format(''%%s'', u.%I)', u.timezone_column) END,
                  activation._table_name(u.users), u.key_column, activation._type_name(activation._key_type(u.users, u.key_column)))
      FROM activation.users_table u WHERE u.users = _users_body.users
$$;

CREATE FUNCTION activation._compile_users(base text, suffix text, users regclass, owner oid) RETURNS name
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    registered activation.users_table;
BEGIN
    SELECT * INTO STRICT registered FROM activation.users_table u WHERE u.users = _compile_users.users;
    RETURN activation._compile_box(activation._compiled_name(base, ': users' || suffix), activation._key_type(users, registered.key_column),
                                   activation._users_body(users), owner);
END
$$;

-- The functions of a version that are called from outside, whether each is there, and whether it still runs with the rights of
-- the loop's owner.
CREATE FUNCTION activation._boxes(loop_id integer, version integer) RETURNS TABLE (function_name name, there boolean, intact boolean)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT f.name, p.oid IS NOT NULL, coalesce(p.prosecdef AND p.proowner = v.owner, false)
      FROM activation.loop_version v
     CROSS JOIN LATERAL (SELECT unnest(ARRAY[coalesce(v.users_function, ''), v.filter_function, v.roll_function, v.passes_function])
                         UNION ALL SELECT s.evaluate_function FROM activation.step s WHERE s.loop_id = v.loop_id AND s.version = v.version) AS f(name)
      LEFT JOIN pg_proc p ON p.pronamespace = 'activation_compiled'::regnamespace AND p.proname = f.name
     WHERE v.loop_id = _boxes.loop_id AND v.version = _boxes.version AND f.name IS NOT NULL
$$;

-- Whether everything that a version was compiled to is there, as it was made.
CREATE FUNCTION activation._compiled(loop_id integer, version integer) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT NOT EXISTS (SELECT FROM activation._boxes(loop_id, version) b WHERE NOT b.intact)
           AND NOT EXISTS (SELECT FROM activation.step s
                            WHERE s.loop_id = _compiled.loop_id AND s.version = _compiled.version AND s.evaluate_function IS NOT NULL
                              AND NOT activation._function_exists(s.condition_function))
$$;

-- What the functions of a step's condition are called after. The goal of its own is step 0.
CREATE FUNCTION activation._which_condition(step integer) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN CASE step WHEN 0 THEN ' of the goal' WHEN 1 THEN '' ELSE format(' of step %s', step) END;

-- Compiles a version from its definition, with its owner's rights and path, and writes down what it was compiled to. What
-- is there of it already goes first.
CREATE FUNCTION activation._compile_version(loop_id integer, version integer) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
<<here>>
DECLARE
    v activation.loop_version;
    loop_name text := (SELECT l.name FROM activation."loop" l WHERE l.loop_id = _compile_version.loop_id);
    key_type oid;
    -- The numbers stand in what is never cut, so that no two versions of any loops share a name.
    suffix text := format(' (%s.v%s)', loop_id, version);
    old_function regprocedure;
    filter jsonb;
    trigger jsonb;
    triggered activation.source;
    roll name;
    passes name;
    new_columns name[];
    old_columns name[];
    compiled jsonb;
    defined record;
BEGIN
    SELECT x.* INTO STRICT v FROM activation.loop_version x
     WHERE x.loop_id = _compile_version.loop_id AND x.version = _compile_version.version;
    SELECT activation._key_type(u.users, u.key_column) INTO STRICT key_type FROM activation.users_table u WHERE u.users = v.users;
    FOR old_function IN
        SELECT p.oid::regprocedure FROM pg_proc p
         WHERE p.pronamespace = 'activation_compiled'::regnamespace
           AND p.proname IN (SELECT activation._compiled_name(loop_name, k.kind || w.which || suffix)
                               FROM unnest(ARRAY[': evaluate', ': condition', ': filter', ': users', ': passes', ': roll', ': schedule']) AS k(kind),
                                    (SELECT '' AS which UNION SELECT activation._which_condition(s.step) FROM activation.step s
                                      WHERE s.loop_id = v.loop_id AND s.version = v.version) w)
         -- Those first that use others.
         ORDER BY p.proname LIKE '%: condition%' OR p.proname LIKE '%: filter%' OR p.proname LIKE '%: schedule%'
    LOOP
        EXECUTE format('DROP FUNCTION %s', old_function);
    END LOOP;

    trigger := v.definition -> 'trigger';
    SELECT s.* INTO triggered FROM activation.source s WHERE s.source_id = v.source_id;
    IF trigger ->> 'filter' IS NOT NULL OR trigger ->> 'event' = 'update' THEN
        filter := activation._compile_filter(loop_name, loop_name, suffix, trigger, triggered.table_name, v.owner, v.names);
        IF trigger ->> 'event' = 'insert' THEN
            passes := activation._compile_passes(loop_name, suffix, triggered.table_name, triggered.key_column, filter, v.owner);
        END IF;
    END IF;
    IF trigger ->> 'type' = 'schedule' THEN
        roll := activation._compile_schedule(loop_name, loop_name, suffix, trigger ->> 'query', key_type, v.owner, v.names);
    ELSIF v.definition ->> 'enroll' <> 'new' THEN
        roll := activation._compile_existing(loop_name, suffix, triggered.table_name, triggered.key_column, filter, v.owner);
    END IF;
    new_columns := ARRAY(SELECT jsonb_array_elements_text(filter -> 'columns'));
    old_columns := ARRAY(SELECT jsonb_array_elements_text(filter -> 'old_columns'));
    UPDATE activation.loop_version x
       SET users_function = activation._compile_users(loop_name, suffix, v.users, v.owner),
           filter_function = filter ->> 'function', roll_function = roll, passes_function = passes,
           filter_columns = new_columns, filter_attnums = activation._column_numbers(triggered.table_name, new_columns),
           old_columns = here.old_columns, old_attnums = activation._column_numbers(triggered.table_name, here.old_columns)
     WHERE x.loop_id = v.loop_id AND x.version = v.version;
    FOR defined IN
        SELECT c.condition, c.step AS number
          FROM (SELECT s.step, s.position, s.name,
                       CASE s.step WHEN 0 THEN v.definition -> 'goal' ELSE v.definition #> ARRAY['steps', (s.position - 1)::text, 'condition'] END AS condition
                  FROM activation.step s WHERE s.loop_id = v.loop_id AND s.version = v.version) c
         WHERE c.condition <> 'null'
         ORDER BY c.position
    LOOP
        compiled := activation._compile_condition(loop_name, loop_name, activation._which_condition(defined.number) || suffix, defined.condition, key_type, v.owner, v.names);
        UPDATE activation.step s
           SET every = (compiled ->> 'every')::interval, condition_function = compiled ->> 'condition', evaluate_function = compiled ->> 'evaluate'
         WHERE s.loop_id = v.loop_id AND s.version = v.version AND s.step = defined.number;
        DELETE FROM activation.watch w WHERE w.loop_id = v.loop_id AND w.version = v.version AND w.step = defined.number;
        INSERT INTO activation.watch (loop_id, version, step, source_id, on_delete, goal)
        SELECT DISTINCT v.loop_id, v.version, defined.number, activation._source((w ->> 0)::oid::regclass, (w ->> 1)::name),
               (compiled ->> 'on_delete')::boolean, defined.number = v.goal_step
          FROM jsonb_array_elements(compiled -> 'watches') AS w;
        INSERT INTO activation.sweep (loop_id, version, step, part, due_at)
        SELECT v.loop_id, v.version, defined.number, p.part, activation._now() + coalesce((compiled ->> 'every')::interval, '10 minutes')
          FROM unnest(activation._all_parts()) AS p(part)
        ON CONFLICT DO NOTHING;
    END LOOP;
END
$$;
