//! Names of servers outside the mesh: each is asked for of the host's resolvers, again and again, off
//! the path of any request. Core says when.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use weft_core::resolve::{Found, Resolution, TTL_MAX};

use crate::dns::{ask_tcp, ask_udp};
use crate::mesh::{Mesh, Named};

/// Names that one sidecar resolves.
const NAMES_MAX: usize = 1024;
/// Names that are asked for at the same time.
const ASKING_MAX: usize = 16;
/// How long one resolver may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long no name is looked for when none is due.
const IDLE: Duration = Duration::from_secs(3600);
/// Aliases from a name to the one with addresses.
const CHAIN_MAX: usize = 16;

/// Whom to ask, and for what.
#[derive(Debug, Clone)]
pub struct Lookup {
    /// The host's resolvers, in their order.
    pub nameservers: Arc<[SocketAddr]>,
    /// Whether IPv6 addresses would lead anywhere.
    pub ipv6: bool,
}

/// Resolves what the services that are held need. Runs until the task is dropped.
pub async fn run(mesh: Arc<Mesh>, lookup: Lookup) {
    let mut changes = mesh.changes();
    let mut names: HashMap<Arc<str>, Resolution> = HashMap::new();
    let mut asking: JoinSet<(Arc<str>, Found)> = JoinSet::new();
    let mut asked: BTreeSet<Arc<str>> = BTreeSet::new();
    loop {
        changes.mark_unchanged();
        follow(&mesh, &mut names);
        let now = crate::clock::now();
        let mut next = IDLE;
        let mut due: Vec<(&Arc<str>, &Resolution)> = names
            .iter()
            .filter(|(name, _)| !asked.contains(*name))
            .collect();
        due.sort_by_key(|(_, resolution)| resolution.due());
        for (name, resolution) in due {
            let wait = resolution.due().saturating_since(now);
            // Where there is no room, the next answer makes some.
            if asked.len() >= ASKING_MAX {
                break;
            }
            if wait > Duration::ZERO {
                next = next.min(wait);
                break;
            }
            asked.insert(Arc::clone(name));
            let (name, lookup) = (Arc::clone(name), lookup.clone());
            asking.spawn(async move {
                let found = lookup.find(&name).await;
                (name, found)
            });
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() {
                return;
            },
            Some(Ok((name, found))) = asking.join_next() => {
                asked.remove(&name);
                take(&mesh, &mut names, &name, found);
            }
            () = sleep(next) => {}
        }
    }
}

/// Begins with names that are new, and forgets those that nobody needs any more.
fn follow(mesh: &Mesh, names: &mut HashMap<Arc<str>, Resolution>) {
    let wanted = mesh.outside_names();
    if wanted.is_empty() && names.is_empty() {
        return;
    }
    names.retain(|name, _| wanted.contains(name));
    mesh.keep_names(&wanted);
    for name in wanted {
        if names.contains_key(&name) {
            continue;
        }
        if names.len() >= NAMES_MAX {
            tracing::debug!(%name, limit = NAMES_MAX, "not resolved: too many names");
            continue;
        }
        names.insert(name, Resolution::new(crate::clock::now()));
    }
}

fn take(mesh: &Mesh, names: &mut HashMap<Arc<str>, Resolution>, name: &Arc<str>, found: Found) {
    // Nobody needs it any more.
    let Some(resolution) = names.get_mut(name) else {
        return;
    };
    if let Found::Nothing { reason } = &found {
        let kept = resolution.addresses().len();
        tracing::warn!(%name, reason, kept, "name not resolved");
    }
    if !resolution.handle_answer(found, crate::clock::now(), fastrand::u64(..)) {
        return;
    }
    let named = match resolution.failure() {
        Some(why) => Named::Nothing(Arc::clone(why)),
        None => Named::Addresses(Arc::clone(resolution.addresses())),
    };
    tracing::info!(%name, ?named, "name resolved");
    mesh.set_name(name, named);
}

impl Lookup {
    /// Asks for both kinds of addresses. One kind is enough.
    async fn find(&self, name: &str) -> Found {
        let nothing = |reason: String| Found::Nothing { reason };
        let Ok(name) = Name::from_ascii(format!("{name}.")) else {
            return nothing("not a DNS name".to_owned());
        };
        let (v4, v6) = tokio::join!(self.ask(&name, RecordType::A), async {
            match self.ipv6 {
                true => self.ask(&name, RecordType::AAAA).await,
                false => Ok(Vec::new()),
            }
        });
        let failure = match (&v4, &v6) {
            (Err(reason), _) | (_, Err(reason)) => Some(reason.clone()),
            (Ok(_), Ok(_)) => None,
        };
        let found = [v4, v6].into_iter().filter_map(Result::ok).flatten();
        let found: Vec<(IpAddr, u32)> = found.collect();
        let Some(ttl) = found.iter().map(|(_, ttl)| *ttl).min() else {
            let none = || "it has no address".to_owned();
            return nothing(failure.unwrap_or_else(none));
        };
        Found::Addresses {
            addresses: found.into_iter().map(|(address, _)| address).collect(),
            ttl: Duration::from_secs(ttl.into()),
        }
    }

