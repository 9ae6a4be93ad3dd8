-- An author's text is bound: the types of its strings are found without reading them, and written
-- out.

-- What the server makes of an author's text without reading its strings: the type of each of them,
-- in their order, and the path that names are looked up on, of the schemas that the author may use.
-- {"types", "path"} or {"error"}.
CREATE FUNCTION activation._prepare_text(owner oid, search_path text, prepared jsonb, key_type text)
RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    name text := 'activation ' || gen_random_uuid();
    types text[] := array_fill('pg_catalog.unknown'::text,
                               ARRAY[(prepared ->> 'strings')::integer]);
    head text;
    answer jsonb;
    unknown integer;
BEGIN
    LOOP
        head := format('PREPARE %I', name)
                || coalesce('(' || nullif(array_to_string(
                       array_remove(ARRAY[key_type], NULL) || types, ', '), '') || ')', '')
                || E' AS\n';
        -- The statement is gone before anybody looks at what the session holds.
        answer := activation._as_author(owner, search_path, format(
            $body$
DECLARE
    answer pg_catalog.text;
BEGIN
    EXECUTE %1$L;
    SELECT pg_catalog.jsonb_build_object(
               'types', p.parameter_types::pg_catalog.oid[]::pg_catalog.int8[],
               'path', (SELECT pg_catalog.string_agg(pg_catalog.quote_ident(s.name), ', '
                                                     ORDER BY s.n)
                          FROM pg_catalog.unnest(pg_catalog.current_schemas(false))
                               WITH ORDINALITY AS s(name, n)))::pg_catalog.text
      INTO answer
      FROM pg_catalog.pg_prepared_statements p
     WHERE p.name OPERATOR(pg_catalog.=) %2$L;
    EXECUTE %3$L;
    RETURN answer;
END
$body$,
            head || (prepared ->> 'prepared'), name, format('DEALLOCATE %I', name)),
            prepared ->> 'text');
        IF answer #>> '{error,code}' IS DISTINCT FROM '42P18' THEN
            EXIT;
        END IF;
        -- Nothing determines the type of this string: it becomes text.
        unknown := substring(answer #>> '{error,message}' FROM '\$(\d+)')::integer
                   - (key_type IS NOT NULL)::integer;
        EXIT WHEN unknown IS NULL OR types[unknown] IS DISTINCT FROM 'pg_catalog.unknown';
        types[unknown] := 'pg_catalog.text';
    END LOOP;
    IF answer ? 'error' THEN
        RETURN answer;
    END IF;
    answer := (answer ->> 'value')::jsonb;
    RETURN CASE WHEN key_type IS NULL THEN answer
                ELSE jsonb_set(answer, '{types}', (answer -> 'types') - 0) END;
END
$$;

-- Whether reading a text of this type runs code that belongs to a type of the app's: one made of
-- others may hold domains.
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
               SELECT t.typelem, true
                WHERE t.typelem <> 0 AND t.typsubscript = 'array_subscript_handler'::regproc
               UNION ALL
               SELECT t.typbasetype, p.inside WHERE t.typtype = 'd'
               UNION ALL
               SELECT r.rngsubtype, true FROM pg_range r
                WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
               UNION ALL
               SELECT a.atttypid, true FROM pg_attribute a
                WHERE t.typrelid <> 0 AND a.attrelid = t.typrelid
                  AND a.attnum > 0 AND NOT a.attisdropped) u(oid, inside)
    )
    SELECT EXISTS (SELECT FROM part p JOIN pg_type t ON t.oid = p.oid
                    WHERE p.inside AND t.typtype = 'd'
                          AND t.typnamespace <> 'pg_catalog'::regnamespace
                       OR t.typtype IN ('c', 'm', 'r')
                          AND t.typnamespace <> 'pg_catalog'::regnamespace)
$$;

-- An author's text in the forms that are compiled and explained, see server.query_text(), with the
-- type of each string written out; and the path on which it is compiled. Raises what the server
-- says about the text, and refuses strings that would run code while they are read.
CREATE FUNCTION activation._bound_text(loop text, context text, owner oid, search_path text,
                                       prepared jsonb, key_type text) RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    answer jsonb;
    refused_type oid;
    types text[];
    texts jsonb;
    compile_path text;
BEGIN
    PERFORM activation._raise_compile(loop, context, prepared -> 'error');
    answer := activation._prepare_text(owner, search_path, prepared, key_type);
    PERFORM activation._raise_compile(loop, context, answer -> 'error');
    SELECT t.oid::oid INTO refused_type
      FROM jsonb_array_elements_text(answer -> 'types') AS t(oid)
     WHERE activation._checks_when_read(t.oid::oid)
     LIMIT 1;
    IF refused_type IS NOT NULL THEN
        RAISE EXCEPTION 'loop "%": the % holds a literal of type %',
            loop, context, refused_type::regtype
            USING ERRCODE = '0A000',
                  HINT = format('Domains in such a type would check it while it is read. '
                                'Cast its parts: ARRAY[''…'']::%1$s, ROW(…)::%1$s.',
                                refused_type::regtype);
    END IF;
    types := ARRAY(SELECT activation._type_name(t.oid::oid)
                     FROM jsonb_array_elements_text(answer -> 'types')
                          WITH ORDINALITY AS t(oid, n)
                    ORDER BY t.n);
    compile_path := coalesce(answer ->> 'path', 'pg_catalog');
    texts := activation._query_text(prepared ->> 'text', key_type, types);
    -- One statement that returns rows: planned, not run.
    answer := activation._as_author(owner, search_path, format(
        'DECLARE c pg_catalog.refcursor; BEGIN '
        'OPEN c FOR EXECUTE %L%s; CLOSE c; RETURN NULL; END',
        texts ->> 'body', ' USING NULL::' || key_type));
    PERFORM activation._raise_compile(loop, context, answer -> 'error');
    RETURN texts || jsonb_build_object('path', compile_path);
END
$$;
