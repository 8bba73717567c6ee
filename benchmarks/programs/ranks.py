"""What the ranks of all contenders do; imported by the drivers' script, or run by torchrun: ``ranks.py once`` or ``until STOP FIFO``."""

from __future__ import annotations

import os
import sys
import time


def all_reduce_once():
    """The smallest training there is."""
    import torch
    import torch.distributed as dist

    total = torch.ones(1)
    dist.all_reduce(total)
    assert total.item() == dist.get_world_size(), total


def all_reduce_until(stop, fifo):
    """Say in ``fifo`` when this rank is in its training function, then train until the file ``stop`` is there."""
    import torch
    import torch.distributed as dist

    now = time.monotonic()
    with open(fifo, "w") as news:
        news.write(f"{dist.get_rank()} {os.getpid()} {now!r}\n")
    done = torch.zeros(1)
    while not done.item():
        if dist.get_rank() == 0 and os.path.exists(stop):
            done += 1
        dist.all_reduce(done)
        time.sleep(0.002)


if __name__ == "__main__":
    import torch.distributed as dist

    dist.init_process_group("gloo")
    if sys.argv[1] == "once":
        all_reduce_once()
    else:
        all_reduce_until(sys.argv[2], sys.argv[3])
    dist.destroy_process_group()
