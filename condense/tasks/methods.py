"""The pre-trained 3D networks of a run, by method: what every 3D benchmark compares."""

from __future__ import annotations

from pathlib import Path


def networks(condense: Path, baselines: Path) -> dict[str, list[Path]]:
    """The folders of the finished 3D networks, one a seed, in the order of tables and colours.

    Args:
        condense: the artefact of joint pre-training, with `seed_*` and, of the same networks untrained, `scratch_*`.
        baselines: folder of the other methods, `<method>/seed_*`; may be absent.

    Returns:
        {method: [folder per seed]}, `condense` first, `scratch` second, then by name; a method without a finished
        network is left out. `condense.backbone3d.load_net3d` reads each.
    """
    found = {"condense": _finished(condense, "seed_*"), "scratch": _finished(condense, "scratch_*")}
    for folder in sorted(path for path in baselines.glob("*") if path.is_dir()):
        found[folder.name] = _finished(folder, "seed_*")
    return {method: folders for method, folders in found.items() if folders}


def _finished(folder: Path, pattern: str) -> list[Path]:
    """Folders in which a network was saved; its description is written last."""
    return sorted((path.parent for path in folder.glob(f"{pattern}/net3d.json")), key=_seed)


def _seed(folder: Path) -> tuple[int, str]:
    """Sorts seed_10 after seed_9."""
    number = folder.name.rpartition("_")[2]
    return (int(number) if number.isdigit() else 0, folder.name)
