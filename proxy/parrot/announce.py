"""What is the scheduler told of a session's graph, before its calls come?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.events import NodesAdded, WorkflowDeclared, WorkflowEnded
from scheduler.workflow.spec import WorkflowSpec

if TYPE_CHECKING:
    from proxy.gateway import Gateway
    from proxy.parrot.sessions import Session
    from scheduler.workflow.spec import NodeSpec


def announce(gateway: Gateway, session: Session, nodes: tuple[NodeSpec, ...], *, first: bool) -> None:
    """These nodes of the workflow `session.workflow_id` will run; producers stand before their consumers.

    `first`: nothing has been said of the workflow before. A `criterion` is what a client asked for by name; of nodes
    without one the objective is deduced from the graph.
    """
    key, workflow_id = session.key_name, session.workflow_id
    if first:
        spec = WorkflowSpec(key, workflow_id, session.name, run_here=True)
        # Refused (there is no room): then the graph grows by the calls as they come.
        gateway.ask(WorkflowDeclared(workflow_id, spec), workflow_id)
    gateway.tell(NodesAdded(key, workflow_id, nodes))


def announce_end(gateway: Gateway, session: Session) -> None:
    """The session is over: nothing more of this workflow will come. Not called for one of which nothing was said."""
    gateway.tell(WorkflowEnded(session.key_name, session.workflow_id, "closed"))
