"""The brokers that `peers.py` measures: how each is found, configured and started. See bench/README.md.

Each listens on one free port of the loopback, lets anybody in (or, over mTLS, whoever shows a certificate of
the bench's CA), and has its bounds on queues lifted as far as it lets them be, so that nothing is lost. What is
not named here is as installed.
"""

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from run import TARGET, Milepost, free_port

TOOLS = TARGET / "peers"
PATIENCE = 120  # seconds for a broker to listen: some run in a virtual machine


def find(name):
    """On the PATH, where Debian puts daemons, or where `make bench-peers-setup` puts them."""
    places = [os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", str(TOOLS / "bin")]
    return shutil.which(name, path=os.pathsep.join(places))


def first_line(command, pattern=r"\d+\.\d+[\w.+-]*"):
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "?"
    found = re.search(pattern, done.stdout)
    return found.group(0) if found else "?"


def family(pid):
    """A process and all that came of it."""
    parents = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # gone meanwhile
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, open_ = [], [pid]
    while open_:
        one = open_.pop()
        found.append(one)
        open_ += parents.get(one, [])
    return found


class Setting:
    """What a broker is started for."""

    def __init__(self, transport, mqtt, certificates, prefix=()):
        self.transport, self.mqtt, self.certificates, self.prefix = transport, mqtt, certificates, list(prefix)

    def file(self, name):
        return self.certificates / name


class Broker:
    """One of the peers. `refuses` says what it cannot do, in words, or nothing."""

    key, name, program = "", "", ""
    persistence = "none"
    root = "bench"  # what topics begin with
    scenarios = None  # only these, if it is for some only
    warm_up = 1  # seconds

    def __init__(self, setting):
        self.setting = setting
        self.temporary = tempfile.TemporaryDirectory(prefix=f"bench-{self.key}-", ignore_cleanup_errors=True)
        self.folder = pathlib.Path(self.temporary.name)
        os.chmod(self.folder, 0o777)  # some give up root for a user of their own
        self.port = free_port()
        try:
            self.start()
        except BaseException:
            self.temporary.cleanup()
            raise

    @classmethod
    def found(cls):
        return find(cls.program) is not None

    @classmethod
    def version(cls):
        return first_line([find(cls.program), "--version"])

    @classmethod
    def refuses(cls, cell):
        return None

    def configure(self):
        """Writes what it needs below `folder`; the command, and what its environment has besides."""
        raise NotImplementedError

    def start(self):
        command, environment = self.configure()
        self.log = self.folder / "output"
        with self.log.open("w") as log:
            # A session of its own: what it starts is ended with it.
            self.process = subprocess.Popen(
                [str(part) for part in [*self.setting.prefix, *command]], stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, cwd=self.folder, env={**os.environ, **environment}, start_new_session=True)
        deadline = time.time() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                break
            except OSError:
                if self.process.poll() is not None or time.time() > deadline:
                    text = self.log.read_text(errors="replace")[-2000:]
                    self.stop()
                    raise RuntimeError(f"{self.name} did not start: {text}") from None
                time.sleep(0.02)
        self.pids = family(self.process.pid)

    @property
    def server(self):
        return f"localhost:{self.port}"

    def door(self):
        """How the generator comes in."""
        files = self.setting.file
        options = [] if self.setting.transport == "tcp" else ["--ca", files("ca.pem")]
        if self.setting.transport == "mtls":
            options += ["--certificate", files("client.pem"), "--key", files("client.key")]
        return options

    def ready_for(self, measure):
        """What has to be done before it is measured; `measure` runs the generator."""

    def stop(self):
        for how in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, how)
            except ProcessLookupError:
                pass
            try:
                self.process.wait(timeout=30)
                break
            except subprocess.TimeoutExpired:
                continue
        self.temporary.cleanup()


