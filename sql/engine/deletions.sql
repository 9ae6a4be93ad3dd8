-- Signals of deletion: who has no row any more is let out of all loops. Asking who is
-- there runs an author's code.

-- Whose code took long in this session when it was asked who exists: {"sources": the columns that
-- hold keys of such tables, "until": when one of them is asked again}; NULL where nobody's did. It
-- stands in a setting of the session, so that a round where nothing is slow pays nothing for it.
CREATE FUNCTION activation._slow_users() RETURNS jsonb
LANGUAGE sql STABLE
RETURN nullif(current_setting('activation.slow_users', true), '')::jsonb;

-- Notes that asking who is in a table took long. It, and all else that its owner has, is left alone
-- for ten times as long, with all that was slow before: one table is asked then.
CREATE FUNCTION activation._note_slow_users(users regclass, seconds double precision)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT set_config('activation.slow_users', jsonb_build_object(
               'sources', coalesce(activation._slow_users() -> 'sources', '[]') || coalesce((
                   SELECT jsonb_agg(s.source_id ORDER BY s.table_name <> _note_slow_users.users)
                     FROM activation.source s
                     JOIN pg_class c ON c.oid = s.table_name
                     JOIN pg_class o ON o.oid = _note_slow_users.users AND o.relowner = c.relowner
                    WHERE NOT coalesce(activation._slow_users() -> 'sources', '[]')
                              @> to_jsonb(s.source_id)), '[]'),
               'until', extract(epoch FROM clock_timestamp()) + 10 * seconds)::text, false)
$$;

-- Of what is slow, the columns whose signals of deletion are left where they are in this round: all
-- while their time has not come, and then all but the first, which comes last the next time.
CREATE FUNCTION activation._sources_left_alone() RETURNS integer[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    slow jsonb := activation._slow_users();
    sources integer[] := ARRAY(SELECT s::integer
                                 FROM jsonb_array_elements_text(slow -> 'sources') AS s);
BEGIN
    IF slow IS NULL
       OR (slow ->> 'until')::double precision > extract(epoch FROM clock_timestamp()) THEN
        RETURN sources;
    END IF;
    PERFORM set_config('activation.slow_users', jsonb_set(
        slow, '{sources}', to_jsonb(sources[2 :] || sources[1]))::text, false);
    RETURN sources[2 :];
END
$$;

-- Follows signals of deletions: users who have no row any more leave their loops, and their
-- addresses are remembered, for erase().
CREATE FUNCTION activation._take_deletions(
    source_ids integer[], user_ids text[], addresses text[], now timestamptz
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    gone record;
    still_gone text[];
    took double precision := 0;
    began timestamptz;
BEGIN
    FOR gone IN
        SELECT s.table_name, array_agg(u.user_id) AS users
          FROM unnest(source_ids, user_ids) AS u(source_id, user_id)
          JOIN activation.source s USING (source_id)
         GROUP BY 1
    LOOP
        still_gone := NULL;
        IF took < 1 THEN
            began := clock_timestamp();
            still_gone := activation._still_gone(gone.table_name, gone.users);
            took := extract(epoch FROM clock_timestamp() - began);
            IF took >= 1 THEN
                PERFORM activation._note_slow_users(gone.table_name, took);
            END IF;
        END IF;
        IF still_gone IS NULL THEN
            -- A later round asks again, also where another table used up the time of this one.
            INSERT INTO activation.signal
                   (at, source_id, generation, user_id, user_deleted, address)
            SELECT now, u.source_id, 0, u.user_id, true, u.address
              FROM unnest(source_ids, user_ids, addresses) AS u(source_id, user_id, address)
              JOIN activation.source s USING (source_id)
             WHERE s.table_name = gone.table_name;
            CONTINUE;
        END IF;
        PERFORM activation._exit_enrollments(
            ARRAY(
                SELECT e.enrollment_id
                  FROM unnest(still_gone) AS k(user_id)
                  CROSS JOIN LATERAL (
                      SELECT x.enrollment_id, x.loop_id, x.version
                        FROM activation.enrollment x
                       WHERE x.user_id = k.user_id
                      OFFSET 0) e
                  JOIN activation.loop_version v
                    ON v.loop_id = e.loop_id AND v.version = e.version
                       AND v.users = gone.table_name),
            'user_deleted');
        PERFORM activation._remember_addresses(u.users, u.addresses)
           FROM (SELECT array_agg(x.user_id) AS users,
                        array_agg(activation._fold_address(x.address)) AS addresses
                   FROM unnest(user_ids, _take_deletions.addresses) AS x(user_id, address)
                  WHERE x.user_id = ANY (still_gone)) u;
        IF (activation._setting()).erase_on_delete THEN
            INSERT INTO activation.erasure (user_id, asked_at)
            SELECT DISTINCT k, now FROM unnest(still_gone) AS k
            ON CONFLICT DO NOTHING;
        END IF;
    END LOOP;
END
$$;
