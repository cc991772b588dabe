"""What a run is asked for: the settings, their checks, and which of them a resumed run must share with the first."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vllm_optimal_sampling.data.generate.errors import SettingsError
from vllm_optimal_sampling.data.generate.templates import Templates, template_text
from vllm_optimal_sampling.params import ArgumentError, OptimalSamplingParams, closest

FORMATS = ("jsonl", "parquet", "hf")

ALPHA_SETTINGS = (
    "alpha_method",
    "alpha",
    "alpha_min",
    "alpha_max",
    "support_top_k",
    "support_top_p",
    "teacher_only_tokens",
    "max_js_divergence",
    "return_alpha",
)
"""Settings that are arguments of `OptimalSamplingParams`."""

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
        "load-format",
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


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run of `optimal-sampling generate`. Field names are the options' and the YAML file's keys."""

    input: tuple[str, ...]
    output: str
    teacher: str | None = None
    theta: str | None = None
    endpoint: str | None = None
    """A running server's address; None: an engine in this machine."""
    theta_template: str | None = None
    teacher_template: str | None = None
    privileged: tuple[str, ...] | None = None
    privileged_template: str | None = None
    chat: bool = False
    chat_column: str | None = None
    teacher_system_prompt: str | None = None
    theta_system_prompt: str | None = None
    split: str | None = None
    config_name: str | None = None
    id_column: str | None = None
    shard: tuple[int, int] = (0, 1)
    """(i, n): rows i, i + n, i + 2n, ... of the input, from 0."""
    limit: int | None = None
    """At least 1: only so many first rows of the input."""
    num_samples: int = 1
    """At least 1: samples of each row."""
    max_tokens: int | None = None
    """None: all that both prompts leave of the models' length."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: off."""
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of vLLM's `SamplingParams`."""
    num_speculative_tokens: int = 4
    alpha_method: str = "kl_symmetry"
    alpha: float = 0.5
    alpha_min: float = 0.0
    alpha_max: float = 1.0
    support_top_k: int | None = None
    support_top_p: float | None = None
    teacher_only_tokens: int = 0
    max_js_divergence: float | None = None
    return_alpha: bool = False
    messages: bool = False
    """Also write the whole conversation as `messages`."""
    format: Literal["jsonl", "parquet", "hf"] = "jsonl"
    max_in_flight: int | None = None
    """At least 1: requests given to the engine at a time. None: twice its `max_num_seqs`; 256 of a server."""
    retry_errors: bool = False
    ray: int | None = None
    """At least 1: engines on a Ray cluster. None: one engine in this machine."""
    log_interval: float = 10.0
    """Seconds between lines of progress where there is no terminal."""
    engine: tuple[str, ...] = ()
    """vLLM's own options, as on the command line."""

    def __post_init__(self) -> None:
        self._check_models()
        self._check_prompts()
        index, total = self.shard
        if total < 1 or not 0 <= index < total:
            raise SettingsError(f"shard={index}/{total} is none; give i/n with i from 0 to n-1, such as 0/8")
        for name in ("limit", "num_samples", "max_tokens", "num_speculative_tokens", "max_in_flight", "ray"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name}={value} is less than 1")
        if self.format not in FORMATS:
            raise SettingsError(f"format={self.format!r} is not one of {', '.join(FORMATS)}")
        if self.seed is not None and not 0 <= self.seed < 1 << 63:
            raise SettingsError(f"seed={self.seed} is not in [0, 2^63)")
        if self.log_interval <= 0:
            raise SettingsError(f"log_interval={self.log_interval} is not above 0 seconds")
        taken = {"n", "seed", "extra_args", "max_tokens", "temperature", "top_p", "top_k", "min_p", "stop"}
        for name in taken & self.sampling.keys():
            raise SettingsError(f"sampling has {name!r}, which is not for it; --num-samples, --seed and the like are")
        try:
            self.optimal_sampling_params()
        except ArgumentError as error:
            raise SettingsError(error.message) from None
        if self.messages and not self.chat:
            raise SettingsError("messages asks for conversations, and these prompts are text; add --chat")
        if self.endpoint is not None and self.engine:
            raise SettingsError(
                f"{' '.join(self.engine)} is for an engine, and endpoint={self.endpoint!r} has its own; drop one of them"
            )
        if self.ray is not None and self.endpoint is not None:
            raise SettingsError("ray starts engines, and endpoint asks a running one; drop one of them")

    def _check_models(self) -> None:
        if self.endpoint is None:
            for name in ("teacher", "theta"):
                if getattr(self, name) is None:
                    raise SettingsError(
                        f"{name} is missing; give --{name} MODEL, or --endpoint URL of a running server"
                    )
        elif not self.endpoint.startswith(("http://", "https://")):
            raise SettingsError(f"endpoint={self.endpoint!r} is no address such as http://localhost:8000")

    def _check_prompts(self) -> None:
        if self.chat_column is not None and not self.chat:
            raise SettingsError(f"chat_column={self.chat_column!r} holds messages; add --chat")
        if self.theta_template is None and self.chat_column is None:
            raise SettingsError(
                "theta_template is missing; give a Jinja template over the columns, such as --theta-template "
                "'{{ problem }}' (or --chat --chat-column NAME for a column of chat messages)"
            )

    def optimal_sampling_params(self) -> OptimalSamplingParams:
        """The arguments of optimal sampling that all rows share.

        Raises:
            ArgumentError: one of them is refused.

        """
        return OptimalSamplingParams(**{name: getattr(self, name) for name in ALPHA_SETTINGS})

    def templates(self) -> Templates:
        """The row's templates, read and checked.

        Raises:
            SettingsError: one cannot be read, or theta's renders a privileged column.

        """
        texts = {
            name: None if getattr(self, name) is None else template_text(name, getattr(self, name))
            for name in ("theta_template", "teacher_template", "privileged_template")
        }
        return Templates(
            texts["theta_template"],
            texts["teacher_template"],
            privileged=self.privileged,
            privileged_template=texts["privileged_template"],
            chat=self.chat,
            chat_column=self.chat_column,
            teacher_system_prompt=self.teacher_system_prompt,
            theta_system_prompt=self.theta_system_prompt,
        )

    @property
    def rows_path(self) -> Path:
        """The JSONL file that rows are appended to: the output itself, or beside what is made of it at the end."""
        output = Path(self.output)
        return output if self.format == "jsonl" else output.with_name(output.name + ".jsonl")

    @property
    def sidecar_path(self) -> Path:
        """Where the run's identity is written."""
        from vllm_optimal_sampling.data.rows import settings_path

        return settings_path(self.rows_path)

    def identity(self) -> dict[str, Any]:
        """What decides the distribution of the rows, ready for JSON. Runs into one output have to agree in it.

        The numbers of rows and samples, the shard, and options about speed and size are not in it: a run may be
        resumed with more samples, on another machine, in smaller batches.
        """
        same = ("privileged", "chat", "chat_column", "teacher_system_prompt", "theta_system_prompt", "id_column")
        sampling = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "stop", "seed", "sampling")
        identity = {name: getattr(self, name) for name in ("teacher", "theta", *same, *sampling, *ALPHA_SETTINGS)}
        for name in ("theta_template", "teacher_template", "privileged_template"):
            given = getattr(self, name)
            identity[name] = None if given is None else template_text(name, given)
        identity["messages"] = self.messages
        identity["where"] = "engine" if self.endpoint is None else "endpoint"
        if self.id_column is None:
            # Without ids of their own, rows are known by their place in the input.
            identity |= {"input": list(self.input), "split": self.split, "config_name": self.config_name}
        identity["engine"] = _telling_options(self.engine)
        if self.endpoint is None:
            assert self.teacher is not None and self.theta is not None
            identity |= {"teacher_files": model_digest(self.teacher), "theta_files": model_digest(self.theta)}
        result: dict[str, Any] = json.loads(json.dumps(identity))
        return result


