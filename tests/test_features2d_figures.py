import numpy as np
import torch
from test_features2d_probes import views_of
from toys import tiny_teacher, toy_links

from condense.backbone2d import FeatureStatistics, save_backbone
from condense.features2dfigures import label_legend, measure_points, noise_colours, probe_colours, shared_colours
from condense.figures import feature_colours
from condense.tasks.features2d import geometry_maps, teacher_maps
from condense.tasks.probes2d import ProbeViews, probe_network


def test_one_colour_means_one_feature():
    links = toy_links(0, views=4, test=1)
    maps = {"teacher": teacher_maps(links), "copy": teacher_maps(links), "lifted": geometry_maps(links, links.lifted)}
    pictures = shared_colours(links, maps)
    assert list(pictures) == ["image", *maps]
    assert pictures["image"][0].shape == (32, 32, 3) and pictures["lifted"][0].shape == (8, 8, 3)
    assert all(image.min() >= 0 and image.max() <= 1 for images in pictures.values() for image in images)
    np.testing.assert_array_equal(pictures["teacher"][3], pictures["copy"][3])
    empty = (links.views[0].operator.opacity < 0.5).reshape(8, 8).numpy()
    assert empty.any() and (pictures["lifted"][0][empty] == 1).all() and (pictures["teacher"][0][empty] < 1).any()


def test_outliers_are_red():
    links = toy_links(0, views=1, test=0)
    solid = torch.nonzero((links.views[0].operator.opacity >= 0.5).reshape(8, 8))
    cells = torch.ones(2, 8, 8) + 0.01 * torch.arange(8)
    row, column = solid[0].tolist()
    cells[:, row, column] = 50
    picture = noise_colours(links, {"some": [cells]}, FeatureStatistics(torch.zeros(2), torch.ones(2)))["some"][0]
    np.testing.assert_allclose(picture[row, column], [1, 0, 0], atol=0.01)
    behind = (links.views[0].operator.opacity < 0.5).reshape(8, 8).numpy()
    assert (picture[behind] > 0.98).all()


def test_probes_beside_the_truth(tmp_path):
    save_backbone(tiny_teacher(), tmp_path / "teacher.safetensors")
    split = [[views_of(place)] for place in range(3)]
    task = ProbeViews("part", ("none", "dark", "bright"), *split)
    (result,) = probe_network("teacher", None, tmp_path / "teacher.safetensors", [task], 300, 0, True)
    pictures = probe_colours({"teacher": result}, task, split[2][0], tmp_path / "teacher.safetensors")
    assert set(pictures) == {"labels", "depth"} and list(pictures["labels"]) == ["image", "truth", "teacher"]
    same = (pictures["labels"]["truth"][0] == pictures["labels"]["teacher"][0]).all(-1)
    assert same.shape == (8, 8) and same.mean() > 0.8
    figure = label_legend(feature_colours(pictures["labels"]), task.names, split[2][0][0].labels)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dark", "bright"]


def test_points_of_metrics():
    value = {"mean": 0.5, "ci95": None, "n": 1}
    figure = measure_points({"a": {"x": value, "y": value}, "b": {"x": value}}, {"x": "X", "y": "Y", "z": "Z"}, 3)
    assert [axis.get_title() for axis in figure.axes if axis.axison] == ["X", "Y"]
