//! Exchanges of which every byte arrives.

use std::collections::BTreeMap;

use proptest::prelude::*;
use weft_core::h2::connection::Config;
use weft_core::h2::frame::Role;

use super::ours::{Ours, config};
use super::plan::{End, Exchange, Seen, exchanges};
use super::theirs::{self, Log, Settings, settings};
use super::{cases, run};

/// How bytes come over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pipe {
    /// Bytes on the way in each direction, at most.
    pub(crate) room: usize,
    /// Bytes that our side reads at a time, about.
    pub(crate) cut: usize,
}

impl Pipe {
    /// The pipe for these exchanges: it takes not too many pieces.
    pub(crate) fn of(self, exchanges: &[Exchange]) -> Self {
        let bytes: usize = exchanges.iter().map(Exchange::bytes).sum();
        let least = bytes / 3_000 + 1;
        Self {
            room: self.room.max(least),
            cut: self.cut.max(least),
        }
    }
}

pub(crate) fn pipe() -> impl Strategy<Value = Pipe> {
    let room = prop_oneof![1..200_usize, 1_000..300_000_usize];
    let cut = prop_oneof![0..3_usize, 3..100_usize, 100..30_000_usize];
    (room, cut).prop_map(|(room, cut)| Pipe { room, cut })
}

/// What is seen at both ends is what was sent, and an exchange that was not processed was not seen.
fn check(
    exchanges: &[Exchange],
    client: &BTreeMap<usize, Seen>,
    server: &BTreeMap<usize, Seen>,
) -> Result<(), TestCaseError> {
    prop_assert_eq!(client.len(), exchanges.len());
    for (number, exchange) in exchanges.iter().enumerate() {
        exchange.check(number, true, &client[&number])?;
        match server.get(&number) {
            Some(seen) => exchange.check(number, false, seen)?,
            // It was given up before it was sent.
            None => prop_assert_eq!(client[&number].end, End::Reset),
        }
    }
    Ok(())
}

async fn with_our_client(
    config: Config,
    settings: Settings,
    exchanges: Vec<Exchange>,
    pipe: Pipe,
) -> Result<(), TestCaseError> {
    let pipe = pipe.of(&exchanges);
    let (mut near, far) = tokio::io::duplex(pipe.room);
    let log = Log::default();
    let server = theirs::server(far, settings, exchanges.clone(), Log::clone(&log), None);
    let server = tokio::spawn(server);
    let mut ours = Ours::new(Role::Client, config, exchanges.clone(), pipe.cut, None);
    ours.is_patient = settings.are_to_be_awaited(config);
    let driven = ours.drive(&mut near).await;
    prop_assert!(driven.is_ok(), "{driven:?}");
    ours.check_is_unused(config)?;
    ours.check_secrets()?;
    drop(near);
    // That its client is gone is an error to it, or is not.
    let _ended = server.await.unwrap();
    check(&exchanges, &ours.seen, &log.lock().unwrap())
}

async fn with_our_server(
    config: Config,
    settings: Settings,
    exchanges: Vec<Exchange>,
    pipe: Pipe,
) -> Result<(), TestCaseError> {
    let pipe = pipe.of(&exchanges);
    let (far, mut near) = tokio::io::duplex(pipe.room);
    let log = Log::default();
    let client = theirs::client(far, settings, exchanges.clone(), Log::clone(&log));
    let client = tokio::spawn(client);
    let mut ours = Ours::new(Role::Server, config, exchanges.clone(), pipe.cut, None);
    let driven = ours.drive(&mut near).await;
    prop_assert!(driven.is_ok(), "{driven:?}");
    ours.check_is_unused(config)?;
    ours.check_secrets()?;
    drop(near);
    let ended = client.await.unwrap();
    prop_assert!(ended.is_ok(), "{ended:?}");
    check(&exchanges, &log.lock().unwrap(), &ours.seen)
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn our_client_and_their_server(
        config in config(),
        settings in settings(),
        exchanges in exchanges(true),
        pipe in pipe(),
    ) {
        run(with_our_client(config, settings, exchanges, pipe))?;
    }

    #[test]
    fn their_client_and_our_server(
        config in config(),
        settings in settings(),
        exchanges in exchanges(true),
        pipe in pipe(),
    ) {
        run(with_our_server(config, settings, exchanges, pipe))?;
    }
}
