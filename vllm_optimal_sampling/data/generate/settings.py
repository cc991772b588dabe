"""What a run is asked for: the settings and their checks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vllm_optimal_sampling.config.theta import NUM_SPECULATIVE_TOKENS, is_teacher
from vllm_optimal_sampling.data.generate.errors import SettingsError
from vllm_optimal_sampling.data.generate.templates import Templates, template_text
from vllm_optimal_sampling.data.rows import SUFFIXES as READ_SUFFIXES
from vllm_optimal_sampling.data.rows import settings_path
from vllm_optimal_sampling.params import ArgumentError, OptimalSamplingParams
from vllm_optimal_sampling.selection import Selection, selection_of
from vllm_optimal_sampling.template_variables import variables_as_json

FORMATS = ("jsonl", "parquet", "hf")

ROW_ARGUMENTS = {
    "optimal_sampling": "every row is sampled from q*; vLLM alone samples from the teacher",
    "theta_prompt": "it is made of each row with theta_template",
    "theta_prompt_token_ids": "theta's prompt is made of each row with theta_template",
    "theta_messages": "theta's chat is made of each row, with chat and theta_template or chat_column",
}
"""Arguments of `OptimalSamplingParams` that are no settings, and why."""

NOT_FOR_SAMPLING = {
    "n": "give --num-samples for samples of a row, or --best-of for candidates of a sample",
    "extra_args": "the arguments of optimal sampling are options of this command",
    "vllm_xargs": "the arguments of optimal sampling are options of this command",
    **dict.fromkeys(("logprobs", "prompt_logprobs", "flat_logprobs", "logprob_token_ids"), "rows have --return-alpha"),
    **dict.fromkeys(("output_kind", "detokenize", "skip_clone"), "rows need the whole text"),
    **{
        name: f"give --{name.replace('_', '-')}"
        for name in ("seed", "max_tokens", "temperature", "top_p", "top_k", "min_p", "stop")
    },
}
"""Fields of vLLM's `SamplingParams` that `sampling` does not take, and what is given instead."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run of `optimal-sampling generate`. Field names are the options' and the YAML file's keys."""

    input: tuple[str, ...]
    output: str
    teacher: str | None = None
    theta: str | None = None
    """"self", or the teacher's own name, for a student with the teacher's weights."""
    theta_lora: str | None = None
    """The LoRA adapter that makes the student of the teacher."""
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
    teacher_chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """What the teacher's chat template reads beside the messages, such as `enable_thinking`. Only with `chat`."""
    theta_chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """The same for theta's."""
    split: str | None = None
    config_name: str | None = None
    id_column: str | None = None
    shard: tuple[int, int] = (0, 1)
    """(i, n): rows i, i + n, i + 2n, ... of the input, from 0."""
    limit: int | None = None
    """At least 1: only so many first rows of the input."""
    num_samples: int = 1
    """At least 1: samples of each row."""
    best_of: int | None = None
    """At least 1: candidates of each sample, of which one is kept. None: what is drawn is the sample."""
    select: str | None = None
    """How one is kept, one of `selection.SELECTIONS`; None: by log Z, if there are candidates."""
    select_by: str | None = None
    """`sum` or `mean` over the tokens, for a selection by a score; None: the sum."""
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
    num_speculative_tokens: int = NUM_SPECULATIVE_TOKENS
    optimal_sampling: OptimalSamplingParams = field(default_factory=OptimalSamplingParams)
    """How tokens are drawn, without theta's prompt and what its template reads. Options and YAML give its arguments by their
    own names."""
    messages: bool = False
    """Also write the whole conversation as `messages`."""
    format: Literal["jsonl", "parquet", "hf"] = "jsonl"
    max_in_flight: int | None = None
    """At least 1: requests given to the engine at a time. None: twice the `max_num_seqs` of all its data-parallel ranks;
    256 of a server."""
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
        self._check_output()
        index, total = self.shard
        if not 0 <= index < total:
            raise SettingsError(f"invalid shard {index}/{total}: expected i/n with 0 <= i < n, such as 0/8")
        for name in ("limit", "num_samples", "best_of", "max_tokens", "num_speculative_tokens", "max_in_flight", "ray"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name}={value} is less than 1")
        if self.seed is not None and not 0 <= self.seed < 1 << 63:
            raise SettingsError(f"seed={self.seed} is not in [0, 2^63)")
        try:
            _ = self.selection
        except ArgumentError as error:
            raise SettingsError(error.message) from None
        if self.log_interval <= 0:
            raise SettingsError(f"log_interval={self.log_interval} is not above 0 seconds")
        for name, reason in NOT_FOR_SAMPLING.items():
            if name in self.sampling:
                raise SettingsError(f"sampling has {name!r}: {reason}")

    @property
    def selection(self) -> Selection | None:
        """How one of a sample's candidates is kept; None where there are none.

        Raises:
            ArgumentError: the settings about it do not go together.

        """
        return selection_of(
            self.best_of,
            self.select,
            self.select_by,
            alpha_method=self.optimal_sampling.alpha_method,
            temperature=self.temperature,
        )

    @property
    def scores_itself(self) -> bool:
        """Whether the student has the teacher's weights: one model, which reads each row's two prompts."""
        return self.teacher is not None and self.theta is not None and is_teacher(self.theta, self.teacher)

    def _check_models(self) -> None:
        if self.endpoint is None:
            for name in ("teacher", "theta"):
                if getattr(self, name) is None:
                    raise SettingsError(
                        f"{name} is missing; give --{name} MODEL, or --endpoint URL of a running server"
                    )
            if self.theta_lora is not None and not self.scores_itself:
                raise SettingsError(
                    f"theta_lora={self.theta_lora!r} makes the student of the teacher, and theta is {self.theta!r}; give "
                    "--theta self with it"
                )
            return
        if self.theta_lora is not None:
            raise SettingsError("theta_lora is for an engine, and endpoint asks a running one; drop one of them")
        if not self.endpoint.startswith(("http://", "https://")):
            raise SettingsError(f"endpoint={self.endpoint!r} is not an address such as http://localhost:8000")
        if self.engine:
            raise SettingsError(
                f"{' '.join(self.engine)} is for an engine, and endpoint={self.endpoint!r} has its own; drop one of them"
            )
        if self.ray is not None:
            raise SettingsError("ray starts engines, and endpoint asks a running one; drop one of them")
        if self.num_speculative_tokens != NUM_SPECULATIVE_TOKENS:
            raise SettingsError(
                f"num_speculative_tokens={self.num_speculative_tokens} is for an engine, and endpoint={self.endpoint!r} was "
                "started with its own; drop one of them"
            )

    def _check_prompts(self) -> None:
        if self.chat_column is not None and not self.chat:
            raise SettingsError(f"chat_column={self.chat_column!r} holds messages; add --chat")
        if self.messages and not self.chat:
            raise SettingsError("messages asks for conversations, and these prompts are text; add --chat")
        for name in ("teacher_chat_template_kwargs", "theta_chat_template_kwargs"):
            variables = getattr(self, name)
            if variables and not self.chat:
                raise SettingsError(f"{name} is for a chat template, and these prompts are text; add --chat")
            try:
                variables_as_json(name, variables)
            except ArgumentError as error:
                raise SettingsError(error.message) from None
        if self.theta_template is None and self.chat_column is None:
            raise SettingsError(
                "theta_template is missing; give a Jinja template over the columns, such as --theta-template "
                "'{{ problem }}' (or --chat --chat-column NAME for a column of chat messages)"
            )
        for name in ("teacher_system_prompt", "theta_system_prompt"):
            text = getattr(self, name)
            if text is None:
                continue
            if not text.strip():
                raise SettingsError(f"{name} is empty; give some text, or leave it out")
            if re.search(r"\{\{.*?\}\}|\{%.*?%\}", text, re.DOTALL):
                raise SettingsError(
                    f"{name} looks like a template and is taken as it is, the same for every row; write columns into "
                    f"{name.partition('_')[0]}_template"
                )
            if "\n" not in text and len(text) < 256 and Path(text).is_file():
                raise SettingsError(f'{name}={text!r} is a file, and the text itself is wanted: "$(cat {text})"')

    def _check_output(self) -> None:
        if self.format not in FORMATS:
            raise SettingsError(f"format={self.format!r} is not one of {', '.join(FORMATS)}")
        suffix = Path(self.output).suffix
        if not Path(self.output).name:
            raise SettingsError(f"output={self.output!r} is a folder; give the name of a file in it")
        endings = {"jsonl": (".jsonl", ".ndjson"), "parquet": (".parquet",)}.get(self.format)
        if endings is not None and suffix not in endings:
            raise SettingsError(
                f"output={self.output!r} does not end in {' or '.join(endings)}, which {self.format} rows are known by; "
                "rename it, or give another --format"
            )
        if endings is None and suffix in READ_SUFFIXES:
            raise SettingsError(f"output={self.output!r} is named like a file, and format={self.format!r} is a folder")

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
        return settings_path(self.rows_path)
