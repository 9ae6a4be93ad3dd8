-- Defines a loop: define_loop() and import_loop().

-- Finds the tables and columns that a definition names or leaves open, refuses those that role may
-- not use, and registers the users table. Returns the definition with all of them written out.
CREATE FUNCTION activation._resolve_definition(
    INOUT definition jsonb, role oid, search_path text, context text,
    OUT table_name regclass, OUT users regclass, OUT key_column name
) RETURNS record
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    trigger jsonb := definition -> 'trigger';
    named_users text := definition ->> 'users';
    registered activation.users_table;
BEGIN
    IF trigger ->> 'type' = 'database' THEN
        table_name := activation._find_table(trigger ->> 'table', search_path, context);
        PERFORM activation._check_table(table_name, context);
        PERFORM activation._require_owner(role, table_name, context);
    END IF;
    users := activation._users_of(
        table_name,
        CASE WHEN named_users IS NOT NULL
             THEN activation._find_table(named_users, search_path, context) END,
        context);
    PERFORM activation._check_table(users, context);
    PERFORM activation._require_owner(role, users, context);
    registered := activation._register_users(users, NULL, NULL, NULL, context);
    IF table_name IS NOT NULL THEN
        key_column := activation._user_key(
            table_name, trigger ->> 'user_key', registered, trigger ->> 'event', context);
        trigger := trigger || jsonb_build_object(
            'table', activation._table_name(table_name),
            'user_key', nullif(key_column, registered.key_column));
        IF table_name <> users THEN
            trigger := jsonb_set(trigger, '{user_key}', to_jsonb(key_column));
        END IF;
    END IF;
    definition := activation._durations(definition, context)
                  || jsonb_build_object('trigger', trigger, 'users', activation._table_name(users));
END
$$;

