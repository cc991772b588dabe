"""README's table, from the result files and nothing else.

python benchmarks/table.py             prints it
python benchmarks/table.py --write     puts it between README's markers
python benchmarks/table.py --check     fails where README says something else
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DOCUMENTS = {
    HERE.parent / "README.md": ("heavy",),
    HERE / "README.md": ("model", "growth", "kernel", "waits", "roofline"),
}
"""Where the results of which benchmarks stand."""
BEGIN = "<!-- benchmarks: written by benchmarks/table.py -->"
END = "<!-- benchmarks: end -->"

SHOWN = {
    "teacher": "the teacher alone, vLLM",
    "theta": "theta alone, vLLM",
    "draft_model": "the teacher with theta as vLLM's draft model",
    "optimal": "**optimal sampling**",
    "original": "the original's algorithm (approximates q\\*)",
    "lockstep": "transformers, both models in lockstep (q\\*)",
}


def load(folder: Path) -> list[dict[str, Any]]:
    """All results, with the name of their file as `file`."""
    return [json.loads(path.read_text()) | {"file": path.name} for path in sorted(folder.glob("*.json"))]


def number(value: float) -> str:
    """Three significant digits, thousands whole."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def spread(value: dict[str, float]) -> str:
    """A median with its extremes, to two digits behind the point."""
    digits = 1 if value["median"] >= 10 else 2
    return f"{value['median']:.{digits}f} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"


def of(value: float | None, missing: str = "") -> str:
    return missing if value is None else f"{value:.2f}"


def shown_method(label: str) -> str:
    method, _, rate = label.partition(" at ")
    return SHOWN[method] + (f", drafts accepted at {rate} (set)" if rate else "")


def shown_pair(result: dict[str, Any]) -> str:
    name = result["pair"]["name"]
    return name if " with " in name else f"the {name} pair"


def machine_line(result: dict[str, Any]) -> str:
    machine = result["machine"]
    if machine["device"] == "cpu":
        place = (
            f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} thread a process, {machine['kernels']}"
        )
    else:
        place = machine["device"]
    versions = result["versions"]
    return (
        f"{place}; vLLM {versions['vllm']}, torch {versions['torch']}; {result['date']}; load of the machine "
        f"{result['load_before'][0]:.1f} before and {result['load_after'][0]:.1f} after; `benchmarks/results/{result['file']}`"
    )


