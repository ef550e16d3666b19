"""PostgreSQL with pgvector: ``postgres:DSN/TABLE?vector=COLUMN&id=COLUMN``.

Passwords come from ``PGPASSWORD``, ``~/.pgpass`` or a service file, where libpq looks for them. The target can be
another table, or a new column of the same table.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mv2v_jax.errors import InputError
from mv2v_jax.stores.address import Address
from mv2v_jax.stores.protocol import Batch, Description, in_order, require

_METRICS = {"cosine": ("vector_cosine_ops", "<=>"), "l2": ("vector_l2_ops", "<->"), "ip": ("vector_ip_ops", "<#>")}
_COLUMNS = """
    SELECT a.attname, format_type(a.atttypid, a.atttypmod), t.typname, a.atttypmod, a.attgenerated <> '',
           EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisprimary AND i.indnkeyatts = 1
                   AND a.attnum = ANY(i.indkey)), a.attidentity <> ''
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
_INDEXES = """
    SELECT indexdef FROM pg_indexes WHERE (quote_ident(schemaname) || '.' || quote_ident(tablename))::regclass
        = %s::regclass AND indexname NOT IN (SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass)
"""


class _Column:
    """A column of a table: name, SQL type, name of the type, and what it is used for."""

    def __init__(self, row: Sequence[Any]) -> None:
        self.name, self.sql, self.type, self.modifier, self.is_generated, self.is_primary, self.is_identity = row


