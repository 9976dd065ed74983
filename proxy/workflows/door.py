"""`/v1/workflows`: submit one, read it, draw it, give a tool's result, end it."""

from __future__ import annotations

import asyncio
import os
import re
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from proxy.deadlines import impossible_header
from proxy.errors import RequestFault
from proxy.workflows.bulk import Bulk
from proxy.workflows.describing import whole
from proxy.workflows.mind import Mind
from proxy.workflows.nodes import Bounds
from proxy.workflows.run import WorkflowRun
from proxy.workflows.runner import Runner
from proxy.workflows.stream import RunStream
from proxy.workflows.submission import Submission, parse
from proxy.workflows.table import RunTable
from proxy.workflows.views import node_view, summary

if TYPE_CHECKING:
    from proxy.gateway import Gateway
    from proxy.own.request import OwnRequest
    from proxy.own.router import Router
    from proxy.workflows.config import WorkflowsConfig
    from proxy.workflows.run import NodeRun

IDEMPOTENCY_KEY_MAX = 256
LARGE_BODY_BYTES = 262_144
"""A larger submission is read beside the event loop."""
LISTED = (20, 100)
"""Workflows in a list: by default, at most."""
_NUMBER = re.compile(r"[0-9]{1,4}")
_FORMATS = {"dot": b"text/vnd.graphviz; charset=utf-8", "mermaid": b"text/plain; charset=utf-8", "json": b""}


