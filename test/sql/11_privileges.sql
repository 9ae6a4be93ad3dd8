\ir setup.sql
SELECT plan(1);

SELECT is_empty(
    $$SELECT p.oid::regprocedure
        FROM pg_depend d
        JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'activation'
        JOIN pg_proc p ON p.oid = d.objid AND d.classid = 'pg_proc'::regclass,
             aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
       WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND a.grantee = 0$$,
    'PUBLIC may execute nothing');

SELECT * FROM finish();
ROLLBACK;
