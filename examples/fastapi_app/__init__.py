"""A small app of the ordinary kind: people sign up, log in, create projects, and call its API with keys.

It writes to its own tables, and the database does the rest. Who gets which mail is in loops.py.
"""
