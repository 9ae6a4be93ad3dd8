-- Files of Skene's as loops: skene.config.ts and journey.yaml. Everything in them that a loop
-- cannot say is refused.

-- The definition that a skene.config.ts says. name: the loop's, for errors. A setting that has no
-- effect is told in a NOTICE.
CREATE FUNCTION activation._skene(name text, config text) RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    answer jsonb;
    notice text;
BEGIN
    IF config IS NULL THEN
        RAISE EXCEPTION 'loop "%": the config is NULL', name
            USING ERRCODE = '22004', HINT = 'Give the text of a skene.config.ts.';
    END IF;
    answer := activation._skene_config(name, config, (
        SELECT coalesce(jsonb_agg(jsonb_build_object('table', activation._table_name(c.oid),
                                                     'key', quote_ident(u.key_column))), '[]')
          FROM activation.users_table u JOIN pg_class c ON c.oid = u.users));
    PERFORM activation._raise(answer -> 'error');
    FOR notice IN SELECT * FROM jsonb_array_elements_text(answer -> 'notices') LOOP
        RAISE NOTICE '%', notice
            USING HINT = 'Its query is asked at the times of the schedule, '
                         'for everybody; nobody waits for it.';
    END LOOP;
    RETURN answer -> 'definition';
END
$$;

CREATE FUNCTION activation.skene_definition(config text) RETURNS jsonb
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$ SELECT activation._skene('skene.config.ts', config) $$;
COMMENT ON FUNCTION activation.skene_definition(text) IS
'The text of a skene.config.ts as a definition. It is read and never run. Applies nothing.
config: the text of the file, at most 200,000 characters.
Returns the document, for import_loop(), diff_loop() and simulate().
Raises 22004 without a text, 42601 for what is no TypeScript, 22023 for an unknown key, 0A000 for
  what a loop cannot express, with its line.';

CREATE FUNCTION activation.import_skene(
    name text, config text, owner name DEFAULT current_user,
    names text DEFAULT current_setting('search_path')
) RETURNS integer
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.call (verb, arguments)
    VALUES ('import_skene', jsonb_build_object('name', name, 'config', config, 'owner', owner,
                                               'names', names))
    RETURNING (answer #>> '{}')::integer
$$;
COMMENT ON FUNCTION activation.import_skene(text, text, name, text) IS
'Defines a loop from the text of a skene.config.ts (export default defineLoop({…}), read and never
run).
name: the loop''s name.
config: the text of the file, at most 200,000 characters.
owner: as in define_loop().
names: as in define_loop().
Returns the version.
Raises what skene_definition() and define_loop() do.';

