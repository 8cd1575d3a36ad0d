"""The AWS IoT device SDK (awsiotsdk, on awscrt) over mutual TLS, also as AWS wants it on one port (ALPN
`x-amzn-mqtt-ca`) and over WebSocket: its MQTT 5 client and its MQTT 3.1.1 connection. It has no QoS 2.
"""

import queue

from awscrt import io, mqtt, mqtt5
from awsiot import mqtt5_client_builder, mqtt_connection_builder

from story import Failed, PATIENCE_S, same, take, tell

# A client that lost its connection must not come back in the middle of a step.
NEVER_S = 3600


class Message:
    def __init__(self, topic, payload, qos, retain, packet=None):
        self.topic, self.payload, self.qos, self.retain, self.packet = topic, payload, qos, retain, packet


def tls_context(arguments):
    if arguments.cert:
        options = io.TlsContextOptions.create_client_with_mtls_from_path(arguments.cert, arguments.key)
    else:
        options = io.TlsContextOptions()
    options.override_default_trust_store_from_path(None, arguments.ca)
    if arguments.alpn:
        options.alpn_list = [arguments.alpn]
    return io.ClientTlsContext(options)


def to_path(arguments):
    """What AWS signs its request with; here it only names the path, which the SDK has fixed."""

    def transform(transform_args):
        transform_args.http_request.path = arguments.path
        transform_args.set_done()

    return transform


class Peer:
    """What both clients have in common."""

    def __init__(self, story, name):
        self.story, self.name, self.inbox = story, name, queue.Queue()

    def keep(self, topic, payload, qos=1, retain=False, **more):
        """Published and acknowledged, below dt/: the lake must have it."""
        reason = self.publish(topic, payload, qos, retain, **more)
        if reason not in (0x00, 0x10):
            raise Failed(f"publishing to {topic}: refused with {reason:#04x}")
        self.story.kept(topic, payload)

    def next(self, what="message"):
        return take(f"{what} for {self.name}", self.inbox)

    def expect(self, topic, payload, qos, retain=False):
        message = self.next(f"message on {topic}")
        payload = payload.encode() if isinstance(payload, str) else payload
        got = (message.topic, message.qos, message.retain, message.payload)
        same("message", got, (topic, qos, retain, payload))
        return message

    def silent(self):
        if not self.inbox.empty():
            message = self.inbox.get()
            raise Failed(f"{self.name} got {message.topic} {message.payload[:40]!r}, which is too much")


class Five(Peer):
    """awscrt.mqtt5.Client. Its callbacks run on its own thread and only fill queues."""

    def __init__(self, story, name, *, clean=True, will=None):
        super().__init__(story, name)
        arguments = story.arguments
        self.connects, self.ends, self.stops = queue.Queue(), queue.Queue(), queue.Queue()
        options = mqtt5.ClientOptions(
            host_name=arguments.host,
            port=arguments.port,
            connect_options=mqtt5.ConnectPacket(
                client_id=story.client_id(name),
                keep_alive_interval_sec=60,
                session_expiry_interval_sec=0 if clean else 600,
                request_response_information=True,
            ),
            session_behavior=mqtt5.ClientSessionBehaviorType.CLEAN
            if clean
            else mqtt5.ClientSessionBehaviorType.REJOIN_ALWAYS,
            min_reconnect_delay_ms=NEVER_S * 1000,
            max_reconnect_delay_ms=NEVER_S * 1000,
            # Both directions, so that the server's own aliases are read by somebody.
            topic_aliasing_options=mqtt5.TopicAliasingOptions(
                outbound_behavior=mqtt5.OutboundTopicAliasBehaviorType.LRU,
                outbound_cache_max_size=3,
                inbound_behavior=mqtt5.InboundTopicAliasBehaviorType.ENABLED,
                inbound_cache_max_size=3,
            ),
            on_publish_callback_fn=self.received,
            on_lifecycle_event_connection_success_fn=self.connects.put,
            on_lifecycle_event_connection_failure_fn=self.connects.put,
            on_lifecycle_event_disconnection_fn=self.ends.put,
            on_lifecycle_event_stopped_fn=self.stops.put,
        )
        if will:
            topic, payload = will
            options.connect_options.will = mqtt5.PublishPacket(
                topic=topic, payload=payload, qos=mqtt5.QoS.AT_LEAST_ONCE, content_type="text/plain"
            )
        if arguments.transport == "mqtts" and arguments.cert and not arguments.alpn:
            # As in the SDK's samples.
            self.client = mqtt5_client_builder.mtls_from_path(
                arguments.cert,
                arguments.key,
                ca_filepath=arguments.ca,
                endpoint=arguments.host,
                client_options=options,
            )
            return
        if arguments.ca:
            options.tls_ctx = tls_context(arguments)
        if arguments.transport in ("ws", "wss"):
            options.websocket_handshake_transform = to_path(arguments)
        self.client = mqtt5.Client(options)

    def received(self, data):
        got = data.publish_packet
        self.inbox.put(Message(got.topic, got.payload or b"", int(got.qos), got.retain, got))

    def connect(self):
        self.client.start()
        event = take(f"CONNACK of {self.name}", self.connects)
        if not isinstance(event, mqtt5.LifecycleConnectSuccessData):
            raise Failed(f"{self.name} was not let in: {event.exception} {event.connack_packet}")
        self.connack = event.connack_packet
        return event.negotiated_settings.rejoined_session

    def subscribe(self, topic_filter, qos=1):
        subscription = mqtt5.Subscription(topic_filter=topic_filter, qos=mqtt5.QoS(qos))
        packet = mqtt5.SubscribePacket(subscriptions=[subscription])
        (reason,) = self.client.subscribe(packet).result(PATIENCE_S).reason_codes
        return int(reason)

    def unsubscribe(self, topic_filter):
        packet = mqtt5.UnsubscribePacket(topic_filters=[topic_filter])
        (reason,) = self.client.unsubscribe(packet).result(PATIENCE_S).reason_codes
        same(f"unsubscribe {topic_filter}", int(reason), 0)

    def start_publishing(self, topic, payload, qos=1, retain=False, **more):
        packet = mqtt5.PublishPacket(topic=topic, payload=payload, qos=mqtt5.QoS(qos), retain=retain, **more)
        return self.client.publish(packet)

    def publish(self, topic, payload, qos=1, retain=False, **more):
        puback = self.start_publishing(topic, payload, qos, retain, **more).result(PATIENCE_S).puback
        # QoS 0 has none.
        return int(puback.reason_code or 0)

    def disconnect(self):
        self.client.stop(mqtt5.DisconnectPacket())
        take(f"end of {self.name}", self.stops)

    def end(self):
        """Why the server ended the connection."""
        packet = take(f"end of {self.name}", self.ends).disconnect_packet
        return packet and int(packet.reason_code)


