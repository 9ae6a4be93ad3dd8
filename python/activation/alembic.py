"""Loops in Alembic's migrations: op.define_loop, op.import_loop, op.migrate_loop, op.archive_loop, op.set_template, and
op.loops_released around a change of a column that loops read. Imported in env.py, it registers them:

    from activation.alembic import include_name, include_object

    context.configure(…, include_name=include_name, include_object=include_object)

Those two keep autogenerate away from what is the extension's. Where the metadata's info has loops and templates under
"activation", autogenerate compares them with the database: MetaData(info={"activation": [Template(…), Loop(…)]}).

Every operation works offline (--sql), and is as transactional as the migration that it stands in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from alembic.autogenerate import comparators, renderers
from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, Operations
from alembic.operations.ops import UpgradeOps
from alembic.util import DispatchPriority
from sqlalchemy import Connection, MetaData, text
from sqlalchemy.exc import DBAPIError

from . import schema
from .loops import Bind, Call, Loop, Statement, Template, render_value

__all__ = ["SCHEMAS", "include_name", "include_object"]

#: What belongs to the extension and to no migration.
SCHEMAS = ("activation", "activation_compiled")


def include_name(name: str | None, type_: str, parent_names: MutableMapping[Any, str | None]) -> bool:
    """For context.configure(include_name=…): whether autogenerate may look at it. Call it from a filter of your own.

    The arguments are Alembic's.
    """
    return (name if type_ == "schema" else parent_names.get("schema_name")) not in SCHEMAS


def include_object(object: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
    """For context.configure(include_object=…), likewise; it also holds for what was reflected earlier."""
    return getattr(getattr(object, "table", object), "schema", None) not in SCHEMAS


class _Operation(MigrateOperation):
    """One that runs a statement of activation's."""

    def statements(self) -> list[Statement]:
        """What it runs, in order."""
        raise NotImplementedError

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """What `alembic check` shows."""
        return (type(self).__name__, repr(self.statements()[0]))


@Operations.register_operation("define_loop")
class DefineLoopOp(_Operation):
    """SELECT activation.define_loop(…)."""

    def __init__(self, loop: Loop, migrate: bool = False, previous: Mapping[str, Any] | None = None) -> None:
        self.loop = loop
        self.migrate = migrate
        self.previous = previous

    @classmethod
    def define_loop(cls, operations: Operations, loop: Any, *, migrate: bool = False, **arguments: Any) -> None:
        """Define a loop, or a new version of it.

        loop: a Loop; or its name, with the further arguments of Loop. migrate: move the people who are on their way in
        earlier versions to this one. Raises TypeError for an unknown argument; what the server refuses, with its error.
        """
        if isinstance(loop, str):
            loop = Loop(loop, **arguments)
        elif arguments:
            raise TypeError(f"define_loop: {', '.join(arguments)} beside a Loop")
        operations.invoke(cls(loop, migrate))

    def reverse(self) -> MigrateOperation:
        """What was there before; a new loop is archived."""
        if self.previous is not None:
            return ImportLoopOp(self.loop.name, self.previous)
        return ArchiveLoopOp(self.loop.name, self.loop)

    def statements(self) -> list[Statement]:
        return [self.loop, *([_migrate(self.loop.name)] if self.migrate else [])]


@Operations.register_operation("import_loop")
class ImportLoopOp(_Operation):
    """SELECT activation.import_loop(…)."""

    def __init__(self, name: str, definition: Mapping[str, Any], migrate: bool = False) -> None:
        self.name = name
        self.definition = definition
        self.migrate = migrate

    @classmethod
    def import_loop(
        cls, operations: Operations, name: str, definition: Mapping[str, Any], *, migrate: bool = False
    ) -> None:
        """Define a loop from one document, as activation.export_loop() returns it. migrate: as for define_loop."""
        operations.invoke(cls(name, definition, migrate))

    def statements(self) -> list[Statement]:
        made = _call("import_loop", name=("text", self.name), definition=("jsonb", json.dumps(self.definition)))
        return [made, *([_migrate(self.name)] if self.migrate else [])]


@Operations.register_operation("migrate_loop")
class MigrateLoopOp(_Operation):
    """SELECT activation.migrate_loop(…)."""

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    def migrate_loop(cls, operations: Operations, name: str) -> None:
        """Move the people who are on their way in a loop's earlier versions to its current one."""
        operations.invoke(cls(name))

    def statements(self) -> list[Statement]:
        return [_migrate(self.name)]


