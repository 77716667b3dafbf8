"""Names for well-known files, and the way from a name, an address or a path to a file on this machine.

`python -m refine zoo` lists the names, which stand in `zoo_entries`.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from refine.errors import UserError
from refine.files import download
from refine.files.addresses import has_secrets, without_secrets
from refine.zoo_entries import ENTRIES, ZooEntry

logger = logging.getLogger("refine")


@dataclass(frozen=True)
class ResolvedFile:
    """A file on this machine, and the way to it.

    Attributes:
        path: Place of the file.
        spec: Path, address or name that was asked for.
        url: Address that it was downloaded from; None for a file that was here.
        entry: Its zoo entry; None if it has none.
    """

    path: Path
    spec: str
    url: str | None = None
    entry: ZooEntry | None = None


def entry_of(path: Path) -> ZooEntry | None:
    """Entry of a file on this machine; None if it is not one of the zoo's."""
    return next((entry for entry in ENTRIES if (local := entry.local_path()) and local == path), None)


def resolve(spec: str) -> ResolvedFile:
    """The file meant by a path, an http(s) URL or a zoo name, downloaded if necessary.

    A local file wins over a name; only a bare name, without a folder, is looked up in the zoo.

    Raises:
        UserError: Nothing of that name, or it could not be downloaded.
    """
    path = os.path.expanduser(spec)
    if os.path.isfile(path):
        return ResolvedFile(Path(path), spec)
    if "://" in spec:
        entry = next((entry for entry in ENTRIES if entry.url == spec), None)
        if entry:
            return _resolve_entry(spec, entry)
        return ResolvedFile(download.fetch(spec, check=_content_defect), spec, url=spec)
    entry = find(spec)
    if not entry:
        raise _unknown(spec)
    if spec != entry.name:
        logger.info(f"{spec} is not a file here: taking {entry.name} of the zoo, {entry.url or entry.path}")
    return _resolve_entry(spec, entry)


def resolve_all(specs: Sequence[str]) -> list[ResolvedFile]:
    """The files meant by several paths, URLs or names; all that are not there or cannot be downloaded are named.

    Raises:
        UserError: Nothing of some of the names, or some could not be downloaded.
    """
    found: list[ResolvedFile] = []
    errors: list[UserError] = []
    for spec in specs:
        try:
            found.append(resolve(spec))
        except UserError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    failed = [error for error in errors if isinstance(error, download.DownloadError)]
    if len(failed) < len(errors):
        raise UserError(" ".join(map(str, errors)))
    if failed:
        files = " and ".join(f"{error.url} ({error.why})" for error in failed)
        places = " and ".join(str(error.place) for error in failed)
        raise UserError(
            f"Cannot download {files}: check the addresses and the connection, or save the files by hand as {places}."
        )
    return found


def lasting(spec: str) -> str:
    """The spelling of a file that may be written down: an address with a password or token gives way to its download.

    Args:
        spec: Path, URL or zoo name.
    """
    if "://" not in spec or not has_secrets(spec):
        return spec
    found = download.cached(spec)
    return str(found.resolve()) if found else without_secrets(spec)


def find(name: str) -> ZooEntry | None:
    """The zoo entry of that name, alias or file name; None if there is none."""
    return next((entry for entry in ENTRIES if name in entry.spellings), None)


def find_file(path: Path) -> ZooEntry | None:
    """The zoo entry that is published, or looked for, as a file of this name; None if there is none."""
    for entry in ENTRIES:
        published = entry.url.rpartition("/")[2] if entry.url else entry.name + entry.suffix
        if published and re.fullmatch(rf"([0-9a-f]{{32}}_)?{re.escape(published)}", path.name):
            return entry
    return None


def _resolve_entry(spec: str, entry: ZooEntry) -> ResolvedFile:
    if entry.path:
        return ResolvedFile(entry.path, spec, entry=entry)
    if entry.url is None:
        found = entry.local_path()
        if found is None:
            raise UserError(
                f"{entry.name} has no address that a program can download from: fetch it by hand from {entry.page} and "
                f"save it as {entry.place_by_hand}."
            )
        return ResolvedFile(found, spec, entry=entry)
    path = download.fetch(entry.url, size=entry.size, sha256=entry.sha256, check=_content_defect)
    return ResolvedFile(path, spec, entry.url, entry)


# First bytes of files by the ending of their names: pickles, ZIP archives (of torch.save and NumPy, too), HDF5.
_STARTS = {
    **dict.fromkeys((".pkl", ".pt", ".pth"), (b"\x80", b"PK")),
    **dict.fromkeys((".npz", ".zip"), (b"PK",)),
    ".npy": (b"\x93NUMPY",),
}


def _content_defect(path: Path, name: str) -> str | None:
    """The end of a sentence that begins with a download, if it is not the file that its name promises."""
    from refine import pickles  # torch takes seconds to import

    starts = _STARTS.get(Path(name).suffix.lower(), ())
    with path.open("rb") as file:
        head = file.read(8)
    defect = pickles.damage(path)
    if defect is None and starts and not head.startswith(starts):
        return f"is not a {Path(name).suffix} file (it starts with {head!r})"
    return defect


_DIFFUSERS = ("model_index.json", "unet/config.json", "diffusion_pytorch_model.safetensors", "scheduler_config.json")


def _unknown(spec: str) -> UserError:
    folder = Path(os.path.expanduser(spec))
    if folder.name and any(os.path.isfile(folder / name) for name in _DIFFUSERS):
        return UserError(
            f"{spec!r} is a folder of the diffusers library, whose networks Refine does not read: give an EDM pickle "
            "or a guided-diffusion state dict."
        )
    what = f"{spec!r} is a folder" if os.path.isdir(os.path.expanduser(spec)) else f"There is no file {spec!r}"
    base = os.path.basename(spec)
    entry = find(base)
    if entry:
        return UserError(f"{what}: give the bare name {base!r} to take {entry.name} of the zoo.")
    stem = base.removesuffix(".pkl")
    longer = [entry.name for entry in ENTRIES if stem and entry.name.startswith(f"{stem}-")]
    if longer:
        names = ", ".join(longer)
        return UserError(f"{what}; names in the zoo that begin like it are {names} (see `python -m refine zoo`).")
    closest = difflib.get_close_matches(stem, [name for entry in ENTRIES for name in (entry.name, *entry.aliases)])
    hint = f"the closest names are {', '.join(closest)}" if closest else "no name is similar"
    return UserError(f"{what}, and none in the zoo: {hint} (`python -m refine zoo` lists all).")
