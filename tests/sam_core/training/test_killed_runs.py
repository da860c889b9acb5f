"""Oracle: the run that nobody killed."""

import subprocess
import sys
from pathlib import Path

import pytest

# One process imports everything and then forks a child for each life of the run: kills are cheap that way.
SCRIPT = """
import os, random, signal, sys, time, traceback
import sklearn.datasets
import torch
from sam_core.training import TrainConfig, load_checkpoint, train

torch.set_num_threads(1)
out, method = sys.argv[1], sys.argv[2]
config = TrainConfig(
    method=method, rho=0.1, train_examples=400, test_examples=50, batch_size=16, epochs=6, model="vit_tiny",
    model_options=("dropout=0.2", "width=8", "depth=1", "heads=2"), checkpoint_steps=7,
)

def life(folder, resume):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        train(config, out=folder, resume=resume, progress=False)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)

started = time.monotonic()
assert os.waitpid(life(out + "/whole", False), 0)[1] == 0
whole = time.monotonic() - started
moments = random.Random(0)
places = []
for _ in range(8):
    pid = life(out + "/killed", True)
    time.sleep(moments.uniform(0.05, 0.5) * whole)
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        assert status == 0, status
        break
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if os.path.exists(out + "/killed/checkpoint.pt"):
        places.append(load_checkpoint(out + "/killed").step)
assert os.waitpid(life(out + "/killed", True), 0)[1] == 0
print("kills found the run at", places)
assert any(0 < step < 150 for step in places), "no kill hit a run on its way"
one, other = (load_checkpoint(f"{out}/{name}") for name in ("whole", "killed"))
assert one.step == other.step == 150
for (name, a), (_, b) in zip(one.model.state_dict().items(), other.model.state_dict().items(), strict=True):
    assert torch.equal(a, b), name
for a, b in zip(one.history, other.history, strict=True):
    assert (a.train_loss, a.train_accuracy, a.test_loss, a.lr) == (b.train_loss, b.train_accuracy, b.test_loss, b.lr), (a, b)
assert sorted(os.listdir(out + "/killed")) == ["checkpoint.pt"]
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills with SIGKILL")
@pytest.mark.parametrize("method", ["sampa"])
def test_a_run_killed_again_and_again_ends_with_the_same_bits(tmp_path: Path, method: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path), method], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
