#!/usr/bin/env bash
# A whole workflow in one request: a plan, two parts written side by side, one review of both.
#
#     examples/workflow_curl.sh [URL] [MODEL]
#
# URL: of the gateway, else $GATEWAY_URL, else http://127.0.0.1:8080. MODEL: else the first that it serves.
# $GATEWAY_API_KEY: a key of the gateway's, if it has any.
set -euo pipefail

url=${1:-${GATEWAY_URL:-http://127.0.0.1:8080}}
ask() { curl --silent --show-error --fail-with-body -H "authorization: Bearer ${GATEWAY_API_KEY:-none}" "$@"; }

model=${2:-$(ask "$url/v1/models" | grep -o '"id": *"[^"]*"' | head -n 1 | cut -d '"' -f 4)}
id="essay-$(date +%s)-$$"
shorten() {
  local short='{id, status, usage, nodes: [.nodes[] | {id, state, output, error} | with_entries(select(.value))]}'
  if command -v jq >/dev/null; then jq "$short"; else cat; fi
}

# `{{plan}}` is the output of the node "plan", and an edge; `{{input.subject}}` comes with the submission.
ask "$url/v1/workflows" -H 'content-type: application/json' --data-binary @- <<JSON | shorten
{
  "id": "$id",
  "name": "essay",
  "inputs": {"subject": "a lighthouse at the end of winter"},
  "nodes": [
    {"id": "plan", "request": {"model": "$model", "max_tokens": 48, "messages": [
      {"role": "user", "content": "Plan a short essay about {{input.subject}} in two parts."}]}},
    {"id": "opening", "request": {"model": "$model", "max_tokens": 64, "messages": [
      {"role": "user", "content": "Write the first part of this plan.\n\n{{plan}}"}]}},
    {"id": "ending", "request": {"model": "$model", "max_tokens": 64, "messages": [
      {"role": "user", "content": "Write the second part of this plan.\n\n{{plan}}"}]}},
    {"id": "review", "retry": 1, "request": {"model": "$model", "max_tokens": 48, "messages": [
      {"role": "user", "content": "Review this essay in two sentences.\n\n{{opening}}\n\n{{ending}}"}]}}
  ]
}
JSON

printf '\n\nThe graph, for any page that draws mermaid (?format=dot for graphviz):\n\n'
ask "$url/v1/workflows/$id?format=mermaid"
