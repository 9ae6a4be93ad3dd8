-- Why something did not happen to one user, in words; why() shows it.

-- Whether the condition of an enrollment holds right now, in words: asked through the black box.
CREATE FUNCTION activation._condition_now(enrollment_id bigint) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    current_step record;
BEGIN
    SELECT x.user_id, s.evaluate_function, v.owner INTO current_step
      FROM activation.enrollment x
      JOIN activation.step s USING (loop_id, version, step)
      JOIN activation.loop_version v USING (loop_id, version)
     WHERE x.enrollment_id = _condition_now.enrollment_id;
    IF current_step.evaluate_function IS NULL THEN
        RETURN NULL;
    END IF;
    RETURN CASE WHEN current_step.user_id = ANY (activation._safe_eval(
                         current_step.evaluate_function, current_step.owner,
                         ARRAY[current_step.user_id]))
                THEN 'true' ELSE 'false' END;
EXCEPTION WHEN others OR assert_failure THEN
    RETURN 'an error: ' || SQLERRM;
END
$$;

-- Why a user is not in a loop, in words: which trigger or filter did not match, by the row as it
-- is.
CREATE FUNCTION activation._why_not(
    wanted_user text, wanted_loop integer, OUT detail text, OUT code text
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v activation.loop_version;
    trigger jsonb;
    since text;
BEGIN
    SELECT x.* INTO STRICT v
      FROM activation.loop_version x JOIN activation."loop" l USING (loop_id, version)
     WHERE l.loop_id = wanted_loop;
    trigger := v.definition -> 'trigger';
    SELECT format('since the loop was defined at %s', min(x.created_at)) INTO since
      FROM activation.loop_version x
     WHERE x.loop_id = wanted_loop;
    IF activation._user_exists(v.users, wanted_user) IS FALSE THEN
        code := 'no_user';
        detail := format('there is no user %s in %s', wanted_user, v.definition ->> 'users');
        RETURN;
    END IF;
    code := CASE v.event WHEN 'schedule' THEN 'not_in_schedule' WHEN 'event' THEN 'no_event'
                         WHEN 'update' THEN 'no_update' WHEN 'delete' THEN 'no_delete'
                         ELSE 'no_insert' END;
    detail := CASE v.event
        WHEN 'schedule' THEN
            'its schedule''s query has not returned this user, or is not due yet'
        WHEN 'event' THEN
            CASE WHEN EXISTS (SELECT FROM activation.event x
                               WHERE x.user_id = wanted_user AND x.event = trigger ->> 'event')
                 THEN format('event "%s" was told before the loop was defined', trigger ->> 'event')
                 ELSE format('no event "%s" of this user was told by track()', trigger ->> 'event')
            END
        WHEN 'update' THEN
            format('no update of %s that changed %s for this user%s was captured %s',
                   trigger ->> 'table',
                   (SELECT string_agg(c, ' or ')
                      FROM jsonb_array_elements_text(trigger -> 'columns') AS c),
                   coalesce(' and passed its filter ' || (trigger ->> 'filter'), ''), since)
        WHEN 'delete' THEN
            format('no row of this user%s was deleted from %s %s',
                   coalesce(' that passed its filter ' || (trigger ->> 'filter'), ''),
                   trigger ->> 'table', since)
        ELSE CASE
            WHEN v.passing_function IS NULL
            THEN format('no insert of user %s into %s was captured %s',
                        wanted_user, trigger ->> 'table', since)
            WHEN wanted_user = ANY (activation._safe_eval(
                     v.passing_function, v.owner, ARRAY[wanted_user]))
            THEN format('no insert of user %s into %s was captured %s '
                        'that its filter let pass: %s; '
                        'it would let the row pass as it is now',
                        wanted_user, trigger ->> 'table', since, trigger ->> 'filter')
            ELSE format('no insert of user %s into %s was captured %s '
                        'that its filter let pass: %s; '
                        'it does not let the row pass as it is now, either',
                        wanted_user, trigger ->> 'table', since, trigger ->> 'filter') END
        END;
EXCEPTION WHEN others OR assert_failure THEN
    code := 'cannot_be_told';
    detail := 'it cannot be told: ' || SQLERRM;
END
$$;
