"""The arguments of an engine, before vLLM builds its configuration of them.

They ask for optimal sampling by the name of the logits processor (`--logits-processor optimal_sampling`), beside a
`speculative_config` whose draft model is theta, or beside the setting `theta` (see `config.theta`). vLLM knows no such name:
`prepare_engine_args` takes it out of the arguments while vLLM builds its configuration, and leaves the settings in
`additional_config`, where every process finds them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from vllm_optimal_sampling.config.adapters import CONFIG, adapter_rank, read_adapter_config, unsupported_adapter
from vllm_optimal_sampling.config.errors import UnsupportedEngineError, listed
from vllm_optimal_sampling.config.settings import ENGINE_SETTINGS, KEY, NAME, PROCESSOR, EngineSettings
from vllm_optimal_sampling.config.theta import EXACT_DRAFTERS, SELF, reserved_lora_slots, same_place
from vllm_optimal_sampling.config.versions import RANGE, is_supported_version
from vllm_optimal_sampling.params import ARGUMENTS, closest, shown

if TYPE_CHECKING:
    from vllm.engine.arg_utils import EngineArgs

DRAFTER_MARKS = ("eagle-", "eagle3", "dflash", "dspark")
"""What `SpeculativeConfig.__post_init__` looks for in a model's name, whatever method was given."""

MODEL_FILES = ("config.json", "params.json")
"""What a model's folder has one of: transformers' configuration, or Mistral's."""


PREPARED = (
    *("logits_processors", "speculative_config", "additional_config"),
    *("enable_lora", "max_loras", "max_cpu_loras", "max_lora_rank"),
)
"""The arguments that `prepare_engine_args` changes for a while."""


@contextmanager
def prepare_engine_args(engine_args: EngineArgs) -> Iterator[bool]:
    """While vLLM builds its configuration, put arguments that ask for optimal sampling into words that vLLM knows.

    Yields:
        Whether the engine is asked for optimal sampling. If so, and until the context ends, `logits_processors` lacks
        its name, `additional_config` (a copy) holds the checked settings, `speculative_config` (a copy) says
        `draft_model` and `probabilistic` where it said nothing and theta drafts, and LoRA is enabled where theta is an
        adapter. Afterwards all of them are what they were.

    Raises:
        ValueError: settings that are refused, or settings without the processor's name.

    """
    given = engine_args.logits_processors
    others = [entry for entry in given or () if not _is_our_processor(entry)]
    additional = engine_args.additional_config
    has_settings = isinstance(additional, dict) and KEY in additional
    if len(others) == len(given or ()):
        if has_settings:
            raise ValueError(
                f"additional_config has settings for {KEY!r}, but the engine was not asked for optimal sampling; "
                f"add --logits-processor {NAME} (in Python: logits_processors=[{NAME!r}]), or drop them"
            )
        yield False
        return
    if not isinstance(additional, dict):
        raise ValueError(f"optimal sampling keeps its settings in additional_config, which is {shown(additional)}")
    _check_other_keys(additional)
    settings = EngineSettings.from_mapping(_with_template_text(additional.get(KEY, {})))
    speculative = engine_args.speculative_config
    if isinstance(speculative, dict):
        speculative = {key.replace("-", "_"): value for key, value in speculative.items()}
    elif speculative is None and engine_args.spec_model is not None:
        speculative = {}
    if isinstance(speculative, dict) and _is_teacher(model := speculative.get("model"), engine_args):
        # A folder keeps its name: a link may have been given for the sake of it.
        speculative["model"] = model if os.path.isdir(model) else engine_args.model
    settings = _with_theta_named_once(settings, engine_args, speculative)
    kept = {name: getattr(engine_args, name) for name in PREPARED}
    engine_args.logits_processors = others or None
    engine_args.additional_config = additional | {KEY: settings.to_mapping()}
    if isinstance(speculative, dict):
        if settings.theta is None:
            speculative = _filled_in(speculative, engine_args.spec_method)
        engine_args.speculative_config = speculative
    if settings.theta == SELF and (engine_args.enable_lora or settings.theta_lora is not None):
        _enable_lora(engine_args, settings.theta_lora)
    try:
        yield True
    finally:
        for name, value in kept.items():
            setattr(engine_args, name, value)


