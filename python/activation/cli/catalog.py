"""What a database's own catalog tells of an app: its users table, and the tables that may tell of first value."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .database import rows
from .output import plain

if TYPE_CHECKING:
    from .database import Connection

#: Names of users tables, likeliest first.
_USERS = ("users", "user", "auth_user", "app_user", "accounts", "account", "members", "customers", "people", "profiles")
#: What people have without having done anything, or what the app keeps about them.
_NOISE = re.compile(
    r"session|token|log|audit|password|reset|verif|otp|oauth|identit|credential|notif|email|message|setting|preference"
    r"|profile|device|consent|invoice|payment|subscription|billing|history|migration|event|permission|role|group|ban"
)
#: What people make, likeliest to be first value first.
_MADE = (
    *("project", "workspace", "site", "app", "board", "document", "doc", "note", "post", "page", "form", "course"),
    *(
        "repo",
        "dataset",
        "database",
        "model",
        "dashboard",
        "report",
        "deploy",
        "integration",
        "import",
        "upload",
        "file",
    ),
    *("order", "booking", "campaign", "task", "list", "team", "organization", "organisation", "key"),
)
#: Whose a row is.
_OWNER = re.compile(r"owner|creat|author|user")

_TABLES = """
    (SELECT c.oid, n.nspname, c.relname, c.reltuples, format('%%I.%%I', n.nspname, c.relname) AS "table"
       FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
        AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'activation', 'activation_compiled')
        AND NOT EXISTS (SELECT FROM pg_depend d
                         WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'))
"""
#: The column of text whose name fits a pattern, and the one of that name if there is one.
_COLUMN = """
    (SELECT a.attname FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
      WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        AND t.typcategory = 'S' AND a.attname ~* '{pattern}'
      ORDER BY lower(a.attname) <> '{best}', a.attnum LIMIT 1)
"""
_FIND_USERS = f"""
    SELECT * FROM (
        SELECT c.oid::int8 AS oid, c."table", c.relname AS name, k.attname AS key,
               {_COLUMN.format(pattern="mail(_?addr(ess)?)?$", best="email")} AS email,
               {_COLUMN.format(pattern="^(time_?zone|tz)$", best="timezone")} AS timezone,
               {_COLUMN.format(pattern="^((full|first|given|display|user)_?)?name$", best="name")} AS person,
               (SELECT count(*) FROM pg_constraint f WHERE f.contype = 'f' AND f.confrelid = c.oid) AS references
          FROM {_TABLES} c
          JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary AND i.indnkeyatts = 1
          JOIN pg_attribute k ON k.attrelid = c.oid AND k.attnum = i.indkey[0]) u
     WHERE u.email IS NOT NULL AND (%s::text IS NULL OR u.oid = to_regclass(%s))
     ORDER BY u."table"
"""
# By a foreign key of one column; without one, by a column of the key's type that is called as if it were one.
_FIND_TABLES = f"""
    SELECT c."table", c.relname AS name, a.attname AS "column", quote_ident(a.attname) AS quoted,
           c.reltuples::int8 AS rows,
           EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indkey[0] = a.attnum
                      AND i.indisvalid AND i.indpred IS NULL) AS indexed
      FROM {_TABLES} c
      JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
      JOIN pg_attribute k ON k.attrelid = %s AND k.attname = %s
     WHERE c.oid <> k.attrelid
       AND (EXISTS (SELECT FROM pg_constraint f
                     WHERE f.contype = 'f' AND f.conrelid = c.oid AND f.confrelid = k.attrelid
                       AND f.conkey = ARRAY[a.attnum] AND f.confkey = ARRAY[k.attnum])
            OR a.atttypid = k.atttypid
               AND a.attname IN ('user_id', 'userid', 'owner_id', 'account_id', 'member_id', 'customer_id')
               AND NOT EXISTS (SELECT FROM pg_constraint f
                                WHERE f.contype = 'f' AND f.conrelid = c.oid AND f.conkey @> ARRAY[a.attnum]))
     ORDER BY c."table", a.attnum
"""


@dataclass(frozen=True)
class Users:
    """A users table. table: as SQL writes it; the columns as they are called."""

    oid: int
    table: str
    key: str
    email: str
    timezone: str | None
    #: A column with a person's name.
    person: str | None


@dataclass(frozen=True)
class Candidate:
    """A table whose rows may tell of first value. table, column: as SQL writes them."""

    table: str
    name: str
    column: str
    #: About how many; None where nobody has counted.
    rows: int | None
    indexed: bool

    @property
    def query(self) -> str:
        """Whether a user has one."""
        return f"SELECT 1 FROM {self.table} WHERE {self.column} = $1"


def users_tables(connection: Connection, named: str | None = None) -> list[Users]:
    """Tables with a primary key of one column and an email column, the likeliest users table first.

    named: only this one, as SQL writes it.
    """
    found = [row for row in rows(connection, _FIND_USERS, named, named) if _is_plain(row, "table", "key", "email")]
    found.sort(key=lambda row: (_rank(row["name"]), row["email"].lower() != "email", -row["references"]))
    return [Users(row["oid"], row["table"], row["key"], row["email"], row["timezone"], row["person"]) for row in found]


def candidates(connection: Connection, users: Users) -> list[Candidate]:
    """Tables that say whose their rows are, the likeliest to tell of first value first."""
    found = [row for row in rows(connection, _FIND_TABLES, users.oid, users.key) if _is_plain(row, "table", "quoted")]
    found.sort(key=_doubt)
    return [
        Candidate(row["table"], row["name"], row["quoted"], row["rows"] if row["rows"] >= 0 else None, row["indexed"])
        for row in found
    ]


def _rank(name: str) -> int:
    lower = name.lower()
    return _USERS.index(lower) if lower in _USERS else len(_USERS)


def _doubt(row: dict[str, Any]) -> tuple[bool, int, bool, str]:
    name = row["name"].lower()
    made = next((number for number, word in enumerate(_MADE) if word in name), len(_MADE))
    noise = made == len(_MADE) and bool(_NOISE.search(name))
    return (noise, made, not _OWNER.search(row["column"].lower()), row["table"])


def _is_plain(row: dict[str, Any], *names: str) -> bool:
    """A line break in a name would end the comment that it stands in."""
    return all(plain(row[name]) == row[name] for name in names)
