"""Theta's tokenizer, and whether it is the teacher's but for special and added tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_optimal_sampling.config.errors import UnsupportedEngineError, first_line, listed
from vllm_optimal_sampling.config.settings import EngineSettings
from vllm_optimal_sampling.config.theta import scores_itself, theta_model_config
from vllm_optimal_sampling.config.token_roles import token_roles
from vllm_optimal_sampling.config.vocabulary_match import disagreement, match_vocabularies, merges_differ
from vllm_optimal_sampling.params import shown

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.tokenizers import TokenizerLike

logger = logging.getLogger(__name__)

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model*",
    "vocab.*",
    "*.tiktoken",
    "tekken.json",
)
"""Without any of these in a model's folder, transformers makes up an empty tokenizer."""

MAX_DISAGREEMENT = 0.01
"""Tokenizers that split a sample text into more than this share of different tokens are two."""


def load_theta_tokenizer(vllm_config: VllmConfig) -> TokenizerLike:
    """Theta's own tokenizer, loaded once in a process, as vLLM loads the teacher's.

    Raises:
        UnsupportedEngineError: theta has none, or it cannot be loaded.

    """
    from vllm.tokenizers import cached_get_tokenizer

    theta = theta_model_config(vllm_config)
    remedy = "put the teacher's tokenizer files into theta's folder"
    folder = Path(theta.model)
    if folder.is_dir() and not any(next(folder.glob(pattern), None) for pattern in TOKENIZER_FILES):
        raise UnsupportedEngineError(f"optimal sampling cannot start: theta {theta.model!r} has no tokenizer; {remedy}")
    try:
        return cached_get_tokenizer(
            theta.model,
            runner_type="generate",
            tokenizer_mode=vllm_config.model_config.tokenizer_mode,
            revision=theta.revision,
            trust_remote_code=theta.trust_remote_code,
        )
    except Exception as error:  # the libraries behind it raise whatever they like
        raise UnsupportedEngineError(
            f"optimal sampling cannot start: theta's tokenizer in {theta.model!r} cannot be loaded "
            f"({first_line(error)}); {remedy}"
        ) from error


def check_tokenizers(config: VllmConfig) -> None:
    """Refuse two tokenizers that are not one, and keep what pairs the tokens of those that nearly agree.

    Raises:
        UnsupportedEngineError: the tokenizers differ in more than special and added tokens, or a template of theta's.

    """
    from vllm.tokenizers import cached_tokenizer_from_config

    teacher = cached_tokenizer_from_config(config.model_config)
    theta = load_theta_tokenizer(config)
    settings = EngineSettings.from_config(config)
    template = settings.theta_chat_template
    problem = _pair_vocabularies(config, teacher, theta, template)
    problems = [] if problem is None else [problem]
    if template is not None:
        problems += _template_problems(theta, template, settings.theta_chat_template_kwargs)
    if problems:
        raise UnsupportedEngineError(listed(problems))


def _pair_vocabularies(
    config: VllmConfig, teacher: TokenizerLike, theta: TokenizerLike, theta_template: str | None
) -> str | None:
    """Why the two tokenizers are not one; None where they are, but for tokens that the configuration then pairs."""
    difference = _vocabulary_difference(teacher.get_vocab(), theta.get_vocab())
    if merges_differ(teacher, theta):
        return _refusal(f"{difference or 'the tokens are the same'}, and their byte pairs are merged in another order")
    if difference is None:
        if teacher.eos_token_id != theta.eos_token_id:
            # A base model beside a chat model: the ids mean the same, and vLLM ends a request at the teacher's.
            logger.warning(
                "Teacher and theta end a text with different tokens (ids %s and %s); generation ends at the teacher's.",
                teacher.eos_token_id,
                theta.eos_token_id,
            )
        return None
    if scores_itself(config):
        return _refusal(difference)
    model, theta_model = config.model_config, theta_model_config(config)
    match = match_vocabularies(
        teacher,
        theta,
        (model.get_vocab_size(), theta_model.get_vocab_size()),
        (token_roles(model, teacher), token_roles(theta_model, theta, theta_template)),
    )
    share = disagreement(teacher, theta, match.pairs)
    if share > MAX_DISAGREEMENT:
        return _refusal(
            f"{difference}; {share:.1%} of what a sample text is split into differs, and {MAX_DISAGREEMENT:.0%} is allowed, "
            "for special and added tokens"
        )
    logger.info("Teacher and theta have vocabularies that nearly agree: %s.", match.summary())
    if not match.is_identity:
        match.pairs.keep_in(config)
    return None


def _refusal(difference: str) -> str:
    return (
        f"teacher and theta have different tokenizers: {difference}. q* is defined over one vocabulary; "
        "use two models of one family"
    )


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


def _template_problems(tokenizer: TokenizerLike, template: str, variables: Mapping[str, Any]) -> Iterator[str]:
    from jinja2 import TemplateSyntaxError

    messages: Any = [{"role": "user", "content": "2 + 2"}]
    try:
        tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True, **variables
        )
    except TemplateSyntaxError as error:
        yield f"theta_chat_template is not a Jinja template: {error.message} (line {error.lineno})"
    except Exception as error:  # it may want other messages than these
        logger.warning("theta_chat_template refused a user's message: %s", first_line(error))
