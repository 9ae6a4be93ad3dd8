-- The verbs that must know their caller: what each does with what was inserted into
-- activation.call.

-- Does the work of a verb in its caller's name, and answers. The trigger on activation.call runs
-- it. Long because each verb is a branch of one CASE that hands its arguments on.
CREATE FUNCTION activation._call() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    args jsonb := NEW.arguments;
    caller oid := (SELECT r.oid FROM pg_roles r WHERE r.rolname = NEW.caller);
    verb oid := (SELECT p.oid FROM pg_proc p
                  WHERE p.pronamespace = 'activation'::regnamespace AND p.proname = NEW.verb);
    name text := args ->> 'name';
BEGIN
    IF NOT coalesce(has_function_privilege(caller, verb, 'EXECUTE'), false) THEN
        RAISE EXCEPTION 'permission denied for verb %', NEW.verb
            USING ERRCODE = '42501',
                  HINT = format('Call activation.%s(…); it takes EXECUTE on that function.',
                                NEW.verb);
    END IF;
    PERFORM activation._sync_owners();
    CASE NEW.verb
        WHEN 'define_loop' THEN
            NEW.answer := to_jsonb(activation._define(
                caller, name,
                jsonb_set(args -> 'definition', '{users}', coalesce(
                    to_jsonb(activation._table_name((args #>> '{definition,users}')::oid)),
                    'null')),
                args ->> 'owner', args ->> 'names'));
        WHEN 'import_loop' THEN
            IF coalesce(args -> 'definition', 'null') = 'null' THEN
                RAISE EXCEPTION 'loop "%": the definition is NULL', name
                    USING ERRCODE = '22004',
                          HINT = 'Give a JSON document, such as export_loop() returns.';
            END IF;
            NEW.answer := to_jsonb(activation._define(
                caller, name, args -> 'definition', args ->> 'owner', args ->> 'names'));
        WHEN 'import_skene' THEN
            NEW.answer := to_jsonb(activation._define(
                caller, name, activation._skene(name, args ->> 'config'),
                args ->> 'owner', args ->> 'names'));
        WHEN 'import_journey' THEN
            NEW.answer := to_jsonb(activation._define(
                caller, name,
                activation._journey(
                    name, args ->> 'journey', (args ->> 'users')::oid::regclass,
                    CASE WHEN args -> 'milestones' <> 'null'
                         THEN ARRAY(SELECT jsonb_array_elements_text(args -> 'milestones')) END,
                    (args ->> 'timeout')::interval, args ->> 'names'),
                args ->> 'owner', args ->> 'names'));
        WHEN 'set_users' THEN
            PERFORM activation._set_users(caller, (args ->> 'users')::oid::regclass,
                                          args ->> 'key', args ->> 'email', args ->> 'timezone');
        WHEN 'set_template' THEN
            NEW.answer := to_jsonb(activation._set_template(
                caller, name, args ->> 'subject', args ->> 'html', args ->> 'body_text'));
        WHEN 'bind' THEN
            NEW.answer := to_jsonb(activation._bind((args ->> 'or_fail')::boolean));
        WHEN 'unbind' THEN
            PERFORM activation._unbind(caller, (args ->> 'table_name')::oid::regclass);
        WHEN 'diff_loop' THEN
            NEW.answer := (SELECT jsonb_agg(d)
                             FROM activation._diff_loop(caller, name, args -> 'definition',
                                                        args ->> 'names') d);
        WHEN 'migrate_loop' THEN
            NEW.answer := to_jsonb(activation._migrate_loop(caller, name));
        WHEN 'pause_loop' THEN
            PERFORM activation._pause_loop(caller, name, (args ->> 'cancel')::boolean);
        WHEN 'resume_loop' THEN
            PERFORM activation._resume_loop(caller, name, (args ->> 'drop_older_than')::interval);
        WHEN 'archive_loop' THEN
            PERFORM activation._archive_loop(caller, name);
        WHEN 'resolve' THEN
            PERFORM activation._resolve_message(caller, (args ->> 'message_id')::uuid,
                                                args ->> 'verdict');
        WHEN 'enroll' THEN
            PERFORM activation._enroll(caller, args ->> 'user_id', args ->> 'loop',
                                       nullif(args -> 'context', 'null'));
        WHEN 'suppress' THEN
            PERFORM activation._suppress_by_hand(caller, args ->> 'email', args ->> 'reason');
        WHEN 'preview' THEN
            NEW.answer := (SELECT jsonb_agg(p)
                             FROM activation._preview(caller, args ->> 'user_id',
                                                      args ->> 'loop') p);
        ELSE
            RAISE EXCEPTION 'verb % is not called this way', NEW.verb
                USING ERRCODE = '0A000', HINT = format('Call activation.%s(…).', NEW.verb);
    END CASE;
    RETURN NEW;
END
$$;
CREATE TRIGGER answer INSTEAD OF INSERT ON activation.call
FOR EACH ROW EXECUTE FUNCTION activation._call();
