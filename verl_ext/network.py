"""Where a run's channels listen: the loopback on one machine, the address that its peers are told on several.

TransferQueue unpickles what reaches its sockets and has no authentication, so on one machine nothing of a run may be
reached from another. Standard library only.
"""

import ipaddress
import os
import secrets
from collections.abc import Mapping

EXTERNAL_MODULES, _STORE = "VERL_USE_EXTERNAL_MODULES", "verl_ext.store"

LOOPBACK = {
    # Ray's own switch for a node without a cluster: its services, and all that asks it for the node's address
    # (TransferQueue, verl's servers and process groups), take 127.0.0.1. "_node_ip_address=127.0.0.1" doesn't do it:
    # Ray resolves that to the address that others see.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
}
"""Environment of every process of a run on one machine."""

SERVER_KEY = "VLLM_API_KEY"
"""vLLM's HTTP servers ask for it; nothing in a run does, since verl reaches the servers through Ray."""


def external_modules(given: Mapping[str, str]) -> str:
    """What verl is to import in each process: what ``given`` or the environment names, and :mod:`verl_ext.store`."""
    named = given.get(EXTERNAL_MODULES) or os.environ.get(EXTERNAL_MODULES, "")
    return ",".join(dict.fromkeys([*filter(None, named.split(",")), _STORE]))


def one_machine_environment(given: Mapping[str, str]) -> dict[str, str]:
    """What keeps a run on the loopback whose Ray is its own.

    Args:
        given: variables that the run's configuration sets; they win.
    """
    return LOOPBACK | {SERVER_KEY: os.environ.get(SERVER_KEY) or secrets.token_hex(32)} | dict(given)


def is_loopback(address: str) -> bool:
    """Whether ``address``, an IP address, can be reached from this machine only."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback
