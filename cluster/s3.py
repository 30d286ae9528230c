"""Buckets as stores, through boto3. Keys, region and endpoint come from the usual places (AWS_*, profiles)."""

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from typing_extensions import override

from cluster.errors import (
    AlreadyExistsError,
    BadInputError,
    ObjectDeniedError,
    ObjectMissingError,
    PermanentStoreError,
    RetryableStoreError,
    StoreError,
)
from cluster.storage import Entry, Store, _check_name

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ATTEMPTS = 8  # of one request, the first included; of a file as a whole
PART_ATTEMPTS = 4  # of each request that a file is sent or brought by: one busy part of many does not begin it anew
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 30
BACKOFF_S = 0.2  # doubled at each attempt, up to MAX_BACKOFF_S
MAX_BACKOFF_S = 5.0

_MISSING = {"404", "NoSuchKey", "NotFound"}
_DENIED = {
    "AccessDenied", "InvalidObjectState", "KeyTooLongError", "XMinioInvalidObjectName",
    "KMS.DisabledException", "KMS.KMSInvalidStateException", "KMS.NotFoundException",
}  # fmt: skip  # of one object; keys that are wrong say so
_BEHIND_THE_END = {"416", "InvalidRange"}
_PRESENT = {"412", "PreconditionFailed"}
_TRANSIENT = {
    "409", "ConditionalRequestConflict", "OperationAborted",
    "429", "TooManyRequests", "TooManyRequestsException", "SlowDown", "Throttling", "ThrottlingException",
    "RequestThrottled", "RequestThrottledException", "RequestLimitExceeded", "BandwidthLimitExceeded",
    "RequestTimeout", "RequestTimeoutException", "RequestTimeTooSkewed",
    "500", "502", "503", "504", "InternalError", "InternalFailure", "ServiceUnavailable", "IncompleteBody",
}  # fmt: skip
_THROTTLED = re.compile(r"\brequest rate\b|\brate limit|\brate exceeded", re.IGNORECASE)  # of a 403's message
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}|arn:.+")
_ADVICE = {
    "SignatureDoesNotMatch": "wrong secret: check AWS_SECRET_ACCESS_KEY",
    "InvalidAccessKeyId": "unknown key: check AWS_ACCESS_KEY_ID",
    "AccessDenied": "access denied: check the policy of these keys",
    "403": "access denied or wrong keys: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and their policy",
    "NoSuchBucket": "no such bucket",
    "ExpiredToken": "the session token has expired",
    "InvalidToken": "the session token is not valid: check AWS_SESSION_TOKEN",
    "InvalidObjectState": "the object is archived: restore it first",
}

_Result = TypeVar("_Result")
_local = threading.Lock()
_clients: dict[int, "S3Client"] = {}
_retries = 0


def retries_seen() -> int:
    """Requests that this process had to repeat so far."""
    return _retries


