//! Requests and what they are answered with.

use super::upgrade::*;

const GOOD: &str = "GET /mqtt HTTP/1.1\r\n\
    Host: broker.example\r\n\
    Upgrade: websocket\r\n\
    Connection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Protocol: mqtt\r\n\r\n";

fn look(request: &str) -> Head {
    read(request.as_bytes(), "/mqtt")
}

#[test]
fn the_example_of_the_specification() {
    let Head::Upgrade { len, upgrade } = look(GOOD) else {
        panic!("{:?}", look(GOOD));
    };
    assert_eq!((len, upgrade.protocol()), (GOOD.len(), "mqtt"));
    let answer = upgrade.response();
    assert!(answer.starts_with("HTTP/1.1 101 Switching Protocols\r\n"));
    assert!(answer.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
    assert!(answer.contains("\r\nSec-WebSocket-Protocol: mqtt\r\n"));
    assert!(answer.ends_with("\r\n\r\n"));
}

#[test]
fn every_part_of_a_request_is_incomplete() {
    for len in 0..GOOD.len() {
        assert_eq!(look(&GOOD[..len]), Head::Incomplete, "{len}");
    }
}

#[test]
fn requests_that_are_granted() {
    let rows = [
        // What browsers send.
        (
            "Connection: Upgrade",
            "Connection: keep-alive, Upgrade",
            "mqtt",
        ),
        ("Upgrade: websocket", "uPgRaDe: WebSocket", "mqtt"),
        (
            "Connection: Upgrade",
            "connection: UPGRADE\r\nOrigin: https://elsewhere.example",
            "mqtt",
        ),
        ("Protocol: mqtt", "Protocol: mqttv3.1, mqtt", "mqtt"),
        (
            "Protocol: mqtt",
            "Protocol: other\r\nSec-WebSocket-Protocol: mqttv3.1",
            "mqttv3.1",
        ),
        (
            "Protocol: mqtt",
            "Protocol: mqtt\r\nSec-WebSocket-Extensions: permessage-deflate",
            "mqtt",
        ),
        ("GET /mqtt ", "GET /mqtt?token=x ", "mqtt"),
        (
            "Connection: Upgrade",
            "Connection: Upgrade\r\nContent-Length: 0",
            "mqtt",
        ),
    ];
    for (part, instead, protocol) in rows {
        match look(&GOOD.replace(part, instead)) {
            Head::Upgrade { upgrade, .. } => assert_eq!(upgrade.protocol(), protocol, "{instead}"),
            other => panic!("{instead}: {other:?}"),
        }
    }
}

#[test]
fn requests_for_our_path_that_are_refused() {
    let rows = [
        ("GET ", "POST ", "405 Method Not Allowed"),
        ("Version: 13", "Version: 8", "426 Upgrade Required"),
        ("Sec-WebSocket-Version: 13\r\n", "", "426 Upgrade Required"),
        ("HTTP/1.1", "HTTP/1.0", "400 Bad Request"),
        ("Host: broker.example\r\n", "", "400 Bad Request"),
        (
            "Host: broker.example",
            "Host: a\r\nHost: b",
            "400 Bad Request",
        ),
        (
            "Connection: Upgrade",
            "Connection: close",
            "400 Bad Request",
        ),
        ("Protocol: mqtt", "Protocol: chat", "400 Bad Request"),
        ("Protocol: mqtt", "Protocol: MQTT", "400 Bad Request"),
        ("Sec-WebSocket-Protocol: mqtt\r\n", "", "400 Bad Request"),
        (
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
            "",
            "400 Bad Request",
        ),
        (
            "Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Key: dGhlIHNhbXBsZQ==",
            "400 Bad Request",
        ),
        (
            "Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Key: ####",
            "400 Bad Request",
        ),
        (
            "Connection: Upgrade",
            "Connection: Upgrade\r\nContent-Length: 5",
            "400 Bad Request",
        ),
        (
            "Connection: Upgrade",
            "Connection: Upgrade\r\nTransfer-Encoding: chunked",
            "400 Bad Request",
        ),
    ];
    for (part, instead, status) in rows {
        match look(&GOOD.replace(part, instead)) {
            Head::Refused(refusal) => assert_eq!(refusal.status(), status, "{part} -> {instead}"),
            other => panic!("{part} -> {instead}: {other:?}"),
        }
    }
    assert!(
        Refusal::Version
            .response()
            .contains("\r\nSec-WebSocket-Version: 13\r\n")
    );
    assert!(Refusal::Method.response().contains("\r\nAllow: GET\r\n"));
}

#[test]
fn requests_that_are_for_somebody_else() {
    let long = format!("GET /mqtt HTTP/1.1\r\nCookie: {}", "x".repeat(MAX_HEAD));
    let many = format!(
        "GET /mqtt HTTP/1.1\r\n{}\r\n",
        "A: b\r\n".repeat(MAX_HEADERS + 1)
    );
    let rows = [
        (GOOD.replace("/mqtt", "/"), "404 Not Found"),
        (GOOD.replace("/mqtt", "/mqtt/"), "404 Not Found"),
        (GOOD.replace("/mqtt", "/MQTT"), "404 Not Found"),
        (
            GOOD.replace("Upgrade: websocket\r\n", ""),
            "426 Upgrade Required",
        ),
        (
            GOOD.replace("Upgrade: websocket", "Upgrade: h2c"),
            "426 Upgrade Required",
        ),
        (
            "POST /mqtt HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
            "405 Method Not Allowed",
        ),
        (long, "431 Request Header Fields Too Large"),
        (many, "431 Request Header Fields Too Large"),
        // MQTT, TLS, HTTP/2, and nothing at all.
        ("\x10\x0D\0\x04MQTT".to_owned(), "400 Bad Request"),
        ("\x16\x03\x01".to_owned(), "400 Bad Request"),
        (
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
            "400 Bad Request",
        ),
        ("\r\n\r\n".to_owned(), "400 Bad Request"),
    ];
    for (request, status) in rows {
        match look(&request) {
            Head::Elsewhere(refusal) => assert_eq!(refusal.status(), status, "{request:.60}"),
            other => panic!("{request:.60}: {other:?}"),
        }
    }
}

#[test]
fn answers_have_the_length_they_claim() {
    let all = [
        Refusal::Bad("why"),
        Refusal::NotFound,
        Refusal::Method,
        Refusal::NoUpgrade,
        Refusal::Version,
        Refusal::TooLarge,
    ];
    for refusal in all {
        let response = refusal.response();
        let (head, body) = response.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())));
        assert!(head.contains("close"));
    }
}
