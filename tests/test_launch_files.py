"""The files of runs/: the names that each platform knows, and its own command as two machines on this one, killed and
started again as the platform does it."""

import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from command_line import photos
from processes import HERE, RECIPE, ROOT, alone, bits, free_port, wait_for

RUNS = ROOT / "runs"
# The fields that are used here, by the definitions of trainer.kubeflow.org/v1alpha1 (Trainer 2.2, JobSet 0.10,
# Kubernetes 1.34), SkyPilot 0.14 and dstack 0.22.
TRAIN_JOB = {
    "apiVersion": {}, "kind": {}, "metadata": {"name": {}},
    "spec": {"runtimeRef": {"kind": {}, "name": {}}, "trainer": {
        "image": {}, "command": {}, "args": {}, "numNodes": {},
        "resourcesPerNode": {"limits": {"nvidia.com/gpu": {}}}}},
}  # fmt: skip
POD = {"spec": {"restartPolicy": {}, "terminationGracePeriodSeconds": {}, "containers": {
    "name": {}, "image": {}, "volumeMounts": {"name": {}, "mountPath": {}}}, "volumes": {
    "name": {}, "persistentVolumeClaim": {"claimName": {}}, "emptyDir": {"medium": {}}}}}  # fmt: skip
JOB = {"spec": {"backoffLimit": {}, "podFailurePolicy": {"rules": {
    "action": {}, "onPodConditions": {"type": {}, "status": {}}}}, "template": POD}}  # fmt: skip
