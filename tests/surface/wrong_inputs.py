"""Every way in, and what an unknown, misspelt, ineffective or contradictory value gets there: the table of docs/inputs.md.

The answers are not written down here: each value is given to the entrance itself, and what it says stands in the table.
`python tests/surface/wrong_inputs.py` writes the table anew.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "inputs.md"
BEGIN, END = "<!-- begin: made by tests/surface/wrong_inputs.py -->", "<!-- end -->"
LONGEST = 230
"""Characters of an answer that the table shows."""

REFUSED = "refused: "
KINDS = (
    "unknown",
    "misspelt",
    "misplaced",
    "of a wrong type",
    "out of range",
    "ineffective",
    "contradictory",
    "twice",
    "missing",
)


@dataclass(frozen=True)
class Wrong:
    """One wrong input.

    Attributes:
        way: the entrance, one of `WAYS`.
        kind: what is wrong with it, one of `KINDS`.
        given: what is given there, as the table shows it.
        ask: gives it, and returns the refusal, or None where it is taken.
    """

    way: str
    kind: str
    given: str
    ask: Callable[[], str | None]

    def answer(self) -> str:
        """What it got: `refused: ...`, or what became of it."""
        refusal = self.ask()
        return "taken" if refusal is None else REFUSED + " ".join(refusal.split())


def refusal_of(call: Callable[[], object]) -> str | None:
    """What `call` raises, as the user reads it."""
    try:
        call()
    except (ValueError, TypeError) as error:
        return str(error)
    return None


# The ways in


def request(given: dict[str, Any], defaults: dict[str, Any] | None = None) -> str | None:
    """`extra_args` of a request; over HTTP the same mapping is `vllm_xargs`."""
    from vllm_optimal_sampling.params import OptimalSamplingParams

    engine = None if defaults is None else OptimalSamplingParams(**defaults)
    return refusal_of(lambda: OptimalSamplingParams.from_extra_args(given, engine))


def fields(given: dict[str, Any], path: str = "/v1/completions") -> str | None:
    """Fields of a request's JSON."""
    from vllm_optimal_sampling.front_end.http_values import without_effect, wrong_value
    from vllm_optimal_sampling.front_end.misplaced import misplaced

    arguments = given.get("vllm_xargs")
    error = misplaced(given) or wrong_value(arguments) or without_effect(path, arguments)
    return None if error is None else str(error)


def engine(given: Any, processors: tuple[str, ...] = ("optimal_sampling",)) -> str | None:
    """`--additional-config` of `vllm serve`, `additional-config` of its YAML file, `additional_config` of `LLM`."""
    from vllm.engine.arg_utils import EngineArgs

    from vllm_optimal_sampling.config.engine_args import prepare_engine_args

    arguments = EngineArgs(
        model="teacher",
        logits_processors=list(processors),
        additional_config=given,
        speculative_config={"model": "theta", "num_speculative_tokens": 4},
    )

    def prepare() -> None:
        with prepare_engine_args(arguments):
            pass

    return refusal_of(prepare)


def sampler(**given: Any) -> str | None:
    """The constructor of `OptimalSampler`."""
    from vllm_optimal_sampling import OptimalSampler

    return refusal_of(lambda: OptimalSampler("teacher", "theta", **given))


ROW = {"id": "p1", "problem": "1 + 1?", "answer": "2"}
BASE = {
    "teacher": "teacher",
    "theta": "theta",
    "input": "in.jsonl",
    "output": "rows.jsonl",
    "theta-template": "{{ problem }}",
    "teacher-template": "{{ problem }} {{ answer }}",
}


def command(*words: str) -> str | None:
    """A command line, in a folder with the files that it names. The last line on stderr where the exit code is not 0."""
    from vllm_optimal_sampling.cli import main

    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(words)
        except SystemExit as ended:  # argparse
            code = int(ended.code or 0)
    line = said.getvalue().strip().splitlines()[-1:]
    name = f"optimal-sampling {words[0]}: "
    return None if code == 0 else "".join(line).replace(f"{name}error: ", "").replace(name, "")


def generate(*words: str, without: tuple[str, ...] = (), **changes: str) -> str | None:
    """`optimal-sampling generate ... --dry-run` over one row."""
    options = {name: value for name, value in BASE.items() if name not in without}
    options |= {name.replace("_", "-"): value for name, value in changes.items()}
    given = [word for name, value in options.items() for word in (f"--{name}", value)]
    return command("generate", *given, *([] if "--dry-run" in words else ["--dry-run"]), *words)


