-- Compile: an author's SQL becomes functions in activation_compiled, bound by the server when the
-- loop is defined. This part has what all kinds of such texts need.
--
-- The parser runs code: it reads the string of an array, a row or a range, and domains in it are
-- checked by their own functions. So the author's text is first prepared with a parameter in place
-- of each string, with the author's rights, read-only and undone. The server says of what type each
-- string is, and has read none. A string of a type whose reading would run code is refused. Every
-- other string gets its type written out; where that type is not built in, the string is read as
-- text and converted when the function runs. Only then does the text become the body of a function:
-- the parser has nothing of the author's left to run. The text is planned and run with the author's
-- rights alone, and what that does is undone.

-- A type's name with its schema, for generated SQL.
CREATE FUNCTION activation._type_name(type oid) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('%I.%I', n.nspname, t.typname)
      FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
     WHERE t.oid = type
$$;

-- The type of a table's column, usually of a key; NULL if there is no such column.
CREATE FUNCTION activation._key_type(table_name regclass, key_column name) RETURNS oid
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT a.atttypid FROM pg_attribute a
     WHERE a.attrelid = table_name AND a.attname = key_column
       AND a.attnum > 0 AND NOT a.attisdropped
$$;

-- Whether keys of two types have the same text, so that a captured one finds the other.
CREATE FUNCTION activation._same_keys(a oid, b oid) RETURNS boolean
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(a = b
        OR a = ANY (ARRAY['int2', 'int4', 'int8']::regtype[]::oid[])
           AND b = ANY (ARRAY['int2', 'int4', 'int8']::regtype[]::oid[])
        OR a = ANY (ARRAY['text', 'varchar']::regtype[]::oid[])
           AND b = ANY (ARRAY['text', 'varchar']::regtype[]::oid[]), false)
$$;

-- Whether a role may have triggers put on a table: it must be the table's owner, or have its
-- rights.
CREATE FUNCTION activation._may_trigger(role oid, table_name regclass) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT pg_has_role(role, c.relowner, 'USAGE') FROM pg_class c WHERE c.oid = table_name
$$;

-- Runs statements read-only and undone on an author's path, and compares what the session holds.
-- Returns {"value"} of the last or {"error"}. shown: the text that an error's place is looked up
-- in, where the text that runs is not what the author wrote.
CREATE FUNCTION activation._in_box(search_path text, statements text[], shown text DEFAULT NULL)
RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    held_statements activation.held_statement[] := activation._held_statements();
    held_locks text[] := activation._held_locks();
    last integer := cardinality(statements);
    answer jsonb;
BEGIN
    answer := activation._run_on_path(
        search_path,
        statements[:last - 1]
        || 'SELECT pg_catalog.set_config(''transaction_read_only'', ''on'', true)'::text
        || statements[last:],
        false, shown);
    PERFORM activation._check_session(held_statements, held_locks);
    RETURN answer;
END
$$;

-- Runs the body of a PL/pgSQL function in the same way, and with an author's rights.
CREATE FUNCTION activation._as_author(owner oid, search_path text, body text,
                                      shown text DEFAULT NULL) RETURNS jsonb
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT activation._in_box(search_path, ARRAY[
        format('CREATE FUNCTION activation_compiled."check"() RETURNS pg_catalog.text '
               'LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS %L', body),
        format('ALTER FUNCTION activation_compiled."check"() OWNER TO %s', owner::regrole),
        'SELECT activation_compiled."check"()'], shown)
$$;

-- Raises what the server said about an author's text, as an error of the loop.
CREATE FUNCTION activation._raise_compile(loop text, context text, error jsonb) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF error IS NULL THEN
        RETURN;
    END IF;
    RAISE EXCEPTION USING
        MESSAGE = format('loop "%s": the %s does not compile: %s',
                         loop, context, error ->> 'message'),
        DETAIL = concat_ws(E'\n', error ->> 'place', error ->> 'detail'),
        HINT = concat_ws(' ', error ->> 'hint', CASE context
            WHEN 'filter' THEN
                'A filter is an expression over NEW, the row as it is, and for updates and '
                'deletions over OLD, the row as it was: NEW.plan = ''free''.'
            WHEN 'schedule''s query' THEN
                'It is one SELECT of one column, the users'' keys: SELECT id FROM users WHERE …'
            ELSE
                'A condition is one SELECT with $1 for the user''s key; '
                'it is true when it returns a row.' END),
        ERRCODE = coalesce(error ->> 'code', '42601');
END
$$;

-- Whether there is a generated function of this name.
CREATE FUNCTION activation._function_exists(function_name name) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (SELECT FROM pg_proc p
                    WHERE p.pronamespace = 'activation_compiled'::regnamespace
                      AND p.proname = function_name)
$$;

-- Statements that give a compiled function to its owner. called: the engine calls it, too.
CREATE FUNCTION activation._ownership_statements(signature text, owner oid,
                                                 called boolean DEFAULT true) RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT array_remove(ARRAY[
        format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', signature),
        format('ALTER FUNCTION %s OWNER TO %s', signature, owner::regrole),
        CASE WHEN called THEN
            format('GRANT EXECUTE ON FUNCTION %s TO activation_engine', signature) END], NULL)
$$;
