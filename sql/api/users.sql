-- Users tables: which tables hold users, and which of their columns say who they are.

-- Refuses what our triggers cannot stand on: anything but a lasting table of the app's own, plain
-- or partitioned, and tables of a Citus cluster.
CREATE FUNCTION activation._check_table(users regclass, context text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    relation pg_class;
BEGIN
    SELECT c.* INTO relation FROM pg_class c WHERE c.oid = users;
    IF relation.relkind NOT IN ('r', 'p') THEN
        RAISE EXCEPTION '%: % is a %, not a table', context, activation._table_name(users),
            CASE relation.relkind
                WHEN 'v' THEN 'view'
                WHEN 'm' THEN 'materialized view'
                WHEN 'f' THEN 'foreign table'
                WHEN 'S' THEN 'sequence'
                WHEN 'i' THEN 'index'
                ELSE 'relation of another kind'
            END
            USING ERRCODE = '42809', HINT = 'Name the table that the app inserts its users into.';
    END IF;
    IF relation.relpersistence = 't'
       OR relation.relnamespace IN ('pg_catalog'::regnamespace, 'activation'::regnamespace) THEN
        RAISE EXCEPTION '%: % is a temporary or system table', context,
            activation._table_name(users)
            USING ERRCODE = '42809', HINT = 'Name the table that the app inserts its users into.';
    END IF;
    IF to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL THEN
        -- A statement trigger on a Citus distributed table breaks every INSERT.
        RAISE EXCEPTION '%: tables of a Citus cluster are not supported yet', context
            USING ERRCODE = '0A000', HINT = 'Use a server without Citus.';
    END IF;
END
$$;

-- Finds the column that identifies a user: the one that is named, else the registered one, else
-- the primary key.
CREATE FUNCTION activation._users_key(users regclass, key name, context text) RETURNS name
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    table_label text := activation._table_name(users);
BEGIN
    key := coalesce(
        key,
        (SELECT u.key_column FROM activation.users_table u WHERE u.users = _users_key.users),
        activation._primary_key_column(users));
    IF key IS NULL THEN
        RAISE EXCEPTION '%: table % has %', context, table_label,
            CASE WHEN activation._primary_key(users) = '{}' THEN 'no primary key'
                 ELSE 'a primary key of several columns' END
            USING ERRCODE = '42P16',
                  HINT = format('Name the column that identifies a user: '
                                'SELECT activation.set_users(%L, key => ''id'');', table_label);
    END IF;
    RETURN key;
END
$$;

-- Registers a users table. A column that is not named is the one that was registered, else the
-- primary key and the column email.
-- Long because each thing that can be wrong with the table has an error or a notice of its own.
CREATE FUNCTION activation._register_users(
    users regclass, key name, email name, timezone name, context text
) RETURNS activation.users_table
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    table_label text := activation._table_name(users);
    registered activation.users_table;
    previous activation.users_table;
    given record;
    compiled record;
BEGIN
    PERFORM activation._check_table(users, context);
    SELECT u.* INTO registered
      FROM activation.users_table u WHERE u.users = _register_users.users;
    previous := registered;
    key := activation._users_key(users, key, context);
    email := coalesce(email, registered.email_column, 'email');
    FOR given IN
        SELECT *
          FROM (VALUES ('key', key), ('email', email), ('timezone', timezone))
               AS v(argument, name)
         WHERE v.name IS NOT NULL
    LOOP
        IF activation._key_type(users, given.name) IS NULL THEN
            RAISE EXCEPTION '%: table % has no column %', context, table_label,
                quote_ident(given.name)
                USING ERRCODE = '42703',
                      DETAIL = format('It has %s.', (
                          SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)
                            FROM pg_attribute a
                           WHERE a.attrelid = users AND a.attnum > 0 AND NOT a.attisdropped)),
                      HINT = format('Name the column: '
                                    'SELECT activation.set_users(%L, %s => ''…'');',
                                    table_label, given.argument);
        END IF;
    END LOOP;
    IF NOT EXISTS (
        SELECT FROM pg_index i
          JOIN pg_attribute a ON a.attrelid = users AND a.attnum = i.indkey[0]
         WHERE i.indrelid = users AND i.indisvalid AND i.indpred IS NULL AND a.attname = key
    ) THEN
        RAISE EXCEPTION '%: column % of % leads no index', context, quote_ident(key), table_label
            USING ERRCODE = '55000',
                  HINT = format('Users are looked up by it: CREATE INDEX ON %s (%I);',
                                table_label, key);
    END IF;
    IF NOT EXISTS (
        SELECT FROM pg_index i
          JOIN pg_attribute a ON a.attrelid = users AND a.attnum = i.indkey[0]
         WHERE i.indrelid = users AND i.indisunique AND i.indpred IS NULL AND i.indnkeyatts = 1
           AND a.attname = key
    ) THEN
        RAISE NOTICE 'column % of % is not provably unique', quote_ident(key), table_label
            USING HINT = 'Rows with the same key are one user to activation.';
    END IF;
    IF registered.key_column IS NOT NULL AND registered.key_column <> key
       AND EXISTS (SELECT FROM activation.loop_version v WHERE v.users = _register_users.users) THEN
        RAISE EXCEPTION '%: the key of % is % and loops use it', context, table_label,
            quote_ident(registered.key_column)
            USING ERRCODE = '55006', HINT = 'A users table keeps its key once a loop uses it.';
    END IF;
    INSERT INTO activation.users_table AS u (users, key_column, email_column, timezone_column)
    VALUES (_register_users.users, key, email, timezone)
    ON CONFLICT ON CONSTRAINT users_table_pkey DO UPDATE
       SET key_column = excluded.key_column, email_column = excluded.email_column,
           timezone_column = coalesce(excluded.timezone_column, u.timezone_column)
    RETURNING * INTO registered;
    -- Loops that exist already read the address and the time zone from the new columns.
    FOR compiled IN
        SELECT v.users_function, v.owner
          FROM activation.loop_version v
         WHERE v.users = _register_users.users
           AND activation._function_exists(v.users_function)
           AND (previous.email_column, previous.timezone_column)
               IS DISTINCT FROM (registered.email_column, registered.timezone_column)
    LOOP
        EXECUTE format('DROP FUNCTION activation_compiled.%I(text[])', compiled.users_function);
        PERFORM activation._compile_box(
            compiled.users_function, activation._key_type(users, registered.key_column),
            activation._users_body(users), compiled.owner);
    END LOOP;
    RETURN registered;
