#!/usr/bin/env python3
"""Hostile weather: what well-behaved clients notice while others do their worst. See bench/README.md.

Every storm has a server of its own on loopback, is bounded in count and time, and ends what it started.
"""

import argparse
import json
import os
import pathlib
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import peer
from run import TARGET, Milepost, say

FAKETIME = [pathlib.Path(folder) / "faketime/libfaketimeMT.so.1"
            for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib")]
DISK = 512  # MiB of the file system that gets full
MIB = 1 << 20
OVERHEAD = 5  # seconds to start a server, prepare a storm, wait for the last messages and stop, on average
PATIENCE = 600  # seconds that a storm may take to prepare and to end, beyond those that were asked for
# Storms that the peer cannot have.
NOT_THE_PEER = {"disk-full": "it answers before it has anything on disk"}
# Small limits, so that all of them are reached within seconds, and the sum is small. Retained messages count as
# stored ones, too, and shall not take all the room there is.
SMALL = """[mqtt]
max_connections = 2_000
max_sessions = 1_500
max_handshakes = 64
max_queue_memory = "16MiB"
max_read_memory = "16MiB"
max_stored_bytes = "32MiB"
max_retained = 20_000
max_retained_bytes = "16MiB"
[lake]
max_hot = "8MiB"
[log]
partitions = 1
"""
SMALL_SQL = {"MILEPOST__SQL__MAX_MEMORY": "16MiB"}
# The parts of the bound that this storm fills.
FILLED = ("connections", "answers", "handshakes", "incomplete packets", "queues of connected clients", "sessions",
          "stored messages", "retained messages", "handover between workers", "buffers of workers", "TLS sessions")


class Skipped(Exception):
    """A storm that this machine cannot have."""


class Failed(Exception):
    """A storm that came to no figures."""


class Weathered(Milepost):
    """A server with a plain listener for everybody and a TLS listener that wants certificates, or takes them."""

    def __init__(self, binary, setting):
        self.folder = tempfile.TemporaryDirectory(prefix="milepost-weather-")
        self.binary, self.listener, self.disk, self.prefix = binary, "mqtt", None, setting.prefix
        self.gauges = {}  # the most that was seen of them
        # A panic that is caught is a line in the log; writing its backtrace would be half a gigabyte of debug symbols.
        self.environment = {**(setting.environment or os.environ), **setting.keys, "RUST_BACKTRACE": "0"}
        folder = pathlib.Path(self.folder.name)
        auth = "" if setting.require_certificate else 'auth = ["x509", "anonymous"]\n'
        (folder / "milepost.toml").write_text(
            '[[listener]]\nprotocol = "mqtt"\nbind = "127.0.0.1:0"\n'
            f'[[listener]]\nprotocol = "mqtts"\nbind = "127.0.0.1:0"\n{auth}'
            '[http]\nbind = "127.0.0.1:0"\n[sql]\nbind = "127.0.0.1:0"\n[access]\nanonymous = "allow-all"\n'
            + setting.more)
        if setting.disk:
            (folder / "data").mkdir()
            mount(folder / "data", setting.disk)
            self.disk = folder / "data"
        try:
            self.start()
        except BaseException:
            self.unmount()
            raise

    def options(self):
        port = self.addresses["mqtts"].rsplit(":", 1)[1]
        return ["--server", self.server, "--tls", f"localhost:{port}", "--api", self.api,
                "--metrics", f"{self.api}/metrics", "--pid", self.pid]

    def printed_bound(self):
        """The most memory the server says it may hold when it starts, and how finely it says so, bytes."""
        found = re.search(r"^memory: at most ([\d.,]+) (MiB|GiB)", self.log(), re.M)
        if not found:
            return None
        unit = MIB << 10 if found.group(2) == "GiB" else MIB
        return float(found.group(1).replace(",", "")) * unit, 0.06 * unit

    def unmount(self):
        if self.disk:
            subprocess.run(["umount", self.disk], check=False)
            self.disk = None

    def stop(self):
        try:
            self.end()
        finally:
            self.unmount()
        self.folder.cleanup()


class Peer(peer.Certified):
    """Mosquitto."""

    def __init__(self, keys, setting):
        super().__init__(keys, setting.require_certificate, prefix=setting.prefix, environment=setting.environment)

    def options(self):
        return ["--server", self.server, "--tls", self.tls(), "--credentials", self.keys, "--pid", self.pid]


def mount(folder, mebibytes):
    if os.geteuid() != 0:
        raise Skipped("mounting a small file system needs root")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}M", "tmpfs", folder],
                          stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise Skipped(f"cannot mount a small file system: {done.stderr.strip()}")


