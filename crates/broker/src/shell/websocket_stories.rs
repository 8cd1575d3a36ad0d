//! A WebSocket over a transport that takes and gives what the test says.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::socket::Movable;
use super::websocket::{self, Accepted, Others, UpgradeError, WebSocketStream};
use crate::transport::WebSocket;
use crate::websocket::frame::{Decoder, Violation};

/// Both sides of the wire.
#[derive(Debug, Default)]
struct Wire {
    coming: VecDeque<Vec<u8>>,
    hung_up: bool,
    /// Bytes that may still go out.
    room: usize,
    gone: Vec<u8>,
    writes: usize,
    flushed: usize,
    shut: bool,
}

#[derive(Debug, Clone, Default)]
struct Narrow(Arc<Mutex<Wire>>);

impl Narrow {
    fn wire<T>(&self, look: impl FnOnce(&mut Wire) -> T) -> T {
        look(&mut self.0.lock().expect("no test panics in here"))
    }
}

impl Movable for Narrow {
    fn detach(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn attach(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for Narrow {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.wire(|wire| match wire.coming.pop_front() {
            Some(mut bytes) => {
                let rest = bytes.split_off(bytes.len().min(buf.remaining()));
                buf.put_slice(&bytes);
                if !rest.is_empty() {
                    wire.coming.push_front(rest);
                }
                Poll::Ready(Ok(()))
            }
            None if wire.hung_up => Poll::Ready(Ok(())),
            None => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        })
    }
}

impl AsyncWrite for Narrow {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.wire(|wire| {
            if wire.room == 0 {
                return Poll::Pending;
            }
            wire.writes += 1;
            let mut all: Vec<u8> = bufs.iter().flat_map(|buf| buf.to_vec()).collect();
            all.truncate(wire.room);
            wire.room -= all.len();
            wire.gone.extend_from_slice(&all);
            Poll::Ready(Ok(all.len()))
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire(|wire| wire.flushed = wire.gone.len());
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire(|wire| wire.shut = true);
        Poll::Ready(Ok(()))
    }
}

/// A stream and the other end of its transport.
struct Story {
    stream: RefCell<WebSocketStream<Narrow>>,
    other: Narrow,
}

const REQUEST: &[u8] = b"GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";

fn accept(other: &Narrow, others: Others, read: &[u8]) -> Result<Accepted<Narrow>, UpgradeError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let settings = WebSocket {
        path: "/mqtt".to_owned(),
    };
    runtime.block_on(websocket::accept(
        other.clone(),
        &settings,
        others,
        read.into(),
    ))
}

impl Story {
    /// After the upgrade, with room for so many bytes.
    fn begin(room: usize) -> Story {
        Story::begin_with(REQUEST, room)
    }

    fn begin_with(read: &[u8], room: usize) -> Story {
        let other = Narrow::default();
        other.wire(|wire| wire.room = usize::MAX);
        let Ok(Accepted::WebSocket(stream)) = accept(&other, Others::Refuse, read) else {
            panic!("refused");
        };
        other.wire(|wire| {
            let (room, coming) = (room, std::mem::take(&mut wire.coming));
            *wire = Wire {
                room,
                coming,
                ..Wire::default()
            }
        });
        let stream = RefCell::new(stream);
        Story { stream, other }
    }

    fn comes(&self, bytes: &[u8]) {
        self.other
            .wire(|wire| wire.coming.push_back(bytes.to_vec()));
    }

    fn room(&self, room: usize) {
        self.other.wire(|wire| wire.room = room);
    }

    fn poll<T>(
        &self,
        poll: impl FnOnce(Pin<&mut WebSocketStream<Narrow>>, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let mut stream = self.stream.borrow_mut();
        poll(
            Pin::new(&mut *stream),
            &mut Context::from_waker(Waker::noop()),
        )
    }

    /// One read: MQTT bytes, or the error; `None` if nothing comes.
    fn read(&self) -> Option<io::Result<Vec<u8>>> {
        let mut space = [0; 512];
        let mut buf = ReadBuf::new(&mut space);
        match self.poll(|stream, cx| stream.poll_read(cx, &mut buf)) {
            Poll::Ready(result) => Some(result.map(|()| buf.filled().to_vec())),
            Poll::Pending => None,
        }
    }

    fn write(&self, bytes: &[u8]) -> Option<usize> {
        match self.poll(|stream, cx| stream.poll_write(cx, bytes)) {
            Poll::Ready(count) => Some(count.expect("it takes bytes")),
            Poll::Pending => None,
        }
    }

    fn gone(&self) -> Vec<u8> {
        self.other.wire(|wire| wire.gone.clone())
    }
}

/// A frame as a client sends it; the mask is 0.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let len = u8::try_from(payload.len()).expect("a short one");
    [&[first, 0x80 | len, 0, 0, 0, 0], payload].concat()
}

#[test]
fn a_write_is_one_frame_and_one_system_call() {
    let story = Story::begin(usize::MAX);
    assert_eq!(story.write(b"hello"), Some(5));
    assert_eq!(story.gone(), b"\x82\x05hello");
    assert_eq!(story.other.wire(|wire| wire.writes), 1);
    assert_eq!(story.write(b""), Some(0));
    assert_eq!(story.gone(), b"\x82\x05hello");
}

#[test]
fn a_frame_that_goes_out_in_pieces_is_whole_however_they_are_cut() {
    let payload: Vec<u8> = (0..300).map(|n| n as u8).collect();
    let expected = [&b"\x82\x7E\x01\x2C"[..], &payload, b"\x82\x02ok"].concat();
    for room in 1..=payload.len() {
        let story = Story::begin(0);
        let mut rest = &payload[..];
        while !rest.is_empty() {
            story.room(room);
            while let Some(count) = story.write(rest) {
                rest = &rest[count..];
                if rest.is_empty() {
                    break;
                }
            }
        }
        story.room(usize::MAX);
        assert_eq!(story.write(b"ok"), Some(2));
        assert_eq!(story.gone(), expected, "{room} bytes at a time");
    }
}

#[test]
fn a_frame_of_which_nothing_went_out_may_still_grow() {
    let story = Story::begin(0);
    assert_eq!(story.write(b"a"), None);
    story.room(usize::MAX);
    assert_eq!(story.write(b"ab"), Some(2));
    assert_eq!(story.gone(), b"\x82\x02ab");
}

#[test]
fn a_longer_write_ends_the_frame_before_it_begins_its_own() {
    let story = Story::begin(3);
    assert_eq!(story.write(b"ab"), Some(1));
    story.room(usize::MAX);
    assert_eq!(story.write(b"bcd"), Some(1), "the rest of the frame");
    assert_eq!(story.write(b"cd"), Some(2));
    assert_eq!(story.gone(), b"\x82\x02ab\x82\x02cd");
}

#[test]
fn pings_are_answered_between_two_frames() {
    let story = Story::begin(3);
    assert_eq!(story.write(b"ab"), Some(1));
    story.comes(&[frame(0x89, b"one"), frame(0x89, b"two")].concat());
    story.comes(&frame(0x82, b"mqtt"));
    assert_eq!(story.read().expect("bytes").expect("good"), b"mqtt");
    assert_eq!(story.gone(), b"\x82\x02a", "not in the middle of a frame");
    story.room(usize::MAX);
    assert_eq!(story.write(b"b"), Some(1));
    assert!(story.read().is_none());
    assert_eq!(story.gone(), b"\x82\x02ab\x8A\x03two");
    let flushed = story.other.wire(|wire| wire.flushed);
    assert_eq!(
        flushed,
        story.gone().len(),
        "a pong is not left in a buffer"
    );
}

#[test]
fn who_pings_and_does_not_read_costs_two_frames_at_most() {
    let story = Story::begin(1);
    for _ in 0..1000 {
        story.comes(&frame(0x89, &[b'x'; 100]));
        assert!(story.read().is_none());
    }
    story.comes(&frame(0x89, b"last"));
    assert!(story.read().is_none());
    story.room(usize::MAX);
    assert!(story.read().is_none());
    let gone = story.gone();
    assert_eq!(gone.len(), 102 + 6);
    assert!(gone.ends_with(b"\x8A\x04last"));
}

#[test]
fn frames_without_mqtt_do_not_hold_the_worker_up() {
    let story = Story::begin(usize::MAX);
    for _ in 0..100 {
        story.comes(&frame(0x8A, b""));
    }
    assert!(story.read().is_none());
    assert!(
        story.other.wire(|wire| wire.coming.len()) > 50,
        "its turn is over"
    );
}

#[test]
fn a_turn_without_mqtt_is_bounded_in_bytes_and_all_of_them_are_counted() {
    let story = Story::begin(usize::MAX);
    let empty = frame(0x82, b"").repeat(50 * 1024 / 6);
    for _ in 0..4 {
        story.comes(&empty);
    }
    let mut space = vec![0; 64 * 1024];
    let mut read = || {
        let mut buf = ReadBuf::new(&mut space);
        let polled = story.poll(|stream, cx| stream.poll_read(cx, &mut buf));
        let overhead = story.stream.borrow_mut().take_overhead();
        (polled.is_pending(), overhead)
    };
    assert_eq!(read(), (true, 2 * empty.len()), "its turn is over");
    assert_eq!(read(), (true, 2 * empty.len()));
    story.comes(&[frame(0x89, b"ping"), frame(0x82, b"mqtt")].concat());
    assert_eq!(read(), (false, 6 + 4 + 6));
    assert_eq!(read(), (true, 0));
}

#[test]
fn what_was_sent_behind_the_request_is_not_lost() {
    let all = [REQUEST, &frame(0x82, b"hello")].concat();
    let story = Story::begin_with(&all, usize::MAX);
    assert_eq!(story.read().expect("bytes").expect("good"), b"hello");
    assert!(story.read().is_none());
    story.comes(&frame(0x82, b"more"));
    assert_eq!(story.read().expect("bytes").expect("good"), b"more");
}

#[test]
fn a_close_frame_is_answered_and_is_the_end_of_the_stream() {
    let story = Story::begin(usize::MAX);
    let bytes = [
        frame(0x82, b"last"),
        frame(0x88, b"\x0F\xA0bye"),
        frame(0x82, b"late"),
    ];
    story.comes(&bytes.concat());
    assert_eq!(story.read().expect("bytes").expect("good"), b"last");
    assert_eq!(story.read().expect("an end").expect("in order"), b"");
    assert_eq!(story.gone(), b"\x88\x02\x0F\xA0");
    assert_eq!(story.read().expect("an end").expect("in order"), b"");
    assert_eq!(story.gone(), b"\x88\x02\x0F\xA0", "said once");
    assert!(
        story
            .poll(|stream, cx| stream.poll_write(cx, b"x"))
            .map(|r| r.is_err())
            == Poll::Ready(true)
    );
}

#[test]
fn a_violation_is_an_error_and_is_told_at_the_end() {
    let rows: [(&[u8], &[u8]); 3] = [
        (b"\x82\x01a", b"\x88\x02\x03\xEA"),
        (b"\x81\x81\0\0\0\0a", b"\x88\x02\x03\xEB"),
        (b"\x82\xFF\0\0\0\xFF\0\0\0\0\0\0\0\0", b"\x88\x02\x03\xF1"),
    ];
    for (bytes, answer) in rows {
        let story = Story::begin(usize::MAX);
        story.comes(&[&frame(0x82, b"good")[..], bytes].concat());
        assert_eq!(story.read().expect("bytes").expect("good"), b"good");
        let error = story.read().expect("an end").expect_err("a violation");
        assert!(error.get_ref().is_some_and(|inner| inner.is::<Violation>()));
        // First what it is still owed, then why.
        assert_eq!(story.write(b"last"), Some(4));
        let shut = |story: &Story| story.poll(|stream, cx| stream.poll_shutdown(cx)).is_ready();
        assert!(shut(&story), "no answer is waited for");
        assert_eq!(story.gone(), [&b"\x82\x04last"[..], answer].concat());
        assert!(story.other.wire(|wire| wire.shut));
        // What comes now means nothing, and is read so that the client gets that.
        story.comes(b"whatever");
        assert!(
            story
                .read()
                .is_some_and(|read| read.is_ok_and(|bytes| !bytes.is_empty()))
        );
        assert!(story.read().is_none());
        story.other.wire(|wire| wire.hung_up = true);
        assert_eq!(story.read().expect("an end").expect("in order"), b"");
        // Whoever does not read is waited for as long as the link does.
        let story = Story::begin(0);
        story.comes(bytes);
        assert!(story.read().expect("an end").is_err());
        assert!(!shut(&story));
    }
}

#[test]
fn a_shutdown_says_goodbye_and_waits_for_the_answer() {
    let story = Story::begin(usize::MAX);
    let shut = |story: &Story| story.poll(|stream, cx| stream.poll_shutdown(cx)).is_ready();
    assert!(!shut(&story));
    assert_eq!(story.gone(), b"\x88\x02\x03\xE8");
    story.comes(&frame(0x82, b"still talking"));
    assert!(!shut(&story));
    story.comes(&frame(0x88, b"\x03\xE8"));
    assert!(shut(&story));
    assert!(story.other.wire(|wire| wire.shut));
    assert_eq!(story.gone(), b"\x88\x02\x03\xE8", "said once");

    // A broker that stops; a client that hangs up without a word.
    let story = Story::begin(usize::MAX);
    story.stream.borrow_mut().going_away();
    assert!(!shut(&story));
    assert_eq!(story.gone(), b"\x88\x02\x03\xE9");
    story.other.wire(|wire| wire.hung_up = true);
    assert!(shut(&story));

    // In the middle of a frame there is nothing to be said.
    let story = Story::begin(3);
    assert_eq!(story.write(b"ab"), Some(1));
    assert!(shut(&story));
    assert_eq!(story.gone(), b"\x82\x02a");
}

#[test]
fn the_end_of_the_transport_is_the_end_of_the_stream() {
    let story = Story::begin(usize::MAX);
    story.other.wire(|wire| wire.hung_up = true);
    assert_eq!(story.read().expect("an end").expect("in order"), b"");
}

#[test]
fn a_request_for_somebody_else_is_handed_back_with_all_that_was_read() {
    let request = b"POST /api HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody";
    let other = Narrow::default();
    other.wire(|wire| {
        wire.room = usize::MAX;
        wire.coming.push_back(request[10..].to_vec());
    });
    match accept(&other, Others::HandBack, &request[..10]) {
        Ok(Accepted::Other { stream, read }) => {
            assert_eq!(&read[..], request);
            assert_eq!(stream.wire(|wire| wire.gone.len()), 0);
        }
        other => panic!("{other:?}"),
    }
    // An upgrade at our path that is wrong is ours to refuse.
    let wrong = String::from_utf8_lossy(REQUEST).replace(": 13", ": 12");
    other.wire(|wire| wire.hung_up = true);
    let refused = accept(&other, Others::HandBack, wrong.as_bytes());
    assert!(matches!(refused, Err(UpgradeError::Refused(_))));
    assert!(other.wire(|wire| wire.gone.starts_with(b"HTTP/1.1 426 ")));
    assert!(other.wire(|wire| wire.shut));
}

#[test]
fn a_request_that_ends_too_early_or_comes_byte_by_byte() {
    let other = Narrow::default();
    other.wire(|wire| {
        wire.room = usize::MAX;
        wire.coming = REQUEST.iter().map(|byte| vec![*byte]).collect();
    });
    assert!(matches!(
        accept(&other, Others::Refuse, b""),
        Ok(Accepted::WebSocket(_))
    ));
    let other = Narrow::default();
    other.wire(|wire| wire.hung_up = true);
    assert!(matches!(
        accept(&other, Others::Refuse, b"GET / HT"),
        Err(UpgradeError::Left)
    ));
}

#[test]
fn an_idle_websocket_costs_its_state() {
    let state = size_of::<WebSocketStream<Narrow>>() - size_of::<Narrow>();
    assert!(
        state <= 128,
        "{state} bytes; the decoder's are {}",
        size_of::<Decoder>()
    );
    assert_eq!(BytesMut::new().capacity(), 0);
}
