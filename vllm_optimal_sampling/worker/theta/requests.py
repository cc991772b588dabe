"""What theta's side knows of each running request, by request slot: on the device what kernels read, else on the host."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from vllm.v1.worker.gpu.buffer_utils import StagedWriteTensor
from vllm.v1.worker.gpu.states import RequestState

from vllm_optimal_sampling.engine_core.layout import slot_shift
from vllm_optimal_sampling.kernels import NEVER, Method, MixSettings, Search
from vllm_optimal_sampling.params import SCHEDULED, OptimalSamplingParams, ends


class SlotValues:
    """One integer for every request slot, on the host (`np`) and on the device (`gpu`).

    The device's are written in the order of the stream. vLLM's `UvaBackedTensor` would not do: its kernels read one of two
    buffers of the host, and theta's round of a step runs after the event that lets the host prepare the step after next,
    which takes the same buffer again.
    """

    def __init__(self, num_slots: int, device: torch.device):
        self.np = np.zeros(num_slots, dtype=np.int32)
        self._staged = StagedWriteTensor(num_slots, dtype=torch.int32, device=device)
        self.gpu = self._staged.gpu

    def set(self, slot: int, value: int) -> None:
        """On the host at once, on the device with the next `apply_write`."""
        self.np[slot] = value
        self._staged.stage_write_elem(slot, value)

    def apply_write(self) -> None:
        self._staged.apply_write()


class ThetaRequests:
    """Theta's prompts, their place beside the teacher's, and the mixing settings, for every request slot.

    A slot is written when a request enters the batch, again after preemption, and read until the next one takes it.

    Args:
        req_states: the model runner's own request state, for prompt lengths and tokens.
    """

    def __init__(self, req_states: RequestState):
        num_slots, device = req_states.max_num_reqs, req_states.device
        self.req_states = req_states
        self.block_size = 1  # the scheduler's, known once the KV cache is laid out
        # Cold and large, like vLLM's own token table: left in host memory that the device reads.
        self.prompts = StagedWriteTensor(
            (num_slots, req_states.max_model_len), dtype=torch.int32, device=device, uva_instead_of_gpu=True
        )
        self.prompt_len = SlotValues(num_slots, device)  # 0: theta reads the teacher's prompt
        self.delta = SlotValues(num_slots, device)
        self.shift = SlotValues(num_slots, device)
        # Theta's positions computed so far, for requests still in their prompt; -1 before the first chunk.
        self.num_computed = np.full(num_slots, -1, dtype=np.int64)
        # Whether the request is sampled from q*: a theta that scores has nothing to do with those that opted out.
        self.is_enabled = np.zeros(num_slots, dtype=bool)
        self._searches = np.zeros(num_slots, dtype=np.int32)  # `Search` of each
        self._dirty = False

        def staged(dtype: torch.dtype) -> StagedWriteTensor:
            return StagedWriteTensor(num_slots, dtype=dtype, device=device)

        self._settings = {
            "first_position": staged(torch.int64),
            "method": staged(torch.int32),
            **{name: staged(torch.float32) for name in SCHEDULED},
            **{f"{name}_end": staged(torch.float32) for name in SCHEDULED},
            "schedule_position": staged(torch.int64),
            "schedule_steps": staged(torch.int32),
            "js_sensitivity": staged(torch.float32),
            "support_top_k": staged(torch.int32),
            "support_top_p": staged(torch.float32),
            "max_js_divergence": staged(torch.float32),
        }
        self._settings["first_position"].gpu.fill_(NEVER)
        self.settings = MixSettings(**{name: tensor.gpu for name, tensor in self._settings.items()})

    def add(self, slot: int, params: OptimalSamplingParams, prompt: Sequence[int] | None) -> None:
        """Take over a slot for a request.

        Args:
            slot: the request slot of vLLM's model runner.
            params: the request's arguments, defaults of the engine merged in.
            prompt: theta's prompt as token ids, or None where theta reads the teacher's.
        """
        prompt_len = int(self.req_states.prompt_len.np[slot])
        delta = len(prompt) - prompt_len if prompt is not None else 0
        self.delta.set(slot, delta)
        self.shift.set(slot, slot_shift(delta, self.block_size))
        self.prompt_len.set(slot, len(prompt) if prompt is not None else 0)
        if prompt is not None:
            self.prompts.stage_write(slot, 0, list(prompt))
        self.num_computed[slot] = -1
        self.is_enabled[slot] = params.optimal_sampling
        # The row at position p yields token p + 1, so the first token drawn comes from position prompt_len - 1.
        first = prompt_len - 1 + params.teacher_only_tokens if params.optimal_sampling else NEVER
        method = Method[params.alpha_method.upper()]
        values: dict[str, float] = {
            "first_position": first,
            "method": method.value,
            "schedule_position": prompt_len - 1,
            "schedule_steps": params.alpha_steps or 1,
            "js_sensitivity": min(params.js_sensitivity, torch.finfo(torch.float32).max),
            "support_top_k": params.support_top_k or 0,
            # A mass that float32 has no number for would be no mass, of no token; the likeliest one is always in.
            "support_top_p": max(params.support_top_p or 1.0, torch.finfo(torch.float32).tiny),
            "max_js_divergence": float("inf") if params.max_js_divergence is None else params.max_js_divergence,
        }
        for name in SCHEDULED:
            value = getattr(params, name)
            values[name], values[f"{name}_end"] = ends(math.inf if value is None else value)
        for name, value in values.items():
            self._settings[name].stage_write_elem(slot, value)
        # A request that opted out has no argument but the defaults, which ask for none.
        self._searches[slot] = Search.of(method, int(values["support_top_k"]), values["support_top_p"])
        self._dirty = True

    def searches(self, slots: np.ndarray) -> Search:
        """What rows of these slots may ask the mix to search."""
        return Search(int(np.bitwise_or.reduce(self._searches[slots])))

    def next_chunk(self, slots: np.ndarray, begin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Theta's part of prompt chunks, which then counts as computed.

        Args:
            slots: [chunks], the requests'.
            begin, end: [chunks] int64, the teacher's positions of each chunk, [begin, end).

        Returns:
            Theta's positions, [start, end) of each; empty while theta has no token yet.
        """
        computed = self.num_computed[slots]
        # Blocks hit in the prefix cache hold theta's slots below `begin`, so its positions below `begin - shift`.
        starts = np.where(computed >= 0, computed, np.maximum(0, begin - self.shift.np[slots]))
        ends = np.maximum(starts, end + self.delta.np[slots])
        self.num_computed[slots] = ends
        return starts, ends

    def apply_staged_writes(self) -> None:
        """Bring what `add` staged to the device, without waiting for it."""
        if not self._dirty:
            return
        self._dirty = False
        self.prompts.apply_write()
        for values in (self.prompt_len, self.delta, self.shift):
            values.apply_write()
        for staged in self._settings.values():
            staged.apply_write()