def fill_and_free(subject, lasts):
    """A quarter into the storm the disk is full, at three quarters there is room again."""
    filler = subject.disk / "filler"
    time.sleep(lasts / 4)
    size, step = 0, DISK << 20
    with filler.open("wb") as file:
        while step >= 4096:  # half as much again and again, for what cannot be had whole is not had at all
            try:
                os.posix_fallocate(file.fileno(), size, step)
                size += step
            except OSError:
                step //= 2
    say(f"  the disk is full ({size >> 20} MiB of filler)")
    time.sleep(lasts / 2)
    filler.unlink()
    say("  the disk has room again")


def watch_gauges(subject, lasts):
    """What is counted in bytes, once a second: that the small limits were reached must be seen, not hoped."""
    until = time.monotonic() + lasts
    while time.monotonic() < until and isinstance(subject, Weathered):
        try:
            with urllib.request.urlopen(subject.api + "/metrics", timeout=10) as answer:
                text = answer.read().decode()
        except OSError:
            return  # gone, and that is told elsewhere
        for name, value in re.findall(r"^milepost_mqtt_(\w+_bytes) (\d+)$", text, re.M):
            subject.gauges[name] = max(subject.gauges.get(name, 0), int(value))
        time.sleep(1)


def turn_clock(clock, lasts):
    """An hour forth, a day back, and right again."""
    for offset in ("+3600", "-86400", "+0"):
        time.sleep(lasts / 4)
        set_clock(clock, offset)
        say(f"  the clock is at {offset} s")


def set_clock(clock, offset):
    fresh = clock.with_suffix(".new")
    fresh.write_text(f"{offset}\n")
    fresh.rename(clock)


class Setting:
    """How the server is started for a storm, and what is done to it meanwhile."""

    def __init__(self, storm, folder):
        # Configuration of ours, and keys of it that go by the environment. The peer is left as it is installed.
        self.more, self.keys = "", {}
        self.require_certificate = True
        self.prefix, self.environment, self.disk, self.meanwhile = [], None, None, None
        if storm == "many-subscriptions":
            self.more = "[mqtt]\nmax_subscriptions = 200_000\n"
        if storm == "memory-limit":
            self.more, self.keys, self.require_certificate = SMALL, SMALL_SQL, False
            self.meanwhile = watch_gauges
        if storm == "disk-full":
            self.disk, self.meanwhile = DISK, fill_and_free
        if storm == "files-exhausted":
            if not shutil.which("prlimit"):
                raise Skipped("there is no prlimit (util-linux)")
            self.prefix = ["prlimit", "--nofile=1000:1000"]
        if storm == "clock-jump":
            library = next((path for path in FAKETIME if path.exists()), None)
            if not library:
                raise Skipped("there is no libfaketime (package faketime)")
            os.chmod(folder, 0o755)  # the peer reads the clock as a user of its own
            clock = pathlib.Path(folder) / "clock"
            set_clock(clock, "+0")
            self.environment = {**os.environ, "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(clock),
                                "FAKETIME_NO_CACHE": "1", "DONT_FAKE_MONOTONIC": "1"}
            self.meanwhile = lambda _subject, lasts: turn_clock(clock, lasts)


def weather(arguments, storm, keys):
    """One storm at a server of its own: ours, or with `keys` the peer."""
    with tempfile.TemporaryDirectory(prefix="milepost-weather-") as folder:
        setting = Setting(storm, folder)
        try:
            subject = Peer(keys, setting) if keys else Weathered(arguments.milepost, setting)
        except SystemExit as error:
            raise Failed(str(error)) from error
        try:
            report = rage(arguments, storm, subject, setting)
            if not keys:
                hold_to_its_word(arguments, subject, report)
            return report
        finally:
            subject.stop()


def rage(arguments, storm, subject, setting):
    command = [TARGET / "release/examples/weather", "--json", "--pairs", arguments.pairs, "--rate", arguments.rate,
               "--quiet", arguments.quiet, "--lasts", arguments.seconds, "--after", arguments.after,
               "--scale", arguments.scale, *subject.options(),
               *(["--bound", arguments.bound] if arguments.bound and isinstance(subject, Weathered) else []), storm]
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    words, meanwhile = [], None

    def listen():
        nonlocal meanwhile
        for line in process.stderr:
            if line == "storm\n" and setting.meanwhile:
                meanwhile = threading.Thread(target=setting.meanwhile, args=(subject, arguments.seconds))
                meanwhile.start()
            elif line not in ("prepared\n", "storm\n", "after\n"):
                words.append(line)

    listener = threading.Thread(target=listen)
    listener.start()
    overdue = threading.Timer(arguments.quiet + arguments.seconds + arguments.after + PATIENCE, process.kill)
    overdue.start()
    try:
        text = process.stdout.read()
        process.wait(timeout=60)
    finally:
        overdue.cancel()
        if process.poll() is None:
            process.kill()
            process.wait()
        listener.join()
        if meanwhile:
            meanwhile.join()
    death = died(subject)
    if process.returncode not in (0, 1) or not text.strip():
        why = "".join(words).strip() or f"the generator ended with {process.returncode}"
        raise Failed(f"{death}; {why}" if death else why)
    report = json.loads(text)
    if death:
        report["troubles"].append(death)
    return report


