-- PUBLIC has two things: a view that does nothing without EXECUTE on a verb, and a view that shows
-- each reader what is theirs. docs/operations.md shows the grants for an app role, an author, an
-- operator and a viewer.

REVOKE ALL ON SCHEMA activation, activation_compiled FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA activation FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA activation FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA activation FROM PUBLIC;

GRANT INSERT (verb, arguments), SELECT (answer) ON activation.call TO PUBLIC;
GRANT SELECT ON activation.loop_definition TO PUBLIC;

-- The engine's role calls the engine's functions and writes what the machine owns. It only reads
-- what people declared, since it could otherwise make functions that run as somebody else. The one
-- exception is the state of a loop.
GRANT USAGE ON SCHEMA activation, activation_compiled TO activation_engine;
GRANT SELECT ON ALL TABLES IN SCHEMA activation TO activation_engine;
GRANT INSERT, UPDATE, DELETE
   ON activation.signal, activation.wake, activation.enrollment, activation.event,
      activation.backfill, activation.sweep, activation.strike, activation.capture_failure,
      activation.remark, activation.past_address, activation.consent, activation.suppression,
      activation.webhook_event, activation.pull, activation.unsuppression, activation.erasure,
      activation.request, activation.message, activation.attempt, activation.hourly_sends,
      activation.provider, activation.rate_permit
   TO activation_engine;
GRANT UPDATE ON activation.mutex, activation.user_bucket TO activation_engine;
GRANT UPDATE (beat_at, note, worked_at) ON activation.worker TO activation_engine;
GRANT TRUNCATE ON activation.wake TO activation_engine;
GRANT INSERT ON activation.signing TO activation_engine;
GRANT UPDATE (state, reason) ON activation."loop" TO activation_engine;
DO $$
DECLARE
    routine regprocedure;
    sequence text;
BEGIN
    -- Unlogged sequences hold what the workers are at. Those of the tables are identity columns,
    -- which need no grant.
    FOR sequence IN
        SELECT format('%I.%I', n.nspname, c.relname)
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = 'activation' AND c.relkind = 'S' AND c.relpersistence = 'u'
    LOOP
        EXECUTE format('GRANT SELECT, UPDATE ON SEQUENCE %s TO activation_engine', sequence);
    END LOOP;
    FOR routine IN
        SELECT p.oid
          FROM pg_proc p
         WHERE p.pronamespace = 'activation'::regnamespace AND left(p.proname, 1) = '_'
           AND p.prorettype <> 'trigger'::regtype AND p.prorettype <> 'event_trigger'::regtype
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO activation_engine', routine);
    END LOOP;
END
$$;
ALTER FUNCTION activation._safe_eval(name, regrole, text[], boolean) OWNER TO activation_engine;
ALTER FUNCTION activation._settle() OWNER TO activation_engine;
ALTER FUNCTION activation._prepare_again(text, text) OWNER TO activation_nobody;
