"""A bad road: two network namespaces, and between them packets that are delayed and lost.

`tc netem` where the kernel has it; else a TUN device on either side and this process between them, which
drops and delays IP packets by a seeded generator. Needs root.
"""

import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MTU = 1500
SERVER, CAR, MOVED = "10.77.0.1", "10.77.0.2", "10.77.0.3"


def ip(*arguments, check=True):
    return subprocess.run(["ip", *map(str, arguments)], check=check, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class BadRoad:
    """From `car` to `server`; half of `delay` (seconds, there and back) and `loss` (a share) each way."""

    def __init__(self, delay, loss, seed):
        self.delay, self.loss, self.seed = delay / 2, loss, seed
        mark = f"{os.getpid():x}"
        self.car, self.server = f"mp-car-{mark}", f"mp-srv-{mark}"
        self.ends = {self.car: f"mpc{mark}", self.server: f"mps{mark}"}
        self.relay = None

    def __enter__(self):
        try:
            for space in self.ends:
                ip("netns", "add", space)
                ip("-n", space, "link", "set", "lo", "up")
            self.kind = "tc netem" if self.with_netem() else "relay over TUN"
            for space, address in ((self.car, CAR), (self.server, SERVER)):
                end = self.ends[space]
                ip("-n", space, "addr", "add", f"{address}/24", "dev", end)
                ip("-n", space, "link", "set", end, "mtu", MTU, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.relay:
            self.relay.stop()
        for space in self.ends:
            ip("netns", "del", space, check=False)

    def with_netem(self):
        """A pair of virtual cables with netem on both ends; false if the kernel has none."""
        (car, car_end), (server, server_end) = self.ends.items()
        ip("link", "add", car_end, "netns", car, "type", "veth", "peer", "name", server_end, "netns", server)
        for space, end in self.ends.items():
            done = subprocess.run(
                ["tc", "-n", space, "qdisc", "add", "dev", end, "root", "netem", "delay", f"{self.delay * 1e3:g}ms",
                 "loss", f"{self.loss * 100:g}%"], stderr=subprocess.PIPE)
            if done.returncode:
                ip("-n", car, "link", "del", car_end)
                self.with_relay()
                return False
        return True

    def with_relay(self):
        files = []
        for space, end in self.ends.items():
            file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", end.encode(), IFF_TUN | IFF_NO_PI))
            ip("link", "set", end, "netns", space)
            files.append(file)
        self.relay = Relay(files, self.delay, self.loss, self.seed)

    def inside(self, space):
        """What to put before a command that runs on that side."""
        return ["ip", "netns", "exec", space]

    def move(self):
        """The car leaves its address for another one."""
        end = self.ends[self.car]
        # In this order: the second address of a network goes with the first.
        ip("-n", self.car, "addr", "del", f"{CAR}/24", "dev", end)
        ip("-n", self.car, "addr", "add", f"{MOVED}/24", "dev", end)

    def move_back(self):
        end = self.ends[self.car]
        ip("-n", self.car, "addr", "del", f"{MOVED}/24", "dev", end, check=False)
        ip("-n", self.car, "addr", "add", f"{CAR}/24", "dev", end, check=False)


class Relay:
    """Carries packets between two TUN devices, on a thread."""

    def __init__(self, files, delay, loss, seed):
        self.files, self.delay, self.loss = files, delay, loss
        self.dice = random.Random(seed)
        self.waiting, self.number, self.running = [], 0, True
        self.carried, self.lost, self.latest = 0, 0, 0.0
        self.thread = threading.Thread(target=self.carry, daemon=True)
        self.thread.start()

    def carry(self):
        poller = select.poll()
        for file in self.files:
            poller.register(file, select.POLLIN)
        while self.running:
            wait = 100 if not self.waiting else max(0, (self.waiting[0][0] - time.monotonic()) * 1e3)
            for file, _ in poller.poll(min(wait, 100)):
                self.take(file)
            now = time.monotonic()
            while self.waiting and self.waiting[0][0] <= now:
                due, _, file, packet = heapq.heappop(self.waiting)
                self.latest = max(self.latest, now - due)
                try:
                    os.write(file, packet)
                except OSError:
                    self.lost += 1  # that side is not up: as good as lost

    def take(self, file):
        other = self.files[1] if file == self.files[0] else self.files[0]
        while True:
            try:
                packet = os.read(file, MTU + 100)
            except BlockingIOError:
                return
            except OSError:
                return  # not up yet
            if self.dice.random() < self.loss:
                self.lost += 1
                continue
            self.carried += 1
            self.number += 1  # packets of one moment keep their order
            heapq.heappush(self.waiting, (time.monotonic() + self.delay, self.number, other, packet))

    def stop(self):
        self.running = False
        self.thread.join()
        for file in self.files:
            os.close(file)