def file(text: str, *words: str) -> str | None:
    """`optimal-sampling generate --config run.yaml --dry-run`, with the keys in `text` behind those that are needed."""
    import yaml

    names = {line.partition(":")[0] for line in text.splitlines()}
    Path("run.yaml").write_text(yaml.safe_dump({k: v for k, v in BASE.items() if k not in names}) + text)
    return command("generate", "--config", "run.yaml", "--dry-run", *words)


REQUEST = "request: `extra_args` in Python, `vllm_xargs` over HTTP"
FIELDS = "request over HTTP: its fields"
ENGINE = "engine: `additional_config`, its YAML file"
SAMPLER = "`OptimalSampler`"
GENERATE = "`optimal-sampling generate`: options"
FILE = "`optimal-sampling generate`: YAML file"
INPUT = "`optimal-sampling generate`: input and output"
FILTER = "`optimal-sampling filter`"
REPORT = "`optimal-sampling report`"
WAYS = (REQUEST, FIELDS, ENGINE, SAMPLER, GENERATE, FILE, INPUT, FILTER, REPORT)


def wrong_inputs() -> Iterator[Wrong]:
    """All of them, by their way in."""
    for kind, given in (
        ("unknown", {"temperature_schedule": 1}),
        ("misspelt", {"theta_promt": "x"}),
        ("misspelt", {"alpha_method": "kl_symetry"}),
        ("of a wrong type", {"theta_chat_template_kwargs": "[]"}),
        ("of a wrong type", {"alpha_max": "0.5"}),
        ("of a wrong type", {"return_alpha": "yes"}),
        ("of a wrong type", {"theta_messages": "{}"}),
        ("out of range", {"alpha_min": -0.1}),
        ("out of range", {"support_top_k": 0}),
        ("out of range", {"theta_prompt": ""}),
        ("ineffective", {"alpha": 0.7}),
        ("ineffective", {"alpha_method": "entropy", "alpha": 0.5}),
        ("ineffective", {"optimal_sampling": False, "theta_prompt": "x"}),
        ("ineffective", {"theta_chat_template_kwargs": {"enable_thinking": False}}),
        ("ineffective", {"theta_prompt": "x", "theta_chat_template_kwargs": {"enable_thinking": False}}),
        ("misplaced", {"theta_chat_template_kwargs": {"chat_template": "x"}}),
        ("misplaced", {"chat_template_kwargs": {"enable_thinking": False}}),
        ("contradictory", {"alpha_min": 0.9, "alpha_max": 0.5}),
        ("contradictory", {"theta_prompt": "x", "theta_prompt_token_ids": [1]}),
        ("missing", {"alpha": None}),
        ("missing", {"alpha_method": "kl_budget"}),
        ("missing", {"alpha_max": [1, 0.5]}),
        ("out of range", {"alpha_method": "kl_budget", "kl_budget": 0}),
        ("out of range", {"alpha_method": "js_gate", "js_sensitivity": -1}),
        ("of a wrong type", {"alpha_min": [0, 0.5, 1], "alpha_steps": 8}),
        ("ineffective", {"kl_budget": 0.1}),
        ("ineffective", {"alpha_steps": 8}),
    ):
        yield Wrong(REQUEST, kind, json.dumps(given), lambda given=given: request(given))
    yield Wrong(
        REQUEST,
        "contradictory",
        '{"alpha_min": 0.9} to an engine with {"alpha_max": 0.5}',
        lambda: request({"alpha_min": 0.9}, {"alpha_max": 0.5}),
    )
    for kind, given in (
        ("of a wrong type", {"vllm_xargs": {"alpha_max": True}}),
        ("of a wrong type", {"vllm_xargs": {"alpha_max": [True, 0.5], "alpha_steps": 8}}),
        ("of a wrong type", {"vllm_xargs": {"theta_prompt_token_ids": [5, True]}}),
        ("of a wrong type", {"vllm_xargs": {"theta_messages": [{"role": "user", "content": "x"}]}}),
        ("of a wrong type", {"vllm_xargs": {"theta_chat_template_kwargs": {"enable_thinking": False}}}),
        ("of a wrong type", {"vllm_xargs": {"theta_prompt": {"text": "x"}}}),
        ("of a wrong type", {"vllm_xargs": {"theta_prompt_token_ids": [[5, 6]]}}),
        ("of a wrong type", {"vllm_xargs": '{"theta_prompt": "x"}'}),
        ("missing", {"vllm_xargs": {"alpha_max": None}}),
        ("misplaced", {"theta_prompt": "x"}),
        ("misplaced", {"alpha_max": 0.5}),
        ("misplaced", {"extra_body": {"vllm_xargs": {"theta_prompt": "x"}}}),
        ("misplaced", {"extra_args": {"theta_prompt": "x"}}),
        ("misplaced", {"require_theta_prompt": False}),
        ("misplaced", {"theta_chat_template_kwargs": {"enable_thinking": False}}),
        ("misspelt", {"theta_promt": "x"}),
        ("misspelt", {"vllm_xarg": {"theta_prompt": "x"}}),
        ("unknown", {"theta_chat": "x"}),
    ):
        yield Wrong(FIELDS, kind, json.dumps(given), lambda given=given: fields(given))
    recorded = {"vllm_xargs": {"return_alpha": True}}
    for path in ("/v1/responses", "/v1/messages"):
        yield Wrong(
            FIELDS, "ineffective", f"{json.dumps(recorded)} to {path}", lambda path=path: fields(recorded, path)
        )
    yield from engines()
    for kind, arguments in (
        ("misspelt", {"alpha_method": "kl"}),
        ("of a wrong type", {"enable_chat_template": "no"}),
        ("of a wrong type", {"theta_system_prompt": ""}),
        ("out of range", {"fixed_alpha": 1.5}),
        ("ineffective", {"fixed_alpha": 0.7}),
        ("missing", {"alpha_method": "kl_budget"}),
        ("missing", {"alpha_method": "fixed", "fixed_alpha": (0.9, 0.1)}),
        ("ineffective", {"additional_config": {"optimal_sampling": {"alpha_max": 0.5}}}),
        ("contradictory", {"alpha_min": 0.9, "alpha_max": 0.5}),
        ("contradictory", {"speculative_config": {"model": "another"}}),
        ("contradictory", {"num_speculative_tokens": 3, "speculative_config": {"num_speculative_tokens": 2}}),
        ("twice", {"model": "another"}),
    ):
        shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        yield Wrong(SAMPLER, kind, shown, lambda arguments=arguments: sampler(**arguments))
    yield from options_of_generate()
    yield from files_of_generate()
    yield from inputs_of_generate()
    for kind, words in (
        ("unknown", "--drop-long"),
        ("misspelt", "--boxed --answer-column anwser"),
        ("out of range", "--min-tokens -1"),
        ("ineffective", "--numeric"),
        ("ineffective", "--ignore-case --boxed"),
        ("ineffective", "--by log_z"),
        ("ineffective", "--best-of-group answer --seed 1"),
        ("ineffective", "--best-of-group answer --by resample --select-by mean"),
        ("misspelt", "--best-of-group answer --by none"),
        ("misspelt", "--best-of-group anwser"),
        ("missing", "--best-of-group answer"),
        ("contradictory", "--boxed --answer-regex x"),
        ("contradictory", "--min-tokens 9 --max-tokens 8"),
        ("twice", "--min-tokens 1 --min-tokens 2"),
        ("of a wrong type", "--boxed --answer-column answer --reference-regex ("),
    ):
        given = ("filter", "drawn.jsonl", "--output", "kept.jsonl", *words.split())
        yield Wrong(FILTER, kind, words, lambda given=given: command(*given))
    for kind, words in (
        ("unknown", "--bins 3"),
        ("out of range", "--samples -1"),
        ("contradictory", "--output problems.csv"),
        ("misspelt", "--tokenizer no/such/folder"),
        ("ineffective", "--boxed"),
        ("misspelt", "--boxed --answer-column anwser"),
        ("twice", "--seed 1 --seed 2"),
    ):
        yield Wrong(REPORT, kind, words, lambda words=words: command("report", "drawn.jsonl", *words.split()))


