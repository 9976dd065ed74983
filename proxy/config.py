"""What can be configured: names, defaults, limits. One TOML file, the environment over it, the command line over both."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from scheduler.policies import POLICIES

Count = Annotated[int, Field(gt=0, le=2**40, strict=True)]
Seconds = Annotated[float, Field(gt=0, le=1e8, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, le=65_535, strict=True)]


class Table(BaseModel):
    """A table of the file: unknown keys are refused, nothing is changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True)


class ListenConfig(Table):
    """Where the gateway listens. Only a restart changes it."""

    host: str = "127.0.0.1"
    """address of the model API; another than loopback needs [[keys]]"""
    port: Port = 8080
    """port of the model API; 0 = any free one"""
    control_host: str = "127.0.0.1"
    """address of the control plane (metrics, admin): has no keys of its own"""
    control_port: Port = 8081
    """port of the control plane"""
    control_public: bool = False
    """must be true for a control_host that is not loopback"""


class EngineConfig(Table):
    """One vLLM server."""

    url: str
    """its base URL without /v1, http or https; a path is kept as a prefix"""
    name: str = ""
    """its name in logs and metrics; default: host:port"""
    api_key: SecretStr | None = None
    """sent to it as Authorization: Bearer, instead of the client's"""
    api_key_env: str | None = None
    """the same, read from this environment variable"""
    max_connections: Count = 1024
    """connections at once; further calls wait in the gateway's queue"""
    max_in_flight: Count | None = None
    """calls at once, if fewer than max_connections"""

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or not value.isascii():
            raise ValueError("must be like http://host:8000")
        _ = parts.port  # ValueError for a port that is none
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must have no user, query or fragment; a key goes into api_key")
        if parts.path.rstrip("/").endswith("/v1"):
            raise ValueError("must be given without /v1")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _named(self) -> EngineConfig:
        if not self.name:
            object.__setattr__(self, "name", urlsplit(self.url).netloc)
        if self.api_key is not None and self.api_key_env is not None:
            raise ValueError("has both api_key and api_key_env; one is enough")
        return self

    def key(self) -> str | None:
        """The engine's API key, if it has one."""
        if self.api_key is not None:
            return self.api_key.get_secret_value()
        return os.environ.get(self.api_key_env) if self.api_key_env else None


