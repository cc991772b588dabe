"""The page: text stays text, whatever was sampled; nothing is loaded; colours can be read."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.example_pair import TEACHER
from support.written_rows import command, row, write
from vllm_optimal_sampling.data.report import charts, colours, summarise
from vllm_optimal_sampling.data.report.page import render
from vllm_optimal_sampling.data.rows import settings_path

HOSTILE = (
    "<script>document.title = 'owned'</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'><iframe srcdoc='<script>alert(1)</script>'>",
    "</style></title></script><b id=injected>",
    "{{ 7 * 7 }} {% for x in y %}",
    "\x00\x1b[31m\ud800 \u202e",
)


class Elements(HTMLParser):
    """All elements of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def hostile_row(text: str) -> dict:
    columns = {"completion": text, "privileged_context": text, "finish_reason": text, "custom_id": text}
    return row(1, text.encode("utf-8", "replace").decode(), prompt=[{"role": text, "content": text}], **columns)


@pytest.mark.parametrize("tokenizer", [None, str(TEACHER)])
def test_hostile_text_stays_text(tmp_path: Path, tokenizer: str | None) -> None:
    rows = [hostile_row(text) for text in HOSTILE]
    for one in rows:
        one["custom_id"] += str(len(one["custom_id"]))
    rows += [row(2, error=text) for text in HOSTILE]
    path = write(tmp_path / "a<b onclick=x>&.jsonl", rows)
    settings_path(path).write_text('{"<script>alert(1)</script>": "</td><script>alert(2)</script>"}')
    page = render(summarise(path, tokenizer=tokenizer, num_samples=20))
    page.encode()  # no half of a surrogate pair
    found = Elements(page)
    assert [tag for tag, _ in found.elements].count("script") == 1
    assert not {"img", "iframe", "object", "link", "form", "base"} & {tag for tag, _ in found.elements}
    for tag, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert attributes.get("id") != "injected"
        assert not {"src", "href", "xlink:href", "srcdoc"} & set(attributes)
    text = "".join(found.texts)
    assert "<img src=x onerror=alert(1)>" in text
    assert "{{ 7 * 7 }}" in text
    assert "\x00" not in page
    assert "\x1b" not in page


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40))
def test_any_text_leaves_the_page_whole(tmp_path: Path, text: str) -> None:
    plain = render(summarise(write(tmp_path / "rows.jsonl", [row(1, completion_token_ids=None)])))
    page = render(summarise(write(tmp_path / "rows.jsonl", [row(1, completion=text, completion_token_ids=None)])))
    tags = [[tag for tag, _ in Elements(one).elements if tag not in ("rect", "line", "text")] for one in (plain, page)]
    assert tags[0] == tags[1]


def test_the_page_needs_no_network_and_runs_its_own_script_only(tmp_path: Path) -> None:
    import base64
    import hashlib

    page = render(summarise(write(tmp_path / "rows.jsonl", [row(i) for i in range(20)]), tokenizer=str(TEACHER)))
    assert not re.search(r"https?://(?!www\.w3\.org/1999/xhtml)", page)
    assert "@import" not in page
    assert "url(" not in page
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_every_token_says_its_figures(tmp_path: Path) -> None:
    one = row(1)
    one["optimal_sampling"]["alpha"][0] = 0.25
    one["optimal_sampling"]["kl"][0] = 0.125
    one["optimal_sampling"]["theta_logprob"][0] = None
    one["optimal_sampling"]["teacher_logprob"][0] = float(np.log(0.75))
    page = Elements(render(summarise(write(tmp_path / "rows.jsonl", [one]), tokenizer=str(TEACHER))))
    spans = [attributes for tag, attributes in page.elements if tag == "span" and "title" in attributes]
    assert len(spans) == len(one["completion_token_ids"])
    said = str(spans[0]["title"])
    assert "α 0.25" in said
    assert "KL 0.125" in said
    assert "teacher 75 %" in said
    assert "θ 0 %" in said
    assert "a2" in str(spans[0]["class"]).split()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_on_every_colour(theme: str) -> None:
    for stops in (colours.ALPHA[theme], colours.KL[theme]):
        steps = colours.scale(stops)
        assert len(set(steps)) == colours.STEPS
        for colour in steps:
            assert colours.contrast(colour, colours.TEXT[theme]) >= 4.5, colour
    assert colours.contrast("#000000", "#ffffff") == pytest.approx(21)


def test_bars_hold_every_value(tmp_path: Path) -> None:
    summary = summarise(write(tmp_path / "rows.jsonl", [row(i) for i in range(50)]))
    for figures, options in (
        (summary.alpha, {"view": (0, 1)}),
        (summary.kl, {"log_x": True}),
        (summary.ratio, {"view": (-1, 1), "log_y": True}),
        (summary.length, {"whole": True}),
    ):
        drawn = charts.histogram(figures, "x", **options)
        counts = [int(count.replace(",", "")) for count in re.findall(r": ([\d,]+) \(", drawn)]
        assert sum(counts) == figures.count > 0
        heights = [float(height) for height in re.findall(r'class="bar"[^>]*height="([^"]*)"', drawn)]
        assert heights.index(max(heights)) == counts.index(max(counts))
        assert all(0 < height <= 230 for height in heights)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 9))
def test_ticks_are_few_even_and_inside(low: float, span: float, about: int) -> None:
    high = low + span
    found = charts.ticks(low, high, about)
    assert len(found) <= about + 2
    assert all(low - 1e-6 * span - 1e-9 <= tick <= high + 1e-6 * span + 1e-9 for tick in found)


def test_the_notebook_shows_the_page_in_a_frame(tmp_path: Path) -> None:
    summary = summarise(write(tmp_path / "rows.jsonl", [row(1, "</iframe>\"'><script>alert(1)</script>")]))
    ((tag, attributes),) = Elements(summary._repr_html_()).elements
    assert tag == "iframe"
    assert attributes["srcdoc"] == render(summary)
    assert attributes["sandbox"] == "allow-scripts"


def test_the_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "rows.jsonl", [row(1), row(2, error="too long")])
    assert command("report", path, "--tokenizer", TEACHER) == 0
    page = (tmp_path / "rows.jsonl.report.html").read_text()
    assert "too long" in "".join(Elements(page).texts)
    assert "2 samples, 1 failed" in capsys.readouterr().out
    assert sorted(file.name for file in tmp_path.iterdir()) == ["rows.jsonl", "rows.jsonl.report.html"]


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    assert command("report", path) == 1
    assert (
        capsys.readouterr().err == f"optimal-sampling report: {path} has no rows yet, so there is nothing to report\n"
    )
    assert list(tmp_path.iterdir()) == [path]
    assert "There are no rows in it." in render(summarise(path))


def test_the_command_leaves_its_input_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "rows.jsonl", [row(1)])
    before = path.read_bytes()
    (tmp_path / "link.html").symlink_to(path)
    assert command("report", path, "--output", tmp_path / "link.html") == 1
    assert "is the input" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--samples", "-1"], "--samples -1 is less than 0"),
        (["--disagreements", "-1"], "--disagreements -1 is less than 0"),
        (["--output", "problems.csv"], "--output problems.csv does not end in .html"),
    ],
)
def test_options_that_mean_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    path = write(tmp_path / "rows.jsonl", [row(1)])
    assert command("report", path, *options) == 1
    assert said in capsys.readouterr().err
