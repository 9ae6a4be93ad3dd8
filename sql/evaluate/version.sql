-- All functions of one version of a loop.

-- The functions of a version that are called from outside, whether each is there, and whether it
-- still runs with the rights of the loop's owner.
CREATE FUNCTION activation._compiled_functions(loop_id integer, version integer)
RETURNS TABLE (function_name name, there boolean, intact boolean)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT f.name, p.oid IS NOT NULL, coalesce(p.prosecdef AND p.proowner = v.owner, false)
      FROM activation.loop_version v
     CROSS JOIN LATERAL (
           SELECT unnest(ARRAY[coalesce(v.users_function, ''), v.filter_function,
                               v.backfill_function, v.passing_function])
           UNION ALL
           SELECT s.evaluate_function FROM activation.step s
            WHERE s.loop_id = v.loop_id AND s.version = v.version) AS f(name)
      LEFT JOIN pg_proc p ON p.pronamespace = 'activation_compiled'::regnamespace
                         AND p.proname = f.name
     WHERE v.loop_id = _compiled_functions.loop_id AND v.version = _compiled_functions.version
       AND f.name IS NOT NULL
$$;

-- Whether everything that a version was compiled to is there, as it was made.
CREATE FUNCTION activation._is_compiled(loop_id integer, version integer) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT NOT EXISTS (SELECT FROM activation._compiled_functions(loop_id, version) b
                        WHERE NOT b.intact)
           AND NOT EXISTS (SELECT FROM activation.step s
                            WHERE s.loop_id = _is_compiled.loop_id
                              AND s.version = _is_compiled.version
                              AND s.evaluate_function IS NOT NULL
                              AND NOT activation._function_exists(s.condition_function))
$$;

-- What tells the functions of a step's condition from those of another step, in their names. A goal
-- of its own is step 0.
CREATE FUNCTION activation._condition_label(step integer) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN CASE step WHEN 0 THEN ' of the goal' WHEN 1 THEN '' ELSE format(' of step %s', step) END;

