-- Nothing is PUBLIC's. docs/operations.md shows the grants for an app role, an author, an operator and a viewer; no role is
-- created here.

REVOKE ALL ON SCHEMA activation, activation_compiled FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA activation FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA activation FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA activation FROM PUBLIC;
