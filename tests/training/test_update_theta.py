"""`update_theta`: new weights of theta in a running engine, and whatever is wrong with them, held against float64."""

from __future__ import annotations

import gc
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM
from vllm import LLM, SamplingParams

from support.adapters import save_adapter, save_merged
from support.cases import KL_SYMMETRY, OPTED_OUT, Case, generate, mixed_batch, theta_prompts
from support.engines import find_runner, scoring_options, stop_engine
from support.random_models import save_model
from support.reference_models import Reference
from support.row_audit import RowAudit
from vllm_optimal_sampling import ArgumentError, OptimalSampler, OptimalSamplingParams
from vllm_optimal_sampling.weights import reload_weights, update_theta

SMALL: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 512,
    "max_num_seqs": 8,
    "kv_cache_memory_bytes": 1 << 26,
    "block_size": 32,
    "enable_prefix_caching": True,
    "disable_log_stats": False,
}
CASES = mixed_batch(seed=63, long=70)[:6]
RECORDED = OptimalSamplingParams(return_alpha=True).to_extra_args()
MAX_LOG_PROB_ERROR = 5e-4  # as the row audit's
# 50 updates of a theta of 0.6 MB that each kept a copy of it would add 30 MB. What the allocator and caches keep: under 4.
MAX_GROWTH = 10 << 20


def trained(path: str) -> torch.nn.Module:
    """A model as a trainer holds it: float32, with gradients."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).train()


def audit(llm: LLM, teacher: str, theta: str, cases: list[Case] = CASES, seed: int = 0) -> None:
    with RowAudit(llm) as audited:
        outputs = generate(llm, cases, max_tokens=4, seed=seed)
    report = audited.check(Reference(teacher, theta), theta_prompts(cases, outputs))
    assert report.mixed > 0


def count(llm: LLM, name: str) -> float:
    (metric,) = (metric for metric in llm.get_metrics() if metric.name == f"vllm:{name}")
    return metric.value


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A teacher, and thetas of one shape."""
    folder = tmp_path_factory.mktemp("models")
    sizes = {"teacher": 128, "theta": 64, "second": 64, "third": 64, "fourth": 64}
    return {
        name: save_model(folder / name, hidden_size=size, seed=70 + number)
        for number, (name, size) in enumerate(sizes.items())
    }


@pytest.fixture(scope="module")
def sampler(models: dict[str, str]) -> Iterator[OptimalSampler]:
    with OptimalSampler(models["teacher"], models["theta"], gpu_memory_utilization=0.5, **SMALL) as sampler:
        yield sampler


@pytest.fixture
def fresh(sampler: OptimalSampler, models: dict[str, str]) -> OptimalSampler:
    """The sampler with the weights that it started with."""
    sampler.update_theta(trained(models["theta"]))
    return sampler


def test_every_form_of_weights_reaches_theta(fresh: OptimalSampler, models: dict[str, str]) -> None:
    """The same prompts each time: blocks that hold keys and values of older weights are there to be found."""
    llm = fresh.llm
    audit(llm, models["teacher"], models["theta"])
    forms: dict[str, Callable[[torch.nn.Module], Any]] = {
        "second": lambda model: model.state_dict(),  # with the name of the tied output layer, twice the same tensor
        "third": lambda model: model.named_parameters(),
        "fourth": lambda model: model.to(torch.bfloat16),  # bfloat16 holds none of the float32 values exactly
    }
    version = fresh.theta_version
    for number, (name, form) in enumerate(forms.items(), 1):
        model = trained(models[name])
        assert fresh.update_theta(form(model)) == fresh.theta_version == version + number
        rounded = models[name] + "-rounded"
        model.float().save_pretrained(rounded)
        audit(llm, models["teacher"], rounded)
        # Inside a version prefix caching is on, for both models.
        hits = count(llm, "prefix_cache_hits")
        audit(llm, models["teacher"], rounded, seed=1)
        assert count(llm, "prefix_cache_hits") > hits


def test_records_have_the_version_of_theta(fresh: OptimalSampler, models: dict[str, str]) -> None:
    def versions() -> list[int]:
        completions = fresh.generate_from_tokens([[5, 6, 7]] * 2, [[8, 9]] * 2, max_tokens=6)
        for completion in completions:
            assert len(completion.optimal_sampling) == len(completion.token_ids)
            assert completion.optimal_sampling[:2].theta_version == completion.optimal_sampling.theta_version
            assert "theta_version" not in completion.optimal_sampling.to_json()
        return [completion.optimal_sampling.theta_version for completion in completions]

    before = fresh.theta_version
    assert versions() == [before, before]
    fresh.update_theta(trained(models["second"]))
    assert versions() == [before + 1] * 2
    reload_weights(fresh.llm, models["third"])
    assert versions() == [before + 2] * 2
    audit(fresh.llm, models["teacher"], models["third"])


