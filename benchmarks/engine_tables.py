"""The tables of engines: tokens a second, memory, and what a cost model says of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

from table_words import (
    SHOWN_RATES,
    compilation,
    is_on_gpu,
    machine_line,
    millions,
    number,
    of,
    pair_of,
    shown_method,
    shown_pair,
    spread,
)


def ratios(results: Sequence[dict[str, Any]]) -> list[str]:
    """README's table: optimal sampling over the teacher alone on GPUs, beside what else there is to compare with."""
    measured = [one for one in results if one["benchmark"] == "heavy" and is_on_gpu(one)]
    if not measured:
        return ["Nothing has been measured on a GPU yet; `benchmarks/gpu.sh` is the one command that does.", ""]
    ours = [f"**optimal sampling**, acceptance {rate:g}" for rate in SHOWN_RATES]
    title = ["teacher and theta", "compiled by", "batch x tokens", "teacher alone, tokens/s", *ours]
    title += ["vLLM's draft model, acceptance 0.8", "reference implementation, published"]
    lines = [f"| {' | '.join(title)} |", f"|{' --- |' * len(title)}"]
    shown = []
    for result in sorted(measured, key=lambda one: (one["pair"]["name"], one["file"])):
        rows = [ratio_row(result, one, results) for one in result["configurations"] if has_ratios(one)]
        lines += rows
        shown += [result] if rows else []
    places = sorted({f"{one['machine']['device']}, vLLM {one['versions']['vllm']}, {one['date']}" for one in shown})
    files = ", ".join(f"`{one['file']}`" for one in shown)
    return [
        *lines,
        "",
        f"{'; '.join(places)}. Tokens per second over those of the teacher alone in the same run: above 1 is faster.",
        "*Set*: how often a draft is accepted, by vLLM's synthetic verification, since these are the published shapes with "
        "made-up weights. *Measured*: everything else. The reference implementation's column is its published ratio on one "
        f"A100. Files, with how each was measured: {files} in `benchmarks/results`.",
        "",
    ]


def has_ratios(configuration: dict[str, Any]) -> bool:
    methods = configuration["methods"]
    return "teacher" in methods and any(f"optimal at {rate:g}" in methods for rate in SHOWN_RATES)


def ratio_row(result: dict[str, Any], configuration: dict[str, Any], results: Sequence[dict[str, Any]]) -> str:
    methods = configuration["methods"]
    compared = [methods.get(f"optimal at {rate:g}") for rate in SHOWN_RATES]
    draft = methods.get("draft_model at 0.8")
    of_draft = draft["of_teacher"]["median"] if draft else drafted_beside(result, configuration["batch"], results)
    cells = [
        pair_of(result),
        "Inductor" if "Inductor)" in compilation(result) else "nothing",
        f"{configuration['batch']} x {configuration['max_tokens']}",
        number(methods["teacher"]["tokens_per_second"]["median"]),
        *(f"{one['of_teacher']['median']:.2f}" if one else "" for one in compared),
        of(of_draft),
        f"{configuration['published']['of_teacher']:.3f}" if "published" in configuration else "",
    ]
    return f"| {' | '.join(cells)} |"


def drafted_beside(result: dict[str, Any], batch: int, results: Sequence[dict[str, Any]]) -> float | None:
    """vLLM's own draft model over the teacher alone at this batch, where a `speed` result of the same card has both."""
    for one in results:
        if (
            one["benchmark"] != "speed"
            or one["pair"]["name"] != result["pair"]["name"]
            or one["machine"]["device"] != result["machine"]["device"]
        ):
            continue
        speeds: dict[str, list[float]] = {}
        for line in one["lines"]:
            engine = one["engines"][line["engine"]]
            same = engine["compilation"] == compilation(result) and line["batch"] == batch
            if same and line["set_acceptance"] in (None, 0.8):
                speeds.setdefault(engine["method"], []).append(line["tokens_per_second"])
        if "draft_model" in speeds and "teacher" in speeds:
            return statistics.median(speeds["draft_model"]) / statistics.median(speeds["teacher"])
    return None