END
$$;

-- Refuses a role without the privileges of a table's owner, since a loop puts triggers on the
-- table.
CREATE FUNCTION activation._require_owner(role oid, table_name regclass, context text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT activation._may_trigger(role, table_name) THEN
        RAISE EXCEPTION '%: % does not have the privileges of the owner of %', context,
            activation._role_name(role), activation._table_name(table_name)
            USING ERRCODE = '42501',
                  HINT = format('Let %s do it, or grant that role to %s.', (
                      SELECT activation._role_name(c.relowner)
                        FROM pg_class c WHERE c.oid = table_name), activation._role_name(role));
    END IF;
END
$$;

-- What set_users() does, once its caller is known.
CREATE FUNCTION activation._set_users(
    caller oid, users regclass, key name, email name, timezone name
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF users IS NULL THEN
        RAISE EXCEPTION 'set_users needs a table'
            USING ERRCODE = '22004',
                  HINT = 'SELECT activation.set_users(''users'', email => ''email'');';
    END IF;
    PERFORM activation._require_owner(caller, users, 'set_users');
    PERFORM activation._register_users(users, key, email, timezone, 'set_users');
    -- The columns that are captured of a deleted row may be others now.
    PERFORM activation._generate_capture(users, only_known => true);
END
$$;

CREATE FUNCTION activation.set_users(
    users regclass, key name DEFAULT NULL, email name DEFAULT NULL, timezone name DEFAULT NULL
) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.call (verb, arguments)
    VALUES ('set_users', jsonb_build_object(
        'users', users::oid::bigint, 'key', key, 'email', email, 'timezone', timezone))
$$;
COMMENT ON FUNCTION activation.set_users(regclass, name, name, name) IS
'Registers a users table, a table whose rows are users, or changes what is registered. The first
loop on a table registers it by itself where the defaults fit. For the table''s owner.
users: the table.
key: the column that identifies a user and leads an index (default: the primary key).
email: the column with the address (default: email).
timezone: a column with the user''s time zone (default: none).
Raises 22004 without a table, 42809 for what is no table, 42P16 without a key, 42703 for an
  unknown column, 55000 for a key that leads no index, 55006 for another key while loops use the
  table, 42501 for a role without its owner''s privileges.';
