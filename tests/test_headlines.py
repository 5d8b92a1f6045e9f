"""The first table of the report, by hand."""

import json

from condense.headlines import Headline, headline_html, headline_table
from condense.study import HEADLINES, SECTIONS

LINES = [
    Headline(
        "classes", "classification", "acc", {"scratch": "from scratch", "absent": "absent", "distill": "distilled"}
    ),
    Headline("never measured", "nowhere", "acc", {"scratch": "from scratch"}),
    Headline("parts", "classification", "miou", {"distill": "distilled"}),
]


def value(mean, ci95=0.02):
    return {"mean": mean, "ci95": ci95, "n": 5}


def test_signs_by_intervals(tmp_path):
    metrics = {
        "condense": {"acc": value(0.5), "miou": value(0.2, None)},
        "scratch": {"acc": value(0.4599)},
        "distill": {"acc": value(0.4601), "miou": value(0.25)},
    }
    (tmp_path / "classification.json").write_text(json.dumps(metrics))
    table = headline_table(tmp_path, LINES)
    assert table.index.tolist() == ["classes", "parts"]
    assert table.loc["classes", "here"] == "50.0 ± 2.0"
    assert table.loc["classes", "beside it"] == "▲ 46.0 ± 2.0 from scratch; = 46.0 ± 2.0 distilled"
    assert table.loc["parts"].tolist() == ["20.0", "▼ 25.0 ± 2.0 distilled"]
    page = headline_html(table)
    assert '<span class="behind">▼ 25.0 ± 2.0 distilled</span>' in page


def test_a_run_that_measured_nothing_has_no_table(tmp_path):
    assert headline_html(headline_table(tmp_path, LINES)) == ""


def test_headlines_are_of_sections_that_the_report_has():
    assert {line.file for line in HEADLINES} <= {section.name for section in SECTIONS}
