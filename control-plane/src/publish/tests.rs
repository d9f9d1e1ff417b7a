use std::time::Duration;

use weft_proto::resource::Resource;

use super::*;
use crate::compile::{ChangedNames, Encoded, Resources};

fn peer(instance: &str) -> PeerIdentity {
    PeerIdentity {
        instance: instance.into(),
        identity: "spiffe://weft.test/ns/shop/sa/web".parse().unwrap(),
        not_after: 0,
    }
}

/// A compilation in which a namespace's resource stands for anything that is asked for by name.
fn changed(generation: u64, name: &str) -> (Compiled, ChangedNames) {
    let namespace = weft_core::model::Namespace {
        name: name.to_owned(),
        routes: BTreeMap::new(),
        unknown_destinations: None,
    };
    let mut names = ChangedNames::new();
    let encoded = Encoded::new(Resource::Namespace(namespace));
    Resources::default().put(encoded, &mut names);
    (Compiled::of(generation, Vec::new()), names)
}

fn subscribed(publisher: &Arc<Publisher>, instance: &str, name: &str) -> Subscription {
    let subscription = publisher.open(peer(instance), 0);
    subscription.subscribe(Kind::Namespace, &[name.into()]);
    subscription
}

/// However many streams there are, a change wakes those who asked for what changed.
#[test]
fn who_did_not_ask_is_not_woken() {
    let publisher = Arc::<Publisher>::default();
    let others: Vec<Subscription> = (0..1000)
        .map(|n| subscribed(&publisher, &format!("i{n}"), "lab"))
        .collect();
    let asked = subscribed(&publisher, "mine", "shop");
    let (compiled, names) = changed(1, "shop");
    let publication = publisher.publish(&compiled, &names);
    assert_eq!(publication.concerned.len(), 1);
    assert_eq!(publisher.counters.woken.load(Ordering::Relaxed), 1);
    assert_eq!(asked.take_due().len(), 1);
    assert!(others.iter().all(|other| other.take_due().is_empty()));
    asked.unsubscribe(Kind::Namespace, &["shop".into()]);
    let (compiled, names) = changed(2, "shop");
    assert!(publisher.publish(&compiled, &names).concerned.is_empty());
}

#[tokio::test(start_paused = true)]
async fn those_whom_a_change_concerns_are_waited_for() {
    let publisher = Arc::<Publisher>::default();
    let (silent, answers, gone) = (
        subscribed(&publisher, "silent", "lab"),
        subscribed(&publisher, "answers", "shop"),
        subscribed(&publisher, "gone", "shop"),
    );
    let publish = |generation, name| {
        let (compiled, names) = changed(generation, name);
        publisher.publish(&compiled, &names)
    };
    // One that is silent about something else is not waited for.
    publish(1, "lab");
    let publication = publish(2, "shop");
    let waiting = {
        let publisher = Arc::clone(&publisher);
        tokio::spawn(async move {
            let Publication {
                concerned,
                generation,
            } = publication;
            publisher.applied(&concerned, generation).await;
        })
    };
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!waiting.is_finished());
    let instances = |views: Vec<ProxyView>| -> Vec<String> {
        let mut all: Vec<String> = views
            .iter()
            .map(|view| view.peer.instance.to_string())
            .collect();
        all.sort();
        all
    };
    assert_eq!(instances(publisher.progress(2).1), ["answers", "gone"]);
    answers.take_due();
    answers.report(true, None);
    assert_eq!(instances(publisher.progress(2).1), ["gone"]);
    drop(gone);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(waiting.is_finished());
    assert_eq!(instances(publisher.progress(1).1), ["silent"]);
    drop(silent);
}