    /// The addresses of one kind with their TTL, of the first resolver that has an answer.
    async fn ask(&self, name: &Name, kind: RecordType) -> Result<Vec<(IpAddr, u32)>, String> {
        let mut last = "no resolver is known".to_owned();
        for server in &*self.nameservers {
            match timeout(ANSWER_TIMEOUT, ask_one(*server, name, kind)).await {
                Ok(Ok(Answer::Addresses(addresses))) => return Ok(addresses),
                Ok(Ok(Answer::NoSuchName)) => return Err("NXDOMAIN".to_owned()),
                Ok(Err(error)) => last = format!("{server}: {error}"),
                Err(_elapsed) => last = format!("{server}: no answer in {ANSWER_TIMEOUT:?}"),
            }
        }
        Err(last)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Addresses(Vec<(IpAddr, u32)>),
    NoSuchName,
}

async fn ask_one(server: SocketAddr, name: &Name, kind: RecordType) -> Result<Answer, String> {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name.clone(), kind));
    let bytes = query.to_vec().map_err(|error| error.to_string())?;
    let answer = ask_udp(server, &bytes).await;
    let answer = answer.map_err(|error| error.to_string())?;
    let answer = Message::from_vec(&answer).map_err(|error| error.to_string())?;
    if !answer.metadata.truncation {
        return read(&query, &answer);
    }
    let answer = ask_tcp(server, &bytes).await;
    let answer = answer.map_err(|error| error.to_string())?;
    let answer = Message::from_vec(&answer).map_err(|error| error.to_string())?;
    read(&query, &answer)
}

/// The addresses that an answer has for the name that was asked for, or for what that is an alias
/// of (RFC 1034 section 3.6.2).
fn read(query: &Message, answer: &Message) -> Result<Answer, String> {
    if answer.metadata.id != query.metadata.id || answer.queries != query.queries {
        return Err("an answer to another question".to_owned());
    }
    let code = answer.metadata.response_code;
    if code == ResponseCode::NXDomain {
        return Ok(Answer::NoSuchName);
    }
    if code != ResponseCode::NoError {
        return Err(code.to_string());
    }
    let Some(question) = query.queries.first() else {
        return Err("no question".to_owned());
    };
    let mut owner = question.name();
    let mut shortest = u32::try_from(TTL_MAX.as_secs()).unwrap_or(u32::MAX);
    for _ in 0..CHAIN_MAX {
        let next = answer.answers.iter().find_map(|record| {
            let RData::CNAME(target) = &record.data else {
                return None;
            };
            (record.name == *owner).then_some((&target.0, record.ttl))
        });
        let Some((target, ttl)) = next else { break };
        owner = target;
        shortest = shortest.min(ttl);
    }
    let of_owner = answer.answers.iter().filter(|record| record.name == *owner);
    let addresses = of_owner.filter_map(|record| {
        let address = match (&record.data, question.query_type()) {
            (RData::A(address), RecordType::A) => IpAddr::V4(address.0),
            (RData::AAAA(address), RecordType::AAAA) => IpAddr::V6(address.0),
            _ => return None,
        };
        Some((address, record.ttl.min(shortest)))
    });
    Ok(Answer::Addresses(addresses.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, AAAA, CNAME};

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn query(kind: RecordType) -> Message {
        let mut query = Message::query();
        query.add_query(Query::query(name("api.example.com."), kind));
        query
    }

    fn answer(query: &Message, code: ResponseCode, records: Vec<(&str, u32, RData)>) -> Message {
        let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
        answer.metadata.response_code = code;
        answer.add_queries(query.queries.iter().cloned());
        for (owner, ttl, data) in records {
            answer.add_answer(Record::from_rdata(name(owner), ttl, data));
        }
        answer
    }

    fn v4(last: u8) -> RData {
        RData::A(A([192, 0, 2, last].into()))
    }

    #[test]
    fn answers() {
        let asked = query(RecordType::A);
        let alias = |to: &str| RData::CNAME(CNAME(name(to)));
        let good = ResponseCode::NoError;
        let addresses = |found: &[(u8, u32)]| {
            let found = found
                .iter()
                .map(|(last, ttl)| ([192, 0, 2, *last].into(), *ttl));
            Ok(Answer::Addresses(found.collect()))
        };
        let cases = [
            (good, vec![], addresses(&[])),
            (
                good,
                vec![
                    ("api.example.com.", 30, v4(1)),
                    ("API.example.com.", 60, v4(2)),
                ],
                addresses(&[(1, 30), (2, 60)]),
            ),
            (
                good,
                vec![
                    ("a.example.com.", 10, alias("b.example.com.")),
                    ("api.example.com.", 20, alias("a.example.com.")),
                    ("b.example.com.", 60, v4(3)),
                    ("other.example.com.", 60, v4(4)),
                ],
                addresses(&[(3, 10)]),
            ),
            (
                good,
                vec![("api.example.com.", 9, alias("api.example.com."))],
                addresses(&[]),
            ),
            (
                good,
                vec![(
                    "api.example.com.",
                    9,
                    RData::AAAA(AAAA("::5".parse().unwrap())),
                )],
                addresses(&[]),
            ),
            (ResponseCode::NXDomain, vec![], Ok(Answer::NoSuchName)),
        ];
        for (code, records, expected) in cases {
            let answer = answer(&asked, code, records);
            assert_eq!(read(&asked, &answer), expected, "{answer}");
        }
        assert!(read(&asked, &answer(&asked, ResponseCode::ServFail, vec![])).is_err());
        let other = query(RecordType::AAAA);
        assert!(read(&asked, &answer(&other, good, vec![])).is_err());
    }
}
