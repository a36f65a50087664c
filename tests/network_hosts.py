"""Hosts with addresses of their own on one machine: network namespaces, whose links can go down."""

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest


class Host(NamedTuple):
    name: str
    address: str
    link: str

    @property
    def enter(self) -> tuple[str, ...]:
        """What a command begins with that runs there, as a process of the same number."""
        return ("ip", "netns", "exec", self.name)

    @contextlib.contextmanager
    def link_down(self) -> Iterator[None]:
        """No packet comes or goes in the block; nobody is told."""
        _ip("link", "set", self.link, "down")
        try:
            yield
        finally:
            _ip("link", "set", self.link, "up")


@contextlib.contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """Hosts in a network of their own; skips the test where it may not make any."""
    stem = f"mx{os.getpid() % 100_000}"
    numbers = itertools.islice(itertools.count(), count)
    made = [Host(f"{stem}-{i}", f"10.213.57.{i + 1}", f"{stem}v{i}") for i in numbers]
    try:
        try:
            _ip("link", "add", stem, "type", "bridge")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"cannot make network namespaces here: {error}")
        _ip("link", "set", stem, "up")
        for host in made:
            _connect(host, stem)
        yield made
    finally:
        for host in made:
            # A namespace lives on as long as a process in it; its link need not.
            _try_ip("link", "delete", host.link)
            _try_ip("netns", "delete", host.name)
            shutil.rmtree(_etc(host), ignore_errors=True)
        _try_ip("link", "delete", stem)


def _connect(host: Host, bridge: str) -> None:
    _ip("netns", "add", host.name)
    _ip("link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.name)
    _ip("link", "set", host.link, "master", bridge, "up")
    _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        _ip("-n", host.name, "link", "set", device, "up")
    # Gloo connects to the address that the host's own name has, here as on any cluster.
    _etc(host).mkdir(parents=True)
    name = os.uname().nodename
    (_etc(host) / "hosts").write_text(f"127.0.0.1 localhost\n{host.address} {name}\n")


def _etc(host: Host) -> Path:
    """What `ip netns exec` puts in the place of files in /etc."""
    return Path("/etc/netns", host.name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _try_ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=False, capture_output=True)
