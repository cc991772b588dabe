"""What a request asks of optimal sampling: the arguments, their meaning, and every reason to refuse one.

The same arguments travel in `SamplingParams.extra_args` and, over HTTP, in `vllm_xargs`. Neither torch nor vLLM is
imported here: clients and front ends import this module first.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_optimal_sampling.alpha_methods import ALPHA_METHODS
from vllm_optimal_sampling.argument_checks import (
    ArgumentError,
    check_bool,
    check_text,
    checked_count,
    checked_ends,
    checked_number,
    checked_token_ids,
    closest,
    shown,
)
from vllm_optimal_sampling.chat_messages import messages_as_json
from vllm_optimal_sampling.template_variables import variables_as_json

READERS = {"alpha": ("fixed", "arithmetic"), "kl_budget": ("kl_budget",), "js_sensitivity": ("js_gate",)}
"""Arguments that only some methods read, and which."""

ALPHA_ARGUMENTS = ("alpha_method", "alpha", "alpha_min", "alpha_max", "kl_budget", "js_sensitivity", "alpha_steps")
"""Arguments that say how alpha is found."""

SCHEDULED = ("alpha", "alpha_min", "alpha_max", "kl_budget")
"""Arguments that may be a pair [start, end] over a request's tokens."""

Scheduled = float | tuple[float, float]
"""One number for all tokens of a request, or its value at the first token and from token `alpha_steps` on."""

LARGEST_TOP_K = 128
"""Of `return_top_k`."""

THETA_PROMPTS = ("theta_prompt", "theta_prompt_token_ids", "theta_messages")
"""The three ways to give theta a prompt of its own. A request has at most one."""

OF_THETAS_PROMPT = (*THETA_PROMPTS, "theta_chat_template_kwargs")
"""What the front end makes theta's token ids of; the engine gets those."""

VLLM_EXTRA_ARGS = frozenset({"kv_transfer_params", "ec_transfer_params", "kv_cache_report_mode", "session_id"})
"""Keys that vLLM itself reads from `extra_args` or `vllm_xargs`; never ours to judge."""


