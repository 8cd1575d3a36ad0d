"""Eclipse Paho for Python over tcp, TLS, WebSocket and WebSocket over TLS, MQTT 3.1.1 and 5.

The steps are a function of how to connect, so that `quic_client.py` can take the same over QUIC.
"""

import os
import queue
import socket

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from story import Failed, same, take, tell, tls_context


def properties(packet, **values):
    made = Properties(packet)
    for name, value in values.items():
        setattr(made, name, value)
    return made


class Peer:
    """One client. Its callbacks run on Paho's thread and only fill queues."""

    def __init__(self, story, name, *, clean=True, will=None, host=None, port=None):
        self.story = story
        arguments = story.arguments
        self.name = name
        self.five = arguments.version == "5"
        self.clean = clean
        self.address = (host or arguments.host, port or arguments.port)
        self.inbox = queue.Queue()
        self.connects = queue.Queue()
        self.ends = queue.Queue()
        self.subscribed = queue.Queue()
        self.unsubscribed = queue.Queue()
        self.published = queue.Queue()
        bridged = port is not None
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=name and story.client_id(name),
            protocol=mqtt.MQTTv5 if self.five else mqtt.MQTTv311,
            transport="websockets" if arguments.transport in ("ws", "wss") else "tcp",
            # MQTT 5 says it when it connects.
            clean_session=None if self.five else clean,
            reconnect_on_failure=False,
        )
        if arguments.transport in ("ws", "wss"):
            client.ws_set_options(path=arguments.path)
        if arguments.transport in ("mqtts", "wss") and not bridged:
            client.tls_set_context(tls_context(arguments))
        if will:
            topic, payload, qos, retain, will_properties = will
            client.will_set(topic, payload, qos, retain, will_properties if self.five else None)
        client.on_connect = lambda _c, _u, flags, reason, props: self.connects.put((flags, reason, props))
        client.on_disconnect = lambda _c, _u, _flags, reason, _p: self.ends.put(reason)
        client.on_message = lambda _c, _u, message: self.inbox.put(message)
        client.on_subscribe = lambda _c, _u, _mid, reasons, _p: self.subscribed.put(reasons)
        client.on_unsubscribe = lambda _c, _u, _mid, reasons, _p: self.unsubscribed.put(reasons)
        client.on_publish = lambda _c, _u, mid, reason, _p: self.published.put((mid, reason))
        self.client = client
        # A name for messages without one, sent by alias.
        self.alias = None

    def connect(self, **connect_properties):
        """Connected, or `Failed`; what CONNACK says: session present, properties."""
        host, port = self.address
        more = {}
        if self.five:
            if not self.clean:
                connect_properties.setdefault("SessionExpiryInterval", 600)
            more["clean_start"] = self.clean
            more["properties"] = properties(PacketTypes.CONNECT, **connect_properties)
        self.client.connect(host, port, keepalive=60, **more)
        self.client.loop_start()
        flags, reason, answer = take(f"CONNACK of {self.name}", self.connects)
        same(f"reason of CONNACK for {self.name}", str(reason), "Success")
        return flags.session_present, answer

    def subscribe(self, topic_filter, qos=1, **more):
        """The reason code of the one filter."""
        if self.five:
            named = more.pop("properties", None)
            options = SubscribeOptions(qos=qos, **more)
            self.client.subscribe(topic_filter, options=options, properties=named)
        else:
            self.client.subscribe(topic_filter, qos)
        (reason,) = take(f"SUBACK for {topic_filter}", self.subscribed)
        return reason.value

    def unsubscribe(self, topic_filter):
        self.client.unsubscribe(topic_filter)
        reasons = take(f"UNSUBACK for {topic_filter}", self.unsubscribed)
        return [reason.value for reason in reasons]

    def publish(self, topic, payload, qos=1, retain=False, **publish_properties):
        """Published and acknowledged; the reason code."""
        named = None
        if self.five and publish_properties:
            named = properties(PacketTypes.PUBLISH, **publish_properties)
        sent = self.client.publish(topic, payload, qos, retain, properties=named)
        same(f"publishing to {topic}", sent.rc, mqtt.MQTT_ERR_SUCCESS)
        mid, reason = take(f"acknowledgement of a message to {topic}", self.published)
        same("packet identifier acknowledged", mid, sent.mid)
        return reason.value

    def keep(self, topic, payload, qos=1, retain=False, **publish_properties):
        """As `publish`, below dt/: it must be taken, and the lake must have it."""
        reason = self.publish(topic, payload, qos, retain, **publish_properties)
        # 0x10: nobody subscribes; the log has it.
        if reason not in (0x00, 0x10):
            raise Failed(f"publishing to {topic}: refused with {reason:#04x}")
        self.story.kept(topic or self.alias, payload or b"")
        return reason

    def next(self, what="message"):
        return take(f"{what} for {self.name}", self.inbox)

    def expect(self, topic, payload, qos, retain=False):
        message = self.next(f"message on {topic}")
        payload = payload.encode() if isinstance(payload, str) else payload
        got = (message.topic, message.qos, message.retain, message.payload)
        same("message", got, (topic, qos, retain, payload))
        return message

    def silent(self):
        """Nothing more came; to be asked when something later has come."""
        if not self.inbox.empty():
            message = self.inbox.get()
            raise Failed(f"{self.name} got {message.topic} {short_payload(message)}, which is too much")

    def disconnect(self):
        self.client.disconnect()
        take(f"end of {self.name}", self.ends)
        self.client.loop_stop()

    def vanish(self):
        """The connection ends as when a car drives into a tunnel: no DISCONNECT."""
        copy = socket.socket(fileno=os.dup(self.client.socket().fileno()))
        copy.shutdown(socket.SHUT_RDWR)
        copy.close()
        take(f"end of {self.name}", self.ends)
        self.client.loop_stop()


