#!/usr/bin/env python3
"""Measures what connections cost: to make, and to keep. See bench/README.md.

Every scenario is bounded in count and time, talks to loopback only, and ends what it started.
"""

import argparse
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import statistics
import subprocess
import tempfile
import time

import peer
from run import TARGET, Milepost, resident_bytes, say, spread

PAGE = 4096


class Way:
    """A transport, and how clients prove who they are; to us or to the peer."""

    def __init__(self, name, protocol, auth="x509", resume=False, peer=False):
        self.name, self.protocol, self.auth, self.resume, self.peer = name, protocol, auth, resume, peer

    def secure(self):
        return self.protocol in ("mqtts", "wss", "quic")

    def config(self):
        return (f'[[listener]]\nprotocol = "{self.protocol}"\nbind = "127.0.0.1:0"\n'
                + (f'auth = ["{self.auth}"]\n' if self.secure() and self.auth != "x509" else "")
                + '[http]\nbind = "127.0.0.1:0"\n[sql]\nbind = "127.0.0.1:0"\n'
                + ('' if self.secure() and self.auth == "x509" else '[access]\nanonymous = "allow-all"\n'))


WAYS = [
    Way("TCP", "mqtt"),
    Way("TLS", "mqtts", auth="anonymous"),
    Way("mTLS", "mqtts"),
    Way("mTLS, resumed", "mqtts", resume=True),
    Way("WebSocket", "ws"),
    Way("WebSocket over mTLS", "wss"),
    Way("QUIC (mutual)", "quic"),
    Way("QUIC (mutual), resumed", "quic", resume=True),
]
# Nobody is held off for connecting again and again: that is what is measured here.
PATIENT = '[hold_off]\nlasts = "off"\n'


class Server(Milepost):
    """A server with this one listener."""

    def __init__(self, binary, way, config):
        self.folder = tempfile.TemporaryDirectory(prefix="milepost-connects-")
        self.binary, self.listener, self.way = binary, way.protocol, way
        (pathlib.Path(self.folder.name) / "milepost.toml").write_text(config)
        self.start()

    def url(self):
        # By name: server certificates are for `localhost`, and names are what cars use.
        return f"{self.way.protocol}://localhost:{self.server.rsplit(':', 1)[1].split('/')[0]}"

    def options(self):
        if not self.way.secure():
            return []
        more = ["--anonymous"] if self.way.auth == "anonymous" else ["--credentials", f"{self.folder.name}/keys"]
        return ["--api", self.api, *more]

    def connected(self):
        return self.status()["connections"]


class Peer(peer.Certified):
    """Mosquitto; its WebSockets where it was built with them."""

    def __init__(self, way, keys):
        self.way, self.socket_port = way, peer.free_port() if way.protocol == "ws" else None
        more = ""
        if self.socket_port:
            more = f"listener {self.socket_port} 127.0.0.1\nprotocol websockets\n"
        super().__init__(keys, require_certificate=way.auth == "x509", more=more)

    def url(self):
        port = {"mqtt": self.port, "mqtts": self.tls_port, "ws": self.socket_port}[self.way.protocol]
        return f"{self.way.protocol}://localhost:{port}"

    def options(self):
        if not self.way.secure():
            return []
        return ["--credentials", self.keys, *(["--anonymous"] if self.way.auth == "anonymous" else [])]

    def connected(self):
        """Files are sockets, but for the few that it has anyway."""
        return len(os.listdir(f"/proc/{self.pid}/fd")) - self.files

    def start(self):
        super().start()
        time.sleep(0.2)  # the connection that asked whether it listens is gone
        self.files = len(os.listdir(f"/proc/{self.pid}/fd"))

    def restart(self):
        self.process.terminate()
        self.process.wait(timeout=30)
        self.start()


def peers_ways(keys):
    """The ways the peer has, each tried; those it has not are said."""
    ways = []
    for like in WAYS[:5]:
        way = Way(like.name, like.protocol, like.auth, like.resume, peer=True)
        try:
            Peer(way, keys).stop()
            ways.append((way, keys))
        except SystemExit as error:
            say(f"skipped: {way.name}: {' '.join(str(error).split())}")
    return ways