class Ours(Milepost):
    """Milepost, as released, with the room in its queues that `sessions.py` gives it."""

    key, name, persistence = "milepost", "Milepost", "stored sessions, retained: fsync before the answer"
    root, scenarios, warm_up, mqtt = "bench", None, 1, ()
    binary_ = TARGET / "release/milepost"

    def __init__(self, setting):
        self.setting, self.prefix = setting, setting.prefix
        self.folder = tempfile.TemporaryDirectory(prefix=f"bench-{self.key}-")
        secure = setting.transport != "tcp"
        self.binary, self.listener = self.binary_, "mqtts" if secure else "mqtt"
        lines = ["[[listener]]", f'protocol = "{self.listener}"', 'bind = "127.0.0.1:0"']
        if secure:
            lines += ["[[listener.certificate]]", f'chain = "{setting.file("server.pem")}"',
                      f'key = "{setting.file("server.key")}"']
        if setting.transport == "mtls":
            # Certificates of its own fleet: they are all that it lets in. So is the server's, whose CA comes with them.
            lines = lines[:3]
        elif secure:
            lines.insert(3, 'auth = ["anonymous"]')
        lines += ["[http]", 'bind = "127.0.0.1:0"', "[sql]", 'bind = "127.0.0.1:0"',
                  "[mqtt]", "max_queued = 10_000_000", 'max_queued_bytes = "8GiB"', 'max_queue_memory = "8GiB"', *self.mqtt]
        # Anybody may come, and come again: that is what is measured.
        lines += ["[hold_off]", 'lasts = "off"']
        if setting.transport != "mtls":
            lines += ["[access]", 'anonymous = "allow-all"']
        (pathlib.Path(self.folder.name) / "milepost.toml").write_text("\n".join(lines) + "\n")
        self.start()

    @classmethod
    def found(cls):
        return cls.binary_.exists()

    @classmethod
    def version(cls):
        return first_line([cls.binary_, "--version"])

    @classmethod
    def refuses(cls, cell):
        return None

    def start(self):
        try:
            super().start()
        except SystemExit as error:
            raise RuntimeError(str(error)) from None
        self.pids = [self.pid]
        self.server = f"localhost:{self.server.rsplit(':', 1)[1]}"

    def door(self):
        if self.setting.transport == "mtls":
            return ["--api", self.api, "--credentials", f"{self.folder.name}/keys"]
        return [] if self.setting.transport == "tcp" else ["--ca", self.setting.file("ca.pem")]

    def ready_for(self, measure):
        if self.setting.transport == "mtls":
            # Certificates are made in a life of their own: what signing leaves in memory must not be there.
            measure("--seconds", 0.1, "--warm-up", 0)
            self.restart()


class OursDurable(Ours):
    """Every message is in the event log, on disk, before it is acknowledged, and then in the lake."""

    key, name, persistence = "milepost-durable", "Milepost, durable ingest", "every message: event log, fsync; lake"
    root, scenarios = "dt/bench", ("fan-in", "fan-in-burst", "fan-in-deep")

    @classmethod
    def refuses(cls, cell):
        return None if cell.qos else "at QoS 0 nothing is promised"


class OursUnsynced(Ours):
    """Stored sessions that do not wait for the disk: what durability costs."""

    key, name, persistence = "milepost-unsynced", "Milepost, no fsync", "as Milepost, without waiting for the disk"
    scenarios = ("stored", "offline")
    mqtt = ('durability = "none"',)


class Mosquitto(Broker):
    key, name, program = "mosquitto", "Mosquitto", "mosquitto"
    persistence = "in memory, written every 30 min"

    @classmethod
    def version(cls):
        return first_line([find(cls.program), "-h"])

    def configure(self):
        files, lines = self.setting.file, [f"listener {self.port} 127.0.0.1"]
        if self.setting.transport != "tcp":
            lines += [f"certfile {files('server.pem')}", f"keyfile {files('server.key')}"]
        if self.setting.transport == "mtls":
            lines += [f"cafile {files('ca.pem')}", "require_certificate true"]
        lines += ["allow_anonymous true", "persistence true", f"persistence_location {self.folder}/",
                  "max_inflight_messages 0", "max_queued_messages 0", "set_tcp_nodelay true", "log_type error"]
        config = self.folder / "mosquitto.conf"
        config.write_text("\n".join(lines) + "\n")
        return [find(self.program), "-c", config], {}


