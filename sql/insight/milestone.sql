-- milestone(): when each user reached a condition.

CREATE FUNCTION activation.milestone(
    condition jsonb, since timestamptz DEFAULT '-infinity', users regclass DEFAULT NULL,
    timestamps jsonb DEFAULT NULL, names text DEFAULT current_setting('search_path')
) RETURNS TABLE (user_id text, signed_up_at timestamptz, reached_at timestamptz)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    users_and_key jsonb := activation._suggest_users(users, names);
    problem text;
    row record;
BEGIN
    FOR row IN
        SELECT s.*
          FROM activation._simulate(
                   '(milestone)',
                   jsonb_build_object(
                       'trigger', activation.on_insert((users_and_key ->> 'users')::regclass),
                       'condition', condition,
                       'action', activation.email('milestone')),
                   milestone.since, now(), milestone.timestamps, milestone.names) s
    LOOP
        IF row.notes IS NOT NULL THEN
            problem := row.notes ->> 'problem';
            IF problem IS NOT NULL THEN
                RAISE EXCEPTION 'when people reached this milestone cannot be told from the tables'
                    USING ERRCODE = '55000',
                          DETAIL = problem || '.',
                          HINT = 'Name the column that tells: '
                                 'timestamps => ''{"public.projects": "made_on"}''.';
            END IF;
        ELSIF row.step IS NULL THEN
            user_id := row.user_id;
            signed_up_at := row.at;
            reached_at := row.goal_at;
            RETURN NEXT;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION activation.milestone(jsonb, timestamptz, regclass, jsonb, text) IS
'When each user reached a milestone, whether or not any loop has ever watched it: by the insertion
times of the rows that the condition reads. It only reads, with the caller''s rights, and refuses
what would run code of a role that has not got them.
condition: the milestone, activation.query(…).
since: only users who signed up since (default: all).
users: the users table (default: the registered one).
timestamps: as in simulate().
names: as in define_loop().
Returns a row for everybody who signed up since.
user_id: the user''s key as text.
signed_up_at: when the user''s row was inserted.
reached_at: when the condition became true, NULL for those for whom it has not.
Raises 42501 for code of others'', 55000 where the tables do not tell.';
