"""How an engine asks for optimal sampling, with which defaults, and what keeps it from starting.

An engine asks by naming the logits processor (`--logits-processor optimal_sampling`) beside a `speculative_config`
whose draft model is theta. vLLM knows no such name: `prepare_engine_args` takes it out of the arguments while vLLM
builds its configuration, and leaves the settings in `additional_config`, where every process finds them (`is_asked`).

Imported in every process of every engine: heavy imports are inside functions.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_optimal_sampling.params import ARGUMENTS, ArgumentError, OptimalSamplingParams, closest, shown

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.engine.arg_utils import EngineArgs
    from vllm.tokenizers import TokenizerLike
    from vllm.v1.kv_cache_interface import KVCacheConfig

NAME = "optimal_sampling"
"""What `--logits-processor` and `logits_processors=[...]` call it."""

KEY = "optimal_sampling"
"""Where `VllmConfig.additional_config` holds the settings."""

PROCESSOR = "vllm_optimal_sampling.processor:OptimalSamplingLogitsProcessor"
"""The class behind the name; an engine may ask with it, or with the class itself."""

SUPPORTED_VLLM = ((0, 32), (0, 34))
"""First version that is supported, and first that no longer is."""

ENGINE_SETTINGS = ("theta_chat_template", "theta_system_prompt", "other_extra_args")
"""Keys of `additional_config["optimal_sampling"]` beside the request arguments."""

DRAFTER_MARKS = ("eagle-", "eagle3", "dflash", "dspark")
"""What `SpeculativeConfig.__post_init__` looks for in a model's name, whatever method was given."""

MODEL_FILES = ("config.json", "params.json")
"""What a model's folder has one of: transformers' configuration, or Mistral's."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model*",
    "vocab.*",
    "*.tiktoken",
    "tekken.json",
)
"""Without any of these in a model's folder, transformers makes up an empty tokenizer."""

logger = logging.getLogger(__name__)


class UnsupportedEngineError(ValueError):
    """An engine cannot run with optimal sampling; the message says why and what to do."""


# What was asked


def is_asked(vllm_config: VllmConfig) -> bool:
    """Whether this engine was asked for optimal sampling, in whichever process."""
    additional = vllm_config.additional_config
    return isinstance(additional, dict) and KEY in additional


@dataclass(frozen=True)
class EngineSettings:
    """What holds for all requests of an engine: `--additional-config '{"optimal_sampling": {...}}'`.

    The keys are those of `OptimalSamplingParams`, for the requests' defaults, and the fields below.
    """

    defaults: OptimalSamplingParams = dataclasses.field(default_factory=OptimalSamplingParams)
    """What a request leaves out."""
    theta_chat_template: str | None = None
    """Jinja template for `theta_messages`, as text; given as a file's path, it is read once, at start-up. None: the
    template of theta's own tokenizer."""
    theta_system_prompt: str | None = None
    """Put before `theta_messages` that do not begin with a system message."""
    other_extra_args: tuple[str, ...] = ()
    """Keys of `extra_args` that another plugin reads. Any other unknown key is refused."""

    @classmethod
    def from_config(cls, vllm_config: VllmConfig) -> EngineSettings:
        """The settings of an engine that was asked for optimal sampling."""
        assert is_asked(vllm_config)
        return cls.from_mapping(vllm_config.additional_config[KEY])

    @classmethod
    def from_mapping(cls, mapping: Any) -> EngineSettings:
        """Read and check the value of the key `optimal_sampling`.

        Raises:
            ValueError: an unknown key, or a value that is refused.

        """
        where = f"additional_config[{KEY!r}]"
        if not isinstance(mapping, Mapping):
            raise ValueError(f"{where} is {shown(mapping)}; give an object with default request arguments, or {{}}")
        for key in mapping:
            if key not in ARGUMENTS and key not in ENGINE_SETTINGS:
                known = sorted({*ARGUMENTS, *ENGINE_SETTINGS})
                raise ValueError(
                    f"{where} has no setting {shown(key)}{closest(key, known) or '; known are ' + ', '.join(known)}"
                )
        for key in ("theta_chat_template", "theta_system_prompt"):
            text = mapping.get(key)
            if text is not None and (not isinstance(text, str) or not text):
                raise ValueError(f"{where}: {key}={shown(text)} is not text; give some, or leave it out")
        others = mapping.get("other_extra_args", ())
        if not isinstance(others, (list, tuple)) or not all(isinstance(name, str) for name in others):
            raise ValueError(f"{where}: other_extra_args={shown(others)} is not a list of names")
        try:
            defaults = OptimalSamplingParams.from_extra_args({k: v for k, v in mapping.items() if k in ARGUMENTS})
        except ArgumentError as error:
            raise ValueError(f"{where}: {error}") from None
        return cls(
            defaults=defaults,
            theta_chat_template=mapping.get("theta_chat_template"),
            theta_system_prompt=mapping.get("theta_system_prompt"),
            other_extra_args=tuple(others),
        )

    def to_mapping(self) -> dict[str, Any]:
        """The settings as `additional_config` carries them: what differs from the default, ready for JSON."""
        settings: dict[str, Any] = self.defaults.to_extra_args()
        for key in ENGINE_SETTINGS:
            value = getattr(self, key)
            if value:
                settings[key] = list(value) if isinstance(value, tuple) else value
        return settings


