"""What the commands that take a run's configuration say about it."""

import yaml

from recipe.flowrl.common.project import CONFIG_DIR
from recipe.flowrl.preflight.schema import leaves

_ROOT = CONFIG_DIR / "flowrl.yaml"


def note() -> str:
    """What may be chosen for a run: the groups of ``configs/``, and the recipe's own keys with their defaults."""
    chosen = {
        key: value
        for group in yaml.safe_load(_ROOT.read_text())["defaults"]
        if isinstance(group, dict)
        for key, value in group.items()
    }
    lines = ["The run's configuration:"]
    for group in ("experiment", "algo", "cluster"):
        names = sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))
        lines.append(f"  {group}=NAME: {' | '.join(names)}; default: {chosen[group] or 'null'}")
    for name, default, about in leaves():
        shown = {True: "true", False: "false", None: "null"}.get(default, default)
        accepts = about.rule.allowed if about.rule else "text"
        lines += [f"  {name}=VALUE: {accepts}; default: {shown}", f"      {about.doc}"]
    lines.append("  and every other key that train experiment=NAME --cfg job --resolve prints")
    return "\n".join(lines)
