-- A loop is defined.

CREATE FUNCTION activation._define(caller oid, name text, document jsonb, owner name, names text) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
<<here>>
DECLARE
    answer jsonb := activation._normalise(name, document);
    definition jsonb := answer -> 'definition';
    what text := format('loop "%s"', name);
    trigger jsonb;
    table_name regclass;
    users regclass;
    key_column name;
    registered activation.users_table;
    known activation.loop;
    current_version activation.loop_version;
    made integer;
    source_id integer;
    generation integer;
    step jsonb;
    captured regclass;
    role oid := (SELECT r.oid FROM pg_roles r WHERE r.rolname = _define.owner);
BEGIN
    PERFORM activation._raise(answer -> 'error');
    IF role IS NULL THEN
        RAISE EXCEPTION '%: role % does not exist', what, coalesce(quote_ident(owner), 'NULL')
            USING ERRCODE = '42704', HINT = 'Leave owner out to use your own role.';
    END IF;
    IF NOT pg_has_role(caller, role, 'MEMBER') THEN
        RAISE EXCEPTION '%: % is not a member of role %', what, activation._role_name(caller), quote_ident(owner)
            USING ERRCODE = '42501', HINT = 'A loop runs with the rights of its owner; leave owner out to use your own role.';
    END IF;
    IF names IS NULL THEN
        RAISE EXCEPTION '%: names is NULL', what USING ERRCODE = '22004', HINT = 'It is the search_path for the loop''s SQL; leave it out to use yours.';
    END IF;
    PERFORM activation._lock('define');
    IF EXISTS (SELECT FROM activation."loop" l WHERE l.name = _define.name) THEN
        PERFORM activation._require_loop_owner(caller, name);
    END IF;

    trigger := definition -> 'trigger';
    IF trigger ->> 'type' = 'database' THEN
        table_name := activation._find_table(trigger ->> 'table', names, what);
        PERFORM activation._check_table(table_name, what);
        PERFORM activation._require_owner(role, table_name, what);
    END IF;
    users := activation._users_of(table_name, CASE WHEN definition ->> 'users' IS NOT NULL THEN activation._find_table(definition ->> 'users', names, what) END, what);
    PERFORM activation._check_table(users, what);
    PERFORM activation._require_owner(role, users, what);
    registered := activation._register_users(users, NULL, NULL, NULL, what);
    IF table_name IS NOT NULL THEN
        key_column := activation._user_key(table_name, trigger ->> 'user_key', registered, trigger ->> 'event', what);
        trigger := trigger || jsonb_build_object('table', activation._table_name(table_name), 'user_key', nullif(key_column, registered.key_column));
        IF table_name <> users THEN
            trigger := jsonb_set(trigger, '{user_key}', to_jsonb(key_column));
        END IF;
    END IF;
    definition := activation._durations(definition, what) || jsonb_build_object('trigger', trigger, 'users', activation._table_name(users));
    PERFORM activation._check_circle(name, definition, what);
    FOR step IN SELECT * FROM jsonb_array_elements(definition -> 'steps') LOOP
        IF step -> 'action' <> 'null' THEN
            PERFORM activation._check_email(what, step -> 'action', users, activation._find_template(step #>> '{action,template}'));
        END IF;
        IF step -> 'otherwise' <> 'null' THEN
            PERFORM activation._check_email(what, step -> 'otherwise', users, activation._find_template(step #>> '{otherwise,template}'));
        END IF;
    END LOOP;

    -- The same definition again is no new version, unless what it was compiled to is gone.
    SELECT l.* INTO known FROM activation."loop" l WHERE l.name = _define.name;
    SELECT v.* INTO current_version FROM activation.loop_version v WHERE v.loop_id = known.loop_id AND v.version = known.version;
    IF current_version.definition = definition AND current_version.owner = role AND current_version.names = _define.names
       AND known.state IN ('active', 'paused')
       AND activation._is_compiled(known.loop_id, known.version) THEN
        RETURN known.version;
    END IF;

    IF known.loop_id IS NULL THEN
        INSERT INTO activation.loop (name, version, created_at) VALUES (_define.name, 1, activation._now()) RETURNING * INTO known;
        made := 1;
    ELSE
        SELECT max(v.version) + 1 INTO made FROM activation.loop_version v WHERE v.loop_id = known.loop_id;
    END IF;
    IF table_name IS NOT NULL THEN
        source_id := activation._capture_source(table_name, key_column);
        -- A loop that comes to a table (anew) enrolls nobody whose signal was written before it came.
        IF current_version.source_id = source_id AND known.state <> 'archived' AND current_version.filter_function IS NULL THEN
            generation := current_version.generation;
        ELSE
            UPDATE activation.source s SET generation = s.generation + 1 WHERE s.source_id = here.source_id RETURNING s.generation INTO generation;
        END IF;
    END IF;
    INSERT INTO activation.loop_version (loop_id, version, definition, owner, owner_name, installation, names, users, source_id, event, generation, reentry, holdout,
                                         transactional, priority, over_cap, send_window, created_at)
    VALUES (known.loop_id, made, definition, role, _define.owner, (SELECT i.id FROM activation.installation i), _define.names, here.users, here.source_id,
            CASE WHEN definition ->> 'enroll' = 'existing' THEN 'existing' WHEN trigger ->> 'type' = 'database' THEN trigger ->> 'event' ELSE trigger ->> 'type' END, coalesce(here.generation, 0),
            CASE definition ->> 'reentry' WHEN 'once' THEN NULL WHEN 'always' THEN interval '0' ELSE (definition ->> 'reentry')::interval END,
            (definition ->> 'holdout')::numeric, (definition ->> 'transactional')::boolean, (definition ->> 'priority')::integer,
            definition ->> 'over_cap', nullif(definition -> 'send_window', 'null'), activation._now());
    -- A step keeps the number that its name had in earlier versions.
    INSERT INTO activation.step (loop_id, version, step, position, name, delay, timeout, action, otherwise, on_timeout)
    SELECT known.loop_id, made, coalesce(o.step, before.most + row_number() OVER (PARTITION BY o.step IS NULL ORDER BY n.number)), n.number, n.step ->> 'name',
           (n.step ->> 'delay')::interval, (n.step #>> '{condition,timeout}')::interval,
           nullif(n.step -> 'action', 'null'), nullif(n.step -> 'otherwise', 'null'), n.step ->> 'on_timeout'
      FROM jsonb_array_elements(definition -> 'steps') WITH ORDINALITY AS n(step, number)
      CROSS JOIN (SELECT coalesce(max(x.step), 0) AS most FROM activation.step x WHERE x.loop_id = known.loop_id) before
      LEFT JOIN LATERAL (SELECT x.step FROM activation.step x WHERE x.loop_id = known.loop_id AND x.name = n.step ->> 'name' AND x.step > 0 LIMIT 1) o ON true;
    IF definition -> 'goal' <> 'null' THEN
        INSERT INTO activation.step (loop_id, version, step, position, name, delay, on_timeout) VALUES (known.loop_id, made, 0, 0, 'goal', '0', 'continue');
    END IF;
    UPDATE activation.loop_version v
       SET goal_step = CASE WHEN here.definition -> 'goal' <> 'null' THEN 0
                            ELSE (SELECT s.step FROM activation.step s WHERE s.loop_id = known.loop_id AND s.version = made
                                     AND here.definition #> ARRAY['steps', (s.position - 1)::text, 'condition'] <> 'null' ORDER BY s.position LIMIT 1) END
     WHERE v.loop_id = known.loop_id AND v.version = made;
    PERFORM activation._compile_version(known.loop_id, made);
    IF current_version.source_id = source_id AND known.state <> 'archived' AND current_version.filter_function IS NULL AND current_version.event = 'insert'
       AND trigger ->> 'event' = 'insert' AND trigger ->> 'filter' IS NOT NULL THEN
        -- Who signed up while the loop had no filter is in it.
        INSERT INTO activation.signal (at, source_id, generation, loop_id, user_id)
        SELECT g.at, g.source_id, g.generation, known.loop_id, g.user_id FROM activation.signal g
         WHERE g.source_id = here.source_id AND g.loop_id IS NULL AND g.user_deleted IS NULL AND g.generation >= current_version.generation;
    END IF;
    PERFORM activation._begin_backfill(known.loop_id, made, current_version.definition ->> 'enroll' <> 'new' AND known.state <> 'archived');
    UPDATE activation."loop" l
       SET version = made, reason = NULL, state = CASE WHEN l.state = 'paused' THEN 'paused' ELSE 'active' END
     WHERE l.loop_id = known.loop_id;
    DELETE FROM activation.strike k WHERE k.loop_id = known.loop_id;
    IF (activation._setting()).mode = 'live' THEN
        PERFORM activation._check_leavable((activation._setting()).public_url);
    END IF;

    -- Last, because a new trigger locks its table.
    FOR captured IN
        SELECT DISTINCT s.table_name::oid::regclass FROM activation.source s
         WHERE s.source_id IN (here.source_id, current_version.source_id)
            OR s.table_name IN (here.users, current_version.users)
            OR s.source_id IN (SELECT w.source_id FROM activation.watch w WHERE w.loop_id = known.loop_id AND w.version IN (made, current_version.version))
    LOOP
        PERFORM activation._generate_capture(captured);
    END LOOP;
    -- A table of two rows that was never analyzed is taken for one of hundreds, and every plan that joins it is off.
    ANALYZE activation.loop, activation.loop_version, activation.step, activation.source, activation.watch;
    RETURN made;
END
$$;

CREATE FUNCTION activation.define_loop(name text, trigger jsonb DEFAULT NULL, condition jsonb DEFAULT NULL, action jsonb DEFAULT NULL,
    otherwise jsonb DEFAULT NULL, steps jsonb[] DEFAULT NULL, goal jsonb DEFAULT NULL, type text DEFAULT 'activation',
    opinion text DEFAULT NULL, recovery jsonb DEFAULT NULL, reentry text DEFAULT 'once', enroll text DEFAULT 'new',
    per_hour integer DEFAULT NULL, users regclass DEFAULT NULL, topic text DEFAULT NULL, transactional boolean DEFAULT false,
    priority integer DEFAULT 0, over_cap text DEFAULT 'wait', holdout numeric DEFAULT 0, send_window jsonb DEFAULT NULL,
    owner name DEFAULT current_user, names text DEFAULT current_setting('search_path')) RETURNS integer
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.call (verb, arguments)
    VALUES ('define_loop', jsonb_build_object('name', name, 'owner', owner, 'names', names, 'definition', jsonb_build_object(
        'type', type, 'opinion', opinion, 'trigger', trigger, 'condition', condition, 'action', action, 'otherwise', otherwise,
        'steps', CASE WHEN steps IS NOT NULL THEN to_jsonb(steps) END, 'goal', goal, 'recovery', recovery, 'reentry', reentry,
        'enroll', enroll, 'per_hour', per_hour, 'users', users::oid::bigint, 'topic', topic, 'transactional', transactional,
        'priority', priority, 'over_cap', over_cap, 'holdout', holdout, 'send_window', send_window)))
    RETURNING (answer #>> '{}')::integer
$$;
COMMENT ON FUNCTION activation.define_loop(text, jsonb, jsonb, jsonb, jsonb, jsonb[], jsonb, text, text, jsonb, text, text, integer, regclass, text, boolean, integer, text, numeric, jsonb, name, text) IS
'Defines a loop, or a new version of it, and returns the version; the same definition again is no new one. Transactional: it works in a migration and rolls back. trigger: activation.on_insert(…); condition: activation.query(…); action, otherwise: activation.email(…); recovery: activation.retry(…). opinion: what the loop is for, in words. owner: the role with whose rights its SQL runs (default: you); names: the search_path for it (default: yours). Refused definitions change nothing.';

CREATE FUNCTION activation.import_loop(name text, definition jsonb, owner name DEFAULT current_user, names text DEFAULT current_setting('search_path'))
RETURNS integer
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.call (verb, arguments)
    VALUES ('import_loop', jsonb_build_object('name', name, 'definition', definition, 'owner', owner, 'names', names))
    RETURNING (answer #>> '{}')::integer
$$;
COMMENT ON FUNCTION activation.import_loop(text, jsonb, name, text) IS
'Defines a loop from one document and returns its version; import_loop(export_loop(x)) is x. Keys may be camelCase; the trigger may stand in the first step. owner and names as in define_loop.';
