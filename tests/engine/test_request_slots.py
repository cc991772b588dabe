"""What the host keeps of requests by slot, so that a step launches what its requests ask for and no more."""

import numpy as np
import pytest
import torch
from vllm.v1.worker.gpu.states import RequestState
from vllm_optimal_sampling.kernels import Search

from vllm_optimal_sampling import OptimalSamplingParams
from vllm_optimal_sampling.worker.theta.requests import ThetaRequests

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SLOTS = 5

if DEVICE.type == "cpu":
    import vllm.v1.worker.cpu.shm  # noqa: F401  what the worker has in place of memory that both sides see


@pytest.fixture
def requests() -> ThetaRequests:
    return ThetaRequests(RequestState(SLOTS, 32, 32, 2, 100, DEVICE))


def test_a_step_searches_what_its_requests_ask_for(requests: ThetaRequests) -> None:
    asked = [
        OptimalSamplingParams(),
        OptimalSamplingParams(support_top_k=20),
        OptimalSamplingParams(support_top_p=0.9, alpha_method="js_gate"),
        OptimalSamplingParams(alpha_method="ess_balance"),
        OptimalSamplingParams(optimal_sampling=False),
    ]
    for slot, params in enumerate(asked):
        requests.add(slot, params, None)
    found = [requests.searches(np.array([slot])) for slot in range(SLOTS)]
    assert found == [Search(0), Search.TOP_K, Search.TOP_P | Search.JS_GATE, Search.ESS_BALANCE, Search(0)]
    assert requests.searches(np.array([4, 0])) == Search(0)
    assert requests.searches(np.array([3, 0, 1])) == Search.TOP_K | Search.ESS_BALANCE
    assert requests.searches(np.array([], dtype=np.int32)) == Search(0)


def test_the_next_request_of_a_slot_asks_for_itself(requests: ThetaRequests) -> None:
    requests.add(1, OptimalSamplingParams(support_top_k=20, alpha_method="ess_balance"), None)
    requests.add(1, OptimalSamplingParams(), None)
    assert requests.searches(np.array([1])) == Search(0)
