"""Which engine paths the gateway knows, and what it knows of each."""

from __future__ import annotations

from typing import NamedTuple


class Route(NamedTuple):
    """`label`: its name in metrics. `json_body`: POST bodies must be a JSON object. `usage_option`: a stream reports
    its usage only if asked by `stream_options.include_usage`."""

    label: str
    json_body: bool = True
    usage_option: bool = False


OTHER = Route("other", json_body=False)
"""Any other engine path: passed through under the same keys, limits and accounting; its body is not looked into
unless it says that it is JSON."""

PREFLIGHT = Route("OPTIONS", json_body=False)
"""OPTIONS, of whatever path: a browser's question before its request."""
MODELS = Route("/v1/models")
"""The list of the models, and what is known of one of them."""

ROUTES: dict[bytes, Route] = {
    b"/v1/chat/completions": Route("/v1/chat/completions", usage_option=True),
    b"/v1/completions": Route("/v1/completions", usage_option=True),
    b"/v1/responses": Route("/v1/responses"),
    b"/v1/embeddings": Route("/v1/embeddings"),
    b"/v1/messages": Route("/v1/messages"),
    b"/v1/messages/count_tokens": Route("/v1/messages/count_tokens"),
    b"/v1/models": MODELS,
    b"/tokenize": Route("/tokenize"),
    b"/detokenize": Route("/detokenize"),
    b"/rerank": Route("/v1/rerank"),
    b"/v1/rerank": Route("/v1/rerank"),
    b"/v2/rerank": Route("/v1/rerank"),
    b"/score": Route("/v1/score"),
    b"/v1/score": Route("/v1/score"),
}
OWN_LABELS = {f"/v1/{name}".encode(): f"/v1/{name}" for name in ("workflows", "batches", "files", "energy")}
PARROT = "parrot"
LABELS = (
    *dict.fromkeys(route.label for route in ROUTES.values()),
    PREFLIGHT.label,
    OTHER.label,
    *OWN_LABELS.values(),
    PARROT,
)


def own_label(path: bytes) -> str:
    """The label of a path that the gateway answers itself."""
    return OWN_LABELS.get(b"/".join(path.split(b"/")[:3]), PARROT)


def split_workflow(target: bytes) -> tuple[str | None, bytes]:
    """`/w/{workflow-id}/v1/…` → the id and `/v1/…`; any other target comes back as it is."""
    if not target.startswith(b"/w/"):
        return None, target
    workflow_id, slash, rest = target[3:].partition(b"/")
    if not slash or not workflow_id:
        return None, target
    return workflow_id.decode("ascii", "replace"), b"/" + rest
