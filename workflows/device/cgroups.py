"""Where the system says what the control groups (containers) of this process may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[tuple[int, Path]]:
    """This process's control group of a controller ("cpu", "memory"), then those above it: version (1, 2) and folder.

    A folder may not exist: in a container the path may be the host's, and only the group mounted here is there.

    Args:
        root: where /proc and /sys are.
    """
    groups = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if (number, controllers) == ("0", ""):
            version, folders = 2, [groups, groups / "unified"]
        elif controller in controllers.split(","):
            version, folders = 1, [groups / controllers, groups / controller]
        else:
            continue
        own = PurePosixPath(path.lstrip("/"))
        for folder in folders:
            for level in (own, *own.parents):
                yield version, folder / level


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
