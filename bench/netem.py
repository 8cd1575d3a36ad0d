#!/usr/bin/env python3
"""QUIC against TLS on a bad road: lost and delayed packets, and a car that moves. See bench/README.md.

Bounded in count and time; needs root for its network namespaces, which it removes again.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

from bad_road import SERVER, BadRoad
from run import TARGET, Milepost, say

PORTS = {"mqtts": 8883, "quic": 14567}
NAMES = {"mqtts": "TLS", "quic": "QUIC"}


class Roadside(Milepost):
    """A server at the other end of the road."""

    def __init__(self, binary, road, protocols):
        self.folder = tempfile.TemporaryDirectory(prefix="milepost-netem-")
        self.binary, self.listener, self.prefix = binary, "mqtts", road.inside(road.server)
        listeners = "".join(f'[[listener]]\nprotocol = "{protocol}"\nbind = "{SERVER}:{PORTS[protocol]}"\n'
                            for protocol in protocols)
        (pathlib.Path(self.folder.name) / "milepost.toml").write_text(
            listeners + '[http]\nbind = "127.0.0.1:0"\n[sql]\nbind = "127.0.0.1:0"\n')
        self.start()

    def device(self, road):
        """Makes one device, from the server's side of the road."""
        keys = pathlib.Path(self.folder.name) / "keys"
        subprocess.run([*road.inside(road.server), TARGET / "release/examples/load", "--json", "--idle", "--connections", "1",
                        "--duration", "1s", "--server", f"mqtts://{SERVER}:{PORTS['mqtts']}", "--api", self.api,
                        "--credentials", keys], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, timeout=120)
        return keys, next(keys.glob("*.json")).stem


def understands(binary, protocol):
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "milepost.toml"
        config.write_text(f'[[listener]]\nprotocol = "{protocol}"\nbind = "127.0.0.1:0"\n'
                          '[http]\nbind = "127.0.0.1:0"\n[sql]\nbind = "127.0.0.1:0"\n')
        return subprocess.run([binary, "check", "--config", config, "--data-dir", f"{folder}/data"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def drive(arguments, road, keys, device, protocol):
    command = [*road.inside(road.car), TARGET / "release/examples/rough_road", "--server",
               f"{protocol}://{SERVER}:{PORTS[protocol]}", "--credentials", keys, "--device", device,
               "--messages", arguments.messages, "--window", arguments.window, "--connects", arguments.connects]
    process = subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    try:
        words = process.stderr.readline()
        if words == "move\n":
            road.move()
            process.stdin.write("moved\n")
            process.stdin.flush()
        text, rest = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        road.move_back()
    if process.returncode:
        raise SystemExit(f"{NAMES[protocol]}: {words if words != 'move' + chr(10) else ''}{rest}")
    return json.loads(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--milepost", type=pathlib.Path, default=TARGET / "release/milepost")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delay-ms", type=float, default=100, help="there and back; half of it each way")
    parser.add_argument("--loss", type=float, default=1, help="per cent of packets, each way")
    parser.add_argument("--messages", type=int, default=1000)
    parser.add_argument("--window", type=int, default=20)
    parser.add_argument("--connects", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=pathlib.Path, help="writes all figures there")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        say("skipped: network namespaces need root")
        return 0
    protocols = [protocol for protocol in PORTS if understands(arguments.milepost, protocol)]
    for protocol in set(PORTS) - set(protocols):
        say(f"skipped: {NAMES[protocol]}: this server has no {protocol} listener")
    results, kind = {NAMES[protocol]: [] for protocol in protocols}, None
    for number in range(arguments.rounds):
        for protocol in protocols:
            # The same dice for both, and others in every round.
            with BadRoad(arguments.delay_ms / 1e3, arguments.loss / 100, arguments.seed + number) as road:
                kind = road.kind
                say(f"round {number + 1}: {NAMES[protocol]}, {kind}")
                subject = Roadside(arguments.milepost, road, protocols)
                try:
                    keys, device = subject.device(road)
                    report = drive(arguments, road, keys, device, protocol)
                finally:
                    subject.stop()
                if road.relay:
                    report["relay"] = {"carried": road.relay.carried, "lost": road.relay.lost,
                                       "latest_ms": road.relay.latest * 1e3}
                    if road.relay.latest > 0.02:
                        say(f"  the relay was late by up to {road.relay.latest * 1e3:.0f} ms")
                results[NAMES[protocol]].append(report)
    print(f"{arguments.delay_ms:g} ms there and back, {arguments.loss:g} % loss each way ({kind}); {arguments.rounds} rounds: "
          "median (lowest to highest)\n")
    print(f"| | connect p50 ms | connect p99 ms | resumed ms | {arguments.messages} messages at QoS 1, {arguments.window} in flight, s "
          "| publish to PUBACK p50 ms | p99 ms | address changed, to the next PUBACK ms |")
    print("|---|---|---|---|---|---|---|---|")

    def cell(rounds, *path):
        values = []
        for value in rounds:
            for key in path:
                value = value[key]
            values.append(value)
        digits = 1 if path == ("deliver_s",) else 0
        return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"

    for name, rounds in results.items():
        columns = [("connect", "p50_ms"), ("connect", "p99_ms"), ("connect_resumed_ms",), ("deliver_s",),
                   ("acknowledged", "p50_ms"), ("acknowledged", "p99_ms"), ("moved_ms",)]
        print(f"| {name} | " + " | ".join(cell(rounds, *column) for column in columns) + " |")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
