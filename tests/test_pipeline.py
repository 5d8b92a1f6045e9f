"""The stage graph is honest, the settings are complete, and the notebooks keep their form."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from condense.params import Params
from condense.paths import project_root
from condense.run import imports_of, source_files
from condense.study import SECTIONS

ROOT = project_root()
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# Every stage runs through this module. `params.py` only reads settings; DVC follows the settings themselves.
RUNNER, READER = "condense.notebooks", "condense/params.py"


def cells(notebook: Path) -> list[dict]:
    return json.loads(notebook.read_text())["cells"]


def code(notebook: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in cells(notebook) if cell["cell_type"] == "code"]


def notebook_of(stage: dict) -> Path:
    return ROOT / stage["cmd"].split()[-1].replace("${root}/", "")


def needed(stage: dict) -> set[str]:
    """The package files that a stage's notebook imports, what they import included."""
    modules = {RUNNER, *imports_of("\n".join(code(notebook_of(stage))))}
    files = {path.relative_to(ROOT).as_posix() for module in modules for path in source_files(module)}
    return {file for file in files if not file.endswith("__init__.py") and file != READER}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_lists_the_files_its_notebook_imports_and_no_more(name):
    stage = STAGES[name]
    listed = {dep.replace("${root}/", "") for dep in stage["deps"] if dep.startswith("${root}/")}
    assert notebook_of(stage).relative_to(ROOT).as_posix() in listed
    assert {file for file in listed if file.endswith(".py")} == needed(stage)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_lists_what_its_notebook_reads_and_writes(name):
    stage, text = STAGES[name], "\n".join(code(notebook_of(STAGES[name])))
    outs = [key if isinstance(out, str) else next(iter(out)) for out in stage["outs"] for key in [out]]
    for read in set(_arguments(text, "study.artifact(")):
        assert any(dep.startswith(f"artifacts/{read}") for dep in stage["deps"]), f"{name} reads artifacts/{read}"
    for made in _arguments(text, "study.workspace("):
        assert f"artifacts/{made}" in outs
    for metrics in _arguments(text, "study.save_metrics("):
        assert f"reports/metrics/{metrics}.json" in [next(iter(m)) for m in stage["metrics"]]
    for figure in _arguments(text, "study.save_figure("):
        assert f"reports/figures/{figure.split('/')[0]}" in outs
    assert ("study.captures" in text) == ("${captures.folder}" in stage["deps"])


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_lists_the_settings_its_notebook_reads(name):
    text = "\n".join(code(notebook_of(STAGES[name])))
    fields = [field.name for field in dataclasses.fields(Params) if field.name != "root"]
    read = {field for field in fields if f"params.{field}" in text}
    assert set(STAGES[name].get("params", [])) == read


def _arguments(text: str, call: str) -> list[str]:
    """The first argument, a string, of each call."""
    return [part.split('"')[1] for part in text.split(call)[1:]]


def test_the_report_has_a_section_for_all_that_is_measured():
    made = {
        Path(dep).stem for dep in STAGES["report"]["deps"] if dep.startswith(("reports/metrics", "reports/figures"))
    }
    assert made == {section.name for section in SECTIONS}


def test_every_notebook_is_a_stage_but_the_one_to_play_with():
    assert {notebook_of(stage) for stage in STAGES.values()} == set(NOTEBOOKS) - {ROOT / "notebooks/95_explore.ipynb"}


def test_params_yaml_names_every_setting():
    """So that DVC sees any change, and no default hides in the code."""

    def keys(cls) -> dict:
        hints = {field.name: field for field in dataclasses.fields(cls)}
        nested = {name: field.default_factory for name, field in hints.items()}
        return {n: keys(f) if isinstance(f, type) and dataclasses.is_dataclass(f) else None for n, f in nested.items()}

    def names(values) -> dict:
        return {key: names(value) if isinstance(value, dict) else None for key, value in values.items()}

    assert names(yaml.safe_load((ROOT / "params.yaml").read_text())) == keys(Params)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_keeps_its_form(notebook):
    found = cells(notebook)
    assert found[0]["cell_type"] == "markdown" and "".join(found[0]["source"]).startswith("# ")
    parameters = [cell for cell in found if "parameters" in cell["metadata"].get("tags", [])]
    assert len(parameters) == 1 and 'run = "runs/smoke"' in "".join(parameters[0]["source"])
    sources = code(notebook)
    assert len(sources) <= 15 and max(source.count("\n") + 1 for source in sources) <= 25
    assert found[-1]["cell_type"] == "markdown" or notebook.stem in ("00_captures", "90_report"), "ends with words"
    for cell in found:
        if cell["cell_type"] == "code" and cell["outputs"]:
            assert "NBVAL_CHECK_OUTPUT" in "".join(cell["source"]), "outputs in git: strip them"
            assert cell["execution_count"], "nbval takes an output of a cell that was never run for an error"