def usable(binary, way):
    """The configuration for it that this server understands, or why there is none."""
    for config in (way.config() + PATIENT, way.config()):
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write(config)
            file.flush()
            with tempfile.TemporaryDirectory() as data:
                done = subprocess.run([binary, "check", "--config", file.name, "--data-dir", data],
                                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode == 0:
            return config, None
    return None, done.stdout.strip().splitlines()[0] if done.stdout.strip() else "not understood"


def started(arguments, way, config):
    return Peer(way, config) if way.peer else Server(arguments.milepost, way, config)


def label(way):
    return f"{way.name}, {peer.version()}" if way.peer else way.name


def connects(arguments, way, config):
    subject = started(arguments, way, config)
    try:
        command = [TARGET / "release/examples/connects", "--server", subject.url(), "--clients", arguments.clients,
                   "--seconds", arguments.seconds, "--pid", subject.pid, *subject.options(),
                   *(["--resume"] if way.resume else [])]
        done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, timeout=900)
        if done.returncode:
            raise SystemExit(f"{label(way)}: the tool failed ({done.returncode})")
        report = json.loads(done.stdout)
        if report["failed"]:
            say(f"  {report['failed']} failed: {report['troubles']}")
        if way.resume and way.protocol != "quic" and report["resumed"] < report["connects"]:
            say(f"  only {report['resumed']} of {report['connects']} were resumed")
        return report
    finally:
        subject.stop()


def kernel_bytes():
    """Buffers of sockets, and slab, of the whole machine: both ends of loopback connections."""
    sockets = pathlib.Path("/proc/net/sockstat").read_text()
    pages = sum(int(count) for count in re.findall(r"^(?:TCP|UDP): .*\bmem (\d+)", sockets, re.M))
    slab = int(re.search(r"^Slab:\s+(\d+) kB", pathlib.Path("/proc/meminfo").read_text(), re.M).group(1))
    return pages * PAGE, slab * 1024


