"""A student that is a LoRA adapter of the teacher: audited, replaced while the engine runs, refused where it does not fit."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from vllm import LLM
from vllm.lora.request import LoRARequest

from support.adapters import TARGETS, save_adapter, save_merged
from support.cases import KL_SYMMETRY, OPTED_OUT, Case, mixed_batch, token_ids
from support.engines import find_runner, scoring_options
from support.random_models import save_model
from support.reference_models import Reference, greedy_tokens
from support.scored_steps import FEW_TOKENS, audited, check_greedy
from vllm_optimal_sampling.weights import update_theta
from vllm_optimal_sampling.worker.theta.one_model import THETA_LORA_ID

SAMPLER_ARGUMENTS = (
    *("dtype", "enforce_eager", "max_model_len", "max_num_seqs", "kv_cache_memory_bytes", "block_size"),
    "gpu_memory_utilization",
)


@pytest.fixture(scope="module")
def adapters(pair: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two adapters of the teacher, and the teacher with each of them merged."""
    folder = tmp_path_factory.mktemp("adapters")
    made = {name: save_adapter(folder / name, pair[0], seed=seed) for seed, name in enumerate(("first", "second"))}
    return made | {f"{name}_merged": save_merged(folder / f"{name}_m", pair[0], path) for name, path in made.items()}


@pytest.mark.parametrize("drafts", [0, pytest.param(3, marks=pytest.mark.full)])
def test_an_adapter_as_theta_and_another_after_it(
    drafts: int, scoring_engines: Callable[..., LLM], pair: tuple[str, str], adapters: dict[str, str], tmp_path: Path
) -> None:
    llm = scoring_engines(pair[0], drafts=drafts, theta_lora=adapters["first"])
    cases = mixed_batch(seed=61, long=70)
    few = FEW_TOKENS if drafts else {}
    _, steps = audited(llm, Reference(pair[0], adapters["first_merged"]), cases, max_tokens=12, **few)
    assert steps.fused > 0.6 * (steps.fused + steps.apart)
    with pytest.raises(ValueError, match="theta_lora='nowhere' cannot be loaded"):
        llm.collective_rpc("reload_weights", kwargs={"theta_lora": "nowhere"})
    wrong = save_adapter(tmp_path / "wrong", pair[1], seed=3)
    with pytest.raises(ValueError, match="wrong' cannot be loaded"):
        llm.collective_rpc("reload_weights", kwargs={"theta_lora": wrong})
    # vLLM would put the fewer columns of such an adapter beside zeros, and answer with neither model.
    fewer_heads = save_model(tmp_path / "fewer_heads", hidden_size=128, num_layers=3, num_key_value_heads=1)
    narrow = save_adapter(tmp_path / "narrow", fewer_heads, seed=4, targets=("v_proj",))
    with pytest.raises(
        ValueError, match=r"it is made for 32 outputs of model.layers.0.self_attn.qkv_proj, which has 64"
    ):
        llm.collective_rpc("reload_weights", kwargs={"theta_lora": narrow})
    audited(llm, Reference(pair[0], adapters["first_merged"]), cases[:3], max_tokens=3, **few)
    llm.collective_rpc("reload_weights", kwargs={"theta_lora": adapters["second"]})
    llm.llm_engine.reset_prefix_cache(reset_running_requests=True)
    second = Reference(pair[0], adapters["second_merged"])
    audited(llm, second, cases, max_tokens=12, **few)
    check_greedy(llm, second, mixed_batch(seed=62, long=70)[:6], max_tokens=8)