def _check_other_keys(additional: Mapping[str, Any]) -> None:
    """Refuse settings of optimal sampling under a misspelt key, or beside the key that they belong under."""
    for key in additional.keys() - {KEY}:
        if near := closest(key, [KEY]):
            raise ValueError(f"additional_config has no effect under {shown(key)}{near}")
        if key in ARGUMENTS or key in ENGINE_SETTINGS:
            raise ValueError(
                f"additional_config has {key} at the top, where it has no effect; put it under {KEY!r}: "
                f"{json.dumps({KEY: {key: '...'}})}"
            )


def _is_our_processor(entry: object) -> bool:
    if isinstance(entry, str):
        if entry in (NAME, PROCESSOR):
            return True
        if ":" not in entry and closest(entry, [NAME]):
            raise ValueError(f"there is no logits processor {shown(entry)}{closest(entry, [NAME])}")
        return False
    module, _, name = PROCESSOR.partition(":")
    return isinstance(entry, type) and any((base.__module__, base.__name__) == (module, name) for base in entry.__mro__)


def _with_theta_named_once(settings: EngineSettings, engine_args: EngineArgs, speculative: Any) -> EngineSettings:
    """The settings with `theta` as `SELF` where it names the teacher, and without it where theta is the draft model."""
    theta = settings.theta
    if theta != SELF and _is_teacher(theta, engine_args):
        theta = SELF
    if theta is not None and isinstance(speculative, dict):
        drafter = _draft_model({"method": engine_args.spec_method, "model": engine_args.spec_model} | speculative)
        named = engine_args.model if theta == SELF else theta
        if drafter is not None and same_place(drafter, named) and settings.theta_lora is None:
            theta = None
    return dataclasses.replace(settings, theta=theta)


def _is_teacher(name: Any, engine_args: EngineArgs) -> TypeGuard[str]:
    """Whether a name of a model, which may be anything, means the teacher.

    Under HF_HUB_OFFLINE vLLM has replaced the teacher's name by its folder in the cache of the hub.
    """
    if not isinstance(name, str):
        return False
    if same_place(name, engine_args.model):
        return True
    import huggingface_hub
    from vllm.transformers_utils.repo_utils import get_model_path

    if not huggingface_hub.constants.HF_HUB_OFFLINE or "://" in name or _looks_like_folder(name):
        return False
    try:
        return same_place(get_model_path(name, engine_args.revision), engine_args.model)
    except Exception:  # no model of the hub that is here: what is said of it is said where it is loaded
        return False


def _draft_model(speculative: Mapping[str, Any]) -> str | None:
    """The whole model that drafts, None where something else does."""
    model = speculative.get("model")
    if speculative.get("method") not in (None, "draft_model") or not isinstance(model, str):
        return None
    is_drafter = model in ("ngram", "[ngram]") or any(mark in model.lower() for mark in DRAFTER_MARKS)
    return None if is_drafter and speculative.get("method") is None else model


def _enable_lora(engine_args: EngineArgs, adapter: str | None) -> None:
    """Make room for theta's adapter, beside those that requests may name."""
    slots = engine_args.max_loras if engine_args.enable_lora else 0
    engine_args.enable_lora = True
    engine_args.max_loras = slots + reserved_lora_slots(adapter)
    if engine_args.max_cpu_loras is not None:
        engine_args.max_cpu_loras = max(engine_args.max_cpu_loras, engine_args.max_loras)


def _filled_in(speculative: Mapping[str, Any], spec_method: str | None) -> dict[str, Any]:
    filled = dict(speculative)
    if spec_method is None and filled.get("method") is None:
        filled["method"] = "draft_model"
    if filled.get("draft_sample_method") is None:
        filled["draft_sample_method"] = "probabilistic"
    return filled


def _with_template_text(settings: Any) -> Any:
    """The settings with the text of `theta_chat_template` where they named a file."""
    template = settings.get("theta_chat_template") if isinstance(settings, Mapping) else None
    if not isinstance(template, str) or not template or any(sign in template for sign in "{}\n"):
        return settings
    try:
        text = Path(template).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"theta_chat_template={shown(template)} is neither a Jinja template nor a file that can be read ({error})"
        ) from None
    return {**settings, "theta_chat_template": text}


