//! Rights on a broker that asks for them: CreateAcls and DeleteAcls (KIP-140), which the client library does not speak.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

const CREATE_ACLS: i16 = 30;
const DELETE_ACLS: i16 = 31;
/// Of both: the last one without tagged fields, and the first that brokers of today take.
const VERSION: i16 = 1;
/// A name as it stands, not a prefix.
const LITERAL: u8 = 3;
const ALLOW: u8 = 3;

/// What a right is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On<'a> {
    /// A topic.
    Topic(&'a str),
    /// A consumer group.
    Group(&'a str),
}

/// What it allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Operation {
    /// Of a topic: to fetch, and to commit offsets of it. Of a group: to join it, and to commit. It allows to describe, too.
    Read = 3,
    /// To write records.
    Write = 4,
    /// To see that it is there.
    Describe = 8,
}

/// One right of one user.
pub(crate) struct Right<'a> {
    pub(crate) user: &'a str,
    pub(crate) operation: Operation,
    pub(crate) on: On<'a>,
}

impl Right<'_> {
    /// Gives it, by a connection that may.
    pub(crate) fn allow(&self, broker: &str) {
        call(broker, CREATE_ACLS, &self.body());
    }

    /// Takes it.
    pub(crate) fn take(&self, broker: &str) {
        call(broker, DELETE_ACLS, &self.body());
    }

    /// One right, as both requests name it.
    fn body(&self) -> Vec<u8> {
        let (kind, name) = self.resource();
        let mut body = 1_i32.to_be_bytes().to_vec();
        body.push(kind);
        string(&mut body, name);
        body.push(LITERAL);
        string(&mut body, &format!("User:{}", self.user));
        string(&mut body, "*");
        body.extend([self.operation as u8, ALLOW]);
        body
    }

    fn resource(&self) -> (u8, &str) {
        match self.on {
            On::Topic(name) => (2, name),
            On::Group(name) => (3, name),
        }
    }
}

fn string(body: &mut Vec<u8>, text: &str) {
    let length = i16::try_from(text.len()).expect("a short name");
    body.extend(length.to_be_bytes());
    body.extend(text.as_bytes());
}

/// Asks, and panics with what the broker has against it.
fn call(broker: &str, api: i16, body: &[u8]) {
    let mut request = Vec::new();
    request.extend(api.to_be_bytes());
    request.extend(VERSION.to_be_bytes());
    request.extend(1_i32.to_be_bytes());
    string(&mut request, "sluice-tests");
    request.extend(body);
    let mut stream = TcpStream::connect(broker).expect("connect to the broker");
    let length = i32::try_from(request.len()).expect("a short request");
    stream.write_all(&length.to_be_bytes()).and_then(|()| stream.write_all(&request)).expect("ask the broker");
    let mut length = [0; 4];
    stream.read_exact(&mut length).expect("an answer");
    let mut answer = vec![0; usize::try_from(i32::from_be_bytes(length)).expect("not negative")];
    stream.read_exact(&mut answer).expect("an answer");
    // Correlation, throttle, one result: a code, and words.
    let code = i16::from_be_bytes([answer[12], answer[13]]);
    assert_eq!(code, 0, "the broker does not change a right: {}", String::from_utf8_lossy(&answer[14..]));
}
