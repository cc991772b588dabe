"""What decides the distribution of a run's rows: runs into one output have to agree in it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_optimal_sampling.data.generate.errors import SettingsError
from vllm_optimal_sampling.data.generate.settings import ROW_ARGUMENTS, Settings
from vllm_optimal_sampling.data.generate.templates import template_text

HARMLESS_ENGINE_OPTIONS = frozenset(
    {
        "async-scheduling",
        "attention-backend",
        "block-size",
        "cpu-offload-gb",
        "cudagraph-capture-sizes",
        "data-parallel-address",
        "data-parallel-backend",
        "data-parallel-rank",
        "data-parallel-rpc-port",
        "data-parallel-size",
        "data-parallel-size-local",
        "disable-custom-all-reduce",
        "disable-log-stats",
        "distributed-executor-backend",
        "download-dir",
        "enable-chunked-prefill",
        "enable-log-requests",
        "enable-prefix-caching",
        "enforce-eager",
        "gpu-memory-utilization",
        "kv-cache-memory-bytes",
        "max-cudagraph-capture-size",
        "max-num-batched-tokens",
        "max-num-seqs",
        "max-parallel-loading-workers",
        "no-enable-chunked-prefill",
        "no-enable-prefix-caching",
        "nnodes",
        "node-rank",
        "master-addr",
        "master-port",
        "scheduling-policy",
        "swap-space",
        "tensor-parallel-size",
    }
)
"""vLLM options that change where and how fast tokens are drawn, not from which distribution: a resumed run may differ."""


_SHORT_OPTIONS = {"tp": "tensor-parallel-size", "dp": "data-parallel-size", "pp": "pipeline-parallel-size"}
"""vLLM's own short names."""


def identity_of(settings: Settings) -> dict[str, Any]:
    """What decides the distribution of the rows, ready for JSON.

    The numbers of rows and samples, the shard, and options about speed and size are not in it: a run may be resumed with
    more samples, on another machine, in smaller batches.
    """
    same = (
        "privileged",
        "chat",
        "chat_column",
        "teacher_system_prompt",
        "theta_system_prompt",
        "id_column",
        "messages",
    )
    sampling = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "stop", "seed", "sampling")
    selecting = ("best_of", "select", "select_by")
    identity = {name: getattr(settings, name) for name in ("teacher", "theta", *same, *sampling, *selecting)}
    if settings.selection is not None:
        identity |= {"select": settings.selection.select, "select_by": settings.selection.by or "sum"}
    identity |= {
        name: value
        for name, value in dataclasses.asdict(settings.optimal_sampling).items()
        if name not in ROW_ARGUMENTS
    }
    for name in ("teacher_chat_template_kwargs", "theta_chat_template_kwargs"):
        if variables := getattr(settings, name):
            identity[name] = dict(variables)
    for name in ("theta_template", "teacher_template", "privileged_template"):
        given = getattr(settings, name)
        identity[name] = None if given is None else template_text(name, given)
    identity["where"] = "engine" if settings.endpoint is None else "endpoint"
    if settings.id_column is None:
        # Without ids of their own, rows are known by their place in the input.
        identity |= {"input": list(settings.input), "split": settings.split, "config_name": settings.config_name}
    identity["engine"] = _telling_options(settings.engine)
    if settings.endpoint is None:
        assert settings.teacher is not None and settings.theta is not None
        theta = settings.teacher if settings.scores_itself else settings.theta
        identity |= {"teacher_files": model_digest(settings.teacher), "theta_files": model_digest(theta)}
        if settings.theta_lora is not None:
            identity |= {"theta_lora": settings.theta_lora, "theta_lora_files": model_digest(settings.theta_lora)}
    result: dict[str, Any] = json.loads(json.dumps(identity))
    return result


def _telling_options(options: tuple[str, ...]) -> list[str]:
    """vLLM's options without those in `HARMLESS_ENGINE_OPTIONS`, each with its value, in order of their names."""
    kept: list[list[str]] = []
    for word in options:
        if re.match("--?[A-Za-z]", word):
            name, _, value = word.partition("=")
            name = name.lstrip("-").replace("_", "-")
            kept.append([_SHORT_OPTIONS.get(name, name)] + ([value] if value else []))
        elif kept:
            kept[-1].append(word)
    return sorted(" ".join(option) for option in kept if option[0] not in HARMLESS_ENGINE_OPTIONS)


def model_digest(model: str) -> str | None:
    """A digest that changes when a model's files do: configuration and tokenizer whole, weights in samples.

    Of a model of the hub, the commit that is in the cache; None where none is, which agrees with any.
    """
    folder = Path(model)
    if not folder.is_dir():
        return _cached_commit(model)
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".json", ".jinja", ".model", ".safetensors", ".bin", ".txt") or not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            # 64 pieces of 64 KiB tell one training from another, and a checkpoint of 100 GB is read in no time.
            for number in range(64) if size > 1 << 22 else range(1):
                file.seek(number * size // 64)
                digest.update(file.read(1 << 16 if size > 1 << 22 else -1))
    return digest.hexdigest()[:16]


def _cached_commit(model: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return None
    return Path(path).parent.name if isinstance(path, str) else None


def check_same(earlier: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Refuse to mix rows of two settings in one output.

    Args:
        earlier: the identity that the output was begun with.
        now: this run's.
        where: the sidecar, for the message.

    Raises:
        SettingsError: they differ; the message says in what.

    """
    different = []
    for name in sorted(earlier.keys() | now.keys()):
        old, new = earlier.get(name), now.get(name)
        unknown = name.endswith("_files") and None in (old, new)
        if old != new and not unknown:
            what = "other files than" if name.endswith("_files") else f"{_short(new)}, and it was {_short(old)}"
            different.append(f"{name} is {what}" + (" before" if name.endswith("_files") else ""))
    if different:
        raise SettingsError(
            f"the output was begun with other settings ({where.name}): {'; '.join(different)}. "
            "Give another --output, or the settings that it was begun with"
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
