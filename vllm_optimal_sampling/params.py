"""What a request asks of optimal sampling: the arguments, their meaning, and every reason to refuse one.

The same arguments travel in `SamplingParams.extra_args` and, over HTTP, in `vllm_xargs`. Neither torch nor vLLM is
imported here: clients and front ends import this module first.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import numbers
import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ALPHA_METHODS = ("kl_symmetry", "fixed", "entropy", "ess_balance", "reverse_kl_symmetry", "arithmetic")
"""Ways to find alpha, the weight of the teacher. `arithmetic` mixes probabilities, the others are geometric."""

THETA_PROMPTS = ("theta_prompt", "theta_prompt_token_ids", "theta_messages")
"""The three ways to give theta a prompt of its own. A request has at most one."""

VLLM_EXTRA_ARGS = frozenset({"kv_transfer_params", "ec_transfer_params", "kv_cache_report_mode", "session_id"})
"""Keys that vLLM itself reads from `extra_args` or `vllm_xargs`; never ours to judge."""

LARGEST_COUNT = 2**31 - 1
"""Counts and token ids reach the device as int32."""

DEEPEST_MESSAGE = 16
"""Levels of lists and objects that `theta_messages` may have. A chat has 2, one with tool calls about 6."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 48
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 4
_SHORT.maxlevel = 2


class ArgumentError(ValueError):
    """An argument was refused.

    Attributes:
        argument: its name, as a request spells it.
        message: what was given, what is allowed and what to do.

    """

    def __init__(self, argument: str, message: str) -> None:
        super().__init__(argument, message)
        self.argument = argument
        self.message = message

    def __str__(self) -> str:
        return self.message


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
        vllm_optimal_sampling.params.ArgumentError: alpha_min=0.9 is above alpha_max=0.5; swap them or drop one

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
    alpha_method: str = "kl_symmetry"
    """One of `ALPHA_METHODS`."""
    alpha: float = 0.5
    """In [0, 1]: the weight of the teacher. Read by `fixed` and `arithmetic` only."""
    alpha_min: float = 0.0
    """In [0, alpha_max]: alpha is raised to it."""
    alpha_max: float = 1.0
    """In [alpha_min, 1]: alpha is lowered to it."""
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

    def __post_init__(self) -> None:
        for name in ("optimal_sampling", "return_alpha"):
            _check_bool(name, getattr(self, name))
        _check_text("theta_prompt", self.theta_prompt)
        self._set("theta_prompt_token_ids", _token_ids(self.theta_prompt_token_ids))
        self._set("theta_messages", _messages_as_json(self.theta_messages))
        if self.alpha_method not in ALPHA_METHODS:
            raise ArgumentError(
                "alpha_method",
                f"alpha_method={shown(self.alpha_method)} is not one of {', '.join(ALPHA_METHODS)}"
                + closest(self.alpha_method, ALPHA_METHODS),
            )
        for name in ("alpha", "alpha_min", "alpha_max"):
            value = self._set(name, _number(name, getattr(self, name)))
            if not 0 <= value <= 1:
                raise ArgumentError(name, f"{name}={value} is outside [0, 1]; 0 is theta alone, 1 is the teacher alone")
        if self.alpha_min > self.alpha_max:
            raise ArgumentError(
                "alpha_min", f"alpha_min={self.alpha_min} is above alpha_max={self.alpha_max}; swap them or drop one"
            )
        if self.support_top_k is not None:
            self._set(
                "support_top_k", _count("support_top_k", self.support_top_k, 1, "leave it out to mix over all tokens")
            )
        if self.support_top_p is not None:
            value = self._set("support_top_p", _number("support_top_p", self.support_top_p))
            if not 0 < value <= 1:
                raise ArgumentError(
                    "support_top_p",
                    f"support_top_p={value} is outside (0, 1]; it is the mass of the teacher's nucleus, "
                    "leave it out to mix over all tokens",
                )
        self._set(
            "teacher_only_tokens",
            _count("teacher_only_tokens", self.teacher_only_tokens, 0, "0 mixes from the first token on"),
        )
        if self.max_js_divergence is not None:
            value = self._set("max_js_divergence", _number("max_js_divergence", self.max_js_divergence))
            if value < 0:
                raise ArgumentError(
                    "max_js_divergence",
                    f"max_js_divergence={value} is negative; give nats, at least 0 (two models are at most "
                    "ln 2 = 0.693 apart), or leave it out",
                )
        self._check_theta_prompts()
        self._check_opt_out()

    def _set(self, name: str, value: Any) -> Any:
        object.__setattr__(self, name, value)
        return value

    def _check_theta_prompts(self) -> None:
        given = [name for name in THETA_PROMPTS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ArgumentError(given[1], f"{' and '.join(given)} are both theta's prompt; give one of them")

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
            return cls(**given)
        if given.get("optimal_sampling", defaults.optimal_sampling) is False:
            return cls._opted_out(given)
        merged = {name: getattr(defaults, name) for name in _DEFAULTS}
        if any(given.get(name) is not None for name in THETA_PROMPTS):
            merged.update(dict.fromkeys(THETA_PROMPTS))
        return cls(**merged | given)

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


_DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(OptimalSamplingParams)}

