-- Loops by name: show, pause, resume, archive, and what a person decides about their messages.

-- Finds a loop by its name, or raises with the names there are.
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
                  HINT = coalesce(
                      'There are ' || (
                          SELECT string_agg(format('"%s"', l.name), ', ' ORDER BY l.name)
                            FROM activation."loop" l) || '.',
                      'None is defined yet: activation.define_loop(…).');
    END IF;
    RETURN found_loop;
END
$$;

-- Finds a loop that the caller may change: whoever may act as its owner may. Raises for others.
CREATE FUNCTION activation._require_loop_owner(caller oid, name text) RETURNS activation.loop
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_loop activation.loop := activation._loop(name);
    owner oid := (SELECT v.owner FROM activation.loop_version v
                   WHERE v.loop_id = found_loop.loop_id AND v.version = found_loop.version);
BEGIN
    -- A superuser is a member of every role, also of one that is gone.
    IF NOT pg_has_role(caller, owner, 'MEMBER') THEN
        RAISE EXCEPTION 'loop "%" belongs to %', name, activation._role_name(owner)
            USING ERRCODE = '42501',
                  HINT = CASE WHEN EXISTS (SELECT FROM pg_roles r WHERE r.oid = owner)
                              THEN format('%s is not a member of that role.',
                                          activation._role_name(caller))
                              ELSE 'Only a superuser may change it, or define it anew with another '
                                   'owner.' END;
    END IF;
    RETURN found_loop;
END
$$;

-- What pause_loop() does, once its caller is known.
CREATE FUNCTION activation._pause_loop(caller oid, name text, cancel boolean) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target activation.loop := activation._require_loop_owner(caller, name);
BEGIN
    IF target.state = 'archived' THEN
        RAISE EXCEPTION 'loop "%" is archived', name
            USING ERRCODE = '55000', HINT = 'Define it again to bring it back.';
    END IF;
    PERFORM activation._set_loop_state(target.loop_id, 'paused');
    IF cancel THEN
        PERFORM activation._cancel_queue_of_loop(target.loop_id, 'cancelled_by_pause');
    END IF;
END
$$;

CREATE FUNCTION activation.pause_loop(name text, cancel boolean DEFAULT false) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.call (verb, arguments)
    VALUES ('pause_loop', jsonb_build_object('name', name, 'cancel', cancel))
$$;
COMMENT ON FUNCTION activation.pause_loop(text, boolean) IS
'Pauses a loop: people are still enrolled and clocks run, but nothing is evaluated or mailed until
resume_loop().
name: the loop''s name.
cancel: whether what is queued is cancelled.
Raises 42704 for an unknown loop, 42501 for another role''s, 55000 for an archived one.';

-- What resume_loop() does, once its caller is known.
CREATE FUNCTION activation._resume_loop(caller oid, name text, drop_older_than interval)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target activation.loop := activation._require_loop_owner(caller, name);
    dropped_before timestamptz := activation._now() - drop_older_than;
BEGIN
    IF drop_older_than < interval '0' THEN
        RAISE EXCEPTION 'drop_older_than is %', drop_older_than
            USING ERRCODE = '22023',
                  HINT = 'Give an age, such as ''1 day'': what came due longer ago is not sent. '
                         'Leave it out to send all.';
    END IF;
    IF target.state NOT IN ('paused', 'failing', 'stopped')
       AND NOT EXISTS (SELECT FROM activation.strike k WHERE k.loop_id = target.loop_id) THEN
        RAISE EXCEPTION 'loop "%": there is nothing to resume', name
            USING ERRCODE = '55000',
                  DETAIL = format('It is %s.', target.state),
                  HINT = CASE target.state
                      WHEN 'archived' THEN 'Define it again to bring it back.'
                      ELSE 'Only a loop that is paused, failing or stopped by the brake can be '
                           'resumed.'
                  END;
    END IF;
    PERFORM activation._set_loop_state(target.loop_id, 'active');
    UPDATE activation."loop" l
       SET resumed_at = activation._now(), drop_before = dropped_before
     WHERE l.loop_id = target.loop_id;
    IF dropped_before IS NOT NULL THEN
        PERFORM activation._cancel_queue_of_loop(target.loop_id, 'due_in_pause', dropped_before);
    END IF;
    DELETE FROM activation.strike k WHERE k.loop_id = target.loop_id;
    PERFORM activation._order_sweep(target.loop_id, activation._now());
    UPDATE activation.enrollment e
       SET retry_at = activation._now()
     WHERE e.loop_id = target.loop_id AND e.retry_at > activation._now();
END
$$;

CREATE FUNCTION activation.resume_loop(name text, drop_older_than interval DEFAULT NULL)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.call (verb, arguments)
    VALUES ('resume_loop', jsonb_build_object('name', name, 'drop_older_than', drop_older_than))
