#!/usr/bin/env python3
"""Measures what connections cost: to make, and to keep. See bench/README.md.

Every scenario is bounded in count and time, talks to loopback only, and ends what it started.
"""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import tempfile
import time

from run import TARGET, Milepost, resident_bytes, say, spread

PAGE = 4096


class Way:
    """A transport, and how clients prove who they are."""

    def __init__(self, name, protocol, auth="x509", resume=False):
        self.name, self.protocol, self.auth, self.resume = name, protocol, auth, resume

    def secure(self):
        return self.protocol in ("mqtts", "wss", "quic")

    def config(self):
        return (f'[[listener]]\nprotocol = "{self.protocol}"\nbind = "127.0.0.1:0"\n'
                + (f'auth = ["{self.auth}"]\n' if self.secure() and self.auth != "x509" else "")
                + '[http]\nbind = "127.0.0.1:0"\n[sql]\nbind = "127.0.0.1:0"\n'
                + ('' if self.secure() and self.auth == "x509" else '[access]\nanonymous = "allow-all"\n'))

    def options(self, subject):
        if not self.secure():
            return []
        more = ["--anonymous"] if self.auth == "anonymous" else ["--credentials", f"{subject.folder.name}/keys"]
        return ["--api", subject.api, *more]


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


def connects(arguments, way, config):
    subject = Server(arguments.milepost, way, config)
    try:
        command = [TARGET / "release/examples/connects", "--server", subject.url(), "--clients", arguments.clients,
                   "--seconds", arguments.seconds, "--pid", subject.pid, *way.options(subject),
                   *(["--resume"] if way.resume else [])]
        done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, timeout=900)
        if done.returncode:
            raise SystemExit(f"{way.name}: the tool failed ({done.returncode})")
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
    subject = Server(arguments.milepost, way, config)
    load = [TARGET / "release/examples/load", "--json", "--idle", "--subscribe"]

    def idle(count, duration):
        return [str(part) for part in [*load, "--server", subject.url(), "--connections", count,
                                       "--duration", duration, *way.options(subject)]]
    try:
        rounds = []
        if way.secure():
            # Certificates are made in a life of their own, see `run.py`.
            subprocess.run(idle(arguments.idle, "1s"), stdout=subprocess.DEVNULL, timeout=900, check=True)
        for number in range(arguments.rounds):
            say(f"memory, round {number + 1}: {way.name}")
            subject.restart()
            subprocess.run(idle(100, "2s"), stdout=subprocess.DEVNULL, timeout=900, check=True)
            time.sleep(2)
            before, (buffers, slab) = resident_bytes(subject.pid), kernel_bytes()
            holder = subprocess.Popen(idle(arguments.idle, "20s"), stdout=subprocess.DEVNULL)
            try:
                deadline = time.time() + 120
                while subject.status()["connections"] < arguments.idle and time.time() < deadline:
                    time.sleep(0.2)
                time.sleep(4)
                connected = subject.status()["connections"]
                after, (buffers_after, slab_after) = resident_bytes(subject.pid), kernel_bytes()
            finally:
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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=64, help="clients that connect and leave, each one connection at a time")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--idle", type=int, default=4000)
    parser.add_argument("--only", choices=["connects", "memory"])
    parser.add_argument("--way", action="append", choices=[way.name for way in WAYS])
    parser.add_argument("--json", type=pathlib.Path, help="writes all figures there")
    arguments = parser.parse_args()
    ways, results = [], {}
    for way in WAYS:
        if arguments.way and way.name not in arguments.way:
            continue
        config, problem = usable(arguments.milepost, way)
        if problem:
            say(f"skipped: {way.name}: {problem}")
        else:
            ways.append((way, config))

    if arguments.only != "memory":
        reports = {way.name: [] for way, _ in ways}
        for number in range(arguments.rounds):
            for way, config in ways:
                say(f"round {number + 1}: {way.name}")
                reports[way.name].append(connects(arguments, way, config))
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
            rounds = results["memory"][way.name] = memory(arguments, way, config)
            print(f"| {way.name} | {kibi([r['resident'] for r in rounds])} | {kibi([r['buffers'] for r in rounds])} "
                  f"| {kibi([r['slab'] for r in rounds])} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