ARGUMENTS = frozenset(_DEFAULTS)
"""The names of all request arguments."""


def shown(value: object) -> str:
    """A value as an error message quotes it: its repr, abbreviated when long."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return f"<{type(value).__name__}, too long to show>"


def parse_messages(text: str) -> list[dict[str, Any]]:
    """Theta's chat from its JSON, checked.

    Returns:
        Messages with `role`, `content` (text; parts are joined by newlines, as vLLM does), and what else they had.

    Raises:
        ArgumentError: not JSON, not a list of messages, a part that is not text, nested too deeply.

    """
    try:
        messages = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise ArgumentError(
            "theta_messages",
            f"theta_messages={shown(text)} is not JSON ({error}); "
            'give a list of messages such as [{"role": "user", "content": "..."}]',
        ) from None
    if "\\ud" in text.lower():  # an escape may hide half a surrogate pair
        _check_text("theta_messages", json.dumps(messages, ensure_ascii=False))
    return _check_messages(messages)


def _messages_as_json(messages: object) -> str | None:
    if messages is None:
        return None
    if isinstance(messages, str):
        _check_text("theta_messages", messages)
        parse_messages(messages)
        return messages
    if not isinstance(messages, Sequence) or isinstance(messages, bytes):
        raise _wrong_type("theta_messages", messages, "a list of messages or that list as JSON text")
    _check_messages(list(messages))
    try:
        text = json.dumps([dict(message) for message in messages], ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArgumentError("theta_messages", f"theta_messages cannot be written as JSON ({error})") from None
    _check_text("theta_messages", text)
    return text


def _check_messages(messages: object) -> list[dict[str, Any]]:
    wanted = 'give a list of messages such as [{"role": "user", "content": "..."}]'
    if not isinstance(messages, list):
        raise ArgumentError("theta_messages", f"theta_messages is {_kind(messages)}, not a list; {wanted}")
    if not messages:
        raise ArgumentError("theta_messages", f"theta_messages is empty; {wanted}, or leave it out")
    _check_depth(messages)
    checked = []
    for number, message in enumerate(messages):
        name = f"theta_messages[{number}]"
        if not isinstance(message, Mapping):
            raise ArgumentError("theta_messages", f"{name} is {_kind(message)}, not a message; {wanted}")
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise ArgumentError("theta_messages", f"{name} has role {shown(role)}; give a name such as 'user'")
        checked.append({**message, "content": _content(name, message)})
    return checked


def _content(name: str, message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and content:
        parts = [part["text"] for part in content if _is_text_part(part)]
        if len(parts) == len(content):
            return "\n".join(parts)
    raise ArgumentError(
        "theta_messages",
        f"{name} has content {shown(content)}; give text, or a list of parts such as "
        '{"type": "text", "text": "..."} (theta reads text only)',
    )


def _is_text_part(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _check_depth(value: object) -> None:
    """Without recursion, so that no nesting is too deep to be refused."""
    level = [value]
    for _ in range(DEEPEST_MESSAGE + 1):
        level = [
            child
            for parent in level
            if isinstance(parent, (Mapping, list, tuple))
            for child in (parent.values() if isinstance(parent, Mapping) else parent)
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> ArgumentError:
    return ArgumentError(
        "theta_messages", f"theta_messages is nested more than {DEEPEST_MESSAGE} levels deep; flatten it"
    )


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON value")


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise _wrong_type(name, value, "true or false")


def _check_text(name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise _wrong_type(name, value, "text")
    if not value:
        raise ArgumentError(
            name, f"{name} is empty; give theta at least one token, or leave it out for the teacher's prompt"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(
            name,
            f"{name} has half a surrogate pair (U+{ord(value[error.start]):04X}) at character {error.start}; "
            "send valid Unicode text",
        ) from None


def _token_ids(value: object) -> tuple[int, ...] | None:
    name = "theta_prompt_token_ids"
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise _wrong_type(name, value, "a list of token ids")
    if not value:
        raise ArgumentError(name, f"{name} is empty; give at least one token, or leave it out for the teacher's prompt")
    if set(map(type, value)) == {int} and min(value) >= 0 and max(value) <= LARGEST_COUNT:
        return tuple(value)  # a long prompt, without a Python loop
    for position, token in enumerate(value):
        if not _is_integer(token):
            raise _wrong_type(f"{name}[{position}]", token, "a whole number", argument=name)
        if not 0 <= token <= LARGEST_COUNT:
            raise ArgumentError(
                name,
                f"{name}[{position}]={shown(token)} is not a token id; ids run from 0 to below the vocabulary size",
            )
    return tuple(int(token) for token in value)


def _count(name: str, value: object, least: int, remedy: str) -> int:
    if not _is_integer(value):
        raise _wrong_type(name, value, "a whole number")
    number = int(value)  # type: ignore[call-overload]
    if not least <= number <= LARGEST_COUNT:
        raise ArgumentError(name, f"{name}={shown(number)} is outside [{least}, {LARGEST_COUNT}]; {remedy}")
    return number


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _wrong_type(name, value, "a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ArgumentError(name, f"{name}={shown(value)} is not a finite number; give an ordinary one")
    return number


def _is_integer(value: object) -> bool:
    return type(value) is int or (isinstance(value, numbers.Integral) and not isinstance(value, bool))


def _wrong_type(name: str, value: object, wanted: str, argument: str | None = None) -> ArgumentError:
    hint = ""
    if isinstance(value, str) and wanted in ("a number", "a whole number", "true or false"):
        hint = f"; send it without quotes{f' ({value})' if len(value) <= 12 and value.isprintable() else ''}"
    return ArgumentError(argument or name, f"{name}={shown(value)} is {_kind(value)}, not {wanted}{hint}")


def _kind(value: object) -> str:
    kinds = {
        bool: "a bool",
        str: "text",
        bytes: "bytes",
        int: "an integer",
        float: "a float",
        list: "a list",
        tuple: "a tuple",
        dict: "an object",
        type(None): "null",
    }
    return kinds.get(type(value), f"a {type(value).__name__}")


def _unknown(key: object) -> ArgumentError:
    name = key if isinstance(key, str) and len(key) <= 48 else shown(key)
    known = sorted(ARGUMENTS)
    remedy = closest(key, known) or (
        f"; known are {', '.join(known)}. If another plugin reads it, start the engine with "
        '--additional-config \'{"optimal_sampling": {"other_extra_args": ["..."]}}\''
    )
    return ArgumentError(name, f"{name} is not an argument of optimal sampling{remedy}")


def closest(name: object, known: Collection[str]) -> str:
    """The end of a sentence about an unknown name: ": did you mean ...?", or nothing where none is close."""
    if not isinstance(name, str):
        return ""
    close = difflib.get_close_matches(name[:64].lower().replace("-", "_"), known, n=1, cutoff=0.7)
    return f": did you mean {close[0]}?" if close else ""
