-- suggest(): what is to be counted. Looks at the catalogs alone. Of the app's columns only those
-- are read whose type is built in, or whose text is their type's own output, under built-in
-- collations. A table that would run other code is left out.

-- A column's value as text: by the cast of a built-in type, which is nobody's; an enum's by its
-- output function, since it may have casts of its owner's. Domains are read as what they are over.
-- NULL for other types.
CREATE FUNCTION activation._as_text(type oid, expression text) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH RECURSIVE base AS (
        SELECT t.* FROM pg_type t WHERE t.oid = type
        UNION ALL
        SELECT t.* FROM base b JOIN pg_type t ON t.oid = b.typbasetype WHERE b.typtype = 'd'
    )
    SELECT CASE WHEN b.typtype = 'e' THEN format('format(''%%s'', %s) COLLATE "C"', expression)
                WHEN b.typtype = 'b' AND b.oid < 16384 THEN expression || '::text COLLATE "C"' END
      FROM base b
     WHERE b.typtype <> 'd'
$$;

-- What suggest() would read, from the catalogs: {"users", "users_oid", "key", "made": the column
-- that tells when a row was inserted, "days", "tables": [{"table", "relname", "from": as t and its
-- way to the user, "reads": the tables on it, "key": the user's column on that way, "key_text",
-- "made", "rows": an estimate, "columns": [{"name", "quoted", "text"}]}], "left_out": [why],
-- "look": what _look_up() has to see before the query retained is parsed}. Raises where there is
-- nothing to go by. What the caller may read is seen by suggest().
--
-- Long because one statement finds all ways from a table to a user, and most of the rest is errors
-- that say how to make the tables readable.
CREATE FUNCTION activation._suggest_plan(
    users regclass, within interval, retained jsonb, search_path text
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    key name;
    key_text text;
    time_column name;
    days integer[];
    tables jsonb;
    left_out text[];
    quoted_users text;
BEGIN
    IF within IS NULL OR within < interval '1 day' OR within > interval '7 days' THEN
        RAISE EXCEPTION 'within is %', coalesce(within::text, 'NULL')
            USING ERRCODE = '22023',
                  DETAIL = 'Whether somebody stays is seen in their second week, '
                           'so that an action has to lie in the first.',
                  HINT = 'Give between one day and seven: within => ''3 days''.';
    END IF;
    SELECT x.users, x.key INTO users, key
      FROM jsonb_to_record(activation._suggest_users(users, search_path))
           AS x(users regclass, key name);
    quoted_users := activation._table_name(users);
    key_text := activation._as_text(activation._key_type(users, key), format('u.%I', key));
    IF key_text IS NULL THEN
        RAISE EXCEPTION 'the key of %, %, is of type %', quoted_users, quote_ident(key),
                        format_type(activation._key_type(users, key), NULL)
            USING ERRCODE = '0A000',
                  DETAIL = 'Only keys of built-in types, enums, and domains over them '
                           'are read here.',
                  HINT = format('SELECT activation.set_users(%L, key => ''…''); '
                                'names another column that identifies a user.', quoted_users);
    END IF;
    time_column := activation._inserted_at_column(users);
    IF time_column IS NULL THEN
        RAISE EXCEPTION 'table % has no column that tells when a user signed up', quoted_users
            USING ERRCODE = '55000',
                  DETAIL = 'It takes a timestamp with now() as its default, '
                           'or with a name such as created_at.',
                  HINT = format('For those to come: ALTER TABLE %s ADD COLUMN created_at '
                                'timestamptz NOT NULL DEFAULT now();', quoted_users);
    END IF;
    IF retained IS NOT NULL
       AND (retained ->> 'query' IS NULL
            OR activation._query_text(retained ->> 'query', 'text') ->> 'keyed'
               = activation._query_text(retained ->> 'query', 'text') ->> 'body') THEN
        RAISE EXCEPTION 'retained does not ask about a user'
            USING ERRCODE = '22023',
                  DETAIL = 'Its query has no $1 for the user''s key.',
                  HINT = 'Write it so: retained => activation.query('
                         '''SELECT 1 FROM subscriptions WHERE user_id = $1'').';
    END IF;

    -- Foreign keys of one column that end at the user's key, directly or over one table between.
    WITH link AS (
        SELECT c.conrelid AS from_table, f.attname AS from_column,
               c.confrelid AS to_table, t.attname AS to_column,
               activation._as_text(f.atttypid, '') IS DISTINCT FROM '::text COLLATE "C"'
               AS odd_from,
               activation._as_text(t.atttypid, '') IS DISTINCT FROM '::text COLLATE "C"'
               AS odd_to,
               f.atttypid AS from_type
          FROM pg_constraint c
          JOIN pg_attribute f ON f.attrelid = c.conrelid AND f.attnum = c.conkey[1]
          JOIN pg_attribute t ON t.attrelid = c.confrelid AND t.attnum = c.confkey[1]
          JOIN pg_class r ON r.oid = c.conrelid AND r.relkind IN ('r', 'p')
                         AND NOT r.relispartition AND r.relpersistence <> 't'
         WHERE c.contype = 'f' AND cardinality(c.conkey) = 1
           AND r.relnamespace <> 'activation'::regnamespace
    ), way AS (
        SELECT DISTINCT ON (w.table_oid) w.*
          FROM (SELECT l.from_table AS table_oid, 1 AS hops,
                       format('%s AS t', activation._table_name(l.from_table)) AS "from",
                       format('t.%I', l.from_column) AS key,
                       activation._as_text(l.from_type, format('t.%I', l.from_column)) AS key_text,
                       l.from_type, ARRAY[l.from_table] AS read, l.from_column AS first_column
                  FROM link l
                 WHERE l.to_table = users AND l.to_column = key AND l.from_table <> users
                UNION ALL
                SELECT l.from_table, 2,
                       format('%s AS t JOIN %s AS m ON m.%I = t.%I',
                              activation._table_name(l.from_table),
                              activation._table_name(m.from_table),
                              l.to_column, l.from_column),
                       format('m.%I', m.from_column),
                       -- Tables on the way are joined by an operator: it has to be a built-in one.
                       CASE WHEN NOT l.odd_from AND NOT l.odd_to
                            THEN activation._as_text(m.from_type,
                                                     format('m.%I', m.from_column)) END,
                       CASE WHEN l.odd_from OR l.odd_to THEN l.from_type ELSE m.from_type END,
                       ARRAY[l.from_table, m.from_table], m.from_column
                  FROM link l
                  JOIN link m ON m.from_table = l.to_table
                             AND m.to_table = users AND m.to_column = key
                 WHERE l.from_table <> users AND m.from_table <> users
                   AND l.from_table <> m.from_table) w
         ORDER BY w.table_oid, w.hops, w.first_column
    ), judged AS (
        SELECT w.*, activation._table_name(w.table_oid::regclass) AS name, c.relname,
               activation._inserted_at_column(w.table_oid::regclass) AS made,
               greatest(c.reltuples, 0) AS rows
          FROM way w JOIN pg_class c ON c.oid = w.table_oid
    )
    SELECT jsonb_agg(
               jsonb_build_object(
                   'table', j.name, 'relname', j.relname, 'from', j."from",
                   'reads', to_jsonb(j.read), 'key', j.key, 'key_text', j.key_text,
                   'made', j.made, 'rows', j.rows,
                   'columns', (
                       SELECT coalesce(jsonb_agg(
                                  jsonb_build_object(
                                      'name', a.attname, 'quoted', quote_ident(a.attname),
                                      'text', activation._as_text(a.atttypid,
                                                                  format('t.%I', a.attname)))
                                  ORDER BY a.attnum), '[]')
                         FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
                        WHERE a.attrelid = j.table_oid AND a.attnum > 0 AND NOT a.attisdropped
                          AND (t.typtype = 'e'
                               OR t.oid IN ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype))
                          AND NOT EXISTS (SELECT FROM pg_constraint k
                                           WHERE k.conrelid = j.table_oid
                                             AND k.contype IN ('p', 'u', 'f')
                                             AND a.attnum = ANY (k.conkey))))
               ORDER BY j.name) FILTER (WHERE j.made IS NOT NULL AND j.key_text IS NOT NULL),
           array_agg(
               format('%s: %s', j.name,
                      CASE WHEN j.made IS NULL THEN 'no column tells when a row came'
                           ELSE format('it is joined by the type %s, which is not built in',
                                       format_type(j.from_type, NULL)) END)
               ORDER BY j.name) FILTER (WHERE j.made IS NULL OR j.key_text IS NULL)
      INTO tables, left_out
      FROM judged j;
    IF tables IS NULL AND left_out IS NULL THEN
        RAISE EXCEPTION 'no table has a foreign key to %', quoted_users
            USING ERRCODE = '55000',
                  DETAIL = 'What people do is found by the tables that reference them.',
                  HINT = format('ALTER TABLE … ADD FOREIGN KEY (user_id) REFERENCES %s NOT VALID;',
                                quoted_users);
    END IF;
    days := ARRAY(SELECT DISTINCT d
                    FROM unnest(ARRAY[1, 3, 7, floor(extract(epoch FROM within) / 86400)::integer])
                         AS d
                   WHERE d * interval '1 day' <= within
                   ORDER BY d);
    RETURN jsonb_build_object(
        'users', quoted_users,
        'users_oid', users::oid,
        'key_text', key_text,
        'made', quote_ident(time_column),
        'days', to_jsonb(days),
        'tables', coalesce(tables, '[]'),
        'left_out', to_jsonb(coalesce(left_out, '{}'::text[])),
        'people', (SELECT greatest(c.reltuples, 0) FROM pg_class c WHERE c.oid = users),
        'now', activation._now(),
        'retained', CASE WHEN retained IS NOT NULL
                         THEN activation._query_text(
                                  retained ->> 'query',
                                  activation._type_name(activation._key_type(users, key)))
                              ->> 'keyed' END,
        'look', activation._look_for('retained', ARRAY[retained ->> 'query'], search_path,
                                     ARRAY[users], ARRAY[key]));
END
$$;
