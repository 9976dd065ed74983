"""What can be configured: names, defaults, limits, and what must fit together."""

from __future__ import annotations

import ipaddress
import os
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from proxy.ab.config import ExperimentsConfig
from proxy.batches.config import BatchesConfig
from proxy.caps_config import CapsConfig
from proxy.config_types import Count, Name, OptionalPath, Port, Seconds, Switch, Table
from proxy.energy.config import EnergyConfig
from proxy.parking_config import ParkingConfig, parking_problems
from proxy.parrot.config import ParrotConfig
from proxy.power_config import PowerConfig
from proxy.workflows.config import WorkflowsConfig
from scheduler.policies import POLICIES, option_problems, unknown_policy

if TYPE_CHECKING:
    from collections.abc import Iterator

Place = tuple[str | int, ...]


class Problems(ValueError):
    """Values that are wrong together: (place within the table, what is wrong and the way out) of each."""

    def __init__(self, found: list[tuple[Place, str]]) -> None:
        super().__init__("\n".join(f"{'.'.join(map(str, place))}: {what}" for place, what in found))
        self.found = found


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
    control_public: Switch = False
    """must be true for a control_host that is not loopback"""


class EngineConfig(Table):
    """One vLLM server."""

    url: str
    """its base URL without /v1, http or https; a path is kept as a prefix"""
    name: Name = ""
    """its name in logs and metrics; empty = host:port"""
    api_key: SecretStr | None = None
    """sent to it as Authorization: Bearer, instead of the client's"""
    api_key_env: str | None = None
    """the same, read from this environment variable"""
    max_connections: Count = 1024
    """connections at once; further calls wait in the gateway's queue"""
    max_in_flight: Count | None = None
    """calls at once, if fewer than max_connections"""
    gpus: tuple[Name, ...] = ()
    """its GPUs: GPU-…, index or bus id of a card here, or agent:NAME/CARD; empty = found out, where that is sure"""
    park: Switch = False
    """it may be put to sleep while there is nothing for it to do; see docs/parking.md"""
    park_idle_seconds: Seconds = 300.0
    """without calls, ours or anybody's, before it is parked"""
    wake_seconds: Seconds = 10.0
    """expected of waking it, until it was seen: so long ahead of forecast load it is woken"""
    energy_prior: str = ""
    """what is believed of it at first: a calibration by name or file, or CARD:CONFIG.json; empty = by its models"""

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        return base_url(value)

    @field_validator("api_key")
    @classmethod
    def _sendable(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not is_sendable(value.get_secret_value()):
            raise ValueError("must be visible ASCII characters, without blanks")
        return value

    @model_validator(mode="after")
    def _named(self) -> EngineConfig:
        if not self.name:
            parts = urlsplit(self.url)
            port = "" if parts.port else ":443" if parts.scheme == "https" else ":80"
            object.__setattr__(self, "name", parts.netloc + port)
        if self.api_key is not None and self.api_key_env is not None:
            raise Problems([(("api_key_env",), "stands beside api_key; remove one of them")])
        return self

    def key(self) -> str | None:
        """The engine's API key, if it has one."""
        if self.api_key is not None:
            return self.api_key.get_secret_value()
        return os.environ.get(self.api_key_env) if self.api_key_env else None


class PolicyConfig(Table):
    """The scheduling policy: its name, and beside it the policy's own options."""

    name: str = "passthrough"
    """which one"""
    options: dict[str, Any] = Field(default_factory=dict)
    """all other keys of the table"""

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
            raise ValueError(unknown_policy(value))
        return value

    @model_validator(mode="after")
    def _options(self) -> PolicyConfig:
        if problems := option_problems(self.name, self.options):
            raise Problems([((option,), message) for option, message in problems])
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
    json_values: Count = 262_144
    """brackets, colons and quarters of commas in a body, outside its strings; over it 413 `body_too_complex`"""
    buffered_bytes: Count = 536_870_912
    """of all request bodies held at once; over it 503 `buffers_full`"""
    client_connections: Count = 8_192
    """open at once; further ones are closed"""
    queue_calls: Count = 4_096
    """calls held at once; over it 503 `queue_full`"""
    pipelined_requests: Count = 16
    """waiting on one connection for the answer before theirs; over it 429 `pipeline_full`"""
    workflows: Count = 10_000
    """kept apart in the ledger; the one used longest ago is closed"""
    decisions: Count = 4_096
    """calls that are over whose decisions are remembered, for /admin/decisions"""
    response_roots: Count = 10_000
    """responses and sub-agents' sessions whose workflow is remembered; the one used longest ago is forgotten"""
    inner_answer_bytes: Count = 16_777_216
    """of an answer to a call of a workflow that runs here; over it the node fails (`answer_too_large`)"""
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
    """for a whole call, held or running, unless its own deadline is later; then 504 `total_timeout`"""
    request_seconds: Seconds = 30.0
    """for a request to arrive, and 1 s more for each 64 KiB of body; then 408"""
    keep_alive_seconds: Seconds = 75.0
    """an idle client connection is kept"""
    engine_keep_alive_seconds: Seconds = 4.0
    """an idle engine connection is kept; must stay below the engine's own time (vLLM: 5 s)"""
    drain_seconds: Seconds = 30.0
    """running calls may take after SIGTERM"""
    queue_seconds: Seconds = 600.0
    """a call may be held, unless its own deadline or its workflow's is later; then 503 `queue_timeout`"""


class HealthConfig(Table):
    """How engines are watched."""

    probe_seconds: Seconds = 1.0
    """between two probes of /health and /metrics"""
    probe_timeout_seconds: Seconds = 2.0
    """for a probe"""
    failures_to_open: Count = 3
    """faults of the connection in a row, probes or calls, after which an engine gets no calls"""
    open_seconds: Seconds = 2.0
    """before a good probe lets one call try again; doubles up to 30 s"""
    models_seconds: Seconds = 10.0
    """between two looks at /v1/models"""


class KeyConfig(Table):
    """One API key and what it may use; a limit that is not given does not hold."""

    name: Name = Field(min_length=1)
    """its name in logs and metrics; not `-`, which stands for no key"""
    sha256: SecretStr
    """SHA-256 of the key in hex; `joulegate hash-key` makes both"""
    max_concurrency: Count | None = None
    """calls at once; over it 429 `key_concurrency`"""
    requests_per_minute: Count | None = None
    """over it 429 `key_request_rate`"""
    tokens_per_minute: Count | None = None
    """prompt and output tokens, by the engine's count; over it 429 `key_token_rate`"""
    token_budget: Count | None = None
    """tokens in each period, as for the rate; over it 429 `key_token_budget`"""
    token_budget_seconds: Seconds = 86_400.0
    """length of the period"""
    energy_budget_joules: Annotated[float, Field(gt=0, le=1e15, strict=True)] | None = None
    """joules that its calls cause in each period, without idle power; over it 429 `key_joule_budget`"""
    energy_budget_seconds: Seconds = 86_400.0
    """length of that period"""
    weight: Annotated[float, Field(gt=0, le=1000, strict=True)] = 1.0
    """under `joule`, its share of an engine that calls of several keys wait for, to the shares of the others"""

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, value: str) -> str:
        if value == "-":
            raise ValueError("must not be -, which stands for no key")
        return value

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
    prompts: Switch = False
    """write request bodies into it"""
    buffer_bytes: Count = 4_194_304
    """waiting to be written; over it lines are dropped and counted"""