class Nats(Broker):
    key, name, program = "nats", "NATS", "nats-server"
    persistence = "JetStream files for QoS 1 and retained, synced every 2 min"

    @classmethod
    def refuses(cls, cell):
        if cell.mqtt == "5":
            return "it speaks MQTT 3.1.1"
        if cell.qos == 2:
            return "it has no QoS 2"
        if cell.scenario.startswith("fan-in"):
            return "it has no shared subscriptions of MQTT"
        return None

    def configure(self):
        files, tls = self.setting.file, ""
        if self.setting.transport != "tcp":
            tls = (f'tls {{ cert_file: "{files("server.pem")}", key_file: "{files("server.key")}", '
                   f'ca_file: "{files("ca.pem")}", timeout: 30'
                   + (", verify: true" if self.setting.transport == "mtls" else "") + " }")
        config = self.folder / "nats.conf"
        config.write_text(
            f'host: "127.0.0.1"\nport: {free_port()}\nserver_name: bench\nmax_connections: 200000\n'
            f"max_pending: 4GB\nmax_payload: 8MB\nmax_subscriptions: 0\n"
            f'jetstream {{ store_dir: "{self.folder}/js", max_memory_store: 4GB, max_file_store: 8GB }}\n'
            f'mqtt {{ host: "127.0.0.1", port: {self.port}, max_ack_pending: 65535\n{tls} }}\n')
        return [find(self.program), "-c", config], {}


class Rumqttd(Broker):
    key, name, program = "rumqttd", "rumqttd", "rumqttd"
    persistence = "none: a log in memory, of 10 segments of 100 MiB for each filter"

    def configure(self):
        version = "v5" if self.setting.mqtt == "5" else "v4"
        files, tls = self.setting.file, ""
        if self.setting.transport != "tcp":
            ca = f'capath = "{files("ca.pem")}"\n' if self.setting.transport == "mtls" else ""
            tls = f'[{version}.1.tls]\n{ca}certpath = "{files("server.pem")}"\nkeypath = "{files("server.key")}"\n'
        config = self.folder / "rumqttd.toml"
        config.write_text(
            "id = 0\n[router]\nid = 0\nmax_connections = 30000\nmax_outgoing_packet_count = 200\n"
            "max_segment_size = 104857600\nmax_segment_count = 10\n"
            f'[{version}.1]\nname = "bench"\nlisten = "127.0.0.1:{self.port}"\nnext_connection_delay_ms = 0\n'
            f"[{version}.1.connections]\nconnection_timeout_ms = 60000\nmax_payload_size = 1048576\n"
            f"max_inflight_count = 1000\ndynamic_filters = true\n{tls}")
        return [find(self.program), "-q", "-c", config], {}


class Rmqtt(Broker):
    key, name, program = "rmqtt", "RMQTT", "rmqttd"
    persistence = "in memory"

    def configure(self):
        kind = "tcp" if self.setting.transport == "tcp" else "tls"
        files, listener = self.setting.file, f"listener.{kind}.bench"
        lines = [f'{listener}.addr = "127.0.0.1:{self.port}"', f"{listener}.enable = true",
                 f"{listener}.allow_anonymous = true", f"{listener}.min_keepalive = 0",
                 f"{listener}.allow_zero_keepalive = true", f"{listener}.max_connections = 200000",
                 f"{listener}.max_handshaking_limit = 10000", f"{listener}.backlog = 4096",
                 f"{listener}.max_inflight = 65535", f"{listener}.max_mqueue_len = 10000000",
                 f'{listener}.mqueue_rate_limit = "100000000,1s"', f"{listener}.max_awaiting_rel = 0"]
        if kind == "tls":
            lines += [f'{listener}.cert = "{files("server.pem")}"', f'{listener}.key = "{files("server.key")}"']
        if self.setting.transport == "mtls":
            lines += [f"{listener}.cross_certificate = true", f'{listener}.client_ca_certs = "{files("ca.pem")}"']
        plugins = self.folder / "plugins"
        plugins.mkdir(exist_ok=True)
        # Not its HTTP API, which has a port of its own; and what keeps retained messages.
        (plugins / "rmqtt-retainer.toml").write_text(
            'storage.type = "ram"\nmax_retained_messages = 0\nmax_payload_size = "1MB"\nretained_message_ttl = "0m"\n')
        (plugins / "rmqtt-acl.toml").write_text('disconnect_if_pub_rejected = true\nrules = [["allow", "all"]]\n')
        lines = ['node.id = 1', f'rpc.server_addr = "127.0.0.1:{free_port()}"', 'log.to = "console"',
                 'log.level = "error"', f'plugins.dir = "{plugins}/"', 'plugins.default_startups = ["rmqtt-retainer"]',
                 'plugins.disabled_default_startups = ["rmqtt-http-api"]', *lines]
        config = self.folder / "rmqtt.toml"
        config.write_text("\n".join(lines) + "\n")
        return [find(self.program), "-f", config], {}


