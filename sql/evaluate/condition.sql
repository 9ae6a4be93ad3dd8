-- A condition becomes a function from keys to those for whom it holds, with the tables that wake
-- it.

-- The tables a compiled condition reads, through views, and whether it can change while no row
-- does: it asks for the time, or calls functions we cannot look into.
CREATE FUNCTION activation._tables_read(function_name name)
RETURNS TABLE (tables regclass[], unseen boolean)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH RECURSIVE f AS (
        SELECT p.oid, p.prosqlbody::text AS tree FROM pg_proc p
         WHERE p.pronamespace = 'activation_compiled'::regnamespace AND p.proname = function_name
    ), relation(oid) AS (
        SELECT d.refobjid
          FROM f JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = f.oid
         WHERE d.refclassid = 'pg_class'::regclass
        UNION
        SELECT d.refobjid
          FROM relation r
          JOIN pg_rewrite w ON w.ev_class = r.oid
          JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
         WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid <> r.oid
    ), tree AS (
        SELECT f.tree FROM f
        UNION ALL
        SELECT w.ev_action::text FROM relation r JOIN pg_rewrite w ON w.ev_class = r.oid
    ), called AS (
        SELECT DISTINCT m[1]::oid AS oid
          FROM tree,
               regexp_matches(tree.tree, ':(?:funcid|opfuncid|aggfnoid|winfnoid) (\d+)', 'g') AS m
    )
    SELECT ARRAY(SELECT c.oid::regclass FROM relation r JOIN pg_class c ON c.oid = r.oid
                  WHERE c.relkind IN ('r', 'p', 'm', 'f') ORDER BY 1),
           EXISTS (SELECT FROM tree WHERE tree.tree LIKE '%{SQLVALUEFUNCTION%')
           OR EXISTS (SELECT FROM called c JOIN pg_proc p ON p.oid = c.oid
                       WHERE p.provolatile = 'v'
                          OR p.provolatile = 's'
                             AND (p.pronamespace <> 'pg_catalog'::regnamespace
                                  OR p.proname IN ('now', 'transaction_timestamp',
                                                   'statement_timestamp', 'current_setting')
                                  OR p.proname = 'age' AND p.pronargs = 1))
$$;

-- Makes the function of a condition itself, and refuses what no condition may do. Returns what the
-- condition reads, as _tables_read() does.
CREATE FUNCTION activation._make_condition(loop text, function_name name, signature text,
                                           texts jsonb, OUT tables regclass[], OUT unseen boolean)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    body text;
    answer jsonb;
    tree text;
BEGIN
    FOREACH body IN ARRAY array_remove(ARRAY[texts ->> 'starless', texts ->> 'body'], NULL) LOOP
        answer := activation._run_on_path(texts ->> 'path', ARRAY[format(
            E'CREATE FUNCTION %s RETURNS SETOF pg_catalog.int4 LANGUAGE sql STABLE\n'
            'BEGIN ATOMIC SELECT 1 WHERE EXISTS (\n%s\n); END',
            signature, body)], true);
        EXIT WHEN answer -> 'error' IS NULL;
    END LOOP;
    IF answer ? 'error' AND answer #>> '{error,code}' = '42601' THEN
        PERFORM activation._raise(jsonb_build_object(
            'message', format('loop "%s": the condition is not a SELECT', loop),
            'detail', answer #>> '{error,message}',
            'hint', 'A condition is one SELECT with $1 for the user''s key; '
                    'it is true when it returns a row.',
            'code', '42601'));
    END IF;
    PERFORM activation._raise_compile(loop, 'condition', answer -> 'error');
    SELECT p.prosqlbody::text INTO tree FROM pg_proc p
     WHERE p.pronamespace = 'activation_compiled'::regnamespace AND p.proname = function_name;
    IF tree NOT LIKE '%{PARAM :paramkind 0 :paramid 1 %' THEN
        RAISE EXCEPTION 'loop "%": the condition does not use $1', loop
            USING ERRCODE = '42P02',
                  HINT = 'It would be the same for every user. Compare a column with $1, '
                         'the user''s key: WHERE user_id = $1.';
    END IF;
    IF tree LIKE '%{ROWMARKCLAUSE%' THEN
        RAISE EXCEPTION 'loop "%": the condition locks rows', loop
            USING ERRCODE = '0A000',
                  HINT = 'Leave out FOR UPDATE or FOR SHARE: a condition only looks.';
    END IF;
    SELECT r.tables, r.unseen INTO tables, unseen FROM activation._tables_read(function_name) r;
    IF EXISTS (SELECT FROM pg_class c
                WHERE c.oid = ANY (_make_condition.tables::oid[]) AND c.relpersistence = 't') THEN
        RAISE EXCEPTION 'loop "%": the condition reads a temporary table', loop
            USING ERRCODE = '0A000',
                  HINT = 'It is gone when you disconnect. Use a permanent table.';
    END IF;