class S3Store(Store):
    """A prefix of a bucket, empty or with a slash at its end. Keys are no paths: every slash counts, several in a row too."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket, self.prefix = bucket, prefix

    @classmethod
    def at(cls, uri: str) -> "S3Store":
        """The store of `s3://bucket/prefix`.

        Raises:
            BadInputError: no bucket is named, or none can have this name.
        """
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not bucket:
            raise BadInputError(f"{uri}: no bucket is named; write s3://bucket/prefix")
        if not _BUCKET.fullmatch(bucket):
            raise BadInputError(f"{uri}: no bucket can be named {bucket!r}; write s3://bucket/prefix")
        return cls(bucket, prefix if not prefix or prefix.endswith("/") else f"{prefix}/")

    @override
    def uri(self, name: str = "") -> str:
        uri = f"s3://{self.bucket}/{self._key(name)}"
        return uri if name or uri.endswith("//") else uri.removesuffix("/")

    @override
    def child(self, name: str) -> "S3Store":
        return S3Store(self.bucket, f"{self._key(name)}/") if name else self

    @override
    def size(self, name: str) -> int | None:
        try:
            head = self._call(name, lambda s3, key: s3.head_object(Bucket=self.bucket, Key=key))
        except ObjectMissingError:
            return None
        return int(head["ContentLength"])

    @override
    def read(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        if length is not None and length <= 0:
            return b""
        ranged = bool(start) or length is not None
        span = f"bytes={start}-{'' if length is None else start + length - 1}"

        def get(s3: "S3Client", key: str) -> bytes:
            wanted = {"Range": span} if ranged else {}
            try:
                reply = s3.get_object(Bucket=self.bucket, Key=key, **wanted)  # type: ignore[arg-type]
            except s3.exceptions.ClientError as error:
                if error.response.get("Error", {}).get("Code") in _BEHIND_THE_END:
                    return b""  # as of a file; an empty object has no range at all
                raise
            data = reply["Body"].read()
            if len(data) != reply["ContentLength"]:
                raise _ShortBodyError(f"{len(data)} of {reply['ContentLength']} bytes came")
            return data

        return self._call(name, get)

    @override
    def write(self, name: str, data: bytes) -> None:
        self._call(name, lambda s3, key: s3.put_object(Bucket=self.bucket, Key=key, Body=data))

    @override
    def write_if_absent(self, name: str, data: bytes) -> None:
        before = retries_seen()
        try:
            self._call(name, lambda s3, key: s3.put_object(Bucket=self.bucket, Key=key, Body=data, IfNoneMatch="*"))
        except AlreadyExistsError:
            if retries_seen() == before or self.read(name) != data:
                raise  # else it is ours: the store had written it when the connection broke, and the retry met it

    @override
    def write_file(self, name: str, path: Path) -> None:
        self._call(name, lambda s3, key: s3.upload_file(str(path), self.bucket, key), attempts=PART_ATTEMPTS)

    @override
    def download(self, name: str, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._call(  # whole or not at all
                name, lambda s3, key: s3.download_file(self.bucket, key, str(path)), attempts=PART_ATTEMPTS
            )
        except OSError as error:  # of this machine's own disk
            raise PermanentStoreError(
                f"{path.parent} cannot hold {self.uri(name)}: {error.strerror or error}; free some space there, or name another "
                "folder in $MANET_CACHE"
            ) from None

    @override
    def list(self, prefix: str = "", *, links: bool = True) -> Iterator[Entry]:
        token = ""
        while True:
            more: dict[str, Any] = {"ContinuationToken": token} if token else {}
            page = self._call(prefix, partial(self._page, self.prefix + prefix, more))
            for item in page.get("Contents", []):
                if not item["Key"].endswith("/"):
                    yield Entry(item["Key"].removeprefix(self.prefix), item["Size"], item["LastModified"].timestamp())
            token = page.get("NextContinuationToken", "")
            if not token:
                return

    def _page(self, prefix: str, more: dict[str, Any], s3: "S3Client", _key: str) -> Any:  # noqa: ANN401 - botocore's dict
        return s3.list_objects_v2(Bucket=self.bucket, Prefix=prefix, **more)

    @override
    def unfinished(self) -> Iterator[Entry]:
        more: dict[str, Any] = {}
        while True:
            page = self._call("", partial(self._uploads, self.prefix, more))
            for item in page.get("Uploads", []):
                yield Entry(item["Key"].removeprefix(self.prefix), 0, item["Initiated"].timestamp(), item["UploadId"])
            if not page.get("IsTruncated"):
                return
            more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def _uploads(self, prefix: str, more: dict[str, Any], s3: "S3Client", _key: str) -> Any:  # noqa: ANN401 - botocore's dict
        return s3.list_multipart_uploads(Bucket=self.bucket, Prefix=prefix, **more)

    @override
    def discard(self, entry: Entry) -> None:
        if not entry.upload:
            self.delete(entry.name)
            return
        with contextlib.suppress(ObjectMissingError):
            self._call(
                entry.name,
                lambda s3, key: s3.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=entry.upload),
            )

    @override
    def delete(self, name: str) -> None:
        self._call(name, lambda s3, key: s3.delete_object(Bucket=self.bucket, Key=key))

    def _key(self, name: str) -> str:
        _check_name(name)
        return self.prefix + name

    def _call(self, name: str, request: "Callable[[S3Client, str], _Result]", attempts: int = 1) -> _Result:
        """One request with retries and our errors; or several, each of which the client itself makes so many `attempts` of."""
        global _retries  # noqa: PLW0603 - one counter a process
        where = self.uri(name)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return request(_client(attempts), self._key(name))
            except Exception as error:
                ours = _translated(error, where)
                if not isinstance(ours, RetryableStoreError) or attempt == ATTEMPTS:
                    raise ours from None
                _retries += 1
                time.sleep(min(MAX_BACKOFF_S, BACKOFF_S * 2 ** (attempt - 1)) * _jitter())
        raise AssertionError("unreachable: the last attempt returns or raises")


class _ShortBodyError(Exception):
    """A body shorter than its Content-Length."""


def _jitter() -> float:
    """Between 0.5 and 1.5, so that many workers do not come back at once."""
    return 0.5 + (time.monotonic_ns() % 1000) / 1000


def _client(attempts: int = 1) -> "S3Client":
    """The process's client of so many attempts a request (boto3's are thread-safe), made when it is first needed."""
    with _local:
        if attempts not in _clients:
            import boto3
            from botocore.config import Config

            config = Config(
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=READ_TIMEOUT_S,
                retries={"total_max_attempts": attempts, "mode": "standard"},
                max_pool_connections=64,
            )
            _clients[attempts] = boto3.session.Session().client("s3", config=config)
        return _clients[attempts]


def _translated(error: Exception, where: str) -> StoreError | Exception:  # noqa: PLR0911 - one line a kind
    """An error of boto3 as ours; any other error itself."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        ConnectionError,
        CredentialRetrievalError,
        FlexibleChecksumError,
        HTTPClientError,
        IncompleteReadError,
        NoCredentialsError,
        ParamValidationError,
        PartialCredentialsError,
    )

    if isinstance(error, ClientError):
        return _from_code(error, where)
    if isinstance(error, Boto3Error) and isinstance(error.__context__, (ClientError, BotoCoreError)):
        return _translated(error.__context__, where)
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return PermanentStoreError(f"{where}: no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if isinstance(error, ParamValidationError):
        return BadInputError(f"{where}: {' '.join(str(error).split())}")
    if isinstance(error, CredentialRetrievalError):
        return RetryableStoreError(f"{where}: the AWS credentials could not be had: {_line(error)}")
    broken = (FlexibleChecksumError, IncompleteReadError)  # of this one answer
    if isinstance(error, (HTTPClientError, ConnectionError, _ShortBodyError, Boto3Error, *broken)):
        return RetryableStoreError(
            f"{where}: the store does not answer as it should ({_line(error)}); check the network"
        )
    if isinstance(error, BotoCoreError):
        return PermanentStoreError(f"{where}: {_line(error)}")
    return error


def _from_code(error: Any, where: str) -> StoreError:  # noqa: ANN401 - botocore's ClientError
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    message = str(error.response.get("Error", {}).get("Message", ""))
    throttled = status == "403" and _THROTTLED.search(message)
    if code in _TRANSIENT or status in {"429", "500", "502", "503", "504"} or throttled:
        return RetryableStoreError(
            f"{where}: the store is busy ({code or status}) after {ATTEMPTS} attempts; try again later"
        )
    if code in _MISSING:
        return ObjectMissingError(f"{where}: no such object")
    if code in _PRESENT:
        return AlreadyExistsError(f"{where}: there is one already")
    kind = ObjectDeniedError if code in _DENIED else PermanentStoreError
    return kind(f"{where}: {_ADVICE.get(code) or f'{code} {message}'.strip() or f'HTTP {status}'}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def arrow_s3() -> Any:  # noqa: ANN401 - pyarrow.fs.S3FileSystem, imported lazily
    """pyarrow's S3 filesystem with the region and endpoint that boto3 finds, and keys that last.

    Keys with a session token end within hours, and who pickles the filesystem would hand them to nodes that have their own:
    then no keys are given, and Arrow finds each node's by its own chain (but for a profile's `role_arn`, which that lacks).
    """
    import boto3
    import pyarrow.fs

    session = boto3.session.Session()
    keys = session.get_credentials()
    if keys is None:
        raise PermanentStoreError("s3: no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    frozen = keys.get_frozen_credentials()
    endpoint = _client().meta.endpoint_url
    own = {"access_key": frozen.access_key, "secret_key": frozen.secret_key, "session_token": frozen.token}
    given = own if not frozen.token or keys.method == "assume-role" else {}  # that of a profile Arrow does not know
    return pyarrow.fs.S3FileSystem(
        **given,
        region=session.region_name or "us-east-1",
        endpoint_override=None if "amazonaws.com" in endpoint else endpoint,
    )
