"""What PostgreSQL calls: the entries of the PL/Python functions, and the bridge to the server."""
