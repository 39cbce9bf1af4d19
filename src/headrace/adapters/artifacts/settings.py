"""Where the platform keeps bytes: those of models, and the files of batch jobs."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec


class _Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    #: Bytes that one artifact may have as it is uploaded.
    max_artifact_bytes: int = 4 * 1024**3
    #: Bytes that the files of one archive may have together.
    max_unpacked_bytes: int = 8 * 1024**3
    #: What a version may point at instead of an upload: objects whose key begins so. "" is the
    #: whole store but for what the platform itself keeps there.
    copy_from: str = ""


class LocalArtifacts(_Limits, frozen=True, kw_only=True, tag_field="kind", tag="local"):
    """In a directory of this machine."""

    #: The directory; "" is `objects` in the data directory.
    path: str = ""


class S3Artifacts(_Limits, frozen=True, kw_only=True, tag_field="kind", tag="s3"):
    """In a bucket of S3, or of a store that speaks its protocol."""

    #: The bucket, which must exist.
    bucket: str
    #: What the keys of all objects begin with, a folder as it were; "" is none.
    prefix: str = ""
    #: URL of the store, as `http://127.0.0.1:9000`; "" is that of AWS, or `AWS_ENDPOINT_URL`.
    endpoint: str = ""
    #: Region that requests are signed for; "" takes `AWS_REGION`, else `us-east-1`.
    region: str = ""
    #: Access key id; "" takes `AWS_ACCESS_KEY_ID`, or the role of the machine or the pod.
    access_key_id: str = ""
    #: Secret of that key; "" takes `AWS_SECRET_ACCESS_KEY`.
    secret_access_key: str = ""
    #: Put the bucket in the path of URLs, as MinIO and SeaweedFS want it, not in the host name.
    path_style: bool = True
    #: Seconds that one request may take, connecting included; a slow line needs more.
    timeout_s: float = 30.0
    #: Times that a failed request is sent again.
    max_retries: int = 3

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """What `repr` shows: settings get into logs, and secrets must not."""
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        if self.secret_access_key:
            shown["secret_access_key"] = "..."  # noqa: S105 - none
        return list(shown.items())

    def __repr__(self) -> str:
        """As `__rich_repr__` says."""
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"S3Artifacts({shown})"


#: `kind` tells which.
ArtifactSettings: TypeAlias = LocalArtifacts | S3Artifacts