class HiveMq(Broker):
    key, name, program = "hivemq", "HiveMQ CE", "java"
    persistence = "files, not synced for each message"
    jars = TOOLS / "hivemq/lib"
    warm_up = 15  # until its code is compiled

    @classmethod
    def found(cls):
        return find("java") is not None and (cls.jars.parent / "open").exists()

    @classmethod
    def version(cls):
        jar = next(cls.jars.glob("hivemq-community-edition-embedded-*.jar")).name
        return re.search(r"(\d+\.\d+)", jar).group(1)

    def configure(self):
        for folder in ("conf", "data", "log", "extensions"):
            (self.folder / folder).mkdir(exist_ok=True)
        files, kind, tls = self.setting.file, "tcp-listener", ""
        if self.setting.transport != "tcp":
            # It wants key and certificate in a store.
            kind, keys = "tls-tcp-listener", self.folder / "keys.p12"
            subprocess.run(["openssl", "pkcs12", "-export", "-in", files("server.pem"), "-inkey", files("server.key"),
                            "-out", keys, "-passout", "pass:changeme", "-name", "bench"], check=True)
            trust = ""
            if self.setting.transport == "mtls":
                store = self.folder / "trust.p12"
                subprocess.run(["keytool", "-importcert", "-noprompt", "-alias", "ca", "-file", files("ca.pem"),
                                "-keystore", store, "-storetype", "PKCS12", "-storepass", "changeme"],
                               check=True, stderr=subprocess.DEVNULL)
                trust = (f"<truststore><path>{store}</path><password>changeme</password></truststore>"
                         "<client-authentication-mode>REQUIRED</client-authentication-mode>")
            tls = (f"<tls><keystore><path>{keys}</path><password>changeme</password>"
                   f"<private-key-password>changeme</private-key-password></keystore>{trust}</tls>")
        (self.folder / "conf/config.xml").write_text(
            '<?xml version="1.0"?>\n<hivemq><listeners>'
            f"<{kind}><port>{self.port}</port><bind-address>127.0.0.1</bind-address>{tls}</{kind}></listeners>"
            "<mqtt><queued-messages><max-queue-size>100000000</max-queue-size></queued-messages>"
            "<receive-maximum><server-receive-maximum>65535</server-receive-maximum></receive-maximum></mqtt>"
            "<security><allow-empty-client-id><enabled>true</enabled></allow-empty-client-id></security>"
            "<anonymous-usage-statistics><enabled>false</enabled></anonymous-usage-statistics></hivemq>\n")
        # It is silent but for errors; its start script asks for the same modules.
        (self.folder / "conf/logback.xml").write_text(
            '<configuration><appender name="C" class="ch.qos.logback.core.ConsoleAppender"><encoder><pattern>%msg%n'
            '</pattern></encoder></appender><root level="ERROR"><appender-ref ref="C"/></root></configuration>\n')
        opens = [part for package in ("java.base/java.lang", "java.base/java.nio", "java.base/sun.nio.ch",
                                      "jdk.management/com.sun.management.internal", "java.base/sun.security.provider")
                 for part in ("--add-opens", f"{package}=ALL-UNNAMED")]
        return [find("java"), *opens, "-Djava.net.preferIPv4Stack=true", "-XX:+UseG1GC",
                f"-Dhivemq.home={self.folder}", "-cp", f"{self.jars}/*:{self.jars.parent}/open", "Open"], {}


class NanoMq(Broker):
    key, name, program = "nanomq", "NanoMQ", "nanomq"
    persistence = "none"

    @classmethod
    def version(cls):
        return first_line([find(cls.program), "--version"])

    def configure(self):
        files, url = self.setting.file, f'bind = "127.0.0.1:{self.port}"'
        if self.setting.transport == "tcp":
            listener = f"listeners.tcp {{ {url} }}\n"
        else:
            proof = "true" if self.setting.transport == "mtls" else "false"
            listener = (f'listeners.ssl {{ {url}\n keyfile = "{files("server.key")}"\n certfile = "{files("server.pem")}"\n'
                        f' cacertfile = "{files("ca.pem")}"\n verify_peer = {proof}\n fail_if_no_peer_cert = {proof} }}\n')
        config = self.folder / "nanomq.conf"
        config.write_text(
            "mqtt { max_packet_size = 1MB\n max_mqueue_len = 65535\n max_inflight_window = 65535\n retry_interval = 30s\n"
            f" keepalive_multiplier = 1.25 }}\n{listener}auth {{ allow_anonymous = true\n no_match = allow }}\n")
        return [find(self.program), "start", "--conf", config], {}


