-- What simulate(), milestone() and suggest() go by in the app's tables: who is a user, and when a
-- row was inserted.

-- The column that tells when a row was inserted: by its default, else by its name. NULL where there
-- is none.
CREATE FUNCTION activation._inserted_at_column(table_name regclass) RETURNS name
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT a.attname
      FROM pg_attribute a
      LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
     WHERE a.attrelid = table_name AND a.attnum > 0 AND NOT a.attisdropped
       AND a.atttypid IN ('timestamptz'::regtype, 'timestamp'::regtype)
       AND lower(a.attname) !~ '(updat|modif|chang|delet|expir|last)'
       AND (pg_get_expr(d.adbin, d.adrelid)
            ~* '^\(?\(?(now\(\)|CURRENT_TIMESTAMP|LOCALTIMESTAMP|clock_timestamp\(\)'
               '|statement_timestamp\(\)|transaction_timestamp\(\))'
            OR lower(replace(a.attname, '_', ''))
               IN ('createdat', 'insertedat', 'created', 'inserted', 'createdon', 'addedat',
                   'occurredat', 'happenedat', 'datejoined', 'joinedat', 'registeredat',
                   'signedupat', 'timestamp', 'at', 'ts', 'time'))
     ORDER BY lower(replace(a.attname, '_', ''))
              IN ('createdat', 'insertedat', 'created', 'inserted') DESC, a.attnum
     LIMIT 1
$$;

-- The table of users that is meant, and its key, also where it is not registered yet:
-- {"users", "key"}.
CREATE FUNCTION activation._suggest_users(users regclass, search_path text) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    registered integer;
    quoted_name text;
    key name;
BEGIN
    IF users IS NULL THEN
        SELECT count(*), min(u.users::oid)::regclass INTO registered, users
          FROM activation.users_table u;
        IF registered > 1 THEN
            RAISE EXCEPTION 'there are several tables of users'
                USING ERRCODE = '22023',
                      DETAIL = format('%s.',
                                      (SELECT string_agg(activation._table_name(u.users), ', ')
                                         FROM activation.users_table u)),
                      HINT = 'Say which: suggest(users => …).';
        END IF;
        IF users IS NULL THEN
            PERFORM set_config('search_path', search_path, true);
            users := pg_catalog.to_regclass('users');
            PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        END IF;
        IF users IS NULL THEN
            RAISE EXCEPTION 'there is no table of users to go by'
                USING ERRCODE = '42P01', HINT = 'Name it: suggest(users => ''members'').';
        END IF;
    END IF;
    quoted_name := activation._table_name(users);
    IF quoted_name IS NULL
       OR (SELECT c.relkind NOT IN ('r', 'p') FROM pg_class c WHERE c.oid = users) THEN
        RAISE EXCEPTION '% is not a table', coalesce(quoted_name, users::text)
            USING ERRCODE = '42809', HINT = 'Name the table whose rows are users.';
    END IF;
    key := coalesce((SELECT u.key_column FROM activation.users_table u
                      WHERE u.users = _suggest_users.users),
                    activation._primary_key_column(users));
    IF key IS NULL THEN
        RAISE EXCEPTION 'table % has no primary key of one column', quoted_name
            USING ERRCODE = '42P16',
                  HINT = format('Say what identifies a user: '
                                'SELECT activation.set_users(%L, key => ''id'');', quoted_name);
    END IF;
    RETURN jsonb_build_object('users', quoted_name, 'key', key);
END
$$;
