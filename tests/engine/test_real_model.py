"""A real model that is its own theta: it is told the answer as teacher and only asked as theta. Every row is audited.

Small random models agree too well, or too little, to meet the rows that a real one has; and a copy whose logits are three
times as large is surer than any.
"""

from pathlib import Path

import pytest
import torch
from vllm import LLM

from support import smollm2
from support.cases import Case, generate, theta_prompts
from support.engines import scoring_options, stop_engine
from support.reference_models import Reference
from support.row_audit import RowAudit

MAX_MIX_TOTAL_VARIATION = 1e-4
"""Of log q* from what float64 makes of the very rows that were mixed; `tests/kernels/tolerances.py`."""


@pytest.mark.one_release  # real logits are hard for the mix, which is the same
@pytest.mark.parametrize("sharper", [pytest.param(1.0, marks=pytest.mark.full), 3.0])
def test_rows_of_a_real_model_told_and_asked(sharper: float, tmp_path: Path) -> None:
    model, tokenizer = smollm2.load()
    smollm2.sharpen(model, sharper)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    del model
    methods = ("kl_symmetry", "kl_symmetry", "reverse_kl_symmetry", "ess_balance")
    cases = [
        Case(*smollm2.prompts(tokenizer, problem, answer), {"alpha_method": method})
        for (problem, answer), method in zip(smollm2.PROBLEMS, methods, strict=True)
    ]
    llm = LLM(**scoring_options(str(tmp_path), max_num_seqs=4, kv_cache_memory_bytes=1 << 28))
    try:
        with RowAudit(llm) as audit:
            outputs = generate(llm, cases, max_tokens=12)
    finally:
        stop_engine(llm)
    with torch.inference_mode():
        report = audit.check(Reference(str(tmp_path), str(tmp_path)), theta_prompts(cases, outputs))
    assert report.mixed >= 4 * 8
    assert report.mix_total_variation <= MAX_MIX_TOTAL_VARIATION