@Operations.register_operation("archive_loop")
class ArchiveLoopOp(_Operation):
    """SELECT activation.archive_loop(…)."""

    def __init__(self, name: str, loop: Loop | None = None) -> None:
        self.name = name
        self.loop = loop

    @classmethod
    def archive_loop(cls, operations: Operations, name: str) -> None:
        """End a loop: nobody is enrolled any more, who waits leaves it, what is queued is cancelled.

        Defining it again brings it back, but not who has left it.
        """
        operations.invoke(cls(name))

    def reverse(self) -> MigrateOperation:
        """Define it again. Raises NotImplementedError where it is not known what it was."""
        if self.loop is None:
            raise NotImplementedError(
                f"what loop {self.name!r} was is not known: write its definition into downgrade()"
            )
        return DefineLoopOp(self.loop)

    def statements(self) -> list[Statement]:
        return [_call("archive_loop", name=("text", self.name))]


@Operations.register_operation("set_template")
class SetTemplateOp(_Operation):
    """SELECT activation.set_template(…)."""

    def __init__(self, template: Template, previous: Template | None = None) -> None:
        self.template = template
        self.previous = previous

    @classmethod
    def set_template(
        cls,
        operations: Operations,
        name: Any,
        subject: str | None = None,
        html: str | None = None,
        body_text: str | None = None,
    ) -> None:
        """Store a new version of a template.

        name: a Template; or its name, with subject and html or body_text. What the server refuses raises its error.
        """
        operations.invoke(cls(name if isinstance(name, Template) else Template(name, subject or "", html, body_text)))

    def reverse(self) -> MigrateOperation:
        """The template as it was. A new one stays: nothing uses it, and mails that did keep it."""
        return KeepTemplateOp(self.template.name) if self.previous is None else SetTemplateOp(self.previous)

    def statements(self) -> list[Statement]:
        return [self.template]


class KeepTemplateOp(MigrateOperation):
    """Nothing: a template's versions are not removed."""

    def __init__(self, name: str) -> None:
        self.name = name


@Operations.register_operation("loops_released")
class LoopsReleasedOp(MigrateOperation):
    """SELECT activation.unbind(…) before, SELECT activation.bind(…) after."""

    @classmethod
    def loops_released(cls, operations: Operations, *tables: str) -> AbstractContextManager[None]:
        """While it lasts, loops do not hold on to these tables' columns, so that they can change type or be dropped:

            with op.loops_released("users"):
                op.alter_column("users", "plan", type_=sa.String(20))

        Nobody notices: it begins and ends in the migration's transaction, and workers see either side of it. At its end
        the loops are compiled again. One that names a column that is gone is to be defined anew inside, with
        migrate=True where people are on their way in it; else the end raises, and with it the migration. A mere rename
        needs none of this: loops follow it.

        tables: the tables that change. Raises ValueError without one, RuntimeError outside a transaction.
        """
        if not tables:
            raise ValueError("loops_released: name the tables that change")
        return _released(operations, tables)


@contextmanager
def _released(operations: Operations, tables: tuple[str, ...]) -> Iterator[None]:
    context = operations.get_context()
    if not context.as_sql and not _in_transaction(operations.get_bind()):
        raise RuntimeError("loops_released needs a transaction: workers would meet loops without their functions")
    for table in tables:
        _run(operations, _call("unbind", table_name=("regclass", table)))
    yield
    _run(operations, _call("bind", or_fail=("boolean", True)))


def _in_transaction(connection: Connection) -> bool:
    """Whether one statement's transaction is the next one's, which drivers tell each in their own way."""
    connection.execute(text("SELECT pg_current_xact_id()"))
    return bool(connection.scalar(text("SELECT pg_current_xact_id_if_assigned() IS NOT NULL")))


def _call(function: str, **arguments: tuple[str, Any]) -> Statement:
    return Call(function, tuple((name, kind, value) for name, (kind, value) in arguments.items()))


def _migrate(name: str) -> Statement:
    return _call("migrate_loop", name=("text", name))


@Operations.implementation_for(DefineLoopOp)
@Operations.implementation_for(ImportLoopOp)
@Operations.implementation_for(MigrateLoopOp)
@Operations.implementation_for(ArchiveLoopOp)
@Operations.implementation_for(SetTemplateOp)
def _invoke(operations: Operations, operation: _Operation) -> None:
    for statement in operation.statements():
        _run(operations, statement)


@Operations.implementation_for(KeepTemplateOp)
def _invoke_nothing(operations: Operations, operation: KeepTemplateOp) -> None:
    pass


