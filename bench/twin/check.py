"""`joulegate-bench twin-check`: measured rows played again on the twin, measured beside predicted, errors by kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.twin import roofline
from backends.twin.calibration import Calibration, CalibrationError
from backends.twin.choose import DEFAULT, Choice, choose
from bench.programs import BenchError
from bench.twin import caps, mlenergy, rows
from bench.twin.figures import compare, summarise, table
from bench.twin.fit import fit, parameters_for
from bench.twin.row_models import check_rows
from bench.twin.save import as_toml

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from bench.twin.figures import Comparison


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `twin-check`."""
    parser.add_argument(
        "rows", type=Path, nargs="+", metavar="ROWS", help="a sweep's JSON, ML.ENERGY's CSV or one of caps"
    )
    which = parser.add_argument_group("which twin")
    which.add_argument("--calibration", metavar="NAME", help=f"a shipped calibration or a .toml (default: {DEFAULT})")
    which.add_argument("--card", help=f"a roofline prior instead: one of {', '.join(roofline.datasheets())}")
    which.add_argument("--model", type=Path, metavar="CONFIG.json", help="with --card: the model's Hugging Face config")
    which.add_argument("--gpus", type=int, default=1, help="cards that work as one engine, with --card (default: 1)")
    which.add_argument("--sync", action="store_true", help="with --card: vLLM without async scheduling")
    csv = parser.add_argument_group("rows of ML.ENERGY's CSV")
    csv.add_argument("--gpu", metavar="NAME", help="gpu_model, as H100")
    csv.add_argument("--model-id", metavar="ID", help="model_id, as meta-llama/Llama-3.1-8B-Instruct")
    csv.add_argument("--num-gpus", type=int, metavar="N", help="num_gpus (default: any)")
    csv.add_argument("--task", help="task, as lm-arena-chat (default: any)")
    parser.add_argument(
        "--fit", metavar="all|half|smallest:N", help="calibrate on these rows first, check on the rest (all: on all)"
    )
    parser.add_argument("--save", type=Path, metavar="FILE.toml", help="write the calibration that --fit found")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Compare and print. Returns 0; BenchError for what cannot be read or is unknown."""
    if args.save is not None and args.fit is None:
        raise BenchError("--save: writes what --fit found, and there is no --fit")
    try:
        comparisons, calibration = _compare(args)
        if args.save is not None:
            args.save.write_text(as_toml(calibration), encoding="utf-8")
    except (CalibrationError, ValueError, KeyError, OSError) as error:
        what = f"{error.args[0]} is missing in a row" if isinstance(error, KeyError) else str(error)
        raise BenchError(what) from None
    if args.json:
        print(json.dumps(_document(comparisons, calibration), indent=1))
    else:
        print(f"simulated by {calibration.name}: {calibration.source}\n")
        print(table(comparisons))
    return 0


def _document(comparisons: Sequence[Comparison], calibration: Calibration) -> dict[str, Any]:
    return {
        "calibration": calibration.name,
        "source": calibration.source,
        "rows": [{**each._asdict(), "error": each.error} for each in comparisons],
        "summary": [each._asdict() for each in summarise(comparisons)],
    }


def _compare(args: argparse.Namespace) -> tuple[list[Comparison], Calibration]:
    calibration = choose(Choice(args.calibration, args.card, args.model, args.gpus, async_scheduling=not args.sync))
    sets: list[tuple[str, list[dict[str, Any]]]] = []
    found: list[Comparison] = []
    for path in args.rows:
        kind = _kind_of(path)
        if kind == "caps":
            found += caps.compare_caps(caps.read_caps(path))
        elif kind == "mlenergy":
            if args.gpu is None or args.model_id is None:
                raise BenchError(f"{path} has many GPUs and models: --gpu and --model-id say which")
            sets.append((kind, mlenergy.read_rows(path, args.gpu, args.model_id, args.num_gpus, args.task)))
        else:
            sets.append((kind, _sweep_rows(path)))
    if args.fit is not None:
        calibration = _with_idle(calibration, args.rows)
        calibration, sets = _fitted(args.fit, calibration, sets)
    for kind, measured in sets:
        found += predict_set(kind, measured, calibration)
    if not found:
        raise BenchError("no rows to compare")
    return found, calibration


def _kind_of(path: Path) -> str:
    if path.suffix != ".csv":
        return "sweep"
    with path.open(encoding="utf-8") as file:
        return "caps" if "cap_w" in file.readline() else "mlenergy"


def _with_idle(start: Calibration, paths: Sequence[Path]) -> Calibration:
    """The idle power that the sweeps measured on their card: no fit is needed for that."""
    found = []
    for path in paths:
        if path.suffix != ".csv":
            data = json.loads(path.read_text(encoding="utf-8"))
            watts = data.get("static", {}).get("idle_loaded_w") if isinstance(data, dict) else None
            found += [float(watts)] if watts else []
    if not found:
        return start
    card = start.card.model_copy(update={"idle_watts": sum(found) / len(found)})
    return start.model_copy(update={"card": card})


def _sweep_rows(path: Path) -> list[dict[str, Any]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BenchError(f"{path} is not JSON: {error}") from None
    found = data.get("rows") if isinstance(data, dict) else data
    if not isinstance(found, list) or not all(isinstance(row, dict) and "kind" in row for row in found):
        raise BenchError(f'{path}: expected {{"rows": [{{"kind": …}}, …]}}')
    check_rows(found, str(path))
    return found


def predict_set(kind: str, measured: Sequence[dict[str, Any]], calibration: Calibration) -> list[Comparison]:
    """Every figure of these rows beside the twin's."""
    if kind == "mlenergy":
        return [each for row in measured for each in compare(kind, row, mlenergy.predict(row, calibration))]
    return [each for row, found in rows.predict(measured, calibration) for each in compare(row["kind"], row, found)]


