"""A SLURM cluster of several hosts on one machine: a real controller, real node daemons, real munge.

Each host is a PID, network, UTS, mount and IPC namespace with an address of its own on a bridge. The hosts share the
file system, except for ``/dev/shm`` and ``local`` in the cluster's directory, which are each host's own; ``ctl`` is
controller and login node, ``n1``, ``n2`` and so on compute. Everything lives under one
directory with a short path (Unix sockets).
"""

import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "nsenter", "unshare")
NETWORK = "10.83.0"
_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 12, 21

_CONF = """\
ClusterName=test
SlurmctldHost=ctl({network}.1)
AuthType=auth/munge
# A requeued job is held until its credential has expired.
AuthInfo=cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd.%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd.%n.log
ProctrackType=proctrack/{tracking}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=15
KillWait=10
JobRequeue=1
SchedulerParameters=sched_interval=2,bf_interval=2
NodeName=n[1-{nodes}] CPUs={cpus} RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=1-00:00:00 OverSubscribe=NO State=UP
"""

_INIT = """\
#!/bin/bash
# The first process of a host: $1 its name, $2 the cluster's directory.
hostname "$1"; export HOSTNAME=$1
mount --make-rprivate /
mount --bind "$2/etc/hosts" /etc/hosts
mkdir -p /etc/slurm /run/munge
mount --bind "$2/etc" /etc/slurm
mount --bind "$2/munge" /run/munge
mount -t tmpfs -o size=2g,mode=1777 tmpfs /dev/shm
mount -t tmpfs -o size=1g tmpfs "$2/local"
ip link set lo up
trap 'exit 0' TERM
if [ "$1" = ctl ]; then
  munged --key-file="$2/etc/munge.key" --pid-file="$2/munge/munged.pid" --seed-file="$2/munge/seed" \\
    --log-file="$2/log/munged.log"
  slurmctld -D &
else
  slurmd -D -N "$1" &
fi
while :; do wait -n 2>/dev/null || sleep 1; done
"""


def missing() -> str | None:
    """Why no cluster can be booted here, in one line; None if one can."""
    if absent := [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]:
        return (
            f"{', '.join(absent)} not found: apt-get install --no-install-recommends slurmctld slurmd slurm-client "
            "munge iproute2"
        )
    capabilities = int(re.search(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())[1], 16)
    if os.geteuid() != 0 or not all(capabilities >> bit & 1 for bit in (_CAP_NET_ADMIN, _CAP_SYS_ADMIN)):
        return "needs root with CAP_SYS_ADMIN and CAP_NET_ADMIN, for network and process namespaces"
    return None


_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


