"""Connecting to a Ray cluster."""

import logging
import os
import socket
from typing import Any

from data_tools.errors import InputError, UsageError, one_line

CONNECT = 5.0  # seconds to wait for a connection to the cluster's address
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""The environment, when Ray is imported, of a cluster that no other machine reaches: whoever does can run code in
it. Ray has the setting for the firewalls of two other systems; on Linux it does the same."""


def connect_to_ray(address: str) -> Any:
    """The module `ray`, connected to a cluster.

    Args:
        address: of the cluster, HOST:PORT or auto; empty for one on this machine alone.

    Raises:
        UsageError: Ray is not installed.
        InputError: the cluster cannot be reached.
    """
    if not address:
        os.environ.update(LOOPBACK)
    try:
        import ray
    except ImportError:
        raise UsageError("--engine ray needs Ray, the extra ray: pip install ray") from None
    if not ray.is_initialized():
        _check_connection(address)
        try:
            own: dict[str, Any] = {} if address else {"include_dashboard": False}
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
        except (ConnectionError, RuntimeError, ValueError, SystemExit) as error:
            reason = one_line(error)
            raise InputError(f"--ray-address {address or '(none)'}: no Ray cluster: {reason}") from None
    return ray


def ray_slots(ray: Any, device: str) -> int:
    """How many actors a cluster has room for, one for each of its devices of type `cpu` or `cuda`.

    Raises:
        InputError: it has none.
    """
    resource = "GPU" if device == "cuda" else "CPU"
    slots = int(ray.cluster_resources().get(resource, 0))
    if slots == 0:
        raise InputError(f"the Ray cluster has no {resource}s")
    return slots


def actor_resources(device: str) -> dict[str, int]:
    """What an actor asks of the cluster for a device of type `cpu` or `cuda`."""
    return {"num_gpus": 1, "num_cpus": 0} if device == "cuda" else {"num_cpus": 1}


def _check_connection(address: str) -> None:
    """Raise `InputError` where no program listens at HOST:PORT; Ray itself would retry for minutes, then exit."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), CONNECT).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"--ray-address {address}: no connection ({one_line(error)})") from None