class WorkflowDoor:
    """The handlers, and the runs that they start."""

    def __init__(self, router: Router, gateway: Gateway, config: WorkflowsConfig) -> None:
        self.table = RunTable(config)
        self.mind = Mind(gateway)
        self.runner = Runner(gateway, config, self._over)
        self._gateway = gateway
        router.add("POST", "/v1/workflows", self._submit)
        router.add("GET", "/v1/workflows", self._list)
        router.add("GET", "/v1/workflows/{id}", self._get)
        router.add("DELETE", "/v1/workflows/{id}", self._delete)
        router.add("POST", "/v1/workflows/{id}/nodes/{node}", self._tool)

    def configure(self, config: WorkflowsConfig) -> None:
        """Other limits."""
        self.table.config = self.runner.config = config

    def tick(self) -> None:
        """Called every few seconds: forget what is old, end what waits for a client that does not come."""
        now = monotonic()
        self.table.forget_old(now)
        idle = self.table.config.idle_seconds
        for run in self.table.running:
            if self.mind.idle_seconds(run, now) > idle and run.waits_for_client:
                self.runner.cancel(run)

    def drain(self) -> None:
        """No further call is taken, nor a tool's result: runs of which nothing is under way end, and their clients are
        told. The others end with the calls that are."""
        for run in self.table.running:
            if not run.calls:
                self.runner.cancel(run)

    def close(self) -> None:
        """End what runs."""
        for run in self.table.running:
            self.runner.cancel(run)
        self.runner.close()

    # --- handlers ---

    async def _submit(self, request: OwnRequest) -> None:
        if self._gateway.server.draining:
            raise RequestFault(503, "draining", "the gateway is shutting down; try another instance")
        bulk = Bulk()
        try:
            found = await self._begin(request, bulk)
            if found is not None and found[0].submission.background:
                run = found[0]
                request.answer_json(self._short(run.key_name, run.id), 202, self._headers(run.key_name, run.id))
                return
        finally:
            bulk.end()
        if found is not None:
            run, keep = found
            request.let_go_of_body()  # and with `_begin` all that was made of it, but for what the run still needs
            await self._follow(request, run, keep=keep)

    async def _begin(self, request: OwnRequest, bulk: Bulk) -> tuple[WorkflowRun, bool] | None:
        """The run of this submission, new or the one that it began before, and whether it goes on without its client.
        None: it is only declared, and has been answered."""
        key_name, body = request.key_name, request.body
        token = request.header(b"idempotency-key")
        if token is not None and not 0 < len(token) <= IDEMPOTENCY_KEY_MAX:
            message = f"must be 1 to {IDEMPOTENCY_KEY_MAX} characters"
            raise RequestFault(400, "idempotency_key", f"Idempotency-Key {message}", param="idempotency-key")
        if token is not None:
            self.table.same_submission(key_name, token, body)  # another body is refused before it is read
        submission = await self._read(request, bulk)
        if token is not None and (before := self.table.same_submission(key_name, token, body)) is not None:
            if not submission.declared and (run := self.table.get(key_name, before)) is not None:
                return run, True
            if submission.declared and self.mind.knows(key_name, before):
                request.answer_json(self._short(key_name, before), 201, self._headers(key_name, before))
                return None
        run_id = submission.id or f"wf-{os.urandom(12).hex()}"
        if submission.declared:
            self.table.check_id(key_name, run_id)
            self.mind.declare(request.call.id, key_name, run_id, submission)
            self.table.remember(key_name, token, run_id, body)
            request.answer_json(self._short(key_name, run_id), 201, self._headers(key_name, run_id))
            return None
        self.table.check_room(key_name, run_id)
        self.mind.declare(request.call.id, key_name, run_id, submission)
        run = WorkflowRun(run_id, key_name, submission, monotonic(), self.table.held)
        if (trace := request.header(b"traceparent")) is not None:
            run.trace_fields = {b"traceparent": trace.encode("latin-1")}
        run.listeners.append(lambda event, node: self._changed(run, event, node))
        self.table.add(run)
        self.table.remember(key_name, token, run_id, body)
        self.runner.begin(run)
        return run, token is not None or submission.background

    async def _read(self, request: OwnRequest, bulk: Bulk) -> Submission:
        config = self.table.config
        bounds = Bounds(config.nodes, self._gateway.server.limits.body_bytes, config.held_bytes)

        def read() -> Submission:
            body = request.json()
            submission = parse(body, bounds)
            bulk.kept = body, submission
            return submission

        def read_beside() -> Submission:
            bulk.begin()
            return read()

        return await asyncio.to_thread(read_beside) if len(request.body) > LARGE_BODY_BYTES else read()

    async def _follow(self, request: OwnRequest, run: WorkflowRun, *, keep: bool) -> None:
        """Answer with what becomes of it. Unless `keep`, it ends when its client leaves."""
        try:
            if run.submission.stream:
                await RunStream(request, run, impossible_header(self.mind.get(run.key_name, run.id))).play()
            else:
                await _ended(run)
                workflow, bill = self.mind.get(run.key_name, run.id), self._gateway.scheduler.energy.bill
                request.answer_json(await whole(workflow, run, bill), headers=self._headers(run.key_name, run.id))
        except asyncio.CancelledError:
            if not keep:
                self.runner.cancel(run)
            raise

    def _headers(self, key_name: str, run_id: str) -> list[tuple[bytes, bytes]]:
        """Where the workflow is to be asked for, and whether its deadline can be kept."""
        path = f"/v1/workflows/{quote(run_id, safe='')}"
        told = [(b"x-workflow-id", run_id.encode("ascii")), (b"location", path.encode("ascii"))]
        return [*told, *impossible_header(self.mind.get(key_name, run_id))]

    async def _list(self, request: OwnRequest) -> None:
        query = request.query()
        default, most = LISTED
        limit = query.get("limit", str(default))
        if not _NUMBER.fullmatch(limit) or not 1 <= int(limit) <= most:
            raise RequestFault(400, "invalid_limit", f"limit must be 1 to {most}", param="limit")
        found = self.mind.listed(request.key_name, int(limit))
        for item in found:  # the graph does not know what waits for its turn here
            if (run := self.table.get(request.key_name, item["id"])) is not None:
                item["status"] = run.status
        request.answer_json({"object": "list", "data": found})

    async def _get(self, request: OwnRequest) -> None:
        form = request.query().get("format", "json")
        if form not in _FORMATS:
            raise RequestFault(400, "invalid_format", f"format must be one of {', '.join(_FORMATS)}", param="format")
        run_id = request.params["id"]
        if form == "json":
            request.answer_json(await self._whole(request.key_name, run_id))
        else:
            drawn = self.mind.drawn(request.key_name, run_id, form)
            if drawn is None:
                raise _unknown(run_id)
            request.answer(drawn.encode(), content_type=_FORMATS[form])

    async def _delete(self, request: OwnRequest) -> None:
        key_name, run_id = request.key_name, request.params["id"]
        run = self.table.get(key_name, run_id)
        if run is None and not self.mind.knows(key_name, run_id):
            raise _unknown(run_id)
        if run is not None:
            self.runner.cancel(run)
        self._gateway.cancel_workflow(key_name, run_id)
        self.mind.ended(key_name, run_id, "cancelled")
        request.answer_json(await self._whole(key_name, run_id))

    async def _tool(self, request: OwnRequest) -> None:
        run = self.table.get(request.key_name, request.params["id"])
        if run is None:
            raise _unknown(request.params["id"])
        body = request.json()
        output, error = body.get("output"), body.get("error")
        if (isinstance(output, str) == isinstance(error, str)) or not body.keys() <= {"output", "error"}:
            message = 'the body must be {"output": "text"}, or {"error": "what went wrong"}'
            raise RequestFault(400, "invalid_tool_result", message, param="output")
        self.runner.begin_now(run)
        run.tool_done(request.params["node"], output, error, monotonic())
        self.runner.go_on(run)
        request.answer_json(node_view(run, run.nodes[request.params["node"]]))

    # --- inside ---

    def _changed(self, run: WorkflowRun, event: str, node: NodeRun | None) -> None:
        """What the scheduler cannot see in the calls: tools, and nodes that were never a call."""
        if node is not None and event != "node.delta":
            self.mind.changed(run, event, node)

    def _over(self, run: WorkflowRun) -> None:
        self.mind.ended(run.key_name, run.id, run.status)
        self.table.ended(run)

    async def _whole(self, key_name: str, run_id: str) -> dict[str, Any]:
        """All that is known of a workflow, however it came."""
        workflow, run = self.mind.get(key_name, run_id), self.table.get(key_name, run_id)
        if run is None and workflow is None:
            raise _unknown(run_id)
        if run is not None:
            self.runner.begin_now(run)
        return await whole(workflow, run, self._gateway.scheduler.energy.bill)

    def _short(self, key_name: str, run_id: str) -> dict[str, Any]:
        """A workflow as it stands in a list, and what its run says of it."""
        shown = self.mind.in_short(key_name, run_id) or {}
        if (run := self.table.get(key_name, run_id)) is not None:
            shown |= summary(run)
        return shown


async def _ended(run: WorkflowRun) -> None:
    over = asyncio.Event()

    def listen(event: str, node: NodeRun | None) -> None:
        if node is None:
            over.set()

    run.listeners.append(listen)
    try:
        if not run.over:
            await over.wait()
    finally:
        run.listeners.remove(listen)


def _unknown(run_id: str) -> RequestFault:
    return RequestFault(404, "unknown_workflow", f"there is no workflow {run_id[:256]!r}")