def short_payload(message):
    return repr(message.payload[:40])


def steps(story, peer=Peer):
    arguments = story.arguments
    five = arguments.version == "5"

    watcher = peer(story, "watcher")
    present, _ = watcher.connect()
    same("session present", present, False)
    # Of a WebSocket Paho hides the TLS connection below it.
    if arguments.alpn and arguments.transport == "mqtts":
        chosen = watcher.client.socket().selected_alpn_protocol()
        same("protocol chosen (ALPN)", chosen, arguments.alpn)
    car = peer(story, "car")
    car.connect()
    story.ok("connect")

    every_byte = bytes(range(256))
    large = b"".join(number.to_bytes(4, "big") for number in range(75_000))
    for qos in (0, 1, 2):
        topic = story.topic(f"qos{qos}")
        same("granted QoS", watcher.subscribe(topic, qos), qos)
        for payload in (b"{}", every_byte, b"", large):
            car.keep(topic, payload, qos)
            watcher.expect(topic, payload, qos)
    same("granted QoS", watcher.subscribe(story.topic("less/#"), 0), 0)
    car.keep(story.topic("less/a"), "sent at 2", 2)
    watcher.expect(story.topic("less/a"), "sent at 2", 0)
    story.ok("publish and subscribe at every QoS")

    topic = story.topic("many/in/order")
    watcher.subscribe(story.topic("many/+/order"), 2)
    batch = [f"number {number}" for number in range(200)]
    for number, payload in enumerate(batch):
        sent = car.client.publish(topic, payload, 1 + number % 2)
        same("publishing", sent.rc, mqtt.MQTT_ERR_SUCCESS)
        story.kept(topic, payload)
    got = [watcher.next().payload.decode() for _ in batch]
    # The order within one QoS is promised, not the one between them.
    for qos in (1, 2):
        same(f"order at QoS {qos}", got_at(got, qos), batch[qos - 1 :: 2])
    for _ in batch:
        take("acknowledgement", car.published)
    story.ok("many in flight, in order")

    topic = story.topic("retained")
    car.keep(topic, "old", 1, retain=True)
    car.keep(topic, "kept", 1, retain=True)
    watcher.subscribe(topic, 1)
    watcher.expect(topic, "kept", 1, retain=True)
    same("unsubscribe", watcher.unsubscribe(topic), [0] if five else [])
    car.keep(topic, None, 1, retain=True)
    watcher.subscribe(topic, 1)
    car.keep(topic, "live", 1)
    watcher.expect(topic, "live", 1)
    story.ok("retained message, and its removal")

    topic = story.topic("will")
    watcher.subscribe(topic, 1)
    will_properties = properties(PacketTypes.WILLMESSAGE, ContentType="text/plain")
    for ending in (Peer.disconnect, Peer.vanish):
        mortal = peer(story, "mortal", will=(topic, "gone", 1, False, will_properties))
        mortal.connect()
        ending(mortal)
    # Only the second.
    message = watcher.expect(topic, "gone", 1)
    if five:
        same("content type of the will", message.properties.ContentType, "text/plain")
    story.kept(topic, "gone")
    car.keep(topic, "after", 1)
    watcher.expect(topic, "after", 1)
    story.ok("will, but not after DISCONNECT")

    topic = story.topic("asleep/+")
    sleeper = peer(story, "sleeper", clean=False)
    sleeper.connect()
    sleeper.subscribe(topic, 2)
    sleeper.vanish()
    for number in range(5):
        car.keep(story.topic("asleep/a"), f"while asleep {number}", 1 + number % 2)
    sleeper = peer(story, "sleeper", clean=False)
    present, _ = sleeper.connect()
    same("session present", present, True)
    got = {sleeper.next().payload.decode() for _ in range(5)}
    same("what waited", got, {f"while asleep {number}" for number in range(5)})
    sleeper.disconnect()
    sleeper = peer(story, "sleeper", clean=True)
    present, _ = sleeper.connect()
    same("session present after a clean start", present, False)
    car.keep(story.topic("asleep/a"), "nobody there", 1)
    sleeper.subscribe(topic, 1)
    car.keep(story.topic("asleep/a"), "here", 1)
    sleeper.expect(story.topic("asleep/a"), "here", 1)
    sleeper.disconnect()
    story.ok("a session is resumed, and given up")

    first = peer(story, "twin")
    first.connect()
    second = peer(story, "twin")
    second.connect()
    reason = take("end of the first of two with one client id", first.ends)
    if five:
        same("reason", str(reason), "Session taken over")
    second.keep(story.topic("qos1"), "the second lives", 1)
    watcher.expect(story.topic("qos1"), "the second lives", 1)
    second.disconnect()
    story.ok("a second connection with the same client id takes over")

    if arguments.foreign:
        foreign = f"dt/clients/{arguments.run}/{arguments.foreign}/x"
        same("foreign filter", watcher.subscribe(foreign, 1), 0x87 if five else 0x80)
        if five:
            # Not at QoS 2: Paho does not read the reason of PUBREC.
            same("foreign topic", car.publish(foreign, "no", 1), 0x87)
        story.ok("another vehicle's topics are refused")

    if five:
        steps_of_version_5(story, peer, car, watcher)

    watcher.silent()
    watcher.disconnect()
    car.disconnect()
    story.ok("disconnect")


