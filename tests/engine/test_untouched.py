"""An engine that was not asked for optimal sampling does not notice that the package is installed."""

import os
import subprocess
import sys

import pytest

from support.gpu import ON_GPU

V2, V1 = ("gpu", "gpu_model_runner") if ON_GPU else ("cpu", "cpu_model_runner")
"""Where the runners of this machine's build are, below vllm.v1.worker."""

SCRIPT = """
import sys
import torch
from transformers import AutoModelForCausalLM
from vllm import LLM, SamplingParams

teacher, theta = sys.argv[1:]
options = dict(dtype="float32", enforce_eager=True, max_model_len=128, max_num_seqs=4)
options |= dict(kv_cache_memory_bytes=1 << 24, block_size=32)
if torch.cuda.is_available():  # beside engines of other tests
    options["gpu_memory_utilization"] = 0.05
if theta:
    options["speculative_config"] = {"model": theta, "num_speculative_tokens": 2}
llm = LLM(teacher, **options)
prompts = [[5, 6, 7, 8], list(range(20, 60))]
# Arguments that mean nothing to this engine pass, as any plugin's do.
params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True, extra_args={"theta_prompt": "x", "alpha": 7})
outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float64).eval()
for prompt, output in zip(prompts, outputs):
    tokens = []
    for _ in range(8):
        with torch.inference_mode():
            tokens.append(int(model(torch.tensor([prompt + tokens])).logits[0, -1].argmax()))
    assert tokens == list(output.outputs[0].token_ids), (tokens, output.outputs[0].token_ids)
runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
speculator = getattr(runner, "speculator", None)
print("RUNNER", type(runner).__module__, "SPECULATOR", type(speculator).__name__)
assert "vllm_optimal_sampling.worker.theta" not in "".join(sys.modules), "theta's modules were loaded for nothing"
"""


@pytest.mark.parametrize(
    ("runner", "drafts", "expected"),
    [
        ("1", False, f"RUNNER vllm.v1.worker.{V2}.model_runner SPECULATOR NoneType"),
        ("1", True, f"RUNNER vllm.v1.worker.{V2}.model_runner SPECULATOR StandaloneARSpeculator"),
        ("0", False, f"RUNNER vllm.v1.worker.{V1} SPECULATOR NoneType"),
    ],
    ids=["V2", "V2 with a draft model", "V1"],
)
def test_a_plain_engine(runner: str, drafts: bool, expected: str, pair: tuple[str, str]) -> None:
    teacher, theta = pair
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, teacher, theta if drafts else ""],
        env={**os.environ, "VLLM_USE_V2_MODEL_RUNNER": runner, "VLLM_LOGGING_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert expected in result.stdout
