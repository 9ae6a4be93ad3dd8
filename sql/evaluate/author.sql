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

-- Whether keys of two types have the same text, so that a captured one finds the other.
CREATE FUNCTION activation._same_keys(a oid, b oid) RETURNS boolean
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(a = b
        OR a = ANY (ARRAY['int2', 'int4', 'int8']::regtype[]::oid[]) AND b = ANY (ARRAY['int2', 'int4', 'int8']::regtype[]::oid[])
        OR a = ANY (ARRAY['text', 'varchar']::regtype[]::oid[]) AND b = ANY (ARRAY['text', 'varchar']::regtype[]::oid[]), false)
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
    answer := activation._run_on_path(names, statements[:last - 1] || 'SELECT pg_catalog.set_config(''transaction_read_only'', ''on'', true)'::text || statements[last:],
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
CREATE FUNCTION activation._prepare_text(owner oid, names text, prepared jsonb, key_type text) RETURNS jsonb
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
    answer := activation._prepare_text(owner, names, prepared, key_type);
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
CREATE FUNCTION activation._ownership_statements(signature text, owner oid, called boolean DEFAULT true) RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT array_remove(ARRAY[format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', signature),
                              format('ALTER FUNCTION %s OWNER TO %s', signature, owner::regrole),
                              CASE WHEN called THEN format('GRANT EXECUTE ON FUNCTION %s TO activation_engine', signature) END], NULL)
$$;