def test_adapters_of_requests_are_the_teachers(scoring_engines: Callable[..., LLM], tmp_path: Path) -> None:
    """The teacher answers through a request's own adapter, theta never does; the adapters are of the head too."""
    base = save_model(tmp_path / "base", architecture="llama", hidden_size=128, seed=7, tie_word_embeddings=False)
    adapters = [save_adapter(tmp_path / str(seed), base, seed=seed, targets=(*TARGETS, "lm_head")) for seed in (1, 2)]
    first, second = (save_merged(Path(f"{adapter}-merged"), base, adapter) for adapter in adapters)
    llm = scoring_engines(base, enable_lora=True, max_lora_rank=8, theta_lora=adapters[1])
    lora, reference = LoRARequest("first", 1, adapters[0]), Reference(first, second)
    audited(llm, reference, mixed_batch(seed=63, long=70), max_tokens=8, lora_request=lora)
    # Of the second request no row is wanted for some steps: it is in the middle of its prompt.
    rng = random.Random(64)
    cases = [Case(token_ids(rng, 20), None, OPTED_OUT), Case(token_ids(rng, 300), token_ids(rng, 290), KL_SYMMETRY)]
    audited(llm, reference, cases, max_tokens=6, lora_request=lora)
    audited(llm, Reference(base, second), mixed_batch(seed=63, long=70)[:6], max_tokens=4)
    # Rank-stabilised, ranks and scales of its own for some layers, and of the embedding too.
    patterns = {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"layers.1.mlp.down_proj": 2}, "use_rslora": True}
    third = save_adapter(
        tmp_path / "3", base, seed=3, rank=6, targets=(*TARGETS, "lm_head", "embed_tokens"), **patterns
    )
    update_theta(llm, adapter_path=third)
    reference = Reference(base, save_merged(tmp_path / "third-merged", base, third))
    audited(llm, reference, mixed_batch(seed=65, long=70)[:6], max_tokens=4)
    runner = find_runner(llm)
    with runner.theta.capturing(runner):  # on a GPU, where vLLM then lets go of every adapter
        runner.maybe_remove_all_loras(runner.lora_config)
    assert runner.list_loras() == {THETA_LORA_ID}, "the first step would read it from the disk"


def test_adapters_of_requests_beside_a_theta_without_one(
    scoring_engines: Callable[..., LLM], pair: tuple[str, str], adapters: dict[str, str]
) -> None:
    llm = scoring_engines(pair[0], enable_lora=True, max_lora_rank=8)
    lora = LoRARequest("first", 1, adapters["first"])
    reference = Reference(adapters["first_merged"], pair[0])
    _, steps = audited(llm, reference, mixed_batch(seed=64, long=70), max_tokens=8, lora_request=lora)
    assert steps.fused and steps.apart


def test_an_adapter_of_another_model_is_refused_at_start(pair: tuple[str, str], tmp_path: Path) -> None:
    wrong = save_adapter(tmp_path / "wrong", pair[1], seed=3)
    with pytest.raises(ValueError, match=r"^optimal sampling cannot start: theta_lora=.*is made for \d+ inputs"):
        LLM(**scoring_options(pair[0], theta_lora=wrong))


def test_a_sampler_of_one_model(pair: tuple[str, str], adapters: dict[str, str]) -> None:
    """`OptimalSampler` with a student that is an adapter, and with the next one."""
    from vllm_optimal_sampling import OptimalSampler
    from vllm_optimal_sampling.argument_checks import ArgumentError

    small = {key: value for key, value in scoring_options(pair[0]).items() if key in SAMPLER_ARGUMENTS}
    with OptimalSampler(model=pair[0], theta="self", theta_lora=adapters["first"], **small) as sampler:
        prompt, theta_prompt = "the quick brown fox jumps over the answer", "the quick brown fox"
        tokenizer = sampler.llm.get_tokenizer()
        case = Case(tokenizer.encode(prompt), tokenizer.encode(theta_prompt), KL_SYMMETRY)
        for name in ("first", "second"):
            if name == "second":
                sampler.update_theta(adapter_path=adapters["second"])
            reference = Reference(pair[0], adapters[f"{name}_merged"])
            output = sampler.generate([prompt], [theta_prompt], max_tokens=10, temperature=0.0, ignore_eos=True)
            assert output.generated_ids == [greedy_tokens(reference, case, 10)]
    with pytest.raises(RuntimeError, match="closed"):
        sampler.update_theta(adapter_path=adapters["first"])
    for arguments, message in (
        ({"model": pair[0]}, "model_theta and theta name one model, and neither is given"),
        ({"model_teacher": pair[0], "model": pair[0], "theta": "self"}, "both are given; drop one of them"),
        ({"model_teacher": pair[0], "model_theta": pair[1], "theta_lora": "x"}, 'give theta="self" with it'),
        ({"model": pair[0], "theta": "self", "num_speculative_tokens": 2}, "nothing drafts where theta scores"),
    ):
        with pytest.raises(ArgumentError, match=message):
            OptimalSampler(**arguments)
