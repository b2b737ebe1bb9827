"""Operators and the life of the process: daemon threads at its exit, and the children of a fork."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

SETUP = """
    import os, threading, time, torch
    from tts_kernels import KVPool, KVTree, PackedWeight, packed_linear, plan, sample_tokens, tree_attention

    torch.set_num_threads(2)
    torch.manual_seed(0)
    tree = KVTree(num_pages=256)
    pool = KVPool(num_layers=1, num_kv_heads=2, head_dim=64, num_pages=256)
    branch = tree.create()
    slots = torch.from_numpy(tree.append([branch], [range(4000)]).slots)
    k, v = torch.randn(2, 4000, 2, 64)
    q, x = torch.randn(4000, 6, 64), torch.randn(64, 256)
    weight = PackedWeight.pack(torch.randn(1024, 256))
    pool.append(0, k, v, slots)
    tables = tree.block_tables([branch])
    last, whole = plan(*tables), plan(*tables, torch.tensor([512], dtype=torch.int32))

    def operators():
        one = tree_attention(q[:1], *pool.layer(0), last)[0]
        many = tree_attention(q[:512], *pool.layer(0), whole)[0]
        # As bytes: torch's own threads hang in the child of a fork, which torch.equal would use.
        return [t.numpy().tobytes() for t in (one, many, packed_linear(x, weight))]
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    source = textwrap.dedent(SETUP) + textwrap.dedent(program)
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "work",
    [
        "tree_attention(q[:1], *pool.layer(0), last)",  # short: mostly in Python when the exit comes
        "tree_attention(q[:512], *pool.layer(0), whole)",  # long: mostly in C++
        "pool.append(0, k, v, slots)",
        "x @ x.T; packed_linear(x, weight)",  # products of torch between ours
    ],
)
def test_daemon_threads_do_not_abort_the_exit(work: str) -> None:
    done = run(
        f"""
        def loop():
            while True:
                {work}

        for _ in range(3):
            threading.Thread(target=loop, daemon=True).start()
        time.sleep(0.1)
        """
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_thread_that_waits_does_not_hold_up_the_exit_and_the_main_thread_may_go_on() -> None:
    done = run(
        """
        import atexit, tts_kernels.shutdown

        def once():
            operators()
            ready.set()
            threading.Event().wait()

        ready = threading.Event()
        threading.Thread(target=once, daemon=True).start()
        ready.wait()
        atexit.unregister(tts_kernels.shutdown.park_daemon_threads)
        atexit.register(lambda: print(len(operators())))  # called after the threads were parked
        atexit.register(tts_kernels.shutdown.park_daemon_threads)
        """
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "3\n")


def test_the_child_of_a_fork_computes_the_same_bits() -> None:
    done = run(
        """
        expected = operators()
        child = os.fork()
        if child == 0:
            same = operators() == expected
            grandchild = os.fork()
            if grandchild == 0:
                os._exit(0 if operators() == expected else 1)
            os._exit(0 if same and os.waitpid(grandchild, 0)[1] == 0 else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert operators() == expected
        """
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_fork_while_another_thread_is_inside_an_operator() -> None:
    done = run(
        """
        expected = operators()
        stop = threading.Event()

        def loop():
            while not stop.is_set():
                operators()

        other = threading.Thread(target=loop)
        other.start()
        children = []
        for _ in range(5):
            child = os.fork()
            if child == 0:
                os._exit(0 if operators() == expected else 1)
            children.append(child)
        codes = [os.waitpid(child, 0)[1] for child in children]
        stop.set()
        other.join()
        assert codes == [0] * 5, codes
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
