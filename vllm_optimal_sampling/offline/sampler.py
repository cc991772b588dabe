"""Optimal sampling of lists of prompts, in one object: both models in one engine, texts and alphas out.

The interface is that of the reference implementation (`OptimalSamplingV1` of VESPO's recipe `optimal_sampling`), with more ways
to find alpha. For vLLM's own outputs there is `vllm.LLM` with `OptimalSamplingParams`.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from vllm_optimal_sampling.argument_checks import ArgumentError, check_bool
from vllm_optimal_sampling.config.theta import NUM_SPECULATIVE_TOKENS
from vllm_optimal_sampling.offline.arguments import (
    alpha_arguments,
    chat,
    check_llm_arguments,
    check_request,
    check_template_variables,
    llm_arguments,
    named_model,
    plain,
)
from vllm_optimal_sampling.offline.output import OptimalSamplingOutput, output_of
from vllm_optimal_sampling.params import OptimalSamplingParams, Scheduled
from vllm_optimal_sampling.selection import selection_of
from vllm_optimal_sampling.weights import theta_version, update_theta

if TYPE_CHECKING:
    import os

    import torch
    from vllm import CompletionOutput, RequestOutput, SamplingParams

LONG_BATCH = 16
"""From so many prompts on `OptimalSampler.generate` shows vLLM's progress bar."""


