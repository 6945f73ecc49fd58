"""Object stores by URI, with obstore: S3 and what speaks its protocol, Google Cloud Storage, Azure's blobs. No Beam.

Credentials, regions and addresses come from the usual variables of the environment, which obstore reads. What it does
not read, the provider's own library says where it is installed: boto3 all that is in ~/.aws, google-auth the kinds of
Google's credentials that obstore does not know.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from torchmoji_core.patience import TransientError, request_seconds

_FORMS = {
    "s3": "s3://bucket/key",
    "gs": "gs://bucket/key",
    "gcs": "gcs://bucket/key",
    "az": "az://container/key",
    "abfs": "abfs://container@account.dfs.core.windows.net/key",
    "abfss": "abfss://container@account.dfs.core.windows.net/key",
    "azfs": "azfs://account/container/key",
}

_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; or AWS_PROFILE, with this package's extra aws",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or run: gcloud auth application-default login",
    "az": "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
_VARIABLES = ("AWS_", "GOOGLE_", "AZURE_", "STORAGE_EMULATOR_HOST", "IDENTITY_", "MSI_")
_CONNECTION_STRING = {
    "AccountName": "account_name",
    "AccountKey": "account_key",
    "SharedAccessSignature": "sas_key",
    "BlobEndpoint": "endpoint",
}
_PATIENCE_OF_UPLOADS = 10
"""How many times longer an upload waits: obstore counts from the beginning of a request, not from its end."""
_RETRIES = {
    "max_retries": 2,
    "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=1), "base": 2},
    "retry_timeout": timedelta(hours=1),
}
"""In quick succession, inside a request; what fails then is for `patience.retrying`."""
_BOTO3_SECONDS = timedelta(minutes=5)
"""How long its credentials are used before it is asked again; it renews those that end within ten minutes."""
_PASSING = re.compile(
    # The last is of an upload whose completion was lost on the way, and is asked for again: upload once more.
    r"\b(SlowDown|InternalError|ServiceUnavailable|RequestTimeout|OperationAborted|ConditionalRequestConflict|NoSuchUpload)\b"
)


class MissingBucketError(FileNotFoundError):
    """There is no bucket of that name."""


class Address(NamedTuple):
    """Where an object is."""

    kind: str
    """s3, gs or az."""
    account: str
    """Of Azure, where the URI names it."""
    bucket: str
    key: str


def is_object(uri: str) -> bool:
    """Whether a location is in an object store."""
    return uri.partition("://")[0].lower() in _FORMS and "://" in uri


def address(uri: str) -> Address:
    """The parts of a URI; the key may be empty.

    Raises:
        OSError: if it has not the form that it should have.
    """
    scheme, _, rest = uri.partition("://")
    scheme = scheme.lower()
    account = ""
    if scheme == "azfs":
        account, _, rest = rest.partition("/")
    bucket, _, key = rest.partition("/")
    if scheme in ("abfs", "abfss"):
        bucket, _, host = bucket.partition("@")
        account = host.partition(".")[0]
    if not bucket or (scheme == "azfs" and not account):
        raise OSError(f"{uri}: has no bucket; the form is {_FORMS[scheme]}")
    # What is none makes obstore panic.
    if not re.fullmatch(r"[\w.$-]*", account + bucket, re.ASCII):
        raise OSError(f"{uri}: {bucket!r} is no name of a bucket; the form is {_FORMS[scheme]}")
    return Address({"s3": "s3", "gs": "gs", "gcs": "gs"}.get(scheme, "az"), account, bucket, key)


def object_address(uri: str) -> Address:
    """As `address`, of an object.

    Raises:
        OSError: if it is none, or one that obstore would take for another: it passes over slashes at either end.
    """
    found = address(uri)
    if not found.key:
        form = _FORMS[uri.partition("://")[0].lower()]
        raise OSError(f"{uri}: is a bucket, and no file in it; the form is {form}")
    if not {"", ".", ".."}.isdisjoint(found.key.split("/")):
        raise OSError(f"{uri}: names that are empty, . or .. cannot be used between slashes")
    return found


def store(of: Address, settings: Mapping[str, str] | None = None, uploading: bool = False) -> Any:
    """The obstore that an address is in. Cheap: they are kept, by settings and environment, for all threads.

    Args:
        of: the address.
        settings: of S3 `endpoint`, `region`, `access_key_id`, `secret_access_key`, `session_token`, `verify` (a file of
            certificates, or "false") and `disable_ssl`; of Azure `endpoint` and `client_id`.
        uploading: whether it is for uploads, which may take longer.

    Raises:
        OSError: if it cannot be made from the settings and the environment.
    """
    seconds = request_seconds() * (_PATIENCE_OF_UPLOADS if uploading else 1)
    uri = f"{of.kind}://{of.bucket}"
    try:
        return _store(of._replace(key=""), tuple(sorted((settings or {}).items())), _environment(), seconds)
    except PermissionError as error:
        raise PermissionError(f"{uri}: no credentials ({error}); set {_CREDENTIALS[of.kind]}") from None
    except OSError:
        raise
    except Exception as error:  # obstore's, boto3's, google-auth's
        raise OSError(f"{uri}: {_reason(error)}; check {_CREDENTIALS[of.kind]}") from None


def _environment() -> tuple[tuple[str, str], ...]:
    return tuple(sorted(item for item in os.environ.items() if item[0].startswith(_VARIABLES)))


@lru_cache(maxsize=32)
def _store(of: Address, settings: tuple[tuple[str, str], ...], environment: Any, seconds: float) -> Any:
    """The environment, which libraries read themselves, only tells one store from another."""
    options: dict[str, Any] = {
        "allow_http": True,
        "connect_timeout": timedelta(seconds=min(seconds, 10)),
        "read_timeout": timedelta(seconds=seconds),
        "timeout": timedelta(days=1),
    }
    given = dict(settings)
    verify = given.pop("verify", os.environ.get("AWS_CA_BUNDLE", "") if of.kind == "s3" else "")
    if verify.lower() in ("false", "0"):
        options["allow_invalid_certificates"] = True
    elif verify and verify.lower() not in ("true", "1"):
        try:
            options["root_certificate"] = Path(verify).read_bytes()
        except OSError as error:
            raise OSError(f"certificates {verify}: cannot be read ({error.strerror})") from None
    make = {"s3": _s3, "gs": _gs, "az": _az}[of.kind]
    return make(of, given, {"client_options": options, "retry_config": _RETRIES})


def _s3(of: Address, given: dict[str, str], common: dict[str, Any]) -> Any:
    from obstore.store import S3Store

    is_clear = bool(given.pop("disable_ssl", ""))
    for endpoint in (given.get("endpoint"), os.environ.get("AWS_ENDPOINT_URL")):
        if endpoint:
            _check_address(endpoint)
    config: dict[str, Any] = given
    provider = None
    if _is_installed("boto3"):
        found, provider = _from_boto3(tuple(given.items()), _environment())
        config = found | given
    if is_clear:
        endpoint = config.get("endpoint") or f"https://s3.{config.get('region', 'us-east-1')}.amazonaws.com"
        config["endpoint"] = endpoint.replace("https://", "http://")
    return S3Store(of.bucket, **config, **common, credential_provider=provider)


@lru_cache(maxsize=8)
def _from_boto3(settings: tuple[tuple[str, str], ...], environment: Any) -> tuple[dict[str, str], Any]:
    """Endpoint and region, and what gives credentials unless they are given or not wanted. It takes a while."""
    import boto3
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    given = dict(settings)
    try:
        session = boto3.Session()
        region = given.get("region") or session.region_name or "us-east-1"
        client = session.client("s3", region_name=region, endpoint_url=given.get("endpoint"))
        config = {"endpoint": client.meta.endpoint_url, "region": region}
        if "access_key_id" in given or os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("true", "1"):
            return config, None
        if session.get_credentials() is None:
            raise PermissionError("none are to be found")
        provider = Boto3CredentialProvider(session, ttl=_BOTO3_SECONDS)
        provider()
    except (BotoCoreError, ValueError) as error:
        raise PermissionError(_reason(error)) from None
    return config, provider


def _gs(of: Address, given: dict[str, str], common: dict[str, Any]) -> Any:
    from obstore.exceptions import BaseError
    from obstore.store import GCSStore

    if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
        base_url = emulator if "://" in emulator else f"http://{emulator}"
        _check_address(base_url)
        return GCSStore(of.bucket, base_url=base_url, bearer_token="none", **common)
    try:
        return GCSStore(of.bucket, **common)
    except BaseError:
        if not _is_installed("google.auth"):
            raise
    import google.auth
    from obstore.auth.google import GoogleCredentialProvider

    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/devstorage.read_write"])
    # The file that obstore cannot read is in a variable that it would read again.
    return GCSStore(
        of.bucket, application_credentials="", credential_provider=GoogleCredentialProvider(credentials), **common
    )


def _az(of: Address, given: dict[str, str], common: dict[str, Any]) -> Any:
    from obstore.store import AzureStore

    said = os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "")
    parts = dict(part.split("=", 1) for part in said.split(";") if "=" in part)
    config: dict[str, Any] = {name: parts[part] for part, name in _CONNECTION_STRING.items() if part in parts}
    config |= given
    if of.account:
        config["account_name"] = of.account
    if "endpoint" in config:
        _check_address(config["endpoint"])
    return AzureStore(of.bucket, **config, **common)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of what it is in
        return False


def _check_address(endpoint: str) -> None:
    """What is no address makes obstore panic."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or not endpoint.isascii() or " " in endpoint:
        raise OSError(f"{endpoint}: no address of a store; the form is https://host:port")


