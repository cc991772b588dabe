"""What `OptimalSampler` is given, checked, and made into what requests and `vllm.LLM` take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_optimal_sampling.argument_checks import ArgumentError, check_bool
from vllm_optimal_sampling.config.memory import default_memory_share
from vllm_optimal_sampling.config.settings import KEY, NAME
from vllm_optimal_sampling.config.theta import NUM_SPECULATIVE_TOKENS, SELF, is_teacher
from vllm_optimal_sampling.params import ALPHA_ARGUMENTS, READERS, THETA_PROMPTS, OptimalSamplingParams
from vllm_optimal_sampling.template_variables import check_variables

MEMORY_SHARE = 0.9
"""Of the GPU's memory, for both models and their cache."""


def alpha_arguments(fixed_alpha: Any, **arguments: Any) -> dict[str, Any]:
    """The arguments about alpha as every request has them; those equal to the default too, for an engine may have others.

    Raises:
        ArgumentError: one is refused, by the name that the sampler gives it.

    """
    arguments = {"alpha": fixed_alpha, **arguments}
    try:
        params = OptimalSamplingParams(**arguments)
    except ArgumentError as error:
        if not error.message.startswith(("alpha=", "alpha[")):
            raise
        argument = "fixed_alpha" if error.argument == "alpha" else error.argument
        raise ArgumentError(argument, f"fixed_{error.message}") from None
    resolved = {name: getattr(params, name) for name in arguments}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in resolved.items()
        if value is not None and params.alpha_method in READERS.get(name, (params.alpha_method,))
    }