class FlashMq(Broker):
    key, name, program = "flashmq", "FlashMQ", "flashmq"
    persistence = "in memory, written every 15 min"

    def configure(self):
        files, lines = self.setting.file, ["protocol mqtt", f"port {self.port}", "inet_protocol ip4",
                                           "inet4_bind_address 127.0.0.1"]
        if self.setting.transport != "tcp":
            lines += [f"fullchain {files('server.pem')}", f"privkey {files('server.key')}"]
        if self.setting.transport == "mtls":
            lines += [f"client_verification_ca_file {files('ca.pem')}", "client_verification_still_do_authn false"]
        store = self.folder / "store"
        store.mkdir(exist_ok=True)
        config = self.folder / "flashmq.conf"
        config.write_text(
            f"allow_anonymous true\nquiet true\nlog_file {self.folder}/flashmq.log\nstorage_dir {store}\n"
            "client_max_write_buffer_size 268435456\nmax_qos_msg_pending_per_client 65535\n"
            "max_qos_bytes_pending_per_client 4294967295\n"
            "listen {\n" + "\n".join(f"  {line}" for line in lines) + "\n}\n")
        return [find(self.program), "--config-file", config], {}


class Emqx(Broker):
    key, name, program = "emqx", "EMQX", "emqx"
    persistence = "in memory"
    warm_up = 5  # until its code is compiled

    @classmethod
    def version(cls):
        return first_line([find(cls.program), "-V"])

    def configure(self):
        files, kind = self.setting.file, "TCP" if self.setting.transport == "tcp" else "SSL"
        listener = f"EMQX_LISTENERS__{kind}__DEFAULT__"
        environment = {f"EMQX_LISTENERS__{other}__DEFAULT__ENABLE": "false" for other in ("TCP", "SSL", "WS", "WSS")}
        environment |= {
            f"{listener}ENABLE": "true", f"{listener}BIND": f"127.0.0.1:{self.port}",
            "EMQX_NODE__NAME": "bench@127.0.0.1", "EMQX_NODE__DATA_DIR": str(self.folder / "data"),
            "EMQX_LOG__CONSOLE__LEVEL": "error", "EMQX_DASHBOARD__LISTENERS__HTTP__BIND": "0",
            "EMQX_MQTT__MAX_MQUEUE_LEN": "infinity", "EMQX_MQTT__MAX_INFLIGHT": "65535",
            "EMQX_MQTT__MAX_AWAITING_REL": "infinity",
        }
        if kind == "SSL":
            options = f"{listener}SSL_OPTIONS__"
            environment |= {f"{options}CERTFILE": str(files("server.pem")), f"{options}KEYFILE": str(files("server.key")),
                            f"{options}CACERTFILE": str(files("ca.pem"))}
            if self.setting.transport == "mtls":
                environment |= {f"{options}VERIFY": "verify_peer", f"{options}FAIL_IF_NO_PEER_CERT": "true"}
        (self.folder / "data").mkdir(exist_ok=True)
        return [find(self.program), "foreground"], environment


class Floor(Broker):
    """No broker: the same bytes through the same sockets, with nothing in between."""

    key, name, program = "floor", "(only the bytes)", str(TARGET / "release/examples/peers")
    scenarios = ("fan-in", "fan-in-burst", "fan-in-deep", "fan-out", "fan-out-deep", "pairs", "pairs-deep", "latency",
                 "requests")

    @classmethod
    def found(cls):
        return pathlib.Path(cls.program).exists()

    @classmethod
    def version(cls):
        return "floor"

    @classmethod
    def refuses(cls, cell):
        return None if cell.transport == "tcp" else "it has no TLS"

    def start(self):
        self.process = subprocess.Popen([*self.setting.prefix, self.program, "echo"], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.port = int(self.process.stdout.readline().rsplit(":", 1)[1])
        self.pids = [self.process.pid]


ALL = [Ours, OursDurable, OursUnsynced, Mosquitto, Nats, Rumqttd, Rmqtt, HiveMq, NanoMq, FlashMq, Emqx, Floor]
