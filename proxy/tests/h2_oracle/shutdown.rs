//! The end of a connection in good order: what was begun is finished, and what was not processed is
//! known to be so.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;
use weft_core::h2::connection::Config;
use weft_core::h2::frame::Role;

use super::exchanges::{Pipe, pipe};
use super::ours::{Ours, config};
use super::plan::{End, Exchange, Seen, exchanges};
use super::theirs::{self, Log, Settings, settings};
use super::{cases, run};

/// Who ends the connection, and after how many requests.
#[derive(Debug, Clone, Copy)]
struct Shutdown {
    by_us: bool,
    after: usize,
}

/// Every exchange is whole at both ends, or was not processed, and then the server knows nothing of it.
fn check(
    exchanges: &[Exchange],
    client: &BTreeMap<usize, Seen>,
    server: &BTreeMap<usize, Seen>,
) -> Result<(), TestCaseError> {
    for (number, exchange) in exchanges.iter().enumerate() {
        let seen = client
            .get(&number)
            .filter(|seen| seen.end != End::Unprocessed);
        match (seen, server.get(&number)) {
            (Some(client), Some(server)) => {
                exchange.check(number, true, client)?;
                exchange.check(number, false, server)?;
            }
            (None, None) => {}
            (client, server) => {
                prop_assert!(false, "{number}: client {client:?}, server {server:?}");
            }
        }
    }
    Ok(())
}

async fn with_our_client(
    (config, settings): (Config, Settings),
    exchanges: Vec<Exchange>,
    pipe: Pipe,
    shutdown: Shutdown,
) -> Result<(), TestCaseError> {
    let pipe = pipe.of(&exchanges);
    let (mut near, far) = tokio::io::duplex(pipe.room);
    let log = Log::default();
    let theirs = Some(shutdown.after).filter(|_| !shutdown.by_us);
    let server = theirs::server(far, settings, exchanges.clone(), Log::clone(&log), theirs);
    let server = tokio::spawn(server);
    let after = Some(shutdown.after).filter(|_| shutdown.by_us);
    let mut ours = Ours::new(Role::Client, config, exchanges.clone(), pipe.cut, after);
    ours.is_patient = settings.are_to_be_awaited(config);
    let driven = ours.drive(&mut near).await;
    prop_assert!(driven.is_ok(), "{driven:?}");
    ours.check_is_unused(config)?;
    drop(near);
    let _ended = server.await.unwrap();
    let log = log.lock().unwrap();
    if shutdown.by_us {
        prop_assert_eq!(ours.seen.len(), log.len());
        prop_assert!(log.len() >= shutdown.after);
    }
    check(&exchanges, &ours.seen, &log)
}

async fn with_our_server(
    (config, settings): (Config, Settings),
    exchanges: Vec<Exchange>,
    pipe: Pipe,
    after: usize,
) -> Result<(), TestCaseError> {
    let pipe = pipe.of(&exchanges);
    let (far, mut near) = tokio::io::duplex(pipe.room);
    let log = Log::default();
    let client = theirs::client(far, settings, exchanges.clone(), Log::clone(&log));
    let client = tokio::spawn(client);
    let mut ours = Ours::new(
        Role::Server,
        config,
        exchanges.clone(),
        pipe.cut,
        Some(after),
    );
    let driven = ours.drive(&mut near).await;
    prop_assert!(driven.is_ok(), "{driven:?}");
    ours.check_is_unused(config)?;
    drop(near);
    let ended = client.await.unwrap();
    // It may have had something to say when the pipe was closed.
    prop_assert!(
        ended.is_ok() || ended.as_ref().is_err_and(h2::Error::is_io),
        "{ended:?}"
    );
    prop_assert!(ours.seen.len() >= after.min(exchanges.len()));
    check(&exchanges, &log.lock().unwrap(), &ours.seen)
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn our_client_and_their_server(
        sides in (config(), settings()),
        exchanges in exchanges(false),
        pipe in pipe(),
        by_us: bool,
        after: Index,
    ) {
        let after = after.index(exchanges.len() + 1);
        run(with_our_client(sides, exchanges, pipe, Shutdown { by_us, after }))?;
    }

    #[test]
    fn their_client_and_our_server(
        sides in (config(), settings()),
        exchanges in exchanges(false),
        pipe in pipe(),
        after: Index,
    ) {
        let after = after.index(exchanges.len() + 1);
        run(with_our_server(sides, exchanges, pipe, after))?;
    }
}
