"""Theta's prompt of a request as token ids: of text by its tokenizer, of a chat by its template, refused unread if too long."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from vllm_optimal_sampling.chat_messages import parse_messages
from vllm_optimal_sampling.config.errors import UnsupportedEngineError
from vllm_optimal_sampling.config.settings import EngineSettings
from vllm_optimal_sampling.config.tokenizers import load_theta_tokenizer
from vllm_optimal_sampling.front_end.chat_template import template_and_messages
from vllm_optimal_sampling.params import ArgumentError, OptimalSamplingParams
from vllm_optimal_sampling.template_variables import parse_variables

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.tokenizers import TokenizerLike

CHARACTERS_PER_POSITION = 16
"""Theta's prompt may have so many characters for each position of `max_model_len`. A longer one could not fit (a token
has 4 characters in English, and hardly ever 16), and is refused before it is tokenised."""

CHARACTERS_PER_ESCAPE = 6
"""JSON may write a character of `theta_messages` or `theta_chat_template_kwargs` as `\\uXXXX`."""


class ThetaPrompts:
    """Makes token ids of theta's prompts. Safe to call from several threads.

    Args:
        vllm_config: the engine's.
        theta_config: theta's model.
        settings: the engine's.

    """

    def __init__(self, vllm_config: VllmConfig, theta_config: ModelConfig, settings: EngineSettings) -> None:
        self._vllm_config, self._theta_config, self._settings = vllm_config, theta_config, settings
        self._theta_tokenizer: TokenizerLike | None = None
        """Loaded with the first prompt that needs it."""
        self._lock = threading.Lock()  # a fast tokenizer is not to be used by two threads at once

    @property
    def max_len(self) -> int:
        """Tokens that theta can read, prompt and output together. vLLM may lower the teacher's once memory is known."""
        return min(self._vllm_config.model_config.max_model_len, self._theta_config.max_model_len)

    def token_ids(self, params: OptimalSamplingParams) -> list[int] | None:
        """Theta's prompt as token ids, None where theta reads the teacher's.

        Raises:
            ArgumentError: it cannot be tokenised, cannot fit, or has no tokens.

        """
        if params.theta_prompt_token_ids is not None:
            return list(params.theta_prompt_token_ids)
        name = params.theta_prompt_argument
        if name is None:
            return None
        ids = self._tokenise_chat(params) if name == "theta_messages" else self._tokenise(getattr(params, name))
        if not ids:
            raise ArgumentError(name, f"{name} has no tokens; give theta at least one, or leave it out")
        return ids

    def check_sizes(self, extra_args: dict[str, Any]) -> None:
        """Refuse what is too long to fit before reading it: nobody may keep the front end busy with it.

        Args:
            extra_args: a request's, as they came.

        Raises:
            ArgumentError: one of theta's is.

        """
        for name, per_position in {
            "theta_prompt": CHARACTERS_PER_POSITION,
            "theta_messages": CHARACTERS_PER_POSITION * CHARACTERS_PER_ESCAPE,
            "theta_chat_template_kwargs": CHARACTERS_PER_POSITION * CHARACTERS_PER_ESCAPE,
        }.items():
            if isinstance(extra_args.get(name), str):
                self._check_text_length(name, len(extra_args[name]), per_position * self.max_len)
        ids = extra_args.get("theta_prompt_token_ids")
        if isinstance(ids, (list, tuple)) and len(ids) >= self.max_len:
            raise self.too_long("theta_prompt_token_ids", len(ids))

    def too_long(self, name: str, length: int) -> ArgumentError:
        """The error about a prompt that leaves no token of output."""
        return ArgumentError(
            name,
            f"{name} has {length} tokens, and theta reads at most {self.max_len}, with at least one token of "
            "output; shorten it, or start the engine with a larger --max-model-len",
        )

    def _check_text_length(self, name: str, length: int, allowed: int) -> None:
        if length > allowed:
            raise ArgumentError(
                name,
                f"{name} has {length} characters, and more than {allowed} cannot fit into the {self.max_len} "
                "tokens that theta reads; shorten it",
            )

    def _tokenise(self, text: str) -> list[int]:
        tokenizer = self._tokenizer("theta_prompt")
        try:
            with self._lock:
                return list(tokenizer.encode(text, add_special_tokens=True))
        except Exception as error:  # whatever a tokenizer has against a text, the client can mend it
            raise ArgumentError("theta_prompt", f"theta's tokenizer refused theta_prompt: {_reason(error)}") from error

    def _tokenise_chat(self, params: OptimalSamplingParams) -> list[int]:
        """`theta_messages` through theta's template, up to where theta's answer begins."""
        name = "theta_messages"
        assert isinstance(params.theta_messages, str)
        messages = parse_messages(params.theta_messages)
        length = sum(len(message["content"]) for message in messages)
        self._check_text_length(name, length, CHARACTERS_PER_POSITION * self.max_len)
        variables = self._template_variables(params)
        system = self._settings.theta_system_prompt
        if system is not None and messages[0]["role"] not in ("system", "developer"):
            messages = [{"role": "system", "content": system}, *messages]
        tokenizer = self._tokenizer(name)
        template, messages = template_and_messages(
            tokenizer, self._settings.theta_chat_template, messages, self._theta_config
        )
        if template is None and getattr(tokenizer, "chat_template", "unknown") is None:
            raise ArgumentError(
                name,
                "theta has no chat template for theta_messages; give theta_prompt, or start the engine with "
                '--additional-config \'{"optimal_sampling": {"theta_chat_template": "..."}}\'',
            )
        conversation: Any = messages
        try:
            with self._lock:
                ids = tokenizer.apply_chat_template(
                    conversation,
                    chat_template=template,
                    tokenize=True,
                    add_generation_prompt=True,
                    return_dict=False,
                    **variables,
                )
        except Exception as error:  # templates raise whatever they like about a conversation
            refused = name if params.theta_chat_template_kwargs is None else f"{name} with theta_chat_template_kwargs"
            raise ArgumentError(name, f"theta's chat template refused {refused}: {_reason(error)}") from error
        return list(ids)

    def _template_variables(self, params: OptimalSamplingParams) -> dict[str, Any]:
        """What theta's template reads beside the messages: the request's variables over the engine's."""
        from vllm.renderers import merge_kwargs

        name, own = "theta_chat_template_kwargs", params.theta_chat_template_kwargs
        if own is None:
            return dict(self._settings.theta_chat_template_kwargs)
        assert isinstance(own, str)
        self._check_text_length(name, len(own), CHARACTERS_PER_POSITION * self.max_len)
        return merge_kwargs(dict(self._settings.theta_chat_template_kwargs), parse_variables(name, own))

    def _tokenizer(self, argument: str) -> TokenizerLike:
        if self._vllm_config.model_config.skip_tokenizer_init:
            raise ArgumentError(
                argument,
                f"{argument} needs a tokenizer, and this engine was started with skip_tokenizer_init; give "
                "theta_prompt_token_ids",
            )
        with self._lock:
            if self._theta_tokenizer is None:
                try:
                    self._theta_tokenizer = load_theta_tokenizer(self._vllm_config)
                except UnsupportedEngineError as error:
                    raise ArgumentError(argument, f"{argument} cannot be tokenised: {error}") from error
            return self._theta_tokenizer


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
