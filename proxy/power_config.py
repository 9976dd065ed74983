"""What can be configured of power: which devices are read, and whether and how limits are set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from backends.power.opening import AgentAt, Where
from proxy.config_types import Name, OptionalPath, Switch, Table

SampleSeconds = Annotated[float, Field(ge=0.1, le=1.0, strict=True)]


class PowerAgentConfig(Table):
    """A `joulegate agent` on a GPU's host."""

    name: Name = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    """by which engines[].gpus name its cards: agent:NAME/CARD"""
    url: str
    """its base URL, http or https"""
    token_file: Path
    """the token it was started with; nobody else may be able to read the file"""

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise ValueError("must be like http://host:8082; the token goes into token_file")
        return value.rstrip("/")


class PowerConfig(Table):
    """GPUs' power: what is read of it, and whether limits are set."""

    mode: Literal["observe", "actuate"] = "observe"
    """`observe` reads and touches nothing; `actuate` sets limits of the GPUs that engines name, and restores them"""
    sample_seconds: SampleSeconds = 0.1
    """between two readings of a device, 0.1 to 1"""
    watchdog: Switch = True
    """a process that restores limits when this one is killed; without it they are restored at the next start"""
    lease_dir: OptionalPath = None
    """folder in which it stands what was found before the first change, the same for all gateways of a host; empty =
    /run/joulegate/power for root, else in $XDG_RUNTIME_DIR"""
    redis_url: SecretStr | None = None
    """where gateways of several hosts agree who sets a limit, as redis://host:6379/0; needs joulegate[redis]"""
    zeusd: str = ""
    """socket or URL of a zeusd that sets limits for us, as unix:/var/run/zeusd.sock; empty = the driver itself"""
    zeusd_token_file: OptionalPath = None
    """its token, if it asks for one"""
    rapl: Switch = True
    """read processors and their memory too, where this host tells"""
    rapl_root: Path = Path("/sys/class/powercap")
    """folder of their counters"""
    agents: tuple[PowerAgentConfig, ...] = Field(default=(), max_length=256)
    """agents on other hosts"""

    @field_validator("zeusd")
    @classmethod
    def _address(cls, value: str) -> str:
        if value and not value.startswith(("/", "unix:/", "http://", "https://")):
            raise ValueError("must be like unix:/var/run/zeusd.sock or http://host:4938, or empty")
        return value

    @model_validator(mode="after")
    def _fits(self) -> PowerConfig:
        names = [agent.name for agent in self.agents]
        if len(set(names)) != len(names):
            raise ValueError("two agents have the same name; each needs its own")
        return self

    def where(self, holder: str = "") -> Where:
        """What the names of GPUs mean. `holder` is how agents know this process (`actuator.new_holder`)."""
        agents = {agent.name: AgentAt(agent.url, agent.token_file) for agent in self.agents}
        return Where(agents, self.zeusd, self.zeusd_token_file, holder)
