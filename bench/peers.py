#!/usr/bin/env python3
"""Measures Milepost beside its peers, in turn, and prints one table. See bench/README.md.

Every broker has a process and a folder of its own for every run, on the loopback only, and is ended afterwards.
Without options that select, a base of scenarios and single variations of it; with them, every combination given.
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import brokers
from run import TARGET, say

TOOL = TARGET / "release/examples/peers"
SCENARIOS = {
    # name: what the generator is told, which scenario of it, what is counted
    "fan-in": ("fan-in", ["--publishers", 1000, "--readers", 4], "1,000 publishers to 4 readers of a shared subscription"),
    "fan-in-burst": ("fan-in", ["--publishers", 1000, "--readers", 4, "--burst", 16], "the same, 16 messages in a write"),
    "fan-in-deep": ("fan-in", ["--publishers", 1000, "--readers", 4, "--depth", 64], "fan-in, 64 under way of each"),
    "fan-out": ("fan-out", ["--publishers", 1, "--readers", 1000, "--depth", 16],
                "1 publisher to 1,000 readers, 16 under way"),
    "fan-out-deep": ("fan-out", ["--publishers", 1, "--readers", 1000, "--depth", 256], "the same, 256 under way"),
    "pairs": ("pairs", ["--publishers", 1000], "1,000 pairs"),
    "pairs-deep": ("pairs", ["--publishers", 1000, "--depth", 64], "the same, 64 under way of each"),
    "stored": ("pairs", ["--publishers", 1000, "--stored"], "1,000 pairs, readers' sessions stored, online"),
    "subscriptions": ("pairs", ["--publishers", 1000, "--subscriptions", 100_000],
                      "1,000 pairs beside 100,000 subscriptions"),
    "latency": ("pairs", ["--publishers", 100, "--rate", 5000], "100 pairs at 5,000/s: from due to received"),
    "requests": ("pairs", ["--publishers", 100, "--rate", 5000, "--requests", 200],
                 "200 requests/s beside 100 pairs at 5,000/s: round trip"),
    "storm": ("storm", ["--publishers", 64, "--blind"], "64 clients connect and leave"),
    "idle": ("idle", ["--publishers", 4000], "4,000 idle connections with one subscription"),
    "retained": ("retained", ["--readers", 4, "--messages", 10_000],
                 "10,000 retained messages to 4 readers, again and again"),
    "offline": ("offline", ["--publishers", 100, "--messages", 2000, "--burst", 16],
                "2,000 messages for each of 100 sessions that are away"),
}
FLOOR = ("fan-in", "fan-in-burst", "fan-in-deep", "fan-out", "fan-out-deep", "pairs", "pairs-deep")
CLOSED_LOOP = (*FLOOR, "stored", "subscriptions")
# With fewer messages under way each time, where a broker lost some.
ATTEMPTS = 4
TIMED = ("latency", "requests", "storm")


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is measured: one row for each broker."""

    scenario: str
    qos: int = 0
    payload: int = 200
    mqtt: str = "3.1.1"
    transport: str = "tcp"

    def words(self):
        proof = {"tcp": "TCP", "tls": "TLS", "mtls": "mTLS"}[self.transport]
        if self.scenario == "storm":
            return f"storm, {proof}, MQTT {self.mqtt}"
        if self.scenario == "idle":
            return f"idle, {proof}, MQTT {self.mqtt}"
        return f"{self.scenario}, QoS {self.qos}, {proof}, {self.payload} B, MQTT {self.mqtt}"

    def problem(self):
        """Why there is no such thing."""
        if self.scenario == "offline" and self.qos == 0:
            return "nothing waits at QoS 0"
        if self.transport == "mtls" and self.scenario not in ("storm", "idle"):
            return "only connections are measured over mTLS"
        return None


def base():
    """200 B, MQTT 3.1.1, TCP at QoS 0 and 1, TLS at QoS 1; and from there one thing changed at a time."""
    flows = (*FLOOR, "latency", "requests", "subscriptions")
    cells = [Cell(scenario, qos, transport=transport) for scenario in flows
             for qos, transport in ((0, "tcp"), (1, "tcp"), (1, "tls"))]
    cells += [dataclasses.replace(Cell(scenario), **change)
              for scenario in ("fan-in", "fan-out", "pairs")
              for change in ({"qos": 2}, {"payload": 16}, {"payload": 4096}, {"mqtt": "5"}, {"qos": 1, "mqtt": "5"})]
    cells += [Cell(scenario, qos) for scenario in ("stored", "offline") for qos in (1, 2)]
    cells += [Cell("retained", qos) for qos in (0, 1)]
    cells += [Cell(scenario, transport=transport) for scenario in ("storm", "idle") for transport in ("tcp", "tls", "mtls")]
    return cells