def engines() -> Iterator[Wrong]:
    """Settings of an engine."""
    key = "optimal_sampling"
    for kind, given in (
        ("unknown", {key: {"zzz": 1}}),
        ("misspelt", {key: {"alpha_metod": "fixed"}}),
        ("misspelt", {"optimal-sampling": {"alpha_max": 0.5}}),
        ("misplaced", {"require_theta_prompt": True}),
        ("of a wrong type", {key: {"require_theta_prompt": "yes"}}),
        ("of a wrong type", {key: {"theta_chat_template_kwargs": "enable_thinking"}}),
        ("misplaced", {key: {"theta_chat_template_kwargs": {"chat_template": "x"}}}),
        ("of a wrong type", {key: []}),
        ("out of range", {key: {"alpha_max": 2}}),
        ("ineffective", {key: {"alpha": 0.7}}),
        ("ineffective", {key: {"other_extra_args": ["alpha"]}}),
        ("contradictory", {key: {"require_theta_prompt": True, "theta_prompt": "x"}}),
        ("contradictory", {key: {"alpha_min": 0.9, "alpha_max": 0.5}}),
    ):
        yield Wrong(ENGINE, kind, json.dumps(given), lambda given=given: engine(given))
    yield Wrong(
        ENGINE, "ineffective", '{"optimal_sampling": {}} without the logits processor', lambda: engine({key: {}}, ())
    )
    yield Wrong(ENGINE, "misspelt", "--logits-processor optimal-samplng", lambda: engine({}, ("optimal-samplng",)))


