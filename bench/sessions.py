#!/usr/bin/env python3
"""Measures what stored sessions cost and what they survive. See bench/README.md.

Every scenario is bounded in count and time, talks to loopback only, and ends what it started.
"""

import argparse
import pathlib
import shutil
import statistics
import time

from run import (TARGET, Milepost, Mosquitto, cpu_seconds, load, outcome, resident_bytes, say, sessions, spread)

# Room for everything that waits: the bounds are not what is measured here.
ROOM = "max_queued = 10000000\nmax_queued_bytes = \"8GiB\"\n"
MOSQUITTO_ROOM = "persistence true\nmax_queued_messages 0\nmax_inflight_messages 0\n"
PAYLOAD = 200


def milepost(binary, more=""):
    # Topics of sessions are not below `dt/`: neither log nor lake has part in this.
    return Milepost(binary, f"[mqtt]\n{ROOM}{more}", "mqtt")


def disk_bytes(subject):
    """Blocks on disk of the stored sessions."""
    folder = pathlib.Path(subject.folder.name) / "data/sessions"
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def fill(subject, count, each, connections, qos=1):
    return load(subject.server, "--sessions", count, "--count", each, "--connections", min(connections, count),
                "--qos", qos, "--payload", PAYLOAD, "--duration", "300s")


def cost(arguments, binary):
    """Server CPU per message with and without durability; sessions online and away; alternating rounds."""
    subjects = {
        "stored, fsync": (lambda: milepost(binary), 86_400),
        "stored, without durability": (lambda: milepost(binary, 'durability = "none"\n'), 86_400),
        "not stored (expiry 0)": (lambda: milepost(binary), 0),
    }
    if shutil.which("mosquitto"):
        subjects["Mosquitto, stored (in memory until a write every 30 min)"] = (lambda: Mosquitto(MOSQUITTO_ROOM), 86_400)
        subjects["Mosquitto, not stored"] = (lambda: Mosquitto(MOSQUITTO_ROOM), 0)
    count = arguments.sessions
    results = {}
    for round_number in range(arguments.rounds):
        for qos in (1, 2):
            each = arguments.messages // count // qos
            for name, (start, expiry) in subjects.items():
                for online in (True, False):
                    if not online and expiry == 0:
                        continue
                    say(f"round {round_number + 1}: QoS {qos}, {'online' if online else 'away'}, {name}")
                    results.setdefault((qos, online, name), []).append(
                        cost_once(arguments, start, expiry, qos, online, count, each))
    return results


def cost_once(arguments, start, expiry, qos, online, count, each):
    subject = start()
    try:
        which = ["--count", count, "--qos", qos, "--expiry", expiry]
        if expiry:
            sessions(subject.server, *which, "leave")
        fetching = None
        if online:
            fetching = sessions(subject.server, *which, "--at-once", count, "--threads", 1, "fetch", "--each", each,
                                "--patience", 20, background=True)
        before, begun = cpu_seconds(subject.pid), time.monotonic()
        report = fill(subject, count, each, arguments.connections, qos)
        if online:
            fetched = outcome(fetching)
            report["seconds"] = time.monotonic() - begun
        cpu = cpu_seconds(subject.pid) - before
        if not online:
            report["seconds"] = report["elapsed_s"]
            fetched = sessions(subject.server, *which, "fetch", "--each", each)
        report["cpu_us"] = 1e6 * cpu / max(report["acknowledged"], 1)
        report["missing"] = report["acknowledged"] - fetched["distinct"]
        report["wrong"] = fetched["disordered"] + (fetched["repeated"] if qos == 2 else 0)
        return report
    finally:
        subject.stop()


def restart(arguments, binary):
    """A server with many sessions and many messages waiting is killed and starts again."""
    count, each = arguments.restart_sessions, arguments.restart_messages // arguments.restart_sessions
    subject = milepost(binary, "max_sessions = 1000000\n")
    rows = {}
    try:
        say(f"restart: {count:,} sessions")
        left = sessions(subject.server, "--count", count, "leave")
        rows["sessions made, each with a subscription"] = f"{left['sessions']:,} in {left['elapsed_s']:.1f} s"
        say(f"restart: {count * each:,} messages")
        filled = fill(subject, count, each, arguments.connections)
        rows["messages queued"] = f"{filled['acknowledged']:,} in {filled['elapsed_s']:.1f} s, {filled['lost']} lost"
        rows["resident before the kill"] = mebi(resident_bytes(subject.pid))
        rows["disk before the kill"] = mebi(disk_bytes(subject))
        subject.kill()
        begun = time.monotonic()
        subject.start()
        rows["kill -9, then until `ready`"] = f"{time.monotonic() - begun:.2f} s"
        rows["resident after the start"] = mebi(resident_bytes(subject.pid))
        rows["disk after the start"] = mebi(disk_bytes(subject))
        say("restart: fetching")
        fetched = sessions(subject.server, "--count", count, "fetch", "--each", each)
        rows["fetched"] = (
            f"{fetched['distinct']:,} messages of {fetched['known']:,} sessions in {fetched['elapsed_s']:.1f} s; "
            f"{filled['acknowledged'] - fetched['distinct']:,} missing, {fetched['repeated']:,} twice, "
            f"{fetched['disordered']:,} out of order")
        rows["disk at the end of that"] = mebi(disk_bytes(subject))
        settled = disk_when_settled(subject)
        rows["disk when compaction has come to rest"] = mebi(settled)
        rows["resident then"] = mebi(resident_bytes(subject.pid))
        subject.kill()
        begun = time.monotonic()
        subject.start()
        rows["kill -9 of the drained server, then until `ready`"] = f"{time.monotonic() - begun:.2f} s"
        rows["resident then, drained"] = mebi(resident_bytes(subject.pid))
    finally:
        subject.stop()
    return rows