def selected(arguments):
    scenarios = arguments.scenario or []
    if "floor" in scenarios:
        scenarios = [one for one in scenarios if one != "floor"] + [one for one in FLOOR if one not in scenarios]
    chosen = (arguments.qos, arguments.payload, arguments.mqtt, arguments.transport)
    if not any(chosen):
        if arguments.scenario == ["floor"]:
            return [Cell(scenario, qos) for scenario in FLOOR for qos in (0, 1, 2)]
        return [cell for cell in base() if not scenarios or cell.scenario in scenarios]
    cells = []
    for scenario, qos, payload, mqtt, transport in itertools.product(
            scenarios or SCENARIOS, arguments.qos or [0], arguments.payload or [200],
            arguments.mqtt or ["3.1.1"], arguments.transport or ["tcp"]):
        if scenario in ("storm", "idle"):
            qos, payload = 0, 200  # neither is asked there
        cell = Cell(scenario, qos, payload, mqtt, transport)
        if cell.problem():
            say(f"left out: {cell.words()}: {cell.problem()}")
        elif cell not in cells:
            cells.append(cell)
    return cells


def subjects(arguments):
    wanted = [name for text in arguments.peers or [] for name in text.split(",")]
    if arguments.scenario == ["floor"] and not wanted:
        wanted = ["floor"]
    unknown = set(wanted) - {one.key for one in brokers.ALL}
    if unknown:
        raise SystemExit(f"there is no peer {', '.join(unknown)}; there are {', '.join(one.key for one in brokers.ALL)}")
    found = []
    for one in brokers.ALL:
        if wanted and one.key not in wanted:
            continue
        if one.found():
            found.append(one)
        else:
            say(f"not here: {one.name} ({one.program or 'make bench-tools'})")
    return found


def warm_up(arguments, kind):
    return kind.warm_up if arguments.warm_up is None else arguments.warm_up


def seconds_expected(arguments, kind, cell):
    """Of one run: start, connecting, warming up, the window, draining, and the end."""
    if cell.scenario == "idle":
        return 30 + (15 if cell.transport != "tcp" else 0)
    more = {"subscriptions": 6, "retained": 4, "offline": 6}.get(cell.scenario, 3)
    return arguments.seconds + warm_up(arguments, kind) + more


def run(arguments, kind, cell, certificates):
    """One run of one broker: its reports, or what went wrong."""
    prefix = ["taskset", "-c", arguments.broker_cpus] if arguments.broker_cpus else []
    outstanding = None
    for attempt in range(ATTEMPTS):
        subject = kind(brokers.Setting(cell.transport, cell.mqtt, certificates, prefix))
        try:
            reports = measure(arguments, subject, cell, outstanding)
        finally:
            subject.stop()
        lost = sum(report["lost"] for report in reports)
        refused = any(report["refused"] for report in reports)
        if not lost or refused or cell.scenario not in CLOSED_LOOP or attempt + 1 == ATTEMPTS:
            for report in reports:
                report["under_way"] = outstanding
            return reports
        # A broker that drops what it cannot keep up with is measured where it need not.
        under_way = outstanding or most_under_way(arguments, cell)
        outstanding = max(under_way // 4, option(cell, "--burst", 1))
        say(f"    {lost:,} lost of {under_way:,} under way; again with {outstanding:,}")
    raise AssertionError("the last attempt returns")


def option(cell, name, otherwise):
    """What the generator is told for an option of a scenario."""
    words = SCENARIOS[cell.scenario][1]
    return words[words.index(name) + 1] if name in words else otherwise


def without(words, name):
    return words[:words.index(name)] + words[words.index(name) + 2:] if name in words else words


def most_under_way(arguments, cell):
    depth = arguments.depth or option(cell, "--depth", 1)
    return option(cell, "--publishers", 1) * depth * option(cell, "--burst", 1)


def measure(arguments, subject, cell, outstanding):
    scenario, words, _ = SCENARIOS[cell.scenario]
    prefix = ["taskset", "-c", arguments.generator_cpus] if arguments.generator_cpus else []
    common = ["--qos", cell.qos, "--payload", cell.payload, "--mqtt", cell.mqtt, "--root", subject.root, *words]
    if arguments.depth and cell.scenario in CLOSED_LOOP:
        common = without(common, "--depth") + ["--depth", arguments.depth]
    common += ["--outstanding", outstanding] if outstanding else []
    common += ["--hybrid"] if arguments.hybrid else []

    def generate(*more):
        pids = [part for pid in subject.pids for part in ("--pid", pid)]
        command = [*prefix, TOOL, "measure", scenario, "--server", subject.server, *subject.door(), *common, *pids, *more]
        done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              timeout=600 + 2 * arguments.seconds, env={**os.environ, "RUST_BACKTRACE": "0"})
        if done.returncode:
            raise RuntimeError(" ".join(done.stderr.split())[:300] or f"the generator failed ({done.returncode})")
        return [json.loads(line) for line in done.stdout.splitlines()]

    subject.ready_for(generate)
    return generate("--seconds", arguments.seconds, "--warm-up", warm_up(arguments, subject))