class Three(Peer):
    """awscrt.mqtt.Connection."""

    def __init__(self, story, name, *, clean=True, will=None):
        super().__init__(story, name)
        arguments = story.arguments
        self.ends = queue.Queue()
        options = dict(
            client_id=story.client_id(name),
            clean_session=clean,
            keep_alive_secs=60,
            reconnect_min_timeout_secs=NEVER_S,
            reconnect_max_timeout_secs=NEVER_S,
            on_connection_interrupted=lambda connection, error, **_: self.ends.put(error),
        )
        if will:
            topic, payload = will
            options["will"] = mqtt.Will(topic, mqtt.QoS.AT_LEAST_ONCE, payload.encode(), False)
        if arguments.transport == "mqtts" and arguments.cert and not arguments.alpn:
            self.client = mqtt_connection_builder.mtls_from_path(
                arguments.cert,
                arguments.key,
                ca_filepath=arguments.ca,
                endpoint=arguments.host,
                port=arguments.port,
                **options,
            )
        else:
            bootstrap = io.ClientBootstrap.get_or_create_static_default()
            tls = tls_context(arguments) if arguments.ca else None
            if arguments.transport in ("ws", "wss"):
                options["use_websockets"] = True
                options["websocket_handshake_transform"] = to_path(arguments)
            options.update(host_name=arguments.host, port=arguments.port)
            self.client = mqtt.Connection(mqtt.Client(bootstrap, tls), **options)
        self.client.on_message(self.received)

    def received(self, topic, payload, dup, qos, retain, **_):
        self.inbox.put(Message(topic, payload, int(qos), retain))

    def connect(self):
        return self.client.connect().result(PATIENCE_S)["session_present"]

    def subscribe(self, topic_filter, qos=1):
        future, _ = self.client.subscribe(topic_filter, mqtt.QoS(qos))
        try:
            return int(future.result(PATIENCE_S)["qos"])
        except mqtt.SubscribeError:
            return 0x80

    def unsubscribe(self, topic_filter):
        future, _ = self.client.unsubscribe(topic_filter)
        future.result(PATIENCE_S)

    def start_publishing(self, topic, payload, qos=1, retain=False):
        future, _ = self.client.publish(topic, payload, mqtt.QoS(qos), retain)
        return future

    def publish(self, topic, payload, qos=1, retain=False):
        self.start_publishing(topic, payload, qos, retain).result(PATIENCE_S)
        return 0

    def disconnect(self):
        self.client.disconnect().result(PATIENCE_S)

    def end(self):
        take(f"end of {self.name}", self.ends)


