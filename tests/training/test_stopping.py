"""Signals go to every process: those that read the data outlive them while training needs them, and no longer."""

import multiprocessing
import os
import signal
import time

from lora_cot.training.stopping import Workers


def read_data(workers, ready):
    """A worker's life."""
    workers(0)
    ready.set()
    while True:
        time.sleep(0.01)


def test_a_worker_outlives_every_signal_until_it_is_let_go():
    """SIGTERM of a scheduler, SIGINT of a terminal; then its parent's SIGTERM ends it, as it ends any child at exit."""
    context, workers = multiprocessing.get_context("fork"), Workers()
    ready = context.Event()
    worker = context.Process(target=read_data, args=(workers, ready), daemon=True)
    with workers.needed():
        worker.start()
        assert ready.wait(30)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(worker.pid, number)
            worker.join(0.2)
            assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0
