-- Who a person is: whether they still exist, whether they are held out, whether their key fits.

-- Whether a user is in a loop's holdout: the same for ever, also on another server, and decided
-- apart for each loop.
CREATE FUNCTION activation._held_out(loop text, user_id text, share numeric) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN share > 0
   AND ('x' || substr(md5(loop || ':' || user_id), 1, 8))::bit(32)::bigint < share * 4294967296;

-- Whether a query over a table can be planned without running anybody's code: the planner runs the
-- constant parts of indexes, statistics, checks and partition keys, also of the table's children.
-- What initdb made leaves no trace in pg_depend.
CREATE FUNCTION activation._plans_plainly(relation regclass) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN NOT EXISTS (
        WITH RECURSIVE relation(oid) AS (
            SELECT _plans_plainly.relation::oid
            UNION
            SELECT i.inhrelid FROM relation r JOIN pg_inherits i ON i.inhparent = r.oid
        ), holder AS (
            SELECT 'pg_class'::regclass AS classid, i.indexrelid AS objid
              FROM relation r JOIN pg_index i ON i.indrelid = r.oid
             WHERE i.indexprs IS NOT NULL OR i.indpred IS NOT NULL
            UNION ALL
            SELECT 'pg_statistic_ext'::regclass, e.oid
              FROM relation r JOIN pg_statistic_ext e ON e.stxrelid = r.oid
            UNION ALL
            SELECT 'pg_constraint'::regclass, k.oid
              FROM relation r JOIN pg_constraint k ON k.conrelid = r.oid
             WHERE k.contype = 'c'
            UNION ALL
            SELECT 'pg_class'::regclass, p.partrelid
              FROM relation r JOIN pg_partitioned_table p ON p.partrelid = r.oid
        )
        SELECT
          FROM holder h JOIN pg_depend d ON d.classid = h.classid AND d.objid = h.objid
         WHERE d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass,
                                'pg_type'::regclass, 'pg_collation'::regclass)
        UNION ALL
        SELECT FROM relation r JOIN pg_class c USING (oid) WHERE c.relkind NOT IN ('r', 'p'));
END
$$;

