from __future__ import annotations
import hashlib, os, time, random
from pathlib import Path
import pytest, dispy
from .conftest import *
from .waiting import *
from .processes import *
from .records import noted
from .test_broker_restart import wait_for, end_more
from .test_faults import square, submit_all, statuses

PROG = """
import sys, time, dispy
def f(n): return n
c=dispy.SharedJobCluster(f, scheduler_node=sys.argv[1], name="x")
j=c.submit(1); j()
print("one", flush=True)
sys.stdin.readline()
t=time.time()
print("closing", c.close(%s), round(time.time()-t,1), flush=True)
"""


@pytest.mark.parametrize("args", ["timeout=1", "terminate=True", "timeout=0, terminate=True"])
def test_gone(start_broker, start_node, tmp_path, args):
    broker = start_broker()
    start_node("--broker", broker.for_nodes)
    (tmp_path / "p.py").write_text(PROG % args)
    p = Marked(
        [sys.executable, str(tmp_path / "p.py"), broker.address], tmp_path, stdin=subprocess.PIPE
    )
    until(lambda: "one" in p.output(), "one")
    broker.kill()
    p.process.stdin.write(b"\n")
    p.process.stdin.flush()
    t = time.time()
    try:
        print(args, "exit", p.process.wait(40), time.time() - t)
    except Exception as e:
        print("HANGS", e)
    print(p.output(), p.log())
    p.clear_away()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_closing(start_broker, start_node, new_shared_cluster, record, gate, seed):
    dice = random.Random(seed)
    broker = start_broker()
    node = start_node("--broker", broker.for_nodes)
    c = new_shared_cluster(wait_for, broker)
    jobs = [c.submit(str(record), str(gate), n) for n in range(200)]
    until(lambda: len(noted(record)) == 2, "2")
    import threading

    done = []
    th = threading.Thread(target=lambda: done.append(c.close(timeout=20, terminate=True)))
    time.sleep(dice.uniform(0, 0.02))
    th.start()
    time.sleep(dice.uniform(0, 0.03))
    broker.kill()
    broker = start_broker(instead_of=broker)
    th.join(30)
    print(done, Counter(j.status for j in jobs))
    all_ended(jobs)
    until(lambda: not broker.status().clusters, "cl")
    until(lambda: not node.job_processes(), "node free")


def test_cancel_while_away(start_broker, start_node, new_shared_cluster, record, gate):
    broker = start_broker()
    node = start_node("--broker", broker.for_nodes)
    c = new_shared_cluster(wait_for, broker)
    jobs = [c.submit(str(record), str(gate), n) for n in range(10)]
    until(lambda: len(noted(record)) == 2, "2")
    broker.kill()
    for j in (jobs[0], jobs[5], jobs[9]):
        print(c.cancel(j))
    late = c.submit(str(record), str(gate), 10)
    print(c.cancel(late))
    broker = start_broker(instead_of=broker)
    all_ended([jobs[0], jobs[5], jobs[9], late])
    print([j.status for j in (jobs[0], jobs[5], jobs[9], late)])
    gate.touch()
    all_ended(jobs)
    print([j.status for j in jobs], noted(record))


from collections import Counter