def check_engine_args(engine_args: EngineArgs) -> None:
    """Refuse arguments that cannot work, before vLLM looks for models or words the error its own way.

    Called inside `prepare_engine_args`.

    Raises:
        UnsupportedEngineError: (a ValueError) with everything that is wrong, and the command that would work.

    """
    from vllm.version import __version__

    if not is_supported_version(__version__):
        raise UnsupportedEngineError(
            f"optimal sampling works with vLLM {RANGE}, and this is vLLM {__version__}; "
            f"run `pip install 'vllm{RANGE}'`, or use another release of vllm-optimal-sampling"
        )
    settings = EngineSettings.from_mapping(engine_args.additional_config[KEY])
    speculative = engine_args.speculative_config
    if settings.theta is not None:
        _check_scoring(engine_args, settings, speculative)
        return
    if settings.theta_lora is not None:
        raise UnsupportedEngineError(
            "optimal sampling cannot start: theta_lora is an adapter of the teacher's own weights, and theta is "
            f'{"a draft model" if speculative else "not named"}; add "theta": "self" to the settings'
            f"{' and drop speculative_config' if speculative else ''}."
        )
    if not isinstance(speculative, dict):
        cause = "it needs theta as vLLM's draft model, and there is no speculative_config"
        if speculative is not None:
            cause = f"speculative_config is {shown(speculative)}, not an object"
        raise UnsupportedEngineError(f"optimal sampling cannot start: {cause}.\n{_working_command(engine_args.model)}")
    spec = _with_flags(speculative, engine_args)
    missing = [*_missing_folders({"the teacher": engine_args.model, "theta": spec.get("model")})]
    if missing:
        raise UnsupportedEngineError(listed(missing))
    problems = [*_speculative_problems(spec)]
    if problems:
        theta = spec.get("model")
        raise UnsupportedEngineError(
            f"{listed(problems)}\n{_working_command(engine_args.model, theta if isinstance(theta, str) else None)}"
        )


def _with_flags(speculative: Mapping[str, Any], engine_args: EngineArgs) -> dict[str, Any]:
    """A `speculative_config` with what vLLM's `--spec-method`, `--spec-model` and `--spec-tokens` say beside it."""
    flags = {
        "method": engine_args.spec_method,
        "model": engine_args.spec_model,
        "num_speculative_tokens": engine_args.spec_tokens,
    }
    return flags | {key: value for key, value in speculative.items() if value is not None}


def _check_scoring(engine_args: EngineArgs, settings: EngineSettings, speculative: Any) -> None:
    """Refuse what cannot work where theta scores."""
    theta = settings.theta
    problems = [*_missing_folders({"the teacher": engine_args.model} | ({} if theta == SELF else {"theta": theta}))]
    if settings.theta_lora is not None:
        problems += _adapter_problems(settings, engine_args.max_lora_rank)
    if speculative is not None and not isinstance(speculative, dict):
        problems.append(f"speculative_config is {shown(speculative)}, not an object")
    elif speculative is not None:
        spec = _with_flags(speculative, engine_args)
        problems += _drafter_problems(spec, "the teacher itself" if theta == SELF else repr(theta))
    if problems:
        raise UnsupportedEngineError(listed(problems))


def _adapter_problems(settings: EngineSettings, max_rank: int) -> Iterator[str]:
    adapter = settings.theta_lora
    assert adapter is not None
    if settings.theta != SELF:
        yield (
            f"theta_lora={adapter!r} is an adapter of the teacher's own weights, and theta is {settings.theta!r}; "
            'say "theta": "self", or merge the adapter into theta'
        )
    folder = Path(adapter)
    if not _looks_like_folder(adapter) and not folder.is_dir():
        return  # a name of the hub, which the worker looks up
    if not (folder / CONFIG).is_file():
        yield f"theta_lora={adapter!r} holds no LoRA adapter: there is no {CONFIG} in it; correct the path"
        return
    try:
        config = read_adapter_config(folder)
    except (OSError, ValueError) as error:
        yield f"theta_lora's {str(folder / CONFIG)!r} cannot be read ({error}); write the adapter once more"
        return
    if (rank := adapter_rank(config)) > max_rank:
        yield f"theta_lora={adapter!r} has rank {rank}, and the engine takes {max_rank}; raise --max-lora-rank"
    elif (problem := unsupported_adapter(config)) is not None:
        yield f"theta_lora={adapter!r} {problem}"