def _fitted(
    how: str, start: Calibration, sets: list[tuple[str, list[dict[str, Any]]]]
) -> tuple[Calibration, list[tuple[str, list[dict[str, Any]]]]]:
    """A calibration fitted to some of the rows, and the rows that it is checked on."""
    learnt = [(kind, _part(how, kind, measured, learn=True)) for kind, measured in sets]
    rest = [(kind, _part(how, kind, measured, learn=False)) for kind, measured in sets]
    kinds = {kind if kind == "mlenergy" else row["kind"] for kind, measured in learnt for row in measured}
    shared = any(str(row.get("name", "")).startswith("shared") for _, measured in learnt for row in measured)
    found = fit(
        start,
        parameters_for(kinds, shared=shared),
        lambda calibration: [each for kind, part in learnt for each in predict_set(kind, part, calibration)],
    )
    return found, rest


def _part(how: str, kind: str, measured: list[dict[str, Any]], *, learn: bool) -> list[dict[str, Any]]:
    if how == "all":
        if not learn:
            return measured
        # What closed and open loops of distinct prompts do is left for the check.
        return [row for row in measured if kind == "mlenergy" or _teaches(row)]
    if how == "half":
        return [row for place, row in enumerate(measured) if (place % 2 == 0) is learn]
    word, _, number = how.partition(":")
    if word != "smallest" or not number.isdecimal() or kind != "mlenergy":
        raise BenchError(f"--fit: {how!r} is none of all, half, and for ML.ENERGY smallest:N")
    by_task: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(measured, key=lambda row: float(row["avg_batch_size"])):
        by_task.setdefault(row["task"], []).append(row)
    part = slice(0, int(number)) if learn else slice(int(number), None)
    return [row for each in by_task.values() for row in each[part]]


def _teaches(row: dict[str, Any]) -> bool:
    kind = row["kind"]
    if kind == "closed":
        return bool(row["conc"] == 1 or row["name"].startswith("shared"))
    return kind in ("decode", "prefill") or (kind == "open" and row["rate"] == 1)