class PostgresStore:
    """One column of vectors of one table."""

    def __init__(self, address: Address) -> None:
        self.name = str(address)
        self._psycopg = require("psycopg", "postgres", self.name)
        self._pgvector = require("pgvector.psycopg", "postgres", self.name)
        self._address = address
        self._connection: Any = None
        self._known: list[_Column] | None = None
        self._beside = False

    # ------------------------------------------------------------------------------------------------------ structure

    def _connect(self) -> Any:
        connection = self._psycopg.connect(self._address.database, autocommit=True)
        if not connection.execute("SELECT 1 FROM pg_type WHERE typname = 'vector'").fetchone():
            connection.close()
            raise InputError(
                f"{self.name} must be in a database with pgvector, found none; run CREATE EXTENSION vector"
            )
        self._pgvector.register_vector(connection)
        return connection

    @property
    def _database(self) -> Any:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
        return self._connection

    @property
    def _table(self) -> str:
        """The table as SQL, quoted."""
        return ".".join('"' + part.replace('"', '""') + '"' for part in self._address.collection.split("."))

    def _exists_table(self) -> bool:
        return self._database.execute("SELECT to_regclass(%s)", [self._table]).fetchone()[0] is not None

    def _columns(self) -> list[_Column]:
        # Columns that are added later are none of this store's.
        if self._known is None:
            if not self._exists_table():
                raise InputError(f"{self.name} must be a table of the database, found none of that name")
            self._known = [_Column(row) for row in self._database.execute(_COLUMNS, [self._table])]
        return self._known

    def _vector(self, columns: list[_Column]) -> _Column:
        found = [column for column in columns if column.type in ("vector", "halfvec")]
        wanted = self._address.options.get("vector")
        chosen = [column for column in found if wanted in (None, column.name)]
        if len(chosen) != 1:
            names = ", ".join(column.name for column in found) or "none"
            raise InputError(
                f"{self.name} must have one column of vectors, or one named by ?vector=COLUMN; found {names}"
            )
        return chosen[0]

    def _id(self, columns: list[_Column]) -> _Column:
        wanted = self._address.options.get("id")
        found = [column for column in columns if (column.is_primary if wanted is None else column.name == wanted)]
        if not found:
            names = ", ".join(column.name for column in columns)
            raise InputError(f"{self.name} must have ids, name their column by ?id=COLUMN; found {names}")
        return found[0]

    def exists(self) -> bool:
        if not self._exists_table():
            return False
        wanted = self._address.options.get("vector")
        return wanted is None or wanted in [column.name for column in self._columns()]

    def describe(self) -> Description:
        columns = self._columns()
        vector, key = self._vector(columns), self._id(columns)
        indexes = [row[0] for row in self._database.execute(_INDEXES, [self._table, self._table])]
        own = " ".join(index for index in indexes if _mentions(index, vector.name))
        metric = next((metric for metric, (ops, _) in _METRICS.items() if ops.split("_", 1)[1] in own), "cosine")
        name, run = _quote(vector.name), self._database.execute
        found = run(f"SELECT vector_dims({name}) FROM {self._table} WHERE {name} IS NOT NULL LIMIT 1").fetchone()
        missing = run(f"SELECT count(*) FROM {self._table} WHERE {name} IS NULL").fetchone()[0]
        return Description(
            kind="postgres",
            count=self.count(),
            dims=vector.modifier if vector.modifier > 0 else (found or [0])[0],
            metric=metric,
            id_name=key.name,
            integer_ids=key.type in ("int2", "int4", "int8"),
            notes=(f"{missing:,} rows without a vector are left out",) if missing else (),
            settings={"columns": columns, "vector": vector, "id": key, "indexes": indexes, "table": self._table},
        )

    def count(self) -> int:
        vector = self._vector(self._columns())
        return self._database.execute(f"SELECT count({_quote(vector.name)}) FROM {self._table}").fetchone()[0]

    # ---------------------------------------------------------------------------------------------------------- read

    def read(self, batch_rows: int, skip: int = 0) -> Iterator[Batch]:
        columns = self._columns()
        vector, key = self._vector(columns), self._id(columns)
        # A connection and a snapshot of its own, so that rows can be written in between.
        with self._connect() as connection, connection.transaction(), connection.cursor("mv2v_read") as cursor:
            cursor.itersize = batch_rows
            cursor.execute(
                f"SELECT {_select(columns, vector)} FROM {self._table} WHERE {_quote(vector.name)} IS NOT NULL "
                f"ORDER BY {_quote(key.name)} OFFSET {int(skip)}"
            )
            while rows := cursor.fetchmany(batch_rows):
                yield self._batch(rows, columns)

    def _batch(self, rows: list[Any], columns: list[_Column]) -> Batch:
        vector, key = self._vector(columns), self._id(columns)
        names = [column.name for column in columns]
        at_vector, at_id = names.index(vector.name), names.index(key.name)
        return Batch(
            ids=[row[at_id] for row in rows],
            vectors=np.stack([_to_numpy(row[at_vector]) for row in rows]),
            payloads=[
                {name: value for name, value in zip(names, row, strict=True) if name != vector.name} for row in rows
            ],
        )

    def read_ids(self) -> Iterator[Sequence[Any]]:
        columns = self._columns()
        vector, key = self._vector(columns), self._id(columns)
        with self._connect() as connection, connection.transaction(), connection.cursor("mv2v_ids") as cursor:
            cursor.execute(f"SELECT {_quote(key.name)} FROM {self._table} WHERE {_quote(vector.name)} IS NOT NULL")
            while rows := cursor.fetchmany(10_000):
                yield [row[0] for row in rows]

    def take(self, ids: Sequence[Any]) -> Batch:
        columns = self._columns()
        vector, key = self._vector(columns), self._id(columns)
        rows = self._database.execute(
            f"SELECT {_select(columns, vector)} FROM {self._table} WHERE {_quote(key.name)} = ANY(%s::{key.sql}[])",
            [list(ids)],
        ).fetchall()
        place = [column.name for column in columns].index(key.name)
        order = in_order(ids, [row[place] for row in rows], self.name)
        return self._batch([rows[found] for found in order], columns)

    def search(self, vectors: np.ndarray, k: int) -> list[list[Any]]:
        columns = self._columns()
        vector, key = self._vector(columns), self._id(columns)
        sign = _METRICS[self.describe().metric][1]
        query = (
            f"SELECT {_quote(key.name)} FROM {self._table} WHERE {_quote(vector.name)} IS NOT NULL "
            f"ORDER BY {_quote(vector.name)} {sign} %s::{vector.type} LIMIT {int(k)}"
        )
        return [[row[0] for row in self._database.execute(query, [_to_text(row)])] for row in vectors]

    # --------------------------------------------------------------------------------------------------------- write

    def _is_beside(self, source: Description) -> bool:
        """Whether the target is a new column of the source's own table."""
        return source.kind == "postgres" and source.settings["table"] == self._table

    def check(self, batch: Batch) -> None:
        """Every id and payload can be kept."""

    def create(self, source: Description, dims: int) -> None:
        self._beside, self._known = self._is_beside(source), None
        with self._database.transaction():
            if source.kind != "postgres":
                kind = "bigint" if source.integer_ids else "text"
                vector = _quote(self._address.options.get("vector", "embedding"))
                key = _quote(self._address.options.get("id", "id"))
                self._database.execute(
                    f"CREATE TABLE {self._table} ({key} {kind} PRIMARY KEY, {vector} vector({dims}), payload jsonb)"
                )
                return
            old = source.settings["vector"]
            new = self._address.options.get("vector", old.name)
            kind = f"{old.type}({dims})"
            if self._beside:
                self._database.execute(f"ALTER TABLE {self._table} ADD COLUMN {_quote(new)} {kind}")
                return
            self._database.execute(
                f"CREATE TABLE {self._table} (LIKE {source.settings['table']} INCLUDING ALL EXCLUDING INDEXES)"
            )
            self._database.execute(f"ALTER TABLE {self._table} ALTER COLUMN {_quote(old.name)} TYPE {kind} USING NULL")
            if new != old.name:
                self._database.execute(f"ALTER TABLE {self._table} RENAME {_quote(old.name)} TO {_quote(new)}")
            key = self._address.options.get("id", source.settings["id"].name)
            self._database.execute(f"ALTER TABLE {self._table} ADD PRIMARY KEY ({_quote(key)})")

    def write(self, batch: Batch) -> None:
        columns = self._columns()
        vector, key = self._vector(columns), self._id(columns)
        payloads = batch.dicts()
        if self._beside:
            columns = [key, vector]
        elif set(payloads[0]) - {column.name for column in columns}:
            # From another kind of store.
            payloads = [{"payload": dict(payload)} for payload in payloads]
        columns = [column for column in columns if not column.is_generated]
        names = ", ".join(_quote(column.name) for column in columns)
        with self._database.transaction(), self._database.cursor() as cursor:
            # Copying is the fastest way in, but cannot leave out rows that are there already.
            cursor.execute(f"CREATE TEMP TABLE mv2v_batch ON COMMIT DROP AS SELECT {names} FROM {self._table} LIMIT 0")
            with cursor.copy(f"COPY mv2v_batch ({names}) FROM STDIN") as copy:
                for found, row, payload in zip(batch.ids, batch.vectors, payloads, strict=True):
                    values = {**payload, key.name: found, vector.name: _to_text(row)}
                    copy.write_row([self._adapt(values.get(column.name), column) for column in columns])
            if self._beside:
                cursor.execute(
                    f"UPDATE {self._table} AS old SET {_quote(vector.name)} = new.{_quote(vector.name)} "
                    f"FROM mv2v_batch AS new WHERE old.{_quote(key.name)} = new.{_quote(key.name)}"
                )
                return
            cursor.execute(
                f"INSERT INTO {self._table} ({names}) OVERRIDING SYSTEM VALUE SELECT {names} FROM mv2v_batch "
                f"ON CONFLICT ({_quote(key.name)}) DO NOTHING"
            )

    def _adapt(self, value: Any, column: _Column) -> Any:
        if value is None or column.type not in ("json", "jsonb"):
            return str(value) if column.type == "text" and value is not None else value
        from psycopg.types import json

        return (json.Jsonb if column.type == "jsonb" else json.Json)(value)

    def resume(self, source: Description, saved: int, dims: int) -> int:
        self._beside = self._is_beside(source)
        return saved

    def finish(self, source: Description) -> None:
        if source.kind != "postgres":
            return
        columns = self._columns()
        there = {_normal(row[0]) for row in self._database.execute(_INDEXES, [self._table, self._table])}
        old, new = source.settings["vector"].name, self._vector(columns).name
        for definition in source.settings["indexes"]:
            if self._beside and not _mentions(definition, old):
                continue
            made = _copy_index(definition, self._table, old, new)
            if _normal(made) not in there:
                self._database.execute(made)
        for column in columns:
            if column.is_identity and not self._beside:
                largest = f"(SELECT max({_quote(column.name)}) FROM {self._table})"
                names = [self._table, column.name]
                self._database.execute(f"SELECT setval(pg_get_serial_sequence(%s, %s), {largest})", names)

    def undo(self, source: Description) -> str:
        if self._is_beside(source):
            return f"ALTER TABLE {self._table} DROP COLUMN {_quote(self._address.options['vector'])}"
        return f"DROP TABLE {self._table}"