JOB["metadata"] = {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": {}}}
JOB_SET = {"failurePolicy": {"maxRestarts": {}, "rules": {"name": {}, "action": {}, "onJobFailureReasons": {}}},
           "replicatedJobs": {"name": {}, "template": JOB}}  # fmt: skip
RUNTIME = {"apiVersion": {}, "kind": {}, "metadata": {"name": {}, "labels": {"trainer.kubeflow.org/framework": {}}},
           "spec": {"mlPolicy": {"numNodes": {}, "torch": {}}, "template": {"spec": JOB_SET}}}  # fmt: skip
SKY = {"name": {}, "num_nodes": {}, "workdir": {}, "setup": {}, "run": {}, "volumes": {"/shared": {}},
       "resources": {"accelerators": {}, "job_recovery": {"max_restarts_on_errors": {}}}}  # fmt: skip
DSTACK = {"type": {}, "name": {}, "nodes": {}, "python": {}, "repos": {}, "commands": {}, "volumes": {},
          "resources": {"gpu": {}, "shm_size": {}}, "retry": {"on_events": {}, "duration": {}}}  # fmt: skip


def documents(name):
    return list(yaml.safe_load_all((RUNS / name).read_text()))


def names(found):
    """The fields of a document, those of a list's items together."""
    if isinstance(found, list):
        merged = {}
        for fields in map(names, found):
            merged |= fields
        return merged
    return {name: names(value) for name, value in found.items()} if isinstance(found, dict) else {}


@pytest.mark.parametrize(
    ("name", "fields"), [("trainjob.yaml", [RUNTIME, TRAIN_JOB]), ("sky.yaml", [SKY]), ("dstack.yml", [DSTACK])]
)
def test_the_fields_are_those_that_the_platform_knows(name, fields):
    assert list(map(names, documents(name))) == fields


def test_what_belongs_together_in_a_file_does():
    runtime, job = documents("trainjob.yaml")
    assert job["spec"]["runtimeRef"] == {"kind": runtime["kind"], "name": runtime["metadata"]["name"]}
    replicated = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert (replicated["name"], pod["containers"][0]["name"]) == ("node", "node")  # as the trainer looks for them
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert pod["restartPolicy"] == "Never"  # else Kubernetes refuses a podFailurePolicy
    (task,) = documents("dstack.yml")
    assert set(task["retry"]["on_events"]) == {"no-capacity", "interruption", "error"}


def trainjob(node, port):
    trainer = documents("trainjob.yaml")[1]["spec"]["trainer"]
    variables = {"NNODES": "2", "NPROC_PER_NODE": "1", "NODE_RANK": str(node), "MASTER_ADDR": "127.0.0.1"}
    command = shlex.join(trainer["command"] + trainer["args"])
    return f"exec {command}", {f"PET_{name}": value for name, value in {**variables, "MASTER_PORT": str(port)}.items()}


def sky(node, port):
    variables = {"NUM_NODES": "2", "NODE_RANK": str(node), "NUM_GPUS_PER_NODE": "1", "NODE_IPS": "127.0.0.1\n127.0.0.2"}
    command = documents("sky.yaml")[0]["run"].replace("29500", str(port))
    return command, {f"SKYPILOT_{name}": value for name, value in variables.items()}


def dstack(node, port):
    variables = {"NODES_NUM": "2", "NODE_RANK": str(node), "GPUS_PER_NODE": "1", "MASTER_NODE_IP": "127.0.0.1"}
    commands = [line for line in documents("dstack.yml")[0]["commands"] if not line.startswith("pip ")]
    return " && ".join(commands).replace("29500", str(port)), {f"DSTACK_{name}": v for name, v in variables.items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photographs, a recipe, the files of runs/ and what one process trains."""
    folder = tmp_path_factory.mktemp("place")
    photos(folder / "photos", ("ash", "beech", "elm"), count=10)
    (folder / "r.py").write_text(RECIPE.replace("12 steps", "60 steps").replace("ema=", "exact=True, ema="))
    (folder / "runs").symlink_to(RUNS)
    alone(folder, "one")
    return folder


def started(place, platform, out):
    """Its two machines."""
    port, found = free_port(), []
    for node in range(2):
        command, variables = platform(node, port)
        for shared, ours in {"/shared/runs/fast": out, "/shared/photos": "photos", " fast ": " r.py:tiny "}.items():
            assert shared in command
            command = command.replace(shared, ours)
        bare = {name: value for name, value in HERE.items() if name not in ("NODES", "NODE", "HEAD", "PROCESSES")}
        variables |= bare | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "MACHINE": f"{place}{node}"}
        how = {"stderr": subprocess.PIPE, "text": True, "env": variables, "cwd": place}
        found.append(subprocess.Popen(["bash", "-c", command], **how))
    return found


def said(both):
    """What the two said, once they have ended, and how they did."""
    texts = [process.communicate(timeout=120)[1] for process in both]
    return "".join(texts), [process.returncode for process in both]


def kill(*words):
    """All processes of which the environment has these words."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if {word.encode() for word in words} <= set((folder / "environ").read_bytes().split(b"\0")):
                os.kill(int(folder.name), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("platform", [trainjob, sky, dstack])
def test_two_machines_that_are_taken_away_go_on_with_the_same_command(place, platform):
    out = platform.__name__
    both = started(place, platform, out)
    wait_for(place / out / "checkpoints" / "step-6", both[0])
    kill(f"MACHINE={place}0")
    kill(f"MACHINE={place}1")
    assert said(both)[0].count(f"into {out}\n") == 1
    again, codes = said(started(place, platform, out))  # as the platform does
    assert codes == [0, 0], again
    assert again.count("going on after step") == 1  # the first of all processes speaks for them
    assert bits(place, out, 60) == bits(place, "one", 60)


@pytest.mark.slow
@pytest.mark.parametrize("platform", [trainjob, sky])  # by torchrun's own variables, and by node.sh
def test_a_process_that_is_killed_comes_back_where_machines_are_numbered(place, platform):
    out = f"{platform.__name__}-again"
    both = started(place, platform, out)
    wait_for(place / out / "checkpoints" / "step-6", both[0])
    kill(f"MACHINE={place}1", "RANK=1")
    text, codes = said(both)
    assert (codes, text.count("going on after step")) == ([0, 0], 1), text
    assert bits(place, out, 60) == bits(place, "one", 60)