class OptimalSampler:
    """A teacher and a theta in one vLLM engine, from which q* is sampled.

    Example:
        from vllm_optimal_sampling import OptimalSampler

        teacher, theta = "Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"
        with OptimalSampler(teacher, theta, track_alpha_stats=True) as sampler:
            output = sampler.generate(
                prompts=["Problem: 17 + 25. Answer: 42. Reasoning:"],
                theta_prompts=["Problem: 17 + 25. Reasoning:"],
                max_tokens=256,
            )
        print(output.generated_texts[0], output.alpha_stats[0]["mean"])

    Self-distillation, where the student is the teacher with a prompt that shows less, or a LoRA adapter of it:

        with OptimalSampler(model="Qwen/Qwen3-8B", theta="self", theta_lora="path/of/an/adapter") as sampler: ...

    Args:
        model_teacher: name or folder of the teacher.
        model_theta: name or folder of theta, the smaller model, with the teacher's tokenizer but for special tokens, which
            then drafts. The teacher's own is taken as `theta="self"`, where nothing is said of drafts.
        alpha_method: as in `OptimalSamplingParams`.
        fixed_alpha: in [0, 1]: alpha for the methods `fixed` and `arithmetic`; the others take none but the default.
        alpha_min: in [0, alpha_max]: alpha is raised to it.
        alpha_max: in [alpha_min, 1]: alpha is lowered to it.
        teacher_system_prompt: put before every prompt of the teacher: as the system message with
            `enable_chat_template`, else as text with an empty line after it.
        theta_system_prompt: the same for theta.
        enable_chat_template: make a user message of every prompt, and put it through each model's own chat template.
        track_alpha_stats: return `alpha_stats` and `alpha_history`.
        gpu_memory_utilization: in (0, 1]: the share of the GPU's memory for both models and their cache. None: 0.9, and on
            a machine without a GPU 0.5 of its memory.
        num_speculative_tokens: at least 1: tokens that are drafted in a round, by theta or by what `speculative_config`
            names beside `theta`. It changes the speed, not the distribution.
        model: another name of `model_teacher`.
        theta: in place of `model_theta`, a theta that scores what something else drafts, or each token: "self" for the
            teacher's own weights, else name or folder. `speculative_config` may name n-grams, EAGLE or MTP as the drafter.
        theta_lora: name or folder of a LoRA adapter that makes theta of the teacher; with `theta="self"`.
        kl_budget: in nats, above 0: how far q* may be from theta at a token, for the method `kl_budget`.
        js_sensitivity: above 0, per nat, for the method `js_gate`.
        alpha_steps: at least 1, where one of `fixed_alpha`, `alpha_min`, `alpha_max` and `kl_budget` is a pair [start, end]:
            over how many tokens of a completion it goes from start to end.
        **other_arguments: everything else that `vllm.LLM` takes, such as `max_model_len`, `tensor_parallel_size`, `seed`
            or `trust_remote_code`. Entries of `logits_processors` and `speculative_config` are added to those of
            optimal sampling.

    Raises:
        ArgumentError: (a ValueError) an argument is refused, or contradicts or repeats one of `other_arguments`, before any
            model is loaded.
        UnsupportedEngineError: (a ValueError) these models or arguments cannot do optimal sampling.
    """

    def __init__(
        self,
        model_teacher: str | None = None,
        model_theta: str | None = None,
        alpha_method: str = "kl_symmetry",
        fixed_alpha: Scheduled = 0.5,
        alpha_min: Scheduled = 0.0,
        alpha_max: Scheduled = 1.0,
        teacher_system_prompt: str | None = None,
        theta_system_prompt: str | None = None,
        enable_chat_template: bool = False,
        track_alpha_stats: bool = False,
        gpu_memory_utilization: float | None = None,
        num_speculative_tokens: int = NUM_SPECULATIVE_TOKENS,
        *,
        model: str | None = None,
        theta: str | None = None,
        theta_lora: str | None = None,
        kl_budget: Scheduled | None = None,
        js_sensitivity: float = 50.0,
        alpha_steps: int | None = None,
        **other_arguments: Any,
    ) -> None:
        teacher = named_model("model_teacher", model_teacher, "model", model)
        named = named_model("model_theta", model_theta, "theta", theta)
        check_bool("enable_chat_template", enable_chat_template)
        check_bool("track_alpha_stats", track_alpha_stats)
        self.set_alpha(
            alpha_method,
            fixed_alpha,
            alpha_min,
            alpha_max,
            kl_budget=kl_budget,
            js_sensitivity=js_sensitivity,
            alpha_steps=alpha_steps,
        )
        for name, prompt in (
            ("teacher_system_prompt", teacher_system_prompt),
            ("theta_system_prompt", theta_system_prompt),
        ):
            if prompt is not None and (not isinstance(prompt, str) or not prompt.strip()):
                raise ArgumentError(name, f"{name}={prompt!r} is not text; give some, or leave it out")
        self.model_teacher = teacher
        self.model_theta = named
        self.teacher_system_prompt = teacher_system_prompt
        self.theta_system_prompt = theta_system_prompt
        self.enable_chat_template = enable_chat_template
        self.track_alpha_stats = track_alpha_stats

        self._is_closed = False
        self._lock = threading.Lock()  # two calls in the engine at once would get each other's outputs
        check_llm_arguments(other_arguments, enable_chat_template, theta_system_prompt)
        arguments = llm_arguments(
            teacher, named, theta, theta_lora, num_speculative_tokens, gpu_memory_utilization, other_arguments
        )

        from vllm import LLM

        self.llm = LLM(**arguments)

    def set_alpha(
        self,
        alpha_method: str = "kl_symmetry",
        fixed_alpha: Scheduled = 0.5,
        alpha_min: Scheduled = 0.0,
        alpha_max: Scheduled = 1.0,
        *,
        kl_budget: Scheduled | None = None,
        js_sensitivity: float = 50.0,
        alpha_steps: int | None = None,
    ) -> None:
        """Find alpha in this way from the next call on, such as with a budget that falls from one training step to the next.

        The arguments are those of the sampler, and what is left out is their default, not what held before.

        Raises:
            ArgumentError: (a ValueError) one is refused; then what held before goes on.
        """
        self._alpha = alpha_arguments(
            fixed_alpha,
            alpha_method=alpha_method,
            alpha_min=alpha_min,
            alpha_max=alpha_max,
            kl_budget=kl_budget,
            js_sensitivity=js_sensitivity,
            alpha_steps=alpha_steps,
        )

    def generate(
        self,
        prompts: Sequence[str],
        theta_prompts: Sequence[str] | None = None,
        max_tokens: int = 100,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = -1,
        use_optimal_sampling: bool = True,
        seed: int | None = None,
        use_tqdm: bool | None = None,
        best_of: int | None = None,
        select: str | None = None,
        select_by: str | None = None,
        teacher_chat_template_kwargs: Mapping[str, Any] | None = None,
        theta_chat_template_kwargs: Mapping[str, Any] | None = None,
        **sampling_arguments: Any,
    ) -> OptimalSamplingOutput:
        """Draw one completion for each prompt.

        Args:
            prompts: the teacher's prompts as text.
            theta_prompts: theta's, one for each of `prompts`. None: the same as the teacher's, with theta's own system
                prompt and chat template.
            max_tokens: at least 1: completions end there.
            temperature: at least 0, applied to q*; 0 takes the likeliest token.
            top_p: in (0, 1], of q* after the temperature.
            top_k: of q* after the temperature; -1 is off.
            use_optimal_sampling: False draws from the teacher alone; theta's prompts are then not looked at.
            seed: completion i is drawn with seed + i, and candidate j of completion i with seed + i * best_of + j. The same
                seeds in the same batch give the same completions.
            use_tqdm: show a progress bar; None does from 16 prompts on.
            best_of: at least 1: draw so many candidates for each prompt, from one cache of it, and return one. None: what is
                drawn is returned.
            select: which of them, one of `selection.SELECTIONS`; None: `log_z`, the largest Σ log Z.
            select_by: `sum` (None) or `mean` over the tokens, for `log_z` and `teacher_logprob`.
            teacher_chat_template_kwargs: with `enable_chat_template`: what the teacher's template reads beside the messages,
                such as `{"enable_thinking": True}`.
            theta_chat_template_kwargs: the same for theta's template; each variable comes before the engine's of that name.
            **sampling_arguments: everything else that `vllm.SamplingParams` takes, such as `stop` or `min_p`.

        Raises:
            ArgumentError: (a ValueError) `theta_prompts` has another length than `prompts`, a list is not a list of texts,
                `sampling_arguments` has what is not for it, `best_of`, `select` and `select_by` do not go together, or a
                template's variables are given without `enable_chat_template`, are not an object, or have a name that no
                template reads.
            RuntimeError: the sampler is closed, or its engine is at work on requests that are not this sampler's.
            VLLMValidationError: vLLM or optimal sampling refuses an argument or a prompt, such as one that is too long.
        """
        from vllm import SamplingParams

        self._check_open()
        check_request(prompts, theta_prompts, use_optimal_sampling, best_of, sampling_arguments)
        check_template_variables(
            self.enable_chat_template,
            teacher_chat_template_kwargs=teacher_chat_template_kwargs,
            theta_chat_template_kwargs=theta_chat_template_kwargs,
        )
        method = self._alpha["alpha_method"]
        selection = selection_of(best_of, select, select_by, alpha_method=method, temperature=temperature)
        num_drawn = best_of or 1
        record = {} if selection is None else {"return_alpha": True}  # what candidates are compared by
        params = [
            SamplingParams(
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                seed=None if seed is None else seed + number * num_drawn,
                n=num_drawn,
                extra_args=self._extra_args(theta_prompt, theta_chat_template_kwargs) | record
                if use_optimal_sampling
                else {"optimal_sampling": False},
                **sampling_arguments,
            )
            for number, theta_prompt in enumerate(prompts if theta_prompts is None else theta_prompts)
        ]
        if use_tqdm is None:
            use_tqdm = len(prompts) >= LONG_BATCH
        run, given = self._for_the_teacher(prompts, teacher_chat_template_kwargs)
        outputs = self._run(run, given, params, use_tqdm)
        return output_of(outputs, selection, seed, with_alphas=self.track_alpha_stats and use_optimal_sampling)

    def generate_from_tokens(
        self,
        prompts: Sequence[Sequence[int]],
        theta_prompts: Sequence[Sequence[int]],
        *,
        seed: int | None = None,
        use_tqdm: bool = False,
        return_top_k: int = 0,
        **sampling_arguments: Any,
    ) -> list[CompletionOutput]:
        """Draw one completion for each prompt, with its record: what a training loop samples.

        System prompts and chat templates are not applied. The alpha of this sampler's arguments holds.

        Args:
            prompts: the teacher's, as token ids.
            theta_prompts: theta's, one for each of `prompts`.
            seed: completion i is drawn with seed + i.
            use_tqdm: show a progress bar.
            return_top_k: in [0, 128]: the records also have the k likeliest tokens of each row under q*.
            **sampling_arguments: of `vllm.SamplingParams`, such as `max_tokens` or `temperature`.

        Returns:
            vLLM's completions in the order of the prompts; `completion.optimal_sampling` is the `TokenRecords`.

        Raises:
            ArgumentError: (a ValueError) the numbers of prompts differ.
            RuntimeError, VLLMValidationError: as `generate`.

        """
        from vllm import SamplingParams

        self._check_open()
        if len(theta_prompts) != len(prompts):
            raise ArgumentError(
                "theta_prompts",
                f"there are {len(prompts)} prompts and {len(theta_prompts)} theta_prompts; give one for each",
            )
        params = [
            SamplingParams(
                seed=None if seed is None else seed + number,
                extra_args=OptimalSamplingParams(theta_prompt_token_ids=tuple(prompt)).to_extra_args()
                | self._alpha
                | {"return_alpha": True, "return_top_k": return_top_k},
                **sampling_arguments,
            )
            for number, prompt in enumerate(theta_prompts)
        ]
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        return [output.outputs[0] for output in self._run(self.llm.generate, given, params, use_tqdm)]

    def update_theta(
        self,
        named_parameters: Mapping[str, torch.Tensor]
        | Iterable[tuple[str, torch.Tensor]]
        | torch.nn.Module
        | None = None,
        *,
        adapter_path: str | os.PathLike[str] | None = None,
    ) -> int:
        """Give theta new weights in place, between calls; see `weights.update_theta` for arguments, version and errors.

        A `generate` that another thread has begun ends on the old weights first.
        """
        with self._lock:
            self._check_open()
            return update_theta(self.llm, named_parameters, adapter_path=adapter_path)

    @property
    def theta_version(self) -> int:
        """How often theta's weights were replaced: `theta_version` of the records of the next call."""
        return theta_version(self.llm)

    def _for_the_teacher(
        self, prompts: Sequence[str], variables: Mapping[str, Any] | None
    ) -> tuple[Callable[..., list[RequestOutput]], list[Any]]:
        """vLLM's method that takes the teacher's prompts, and the prompts as it takes them."""
        if self.enable_chat_template:
            run = functools.partial(self.llm.chat, chat_template_kwargs=dict(variables or {}))
            return run, [chat(prompt, self.teacher_system_prompt) for prompt in prompts]
        return self.llm.generate, [plain(prompt, self.teacher_system_prompt) for prompt in prompts]

    def _run(
        self, run: Callable[..., list[RequestOutput]], prompts: list[Any], params: list[SamplingParams], use_tqdm: bool
    ) -> list[RequestOutput]:
        """vLLM's outputs for the prompts, in their order."""
        if not prompts:
            return []
        with self._lock, self._nothing_left_open():
            self._check_open()  # another thread may have had the lock to close it
            outputs = run(prompts, params, use_tqdm=use_tqdm)
        if len(outputs) != len(prompts):
            raise RuntimeError(
                f"vLLM returned {len(outputs)} outputs for {len(prompts)} prompts; nothing tells which is whose"
            )
        return outputs

    @contextlib.contextmanager
    def _nothing_left_open(self) -> Iterator[None]:
        """Abort what is still open after an exception (Ctrl-C): vLLM would give it out as outputs of the next call."""
        engine = self.llm.llm_engine
        if num_open := engine.get_num_unfinished_requests():
            raise RuntimeError(
                f"the engine is at work on {num_open} requests that are not this sampler's (such as of llm.enqueue); finish "
                "them first"
            )
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):  # of an engine that died: the error on its way says it better
                engine.abort_request(list(engine.output_processor.request_states), internal=True)
            raise

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("this sampler is closed; make a new one")

    def _extra_args(self, theta_prompt: str, variables: Mapping[str, Any] | None) -> dict[str, Any]:
        if self.enable_chat_template:
            messages = chat(theta_prompt, self.theta_system_prompt)
            prompt: dict[str, Any] = {"theta_messages": messages, "theta_chat_template_kwargs": variables}
        else:
            prompt = {"theta_prompt": plain(theta_prompt, self.theta_system_prompt)}
        # What equals the default is written out: the engine may have been given other defaults.
        return OptimalSamplingParams(**prompt).to_extra_args() | self._alpha | {"return_alpha": self.track_alpha_stats}

    def close(self) -> None:
        """Stop the engine and free its memory. The sampler cannot be used afterwards; closing it again does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self.llm.llm_engine.engine_core.shutdown()

    def __enter__(self) -> OptimalSampler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(model_teacher={self.model_teacher!r}, model_theta={self.model_theta!r}, "
            f"alpha_method={self._alpha['alpha_method']!r})"
        )


OptimalSamplingV1 = OptimalSampler
"""The name that the reference implementation gives it."""
