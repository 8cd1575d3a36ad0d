#!/usr/bin/env python3
"""Measures Milepost on this machine and prints one table. See bench/README.md.

Every scenario is bounded in count and time, talks to loopback only, and ends what it started.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
TICKS = os.sysconf("SC_CLK_TCK")


def say(text):
    print(text, file=sys.stderr, flush=True)


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_bytes(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) * 1024


class Milepost:
    """A server on free ports and a fresh folder."""

    # What the server is started under, and with which environment.
    prefix, environment = [], None

    def __init__(self, binary, more="", listener="mqtts", scratch=None):
        self.folder = tempfile.TemporaryDirectory(prefix="milepost-bench-", dir=scratch)
        self.binary, self.listener = binary, listener
        folder = pathlib.Path(self.folder.name)
        access = '[access]\nanonymous = "allow-all"\n' if listener == "mqtt" else ""
        (folder / "milepost.toml").write_text(
            f'[[listener]]\nprotocol = "{listener}"\nbind = "127.0.0.1:0"\n'
            f'[http]\nbind = "127.0.0.1:0"\n[sql]\nbind = "127.0.0.1:0"\n{access}{more}'
        )
        self.start()

    def start(self):
        folder = pathlib.Path(self.folder.name)
        # A file and not a pipe: nobody would read the pipe.
        log = folder / "log"
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [*self.prefix, self.binary, "serve", "--config", folder / "milepost.toml", "--data-dir", folder / "data"],
                stderr=stderr, env=self.environment,
            )
        deadline = time.time() + 60
        while "ready\n" not in log.read_text():
            if self.process.poll() is not None or time.time() > deadline:
                raise SystemExit("the server did not start:\n" + log.read_text())
            time.sleep(0.01)
        self.addresses = dict(re.findall(r"listening on (\w+)://(\S+)", log.read_text()))
        self.pid = self.process.pid
        self.server = self.addresses[self.listener]
        self.api = "http://" + self.addresses["http"]

    def log(self):
        return (pathlib.Path(self.folder.name) / "log").read_text()

    def status(self):
        with urllib.request.urlopen(self.api + "/api/v1/status", timeout=30) as answer:
            return json.load(answer)

    def restart(self):
        self.end()
        self.start()

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=120)

    def kill(self):
        self.process.kill()
        self.process.wait(timeout=30)

    def stop(self):
        self.end()
        self.folder.cleanup()


class Mosquitto:
    """The peer: plain TCP; nothing on disk unless `more` says otherwise."""

    # What the server is started under, and with which environment.
    prefix, environment = [], None

    def __init__(self, more="persistence false\nmax_inflight_messages 0\nmax_queued_messages 0\n"):
        self.folder = tempfile.TemporaryDirectory(prefix="mosquitto-bench-")
        # It gives up root for a user of its own, who must be able to write here.
        os.chmod(self.folder.name, 0o777)
        self.port = free_port()
        self.config = pathlib.Path(self.folder.name) / "mosquitto.conf"
        self.config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence_location {self.folder.name}/\n"
            f"set_tcp_nodelay true\nlog_type error\n{more}{self.prepare(pathlib.Path(self.folder.name))}"
        )
        self.server = f"127.0.0.1:{self.port}"
        self.start()

    def prepare(self, _folder):
        """Files it needs beside, and configuration that comes after `more`."""
        return ""

    def log(self):
        return (pathlib.Path(self.folder.name) / "log").read_text()

    def start(self):
        import socket
        with (pathlib.Path(self.folder.name) / "log").open("w") as stderr:
            self.process = subprocess.Popen([*self.prefix, "mosquitto", "-c", self.config], stderr=stderr,
                                            env=self.environment)
        self.pid = self.process.pid
        deadline = time.time() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.time() > deadline:
                    raise SystemExit("Mosquitto did not start:\n" + self.log())
                time.sleep(0.01)

    def kill(self):
        self.process.kill()
        self.process.wait(timeout=30)

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=30)
        self.folder.cleanup()


def free_port():
    import socket
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def load(server, *more):
    command = [TARGET / "release/examples/load", "--json", "--server", server, *map(str, more)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=900)
    if done.returncode not in (0, 1) or not done.stdout.strip():
        raise SystemExit(f"the load generator failed ({done.returncode})")
    return json.loads(done.stdout)


def sessions(server, *more, background=False):
    """Leaves sessions or fetches what waits in them. In the background: returns when all are connected."""
    command = [TARGET / "release/examples/sessions", "--server", server, *map(str, more)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE if background else None, text=True)
    if background:
        line = process.stderr.readline()
        if line != "connected\n":
            raise SystemExit(f"not all sessions connected: {line}{process.stdout.read()}")
        return process
    return outcome(process)


def outcome(process):
    """What a run of `sessions` reports."""
    text, _ = process.communicate(timeout=900)
    if process.returncode != 0:
        raise SystemExit(f"the session tool failed ({process.returncode})")
    return json.loads(text)


def throughput(arguments, binary):
    """Messages acknowledged per second at QoS 1, 200-byte payloads, in alternating rounds."""
    subjects = {
        "mTLS, fsync before PUBACK": lambda: Milepost(binary),
        "mTLS, without durability": lambda: Milepost(binary, '[log]\ndurability = "none"\n'),
        "TCP, fsync before PUBACK": lambda: Milepost(binary, listener="mqtt"),
        "TCP, without durability": lambda: Milepost(binary, '[log]\ndurability = "none"\n', "mqtt"),
    }
    if shutil.which("mosquitto"):
        subjects["TCP, Mosquitto (keeps nothing)"] = Mosquitto
    results = {name: [] for name in subjects}
    for round_number in range(arguments.rounds):
        for name, start in subjects.items():
            say(f"round {round_number + 1}: {name}")
            subject = start()
            try:
                extra = ["--api", subject.api] if "mTLS" in name else []
                before = cpu_seconds(subject.pid)
                report = load(subject.server, "--connections", arguments.connections, "--payload", 200,
                              "--duration", f"{arguments.seconds}s", *extra)
                report["server_cpu_s"] = cpu_seconds(subject.pid) - before
                results[name].append(report)
            finally:
                subject.stop()
    return results


def freshness(arguments, binary):
    """Reception to visible in SQL, while synthetic vehicles drive."""
    say("freshness")
    subject = Milepost(binary)
    try:
        subprocess.run(
            [binary, "simulate", "--server", subject.server, "--api", subject.api, "--vehicles", "1000",
             "--duration", f"{2 * arguments.seconds}s"],
            stderr=subprocess.DEVNULL, timeout=900, check=True,
        )
        return subject.status()
    finally:
        subject.stop()


def idle_memory(arguments, binary):
    """Resident memory of the server per idle connection with one subscription."""
    rows = {}
    for listener, name in [("mqtts", "mTLS"), ("mqtt", "TCP")]:
        say(f"memory per idle connection, {name}")
        subject = Milepost(binary, listener=listener)
        try:
            def options():
                return ["--api", subject.api, "--credentials", f"{subject.folder.name}/keys"] if listener == "mqtts" else []
            if listener == "mqtts":
                # Certificates are made in a life of their own: memory that signing and the first
                # connections leave behind must not be there for the counted ones to use.
                load(subject.server, "--idle", "--connections", arguments.idle, "--duration", "1s", *options())
                subject.restart()
            load(subject.server, "--idle", "--connections", 100, "--duration", "2s", *options())
            time.sleep(2)
            before = resident_bytes(subject.pid)
            command = [TARGET / "release/examples/load", "--json", "--idle", "--subscribe", "--server",
                       subject.server, "--connections", str(arguments.idle), "--duration", "15s", *options()]
            holder = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            deadline = time.time() + 60
            while subject.status()["connections"] < arguments.idle and time.time() < deadline:
                time.sleep(0.2)
            time.sleep(3)
            connected = subject.status()["connections"]
            rows[name] = ((resident_bytes(subject.pid) - before) / max(connected, 1), connected)
            holder.wait(timeout=120)
        finally:
            subject.stop()
    return rows


def silver_rows(arguments):
    say("rows into silver")
    done = subprocess.run([TARGET / "release/examples/ingest_bench", str(arguments.rows)],
                          stdout=subprocess.PIPE, text=True, timeout=900, check=True)
    return done.stdout


def spread(values):
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--idle", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--only", choices=["throughput", "freshness", "memory", "silver"])
    arguments = parser.parse_args()
    binary = TARGET / "release/milepost"

    wanted = lambda name: arguments.only in (None, name)
    if wanted("throughput"):
        print(f"QoS 1, {arguments.connections} vehicles, 200 B payloads, {arguments.seconds} s, "
              f"{arguments.rounds} rounds, alternating: median (lowest to highest)\n")
        print("| | acknowledged/s | per server CPU second | ack p50 ms | ack p99 ms | lost |")
        print("|---|---|---|---|---|---|")
        for name, reports in throughput(arguments, binary).items():
            rate = [r["acknowledged_per_s"] for r in reports]
            per_cpu = [r["acknowledged"] / max(r["server_cpu_s"], 0.01) for r in reports]
            p50 = statistics.median(r["latency"]["p50_ms"] for r in reports)
            p99 = statistics.median(r["latency"]["p99_ms"] for r in reports)
            lost = sum(r["lost"] for r in reports)
            print(f"| {name} | {spread(rate)} | {spread(per_cpu)} | {p50:.1f} | {p99:.1f} | {lost} |")
        print()
    if wanted("freshness"):
        status = freshness(arguments, binary)
        print(f"Freshness, 1,000 vehicles at 1 message/s: p50 within {status['freshness_p50_ms']} ms, "
              f"p99 within {status['freshness_p99_ms']} ms ({status['records_ingested']:,} records)\n")
    if wanted("memory"):
        for name, (size, connected) in idle_memory(arguments, binary).items():
            print(f"Idle connection with one subscription, {name}: {size / 1024:.1f} KiB resident "
                  f"({connected} connections)")
        print()
    if wanted("silver"):
        print(silver_rows(arguments))


if __name__ == "__main__":
    main()