def got_at(payloads, qos):
    return [payload for payload in payloads if int(payload.split()[1]) % 2 == qos - 1]


def steps_of_version_5(story, peer, car, watcher):
    arguments = story.arguments

    topic = story.topic("properties")
    identifier = properties(PacketTypes.SUBSCRIBE, SubscriptionIdentifier=77)
    watcher.subscribe(topic, 1, properties=identifier)
    car.keep(
        topic,
        "{}",
        1,
        ContentType="application/json",
        PayloadFormatIndicator=1,
        MessageExpiryInterval=600,
        ResponseTopic=story.topic("answers"),
        CorrelationData=every_value(),
        UserProperty=[("a", "1"), ("a", "2"), ("ключ", "värde")],
    )
    got = watcher.expect(topic, "{}", 1).properties
    same("content type", got.ContentType, "application/json")
    same("payload format", got.PayloadFormatIndicator, 1)
    if not 590 <= got.MessageExpiryInterval <= 600:
        raise Failed(f"message expiry: wanted about 600, got {got.MessageExpiryInterval}")
    same("response topic", got.ResponseTopic, story.topic("answers"))
    same("correlation data", got.CorrelationData, every_value())
    same("user properties", got.UserProperty, [("a", "1"), ("a", "2"), ("ключ", "värde")])
    same("subscription identifier", got.SubscriptionIdentifier, [77])
    story.ok("properties arrive as they were sent")

    responder = peer(story, "responder")
    responder.connect()
    responder.subscribe(story.topic("requests"), 1)
    requester = peer(story, "requester")
    _, connack = requester.connect(RequestResponseInformation=1)
    answers = story.topic("answers")
    if arguments.device:
        answers = f"dt/rpc/response/{arguments.vehicle}/{arguments.device}"
        same("response information", connack.ResponseInformation, answers)
    answers = f"{answers}/{story.arguments.run}"
    requester.subscribe(answers, 1)
    requester.keep(story.topic("requests"), "ping", 1, ResponseTopic=answers, CorrelationData=b"7")
    request = responder.expect(story.topic("requests"), "ping", 1)
    asked = request.properties
    responder.keep(asked.ResponseTopic, "pong", 1, CorrelationData=asked.CorrelationData)
    answer = requester.expect(answers, "pong", 1)
    same("correlation data", answer.properties.CorrelationData, b"7")
    for one in (requester, responder):
        one.disconnect()
    story.ok("request and response")

    topic = story.topic("options")
    car.keep(topic, "retained", 1, retain=True)
    watcher.subscribe(topic, 1, noLocal=True, retainAsPublished=True, retainHandling=2)
    car.keep(topic, "again", 1, retain=True)
    watcher.expect(topic, "again", 1, retain=True)
    watcher.keep(topic, "my own", 1)
    car.keep(topic, None, 1, retain=True)
    watcher.expect(topic, b"", 1, retain=True)
    story.ok("no local, retain as published, retain handling")

    members = [peer(story, f"member{number}") for number in range(3)]
    for member in members:
        member.connect()
        member.subscribe(f"$share/group/{story.topic('shared')}", 1)
    batch = [f"job {number}" for number in range(30)]
    for payload in batch:
        car.keep(story.topic("shared"), payload, 1)
    # Each job once; a marker on an own topic of each member comes behind its jobs.
    got = []
    for member in members:
        marker = story.topic(f"marker/{member.name}")
        member.subscribe(marker, 1)
        car.keep(marker, "end", 1)
        while (message := member.next()).topic != marker:
            got.append(message.payload.decode())
        member.disconnect()
    same("jobs of the group", sorted(got), sorted(batch))
    story.ok("a shared subscription")

    topic = story.topic("alias")
    watcher.subscribe(topic, 1)
    car.alias = topic
    car.keep(topic, "by name", 1, TopicAlias=1)
    car.keep("", "by alias", 1, TopicAlias=1)
    watcher.expect(topic, "by name", 1)
    watcher.expect(topic, "by alias", 1)
    story.ok("a topic alias")

    nameless = peer(story, "")
    _, connack = nameless.connect()
    if not connack.AssignedClientIdentifier:
        raise Failed("no client identifier was assigned to a client without one")
    nameless.disconnect()
    same("unsubscribe from nothing", watcher.unsubscribe(story.topic("never")), [0x11])
    # It raises what refuses it.
    car.keep(story.topic("nobody"), "x", 1)
    story.ok("an assigned client identifier, reason codes")


def every_value():
    return bytes(range(256))


if __name__ == "__main__":
    tell(steps)
