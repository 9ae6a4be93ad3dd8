-- What each kind of role may do. Nothing is PUBLIC's: a role of the app's gets its rights here.

-- The routines and tables that a kind of role needs. The private ones are what a view, or a verb
-- with its caller's rights, runs inside.
CREATE FUNCTION activation._rights_of(kind text, OUT routines text[], OUT tables text[])
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH need(kinds, routines, tables) AS (VALUES
        ('{app}'::text[],
         '{track, track_all, receive_webhook, unsubscribe, resubscribe, preferences,
           overview, why}'::text[],
         '{}'::text[]),
        ('{author, migration}',
         '{define_loop, import_loop, export_loop, diff_loop, migrate_loop, archive_loop,
           pause_loop, resume_loop, preview, bind, unbind, set_users, set_template,
           import_skene, skene_definition, import_journey, journey_definition,
           on_insert, on_update, on_delete, on_event, on_schedule,
           query, email, retry, step, send_window}',
         '{template, event}'),
        ('{migration}',
         '{configure, set_topic, set_retention}',
         '{loop}'),
        ('{operator}',
         '{start, stop, resume, set_mode, pause_loop, resume_loop, enroll, cancel, resolve,
           suppress, unsuppress, export_user, erase, set_topic, doctor}',
         '{}'),
        ('{operator, viewer}',
         '{why, overview, report, _status}',
         '{status, message_log, journey}'),
        ('{viewer}',
         '{power, _now, _test_now, _two_tails, _wilson, _percent}',
         '{funnel, cohort, time_to_activate, lift, mail_numbers}'),
        ('{analyst}',
         '{suggest, simulate, milestone, query, on_insert, email,
           _look_up, _suggest_plan, _suggest_rank, _suggest_users,
           _simulate, _simulate_plan, _simulate_query, _first_true, _held_out, _next_opening}',
         '{}'))
    SELECT ARRAY(SELECT r FROM need n, unnest(n.routines) AS r WHERE kind = ANY (n.kinds)),
           ARRAY(SELECT t FROM need n, unnest(n.tables) AS t WHERE kind = ANY (n.kinds))
$$;

-- Grants or revokes all that a kind of role needs, with the rights of whoever calls.
CREATE FUNCTION activation._change_rights(verb text, kind text, role name) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    rights record := activation._rights_of(kind);
    gives boolean := verb = 'GRANT';
    routine regprocedure;
    table_name text;
BEGIN
    IF rights.routines = '{}' THEN
        RAISE EXCEPTION 'there is no kind of role "%"', coalesce(kind, '')
            USING ERRCODE = '22023',
                  HINT = 'The kinds are app, author, migration, operator, viewer and analyst.';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = role) OR role IS NULL THEN
        RAISE EXCEPTION 'role "%" does not exist', coalesce(role, '')
            USING ERRCODE = '42704', HINT = 'Make it first: CREATE ROLE.';
    END IF;
    IF NOT pg_has_role((SELECT n.nspowner FROM pg_namespace n WHERE n.nspname = 'activation'),
                       'USAGE') THEN
        RAISE EXCEPTION 'role "%" may not hand out rights on activation', current_user
            USING ERRCODE = '42501',
                  HINT = 'Ask the role that created the extension, or a superuser.';
    END IF;
    IF gives THEN
        EXECUTE format('GRANT USAGE ON SCHEMA activation TO %I', role);
    END IF;
    FOR routine IN
        SELECT p.oid
          FROM pg_proc p
         WHERE p.pronamespace = 'activation'::regnamespace AND p.proname = ANY (rights.routines)
    LOOP
        IF gives THEN
            EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO %I', routine, role);
        ELSE
            EXECUTE format('REVOKE EXECUTE ON ROUTINE %s FROM %I', routine, role);
        END IF;
    END LOOP;
    FOREACH table_name IN ARRAY rights.tables LOOP
        IF gives THEN
            EXECUTE format('GRANT SELECT ON activation.%I TO %I', table_name, role);
        ELSE
            EXECUTE format('REVOKE SELECT ON activation.%I FROM %I', table_name, role);
        END IF;
    END LOOP;
END
$$;

CREATE FUNCTION activation.grant_role(kind text, role name) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ SELECT activation._change_rights('GRANT', kind, role) $$;
COMMENT ON FUNCTION activation.grant_role(text, name) IS
'Gives a role what it needs and nothing else. A role may be of several kinds. May be called again,
also after an update.
kind: app (tells events, takes webhooks, serves the pages), author (defines loops on its own
  tables), migration (an author who also changes settings and topics), operator (starts, stops,
  pauses, resolves, erases), viewer (numbers and addresses) or analyst (suggest, simulate,
  milestone).
role: the role.
Raises 22023 for another kind, 42704 for a role that does not exist, 42501 for a caller who does
  not own the extension.';

CREATE FUNCTION activation.revoke_role(kind text, role name) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ SELECT activation._change_rights('REVOKE', kind, role) $$;
COMMENT ON FUNCTION activation.revoke_role(text, name) IS
'Takes back what grant_role() gave. What another kind of the same role needs as well goes with it:
grant that again. USAGE on the schema stays.
kind: as in grant_role().
role: the role.
Raises what grant_role() does.';
