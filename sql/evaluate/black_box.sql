-- The black box: an author's compiled function is called for many keys, read-only and undone, in
-- the author's rights.

-- Whether an error may come from one person's data. It may not if a loop's code always raises it (a
-- missing table, a right, a write), or if it comes of meeting other sessions, of a cancel, or of
-- the machine.
CREATE FUNCTION activation._is_about_one_person(code text) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN left(code, 2) NOT IN ('08', '25', '2D', '40', '42', '53', '55', '57', '58', 'AC');

-- As much of an error's text, or of any other that is not ours, as is worth keeping.
CREATE FUNCTION activation._shortened(message text) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN CASE WHEN length(message) > 500 THEN left(message, 500) || '…' ELSE message END;

-- What one of several pieces of some work raised, in words for status; the other pieces go on. It
-- is not for an error that is not about the data (somebody else's lock, a cancel, a machine without
-- room): that ends the whole work, which is done anew.
CREATE FUNCTION activation._error_text(context text, message text, others text DEFAULT NULL)
RETURNS text
LANGUAGE sql IMMUTABLE
RETURN concat_ws('; ', others, format('%s: %s', context, activation._shortened(message)));

-- Calls an author's compiled function. Nothing else does, but for filters, which capture functions
-- call. The function runs with its owner's
-- rights (it is SECURITY DEFINER, checked before every call), read-only, and in a subtransaction
-- that is always rolled back. Nothing but the returned texts leaves it: no deferred trigger, no
-- cursor, no setting. What a rollback does not give back is compared, or (cursors) must
-- not be there. The engine itself never plans
-- an author's text. _safe_eval() has the engine's rights, not the caller's: an author's code that
-- got through all of this would win no more than those. one_by_one: look up each key by an index
-- where there is one, so that no row of another user is computed with. Long because what surrounds
-- the call is in one place, and because it is called for every group of people: a helper would cost
-- every call.
CREATE FUNCTION activation._safe_eval(function_name name, owner regrole, keys text[],
                                      one_by_one boolean DEFAULT false) RETURNS text[]
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    answer text[];
    evaluated boolean := false;
    compiled record;
    -- _held_statements(), written out because it comes with every call.
    held_statements activation.held_statement[] := ARRAY(
        SELECT ROW(p.name, p.prepare_time, p.from_sql, p.statement,
                   p.parameter_types::oid[])::activation.held_statement
          FROM pg_prepared_statements p ORDER BY p.name);
    held_locks text[] := CASE
        WHEN current_setting('activation.no_locks', true) IS DISTINCT FROM 'on'
        THEN activation._held_locks() END;
