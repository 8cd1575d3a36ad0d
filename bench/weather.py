#!/usr/bin/env python3
"""Hostile weather: what well-behaved clients notice while others do their worst. See bench/README.md.

Every storm has a server of its own on loopback, is bounded in count and time, and ends what it started.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

from run import TARGET, Milepost, Mosquitto, say

FAKETIME = [pathlib.Path(folder) / "faketime/libfaketimeMT.so.1"
            for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib")]
DISK = 512  # MiB of the file system that gets full


class Skipped(Exception):
    """A storm that this machine cannot have."""


class Weathered(Milepost):
    """A server with a plain listener for everybody and a TLS listener that wants certificates."""

    def __init__(self, binary, more="", prefix=(), environment=None, disk=None):
        self.folder = tempfile.TemporaryDirectory(prefix="milepost-weather-")
        self.binary, self.listener, self.disk = binary, "mqtt", None
        # A panic that is caught is a line in the log; writing its backtrace would be half a gigabyte of debug symbols.
        self.prefix, self.environment = list(prefix), {**(environment or os.environ), "RUST_BACKTRACE": "0"}
        folder = pathlib.Path(self.folder.name)
        (folder / "milepost.toml").write_text(
            '[[listener]]\nprotocol = "mqtt"\nbind = "127.0.0.1:0"\n'
            '[[listener]]\nprotocol = "mqtts"\nbind = "127.0.0.1:0"\n'
            '[http]\nbind = "127.0.0.1:0"\n[sql]\nbind = "127.0.0.1:0"\n[access]\nanonymous = "allow-all"\n' + more)
        if disk:
            (folder / "data").mkdir()
            mount(folder / "data", disk)
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

    def bound(self):
        """The most memory the server says it may hold, MiB, if it says so."""
        found = re.search(r"memory[^\n]*?at most ([\d.,]+) ?(MiB|GiB)", self.log())
        if not found:
            return None
        return float(found.group(1).replace(",", "")) * (1024 if found.group(2) == "GiB" else 1)

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


class Peer(Mosquitto):
    """Mosquitto as installed, but for persistence: the storms that need neither certificates nor a disk."""

    def __init__(self, prefix=(), environment=None):
        self.prefix, self.environment = list(prefix), environment
        super().__init__("persistence false\n")

    def options(self):
        return ["--server", self.server, "--pid", self.pid]

    def bound(self):
        return None


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
        self.more, self.prefix, self.environment, self.disk, self.meanwhile = "", [], None, None, None
        if storm == "many-subscriptions":
            self.more = "[mqtt]\nmax_subscriptions = 200_000\n"
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
            clock = pathlib.Path(folder) / "clock"
            set_clock(clock, "+0")
            self.environment = {**os.environ, "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(clock),
                                "FAKETIME_NO_CACHE": "1", "DONT_FAKE_MONOTONIC": "1"}
            self.meanwhile = lambda _subject, lasts: turn_clock(clock, lasts)


def weather(arguments, binary, storm, peer):
    with tempfile.TemporaryDirectory(prefix="milepost-weather-") as folder:
        setting = Setting(storm, folder)
        if peer:
            if storm in ("half-handshake", "reconnect-mtls", "bad-credentials", "disk-full"):
                raise Skipped("needs certificates or a disk that the peer is not given")
            subject = Peer(setting.prefix, setting.environment)
        else:
            subject = Weathered(binary, setting.more, setting.prefix, setting.environment, setting.disk)
        try:
            return rage(arguments, storm, subject, setting)
        finally:
            subject.stop()


def rage(arguments, storm, subject, setting):
    command = [TARGET / "release/examples/weather", "--json", "--pairs", arguments.pairs, "--rate", arguments.rate,
               "--quiet", arguments.quiet, "--lasts", arguments.seconds, "--scale", arguments.scale,
               *subject.options(), storm]
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
    try:
        text = process.stdout.read()
        process.wait(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        listener.join()
        if meanwhile:
            meanwhile.join()
    if process.returncode not in (0, 1) or not text.strip():
        raise RuntimeError(f"the storm {storm} failed ({process.returncode}): {''.join(words).strip()}")
    report = json.loads(text)
    report["bound_mib"] = subject.bound()
    if subject.process.poll() is not None:
        report["troubles"].append("THE SERVER IS GONE")
    return report


def row(name, subject, report):
    def phase(phase):
        return f"{phase['p50_ms']:.1f} / {phase['p99_ms']:.1f} / {phase['max_ms']:.0f}"

    def mebi(key):
        return f"{report[key] / (1 << 20):,.0f}" if report[key] else "?"

    bound = f" of {report['bound_mib']:,.0f}" if report["bound_mib"] else ""
    met = ", ".join(f"{count:,} × {what}" for what, count in
                    sorted(report["met"].items(), key=lambda item: -item[1])[:4]) or "–"
    came = report["newcomers"]
    return (f"| {name} | {subject} | {phase(report['quiet'])} | {phase(report['during'])} | {phase(report['after'])} "
            f"| {report['lost']} | {report['disconnected']} | {came - report['turned_away']}/{came} "
            f"| {mebi('resident_quiet_bytes')} → {mebi('resident_storm_bytes')}{bound} | {met} |")


REFUSALS = re.compile(r"refused|dropped|timeout|throttled|slow|disconnects|overload|held_off|pending|stalled|handshake")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--milepost", type=pathlib.Path, default=TARGET / "release/milepost")
    parser.add_argument("--peer", choices=["mosquitto"], help="measures it beside, where the storm makes sense for it")
    parser.add_argument("--storm", action="append", help="only this one; may be given several times")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--rate", type=float, default=20, help="messages per second of each pair")
    parser.add_argument("--quiet", type=int, default=10, help="seconds before the storm")
    parser.add_argument("--seconds", type=int, default=20, help="seconds of storm")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the storms' counts")
    parser.add_argument("--json", type=pathlib.Path, help="writes all figures and metrics there")
    arguments = parser.parse_args()
    tool = TARGET / "release/examples/weather"
    storms = subprocess.run([tool, "--list"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    unknown = set(arguments.storm or []) - set(storms)
    if unknown:
        parser.error(f"there is no storm {', '.join(unknown)}; there are {', '.join(storms)}")
    if arguments.peer and not shutil.which("mosquitto"):
        parser.error("Mosquitto is not installed (package mosquitto)")

    print(f"{arguments.pairs} pairs (publisher, subscriber), QoS 1, {arguments.rate:g} messages/s each, 200 B; "
          f"{arguments.quiet} s quiet, {arguments.seconds} s storm, 5 s after; latency from when a message was due, "
          "p50 / p99 / max ms\n")
    print("| storm | | quiet | during | after | lost | disconnected | newcomers let in | resident MiB | the storm met |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    reports, harmed = {}, []
    for storm in arguments.storm or storms:
        for subject in ["Milepost"] + (["Mosquitto"] if arguments.peer else []):
            say(f"{storm}: {subject}")
            try:
                report = weather(arguments, arguments.milepost, storm, subject == "Mosquitto")
            except Skipped as reason:
                say(f"  skipped: {reason}")
                if subject == "Milepost":
                    print(f"| {storm} | {subject} | skipped: {reason} |" + " |" * 7, flush=True)
                continue
            except (RuntimeError, SystemExit) as error:
                say(f"  {error}")
                harmed.append(f"{storm}, {subject}: {error}")
                continue
            reports.setdefault(storm, {})[subject] = report
            say(f"  {report['did']}")
            for name, change in report["metrics"].items():
                if REFUSALS.search(name):
                    say(f"  {name} {change:+g}")
            print(row(storm, subject, report), flush=True)
            if subject == "Milepost" and (report["lost"] or report["disconnected"] or report["troubles"]):
                harmed.append(f"{storm}: {report['lost']} lost, {report['disconnected']} disconnected, {report['troubles']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(reports, indent=1))
    for line in harmed:
        say(f"HARM: {line}")
    sys.exit(1 if harmed else 0)


if __name__ == "__main__":
    main()