-- The condition by which a table shows that a milestone was reached, or the reason why it cannot.
-- The table has one column that tells whose a row is: the only one that references the users table,
-- else one called user_id.
CREATE FUNCTION activation._milestone_in(
    table_name text, users regclass, key_type oid, names text,
    OUT query text, OUT is_users boolean, OUT reason text
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    evidence regclass := (activation._run_on_path(
        names,
        ARRAY[format('SELECT pg_catalog.to_regclass(%L)::pg_catalog.oid::pg_catalog.int8',
                     table_name)],
        false) ->> 'value')::oid;
    columns name[];
BEGIN
    is_users := evidence IS NOT DISTINCT FROM users;
    IF evidence IS NULL THEN
        reason := format('there is no table %s', table_name);
        RETURN;
    END IF;
    columns := ARRAY(
        SELECT DISTINCT a.attname
          FROM pg_constraint c
          JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
         WHERE c.contype = 'f' AND c.conrelid = evidence AND c.confrelid = users
           AND cardinality(c.conkey) = 1 AND activation._same_keys(a.atttypid, key_type)
         ORDER BY 1);
    IF columns = '{}'
       AND activation._same_keys(activation._key_type(evidence, 'user_id'), key_type) THEN
        columns := '{user_id}';
    END IF;
    IF cardinality(columns) = 1 THEN
        query := format('SELECT 1 FROM %s WHERE %I = $1',
                        activation._table_name(evidence), columns[1]);
    ELSE
        reason := CASE WHEN columns = '{}'
                       THEN format('no column of %s references %s',
                                   activation._table_name(evidence), activation._table_name(users))
                       ELSE format('%s of %s reference %s', array_to_string(columns, ' and '),
                                   activation._table_name(evidence), activation._table_name(users))
                  END;
    END IF;
END
$$;

-- The definition that a journey.yaml says, with a step for each milestone; milestones: only these.
-- Long because it refuses all milestones that the database does not tell of at once, after it has
-- looked at each.
CREATE FUNCTION activation._journey(
    name text, journey text, users regclass, milestones text[], timeout interval, names text
) RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    context text := format('loop "%s"', name);
    parsed jsonb;
    key_column name;
    milestone jsonb;
    ref text;
    evidence record;
    condition jsonb;
    query text;
    reason text;
    steps jsonb := jsonb_build_array();
    goal jsonb;
    has_signup boolean := false;
    unseen text[] := ARRAY[]::text[];
    seen text[] := ARRAY[]::text[];
BEGIN
    IF journey IS NULL THEN
        RAISE EXCEPTION '%: the journey is NULL', context
            USING ERRCODE = '22004', HINT = 'Give the text of a journey.yaml.';
    END IF;
    IF names IS NULL THEN
        RAISE EXCEPTION '%: names is NULL', context
            USING ERRCODE = '22004',
                  HINT = 'It is the search_path for the loop''s SQL; leave it out to use yours.';
    END IF;
    PERFORM activation._positive('timeout', timeout);
    parsed := activation._journey_text(name, journey);
    PERFORM activation._raise(parsed -> 'error');
    users := activation._users_of(NULL, users, context);
    PERFORM activation._check_table(users, context);
    key_column := activation._users_key(users, NULL, context);
    SELECT m.name INTO ref
      FROM unnest(milestones) AS m(name)
     WHERE NOT EXISTS (SELECT FROM jsonb_array_elements(parsed -> 'milestones') AS x
                        WHERE x ->> 'ref' = m.name);
    IF FOUND THEN
        RAISE EXCEPTION '%: the journey has no milestone "%"', context, ref
            USING ERRCODE = '42704',
                  HINT = format('It has %s.',
                                (SELECT string_agg(x ->> 'ref', ', ')
                                   FROM jsonb_array_elements(parsed -> 'milestones') AS x));
    END IF;

    FOR milestone IN
        SELECT *
          FROM jsonb_array_elements(parsed -> 'milestones') AS x
         WHERE milestones IS NULL OR x ->> 'ref' = ANY (milestones)
    LOOP
        query := NULL;
        reason := NULL;
        ref := milestone ->> 'ref';
        FOR evidence IN
            SELECT i.*
              FROM jsonb_array_elements_text(milestone -> 'tables') AS t(name),
                   activation._milestone_in(
                       t.name, users, activation._key_type(users, key_column), names) AS i
        LOOP
            IF evidence.is_users AND NOT has_signup THEN
                -- The signup itself, with which everybody begins.
                has_signup := true;
                query := '';
            END IF;
            query := coalesce(query, evidence.query);
            reason := coalesce(reason, evidence.reason);
        END LOOP;
        IF query IS NULL AND milestone ->> 'event' IS NOT NULL THEN
            query := format('SELECT 1 FROM activation.event '
                            'WHERE user_id = $1::text AND event = %L', milestone ->> 'event');
        END IF;
        IF query IS NULL THEN
            unseen := unseen || format('Line %s: %s: %s.', milestone ->> 'line', ref,
                                       coalesce(reason, 'it names no table and no tracked_event'));
            CONTINUE;
        END IF;
        seen := seen || ref;
        CONTINUE WHEN query = '';
        condition := jsonb_build_object('type', 'query', 'query', query);
        IF milestone ->> 'stage' = 'activation' THEN
            goal := condition;
        END IF;
        steps := steps || jsonb_build_array(jsonb_build_object(
            'name', ref,
            'condition', condition || jsonb_build_object('timeout', timeout::text),
            'action', jsonb_build_object('type', 'email', 'template', 'milestone',
                                         'subject', milestone ->> 'name')));
    END LOOP;
    IF unseen <> '{}' THEN
        RAISE EXCEPTION '%: the database does not tell of % of its milestones',
            context, cardinality(unseen)
            USING ERRCODE = '0A000', DETAIL = array_to_string(unseen, E'\n'),
                  HINT = format('Leave them out (milestones => %L), or name the event that the app '
                                'tells of by activation.track(…) as their tracked_event.', seen);
    END IF;
    IF steps = '[]' THEN
        RAISE EXCEPTION '%: the journey has no milestone to wait for', context
            USING ERRCODE = '22023',
                  HINT = 'One on the users table is the signup, with which the loop begins. '
                         'Give it another.';
    END IF;
    RETURN jsonb_strip_nulls(jsonb_build_object(
        'type', 'activation',
        'opinion', 'The milestones of ' || coalesce(parsed ->> 'product', 'the journey') || '.',
        'trigger', jsonb_build_object('type', 'database', 'table', activation._table_name(users),
                                      'event', 'insert'),
        'goal', goal, 'steps', steps));
END
$$;

CREATE FUNCTION activation.journey_definition(
    journey text, users regclass DEFAULT NULL, milestones text[] DEFAULT NULL,
    timeout interval DEFAULT '30 days', names text DEFAULT current_setting('search_path')
) RETURNS jsonb
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT activation._journey('journey.yaml', journey, users, milestones, timeout, names)
$$;
COMMENT ON FUNCTION activation.journey_definition(text, regclass, text[], interval, text) IS
'The milestones of a journey.yaml as a definition. Applies nothing.
journey: the text of the file, at most 200,000 characters.
users: the users table, where there are several (default: the registered one).
milestones: only these, each as stage.milestone (default: all).
timeout: how long each milestone is waited for, over 0.
names: as in define_loop().
Returns the document, for import_loop(), diff_loop() and simulate().
Raises 22004 without a text, 42601 for what is no YAML, 42704 for an unknown milestone, 0A000 for
  one of which the database does not tell, with its line, 22023 for an unknown key, or where
  nothing is left to wait for.';

CREATE FUNCTION activation.import_journey(
    name text, journey text, users regclass DEFAULT NULL, milestones text[] DEFAULT NULL,
    timeout interval DEFAULT '30 days', owner name DEFAULT current_user,
    names text DEFAULT current_setting('search_path')
) RETURNS integer
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.call (verb, arguments)
    VALUES ('import_journey',
            jsonb_build_object('name', name, 'journey', journey, 'users', users::oid::bigint,
                               'milestones', milestones, 'timeout', timeout, 'owner', owner,
                               'names', names))
    RETURNING (answer #>> '{}')::integer
$$;
COMMENT ON FUNCTION activation.import_journey(text, text, regclass, text[], interval, name, text) IS
'Defines a loop from the text of a journey.yaml: a step for each milestone. It waits for a row in
the table of the milestone''s evidence, else for its tracked_event, and mails the template
milestone.
name: the loop''s name.
journey: the text of the file, at most 200,000 characters.
users: the users table, where there are several (default: the registered one).
milestones: only these, each as stage.milestone (default: all).
timeout: how long each milestone is waited for, over 0.
owner: as in define_loop().
names: as in define_loop().
Returns the version.
Raises what journey_definition() and define_loop() do.';
