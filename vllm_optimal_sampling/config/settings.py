"""The settings of an engine, `additional_config["optimal_sampling"]`, and whether it has any: whether it is enabled.

Imported in every process of every engine: heavy imports are inside functions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_optimal_sampling.params import ARGUMENTS, ArgumentError, OptimalSamplingParams, closest, shown
from vllm_optimal_sampling.template_variables import check_variables

if TYPE_CHECKING:
    from vllm.config import VllmConfig

NAME = "optimal_sampling"
"""What `--logits-processor` and `logits_processors=[...]` call it."""

KEY = "optimal_sampling"
"""Where `VllmConfig.additional_config` holds the settings."""

PROCESSOR = "vllm_optimal_sampling.worker.processor:OptimalSamplingLogitsProcessor"
"""The class behind the name; an engine may ask with it, or with the class itself."""

ENGINE_SETTINGS = (
    "theta",
    "theta_lora",
    "theta_chat_template",
    "theta_system_prompt",
    "theta_prompt_graphs",
    "require_theta_prompt",
    "other_extra_args",
)
"""Keys of `additional_config["optimal_sampling"]` beside the request arguments, which a request cannot have."""

VARIABLES = "theta_chat_template_kwargs"
"""A request's argument too, but no default that it replaces: each variable of the engine's holds that a request leaves out."""


def is_enabled(vllm_config: VllmConfig) -> bool:
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
    theta: str | None = None
    """Who theta is where it does not draft: "self" for the teacher's own weights, else a model's name or folder. None:
    theta is the draft model of `speculative_config`."""
    theta_lora: str | None = None
    """Name or folder of the LoRA adapter that makes theta of the teacher; only beside `theta="self"`."""
    theta_chat_template: str | None = None
    """Jinja template for `theta_messages`, as text; given as a file's path, it is read once, at start-up. None: the
    template of theta's own tokenizer."""
    theta_chat_template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What the template of `theta_messages` reads beside them, such as `enable_thinking`, where the request's argument of this
    name does not say otherwise. A request's `chat_template_kwargs` are for the teacher's chat alone."""
    theta_system_prompt: str | None = None
    """Put before `theta_messages` that do not begin with a system message."""
    theta_prompt_graphs: bool = False
    """Run theta's part of steps with prompt chunks in CUDA graphs of its pieces, where vLLM makes some. Off: no GPU has run
    them yet."""
    require_theta_prompt: bool = False
    """Refuse a request that is mixed and has no theta prompt of its own, where theta would read the teacher's."""
    other_extra_args: tuple[str, ...] = ()
    """Keys of `extra_args` that another plugin reads. Any other unknown key is refused."""

    @classmethod
    def from_config(cls, vllm_config: VllmConfig) -> EngineSettings:
        """The settings of an engine that was asked for optimal sampling."""
        assert is_enabled(vllm_config)
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
        _check_names_and_types(where, mapping)
        required = mapping.get("require_theta_prompt", False)
        others = mapping.get("other_extra_args", ())
        try:
            variables = check_variables(
                VARIABLES, mapping.get(VARIABLES, {}), remedy="drop it (a template goes to theta_chat_template)"
            )
            defaults = OptimalSamplingParams.from_extra_args(
                {key: value for key, value in mapping.items() if key in ARGUMENTS - {VARIABLES}}
            )
        except ArgumentError as error:
            raise ValueError(f"{where}: {error}") from None
        if required and defaults.theta_prompt_argument is not None:
            raise ValueError(
                f"{where}: require_theta_prompt asks each request for a prompt, and {defaults.theta_prompt_argument} gives "
                "one to those that have none; drop one of them"
            )
        if misplaced := sorted(set(others) & ARGUMENTS):
            raise ValueError(f"{where}: other_extra_args has {', '.join(misplaced)}, optimal sampling's own; drop it")
        return cls(
            defaults=defaults,
            theta=mapping.get("theta"),
            theta_lora=mapping.get("theta_lora"),
            theta_chat_template=mapping.get("theta_chat_template"),
            theta_chat_template_kwargs=dict(variables),
            theta_system_prompt=mapping.get("theta_system_prompt"),
            theta_prompt_graphs=mapping.get("theta_prompt_graphs", False),
            require_theta_prompt=required,
            other_extra_args=tuple(others),
        )

    def to_mapping(self) -> dict[str, Any]:
        """The settings as `additional_config` carries them: what differs from the default, ready for JSON."""
        settings: dict[str, Any] = self.defaults.to_extra_args()
        for key in (*ENGINE_SETTINGS, VARIABLES):
            value = getattr(self, key)
            if value:
                settings[key] = list(value) if isinstance(value, tuple) else value
        return settings


def _check_names_and_types(where: str, mapping: Mapping[Any, Any]) -> None:
    """Refuse unknown settings, and values of another type; those of request arguments are checked where these are read.

    Args:
        where: the mapping's place, for the error.
        mapping: the settings.

    Raises:
        ValueError: one is refused.

    """
    for key in mapping:
        if key not in ARGUMENTS and key not in ENGINE_SETTINGS:
            known = sorted({*ARGUMENTS, *ENGINE_SETTINGS})
            raise ValueError(
                f"{where} has no setting {shown(key)}{closest(key, known) or '; known are ' + ', '.join(known)}"
            )
    for key in ("theta", "theta_lora", "theta_chat_template", "theta_system_prompt"):
        text = mapping.get(key)
        if text is not None and (not isinstance(text, str) or not text):
            raise ValueError(f"{where}: {key}={shown(text)} is not text; give some, or leave it out")
    for key in ("theta_prompt_graphs", "require_theta_prompt"):
        if not isinstance(mapping.get(key, False), bool):
            raise ValueError(f"{where}: {key}={shown(mapping[key])} is not true or false")
    others = mapping.get("other_extra_args", ())
    if not isinstance(others, (list, tuple)) or not all(isinstance(name, str) for name in others):
        raise ValueError(f"{where}: other_extra_args={shown(others)} is not a list of names")