-- Whether who is in a users table can be asked without running anybody's code: neither in the type
-- of the key (a domain's checks), nor in policies, nor while it is planned.
CREATE FUNCTION activation._reads_plainly(users regclass) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN activation._plans_plainly(users) AND NOT EXISTS (
        SELECT
          FROM activation.users_table u
          JOIN pg_class c ON c.oid = u.users
          JOIN pg_attribute a ON a.attrelid = u.users AND a.attname = u.key_column
          JOIN pg_type t ON t.oid = a.atttypid
         WHERE u.users = _reads_plainly.users
           AND (t.oid >= 16384
                OR t.typtype <> 'b'
                OR c.relrowsecurity
                   AND (c.relforcerowsecurity
                        OR EXISTS (SELECT
                                     FROM activation.loop_version v
                                     JOIN activation."loop" l USING (loop_id, version)
                                    WHERE v.users = u.users
                                      AND l.state <> 'archived'
                                      AND NOT pg_has_role(v.owner, c.relowner, 'USAGE')))));
END
$$;

-- Which of these users exist, asked through the black box of any loop on their table; NULL where
-- there is no such loop.
CREATE FUNCTION activation._existing_users(users regclass, user_ids text[]) RETURNS text[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v activation.loop_version;
    rows text[];
BEGIN
    SELECT x.* INTO v
      FROM activation.loop_version x
      JOIN activation."loop" l USING (loop_id, version)
     WHERE x.users = _existing_users.users
       AND l.state <> 'archived'
       AND EXISTS (SELECT FROM pg_proc p
                    WHERE p.pronamespace = 'activation_compiled'::regnamespace
                      AND p.proname = x.users_function)
     ORDER BY x.loop_id
     LIMIT 1;
    IF v.users_function IS NULL THEN
        RETURN NULL;
    END IF;
    -- First lines only, see _users_body(): whatever else stands in somebody's row, they exist. A
    -- key that is not even of the key's type is nobody's.
    PERFORM activation._evaluating(v.loop_id);
    BEGIN
        rows := (activation._safe_eval_each(
            v.users_function, v.owner, user_ids, first_lines => true)).answers;
    EXCEPTION WHEN SQLSTATE 'ACT04' OR SQLSTATE 'ACT05' THEN
        -- The loop fails for it, and nobody is taken for gone.
        PERFORM activation._evaluating(NULL);
        PERFORM activation._fail_at_once(v.loop_id, 'detect', SQLERRM, SQLSTATE = 'ACT05');
        RETURN user_ids;
    END;
    PERFORM activation._evaluating(NULL);
    RETURN ARRAY(SELECT split_part(u.r, E'\n', 1)::jsonb ->> 0 FROM unnest(rows) AS u(r));
END
$$;

-- Writes down, for each loop that these users wait in, that nobody knows whether they exist. Those
-- who are gone get no mail all the same: a claim reads their row.
CREATE FUNCTION activation._note_unreadable_deletion(
    of_users regclass, user_ids text[], problem text
) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
    INSERT INTO activation.capture_failure (at, loop_id, user_id, code, error)
    SELECT DISTINCT activation._now(), e.loop_id, e.user_id, 'deletion_unclear',
           'a row of this user was deleted, and whether they have another could not be told: '
           || problem
      FROM unnest(user_ids) AS k(user_id)
      CROSS JOIN LATERAL (
          SELECT x.user_id, x.loop_id, x.version, x.state
            FROM activation.enrollment x
           WHERE x.user_id = k.user_id
          OFFSET 0) e
      JOIN activation.loop_version v
        ON v.loop_id = e.loop_id AND v.version = e.version AND v.users = of_users
     WHERE e.state = 'waiting'
$$;

-- Of users whose rows were deleted, those who have none now: a row made again under the same key is
-- the same user. NULL where that cannot be told now.
CREATE FUNCTION activation._still_gone(users regclass, user_ids text[]) RETURNS text[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    began timestamptz := clock_timestamp();
BEGIN
    RETURN ARRAY(SELECT unnest(user_ids)
                 EXCEPT SELECT unnest(activation._existing_users(users, user_ids)));
EXCEPTION
    WHEN lock_not_available OR serialization_failure OR deadlock_detected OR query_canceled THEN
        -- It cannot be told now. An author's code may raise these as well, and its deletions must
        -- hold up nobody else's.
        PERFORM activation._evaluating(NULL);
        IF SQLSTATE = '57014' AND activation._over_condition_timeout(
               extract(epoch FROM clock_timestamp() - began)::double precision) THEN
            PERFORM activation._strike(
                       min(l.loop_id), 'detect',
                       'asking which users exist was cancelled, because it ran too long')
               FROM activation.loop_version x
               JOIN activation."loop" l USING (loop_id, version)
              WHERE x.users = _still_gone.users AND l.state IN ('active', 'stopped')
             HAVING count(*) > 0;
        END IF;
        RETURN NULL;
    WHEN others THEN
        PERFORM activation._evaluating(NULL);
        IF NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = users) THEN
            RETURN user_ids;
        END IF;
        -- Nobody is taken for gone because a function failed.
        PERFORM activation._note_unreadable_deletion(users, user_ids, SQLERRM);
        RETURN ARRAY[]::text[];
END
$$;

-- Remembers which addresses people had whose rows will not tell any more, unless an address was
-- forgotten already.
CREATE FUNCTION activation._remember_addresses(user_ids text[], addresses text[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    PERFORM activation._signing_key();
    INSERT INTO activation.past_address (user_id, hash, at)
    SELECT DISTINCT u.user_id, h.hash, activation._now()
      FROM unnest(user_ids, addresses) AS u(user_id, address),
           activation._hash_address(u.address) AS h(hash)
     WHERE u.address LIKE '_%@_%'
       AND NOT EXISTS (SELECT FROM activation.suppression s WHERE s.address = h.hash)
    ON CONFLICT DO NOTHING;
END
$$;

-- The longest key of a user, in bytes: what an index entry can hold, with room for what stands
-- beside it.
CREATE FUNCTION activation._longest_key() RETURNS integer
LANGUAGE sql IMMUTABLE
RETURN 1000;

-- Whether a user's key is short enough to be kept.
CREATE FUNCTION activation._key_fits(user_id text) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN octet_length(user_id) <= activation._longest_key();
