"""From metric files and figures to tables and one page."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from PIL import Image

from condense.paths import write_atomically


@dataclass(frozen=True)
class Section:
    """One part of the report: words, a metric file, and the figures of one folder."""

    name: str  # of the metric file and of the figure folder
    title: str
    text: str
    metrics: tuple[str, ...] = ()  # columns of the table, in this order; all if empty


def load_metrics(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    """The metrics of one file, {method: {metric: {mean, ci95, n}}}; {} where the stage had nothing to measure.

    Raises:
        ValueError: the file has another form.
    """
    metrics = json.loads(path.read_text())
    for method, row in metrics.items():
        for metric, value in row.items():
            if not isinstance(value, dict) or {"mean", "ci95", "n"} - set(value):
                raise ValueError(f"{path}: {method}.{metric} is {value!r}, not {{mean, ci95, n}}")
    return metrics


def metric_table(metrics: dict[str, Any], columns: tuple[str, ...] = ()) -> pd.DataFrame:
    """Methods down, metrics across, each cell `mean ± half-width of the 95 % interval`.

    Fractions are shown in percent; a metric whose name carries a unit is shown as it is.
    """
    columns = columns or tuple(dict.fromkeys(metric for row in metrics.values() for metric in row))
    rows = {
        method: [format_value(metric, row[metric]) if metric in row else "–" for metric in columns]
        for method, row in metrics.items()
    }
    names = [label(metric) for metric in columns]
    return pd.DataFrame.from_dict(rows, orient="index", columns=names).rename_axis("method")


UNITS = {
    "db": "dB",
    "seconds": "s",
    "cosine": "",
    "rank": "",
    "count": "",
    "scene": "B",
    "deg": "°",
    "inside": "",
    "across": "",
}


def unit(metric: str) -> str | None:
    """The unit that a metric's name ends with, or None for a fraction."""
    return UNITS.get(metric.split("_")[-1])


def label(metric: str) -> str:
    """A metric's name as a column heading."""
    named = unit(metric)
    words = metric.replace("_db", "").replace("_", " ")
    return f"{words} [{'%' if named is None else named}]" if named != "" and words != "seconds" else words


def format_value(metric: str, value: dict[str, float]) -> str:
    """`mean ± ci95`, or the mean alone of a single value; fractions in percent."""
    scale = 100.0 if unit(metric) is None else 1.0
    digits = 3 if unit(metric) == "" else 1 if scale == 100.0 else 2
    mean = f"{value['mean'] * scale:.{digits}f}"
    return mean if value["ci95"] is None else f"{mean} ± {value['ci95'] * scale:.{digits}f}"


def write_tables(table: pd.DataFrame, folder: Path, name: str) -> None:
    """Writes a table as CSV and LaTeX."""
    latex = table.to_latex(escape=True).replace("±", r"$\pm$").replace("–", "--")
    write_atomically(folder / f"{name}.csv", lambda path: table.to_csv(path))
    write_atomically(folder / f"{name}.tex", lambda path: path.write_text(latex))


def environment_table() -> pd.DataFrame:
    """The machine and the versions that this run used."""
    packages = ["torch", "nerfacc", "spconv", "transformers", "numpy", "scikit-learn", "dvc", "papermill"]
    rows = {"Python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    rows["cores"] = str(os.cpu_count())
    for package in packages:
        try:
            rows[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # another build of it, such as spconv-cu126
            rows[package] = "not installed under this name"
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value"]).rename_axis("")


def cost_table(folder: Path) -> pd.DataFrame:
    """Seconds and peak memory of every stage that ran, from `artifacts/times`."""
    rows = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("notebook")
    if len(table):
        table.loc["all"] = [table["seconds"].sum(), table["peak_gb"].max()]
    return table.rename(columns={"seconds": "seconds", "peak_gb": "peak memory [GB]"})


def build_report(folder: Path, title: str, introduction: str, sections: list[Section], costs: Path) -> Path:
    """Writes `index.html` and `tables/` into a run's reports folder.

    Args:
        folder: the reports folder, with `metrics/<name>.json` and `figures/<name>/*.png`.
        title: heading of the page.
        introduction: HTML, one or two paragraphs.
        sections: in reading order; one with neither metrics nor figures is shown as not measured.
        costs: folder of the stages' times.

    Returns:
        The page.
    """
    blocks = [_block(folder, section) for section in sections]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        title=title,
        introduction=introduction,
        blocks=blocks,
        environment=_html(environment_table()),
        costs=_html(cost_table(costs)),
    )
    target = folder / "index.html"
    write_atomically(target, lambda path: path.write_text(page, encoding="utf-8"))
    return target


def _block(folder: Path, section: Section) -> dict[str, Any]:
    path = folder / "metrics" / f"{section.name}.json"
    metrics = load_metrics(path) if path.is_file() else {}
    table = None
    if metrics:
        frame = metric_table(metrics, section.metrics)
        write_tables(frame, folder / "tables", section.name)
        table = _html(frame)
    figures = sorted((folder / "figures" / section.name).glob("*.png"))
    n = sorted({int(value["n"]) for row in metrics.values() for value in row.values()})
    return {
        "section": section,
        "table": table,
        "n": ", ".join(map(str, n)),
        "figures": [(path.relative_to(folder).as_posix(), _caption(path)) for path in figures],
    }


def _caption(figure: Path) -> str:
    with Image.open(figure) as image:
        return str(image.info.get("Description", figure.stem.replace("_", " ")))


def _html(table: pd.DataFrame) -> str:
    return table.reset_index().to_html(index=False, border=0, float_format=lambda x: f"{x:.2f}")
