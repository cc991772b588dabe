"""How a result is written in a table: numbers, names, and the line about its machine."""

from __future__ import annotations

from typing import Any

SHOWN = {
    "teacher": "the teacher alone, vLLM",
    "theta": "theta alone, vLLM",
    "draft_model": "the teacher with theta as vLLM's draft model",
    "optimal": "**optimal sampling**",
    "original": "the reference implementation's algorithm (approximates q\\*)",
    "self": "**optimal sampling**, theta the teacher itself",
    "self_apart": "the same by two forwards",
    "self_teacher": "the teacher alone, vLLM",
    "scored": "**optimal sampling**, theta scores",
    "lockstep": "transformers, both models in lockstep (q\\*)",
}


SHOWN_RATES = (0.7, 0.8, 0.9)


def number(value: float) -> str:
    """Three significant digits, thousands whole."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def spread(value: dict[str, float]) -> str:
    """A median with its extremes, to two digits behind the point; one value alone where there is no other."""
    digits = 1 if value["median"] >= 10 else 2
    if value.get("count") == 1:
        return f"{value['median']:.{digits}f}"
    return f"{value['median']:.{digits}f} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"


def millions(count: float) -> str:
    return f"{count / 1e9:.3g} G" if count >= 1e9 else f"{count / 1e6:.3g} M"


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
    parts = [place, f"vLLM {versions['vllm']}, torch {versions['torch']}", result["date"]]
    if result["load_before"] and result["load_after"]:
        parts.append(
            f"load of the machine {result['load_before'][0]:.1f} before and {result['load_after'][0]:.1f} after"
        )
    parts.append(f"`benchmarks/results/{result['file']}`")
    if "provenance" in result:
        parts.append(f"commit {result['commit'][:7]}, {result['provenance']}")
    return "; ".join(parts)


def is_on_gpu(result: dict[str, Any]) -> bool:
    return "machine" in result and result["machine"]["device"] != "cpu"


def pair_of(result: dict[str, Any]) -> str:
    """A pair by its sizes: "Qwen2.5 3B with 1.5B"."""
    name = result["pair"] if isinstance(result["pair"], str) else result["pair"]["name"]
    family, _, sizes = name.partition("-")
    return f"{family.capitalize()} {sizes.upper().replace('-', ' with ')}" if family.startswith("qwen") else name


def compilation(result: dict[str, Any]) -> str:
    return result["settings"].get("compilation", "graphs, no Inductor")
