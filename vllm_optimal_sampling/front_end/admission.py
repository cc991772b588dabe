"""What happens to a request where it is admitted: theta's prompt becomes tokens, and is measured.

The engine gets arguments that are complete (the engine's defaults merged) and sound: theta's prompt as token ids in
theta's vocabulary, short enough that theta can read the whole sequence. Whatever is not ends here, as an error of this
one request.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NoReturn

from vllm_optimal_sampling import wire
from vllm_optimal_sampling.config.settings import ENGINE_SETTINGS, EngineSettings
from vllm_optimal_sampling.config.state_layers import has_states
from vllm_optimal_sampling.config.theta import max_request_loras, scores, theta_model_config
from vllm_optimal_sampling.config.vocabulary_pairs import VocabularyPairs
from vllm_optimal_sampling.front_end.media import check_media, check_no_placeholder, placeholders
from vllm_optimal_sampling.front_end.theta_prompt import ThetaPrompts
from vllm_optimal_sampling.params import (
    ARGUMENTS,
    OF_THETAS_PROMPT,
    THETA_PROMPTS,
    ArgumentError,
    OptimalSamplingParams,
)

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreRequest


class RequestResolver:
    """Completes and checks the arguments of optimal sampling of each request. Safe to call from several threads."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        """Read the engine's settings."""
        self.vllm_config = vllm_config
        self.theta_config = theta_model_config(vllm_config)
        self.settings = EngineSettings.from_config(vllm_config)
        self.theta_version = 0
        """How often theta's weights were replaced (see `weights`)."""
        self._pairs = VocabularyPairs.from_config(vllm_config)
        self._placeholders = placeholders(self.theta_config)
        self.prompts = ThetaPrompts(vllm_config, self.theta_config, self.settings)

    def resolve(self, request: EngineCoreRequest, max_tokens_given: bool = True) -> None:
        """Check a request's arguments and put what the engine needs in their place.

        `request.sampling_params` is replaced by a copy whose `extra_args` have: our arguments where they differ from
        `OptimalSamplingParams()`, with the engine's defaults merged; theta's prompt as `theta_prompt_token_ids`, a
        list, absent where theta reads the teacher's prompt; theta's version, once there were updates; all other keys,
        untouched. `max_tokens` is lowered to what theta's prompt leaves room for, if the client left it open: it did not
        give it, or it is all that the teacher's prompt leaves, which is what vLLM's server fills in.

        The lengths and the vocabulary hold for a request that opts out too: theta reads along, to draft.

        Args:
            request: as `InputProcessor.process_inputs` made it. A pooling request is left alone.
            max_tokens_given: False where the client gave no `max_tokens`.

        Raises:
            VLLMValidationError: (HTTP 400) an argument is refused; the message names it and says what to do.

        """
        sampling_params = request.sampling_params
        if sampling_params is None:
            return
        extra_args = sampling_params.extra_args or {}
        try:
            params, ids, max_tokens = self._checked(request, extra_args, max_tokens_given)
        except ArgumentError as error:
            if error.argument in THETA_PROMPTS and error.argument not in extra_args:
                error = ArgumentError(
                    error.argument, f"{error.message} ({error.argument} is this engine's default, not the request's)"
                )
            _refuse(error)
        # Params may be shared between requests (`skip_clone`), and extra_args always are.
        request.sampling_params = copy.copy(sampling_params)
        request.sampling_params.extra_args = self._for_the_engine(params, ids, extra_args, request.resumable) or None
        request.sampling_params.max_tokens = max_tokens

    def _checked(
        self, request: EngineCoreRequest, extra_args: dict[str, Any], max_tokens_given: bool
    ) -> tuple[OptimalSamplingParams, list[int] | None, int | None]:
        """The request's arguments, what theta reads if it is not the teacher's very ids, and `max_tokens`; see `resolve`."""
        sampling_params = request.sampling_params
        assert sampling_params is not None
        if request.prompt_embeds is not None or request.prompt_token_ids is None:
            raise ArgumentError("prompt_embeds", "theta cannot read prompt embeddings; send text or token ids")
        if request.lora_request is not None and max_request_loras(self.vllm_config) < 1:
            raise ArgumentError(
                "lora_request",
                "this engine has no room for adapters of requests; start it with --enable-lora, which makes some",
            )
        self._check_logprobs(sampling_params)
        params = self._params(extra_args)
        check_media(request, params)
        if request.resumable:
            self._check_streaming(params)
        if self.settings.require_theta_prompt:
            _check_theta_has_a_prompt(params)
        theta_ids = self.prompts.token_ids(params)
        teachers = self._teachers_prompt(request, params)
        ids = teachers if theta_ids is None else theta_ids
        # Where the worker gets no ids of theta's, it gives theta the teacher's, each in theta's vocabulary. That is right only
        # if theta's prompt and the teacher's as theta reads it are both those ids.
        own = ids != request.prompt_token_ids or teachers != request.prompt_token_ids
        has_name = theta_ids is not None and own
        prompt_name = (params.theta_prompt_argument or "theta_prompt") if has_name else "prompt"
        if own or self._pairs is None:
            self._check_vocabulary(prompt_name, ids)
        if has_name:
            check_no_placeholder(prompt_name, ids, self._placeholders)
        max_tokens = self._max_tokens(
            prompt_name,
            len(ids),
            len(request.prompt_token_ids),
            sampling_params.max_tokens,
            sampling_params.min_tokens,
            max_tokens_given,
        )
        return params, ids if own else None, max_tokens

    def _for_the_engine(
        self, params: OptimalSamplingParams, ids: list[int] | None, extra_args: dict[str, Any], resumable: bool
    ) -> dict[str, Any]:
        """The `extra_args` that the engine gets, of what `_checked` found; see `resolve`."""
        if resumable and not params.optimal_sampling and scores(self.vllm_config):
            # A later part of the session may be mixed, and theta has to have read all before it.
            params = OptimalSamplingParams(teacher_only_tokens=self.vllm_config.model_config.max_model_len)
        arguments = params.to_extra_args()
        for name in OF_THETAS_PROMPT:
            arguments.pop(name, None)
        if arguments.get("support_top_k", 0) >= self.vllm_config.model_config.get_vocab_size():
            del arguments["support_top_k"]  # all tokens: how a request unsets a default where null cannot be sent
        if ids is not None:
            arguments["theta_prompt_token_ids"] = ids
        arguments |= {key: value for key, value in extra_args.items() if key not in ARGUMENTS}
        if self.theta_version:
            # A block holds keys and values of both models: those of theta's old weights must not be found.
            arguments[wire.THETA_VERSION] = self.theta_version
        return arguments

    def theta_token_ids(self, extra_args: dict[str, Any]) -> list[int] | None:
        """What theta reads of a request with these arguments: its own prompt as tokens, None for the teacher's.

        Raises:
            ArgumentError: an argument is refused.

        """
        return self.prompts.token_ids(self._params(extra_args))

    def _teachers_prompt(self, request: EngineCoreRequest, params: OptimalSamplingParams) -> list[int]:
        """The teacher's prompt as theta reads it: in theta's ids, unless the worker is to put one id for each token.

        It does so for a theta that only drafts, and for a session that streams its input.
        """
        assert request.prompt_token_ids is not None
        if self._pairs is None or not params.optimal_sampling or request.resumable:
            return request.prompt_token_ids
        return self._pairs.read_prompt(request.prompt_token_ids)

    def _params(self, extra_args: dict[str, Any]) -> OptimalSamplingParams:
        """A request's arguments over the engine's defaults; those too large are refused before they are parsed."""
        self.prompts.check_sizes(extra_args)
        for name in extra_args:
            if name in ENGINE_SETTINGS and name not in self.settings.other_extra_args:
                raise ArgumentError(
                    name, f"{name} is not an argument of a request but a setting of the engine; drop it"
                )
        return OptimalSamplingParams.from_extra_args(
            extra_args, self.settings.defaults, others=self.settings.other_extra_args
        )

    def _check_logprobs(self, sampling_params: SamplingParams) -> None:
        """vLLM's rejection sampler does not know `logprob_token_ids`, and its server answers them with status 500."""
        if sampling_params.logprob_token_ids and self.vllm_config.speculative_config is not None:
            raise ArgumentError(
                "logprob_token_ids",
                "vLLM returns nothing for logprob_token_ids where drafts are verified, as in this engine; ask for logprobs, or "
                "for this package's record with return_alpha",
            )

    def _check_streaming(self, params: OptimalSamplingParams) -> None:
        name = params.theta_prompt_argument
        if name is not None:
            raise ArgumentError(
                name,
                f"{name} cannot be given to a session that streams its input; leave it out, and theta reads what the "
                "teacher reads",
            )
        if params.optimal_sampling and has_states(self.vllm_config.model_config):
            # What a stop has cut off may be in the state that the next part goes on from.
            raise ArgumentError(
                "prompt",
                "a session that streams its input is not shown exact where layers of the model keep a state; send whole "
                "prompts, or set optimal_sampling to false",
            )
        teacher_len = self.vllm_config.model_config.max_model_len
        if self.prompts.max_len < teacher_len:
            raise ArgumentError(
                "prompt",
                f"a session that streams its input may grow to the teacher's {teacher_len} tokens, and theta reads "
                f"{self.prompts.max_len}; start the engine with --max-model-len {self.prompts.max_len}",
            )

    def _check_vocabulary(self, name: str, ids: list[int]) -> None:
        vocabulary = self.theta_config.get_vocab_size()
        worst = max(ids, default=0)
        if worst >= vocabulary:
            raise ArgumentError(
                name,
                f"{name} has token id {worst} at position {ids.index(worst)}, which is not in theta's vocabulary; ids "
                f"run from 0 to {vocabulary - 1}",
            )

    def _max_tokens(
        self,
        name: str,
        theta_len: int,
        teacher_len: int,
        max_tokens: int | None,
        min_tokens: int,
        given: bool,
    ) -> int | None:
        """`max_tokens` of the request, lowered where it was left open and theta's prompt needs it."""
        limit = self.prompts.max_len
        if theta_len >= limit:
            raise self.prompts.too_long(name, theta_len)
        # vLLM itself ends a request at the teacher's length.
        room = self.vllm_config.model_config.max_model_len - teacher_len
        wanted = room if max_tokens is None else min(max_tokens, room)
        if theta_len + wanted <= limit:
            return max_tokens
        left = limit - theta_len
        if given and max_tokens != room:
            raise ArgumentError(
                "max_tokens" if name == "prompt" else name,
                f"{name} ({theta_len} tokens) plus max_tokens={max_tokens} goes beyond the {limit} tokens that theta "
                f"reads; lower max_tokens to {left} or less, or shorten {name}",
            )
        if min_tokens > left:
            raise ArgumentError(
                "min_tokens",
                f"min_tokens={min_tokens} is more than the {left} tokens that {name} ({theta_len} tokens) leaves of "
                f"the {limit} that theta reads; lower it, or shorten {name}",
            )
        return left


