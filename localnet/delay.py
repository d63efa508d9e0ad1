"""The lab's internet: a program that carries packets between TUN devices, late and with losses.

It reads one line of JSON that says which ports there are, makes a device for each, and answers
with the devices' names. Then it obeys one JSON request a line, answers each with a line, and ends
when its input does: with the lab, however that ends.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import select
import struct
import sys
import time
from dataclasses import asdict
from typing import Any

from localnet.wires import Link, Wires

# From linux/if_tun.h.
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4 = 0x01, 0x02

_HEADER_BYTES = 10  # struct virtio_net_hdr before each packet: what is left to checksum and cut
_MAX_READ_BYTES = _HEADER_BYTES + 65_535
_NETWORK = slice(_HEADER_BYTES + 16, _HEADER_BYTES + 18)  # of the IPv4 destination: its /16
_BATCH = 64  # packets read from one device before others and what is due get their turn

_PR_SET_TIMERSLACK = 29


class Internet:
    """The devices, the wires between them, and requests from the lab."""

    def __init__(self, config: dict[str, Any]) -> None:
        links = {name: Link(**link) for name, link in config["links"].items()}
        self._wires = Wires(links, seed=config["seed"])
        self._networks = {
            bytes.fromhex(network): name for network, name in config["networks"].items()
        }
        self.devices = {name: f"gn{os.getpid()}x{index}" for index, name in enumerate(links)}
        self._ports = {_tun(device): name for name, device in self.devices.items()}
        self._files = {name: file for file, name in self._ports.items()}
        self._pending = b""
        self._set_offloads()

    def run(self) -> None:
        """Carry packets until the lab hangs up."""
        control = sys.stdin.fileno()
        files = [control, *self._ports]
        while True:
            for receiver, packet in self._wires.due(time.monotonic()):
                self._write(self._files[receiver], packet)
            next_s = self._wires.next_s()
            # select() waits in microseconds, where epoll in Python rounds up to milliseconds.
            wait_s = None if next_s is None else max(0.0, next_s - time.monotonic())
            for file in select.select(files, [], [], wait_s)[0]:
                if file != control:
                    self._read(file)
                elif not self._obey():
                    return

    def _read(self, file: int) -> None:
        sender, networks, wires = self._ports[file], self._networks, self._wires
        for _ in range(_BATCH):
            try:
                packet = os.read(file, _MAX_READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.EBADFD:  # the device's namespace goes before this program
                    raise
                return
            receiver = networks.get(packet[_NETWORK])
            is_ipv4 = packet[_HEADER_BYTES] >> 4 == 4
            if receiver is not None and is_ipv4:
                wires.send(time.monotonic(), sender, receiver, packet)

    @staticmethod
    def _write(file: int, packet: bytes) -> None:
        try:
            os.write(file, packet)
        except OSError as error:
            if error.errno not in {errno.EIO, errno.EBADFD}:  # unplugged, or gone
                raise

    def _obey(self) -> bool:
        data = os.read(sys.stdin.fileno(), 65_536)
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            print(json.dumps(self._answer(json.loads(line))), flush=True)
        return bool(data)

    def _answer(self, request: dict[str, Any]) -> Any:
        match request:
            case {"name": name, "link": link}:
                self._wires.set_link(name, Link(**link))
                self._set_offloads()
            case {"name": name, "cut": cut}:
                self._wires.cut(name, cut=cut)
            case {"flows": True}:
                flows = self._wires.flows.items()
                return [[sender, receiver, asdict(flow)] for (sender, receiver), flow in flows]
            case _:
                raise ValueError(f"{request} is no request")
        return True

    def _set_offloads(self) -> None:
        # Whole segments of up to 64 KB are an order of magnitude faster to carry, and wrong only
        # where packets are counted: lost one by one, or sent at a rate.
        offloads = _TUN_F_CSUM | (0 if self._wires.counts_packets else _TUN_F_TSO4)
        for file in self._ports:
            fcntl.ioctl(file, _TUNSETOFFLOAD, offloads)


def _tun(device: str) -> int:
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
    fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", device.encode(), flags))
    return file


def main() -> None:
    """Serve one lab."""
    # Timers fire up to 50 µs late otherwise, so that the kernel can wake less often.
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1_000, 0, 0, 0)
    config = b""
    while not config.endswith(b"\n"):
        data = os.read(sys.stdin.fileno(), 65_536)
        if not data:
            return
        config += data
    internet = Internet(json.loads(config))
    print(json.dumps(internet.devices), flush=True)
    internet.run()


if __name__ == "__main__":
    main()