def heavy(result: dict[str, Any]) -> list[str]:
    """One table for each configuration, in the order of tokens per second."""
    pair = result["pair"]
    sizes = f"{millions(pair['teacher_parameters'])} and {millions(pair['theta_parameters'])} parameters"
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
                by_cpu_time(label, one),
                of(one.get("acceptance")),
                even,
                of(one.get("first_over_later")),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
        if "published" in configuration:
            old = configuration["published"]
            lines += [
                f"Published by the reference implementation, on an A100 with trained weights: {old['original']} tokens/s "
                f"against {old['teacher']} for the teacher alone, {old['of_teacher']:.3f}.",
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


def by_cpu_time(label: str, one: dict[str, Any]) -> str:
    if label == "teacher":
        return "1"
    return spread(one["of_teacher_by_cpu_time"]) if "of_teacher_by_cpu_time" in one else ""


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
    """One table for the published configurations of a pair, whose results lie in a file or in several."""
    first = results[0]
    rates = first["settings"]["set_acceptance"]
    at = [f" at {rate:g}" for rate in rates] or [""]
    weights = "made-up weights, so acceptance is set, and sets the ratio" if rates else "trained weights"
    title = [
        "batch x tokens",
        "teacher alone, tokens/s",
        *(f"optimal sampling{rate.replace(' at ', ', acceptance ')}" for rate in at),
        "vLLM's draft model, at acceptance",
    ]
    title += ["break-even acceptance", "first batch / later", "published by the reference implementation"]
    lines = [
        f"**The published configurations, {shown_pair(first)} ({weights}), {first['settings']['num_speculative_tokens']} "
        f"drafts, {compilation(first)}; ratios to the teacher alone in the same run.** {machine_line(first)}",
        "",
        f"| {' | '.join(title)} |",
        f"|{' --- |' * len(title)}",
    ]
    for result in results:
        for configuration in result["configurations"]:
            methods = configuration["methods"]
            ours = [methods.get(f"optimal{rate}") for rate in at]
            if "published" not in configuration or not any(ours):
                continue
            best, first_rate, draft = [one for one in ours if one][-1], ours[0] or {}, drafted(methods)
            old = configuration["published"]
            cells = [f"{configuration['batch']} x {configuration['max_tokens']}"]
            cells += [number(methods["teacher"]["tokens_per_second"]["median"])]
            cells += [spread(one["of_teacher"]) if one else "" for one in ours]
            cells += [f"{spread(draft[1]['of_teacher'])} at {draft[0]}" if draft else ""]
            cells += [of(best.get("break_even_acceptance"), "none"), of(first_rate.get("first_over_later"))]
            cells += [f"{old['of_teacher']:.3f} ({old['original']} of {old['teacher']}, A100)"]
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *memory(results[-1])]


def drafted(methods: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """vLLM's own draft-model speculation at the largest acceptance it was measured at."""
    found = {
        name.partition(" at ")[2] or "its own": one for name, one in methods.items() if name.startswith("draft_model")
    }
    return max(found.items()) if found else None


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


def fit(result: dict[str, Any]) -> list[str]:
    """The figures of a GPU that predictions are made from."""
    one = result["hardware"]
    return [
        f"**Fitted, not measured: the figures of one {result['device']} behind the predictions below.** "
        f"{one['efficiency']:.0%} of {one['bandwidth'] / 1e12:g} TB/s, {one['peak_efficiency']:.0%} of "
        f"{one['peak'] / 1e12:g} TFLOP/s, {one['layer_floor'] * 1e6:.0f} us a layer beside reading its weights and "
        f"{one['layer_per_request'] * 1e6:.2f} us more a request; the host takes {one['host_step'] * 1e3:.1f} ms a step "
        f"and {one['host_per_request'] * 1e6:.0f} us a request. Seconds of the {len(result['batches'])} batches it was "
        f"fitted to: {result['median_error']:.1%} off (median), {result['largest_error']:.0%} at most; "
        f"`benchmarks/results/{result['file']}`",
        "",
    ]


def roofline(result: dict[str, Any]) -> list[str]:
    lines = [
        f"**Predicted, not measured: {pair_of(result)}**, {result['context']} tokens a request, steady state, at the best "
        f"number of drafts; {result['what'].removeprefix('PREDICTED ')}; `benchmarks/predictions/{result['file']}`",
        "",
        "| acceptance | of the teacher alone, batch 1, 8, 32, 128 | break-even | `num_speculative_tokens_per_batch_size` |",
        "| --- | --- | --- | --- |",
    ]
    for one in result["predictions"]:
        at = [line for line in one["batches"] if line["batch"] in (1, 8, 32, 128)]
        ratios = ", ".join(f"{line['of_teacher']:.2f}" for line in at)
        even = ", ".join(of(line["break_even_acceptance"], "none") for line in at)
        lines.append(f"| {one['acceptance']} | {ratios} | {even} | `{json.dumps(one['schedule'])}` |")
    without = [line for line in result["without_drafts"] if line["batch"] in (1, 8, 32, 128, 256)]
    said = {mode: ", ".join(f"{line[mode]:.2f}" for line in without) for mode in ("scored", "self")}
    return [
        *lines,
        "",
        f"Predicted without any drafts, of the teacher alone at {', '.join(str(line['batch']) for line in without)} requests: "
        f"theta scores (a forward of each model a step) {said['scored']}; theta is the teacher itself (one forward of both "
        f"prompts' rows) {said['self']}.",
        "",
    ]


def example_pair(result: dict[str, Any]) -> list[str]:
    """The trained pair on a GPU: how often each way of sampling is right, and how fast."""
    lines = [
        f"**The example pair's problems.** {machine_line(result)}",
        "",
        "| sampled from | right | mean alpha | tokens/s | tokens a round |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, one in result["sampled"].items():
        rate = f"{one['right']} of {one['problems']} ({one['right'] / one['problems']:.1%})"
        cells = (
            name,
            rate,
            f"{one['mean_alpha']:.3f}",
            number(one["tokens_per_second"]),
            f"{one['tokens_per_round']:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]
