-- Functions from keys to people: who exists, who was there before a loop, whom a schedule's query
-- returns.

-- The column that tells when a row was made, where the key itself does not: NULL for keys that are
-- numbers, and where there is no such column.
CREATE FUNCTION activation._users_since_column(table_name regclass, key_column name) RETURNS name
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT a.attname
      FROM pg_attribute a
      LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
     WHERE a.attrelid = table_name AND a.attnum > 0 AND NOT a.attisdropped
       AND a.attnotnull AND a.atttypid = 'timestamptz'::regtype
       AND activation._key_type(table_name, key_column)
           <> ALL (ARRAY['int2', 'int4', 'int8']::regtype[]::oid[])
       -- Only where each user has one row.
       AND EXISTS (SELECT FROM pg_index i
                     JOIN pg_attribute k ON k.attrelid = i.indrelid AND k.attnum = i.indkey[0]
                    WHERE i.indrelid = table_name AND i.indisunique AND i.indnkeyatts = 1
                      AND i.indpred IS NULL AND k.attname = key_column)
       AND (a.attname IN ('created_at', 'inserted_at', 'created', 'createdAt', 'date_joined',
                          'joined_at', 'registered_at', 'signed_up_at')
            OR pg_get_expr(d.adbin, d.adrelid) IN ('now()', 'CURRENT_TIMESTAMP',
                                                   'clock_timestamp()', 'statement_timestamp()'))
     ORDER BY a.attname IN ('created_at', 'inserted_at', 'created', 'createdAt') DESC, a.attnum
     LIMIT 1
$$;

-- Compiles the backfill of users who were there before a loop, oldest first, in chunks. The
-- function is called with how many, the place that the last chunk ended with (backfill.cursor), and
-- where to stop; it returns places: [key, time]. The oldest are those with the smallest number, or,
-- where keys are no numbers, with the earliest time of a column that tells when a row was made.
CREATE FUNCTION activation._compile_existing(base text, suffix text, table_name regclass,
                                             key_column name, filter jsonb, owner oid)
RETURNS name
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    key_type oid := activation._key_type(table_name, key_column);
    since_column name := activation._users_since_column(table_name, key_column);
BEGIN
    RETURN activation._compile_box(
        activation._compiled_name(base, ': backfill' || suffix), key_type,
        format(
            CASE WHEN since_column IS NULL THEN
                E'SELECT pg_catalog.jsonb_build_array(k.key::pg_catalog.text, NULL)'
                '::pg_catalog.text\n'
                '  FROM (SELECT DISTINCT n.%2$I AS key FROM %1$s AS n\n'
                '         WHERE n.%2$I IS NOT NULL'
                ' AND ($1[2] IS NULL OR n.%2$I > $1[2]::%3$s)'
                ' AND ($1[4] IS NULL OR n.%2$I <= $1[4]::%3$s) AND %5$s\n'
                '         ORDER BY 1 LIMIT $1[1]::pg_catalog.int4) AS k ORDER BY k.key'
            ELSE
                E'SELECT pg_catalog.jsonb_build_array(k.key::pg_catalog.text, k.made)'
                '::pg_catalog.text\n'
                '  FROM (SELECT n.%2$I AS key, n.%4$I AS made FROM %1$s AS n\n'
                '         WHERE n.%2$I IS NOT NULL AND ($1[2] IS NULL'
                ' OR (n.%4$I, n.%2$I) > ($1[3]::pg_catalog.timestamptz, $1[2]::%3$s))\n'
                '           AND ($1[4] IS NULL OR n.%4$I <= $1[4]::pg_catalog.timestamptz)'
                ' AND %5$s\n'
                '         ORDER BY n.%4$I, n.%2$I LIMIT $1[1]::pg_catalog.int4) AS k'
                ' ORDER BY k.made, k.key'
            END,
            activation._table_name(table_name), key_column, activation._type_name(key_type),
            since_column,
            CASE WHEN filter IS NULL THEN 'true' ELSE activation._filter_call(filter) END),
        owner);
END
$$;

-- Compiles the backfill of the users whom a schedule's query returns, in the order of their keys.
-- The function is called like that of _compile_existing().
CREATE FUNCTION activation._compile_schedule(loop text, base text, suffix text, query text,
                                             key_type oid, owner oid, search_path text)
RETURNS name
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    function_name name := activation._compiled_name(base, ': backfill' || suffix);
    query_name name := activation._compiled_name(base, ': schedule' || suffix);
    function_signature text := format('activation_compiled.%I(pg_catalog.text[])', function_name);
    query_signature text := format('activation_compiled.%I()', query_name);
    type_name text := activation._type_name(key_type);
    texts jsonb := activation._bound_text(loop, 'schedule''s query', owner, search_path,
                                          activation._query_strings(query, 0), NULL);
    answer jsonb;
    reads record;
