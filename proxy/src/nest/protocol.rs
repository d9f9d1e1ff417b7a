//! What the sidecar and the nest's first process say to each other, over a socket pair that the
//! latter inherits: neither the command line nor the environment shows it.
//!
//! Sidecar → init: one [`Plan`] frame, then one byte per signal to deliver. Init → sidecar:
//! [`Report`] frames. A frame is its length in bytes (u32, big-endian) and that much JSON. The end
//! of the stream means that the other side is gone.

use std::ffi::OsString;
use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::User;

/// The longest frame, in bytes: arguments and environment are at most 2 MiB (`ARG_MAX`'s usual
/// value) and JSON spells a byte in up to four.
const MAX_FRAME: u32 = 16 << 20;

/// Everything that init needs to know.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) command: Vec<OsString>,
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) user: Option<User>,
    pub(super) hide: Vec<OsString>,
    pub(super) search_domains: Vec<String>,
    /// Whether names are the sidecar's to resolve.
    pub(super) own_network: bool,
    /// Whether the program must not see other processes; see [`super::view`].
    pub(super) only_own_processes: bool,
}

/// What init has done.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Report {
    /// It dies with its parent from here on, and waits for the plan.
    Ready,
    /// The program runs.
    Started,
    /// A directory or file could not be covered.
    NotHidden { path: OsString, errno: i32 },
    /// A step of the preparation failed.
    NotPrepared { step: String, errno: i32 },
    /// The program could not be executed.
    NotExecuted { errno: i32 },
    /// The program ended; the status is that of wait(2).
    Exited { status: i32 },
}

pub(super) fn send(stream: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|&length| length <= MAX_FRAME)
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "command and environment are too long",
            )
        })?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend(body);
    stream.write_all(&frame)
}

pub(super) fn receive<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length > MAX_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "frame is too long",
        ));
    }
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn arguments_that_are_not_utf8_arrive_unchanged() {
        let plan = Plan {
            command: vec![OsString::from_vec(vec![0xff, 0xfe, b'x'])],
            env: vec![("A".into(), OsString::from_vec(vec![0x80]))],
            user: Some(User {
                uid: 7,
                gid: 8,
                groups: vec![9],
            }),
            hide: vec![OsString::from_vec(vec![b'/', 0xe4])],
            own_network: true,
            only_own_processes: true,
            search_domains: vec!["shop.mesh".into()],
        };
        let mut wire = Vec::new();
        send(&mut wire, &plan).unwrap();
        let back: Plan = receive(&mut wire.as_slice()).unwrap();
        assert_eq!(format!("{plan:?}"), format!("{back:?}"));
    }

    #[test]
    fn bad_frames_are_refused() {
        let check = |bytes: &[u8], expected| {
            let found = receive::<Report>(&mut &*bytes).unwrap_err().kind();
            assert_eq!(found, expected, "{bytes:?}");
        };
        check(b"", io::ErrorKind::UnexpectedEof);
        check(&[0, 0, 0, 9, b'"'], io::ErrorKind::UnexpectedEof);
        check(&[0xff, 0, 0, 0], io::ErrorKind::InvalidData);
        check(&[0, 0, 0, 1, b'{'], io::ErrorKind::UnexpectedEof);
        check(&[0, 0, 0, 3, b'"', b'x', b'"'], io::ErrorKind::InvalidData);
    }
}