# Before vLLM builds its configuration


@contextmanager
def prepare_engine_args(engine_args: EngineArgs) -> Iterator[bool]:
    """While vLLM builds its configuration, put arguments that ask for optimal sampling into words that vLLM knows.

    Yields:
        Whether the engine is asked for optimal sampling. If so, and until the context ends, `logits_processors` lacks
        its name, `speculative_config` (a copy) says `draft_model` and `probabilistic` where it said nothing, and
        `additional_config` (a copy) holds the checked settings. Afterwards the three are what they were.

    Raises:
        ValueError: settings that are refused, or settings without the processor's name.

    """
    given = engine_args.logits_processors
    others = [entry for entry in given or () if not _names_us(entry)]
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
    settings = EngineSettings.from_mapping(_with_template_text(additional.get(KEY, {})))
    speculative = engine_args.speculative_config
    kept = {
        name: getattr(engine_args, name) for name in ("logits_processors", "speculative_config", "additional_config")
    }
    engine_args.logits_processors = others or None
    engine_args.additional_config = additional | {KEY: settings.to_mapping()}
    if isinstance(speculative, dict):
        engine_args.speculative_config = _filled_in(speculative, engine_args.spec_method)
    elif speculative is None and engine_args.spec_model is not None:
        engine_args.speculative_config = _filled_in({}, engine_args.spec_method)
    try:
        yield True
    finally:
        for name, value in kept.items():
            setattr(engine_args, name, value)


def _names_us(entry: object) -> bool:
    if isinstance(entry, str):
        if entry in (NAME, PROCESSOR):
            return True
        if ":" not in entry and closest(entry, [NAME]):
            raise ValueError(f"there is no logits processor {shown(entry)}{closest(entry, [NAME])}")
        return False
    module, _, name = PROCESSOR.partition(":")
    return isinstance(entry, type) and any((base.__module__, base.__name__) == (module, name) for base in entry.__mro__)


def _filled_in(speculative: Mapping[str, Any], spec_method: str | None) -> dict[str, Any]:
    filled = {key.replace("-", "_"): value for key, value in speculative.items()}
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


def is_supported_version(version: str | None = None) -> bool:
    """Whether a vLLM version is in the supported range: 0.32 and 0.33, whatever follows.

    Args:
        version: such as "0.32.0+cpu"; the installed vLLM's by default.

    """
    if version is None:
        from vllm.version import __version__

        version = str(__version__)
    numbers = re.match(r"v?(\d+)\.(\d+)", version)
    if numbers is None:
        return False
    first, last = SUPPORTED_VLLM
    return first <= (int(numbers[1]), int(numbers[2])) < last


def check_engine_args(engine_args: EngineArgs) -> None:
    """Refuse arguments that cannot work, before vLLM looks for models or words the error its own way.

    Called inside `prepare_engine_args`.

    Raises:
        UnsupportedEngineError: (a ValueError) with everything that is wrong, and the command that would work.

    """
    from vllm.version import __version__

    if not is_supported_version(__version__):
        first, last = ("{}.{}".format(*version) for version in SUPPORTED_VLLM)
        raise UnsupportedEngineError(
            f"optimal sampling works with vLLM >={first},<{last}, and this is vLLM {__version__}; "
            f"run `pip install 'vllm>={first},<{last}'`, or use another release of vllm-optimal-sampling"
        )
    speculative = engine_args.speculative_config
    if not isinstance(speculative, dict):
        cause = "it needs theta as vLLM's draft model, and there is no speculative_config"
        if speculative is not None:
            cause = f"speculative_config is {shown(speculative)}, not an object"
        raise UnsupportedEngineError(f"optimal sampling cannot start: {cause}.\n{_working_command(engine_args.model)}")
    spec = {
        "method": engine_args.spec_method,
        "model": engine_args.spec_model,
        "num_speculative_tokens": engine_args.spec_tokens,
    } | {key: value for key, value in speculative.items() if value is not None}
    missing = [*_missing_folders({"the teacher": engine_args.model, "theta": spec.get("model")})]
    if missing:
        raise UnsupportedEngineError(_listed(missing))
    problems = [*_speculative_problems(spec)]
    if problems:
        theta = spec.get("model")
        raise UnsupportedEngineError(
            f"{_listed(problems)}\n{_working_command(engine_args.model, theta if isinstance(theta, str) else None)}"
        )


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
    verification = spec.get("rejection_sample_method")
    if verification not in (None, "standard", "synthetic"):
        yield (
            f"rejection_sample_method={shown(verification)} is lossy or not shown exact: tokens would not follow q*; "
            'drop it, "standard" is the default'
        )
    for option, why in {
        "parallel_drafting": "theta draws its drafts one after another",
        "use_local_argmax_reduction": "it picks the likeliest token, and theta's are drawn from its probabilities",
        "use_heterogeneous_vocab": "theta and teacher must share one tokenizer for q* to be defined",
        "enable_adaptive_verification": "it is not shown exact",
    }.items():
        if spec.get(option):
            yield f"{option} is not supported: {why}; drop it"


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


