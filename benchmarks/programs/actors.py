"""Actors of the runtime that is named by the argument, ``runtime`` or ``ray``: both have the same names for what is done here."""

from __future__ import annotations

import importlib
import os
import select
import sys
import time

from serving import pin_threads, serve
from timing import rate_of, times_of

api = importlib.import_module(sys.argv[1])


@api.remote(num_cpus=0)
class Echo:
    def echo(self, value):
        return value

    def pid(self):
        return os.getpid()

    def pin(self, cores):
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), cores)


def start():
    global echo
    api.init()
    echo = Echo.remote()
    return api.get(echo.pid.remote())


def pin(cores):
    api.get(echo.pin.remote(cores))
    pin_threads(cores)


def call(count):
    return times_of(lambda i: api.get(echo.echo.remote(i)), count)


def pipeline(count):
    return rate_of(lambda n: api.get([echo.echo.remote(i) for i in range(n)]), count)


def create(count):
    """Seconds from the first order to the last first reply; afterwards they are ended, and their processes gone."""
    begin = time.perf_counter()
    actors = [Echo.remote() for _ in range(count)]
    pids = api.get([actor.pid.remote() for actor in actors])
    took_s = time.perf_counter() - begin
    pidfds = [os.pidfd_open(pid) for pid in pids]
    for actor in actors:
        api.kill(actor)
    for pidfd in pidfds:
        select.select([pidfd], [], [])
        os.close(pidfd)
    time.sleep(0.2)  # what the runtime does after an actor's death shall not fall into the next run
    return took_s


if __name__ == "__main__":
    serve({"start": start, "pin": pin, "call": call, "pipeline": pipeline, "create": create})
