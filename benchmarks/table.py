"""The tables of README and of benchmarks/README.md, from the result files and nothing else.

    python benchmarks/table.py             prints them
    python benchmarks/table.py --write     puts them between the documents' markers
    python benchmarks/table.py --check     fails where a document says something else

README has one table, of what GPUs gave; benchmarks/README.md has every result.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from engine_tables import example_pair, fit, growth, heavy, memory, model, published, ratios, roofline
from table_words import SHOWN, compilation, is_on_gpu, machine_line, millions, number, shown_pair, spread

HERE = Path(__file__).parent


BEGIN = "<!-- benchmarks: written by benchmarks/table.py -->"


END = "<!-- benchmarks: end -->"


FOLDERS = (HERE / "results", HERE / "predictions")


def load(*folders: Path) -> list[dict[str, Any]]:
    """All results, with the name of their file as `file`."""
    paths = [path for folder in folders or FOLDERS for path in sorted(folder.glob("*.json"))]
    return [json.loads(path.read_text()) | {"file": path.name} for path in paths]


def kernel(result: dict[str, Any]) -> list[str]:
    lines = [
        f"**The mix kernel.** {machine_line(result)}",
        "",
        "| rows | vocabulary | noise, nats | us | GB/s | of a copy's time |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for line in result["lines"]:
        cells = (
            line["rows"],
            line["vocab"],
            line["noise"],
            f"{line['microseconds']['kernel']['median']:.1f}",
            f"{line['gigabytes_per_second']['kernel']:.0f}",
            f"{line['times_floor']:.2f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return [*lines, "", *calls(result)]


def calls(result: dict[str, Any]) -> list[str]:
    """One sentence on what else was timed as single calls."""
    found = result.get("calls")
    if not found:
        return []
    said = ", ".join(f"{name} {number(value)}" for name, value in found["microseconds"].items())
    return [
        f"Single calls from Python at {found['rows']} rows of {found['vocab']:,}, us, launches included: {said}.",
        "",
    ]


def host_time(result: dict[str, Any]) -> list[str]:
    """What a call of the mix costs the host, with what is counted."""
    lines = [
        f"**The host's time of a call of the mix.** {machine_line(result)}. Counted: {result['counted']}; not counted: "
        f"{result['not_counted']}. {result['clock']}.",
        "",
        "| rows | launches | us | as Triton launches, us |",
        "| --- | --- | --- | --- |",
    ]
    for line in result["lines"]:
        times = (spread(line["microseconds"][name]) for name in ("prepared", "as_triton_launches"))
        lines.append(f"| {line['rows']} | {line['launches']} | {' | '.join(times)} |")
    return [*lines, ""]


def speed(result: dict[str, Any]) -> list[str]:
    """Steps and tokens per second by batch and number of drafts; the teacher's line is that of the same compilation."""
    engines = result["engines"]
    plain = [line for line in result["lines"] if "kind" not in line]
    alone: dict[tuple[str, int], list[float]] = {}
    for line in plain:
        if engines[line["engine"]]["method"] == "teacher":
            alone.setdefault((engines[line["engine"]]["compilation"], line["batch"]), []).append(
                line["tokens_per_second"]
            )
    lines = [
        f"**Batch sizes and numbers of drafts, {shown_pair(result)}.** {machine_line(result)}",
        "",
        "| engine | compilation | requests | acceptance (set) | tokens/s | ms a step | of the teacher alone |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for line in plain:
        engine = engines[line["engine"]]
        against = alone.get((engine["compilation"], line["batch"]))
        is_teacher = engine["method"] == "teacher"
        cells = [
            line["engine"],
            engine["compilation"],
            str(line["batch"]),
            "" if line["set_acceptance"] is None else f"{line['set_acceptance']:g}",
            number(line["tokens_per_second"]),
            f"{line['seconds_per_step'] * 1e3:.2f}",
            f"{line['tokens_per_second'] / statistics.median(against):.2f}" if against and not is_teacher else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *profiles(result), *memory({"starts": engines})]


def profiles(result: dict[str, Any]) -> list[str]:
    """Where the device's time goes, the largest kernels first."""
    lines = []
    for one in result["profiles"]:
        drafts = "" if one["drafts"] is None else f", {one['drafts']} drafts"
        largest = ", ".join(
            f"`{kernel['name'][:40]}` {kernel['microseconds']:.0f} us in {kernel['calls']:.0f}"
            for kernel in one["kernels"][:4]
        )
        waits = ", ".join(f"{name} {count:g}" for name, count in one["host_calls"].items() if "ynchronize" in name)
        lines.append(
            f"- {SHOWN[one['method']]}, {one['batch']} requests{drafts}: {one['wall_microseconds'] / 1e3:.2f} ms a step under "
            f"the profiler, the device busy for {one['device_microseconds'] / 1e3:.2f}; {largest or 'no kernels'}"
            f"{f'; waits of the host: {waits}' if waits else ''}."
        )
    return [*lines, ""] if lines else []


def weight_updates(result: dict[str, Any]) -> list[str]:
    """What `update_theta` takes where the engine is in the trainer's process, and where it is not."""
    parameters, dtype = result["pair"]["theta_parameters"], result["settings"]["dtype"]
    lines = [
        f"**New weights for theta** of {millions(parameters)} parameters in {dtype}: `update_theta`, seconds by the clock. "
        f"{machine_line(result)}",
        "",
        "| the engine is in | seconds | MB of weights | GB/s |",
        "| --- | --- | --- | --- |",
    ]
    for engine, one in result["engines"].items():
        seconds, size = one["seconds"], one["bytes"]
        median, low, high = (f"{seconds[key]:.3g}" for key in ("median", "low", "high"))
        cells = (engine, f"{median} ({low} to {high})", number(size / 1e6), number(size / 1e9 / seconds["median"]))
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def self_distillation(result: dict[str, Any]) -> list[str]:
    """One model under two prompts over the teacher alone, with and without what an interpreter of kernels takes."""
    by, settings = result["by"], result["settings"]
    lines = [
        f"**Self-distillation, {result['model']}** in {settings['dtype']}, {'without' if settings['eager'] else 'with'} "
        f"graphs: tokens per second of {by}, medians of {settings['repeats']} batches. {machine_line(result)}",
        "",
        "| requests x tokens | engine | tokens/s | of the teacher alone | outside the interpreter | seconds in the model |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for line in result["results"]:
        for name, one in line["methods"].items():
            cells = (
                f"{line['batch']} x {line['max_tokens']}",
                SHOWN[name],
                number(one["tokens_per_second"]),
                f"{one['over_teacher']:.2f}",
                f"{one['outside_over_teacher']:.2f}",
                f"{one['model_seconds']:.2f}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


SECTIONS = {
    "heavy": heavy,
    "speed": speed,
    "example-pair": example_pair,
    "kernel": kernel,
    "host-time": host_time,
    "model": model,
    "self_distillation": self_distillation,
    "growth": growth,
    "weight-updates": weight_updates,
    "fit": fit,
    "roofline": roofline,
}


def methods_of(result: dict[str, Any]) -> set[str]:
    return {name for one in result["configurations"] for name in one["methods"]}


def sizes_of(result: dict[str, Any]) -> list[tuple[int, int]]:
    return [(one["max_tokens"], one["batch"]) for one in result["configurations"]]


def render(results: Iterable[dict[str, Any]], benchmarks: Sequence[str] = tuple(SECTIONS)) -> str:
    """Every result of these benchmarks, GPUs' before CPUs'."""
    chosen = sorted(
        (result for result in results if result["benchmark"] in benchmarks), key=lambda result: not is_on_gpu(result)
    )
    lines: list[str] = []
    together: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for result in chosen:
        if result["benchmark"] == "heavy" and any("published" in one for one in result["configurations"]):
            machine = result["machine"]["device"]
            together.setdefault((result["pair"]["name"], compilation(result), machine), []).append(result)
    for group in together.values():
        # The slow peers have a file of their own, in one of the configurations.
        main = [one for one in group if any(name.startswith("optimal") for name in methods_of(one))]
        lines += published(sorted(main, key=sizes_of)) if main else []
        lines += [line for one in group if one not in main for line in heavy(one)]
    grouped = [one for group in together.values() for one in group]
    for name in benchmarks:
        for one in chosen:
            if one["benchmark"] == name and one not in grouped:
                lines += SECTIONS[name](one)
    return "\n".join(lines).rstrip() + "\n"


def first_table(results: Sequence[dict[str, Any]]) -> str:
    return "\n".join(ratios(results)).rstrip() + "\n"


DOCUMENTS: dict[Path, Callable[[Sequence[dict[str, Any]]], str]] = {
    HERE.parent / "README.md": first_table,
    HERE / "README.md": render,
}


def between_markers(text: str) -> tuple[int, int]:
    """Where in a document its tables begin and end."""
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise ValueError(f"the document has no {BEGIN!r} with {END!r} after it")
    return begin + len(BEGIN), end


def written_into(text: str, table: str) -> str:
    """A document with this table between its markers."""
    begin, end = between_markers(text)
    return f"{text[:begin]}\n{table}{text[end:]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, nargs="*", default=FOLDERS)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    results = load(*given.results)
    for document, render_document in DOCUMENTS.items():
        table = render_document(results)
        if not given.write and not given.check:
            print(table)
            continue
        text = document.read_text()
        wanted = written_into(text, table)
        if given.write:
            document.write_text(wanted)
        elif text != wanted:
            sys.exit(f"{document.name} has not what the result files say; run benchmarks/table.py --write")


if __name__ == "__main__":
    main()
