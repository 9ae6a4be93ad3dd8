-- The verbs that must know their caller: what each does with what was inserted into activation.call.

CREATE FUNCTION activation._call() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    a jsonb := NEW.arguments;
    caller oid := (SELECT r.oid FROM pg_roles r WHERE r.rolname = NEW.caller);
    verb oid := (SELECT p.oid FROM pg_proc p WHERE p.pronamespace = 'activation'::regnamespace AND p.proname = NEW.verb);
    name text := a ->> 'name';
BEGIN
    IF NOT coalesce(has_function_privilege(caller, verb, 'EXECUTE'), false) THEN
        RAISE EXCEPTION 'permission denied for verb %', NEW.verb
            USING ERRCODE = '42501', HINT = format('Call activation.%s(…); it takes EXECUTE on that function.', NEW.verb);
    END IF;
    PERFORM activation._sync_owners();
    CASE NEW.verb
        WHEN 'define_loop' THEN
            NEW.answer := to_jsonb(activation._define(caller, name, jsonb_set(a -> 'definition', '{users}',
                coalesce(to_jsonb(activation._table_name((a #>> '{definition,users}')::oid)), 'null')), a ->> 'owner', a ->> 'names'));
        WHEN 'import_loop' THEN
            IF coalesce(a -> 'definition', 'null') = 'null' THEN
                RAISE EXCEPTION 'loop "%": the definition is NULL', name
                    USING ERRCODE = '22004', HINT = 'Give a JSON document, such as export_loop() returns.';
            END IF;
            NEW.answer := to_jsonb(activation._define(caller, name, a -> 'definition', a ->> 'owner', a ->> 'names'));
        WHEN 'import_skene' THEN
            NEW.answer := to_jsonb(activation._define(caller, name, activation._skene(name, a ->> 'config'), a ->> 'owner', a ->> 'names'));
        WHEN 'import_journey' THEN
            NEW.answer := to_jsonb(activation._define(caller, name, activation._journey(
                name, a ->> 'journey', (a ->> 'users')::oid::regclass,
                CASE WHEN a -> 'milestones' <> 'null' THEN ARRAY(SELECT jsonb_array_elements_text(a -> 'milestones')) END,
                (a ->> 'timeout')::interval, a ->> 'names'), a ->> 'owner', a ->> 'names'));
        WHEN 'set_users' THEN
            PERFORM activation._set_users(caller, (a ->> 'users')::oid::regclass, a ->> 'key', a ->> 'email', a ->> 'timezone');
        WHEN 'set_template' THEN
            NEW.answer := to_jsonb(activation._set_template(name, a ->> 'subject', a ->> 'html', a ->> 'body_text'));
        WHEN 'bind' THEN
            NEW.answer := to_jsonb(activation._bind((a ->> 'or_fail')::boolean));
        WHEN 'unbind' THEN
            PERFORM activation._unbind(caller, (a ->> 'table_name')::oid::regclass);
        WHEN 'diff_loop' THEN
            NEW.answer := (SELECT jsonb_agg(d) FROM activation._diff_loop(caller, name, a -> 'definition', a ->> 'names') d);
        WHEN 'migrate_loop' THEN
            NEW.answer := to_jsonb(activation._migrate_loop(caller, name));
        WHEN 'pause_loop' THEN
            PERFORM activation._pause_loop(caller, name, (a ->> 'cancel')::boolean);
        WHEN 'resume_loop' THEN
            PERFORM activation._resume_loop(caller, name, (a ->> 'drop_older_than')::interval);
        WHEN 'archive_loop' THEN
            PERFORM activation._archive_loop(caller, name);
        WHEN 'resolve' THEN
            PERFORM activation._resolve_message(caller, (a ->> 'message_id')::uuid, a ->> 'verdict');
        WHEN 'enroll' THEN
            PERFORM activation._enroll(caller, a ->> 'user_id', a ->> 'loop', nullif(a -> 'context', 'null'));
        WHEN 'suppress' THEN
            PERFORM activation._suppress_by_hand(caller, a ->> 'email', a ->> 'reason');
        WHEN 'preview' THEN
            NEW.answer := (SELECT jsonb_agg(p) FROM activation._preview(caller, a ->> 'user_id', a ->> 'loop') p);
        ELSE
            RAISE EXCEPTION 'verb % is not called this way', NEW.verb
                USING ERRCODE = '0A000', HINT = format('Call activation.%s(…).', NEW.verb);
    END CASE;
    RETURN NEW;
END
$$;
CREATE TRIGGER answer INSTEAD OF INSERT ON activation.call FOR EACH ROW EXECUTE FUNCTION activation._call();