@dataclass(frozen=True, kw_only=True)
class OptimalSamplingParams:
    """How the tokens of one request are drawn: from q*(y) = π_θ(y)^(1-α) π_t(y)^α / Z, with theta's own prompt.

    Every argument is optional; without any, α is found for each token by KL symmetry and theta reads the teacher's
    prompt.

    Example:
        >>> from vllm_optimal_sampling import OptimalSamplingParams
        >>> params = OptimalSamplingParams(theta_prompt="Problem: 17 + 25 =", alpha_max=0.9)
        >>> params.to_extra_args()
        {'theta_prompt': 'Problem: 17 + 25 =', 'alpha_max': 0.9}
        >>> OptimalSamplingParams.from_extra_args(params.to_extra_args()) == params
        True
        >>> OptimalSamplingParams(alpha_min=0.9, alpha_max=0.5)
        Traceback (most recent call last):
        ...
        vllm_optimal_sampling.argument_checks.ArgumentError: alpha_min=0.9 is above alpha_max=0.5; swap them or drop one

    Raises:
        ArgumentError: (a ValueError) an argument has the wrong type, is out of range or contradicts another. It names
            the argument, the value, what is allowed and what to do.

    """

    optimal_sampling: bool = True
    """False: this request is sampled from the teacher alone, and takes no other argument of these."""
    theta_prompt: str | None = None
    """Theta's prompt as text, tokenised with theta's tokenizer and its special tokens. Not empty. None: the teacher's
    prompt."""
    theta_prompt_token_ids: tuple[int, ...] | None = None
    """Theta's prompt as token ids (a list is accepted). Not empty; each in [0, theta's vocabulary size)."""
    theta_messages: str | Sequence[Mapping[str, Any]] | None = None
    """Theta's chat, put through theta's chat template: a list of messages (`role`, `content`), or that list as JSON,
    which is what it becomes. `content` is text or a list of `{"type": "text", "text": ...}`. At most 16 levels deep."""
    theta_chat_template_kwargs: str | Mapping[str, Any] | None = None
    """What theta's chat template reads beside `theta_messages`, such as `{"enable_thinking": False}`: an object, or that object
    as JSON, which is what it becomes. Only with `theta_messages`. Each variable comes before the engine's of that name; None
    and "auto" leave the engine's, as in vLLM's `chat_template_kwargs`, which are for the teacher's chat alone. A variable that
    the template does not read has no effect. Names that say how a chat is made into tokens are refused
    (`template_variables.NOT_OF_TEMPLATES`): theta's chat ends where its answer begins. At most 16 levels deep."""
    alpha_method: str = "kl_symmetry"
    """One of `ALPHA_METHODS`."""
    alpha: Scheduled = 0.5
    """In [0, 1]: the weight of the teacher for `fixed` and `arithmetic`. Another method finds alpha, and takes none."""
    alpha_min: Scheduled = 0.0
    """In [0, alpha_max]: alpha is raised to it. For `js_gate`, alpha where the models disagree."""
    alpha_max: Scheduled = 1.0
    """In [alpha_min, 1]: alpha is lowered to it. For `js_gate`, alpha where the models agree."""
    kl_budget: Scheduled | None = None
    """In nats, above 0: `kl_budget` takes the largest alpha with D_KL(q‖θ) at most this, which is q as close to the teacher
    as it may be so near to theta (the behaviour policy of TRB, arXiv 2605.31159). One end of a pair may be 0: theta alone."""
    js_sensitivity: float = 50.0
    """Above 0, per nat: `js_gate` takes alpha_max - (alpha_max - alpha_min) tanh(js_sensitivity · d / 2), where d is the
    Jensen-Shannon divergence of the two models in nats. It is the rule of DemoPSD (arXiv 2607.02502, equations 7 to 9), which
    uses alpha_min = 0.85 and a sensitivity of 15 to 100."""
    alpha_steps: int | None = None
    """In [1, 2^31 - 1]: over how many tokens a pair [start, end] of `alpha`, `alpha_min`, `alpha_max` or `kl_budget` goes from
    its start, at the first token, linearly to its end. Needed with a pair, and only then."""
    support_top_k: int | None = None
    """In [1, 2^31 - 1]: mix only over the teacher's k likeliest tokens. None: over all."""
    support_top_p: float | None = None
    """In (0, 1]: mix only over the teacher's nucleus of this mass. None: over all tokens."""
    teacher_only_tokens: int = 0
    """In [0, 2^31 - 1]: this many first tokens are drawn from the teacher alone."""
    max_js_divergence: float | None = None
    """In nats, at least 0: where the models are further apart (Jensen-Shannon, at most ln 2), the token is drawn from
    the teacher alone. None: never."""
    return_alpha: bool = False
    """Return the per-token record."""
    return_top_k: int = 0
    """In [0, 128], with `return_alpha`: the record also has the k likeliest tokens of each row under q*, with their
    log-probabilities under q*, the teacher and theta. 0: none."""

    def __post_init__(self) -> None:
        for name in ("optimal_sampling", "return_alpha"):
            check_bool(name, getattr(self, name))
        check_text("theta_prompt", self.theta_prompt)
        self._set("theta_prompt_token_ids", checked_token_ids(self.theta_prompt_token_ids))
        self._set("theta_messages", messages_as_json(self.theta_messages))
        variables = variables_as_json("theta_chat_template_kwargs", self.theta_chat_template_kwargs)
        self._set("theta_chat_template_kwargs", variables)
        self._check_alpha()
        self._check_schedule()
        if self.optimal_sampling:
            self._check_are_read(name for name in READERS if getattr(self, name) != _DEFAULTS[name])
        self._check_support()
        self._check_teacher_alone()
        self._check_return_top_k()
        self._check_theta_prompts()
        self._check_opt_out()

    def _set(self, name: str, value: Any) -> Any:
        object.__setattr__(self, name, value)
        return value

    def _check_alpha(self) -> None:
        if self.alpha_method not in ALPHA_METHODS:
            raise ArgumentError(
                "alpha_method",
                f"alpha_method={shown(self.alpha_method)} is not one of {', '.join(ALPHA_METHODS)}"
                + closest(self.alpha_method, ALPHA_METHODS),
            )
        for name in ("alpha", "alpha_min", "alpha_max"):
            value = self._set(name, checked_ends(name, getattr(self, name)))
            if not all(0 <= end <= 1 for end in ends(value)):
                raise ArgumentError(
                    name, f"{name}={shown_ends(value)} is outside [0, 1]; 0 is theta alone, 1 is the teacher alone"
                )
        if any(low > high for low, high in zip(ends(self.alpha_min), ends(self.alpha_max), strict=True)):
            raise ArgumentError(
                "alpha_min",
                f"alpha_min={shown_ends(self.alpha_min)} is above alpha_max={shown_ends(self.alpha_max)}; "
                "swap them or drop one",
            )
        if self.kl_budget is not None:
            value = self._set("kl_budget", checked_ends("kl_budget", self.kl_budget))
            if min(ends(value)) < 0 or max(ends(value)) == 0:
                raise ArgumentError(
                    "kl_budget",
                    f"kl_budget={shown_ends(value)} is not above 0; give nats, how far q* may be from theta at a token "
                    "(alpha_method='fixed' with alpha=0 draws from theta alone)",
                )
        elif self.alpha_method == "kl_budget":
            raise ArgumentError(
                "kl_budget",
                "alpha_method='kl_budget' needs kl_budget, in nats: how far q* may be from theta at a token, such as 0.05",
            )
        value = self._set("js_sensitivity", checked_number("js_sensitivity", self.js_sensitivity))
        if value <= 0:
            raise ArgumentError(
                "js_sensitivity",
                f"js_sensitivity={value} is not above 0; the larger, the less two models may disagree before alpha falls "
                "to alpha_min (50 is the default)",
            )

    def _check_support(self) -> None:
        if self.support_top_k is not None:
            self._set(
                "support_top_k",
                checked_count("support_top_k", self.support_top_k, 1, "leave it out to mix over all tokens"),
            )
        if self.support_top_p is not None:
            value = self._set("support_top_p", checked_number("support_top_p", self.support_top_p))
            if not 0 < value <= 1:
                raise ArgumentError(
                    "support_top_p",
                    f"support_top_p={value} is outside (0, 1]; it is the mass of the teacher's nucleus, "
                    "leave it out to mix over all tokens",
                )

    def _check_teacher_alone(self) -> None:
        self._set(
            "teacher_only_tokens",
            checked_count("teacher_only_tokens", self.teacher_only_tokens, 0, "0 mixes from the first token on"),
        )
        if self.max_js_divergence is not None:
            value = self._set("max_js_divergence", checked_number("max_js_divergence", self.max_js_divergence))
            if value < 0:
                raise ArgumentError(
                    "max_js_divergence",
                    f"max_js_divergence={value} is negative; give nats, at least 0 (two models are at most "
                    "ln 2 = 0.693 apart), or leave it out",
                )

    def _check_schedule(self) -> None:
        pairs = [name for name in SCHEDULED if isinstance(getattr(self, name), tuple)]
        if self.alpha_steps is None:
            if pairs:
                raise ArgumentError(
                    "alpha_steps",
                    f"{pairs[0]}={shown_ends(getattr(self, pairs[0]))} goes from one value to another; give alpha_steps, the "
                    "number of tokens that this takes",
                )
            return
        self._set(
            "alpha_steps", checked_count("alpha_steps", self.alpha_steps, 1, "it is the number of tokens a pair takes")
        )
        if not pairs:
            raise ArgumentError(
                "alpha_steps",
                f"alpha_steps={self.alpha_steps} has no effect: none of {', '.join(SCHEDULED)} is a pair [start, end]; give "
                "one, or drop it",
            )

    def _check_are_read(self, names: Iterable[str]) -> None:
        """Refuse the first of these arguments that the method does not read."""
        for name in names:
            if self.alpha_method in READERS[name]:
                continue
            why = ", which finds alpha for each token" if name == "alpha" else ""
            raise ArgumentError(
                name,
                f"{name}={shown_ends(getattr(self, name))} has no effect with alpha_method={self.alpha_method!r}{why}; ask "
                f"for alpha_method={' or '.join(map(repr, READERS[name]))}, or drop it",
            )

    def _check_return_top_k(self) -> None:
        self._set("return_top_k", checked_count("return_top_k", self.return_top_k, 0, "0 returns none", LARGEST_TOP_K))
        if self.return_top_k and self.optimal_sampling and not self.return_alpha:
            raise ArgumentError(
                "return_top_k",
                f"return_top_k={self.return_top_k} adds to the per-token record, and return_alpha=False returns none; ask for "
                "return_alpha=True",
            )

    def _check_theta_prompts(self) -> None:
        given = [name for name in THETA_PROMPTS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ArgumentError(given[1], f"{' and '.join(given)} are both theta's prompt; give one of them")
        if self.optimal_sampling and self.theta_chat_template_kwargs is not None and self.theta_messages is None:
            read = given[0] if given else "the teacher's prompt, which theta reads,"
            raise ArgumentError(
                "theta_chat_template_kwargs",
                f"theta_chat_template_kwargs={shown(self.theta_chat_template_kwargs)} has no effect: {read} goes through no "
                "chat template of theta's; give theta's chat as theta_messages, or drop it",
            )

    def _check_opt_out(self) -> None:
        if self.optimal_sampling:
            return
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "optimal_sampling" and value != field.default:
                raise ArgumentError(
                    field.name,
                    f"{field.name}={shown(value)} has no meaning with optimal_sampling=False, which draws from the "
                    "teacher alone; drop it, or ask for optimal_sampling=True",
                )

    @property
    def theta_prompt_argument(self) -> str | None:
        """The name of the argument that holds theta's prompt, None where theta reads the teacher's."""
        return next((name for name in THETA_PROMPTS if getattr(self, name) is not None), None)

    def to_extra_args(self, *, with_defaults: bool = False) -> dict[str, Any]:
        """The arguments as `SamplingParams.extra_args` and `vllm_xargs` carry them: scalars and flat lists only.

        Args:
            with_defaults: also give the values that equal the default (None excepted). Needed only to overrule an
                engine that was started with other defaults: what is left out takes the engine's.

        Returns:
            A new dict, ready for JSON.

        """
        arguments = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and (with_defaults or value != field.default):
                arguments[field.name] = list(value) if isinstance(value, tuple) else value
        for name, readers in READERS.items():
            if self.alpha_method not in readers:
                arguments.pop(name, None)
        if with_defaults and not self.optimal_sampling:
            return {"optimal_sampling": False}
        return arguments

    @classmethod
    def from_extra_args(
        cls,
        mapping: Mapping[str, Any],
        defaults: OptimalSamplingParams | None = None,
        *,
        others: Collection[str] = (),
    ) -> OptimalSamplingParams:
        """Read a request's `extra_args`, strictly: a key that nobody is known to read is refused, never dropped.

        Three kinds of keys are known: the arguments of this class, those that vLLM reads itself (`VLLM_EXTRA_ARGS`,
        left alone), and those that the engine's configuration declares for other plugins (`others`, left alone).

        A request's own value comes before the engine's default; a theta prompt of the request replaces a default one in
        whichever form; None switches an optional argument off; a request that opts out takes no default. JSON's true
        and false may be 1 and 0, which is what vLLM's `vllm_xargs` makes of them.

        Args:
            mapping: `SamplingParams.extra_args`, or `vllm_xargs`.
            defaults: the engine's own defaults.
            others: keys that belong to other plugins.

        Raises:
            ArgumentError: an unknown key (with a suggestion), or a value that the class refuses.

        """
        given = {}
        for key, value in mapping.items():
            if key in _DEFAULTS:
                given[key] = value
            elif key not in VLLM_EXTRA_ARGS and key not in others:
                raise _unknown(key)
        for name in ("optimal_sampling", "return_alpha"):
            if type(given.get(name)) is int and given[name] in (0, 1):
                given[name] = bool(given[name])
        for name, value in given.items():
            if value is None and _DEFAULTS[name] is not None:
                raise ArgumentError(name, f"{name}=None is not a value; leave it out for the default")
        if defaults is None:
            return cls._checked(given, given)
        if given.get("optimal_sampling", defaults.optimal_sampling) is False:
            return cls._opted_out(given)
        merged = {name: getattr(defaults, name) for name in _DEFAULTS}
        if any(given.get(name) is not None for name in THETA_PROMPTS):
            merged.update(dict.fromkeys(THETA_PROMPTS))
        for name, readers in READERS.items():
            if given.get("alpha_method", defaults.alpha_method) not in readers:
                merged[name] = _DEFAULTS[name]
        arguments = merged | given
        if not any(isinstance(arguments[name], (tuple, list)) for name in SCHEDULED):
            arguments["alpha_steps"] = given.get("alpha_steps")
        if arguments["theta_messages"] is None:
            arguments["theta_chat_template_kwargs"] = given.get("theta_chat_template_kwargs")
        try:
            return cls._checked(arguments, given)
        except ArgumentError as error:
            raise ArgumentError(error.argument, error.message + _defaults_in(error, given, defaults)) from None

    @classmethod
    def _checked(cls, arguments: Mapping[str, Any], given: Collection[str]) -> OptimalSamplingParams:
        """The parameters; what was given has to be read by the method even where it is the default's value."""
        params = cls(**arguments)
        if params.optimal_sampling:
            params._check_are_read(name for name in READERS if name in given and getattr(params, name) is not None)
        return params

    @classmethod
    def _opted_out(cls, given: dict[str, Any]) -> OptimalSamplingParams:
        try:
            return cls(**given | {"optimal_sampling": False})
        except ArgumentError as error:
            if "optimal_sampling" in given:
                raise
            raise ArgumentError(
                error.argument,
                f"{error.message} (this engine samples from the teacher alone unless a request says so)",
            ) from None

    @classmethod
    def from_resolved_extra_args(cls, mapping: Mapping[str, Any] | None) -> OptimalSamplingParams:
        """Read `extra_args` that a front end has resolved: defaults are merged, only our keys are looked at."""
        return cls(**{key: value for key, value in (mapping or {}).items() if key in _DEFAULTS})


def ends(value: Scheduled) -> tuple[float, float]:
    """A number's value at a request's first token, and from token `alpha_steps` on."""
    return value if isinstance(value, tuple) else (value, value)


def shown_ends(value: Scheduled | None) -> str:
    """A number or a pair as a request has it."""
    return str(list(value) if isinstance(value, tuple) else value)


_DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(OptimalSamplingParams)}

ARGUMENTS = frozenset(_DEFAULTS)
"""The names of all request arguments."""


def _defaults_in(error: ArgumentError, given: Collection[str], defaults: OptimalSamplingParams) -> str:
    """The end of a sentence that contradicts a request: which of the arguments in it are the engine's defaults."""
    found = [
        f"{name}={shown(getattr(defaults, name))}"
        for name in _DEFAULTS
        if name not in given and getattr(defaults, name) != _DEFAULTS[name] and re.search(rf"\b{name}=", error.message)
    ]
    if not found:
        return ""
    are = "is this engine's default" if len(found) == 1 else "are this engine's defaults"
    return f" ({' and '.join(found)} {are}; a request's own value comes before it)"


def _unknown(key: object) -> ArgumentError:
    name = key if isinstance(key, str) and len(key) <= 48 else shown(key)
    known = sorted(ARGUMENTS)
    remedy = closest(key, known) or (
        f"; known are {', '.join(known)}. If another plugin reads it, start the engine with "
        '--additional-config \'{"optimal_sampling": {"other_extra_args": ["..."]}}\''
    )
    return ArgumentError(name, f"{name} is not an argument of optimal sampling{remedy}")
