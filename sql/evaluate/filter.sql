-- A trigger's filter becomes a function of the columns it names.

-- Refuses a filter that names what is not there: an unknown column, no column at all, or the form
-- of the row that its trigger does not have. columns, old_columns: what it names of NEW and of OLD.
CREATE FUNCTION activation._check_filter(loop text, trigger jsonb, table_name regclass,
                                         known text[], columns text[], old_columns text[])
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    event text := trigger ->> 'event';
    filter text := trigger ->> 'filter';
    unknown text := (
        SELECT string_agg(quote_ident(c), ', ')
          FROM jsonb_array_elements_text(nullif(trigger -> 'columns', 'null')) AS c
         WHERE c <> ALL (known));
BEGIN
    IF event = 'insert' AND old_columns <> '{}' OR event = 'delete' AND columns <> '{}' THEN
        RAISE EXCEPTION 'loop "%": the filter names %, and %',
            loop, CASE event WHEN 'insert' THEN 'OLD' ELSE 'NEW' END,
            CASE event WHEN 'insert' THEN 'an inserted row has no earlier form'
                       ELSE 'a deleted row has no later form' END
            USING ERRCODE = '42703',
                  HINT = format('Use %s.',
                                CASE event WHEN 'insert' THEN 'NEW, the inserted row'
                                           ELSE 'OLD, the deleted row' END);
    END IF;
    IF unknown IS NOT NULL THEN
        RAISE EXCEPTION 'loop "%": table % has no column %',
            loop, activation._table_name(table_name), unknown
            USING ERRCODE = '42703',
                  DETAIL = format('It has %s.', array_to_string(known, ', ')),
                  HINT = 'Name the columns whose change counts: '
                         'activation.on_update(''users'', columns => ''{plan}'').';
    END IF;
    IF columns || old_columns = '{}'
       OR filter IS NOT NULL
          AND activation._row_columns(filter, 'new', known)
              || activation._row_columns(filter, 'old', known) = '{}' THEN
        RAISE EXCEPTION 'loop "%": the filter names no column of %', loop, table_name
            USING ERRCODE = '42703',
                  HINT = 'A filter is an expression over NEW, the row as it is, and for updates '
                         'and deletions over OLD, the row as it was: NEW.plan = ''free''.';
    END IF;
END
$$;

