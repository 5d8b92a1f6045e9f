"""A model that travels: what is saved comes back, and says what it is; no network is needed for a folder."""

import json

import pytest
import torch
from toys import tiny_teacher, toy_links

from condense.cli import main
from condense.extraction import condense_scene, detect_image
from condense.model import new_model
from condense.pretrained import PretrainedModel, card_metrics, card_of
from condense.sparse import SparseModel, save_sparse

METRICS = {
    "frozen": {"linear_probe_acc": {"mean": 0.5, "ci95": 0.1, "n": 9}},
    "condense": {"linear_probe_acc": {"mean": 0.75, "ci95": None, "n": 9}, "knn_acc": {"mean": 1.0, "ci95": 0, "n": 9}},
}


@pytest.fixture
def folder(tmp_path):
    save_sparse(tmp_path / "seed_0", SparseModel(new_model(tiny_teacher(), 0)))
    return tmp_path / "seed_0"


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)


def test_a_model_comes_back_from_its_folder(folder, tmp_path, offline):
    model = PretrainedModel.from_folder(folder)
    model.save_pretrained(tmp_path / "shared")
    again = PretrainedModel.from_pretrained(tmp_path / "shared")
    assert not again.training
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    linked = toy_links(0)
    scene, image = linked.scene, linked.views[0].image
    assert torch.equal(model.scene_features(scene), again.scene_features(scene))
    assert torch.equal(model.image_features(image), again.image_features(image))
    assert again.image_features(image).shape[0] == again.scene_features(scene).shape[1]
    assert len(condense_scene(again, scene, 8)) == 8 and len(detect_image(again, image, count=8)) == 8
    assert {path.suffix for path in (tmp_path / "shared").iterdir()} == {".safetensors", ".json", ".md"}


def test_the_command_writes_a_card_that_quotes_the_run(folder, tmp_path, capsys):
    (tmp_path / "reports/metrics").mkdir(parents=True)
    (tmp_path / "reports/metrics/classification.json").write_text(json.dumps(METRICS))
    arguments = ["export", str(folder), str(tmp_path / "shared"), "--reports", str(tmp_path / "reports")]
    assert main(arguments) == 0
    card = (tmp_path / "shared/README.md").read_text()
    assert "license: apache-2.0" in card and "| 3D classes, linear probe | 0.750 ± 0.000 | 0.500 ± 0.100 |" in card
    assert "Not recorded" in card
    for captures, said in (({"builtin": {}}, "seeded generator"), ({"fox": {}, "desk": {}}, "Captures: fox, desk.")):
        (tmp_path / "reports/metrics/fields.json").write_text(json.dumps(captures))
        assert said in card_of(tmp_path / "reports")["data"]
    assert main(["export", str(tmp_path), str(tmp_path / "other")]) == 1
    assert "is no trained model: student.safetensors is missing" in capsys.readouterr().err


def test_a_method_that_was_not_measured_leaves_a_gap():
    table = card_metrics(METRICS, "condense", {"linear_probe_acc": "probe", "knn_acc": "neighbours", "other": "other"})
    assert table.splitlines()[0] == "|  | condense | frozen |"
    assert table.splitlines()[-1] == "| neighbours | 1.000 ± 0.000 |  |"