def _listed(problems: list[str]) -> str:
    if len(problems) == 1:
        return f"optimal sampling cannot start: {problems[0]}."
    return "optimal sampling cannot start:" + "".join(f"\n- {problem}." for problem in problems)


# After vLLM has built its configuration


def check_supported(vllm_config: VllmConfig) -> None:
    """Refuse an engine for which the output is not shown to follow q* exactly.

    Raises:
        UnsupportedEngineError: (a ValueError) with everything that is in the way, and what to do about each.

    """
    spec = vllm_config.speculative_config
    if spec is None or spec.method != "draft_model" or spec.draft_model_config is None:
        method = None if spec is None else spec.method
        raise UnsupportedEngineError(
            f"optimal sampling cannot start: vLLM took theta for the speculative method {method!r}, by its name or its "
            "architecture, and not for a draft model; give a plain language model, in a folder named otherwise"
        )
    problems = [
        *_runner_problems(vllm_config),
        *_engine_problems(vllm_config),
        *_model_problems("the teacher", vllm_config.model_config),
        *_model_problems("theta", spec.draft_model_config),
    ]
    if not problems and not vllm_config.model_config.skip_tokenizer_init:
        problems = [*_tokenizer_problems(vllm_config)]
    if problems:
        raise UnsupportedEngineError(_listed(problems))
    if spec.rejection_sample_method == "synthetic":
        logger.warning(
            "rejection_sample_method='synthetic' accepts drafts at a made-up rate: it is for benchmarks, and the "
            "output does not follow q*."
        )


def _runner_problems(config: VllmConfig) -> Iterator[str]:
    if config.use_v2_model_runner:
        return
    if os.environ.get("VLLM_USE_V2_MODEL_RUNNER") is not None:
        yield (
            "it needs Model Runner V2, and VLLM_USE_V2_MODEL_RUNNER="
            f"{os.environ['VLLM_USE_V2_MODEL_RUNNER']} chose V1; set VLLM_USE_V2_MODEL_RUNNER=1"
        )
        return
    find = getattr(config, "_get_v2_model_runner_unsupported_features", None)
    unsupported = find() if find is not None else []
    if unsupported:
        yield (
            f"it needs Model Runner V2, and vLLM chose V1 because V2 does not support {', '.join(unsupported)}; "
            "start without, and with VLLM_USE_V2_MODEL_RUNNER=1"
        )
    else:
        yield (
            "it needs Model Runner V2, and vLLM chose V1; set VLLM_USE_V2_MODEL_RUNNER=1 (on a machine without a GPU, "
            "TRITON_INTERPRET=1 as well)"
        )


