"""New weights for theta in a worker: what is given is held against theta as transformers builds it, then loaded in place.

Everything is checked before anything is written: an update that is refused leaves theta as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from vllm.config import CompilationMode, set_current_vllm_config
from vllm.lora.utils import is_base_embedding_weights

from vllm_optimal_sampling.config.adapters import CONFIG, REMEDY, adapter_rank, read_adapter_config, unsupported_adapter
from vllm_optimal_sampling.config.errors import first_line
from vllm_optimal_sampling.config.theta import theta_model_config

Shapes = Mapping[str, tuple[int, ...]]

SHOWN = 3
"""Names that a message lists."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
LORA_MODULE = "base_model.model."
"""PEFT's prefix of the names in an adapter's file."""
EMBEDDING_MATRICES = ("embedding_A", "embedding_B")
MATRICES = ("A.weight", "B.weight", *EMBEDDING_MATRICES)
"""What such a name ends with behind the module's and "lora_"."""
EXPERTS = "experts"
"""What a mixture of experts has in the names of theirs, which checkpoints, PEFT and vLLM lay out in several ways."""


class ThetaUpdates:
    """Checks and loads new weights for the theta of one model runner."""

    def __init__(self, runner: Any):
        self.runner = runner
        self.model_config = theta_model_config(runner.vllm_config)

    @cached_property
    def _model(self) -> torch.nn.Module:
        """Theta as transformers builds it, without memory for its weights: the names and shapes of a checkpoint."""
        has_images = self.model_config.is_multimodal_model
        model_class = AutoModelForImageTextToText if has_images else AutoModelForCausalLM
        # vLLM's Transformers backend makes the classes that it runs ask for an engine's configuration, and compile.
        config = copy.copy(self.runner.vllm_config)
        config.compilation_config = copy.copy(config.compilation_config)
        config.compilation_config.mode = CompilationMode.NONE
        with torch.device("meta"), set_current_vllm_config(config):
            return model_class.from_config(
                self.model_config.hf_config, trust_remote_code=self.model_config.trust_remote_code
            )

    @cached_property
    def _parameters(self) -> Shapes:
        """Those that an update must have; of tied ones the first name."""
        return {name: tuple(tensor.shape) for name, tensor in self._model.named_parameters()}

    @cached_property
    def _tensors(self) -> Shapes:
        """Those that an update may have."""
        return {name: tuple(tensor.shape) for name, tensor in self._model.state_dict().items()}

    def refusal(self, shapes: Shapes | None, adapter: str | None) -> str | None:
        """Why these weights are not for this theta, as a sentence; None where they are.

        Args:
            shapes: of named parameters; None for an adapter.
            adapter: folder of a LoRA adapter; None for named parameters.
        """
        try:
            if adapter is not None:
                self.runner.theta.check_adapter()
                return self._refusal_of_adapter(Path(adapter))
            self.runner.theta.check_own_weights()
        except ValueError as error:
            return str(error)
        assert shapes is not None
        return self._refusal_of_tensors(shapes)

    @staticmethod
    def is_adapter(folder: str) -> bool:
        """Whether a folder has a LoRA adapter, and not a model."""
        return (Path(folder) / ADAPTER_WEIGHTS).exists()

    def refusal_of_folder(self, folder: str) -> str | None:
        """The same of what a folder has: a model in files of safetensors, or an adapter."""
        if self.is_adapter(folder):
            return self.refusal(None, folder)
        try:
            shapes = {name: shape for path in _files(folder) for name, shape in _shapes_in(path).items()}
        except Exception as error:  # a folder may be anything
            return f"the weights in {folder!r} cannot be read ({first_line(error)}); save the model again"
        if not shapes:
            return (
                f"{folder!r} is no folder with weights (*.safetensors) on the machine of this engine; give the whole path of "
                "one, as save_pretrained writes it"
            )
        return self.refusal(shapes, None)

    def _refusal_of_tensors(self, shapes: Shapes) -> str | None:
        theta = self.model_config.model
        if self.model_config.quantization is not None:
            return (
                f"theta ({theta}) is quantised ({self.model_config.quantization}), and an update brings floats; start the "
                "engine with a theta that is not"
            )
        try:
            parameters, tensors = self._parameters, self._tensors
        except Exception as error:  # transformers has as many errors as models
            return (
                f"theta's names cannot be checked, since transformers does not build {theta} ({first_line(error)}); save the "
                "weights and give their folder to reload_weights"
            )
        if unknown := [name for name in shapes if name not in tensors]:
            return (
                f"theta ({theta}) has no parameter named {_listed(unknown)}; give the names of its checkpoint, such as "
                f"{next(iter(parameters))}, with adapters merged and wrappers taken off"
            )
        if missing := [name for name in parameters if name not in shapes]:
            return f"{_listed(missing)} of theta ({theta}) is missing; give all {len(parameters)} parameters"
        for name, shape in shapes.items():
            if tuple(shape) != tensors[name]:
                return (
                    f"{name} has shape {list(shape)}, and theta's ({theta}) is {list(tensors[name])}; give the parameters of "
                    "a model of the same sizes"
                )
        return None

    def _refusal_of_adapter(self, folder: Path) -> str | None:
        given = f"adapter_path={str(folder)!r}"
        try:
            config = read_adapter_config(folder)
            shapes = _shapes_in(folder / ADAPTER_WEIGHTS)
        except Exception as error:  # a folder may be anything
            return (
                f"{given} cannot be read as a LoRA adapter ({first_line(error)}); give a folder with {CONFIG} and "
                f"{ADAPTER_WEIGHTS}, as PEFT's save_pretrained writes it"
            )
        largest = self.runner.vllm_config.lora_config.max_lora_rank
        if (rank := adapter_rank(config)) > largest:
            return f"{given} has rank {rank}, and this engine takes up to {largest}; start it with a larger --max-lora-rank"
        if (problem := unsupported_adapter(config)) is not None:
            return f"{given} {problem}"
        for name, shape in shapes.items():
            module, _, part = name.removeprefix(LORA_MODULE).rpartition(".lora_")
            if is_base_embedding_weights(name) or EXPERTS in module.split("."):
                continue  # PEFT's copy of the teacher's own, which vLLM leaves where it is; what vLLM checks as it loads it
            if part not in MATRICES:
                return f"{given} has {name}, and vLLM runs LoRA's matrices A and B alone; {REMEDY}"
            weight = self._tensors.get(f"{module}.weight")
            if weight is None or len(weight) != 2:
                return f"{given} changes {module}, which theta does not have; it is of another model"
            outputs, inputs = reversed(weight) if part in EMBEDDING_MATRICES else weight
            if (shape[1] != inputs) if "A" in part else (shape[0] != outputs):
                found = f"{name} of shape {list(shape)}"
                return f"{given} has {found}, and theta's {module} is {list(weight)}; it is of another model"
        return None

    def load(self, tensors: Mapping[str, torch.Tensor] | None, path: str | None, adapter: str | None) -> str | None:
        """Load what `refusal` had nothing against.

        Returns:
            Why vLLM would not take an adapter, as a sentence; theta then has its old one. None where it did.

        Args:
            tensors: by name, of an engine in the caller's process.
            path: a file of safetensors with them, or a folder of such files, for an engine elsewhere.
            adapter: folder of a LoRA adapter.
        """
        if adapter is not None:
            try:
                self.runner.reload_weights(theta_lora=adapter)
            except ValueError as error:
                return str(error)
            return None
        weights = tensors.items() if tensors is not None else _read(str(path))
        self.runner.reload_weights(weights_iterator=iter(weights), theta=True)
        return None


def _files(path: str) -> list[Path]:
    """The files of safetensors in a folder, or the file itself; none where there is nothing."""
    named = Path(path)
    if named.is_dir():
        return sorted(named.glob("*.safetensors"))
    return [named] if named.is_file() else []


def _shapes_in(path: Path) -> Shapes:
    with safe_open(path, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _read(path: str) -> Iterable[tuple[str, torch.Tensor]]:
    for part in _files(path):
        with safe_open(part, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
