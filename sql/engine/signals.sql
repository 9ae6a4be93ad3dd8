-- Signals become enrollments; a signal of a deletion ends them.

-- Where signals stand that are taken next, about `batch` at most, locked: those that somebody's
-- open transaction has deleted (archive_loop, erase) are left to it. Of many, half are the oldest;
-- the others come from the newest blocks and from anywhere, so that a multitude that one source
-- wrote at once does not keep another's waiting. There is no index, see activation.signal.
CREATE FUNCTION activation._next_signals(buckets integer[], batch integer) RETURNS tid[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    blocks bigint := pg_relation_size('activation.signal')
                     / current_setting('block_size')::integer;
    left_alone integer[] := CASE WHEN current_setting('activation.slow_users', true) <> ''
                                 THEN activation._sources_left_alone() ELSE '{}' END;
    crowded boolean := blocks > 100;
    start tid;
    others tid[] := '{}'::tid[];
    found tid[] := ARRAY(
        SELECT s.ctid
          FROM activation.signal s
         WHERE activation._user_bucket(s.user_id) = ANY (buckets)
           AND (s.user_deleted IS NULL OR s.source_id <> ALL (left_alone))
         LIMIT greatest(batch, 1)
           FOR UPDATE SKIP LOCKED);
BEGIN
    IF NOT crowded OR cardinality(found) < batch THEN
        RETURN found;
    END IF;
    FOR n IN 1 .. 2 LOOP
        -- Drawn before the statement: a place that is drawn for each row takes all blocks to find.
        start := format('(%s,0)', CASE n WHEN 1 THEN greatest(blocks - 1 - batch / 1000, 0)
                                         ELSE floor(random() * blocks) END)::tid;
        others := others || ARRAY(
            SELECT s.ctid
              FROM activation.signal s
             WHERE s.ctid >= start
               AND activation._user_bucket(s.user_id) = ANY (buckets)
               AND (s.user_deleted IS NULL OR s.source_id <> ALL (left_alone))
             LIMIT CASE n WHEN 1 THEN least(greatest(batch / 4, 150), batch / 2)
                          ELSE batch / 4 END
               FOR UPDATE SKIP LOCKED);
    END LOOP;
    -- As many as were asked for, so that the caller sees that there are more.
    RETURN ARRAY(
        SELECT u.place
          FROM unnest(others || found) WITH ORDINALITY AS u(place, ordinal)
         GROUP BY u.place
         ORDER BY min(u.ordinal)
         LIMIT batch);
END
$$;

-- Asks filters that were not asked in the app's session, since it had open cursors. Whoever passes
-- becomes a signal of the next round. Runs an author's code.
CREATE FUNCTION activation._ask_filters(places tid[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    of_loop integer;
    v activation.loop_version;
    answer record;
    problem text;
    code text;
BEGIN
    FOREACH of_loop IN ARRAY ARRAY(SELECT DISTINCT s.loop_id FROM activation.signal s
                                    WHERE s.ctid = ANY (places) AND s.unasked) LOOP
        SELECT x.* INTO v
          FROM activation.loop_version x JOIN activation."loop" l USING (loop_id, version)
         WHERE x.loop_id = of_loop;
        SELECT '{}'::text[] AS answers, '{}'::text[] AS bad_keys, '{}'::text[] AS errors
          INTO answer;
        problem := CASE WHEN v.passing_function IS NULL THEN 'the loop has no filter any more' END;
        code := NULL;
        BEGIN
            PERFORM activation._evaluating(of_loop);
            IF problem IS NULL THEN
                SELECT a.answers, a.bad_keys, a.errors INTO answer
                  FROM activation._safe_eval_each(
                           v.passing_function, v.owner,
                           ARRAY(SELECT DISTINCT s.user_id FROM activation.signal s
                                  WHERE s.ctid = ANY (places) AND s.unasked
                                    AND s.loop_id = of_loop)) a;
            END IF;
        EXCEPTION WHEN others OR assert_failure OR query_canceled THEN
            problem := activation._shortened(SQLERRM);
            code := SQLSTATE;
        END;
        PERFORM activation._evaluating(NULL);
        IF code IN ('ACT04', 'ACT05') THEN
            PERFORM activation._fail_at_once(of_loop, 'detect', problem, code = 'ACT05');
        END IF;
        WITH taken AS (
            DELETE FROM activation.signal s
             WHERE s.ctid = ANY (places) AND s.unasked AND s.loop_id = of_loop
            RETURNING s.*
        )
        INSERT INTO activation.signal (at, source_id, generation, loop_id, user_id, error)
        SELECT t.at, t.source_id, t.generation, t.loop_id, t.user_id, coalesce(problem, b.error)
          FROM taken t
          LEFT JOIN unnest(answer.bad_keys, answer.errors) AS b(key, error) ON b.key = t.user_id
         WHERE problem IS NOT NULL OR b.key IS NOT NULL OR t.user_id = ANY (answer.answers);
    END LOOP;
END
$$;

-- Takes signals, at most `batch`, and turns them into enrollments.
CREATE FUNCTION activation._take_signals(
    buckets integer[], batch integer, OUT taken integer, OUT ids bigint[]
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    found tid[] := activation._next_signals(buckets, batch);
BEGIN
    taken := cardinality(found);
    IF taken > 0 THEN
        IF EXISTS (SELECT FROM activation.signal s WHERE s.ctid = ANY (found) AND s.unasked) THEN
            PERFORM activation._ask_filters(found);
        END IF;
        ids := activation._take_these_signals(found);
    END IF;
END
$$;

-- Turns these signals into enrollments, although one of them may raise: that one is found by
-- halving and set aside, and the others go on.
CREATE FUNCTION activation._take_these_signals(places tid[]) RETURNS bigint[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    middle integer := cardinality(places) / 2;
BEGIN
    BEGIN
        RETURN activation._enroll_signals(places);
    EXCEPTION WHEN others THEN
        IF NOT activation._is_about_one_person(SQLSTATE) THEN
            RAISE;
        ELSIF middle = 0 THEN
            PERFORM activation._set_signal_aside(places[1], activation._shortened(SQLERRM));
            RETURN NULL;
        END IF;
    END;
    RETURN activation._take_these_signals(places[: middle])
        || activation._take_these_signals(places[middle + 1 :]);
END
$$;

-- Removes a signal that cannot be taken, and writes that down in each loop that it was for.
CREATE FUNCTION activation._set_signal_aside(place tid, problem text) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    WITH aside AS (
        DELETE FROM activation.signal WHERE ctid = place RETURNING *
    )
    INSERT INTO activation.capture_failure (at, loop_id, user_id, error, code)
    SELECT t.at, l.loop_id, t.user_id, problem,
           CASE WHEN t.user_deleted THEN 'deletion_unclear' ELSE 'not_captured' END
      FROM aside t
      LEFT JOIN activation.source s ON s.source_id = t.source_id
      -- A deletion in the users table is for every loop whose users those are.
      JOIN activation.loop_version v ON CASE WHEN t.user_deleted THEN v.users = s.table_name
                                             WHEN t.loop_id IS NULL THEN v.source_id = t.source_id
                                             ELSE v.loop_id = t.loop_id END
      JOIN activation."loop" l ON l.loop_id = v.loop_id AND l.version = v.version
     WHERE l.state <> 'archived'
$$;

-- Turns signals into enrollments, and returns which. There is at most one waiting enrollment of a
-- user in a loop, and a next one only where the loop's reentry allows it.
-- Long because it takes, checks and enrolls in one statement, so that each signal is read once.
CREATE FUNCTION activation._enroll_signals(places tid[]) RETURNS bigint[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    now timestamptz := activation._now();
    newest_template_id integer := coalesce(
        (SELECT max(t.template_id) FROM activation.template t), 0);
    ids bigint[];
    gone_sources integer[];
    gone_users text[];
    gone_addresses text[];
    harmful jsonb;
    harm record;
BEGIN
    WITH signals AS (
        DELETE FROM activation.signal WHERE ctid = ANY (places) RETURNING *
    ), meant AS (
        SELECT v.loop_id, v.version, t.user_id, t.at, t.enrolled_by, t.context,
               v.reentry, v.holdout, activation._key_fits(t.user_id) AS fits
          FROM signals t
          JOIN activation.loop_version v
            ON v.source_id = t.source_id AND v.event = 'insert' AND v.filter_function IS NULL
               AND v.generation <= t.generation
          JOIN activation."loop" l ON l.loop_id = v.loop_id AND l.version = v.version
         WHERE t.loop_id IS NULL
           AND t.error IS NULL
           AND t.user_deleted IS NULL
           AND l.state <> 'archived'
        UNION ALL
        -- Who passed the filter of an earlier version of a loop is in it.
        SELECT v.loop_id, v.version, t.user_id, t.at, t.enrolled_by, t.context,
               v.reentry, v.holdout, activation._key_fits(t.user_id)
          FROM signals t
          JOIN activation."loop" l USING (loop_id)
          JOIN activation.loop_version v
            ON v.loop_id = l.loop_id AND v.version = l.version AND t.source_id IN (0, v.source_id)
         WHERE t.error IS NULL
           AND l.state <> 'archived'
    ), failed AS (
        INSERT INTO activation.capture_failure (at, loop_id, user_id, error)
        SELECT t.at, t.loop_id, t.user_id, 'the filter raised: ' || t.error
          FROM signals t
         WHERE t.error IS NOT NULL
        UNION ALL
        SELECT m.at, m.loop_id, m.user_id,
               format('the key has %s bytes, and the longest that can be kept has %s',
                      octet_length(m.user_id), activation._longest_key())
          FROM meant m
         WHERE NOT m.fits
    ), enrolled AS (
        INSERT INTO activation.enrollment (
            loop_id, version, user_id, pass, state, step,
            enrolled_at, created_at,
            starts_at, deadline,
            holdout,
            newest_template_id, enrolled_by, context)
        SELECT DISTINCT ON (m.loop_id, m.user_id)
               m.loop_id, m.version, m.user_id, coalesce(last.pass, 0) + 1, 'waiting', s.step,
               m.at, now,
               CASE WHEN s.delay > interval '0' THEN m.at + s.delay END, m.at + s.delay + s.timeout,
               activation._held_out(l.name, m.user_id, m.holdout),
               newest_template_id, m.enrolled_by, m.context
          FROM meant m
          JOIN activation."loop" l USING (loop_id)
          JOIN activation.step s
            ON s.loop_id = m.loop_id AND s.version = m.version AND s.position = 1
          -- Also asked where nobody comes in twice: an insertion would wait for whoever is changing
          -- the enrollment that is there (migrate_loop in an open transaction).
          LEFT JOIN LATERAL (
              SELECT x.pass, x.state, x.enrolled_at
                FROM activation.enrollment x
               WHERE x.user_id = m.user_id AND x.loop_id = m.loop_id
               ORDER BY x.pass DESC
               LIMIT 1) last ON true
         WHERE m.fits
           AND (last.pass IS NULL
                OR last.state <> 'waiting' AND last.enrolled_at + m.reentry <= m.at)
         ORDER BY m.loop_id, m.user_id, m.at
        ON CONFLICT DO NOTHING
        RETURNING enrollment_id
    )
    SELECT (SELECT array_agg(e.enrollment_id) FROM enrolled e), g.sources, g.users, g.addresses,
           (SELECT jsonb_object_agg(t.loop_id, t.harm) FROM signals t WHERE t.harm IS NOT NULL)
      INTO ids, gone_sources, gone_users, gone_addresses, harmful
      FROM (SELECT array_agg(t.source_id) AS sources, array_agg(t.user_id) AS users,
                   array_agg(t.address) AS addresses
              FROM signals t
             WHERE t.user_deleted AND activation._key_fits(t.user_id)) g;
    FOR harm IN SELECT h.key::integer AS loop_id, h.value FROM jsonb_each_text(harmful) AS h LOOP
        PERFORM activation._fail_at_once(harm.loop_id, 'detect', harm.value, false);
    END LOOP;
    IF gone_users IS NOT NULL THEN
        PERFORM activation._take_deletions(gone_sources, gone_users, gone_addresses, now);
    END IF;
    RETURN ids;
END
$$;