def _drafter_problems(spec: Mapping[str, Any], theta: str) -> Iterator[str]:
    """What is wrong with a `speculative_config` beside a theta that scores; `theta` in words."""
    method, model = spec.get("method"), _draft_model(spec)
    if model is not None:
        yield (
            f"speculative_config drafts with the model {model!r}, and theta is {theta}; a draft model beside another "
            "theta is not supported: drop speculative_config, draft with n-grams, EAGLE or MTP, or name one model in "
            "both, and theta drafts"
        )
    elif method is not None and method not in EXACT_DRAFTERS:
        yield (
            f"drafting by {shown(method)} is not supported beside theta; use one of {', '.join(EXACT_DRAFTERS)}, or drop "
            "speculative_config"
        )
    if spec.get("num_speculative_tokens") is None and "num_speculative_tokens_per_batch_size" not in spec:
        yield 'speculative_config has no "num_speculative_tokens"; add it, 3 is a good start'
    if spec.get("parallel_drafting"):
        yield "parallel_drafting is not supported beside theta: no test shows it exact there; drop it"
    yield from _verification_problems(spec)


def _speculative_problems(spec: Mapping[str, Any]) -> Iterator[str]:
    method = spec.get("method")
    if method not in (None, "draft_model"):
        yield (
            f"speculative method {shown(method)} has no theta, which is a whole model run as the draft model; "
            'drop "method", it is set to "draft_model"'
        )
    elif spec.get("model") is None:
        yield 'speculative_config names no theta; add "model"'
    else:
        mark = next((mark for mark in DRAFTER_MARKS if mark in str(spec["model"]).lower()), None)
        if mark is not None:
            yield (
                f"vLLM takes every model with {mark!r} in its name or path for a drafter of that kind, and theta is "
                f"{spec['model']!r}; give it by another path, such as a link"
            )
    if spec.get("num_speculative_tokens") is None and "num_speculative_tokens_per_batch_size" not in spec:
        yield 'speculative_config has no "num_speculative_tokens"; add it, 4 is a good start'
    if spec.get("draft_sample_method") not in (None, "probabilistic"):
        yield (
            f"draft_sample_method={shown(spec['draft_sample_method'])} draws no tokens from theta's probabilities; "
            'drop it, it is set to "probabilistic"'
        )
    yield from _verification_problems(spec)
    for option, why in {
        "parallel_drafting": "theta draws its drafts one after another",
        "use_local_argmax_reduction": "it picks the likeliest token, and theta's are drawn from its probabilities",
        "use_heterogeneous_vocab": "theta and teacher must share one tokenizer for q* to be defined",
    }.items():
        if spec.get(option):
            yield f"{option} is not supported: {why}; drop it"


def _verification_problems(spec: Mapping[str, Any]) -> Iterator[str]:
    verification = spec.get("rejection_sample_method")
    if verification not in (None, "standard", "synthetic"):
        yield (
            f"rejection_sample_method={shown(verification)} is not supported: tokens would not follow q*; "
            'drop it, "standard" is the default'
        )
    if spec.get("enable_adaptive_verification"):
        yield "enable_adaptive_verification is not supported; drop it"


def _missing_folders(models: Mapping[str, Any]) -> Iterator[str]:
    for role, model in models.items():
        if not isinstance(model, str) or not _looks_like_folder(model):
            continue
        folder = Path(model)
        if not folder.exists():
            yield f"{role}'s folder {model!r} does not exist; correct the path, or name a model of the hub"
        elif folder.is_dir() and not any((folder / name).exists() for name in MODEL_FILES):
            yield f"{role}'s folder {model!r} holds no model: there is no {' or '.join(MODEL_FILES)} in it; correct the path"


def _looks_like_folder(model: str) -> bool:
    """A hub's name is `model` or `owner/model`; everything else that is no address is meant as a path."""
    return "://" not in model and (
        model.startswith((os.sep, ".", "~")) or model.endswith(os.sep) or model.count("/") > 1 or "\\" in model
    )


def _working_command(teacher: str, theta: str | None = None) -> str:
    config = json.dumps({"model": theta or "THETA", "num_speculative_tokens": 4})
    return (
        f"This works:\n  vllm serve {shlex.quote(teacher)} --logits-processor {NAME} "
        f"--speculative-config {shlex.quote(config)}\n"
        f"or, in Python:\n  LLM({teacher!r}, logits_processors=[{NAME!r}], speculative_config={config})"
        + ("" if theta else "\nwhere THETA is the smaller model, with the teacher's tokenizer.")
    )