HEAD = ["what", "broker", "per s", "per broker CPU s", "× Mosquitto", "p50 ms", "p99 ms", "p99.9 ms", "KiB per connection",
        "broker peak MiB", "generator µs each", "lost", "twice", "remarks"]


def spread(values, form="{:,.0f}"):
    """Median (lowest to highest), or only the one there is."""
    values = [value for value in values if value is not None]
    if not values:
        return "–"
    middle, low, high = (form.format(value) for value in (statistics.median(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def row(cell, kind, part, rounds, reference):
    """A row of the table. If any round was not sound there is no rate: what went wrong is shown instead."""
    name = cell.words() + (f": {part}" if part else "")
    bad = [r for r in rounds if r["per_s"] is None and r["memory"] is None]
    sound = [] if bad else rounds
    per_cpu = [r["per_cpu_s"] for r in sound if r["unit"] != "connections"]
    mine = statistics.median([value for value in per_cpu if value] or [math.nan])
    latency = [r["latency"] for r in sound if r["latency"] and cell.scenario in TIMED]
    remarks = sorted({trouble for r in rounds for trouble in r["troubles"]})
    refused = sum(r["refused"] for r in rounds)
    alien = sum(r["alien"] for r in rounds)
    remarks += [f"{refused:,} refused"] if refused else []
    remarks += [f"{alien:,} came that nobody sent"] if alien else []
    if bad and not remarks:
        remarks.append("twice at QoS " + str(cell.qos) if any(r["duplicated"] for r in bad) else
                       "LOST" if any(r["lost"] for r in bad) else "nothing came")
    asked = option(cell, "--rate", 0)
    if sound and asked and min(r["per_s"] for r in sound) < 0.95 * asked:
        remarks.append(f"does not keep up with {asked:,}/s")
    fewer = {r["under_way"] for r in rounds if r.get("under_way")}
    remarks += [f"at most {min(fewer):,} under way, it loses some of more"] if fewer else []
    return [
        name, kind.name,
        spread([r["per_s"] for r in sound if r["unit"] != "connections"]),
        spread(per_cpu),
        f"{mine / reference:.2f}" if reference and not math.isnan(mine) else "–",
        *(spread([one[key] for one in latency], "{:.2f}") for key in ("p50_ms", "p99_ms", "p999_ms")),
        spread([r["memory"]["each"] / 1024 for r in rounds if r["memory"]], "{:.1f}"),
        spread([r["peak_bytes"] / (1 << 20) for r in rounds if r["peak_bytes"]]),
        spread([r["generator_us_each"] for r in sound], "{:.2f}"),
        f"{sum(r['lost'] for r in rounds):,}", f"{sum(r['duplicated'] for r in rounds):,}", "; ".join(remarks) or "–",
    ]


def line(cells):
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"


def cell_rows(cell, results, failures):
    """All brokers' rows, Mosquitto's figures the reference of each part."""
    references = {}
    for part, rounds in results.get(brokers.Mosquitto, {}).items():
        values = [r["per_cpu_s"] for r in rounds]
        if all(values):
            references[part] = statistics.median(values)
    rows = []
    for kind, parts in results.items():
        for part, rounds in parts.items():
            rows.append(row(cell, kind, part, rounds, references.get(part)))
        if kind in failures and not parts:
            rows.append([cell.words(), kind.name, *["–"] * (len(HEAD) - 3), failures[kind]])
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", action="append", choices=[*SCENARIOS, "floor"],
                        help="only this one; `floor`: the bytes alone; may be given several times, as all of these")
    parser.add_argument("--qos", action="append", type=int, choices=[0, 1, 2])
    parser.add_argument("--payload", action="append", type=int, help="bytes")
    parser.add_argument("--mqtt", action="append", choices=["3.1.1", "5"])
    parser.add_argument("--transport", action="append", choices=["tcp", "tls", "mtls"])
    parser.add_argument("--peers", action="append", help="only these, such as milepost,mosquitto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="the measured window")
    parser.add_argument("--warm-up", type=float,
                        help="seconds before it [default: 1; 5 and 15 for virtual machines]")
    parser.add_argument("--depth", type=int, help="messages (or bursts) of one publisher under way, where nothing sets a rate"
                        " [default: as the scenario says]")
    parser.add_argument("--broker-cpus", help="such as 0 or 0,1: where brokers run")
    parser.add_argument("--generator-cpus", help="such as 1: where the generator runs")
    parser.add_argument("--hybrid", action="store_true",
                        help="offer X25519MLKEM768 too; brokers without it then do less than those with it")
    parser.add_argument("--json", type=pathlib.Path, help="writes all reports there")
    parser.add_argument("--list", action="store_true", help="says what would be measured, and how long it takes")
    arguments = parser.parse_args()
    if not TOOL.exists():
        parser.error("the generator is not built: make bench-peers")
    cells, kinds = selected(arguments), subjects(arguments)
    plan = []
    for cell in cells:
        takes_part = []
        for kind in kinds:
            fits = kind.scenarios is None or cell.scenario in kind.scenarios
            if fits and not kind.refuses(cell):
                takes_part.append(kind)
            elif fits:
                say(f"left out: {kind.name}: {cell.words()}: {kind.refuses(cell)}")
        if takes_part:
            plan.append((cell, takes_part))
    expected = arguments.rounds * sum(seconds_expected(arguments, kind, cell) for cell, some in plan for kind in some)
    runs = sum(arguments.rounds * len(some) for _, some in plan)
    say(f"{len(plan)} measurements of up to {len(kinds)} brokers, {arguments.rounds} rounds: {runs} runs, "
        f"about {expected / 60:.0f} min")
    if arguments.list:
        for cell, some in plan:
            print(f"{cell.words()}: {', '.join(kind.name for kind in some)}")
        return
    versions = {kind: kind.version() for kind in kinds}
    for kind in kinds:
        print(f"- {kind.name} {versions[kind]}: persistence: {kind.persistence}")
    print(f"\n{arguments.rounds} rounds, alternating, {arguments.seconds:g} s each: median (lowest to highest). "
          "Deliveries, stored messages or connections per second; where a message was lost there is no rate.\n")
    for name in dict.fromkeys(cell.scenario for cell, _ in plan):
        print(f"- {name}: {SCENARIOS[name][2]}")
    print()
    print(line(HEAD))
    print("|" + "---|" * len(HEAD), flush=True)
    kept, done, begun = [], 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-peers-") as folder:
        certificates = pathlib.Path(folder)
        subprocess.run([TOOL, "certificates", "--dir", certificates], check=True)
        certificates.chmod(0o755)
        for file in certificates.iterdir():
            file.chmod(0o644)  # keys of a CA that lives as long as this run; some brokers read them as another user
        for cell, some in plan:
            results, failures = {kind: {} for kind in some}, {}
            for number in range(arguments.rounds):
                for kind in some:
                    passed = time.monotonic() - begun
                    left = passed / done * (runs - done) if done else expected
                    say(f"[{done + 1}/{runs}, {left / 60:.0f} min left] {cell.words()}, round {number + 1}: {kind.name}")
                    done += 1
                    try:
                        reports = run(arguments, kind, cell, certificates)
                    except (RuntimeError, subprocess.SubprocessError, OSError) as error:
                        failures[kind] = " ".join(str(error).split())[:300]
                        say(f"    {failures[kind]}")
                        continue
                    for report in reports:
                        results[kind].setdefault(report["part"], []).append(report)
                        kept.append({**dataclasses.asdict(cell), "broker": kind.key, "version": versions[kind],
                                     "round": number + 1, **report})
            for cells_ in cell_rows(cell, results, failures):
                print(line(cells_), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    sys.exit(main())