-- The text around a filter's function: the types of its arguments; NULLs of these types, to call it
-- with; and for each row that the filter names (old, new) a FROM item of that name with its
-- columns, as NULLs (nulls) and as arguments that have the types of the table's columns (bound).
CREATE FUNCTION activation._filter_rows(table_name regclass, columns text[], old_columns text[],
                                        OUT arguments text, OUT no_arguments text,
                                        OUT nulls text, OUT bound text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT string_agg(c.type, ', ' ORDER BY c.ordinal),
           string_agg(format('NULL::%s', c.type), ', ' ORDER BY c.ordinal),
           string_agg(c.nulls, ', ' ORDER BY c.first) FILTER (WHERE c.nulls IS NOT NULL),
           string_agg(c.bound, ', ' ORDER BY c.first) FILTER (WHERE c.bound IS NOT NULL)
      FROM (SELECT x.ordinal, x.type,
                   CASE WHEN x.ordinal = x.first THEN x.first END AS first,
                   CASE WHEN x.ordinal = x.first THEN
                       format('(SELECT %s) AS %I',
                              string_agg(format('NULL::%s AS %I', x.type, x.attname), ', ') OVER w,
                              x.row) END AS nulls,
                   CASE WHEN x.ordinal = x.first THEN
                       format('(SELECT %s UNION ALL SELECT %s FROM %s WHERE false) AS %I',
                              string_agg(format('$%s AS %I', x.ordinal, x.attname), ', ') OVER w,
                              string_agg(quote_ident(x.attname), ', ') OVER w,
                              activation._table_name(table_name), x.row) END AS bound
              FROM (SELECT u.ordinal, u.row, u.attname, activation._type_name(a.atttypid) AS type,
                           min(u.ordinal) OVER (PARTITION BY u.row) AS first
                      FROM (SELECT row_number() OVER (ORDER BY n.which, n.ordinal) AS ordinal,
                                   n.row, n.attname
                              FROM (SELECT 1 AS which, 'old' AS row, o.attname, o.ordinal
                                      FROM unnest(old_columns)
                                           WITH ORDINALITY AS o(attname, ordinal)
                                    UNION ALL
                                    SELECT 2, 'new', o.attname, o.ordinal
                                      FROM unnest(columns)
                                           WITH ORDINALITY AS o(attname, ordinal)) n) u
                      JOIN pg_attribute a ON a.attrelid = table_name AND a.attname = u.attname
                                         AND NOT a.attisdropped) x
            WINDOW w AS (PARTITION BY x.row ORDER BY x.ordinal
                         ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)) c
$$;

-- Compiles a filter into a function over the columns it names, so that it serves partitions too and
-- pins no other column. For a trigger on updates of some columns, the function also says whether
-- one of them changed. Its arguments are the columns of OLD, then those of NEW.
CREATE FUNCTION activation._compile_filter(loop text, base text, suffix text, trigger jsonb,
                                           table_name regclass, owner oid, search_path text)
RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    function_name name := activation._compiled_name(base, ': filter' || suffix);
    filter text := trigger ->> 'filter';
    changed text := (
        SELECT string_agg(format('OLD.%1$I IS DISTINCT FROM NEW.%1$I', c), ' OR ')
          FROM jsonb_array_elements_text(nullif(trigger -> 'columns', 'null')) AS c);
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
    PERFORM activation._check_filter(loop, trigger, table_name, known, columns, old_columns);
    SELECT r.* INTO rows FROM activation._filter_rows(table_name, columns, old_columns) r;
    signature := format('activation_compiled.%I(%s)', function_name, rows.arguments);
    -- With and without brackets around it: only a condition is valid in both forms.
    head := format('SELECT FROM %s WHERE ', rows.nulls);
    texts := activation._bound_text(loop, 'filter', owner, search_path,
                                    activation._query_strings(head || whole, 0), NULL);
    IF filter IS NOT NULL THEN
        PERFORM activation._bound_text(
            loop, 'filter', owner, search_path,
            activation._query_strings(head || E'\n' || filter || E'\n', 0), NULL);
    END IF;
    -- It reads no row of the table: the second half makes it depend on the columns, so that none of
    -- them changes its type under the call in the capture function, where a cast would run with the
    -- rights of that function's owner.
    answer := activation._run_on_path(
        texts ->> 'path',
        ARRAY[format(
            E'CREATE FUNCTION %s RETURNS pg_catalog.bool LANGUAGE sql STABLE SECURITY DEFINER\n'
            'BEGIN ATOMIC SELECT (%s)::pg_catalog.bool FROM %s; END',
            signature, substr(texts ->> 'body', length(head) + 1), rows.bound)]
        || activation._ownership_statements(signature, owner),
        true);
    PERFORM activation._raise_compile(loop, 'filter', answer -> 'error');
    -- Tried once, from a function of the owner's: a NULL of a domain runs the domain's checks.
    answer := activation._in_box(search_path, ARRAY[
        format('CREATE FUNCTION activation_compiled."check"() RETURNS pg_catalog.bool '
               'LANGUAGE sql SECURITY DEFINER BEGIN ATOMIC SELECT activation_compiled.%I(%s); END',
               function_name, rows.no_arguments),
        format('ALTER FUNCTION activation_compiled."check"() OWNER TO %s', owner::regrole),
        'SELECT activation_compiled."check"()']);
    IF answer #>> '{error,code}' = '42501' THEN
        RAISE EXCEPTION 'loop "%": its owner % may not run the filter: %',
            loop, activation._role_name(owner), answer #>> '{error,message}'
            USING ERRCODE = '42501',
                  HINT = format('Grant it to %s, or let a role that has it define the loop.',
                                activation._role_name(owner));
    END IF;
    RETURN jsonb_build_object('function', function_name, 'columns', columns,
                              'old_columns', old_columns);
END
$$;

-- The path on which a column of this type has its operators, and nothing of an author's.
CREATE FUNCTION activation._type_path(type oid) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT concat_ws(', ', 'pg_catalog',
                     CASE WHEN n.nspname <> 'pg_catalog' THEN quote_ident(n.nspname) END,
                     'pg_temp')
      FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
     WHERE t.oid = type
$$;

-- Makes a function over the app's own tables that is called through the black box: the body is
-- ours, on a path that holds nothing of an author's, and it runs with the owner's rights.
CREATE FUNCTION activation._compile_box(function_name name, key_type oid, body text, owner oid)
RETURNS name
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    signature text := format('activation_compiled.%I(pg_catalog.text[])', function_name);
    answer jsonb;
BEGIN
    answer := activation._run_on_path(
        activation._type_path(key_type),
        ARRAY[format(
            E'CREATE FUNCTION %s RETURNS SETOF pg_catalog.text '
            'LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT\n'
            'BEGIN ATOMIC %s; END',
            signature, body)]
        || activation._ownership_statements(signature, owner),
        true);
    PERFORM activation._raise(answer -> 'error');
    RETURN function_name;
END
$$;

-- The call of a filter on insertions for a row n.
CREATE FUNCTION activation._filter_call(filter jsonb) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('activation_compiled.%I(%s)', filter ->> 'function',
                  string_agg(format('n.%I', c), ', ' ORDER BY o))
      FROM jsonb_array_elements_text(filter -> 'columns') WITH ORDINALITY AS u(c, o)
$$;

-- Compiles the function that says which of some users a filter on insertions lets pass by their
-- rows as they are.
CREATE FUNCTION activation._compile_passes(base text, suffix text, table_name regclass,
                                           key_column name, filter jsonb, owner oid) RETURNS name
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    key_type oid := activation._key_type(table_name, key_column);
BEGIN
    RETURN activation._compile_box(
        activation._compiled_name(base, ': passes' || suffix), key_type,
        format('SELECT DISTINCT k.key FROM pg_catalog.unnest($1) AS k(key) '
               'JOIN %s AS n ON n.%I = k.key::%s WHERE %s',
               activation._table_name(table_name), key_column, activation._type_name(key_type),
               activation._filter_call(filter)),
        owner);
END
$$;
