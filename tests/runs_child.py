"""A small training program that test_runs.py kills, and a server that starts it quickly.

Run as a script it imports everything once and then, for each line of JSON on stdin, forks a child
that trains in the folder of the line. It prints the child's pid and, asked by another line, waits
for its end and prints its status. So a test can kill dozens of processes without paying for their
imports.
"""

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint  # noqa: F401  (maxpo.runs imports it at the first save: not in every child)

from maxpo import runs

CONFIG = {"updates": 8, "save_every": 2, "learning_rate": 0.1, "seed": 0}


def train_and_evaluate(config: dict[str, Any], workdir: Path) -> dict[str, Any]:
    """Fits a line to noise: adam, a typed key, and a NumPy array that the host updates."""
    optimizer = optax.adam(config["learning_rate"])

    @jax.jit
    def init() -> dict[str, Any]:
        params = {"w": jnp.zeros(5), "b": jnp.zeros(())}
        key = jax.random.key(config["seed"])
        return {"params": params, "opt": optimizer.init(params), "key": key}

    @jax.jit
    def update(params: Any, opt_state: Any, key: jax.Array) -> tuple[Any, Any, jax.Array, Any]:
        key, noise_key = jax.random.split(key)
        x = jax.random.normal(noise_key, (16, 5))
        y = x @ jnp.arange(5.0) + 1

        def loss_fn(params: Any) -> jax.Array:
            return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, key, loss

    with runs.Run(config, workdir) as run:
        if run.finished:
            return run.report()
        state = {**init(), "losses": np.zeros(config["updates"]), "seen": 0}
        state, start = run.restore(state)
        for step in runs.steps(start, config["updates"]):
            params, opt_state, key, loss = update(state["params"], state["opt"], state["key"])
            losses = state["losses"].copy()
            losses[step - 1] = loss
            state = {
                "params": params,
                "opt": opt_state,
                "key": key,
                "losses": losses,
                "seen": state["seen"] + 16,
            }
            worst = float("inf") if step == 3 else float(losses.max())
            run.log(step, {"loss": loss, "w": params["w"], "worst": worst})
            if step % config["save_every"] == 0 or run.stop_asked():
                run.save(step, state)
        content = hashlib.sha256()
        for leaf in jax.tree_util.tree_leaves({**state, "key": jax.random.key_data(state["key"])}):
            content.update(np.asarray(leaf).tobytes())
        return run.finish({"state": content.hexdigest(), "final_loss": state["losses"][-1]})


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _terminate_twice() -> None:
    """Asks this process to end, and once more when it has noticed."""
    os.kill(os.getpid(), signal.SIGTERM)
    while signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGTERM)


def _at_file_operation(action: Callable[[], None], part: str, number: int) -> None:
    """Does something just before the n-th change to a file whose path has the part in it.

    A change is a file opened to write, or a name made, moved or removed.
    """
    left = number

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")
        if (writes or changes) and part in str(arguments[0]):
            left -= 1
            if left == 0:
                action()

    sys.addaudithook(hook)


def _die_in_write(number: int) -> None:
    """Kills this process in its n-th `os.write`, when half of it is written."""
    write = os.write
    left = number

    def torn(descriptor: int, content: Any) -> int:
        nonlocal left
        left -= 1
        if left == 0:
            write(descriptor, content[: len(content) // 2])
            _die()
        return write(descriptor, content)

    os.write = torn


def main() -> None:
    while line := sys.stdin.readline():
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.dup2(2, 1)
            if "file_operation" in job:
                _at_file_operation(_die, *job["file_operation"])
            if "terminate_twice" in job:
                _at_file_operation(_terminate_twice, *job["terminate_twice"])
            if "write" in job:
                _die_in_write(job["write"])
            try:
                with runs.preemptible():
                    train_and_evaluate({**CONFIG, **job.get("config", {})}, Path(job["workdir"]))
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            sys.stderr.flush()
            os._exit(0)
        print(pid, flush=True)
        sys.stdin.readline()  # until then the pid is the child's, even if it has ended
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
