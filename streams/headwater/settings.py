"""Every setting, in one typed object, from the environment (`HEADWATER_...`) or a TOML file.

The environment wins over the file. The file is `headwater.toml` in the working directory, or the one named by
`HEADWATER_CONFIG`; its keys are the field names below in lower case:

    kafka_bootstrap_servers = "kafka-1:9092,kafka-2:9092"
    partitions = 12
"""

import difflib
import os
import re
import secrets
import ssl
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from headwater.errors import HeadwaterError

PREFIX = "HEADWATER_"
LOCAL_BROKER = "127.0.0.1:9092"
MIN_TOKEN = 16


def _shipped(bundle: str) -> Path:
    """A shipped bundle, in the package `headwater_models`, which is found without being imported."""
    found = find_spec("headwater_models")
    folders = found.submodule_search_locations if found is not None else None
    return Path(next(iter(folders or ["headwater_models"]))) / bundle


STARTER_BUNDLE = _shipped("starter")  # for any catalog in English
GROCERIES_BUNDLE = _shipped("groceries")  # knows the products of the demo by id, so it is for the demo alone

# Kafka allows 249 characters; the longest name of ours takes 16 of them.
_TOPIC_PREFIX = re.compile(r"[A-Za-z0-9._-]{1,200}")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:]+\]|[^\s:,/]+):(\d{1,5})")


class SettingsError(HeadwaterError):
    """A setting is wrong: one sentence with the setting, its value and what is expected."""