BEGIN
    SELECT p.oid, p.prosecdef, p.proowner INTO compiled
      FROM pg_proc p
     WHERE p.pronamespace = 'activation_compiled'::regnamespace AND p.proname = function_name
       AND p.proargtypes = ARRAY['text[]'::regtype]::oidvector;
    IF compiled.oid IS NULL THEN
        RAISE EXCEPTION 'compiled function % is missing', quote_ident(function_name)
            USING ERRCODE = 'ACT02',
                  HINT = 'SELECT activation.bind(); or define the loop again.';
    END IF;
    IF NOT compiled.prosecdef OR compiled.proowner <> _safe_eval.owner THEN
        RAISE EXCEPTION 'compiled function % no longer runs with the rights of %',
            quote_ident(function_name), activation._role_name(_safe_eval.owner)
            USING ERRCODE = 'ACT02',
                  DETAIL = format('Its owner is %s.', activation._role_name(compiled.proowner)),
                  HINT = 'SELECT activation.bind(); or define the loop again.';
    END IF;
    IF EXISTS (SELECT FROM pg_cursors c WHERE c.name <> '') AND activation._has_cursors() THEN
        PERFORM activation._refuse_cursors();
    END IF;
    BEGIN
        PERFORM set_config('transaction_read_only', 'on', true);
        IF one_by_one THEN
            PERFORM set_config('enable_seqscan', 'off', true),
                    set_config('enable_hashjoin', 'off', true),
                    set_config('enable_mergejoin', 'off', true);
        END IF;
        EXECUTE format('SELECT ARRAY(SELECT k FROM activation_compiled.%I($1) AS k)',
                       function_name)
           INTO answer USING keys;
        evaluated := true;
        RAISE EXCEPTION USING ERRCODE = 'ACT00';
    EXCEPTION WHEN others OR assert_failure OR query_canceled THEN
        IF held_locks IS NULL THEN
            PERFORM pg_advisory_unlock_all();
        END IF;
        IF held_locks IS NOT NULL OR held_statements IS DISTINCT FROM ARRAY(
               SELECT ROW(p.name, p.prepare_time, p.from_sql, p.statement,
                          p.parameter_types::oid[])::activation.held_statement
                 FROM pg_prepared_statements p ORDER BY p.name) THEN
            PERFORM activation._check_session(held_statements, held_locks);
        END IF;
        IF NOT evaluated AND SQLSTATE LIKE 'ACT%' THEN
            -- Workers believe these states of us alone, and end their session for one of them.
            RAISE EXCEPTION 'the loop''s own code raised SQLSTATE %', SQLSTATE
                USING ERRCODE = 'ACT03', DETAIL = activation._shortened(SQLERRM);
        ELSIF NOT evaluated THEN
            RAISE;
        END IF;
    END;
    RETURN answer;
END
$$;

-- As _safe_eval(), for those who want to know why it raised: {"value": how many texts it returned}
-- or {"error"}.
CREATE FUNCTION activation._try_eval(function_name name, owner oid, keys text[]) RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    message text;
    code text;
BEGIN
    RETURN jsonb_build_object(
        'value', cardinality(activation._safe_eval(function_name, owner, keys)));
EXCEPTION WHEN others OR assert_failure THEN
    GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, code = RETURNED_SQLSTATE;
    RETURN jsonb_build_object('error', jsonb_build_object('message', message, 'code', code));
END
$$;

-- Asks an author's function about many people. Where that raises what may be one person's error, it
-- asks about ever fewer, until those on whom it raises are found, and at last one by one, so that
-- no row of another user is computed with. Whatever else it raises concerns the loop, or everybody.
-- first_lines: see _users_body(); retrying: a larger group, or this person in it, has raised.
CREATE FUNCTION activation._safe_eval_each(function_name name, owner regrole, keys text[],
                                           first_lines boolean DEFAULT false,
                                           retrying boolean DEFAULT false,
                                           OUT answers text[], OUT bad_keys text[],
                                           OUT errors text[], OUT codes text[])
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    size integer := cardinality(keys);
    half text[];
    found record;
BEGIN
    bad_keys := '{}';
    errors := '{}';
    codes := '{}';
    BEGIN
        answers := activation._safe_eval(
            function_name, owner,
            CASE WHEN first_lines THEN NULL::text || keys ELSE keys END, retrying);
        RETURN;
    EXCEPTION WHEN others OR assert_failure THEN
        IF NOT activation._is_about_one_person(SQLSTATE) THEN
            RAISE;
        END IF;
        answers := '{}';
        IF size = 1 AND retrying THEN
            bad_keys := keys;
            errors := ARRAY[activation._shortened(SQLERRM)];
            codes := ARRAY[SQLSTATE::text];
            RETURN;
        END IF;
    END;
    FOR n IN 1 .. least(size, 2) LOOP
        half := CASE WHEN size = 1 THEN keys
                     WHEN n = 1 THEN keys[: size / 2]
                     ELSE keys[size / 2 + 1 :] END;
        SELECT * INTO found
          FROM activation._safe_eval_each(function_name, owner, half, first_lines, true);
        answers := answers || found.answers;
        bad_keys := bad_keys || found.bad_keys;
        errors := errors || found.errors;
        codes := codes || found.codes;
    END LOOP;
END
$$;
