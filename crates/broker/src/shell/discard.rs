//! What a client still sends after our last words: read and forgotten until it hangs up, for TCP throws
//! away what we said if the socket is closed over bytes that nobody read.
//!
//! A turn of it is bounded as any other: the client was refused, perhaps before anybody knew who it is,
//! and can send as fast as it likes.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{BufMut, BytesMut};
use tokio::io::AsyncReadExt;

use super::socket::Movable;

/// Reads up to `most` bytes, or a little more, through the empty `buffer`. Ready when the client has
/// hung up; the task is woken for the rest.
///
/// # Errors
/// Those of the transport.
pub(super) fn poll<S: Movable>(
    mut transport: Pin<&mut S>,
    buffer: &mut BytesMut,
    most: usize,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    let mut read = 0;
    while read < most {
        let mut room = (&mut *buffer).limit(most - read);
        let count = pin!(transport.read_buf(&mut room)).poll(cx);
        read += transport.take_overhead();
        let count = ready!(count)?;
        buffer.clear();
        if count == 0 {
            return Poll::Ready(Ok(()));
        }
        read += count;
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::*;

    /// Sends for as long as there is something left to send, around which it has frames of its own.
    struct Talker {
        left: usize,
        frames: usize,
        unsaid: usize,
    }

    impl AsyncRead for Talker {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let count = buf.remaining().min(self.left).min(1024);
            buf.put_slice(&vec![0; count]);
            self.left -= count;
            self.unsaid += count * self.frames;
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Talker {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl Movable for Talker {
        fn detach(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn attach(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn take_overhead(&mut self) -> usize {
            std::mem::take(&mut self.unsaid)
        }
    }

    #[test]
    fn who_goes_on_talking_has_turns_like_everybody() {
        const MOST: usize = 64 * 1024;
        for (frames, turns) in [(0, 16), (7, 128)] {
            let mut talker = Talker {
                left: 1 << 20,
                frames,
                unsaid: 0,
            };
            let mut buffer = BytesMut::with_capacity(MOST);
            for turn in 0..turns {
                let mut cx = Context::from_waker(Waker::noop());
                let polled = poll(Pin::new(&mut talker), &mut buffer, MOST, &mut cx);
                assert!(polled.is_pending(), "turn {turn}");
                let read = ((1 << 20) - talker.left) * (1 + frames);
                assert_eq!(read, MOST * (turn + 1));
            }
            let mut cx = Context::from_waker(Waker::noop());
            let polled = poll(Pin::new(&mut talker), &mut buffer, MOST, &mut cx);
            assert!(matches!(polled, Poll::Ready(Ok(()))), "it hung up");
        }
    }
}