# ------------------------------------------------------------------------------------------------------------------ SQL


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _select(columns: list[_Column], vector: _Column) -> str:
    return ", ".join(_quote(column.name) for column in columns)


def _to_numpy(value: Any) -> np.ndarray:
    return value.to_numpy().astype(np.float32) if hasattr(value, "to_numpy") else np.asarray(value, np.float32)


def _to_text(row: np.ndarray) -> str:
    """A vector as pgvector reads it; nine digits are exact for float32."""
    return "[" + ",".join(["%.9g"] * len(row)) % tuple(row.tolist()) + "]"


def _mentions(definition: str, column: str) -> bool:
    """Whether the definition of an index names a column."""
    inside = definition.partition(" USING ")[2]
    return re.search(rf'(?<![\w"]){re.escape(column)}(?![\w"])', inside) is not None or _quote(column) in inside


def _copy_index(definition: str, table: str, old: str, new: str) -> str:
    """The definition of an index for another table, or another column; the server chooses its name."""
    found = re.fullmatch(r"CREATE (UNIQUE )?INDEX .+? ON (?:ONLY )?\S+ USING (.+)", definition, re.DOTALL)
    if found is None:
        raise InputError(f"{table}: the index {definition!r} cannot be made again")
    inside = found[2]
    if old != new:
        inside = re.sub(rf'(?<![\w"])"?{re.escape(old)}"?(?![\w"])', lambda _: _quote(new), inside)
    return f"CREATE {found[1] or ''}INDEX ON {table} USING {inside}"


def _normal(definition: str) -> str:
    """What is the same in two definitions of one index."""
    return definition.partition(" USING ")[2].replace('"', "")
