"""A backend of vLLM's weight transfer that reads a folder, for machines without the links between GPUs that vLLM's own need."""

from __future__ import annotations

from dataclasses import dataclass

from safetensors.torch import load_file
from vllm.distributed.weight_transfer.base import WeightTransferEngine
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from vllm_optimal_sampling.worker.theta.loading import repack_tied_heads

BACKEND = "files"


@dataclass
class Nothing:
    """What this transfer has to agree on beforehand."""


@dataclass
class Folder:
    """One update: a folder with a model's weights."""

    path: str


class FolderTransfer(WeightTransferEngine[Nothing, Folder]):
    """vLLM's weight transfer with a folder in place of the links between GPUs, which a CPU has none of."""

    init_info_cls = Nothing
    update_info_cls = Folder

    def init_transfer_engine(self, init_info: Nothing) -> None:
        pass

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, str]) -> None:  # the parent's waits for an accelerator
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: Folder) -> None:
        self.model.load_weights(load_file(f"{update_info.path}/model.safetensors").items())

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        repack_tied_heads(self.model)  # only the CPU build keeps a copy that would stay the old one's

    def shutdown(self) -> None:
        pass


WeightTransferEngineFactory.register_engine(BACKEND, FolderTransfer)


class Extension:
    """Nothing: `--worker-extension-cls support.folder_transfer.Extension` makes a server's worker import this module."""
