"""The native runtime's own threads: whatever happens around a call, it gives right numbers or the exception."""

import subprocess
import sys
import textwrap

import pytest

from tn4nn._runtime import native as _native

pytestmark = pytest.mark.skipif(_native.runtime(4) is None, reason="there is no C compiler")

_CALLS = """
import os, signal, sys, threading, time
import numpy as np
import tn4nn as tn
from tn4nn._runtime import native as _native
from tn4nn._runtime.recipe import recipe

net = tn.mpo((16, 16), (16, 16)).with_rank(8)
runtime = _native.native(recipe(net, tn.plan(net, 2048, "train").path, 64))
cores = [core.astype("f4") for core in net.init(0).values()]
x, gy = np.random.default_rng(0).standard_normal((2, 2048, 256)).astype("f4")

def forward(threads=4):
    y = np.full((2048, 256), np.nan, "f4")
    runtime.forward(2048, [c.ctypes.data for c in cores], 0, x.ctypes.data, y.ctypes.data, threads)
    return [y]

def step(threads=4):
    saved, (y, gx) = np.empty(runtime.saved(2048), "f4"), np.full((2, 2048, 256), np.nan, "f4")
    grads = [np.full_like(c, np.nan) for c in cores]
    given = 2048, [c.ctypes.data for c in cores], saved.ctypes.data, x.ctypes.data
    runtime.forward(*given, y.ctypes.data, threads)
    runtime.backward(
        *given, gy.ctypes.data, gx.ctypes.data, [g.ctypes.data for g in grads], (True,) * (1 + len(cores)), threads
    )
    return [y, gx, *grads]

def wrong(found):
    return not all(np.array_equal(a, b) for a, b in zip(found, expected))

def tasks():
    return len(os.listdir("/proc/self/task"))
"""
_EXPECTED = "expected = step()\n"


def run(code, before=_EXPECTED):
    """The output of a process of its own, which must end by itself with 0."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _CALLS + before + textwrap.dedent(code)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stdout[-500:], done.stderr[-2000:])
    return done.stdout.split()


def test_an_interrupt_during_a_call_gives_right_numbers_or_the_exception():
    code = """
    bad = raised = 0
    for i in range(50):
        timer = threading.Timer(.001 + i * 2e-4, os.kill, [os.getpid(), signal.SIGINT])
        try:
            timer.start()
            for _ in range(10**6):
                bad += wrong(step())
        except KeyboardInterrupt:
            raised += 1
    print(bad, raised)
    """
    assert run(code) == ["0", "50"]


def test_a_signal_handler_that_raises_is_heard_once_the_call_has_ended():
    code = """
    class Alarm(Exception): pass
    def ring(*_): raise Alarm
    signal.signal(signal.SIGALRM, ring)
    bad = raised = 0
    for i in range(30):
        signal.setitimer(signal.ITIMER_REAL, .002 + i * 1e-4)
        try:
            for _ in range(10**6):
                bad += wrong(step())
        except Alarm:
            raised += 1
    print(bad, raised)
    """
    assert run(code) == ["0", "30"]


def test_calls_at_the_end_of_the_interpreter():
    code = """
    import atexit
    def late(name):
        print(name, wrong(step()))
    atexit.register(late, "atexit")
    def after():
        threading.main_thread().join()
        late("thread")
    threading.Thread(target=after).start()
    def endless():
        while True: step()
    for _ in range(2): threading.Thread(target=endless, daemon=True).start()
    """
    assert sorted(run(code)) == ["False", "False", "atexit", "thread"]


# What a thread needs more than what is there now is refused by the system.
_LIMIT = """
import resource
def limit(more):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_where_no_thread_can_be_started_the_caller_works_alone():
    code = """
    before = tasks()
    forward(1)
    buffers = np.empty((2, 2048, 256), "f4")
    limit(6 << 20)
    found = forward()
    print(tasks() - before, wrong(found))
    """
    assert run(code, f"{_LIMIT}expected = forward(1)\n") == ["0", "False"]


@pytest.mark.cases(1)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("threads", [1, 4])
def test_without_memory_a_call_says_so(threads):
    code = f"""
    net = tn.mpo((64, 64), (64, 64)).with_rank(2)
    runtime = _native.native(recipe(net, tn.plan(net, 64).path, 1 << 14))
    cores = [core.astype("f4") for core in net.init(0).values()]
    x, y = np.empty((2, 256, 4096), "f4")
    limit(64 << 20)
    try:
        runtime.forward(256, [c.ctypes.data for c in cores], 0, x.ctypes.data, y.ctypes.data, {threads})
    except MemoryError as error:
        print(error)
    """
    assert " ".join(run(code, _LIMIT)).startswith("tn4nn: out of memory for the states of a batch tile")


def test_a_forked_child_starts_its_own_threads():
    code = """
    for _ in range(5):
        child = os.fork()
        if not child:
            os._exit(10 * wrong(step()) + (tasks() < 2))
        assert os.waitpid(child, 0)[1] == 0
    print(wrong(step()))
    """
    assert run(code) == ["False"]


@pytest.mark.thorough
def test_a_fork_while_other_threads_call():
    code = """
    stop = False
    def busy():
        while not stop: step()
    threads = [threading.Thread(target=busy) for _ in range(2)]
    for t in threads: t.start()
    bad = 0
    for _ in range(30):
        child = os.fork()
        if not child:
            os._exit(wrong(step()))
        bad += os.waitpid(child, 0)[1] != 0
    stop = True
    for t in threads: t.join()
    print(bad)
    """
    assert run(code) == ["0"]


@pytest.mark.thorough
def test_threads_of_python_share_the_pool():
    code = """
    bad, before = [], tasks()
    def many():
        for _ in range(20): bad.append(wrong(step()))
    threads = [threading.Thread(target=many) for _ in range(6)]
    for t in threads: t.start()
    for t in threads: t.join()  # `expected` has started those of the pool
    time.sleep(.5)  # the system may not have seen them end yet
    print(sum(bad), len(bad), tasks() <= before)
    """
    assert run(code) == ["0", "120", "True"]


@pytest.mark.thorough
def test_the_same_number_of_threads_gives_the_same_bits():
    assert run("print(sum(wrong(step()) for _ in range(50)))") == ["0"]