def _telling_options(options: tuple[str, ...]) -> list[str]:
    """vLLM's options without those in `HARMLESS_ENGINE_OPTIONS`, each with its value, in order of their names."""
    kept: list[list[str]] = []
    for word in options:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            kept.append([name[2:].replace("_", "-")] + ([value] if value else []))
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


def settings_from(mapping: Mapping[str, Any]) -> Settings:
    """Settings from the command line's and the YAML file's values together, with types as Python or YAML has them.

    Raises:
        SettingsError: an unknown key, a value of the wrong type, or one that is refused.

    """
    fields = {entry.name: entry for entry in dataclasses.fields(Settings)}
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        name = key.replace("-", "_")
        if name not in fields:
            raise SettingsError(f"{key!r} is no setting{closest(name, fields)}")
        values[name] = value
    for name in ("input", "output"):
        if values.get(name) is None:
            raise SettingsError(f"{name} is missing; give --{name}")
    values = {name: _typed(name, str(fields[name].type), value) for name, value in values.items()}
    if "format" not in values and str(values["output"]).endswith(".parquet"):
        values["format"] = "parquet"
    return Settings(**values)


def _typed(name: str, kind: str, value: Any) -> Any:
    """A value as its field's annotation wants it; YAML and Python callers give whatever they like."""
    if value is None and kind.endswith("| None"):
        return None
    kind = kind.removesuffix(" | None")
    if name == "shard" and isinstance(value, str):
        return _shard(value)
    if name == "engine":
        return tuple(engine_words(value)) if isinstance(value, Mapping) else tuple(value)
    wanted: dict[str, tuple[type | tuple[type, ...], str]] = {
        "str": (str, "text"),
        "bool": (bool, "true or false"),
        "int": (int, "a whole number"),
        "float": ((int, float), "a number"),
        "Mapping[str, Any]": (Mapping, "a mapping"),
        "tuple[str, ...]": ((str, list, tuple), "a text or a list of texts"),
    }
    if kind not in wanted:
        return value
    types, words = wanted[kind]
    fits = isinstance(value, types) and (kind == "bool" or not isinstance(value, bool))
    if not fits:
        raise SettingsError(f"{name}={value!r} is not {words}")
    if kind == "tuple[str, ...]":
        texts = (value,) if isinstance(value, str) else tuple(value)
        if not all(isinstance(text, str) for text in texts):
            raise SettingsError(f"{name}={value!r} is not {words}")
        return texts
    return float(value) if kind == "float" else value


def _shard(given: str) -> tuple[int, int]:
    index, slash, total = given.partition("/")
    if not slash or not index.isdecimal() or not total.isdecimal():
        raise SettingsError(f"shard={given!r} is none; give i/n with i from 0 to n-1, such as 0/8")
    return int(index), int(total)


def engine_words(options: Mapping[str, Any]) -> list[str]:
    """vLLM's options from a mapping as on the command line, as vLLM reads its own YAML files."""
    words = []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif value is False:
            words.append(f"--no-{option[2:]}")
        elif isinstance(value, list):
            words += [option, *(json.dumps(one) if isinstance(one, Mapping) else str(one) for one in value)]
        else:
            words += [option, json.dumps(value) if isinstance(value, Mapping) else str(value)]
    return words