def llm_arguments(
    teacher: str,
    named: str,
    theta: str | None,
    theta_lora: str | None,
    num_speculative_tokens: int,
    gpu_memory_utilization: float | None,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """What `vllm.LLM` is called with.

    Args:
        teacher: the teacher's name or folder.
        named: theta's, under whichever name it was given.
        theta: `named` where it was given as the theta that scores, else None.
        theta_lora: see `OptimalSampler`, as `num_speculative_tokens` and `gpu_memory_utilization`.
        given: the caller's own arguments of `vllm.LLM`.

    Raises:
        ArgumentError: two of them contradict each other.

    """
    arguments = dict(given)
    speculative = arguments.pop("speculative_config", None) or {}
    drafts_named = bool(speculative) or num_speculative_tokens != NUM_SPECULATIVE_TOKENS
    if theta is None and (named == SELF or (is_teacher(named, teacher) and not drafts_named)):
        theta = SELF
    if theta is None:
        if theta_lora is not None:
            raise ArgumentError("theta_lora", 'theta_lora makes theta of the teacher itself; give theta="self" with it')
        speculative = _speculative(speculative, named, num_speculative_tokens)
    else:
        speculative = _drafter(speculative, num_speculative_tokens)
        scoring = {"theta": theta} | ({} if theta_lora is None else {"theta_lora": theta_lora})
        additional = arguments.get("additional_config") or {}
        arguments["additional_config"] = {**additional, KEY: {**additional.get(KEY, {}), **scoring}}
    processors = arguments.pop("logits_processors", None) or []
    if gpu_memory_utilization is None:
        gpu_memory_utilization = default_memory_share(MEMORY_SHARE)
    return {
        **arguments,
        "model": teacher,
        "gpu_memory_utilization": gpu_memory_utilization,
        "logits_processors": [NAME, *processors],
        "speculative_config": speculative or None,
    }


def named_model(name: str, value: str | None, other_name: str, other: str | None) -> str:
    """A model that is given under one of two names."""
    if (value is None) == (other is None):
        what = "both are given; drop one of them" if value is not None else "neither is given"
        raise ArgumentError(name, f"{name} and {other_name} name one model, and {what}")
    named = value if value is not None else other
    assert named is not None
    return named


def check_llm_arguments(given: Mapping[str, Any], chat: bool, theta_system_prompt: str | None) -> None:
    """Refuse what would stay without effect beside the sampler's own arguments."""
    additional = given.get("additional_config")
    settings = additional.get(KEY) if isinstance(additional, Mapping) else None
    own = ("optimal_sampling", *THETA_PROMPTS, *ALPHA_ARGUMENTS, "return_alpha")
    if isinstance(settings, Mapping) and "theta" in settings:
        raise ArgumentError(
            "theta", "additional_config has a theta, and here it is an argument of the sampler (theta); drop it"
        )
    for name in settings if isinstance(settings, Mapping) else ():
        if name in own:
            raise ArgumentError(
                name,
                f"additional_config has {name} as the engine's default, and each of this sampler's requests has its own",
            )
        if name == "theta_system_prompt" and (theta_system_prompt is not None or not chat):
            raise ArgumentError(
                name,
                "additional_config has a theta_system_prompt, which has no effect here; give the argument of that name",
            )


def check_request(
    prompts: Sequence[str],
    theta_prompts: Sequence[str] | None,
    use_optimal_sampling: bool,
    best_of: int | None,
    sampling_arguments: Mapping[str, Any],
) -> None:
    """Refuse arguments of `OptimalSampler.generate` that do not go together."""
    check_bool("use_optimal_sampling", use_optimal_sampling)
    _check_texts("prompts", prompts)
    if theta_prompts is not None:
        _check_texts("theta_prompts", theta_prompts)
        if len(theta_prompts) != len(prompts):
            raise ArgumentError(
                "theta_prompts",
                f"there are {len(prompts)} prompts and {len(theta_prompts)} theta_prompts; give one for each, or "
                "leave theta_prompts out",
            )
    if "n" in sampling_arguments:
        raise ArgumentError(
            "n",
            "n would need several completions for a prompt; give the prompt n times, or best_of to keep one of n",
        )
    if "extra_args" in sampling_arguments:
        raise ArgumentError("extra_args", "extra_args are made of this sampler's own arguments; drop it")
    if best_of is not None and not use_optimal_sampling:
        raise ArgumentError(
            "best_of",
            f"best_of={best_of} compares texts of q*, and use_optimal_sampling=False draws none; drop one",
        )


def check_template_variables(chat: bool, **given: Any) -> None:
    """Refuse what no chat template reads.

    Args:
        chat: whether prompts go through chat templates.
        given: the variables of each model's template, or None, by the name of the argument.

    Raises:
        ArgumentError: some are given without chat templates, are not an object, or have a name that no template reads.

    """
    for name, variables in given.items():
        if variables is None:
            continue
        check_variables(name, variables)
        if not chat:
            raise ArgumentError(
                name,
                f"{name} is for a chat template, and these prompts are text; make the sampler with enable_chat_template",
            )


def chat(prompt: str, system_prompt: str | None) -> list[dict[str, str]]:
    """A prompt as a user's message, after the system's if there is one."""
    system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    return [*system, {"role": "user", "content": prompt}]


def plain(prompt: str, system_prompt: str | None) -> str:
    """A prompt as text, after the system prompt if there is one."""
    return prompt if system_prompt is None else f"{system_prompt}\n\n{prompt}"


def _check_texts(name: str, texts: object) -> None:
    """Refuse what is not a list of texts."""
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise ArgumentError(name, f"{name} is not a list of texts; give one text for each completion")


def _drafter(given: Mapping[str, Any], num_speculative_tokens: int) -> dict[str, Any]:
    """vLLM's speculative configuration beside a theta that scores: the caller's drafter, or none."""
    if not given and num_speculative_tokens != NUM_SPECULATIVE_TOKENS:
        raise ArgumentError(
            "num_speculative_tokens",
            f"num_speculative_tokens={num_speculative_tokens}, and nothing drafts where theta scores; name a drafter in "
            'speculative_config, such as {"method": "ngram"}',
        )
    return {"num_speculative_tokens": num_speculative_tokens, **given} if given else {}


def _speculative(given: Mapping[str, Any], theta: str, num_speculative_tokens: int) -> dict[str, Any]:
    """vLLM's speculative configuration: the caller's, which may not contradict the sampler's own arguments."""
    if given.get("model", theta) != theta:
        raise ArgumentError(
            "speculative_config", f"model_theta is {theta!r}, and speculative_config has another model; drop it"
        )
    drafts = given.get("num_speculative_tokens", num_speculative_tokens)
    if drafts != num_speculative_tokens != NUM_SPECULATIVE_TOKENS:
        raise ArgumentError(
            "num_speculative_tokens",
            f"num_speculative_tokens={num_speculative_tokens}, and speculative_config says {drafts}; give one of them",
        )
    return {"num_speculative_tokens": num_speculative_tokens, **given, "model": theta}