class PolicyConfig(Table):
    """The scheduling policy: its name, and beside it the policy's own options."""

    name: str = "passthrough"
    """passthrough or fifo"""
    options: dict[str, Any] = {}
    """all other keys of the table; fifo: max_in_flight = calls at once on each engine (256)"""

    @model_validator(mode="before")
    @classmethod
    def _collect(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {"name": value.get("name", "passthrough"), "options": {k: v for k, v in value.items() if k != "name"}}

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in POLICIES:
            raise ValueError(f"unknown policy {value!r}; there are {', '.join(POLICIES)}")
        return value

    @model_validator(mode="after")
    def _options(self) -> PolicyConfig:
        if problems := POLICIES[self.name].options_errors(self.options):
            raise ValueError("; ".join(f"{option}: {message}" for option, message in problems))
        return self


class LimitsConfig(Table):
    """A limit on everything that clients can fill."""

    header_bytes: Count = 65_536
    """of a request's head; over it 431"""
    header_count: Count = 128
    """headers of a request; over it 431"""
    url_bytes: Count = 8_192
    """of a request's URL; over it 414"""
    body_bytes: Count = 33_554_432
    """of a request's body; over it 413"""
    json_values: Count = 4_194_304
    """commas and brackets in a body; over it 413 `body_too_complex`"""
    buffered_bytes: Count = 536_870_912
    """of all request bodies held at once; over it 503 `buffers_full`"""
    client_connections: Count = 8_192
    """open at once; further ones are closed"""
    queue_calls: Count = 4_096
    """calls held at once; over it 503 `queue_full`"""
    pipelined_requests: Count = 16
    """read ahead on one connection; then it is not read until one is answered"""
    workflows: Count = 10_000
    """kept apart in the ledger; the one used longest ago is closed"""
    response_buffer_bytes: Count = 262_144
    """of an answer waiting for a slow client; then the engine is not read"""


class TimeoutsConfig(Table):
    """How long things may take, in seconds."""

    connect_seconds: Seconds = 2.0
    """to connect to an engine; then another is tried once, then 502 `connect_timeout`"""
    first_byte_seconds: Seconds = 600.0
    """from sending a request to the first byte of its answer; then 504 `first_byte_timeout`"""
    idle_seconds: Seconds = 120.0
    """between two reads of an answer (`idle_timeout`), and without reading by its client (`client_stalled`)"""
    total_seconds: Seconds = 3_600.0
    """for a whole call; then `total_timeout`"""
    request_seconds: Seconds = 30.0
    """for a request to arrive, and 1 s more for each 64 KiB of body; then 408"""
    keep_alive_seconds: Seconds = 75.0
    """an idle client connection is kept"""
    engine_keep_alive_seconds: Seconds = 4.0
    """an idle engine connection is kept; must stay below the engine's own time (vLLM: 5 s)"""
    drain_seconds: Seconds = 30.0
    """running calls may take after SIGTERM"""
    queue_seconds: Seconds = 600.0
    """a call may be held; then 503 `queue_timeout`"""


class HealthConfig(Table):
    """How engines are watched."""

    probe_seconds: Seconds = 1.0
    """between two probes of /health and /metrics"""
    probe_timeout_seconds: Seconds = 2.0
    """for a probe"""
    failures_to_open: Count = 3
    """faults of the connection in a row after which an engine gets no calls"""
    open_seconds: Seconds = 2.0
    """before a good probe lets a call try again; doubles up to 30 s"""
    models_seconds: Seconds = 10.0
    """between two looks at /v1/models"""


class KeyConfig(Table):
    """One API key and what it may use; a limit that is not given does not hold."""

    name: str = Field(min_length=1, max_length=128)
    """its name in logs and metrics"""
    sha256: SecretStr
    """SHA-256 of the key in hex; `joulegate hash-key` makes both"""
    max_concurrency: Count | None = None
    """calls at once; over it 429 `key_concurrency`"""
    requests_per_minute: Count | None = None
    """over it 429 `key_request_rate`"""
    tokens_per_minute: Count | None = None
    """prompt and output tokens; over it 429 `key_token_rate`"""
    token_budget: Count | None = None
    """tokens in each period; over it 429 `key_token_budget`"""
    token_budget_seconds: Seconds = 86_400.0
    """length of the period"""

    @field_validator("sha256")
    @classmethod
    def _hex(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value().lower()
        if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
            raise ValueError("must be 64 hex digits, as `joulegate hash-key` prints them; never the key itself")
        return SecretStr(text)


class LogConfig(Table):
    """The call log: JSON lines."""

    path: str = "-"
    """file, or - for standard output"""
    prompts: bool = False
    """write request bodies into it"""
    buffer_bytes: Count = 4_194_304
    """waiting to be written; over it lines are dropped and counted"""


class TracingConfig(Table):
    """OpenTelemetry traces."""

    otlp_endpoint: str = ""
    """base URL of an OTLP/HTTP collector; empty = no traces"""
    service_name: str = "joulegate"
    """service.name of the spans"""
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """of traces that begin here; a client's own decision is kept"""


class EventLogConfig(Table):
    """What the scheduler was told and what it decided, for `joulegate replay`."""

    path: Path | None = None
    """file; none = not written"""
    max_bytes: Count = 1_073_741_824
    """it stops there"""


class Config(Table):
    """The whole configuration."""

    engines: tuple[EngineConfig, ...] = Field(min_length=1)
    """the engines, at least one"""
    state_dir: Path | None = None
    """where token budgets are kept over a restart; none = not kept"""
    listen: ListenConfig = ListenConfig()
    policy: PolicyConfig = PolicyConfig()
    limits: LimitsConfig = LimitsConfig()
    timeouts: TimeoutsConfig = TimeoutsConfig()
    health: HealthConfig = HealthConfig()
    keys: tuple[KeyConfig, ...] = ()
    log: LogConfig = LogConfig()
    tracing: TracingConfig = TracingConfig()
    event_log: EventLogConfig = EventLogConfig()

    @model_validator(mode="after")
    def _together(self) -> Config:
        listen = self.listen
        problems = []
        if not self.keys and not is_loopback(listen.host):
            problems.append(
                f"listen.host {listen.host} needs [[keys]]: without keys the gateway listens on loopback only, "
                "since anyone who reaches the port could use your engines"
            )
        if not is_loopback(listen.control_host) and not listen.control_public:
            problems.append("listen.control_host is not loopback: the control plane has no keys; set control_public = true")
        if listen.port and (listen.host, listen.port) == (listen.control_host, listen.control_port):
            problems.append("listen.port and listen.control_port must differ")
        for what, values in (
            ("engines: name", [engine.name for engine in self.engines]),
            ("keys: name", [key.name for key in self.keys]),
        ):
            problems += [f"{what} {value!r} is there twice" for value in sorted({v for v in values if values.count(v) > 1})]
        if len({key.sha256.get_secret_value() for key in self.keys}) < len(self.keys):
            problems.append("keys: the same sha256 is there twice")
        if problems:
            raise ValueError("\n".join(problems))
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
