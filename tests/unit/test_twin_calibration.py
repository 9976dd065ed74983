"""Calibrations, datasheets and model configs: what is refused, and with which words."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from backends.twin import calibration, roofline
from backends.twin.calibration import CalibrationError, checked, load, names
from backends.twin.cost import Batch, CostModel, felt_share, throttled
from backends.twin.model_config import model_shape, read_model
from bench.twin.save import as_toml

H200 = load("h200-llama-3.1-8b")
MODELS = Path(__file__).resolve().parents[2] / "bench/twin/models"
CONFIG: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
    "max_position_embeddings": 8192,
}


@pytest.mark.parametrize("name", names())
def test_every_shipped_calibration_loads_and_names_its_source(name: str) -> None:
    found = load(name)
    assert found.name == name
    assert len(found.source) > 40


def test_the_names_that_the_documentation_promises() -> None:
    assert {"h200-llama-3.1-8b", "h100-llama-3.1-8b", "h100-qwen3-14b", "h100-qwen3-32b-tp2"} <= set(names())
    assert any(name.startswith("b200-") for name in names())


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        (("time", "step"), 0, "time.step"),
        (("time", "step"), -1.0, "time.step"),
        (("time", "decode_token"), "fast", "time.decode_token"),
        (("energy", "context_token"), float("nan"), "energy.context_token"),
        (("card", "idle_watts"), 900.0, "idle_watts"),
        (("card", "limit_watts_min"), 701.0, "limit_watts_min"),
        (("engine", "max_num_seqs"), 10_000, "max_num_batched_tokens"),
        (("engine", "kv_cache_tokens"), 1000, "kv_cache_tokens is not a multiple"),
        (("cap", "draw"), 1.5, "cap.draw"),
        (("time", "expert_step"), 0.001, "experts"),
        (("time", "typo"), 1.0, "time.typo"),
    ],
)
def test_an_impossible_value_is_refused_by_name(path: tuple[str, str], value: Any, word: str) -> None:
    data = copy.deepcopy(H200.model_dump())
    data[path[0]][path[1]] = value
    with pytest.raises(CalibrationError, match=word.replace(".", r"\.")):
        checked(data, "here.toml")


def test_more_active_experts_than_there_are_is_refused() -> None:
    data = H200.model_dump() | {"experts": {"total": 4, "active": 8}}
    with pytest.raises(CalibrationError, match=r"experts: .*active \(8\) is over total"):
        checked(data, "here.toml")


def test_a_missing_value_is_named() -> None:
    data = H200.model_dump()
    del data["time"]["prefill_token"]
    with pytest.raises(CalibrationError, match=r"here\.toml: time\.prefill_token"):
        checked(data, "here.toml")


def test_an_unknown_name_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="h200-llama"):
        load("h300")
    with pytest.raises(CalibrationError, match="cannot be read"):
        load(str(tmp_path / "none.toml"))
    (tmp_path / "bad.toml").write_text("= 1")
    with pytest.raises(CalibrationError, match="not TOML"):
        load(str(tmp_path / "bad.toml"))


def test_a_saved_calibration_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(as_toml(H200.model_copy(update={"source": 'a "quoted" source'})))
    found = load(str(path))
    assert found.source == 'a "quoted" source'
    assert found.time.step == pytest.approx(H200.time.step, rel=1e-4)
    assert found.engine == H200.engine


# --- step cost ---


def test_a_step_is_the_sum_of_its_terms() -> None:
    time, energy = H200.time, H200.energy
    cost = CostModel(H200).step(Batch(6, 1000, 200, 0, 0), 10_000.0)
    again = 0.5 * time.context_token + 0.5 * time.repeated_token  # three of six read at memory's price
    seconds = time.step + 6 * time.decode_token + 1000 * time.context_token + 200 * again
    joules = energy.step + 6 * energy.decode_token + 1000 * energy.context_token + 200 * energy.repeated_token
    assert cost.seconds == pytest.approx(seconds)
    assert cost.watts == pytest.approx(H200.card.idle_watts + joules / seconds)
    assert cost.sm_clock_mhz == H200.card.sm_clock_max_mhz


def test_a_limit_that_binds_costs_time_and_saves_power() -> None:
    model = CostModel(H200)
    batch = Batch(256, 256 * 500)
    free, capped = model.step(batch, 10_000.0), model.step(batch, 400.0)
    assert capped.watts == pytest.approx(0.99 * 400, rel=0.01)
    assert capped.seconds > free.seconds
    assert capped.seconds * capped.watts < free.seconds * free.watts
    assert capped.sm_clock_mhz < free.sm_clock_mhz


def test_a_limit_that_does_not_bind_changes_nothing() -> None:
    assert throttled(H200.cap, 0.8, 300.0, 400.0) == (1.0, 300.0)


def test_few_readers_of_a_shared_prefix_save_energy_and_no_time() -> None:
    model = CostModel(H200)
    alone, shared = model.step(Batch(2, 12_000), 1e9), model.step(Batch(2, 6000, 6000), 1e9)
    assert shared.seconds == pytest.approx(alone.seconds)
    assert shared.watts < alone.watts
    many = model.step(Batch(64, 6000, 63 * 6000), 1e9)
    assert many.seconds < 0.8 * model.step(Batch(64, 64 * 6000), 1e9).seconds


@pytest.mark.parametrize("average_watts", [119.0, 490.0, 720.0, 800.0, 1000.0])
@pytest.mark.parametrize("seconds", [0.005, 0.03, 0.2, 3.0])
def test_a_limit_is_felt_as_the_average_of_the_demand_rises_over_it(average_watts: float, seconds: float) -> None:
    cap, demand, limit, parts = H200.cap, 900.0, 700.0, 20_000
    held = cap.draw * limit
    average, total = average_watts, 0.0
    for _ in range(parts):
        average += (demand - average) * seconds / parts / cap.average_seconds
        total += max(0.0, average - held) / (demand - held) / parts
    found = felt_share(cap, demand, limit, average_watts, seconds)
    assert found == pytest.approx(min(1.0, total), abs=2e-3)


def test_a_short_step_after_idleness_does_not_feel_the_limit() -> None:
    model, prefill = CostModel(H200), Batch(prefill=1024)
    free, at_once = model.step(prefill, 1e9), model.step(prefill, 700.0)
    rested = model.step(prefill, 700.0, average_watts=H200.card.idle_watts)
    assert rested == free
    assert at_once.seconds > 1.1 * free.seconds
    assert model.step(prefill, 700.0, average_watts=free.demand_watts) == pytest.approx(at_once)
    halfway = model.step(prefill, 700.0, average_watts=780.0)
    assert free.seconds < halfway.seconds < at_once.seconds
    assert at_once.watts < halfway.watts < free.watts


def test_memory_bound_work_loses_power_before_time() -> None:
    slowdown, watts = throttled(H200.cap, 0.8, 720.0, 700.0)
    assert slowdown == 1.0
    assert watts < 720.0


# --- roofline ---


def test_an_8b_model_on_an_h200_is_near_what_was_measured() -> None:
    prior = roofline.prior("h200", read_model(MODELS / "llama-3.1-8b-instruct.json"))
    for table in ("time", "energy"):
        for name in ("step", "decode_token", "context_token", "prefill_token", "attention_pair"):
            guessed, measured = getattr(getattr(prior, table), name), getattr(getattr(H200, table), name)
            assert guessed == pytest.approx(measured, rel=0.35), (table, name)
    assert prior.uncertainty.time > H200.uncertainty.time


def test_twice_the_cards_are_faster_but_not_twice() -> None:
    shape = read_model(MODELS / "qwen3-32b.json")
    one, two = roofline.prior("h200", shape), roofline.prior("h200", shape, 2)
    assert 0.5 < two.time.step / one.time.step < 0.8
    assert two.card.idle_watts == 2 * one.card.idle_watts


def test_a_mixture_reads_more_experts_as_the_batch_grows() -> None:
    prior = roofline.prior("h100", read_model(MODELS / "qwen3-30b-a3b.json"))
    model = CostModel(prior)
    alone, many = model.step(Batch(1, 0), 1e9).seconds, model.step(Batch(64, 0), 1e9).seconds
    assert many > 2 * alone
    fixed = prior.time.step
    assert alone == pytest.approx(fixed + prior.time.decode_token + prior.time.expert_step * 8 / 128, rel=1e-6)


@pytest.mark.parametrize("name", sorted(roofline.datasheets()))
def test_every_card_has_a_prior(name: str) -> None:
    prior = roofline.prior(name, read_model(MODELS / "qwen3-8b.json"))
    assert prior.time.step > 0
    assert "nothing measured" in prior.source


def test_what_cannot_be_is_refused() -> None:
    shape = read_model(MODELS / "llama-3.1-70b-instruct.json")
    with pytest.raises(CalibrationError, match="card: 'h300'"):
        roofline.prior("h300", shape)
    with pytest.raises(CalibrationError, match="do not fit"):
        roofline.prior("l40s", shape)
    with pytest.raises(CalibrationError, match="gpus"):
        roofline.prior("h100", shape, 0)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"torch_dtype": "int4"}, "dtype"),
        ({"quantization_config": {"quant_method": "magic"}}, "quant_method"),
        ({"num_experts": 8, "num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"num_experts": 8}, "num_experts_per_tok is missing"),
    ],
)
def test_a_config_without_what_is_needed_is_refused(change: dict[str, Any], word: str) -> None:
    config = {name: value for name, value in {**CONFIG, **change}.items() if value is not None}
    with pytest.raises(CalibrationError, match=word):
        model_shape(config)


def test_a_config_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for text in ("[]", "{", ""):
        path.write_text(text)
        with pytest.raises(CalibrationError, match="JSON"):
            read_model(path)


def test_known_sizes() -> None:
    shape = model_shape(CONFIG)
    assert shape.dense_parameters == pytest.approx(7.5e9, rel=0.01)  # 8.03 B less the input embedding
    assert shape.kv_bytes_per_token == 131_072
    moe = read_model(MODELS / "qwen3-30b-a3b.json")
    assert moe.dense_parameters + moe.expert_parameters == pytest.approx(30.5e9, rel=0.03)
    assert moe.active_parameters == pytest.approx(3.3e9, rel=0.12)


def test_a_multimodal_config_is_read_by_its_text_part() -> None:
    nested = {"model_type": "vision", "text_config": CONFIG}
    assert model_shape(nested).dense_parameters == model_shape(CONFIG).dense_parameters


def test_fp8_weights_are_half_as_many_bytes() -> None:
    quantized = model_shape({**CONFIG, "quantization_config": {"quant_method": "fp8"}})
    assert quantized.weight_bytes == 1.0
    assert quantized.kv_bytes_per_token == 131_072


def test_the_folder_of_calibrations_holds_nothing_else() -> None:
    assert {path.suffix for path in calibration.FOLDER.iterdir()} == {".toml"}
