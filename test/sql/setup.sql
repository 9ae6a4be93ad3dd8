-- What every file begins with: \ir setup.sql. It ends with: SELECT * FROM finish(); ROLLBACK;
\set QUIET 1
\set ON_ERROR_STOP 1
\set ON_ERROR_ROLLBACK 0

BEGIN;
SET LOCAL search_path = public, tap;
SET LOCAL client_min_messages = warning;

-- Helpers. They end with the session.

-- Runs a statement, as another role if one is named, and tells how it ended: code 00000, or what the error said. What an
-- error undid is undone; what a success did stays.
CREATE FUNCTION pg_temp.outcome(statement text, role name DEFAULT NULL,
                                OUT code text, OUT message text, OUT detail text, OUT hint text, OUT context text)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('role', coalesce(role, current_setting('role')), true);
    EXECUTE statement;
    PERFORM set_config('role', 'none', true);
    code := '00000';
EXCEPTION WHEN others OR assert_failure THEN
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL,
                            hint = PG_EXCEPTION_HINT, context = PG_EXCEPTION_CONTEXT;
END
$$;

-- All that a refusal must leave as it is: every table of ours, what was compiled, triggers, who may do what, and the
-- session's settings.
CREATE FUNCTION pg_temp.everything() RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    found jsonb := '{}';
    part text;
    shown text;
BEGIN
    FOR part IN SELECT c.oid::regclass::text FROM pg_class c WHERE c.relnamespace = 'activation'::regnamespace AND c.relkind = 'r' LOOP
        EXECUTE format('SELECT md5(string_agg(t::text, E''\n'' ORDER BY t::text)) FROM %s t', part) INTO shown;
        found := found || jsonb_build_object(part, shown);
    END LOOP;
    RETURN found || jsonb_build_object(
        'functions', (SELECT md5(string_agg(p::text, E'\n' ORDER BY p.oid)) FROM pg_proc p WHERE p.pronamespace = 'activation_compiled'::regnamespace),
        'triggers', (SELECT md5(string_agg(t::text, E'\n' ORDER BY t.oid)) FROM pg_trigger t),
        'schemas', (SELECT md5(string_agg(n::text, E'\n' ORDER BY n.oid)) FROM pg_namespace n),
        'settings', (SELECT md5(string_agg(s.name || s.setting, E'\n' ORDER BY s.name)) FROM pg_settings s));
END
$$;

-- The codes that refused() was asked for.
CREATE TEMP TABLE refused_with (code text);

-- That a statement is refused with this code, a message that holds all of `named`, and a hint that holds `hint` (any hint,
-- if that is empty), and that nothing is changed by it.
CREATE FUNCTION pg_temp.refused(statement text, wanted text, named text[], hint text DEFAULT '', description text DEFAULT NULL,
                                role name DEFAULT NULL) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    before jsonb := pg_temp.everything();
    o record;
    after jsonb;
    wrong text;
BEGIN
    INSERT INTO refused_with VALUES (wanted);
    SELECT * INTO o FROM pg_temp.outcome(statement, role);
    after := pg_temp.everything();
    SELECT concat_ws(E'\n',
        CASE WHEN o.code <> wanted THEN format('code %s, not %s', o.code, wanted) END,
        (SELECT string_agg(format('not in the message: %s', n), E'\n') FROM unnest(named) AS n WHERE position(n IN coalesce(o.message, '')) = 0),
        CASE WHEN coalesce(o.hint, '') = '' THEN 'no hint' WHEN position(refused.hint IN o.hint) = 0 THEN format('not in the hint: %s', refused.hint) END,
        CASE WHEN before <> after THEN format('changed: %s', (SELECT string_agg(key, ', ') FROM jsonb_each(before) WHERE value IS DISTINCT FROM after -> key)) END)
      INTO wrong;
    RETURN tap.ok(wrong = '', coalesce(description, regexp_replace(statement, '\s+', ' ', 'g')))
        || CASE WHEN wrong <> '' THEN E'\n' || tap.diag(concat_ws(E'\n', wrong, 'MESSAGE ' || o.message, 'DETAIL ' || o.detail, 'HINT ' || o.hint)) ELSE '' END;
END
$$;

-- One round of detection, as a detector does it, without its care for conditions that raise.
CREATE FUNCTION pg_temp.round() RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    item record;
    items integer := 0;
BEGIN
    PERFORM activation._lock_buckets(activation._all_buckets(), true);
    FOR item IN SELECT * FROM activation._detect_take(activation._all_buckets(), 1000, true, true, true) WHERE ids IS NOT NULL LOOP
        PERFORM activation._detect_decide(item.step, item.ids, item.woken_at, item.is_new,
                                          activation._detect_ask(item.loop_id, item.version, item.step, item.ids));
        items := items + 1;
    END LOOP;
    FOR item IN SELECT * FROM activation._detect_sweeps(activation._all_buckets()) LOOP
        PERFORM activation._detect_sweep(item.loop_id, item.version, item.step, item.bucket, item.swept_to, 1000);
    END LOOP;
    RETURN items;
END
$$;