def disk_when_settled(subject):
    """Disk use once it has not changed for three seconds, at most a minute."""
    deadline, still, last = time.time() + 60, 0, disk_bytes(subject)
    while still < 3 and time.time() < deadline:
        time.sleep(1)
        now = disk_bytes(subject)
        still, last = (still + 1, last) if now == last else (0, now)
    return last


def mebi(size):
    return f"{size / (1 << 20):,.0f} MiB"


def kept(arguments, binary):
    """QoS 1 messages to sessions that are away, acknowledged, then kill -9: how many are there afterwards?"""
    subjects = {"Milepost": lambda: milepost(binary)}
    if shutil.which("mosquitto"):
        # As installed: persistence on, everything else by default.
        subjects["Mosquitto"] = lambda: Mosquitto("persistence true\n")
    results = {}
    for round_number in range(arguments.rounds):
        for total in (20_000, 200_000):
            count = total // 200  # 200 each: below the 1,000 a session of Mosquitto holds by default
            for name, start in subjects.items():
                say(f"round {round_number + 1}: {total:,} messages, {name}")
                subject = start()
                try:
                    sessions(subject.server, "--count", count, "leave")
                    before = cpu_seconds(subject.pid)
                    filled = fill(subject, count, 200, arguments.connections)
                    cpu = cpu_seconds(subject.pid) - before
                    subject.kill()
                    subject.start()
                    fetched = sessions(subject.server, "--count", count, "--at-once", count, "fetch", "--each", 200,
                                       "--patience", 2)
                    results.setdefault((total, name), []).append({
                        "rate": filled["acknowledged_per_s"],
                        "per_cpu": filled["acknowledged"] / max(cpu, 0.01),
                        "acknowledged": filled["acknowledged"],
                        "missing": filled["acknowledged"] - fetched["distinct"],
                    })
                finally:
                    subject.stop()
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=100, help="publishers")
    parser.add_argument("--sessions", type=int, default=100, help="sessions of `cost`")
    parser.add_argument("--messages", type=int, default=200_000, help="messages of `cost` at QoS 1; half as many at QoS 2")
    parser.add_argument("--restart-sessions", type=int, default=100_000)
    parser.add_argument("--restart-messages", type=int, default=1_000_000)
    parser.add_argument("--only", choices=["cost", "restart", "kept"])
    arguments = parser.parse_args()
    binary = TARGET / "release/milepost"
    wanted = lambda name: arguments.only in (None, name)

    if wanted("cost"):
        print(f"{arguments.connections} publishers to {arguments.sessions} sessions, {PAYLOAD} B, 16 in flight per "
              f"publisher, {arguments.rounds} rounds, alternating: median (lowest to highest)\n")
        print("| QoS | receivers | | acknowledged/s | server CPU µs per message | ack p50 ms | p99 ms | missing | wrong |")
        print("|---|---|---|---|---|---|---|---|---|")
        for (qos, online, name), reports in sorted(cost(arguments, binary).items(), key=lambda row: (row[0][0], not row[0][1])):
            rate = spread([r["acknowledged"] / r["seconds"] for r in reports])
            cpu = [r["cpu_us"] for r in reports]
            p50 = statistics.median(r["latency"]["p50_ms"] for r in reports)
            p99 = statistics.median(r["latency"]["p99_ms"] for r in reports)
            print(f"| {qos} | {'online' if online else 'away'} | {name} | {rate} | {statistics.median(cpu):.1f} "
                  f"({min(cpu):.1f} to {max(cpu):.1f}) | {p50:.1f} | {p99:.1f} | {sum(r['missing'] for r in reports)} "
                  f"| {sum(r['wrong'] for r in reports)} |")
        print()
    if wanted("kept"):
        print(f"QoS 1 to stored sessions that are away, {PAYLOAD} B, {arguments.connections} publishers with 16 in flight, "
              f"then kill -9; {arguments.rounds} rounds: median (lowest to highest)\n")
        print("| messages | | stored/s | per server CPU second | acknowledged and missing afterwards |")
        print("|---|---|---|---|---|")
        for (total, name), reports in kept(arguments, binary).items():
            print(f"| {total:,} | {name} | {spread([r['rate'] for r in reports])} | {spread([r['per_cpu'] for r in reports])} "
                  f"| {spread([r['missing'] for r in reports])} |")
        print()
    if wanted("restart"):
        print(f"Restart with {arguments.restart_sessions:,} stored sessions and {arguments.restart_messages:,} queued "
              f"messages of {PAYLOAD} B\n")
        print("| | |")
        print("|---|---|")
        for name, value in restart(arguments, binary).items():
            print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
