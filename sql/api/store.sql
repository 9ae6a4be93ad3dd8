-- Stores a version of a loop: its row, and those of its steps.

-- Writes down a new version of a loop, as its definition says. owner_name is what a dump carries of
-- the owner; signals of an earlier generation do not enroll in it.
CREATE FUNCTION activation._store_version(
    loop_id integer, version integer, definition jsonb, owner oid, owner_name name,
    search_path text, users regclass, source_id integer, generation integer
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    trigger jsonb := definition -> 'trigger';
BEGIN
    INSERT INTO activation.loop_version (
        loop_id, version, definition, owner, owner_name, installation, names, users, source_id,
        event, generation, reentry, holdout, transactional, priority, over_cap, send_window,
        created_at)
    VALUES (
        _store_version.loop_id, _store_version.version, definition, owner, owner_name,
        (SELECT i.id FROM activation.installation i), _store_version.search_path, users, source_id,
        CASE WHEN definition ->> 'enroll' = 'existing' THEN 'existing'
             WHEN trigger ->> 'type' = 'database' THEN trigger ->> 'event'
             ELSE trigger ->> 'type' END,
        coalesce(generation, 0),
        CASE definition ->> 'reentry'
            WHEN 'once' THEN NULL
            WHEN 'always' THEN interval '0'
            ELSE (definition ->> 'reentry')::interval
        END,
        (definition ->> 'holdout')::numeric, (definition ->> 'transactional')::boolean,
        (definition ->> 'priority')::integer, definition ->> 'over_cap',
        nullif(definition -> 'send_window', 'null'), activation._now());
    -- A step keeps the number that its name had in earlier versions.
    INSERT INTO activation.step (
        loop_id, version, step, position, name, delay, timeout, action, otherwise, on_timeout)
    SELECT _store_version.loop_id, _store_version.version,
           coalesce(o.step, before.most + row_number() OVER (
               PARTITION BY o.step IS NULL ORDER BY n.number)),
           n.number, n.step ->> 'name', (n.step ->> 'delay')::interval,
           (n.step #>> '{condition,timeout}')::interval,
           nullif(n.step -> 'action', 'null'), nullif(n.step -> 'otherwise', 'null'),
           n.step ->> 'on_timeout'
      FROM jsonb_array_elements(definition -> 'steps') WITH ORDINALITY AS n(step, number)
     CROSS JOIN (SELECT coalesce(max(s.step), 0) AS most
                   FROM activation.step s WHERE s.loop_id = _store_version.loop_id) before
      LEFT JOIN LATERAL (
               SELECT s.step
                 FROM activation.step s
                WHERE s.loop_id = _store_version.loop_id AND s.name = n.step ->> 'name'
                  AND s.step > 0
                LIMIT 1) o ON true;
    IF definition -> 'goal' <> 'null' THEN
        INSERT INTO activation.step (loop_id, version, step, position, name, delay, on_timeout)
        VALUES (_store_version.loop_id, _store_version.version, 0, 0, 'goal', '0', 'continue');
    END IF;
    UPDATE activation.loop_version v
       SET goal_step = CASE
               WHEN _store_version.definition -> 'goal' <> 'null' THEN 0
               ELSE (SELECT s.step
                       FROM activation.step s
                      WHERE s.loop_id = v.loop_id AND s.version = v.version
                        AND _store_version.definition
                            #> ARRAY['steps', (s.position - 1)::text, 'condition'] <> 'null'
                      ORDER BY s.position LIMIT 1)
           END
     WHERE v.loop_id = _store_version.loop_id AND v.version = _store_version.version;
END
$$;
