-- Loops: define, pause, archive, and what a person decides about their messages.

-- ---- define ----------------------------------------------------------------------------------------------------------------

-- A table named in a document, looked up on the author's path.
CREATE FUNCTION activation._find_table(table_name text, names text, what text) RETURNS regclass
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    answer jsonb := activation._run(names, ARRAY[format('SELECT pg_catalog.to_regclass(%L)::pg_catalog.oid::pg_catalog.int8', table_name)], false);
BEGIN
    IF answer ->> 'value' IS NULL THEN
        RAISE EXCEPTION '%: table "%" does not exist', what, table_name
            USING ERRCODE = CASE WHEN answer ? 'error' THEN answer #>> '{error,code}' ELSE '42P01' END,
                  DETAIL = coalesce(answer #>> '{error,message}', ''),
                  HINT = format('It was looked for on the path %s. Write it with its schema, and quoted where it is mixed-case: "app"."User".', names);
    END IF;
    RETURN (answer ->> 'value')::oid::regclass;
END
$$;

-- A duration in a document, in the server's one spelling.
CREATE FUNCTION activation._duration(duration text, what text, or_none boolean DEFAULT false) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET intervalstyle = 'postgres'
AS $$
DECLARE
    parsed interval;
BEGIN
    IF duration IS NULL THEN
        RETURN NULL;
    END IF;
    BEGIN
        parsed := duration::interval;
    EXCEPTION WHEN data_exception THEN
        RAISE EXCEPTION '% is not a duration: "%"', what, duration
            USING ERRCODE = '22007', HINT = 'Write it as PostgreSQL does: ''5m'', ''90 seconds'', ''3 days''.';
    END;
    IF or_none AND parsed = interval '0' THEN
        RETURN parsed::text;
    END IF;
    IF parsed <= interval '0' OR parsed > interval '100 years' THEN
        RAISE EXCEPTION '% is %', what, duration
            USING ERRCODE = '22023', HINT = 'Give a duration longer than zero, such as ''5 minutes'' or ''3 days''.';
    END IF;
    RETURN parsed::text;
END
$$;

CREATE FUNCTION activation._durations(definition jsonb, what text) RETURNS jsonb
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    path text[];
BEGIN
    FOR path IN
        SELECT p.path FROM (VALUES (ARRAY['recovery', 'initial']), (ARRAY['recovery', 'max'])) AS p(path)
        UNION ALL
        SELECT ARRAY['steps', (i.n - 1)::text, 'condition', k.key]
          FROM jsonb_array_elements(definition -> 'steps') WITH ORDINALITY AS i(step, n), (VALUES ('timeout'), ('every')) AS k(key)
         WHERE i.step #>> ARRAY['condition', k.key] IS NOT NULL
        UNION ALL
        SELECT ARRAY['steps', (i.n - 1)::text, 'delay'] FROM jsonb_array_elements(definition -> 'steps') WITH ORDINALITY AS i(step, n)
        UNION ALL
        SELECT ARRAY['reentry'] WHERE definition ->> 'reentry' NOT IN ('once', 'always')
        UNION ALL
        SELECT ARRAY['goal', 'every'] WHERE definition #>> '{goal,every}' IS NOT NULL
    LOOP
        definition := jsonb_set(definition, path, to_jsonb(activation._duration(
            definition #>> path, format('%s: %s', what, path[cardinality(path)]), path[cardinality(path)] = 'delay')));
    END LOOP;
    RETURN definition;
END
$$;

-- The users table of a loop: the one that is named, else the trigger's own, if it is one or references none, else the one
-- that the trigger's table references; without a trigger's table the only one there is.
CREATE FUNCTION activation._users_of(table_name regclass, named regclass, what text) RETURNS regclass
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found regclass[];
BEGIN
    IF named IS NOT NULL THEN
        RETURN named;
    END IF;
    IF table_name IS NULL THEN
        found := ARRAY(SELECT u.users FROM activation.users_table u JOIN pg_class c ON c.oid = u.users);
        IF cardinality(found) = 0 THEN
            RAISE EXCEPTION '%: no users table is registered', what
                USING ERRCODE = '55000', HINT = 'SELECT activation.set_users(''users'', email => ''email'');';
        END IF;
    ELSIF EXISTS (SELECT FROM activation.users_table u WHERE u.users = table_name) THEN
        RETURN table_name;
    ELSE
        found := ARRAY(SELECT DISTINCT u.users FROM pg_constraint c JOIN activation.users_table u ON u.users = c.confrelid
                        WHERE c.contype = 'f' AND c.conrelid = table_name);
        IF cardinality(found) = 0 THEN
            RETURN table_name;
        END IF;
    END IF;
    IF cardinality(found) > 1 THEN
        RAISE EXCEPTION '%: it could be about users of %', what, (SELECT string_agg(activation._table_name(f), ' or ') FROM unnest(found) AS f)
            USING ERRCODE = '22023', HINT = format('Say which: users => %L.', activation._table_name(found[1]));
    END IF;
    RETURN found[1];
END
$$;

-- The column of the trigger's table that names the user: the one that is given, the key of a users table, or the only column
-- that references it.
CREATE FUNCTION activation._user_key(table_name regclass, given name, registered activation.users_table, event text, what text) RETURNS name
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found name[];
    shown text := activation._table_name(table_name);
BEGIN
    IF event = 'update' AND activation._same_row(table_name) IS NULL THEN
        RAISE EXCEPTION '%: table % has no primary key', what, shown
            USING ERRCODE = '42P16', HINT = format('A row as it was and as it is are told to be the same by it: ALTER TABLE %s ADD PRIMARY KEY (…);', shown);
    END IF;
    IF table_name = registered.users THEN
        IF given <> registered.key_column THEN
            RAISE EXCEPTION '%: user_key is %, and the key of the users table % is %', what, quote_ident(given), shown, quote_ident(registered.key_column)
                USING ERRCODE = '22023', HINT = 'Leave user_key out for a trigger on the users table.';
        END IF;
        IF event = 'delete' THEN
            RAISE EXCEPTION '%: nobody is left to mail when a row of the users table % is deleted', what, shown
                USING ERRCODE = '22023', HINT = 'Deleted users leave their loops by themselves. For accounts that are closed but kept, use activation.on_update(…).';
        END IF;
        RETURN registered.key_column;
    END IF;
    IF given IS NULL THEN
        SELECT array_agg(DISTINCT a.attname) INTO found
          FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
         WHERE c.contype = 'f' AND c.conrelid = table_name AND c.confrelid = registered.users AND cardinality(c.conkey) = 1
           AND activation._same_keys(a.atttypid, activation._key_type(registered.users, registered.key_column));
        IF cardinality(found) = 1 THEN
            RETURN found[1];
        END IF;
        RAISE EXCEPTION '%: which column of % names the user?', what, shown
            USING ERRCODE = '22023', DETAIL = CASE WHEN found IS NULL THEN format('No column references %s.', activation._table_name(registered.users))
                                                   ELSE format('These reference it: %s.', array_to_string(found, ', ')) END,
                  HINT = format('Name it: activation.on_%s(%L, user_key => ''user_id'').', event, shown);
    END IF;
    IF activation._key_type(table_name, given) IS NULL THEN
        RAISE EXCEPTION '%: table % has no column %', what, shown, quote_ident(given)
            USING ERRCODE = '42703', HINT = 'user_key names the column of the trigger''s table that holds the user''s key.';
    END IF;
    IF NOT activation._same_keys(activation._key_type(table_name, given), activation._key_type(registered.users, registered.key_column)) THEN
        RAISE EXCEPTION '%: column % of % is not of the type of the user''s key', what, quote_ident(given), shown
            USING ERRCODE = '42804', DETAIL = format('It is %s, and the key of %s is %s.', format_type(activation._key_type(table_name, given), NULL),
                                                     activation._table_name(registered.users), format_type(activation._key_type(registered.users, registered.key_column), NULL)),
                  HINT = 'user_key names the column of the trigger''s table that holds the user''s key.';
    END IF;
    RETURN given;
END
$$;

-- Two loops whose schedules enroll whom other loops have mailed, again and again, would feed each other for ever.
CREATE FUNCTION activation._check_circle(name text, definition jsonb, what text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    other text;
BEGIN
    IF NOT activation._reads_mail(definition) THEN
        RETURN;
    END IF;
    SELECT l.name INTO other
      FROM activation."loop" l JOIN activation.loop_version v USING (loop_id, version)
     WHERE l.name <> _check_circle.name AND l.state <> 'archived' AND activation._reads_mail(v.definition) ORDER BY 1 LIMIT 1;
    IF other IS NOT NULL THEN
        RAISE EXCEPTION '%: it and loop "%" would feed each other in a circle', what, other
            USING ERRCODE = '22023', DETAIL = 'The schedule of each enrolls users by what loops have done, and lets them in again and again.',
                  HINT = 'Let one of them take each user once (reentry => ''once''), or put both into one loop of two steps.';
    END IF;
END
$$;

-- Whether a definition's schedule enrolls users, more than once, by what activation's own tables say.
CREATE FUNCTION activation._reads_mail(definition jsonb) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(definition #>> '{trigger,type}' = 'schedule' AND definition ->> 'reentry' <> 'once'
                    AND definition #>> '{trigger,query}' ~* '\mactivation\s*\.\s*(message_log|journey|message|enrollment|attempt|request)\M', false)
$$;

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
        PERFORM activation._own_loop(caller, name);
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
       AND activation._compiled(known.loop_id, known.version) THEN
        RETURN known.version;
    END IF;

    IF known.loop_id IS NULL THEN
        INSERT INTO activation.loop (name, version, created_at) VALUES (_define.name, 1, activation._now()) RETURNING * INTO known;
        made := 1;
    ELSE
        SELECT max(v.version) + 1 INTO made FROM activation.loop_version v WHERE v.loop_id = known.loop_id;
    END IF;
    IF table_name IS NOT NULL THEN
        source_id := activation._source(table_name, key_column);
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
         WHERE g.source_id = here.source_id AND g.loop_id IS NULL AND g.gone IS NULL AND g.generation >= current_version.generation;
    END IF;
    PERFORM activation._begin_roll(known.loop_id, made, current_version.definition ->> 'enroll' <> 'new' AND known.state <> 'archived');
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

CREATE FUNCTION activation._loop(name text) RETURNS activation.loop
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_loop activation.loop;
BEGIN
    SELECT l.* INTO found_loop FROM activation."loop" l WHERE l.name = _loop.name;
    IF found_loop.loop_id IS NULL THEN
        RAISE EXCEPTION 'loop "%" does not exist', name
            USING ERRCODE = '42704',
                  HINT = coalesce('There are ' || (SELECT string_agg(format('"%s"', l.name), ', ' ORDER BY l.name) FROM activation."loop" l) || '.',
                                  'None is defined yet: activation.define_loop(…).');
    END IF;
    RETURN found_loop;
END
$$;

-- Loops as their readers may see them: who could change one sees what it says, and who may see everybody's journeys. The
-- functions in a view run as whoever reads it, so nobody can say that they are somebody else.
CREATE VIEW activation.loop_definition WITH (security_barrier) AS
SELECT l.name AS loop, v.version, o.rolname AS owner, r.visible, CASE WHEN r.visible THEN v.definition END AS definition,
       CASE WHEN r.visible THEN v.names END AS names, v.users, s.table_name, s.key_column
  FROM activation."loop" l JOIN activation.loop_version v USING (loop_id, version)
  LEFT JOIN activation.source s USING (source_id)
  LEFT JOIN pg_roles o ON o.oid = v.owner AND v.installation = (SELECT i.id FROM activation.installation i)
  -- 10 is the superuser whom initdb made; loops whose owner is gone are of superusers.
  CROSS JOIN LATERAL (SELECT pg_has_role(coalesce(o.oid, 10), 'MEMBER') OR has_table_privilege('activation.journey', 'SELECT') AS visible OFFSET 0) r;
COMMENT ON VIEW activation.loop_definition IS 'The current version of each loop; what it says only for whoever could change it, and for those who may see activation.journey. names: the path on which its names are looked up; table_name, key_column: what its trigger watches.';

CREATE FUNCTION activation.export_loop(name text) RETURNS jsonb
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    seen record;
BEGIN
    SELECT d.visible, d.owner, d.definition INTO seen FROM activation.loop_definition d WHERE d.loop = export_loop.name;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'loop "%" does not exist', name
            USING ERRCODE = '42704',
                  HINT = coalesce('There are ' || (SELECT string_agg(format('"%s"', d.loop), ', ' ORDER BY d.loop) FROM activation.loop_definition d) || '.',
                                  'None is defined yet: activation.define_loop(…).');
    ELSIF NOT seen.visible THEN
        RAISE EXCEPTION 'loop "%" belongs to %', name, coalesce(quote_ident(seen.owner), 'a role that is gone')
            USING ERRCODE = '42501', HINT = 'A loop is shown to members of that role, and to whoever may read activation.journey.';
    END IF;
    RETURN seen.definition;
END
$$;
COMMENT ON FUNCTION activation.export_loop(text) IS
'The current definition of a loop as one document: every default written out, tables with their schema. For those who could change the loop, and for viewers.';

-- Who may change a loop: whoever may act as its owner.
CREATE FUNCTION activation._own_loop(caller oid, name text) RETURNS activation.loop
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    l activation.loop := activation._loop(name);
    owner oid := (SELECT v.owner FROM activation.loop_version v WHERE v.loop_id = l.loop_id AND v.version = l.version);
BEGIN
    -- A superuser is a member of every role, also of one that is gone.
    IF NOT pg_has_role(caller, owner, 'MEMBER') THEN
        RAISE EXCEPTION 'loop "%" belongs to %', name, activation._role_name(owner)
            USING ERRCODE = '42501',
                  HINT = CASE WHEN EXISTS (SELECT FROM pg_roles r WHERE r.oid = owner) THEN format('%s is not a member of that role.', activation._role_name(caller))
                              ELSE 'Only a superuser may change it, or define it anew with another owner.' END;
    END IF;
    RETURN l;
END
$$;

CREATE FUNCTION activation._pause_loop(caller oid, name text, cancel boolean) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    l activation.loop := activation._own_loop(caller, name);
BEGIN
    IF l.state = 'archived' THEN
        RAISE EXCEPTION 'loop "%" is archived', name USING ERRCODE = '55000', HINT = 'Define it again to bring it back.';
    END IF;
    UPDATE activation."loop" x SET state = 'paused', reason = NULL WHERE x.loop_id = l.loop_id;
    IF cancel THEN
        UPDATE activation.message m
           SET state = 'cancelled', finished_at = activation._now(), last_error = 'cancelled when the loop was paused'
         WHERE m.loop_id = l.loop_id AND m.request_id IS NULL AND m.finished_at IS NULL;
    END IF;
END
$$;
CREATE FUNCTION activation.pause_loop(name text, cancel boolean DEFAULT false) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ INSERT INTO activation.call (verb, arguments) VALUES ('pause_loop', jsonb_build_object('name', name, 'cancel', cancel)) $$;
COMMENT ON FUNCTION activation.pause_loop(text, boolean) IS
'Pauses a loop: people are still enrolled and clocks run, but nothing is evaluated or claimed until resume_loop(). cancel: cancel what is queued.';

CREATE FUNCTION activation._resume_loop(caller oid, name text, drop_older_than interval) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    l activation.loop := activation._own_loop(caller, name);
    cut timestamptz := activation._now() - drop_older_than;
BEGIN
    IF drop_older_than < interval '0' THEN
        RAISE EXCEPTION 'drop_older_than is %', drop_older_than
            USING ERRCODE = '22023', HINT = 'Give an age, such as ''1 day'': what came due longer ago is not sent. Leave it out to send all.';
    END IF;
    IF l.state NOT IN ('paused', 'failing', 'stopped') AND NOT EXISTS (SELECT FROM activation.strike k WHERE k.loop_id = l.loop_id) THEN
        RAISE EXCEPTION 'loop "%" is not stopped', name
            USING ERRCODE = '55000', DETAIL = format('It is %s.', l.state),
                  HINT = CASE l.state WHEN 'archived' THEN 'Define it again to bring it back.' ELSE 'Only a loop that is paused, failing or stopped by the brake can be resumed.' END;
    END IF;
    UPDATE activation."loop" x SET state = 'active', reason = NULL, resumed_at = activation._now(), drop_before = cut WHERE x.loop_id = l.loop_id;
    UPDATE activation.message m
       SET state = 'cancelled', finished_at = activation._now(), last_error = 'it came due while the loop was paused'
     WHERE m.loop_id = l.loop_id AND m.request_id IS NULL AND m.finished_at IS NULL AND m.created_at < cut;
    DELETE FROM activation.strike k WHERE k.loop_id = l.loop_id;
    PERFORM activation._sweep(l.loop_id, activation._now());
    UPDATE activation.enrollment e SET retry_at = activation._now() WHERE e.loop_id = l.loop_id AND e.retry_at > activation._now();
END
$$;
CREATE FUNCTION activation.resume_loop(name text, drop_older_than interval DEFAULT NULL) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ INSERT INTO activation.call (verb, arguments) VALUES ('resume_loop', jsonb_build_object('name', name, 'drop_older_than', drop_older_than)) $$;
COMMENT ON FUNCTION activation.resume_loop(text, interval) IS
'Resumes a loop that is paused, failing, or stopped by the brake: everybody who waits is evaluated, then timed out where the deadline has passed, then mail goes out. drop_older_than: what came due longer ago than this is not sent (default: all is). The brake counts anew from now.';

CREATE FUNCTION activation._resolve_message(caller oid, id uuid, verdict text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    m activation.message;
BEGIN
    IF verdict IS NULL OR verdict NOT IN ('sent', 'resend') THEN
        RAISE EXCEPTION 'verdict is %', coalesce(quote_literal(verdict), 'NULL')
            USING ERRCODE = '22023', HINT = 'Give ''sent'' if it reached Resend, ''resend'' to make and send it anew: the user may then have it twice.';
    END IF;
    SELECT x.* INTO m FROM activation.message x WHERE x.message_id = id FOR UPDATE;
    IF m.message_id IS NULL THEN
        RAISE EXCEPTION 'message % does not exist', coalesce(id::text, 'NULL')
            USING ERRCODE = '42704', HINT = 'Messages of which nobody knows: SELECT * FROM activation.message_log WHERE status = ''unknown'';';
    END IF;
    PERFORM activation._own_loop(caller, (SELECT l.name FROM activation."loop" l WHERE l.loop_id = m.loop_id));
    IF m.state <> 'unknown' THEN
        RAISE EXCEPTION 'message % is not unknown', id
            USING ERRCODE = '55000', DETAIL = format('It is %s.', m.state),
                  HINT = 'Only a message of which nobody knows whether it was sent needs a decision.';
    END IF;
    PERFORM activation._resolve(id, verdict, activation._role_name(caller));
END
$$;
CREATE FUNCTION activation.resolve(message_id uuid, verdict text) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ INSERT INTO activation.call (verb, arguments) VALUES ('resolve', jsonb_build_object('message_id', message_id, 'verdict', verdict)) $$;
COMMENT ON FUNCTION activation.resolve(uuid, text) IS
'Decides what became of a message whose status is unknown. verdict: sent, or resend, which makes and sends it anew: the user may then have it twice. Refused for any other message.';

CREATE FUNCTION activation._archive_loop(caller oid, name text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    l activation.loop := activation._own_loop(caller, name);
    captured regclass;
BEGIN
    UPDATE activation."loop" x SET state = 'archived', reason = NULL WHERE x.loop_id = l.loop_id;
    UPDATE activation.enrollment e SET state = 'exited', decided_at = activation._now(), reason = 'the loop was archived'
     WHERE e.loop_id = l.loop_id AND e.state = 'waiting';
    UPDATE activation.message m SET state = 'cancelled', finished_at = activation._now(), last_error = 'the loop was archived'
     WHERE m.loop_id = l.loop_id AND m.request_id IS NULL AND m.finished_at IS NULL;
    DELETE FROM activation.signal g WHERE g.loop_id = l.loop_id AND g.error IS NULL AND g.gone IS NULL;
    DELETE FROM activation.sweep w WHERE w.loop_id = l.loop_id;
    DELETE FROM activation.strike k WHERE k.loop_id = l.loop_id;
    DELETE FROM activation.roll r WHERE r.loop_id = l.loop_id;
    FOR captured IN
        SELECT DISTINCT s.table_name::oid::regclass FROM activation.source s
         WHERE s.table_name IN (SELECT v.users FROM activation.loop_version v WHERE v.loop_id = l.loop_id)
            OR s.source_id IN (SELECT v.source_id FROM activation.loop_version v WHERE v.loop_id = l.loop_id
                               UNION SELECT w.source_id FROM activation.watch w WHERE w.loop_id = l.loop_id)
    LOOP
        PERFORM activation._generate_capture(captured);
    END LOOP;
END
$$;
CREATE FUNCTION activation.archive_loop(name text) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ INSERT INTO activation.call (verb, arguments) VALUES ('archive_loop', jsonb_build_object('name', name)) $$;
COMMENT ON FUNCTION activation.archive_loop(text) IS
'Ends a loop: nobody is enrolled any more, who waits leaves it, what is queued is cancelled. Its history stays. Defining it again brings it back.';

-- ---- around an ALTER COLUMN TYPE ------------------------------------------------------------------------------------------

CREATE FUNCTION activation._unbind(caller oid, table_name regclass) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET client_min_messages = warning
AS $$
DECLARE
    bound regprocedure;
BEGIN
    IF table_name IS NULL THEN
        RAISE EXCEPTION 'unbind needs a table' USING ERRCODE = '22004', HINT = 'SELECT activation.unbind(''users'');';
    END IF;
    PERFORM activation._require_owner(caller, table_name, 'unbind');
    PERFORM activation._lock('define');
    -- Nobody is evaluated until this transaction ends: a detector that waits for the table, while bind() waits for what the
    -- detector holds, would be a deadlock.
    PERFORM activation._lock_parts(activation._all_parts(), true);
    -- What depends on the table, and the filters on it, whose arguments have the types of its columns.
    FOR bound IN
        SELECT DISTINCT p.oid::regprocedure
          FROM pg_proc p
         WHERE p.pronamespace = 'activation_compiled'::regnamespace
           AND (EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid
                           AND d.refclassid = 'pg_class'::regclass AND d.refobjid = _unbind.table_name)
                OR p.proname IN (SELECT v.filter_function FROM activation.loop_version v JOIN activation.source s USING (source_id)
                                  WHERE s.table_name = _unbind.table_name))
    LOOP
        -- CASCADE: the evaluation of a condition hangs on the condition.
        CONTINUE WHEN NOT EXISTS (SELECT FROM pg_proc p WHERE p.oid = bound);
        EXECUTE format('DROP FUNCTION %s CASCADE', bound);
    END LOOP;
END
$$;
CREATE FUNCTION activation.unbind(table_name regclass) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ INSERT INTO activation.call (verb, arguments) VALUES ('unbind', jsonb_build_object('table_name', table_name::oid::bigint)) $$;
COMMENT ON FUNCTION activation.unbind(regclass) IS
'Drops the compiled functions that hold on to a table, so that a column of it can change its type. Call activation.bind() afterwards, in the same transaction. For the table''s owner.';

CREATE FUNCTION activation._bind(or_fail boolean) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    unbound record;
    made integer := 0;
BEGIN
    PERFORM activation._lock('define');
    FOR unbound IN
        SELECT v.loop_id, v.version, l.name, l.state, l.version = v.version AS is_current
          FROM activation.loop_version v JOIN activation."loop" l USING (loop_id)
         WHERE l.state <> 'archived' AND NOT activation._compiled(v.loop_id, v.version)
         ORDER BY v.loop_id, v.version
    LOOP
        BEGIN
            PERFORM activation._compile_version(unbound.loop_id, unbound.version);
            UPDATE activation."loop" l SET state = 'active', reason = NULL
             WHERE l.loop_id = unbound.loop_id AND l.state = 'failing' AND unbound.is_current;
            PERFORM activation._sweep(unbound.loop_id, activation._now());
            made := made + 1;
        EXCEPTION WHEN deadlock_detected OR lock_not_available OR serialization_failure THEN
            RAISE;
        WHEN others THEN
            -- A version that nobody is on their way in, and that owes no mail, is let go: what it was written for is gone.
            IF NOT unbound.is_current
               AND NOT EXISTS (SELECT FROM activation.enrollment e WHERE e.loop_id = unbound.loop_id AND e.version = unbound.version AND e.state = 'waiting')
               AND NOT EXISTS (SELECT FROM activation.message m WHERE m.loop_id = unbound.loop_id AND m.version = unbound.version
                                  AND m.state IN ('queued', 'sending')) THEN
                UPDATE activation.step s SET evaluate_function = NULL, condition_function = NULL
                 WHERE s.loop_id = unbound.loop_id AND s.version = unbound.version AND s.evaluate_function IS NOT NULL;
                IF FOUND THEN
                    RAISE NOTICE 'loop "%": version % no longer fits, and nobody is in it', unbound.name, unbound.version
                        USING DETAIL = SQLERRM, HINT = 'Those who left it without reaching its goal are no longer watched for it.';
                END IF;
                DELETE FROM activation.watch w WHERE w.loop_id = unbound.loop_id AND w.version = unbound.version;
                DELETE FROM activation.sweep w WHERE w.loop_id = unbound.loop_id AND w.version = unbound.version;
                CONTINUE;
            END IF;
            IF or_fail AND unbound.state <> 'failing' THEN
                RAISE EXCEPTION 'loop "%" no longer fits: %', unbound.name, SQLERRM
                    USING ERRCODE = SQLSTATE, DETAIL = format('It is version %s%s.', unbound.version, CASE WHEN NOT unbound.is_current THEN ', in which people are on their way' ELSE '' END),
                          HINT = CASE WHEN unbound.is_current THEN 'Define it anew between unbind() and bind().'
                                      ELSE 'Move them to the new version before bind(): activation.migrate_loop(name).' END;
            END IF;
            UPDATE activation."loop" l SET state = 'failing', reason = format('version %s no longer fits: %s', unbound.version, SQLERRM)
             WHERE l.loop_id = unbound.loop_id;
            RAISE WARNING 'loop "%" no longer fits: %', unbound.name, SQLERRM
                USING HINT = 'It is failing until it is defined again.';
        END;
    END LOOP;
    RETURN made;
END
$$;
CREATE FUNCTION activation.bind(or_fail boolean DEFAULT false) RETURNS integer
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.call (verb, arguments) VALUES ('bind', jsonb_build_object('or_fail', or_fail)) RETURNING (answer #>> '{}')::integer
$$;
COMMENT ON FUNCTION activation.bind(boolean) IS
'Compiles again what unbind() or a DROP … CASCADE removed, and returns how many versions it compiled. A loop that no longer fits is set to failing, with a WARNING; with or_fail it raises instead, unless the loop was failing before. An earlier version that no longer fits and that nobody is in is let go, with a NOTICE.';