def explain(uri: str, error: Exception) -> OSError:
    """What obstore has raised about an object, as one line: a `TransientError` if it may pass.

    Args:
        uri: the object's.
        error: of obstore.
    """
    of = address(uri)
    said = str(error).partition("\n\nDebug source:")[0]
    reason = _reason(error)
    status = int(found[1]) if (found := re.search(r"status code: (\d{3})", said)) else None
    host = f" at {found[1]}" if (found := re.search(r"performing \w+ (https?://[^/\s?]+)", said)) else ""
    if re.search(r"://169\.254\.|/latest/(api/token|meta-data/iam)|token request", said):
        return PermissionError(f"{uri}: no credentials ({reason}); set {_CREDENTIALS[of.kind]}")
    if status in (401, 403):
        return PermissionError(
            f"{uri}: access is denied ({reason}); check the credentials ({_CREDENTIALS[of.kind]}) and what they may do "
            "in this bucket"
        )
    if re.search(r"NoSuchBucket|ContainerNotFound|bucket does not exist", said):
        return MissingBucketError(
            f"{uri}: bucket {of.bucket} does not exist{host}; check its name and the endpoint, or make it"
        )
    if _PASSING.search(said):
        return TransientError(reason)
    if status == 404 or isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{uri}: not found{host}")
    if "incorrectly configured region" in said:
        return OSError(f"{uri}: the bucket is in another region; set AWS_REGION to it")
    if "invalid path" in said:
        return OSError(f"{uri}: {reason}; rename that object, or name what is meant more narrowly")
    if status in (408, 425, 429) or (status is not None and status >= 500 and status != 501):
        return TransientError(reason)
    if (
        status is None
        and "HTTP error" in said
        and not re.search("(?i)certificate|BadScheme|InvalidMessage", str(error))
    ):
        return TransientError(reason)
    return OSError(f"{uri}: {reason}")


def _reason(error: Exception) -> str:
    """The innermost of what an error says, without addresses, which may hold signatures."""
    said, _, debug = str(error).partition("\n\nDebug source:")
    if code := re.search(r"<Code>(.*?)</Code>\s*<Message>(.*?)</Message>", said, re.DOTALL):
        return " ".join(f"{code[1]}: {code[2]}".split())
    if status := re.search(r"status code: (\d{3}[^:<]*)", said):
        return f"the server's answer was {status[1].strip()}"
    if "TimedOut" in debug or "kind: Timeout" in debug:
        return "no answer in time"
    if inner := re.findall(r'(?:message|error): "([^"]+)"', debug):
        return inner[-1]
    if kind := re.findall(r"^\s*(?:error: )?([A-Z]\w+),?$", debug, re.MULTILINE):
        return f"connection lost ({kind[-1]})"
    return re.sub(r"^Generic \w+ error: ", "", " ".join(said.split())) or type(error).__name__