END
$$;

-- Runs a compiled condition once, for no user: tells the author of a right that is missing, and
-- warns of what looks like a mistake.
CREATE FUNCTION activation._try_condition(loop text, evaluate_name name, owner oid) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    answer jsonb := activation._try_eval(evaluate_name, owner, ARRAY[NULL::text]);
BEGIN
    IF answer #>> '{error,code}' = '42501' THEN
        RAISE EXCEPTION 'loop "%": its owner % may not run the condition: %',
            loop, activation._role_name(owner), answer #>> '{error,message}'
            USING ERRCODE = '42501',
                  HINT = format('Grant it to %s, or let a role that has it define the loop.',
                                activation._role_name(owner));
    ELSIF answer ? 'error' THEN
        RAISE WARNING 'loop "%": the condition raised when it was tried without a user: %',
            loop, answer #>> '{error,message}'
            USING HINT = 'That may be right for real users; people on whom it raises are kept '
                         'waiting and shown by activation.status.';
    ELSIF (answer ->> 'value')::bigint > 0 THEN
        RAISE WARNING 'loop "%": the condition is true for a user who does not exist', loop
            USING HINT = 'A SELECT without FROM or with an aggregate always returns a row: '
                         'use HAVING, or WHERE EXISTS.';
    END IF;
END
$$;

-- Compiles the condition of a step into two functions: the condition itself (an invoker SQL
-- function, so that the planner inlines it) and the evaluation of many keys, which runs with its
-- owner's rights. Returns what the loop must know: names, which columns wake it, and whether it has
-- to be asked again at intervals.
CREATE FUNCTION activation._compile_condition(loop text, base text, suffix text, condition jsonb,
                                              key_type oid, owner oid, search_path text)
RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    condition_name name := activation._compiled_name(base, ': condition' || suffix);
    evaluate_name name := activation._compiled_name(base, ': evaluate' || suffix);
    type_name text := activation._type_name(key_type);
    texts jsonb := activation._bound_text(
        loop, 'condition', owner, search_path,
        activation._query_strings(condition ->> 'query', 1), type_name);
    signature text := format('activation_compiled.%I(%s)', condition_name, type_name);
    evaluate_signature text := format('activation_compiled.%I(pg_catalog.text[])', evaluate_name);
    named jsonb := coalesce(nullif(condition -> 'watch', 'null'), '{}');
    reads record;
    answer jsonb;
    coverage jsonb;
    watches jsonb;
    unwatched text[];
    every interval := (condition ->> 'every')::interval;
BEGIN
    SELECT r.* INTO reads
      FROM activation._make_condition(loop, condition_name, signature, texts) r;
    answer := activation._run_on_path(
        search_path,
        ARRAY[format(
            E'CREATE FUNCTION %s RETURNS SETOF pg_catalog.text '
            'LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT\n'
            'BEGIN ATOMIC SELECT k.key FROM pg_catalog.unnest($1) AS k(key), '
            'LATERAL activation_compiled.%I(k.key::%s) AS c; END',
            evaluate_signature, condition_name, type_name)]
        || activation._ownership_statements(signature, owner, false)
        || activation._ownership_statements(evaluate_signature, owner),
        true);
    PERFORM activation._raise_compile(loop, 'condition', answer -> 'error');
    PERFORM activation._try_condition(loop, evaluate_name, owner);

    coverage := activation._condition_coverage(owner, search_path, texts ->> 'explained',
                                               type_name);
    SELECT w.watches, w.unwatched INTO watches, unwatched
      FROM activation._read_watches(reads.tables, coverage -> 'covered', named, owner, key_type) w;
    watches := activation._add_named_watches(loop, watches, named, owner, key_type);
    IF every IS NULL AND (unwatched <> '{}' OR reads.unseen OR watches = '[]') THEN
        every := '1 minute';
        RAISE NOTICE 'loop "%": its condition is asked again every minute for all who wait', loop
            USING DETAIL = CASE WHEN unwatched <> '{}'
                                THEN format('It reads %s in a way that does not tell whose row '
                                            'changed, or watch says that no trigger is to be '
                                            'there.',
                                            array_to_string(unwatched, ', '))
                                ELSE 'It depends on the time or on a function that cannot be '
                                     'looked into.' END,
                  HINT = 'Another interval: activation.query(…, every => ''5 minutes''); '
                         'a table that tells: watch => ''{"table": "column"}''.';
    END IF;
    RETURN jsonb_build_object(
        'condition', condition_name, 'evaluate', evaluate_name, 'watches', watches,
        'on_delete', coalesce((coverage ->> 'negative')::boolean, true), 'every', every);
END
$$;
