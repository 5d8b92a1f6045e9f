"""Two processes train as one does: same losses, same weights, also when one of them is killed on the way."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributedjob import first_gradient
from safetensors.torch import load_file
from toys import tiny_teacher, toy_links

from condense.backbone2d import save_backbone
from condense.distributed import BatchNorm, share, splits
from condense.links import save_links
from condense.params import PretrainParams
from condense.pretrain import pretrain_seed

PARAMS = PretrainParams(
    **{"steps": 5, "warmup": 2, "generations": 2, "captures": 3, "views": 2, "cells": 64, "log_every": 1},
    **{"checkpoint_every": 2, "net3d_lr": 1e-3, "any_angle": 1.0},
)
# Sums in another order. Adam makes whole steps of gradients that are nothing but rounding, so that weights drift apart.
LOSSES, GRADIENT = 1e-3, 1e-4


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("links")
    teacher, paths = folder / "teacher.safetensors", []
    save_backbone(tiny_teacher(), teacher)
    for seed in range(4):
        links = toy_links(seed) if seed < 3 else toy_links(seed, masks=False, width=48)
        paths.append(folder / f"{links.name}.safetensors")
        save_links(dataclasses.replace(links, views=links.views[:4]), paths[-1])
    return teacher, paths


def launch(folder: Path, files, params, *options, prefix=(), processes=2, **job):
    """The seed's folder, trained by processes of torchrun."""
    teacher, paths = files
    job |= {"params": dataclasses.asdict(params), "links": list(map(str, paths)), "teacher": str(teacher)}
    (folder / "job.json").write_text(json.dumps(job))
    script = Path(__file__).with_name("distributedjob.py")
    command = [*prefix, sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", *options]
    done = subprocess.run(
        [*command, str(script), str(folder)], capture_output=True, text=True, timeout=300, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr[-9000:]
    return folder / "seed_0"


def assert_same_losses(a: Path, b: Path, tolerance=LOSSES):
    first, second = (json.loads((folder / "history.json").read_text()) for folder in (a, b))
    assert [row["step"] for row in first] == [row["step"] for row in second]
    for one, other in zip(first, second, strict=True):
        for name in ("cells", "voxels", "agree", "views", "prior"):
            assert one[name] == pytest.approx(other[name], rel=tolerance), (name, one["step"])


def assert_near(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        off = float((found[key] - value).float().norm())
        assert off <= tolerance * float(value.float().norm()) + 1e-6, (key, off, float(value.float().norm()))


@pytest.fixture(scope="module")
def alone(files, tmp_path_factory):
    """What one process makes of it."""
    return pretrain_seed(tmp_path_factory.mktemp("alone") / "seed_0", files[1], files[0], PARAMS, 0)


@pytest.fixture(scope="module")
def together(files, tmp_path_factory):
    """What two processes make of it."""
    return launch(tmp_path_factory.mktemp("together"), files, PARAMS, "--standalone")


def test_two_processes_train_as_one(files, alone, together):
    assert_near(
        load_file(together.parent / "gradient.safetensors"), first_gradient(files[1], files[0], PARAMS), GRADIENT
    )
    assert_same_losses(together, alone)


def test_a_killed_process_is_restarted_and_ends_the_same(files, together, tmp_path):
    found = launch(tmp_path, files, PARAMS, "--standalone", "--max-restarts=1", killed_at=3)
    assert (tmp_path / "killed").exists()
    assert_same_losses(found, together, 1e-6)  # the same sums in the same order
    for name in ("net3d.safetensors", "student.safetensors"):
        assert_near(load_file(found / name), load_file(together / name), 1e-6)


def test_fewer_captures_than_processes(files, tmp_path):
    """Then each process does the whole batch, and the result is the same again."""
    params = dataclasses.replace(PARAMS, captures=1, steps=3)
    expected = pretrain_seed(tmp_path / "alone" / "seed_0", files[1], files[0], params, 0)
    assert_same_losses(launch(tmp_path, files, params, "--standalone"), expected)


def test_two_hosts(files, alone, tmp_path):
    """Two hosts of one process each, in network namespaces of this machine that see each other alone."""
    if os.geteuid() != 0 or subprocess.run(["ip", "netns", "add", "condense_probe"], capture_output=True).returncode:
        pytest.skip("network namespaces need root and iproute2")
    subprocess.run(["ip", "netns", "del", "condense_probe"], check=True)
    hosts = ("condense_a", "condense_b")
    try:
        for name in hosts:
            subprocess.run(["ip", "netns", "add", name], check=True)
        subprocess.run(
            ["ip", "link", "add", "veth_a", "netns", hosts[0], "type", "veth", "peer", "veth_b", "netns", hosts[1]],
            check=True,
        )
        for name, link, address in zip(hosts, ("veth_a", "veth_b"), ("10.77.0.1/24", "10.77.0.2/24"), strict=True):
            for command in (
                ["addr", "add", address, "dev", link],
                ["link", "set", link, "up"],
                ["link", "set", "lo", "up"],
            ):
                subprocess.run(["ip", "-n", name, *command], check=True)
        assert_same_losses(_on_two_hosts(tmp_path, files, hosts), alone)
    finally:
        for name in hosts:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _on_two_hosts(folder, files, hosts):
    teacher, paths = files
    job = {"params": dataclasses.asdict(PARAMS), "links": list(map(str, paths)), "teacher": str(teacher)}
    (folder / "job.json").write_text(json.dumps(job))
    script = Path(__file__).with_name("distributedjob.py")
    running = []
    for number, (name, link) in enumerate(zip(hosts, ("veth_a", "veth_b"), strict=True)):
        options = [
            "--nnodes=2",
            f"--node-rank={number}",
            "--nproc-per-node=1",
            "--master-addr=10.77.0.1",
            f"--local-addr=10.77.0.{number + 1}",
            "--master-port=29400",
        ]
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", *options]
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": link}
        running.append(
            subprocess.Popen([*command, str(script), str(folder)], env=environment, stderr=subprocess.PIPE, text=True)
        )
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
    return folder / "seed_0"


def test_alone_nothing_is_shared(generator):
    assert not splits(6) and share(6) == slice(0, 6)
    x = torch.randn(20, 4, generator=generator)
    ours, theirs = BatchNorm(4), torch.nn.BatchNorm1d(4)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