def steps(story):
    arguments = story.arguments
    five = arguments.version == "5"
    peer = Five if five else Three

    watcher = peer(story, "watcher")
    same("session present", watcher.connect(), False)
    car = peer(story, "car")
    car.connect()
    story.ok("connect")

    large = b"".join(number.to_bytes(4, "big") for number in range(30_000))
    for qos in (0, 1):
        topic = story.topic(f"qos{qos}")
        same("granted QoS", watcher.subscribe(topic, qos), qos)
        for payload in ("{}", b"", large):
            car.keep(topic, payload, qos)
            watcher.expect(topic, payload, qos)
    story.ok("publish and subscribe at QoS 0 and 1")

    watcher.subscribe(story.topic("many/#"), 1)
    # Five topics over three aliases each way.
    batch = [(story.topic(f"many/{number * 7 % 5}"), f"number {number}") for number in range(100)]
    acknowledgements = []
    for topic, payload in batch:
        acknowledgements.append(car.start_publishing(topic, payload, 1))
        story.kept(topic, payload)
    for topic, payload in batch:
        watcher.expect(topic, payload, 1)
    for acknowledgement in acknowledgements:
        acknowledgement.result(PATIENCE_S)
    story.ok("many in flight, in order")

    topic = story.topic("retained")
    car.keep(topic, "kept", 1, retain=True)
    watcher.subscribe(topic, 1)
    watcher.expect(topic, "kept", 1, retain=True)
    watcher.unsubscribe(topic)
    car.keep(topic, b"", 1, retain=True)
    watcher.subscribe(topic, 1)
    car.keep(topic, "live", 1)
    watcher.expect(topic, "live", 1)
    story.ok("retained message, and its removal")

    topic = story.topic("will")
    watcher.subscribe(topic, 1)
    polite = peer(story, "mortal", will=(topic, "gone"))
    polite.connect()
    polite.disconnect()
    first = peer(story, "mortal", will=(topic, "gone"))
    first.connect()
    second = peer(story, "mortal")
    second.connect()
    reason = first.end()
    if five:
        same("reason", reason, 0x8E)
    message = watcher.expect(topic, "gone", 1)
    if five:
        same("content type of the will", message.packet.content_type, "text/plain")
    story.kept(topic, "gone")
    # Not the first: the MQTT 3.1.1 connection of the SDK, once interrupted, answers after its next attempt.
    second.disconnect()
    car.keep(topic, "after", 1)
    watcher.expect(topic, "after", 1)
    story.ok("a second connection takes over; will of the first, but not after DISCONNECT")

    sleeper = peer(story, "sleeper", clean=False)
    same("session present", sleeper.connect(), False)
    sleeper.subscribe(story.topic("asleep/+"), 1)
    sleeper.disconnect()
    for number in range(5):
        car.keep(story.topic("asleep/a"), f"while asleep {number}", 1)
    sleeper = peer(story, "sleeper", clean=False)
    same("session present", sleeper.connect(), True)
    for number in range(5):
        sleeper.expect(story.topic("asleep/a"), f"while asleep {number}", 1)
    sleeper.disconnect()
    sleeper = peer(story, "sleeper", clean=True)
    same("session present after a clean start", sleeper.connect(), False)
    sleeper.disconnect()
    story.ok("a session is resumed, and given up")

    if arguments.foreign:
        foreign = f"dt/clients/{arguments.run}/{arguments.foreign}/x"
        same("foreign filter", watcher.subscribe(foreign, 1), 0x87 if five else 0x80)
        if five:
            same("foreign topic", car.publish(foreign, "no", 1), 0x87)
        story.ok("another vehicle's topics are refused")

    if five:
        steps_of_version_5(story, car, watcher)
    watcher.silent()
    watcher.disconnect()
    car.disconnect()
    story.ok("disconnect")


def steps_of_version_5(story, car, watcher):
    arguments = story.arguments
    topic = story.topic("properties")
    watcher.subscribe(topic, 1)
    bytes_of_all_values = bytes(range(256))
    car.keep(
        topic,
        "{}",
        1,
        content_type="application/json",
        payload_format_indicator=mqtt5.PayloadFormatIndicator.AWS_MQTT5_PFI_UTF8,
        message_expiry_interval_sec=600,
        response_topic=story.topic("answers"),
        correlation_data_bytes=bytes_of_all_values,
        user_properties=[mqtt5.UserProperty("a", "1"), mqtt5.UserProperty("a", "2")],
    )
    got = watcher.expect(topic, "{}", 1).packet
    same("content type", got.content_type, "application/json")
    same("payload format", int(got.payload_format_indicator), 1)
    if not 590 <= got.message_expiry_interval_sec <= 600:
        raise Failed(f"message expiry: wanted about 600, got {got.message_expiry_interval_sec}")
    same("response topic", got.response_topic, story.topic("answers"))
    same("correlation data", got.correlation_data_bytes, bytes_of_all_values)
    same("user properties", [(p.name, p.value) for p in got.user_properties], [("a", "1"), ("a", "2")])
    story.ok("properties arrive as they were sent")

    answers = story.topic("answers")
    if arguments.device:
        answers = f"dt/rpc/response/{arguments.vehicle}/{arguments.device}"
        same("response information", watcher.connack.response_information, answers)
    answers = f"{answers}/{arguments.run}"
    car.subscribe(story.topic("requests"), 1)
    watcher.subscribe(answers, 1)
    watcher.keep(story.topic("requests"), "ping", 1, response_topic=answers, correlation_data_bytes=b"7")
    asked = car.expect(story.topic("requests"), "ping", 1).packet
    car.keep(asked.response_topic, "pong", 1, correlation_data_bytes=asked.correlation_data_bytes)
    answer = watcher.expect(answers, "pong", 1)
    same("correlation data", answer.packet.correlation_data_bytes, b"7")
    story.ok("request and response")


if __name__ == "__main__":
    tell(steps)
