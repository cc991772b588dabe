"""Train the example pair again, from nothing, on a CPU: a teacher and a theta of the Qwen2 architecture.

Theta is small, and is stopped once its share of right answers on validation problems reaches a goal: a theta that
is nearly always right would leave a teacher nothing to add. The teacher is larger and is trained for a fixed number of
steps, first on problems alone, then half of them with their answer. In half of those the last total is a slip, read but
not learnt, which makes the answer in the prompt worth looking at: without slips a teacher that has learnt to calculate
repeats its last total and takes no notice of the answer (right on 76 % with it, on 75 % without).
Hidden matrices are trained with Muon, which needed half the steps of AdamW here.

Both folders get the same tokenizer and chat template. Afterwards the held-out problems are written and the pair is
measured on them (``measure.py``). Each model is trained by one thread in a process of its own: the weights depend on
the seeds and the versions of the libraries, not on how many cores there are. Checkpoints let an interrupted run go on.

    python examples/pair/train.py            # or: make pair
"""

import itertools
import json
import multiprocessing
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import measure
import task
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

HERE = Path(__file__).parent
CHECKPOINTS = HERE / "checkpoints"
CHECKPOINT_STEPS = 100

PAD, END = "<|endoftext|>", "<|end|>"
SPECIAL = (PAD, END, "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {%- if message.role not in ['system', 'user', 'assistant'] -%}
        {{- raise_exception('The roles are system, user and assistant, not ' + message.role) -}}
    {%- endif -%}
    {{- '<|' + message.role + '|>' + message.content + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- endif -%}
"""
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a teacher.",
    "Work step by step.",
    "Solve the problem. Show your work.",
)
SYSTEM_SHARE = 0.15  # of the training examples begin with a system prompt
SLIPS = 0.5  # of the solutions whose answer is given have a slip in their last total
SHARES: dict[task.Kind, float] = {"story": 0.65, "longer": 0.1, "sorting": 0.25}  # of the training examples
HELD_OUT: dict[str, tuple[task.Kind, int]] = {
    "problems": ("story", 500),
    "problems_longer": ("longer", 300),
    "problems_sorting": ("sorting", 300),
}


@dataclass(frozen=True)
class Plan:
    """How one model is made. Head size is 32: vLLM's attention on a CPU takes no smaller power of two."""

    name: str
    seed: int
    hidden_size: int
    layers: int
    key_value_heads: int
    steps: int
    batch: int = 32
    learning_rate: float = 3e-3  # of AdamW, for embeddings, biases and norms
    matrix_learning_rate: float = 8e-3  # of Muon, for hidden matrices
    cooldown: float = 0.0  # the last part of the steps, in which the learning rates fall to zero
    privileged_from: float = 1.0  # the part of the steps after which half of the examples come with the answer
    goal: float | None = None  # stop at this share of right answers on validation problems
    evaluate_steps: int = 250


THETA = Plan("theta", seed=1, hidden_size=64, layers=2, key_value_heads=1, steps=4000, goal=0.5, evaluate_steps=50)
TEACHER = Plan(
    "teacher",
    seed=2,
    hidden_size=96,
    layers=3,
    key_value_heads=1,
    steps=1000,
    matrix_learning_rate=6e-3,
    cooldown=0.3,
    privileged_from=0.4,
    evaluate_steps=250,
)


def make_tokenizer() -> Qwen2Tokenizer:
    """A tokenizer of Qwen2's kind, byte-level pairs, in which every word of the task is one token and every digit too.

    Any other text falls apart into pieces and bytes. It is built on Qwen2's own class, with its way of splitting text,
    since transformers loads the tokenizer of a Qwen2 model as that class whatever the folder says.
    """
    splitter = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    texts = list(SYSTEM_PROMPTS)
    for kind in SHARES:
        for problem in itertools.islice(task.problems(kind, "train", seed=0), 4000):
            texts += [task.teacher_messages(problem.problem, problem.answer)[0]["content"], problem.solution]
    words = sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(text)})

    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # the words are split already, their spaces are letters
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL),
    )
    pairs.train_from_iterator(words, trainer)
    trained = json.loads(pairs.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=trained["vocab"], merges=[tuple(pair) for pair in trained["merges"]],
        pad_token=PAD, unk_token=PAD, eos_token=END, chat_template=CHAT_TEMPLATE, model_max_length=1024,
        additional_special_tokens=list(SPECIAL[2:]),
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def make_model(plan: Plan, tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """An untrained model of the plan's size, ending its turns with the tokenizer's end token."""
    torch.manual_seed(plan.seed)
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=plan.hidden_size, intermediate_size=3 * plan.hidden_size,
            num_hidden_layers=plan.layers, num_attention_heads=plan.hidden_size // 32,
            num_key_value_heads=plan.key_value_heads,
            max_position_embeddings=1024, tie_word_embeddings=True, initializer_range=0.05, **ends,
        )
    )  # fmt: skip
    model.generation_config = GenerationConfig(**ends)
    return model