def without_a_name(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.named_parameters() if name != "model.layers.1.mlp.up_proj.weight"}


def without_one_of_three(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """vLLM has q, k and v in one parameter, and would take this for complete."""
    return {name: tensor for name, tensor in model.named_parameters() if "0.self_attn.k_proj.weight" not in name}


WRONG: dict[str, tuple[Callable[[torch.nn.Module], Any], str]] = {
    "missing": (
        without_a_name,
        r"^model.layers.1.mlp.up_proj.weight of theta \(.*\) is missing; give all \d+ parameters$",
    ),
    "missing in a merged one": (without_one_of_three, "self_attn.k_proj.weight of theta .* is missing"),
    "empty": (lambda model: {}, "and 23 more of theta .* is missing"),
    "unknown": (
        lambda model: {f"base_model.{name}": tensor for name, tensor in model.named_parameters()},
        "has no parameter named base_model.model.embed_tokens.weight, .* and 23 more; give the names of its checkpoint",
    ),
    "shape": (
        lambda model: {**model.state_dict(), "model.norm.weight": torch.ones(32)},
        r"model.norm.weight has shape \[32\], and theta's \(.*\) is \[64\]",
    ),
    "transposed": (
        lambda model: {**model.state_dict(), "model.layers.0.mlp.up_proj.weight": torch.ones(64, 128)},
        r"up_proj.weight has shape \[64, 128\], and theta's \(.*\) is \[128, 64\]",
    ),
    "numbers": (
        lambda model: {**model.state_dict(), "model.norm.weight": torch.ones(64, dtype=torch.int64)},
        "model.norm.weight is not a tensor of floats",
    ),
    "no values": (
        lambda model: {**model.state_dict(), "model.norm.weight": torch.ones(64, device="meta")},
        "model.norm.weight is on the meta device",
    ),
    "nothing": (lambda model: None, "give either named_parameters or adapter_path"),
    "a path": (lambda model: "somewhere", "is a str, and not tensors by name; give model.named_parameters()"),
    "tensors without names": (lambda model: model.parameters(), "is a generator, and not tensors by name"),
}


def test_wrong_weights_are_refused_before_anything_is_written(fresh: OptimalSampler, models: dict[str, str]) -> None:
    other = trained(models["second"])
    version = fresh.theta_version
    for given, message in WRONG.values():
        with pytest.raises(ArgumentError, match=message) as caught:
            fresh.update_theta(given(other))
        assert "\n" not in str(caught.value)
    with pytest.raises(ArgumentError, match="theta has no adapter to replace in this engine"):
        fresh.update_theta(adapter_path="somewhere")
    with pytest.raises(ArgumentError, match="give either"):
        fresh.update_theta(other, adapter_path="somewhere")
    assert fresh.theta_version == version
    audit(fresh.llm, models["teacher"], models["theta"])


def test_an_update_beside_requests(fresh: OptimalSampler, models: dict[str, str]) -> None:
    """Requests of others refuse it; a call of this sampler ends on the old weights first."""
    llm = fresh.llm
    llm.enqueue([{"prompt_token_ids": [5, 6]}], SamplingParams(max_tokens=2), use_tqdm=False)
    with pytest.raises(RuntimeError, match="at work on 1 requests, which would go on with other weights"):
        fresh.update_theta(trained(models["second"]))
    llm.wait_for_completion(use_tqdm=False)

    new, started, results = trained(models["second"]), threading.Event(), []
    step = llm.llm_engine.step

    def stepping() -> Any:
        started.set()
        return step()

    llm.llm_engine.step = stepping  # type: ignore[method-assign]
    updating = threading.Thread(target=lambda: started.wait(60) and results.append(fresh.update_theta(new)))
    updating.start()
    try:
        completions = fresh.generate_from_tokens(
            [case.prompt for case in CASES[:4]],
            [case.theta_prompt for case in CASES[:4]],
            max_tokens=24,
            ignore_eos=True,
        )
    finally:
        del llm.llm_engine.step
        updating.join(60)
    assert results == [fresh.theta_version]
    reference = Reference(models["teacher"], models["theta"])
    for case, completion in zip(CASES, completions, strict=False):
        assert completion.optimal_sampling.theta_version == fresh.theta_version - 1
        check_theta_logprobs(reference, list(case.theta_prompt or ()), completion)
    audit(llm, models["teacher"], models["second"])


def check_theta_logprobs(reference: Reference, prompt: list[int], completion: Any) -> None:
    """What the record says of theta is what theta says in float64."""
    tokens = list(completion.token_ids)
    rows = [reference.logits(reference.theta, prompt + tokens[:length]) for length in reversed(range(len(tokens)))]
    expected = torch.stack(rows[::-1]).log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
    found = torch.tensor(completion.optimal_sampling.theta_logprob, dtype=torch.float64)
    assert (found - expected).abs().max() < MAX_LOG_PROB_ERROR


def test_an_update_while_the_engine_sleeps(fresh: OptimalSampler, models: dict[str, str]) -> None:
    fresh.llm.sleep(level=1)
    try:
        with pytest.raises(RuntimeError, match="the engine sleeps, and its weights may be away; wake it up"):
            fresh.update_theta(trained(models["second"]))
    finally:
        fresh.llm.wake_up()
    audit(fresh.llm, models["teacher"], models["theta"])


def test_an_update_that_breaks_off_is_repaired_by_the_next(
    fresh: OptimalSampler, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM itself fails half-way through the layers. Nothing in it puts them back, so the error says so."""
    theta = find_runner(fresh.llm).speculator.model
    load = type(theta).load_weights

    def failing(self: Any, weights: Any) -> Any:
        def half() -> Iterator[tuple[str, torch.Tensor]]:
            for number, weight in enumerate(weights):
                if number == 12:
                    raise OSError("the device is gone")
                yield weight

        return load(self, half())

    version = fresh.theta_version
    with monkeypatch.context() as patched:
        patched.setattr(type(theta), "load_weights", failing)
        with pytest.raises(RuntimeError, match=r"could not be loaded \(the device is gone\).*update it again"):
            fresh.update_theta(trained(models["second"]))
    assert fresh.theta_version == version + 1
    fresh.update_theta(trained(models["third"]))
    audit(fresh.llm, models["teacher"], models["third"])


def test_memory_does_not_grow(fresh: OptimalSampler, models: dict[str, str]) -> None:
    """50 updates with sampling in between: tensors that are alive, and the process's memory."""
    thetas = [trained(models[name]) for name in ("second", "third")]

    def rounds(count: int) -> tuple[int, int]:
        for number in range(count):
            fresh.update_theta(thetas[number % 2])
            fresh.generate_from_tokens([[5, 6, 7]], [[8, number + 1]], max_tokens=2)
        gc.collect()
        tensors = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
        return tensors, psutil.Process().memory_info().rss

    tensors, memory = rounds(10)
    tensors_after, memory_after = rounds(50)
    assert tensors_after == tensors
    assert memory_after - memory < MAX_GROWTH, f"{(memory_after - memory) / 2**20:.1f} MB more"
    audit(fresh.llm, models["teacher"], models["third"])


def test_a_closed_sampler(models: dict[str, str], sampler: OptimalSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "_is_closed", True)
    with pytest.raises(RuntimeError, match="this sampler is closed"):
        sampler.update_theta(trained(models["second"]))


# Theta that scores


def test_what_theta_does_not_read_stays_cached(models: dict[str, str]) -> None:
    """Theta scores here and does not read opted-out requests: the teacher's blocks of these outlive an update."""
    options = scoring_options(models["teacher"], models["theta"], enable_prefix_caching=True)
    llm = LLM(**options)
    try:
        opted_out, mixed = (
            Case(CASES[0].prompt, None, OPTED_OUT),
            Case(CASES[0].prompt, CASES[0].theta_prompt, KL_SYMMETRY),
        )
        audit(llm, models["teacher"], models["theta"], [opted_out, mixed])
        update_theta(llm, trained(models["second"]))
        hits = count(llm, "prefix_cache_hits")
        generate(llm, [opted_out], max_tokens=1)
        assert count(llm, "prefix_cache_hits") - hits == 64  # two blocks of a prompt of 70 tokens
        hits = count(llm, "prefix_cache_hits")
        audit(llm, models["teacher"], models["second"], [mixed])
        assert count(llm, "prefix_cache_hits") == hits
        audit(llm, models["teacher"], models["second"], [mixed], seed=1)
        assert count(llm, "prefix_cache_hits") > hits
    finally:
        stop_engine(llm)


def test_an_adapter_of_the_teacher(models: dict[str, str], tmp_path: Path) -> None:
    teacher = models["teacher"]
    first, second = (save_adapter(tmp_path / str(seed), teacher, seed=seed) for seed in (1, 2))
    merged = save_merged(tmp_path / "merged", teacher, second)
    small = save_adapter(tmp_path / "small", models["theta"], seed=3)
    wide = save_adapter(tmp_path / "wide", teacher, seed=4, rank=64)
    renamed = Path(shutil.copytree(second, tmp_path / "renamed"))
    from safetensors.torch import load_file, save_file

    weights = load_file(renamed / "adapter_model.safetensors")
    elsewhere = {name.replace("layers.1", "layers.7"): tensor for name, tensor in weights.items()}
    save_file(elsewhere, renamed / "adapter_model.safetensors")
    diagonal = Path(shutil.copytree(second, tmp_path / "diagonal"))
    name = next(iter(weights)).rpartition(".lora_")[0]
    save_file(weights | {f"{name}.lora_diag": torch.ones(8)}, diagonal / "adapter_model.safetensors")
    decomposed = save_adapter(tmp_path / "decomposed", teacher, seed=5, use_dora=True)
    # vLLM has adapters of embeddings for some architectures, and not for this one.
    embedding = save_adapter(tmp_path / "embedding", teacher, seed=6, targets=("embed_tokens",))
    wrong = {
        str(tmp_path / "nowhere"): "cannot be read as a LoRA adapter .* give a folder with adapter_config.json",
        small: r"has base_model.model.*lora_A.weight of shape \[8, .*\], and theta's .* it is of another model",
        wide: "has rank 64, and this engine takes up to 8; start it with a larger --max-lora-rank",
        str(renamed): "changes model.layers.7.*, which theta does not have; it is of another model",
        str(diagonal): r"has .*lora_diag, and vLLM runs LoRA's matrices A and B alone; train a plain LoRA adapter",
        decomposed: "cannot run as it was trained: vLLM does not yet support DoRA; train a plain LoRA adapter",
        embedding: r"cannot be loaded \(.*received \['model.embed_tokens', .* give a LoRA adapter of this teacher",
    }
    with OptimalSampler(
        teacher, "self", theta_lora=first, max_lora_rank=8, gpu_memory_utilization=0.5, **SMALL
    ) as sampler:
        audit(sampler.llm, teacher, save_merged(tmp_path / "first", teacher, first))
        assert sampler.update_theta(adapter_path=second) == 1
        audit(sampler.llm, teacher, merged)
        for path, message in wrong.items():
            with pytest.raises(ArgumentError, match=message) as caught:
                sampler.update_theta(adapter_path=path)
            assert "\n" not in str(caught.value)
        with pytest.raises(ArgumentError, match="theta has no weights of its own here, it is the teacher"):
            sampler.update_theta(trained(teacher))
        assert sampler.theta_version == 1
        audit(sampler.llm, teacher, merged, seed=1)


def test_weights_that_the_teacher_has_too(models: dict[str, str]) -> None:
    teacher = models["teacher"]
    with OptimalSampler(teacher, teacher, num_speculative_tokens=3, gpu_memory_utilization=0.5, **SMALL) as sampler:
        with pytest.raises(ArgumentError, match=r"it shares the teacher's; .* start the engine with a copy of theta"):
            sampler.update_theta(trained(teacher))
        audit(sampler.llm, teacher, teacher)


@pytest.mark.parametrize("argument", ["theta", "theta_lora"])
def test_contradicting_arguments(models: dict[str, str], argument: str) -> None:
    wrong: dict[str, Any] = {
        "theta": {"additional_config": {"optimal_sampling": {"theta": "self"}}},
        "theta_lora": {"theta_lora": "somewhere"},
    }[argument]
    with pytest.raises(ArgumentError, match=argument) as caught:
        OptimalSampler(models["teacher"], models["theta"], **wrong)
    assert caught.value.argument == argument


@pytest.mark.full
def test_an_engine_in_another_process(models: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As vLLM has it by default: the tensors go through a file, which is gone afterwards."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setattr("vllm_optimal_sampling.weights.SHARED_MEMORY", str(tmp_path))
    prompts, thetas = [[5, 6, 7] * 12], [[9, 8] * 20]
    with OptimalSampler(models["teacher"], models["theta"], gpu_memory_utilization=0.5, **SMALL) as sampler:
        for name in ("theta", "second"):
            if name != "theta":
                assert sampler.update_theta(trained(models[name]).state_dict()) == 1
            (completion,) = sampler.generate_from_tokens(prompts, thetas, max_tokens=8, ignore_eos=True)
            check_theta_logprobs(Reference(models["teacher"], models[name]), thetas[0], completion)
        with pytest.raises(ArgumentError, match="is missing"):
            sampler.update_theta(without_a_name(trained(models["third"])))
        assert list(tmp_path.iterdir()) == []
        (completion,) = sampler.generate_from_tokens(prompts, thetas, max_tokens=8, ignore_eos=True)
        check_theta_logprobs(Reference(models["teacher"], models["second"]), thetas[0], completion)
        assert completion.optimal_sampling.theta_version == 1
