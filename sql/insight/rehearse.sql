-- A loop rehearsed over the app's own history: who would have been enrolled, what each step would
-- have decided and when, and which mails would have gone out. Reads only. The app's tables and an
-- author's text are read with the rights of whoever asks, and must be safe for that person. So the
-- text has to be their own, or that of a role which could do as much anyway; and so has everything
-- that it would run.

-- What simulate() counts: every mail that would have been promised, with what would have become of
-- it; and for everybody enrolled a row without a step, at: when, goal_at: when they reached the
-- goal. notes come first, in a row of their own: {"notes", "rate", "goal": whether there is one,
-- "problem": why a condition cannot be replayed}.
--
-- Long because the people are arrays that each part reads and the next one changes; and because a
-- function of its own for each part would need a grant of its own for whoever may call simulate().
CREATE FUNCTION activation._simulate(
    loop text, definition jsonb, since timestamptz, until timestamptz, timestamps jsonb,
    search_path text
) RETURNS TABLE (
    user_id text, enrolled_at timestamptz, step text, branch text, status text, at timestamptz,
    goal_at timestamptz, held_out boolean, notes jsonb
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    stored record;
    plan jsonb;
    rehearsed jsonb;
    path text := _simulate.search_path;
    replays jsonb := '{}'::jsonb;
    remarks text[] := '{}'::text[];
    problem text;
    condition record;
    replay jsonb;
    explained text;
    key_expression text;
    goal_name text;
    current_step record;
    -- A place in each of these for everybody enrolled.
    keys text[];
    enrolled timestamptz[];
    goals timestamptz[];
    held boolean[];
    zones text[];
    -- And these of the step: when it begins, when its time is over, when its condition came true.
    starts timestamptz[];
    ends timestamptz[];
    trues timestamptz[];
BEGIN
    IF _simulate.definition IS NULL THEN
        SELECT d.* INTO stored
          FROM activation.loop_definition d
         WHERE d.loop = _simulate.loop AND d.visible;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'loop "%" does not exist', _simulate.loop
                USING ERRCODE = '42704',
                      DETAIL = 'Or it belongs to a role that you may not act as.',
                      HINT = 'Rehearse a definition before there is a loop: '
                             'simulate(definition => …, since => …).';
        ELSIF NOT coalesce(pg_has_role(stored.owner, current_user, 'USAGE'), false) THEN
            RAISE EXCEPTION 'loop "%": % may not rehearse it',
                            _simulate.loop, quote_ident(current_user)
                USING ERRCODE = '42501',
                      DETAIL = format('Its SQL is of %s, and would run with your rights.',
                                      coalesce(quote_ident(stored.owner), 'a role that is gone')),
                      HINT = format('SET ROLE %I; SELECT * FROM activation.simulate(%L, …); '
                                    'RESET ROLE;', coalesce(stored.owner, '…'), _simulate.loop);
        END IF;
        path := stored.names;
        plan := activation._simulate_plan(
            _simulate.loop, stored.definition,
            jsonb_build_object('users', stored.users::oid, 'table', stored.table_name::oid,
                               'key', stored.key_column),
            since, until, timestamps, path);
    ELSE
        plan := activation._simulate_plan(_simulate.loop, _simulate.definition, NULL,
                                          since, until, timestamps, path);
    END IF;
    rehearsed := plan -> 'definition';
    -- A goal of its own is named '', as in the plan; otherwise the goal is the first condition.
    goal_name := CASE
        WHEN rehearsed -> 'goal' <> 'null' THEN ''
        ELSE (SELECT x.step ->> 'name'
                FROM jsonb_array_elements(rehearsed -> 'steps') WITH ORDINALITY AS x(step, n)
               WHERE x.step -> 'condition' <> 'null'
               ORDER BY x.n LIMIT 1) END;
    PERFORM activation._look_up(plan -> 'look');
    -- Which conditions can be replayed. The rehearsal ends at a step whose condition cannot.
    EXECUTE format('EXPLAIN (VERBOSE, FORMAT JSON)'
                   ' SELECT (pg_catalog.current_setting(''activation.key'', true)::%s)',
                   plan ->> 'type') INTO key_expression;
    key_expression := key_expression::jsonb #>> '{0,Plan,Output,0}';
    FOR condition IN
        SELECT x ->> 'name' AS name, x ->> 'query' AS query, x ->> 'explained' AS explained
          FROM jsonb_array_elements(plan -> 'conditions') AS x
    LOOP
        -- Planning is running: what cannot be looked into is not planned.
        replay := activation._simulate_query(condition.query, NULL, key_expression,
                                             plan ->> 'type', timestamps);
        IF replay ->> 'problem' IS NULL THEN
            PERFORM activation._look_up(plan -> 'look');
            -- @plpgsql_check_options: security_warnings = off
            PERFORM set_config('search_path', path, true);
            EXECUTE 'EXPLAIN (VERBOSE, FORMAT JSON) ' || condition.explained INTO explained;
            PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
            replay := activation._simulate_query(condition.query, explained::jsonb, key_expression,
                                                 plan ->> 'type', timestamps);
            replay := replay || jsonb_build_object('look', jsonb_set(
                plan -> 'look', '{columns}',
                (plan #> '{look,columns}') || coalesce(replay -> 'columns', '[]')));
        END IF;
        replays := replays || jsonb_build_object(condition.name, replay);
        remarks := remarks
                   || ARRAY(SELECT jsonb_array_elements_text(coalesce(replay -> 'notes', '[]')));
        IF replay ->> 'problem' IS NOT NULL THEN
            problem := coalesce(problem, replay ->> 'problem');
            remarks := remarks || format(
                '%s cannot be replayed: %s',
                CASE condition.name
                    WHEN '' THEN 'the goal'
                    ELSE format('step "%s" and what follows it', condition.name) END,
                replay ->> 'problem');
        END IF;
    END LOOP;
    IF rehearsed ->> 'reentry' <> 'once' THEN
        remarks := remarks || format(
            'reentry %s is not replayed: everybody is enrolled once, by their first',
            rehearsed ->> 'reentry');
    END IF;
    IF rehearsed ->> 'enroll' <> 'new' THEN
        remarks := remarks || 'existing users are not enrolled in a rehearsal, '
                              'only those who came since'::text;
    END IF;

    PERFORM activation._look_up(plan -> 'look');
    -- @plpgsql_check_options: security_warnings = off
    PERFORM set_config('search_path', CASE WHEN (plan ->> 'own_filter')::boolean
                                           THEN 'pg_catalog, pg_temp' ELSE path END, true);
    EXECUTE format('SELECT pg_catalog.array_agg(x.key ORDER BY x.at, x.key),'
                   ' pg_catalog.array_agg(x.at ORDER BY x.at, x.key)'
                   ' FROM (SELECT "new".%1$s::pg_catalog.text COLLATE pg_catalog."C" AS key,'
                   ' pg_catalog.min("new".%2$s::pg_catalog.timestamptz) AS at'
                   ' FROM %3$s AS "new"'
                   ' WHERE "new".%1$s IS NOT NULL'
                   ' AND "new".%2$s::pg_catalog.timestamptz OPERATOR(pg_catalog.>=) $1'
                   ' AND "new".%2$s::pg_catalog.timestamptz OPERATOR(pg_catalog.<) $2'
                   ' AND (%4$s) GROUP BY 1) AS x',
                   plan ->> 'user_key', plan ->> 'made', plan ->> 'table',
                   coalesce(plan ->> 'filter', 'true'))
       INTO keys, enrolled USING since, until;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    IF keys IS NULL THEN
        remarks := remarks || format('nobody came to %s between %s and %s',
                                     plan ->> 'table', since, until);
        keys := '{}';
        enrolled := '{}';
    END IF;
    held := CASE
        WHEN (rehearsed ->> 'holdout')::numeric = 0
        THEN array_fill(false, ARRAY[cardinality(keys)])
        ELSE ARRAY(SELECT activation._held_out(plan ->> 'loop', u.key,
                                               (rehearsed ->> 'holdout')::numeric)
                     FROM unnest(keys) WITH ORDINALITY AS u(key, n)
                    ORDER BY u.n) END;
    IF rehearsed -> 'send_window' <> 'null' THEN
        IF plan ->> 'zone' IS NOT NULL THEN
            PERFORM activation._look_up(plan -> 'look');
            EXECUTE format('SELECT array_agg(t.%s::text ORDER BY u.n)'
                           ' FROM unnest($1) WITH ORDINALITY AS u(key, n)'
                           ' LEFT JOIN %s AS t ON t.%s::text COLLATE "C" = u.key',
                           plan ->> 'zone', plan ->> 'users', plan ->> 'key')
               INTO zones USING keys;
        END IF;
        zones := ARRAY(SELECT coalesce(z.name, plan ->> 'timezone')
                         FROM unnest(keys, zones) WITH ORDINALITY AS u(key, zone, n)
                         LEFT JOIN pg_timezone_names z ON z.name = u.zone
                        ORDER BY u.n);
    END IF;
    IF goal_name IS NOT NULL AND replays #>> ARRAY[goal_name, 'problem'] IS NULL THEN
        goals := activation._first_true(
            replays -> goal_name, path, keys, enrolled,
            array_fill(until, ARRAY[cardinality(keys)]), until);
    END IF;
    RETURN QUERY
    SELECT NULL::text, NULL::timestamptz, NULL::text, NULL::text, NULL::text, NULL::timestamptz,
           NULL::timestamptz, NULL::boolean,
           jsonb_build_object('notes', (SELECT jsonb_agg(DISTINCT n) FROM unnest(remarks) AS n),
                              'rate', plan -> 'rate',
                              'goal', goal_name IS NOT NULL,
                              'problem', problem);
    RETURN QUERY
    SELECT u.key, u.at, NULL::text, NULL::text, NULL::text, u.at, u.goal_at, u.held, NULL::jsonb
      FROM unnest(keys, enrolled, goals, held) AS u(key, at, goal_at, held);

    starts := enrolled;
    FOR current_step IN
        SELECT x.step ->> 'name' AS name,
               coalesce((x.step ->> 'delay')::interval, '0') AS delay,
               x.step -> 'condition' AS condition,
               (x.step #>> '{condition,timeout}')::interval AS timeout,
               x.step -> 'action' <> 'null' AS acts,
               x.step -> 'otherwise' <> 'null' AS nudges,
               x.step ->> 'on_timeout' AS on_timeout
          FROM jsonb_array_elements(rehearsed -> 'steps') WITH ORDINALITY AS x(step, n)
         ORDER BY x.n
    LOOP
        -- starts is NULL for those who have left, and for those whose step would begin after the
        -- rehearsal's end.
        starts := ARRAY(SELECT CASE WHEN u.at + current_step.delay <= until
                                    THEN u.at + current_step.delay END
                          FROM unnest(starts) WITH ORDINALITY AS u(at, n)
                         ORDER BY u.n);
        IF current_step.condition <> 'null' THEN
            EXIT WHEN replays #>> ARRAY[current_step.name, 'problem'] IS NOT NULL;
            ends := ARRAY(SELECT coalesce(u.at + current_step.timeout, 'infinity')
                            FROM unnest(starts) WITH ORDINALITY AS u(at, n)
                           ORDER BY u.n);
            trues := CASE
                WHEN current_step.name = goal_name AND starts = enrolled
                -- Asked already, up to the rehearsal's end.
                THEN ARRAY(SELECT CASE WHEN u.at <= u.until THEN u.at END
                             FROM unnest(goals, ends) WITH ORDINALITY AS u(at, until, n)
                            ORDER BY u.n)
                ELSE activation._first_true(replays -> current_step.name, path, keys,
                                            starts, ends, until) END;
        ELSE
            ends := NULL;
            trues := starts;
        END IF;
        RETURN QUERY
        SELECT m.key, m.enrolled_at, current_step.name, m.branch,
               CASE WHEN m.held THEN 'held_out'
                    WHEN (m.branch = 'otherwise'
                          OR current_step.condition = 'null'
                             AND current_step.delay > interval '0')
                         AND m.goal_at <= m.sent_at
                    THEN 'cancelled'
                    WHEN m.sent_at <> m.decided_at
                         AND rehearsed #>> '{send_window,otherwise}' = 'skip'
                    THEN 'cancelled'
                    WHEN m.sent_at > until THEN 'queued'
                    ELSE 'sent' END,
               m.sent_at, m.goal_at, m.held, NULL::jsonb
          FROM (SELECT d.*,
                       coalesce(CASE WHEN rehearsed -> 'send_window' <> 'null' AND NOT d.held
                                     THEN activation._next_opening(rehearsed -> 'send_window',
                                                                   d.zone, d.decided_at) END,
                                d.decided_at) AS sent_at
                  FROM (SELECT u.key, u.enrolled_at, u.held, u.goal_at, u.zone,
                               CASE WHEN u.true_at IS NOT NULL THEN 'action'
                                    WHEN u.ends_at <= until THEN 'otherwise' END AS branch,
                               coalesce(u.true_at, u.ends_at) AS decided_at
                          FROM unnest(keys, enrolled, held, goals, zones, trues, ends, starts)
                               AS u(key, enrolled_at, held, goal_at, zone, true_at, ends_at, begins)
                         WHERE u.begins IS NOT NULL) d
                 WHERE d.branch = 'action' AND current_step.acts
                    OR d.branch = 'otherwise' AND current_step.nudges) m;
        starts := ARRAY(SELECT CASE WHEN u.true_at IS NOT NULL THEN u.true_at
                                    WHEN u.ends_at <= until AND current_step.on_timeout <> 'exit'
                                    THEN u.ends_at END
                          FROM unnest(trues, ends, keys)
                               WITH ORDINALITY AS u(true_at, ends_at, key, n)
                         ORDER BY u.n);
    END LOOP;
END
$$;
