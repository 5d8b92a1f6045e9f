"""The command line; `condense --help` lists its commands."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from condense.run import prepare_run


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code is 0 where it succeeded."""
    parser = argparse.ArgumentParser(prog="condense", description="Joint 2D-3D pre-training from posed images.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("doctor", help="say what is wrong with the captures in a folder")
    command.add_argument("folder", type=Path, help="a capture or a folder of captures (directories or .zip)")
    command.set_defaults(run=lambda options: run_doctor(options.folder))

    command = commands.add_parser("pose", help="find cameras for a folder of photographs that has none")
    command.add_argument("folder", type=Path, help="photographs, or a folder that holds them as images/")
    command.add_argument("--video", action="store_true", help="they are frames of a video, in the order of names")
    command.add_argument("--lens-per-image", action="store_true", help="the zoom changed from one to the next")
    command.add_argument("--longest", type=int, default=1600, help="pixels of the longer side that features see")
    command.add_argument("--processes", type=int, default=2)
    command.set_defaults(run=run_pose)

    command = commands.add_parser("adopt", help="write camera files for the scenes of a public multi-view data set")
    command.add_argument("name", help="co3d, scannet, scannetpp, tum, 7scenes or objaverse; MVImgNet needs none")
    command.add_argument("root", type=Path, help="the folder that the release unpacks to")
    command.add_argument("--every", type=int, default=1, help="takes each so many frames of a video")
    command.set_defaults(run=lambda options: run_adopt(options.name, options.root, options.every))

    command = commands.add_parser("sets", help="say what a public data set on disk holds, and what is wrong with it")
    command.add_argument("name", help="modelnet40, scanobjectnn, shapenetpart, s3dis, scannet, ...")
    command.add_argument("root", type=Path, help="the folder that the release unpacks to")
    command.add_argument("--verify", action="store_true", help="read every cloud, which alone finds damaged files")
    command.set_defaults(run=lambda options: run_sets(options.name, options.root, options.verify))

    command = commands.add_parser("generate", help="write the built-in captures")
    command.add_argument("folder", type=Path, help="gets objects/ and rooms/, one .zip a capture")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--processes", type=int, default=2)
    command.set_defaults(run=lambda options: run_generate(options.folder, options.seed, options.processes))

    command = commands.add_parser("notebook", help="execute one notebook for the run in this folder")
    command.add_argument("notebook", type=Path)
    command.set_defaults(run=lambda options: run_stage(options.notebook))

    command = commands.add_parser("run", help="the whole pipeline with other settings, in a folder below runs/")
    command.add_argument("--profile", help="a file in profiles/; 'photos' for other captures if not given")
    command.add_argument("--captures", help="a folder of captures; the built-in ones if not given")
    command.add_argument("--backbone", help="a 2D network: a folder, or a transformers hub name")
    command.add_argument("--name", help="of the run's folder; the profile's name if not given")
    command.set_defaults(run=run_pipeline)

    command = commands.add_parser("pretrain", help="one seed of the run in this folder, by all processes of torchrun")
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=lambda options: run_pretrain(options.seed))

    command = commands.add_parser("bench", help="probe pre-trained 3D networks on a public data set")
    command.add_argument("task", choices=["classification", "segmentation"])
    command.add_argument("--dataset", required=True, help="modelnet40, scanobjectnn, shapenetpart, s3dis, scannet, ...")
    command.add_argument("--root", required=True, type=Path, help="its folder as the release unpacks")
    command.add_argument(
        "--networks", nargs="+", type=Path, help="folders of 3D networks; artifacts/condense/* if none"
    )
    command.add_argument("--resolution", type=int, default=32, help="voxels along a cloud's longest side")
    command.add_argument("--per-class", type=int, default=0, help="clouds of a class (rooms) a split; 0 takes all")
    command.add_argument("--device", default="cpu", help="of the networks; or cuda")
    command.set_defaults(run=run_bench)

    command = commands.add_parser("keypoints", help="decorated key points of a splat, a point cloud or a mesh")
    command.add_argument("scene", type=Path, help="a Gaussian splat .ply, or what trimesh reads (.ply, .obj, .glb)")
    command.add_argument("file", type=Path, help="gets them: .h5 in hloc's layout, or .ply for a viewer")
    command.add_argument(
        "--model", type=Path, default=Path("artifacts/sparse/seed_0"), help="folder of a trained model"
    )
    command.add_argument("--resolution", type=int, default=32, help="voxels along the longest side; as trained")
    command.add_argument("--up", choices=["y", "z"], default="z", help="the scene's own vertical axis; y in glTF")
    command.add_argument("--count", type=int, default=256, help="at most so many")
    command.set_defaults(run=run_keypoints)

    command = commands.add_parser("export", help="a trained model and its card, in a folder to share or push to a hub")
    command.add_argument("model", type=Path, help="such as artifacts/sparse/seed_0")
    command.add_argument("folder", type=Path, help="gets safetensors, configurations and README.md")
    command.add_argument("--reports", type=Path, default=Path("reports"), help="of the run that trained it")
    command.set_defaults(run=lambda options: run_export(options.model, options.folder, options.reports))

    options = parser.parse_args(arguments)
    return int(options.run(options))


