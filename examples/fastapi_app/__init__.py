"""A small app of the ordinary kind: people sign up, log in and create projects.

Nothing in it knows of activation: it writes to its own tables, and the database does the rest.
"""
