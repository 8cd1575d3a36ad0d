"""MQTT over QUIC: aioquic carries the bytes, Paho speaks the MQTT in them.

Paho knows no QUIC, so each of its connections goes to a port of this process, and from there over a QUIC
connection of its own: protocol `mqtt`, the first bidirectional stream that the client opens. The steps are
Paho's; what only QUIC can do (the client's address changes) comes first.
"""

import asyncio
import socket
import threading

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import HandshakeCompleted

import paho_client
from story import Failed, PATIENCE_S, same, tell

CHUNK = 65_536


class Protocol(QuicConnectionProtocol):
    """Remembers how the handshake went."""

    handshake = None

    def quic_event_received(self, event):
        if isinstance(event, HandshakeCompleted):
            self.handshake = event
        super().quic_event_received(event)


class Bridge:
    """A port on loopback whose connections go on over QUIC. All of it runs on one thread of its own."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.ticket = None
        self.newest = None
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.server = self.run(asyncio.start_server(self.accepted, "127.0.0.1", 0))
        self.port = self.server.sockets[0].getsockname()[1]

    def run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE_S)

    def socket(self):
        both = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        both.bind(("::", 0))
        return both

    async def dial(self):
        arguments = self.arguments
        configuration = QuicConfiguration(
            is_client=True, alpn_protocols=["mqtt"], server_name=arguments.host, session_ticket=self.ticket
        )
        configuration.load_verify_locations(cafile=arguments.ca)
        if arguments.cert:
            configuration.load_cert_chain(arguments.cert, arguments.key)
        quic = QuicConnection(configuration=configuration, session_ticket_handler=self.keep_ticket)
        transport, protocol = await self.loop.create_datagram_endpoint(lambda: Protocol(quic), sock=self.socket())
        protocol.connect((f"::ffff:{arguments.host}", arguments.port, 0, 0))
        await asyncio.wait_for(protocol.wait_connected(), PATIENCE_S)
        self.newest = (transport, protocol)
        return protocol

    def keep_ticket(self, ticket):
        self.ticket = ticket

    async def accepted(self, reader, writer):
        try:
            protocol = await self.dial()
        except (OSError, asyncio.TimeoutError) as error:
            # Paho sees its connection end before CONNACK, and says so.
            print(f"no QUIC connection: {error!r}", flush=True)
            writer.close()
            return
        from_server, to_server = await protocol.create_stream()
        up = asyncio.ensure_future(self.pump(reader, to_server))
        down = asyncio.ensure_future(self.pump(from_server, writer))
        # Whichever side ends, the server is let speak its last word.
        await up
        await asyncio.wait([down], timeout=1)
        protocol.close()

    async def pump(self, source, sink):
        try:
            while data := await source.read(CHUNK):
                sink.write(data)
                await sink.drain()
            if sink.can_write_eof():
                sink.write_eof()
        except ConnectionError:
            # The other end is gone: so is this one.
            sink.close()

    async def migrate(self):
        """The newest connection goes on from another port, as after a change of the cell or of Wi-Fi."""
        old, protocol = self.newest
        before = old.get_extra_info("sockname")
        # `connection_made` makes the new socket the one that is sent through.
        new, _ = await self.loop.create_datagram_endpoint(lambda: protocol, sock=self.socket())
        old.close()
        protocol.change_connection_id()
        await asyncio.wait_for(protocol.ping(), PATIENCE_S)
        self.newest = (new, protocol)
        return before[1], new.get_extra_info("sockname")[1]


def steps(story):
    bridge = Bridge(story.arguments)

    def peer(story, name, **more):
        return paho_client.Peer(story, name, host="127.0.0.1", port=bridge.port, **more)

    car = peer(story, "mover")
    car.connect()
    handshake = bridge.newest[1].handshake
    same("protocol chosen (ALPN)", handshake.alpn_protocol, "mqtt")
    car.subscribe(story.topic("moved"), 1)
    for number in range(3):
        car.keep(story.topic("moved"), f"at place {number}", 1)
        car.expect(story.topic("moved"), f"at place {number}", 1)
        before, after = bridge.run(bridge.migrate())
        if before == after:
            raise Failed(f"the client did not move: its port is still {after}")
    car.keep(story.topic("moved"), "at last", 1)
    car.expect(story.topic("moved"), "at last", 1)
    car.disconnect()
    story.ok("the connection survives new addresses of the client")

    if bridge.ticket is None:
        raise Failed("the server gave no session ticket")
    car = peer(story, "mover")
    car.connect()
    handshake = bridge.newest[1].handshake
    same("session resumed", handshake.session_resumed, True)
    same("early data accepted", handshake.early_data_accepted, False)
    car.disconnect()
    story.ok("a TLS session is resumed, without early data")

    paho_client.steps(story, peer)


if __name__ == "__main__":
    tell(steps)