def heavy(result: dict[str, Any]) -> list[str]:
    """One table for each configuration, in the order of tokens per second."""
    pair = result["pair"]
    sizes = f"{pair['teacher_parameters'] / 1e6:,.3g} M and {pair['theta_parameters'] / 1e6:,.3g} M parameters"
    weights = "" if pair["weights"] == "trained" else ", made-up weights"
    lines = []
    for configuration in result["configurations"]:
        shape = f"{configuration['batch']} x {configuration['max_tokens']} tokens"
        title = f"{shown_pair(result).capitalize()} ({sizes}{weights}), {shape}, "
        title += f"{result['settings']['num_speculative_tokens']} drafts"
        lines += [f"**{title}.** {machine_line(result)}", ""]
        lines += [
            "| sampled with | tokens/s | of the teacher alone | by processor time | acceptance | break-even | first / later |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for label, one in configuration["methods"].items():
            even = of(one["break_even_acceptance"], "none") if "break_even_acceptance" in one else ""
            cells = [
                shown_method(label),
                number(one["tokens_per_second"]["median"]),
                "1" if label == "teacher" else spread(one["of_teacher"]),
                "1" if label == "teacher" else spread(one["of_teacher_by_cpu_time"]),
                of(one.get("acceptance")),
                even,
                of(one.get("first_over_later")),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
        if "published" in configuration:
            old = configuration["published"]
            lines += [
                f"Published by the original, on an A100 with trained weights: {old['original']} tokens/s against "
                f"{old['teacher']} for the teacher alone, {old['of_teacher']:.3f}.",
                "",
            ]
        lines += losses(configuration)
    for name, one in result.get("to_end_of_text", {}).items():
        said = f"acceptance {one['acceptance']:.3f}, {one['tokens_per_round']:.2f} tokens a round"
        if "of_teacher" in one:
            said += f", {spread(one['of_teacher'])} of the teacher alone"
        lines += [f"With texts that end by themselves instead, {shown_method(name)}: {said}.", ""]
    lines += memory(result)
    for name, why in result.get("failed", {}).items():
        lines += [f"Failed: {name} ({why.splitlines()[0]}).", ""]
    return lines


def memory(result: dict[str, Any]) -> list[str]:
    """One sentence on what each method held at most."""
    held = {name: one["memory_gib"] for name, one in result["starts"].items() if "memory_gib" in one}
    beyond = {name: one["beyond_weights_and_kv"] for name, one in held.items() if "beyond_weights_and_kv" in one}
    whole = {name: one["rss_peak"] for name, one in held.items() if "rss_peak" in one}
    sentences = []
    for what, sizes in (
        ("GPU memory beyond weights and KV cache", beyond),
        ("Largest resident size of the process", whole),
    ):
        if sizes:
            said = ", ".join(f"{size:.2f} ({name})" for name, size in sizes.items())
            sentences.append(f"{what}, GiB: {said}.")
    return [" ".join(sentences), ""] if sentences else []


def published(results: Sequence[dict[str, Any]]) -> list[str]:
    """One table for the original's configurations of a pair, whose results lie in a file each."""
    first = results[0]
    rates = first["settings"]["set_acceptance"]
    at = [f" at {rate:g}" for rate in rates] or [""]
    weights = "made-up weights, so acceptance is set, and sets the ratio" if rates else "trained weights"
    ours = [f"optimal sampling{rate.replace(' at ', ', acceptance ')}" for rate in at]
    title = [
        "batch x tokens",
        "teacher alone, tokens/s",
        *ours,
        "draft model" + at[-1].replace(" at ", ", acceptance "),
    ]
    title += ["break-even acceptance", "first batch / later", "published by the original"]
    lines = [
        f"**The original's configurations, {shown_pair(first)} ({weights}), {first['settings']['num_speculative_tokens']} "
        f"drafts; ratios to the teacher alone in the same run.** {machine_line(first)}",
        "",
        f"| {' | '.join(title)} |",
        f"|{' --- |' * len(title)}",
    ]
    for result in results:
        for configuration in result["configurations"]:
            methods = configuration["methods"]
            if "published" not in configuration or not {f"optimal{rate}" for rate in at} <= methods.keys():
                continue
            best, draft = methods[f"optimal{at[-1]}"], methods.get(f"draft_model{at[-1]}")
            ratios = [spread(methods[f"optimal{rate}"]["of_teacher"]) for rate in at]
            old = configuration["published"]
            cells = [f"{configuration['batch']} x {configuration['max_tokens']}"]
            cells += [number(methods["teacher"]["tokens_per_second"]["median"]), *ratios]
            cells += [spread(draft["of_teacher"]) if draft else ""]
            cells += [
                of(best.get("break_even_acceptance"), "none"),
                of(methods[f"optimal{at[0]}"].get("first_over_later")),
            ]
            cells += [f"{old['of_teacher']:.3f} ({old['original']} of {old['teacher']}, A100)"]
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *memory(results[-1])]


def losses(configuration: dict[str, Any]) -> list[str]:
    """One sentence on what optimal sampling loses to, where it does."""
    methods = configuration["methods"]
    sentences = []
    for label, ours in methods.items():
        if not label.startswith("optimal"):
            continue
        mine = ours["tokens_per_second"]["median"]
        same_rate = label.removeprefix("optimal")
        faster = [
            name
            for name, one in methods.items()
            if one["tokens_per_second"]["median"] > mine
            and name != label
            and not name.startswith("optimal")
            and (" at " not in name or name.endswith(same_rate))
        ]
        if faster:
            rate = same_rate.replace(" at ", " at acceptance ")
            sentences.append(f"Optimal sampling{rate} is slower here than: {'; '.join(map(shown_method, faster))}.")
    return [" ".join(sentences), ""] if sentences else []


def model(result: dict[str, Any]) -> list[str]:
    found = result["model"]
    errors = [
        abs(line["predicted"] / line["measured"] - 1)
        for batch in found["batches"].values()
        for line in batch["drafts"].values()
        if line["measured"] is not None and not line["is_fitted"]
    ]
    ratios = [line["ratio"] for line in result["theta_round"]]
    lines = [
        f"**Cost model, {shown_pair(result)}.** {machine_line(result)}",
        "",
        f"Fitted at {' and '.join(map(str, result['settings']['fit']))} drafts, at acceptance {found['acceptance']:.3f}. "
        + (
            f"At the {len(errors)} other measured points tokens/s differ from the prediction by "
            f"{statistics.median(errors):.0%} (median), {max(errors):.0%} at most. "
            if errors
            else ""
        )
        + f"Theta's round takes {min(ratios):.2f} to {max(ratios):.2f} of K + 1 of theta's own steps.",
        "",
        "| batch | best number of drafts | of the teacher alone, steady state (predicted) | break-even acceptance |",
        "| --- | --- | --- | --- |",
    ]
    for batch, one in found["batches"].items():
        best = one["drafts"][str(one["best_drafts"])]
        even = of(best["break_even_acceptance"], "none")
        lines.append(f"| {batch} | {one['best_drafts']} | {best['steady_of_teacher']:.2f} | {even} |")
    lines += [
        "",
        f"`num_speculative_tokens_per_batch_size` for this pair on this machine: `{json.dumps(found['schedule'])}`.",
        "",
    ]
    if result["interpreter_share"]:
        said = ", ".join(
            f"{name} {share['low']:.0%} to {share['high']:.0%}" for name, share in result["interpreter_share"].items()
        )
        lines += [f"Share of a step that Triton's interpreter takes: {said}.", ""]
    return lines


def growth(result: dict[str, Any]) -> list[str]:
    image = f"results/{result['file'].removesuffix('.json')}.png"  # seen from benchmarks/README.md
    lines = [f"**Growth, {shown_pair(result)}.** {machine_line(result)}", ""]
    for name, what in (("length", "tokens of output"), ("batch", "requests")):
        points = result["growth"][name]["lines"]
        costs = {point[name]: point["optimal"]["seconds_per_token"]["median"] * 1e3 for point in points}
        lines += [
            f"Milliseconds per token of optimal sampling by {what}: "
            + ", ".join(f"{cost:.3g} at {at}" for at, cost in costs.items())
            + ".",
            "",
        ]
    return [*lines, f"![cost per token]({image})", ""]


def kernel(result: dict[str, Any]) -> list[str]:
    lines = [
        f"**The mix kernel.** {machine_line(result)}",
        "",
        "| rows | vocabulary | us | GB/s | of a copy's time |",
        "| --- | --- | --- | --- | --- |",
    ]
    for line in result["lines"]:
        cells = (
            line["rows"],
            line["vocab"],
            f"{line['microseconds']['kernel']['median']:.1f}",
            f"{line['gigabytes_per_second']['kernel']:.0f}",
            f"{line['times_floor']:.2f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return [*lines, ""]


def waits(result: dict[str, Any]) -> list[str]:
    if result["machine"]["device"] == "cpu":
        return []
    lines = [f"**Calls per step that wait for the device.** {machine_line(result)}", ""]
    for method, counts in result["per_step"].items():
        said = ", ".join(f"{name} {count:.2f}" for name, count in counts.items() if name != "steps" and count)
        lines.append(f"- {method}: {said or 'none'}")
    return [*lines, ""]


def roofline(result: dict[str, Any]) -> list[str]:
    hardware = result["hardware"]
    lines = [
        f"**Predicted, not measured: the {result['pair']} pair** on a machine of {hardware['bandwidth'] / 1e12:g} TB/s and "
        f"{hardware['peak'] / 1e12:g} TFLOP/s, both used to {hardware['efficiency']:.0%}, with {hardware['launch'] * 1e3:g} ms "
        f"a step and {hardware['graph_launch'] * 1e6:g} us a forward of theta beside the kernels, {result['context']} tokens "
        f"a request; `benchmarks/results/{result['file']}`",
        "",
        "| acceptance | of the teacher alone, batch 1, 8, 32, 128 | break-even | `num_speculative_tokens_per_batch_size` |",
        "| --- | --- | --- | --- |",
    ]
    for one in result["predictions"]:
        at = [line for line in one["batches"] if line["batch"] in (1, 8, 32, 128)]
        ratios = ", ".join(f"{line['of_teacher']:.2f}" for line in at)
        even = ", ".join(of(line["break_even_acceptance"], "none") for line in at)
        lines.append(f"| {one['acceptance']} | {ratios} | {even} | `{json.dumps(one['schedule'])}` |")
    return [*lines, ""]


SECTIONS = {"heavy": heavy, "model": model, "growth": growth, "kernel": kernel, "waits": waits, "roofline": roofline}


def methods_of(result: dict[str, Any]) -> set[str]:
    return {name for one in result["configurations"] for name in one["methods"]}


def sizes_of(result: dict[str, Any]) -> list[tuple[int, int]]:
    return [(one["max_tokens"], one["batch"]) for one in result["configurations"]]


def render(results: Iterable[dict[str, Any]], benchmarks: Sequence[str]) -> str:
    """The text between a document's markers."""
    chosen = [result for result in results if result["benchmark"] in benchmarks]
    lines: list[str] = []
    by_pair: dict[str, list[dict[str, Any]]] = {}
    for result in chosen:
        if result["benchmark"] == "heavy" and any("published" in one for one in result["configurations"]):
            by_pair.setdefault(result["pair"]["name"], []).append(result)
    for together in by_pair.values():
        # The slow peers have a file of their own, in one of the configurations.
        main = [one for one in together if any(name.startswith("optimal") for name in methods_of(one))]
        lines += published(sorted(main, key=sizes_of)) if main else []
        lines += [line for one in together if one not in main for line in heavy(one)]
    grouped = [one for together in by_pair.values() for one in together]
    for name in benchmarks:
        for one in chosen:
            if one["benchmark"] == name and one not in grouped:
                lines += SECTIONS[name](one)
    if all(result["machine"]["device"] == "cpu" for result in chosen if "machine" in result):
        lines += ["None of this has been measured on a GPU yet; `benchmarks/gpu.sh` is the one command that does.", ""]
    return "\n".join(lines).rstrip() + "\n"


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
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    results = load(given.results)
    for document, benchmarks in DOCUMENTS.items():
        table = render(results, benchmarks)
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