def _run(operations: Operations, statement: Statement) -> None:
    context = operations.get_context()
    if context.as_sql:
        # Not through op.execute(): colons and tabs in a mail's text would not come out of it as they went in.
        context.impl.static_output(statement.sql() + context.impl.command_terminator)
    else:
        _select(operations.get_bind(), statement)


def _select(connection: Connection, statement: Statement) -> Any:
    sql, values = statement.statement(":{}")
    return connection.execute(text(sql), values)


class _Difference(Statement):
    """What defining a loop would change."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    def render(self, bind: Bind) -> str:
        given = []
        for name, (kind, _) in schema.DEFINE_LOOP.items():
            value = getattr(self.loop, name)
            if name in ("name", "owner", "names") or value is None:
                continue
            sql = render_value(value, kind, bind)
            if kind == "regclass":
                # As activation writes tables down, whatever the search_path.
                sql = (
                    "(SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c"
                    f" JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = {sql})"
                )
            given.append(f"'{name}', {sql}")
        name = render_value(self.loop.name, "text", bind)
        return (
            f"count(*) FROM activation.diff_loop({name}, jsonb_build_object({', '.join(given)}))"
            " WHERE change IN ('added', 'removed', 'changed')"
        )


@comparators.dispatch_for("schema", priority=DispatchPriority.LAST)
def _compare(context: AutogenContext, upgrade: UpgradeOps, schemas: Any) -> None:
    """Proposes what the metadata has and the database has not, or otherwise. Last, because loops need their tables."""
    given = context.metadata
    metadata = [given] if isinstance(given, MetaData) else list(given or ())
    declared = [item for one in metadata for item in one.info.get("activation", ())]
    connection = context.connection
    if not declared or connection is None:
        return
    there = connection.scalar(text("SELECT to_regclass('activation.loop') IS NOT NULL"))
    for template in (item for item in declared if isinstance(item, Template)):
        stored = _stored_template(connection, template.name) if there else None
        if stored != template:
            upgrade.ops.append(SetTemplateOp(template, stored))
    for loop in (item for item in declared if isinstance(item, Loop)):
        previous = _stored_loop(connection, loop.name) if there else None
        if previous is None or _differs(connection, loop):
            upgrade.ops.append(DefineLoopOp(loop, previous=previous))


def _stored_template(connection: Connection, name: str) -> Template | None:
    row = connection.execute(
        text(
            "SELECT t.subject, t.html, t.body_text FROM activation.template t"
            " WHERE t.name = :name ORDER BY t.version DESC LIMIT 1"
        ),
        {"name": name},
    ).one_or_none()
    return None if row is None else Template(name, *row)


def _stored_loop(connection: Connection, name: str) -> Any:
    return connection.scalar(
        text(
            "SELECT activation.export_loop(l.name) FROM activation.loop l"
            " WHERE l.name = :name AND l.state <> 'archived'"
        ),
        {"name": name},
    )


def _differs(connection: Connection, loop: Loop) -> bool:
    try:
        with connection.begin_nested():
            return bool(_select(connection, _Difference(loop)).scalar())
    except DBAPIError:
        # It names a table that an earlier operation of the same revision makes, or it is wrong, as the server will say.
        return True


@renderers.dispatch_for(DefineLoopOp)
def _render_define(context: AutogenContext, operation: DefineLoopOp) -> str:
    _import(context, "Loop", *operation.loop.functions())
    return f"op.define_loop({operation.loop!r}{', migrate=True' if operation.migrate else ''})"


@renderers.dispatch_for(ImportLoopOp)
def _render_import(context: AutogenContext, operation: ImportLoopOp) -> str:
    return f"op.import_loop({operation.name!r}, {operation.definition!r})"


@renderers.dispatch_for(ArchiveLoopOp)
def _render_archive(context: AutogenContext, operation: ArchiveLoopOp) -> str:
    return f"op.archive_loop({operation.name!r})"


@renderers.dispatch_for(SetTemplateOp)
def _render_template(context: AutogenContext, operation: SetTemplateOp) -> str:
    _import(context, "Template")
    return f"op.set_template({operation.template!r})"


@renderers.dispatch_for(KeepTemplateOp)
def _render_kept_template(context: AutogenContext, operation: KeepTemplateOp) -> str:
    return f"pass  # template {operation.name!r} stays; it is used by nothing"


def _import(context: AutogenContext, *names: str) -> None:
    context.imports.add(f"from activation.loops import {', '.join(sorted(names))}")
