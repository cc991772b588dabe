"""A `Summary` as one HTML page that needs nothing else: no network, no files beside it, and no script to be read.

The template (`page.html.j2`) is rendered with Jinja2's escaping on, so sampled text stays text. A content policy in the
page lets only the page's own script run, even if something got through.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from vllm_optimal_sampling import __version__
from vllm_optimal_sampling.data.report import charts, colours
from vllm_optimal_sampling.data.report.along_chart import along_sequence
from vllm_optimal_sampling.data.report.streaming import Distribution
from vllm_optimal_sampling.data.report.summary import Sample, Sequences, Summary, TokenFigures

FRAME_PIXELS = 900
"""Height of the report in a notebook."""


@dataclass(frozen=True)
class Token:
    """A token as the page shows it: its text, the classes of its colours, and what is said when it is pointed at."""

    text: str
    classes: str
    said: str


class Report(Summary):
    """A summary that shows itself as the report in a notebook."""

    def to_html(self) -> str:
        """The report: one page that needs nothing else."""
        return render(self)

    def _repr_html_(self) -> str:
        """The report in a frame of its own, so that neither styles nor sampled text reach the notebook."""
        return render_in_frame(self)


def render(summary: Summary) -> str:
    """The report as an HTML document."""
    script = _file("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    top_kl = _top_kl(summary.kl)
    page = _environment().get_template("page.html.j2")
    return page.render(
        summary=summary,
        version=__version__,
        styles=Markup(_styles()),
        script=Markup(script),
        script_digest=digest,
        steps=range(colours.STEPS),
        top_kl=top_kl,
        samples=[(sample, tokens(sample, top_kl)) for sample in summary.samples],
        settings=_settings(summary),
        charts=charts,
        alpha_chart=charts.histogram(summary.alpha, "alpha", view=(0, 1), bars=50, marker=0.5),
        kl_chart=charts.histogram(summary.kl, "KL of q* from each model (nats)", log_x=True, bars=44),
        ratio_chart=charts.histogram(
            summary.ratio, "log teacher − log θ (nats)", view=_symmetric(summary.ratio), bars=60, log_y=True, marker=0
        ),
        length_chart=charts.histogram(
            summary.length, "tokens" if summary.num_tokens is not None else "characters", whole=True
        ),
        wide_chart=along_sequence(summary.alpha_by_position, 900),
        narrow_chart=along_sequence(summary.alpha_by_position, 400),
        cost_chart=charts.histogram(summary.sequences.cost, "−Σ log Z of a text (nats)", log_x=True, bars=44),
        outcome_chart=_outcome_chart(summary.sequences),
        share_chart=charts.histogram(
            summary.sequences.effective_share, "effective share of a prompt's texts", view=(0, 1), bars=50
        ),
        trade_charts=_trade_charts(summary.sequences),
    )


def render_in_frame(summary: Summary) -> str:
    """The report in an iframe without rights but for its own script."""
    frame = Markup(
        '<iframe sandbox="allow-scripts" title="Report" srcdoc="{}" '
        'style="width: 100%; height: {}px; border: 1px solid #8884; border-radius: 8px"></iframe>'
    )
    return str(frame.format(render(summary), FRAME_PIXELS))


def tokens(sample: Sample, top_kl: float) -> list[Token]:
    """A sample's pieces with their colours: alpha and kl are those of the piece's token with the largest kl."""
    shown = []
    for piece in sample.pieces:
        text = visible(piece.text)
        figures = sample.figures
        if figures is None or piece.stop > len(figures):
            shown.append(Token(text, "", f"token {piece.start + 1}"))
            continue
        own = figures[piece.start : piece.stop]
        loudest = int(np.nan_to_num(own.kl, nan=-1.0).argmax())
        alpha, kl = float(own.alpha[loudest]), float(own.kl[loudest])
        classes = f"a{_step(alpha)} k{_step(math.sqrt(kl / top_kl) if kl > 0 else 0.0)}"
        if own.fallback.any():
            classes += " fallback"
        said = "\n".join(_said(own, place, piece.start + place) for place in range(len(own)))
        shown.append(Token(text, classes, said))
    return shown


def _said(figures: TokenFigures, place: int, position: int) -> str:
    said = (
        f"token {position + 1:,}   α {charts.number(float(figures.alpha[place]))}   "
        f"KL {charts.number(float(figures.kl[place]))} nats\n"
        f"teacher {probability(float(figures.teacher_logprob[place]))}   "
        f"θ {probability(float(figures.theta_logprob[place]))}   "
        f"q* {probability(float(figures.logprob[place]))}"
    )
    return said + "\nleft to the teacher: the row could not be mixed" if figures.fallback[place] else said


def probability(logprob: float) -> str:
    """A log-probability as per cent; a null, which is a token that cannot be drawn, as 0 %."""
    return "0 %" if math.isnan(logprob) else charts.percent(math.exp(min(logprob, 0.0)))


def visible(text: object) -> str:
    """Text as HTML can hold it: control characters get their signs, half of a surrogate pair the replacement."""
    return "".join(
        "\ufffd"
        if "\ud800" <= char <= "\udfff"
        else chr(0x2400 + ord(char))
        if char < " " and char not in "\n\t"
        else "\u2421"
        if char == "\x7f"
        else char
        for char in str(text)
    )


def _step(share: float) -> int:
    if math.isnan(share):
        return 0
    return round(min(max(share, 0.0), 1.0) * (colours.STEPS - 1))


def _top_kl(kl: Distribution) -> float:
    """The divergence with the loudest colour: 99 % of the tokens are below it."""
    top = kl.quantiles[0.99]
    return top if top > 0 else 1.0


def _outcome_chart(sequences: Sequences) -> Markup | None:
    """Σ log Z of right texts against wrong ones; None where there are not both."""
    if sequences.right is None or sequences.wrong is None:
        return None
    groups = [("right", "is-right", sequences.right), ("wrong", "is-wrong", sequences.wrong)]
    return charts.compared(groups, "−Σ log Z of a text (nats)")


def _trade_charts(sequences: Sequences) -> list[Markup]:
    """A wide and a narrow picture of the ways of sampling; none where no way has both figures."""
    ways = [way for way in sequences.ways if way.num_judged and not math.isnan(way.kl)]
    return [charts.trade(ways, width) for width in (900, 400)] if ways else []


def _symmetric(ratio: Distribution) -> tuple[float, float]:
    """A view around 0 with all but the outermost 0.5 % on either side; at most 20 nats."""
    reach = max(abs(ratio.quantiles[0.01]), abs(ratio.quantiles[0.99])) if ratio.count else 1.0
    reach = min(max(1.5 * reach, 0.5), 20.0)
    return (-reach, reach)


def _settings(summary: Summary) -> list[tuple[str, str]]:
    return [
        (str(key), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
        for key, value in (summary.settings or {}).items()
    ]


def _styles() -> str:
    styles = _file("page.css")
    for theme in ("light", "dark"):
        styles = styles.replace(f"/* {theme} scales */", f"--text: {colours.TEXT[theme]}; {colours.variables(theme)}")
    steps = "\n".join(
        f".by-alpha:checked ~ .samples .a{i}, .legend .a{i} {{ background: var(--a{i}) }}\n"
        f".by-kl:checked ~ .samples .k{i}, .legend .k{i} {{ background: var(--k{i}) }}"
        for i in range(colours.STEPS)
    )
    return f"{styles}\n{steps}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_file),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else visible(value),
    )
    environment.filters |= {
        "number": charts.number,
        "percent": charts.percent,
        "probability": probability,
        "visible": visible,
        "bar": lambda logprob: f"{0.0 if math.isnan(logprob) else 100 * math.exp(min(logprob, 0.0)):.2f}%",
    }
    return environment


def _file(name: str) -> str:
    return files("vllm_optimal_sampling.data.report").joinpath(name).read_text(encoding="utf-8")
