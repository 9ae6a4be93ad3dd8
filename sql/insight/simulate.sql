-- A loop rehearsed over the app's own history: who would have been enrolled, what each step would have decided and when, and
-- which mails would have gone out. Reads only. The app's tables, and an author's text, are read with the rights of whoever
-- asks, in whose hands that text may be no snare: it has to be their own, or that of a role which could do as much anyway.
-- And so has to be all that the text would run.

-- What simulate() counts: every mail that would have been promised, and what would have become of it; and for everybody
-- enrolled a row without a step, at: when, goal_at: when they reached the goal. notes come first, in a row of their own.
CREATE FUNCTION activation._simulate(loop text, definition jsonb, since timestamptz, until timestamptz, timestamps jsonb, names text)
RETURNS TABLE (user_id text, enrolled_at timestamptz, step text, branch text, status text, at timestamptz, goal_at timestamptz, held_out boolean, notes jsonb)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    stored record;
    plan jsonb;
    rehearsed jsonb;
    path text := _simulate.names;
    conditions jsonb := '{}'::jsonb;
    remarks text[] := '{}'::text[];
    c record;
    s record;
    asked jsonb;
    explained text;
    shown text;
    keys text[];
    enrolled timestamptz[];
    goals timestamptz[];
    held boolean[];
    zones text[];
    starts timestamptz[];
    ends timestamptz[];
    trues timestamptz[];
    goal_name text;