class Settings(BaseSettings):
    """Built once by `Settings.load()` and passed on. All defaults suit a laptop."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,  # compose files pass unset variables as empty strings
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
    )

    # Kafka
    kafka_bootstrap_servers: str = Field(
        default="",
        description="host:port of the brokers, separated by commas. Without it: the running `up` or `demo`",
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="encryption and login at the broker"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="PLAIN", description="how the login is sent"
    )
    kafka_sasl_username: str | None = Field(default=None, description="with a SASL protocol")
    kafka_sasl_password: SecretStr | None = Field(default=None, description="with a SASL protocol")
    kafka_ssl_ca_file: Path | None = Field(
        default=None, description="PEM file. Without it: the system's certificate authorities"
    )
    kafka_ssl_cert_file: Path | None = Field(
        default=None, description="PEM file of this client's certificate"
    )
    kafka_ssl_key_file: Path | None = Field(default=None, description="PEM file of its key")
    kafka_ssl_key_password: SecretStr | None = Field(default=None, description="where the key is encrypted")
    session_timeout_s: float = Field(
        default=20.0, ge=1, le=600, description="a worker that is silent for this long loses its partitions"
    )
    commit_interval_s: float = Field(
        default=1.0, gt=0, le=60, description="seconds between commits of what is finished"
    )
    max_poll_records: int = Field(
        default=4000, ge=1, le=100_000, description="records in one partition batch, at most"
    )

    # Topics
    topic_prefix: str = Field(default="headwater.", description="prefix of topics and consumer groups")
    partitions: int = Field(
        default=4,
        ge=1,
        le=10_000,
        description="partitions of clicks, requests, responses and profiles. Bounds the interests workers; fixed once the topics "
        "exist",
    )
    catalog_partitions: int = Field(
        default=4,
        ge=1,
        le=10_000,
        description="partitions of catalog, offers and vectors. Bounds the catalog workers; fixed once the topics exist",
    )
    replication_factor: int = Field(
        default=1, ge=1, le=32, description="copies of each topic; 3 in production"
    )
    clicks_retention_days: float = Field(
        default=7.0, gt=0, description="how long the clicks topic keeps clicks"
    )
    reply_topics: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="topics that a request may name in its `reply_to` header, separated by commas"
    )

    # Index, encoder, state
    qdrant_url: str | None = Field(
        default=None, description="a Qdrant server, 1.18 or newer. Without it: the edge engine in each worker"
    )
    qdrant_api_key: SecretStr | None = Field(default=None, description="the server's API key")
    qdrant_grpc_port: int = Field(default=6334, ge=1, le=65535, description="the server's gRPC port")
    graph_min_items: int = Field(
        default=10_000,
        ge=1,
        description="the edge engine searches a graph from this number of items on, and all items below it",
    )
    data_dir: Path = Field(default=Path(".headwater"), description="folder of local data")
    bundle: Path | None = Field(
        default=None, description="folder of a bundle. Without it: the shipped starter"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where encoders run")
    encoder_threads: int = Field(default=1, ge=1, le=256, description="threads of ONNX Runtime")
    state_on_disk: bool = Field(
        default=False,
        description="users' logs and states in a file under the data folder, for those who outgrow memory; Linux",
    )
    counters_per_user: int = Field(
        default=64,
        ge=0,
        le=255,  # the record has one byte for their number
        description="items that still count for `buy-again` when the log of 50 has lost them, 10 bytes each; 0: none",
    )
    hides_per_user: int = Field(
        default=128,
        ge=0,
        le=255,  # as above
        description="dislikes and hides that stay in force when the log of 50 has lost them, 20 bytes each, at most 255; 0: none",
    )
    new_days: float = Field(
        default=30.0, gt=0, le=3650, description="how long items of the catalog are new to the source `new`"
    )
    user_ttl_days: float | None = Field(
        default=None, gt=0, description="users without an event for this long are erased"
    )
    max_parked: int = Field(
        default=10_000, ge=0, description="requests of a worker that wait for their click, at most"
    )

    # Web and logs
    web_host: str = Field(
        default="127.0.0.1", description="address of `/healthz`, `/readyz`, `/metrics` and the live page"
    )
    web_port: int = Field(default=0, ge=0, le=65_535, description="their port; 0: any free one")
    live_open: bool = Field(
        default=False,
        description="the live page shows users and items, and takes clicks, without the token: to this machine alone, where "
        "`HEADWATER_WEB_HOST` is of it. True in `up` and `demo` without a token",
    )
    admin_token: SecretStr | None = Field(
        default=None,
        description="opens `/users/{id}`, `/items`, and users and items on the live page, to requests that send it as "
        "`Authorization: Bearer TOKEN`. Without it they are off",
    )
    admin_host: str = Field(default="127.0.0.1", description="address of `/users/{id}` and `/items`")
    admin_port: int = Field(default=0, ge=0, le=65_535, description="their port; 0: any free one")
    gateway_host: str = Field(
        default="127.0.0.1",
        description="address of `headwater gateway`; any but this machine's own needs keys",
    )
    gateway_port: int = Field(default=8080, ge=0, le=65_535, description="its port; 0: any free one")
    gateway_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="keys that callers of the gateway send, separated by commas, at least 16 characters each. Put a TLS proxy "
        "before the gateway",
    )
    gateway_rate: float = Field(
        default=1_000.0,
        gt=0,
        description="calls a second of one key, or of one address where no keys are set; more is answered with 429",
    )
    probe_s: float | None = Field(
        default=None,
        ge=0.5,
        le=3_600,
        description="seconds from one freshness probe of a clicks partition to the next. Without it: no probes",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least level")
    log_json: bool = Field(default=False, description="each line of the log is JSON")

    @classmethod
    def load(cls, **given: Any) -> Self:
        """The settings of this process; `given` (say, command-line options) wins over environment and file.

        Raises SettingsError.
        """
        _refuse_misspelt(os.environ, list(cls.model_fields))
        try:
            return cls(**given)
        except ValidationError as error:
            raise SettingsError(_sentence(error, list(cls.model_fields))) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Where values come from, the first one wins: arguments, the environment, the TOML file."""
        path = config_file(os.environ)
        if path is None:
            return init_settings, env_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=path)

    @field_validator("log_level", mode="before")
    @classmethod
    def _any_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("reply_topics", mode="before")
    @classmethod
    def _comma_separated(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @field_validator("kafka_bootstrap_servers")
    @classmethod
    def _addresses(cls, value: str) -> str:
        for address in filter(None, (part.strip() for part in value.split(","))):
            match = _ADDRESS.fullmatch(address)
            if match is None or not 0 < int(match[2]) < 65_536:
                raise ValueError("host:port, several separated by commas, such as 127.0.0.1:9092")
        return value

    @field_validator("topic_prefix")
    @classmethod
    def _with_separator(cls, value: str) -> str:
        if not _TOPIC_PREFIX.fullmatch(value):
            raise ValueError(
                "1 to 200 of the characters that Kafka allows in a topic: letters, digits, . _ -"
            )
        return value if value[-1] in "._-" else f"{value}."

    @field_validator("qdrant_url")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is None:
            return value
        if not re.match(r"https?://[^\s/]+", value):
            raise ValueError("a URL such as http://127.0.0.1:6333")
        # The client would not send them, and a URL is shown in logs, errors and the run file.
        if re.search(r"[@?#]", value):
            raise ValueError(
                "an address without user name, password, query and fragment; Qdrant takes an API key, which belongs in "
                f"{PREFIX}QDRANT_API_KEY"
            )
        return value

    @field_validator("qdrant_api_key")
    @classmethod
    def _sendable(cls, value: SecretStr | None) -> SecretStr | None:
        key = value.get_secret_value() if value is not None else ""
        if not (key.isascii() and key.isprintable()):
            raise ValueError("printable ASCII characters, without a line break at the end")
        return value

    @field_validator("gateway_keys", mode="before")
    @classmethod
    def _parted_by_commas(cls, value: object) -> object:
        return tuple(key.strip() for key in value.split(",")) if isinstance(value, str) else value

    @field_validator("admin_token", "gateway_keys")
    @classmethod
    def _hard_to_guess(
        cls, value: SecretStr | tuple[SecretStr, ...] | None
    ) -> SecretStr | tuple[SecretStr, ...] | None:
        """What callers bring in a header. An empty part between commas is a mistake, too."""
        for secret in value if isinstance(value, tuple) else () if value is None else (value,):
            if not re.fullmatch(rf"[!-~]{{{MIN_TOKEN},}}", secret.get_secret_value()):
                raise ValueError(
                    f"at least {MIN_TOKEN} printable ASCII characters without spaces{_each(value)}"
                )
        return value

    @field_validator("kafka_ssl_ca_file", "kafka_ssl_cert_file", "kafka_ssl_key_file")
    @classmethod
    def _file(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError("the path of an existing file")
        return value

    @field_validator("state_on_disk")
    @classmethod
    def _can_reserve(cls, value: bool) -> bool:
        if value and not hasattr(os, "posix_fallocate"):
            raise ValueError("false on a system that cannot reserve room in a file; use Linux for it")
        return value

    @field_validator("bundle")
    @classmethod
    def _folder(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_dir():
            raise ValueError("the path of a bundle's folder")
        return value

    @model_validator(mode="after")
    def _credentials_fit_the_protocol(self) -> Self:
        protocol = self.kafka_security_protocol
        credentials = (self.kafka_sasl_username, self.kafka_sasl_password)
        if protocol.startswith("SASL_") and None in credentials:
            raise ValueError(
                f"{PREFIX}KAFKA_SECURITY_PROTOCOL is {protocol}: expected "
                f"{PREFIX}KAFKA_SASL_USERNAME and {PREFIX}KAFKA_SASL_PASSWORD with it"
            )
        if not protocol.startswith("SASL_") and credentials != (None, None):
            raise ValueError(
                f"{PREFIX}KAFKA_SECURITY_PROTOCOL is {protocol}: expected SASL_SSL or SASL_PLAINTEXT, "
                "since a SASL username or password is set"
            )
        if (self.kafka_ssl_cert_file is None) != (self.kafka_ssl_key_file is None):
            raise ValueError(
                f"{PREFIX}KAFKA_SSL_CERT_FILE and {PREFIX}KAFKA_SSL_KEY_FILE: expected both or neither of them"
            )
        return self

    @property
    def bootstrap_servers(self) -> str:
        """The broker's addresses; without a setting, the embedded broker's usual one."""
        return self.kafka_bootstrap_servers or LOCAL_BROKER

    @property
    def bundle_path(self) -> Path:
        """The folder of the bundle; without a setting, the shipped starter."""
        return self.bundle or STARTER_BUNDLE

    @property
    def interests_group(self) -> str:
        """The consumer group of clicks and requests."""
        return f"{self.topic_prefix.rstrip('._-') or 'headwater'}-interests"

    @property
    def catalog_group(self) -> str:
        """The consumer group of the catalog."""
        return f"{self.topic_prefix.rstrip('._-') or 'headwater'}-catalog"

    @property
    def redrive_group(self) -> str:
        """The consumer group of a redrive of dead letters, and the id of its transactions."""
        return f"{self.topic_prefix.rstrip('._-') or 'headwater'}-redrive"

    def with_admin_token(self) -> Self:
        """The same with a token, made up where none is set."""
        if self.admin_token is not None:
            return self
        return self.model_copy(update={"admin_token": SecretStr(secrets.token_urlsafe(24))})

    def with_open_page(self) -> Self:
        """The same with the live page open to this machine, unless a setting says otherwise, or there is a token to ask for."""
        if "live_open" in self.model_fields_set or self.admin_token is not None:
            return self
        return self.model_copy(update={"live_open": True})

    def make_data_dir(self) -> None:
        """Make `data_dir`, or find it there. Raises SettingsError if it cannot be made or written to."""
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.data_dir):
                pass
        except OSError as error:
            raise SettingsError(
                f"{PREFIX}DATA_DIR is '{self.data_dir}': expected a folder that this user can write to ({error})"
            ) from error

    def kafka_options(self) -> dict[str, Any]:
        """Keyword arguments of every aiokafka client: consumer, producer and admin."""
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": self.kafka_security_protocol,
        }
        if self.kafka_security_protocol.endswith("SSL"):
            options["ssl_context"] = self._ssl_context()
        if self.kafka_security_protocol.startswith("SASL_"):
            assert self.kafka_sasl_password is not None
            options["sasl_mechanism"] = self.kafka_sasl_mechanism
            options["sasl_plain_username"] = self.kafka_sasl_username
            options["sasl_plain_password"] = self.kafka_sasl_password.get_secret_value()
        return options

    def _ssl_context(self) -> ssl.SSLContext:
        # Here: all commands load settings, few use TLS.
        from aiokafka.helpers import create_ssl_context

        from headwater.tls import EndsAtOnce

        # With no password given, OpenSSL would ask for that of an encrypted key at the terminal, and wait.
        password = self.kafka_ssl_key_password or SecretStr("")
        try:
            context: ssl.SSLContext = create_ssl_context(
                cafile=self.kafka_ssl_ca_file,
                certfile=self.kafka_ssl_cert_file,
                keyfile=self.kafka_ssl_key_file,
                password=password.get_secret_value(),
            )
        except OSError as error:
            names = ("kafka_ssl_ca_file", "kafka_ssl_cert_file", "kafka_ssl_key_file")
            held = [
                f"{PREFIX}{name.upper()} is '{getattr(self, name)}'" for name in names if getattr(self, name)
            ]
            raise SettingsError(
                f"{', '.join(held)}: expected readable PEM files, a key that fits the certificate, and its "
                f"{PREFIX}KAFKA_SSL_KEY_PASSWORD if it has one ({error})"
            ) from error
        context.sslobject_class = EndsAtOnce
        return context


def _each(value: object) -> str:
    return " in each key, with commas between them" if isinstance(value, tuple) else ""


def config_file(environment: Mapping[str, str]) -> Path | None:
    """The TOML file that settings come from, if there is one. Raises SettingsError where it cannot be read."""
    named = environment.get(f"{PREFIX}CONFIG")
    path = Path(named or "headwater.toml")
    if not path.is_file():
        if named:
            raise SettingsError(f"{PREFIX}CONFIG is '{named}': expected the path of a TOML file")
        return None
    try:
        tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: expected a TOML file ({error})") from None
    return path


def _refuse_misspelt(environment: Mapping[str, str], fields: list[str]) -> None:
    """Raises SettingsError for a variable that looks like a misspelt setting, which would be ignored in silence."""
    names = [f"{PREFIX}{field.upper()}" for field in fields]
    for variable in environment:
        if variable.startswith(PREFIX) and variable not in (*names, f"{PREFIX}CONFIG"):
            if variable.startswith(f"{PREFIX}TEST_"):  # the test suite's own
                continue
            near = difflib.get_close_matches(variable, names, n=1, cutoff=0.9)
            if near:
                raise SettingsError(f"{variable} is no setting: expected {near[0]}")


def _sentence(error: ValidationError, fields: list[str]) -> str:
    return "; ".join(_complaints(error, fields))


def _complaints(error: ValidationError, fields: list[str]) -> Iterator[str]:
    for found in error.errors():
        reason = str(found["ctx"]["error"]) if found["type"] == "value_error" else found["msg"]
        if not found["loc"]:
            yield reason  # a rule about several settings names them itself
            continue
        field = str(found["loc"][0])
        if found["type"] == "extra_forbidden":
            near = difflib.get_close_matches(field, fields, n=1, cutoff=0.6)
            yield f"{field} is no setting: expected {near[0] if near else 'one of ' + ', '.join(fields)}"
            continue
        value = found["input"]
        secret = isinstance(value, SecretStr) or field.endswith(("password", "api_key", "token", "keys"))
        shown = (
            "not shown"
            if secret
            else f"'{_masked(str(value))}'"
            if isinstance(value, str | Path)
            else repr(value)
        )
        expected = reason.removeprefix("Input should be ").removeprefix("Input should ")
        yield f"{PREFIX}{field.upper()} is {shown}: expected {expected}"


def _masked(value: str) -> str:
    """A value as it may be shown: without what stands where URLs have user names, passwords and keys."""
    return re.sub(r"(?<=[?#]).+", "...", re.sub(r"[^\s/,]*@", "...@", value))
