"""`/v1/energy` over real sockets: each key its own, the control plane all; and it outlives the process."""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path
from typing import Any

import pytest

from scheduler.energy.bill_accounts import Change, Name
from scheduler.energy.bill_engine import EngineChange
from tests.e2e.harness import Answer, EngineRequest, RunningGateway, engine, gateway, run
from tests.e2e.test_control import get

ALL = ("workflow", "key", "model", "engine", "component")
KEYS = [{"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest()} for name in ("alice", "bob")]


async def respond(request: EngineRequest) -> None:
    """A plain answer with usage."""
    await request.answer(b'{"usage":{"prompt_tokens":7,"completion_tokens":3}}')


def book(joulegate: RunningGateway, key: str, workflow: str, joules: int) -> None:
    """As a window of an engine does."""
    row = (joules * 1_000_000, 0, 0, 0, 5_000_000, 0, 0, 0, 0, 1_000_000)
    change = Change(Name("e", key, workflow, "m"), {"measured": row}, 1, 0.0)
    own = EngineChange("e", "measured", ((joules + 48) * 1_000_000, 40_000_000, 3_000_000, 0, 0, 0, 0, 0, 0, 0))
    joulegate.app.energy.store.add([change], [own])


async def energy(joulegate: RunningGateway, query: str = "", key: str | None = None) -> Answer:
    """Asked on the data plane."""
    headers = "" if key is None else f"authorization: Bearer {key}\r\n"
    return await joulegate.request(f"GET /v1/energy{query} HTTP/1.1\r\nhost: gateway\r\n{headers}\r\n".encode())


def test_a_key_sees_its_own_and_nothing_of_others() -> None:
    async def main() -> None:
        async with engine(respond) as vllm, gateway(vllm, keys=KEYS) as joulegate:
            book(joulegate, "alice", "secret", 20)
            for by in ALL:
                answer = await energy(joulegate, f"?by={by}", "bob")
                assert answer.status == 200
                assert answer.json["rows"] == []
                assert b"secret" not in answer.body and b"alice" not in answer.body
            (row,) = (await energy(joulegate, "?by=workflow", "alice")).json["rows"]
            assert (row["key"], row["workflow"], row["energy_joules"]) == ("alice", "secret", 20.0)
            assert row["energy_source"] == "measured"
            assert row["energy_interval_joules"] == [19.0, 21.0]
            (row,) = (await energy(joulegate, "?by=engine", "alice")).json["rows"]
            assert "engine_joules" not in row
            components = (await energy(joulegate, "?by=component", "alice")).json["rows"]
            assert not any(one["component"] in ("counter", "residual", "unused") for one in components)
            (await energy(joulegate, "?key=alice", "bob")).assert_error(400, "energy_query")
            (await energy(joulegate)).assert_error(401)
            (await energy(joulegate, "", "nobody")).assert_error(401)

    run(main)


def test_the_control_plane_sees_all_and_the_engines_own() -> None:
    async def main() -> None:
        async with engine(respond) as vllm, gateway(vllm, keys=KEYS) as joulegate:
            book(joulegate, "alice", "w", 20)
            book(joulegate, "bob", "w", 10)
            answer = await get(joulegate.control_port, "/admin/energy?by=key")
            assert {row["key"]: row["energy_joules"] for row in answer.json["rows"]} == {"alice": 20.0, "bob": 10.0}
            answer = await get(joulegate.control_port, "/admin/energy?by=key&key=bob")
            assert [row["key"] for row in answer.json["rows"]] == ["bob"]
            (row,) = (await get(joulegate.control_port, "/admin/energy?by=engine")).json["rows"]
            own = row["engine_joules"]
            assert own["counter"] == row["energy_full_joules"] + own["unused"] + own["residual"] + own["bypass"]
            answer = await get(joulegate.control_port, "/admin/energy?by=nothing")
            assert answer.status == 400
            assert answer.json["error"]["param"] == "by"

    run(main)


@pytest.mark.parametrize(
    ("query", "param"), [("?by=user", "by"), ("?limit=0", "limit"), ("?since=soon", "since"), ("?x=1", "x")]
)
def test_what_cannot_be_asked_is_an_error_that_names_it(query: str, param: str) -> None:
    async def main() -> None:
        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            error = (await energy(joulegate, query)).assert_error(400, "energy_query")
            assert error["param"] == param
            (await joulegate.post("/v1/energy", {})).assert_error(405)
            assert vllm.requests == []

    run(main)


def test_csv_is_for_spreadsheets() -> None:
    async def main() -> None:
        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            book(joulegate, "-", "one, two", 20)
            answer = await energy(joulegate, "?by=workflow&format=csv")
            assert answer.header("content-type") == "text/csv; charset=utf-8"
            (row,) = csv.DictReader(io.StringIO(answer.body.decode(), newline=""))
            assert (row["workflow"], row["energy_joules"]) == ("one, two", "20.0")

    run(main)


def test_grams_and_money_are_the_operators_word() -> None:
    async def main() -> None:
        table: dict[str, Any] = {"carbon_grams_per_kwh": 3.6e5, "price_per_kwh": 36.0, "price_currency": "SEK"}
        async with engine(respond) as vllm, gateway(vllm, energy=table) as joulegate:
            book(joulegate, "-", "w", 15)
            found = (await energy(joulegate)).json
            assert found["rows"][0]["carbon_grams"] == pytest.approx(2.0)  # 20 J of full cost
            assert found["rows"][0]["price"] == pytest.approx(2e-4)
            assert found["factors"]["source"] == "operator"
            assert found["factors"]["currency"] == "SEK"

    run(main)


def test_the_ledger_outlives_the_process(tmp_path: Path) -> None:
    async def main() -> None:
        async with engine(respond) as vllm:
            for times in (1, 2):
                async with gateway(vllm, state_dir=str(tmp_path)) as joulegate:
                    book(joulegate, "-", "w", 15)
                    found = (await energy(joulegate, "?by=workflow")).json
                    assert found["rows"][0]["energy_joules"] == 15.0 * times
                    assert found["gaps"] == []
        assert (tmp_path / "energy.db").stat().st_size

    run(main)


def test_a_broken_ledger_does_not_keep_the_gateway_from_starting(tmp_path: Path) -> None:
    (tmp_path / "energy.db").write_bytes(b"rubbish" * 1000)
    log = tmp_path / "log"

    async def main() -> None:
        async with engine(respond) as vllm, gateway(vllm, state_dir=str(tmp_path), log=str(log)) as joulegate:
            book(joulegate, "-", "w", 15)
            found = (await energy(joulegate)).json
            assert [gap["reason"] for gap in found["gaps"]] == ["broken_file"]
            assert (await joulegate.post("/v1/chat/completions", {"model": "m", "messages": []})).status == 200

    run(main)
    assert list(tmp_path.glob("energy.db.broken-*"))
    assert "energy_store_broken" in log.read_text()


def test_a_closed_ledger_is_an_error_and_no_hang() -> None:
    async def main() -> None:
        import asyncio

        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            await asyncio.to_thread(joulegate.app.energy.store.close)
            (await energy(joulegate)).assert_error(503, "energy_ledger_closed")

    run(main)