BEGIN
    IF _simulate.definition IS NULL THEN
        SELECT d.* INTO stored FROM activation.loop_definition d WHERE d.loop = _simulate.loop AND d.visible;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'loop "%" does not exist', _simulate.loop
                USING ERRCODE = '42704', DETAIL = 'Or it belongs to a role that you may not act as.',
                      HINT = 'Rehearse a definition before there is a loop: simulate(definition => …, since => …).';
        ELSIF NOT coalesce(pg_has_role(stored.owner, current_user, 'USAGE'), false) THEN
            RAISE EXCEPTION 'loop "%": % may not rehearse it', _simulate.loop, quote_ident(current_user)
                USING ERRCODE = '42501', DETAIL = format('Its SQL is of %s, and would run with your rights.', coalesce(quote_ident(stored.owner), 'a role that is gone')),
                      HINT = format('SET ROLE %I; SELECT * FROM activation.simulate(%L, …); RESET ROLE;', coalesce(stored.owner, '…'), _simulate.loop);
        END IF;
        path := stored.names;
        plan := activation._simulate_plan(_simulate.loop, stored.definition, jsonb_build_object('users', stored.users::oid, 'table', stored.table_name::oid, 'key', stored.key_column),
                                          since, until, timestamps, path);
    ELSE
        plan := activation._simulate_plan(_simulate.loop, _simulate.definition, NULL, since, until, timestamps, path);
    END IF;
    rehearsed := plan -> 'definition';
    goal_name := CASE WHEN rehearsed -> 'goal' <> 'null' THEN '' ELSE (SELECT x.step ->> 'name' FROM jsonb_array_elements(rehearsed -> 'steps') WITH ORDINALITY AS x(step, n)
                                                                        WHERE x.step -> 'condition' <> 'null' ORDER BY x.n LIMIT 1) END;
    PERFORM activation._look_up(plan -> 'look');
    -- Which conditions can be replayed. A step whose cannot ends the rehearsal there.
    EXECUTE format('EXPLAIN (VERBOSE, FORMAT JSON) SELECT (pg_catalog.current_setting(''activation.key'', true)::%s)', plan ->> 'type') INTO shown;
    shown := shown::jsonb #>> '{0,Plan,Output,0}';
    FOR c IN SELECT x ->> 'name' AS name, x ->> 'query' AS query, x ->> 'explained' AS explained FROM jsonb_array_elements(plan -> 'conditions') AS x LOOP
        -- Planning is running: what cannot be looked into is not planned.
        asked := activation._simulate_query(c.query, NULL, shown, plan ->> 'type', timestamps);
        IF asked ->> 'problem' IS NULL THEN
            PERFORM activation._look_up(plan -> 'look');
            -- @plpgsql_check_options: security_warnings = off
            PERFORM set_config('search_path', path, true);
            EXECUTE 'EXPLAIN (VERBOSE, FORMAT JSON) ' || c.explained INTO explained;
            PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
            asked := activation._simulate_query(c.query, explained::jsonb, shown, plan ->> 'type', timestamps);
            asked := asked || jsonb_build_object('look', jsonb_set(plan -> 'look', '{columns}', (plan #> '{look,columns}') || coalesce(asked -> 'columns', '[]')));
        END IF;
        conditions := conditions || jsonb_build_object(c.name, asked);
        remarks := remarks || ARRAY(SELECT jsonb_array_elements_text(coalesce(asked -> 'notes', '[]')));
        IF asked ->> 'problem' IS NOT NULL THEN
            remarks := remarks || format('%s cannot be replayed: %s', CASE c.name WHEN '' THEN 'the goal' ELSE format('step "%s" and what follows it', c.name) END, asked ->> 'problem');
        END IF;
    END LOOP;
    IF rehearsed ->> 'reentry' <> 'once' THEN
        remarks := remarks || format('reentry %s is not replayed: everybody is enrolled once, by their first', rehearsed ->> 'reentry');
    END IF;
    IF rehearsed ->> 'enroll' <> 'new' THEN
        remarks := remarks || 'existing users are not enrolled in a rehearsal, only those who came since'::text;
    END IF;

    PERFORM activation._look_up(plan -> 'look');
    -- @plpgsql_check_options: security_warnings = off
    PERFORM set_config('search_path', CASE WHEN (plan ->> 'own_filter')::boolean THEN 'pg_catalog, pg_temp' ELSE path END, true);
    EXECUTE format('SELECT pg_catalog.array_agg(x.key ORDER BY x.at, x.key), pg_catalog.array_agg(x.at ORDER BY x.at, x.key)'
                   ' FROM (SELECT "new".%1$s::pg_catalog.text COLLATE pg_catalog."C" AS key, pg_catalog.min("new".%2$s::pg_catalog.timestamptz) AS at FROM %3$s AS "new"'
                   ' WHERE "new".%1$s IS NOT NULL AND "new".%2$s::pg_catalog.timestamptz OPERATOR(pg_catalog.>=) $1 AND "new".%2$s::pg_catalog.timestamptz OPERATOR(pg_catalog.<) $2'
                   ' AND (%4$s) GROUP BY 1) AS x', plan ->> 'user_key', plan ->> 'made', plan ->> 'table', coalesce(plan ->> 'filter', 'true'))
       INTO keys, enrolled USING since, until;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    IF keys IS NULL THEN
        remarks := remarks || format('nobody came to %s between %s and %s', plan ->> 'table', since, until);
        keys := '{}';
        enrolled := '{}';
    END IF;
    held := CASE WHEN (rehearsed ->> 'holdout')::numeric = 0 THEN array_fill(false, ARRAY[cardinality(keys)])
                 ELSE ARRAY(SELECT activation._held_out(plan ->> 'loop', u.key, (rehearsed ->> 'holdout')::numeric) FROM unnest(keys) WITH ORDINALITY AS u(key, n) ORDER BY u.n) END;
    IF rehearsed -> 'send_window' <> 'null' THEN
        IF plan ->> 'zone' IS NOT NULL THEN
            PERFORM activation._look_up(plan -> 'look');
            EXECUTE format('SELECT array_agg(t.%s::text ORDER BY u.n) FROM unnest($1) WITH ORDINALITY AS u(key, n) LEFT JOIN %s AS t ON t.%s::text COLLATE "C" = u.key',
                           plan ->> 'zone', plan ->> 'users', plan ->> 'key') INTO zones USING keys;
        END IF;
        zones := ARRAY(SELECT coalesce(z.name, plan ->> 'timezone') FROM unnest(keys, zones) WITH ORDINALITY AS u(key, zone, n) LEFT JOIN pg_timezone_names z ON z.name = u.zone ORDER BY u.n);
    END IF;
    IF goal_name IS NOT NULL AND conditions #>> ARRAY[goal_name, 'problem'] IS NULL THEN
        goals := activation._first_true(conditions -> goal_name, path, keys, enrolled, array_fill(until, ARRAY[cardinality(keys)]), until);
    END IF;
    RETURN QUERY SELECT NULL::text, NULL::timestamptz, NULL::text, NULL::text, NULL::text, NULL::timestamptz, NULL::timestamptz, NULL::boolean,
                        jsonb_build_object('notes', (SELECT jsonb_agg(DISTINCT n) FROM unnest(remarks) AS n), 'rate', plan -> 'rate', 'goal', goal_name IS NOT NULL);
    RETURN QUERY SELECT u.key, u.at, NULL::text, NULL::text, NULL::text, u.at, u.goal_at, u.held, NULL::jsonb FROM unnest(keys, enrolled, goals, held) AS u(key, at, goal_at, held);

    starts := enrolled;
    FOR s IN
        SELECT x.step ->> 'name' AS name, coalesce((x.step ->> 'delay')::interval, '0') AS delay, x.step -> 'condition' AS condition,
               (x.step #>> '{condition,timeout}')::interval AS timeout, x.step -> 'action' <> 'null' AS acts, x.step -> 'otherwise' <> 'null' AS nudges, x.step ->> 'on_timeout' AS on_timeout
          FROM jsonb_array_elements(rehearsed -> 'steps') WITH ORDINALITY AS x(step, n) ORDER BY x.n
    LOOP
        -- starts is NULL for those who have left or whom the rehearsal's end has met.
        starts := ARRAY(SELECT CASE WHEN u.at + s.delay <= until THEN u.at + s.delay END FROM unnest(starts) WITH ORDINALITY AS u(at, n) ORDER BY u.n);
        IF s.condition <> 'null' THEN
            EXIT WHEN conditions #>> ARRAY[s.name, 'problem'] IS NOT NULL;
            ends := ARRAY(SELECT coalesce(u.at + s.timeout, 'infinity') FROM unnest(starts) WITH ORDINALITY AS u(at, n) ORDER BY u.n);
            trues := CASE WHEN s.name = goal_name AND starts = enrolled
                          -- Asked already, up to the rehearsal's end.
                          THEN ARRAY(SELECT CASE WHEN u.at <= u.until THEN u.at END FROM unnest(goals, ends) WITH ORDINALITY AS u(at, until, n) ORDER BY u.n)
                          ELSE activation._first_true(conditions -> s.name, path, keys, starts, ends, until) END;
        ELSE
            ends := NULL;
            trues := starts;
        END IF;
        RETURN QUERY
        SELECT m.key, m.enrolled_at, s.name, m.branch,
               CASE WHEN m.held THEN 'held_out'
                    WHEN (m.branch = 'otherwise' OR s.condition = 'null' AND s.delay > interval '0') AND m.goal_at <= m.sent_at THEN 'cancelled'
                    WHEN m.sent_at <> m.decided_at AND rehearsed #>> '{send_window,otherwise}' = 'skip' THEN 'cancelled'
                    WHEN m.sent_at > until THEN 'queued' ELSE 'sent' END,
               m.sent_at, m.goal_at, m.held, NULL::jsonb
          FROM (SELECT d.*, coalesce(CASE WHEN rehearsed -> 'send_window' <> 'null' AND NOT d.held
                                          THEN activation._next_opening(rehearsed -> 'send_window', d.zone, d.decided_at) END, d.decided_at) AS sent_at
                  FROM (SELECT u.key, u.enrolled_at, u.held, u.goal_at, u.zone, CASE WHEN u.true_at IS NOT NULL THEN 'action' WHEN u.ends_at <= until THEN 'otherwise' END AS branch,
                               coalesce(u.true_at, u.ends_at) AS decided_at
                          FROM unnest(keys, enrolled, held, goals, zones, trues, ends, starts) AS u(key, enrolled_at, held, goal_at, zone, true_at, ends_at, begins)
                         WHERE u.begins IS NOT NULL) d
                 WHERE d.branch = 'action' AND s.acts OR d.branch = 'otherwise' AND s.nudges) m;
        starts := ARRAY(SELECT CASE WHEN u.true_at IS NOT NULL THEN u.true_at WHEN u.ends_at <= until AND s.on_timeout <> 'exit' THEN u.ends_at END
                          FROM unnest(trues, ends, keys) WITH ORDINALITY AS u(true_at, ends_at, key, n) ORDER BY u.n);
    END LOOP;
END
$$;

CREATE FUNCTION activation.simulate(loop text DEFAULT NULL, definition jsonb DEFAULT NULL, since timestamptz DEFAULT now() - interval '90 days',
                                    until timestamptz DEFAULT now(), timestamps jsonb DEFAULT NULL, names text DEFAULT current_setting('search_path'))
RETURNS TABLE (part text, step text, branch text, status text, people bigint, share numeric, first_at timestamptz, median_after interval, already_acted bigint, detail text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
-- Compiling its statements would take longer than running them; sorts of everybody's days fit into this.
SET jit = off
SET work_mem = '64MB'
AS $$
#variable_conflict use_column
BEGIN
    IF (simulate.loop IS NULL) = (simulate.definition IS NULL) AND simulate.definition IS NULL THEN
        RAISE EXCEPTION 'there is nothing to rehearse' USING ERRCODE = '22023', HINT = 'Name a loop, or give a definition: simulate(definition => …).';
    END IF;
    RETURN QUERY
    WITH found AS MATERIALIZED (
        SELECT * FROM activation._simulate(simulate.loop, simulate.definition, simulate.since, simulate.until, simulate.timestamps, simulate.names)
    ), about AS (
        SELECT f.notes -> 'notes' AS notes, (f.notes ->> 'rate')::numeric AS rate, (f.notes ->> 'goal')::boolean AS goal FROM found f WHERE f.notes IS NOT NULL
    ), person AS (
        SELECT f.user_id, f.at AS enrolled_at, f.goal_at, f.held_out FROM found f WHERE f.step IS NULL AND f.notes IS NULL
    ), mail AS (
        SELECT f.* FROM found f WHERE f.step IS NOT NULL
    ), total AS (
        SELECT count(*) AS people, count(p.goal_at) AS activated, min(p.enrolled_at) AS first_at FROM person p
    ), place AS (
        -- As in time_to_activate.
        SELECT s.seconds, s.acted, t.people + 1 - row_number() OVER (ORDER BY s.seconds, s.acted DESC) AS n
          FROM (SELECT p.goal_at IS NOT NULL AS acted, date_part('epoch', coalesce(p.goal_at, simulate.until) - p.enrolled_at)::bigint AS seconds FROM person p) s, total t
    ), curve AS (
        SELECT p.seconds, exp(sum(CASE WHEN NOT p.acted THEN 0 WHEN p.n = 1 THEN '-Infinity' ELSE ln((p.n - 1) / p.n::double precision) END)
                                  OVER (ORDER BY p.seconds, p.acted DESC ROWS UNBOUNDED PRECEDING)) AS still_waiting FROM place p
    ), time AS (
        SELECT make_interval(secs => min(c.seconds) FILTER (WHERE c.still_waiting <= 0.5 + 1e-9)) AS median,
               make_interval(secs => min(c.seconds) FILTER (WHERE c.still_waiting <= 0.1 + 1e-9)) AS p90 FROM curve c
    ), busiest AS (
        SELECT m.at::date AS day, count(*) AS emails FROM mail m WHERE m.status = 'sent' GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 1
    ), line AS (
        SELECT 1 AS place, 0 AS sub, 'enrolled' AS part, NULL::text AS step, NULL::text AS branch, NULL::text AS status, t.people, 1.0 AS share, t.first_at,
               NULL::interval AS median_after, NULL::bigint AS already_acted, NULL::text AS detail FROM total t
        UNION ALL
        SELECT 2, row_number() OVER (ORDER BY min(m.at - m.enrolled_at), m.step, m.branch, m.status)::integer, 'mail', m.step, m.branch, m.status, count(*),
               round(count(*)::numeric / nullif((SELECT t.people FROM total t), 0), 4), min(m.at),
               make_interval(secs => percentile_disc(0.5) WITHIN GROUP (ORDER BY date_part('epoch', m.at - m.enrolled_at))), count(*) FILTER (WHERE m.goal_at <= m.at),
               CASE m.status WHEN 'sent' THEN 'would have been sent' WHEN 'held_out' THEN 'would have been held back, to measure' WHEN 'queued' THEN 'would still wait for the send window'
                             ELSE 'would not have been sent: the goal was reached, or it was outside the send window' END
          FROM mail m GROUP BY m.step, m.branch, m.status
        UNION ALL
        SELECT 3, 0, 'activated', NULL, NULL, NULL, t.activated, round(t.activated::numeric / nullif(t.people, 0), 4), NULL, time.median, NULL,
               concat_ws(', ', CASE WHEN time.median IS NULL THEN 'fewer than half so far' ELSE format('half within %s', time.median) END,
                         CASE WHEN time.median IS NULL THEN NULL WHEN time.p90 IS NULL THEN 'fewer than nine in ten so far' ELSE format('nine in ten within %s', time.p90) END)
          FROM total t, time, about a WHERE a.goal
        UNION ALL
        SELECT 4, 0, 'emails', NULL, NULL, NULL, count(*), NULL, min(m.at), NULL, NULL,
               format('%s people, %s; most on %s: %s, in %s or more requests%s', count(DISTINCT m.user_id), CASE WHEN count(*) = 0 THEN 'no day' ELSE format('%s days', count(DISTINCT m.at::date)) END,
                      coalesce((SELECT b.day::text FROM busiest b), 'none'), coalesce((SELECT b.emails FROM busiest b), 0), ceil(coalesce((SELECT b.emails FROM busiest b), 0) / 100.0),
                      (SELECT CASE WHEN a.rate IS NULL THEN '; the provider''s rate is not known yet'
                                   ELSE format(', %s s at %s a second', ceil(ceil(coalesce((SELECT b.emails FROM busiest b), 0) / 100.0) / a.rate), a.rate) END FROM about a))
          FROM mail m WHERE m.status = 'sent'
        UNION ALL
        SELECT 5, row_number() OVER (ORDER BY p.enrolled_at, p.user_id)::integer, 'person ' || p.user_id, NULL, NULL, NULL, NULL, NULL, p.enrolled_at, p.goal_at - p.enrolled_at, NULL,
               concat_ws('; ', (SELECT string_agg(format('%s: %s %s, %s', to_char(m.at, 'YYYY-MM-DD HH24:MI'), m.step, m.branch, m.status), '; ' ORDER BY m.at) FROM mail m WHERE m.user_id = p.user_id),
                         'goal ' || to_char(p.goal_at, 'YYYY-MM-DD HH24:MI'))
          FROM (SELECT * FROM person p ORDER BY p.enrolled_at, p.user_id LIMIT 10) p
        UNION ALL
        SELECT 6, n.number::integer, 'note', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, n.note FROM about a, jsonb_array_elements_text(coalesce(nullif(a.notes, 'null'), '[]')) WITH ORDINALITY AS n(note, number)
    )
    SELECT l.part, l.step, l.branch, l.status, l.people, l.share, l.first_at, l.median_after, l.already_acted, l.detail FROM line l ORDER BY l.place, l.sub;
END
$$;
COMMENT ON FUNCTION activation.simulate(text, jsonb, timestamptz, timestamptz, jsonb, text) IS
'Rehearses a loop, or a definition, over what the app''s tables say happened between since and until; writes nothing. Rows by part: enrolled; mail (by step, branch and what would have become of it, how long after enrollment in the median, and to how many who had reached the goal by then); activated (rate, median and ninth tenth by Kaplan and Meier); emails (days, the busiest one, requests at the provider''s rate); person (the first ten with their timelines); note (what cannot be replayed, and why). A condition is asked as of each moment at which a row of the user''s came, with the rows that had come by then: timestamps names columns that tell, {"public.projects": "made_on"}, where they are not found. Deleted and updated rows, caps, and other loops are not known to it. Reads with the caller''s rights, and refuses what would run code of a role that has not got them (42501); raises 42704, 22023, 55000, 0A000.';
