"""A capture's files, in a directory or a .zip, behind one small interface that nothing escapes."""

from __future__ import annotations

import os
import re
import stat
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

LARGEST_FILE = 2**31  # bytes; a .zip member that claims more is refused before it is unpacked


class EscapeError(ValueError):
    """A path that leaves the capture's folder."""


def clean(name: str) -> str:
    """`name` as a plain relative path with forward slashes.

    Raises:
        EscapeError: it is absolute, names a drive, or climbs out by `..`.
    """
    slashed = name.replace("\\", "/")  # files written on Windows
    normal = os.path.normpath(slashed).replace(os.sep, "/")
    absolute = slashed.startswith(("/", "~")) or re.match(r"[A-Za-z]:|\w+://", slashed)
    if absolute or "\0" in name or normal.split("/")[0] == "..":
        raise EscapeError(f"{name} leaves the capture's folder")
    return normal


@dataclass(frozen=True)
class Folder:
    """Reads the files below one directory, or inside one .zip, by relative path.

    Args:
        path: the directory or .zip file.
        inside: a folder within the .zip that holds the capture ("" = its top).

    Every method raises EscapeError for a path that leaves the folder; symbolic links are followed first.
    """

    path: Path
    inside: str = ""

    @property
    def zipped(self) -> bool:
        """Whether this is a .zip file."""
        return self.path.suffix.lower() == ".zip" and self.path.is_file()

    def exists(self, name: str) -> bool:
        """Whether `name` is a file here."""
        if self.zipped:
            return self._member(name) in self._archive().NameToInfo
        return self._inside(name).is_file()

    def read(self, name: str) -> bytes:
        """The bytes of the file `name`.

        Raises:
            OSError: it is absent, a symbolic link inside a .zip, damaged, or claims an absurd size.
        """
        if not self.zipped:
            return self._inside(name).read_bytes()
        member = self._archive().NameToInfo.get(self._member(name))
        if member is None:
            raise FileNotFoundError(f"{name} is not in {self.path.name}")
        if stat.S_ISLNK(member.external_attr >> 16) or member.file_size > LARGEST_FILE:
            raise OSError(f"{name} in {self.path.name} is a symbolic link or larger than {LARGEST_FILE} bytes")
        try:
            return self._archive().read(member)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, ValueError) as error:
            raise OSError(f"{name} in {self.path.name} cannot be unpacked: {error}") from error

    def files(self, below: str = "") -> list[str]:
        """The files directly inside the folder `below`, as sorted relative paths."""
        below = clean(below)
        if self.zipped:
            return sorted(name for name in self.members() if str(PurePosixPath(name).parent) == below)
        directory = self._inside(below)
        if not directory.is_dir():
            return []
        here = (name for name in os.listdir(directory) if os.path.isfile(directory / name))
        return sorted(clean(f"{below}/{name}") for name in here)

    def members(self) -> list[str]:
        """The relative path of every file of the .zip."""
        names = [name for name in self._archive().namelist() if name.startswith(self.inside)]
        return [name.removeprefix(self.inside) for name in names if not name.endswith("/")]

    def _inside(self, name: str) -> Path:
        root = self.path.resolve()
        try:
            target = (root / clean(name)).resolve()
        except (OSError, RuntimeError):  # a loop of links
            return root / "\ufffd absent"
        if not target.is_relative_to(root):
            raise EscapeError(f"{name} leaves the capture's folder by a symbolic link")
        return target

    def _member(self, name: str) -> str:
        return self.inside + clean(name)

    def _archive(self) -> zipfile.ZipFile:
        # By process: a forked child must not share the parent's file offset.
        return _open_zip(self.path, self.path.stat().st_mtime_ns, os.getpid())


@lru_cache(maxsize=8)
def _open_zip(path: Path, stamp: int, process: int) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise OSError(f"{path.name} is not a sound .zip: {error}") from error


def open_folder(path: Path) -> Folder:
    """The folder at `path`; of a .zip that holds everything in one top folder, that folder.

    Raises:
        OSError: there is neither a directory nor a readable .zip.
    """
    folder = Folder(path)
    if not folder.zipped:
        if not path.is_dir():
            raise FileNotFoundError(f"{path} is neither a folder nor a .zip file")
        return folder
    names = [name for name in folder.members() if not name.startswith("__MACOSX/")]
    tops = {name.split("/")[0] for name in names}
    single = len(tops) == 1 and all("/" in name for name in names)
    wrapped = single and tops.isdisjoint({"images", "sparse", "train"})
    return Folder(path, f"{tops.pop()}/") if wrapped and ".." not in tops else folder