def memory(arguments, way, config):
    """Bytes per idle connection with one subscription, in rounds with a fresh process each."""
    subject = started(arguments, way, config)
    load = [TARGET / "release/examples/load", "--json", "--idle", "--subscribe"]

    def idle(count, duration):
        return [str(part) for part in [*load, "--server", subject.url(), "--connections", count,
                                       "--duration", duration, *subject.options()]]
    try:
        rounds = []
        if way.secure() and not way.peer:
            # Certificates are made in a life of their own, see `run.py`.
            subprocess.run(idle(arguments.idle, "1s"), stdout=subprocess.DEVNULL, timeout=900, check=True)
        for number in range(arguments.rounds):
            say(f"  round {number + 1}")
            subject.restart()
            subprocess.run(idle(100, "1s"), stdout=subprocess.DEVNULL, timeout=900, check=True)
            time.sleep(1)
            before, (buffers, slab) = resident_bytes(subject.pid), kernel_bytes()
            holder = subprocess.Popen(idle(arguments.idle, "60s"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                deadline = time.time() + 60
                while subject.connected() < arguments.idle and time.time() < deadline and holder.poll() is None:
                    time.sleep(0.2)
                time.sleep(3)
                connected = subject.connected()
                after, (buffers_after, slab_after) = resident_bytes(subject.pid), kernel_bytes()
            finally:
                holder.send_signal(signal.SIGINT)  # seen enough; it leaves in good order
                holder.wait(timeout=300)
            if connected < arguments.idle:
                say(f"  only {connected} of {arguments.idle} connected")
            rounds.append({
                "connected": connected,
                "resident": (after - before) / max(connected, 1),
                "buffers": (buffers_after - buffers) / max(connected, 1),
                "slab": (slab_after - slab) / max(connected, 1),
            })
        return rounds
    finally:
        subject.stop()


def kibi(values):
    values = [value / 1024 for value in values]
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--milepost", type=pathlib.Path, default=TARGET / "release/milepost")
    parser.add_argument("--peer", choices=["mosquitto"], help="measures it beside: TCP, TLS, mTLS, WebSockets if it has them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=64, help="clients that connect and leave, each one connection at a time")
    parser.add_argument("--seconds", type=int, default=6)
    parser.add_argument("--idle", type=int, default=4000)
    parser.add_argument("--only", choices=["connects", "memory"])
    parser.add_argument("--way", action="append", choices=[way.name for way in WAYS])
    parser.add_argument("--json", type=pathlib.Path, help="writes all figures there")
    arguments = parser.parse_args()
    if arguments.peer and not shutil.which("mosquitto"):
        parser.error("Mosquitto is not installed (package mosquitto)")
    # All the files that may be had, for the peer, too: it does not ask for them itself.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="milepost-connects-keys-") as keys:
        measure(arguments, ways_to_measure(arguments, keys))


def ways_to_measure(arguments, keys):
    """Each with what its subject is started with: a configuration, or for the peer the folder of keys."""
    ways = []
    for way in WAYS:
        config, problem = usable(arguments.milepost, way)
        if problem:
            say(f"skipped: {way.name}: {problem}")
        else:
            ways.append((way, config))
    if arguments.peer:
        # As the examples `connects` and `load` call their vehicles.
        peer.certificates(keys, max(arguments.clients, arguments.idle), "connects", "bench")
        ways += peers_ways(keys)
    return [(way, config) for way, config in ways if not arguments.way or way.name in arguments.way]


def measure(arguments, ways):
    results, begun = {}, time.monotonic()
    each = arguments.rounds * len(ways) if arguments.only != "memory" else 0
    held = sum(1 for way, _ in ways if not way.resume) if arguments.only != "connects" else 0
    expected = each * (arguments.seconds + 2) + held * arguments.rounds * 12 + held * 15

    def progress(what):
        passed = time.monotonic() - begun
        say(f"[{int(passed) // 60}:{int(passed) % 60:02} of about {expected // 60}:{expected % 60:02} min] {what}")

    if arguments.only != "memory":
        reports = {label(way): [] for way, _ in ways}
        for number in range(arguments.rounds):
            for way, config in ways:
                progress(f"connects, round {number + 1}: {label(way)}")
                reports[label(way)].append(connects(arguments, way, config))
        results["connects"] = reports
        print(f"{arguments.clients} clients connect (to CONNACK) and leave, over and over; {arguments.seconds} s, "
              f"{arguments.rounds} rounds, alternating; clients and server on one machine: median (lowest to highest)\n")
        print("| | connects/s | server CPU µs per connect | p50 ms | p99 ms | failed |")
        print("|---|---|---|---|---|---|")
        for name, rounds in reports.items():
            cpu = [r["server_cpu_us"] for r in rounds]
            print(f"| {name} | {spread([r['per_s'] for r in rounds])} | {spread(cpu)} "
                  f"| {statistics.median(r['p50_ms'] for r in rounds):.1f} | {statistics.median(r['p99_ms'] for r in rounds):.1f} "
                  f"| {sum(r['failed'] for r in rounds)} |")
        print(flush=True)
    if arguments.only != "connects":
        results["memory"] = {}
        print(f"KiB per idle connection with one subscription, {arguments.idle} of them, fresh process, "
              f"{arguments.rounds} rounds: median (lowest to highest). Kernel figures are of both ends together\n")
        print("| | server, resident | kernel: socket buffers | kernel: slab |")
        print("|---|---|---|---|")
        for way, config in ways:
            if way.resume:
                continue  # a resumed connection is like another once it stands
            progress(f"memory: {label(way)}")
            rounds = results["memory"][label(way)] = memory(arguments, way, config)
            print(f"| {label(way)} | {kibi([r['resident'] for r in rounds])} | {kibi([r['buffers'] for r in rounds])} "
                  f"| {kibi([r['slab'] for r in rounds])} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
