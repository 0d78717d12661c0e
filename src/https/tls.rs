//! The TLS beneath an exchange's HTTP: what hyper reads from and writes to.

use core::{
    cell::RefCell,
    pin::Pin,
    task::{Context, Poll},
};
use std::{
    io::{self, Read as _, Write as _},
    rc::Rc,
};

use bytes::{Buf as _, BytesMut};
use hyper::rt::{Read, ReadBufCursor, Write};
use rustls::{ClientConnection, pki_types::ServerName};

use super::{HttpsError, Trust};
use crate::delegated::message::MAX_HEAD_LEN;

/// Sealed bytes that wait to be taken, at the most, beside what one write makes of its own; beyond it nothing is written.
const MOST_OUTGOING: usize = 64 << 10;
/// Sealed bytes that wait to be read. Whoever hands on more hasn't asked for events in between.
const MOST_RECEIVED: usize = 1 << 20;
/// Sealed bytes that are opened for the head of the response, the handshake among them: hints that go before a head, and TLS's tickets,
/// are passed over beneath us and without a limit of their own.
const MOST_BEFORE_HEAD: usize = 4 * MAX_HEAD_LEN;
/// Plain bytes that are read at a time.
const PIECE: usize = 16 << 10;

/// A TLS connection between what a stream brings and what goes over it.
pub(super) struct Tls {
    connection: ClientConnection,
    received: BytesMut,
    /// The stream brings no more.
    ended: bool,
    outgoing: Vec<u8>,
    failure: Option<HttpsError>,
    /// Sealed bytes that may yet be opened before the head has come; `None` since then.
    before_head: Option<usize>,
}

impl Tls {
    /// One to `host`, a name or an address, with its first message to be sent.
    pub(super) fn new(trust: &Trust, host: &str) -> Result<Self, HttpsError> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| HttpsError::Address)?;
        let connection = ClientConnection::new(trust.config(), name).map_err(|error| HttpsError::from(&error))?;
        let (received, before_head) = (BytesMut::new(), Some(MOST_BEFORE_HEAD));
        let mut tls = Self { connection, received, ended: false, outgoing: Vec::new(), failure: None, before_head };
        tls.seal();
        Ok(tls)
    }

    pub(super) fn handle_received(&mut self, bytes: &[u8]) {
        if self.received.len().saturating_add(bytes.len()) > MOST_RECEIVED {
            self.failure.get_or_insert(HttpsError::NotHttp);
        } else if !self.ended {
            self.received.extend_from_slice(bytes);
        }
    }

    pub(super) const fn handle_end(&mut self) {
        self.ended = true;
    }

    /// What is to be sent now.
    pub(super) fn take_outgoing(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.outgoing)
    }

    /// What went wrong in TLS, if anything did.
    pub(super) const fn failure(&self) -> Option<HttpsError> {
        self.failure
    }

    /// The head of the response has come.
    pub(super) const fn handle_head(&mut self) {
        self.before_head = None;
    }

    /// Moves what rustls has to send.
    fn seal(&mut self) {
        while self.connection.wants_write() && self.connection.write_tls(&mut self.outgoing).is_ok() {}
    }

    /// Opens some of what came; false if there is nothing to open.
    fn open(&mut self) -> io::Result<bool> {
        if self.failure.is_some() || (self.received.is_empty() && !self.ended) {
            return self.failure.map_or(Ok(false), |_| Err(broken()));
        }
        // At the end this reads nothing, and tells rustls so.
        let mut rest = &self.received[..];
        let read = self.connection.read_tls(&mut rest)?;
        self.received.advance(read);
        if let Some(left) = &mut self.before_head {
            *left = left.saturating_sub(read);
            if *left == 0 {
                self.failure = Some(HttpsError::NotHttp);
                return Err(broken());
            }
        }
        let outcome = self.connection.process_new_packets();
        // Answers of the handshake, and what a failure tells the other end.
        self.seal();
        if let Err(error) = outcome {
            self.failure = Some(HttpsError::from(&error));
            return Err(broken());
        }
        Ok(true)
    }

    fn read(&mut self, plain: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.connection.reader().read(plain) {
                Ok(read) => return Poll::Ready(Ok(read)),
                // Ended without TLS's own farewell: whoever is between could have cut it off.
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(error)),
                Err(_) => {}
            }
            let told = self.ended && self.received.is_empty();
            match self.open() {
                Ok(true) if told && self.connection.is_handshaking() => return Poll::Ready(Err(broken())),
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn write(&mut self, plain: &[u8]) -> Poll<io::Result<usize>> {
        // Until the other end has proved who it is nothing is taken, not even to be kept.
        while self.connection.is_handshaking() {
            let told = self.ended && self.received.is_empty();
            match self.open() {
                Ok(true) if told => return Poll::Ready(Err(broken())),
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        if self.failure.is_some() {
            return Poll::Ready(Err(broken()));
        }
        if self.outgoing.len() >= MOST_OUTGOING {
            return Poll::Pending;
        }
        let written = self.connection.writer().write(plain);
        self.seal();
        Poll::Ready(written)
    }
}

fn broken() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

/// A [`Tls`] for hyper. It wakes nobody: whoever hands something to an exchange polls it again.
pub(super) struct Ends(pub(super) Rc<RefCell<Tls>>);

impl Ends {
    fn with<T>(&self, act: impl FnOnce(&mut Tls) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.0.try_borrow_mut().map_or_else(|_| Poll::Ready(Err(broken())), |mut tls| act(&mut tls))
    }
}

impl Read for Ends {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<Result<(), io::Error>> {
        let mut plain = [0; PIECE];
        let most = buffer.remaining().min(PIECE);
        let Some(plain) = plain.get_mut(..most) else { return Poll::Ready(Err(broken())) };
        self.with(|tls| tls.read(plain)).map_ok(|read| buffer.put_slice(plain.get(..read).unwrap_or_default()))
    }
}

impl Write for Ends {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, io::Error>> {
        self.with(|tls| tls.write(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        self.with(|tls| {
            tls.connection.send_close_notify();
            tls.seal();
            Poll::Ready(Ok(()))
        })
    }
}