-- Refuses a definition with an email that could not be rendered.
CREATE FUNCTION activation._check_emails(definition jsonb, users regclass, context text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    step jsonb;
    branch text;
BEGIN
    FOR step IN SELECT * FROM jsonb_array_elements(definition -> 'steps') LOOP
        FOREACH branch IN ARRAY ARRAY['action', 'otherwise'] LOOP
            IF step -> branch <> 'null' THEN
                PERFORM activation._check_email(
                    context, step -> branch, users,
                    activation._find_template(step -> branch ->> 'template'));
            END IF;
        END LOOP;
    END LOOP;
END
$$;

-- What define_loop() and the imports do, once their caller is known: checks a definition and stores
-- it as a new version, unless it is the one that the loop has. Returns the version.
-- Long because each step after the checks needs both versions, the old one and the new one, and has
-- its place in the order.
CREATE FUNCTION activation._define(caller oid, name text, document jsonb, owner name, names text)
RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
<<here>>
DECLARE
    answer jsonb := activation._normalise(name, document);
    definition jsonb := answer -> 'definition';
    context text := format('loop "%s"', name);
    trigger jsonb;
    table_name regclass;
    users regclass;
    key_column name;
    current_loop activation.loop;
    current_version activation.loop_version;
    new_version integer;
    source_id integer;
    generation integer;
    was_unfiltered boolean;
    captured_table regclass;
    role oid := (SELECT r.oid FROM pg_roles r WHERE r.rolname = _define.owner);
BEGIN
    PERFORM activation._raise(answer -> 'error');
    IF role IS NULL THEN
        RAISE EXCEPTION '%: role % does not exist', context, coalesce(quote_ident(owner), 'NULL')
            USING ERRCODE = '42704', HINT = 'Leave owner out to use your own role.';
    END IF;
    IF NOT pg_has_role(caller, role, 'MEMBER') THEN
        RAISE EXCEPTION '%: % is not a member of role %', context,
            activation._role_name(caller), quote_ident(owner)
            USING ERRCODE = '42501',
                  HINT = 'A loop runs with the rights of its owner; leave owner out to use your '
                         'own role.';
    END IF;
    IF names IS NULL THEN
        RAISE EXCEPTION '%: names is NULL', context
            USING ERRCODE = '22004',
                  HINT = 'It is the search_path for the loop''s SQL; leave it out to use yours.';
    END IF;
    PERFORM activation._lock_define();
    IF EXISTS (SELECT FROM activation."loop" l WHERE l.name = _define.name) THEN
        PERFORM activation._require_loop_owner(caller, name);
    END IF;

    SELECT r.* INTO definition, table_name, users, key_column
      FROM activation._resolve_definition(definition, role, names, context) r;
    trigger := definition -> 'trigger';
    PERFORM activation._check_circle(name, definition, context);
    PERFORM activation._check_emails(definition, users, context);

    -- The same definition again is no new version, unless what it was compiled to is gone.
    SELECT l.* INTO current_loop FROM activation."loop" l WHERE l.name = _define.name;
    SELECT v.* INTO current_version
      FROM activation.loop_version v
     WHERE v.loop_id = current_loop.loop_id AND v.version = current_loop.version;
    IF current_version.definition = definition AND current_version.owner = role
       AND current_version.names = _define.names
       AND current_loop.state IN ('active', 'paused')
       AND activation._is_compiled(current_loop.loop_id, current_loop.version) THEN
        RETURN current_loop.version;
    END IF;

    IF current_loop.loop_id IS NULL THEN
        INSERT INTO activation.loop (name, version, created_at)
        VALUES (_define.name, 1, activation._now())
        RETURNING * INTO current_loop;
        new_version := 1;
    ELSE
        SELECT max(v.version) + 1 INTO new_version
          FROM activation.loop_version v WHERE v.loop_id = current_loop.loop_id;
    END IF;
    IF table_name IS NOT NULL THEN
        source_id := activation._capture_source(table_name, key_column);
        was_unfiltered := current_version.source_id = source_id AND current_loop.state <> 'archived'
                          AND current_version.filter_function IS NULL;
        -- A loop that comes to a table, also if it comes back, enrolls nobody whose signal was
        -- written before it came.
        IF was_unfiltered THEN
            generation := current_version.generation;
        ELSE
            UPDATE activation.source s
               SET generation = s.generation + 1
             WHERE s.source_id = here.source_id
            RETURNING s.generation INTO generation;
        END IF;
    END IF;
    PERFORM activation._store_version(
        current_loop.loop_id, new_version, definition, role, owner, names, users, source_id,
        generation);
    PERFORM activation._compile_version(current_loop.loop_id, new_version);
    IF was_unfiltered AND current_version.event = 'insert' AND trigger ->> 'event' = 'insert'
       AND trigger ->> 'filter' IS NOT NULL THEN
        -- People who signed up while the loop had no filter are in it.
        INSERT INTO activation.signal (at, source_id, generation, loop_id, user_id)
        SELECT g.at, g.source_id, g.generation, current_loop.loop_id, g.user_id
          FROM activation.signal g
         WHERE g.source_id = here.source_id AND g.loop_id IS NULL AND g.user_deleted IS NULL
           AND g.generation >= current_version.generation;
    END IF;
    PERFORM activation._begin_backfill(
        current_loop.loop_id, new_version,
        current_version.definition ->> 'enroll' <> 'new' AND current_loop.state <> 'archived');
    UPDATE activation."loop" l
       SET version = new_version, reason = NULL,
           state = CASE WHEN l.state = 'paused' THEN 'paused' ELSE 'active' END
     WHERE l.loop_id = current_loop.loop_id;
    DELETE FROM activation.strike k WHERE k.loop_id = current_loop.loop_id;
    IF (activation._setting()).mode = 'live' THEN
        PERFORM activation._check_leavable((activation._setting()).public_url);
    END IF;

    -- Last, because a new trigger locks its table.
    FOR captured_table IN
        SELECT DISTINCT s.table_name::oid::regclass
          FROM activation.source s
         WHERE s.source_id IN (here.source_id, current_version.source_id)
            OR s.table_name IN (here.users, current_version.users)
            OR s.source_id IN (SELECT w.source_id
                                 FROM activation.watch w
                                WHERE w.loop_id = current_loop.loop_id
                                  AND w.version IN (new_version, current_version.version))
    LOOP
        PERFORM activation._generate_capture(captured_table);
    END LOOP;
    -- The planner takes a table of two rows that was never analyzed for one of hundreds, and then
    -- every plan that joins it is off.
    ANALYZE activation.loop, activation.loop_version, activation.step, activation.source,
            activation.watch;
    RETURN new_version;
END
$$;

CREATE FUNCTION activation.define_loop(
    name text, trigger jsonb DEFAULT NULL, condition jsonb DEFAULT NULL,
    action jsonb DEFAULT NULL, otherwise jsonb DEFAULT NULL, steps jsonb[] DEFAULT NULL,
    goal jsonb DEFAULT NULL, type text DEFAULT 'activation', opinion text DEFAULT NULL,
    recovery jsonb DEFAULT NULL, reentry text DEFAULT 'once', enroll text DEFAULT 'new',
    per_hour integer DEFAULT NULL, users regclass DEFAULT NULL, topic text DEFAULT NULL,
    transactional boolean DEFAULT false, priority integer DEFAULT 0,
    over_cap text DEFAULT 'wait', holdout numeric DEFAULT 0, send_window jsonb DEFAULT NULL,
    owner name DEFAULT current_user, names text DEFAULT current_setting('search_path')
) RETURNS integer
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.call (verb, arguments)
    VALUES ('define_loop', jsonb_build_object(
        'name', name, 'owner', owner, 'names', names, 'definition', jsonb_build_object(
            'type', type, 'opinion', opinion, 'trigger', trigger, 'condition', condition,
            'action', action, 'otherwise', otherwise,
            'steps', CASE WHEN steps IS NOT NULL THEN to_jsonb(steps) END,
            'goal', goal, 'recovery', recovery, 'reentry', reentry, 'enroll', enroll,
            'per_hour', per_hour, 'users', users::oid::bigint, 'topic', topic,
            'transactional', transactional, 'priority', priority, 'over_cap', over_cap,
            'holdout', holdout, 'send_window', send_window)))
    RETURNING (answer #>> '{}')::integer
$$;
COMMENT ON FUNCTION activation.define_loop(
    text, jsonb, jsonb, jsonb, jsonb, jsonb[], jsonb, text, text, jsonb, text, text, integer,
    regclass, text, boolean, integer, text, numeric, jsonb, name, text
) IS
'Defines a loop, or a new version of it. Defining it unchanged makes no new version. People who are
in the loop keep the version they started with. It is transactional: it belongs in a migration,
and a refused definition changes nothing. Give either condition, action and otherwise, or steps.
name: the loop''s name, 1 to 63 bytes.
trigger: what enrolls people: on_insert(), on_update(), on_delete(), on_event() or on_schedule().
condition: what its only step waits for, activation.query(…) (default: nothing).
action: what is mailed when the condition is true, or at once without one: activation.email(…).
otherwise: what is mailed when the condition is still false at its timeout: activation.email(…).
steps: the steps in their order, ARRAY[activation.step(…), …], at most 1,000.
goal: when somebody is activated, activation.query(…) without a timeout (default: the first
  condition).
type: activation or retention, for people to read, as in a skene.config.ts.
opinion: why you believe in the loop, in words. preview() shows it.
recovery: what follows on an error of Resend''s, activation.retry(…) (default: that of retry()).
reentry: once (ever), always, or how long after an enrollment the same user''s next one may begin,
  such as 90 days. Nobody is in a loop twice at once.
enroll: new (who comes after the loop was defined), existing (who was there before), or both.
per_hour: how many existing users are enrolled in an hour at most, where enroll is existing or
  both (default: no limit).
users: the users table, where the trigger leaves open which (default: the one it is about).
topic: what the loop''s mails are about. People can unsubscribe from a topic (default: from
  everything).
transactional: whether its mails go out whatever people unsubscribed from, over the cap, and
  without an unsubscribe link. Suppressed addresses get none.
priority: -1000 to 1000. Where the cap is short, loops with a higher one go first.
over_cap: what happens to a mail over the cap: wait, or skip (it is dropped).
holdout: the share of users who are held out, for comparison, from 0 to 0.9.
send_window: when it may mail, activation.send_window(…) (default: at any time).
owner: the role with whose rights the loop''s SQL runs. You must be a member of it.
names: the search_path on which the names in the loop''s SQL are looked up.
Returns the version.
Raises 22023, 22004 and 22007 for an argument that is none, 42501 for a missing right, 42704 for
  an unknown template or role, 55000 for a live loop whose mail people could not leave, 55P03
  where the table was busy for 3 s, and any code of a condition or filter that does not compile
  (see docs/errors.md).';

CREATE FUNCTION activation.import_loop(
    name text, definition jsonb, owner name DEFAULT current_user,
    names text DEFAULT current_setting('search_path')
) RETURNS integer
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.call (verb, arguments)
    VALUES ('import_loop', jsonb_build_object(
        'name', name, 'definition', definition, 'owner', owner, 'names', names))
    RETURNING (answer #>> '{}')::integer
$$;
COMMENT ON FUNCTION activation.import_loop(text, jsonb, name, text) IS
'Defines a loop from one document, as define_loop() does. Importing what export_loop() returned
changes nothing.
name: the loop''s name.
definition: the document. Keys may be camelCase, and the trigger may stand in the first step.
owner: as in define_loop().
names: as in define_loop().
Returns the version.
Raises what define_loop() does.';
