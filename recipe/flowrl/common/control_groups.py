"""Where this process's control groups are in the file system. Standard library only."""

from pathlib import Path

PROC, UNIFIED = Path("/proc"), "cgroup2"


def own_groups(controller: str | None = None) -> list[Path]:
    """The directories of this process's control group and of those that it is in, from the innermost on.

    Args:
        controller: of version 1, such as ``pids``; None: version 2.

    Returns:
        Those that are mounted where they can be seen; none if the machine has no such hierarchy.
    """
    try:
        lines = [line.split(":", 2) for line in (PROC / "self/cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (PROC / "self/mountinfo").read_text().splitlines()]
    except OSError:
        return []
    name = controller or ""  # a version 1 hierarchy names its controllers, version 2 none
    paths = [path for _, controllers, path in lines if name in controllers.split(",")]
    for fields in mounts:
        kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
        if paths and (kind == UNIFIED if controller is None else kind == "cgroup" and controller in options):
            return _from_mount(Path(paths[0]), Path(fields[3]), Path(fields[4]))
    return []


def _from_mount(path: Path, root: Path, mounted_at: Path) -> list[Path]:
    """``root``: the group that is seen at the mount point; a container sees its own."""
    below = path.relative_to(root) if path.is_relative_to(root) else Path()
    own = mounted_at / below
    groups = [own, *(parent for parent in own.parents if parent.is_relative_to(mounted_at))]
    return [group for group in groups if group.is_dir()]
