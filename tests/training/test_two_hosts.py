"""The launch on two machines that docs/launch.md shows, on two hosts of one cable that is pulled out and put back.

The hosts are network namespaces, joined by a pair of virtual cards; making them needs root and `ip` of iproute2.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # as the other tests of processes do

import trainer
from test_processes import ROOT, arguments, losses, train_one

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and ip, to make two hosts"),
]

SECONDS = 600  # for what takes a minute on an idle machine
SECONDS_CUT = 5  # TCP sends again what was lost; a longer cut was not tried
ADDRESSES = ("10.213.7.1", "10.213.7.2")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


class Hosts:
    """Two hosts, each with an address and one end of a cable."""

    def __init__(self) -> None:
        self.names = [f"dit-{os.getpid()}-{number}" for number in range(2)]
        self.cards = [f"dit{os.getpid()}{letter}"[-15:] for letter in "ab"]

    def make(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", self.cards[0], "type", "veth", "peer", "name", self.cards[1])
        for name, card, address in zip(self.names, self.cards, ADDRESSES, strict=True):
            ip("link", "set", card, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", card)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", card, "up")

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False)

    def cable(self, state: str) -> None:
        ip("-n", self.names[1], "link", "set", self.cards[1], state)

    def launch(self, number: int, log: Path, command: list[str]) -> subprocess.Popen[str]:
        """Start a host's launcher with the command of docs/launch.md, which reads the host's own address."""
        meeting = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_id", "dit"]
        # the two share the name of their machine, so each says its address, and whether it is the first
        meeting += ["--rdzv_endpoint", f"{ADDRESSES[0]}:29500", "--local_addr", ADDRESSES[number]]
        meeting += ["--rdzv_conf", f"is_host={number == 0}"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", *meeting]
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": self.cards[number], "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[number], *torchrun, *command],
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    made = Hosts()
    try:
        made.make()
        yield made
    finally:
        made.remove()


def run_both(hosts: Hosts, tmp_path: Path, attempt: str, command: list[str]) -> list[subprocess.Popen[str]]:
    return [hosts.launch(number, tmp_path / f"{attempt}-{number}.log", command) for number in range(2)]


def test_host_that_is_cut_off_and_comes_back_loses_nothing(hosts: Hosts, tiny: Path, tmp_path: Path):
    flags = arguments(tiny, tmp_path / "out", "--train_batch_size", "3", "--extra_ema_decays", "0.2")
    flags += ["--checkpointing_steps", "1"]
    journal = tmp_path / "journal"
    launchers = run_both(hosts, tmp_path, "cut", [trainer.__file__, str(journal), "step", *flags])
    try:
        for rank in range(2):
            trainer.wait_for("begin step", journal, rank=rank)  # both wait before their first batch
        hosts.cable("down")
        trainer.release(journal)  # now each waits for the other's gradients
        time.sleep(SECONDS_CUT)
        assert all("end step" not in line for rank in range(2) for line in trainer.lines(journal, rank))
        hosts.cable("up")
        codes = [launcher.wait(SECONDS) for launcher in launchers]
        print(f"cut for {SECONDS_CUT} s: exit codes {codes}")
        if codes != [0, 0]:
            assert all(code != 0 for code in codes), "one host believes that all is well"
            launchers = run_both(hosts, tmp_path, "again", [str(ROOT / "examples" / "train_dit.py"), *flags])
            assert [launcher.wait(SECONDS) for launcher in launchers] == [0, 0]
    finally:
        for launcher in launchers:
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGKILL)
    alone = train_one(tiny, tmp_path / "alone", "--extra_ema_decays", "0.2")
    np.testing.assert_allclose(losses(tmp_path / "out"), losses(alone), rtol=1e-4)  # sums in another order