class Cluster:
    """``nodes`` compute hosts of ``cpus`` CPUs, maybe more than the machine has, in ``base``; use it in a ``with``."""

    def __init__(self, base: Path, nodes: int = 2, cpus: int = 8) -> None:
        self.base, self.nodes, self.cpus = base, [f"n{number}" for number in range(1, nodes + 1)], cpus
        self._hosts: dict[str, tuple[subprocess.Popen, int]] = {}
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "RAY_", "PYTEST"))
        } | {"PATH": _PATH}

    def __enter__(self) -> "Cluster":
        try:
            self._boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in list(self._hosts):
            self.power_off(host)
        for host in ("ctl", *self.nodes):
            subprocess.run(["ip", "netns", "delete", _netns(host)], stderr=subprocess.DEVNULL, env=self._environment)

    # ---- what tests do with it -----------------------------------------------------------------------------------

    def run(
        self, *command: str, host: str = "ctl", timeout_s: float = 60, check: bool = True, **environment: str
    ) -> str:
        """Output of a command on a host."""
        finished = subprocess.run(
            ["nsenter", f"--target={self._hosts[host][1]}", "--net", "--uts", "--mount", "--ipc", "--pid",
             f"--wd={Path.cwd()}", *command],
            env=self._environment | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=timeout_s,
        )  # fmt: skip
        if check and finished.returncode:
            raise RuntimeError(f"{' '.join(command)}: status {finished.returncode}\n{finished.stdout}")
        return finished.stdout

    def submit(self, *arguments: str, **environment: str) -> str:
        """The id of a new batch job."""
        return self.run("sbatch", "--parsable", *arguments, **environment).strip().splitlines()[-1]

    def job(self, job: str) -> dict[str, str]:
        """The fields that ``scontrol`` shows of a job."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job)
        return dict(field.split("=", 1) for field in shown.split() if "=" in field)

    def wait(self, job: str, *states: str, timeout_s: float, restarts: int = 0) -> dict[str, str]:
        """Wait until a job is in one of ``states`` after at least ``restarts`` restarts.

        Raises:
            TimeoutError: it isn't in time, or has ended otherwise.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            fields = self.job(job)
            restarted = int(fields["Restarts"]) >= restarts
            if restarted and fields["JobState"] in states:
                return fields
            if time.monotonic() > deadline or (restarted and fields["JobState"] in ENDED):
                raise TimeoutError(f"job {job} is {fields['JobState']} ({fields['Reason']}) after {timeout_s} s")
            if fields["JobState"] == "PENDING" and fields["Reason"] == "BeginTime":  # a requeued job rests 2 minutes
                self.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
            time.sleep(0.5)

    def processes(self, node: str) -> list[str]:
        """Command lines of what runs on a node beside its own daemon."""
        lines = self.run("ps", "-eo", "args=", host=node).splitlines()
        own = ("slurmd -D", "ps -eo", "sleep 1")
        return [line for line in lines if "init.sh" not in line and not line.startswith(own)]

    def power_off(self, host: str) -> None:
        """Kill a host's first process, and with it all of them."""
        starter, first = self._hosts.pop(host)
        for pid in (first, starter.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        starter.wait()

    def power_on(self, node: str) -> None:
        """Start a host anew and wait until SLURM uses it again."""
        self._start(node)
        self._until(lambda: self.run("sinfo", "-hN", "-n", node, "-o", "%T").strip() == "idle", f"{node} idle", 60)

    # ---- how it boots --------------------------------------------------------------------------------------------

    def _boot(self) -> None:
        for name in ("etc", "local", "log", "munge", "spool", "state"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        os.chmod(self.base / "munge", 0o755)
        self._configure()
        self._connect()
        self._start("ctl")
        self._until(lambda: stat.S_ISSOCK((self.base / "munge" / "munge.socket.2").stat().st_mode), "munge")
        for node in self.nodes:
            self._start(node)
        self._until(lambda: self.run("sinfo", "-hNo", "%T").split() == ["idle"] * len(self.nodes), "every node idle")

    def _configure(self) -> None:
        cgroup = os.access("/sys/fs/cgroup/freezer/release_agent", os.W_OK)  # the only one that also kills daemons
        settings = {
            "network": NETWORK,
            "base": self.base,
            "nodes": len(self.nodes),
            "cpus": self.cpus,
            "tracking": "cgroup" if cgroup else "linuxproc",
        }
        etc = self.base / "etc"
        (etc / "slurm.conf").write_text(_CONF.format(**settings))
        (etc / "cgroup.conf").write_text(
            "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\nCgroupAutomount=no\n"
        )
        key = os.open(etc / "munge.key", os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(key, secrets.token_bytes(1024))
        os.close(key)
        hosts = [f"{_address(host)} {host}" for host in ("ctl", *self.nodes)]
        (etc / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))
        (self.base / "init.sh").write_text(_INIT)

    def _connect(self) -> None:
        control = _netns("ctl")
        commands = [f"netns add {control}", f"-n {control} link add br0 type bridge"]
        commands += [f"-n {control} addr add {_address('ctl')}/24 dev br0", f"-n {control} link set br0 up"]
        for node in self.nodes:
            name = _netns(node)
            commands += [
                f"netns add {name}",
                f"link add eth0 netns {name} type veth peer name v-{node} netns {control}",
                f"-n {control} link set v-{node} master br0 up",
                f"-n {name} addr add {_address(node)}/24 dev eth0",
                f"-n {name} link set lo up",
                f"-n {name} link set eth0 up",
            ]
        for command in commands:
            subprocess.run(["ip", *command.split()], check=True, capture_output=True, env=self._environment)

    def _start(self, host: str) -> None:
        with (self.base / "log" / f"{host}.log").open("w") as log:
            starter = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{_netns(host)}", "unshare", "--uts", "--mount", "--ipc", "--pid",
                 "--fork", "--mount-proc", "--kill-child", "bash", str(self.base / "init.sh"), host, str(self.base)],
                env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        children = Path(f"/proc/{starter.pid}/task/{starter.pid}/children")
        self._until(lambda: children.read_text().strip(), f"host {host}")
        self._hosts[host] = starter, int(children.read_text().split()[0])

    def _until(self, holds: object, what: str, timeout_s: float = 30) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if holds():
                    return
            except (OSError, RuntimeError):
                pass
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {what} within {timeout_s} s; logs: {self.base / 'log'}")
            time.sleep(0.1)


def _netns(host: str) -> str:
    """Of this process: another cluster may run, or have been left behind by a test that was killed."""
    return f"flowrl-{os.getpid()}-{host}"


def _address(host: str) -> str:
    return f"{NETWORK}.{1 if host == 'ctl' else 10 + int(host[1:])}"
