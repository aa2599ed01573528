from __future__ import annotations
import sys, random, time, hashlib
sys.path.insert(0,'/work/main/tests')
from pathlib import Path
import pytest, dispy
from .conftest import *
from .waiting import *
from .records import *
from .test_broker_restart import end_more, wait_for

def provisional(count, seconds):
    import time
    for n in range(count):
        dispy_provisional_result(n)
        time.sleep(seconds)
    return count

def sender(mb, record):
    import os
    data = os.urandom(1<<20)*mb
    open("big","wb").write(data)
    code = dispy_send_file("big", timeout=60)
    import hashlib
    return code, hashlib.sha256(data).hexdigest()

@pytest.mark.parametrize('seed',[1,2,3])
def test_prov(start_broker,start_node,new_shared_cluster,record,seed):
    got=[]
    dice=random.Random(seed)
    broker=start_broker(); node=start_node("--broker",broker.for_nodes,cpus=1)
    def status(job):
        if job.status==dispy.DispyJob.ProvisionalResult: got.append(job.result)
    c=new_shared_cluster(provisional,broker,job_status=status)
    job=c.submit(400,0.005)
    for _ in range(4):
        time.sleep(dice.uniform(0.1,0.4)); broker.kill(); broker=start_broker(instead_of=broker)
    finished(job); c.wait()
    print('lost', sorted(set(range(400))-set(got)), 'dups', len(got)-len(set(got)))
    assert got==sorted(got)
    assert set(got)==set(range(400))

@pytest.mark.parametrize('seed',[1,2,3])
def test_file(start_broker,start_node,new_shared_cluster,record,seed,folder):
    dice=random.Random(seed)
    broker=start_broker(); node=start_node("--broker",broker.for_nodes,cpus=1)
    c=new_shared_cluster(sender,broker)
    job=c.submit(100,str(record))
    for _ in range(4):
        time.sleep(dice.uniform(0.05,0.3)); broker.kill(); broker=start_broker(instead_of=broker)
    ended(job)
    print(job.status, job.result, job.exception, list(Path().rglob('big')))
    assert job.result[0]==0
    [p]=Path().rglob('big')
    assert hashlib.sha256(p.read_bytes()).hexdigest()==job.result[1]