def without_min_p_and_bias(params: SamplingParams) -> SamplingParams:
    """A copy of the parameters for vLLM's check of what goes with speculative decoding.

    vLLM refuses `min_p` and `logit_bias` beside every drafter, and its V2 runner applies both to drafts that are verified.
    Whatever else it checks, now or later, still sees the request's own values.
    """
    params = copy.copy(params)
    params.min_p, params.logit_bias = 0.0, None
    return params


def _check_theta_has_a_prompt(params: OptimalSamplingParams) -> None:
    if params.optimal_sampling and params.theta_prompt_argument is None:
        raise ArgumentError(
            "theta_prompt",
            f"this engine requires a prompt for theta (require_theta_prompt), and the request has none of "
            f"{', '.join(THETA_PROMPTS)} in vllm_xargs (in Python: extra_args): theta would read the teacher's prompt. Give "
            "one, or optimal_sampling=false for the teacher alone",
        )


def refuse_beam_search(params: object) -> None:
    """Refuse beam search, which ranks the teacher's log-probabilities and would silently be without theta.

    Args:
        params: what `InputProcessor.resolve_watermarking` gets: vLLM admits beam search as ordinary requests for one
            token each, and nothing else in the front end sees it as what it is.

    Raises:
        VLLMValidationError: `params` ask for beam search.

    """
    from vllm.sampling_params import BeamSearchParams

    if isinstance(params, BeamSearchParams):
        _refuse(
            ArgumentError("use_beam_search", "beam search draws nothing from q*; sample, or use n for several outputs")
        )


def _refuse(error: ArgumentError) -> NoReturn:
    from vllm.exceptions import VLLMValidationError

    raise VLLMValidationError(error.message, parameter=error.argument) from error
