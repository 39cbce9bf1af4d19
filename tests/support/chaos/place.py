"""Where the processes of a case keep jobs, objects and messages."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec
import obstore

from headrace.adapters.artifacts.settings import ArtifactSettings, LocalArtifacts, S3Artifacts
from headrace.adapters.kafka.settings import KafkaSettings
from headrace.adapters.memory_queue import MemoryQueueSettings
from headrace.adapters.sql.settings import PostgresSettings, SqliteSettings, StoreSettings
from headrace.batch.row_runner import RowRunnerSettings
from headrace.batch.settings import BatchSettings
from headrace.compose import migrate
from headrace.settings import QueueSettings, Settings, StorageSettings
from tests.support import s3
from tests.support.chaos.forked import aside
from tests.support.chaos.shapes import Shape
from tests.support.kafka import apache
from tests.support.postgres import Postgres
from tests.support.postgres import running as postgres

#: A laptop: SQLite, a folder, a queue in memory. A cluster: PostgreSQL, S3 and Apache Kafka.
Kind: TypeAlias = Literal["laptop", "cluster"]

#: Leases that are over soon, since thousands of cases wait for it; or those that are the default.
Leases: TypeAlias = Literal["short", "default"]

_SESSION_S: Final = 3.0
_MANY: Final = 100  # rows, from which on a queue has partitions for many workers
_SHORT: Final = BatchSettings(
    look_s=0.1,
    requeue_after_s=1.0,
    max_retry_delay_s=0.5,
    rows=RowRunnerSettings(retry_base_s=0.02, retry_max_s=0.1, look_s=0.05),
)


class Servers(msgspec.Struct, frozen=True, kw_only=True):
    """What a cluster's processes share: addresses, and a migrated database to copy."""

    postgres: Postgres
    template: str
    s3: s3.Seaweed
    kafka: apache.ApacheKafka


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """One case's own: nobody else reads or writes there."""

    folder: Path
    settings: Settings

    def left(self) -> list[str]:
        """Keys of objects that belong to jobs, none of which should be there when they ended."""
        artifacts = self.settings.artifacts
        if isinstance(artifacts, S3Artifacts):
            prefix, endpoint = f"{artifacts.prefix}/batch/jobs/", artifacts.endpoint
            return aside(lambda: _listed(endpoint, prefix)).split()
        # unlike a glob, a walk does not mind what is removed meanwhile
        walk = os.walk(self.folder / "objects" / "batch" / "jobs")
        return [f"{folder}/{name}" for folder, _, names in walk for name in names]


class Places:
    """Makes places of one kind, quickly: the schema is copied."""

    def __init__(self, folder: Path, servers: Servers | None, *, leases: Leases) -> None:
        self._folder = folder
        self._servers = servers
        self._batch = BatchSettings()
        if leases == "short":
            # of a cluster's many processes each waits longer for its turn on a small machine
            lease_s = 1.0 if servers is None else 3.0
            self._batch = msgspec.structs.replace(_SHORT, lease_s=lease_s)
        self._template = folder / "template"
        if servers is None:
            self._template.mkdir(parents=True)
            schema = SqliteSettings()
            migrate.run(schema, data_dir=self._template, check=False, say=lambda _: None)

    def make(self, name: str, shape: Shape) -> Place:
        """A new place."""
        folder = self._folder / name
        database: StoreSettings = SqliteSettings(busy_timeout_s=10.0)
        artifacts: ArtifactSettings = LocalArtifacts()
        queue: QueueSettings = MemoryQueueSettings()
        servers = self._servers
        if servers is None:
            shutil.copytree(self._template, folder)
        else:
            folder.mkdir(parents=True)
            made = f"case_{name}"
            servers.postgres.execute(f"CREATE DATABASE {made} TEMPLATE {servers.template}")
            database = PostgresSettings(dsn=servers.postgres.dsn(made), pool_size=4)
            artifacts = s3.settings(servers.s3.url, name)
            queue = KafkaSettings(
                brokers=servers.kafka.bootstrap,
                topic=f"case-{name}",
                group=f"case-{name}",
                session_timeout_s=_SESSION_S,
                commit_interval_s=0.05,
                retry_s=0.2,
                partitions=12 if shape.rows > _MANY else 2,
            )
        settings = Settings(
            storage=StorageSettings(data_dir=str(folder)),
            database=database,
            artifacts=artifacts,
            queue=queue,
            batch=msgspec.structs.replace(
                self._batch, chunk_rows=shape.chunk_rows, chunk_s=shape.chunk_s
            ),
        )
        return Place(folder=folder, settings=settings)

    def end(self, name: str) -> None:
        """Give the room in the database back."""
        if self._servers is not None:
            self._servers.postgres.execute(f"DROP DATABASE IF EXISTS case_{name} WITH (FORCE)")

    def crash(self, server: str) -> None:
        """End a server at once."""
        assert self._servers is not None, "a laptop has no servers"
        end = {
            "postgres": self._servers.postgres.stop,
            "kafka": self._servers.kafka.kill,
            "s3": self._servers.s3.kill,
        }
        end[server]()

    def recover(self, server: str) -> None:
        """Start it again, with what it had."""
        assert self._servers is not None, "a laptop has no servers"
        begin = {
            "postgres": self._servers.postgres.start,
            "kafka": self._servers.kafka.start,
            "s3": self._servers.s3.start,
        }
        begin[server]()

    def remove(self) -> None:
        """Remove all folders."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _listed(endpoint: str, prefix: str) -> str:
    found = obstore.list(s3.client(endpoint), prefix).collect()
    return "\n".join(each["path"] for each in found)


@contextlib.contextmanager
def places(kind: Kind, folder: Path, *, leases: Leases = "short") -> Iterator[Places]:
    """Places until the block ends, with the servers that they need."""
    if kind == "laptop":
        yield Places(folder, None, leases=leases)
        return
    objects = s3.Seaweed(folder / "s3")
    with postgres() as database, apache.running(folder / "kafka") as kafka:
        template = database.create_database()
        schema = PostgresSettings(dsn=database.dsn(template))
        migrate.run(schema, data_dir=folder, check=False, say=lambda _: None)
        servers = Servers(postgres=database, template=template, s3=objects, kafka=kafka)
        try:
            objects.start()
            yield Places(folder, servers, leases=leases)
        finally:
            objects.kill()
