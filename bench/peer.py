"""Mosquitto with certificates, where a bench needs more of the peer than plain TCP."""

import pathlib
import re
import shutil
import subprocess

from run import TARGET, Mosquitto, free_port


def certificates(folder, count, *prefixes):
    """A private CA, a server's certificate, and keys of `count` vehicles each; Mosquitto signs none itself."""
    names = [part for prefix in prefixes for part in ("--prefix", prefix)]
    subprocess.run([TARGET / "release/examples/certificates", *names, "--count", str(count), folder],
                   check=True, timeout=300)


class Certified(Mosquitto):
    """A plain listener for everybody and a TLS listener, with what `certificates` made in `keys`.

    As installed, but for persistence: what a client can make of the defaults is what is measured."""

    def __init__(self, keys, require_certificate=True, more="", prefix=(), environment=None):
        self.prefix, self.environment, self.keys = list(prefix), environment, pathlib.Path(keys)
        self.require_certificate, self.more, self.tls_port = require_certificate, more, free_port()
        super().__init__("")

    def prepare(self, folder):
        for name in ("ca.pem", "server.pem", "server.key.pem"):
            shutil.copy(self.keys / name, folder / name)
            # Readable for the user it becomes; nobody else trusts this CA.
            (folder / name).chmod(0o644)
        return (f"persistence false\n{self.more}listener {self.tls_port} 127.0.0.1\ncafile {folder}/ca.pem\n"
                f"certfile {folder}/server.pem\nkeyfile {folder}/server.key.pem\n"
                f"require_certificate {'true' if self.require_certificate else 'false'}\n")

    def tls(self):
        # By name: the certificate is for `localhost`.
        return f"localhost:{self.tls_port}"


def version():
    """Such as `Mosquitto 2.0.11`."""
    told = subprocess.run(["mosquitto", "-h"], stdout=subprocess.PIPE, text=True).stdout
    found = re.search(r"version (\S+)", told)
    return f"Mosquitto {found.group(1)}" if found else "Mosquitto"