def options_of_generate() -> Iterator[Wrong]:
    """Options of the command line."""
    for kind, words in (
        ("unknown", "--max-modellen 256"),
        ("misspelt", "--privilged answer"),
        ("misspelt", "--privileged anwser --teacher-template '{{ row }}'"),
        ("misspelt", "--id-column idd"),
        ("misspelt", "--theta-template '{{ problm }}'"),
        ("misspelt", "--alpha-method kl"),
        ("misspelt", """--sampling '{"repetition_penalti": 1.1}'"""),
        ("of a wrong type", """--sampling '{"min_tokens": 2.5}'"""),
        ("twice", """--sampling '{"min_tokens": 1, "min_tokens": 2}'"""),
        ("of a wrong type", "--sampling min_tokens=1"),
        ("of a wrong type", "--chat --theta-chat-template-kwargs enable_thinking"),
        ("ineffective", """--theta-chat-template-kwargs '{"enable_thinking": false}'"""),
        ("misplaced", """--chat --teacher-chat-template-kwargs '{"add_generation_prompt": false}'"""),
        ("of a wrong type", "--theta-template 'Q: {problem}'"),
        ("of a wrong type", "--shard 8"),
        ("of a wrong type", "--theta-system-prompt in.jsonl"),
        ("of a wrong type", "--teacher-system-prompt 'It is {{ answer }}.'"),
        ("out of range", "--shard 9/8"),
        ("out of range", "--num-samples 0"),
        ("out of range", "--dry-run 0"),
        ("out of range", "--best-of 0"),
        ("misspelt", "--best-of 4 --select logz"),
        ("misspelt", "--best-of 4 --select-by avg"),
        ("ineffective", "--select log_z"),
        ("ineffective", "--select-by mean"),
        ("ineffective", "--best-of 4 --select resample --select-by mean"),
        ("ineffective", "--best-of 4 --temperature 0"),
        ("contradictory", "--best-of 4 --alpha-method arithmetic"),
        ("contradictory", """--sampling '{"n": 4}'"""),
        ("missing", "--input ''"),
        ("out of range", "--temperature nan"),
        ("ineffective", "--alpha 0.7"),
        ("ineffective", "--kl-budget 0.1"),
        ("missing", "--alpha-method kl_budget"),
        ("out of range", "--alpha-method kl_budget --kl-budget 0"),
        ("out of range", "--alpha-method kl_budget --kl-budget nan"),
        ("of a wrong type", "--alpha-max 1 0.5 0.2 --alpha-steps 8"),
        ("ineffective", "--split train"),
        ("ineffective", "--endpoint http://localhost:8000 --num-speculative-tokens 7"),
        ("ineffective", "--endpoint http://localhost:8000 --max-model-len 256"),
        ("ineffective", """--additional-config '{"optimal_sampling": {"alpha_max": 0.5}}'"""),
        ("ineffective", """--sampling '{"logprobs": 3}'"""),
        ("ineffective", "--messages"),
        ("contradictory", "--theta-template '{{ problem }} {{ answer }}'"),
        ("contradictory", "--theta-template '{{ problem }} {{ answer }}' --privileged answer"),
        ("contradictory", "--teacher-template '{{ row }}'"),
        ("contradictory", "--chat-column problem"),
        ("contradictory", "--alpha-min 0.9 --alpha-max 0.5"),
        ("contradictory", """--speculative-config '{"model": "another"}'"""),
        ("contradictory", """--sampling '{"seed": 1}'"""),
        ("contradictory", "--output rows.txt"),
        ("contradictory", "--output rows.jsonl --format parquet"),
        ("twice", "--limit 1 --limit 2"),
    ):
        given = shlex.split(words)
        replaced = tuple(word[2:] for word in given if word.startswith("--"))
        yield Wrong(GENERATE, kind, words, lambda given=given, replaced=replaced: generate(*given, without=replaced))
    yield Wrong(GENERATE, "missing", "no --theta", lambda: generate(without=("theta",)))
    yield Wrong(GENERATE, "missing", "no --theta-template", lambda: generate(without=("theta-template",)))
    yield Wrong(
        GENERATE,
        "ineffective",
        "--privileged answer without --teacher-template",
        lambda: generate("--privileged", "answer", without=("teacher-template",)),
    )


