"""Runs a script in several processes, as torchrun starts them, each up to a point of tests/support/killed.py.

    python -m torch.distributed.run ... tests/support/several.py POINT PROCESS SCRIPT ARGS...

POINT is for one process, and for the first attempt; `torchrun` does that. `together` starts the processes without
torchrun, which is faster and keeps what each prints and how it ends apart.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

from torch.distributed import TCPStore

from helper.training import loop
from support import killed
from support.processes import PROCESSES, ROOT, enter


def together(folder, command, world=2, points=()):
    """Run a script in several processes. points: {process: POINT}.

    Returns (exit status, what it printed) of each.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # which torchrun would keep
    started = []
    for rank in range(world):
        environment = {
            "TORCHELASTIC_RUN_ID": "test",
            "TORCHELASTIC_RESTART_COUNT": 0,
            "TORCHELASTIC_USE_AGENT_STORE": True,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": store.port,
            **dict.fromkeys(("RANK", "LOCAL_RANK"), rank),
            **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), world),
        }
        receiver, sender = PROCESSES.Pipe(duplex=False)
        point = dict(points).get(rank, "none")
        process = PROCESSES.Process(target=enter_as, args=(environment, sender, folder, point, *command.split()))
        process.start()
        sender.close()
        started.append((process, receiver))
    ends = []
    for process, receiver in started:
        printed = b"".join(iter(functools.partial(os.read, receiver.fileno(), 1 << 16), b""))
        process.join()
        ends.append((process.exitcode, printed.decode()))
    return ends


def enter_as(environment, *arguments):
    os.environ.update({name: str(value) for name, value in environment.items()})
    loop.LOOK_EVERY = 4
    enter(*arguments)


def torchrun(folder, command, *options, point="none", process=1):
    """Start a script by torchrun in two processes, of which one goes as far as a point; returns the agent."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *options]
    script, *rest = command.split()
    return subprocess.Popen(
        [*words, __file__, point, str(process), str(ROOT / script), *rest],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def main(point, process, script, *arguments):
    loop.LOOK_EVERY = 4
    if os.environ["RANK"] != process or os.environ["TORCHELASTIC_RESTART_COUNT"] != "0":
        point = "none"
    killed.main(point, script, *arguments)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main(*sys.argv[1:])
