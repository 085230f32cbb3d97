"""A Ray cluster that is started here is reached by this machine alone."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("ray", reason="the extra ray is not installed")

PROGRAM = """
import json, logging, os
from pathlib import Path
from extract.run.ray_engine import RayPartWriter
from extract.run import ray_engine

def listening():
    "Local addresses, in hexadecimal, of the listening sockets of this process and its descendants."
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                pass
    own = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in own} - own:
        own |= more
    sockets = set()
    for pid in own:
        try:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                target = os.readlink(link)
                if target.startswith("socket:["):
                    sockets.add(target[8:-1])
        except OSError:
            pass
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                found.append(fields[1].split(":")[0])
    return found

ray_engine._with_absolute_paths = lambda plan: plan
RayPartWriter(None, "cpu", "")
import ray

@ray.remote
def work():
    return 3

assert ray.get(work.remote()) == 3
print(json.dumps(listening()))
ray.shutdown()
"""
LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")


def test_nothing_of_a_local_cluster_listens_to_other_machines():
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{PROGRAM}"],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) > 2
    assert [address for address in found if address not in LOOPBACK] == []
