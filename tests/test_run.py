import json

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook, new_output

from condense.notebooks import kernel_options, run_notebook, strip
from condense.parallel import _workers, parallel_calls, parallel_map
from condense.params import Params, load_params, merge, parse
from condense.paths import project_root, write_atomically
from condense.report import Section, build_report, load_metrics, metric_table
from condense.run import Run, imports_of, prepare_run, source_files


def test_an_unknown_key_names_the_nearest(tmp_path):
    (tmp_path / "params.yaml").write_text("captures:\n  foldr: x\n")
    with pytest.raises(ValueError, match=r"captures: unknown key 'foldr'; did you mean 'folder'"):
        load_params(tmp_path / "params.yaml")


def test_a_value_of_the_wrong_type_is_refused(tmp_path):
    (tmp_path / "params.yaml").write_text("seed: many\n")
    with pytest.raises(ValueError, match="'seed' is 'many', not int"):
        load_params(tmp_path / "params.yaml")


def test_all_profiles_load():
    root = project_root()
    base = yaml.safe_load((root / "params.yaml").read_text())
    assert isinstance(load_params(root / "params.yaml"), Params)
    for profile in (root / "profiles").glob("*.yaml"):
        parse(Params, merge(base, yaml.safe_load(profile.read_text())), profile.name)


def test_merge_keeps_what_is_not_overridden():
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}}) == {"a": {"b": 9, "c": 2}, "d": 3}


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "x.txt"
    target.write_text("old")

    def fail(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, fail)
    assert target.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_a_workspace_is_kept_until_its_inputs_change(tmp_path):
    run = Run(tmp_path, Params())
    (tmp_path / "input").write_text("1")
    folder = run.workspace("fields", ["condense.grid"], {"steps": 3}, [tmp_path / "input"])
    (folder / "part").write_text("done")
    assert (run.workspace("fields", ["condense.grid"], {"steps": 3}, [tmp_path / "input"]) / "part").exists()
    (tmp_path / "input").write_text("2")
    assert not (run.workspace("fields", ["condense.grid"], {"steps": 3}, [tmp_path / "input"]) / "part").exists()


def test_a_missing_artefact_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="make repro"):
        Run(tmp_path, Params()).artifact("fields")


def test_imports_are_followed():
    source = "from condense.grid import Grid\nimport condense.paths\nimport torch\n"
    assert set(imports_of(source)) == {"condense.grid", "condense.paths"}
    assert {path.name for path in source_files("condense.voxels")} >= {"voxels.py", "grid.py"}


def test_an_unknown_profile_lists_the_known():
    with pytest.raises(FileNotFoundError, match="smoke"):
        prepare_run("no-such-profile")


def double(x):
    return 2 * x


def test_calls_of_several_functions_run_side_by_side():
    assert parallel_calls([(double, 2), (max, 1, 5), (double, 3)], 2, "mixed") == [4, 5, 6]


@pytest.mark.parametrize(("jobs", "workers"), [(1, 2), (2, 2), (3, 3), (4, 2), (5, 2), (9, 3), (600, 2), (603, 2)])
def test_a_few_long_jobs_end_together_on_two_cores(jobs, workers):
    assert _workers(jobs, 2) == workers


def test_parallel_map_keeps_the_order():
    assert parallel_map(double, [(i,) for i in range(5)], 2, "doubling") == [0, 2, 4, 6, 8]


def test_workers_are_made_ready_beside_the_notebook(tmp_path):
    code = [
        "from multiprocessing.forkserver import _forkserver as server",
        "print('started', server._forkserver_pid is not None)",
        "from condense.parallel import parallel_map",
        "print(server._preload_modules, parallel_map(abs, [(-1,), (2,)], 2, 'numbers'))",
    ]
    notebook = new_notebook(cells=[new_code_cell("\n".join(code))], metadata={"language_info": {"name": "python"}})
    nbformat.write(notebook, tmp_path / "a.ipynb")
    text = run_notebook(tmp_path / "a.ipynb", tmp_path).read_text()
    assert "started True" in text and "condense.parallel'" in text and "[1, 2]" in text
    for other in ("print(1)", "%time from condense.parallel import parallel_map"):
        nbformat.write(new_notebook(cells=[new_code_cell(other)]), tmp_path / "b.ipynb")
        assert kernel_options(tmp_path / "b.ipynb") == []


def test_strip_drops_run_times_and_keeps_results(tmp_path):
    cell = new_code_cell("1", metadata={"papermill": {"duration": 1.2}, "tags": ["parameters"]})
    cell.outputs = [
        new_output("stream", name="stderr", text="50%|#### 0.2s/it"),
        new_output("stream", name="stdout", text="result"),
    ]
    nbformat.write(new_notebook(cells=[cell], metadata={"papermill": {"start_time": "now"}}), tmp_path / "a.ipynb")
    strip(tmp_path / "a.ipynb", tmp_path / "b.ipynb")
    text = (tmp_path / "b.ipynb").read_text()
    assert "duration" not in text and "start_time" not in text and "0.2s/it" not in text
    assert "result" in text and "parameters" in text


def test_tables_show_percent_unless_there_is_a_unit():
    metrics = {
        "a": {"acc": {"mean": 0.5, "ci95": 0.1, "n": 3}, "psnr_db": {"mean": 30, "ci95": 1, "n": 3}},
        "b": {},
    }
    table = metric_table(metrics)
    assert list(table.loc["a"]) == ["50.0 ± 10.0", "30.00 ± 1.00"]
    assert list(table.loc["b"]) == ["–", "–"]
    assert list(table.columns) == ["acc [%]", "psnr [dB]"]


def test_a_metric_without_an_interval_is_refused(tmp_path):
    (tmp_path / "m.json").write_text(json.dumps({"a": {"acc": 0.5}}))
    with pytest.raises(ValueError, match=r"a\.acc"):
        load_metrics(tmp_path / "m.json")


def test_the_report_names_what_was_not_measured(tmp_path):
    page = build_report(tmp_path, "Title", "<p>Words</p>", [Section("x", "X", "About x")], tmp_path / "times")
    assert "Not measured in this run" in page.read_text()