def files_of_generate() -> Iterator[Wrong]:
    """Keys of the YAML file."""
    for kind, text in (
        ("unknown", "zzz: 1"),
        ("misspelt", "temprature: 0.8"),
        ("misspelt", "privileged: [anwser]"),
        ("misplaced", "theta-prompt: x"),
        ("misplaced", "optimal-sampling: false"),
        ("of a wrong type", "chat: 'yes'"),
        ("of a wrong type", "limit: ten"),
        ("of a wrong type", "shard: 3"),
        ("of a wrong type", "engine: [1]"),
        ("out of range", "alpha-max: 2"),
        ("out of range", "temperature: .nan"),
        ("ineffective", "alpha: 0.7"),
        ("missing", "alpha: null"),
        ("twice", "engine:\n  dtype: half\n  dtype: float"),
        ("twice", "limit: 1\nlimit: 2"),
        ("twice", "alpha-max: 0.5\nalpha_max: 0.9"),
    ):
        yield Wrong(FILE, kind, text.replace("\n", "; "), lambda text=text: file(text))


def inputs_of_generate() -> Iterator[Wrong]:
    """Files that are read and written."""

    def of(name: str, content: bytes) -> str | None:
        Path(name).write_bytes(content)
        return generate(without=("input",), input=name)

    csv = "problem,answer\n1 + 1?,2\n"
    for kind, given, name, content in (
        ("of a wrong type", "a CSV file in UTF-16", "in.csv", csv.encode("utf-16")),
        ("of a wrong type", "a CSV file with semicolons", "in.csv", csv.replace(",", ";").encode()),
        (
            "of a wrong type",
            "a JSON array in one line of a .jsonl",
            "in2.jsonl",
            b'[{"problem": "x", "answer": "y"}]\n',
        ),
        ("missing", "a CSV file with a header alone", "in.csv", b"problem,answer\n"),
        ("missing", "an empty file", "in2.jsonl", b""),
        ("twice", "a CSV file with a column twice", "in.csv", b"problem,answer,answer\nx,y,z\n"),
        ("twice", "a key twice in all JSON lines", "in2.jsonl", b'{"problem": "x", "answer": 1, "answer": 2}\n'),
    ):
        yield Wrong(INPUT, kind, given, lambda name=name, content=content: of(name, content))
    yield Wrong(INPUT, "missing", "--input missing.jsonl", lambda: generate(without=("input",), input="missing.jsonl"))
    yield Wrong(
        INPUT,
        "twice",
        "--input in.jsonl in.jsonl",
        lambda: generate("--input", "in.jsonl", "in.jsonl", without=("input",)),
    )
    yield Wrong(
        INPUT,
        "contradictory",
        "--input in.jsonl --output in.jsonl",
        lambda: generate(without=("output",), output="in.jsonl"),
    )


@contextlib.contextmanager
def prepared_folder() -> Iterator[None]:
    """A folder with the files that the values name; the command's traces in this process are taken back at the end."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    environment, before = dict(os.environ), Path.cwd()
    drawn = {
        "custom_id": "p1",
        "sample": 0,
        "prompt": "x",
        "completion": "2",
        "completion_token_ids": [1],
        "answer": "2",
    }
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        os.chdir(folder)
        try:
            Path("in.jsonl").write_text(json.dumps(ROW) + "\n")
            Path("drawn.jsonl").write_text(json.dumps(drawn) + "\n")
            yield
        finally:
            os.chdir(before)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            os.environ.clear()
            os.environ.update(environment)


def table(answers: list[tuple[Wrong, str]]) -> str:
    """The answers as Markdown, a table for each way in."""
    lines = [BEGIN]
    for way in WAYS:
        lines += ["", f"### {way[0].upper()}{way[1:]}", "", "| | given | answer |", "| --- | --- | --- |"]
        for wrong, answer in answers:
            if wrong.way == way:
                shown = answer if len(answer) <= LONGEST else f"{answer[:LONGEST]} ..."
                cells = [wrong.kind, f"`{wrong.given}`" if "`" not in wrong.given else wrong.given, shown]
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", END])


def all_answers() -> list[tuple[Wrong, str]]:
    """Each wrong input with what it gets."""
    with prepared_folder():
        return [(wrong, wrong.answer()) for wrong in wrong_inputs()]


def main() -> None:
    """Write the table anew."""
    text = DOCUMENT.read_text()
    before, rest = text.split(BEGIN)
    DOCUMENT.write_text(before + table(all_answers()) + rest.split(END)[1])


if __name__ == "__main__":
    sys.exit(main())