def died(subject):
    """How the server ended, if it did; its last words go to stderr."""
    try:
        code = subject.process.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        return None
    for line in subject.log().splitlines()[-5:]:
        say(f"  its last words: {line}")
    return "THE SERVER DIED (" + (f"signal {-code}" if code < 0 else f"exit {code}") + ")"


def hold_to_its_word(arguments, subject, report):
    """Whether the server kept to its memory is the generator's verdict; whether it printed that bound is ours."""
    report["gauges"] = subject.gauges
    if report["exceeds_bound"]:
        report["troubles"].append(f"{report['resident_highest_bytes'] / MIB:,.0f} MiB resident EXCEED THE BOUND of "
                                  f"{report['bound_bytes'] / MIB:,.0f} MiB")
    printed = subject.printed_bound()
    if not report["bound_bytes"] or not report["resident_highest_bytes"] or not printed:
        report["troubles"].append("resident memory or its bound is not known")
    elif not arguments.bound and abs(printed[0] - report["bound_bytes"]) > printed[1]:
        report["troubles"].append(f"it prints a bound of {printed[0] / MIB:,.0f} MiB, and its metrics add up to "
                                  f"{report['bound_bytes'] / MIB:,.0f}")


def spread(values, form="{:.1f}"):
    """Median (lowest to highest); of one, or of equal ones, only that."""
    low, middle, high = (form.format(value) for value in (min(values), statistics.median(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def row(storm, subject, rounds):
    def each(key):
        return [report[key] for report in rounds]

    def phase(name):
        phases = each(name)
        p50 = statistics.median(phase["p50_ms"] for phase in phases)
        return f"{p50:.1f} / {spread([phase['p99_ms'] for phase in phases])} / {max(phase['max_ms'] for phase in phases):.0f}"

    def mebi(key, middle):
        known = [value / MIB for value in each(key) if value]
        return f"{middle(known):,.0f}" if known else "?"

    late = [phase["late_p99_ms"] for phase in each("during")]
    met = {}
    for report in rounds:
        for what, count in report["met"].items():
            met.setdefault(what, []).append(count)
    most = sorted(met.items(), key=lambda item: -sum(item[1]))[:8 if storm == "memory-limit" else 4]
    met = ", ".join(f"{sum(counts) // len(rounds):,} × {what}" for what, counts in most) or "–"
    came, away = sum(each("newcomers")), sum(each("turned_away"))
    troubles = sorted({trouble for report in rounds for trouble in report["troubles"]})
    return (f"| {storm} | {subject} | {phase('quiet')} | {phase('during')} | {phase('after')} | {spread(late)} "
            f"| {sum(each('lost'))}, {sum(each('disconnected'))} | {came - away}/{came} "
            f"| {mebi('resident_quiet_bytes', statistics.median)} → {mebi('resident_highest_bytes', max)} "
            f"| {mebi('bound_bytes', min) if any(each('bound_bytes')) else '–'} "
            f"| {grown(storm, rounds)}{met}{''.join(f'; **{trouble}**' for trouble in troubles)} |")


def grown(storm, rounds):
    """Where every limit is small: what the storm made of the memory, beside the parts of the bound that it fills."""
    if storm != "memory-limit" or not rounds[0]["bound_parts"]:
        return ""
    growth = max(report["resident_highest_bytes"] - report["resident_quiet_bytes"] for report in rounds)
    filled = sum(rounds[0]["bound_parts"].get(part, 0) for part in FILLED)
    return f"grew by {growth / MIB:,.0f} MiB, the parts it fills come to {filled / MIB:,.0f}; "


COLUMNS = ["storm", "", "quiet, ms", "while it storms, ms", "after, ms", "generator late, p99 ms", "lost, cut off",
           "newcomers let in", "resident, MiB", "at most, MiB", "the storm met, per round"]
REFUSALS = re.compile(r"refused|dropped|timeout|throttled|slow|disconnects|overload|held_off|pending|stalled|handshake")


class Progress:
    """How far it is, a line for each run."""

    def __init__(self, runs, seconds_each):
        self.runs, self.each, self.done, self.begun = runs, seconds_each, 0, time.monotonic()
        say(f"{runs} runs, about {self.clock(runs * seconds_each)} min")

    def next(self, what):
        passed = time.monotonic() - self.begun
        each = passed / self.done if self.done > 3 else self.each
        self.done += 1
        left = each * (self.runs - self.done + 1)
        say(f"[{self.done}/{self.runs}, {self.clock(passed)} min, about {self.clock(left)} left] {what}")

    @staticmethod
    def clock(seconds):
        return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--milepost", type=pathlib.Path, default=TARGET / "release/milepost")
    parser.add_argument("--peer", choices=["mosquitto"], help="measures it beside, where the storm makes sense for it")
    parser.add_argument("--storm", action="append", help="only this one; may be given several times")
    parser.add_argument("--rounds", type=int, default=3, help="of each storm, ours and the peer in turn")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--rate", type=float, default=20, help="messages per second of each pair")
    parser.add_argument("--quiet", type=int, default=3, help="seconds before the storm")
    parser.add_argument("--seconds", type=int, default=6, help="seconds of storm")
    parser.add_argument("--after", type=int, default=2, help="seconds after it")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the storms' counts")
    parser.add_argument("--bound", type=int, help="MiB that Milepost may use at most, instead of what it prints")
    parser.add_argument("--json", type=pathlib.Path, help="writes all figures and metrics there")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds: at least 1")
    tool = TARGET / "release/examples/weather"
    storms = subprocess.run([tool, "--list"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    unknown = set(arguments.storm or []) - set(storms)
    if unknown:
        parser.error(f"there is no storm {', '.join(unknown)}; there are {', '.join(storms)}")
    if arguments.peer and not shutil.which("mosquitto"):
        parser.error("Mosquitto is not installed (package mosquitto)")
    # All the files that may be had, for the peer, too: it does not ask for them itself.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="milepost-weather-keys-") as keys:
        subjects = {"Milepost": None}
        if arguments.peer:
            peer.certificates(keys, 500, "weather")
            subjects[peer.version()] = keys
        sys.exit(run(arguments, arguments.storm or storms, subjects))


def run(arguments, storms, subjects):
    print(f"{arguments.pairs} pairs (publisher, subscriber), QoS 1, {arguments.rate:g} messages/s each, 200 B; "
          f"{arguments.quiet} s quiet, {arguments.seconds} s storm, {arguments.after} s after; {arguments.rounds} rounds, "
          "alternating. Latency from when a message was due: p50 / p99 / max ms; of the rounds the median (lowest to "
          "highest), of the maxima the highest. Resident: median while quiet → highest ever\n")
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    runs = arguments.rounds * sum(1 for storm in storms for keys in subjects.values()
                                  if not (keys and storm in NOT_THE_PEER))
    progress = Progress(runs, arguments.quiet + arguments.seconds + arguments.after + OVERHEAD)
    reports, harmed = {}, []
    for storm in storms:
        rounds, instead = {subject: [] for subject in subjects}, {}
        for number in range(arguments.rounds):
            for subject, keys in subjects.items():
                if keys and storm in NOT_THE_PEER:
                    instead[subject] = f"not measured: {NOT_THE_PEER[storm]}"
                    continue
                progress.next(f"{storm}: {subject}, round {number + 1}")
                try:
                    report = weather(arguments, storm, keys)
                except Skipped as reason:
                    instead[subject] = f"skipped: {reason}"
                    say(f"  {instead[subject]}")
                    continue
                except Failed as error:
                    instead[subject] = f"**failed in round {number + 1}**: {' '.join(str(error).split())}"
                    say(f"  {error}")
                    if not keys:
                        harmed.append(f"{storm}, round {number + 1}: {error}")
                    continue
                rounds[subject].append(report)
                tell(report)
                if not keys and (report["lost"] or report["disconnected"] or report["troubles"]):
                    harmed.append(f"{storm}, round {number + 1}: {report['lost']} lost, {report['disconnected']} "
                                  f"disconnected; {'; '.join(report['troubles'])}")
        for subject in subjects:
            if rounds[subject]:
                print(row(storm, subject, rounds[subject]), flush=True)
            if subject in instead:
                print(f"| {storm} | {subject} | {instead[subject]} |" + " |" * (len(COLUMNS) - 3), flush=True)
        reports[storm] = rounds
        if arguments.json:
            arguments.json.write_text(json.dumps(reports, indent=1))
    for line in harmed:
        say(f"HARM: {line}")
    return 1 if harmed else 0


def tell(report):
    say(f"  {report['did']}")
    for name, change in report["metrics"].items():
        if REFUSALS.search(name):
            say(f"  {name} {change:+g}")
    for name, most in report.get("gauges", {}).items():
        say(f"  {name} reached {most / MIB:,.1f} MiB")
    for trouble in report["troubles"]:
        say(f"  {trouble}")


if __name__ == "__main__":
    main()
