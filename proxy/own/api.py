"""All that the gateway answers itself on the data plane, opened and closed together."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from proxy.batches.door import register as register_batches
from proxy.parrot.door import register as register_parrot
from proxy.workflows.door import WorkflowDoor

if TYPE_CHECKING:
    from proxy.config import Config
    from proxy.gateway import Gateway


class OwnApi:
    """The doors of a gateway's own API."""

    def __init__(self, gateway: Gateway, config: Config) -> None:
        self._gateway = gateway
        self.workflows = WorkflowDoor(gateway.router, gateway, config.workflows)
        self.parrot = register_parrot(gateway.router, gateway, config.parrot)
        self.batches = register_batches(gateway.router, gateway, config.batches, config.state_dir)

    async def start(self) -> None:
        """Go on with what an earlier process left."""
        await self.batches.start()

    def configure(self, config: Config) -> None:
        """Other limits for sessions; the rest needs a restart."""
        self.parrot.configure(config.parrot)

    def tick(self) -> None:
        """Called every few seconds: close what is idle or has expired."""
        self.workflows.tick()
        self.parrot.tick(monotonic())
        self.batches.tick()

    async def drain(self) -> None:
        """The process is going down: what goes on after a restart stops now, and holds nobody up."""
        self.workflows.drain()
        await self.batches.close()

    async def close(self) -> None:
        """End what runs."""
        await self._gateway.router.close()
        self.workflows.close()
        self.parrot.close()
        await self.batches.close()