def _engine_problems(config: VllmConfig) -> Iterator[str]:
    parallel, model, spec, cache = (
        config.parallel_config,
        config.model_config,
        config.speculative_config,
        config.cache_config,
    )
    assert spec is not None
    theta = spec.draft_model_config
    several_experts = parallel.data_parallel_size > 1 or parallel.enable_expert_parallel
    table = {
        "batch-sharded sampling; drop enable_batch_sharded_sampling": parallel.enable_batch_sharded_sampling,
        "adaptive verification; drop enable_adaptive_verification": spec.enable_adaptive_verification,
        "pipeline parallelism; use tensor parallelism": parallel.pipeline_parallel_size > 1,
        "decode context parallelism; drop --decode-context-parallel-size": parallel.decode_context_parallel_size > 1,
        "prefill context parallelism; drop --prefill-context-parallel-size": parallel.prefill_context_parallel_size > 1,
        "dual batch overlap and micro-batches; drop --enable-dbo and --ubatch-size": parallel.use_ubatching,
        "a mixture of experts over several data-parallel or expert-parallel ranks; use tensor parallelism": (
            several_experts and (model.is_moe or theta.is_moe)
        ),
        "a tensor-parallel size of theta's own; drop draft_tensor_parallel_size": (
            spec.draft_parallel_config.tensor_parallel_size != parallel.tensor_parallel_size
        ),
        "watermarking, which changes what is drawn; drop --watermark-config": config.watermark_config is not None,
        "KV connectors and KV offloading, which move the teacher's cache without theta's; drop --kv-transfer-config "
        "and --kv-offloading-size": config.kv_transfer_config is not None,
        "transfer of encoder outputs; drop --ec-transfer-config": config.ec_transfer_config is not None,
        "fast prefill by KV sharing; drop --kv-sharing-fast-prefill": cache.kv_sharing_fast_prefill,
        "LoRA; merge the adapter into the model": config.lora_config is not None,
        "prompt embeddings, which theta cannot read; drop --enable-prompt-embeds": model.enable_prompt_embeds,
        "trace replay; drop --enable-trace-replay": model.enable_trace_replay,
        "sampling masks in the output; drop --return-sampling-mask": model.return_sampling_mask,
    }
    for what, is_so in table.items():
        if is_so:
            yield f"it is not shown exact with {what}"
    if spec.kv_cache_dtype not in (None, cache.cache_dtype):
        yield (
            f"theta's KV cache lies in the teacher's blocks, so kv_cache_dtype={spec.kv_cache_dtype!r} for theta alone "
            f"is not supported; drop it from speculative_config, or give --kv-cache-dtype for both"
        )
    if spec.max_model_len is not None and spec.max_model_len < model.max_model_len:
        yield (
            f"theta has to read whole sequences, and speculative_config's max_model_len={spec.max_model_len} is below "
            f"the teacher's {model.max_model_len}; drop it, or lower --max-model-len"
        )


def _model_problems(role: str, model: ModelConfig) -> Iterator[str]:
    text = model.hf_text_config
    windows = getattr(text, "attention_chunk_size", None) is not None
    generates = model.runner_type in ("generate", "draft")
    table = {
        "it does not generate text (pooling)": not generates,
        "it is multimodal": model.is_multimodal_model,
        "it is an encoder-decoder": model.is_encoder_decoder,
        "it generates by diffusion": model.is_diffusion,
        "it has state-space or linear-attention layers": model.is_hybrid or model.has_inner_state,
        "it has no attention": model.is_attention_free,
        "its attention sees chunks": windows,
        "its attention keeps latents (MLA)": model.use_mla,
        "its positions have several dimensions (M-RoPE)": model.uses_mrope,
    }
    reasons = [what for what, is_so in table.items() if is_so]
    if reasons:
        yield (
            f"{role} {model.model!r} is not supported, since {', '.join(reasons)}; use a decoder of text with "
            "full attention"
        )