class TracingConfig(Table):
    """OpenTelemetry traces."""

    otlp_endpoint: str = ""
    """base URL of an OTLP/HTTP collector; empty = no traces"""
    service_name: str = "joulegate"
    """service.name of the spans"""
    sample_ratio: Annotated[float, Field(ge=0, le=1, strict=True)] = 1.0
    """of traces that begin here; a client's own decision is kept"""
    metrics_seconds: Annotated[float, Field(ge=0, le=3600, strict=True)] = 60.0
    """between two exports of `hw.energy` and `hw.power` to the same collector; 0 = none"""

    @field_validator("otlp_endpoint")
    @classmethod
    def _http(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must be like http://host:4318, or empty")
        return value


class EventLogConfig(Table):
    """What the scheduler was told and what it decided, for `joulegate replay`."""

    path: OptionalPath = None
    """file; empty = not written"""
    max_bytes: Count = 1_073_741_824
    """it stops there"""


class Config(Table):
    """The whole configuration."""

    engines: tuple[EngineConfig, ...] = Field(min_length=1)
    """the engines, at least one"""
    state_dir: OptionalPath = None
    """folder for token budgets and for batches with their files, kept over a restart; empty = not kept"""
    listen: ListenConfig = ListenConfig()
    policy: PolicyConfig = PolicyConfig()
    limits: LimitsConfig = LimitsConfig()
    timeouts: TimeoutsConfig = TimeoutsConfig()
    health: HealthConfig = HealthConfig()
    parking: ParkingConfig = ParkingConfig()
    keys: tuple[KeyConfig, ...] = ()
    power: PowerConfig = PowerConfig()
    caps: CapsConfig = CapsConfig()
    energy: EnergyConfig = EnergyConfig()
    workflows: WorkflowsConfig = WorkflowsConfig()
    parrot: ParrotConfig = ParrotConfig()
    batches: BatchesConfig = BatchesConfig()
    experiments: ExperimentsConfig = ExperimentsConfig()
    log: LogConfig = LogConfig()
    tracing: TracingConfig = TracingConfig()
    event_log: EventLogConfig = EventLogConfig()

    @model_validator(mode="after")
    def _together(self) -> Config:
        found = [*listen_problems(self.listen, bool(self.keys)), *_doubles(self), *_caps_problems(self)]
        found += parking_problems([engine.park for engine in self.engines], self.parking.awake_least)
        if found:
            raise Problems(found)
        return self


def listen_problems(listen: ListenConfig, has_keys: bool) -> Iterator[tuple[tuple[str, str], str]]:
    """Why the gateway must not listen there: (table and key, what is wrong and the way out) each."""
    if not has_keys and not is_loopback(listen.host):
        yield (
            ("listen", "host"),
            (
                f"{listen.host!r} is not loopback, and there are no [[keys]]: without keys the gateway listens on "
                "loopback only, since anyone who reaches the port could use your GPU; make a key with "
                '`joulegate hash-key`, or listen on "127.0.0.1"'
            ),
        )
    if not is_loopback(listen.control_host) and not listen.control_public:
        yield (
            ("listen", "control_host"),
            (
                f"{listen.control_host!r} is not loopback, and the control plane asks for no key: set "
                "listen.control_public = true if only those may reach the port who may see and change everything"
            ),
        )
    if listen.port and listen.port == listen.control_port:
        yield ("listen", "control_port"), f"must differ from listen.port, both are {listen.port}"


def _caps_problems(config: Config) -> Iterator[tuple[Place, str]]:
    if config.power.mode == "actuate":
        for name in config.caps.missing():
            yield (
                ("caps", name),
                'is needed with power.mode = "actuate", as no value is safe for every use: set it, or take "observe"',
            )


def _doubles(config: Config) -> Iterator[tuple[Place, str]]:
    columns: dict[tuple[str, str], list[str]] = {
        ("engines", "name"): [engine.name for engine in config.engines],
        ("keys", "name"): [key.name for key in config.keys],
        ("keys", "sha256"): [key.sha256.get_secret_value() for key in config.keys],
    }
    for (table, key), values in columns.items():
        first: dict[str, int] = {}
        for index, value in enumerate(values):
            if (before := first.setdefault(value, index)) != index:
                shown = "the same" if key == "sha256" else repr(value)
                yield (table, index, key), f"{shown} stands in {table}[{before}] already; each needs its own"


def base_url(value: str) -> str:
    """An engine's base URL, without a slash at its end. Raises ValueError."""
    if not (value.isascii() and value.isprintable()) or " " in value:
        raise ValueError("must be like http://host:8000, without blanks")
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be like http://host:8000")
    if parts.username is not None or parts.password is not None or "?" in value or "#" in value:
        raise ValueError("must have no user, query or fragment; a key goes into api_key")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError("must have a port from 1 to 65535")
    base = value.rstrip("/")
    if base.endswith("/v1"):
        raise ValueError(f"must be without /v1, which clients send: {base.removesuffix('/v1')}")
    return base


def is_sendable(key: str) -> bool:
    """Whether it may stand in a header as it is."""
    return bool(key) and key.isascii() and key.isprintable() and " " not in key


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