$$;
COMMENT ON FUNCTION activation.resume_loop(text, interval) IS
'Resumes a loop that is paused, failing, or stopped by the brake. Everybody who waits is evaluated,
then timed out where the deadline has passed, then mail goes out. The brake counts anew from now.
name: the loop''s name.
drop_older_than: what came due longer ago than this is not sent, 0 or more (default: all is).
Raises 42704 for an unknown loop, 42501 for another role''s, 55000 where there is nothing to
  resume, 22023 for a negative duration.';

-- What archive_loop() does, once its caller is known.
CREATE FUNCTION activation._archive_loop(caller oid, name text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target activation.loop := activation._require_loop_owner(caller, name);
    captured_table regclass;
BEGIN
    PERFORM activation._set_loop_state(target.loop_id, 'archived');
    UPDATE activation.enrollment e
       SET state = 'exited', decided_at = activation._now(), exit_cause = 'loop_archived'
     WHERE e.loop_id = target.loop_id AND e.state = 'waiting';
    PERFORM activation._cancel_queue_of_loop(target.loop_id, 'loop_archived');
    DELETE FROM activation.signal g
     WHERE g.loop_id = target.loop_id AND g.error IS NULL AND g.user_deleted IS NULL;
    DELETE FROM activation.sweep w WHERE w.loop_id = target.loop_id;
    DELETE FROM activation.strike k WHERE k.loop_id = target.loop_id;
    DELETE FROM activation.backfill b WHERE b.loop_id = target.loop_id;
    FOR captured_table IN
        SELECT DISTINCT s.table_name::oid::regclass
          FROM activation.source s
         WHERE s.table_name IN (SELECT v.users FROM activation.loop_version v
                                 WHERE v.loop_id = target.loop_id)
            OR s.source_id IN (SELECT v.source_id FROM activation.loop_version v
                                WHERE v.loop_id = target.loop_id
                               UNION
                               SELECT w.source_id FROM activation.watch w
                                WHERE w.loop_id = target.loop_id)
    LOOP
        PERFORM activation._generate_capture(captured_table);
    END LOOP;
END
$$;

CREATE FUNCTION activation.archive_loop(name text) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.call (verb, arguments)
    VALUES ('archive_loop', jsonb_build_object('name', name))
$$;
COMMENT ON FUNCTION activation.archive_loop(text) IS
'Ends a loop: nobody is enrolled any more, people who wait in it exit, queued mail is cancelled.
Its history stays. Defining it again brings it back.
name: the loop''s name.
Raises 42704 for an unknown loop, 42501 for another role''s.';

-- What resolve() does, once its caller is known.
CREATE FUNCTION activation._resolve_message(caller oid, id uuid, verdict text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    unresolved activation.message;
BEGIN
    IF verdict IS NULL OR verdict NOT IN ('sent', 'resend') THEN
        RAISE EXCEPTION 'verdict is %', coalesce(quote_literal(verdict), 'NULL')
            USING ERRCODE = '22023',
                  HINT = 'Give ''sent'' if it reached Resend, ''resend'' to make and send it anew: '
                         'the user may then have it twice.';
    END IF;
    SELECT m.* INTO unresolved FROM activation.message m WHERE m.message_id = id FOR UPDATE;
    IF unresolved.message_id IS NULL THEN
        RAISE EXCEPTION 'message % does not exist', coalesce(id::text, 'NULL')
            USING ERRCODE = '42704',
                  HINT = 'Messages of which nobody knows: '
                         'SELECT * FROM activation.message_log WHERE status = ''unknown'';';
    END IF;
    PERFORM activation._require_loop_owner(
        caller,
        (SELECT l.name FROM activation."loop" l WHERE l.loop_id = unresolved.loop_id));
    IF unresolved.state <> 'unknown' THEN
        RAISE EXCEPTION 'message % is not unknown', id
            USING ERRCODE = '55000',
                  DETAIL = format('It is %s.', unresolved.state),
                  HINT = 'Only a message of which nobody knows whether it was sent needs a '
                         'decision.';
    END IF;
    PERFORM activation._resolve(id, verdict, activation._role_name(caller));
END
$$;

CREATE FUNCTION activation.resolve(message_id uuid, verdict text) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.call (verb, arguments)
    VALUES ('resolve', jsonb_build_object('message_id', message_id, 'verdict', verdict))
$$;
COMMENT ON FUNCTION activation.resolve(uuid, text) IS
'Decides what became of a message whose state is unknown.
message_id: the message, as message_log shows it.
verdict: sent, or resend, which makes and sends it anew: the user may then have it twice.
Raises 22023 for another verdict, 42704 for an unknown message, 42501 for a loop of another
  role''s, 55000 for a message whose outcome is known.';
