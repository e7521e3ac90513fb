"""The section ``registry``: where the schemas of Avro, Protobuf and JSON Schema records are found.

Most keys have the names that confluent-kafka's ``SchemaRegistryClient`` gives them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from worker.settings.kinds import Count, File, Positive, Seconds, Text
from worker.settings.kinds import from_file as relative
from worker.settings.section import Section

REDACTED = "[redacted]"
_OWN_KEYS = frozenset({"url", "folder", "auto_register", "ids"})
"""Keys that the client does not have under this name, or that are set apart for it."""
_SECRETS = frozenset(
    {"basic.auth.user.info", "ssl.key.password", "bearer.auth.token", "bearer.auth.client.secret"}
)
_ADDRESSES = frozenset({"url", "proxy", "bearer.auth.issuer.endpoint.url"})
"""Keys whose values may hold a user and a password."""


def _urls(text: str) -> str:
    addresses = [address.strip() for address in text.split(",")]
    for address in addresses:
        try:
            parts = urlsplit(address)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            good = False
        if not good:
            raise ValueError(
                "expected http:// or https:// addresses, one or several with commas between them"
            )
    return ",".join(addresses)


def _authority(value: Any, info: ValidationInfo) -> Any:
    """``false`` switches the check off; anything else is a file or a folder."""
    if value is False or (isinstance(value, str) and value.lower() == "false"):
        return False
    return relative(Path(str(value)), info) if value is not None else None


def _user_and_password(text: str) -> str:
    if ":" not in text:
        raise ValueError("expected user:password")
    return text


class RegistrySettings(Section):
    """The schema registry of Avro, Protobuf and JSON Schema records; keys with dots as in confluent-kafka's SchemaRegistryClient."""

    url: Annotated[Text, AfterValidator(_urls)] | None = None
    """Addresses of the registry, with commas between them; the next one is asked if one does not answer."""
    folder: File | None = None
    """Folder of schemas that are known without asking: `<id>.avsc`, `<id>.json` or, for Protobuf, `<id>.desc` (a descriptor set)."""
    auto_register: bool = True
    """Whether the schema of the results is registered at start; false: it must be there."""
    ids: Literal["prefix", "header"] = "prefix"
    """Where a result carries the id of its schema: in front of its value, or as a GUID in the header `__value_schema_id`."""
    basic_auth_user_info: Annotated[str, AfterValidator(_user_and_password)] | None = Field(
        default=None, alias="basic.auth.user.info"
    )
    """`user:password`."""
    ssl_ca_location: Annotated[Path | Literal[False] | None, BeforeValidator(_authority)] = Field(
        default=None, alias="ssl.ca.location"
    )
    """File or folder of certificate authorities; false: the server's certificate is not checked."""
    ssl_certificate_location: File | None = Field(default=None, alias="ssl.certificate.location")
    """The client's certificate."""
    ssl_key_location: File | None = Field(default=None, alias="ssl.key.location")
    """The client's key."""
    ssl_key_password: str | None = Field(default=None, alias="ssl.key.password")
    """Password of the client's key."""
    bearer_source: Literal["STATIC_TOKEN", "OAUTHBEARER", "OAUTHBEARER_AZURE_IMDS"] | None = Field(
        default=None, alias="bearer.auth.credentials.source"
    )
    """Where the bearer token comes from."""
    bearer_token: str | None = Field(default=None, alias="bearer.auth.token")
    """The token of `STATIC_TOKEN`."""
    bearer_client_id: str | None = Field(default=None, alias="bearer.auth.client.id")
    """The client of `OAUTHBEARER`."""
    bearer_client_secret: str | None = Field(default=None, alias="bearer.auth.client.secret")
    """The client's secret."""
    bearer_scope: str | None = Field(default=None, alias="bearer.auth.scope")
    """The scope that is asked for."""
    bearer_issuer: str | None = Field(default=None, alias="bearer.auth.issuer.endpoint.url")
    """Address of the token endpoint."""
    bearer_issuer_query: str | None = Field(default=None, alias="bearer.auth.issuer.endpoint.query")
    """Query of the token endpoint, for `OAUTHBEARER_AZURE_IMDS`."""
    bearer_cluster: str | None = Field(default=None, alias="bearer.auth.logical.cluster")
    """The logical cluster, where the registry asks for one."""
    bearer_pool: str | None = Field(default=None, alias="bearer.auth.identity.pool.id")
    """The identity pool, where the registry asks for one."""
    proxy: str | None = None
    """Address of an HTTP proxy."""
    timeout: Seconds = 10.0
    """Seconds that one request may take."""
    cache_capacity: Positive | None = Field(default=None, alias="cache.capacity")
    """Answers that the client keeps; a schema that records were read with is always kept."""
    cache_latest_ttl: Seconds | None = Field(default=None, alias="cache.latest.ttl.sec")
    """Taken and not needed: the worker reads every record with the schema that its id names."""
    max_retries: Count = Field(default=0, alias="max.retries")
    """Tries of the client within one request; the worker itself asks again until the registry answers."""
    retries_wait_ms: Positive | None = Field(default=None, alias="retries.wait.ms")
    """First wait between two such tries."""
    retries_max_wait_ms: Positive | None = Field(default=None, alias="retries.max.wait.ms")
    """Longest wait between two such tries."""

    @model_validator(mode="after")
    def _has_a_source(self) -> RegistrySettings:
        if self.url is None and self.folder is None:
            raise ValueError("expected url, the address of a schema registry, or folder")
        if self.url and self.basic_auth_user_info and "@" in urlsplit(self.url.split(",")[0]).netloc:
            raise ValueError("expected basic.auth.user.info or a user in url, not both")
        if (self.ssl_key_location or self.ssl_key_password) and not self.ssl_certificate_location:
            raise ValueError("expected ssl.certificate.location beside ssl.key.location and ssl.key.password")
        return self

    def properties(self) -> dict[str, Any]:
        """What confluent-kafka's client is configured with."""
        given = self.model_dump(by_alias=True, exclude_none=True)
        properties = {key: value for key, value in given.items() if key not in _OWN_KEYS}
        texts = {key: str(value) if isinstance(value, Path) else value for key, value in properties.items()}
        return {"url": self.url, **texts}

    def redacted(self) -> dict[str, Any]:
        """Everything that is set, as plain data, secrets replaced."""
        plain: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        for key in plain:
            if key in _SECRETS:
                plain[key] = REDACTED
            elif key in _ADDRESSES:
                plain[key] = ",".join(map(without_user, str(plain[key]).split(",")))
        return plain

    def secrets(self) -> set[str]:
        """The secret values themselves: what no line may contain."""
        plain = self.model_dump(by_alias=True, exclude_none=True)
        found = {str(plain[key]) for key in _SECRETS & plain.keys()}
        if self.basic_auth_user_info:
            found.add(self.basic_auth_user_info.partition(":")[2])
        for key in _ADDRESSES & plain.keys():
            for address in str(plain[key]).split(","):
                found.add(urlsplit(address).password or "")
        return {text for text in found if text.strip()}


def without_user(address: str) -> str:
    """An address as it may be shown: without a user and a password."""
    parts = urlsplit(address)
    if "@" not in parts.netloc:
        return address
    return urlunsplit(parts._replace(netloc=f"{REDACTED}@{parts.netloc.rpartition('@')[2]}"))