def check_kv_cache(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, block_size: int) -> None:
    """Refuse a KV cache in which theta's slots would not lie where `layout` puts them.

    Args:
        vllm_config: the engine's configuration.
        kv_cache_config: as the scheduler has it, with the layers of both models.
        block_size: of the scheduler, in tokens.

    Raises:
        UnsupportedEngineError: a group of layers keeps its tokens otherwise, or one request could not fit.

    """
    from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec, UniformTypeKVCacheSpecs

    spec_config = vllm_config.speculative_config
    assert spec_config is not None
    pair = f"teacher {vllm_config.model_config.model!r} and theta {spec_config.draft_model_config.model!r}"
    blocks_needed = 0
    # A request of the model's full length, theta's slots behind the teacher's, and the slots of one round.
    longest = vllm_config.model_config.max_model_len + block_size + vllm_config.num_lookahead_tokens
    for group in kv_cache_config.kv_cache_groups:
        spec = group.kv_cache_spec
        specs = list(spec.kv_cache_specs.values()) if isinstance(spec, UniformTypeKVCacheSpecs) else [spec]
        for one in specs:
            # Blocks that leave the teacher's window have left theta's: its slots are never behind the teacher's.
            if type(one) not in (FullAttentionSpec, SlidingWindowSpec) or block_size % one.block_size:
                raise UnsupportedEngineError(
                    f"optimal sampling cannot start: the layers {shown(group.layer_names)} of {pair} keep their cache "
                    f"as {type(one).__name__} in blocks of {one.block_size} tokens; only full and sliding-window "
                    f"attention in blocks that divide {block_size} are shown exact. Use two models of one family"
                )
        if type(specs[0]) is FullAttentionSpec:
            blocks_needed += -(-longest // specs[0].block_size)
    if blocks_needed > kv_cache_config.num_blocks - 1:  # one is vLLM's null block
        raise UnsupportedEngineError(
            f"optimal sampling cannot start: {pair} have {kv_cache_config.num_blocks - 1} blocks of KV cache, and one "
            f"request of max_model_len={vllm_config.model_config.max_model_len} may need {blocks_needed}; raise "
            "gpu_memory_utilization, or lower max_model_len"
        )


# Tokenizers


def unreadable_weights(theta: str, error: Exception) -> UnsupportedEngineError:
    """What to raise where vLLM cannot load theta: which of the two models it is, where, and vLLM's reason."""
    return UnsupportedEngineError(
        f"optimal sampling cannot start: theta's weights in {theta!r} cannot be loaded ({_first_line(error)}); check that "
        "the files are whole, and that config.json is of the same model"
    )


def load_theta_tokenizer(vllm_config: VllmConfig) -> TokenizerLike:
    """Theta's own tokenizer, loaded once in a process, as vLLM loads the teacher's.

    Raises:
        UnsupportedEngineError: theta has none, or it cannot be loaded.

    """
    from vllm.tokenizers import cached_get_tokenizer

    spec = vllm_config.speculative_config
    assert spec is not None
    theta = spec.draft_model_config
    remedy = "put the teacher's tokenizer files into theta's folder"
    folder = Path(theta.model)
    if folder.is_dir() and not any(next(folder.glob(pattern), None) for pattern in TOKENIZER_FILES):
        raise UnsupportedEngineError(f"optimal sampling cannot start: theta {theta.model!r} has no tokenizer; {remedy}")
    try:
        return cached_get_tokenizer(
            theta.model,
            runner_type="generate",
            tokenizer_mode=vllm_config.model_config.tokenizer_mode,
            revision=spec.revision,
            trust_remote_code=theta.trust_remote_code,
        )
    except Exception as error:  # the libraries behind it raise whatever they like
        raise UnsupportedEngineError(
            f"optimal sampling cannot start: theta's tokenizer in {theta.model!r} cannot be loaded "
            f"({_first_line(error)}); {remedy}"
        ) from error


def _tokenizer_problems(config: VllmConfig) -> Iterator[str]:
    from vllm.tokenizers import cached_tokenizer_from_config

    teacher = cached_tokenizer_from_config(config.model_config)
    theta = load_theta_tokenizer(config)
    problem = _vocabulary_difference(teacher.get_vocab(), theta.get_vocab())
    if problem is not None:
        yield (
            f"teacher and theta have different tokenizers: {problem}. q* is defined over one vocabulary; "
            "use two models of one family"
        )
    elif teacher.eos_token_id != theta.eos_token_id:
        # A base model beside a chat model: the ids mean the same, and vLLM ends a request at the teacher's.
        logger.warning(
            "Teacher and theta end a text with different tokens (ids %s and %s); generation ends at the teacher's.",
            teacher.eos_token_id,
            theta.eos_token_id,
        )
    template = EngineSettings.from_config(config).theta_chat_template
    if template is not None:
        yield from _template_problems(theta, template)


def _vocabulary_difference(teacher: Mapping[str, int], theta: Mapping[str, int]) -> str | None:
    """The first id that stands for different tokens, in words; None where all are equal."""
    if teacher == theta:
        return None
    by_id = [{token_id: token for token, token_id in vocabulary.items()} for vocabulary in (teacher, theta)]
    different = sorted(
        token_id for token_id in by_id[0].keys() | by_id[1].keys() if by_id[0].get(token_id) != by_id[1].get(token_id)
    )
    if not different:  # several tokens of one id, of which the same one is last
        return None
    first = different[0]
    names = [shown(tokens[first]) if first in tokens else "nothing" for tokens in by_id]
    return (
        f"{len(different)} ids differ, the first is {first}, which is {names[0]} for the teacher and {names[1]} for "
        f"theta ({len(teacher)} and {len(theta)} tokens)"
    )


def _template_problems(tokenizer: TokenizerLike, template: str) -> Iterator[str]:
    from jinja2 import TemplateSyntaxError

    messages: Any = [{"role": "user", "content": "2 + 2"}]
    try:
        tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)
    except TemplateSyntaxError as error:
        yield f"theta_chat_template is not a Jinja template: {error.message} (line {error.lineno})"
    except Exception as error:  # it may want other messages than these
        logger.warning("theta_chat_template refused a user's message: %s", _first_line(error))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
