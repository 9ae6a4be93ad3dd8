\echo Use "CREATE EXTENSION activation CASCADE" to load this file. \quit

-- activation: an app's own database notices when a user reaches first value, and writes to them.
--
-- What people declare: settings, users tables, templates, and loops. A loop is a trigger and one or
-- more steps. Each step has a condition in SQL, and says what to mail when the condition holds
-- (action) or still does not at the deadline (otherwise). The loop's goal, by default the first
-- condition, says when somebody is activated. Every change of a loop is a new version; people who
-- are on their way keep the version they started with.
--
-- What the machine keeps: the app's INSERT leaves a row in `signal` (someone to enroll). An INSERT
-- or UPDATE on a table that a condition reads leaves a row in `wake` (someone to look at again). An
-- `enrollment` is one user's pass through one loop. A `message` is one email that an enrollment
-- promised; a `request` is one call of Resend's API with the exact bytes that were sent; an
-- `attempt` is one try of one message.
--
--   signal -> enrollment: waiting, from step to step -> completed | timed_out | exited
--   message: queued -> sending -> sent -> delivered | bounced | complained; back to queued on a
--            retry. What is not sent ends as failed, cancelled, suppressed, held_out, captured, or
--            as unknown where nobody knows. Failed and unknown may still turn out to be sent, and
--            resolve() makes unknown sent or queued.
--
-- The folders, in the order in which they may use each other (sql/manifest has the parts):
--   tables     what is stored; the head of each part says who writes it.
--   python     the only plpython3u code: import and call. `detect` and `deliver` are the runs that
--              call the engine's functions, commit, and talk HTTP while no transaction is open.
--   evaluate   an author's SQL becomes functions in the schema activation_compiled, bound by the
--              server. They run in the black box, with the rights of the loop's owner and never
--              with those of a worker.
--   capture    statement triggers on the app's tables, generated for each table. They write signal
--              and wake, and nothing else. They never run Python, never do I/O, and never make the
--              app's statement fail.
--   engine     a detector's round: take what is due, ask conditions, decide what follows.
--   delivery   a deliverer's turn: claim due messages, store requests, record what came of them,
--              at the provider's rate.
--   workers    slots, heartbeats, the watch over each other, housekeeping.
--   api        the verbs that people call, and their validation.
--   views      what people look at.
--   insight    what would have been: simulate, milestone, suggest.
--   operate    start and stop (the only part that says `cron.`), doctor.
-- Two parts stand outside the folders. calls.sql does the work of each verb that must know its
-- caller. privileges.sql takes everything from PUBLIC and grants the engine's role what it needs.

-- Where a function of ours sets plan_cache_mode, the reason is this: a plan for arrays of unknown
-- length expects ten entries, and one made while a table was small scans it for as long as the
-- session lives. Both turned milliseconds into seconds. For the same reason people are looked up
-- one by one (LATERAL … OFFSET 0) where the planner could begin at the wrong end.

CREATE SCHEMA activation;
COMMENT ON SCHEMA activation IS
    'Activation loops: notice when a user reaches first value, and write to them.';

-- Functions made at run time (capture functions, compiled conditions and filters) are no members of
-- the extension, so that pg_dump carries them. Nobody has a right on the schema: an owner of a
-- compiled function could otherwise ALTER it.
CREATE SCHEMA activation_compiled;
COMMENT ON SCHEMA activation_compiled IS
    'Functions that activation generates from loops. Nothing here is edited by hand.';

-- The role that the engine works as: it may call the engine and write what the machine owns, and
-- nothing else. An author's code that got out of the black box would hold its rights and not a
-- superuser's. Roles belong to the whole server: another database may have made it already, and it
-- stays when the extension goes.
-- activation_nobody has no right at all: whatever runs as this role can do no harm.
DO $$
DECLARE
    role text;
    problem text;
BEGIN
    FOREACH role IN ARRAY '{activation_engine,activation_nobody}'::text[] LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN NOINHERIT', role);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
        SELECT concat_ws(', ',
                   CASE WHEN r.rolsuper THEN 'is a superuser' END,
                   CASE WHEN r.rolcanlogin THEN 'may log in' END,
                   CASE WHEN r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls
                        THEN 'has attributes of its own' END,
                   CASE WHEN EXISTS (SELECT FROM pg_auth_members m
                                      WHERE r.oid IN (m.roleid, m.member))
                        THEN 'has members or is one' END)
          INTO problem
          FROM pg_roles r WHERE r.rolname = role;
        IF problem <> '' THEN
            RAISE EXCEPTION 'role %, which activation would work as, %', role, problem
                USING ERRCODE = '42710',
                      HINT = format('It must be a plain role that nobody is a member of. Drop it, '
                                    'or rename it: ALTER ROLE %I RENAME TO ….', role);
        END IF;
    END LOOP;