-- Drops whatever a version was compiled to.
CREATE FUNCTION activation._drop_compiled(loop_id integer, version integer, base text, suffix text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    old_function regprocedure;
BEGIN
    FOR old_function IN
        SELECT p.oid::regprocedure FROM pg_proc p
         WHERE p.pronamespace = 'activation_compiled'::regnamespace
           AND p.proname IN (
               SELECT activation._compiled_name(base, k.kind || w.which || suffix)
                 FROM unnest(ARRAY[': evaluate', ': condition', ': filter', ': users', ': passes',
                                   ': backfill', ': schedule']) AS k(kind),
                      (SELECT '' AS which
                       UNION
                       SELECT activation._condition_label(s.step) FROM activation.step s
                        WHERE s.loop_id = _drop_compiled.loop_id
                          AND s.version = _drop_compiled.version) w)
         -- Functions that use others are dropped before those.
         ORDER BY p.proname LIKE '%: condition%' OR p.proname LIKE '%: filter%'
                  OR p.proname LIKE '%: schedule%'
    LOOP
        EXECUTE format('DROP FUNCTION %s', old_function);
    END LOOP;
END
$$;

-- Compiles the condition of one step of a version, and writes down what it was compiled to, what
-- wakes it, and when its people are swept.
CREATE FUNCTION activation._compile_step(of_version activation.loop_version, loop_name text,
                                         suffix text, step integer, condition jsonb, key_type oid)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    compiled jsonb := activation._compile_condition(
        loop_name, loop_name, activation._condition_label(step) || suffix, condition, key_type,
        of_version.owner, of_version.names);
BEGIN
    UPDATE activation.step s
       SET every = (compiled ->> 'every')::interval,
           condition_function = compiled ->> 'condition',
           evaluate_function = compiled ->> 'evaluate'
     WHERE s.loop_id = of_version.loop_id AND s.version = of_version.version
       AND s.step = _compile_step.step;
    DELETE FROM activation.watch w
     WHERE w.loop_id = of_version.loop_id AND w.version = of_version.version
       AND w.step = _compile_step.step;
    INSERT INTO activation.watch (loop_id, version, step, source_id, on_delete, goal)
    SELECT DISTINCT of_version.loop_id, of_version.version, _compile_step.step,
           activation._capture_source((w ->> 0)::oid::regclass, (w ->> 1)::name),
           (compiled ->> 'on_delete')::boolean, _compile_step.step = of_version.goal_step
      FROM jsonb_array_elements(compiled -> 'watches') AS w;
    INSERT INTO activation.sweep (loop_id, version, step, bucket, due_at)
    SELECT of_version.loop_id, of_version.version, _compile_step.step, b.bucket,
           activation._now() + coalesce((compiled ->> 'every')::interval, '10 minutes')
      FROM unnest(activation._all_buckets()) AS b(bucket)
    ON CONFLICT DO NOTHING;
END
$$;

-- Compiles a version from its definition, with its owner's rights and path, and writes down what it
-- was compiled to. What there is of it already is dropped first.
CREATE FUNCTION activation._compile_version(loop_id integer, version integer) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
<<here>>
DECLARE
    v activation.loop_version;
    loop_name text := (SELECT l.name FROM activation."loop" l
                        WHERE l.loop_id = _compile_version.loop_id);
    key_type oid;
    -- The numbers stand in the suffix, which is never cut, so that no two versions of any loops
    -- share a name.
    suffix text := format(' (%s.v%s)', loop_id, version);
    filter jsonb;
    trigger jsonb;
    source activation.source;
    backfill_function name;
    passing_function name;
    new_columns name[];
    old_columns name[];
    step_condition record;
BEGIN
    SELECT x.* INTO STRICT v FROM activation.loop_version x
     WHERE x.loop_id = _compile_version.loop_id AND x.version = _compile_version.version;
    SELECT activation._key_type(u.users, u.key_column) INTO STRICT key_type
      FROM activation.users_table u WHERE u.users = v.users;
    PERFORM activation._drop_compiled(loop_id, version, loop_name, suffix);

    trigger := v.definition -> 'trigger';
    SELECT s.* INTO source FROM activation.source s WHERE s.source_id = v.source_id;
    IF trigger ->> 'filter' IS NOT NULL OR trigger ->> 'event' = 'update' THEN
        filter := activation._compile_filter(loop_name, loop_name, suffix, trigger,
                                             source.table_name, v.owner, v.names);
        IF trigger ->> 'event' = 'insert' THEN
            passing_function := activation._compile_passes(
                loop_name, suffix, source.table_name, source.key_column, filter, v.owner);
        END IF;
    END IF;
    IF trigger ->> 'type' = 'schedule' THEN
        backfill_function := activation._compile_schedule(
            loop_name, loop_name, suffix, trigger ->> 'query', key_type, v.owner, v.names);
    ELSIF v.definition ->> 'enroll' <> 'new' THEN
        backfill_function := activation._compile_existing(
            loop_name, suffix, source.table_name, source.key_column, filter, v.owner);
    END IF;
    new_columns := ARRAY(SELECT jsonb_array_elements_text(filter -> 'columns'));
    old_columns := ARRAY(SELECT jsonb_array_elements_text(filter -> 'old_columns'));
    UPDATE activation.loop_version x
       SET users_function = activation._compile_users(loop_name, suffix, v.users, v.owner),
           filter_function = filter ->> 'function',
           backfill_function = here.backfill_function,
           passing_function = here.passing_function,
           filter_columns = new_columns,
           filter_attnums = activation._column_numbers(source.table_name, new_columns),
           old_columns = here.old_columns,
           old_attnums = activation._column_numbers(source.table_name, here.old_columns)
     WHERE x.loop_id = v.loop_id AND x.version = v.version;
    FOR step_condition IN
        SELECT c.step, c.condition
          FROM (SELECT s.step, s.position,
                       CASE s.step WHEN 0 THEN v.definition -> 'goal'
                            ELSE v.definition
                                 #> ARRAY['steps', (s.position - 1)::text, 'condition']
                       END AS condition
                  FROM activation.step s
                 WHERE s.loop_id = v.loop_id AND s.version = v.version) c
         WHERE c.condition <> 'null'
         ORDER BY c.position
    LOOP
        PERFORM activation._compile_step(v, loop_name, suffix, step_condition.step,
                                         step_condition.condition, key_type);
    END LOOP;
END
$$;
