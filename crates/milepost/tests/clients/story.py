"""What the client programs have in common: arguments, one printed line per step, an end in time.

Output, on stdout:
    ok STEP                     a step that went as it must
    kept TOPIC BYTES HEAD       published below dt/ and acknowledged; HEAD: its first 16 bytes in hexadecimal
    done                        the last line of a program that did all of its steps
A step that does not: one line on stderr that says what was wanted and what came, and exit status 1.
"""

import argparse
import os
import queue
import signal
import ssl
import sys
import threading

# One answer of the server. Generous: the machine may be busy.
PATIENCE_S = 10
# All steps together; the test has a limit of its own, which says less.
WHOLE_S = 30


class Failed(Exception):
    """A step did not go as it must."""


class Story:
    """The steps of one client library over one transport."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.step = "start"

    def ok(self, step):
        print(f"ok {step}", flush=True)

    def kept(self, topic, payload):
        payload = payload.encode() if isinstance(payload, str) else bytes(payload)
        # A HEAD that is never empty keeps the columns.
        print(f"kept {topic} {len(payload)} {payload[:16].hex() or '-'}", flush=True)

    def topic(self, name):
        """A topic of this run only, among those that the device may use."""
        return f"dt/clients/{self.arguments.run}/{self.arguments.vehicle}/{name}"

    def client_id(self, name):
        return f"{self.arguments.run}-{name}"


def same(what, got, wanted):
    if got != wanted:
        raise Failed(f"{what}: wanted {short(wanted)}, got {short(got)}")


def short(value):
    text = repr(value)
    return text if len(text) < 200 else f"{text[:200]}… ({len(text)} characters)"


def take(what, inbox):
    """The next thing of a queue that another thread fills."""
    try:
        return inbox.get(timeout=PATIENCE_S)
    except queue.Empty:
        raise Failed(f"{what}: nothing came within {PATIENCE_S} s") from None


def tls_context(arguments):
    """Knows the server by the fleet CA, shows the device's certificate if there is one."""
    context = ssl.create_default_context(cafile=arguments.ca)
    if arguments.cert:
        context.load_cert_chain(arguments.cert, arguments.key)
    if arguments.tls:
        context.minimum_version = context.maximum_version = ssl.TLSVersion[arguments.tls]
    if arguments.alpn:
        context.set_alpn_protocols([arguments.alpn])
    return context


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--transport", required=True, choices=["mqtt", "mqtts", "ws", "wss", "quic"])
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--path", default="/mqtt", help="of WebSocket")
    parser.add_argument("--version", required=True, choices=["3.1.1", "5"])
    parser.add_argument("--run", required=True, help="a name for topics and client ids")
    parser.add_argument("--vehicle", required=True)
    parser.add_argument("--foreign", help="a vehicle whose topics this device must not use")
    parser.add_argument("--device", help="who the certificate is")
    parser.add_argument("--ca")
    parser.add_argument("--cert")
    parser.add_argument("--key")
    parser.add_argument("--alpn")
    parser.add_argument("--tls", choices=["TLSv1_2", "TLSv1_3"], help="this version and no other")
    return parser.parse_args()


def tell(steps):
    """Runs `steps(story)` and ends the process, also when a thread of a library hangs."""

    def late():
        print(f"error: not done after {WHOLE_S} s", file=sys.stderr, flush=True)
        os._exit(1)

    # A thread, because a signal waits for C code that does not come back.
    limit = threading.Timer(WHOLE_S, late)
    limit.daemon = True
    limit.start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    story = Story(arguments())
    try:
        steps(story)
    except Failed as failed:
        print(f"error: {failed}", file=sys.stderr, flush=True)
        os._exit(1)
    except BaseException as error:
        import traceback

        traceback.print_exc(limit=-4)
        print(f"error: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)
    print("done", flush=True)
    # Without waiting for what a library has still running.
    os._exit(0)