BEGIN
    answer := activation._run_on_path(texts ->> 'path', ARRAY[format(
        E'CREATE FUNCTION %s RETURNS SETOF %s LANGUAGE sql STABLE\n'
        'BEGIN ATOMIC SELECT * FROM (\n%s\n) AS q; END',
        query_signature, type_name, texts ->> 'body')], true);
    IF answer #>> '{error,code}' IN ('42P13', '42804') THEN
        RAISE EXCEPTION 'loop "%": the schedule''s query does not return the users'' keys', loop
            USING ERRCODE = '42804',
                  DETAIL = concat_ws(' ', answer #>> '{error,message}',
                                     answer #>> '{error,detail}'),
                  HINT = format('Let it return one column of type %s, the key of the users table: '
                                'SELECT id FROM users WHERE …', format_type(key_type, NULL));
    END IF;
    PERFORM activation._raise_compile(loop, 'schedule''s query', answer -> 'error');
    SELECT r.* INTO reads FROM activation._tables_read(query_name) r;
    IF EXISTS (SELECT FROM pg_class c
                WHERE c.oid = ANY (reads.tables::oid[]) AND c.relpersistence = 't') THEN
        RAISE EXCEPTION 'loop "%": the schedule''s query reads a temporary table', loop
            USING ERRCODE = '0A000',
                  HINT = 'It is gone when you disconnect. Use a permanent table.';
    END IF;
    answer := activation._run_on_path(
        search_path,
        ARRAY[format(
            E'CREATE FUNCTION %s RETURNS SETOF pg_catalog.text '
            'LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT\n'
            'BEGIN ATOMIC '
            'SELECT pg_catalog.jsonb_build_array(k.key::pg_catalog.text, NULL)::pg_catalog.text\n'
            '  FROM (SELECT DISTINCT s.key FROM %s AS s(key)\n'
            '         WHERE s.key IS NOT NULL AND ($1[2] IS NULL OR s.key > $1[2]::%s)'
            ' ORDER BY 1 LIMIT $1[1]::pg_catalog.int4) AS k ORDER BY k.key; END',
            function_signature, query_signature, type_name)]
        || activation._ownership_statements(query_signature, owner, false)
        || activation._ownership_statements(function_signature, owner),
        true);
    PERFORM activation._raise_compile(loop, 'schedule''s query', answer -> 'error');
    answer := activation._try_eval(function_name, owner, ARRAY['1', NULL, NULL, NULL]);
    IF answer #>> '{error,code}' = '42501' THEN
        RAISE EXCEPTION 'loop "%": its owner % may not run the schedule''s query: %',
            loop, activation._role_name(owner), answer #>> '{error,message}'
            USING ERRCODE = '42501',
                  HINT = format('Grant it to %s, or let a role that has it define the loop.',
                                activation._role_name(owner));
    ELSIF answer ? 'error' THEN
        RAISE WARNING 'loop "%": the schedule''s query raised when it was tried: %',
            loop, answer #>> '{error,message}';
    END IF;
    RETURN function_name;
END
$$;

-- What reads users' rows: a text for each, whose first line is an array of the key, the address,
-- the time zone and the names of columns that were left out; the rest is the row as the templates
-- see it. The engine parses the first line only, whatever the app keeps in its rows. Where the
-- first key is NULL there are first lines only: who is there at all. Each value but the key is
-- taken as the server writes it, so that no cast of an author's is called. The row goes through
-- convert_to(), since a text that is not valid in its encoding could not be read later. Large rows
-- are cut: of a row of over 1 MB, columns of over 100 kB stay out, or where that is not enough
-- those of over 500 bytes. Rows come until there are 32 MB of them: users whose row is missing then
-- are asked about later.
CREATE FUNCTION activation._users_body(users regclass) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format(
               $body$SELECT pg_catalog.jsonb_build_array(
           k.key, pg_catalog.format('%%s', u.%1$I), %2$s, r.made -> 1)::pg_catalog.text
       || CASE WHEN t.body IS NULL THEN ''
               WHEN pg_catalog.row_number() OVER () = 1
                    OR pg_catalog.sum(t.size) OVER (ROWS UNBOUNDED PRECEDING) <= 32000000
               THEN E'\n' || coalesce((r.made -> 0)::pg_catalog.text, t.body) ELSE E'\n' END
  FROM pg_catalog.unnest($1) AS k(key) JOIN %3$s AS u ON u.%4$I = k.key::%5$s
  CROSS JOIN LATERAL (
       SELECT CASE WHEN $1[1] IS NOT NULL THEN pg_catalog.to_jsonb(u) END AS whole OFFSET 0) AS j
  CROSS JOIN LATERAL (
       SELECT x.body, pg_catalog.octet_length(pg_catalog.convert_to(x.body, 'UTF8')) AS size
         FROM (SELECT j.whole::pg_catalog.text AS body OFFSET 0) AS x OFFSET 0) AS t
  CROSS JOIN LATERAL (SELECT CASE WHEN t.size > 1000000 THEN (
       SELECT pg_catalog.jsonb_build_array(
                  coalesce(pg_catalog.jsonb_object_agg(c.key, c.value)
                               FILTER (WHERE c.size <= c.most), '{}'),
                  pg_catalog.jsonb_agg(c.key) FILTER (WHERE c.size > c.most))
         FROM (SELECT s.key, s.value, s.size,
                      CASE WHEN pg_catalog.sum(s.size) FILTER (WHERE s.size <= 100000) OVER ()
                                > 1000000 THEN 500 ELSE 100000 END AS most
                 FROM (SELECT e.key, e.value,
                              pg_catalog.octet_length(e.value::pg_catalog.text) AS size
                         FROM pg_catalog.jsonb_each(j.whole) AS e(key, value)) AS s) AS c) END
       AS made OFFSET 0) AS r$body$,
               u.email_column,
               CASE WHEN u.timezone_column IS NULL THEN 'NULL'
                    ELSE format('pg_catalog.format(''%%s'', u.%I)', u.timezone_column) END,
               activation._table_name(u.users), u.key_column,
               activation._type_name(activation._key_type(u.users, u.key_column)))
      FROM activation.users_table u WHERE u.users = _users_body.users
$$;

-- Compiles the function that reads users' rows, see _users_body().
CREATE FUNCTION activation._compile_users(base text, suffix text, users regclass, owner oid)
RETURNS name
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    registered activation.users_table;
BEGIN
    SELECT * INTO STRICT registered
      FROM activation.users_table u WHERE u.users = _compile_users.users;
    RETURN activation._compile_box(
        activation._compiled_name(base, ': users' || suffix),
        activation._key_type(users, registered.key_column),
        activation._users_body(users), owner);
END
$$;