def training_batch(plan: Plan, step: int, tokenizer: Qwen2Tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels of one step, [batch, longest].

    They are drawn with a seed of the step's own, so that an interrupted run goes on with the same ones.
    Only the assistant's tokens, with the end token, are labels; the others are -100. Where the answer is given,
    the last total may be a slip, other digits that are read but are no labels: the answer is stated as if it were right.
    """
    seed = plan.seed * 1_000_000 + step
    rng = random.Random(seed)
    streams = {kind: task.problems(kind, "train", seed) for kind in SHARES}
    chats, solutions, slips = [], [], []
    for kind in rng.choices(list(SHARES), list(SHARES.values()), k=plan.batch):
        problem = next(streams[kind])
        privileged = step >= plan.privileged_from * plan.steps and rng.random() < 0.5
        chat = (
            task.teacher_messages(problem.problem, problem.answer)
            if privileged
            else task.theta_messages(problem.problem)
        )
        if rng.random() < SYSTEM_SHARE:
            chat.insert(0, {"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
        chats.append(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        solutions.append(problem.solution + END)
        slips.append(sum(map(str.isdigit, problem.answer)) if privileged and rng.random() < SLIPS else 0)
    digits = tokenizer.convert_tokens_to_ids(list("0123456789"))
    rows = list(zip(tokenizer(chats)["input_ids"], tokenizer(solutions)["input_ids"], strict=True))
    width = max(len(chat) + len(solution) for chat, solution in rows)
    tokens = torch.full((plan.batch, width), tokenizer.pad_token_id)
    labels = torch.full((plan.batch, width), -100)
    for row, (chat, solution) in enumerate(rows):
        end = len(chat) + len(solution)
        tokens[row, :end] = torch.tensor(chat + solution)
        labels[row, len(chat) : end] = torch.tensor(solution)
        if slips[row]:
            place = [place for place in range(len(chat), end) if tokens[row, place] in digits][-slips[row] - 1]
            while tokens[row, place] in digits:
                tokens[row, place] = rng.choice(digits)
                labels[row, place] = -100
                place -= 1
    return tokens, labels


def rate_at(plan: Plan, step: int) -> float:
    """The factor on the learning rates: 100 steps of warming up, constant, and the plan's cool-down."""
    left = (plan.steps - step) / (plan.cooldown * plan.steps) if plan.cooldown else 1.0
    return min(1.0, (step + 1) / 100, left)


def make_optimizers(plan: Plan, model: Qwen2ForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the rest."""
    matrices = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    chosen = set(map(id, matrices))
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=plan.matrix_learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def validate(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, privileged: bool) -> float:
    """The share of right answers on 300 validation stories at temperature 1, with the answer in the prompt or not."""
    problems = task.distinct("story", "validation", seed=0, count=300)
    prompts = [
        task.teacher_messages(problem.problem, problem.answer) if privileged else task.theta_messages(problem.problem)
        for problem in problems
    ]
    samples = measure.generate(tokenizer, seed=0, theta=model, theta_prompts=prompts)
    return sum(
        task.is_right(sample.text, problem.answer) for sample, problem in zip(samples, problems, strict=True)
    ) / len(problems)


def train(plan: Plan) -> None:
    """Train one model and save it beside this script."""
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    model = make_model(plan, tokenizer)
    optimizers = make_optimizers(plan, model)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    checkpoint = CHECKPOINTS / f"{plan.name}.pt"
    done, finished = 0, False
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        done, finished = state["done"], state["finished"]

    started, since, losses = time.monotonic(), done, 0.0
    while done < plan.steps and not finished:
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * rate_at(plan, done)
        tokens, labels = training_batch(plan, done, tokenizer)
        labelled = labels[:, 1:] != -100
        hidden = model.model(tokens).last_hidden_state[:, :-1][labelled]
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden), labels[:, 1:][labelled])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        done += 1
        losses += loss.item()
        if done % plan.evaluate_steps == 0:
            share = validate(model, tokenizer, privileged=False)
            finished = plan.goal is not None and share >= plan.goal
            report = f"{plan.name}: step {done}, loss {losses / (done - since):.4f}, right {share:.3f}"
            if done > plan.privileged_from * plan.steps:
                report += f", {validate(model, tokenizer, privileged=True):.3f} with the answer"
            print(f"{report}, {time.monotonic() - started:.0f} s", flush=True)
            since, losses = done, 0.0
        if done % CHECKPOINT_STEPS == 0 or finished:
            save_checkpoint(checkpoint, model, optimizers, done, finished)
    model.save_pretrained(HERE / plan.name)
    tokenizer.save_pretrained(HERE / plan.name)


def save_checkpoint(
    path: Path, model: Qwen2ForCausalLM, optimizers: Iterable[torch.optim.Optimizer], done: int, finished: bool
) -> None:
    """Write a checkpoint whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    whole = path.with_suffix(".part")
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.save({"model": model.state_dict(), "optimizers": states, "done": done, "finished": finished}, whole)
    whole.replace(path)


def write_problems() -> None:
    """The held-out problems, as they are shipped."""
    for name, (kind, count) in HELD_OUT.items():
        rows = [problem.row() for problem in task.distinct(kind, "heldout", seed=0, count=count)]
        (HERE / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    started = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(train, (THETA, TEACHER), chunksize=1)
    write_problems()
    measure.main()
    print(f"done in {(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
