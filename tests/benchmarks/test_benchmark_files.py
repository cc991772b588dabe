"""What is said of a result is what its file says, and a result says where it comes from."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import table
import torch
from engine_tables import losses
from pairs import EXAMPLE, SHAPES, num_parameters, read_config, write_shapes
from recording import Spread, rounded
from table_words import SHOWN
from transformers import AutoConfig, AutoModelForCausalLM

RESULTS = sorted((table.HERE / "results").glob("*.json"))
MEASURED = [path for path in RESULTS if not path.name.startswith("fit-")]
PREDICTIONS = sorted((table.HERE / "predictions").glob("*.json"))


@pytest.mark.parametrize("document", table.DOCUMENTS, ids=lambda path: path.parent.name)
def test_documents_have_what_the_files_say(document: Path) -> None:
    wanted = table.DOCUMENTS[document](table.load())
    text = document.read_text()
    assert text == table.written_into(text, wanted), "run benchmarks/table.py --write"


def test_writing_leaves_the_rest_of_a_document() -> None:
    before = f"one\n\n{table.BEGIN}\n{table.END}\n\ntwo\n"
    after = table.written_into(before, "| a |\n")
    assert after == f"one\n\n{table.BEGIN}\n| a |\n{table.END}\n\ntwo\n"
    assert table.written_into(after, "| b |\n") == after.replace("| a |", "| b |")
    with pytest.raises(ValueError, match="has no"):
        table.written_into("no markers", "")


def test_a_changed_figure_changes_the_table() -> None:
    results = [one for one in table.load(table.HERE / "results") if one["benchmark"] == "heavy"]
    before = table.render(results, ["heavy"])
    changed = copy.deepcopy(results)
    changed[0]["configurations"][0]["methods"]["optimal"]["of_teacher"]["median"] += 1
    assert table.render(changed, ["heavy"]) != before


def test_a_loss_is_said() -> None:
    speeds = {"teacher": 100.0, "optimal at 0.6": 90.0, "optimal at 0.9": 110.0, "draft_model at 0.6": 95.0}
    configuration = {"methods": {name: {"tokens_per_second": {"median": speed}} for name, speed in speeds.items()}}
    said = " ".join(losses(configuration))
    draft_model = f"{SHOWN['draft_model']}, drafts accepted at 0.6 (set)"
    assert f"at acceptance 0.6 is slower here than: {SHOWN['teacher']}; {draft_model}." in said
    assert "0.9 is slower" not in said


def test_the_originals_configurations_share_a_table() -> None:
    """Files of one configuration each become the rows of one table, smallest first; the peers' file stays apart."""
    (example,) = (one for one in table.load(table.HERE / "results") if one["file"] == "heavy-example.json")
    results = []
    for batch, max_tokens in ((8, 2048), (8, 256)):
        result = copy.deepcopy(example)
        result["file"] = f"heavy-{batch}x{max_tokens}.json"
        result["settings"]["set_acceptance"] = [0.6, 0.9]
        (line,) = result["configurations"]
        line |= {"batch": batch, "max_tokens": max_tokens}
        line["published"] = {"original": 57.7, "teacher": 1335.26, "of_teacher": 57.7 / 1335.26}
        methods = line["methods"]
        for method in ("optimal", "draft_model"):
            one = methods.pop(method)
            methods |= {f"{method} at {rate}": copy.deepcopy(one) for rate in (0.6, 0.9)}
        methods["optimal at 0.9"]["of_teacher"] = {"median": 1.25, "low": 1.2, "high": 1.3}
        results.append(result)
    text = table.render(results, ["heavy"])
    small, large = (text.index(f"| {size} |") for size in ("8 x 256", "8 x 2048"))
    assert small < large
    assert text.count("optimal sampling, acceptance 0.9") == 1
    assert text.count("1.25 (1.20 to 1.30)") == 2
    assert "0.043 (57.7 of 1335.26, A100)" in text


def test_the_first_table_is_of_gpus_alone() -> None:
    """README's table has every configuration measured on a GPU, at the file's own figures, and none of a CPU's."""
    results = table.load(table.HERE / "results")
    text = table.first_table(results)
    on_gpu = [one for one in results if one["benchmark"] == "heavy" and table.is_on_gpu(one)]
    assert on_gpu
    for result in on_gpu:
        for configuration in result["configurations"]:
            ratios = [configuration["methods"].get(f"optimal at {rate}") for rate in ("0.7", "0.8", "0.9")]
            shown = " | ".join("" if one is None else f"{one['of_teacher']['median']:.2f}" for one in ratios)
            assert f"| {configuration['batch']} x {configuration['max_tokens']} | " in text
            assert f" | {shown} | " in text
    assert "example" not in text
    assert "on a GPU yet" in table.first_table([one for one in results if not table.is_on_gpu(one)])


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_results_say_where_they_come_from(path: Path) -> None:
    result = json.loads(path.read_text())
    assert {"benchmark", "date", "commit", "machine", "versions", "load_before", "load_after"} <= set(result)
    assert len(result["commit"]) == 40, "measured with files that differ from the commit"
    assert result["machine"]["device"]


@pytest.mark.parametrize("path", [*PREDICTIONS, *sorted(set(RESULTS) - set(MEASURED))], ids=lambda path: path.stem)
def test_predictions_say_so(path: Path) -> None:
    assert json.loads(path.read_text())["what"].startswith(("PREDICTED", "FITTED"))


@pytest.mark.parametrize("pair", SHAPES)
def test_shapes_have_their_parameters(pair: str, tmp_path: Path) -> None:
    for path in write_shapes(pair, tmp_path):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
        assert num_parameters(read_config(path)) == sum(weights.numel() for weights in model.parameters())


def test_the_example_pairs_parameters() -> None:
    said = json.loads((EXAMPLE / "figures.json").read_text())["parameters"]
    assert {role: num_parameters(read_config(EXAMPLE / role)) for role in said} == said


def test_spread_and_rounding() -> None:
    spread = Spread.of([3.0, 1.0, 2.00000049])
    assert rounded({"a": [spread]}) == {"a": [{"median": 2.0, "low": 1.0, "high": 3.0, "count": 3}]}
    with pytest.raises(ValueError, match="empty"):
        Spread.of([])
