-- The current version of each loop, and one loop as a document.

-- Loops, as each reader may see them. What a loop says is for those who could change it, and for
-- those who may see everybody's journeys. The functions in a view run as whoever reads it, so
-- nobody can claim to be somebody else.
CREATE VIEW activation.loop_definition WITH (security_barrier) AS
SELECT l.name AS loop, v.version, o.rolname AS owner, r.visible,
       CASE WHEN r.visible THEN v.definition END AS definition,
       CASE WHEN r.visible THEN v.names END AS names,
       v.users, s.table_name, s.key_column
  FROM activation."loop" l
  JOIN activation.loop_version v USING (loop_id, version)
  LEFT JOIN activation.source s USING (source_id)
  LEFT JOIN pg_roles o
         ON o.oid = v.owner AND v.installation = (SELECT i.id FROM activation.installation i)
  -- 10 is the superuser whom initdb made; loops whose owner is gone are of superusers.
 CROSS JOIN LATERAL (
           SELECT pg_has_role(coalesce(o.oid, 10), 'MEMBER')
                  OR has_table_privilege('activation.journey', 'SELECT') AS visible
           OFFSET 0) r;
COMMENT ON VIEW activation.loop_definition IS
    'The current version of each loop. What a loop says is shown only to those who could change it '
    'or may read activation.journey.';
COMMENT ON COLUMN activation.loop_definition.loop IS
    'The loop''s name.';
COMMENT ON COLUMN activation.loop_definition.version IS
    'Its current version.';
COMMENT ON COLUMN activation.loop_definition.owner IS
    'The role with whose rights its SQL runs. NULL: a role that is gone.';
COMMENT ON COLUMN activation.loop_definition.visible IS
    'Whether you may see what follows.';
COMMENT ON COLUMN activation.loop_definition.definition IS
    'The loop as one document. NULL where it is not visible.';
COMMENT ON COLUMN activation.loop_definition.names IS
    'The search_path on which the names in its SQL are looked up. NULL where it is not visible.';
COMMENT ON COLUMN activation.loop_definition.users IS
    'Its users table.';
COMMENT ON COLUMN activation.loop_definition.table_name IS
    'The table that its trigger watches. NULL: an event or a schedule.';
COMMENT ON COLUMN activation.loop_definition.key_column IS
    'The column of that table with the user''s key.';

CREATE FUNCTION activation.export_loop(name text) RETURNS jsonb
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    seen record;
BEGIN
    SELECT d.visible, d.owner, d.definition INTO seen
      FROM activation.loop_definition d WHERE d.loop = export_loop.name;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'loop "%" does not exist', name
            USING ERRCODE = '42704',
                  HINT = coalesce(
                      'There are ' || (
                          SELECT string_agg(format('"%s"', d.loop), ', ' ORDER BY d.loop)
                            FROM activation.loop_definition d) || '.',
                      'None is defined yet: activation.define_loop(…).');
    ELSIF NOT seen.visible THEN
        RAISE EXCEPTION 'loop "%" belongs to %', name,
            coalesce(quote_ident(seen.owner), 'a role that is gone')
            USING ERRCODE = '42501',
                  HINT = 'A loop is shown to members of that role, and to whoever may read '
                         'activation.journey.';
    END IF;
    RETURN seen.definition;
END
$$;
COMMENT ON FUNCTION activation.export_loop(text) IS
'The current definition of a loop as one document: every default is written out, tables have their
schema. For those who could change the loop, and for viewers.
name: the loop''s name.
Returns the document, for import_loop(), diff_loop() and simulate().
Raises 42704 for an unknown loop, 42501 for a loop that you may not see.';