END
$$;

-- Says who calls, as PostgreSQL itself knows it on the caller's side. A verb is a function with its
-- caller's rights that inserts into this view. The view's default for `caller` is evaluated there
-- and may not be given. The trigger on it (_call()) does the work with our rights and answers.
-- Nothing is stored. session_user would not do: code that somebody planted in an index or a domain
-- may run in a superuser's session.
CREATE VIEW activation.call AS
SELECT NULL::name AS caller, NULL::text AS verb, NULL::jsonb AS arguments, NULL::jsonb AS answer
 WHERE false;
ALTER VIEW activation.call ALTER COLUMN caller SET DEFAULT current_user;
COMMENT ON VIEW activation.call IS
    'What verbs insert into, so that the engine knows their caller. '
    'Holds nothing, and asks for EXECUTE on the verb.';

-- The time on the clock of a test, as SET activation.now has it. Anybody may set that, also before
-- calling a verb that has our rights; it is believed only in a session that began as a superuser's
-- or as the extension's owner's (who logged in: what a session has become since, PostgreSQL lets
-- others decide), and only if time can go on from it.
CREATE FUNCTION activation._test_now() RETURNS timestamptz
LANGUAGE plpgsql VOLATILE PARALLEL SAFE COST 1000
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    moved timestamptz;
BEGIN
    IF EXISTS (SELECT FROM pg_stat_get_activity(pg_backend_pid()) a
                 JOIN pg_roles r ON r.oid = a.usesysid
                WHERE r.rolsuper
                   OR r.oid = (SELECT x.extowner FROM pg_extension x
                                WHERE x.extname = 'activation')) THEN
        moved := current_setting('activation.now')::timestamptz;
    END IF;
    RETURN CASE WHEN moved BETWEEN '1970-01-01 UTC' AND '3000-01-01 UTC' THEN moved
                ELSE clock_timestamp() END;
END
$$;

-- The engine's clock. Tests move it with SET activation.now; it moves only for the session that
-- sets it. Rows that the app's statement writes (signal, wake) have its now(); permits and
-- heartbeats have clock_timestamp().
CREATE FUNCTION activation._now() RETURNS timestamptz
LANGUAGE sql VOLATILE PARALLEL SAFE
RETURN CASE WHEN coalesce(current_setting('activation.now', true), '') = ''
            THEN clock_timestamp() ELSE activation._test_now() END;

-- The bucket of a user: users are divided by the hash of their key, so that several detectors never
-- hold the same user.
CREATE FUNCTION activation._user_bucket(user_id text) RETURNS integer
LANGUAGE sql IMMUTABLE
RETURN hashtext(user_id) & 7;

-- Every number that _user_bucket() can return.
CREATE FUNCTION activation._all_buckets() RETURNS integer[]
LANGUAGE sql IMMUTABLE
RETURN ARRAY[0, 1, 2, 3, 4, 5, 6, 7];

-- When the process of a session began; NULL if there is none. It has its owner's rights, because a
-- role sees nothing of others' sessions but their pid. Within one transaction the answer stays the
-- same, unless pg_stat_clear_snapshot() is called.
CREATE FUNCTION activation._backend_start(pid integer) RETURNS timestamptz
LANGUAGE plpgsql STABLE STRICT SECURITY DEFINER COST 1000
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (SELECT a.backend_start FROM pg_stat_get_activity(_backend_start.pid) a);
END
$$;

-- Whether a session that held something still exists. Its start is compared too, since its pid may
-- be another session's by now.
CREATE FUNCTION activation._is_alive(pid integer, backend_start timestamptz) RETURNS boolean
LANGUAGE sql STABLE COST 1000
RETURN coalesce(activation._backend_start(pid) = backend_start, false);

-- Raises what a validator returned: {"message", "detail", "hint", "code"}. Only SQL raises: an
-- error raised inside PL/Python would carry a traceback.
CREATE FUNCTION activation._raise(error jsonb) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF error IS NULL THEN
        RETURN;
    END IF;
    RAISE EXCEPTION USING
        MESSAGE = error ->> 'message',
        DETAIL = coalesce(error ->> 'detail', ''),
        HINT = coalesce(error ->> 'hint', ''),
        ERRCODE = coalesce(error ->> 'code', '22023');
END
$$;

-- A role's name for people to read, also of a role that was dropped.
CREATE FUNCTION activation._role_name(role oid) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce((SELECT quote_ident(r.rolname) FROM pg_roles r WHERE r.oid = role),
                    'a role that is gone')
$$;

-- A table's name as it is stored in definitions and shown to people: always with its schema, quoted
-- where needed.
CREATE FUNCTION activation._table_name(table_name regclass) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('%I.%I', n.nspname, c.relname)
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.oid = table_name
$$;
