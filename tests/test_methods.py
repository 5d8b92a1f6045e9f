from condense.tasks.methods import networks


def finished(folder):
    folder.mkdir(parents=True)
    (folder / "net3d.json").write_text("{}")


def test_methods_in_order_and_seeds_by_number(tmp_path):
    for name in ("condense/seed_10", "condense/seed_9", "condense/scratch_0", "baselines/distill/seed_0"):
        finished(tmp_path / name)
    (tmp_path / "baselines/render_rgbd/seed_0").mkdir(parents=True)  # unfinished
    (tmp_path / "baselines/key.txt").write_text("")
    found = networks(tmp_path / "condense", tmp_path / "baselines")
    assert list(found) == ["condense", "scratch", "distill"]
    assert [folder.name for folder in found["condense"]] == ["seed_9", "seed_10"]


def test_no_baselines(tmp_path):
    finished(tmp_path / "condense/seed_0")
    assert list(networks(tmp_path / "condense", tmp_path / "absent")) == ["condense"]