def run_doctor(folder: Path) -> int:
    """Prints the data-quality list; 0 if at least one capture can be used, else 1."""
    from condense.captures.reader import doctor  # a stage's notebook loads torch, its command line need not

    try:
        text, usable = doctor(folder)
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    print(text)
    return 0 if usable else 1


def run_pose(options: argparse.Namespace) -> int:
    """Writes a COLMAP model beside photographs, and prints what became of each; 0 if there is a model, else 1."""
    from condense.captures.pose import pose_folder  # `run` need not wait for COLMAP

    try:
        posed = pose_folder(options.folder, options.video, options.lens_per_image, options.longest, options.processes)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    total = len(posed.photographs) + len(posed.left_out)
    print(f"{posed.model}: {len(posed.photographs)} of {total} photographs, {posed.error_px:.2f} px reprojection error")
    for name, reason in sorted(posed.left_out.items()):
        print(f"  left out: {name} {reason}")
    return 0


def run_adopt(name: str, root: Path, every: int) -> int:
    """Prints how many scenes have camera files now, and why others have none; 0 if any has, else 1."""
    from condense.adapters.adopt import adopt

    try:
        captures, wrong = adopt(name, root, every)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(captures)} captures; 'condense doctor {root}' says what is wrong with them")
    for folder, reason in wrong.items():
        print(f"  set aside: {folder}: {reason}")
    return 0 if captures else 1


def run_sets(name: str, root: Path, every: bool) -> int:
    """Prints split sizes, classes and findings; 0 if the data set can be used, else 1."""
    from condense.datasets.open import describe, open_dataset  # `doctor` need not wait for HDF5
    from condense.datasets.pointset import verify

    try:
        point_set = open_dataset(name, root)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(describe(point_set, [*point_set.findings, *(verify(point_set) if every else [])]))
    return 0


def run_pretrain(seed: int) -> int:
    """Trains a seed where `40_pretrain` looks for it; 0 if the stages before have run, else 1."""
    from condense.launch import pretrain_together, process_group
    from condense.run import open_run

    try:
        study = open_run(".")
        with process_group(study.params.pretrain.device):
            print(pretrain_together(study, seed))
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def run_bench(options: argparse.Namespace) -> int:
    """Prints a table of probes, a row a network; 0 if the data set and the networks can be read, else 1."""
    from condense.datasets.open import open_dataset
    from condense.report import metric_table
    from condense.tasks.pointsets import bench_classification, bench_segmentation

    bench = bench_classification if options.task == "classification" else bench_segmentation
    folders = options.networks or sorted(path.parent for path in Path("artifacts/condense").glob("*/net3d.json"))
    try:
        point_set = open_dataset(options.dataset, options.root)
        metrics = bench(point_set, folders, options.resolution, options.per_class, device=options.device)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(metric_table(metrics).to_string())
    return 0


def run_keypoints(options: argparse.Namespace) -> int:
    """Writes a scene's key points; 0 if the scene and the model can be read, else 1."""
    from condense.extraction import condense_scene
    from condense.pretrained import PretrainedModel
    from condense.scenefiles import read_scene

    try:
        scene = read_scene(options.scene, options.resolution, options.up)
        points = condense_scene(PretrainedModel.from_folder(options.model), scene, options.count)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    save = points.save_ply if options.file.suffix.lower() == ".ply" else points.save
    save(options.file)
    print(f"{options.file}: {len(points)} key points of {len(scene)} voxels")
    return 0


def run_export(model: Path, folder: Path, reports: Path) -> int:
    """Writes a model with a card that quotes the run's metrics; 0 if there is such a model, else 1."""
    from condense.pretrained import PretrainedModel, card_of  # the hub's client need not be loaded for `doctor`

    try:
        PretrainedModel.from_folder(model).save_pretrained(folder, model_card_kwargs=card_of(reports))
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{folder}: load it with condense.pretrained.PretrainedModel.from_pretrained({str(folder)!r})")
    return 0


def run_generate(folder: Path, seed: int, processes: int) -> int:
    """Writes the built-in captures."""
    from condense.synthetic.generate import generate  # embree and the meshes are needed for nothing else

    generate(folder, seed, processes)
    return 0


def run_stage(notebook: Path) -> int:
    """Executes a notebook for the run in this folder."""
    from condense.notebooks import run_notebook  # papermill starts slowly; `doctor` need not wait for it

    run_notebook(notebook, Path())
    return 0


def run_pipeline(options: argparse.Namespace) -> int:
    """Prepares the run's folder and lets DVC bring it up to date."""
    profile = options.profile or ("photos" if options.captures else "mini")
    try:
        folder = prepare_run(options.name or profile, profile, options.captures, options.backbone)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    code = subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=folder, check=False).returncode
    if code == 0:
        print(f"The report: {folder / 'reports' / 'index.html'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
