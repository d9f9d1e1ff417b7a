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
        ..Default::default()
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

/// Publishes the compilation of this number, in which a namespace has changed.
fn publish(publisher: &Publisher, generation: u64, name: &str) -> Publication {
    let (compiled, names) = changed(generation, name);
    publisher.publish(&compiled, &names)
}

/// Instances that have not applied a revision.
fn waiting(publisher: &Publisher, revision: u64) -> Vec<String> {
    let waiting = publisher.progress(revision, Instant::now()).waiting;
    let mut all: Vec<_> = waiting
        .iter()
        .map(|one| one.peer.instance.to_string())
        .collect();
    all.sort();
    all
}

/// Instances that rejected what a revision changed, with the reasons.
fn rejecting(publisher: &Publisher, revision: u64) -> Vec<(String, String)> {
    let rejected = publisher
        .progress(revision, Instant::now())
        .rejected
        .into_iter();
    let rejected = rejected.map(|r| (r.peer.instance.to_string(), r.reason));
    rejected.collect()
}

/// The sidecar answers everything that is due.
fn answers(stream: &Subscription) {
    stream.take_due();
    stream.report(true, None);
}

fn rejects(stream: &Subscription, name: &str, reason: &str) {
    let resource = format!("Namespace/{name}");
    stream.show(|view| {
        view.rejected.insert(resource, reason.into());
    });
    answers(stream);
}

#[tokio::test(start_paused = true)]
async fn those_whom_a_change_concerns_are_waited_for() {
    let publisher = Arc::<Publisher>::default();
    publish(&publisher, 1, "mesh");
    let (silent, shop, gone) = (
        subscribed(&publisher, "silent", "lab"),
        subscribed(&publisher, "answers", "shop"),
        subscribed(&publisher, "gone", "shop"),
    );
    // One that is silent about something else is not waited for.
    publish(&publisher, 2, "lab");
    let publication = publish(&publisher, 3, "shop");
    let applied = {
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
    assert!(!applied.is_finished());
    assert_eq!(waiting(&publisher, 3), ["answers", "gone"]);
    answers(&shop);
    assert_eq!(waiting(&publisher, 3), ["gone"]);
    drop(gone);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(applied.is_finished());
    assert_eq!(waiting(&publisher, 2), ["silent"]);
    drop(silent);
}

#[test]
fn a_rejection_is_told_of_the_revision_that_changed_the_resource() {
    let publisher = Arc::<Publisher>::default();
    publish(&publisher, 1, "mesh");
    let stream = subscribed(&publisher, "mine", "shop");
    stream.subscribe(Kind::Namespace, &["lab".into()]);
    publish(&publisher, 2, "shop");
    rejects(&stream, "shop", "odd");
    let of_shop = [("mine".to_owned(), "odd".to_owned())];
    assert_eq!(rejecting(&publisher, 2), of_shop);
    publish(&publisher, 3, "lab");
    assert!(!publisher.progress(3, Instant::now()).is_settled(3));
    answers(&stream);
    assert_eq!(rejecting(&publisher, 3), [], "it has taken this one");
    assert!(publisher.progress(3, Instant::now()).is_settled(3));
    // Still it is not in force, whatever revision is asked about: also one that is not remembered.
    for revision in [1, 3] {
        let otherwise = publisher
            .progress(revision, Instant::now())
            .rejected_otherwise;
        let resources: Vec<&String> = otherwise.of("shop").map(|(name, _)| name).collect();
        assert_eq!(resources, ["Namespace/shop"], "{revision}");
    }
    assert!(
        publisher
            .progress(2, Instant::now())
            .rejected_otherwise
            .of("shop")
            .next()
            .is_none()
    );
    // While it has not answered, what it rejected is what was there before.
    publish(&publisher, 4, "shop");
    assert_eq!(rejecting(&publisher, 4), []);
    rejects(&stream, "shop", "still odd");
    assert_eq!(rejecting(&publisher, 4)[0].1, "still odd");
}

#[test]
fn who_connects_again_has_applied_nothing_yet() {
    let publisher = Arc::<Publisher>::default();
    publish(&publisher, 1, "mesh");
    let before = subscribed(&publisher, "mine", "shop");
    answers(&before);
    publish(&publisher, 2, "shop");
    assert_eq!(waiting(&publisher, 2), ["mine"]);
    // Also while the older stream still stands.
    let again = publisher.open(peer("mine"), 0);
    let newcomer = publisher.open(peer("newcomer"), 0);
    assert_eq!(waiting(&publisher, 2), ["mine"]);
    drop(before);
    assert_eq!(waiting(&publisher, 2), ["mine"]);
    again.subscribe(Kind::Namespace, &["shop".into()]);
    again.report(false, None);
    assert_eq!(waiting(&publisher, 2), ["mine"]);
    rejects(&again, "shop", "odd");
    assert_eq!(waiting(&publisher, 2), [""; 0]);
    assert_eq!(rejecting(&publisher, 2)[0].0, "mine");
    // One that had applied it before has it still.
    drop(again);
    let again = publisher.open(peer("mine"), 0);
    assert_eq!(waiting(&publisher, 2), [""; 0]);
    drop((again, newcomer));
}

#[test]
fn of_a_revision_that_is_forgotten_those_are_waited_for_who_are_behind_it() {
    let publisher = Arc::<Publisher>::default();
    publish(&publisher, 1, "mesh");
    let (behind, other) = (
        subscribed(&publisher, "behind", "lab"),
        subscribed(&publisher, "other", "shop"),
    );
    answers(&behind);
    answers(&other);
    publish(&publisher, 2, "lab");
    assert_eq!(waiting(&publisher, 2), ["behind"]);
    assert!(publisher.progress(2, Instant::now()).is_known);
    for generation in 3..=600 {
        publish(&publisher, generation, "shop");
    }
    let progress = publisher.progress(2, Instant::now());
    assert!(!progress.is_known && progress.rejected.is_empty());
    // The one whom it concerned, and not whom the oldest that is remembered concerned.
    assert_eq!(waiting(&publisher, 2), ["behind"]);
    answers(&behind);
    assert_eq!(waiting(&publisher, 2), [""; 0]);
    assert!(publisher.progress(600, Instant::now()).is_known);
}

#[test]
fn names_that_are_remembered_are_bounded() {
    let publisher = Arc::<Publisher>::default();
    publish(&publisher, 1, "mesh");
    let all = (0..progress::NAMES_MAX).map(|n| format!("n{n}").into());
    let names = ChangedNames::from([(Kind::Namespace, all.collect())]);
    publisher.publish(&Compiled::of(2, Vec::new()), &names);
    assert!(
        publisher.progress(2, Instant::now()).is_known,
        "the newest one is"
    );
    publish(&publisher, 3, "shop");
    assert!(!publisher.progress(2, Instant::now()).is_known);
    assert!(publisher.progress(3, Instant::now()).is_known);
}

#[tokio::test]
async fn who_watches_is_told_that_a_sidecar_has_answered() {
    let publisher = Arc::<Publisher>::default();
    publish(&publisher, 1, "mesh");
    let stream = subscribed(&publisher, "mine", "shop");
    let (mut all, mut here) = (publisher.watch(), publisher.watch_here());
    let mut has_moved = || {
        let moved = [&mut all, &mut here].map(|moved| {
            let has = moved.has_changed().unwrap();
            moved.borrow_and_update();
            has
        });
        (moved[0], moved[1])
    };
    publish(&publisher, 2, "shop");
    assert_eq!(has_moved(), (true, true));
    answers(&stream);
    assert_eq!(has_moved(), (true, true));
    drop(stream);
    assert_eq!(has_moved(), (true, true));
    assert_eq!(has_moved(), (false, false));
    publisher.tell_moved();
    assert_eq!(has_moved(), (true, false), "another control plane's");
}

/// Revisions that an instance lacks something of, as other control planes are told.
fn lacks(publisher: &Publisher, instance: &str) -> Vec<(u64, u64)> {
    let (_, standings) = publisher.standings();
    let mut standings = standings.into_iter();
    let of_it = standings.find(|one| &*one.view.peer.instance == instance);
    let spans = of_it.unwrap().lacks.into_iter();
    spans.map(|span| (span.after, span.until)).collect()
}

#[test]
fn others_are_told_which_revisions_a_sidecar_lacks() {
    let publisher = Arc::<Publisher>::default();
    publish(&publisher, 1, "mesh");
    let stalled = subscribed(&publisher, "stalled", "lab");
    answers(&stalled);
    publish(&publisher, 2, "lab");
    publish(&publisher, 3, "shop");
    publish(&publisher, 4, "lab");
    assert_eq!(lacks(&publisher, "stalled"), [(1, 2), (3, 4)]);
    // Of those who connect what they ask for is known, and not what was before.
    let (late, other) = (
        subscribed(&publisher, "late", "shop"),
        subscribed(&publisher, "other", "elsewhere"),
    );
    assert_eq!(lacks(&publisher, "late"), [(0, 1), (2, 3)]);
    assert_eq!(lacks(&publisher, "other"), [(0, 1)]);
    assert_eq!(waiting(&publisher, 3), ["late"]);
    answers(&late);
    answers(&other);
    assert_eq!(lacks(&publisher, "late"), []);
    assert_eq!(lacks(&publisher, "other"), []);
    // What it has read counts when nothing is due any more.
    let read = Applied {
        generation: 3,
        revision: 3,
    };
    stalled.report(false, Some(read));
    assert_eq!(lacks(&publisher, "stalled"), [(1, 2), (3, 4)]);
    stalled.take_due();
    stalled.report(false, Some(read));
    assert_eq!(lacks(&publisher, "stalled"), [(3, 4)]);
    // More rejections than are told of.
    late.show(|view| {
        let names = (0..16).map(|n| format!("Namespace/a{n:02}"));
        let names = names.chain(["Namespace/shop".to_owned()]);
        view.rejected = names.map(|name| (name, "odd".into())).collect();
    });
    assert_eq!(lacks(&publisher, "late"), [(2, 3)]);
}

/// However often a sidecar connects again, its time runs from when the revision was published.
#[test]
fn one_that_does_not_answer_is_overdue_after_a_while() {
    let publisher = Arc::<Publisher>::default();
    let start = Instant::now();
    publish(&publisher, 1, "mesh");
    let silent = subscribed(&publisher, "silent", "shop");
    publish(&publisher, 2, "shop");
    let published = Instant::now();
    let overdue = |revision, after: Duration, from: Instant| -> Vec<bool> {
        let progress = publisher.progress(revision, from + after);
        let waiting = progress.waiting.iter();
        waiting.map(|waiting| waiting.is_overdue).collect()
    };
    let (within, second) = (ACKNOWLEDGED_WITHIN, Duration::from_secs(1));
    assert_eq!(overdue(2, within - second, start), [false]);
    assert_eq!(overdue(2, within, published), [true]);
    drop(silent);
    let again = subscribed(&publisher, "silent", "shop");
    assert_eq!(overdue(2, within, published), [true]);
    // What was before the first publication, and what is not published.
    assert_eq!(overdue(1, within, published), [true]);
    assert_eq!(overdue(3, within, published), [false]);
    // Revisions that are forgotten.
    (3..600).for_each(|revision| drop(publish(&publisher, revision, "lab")));
    let later = Instant::now();
    assert_eq!(overdue(2, within, later), [true]);
    answers(&again);
    assert_eq!(overdue(2, within, later), [true; 0]);
}

/// However many sidecars reject however much, and in whichever order it is looked at: the first ones of
/// each namespace are kept.
#[test]
fn what_many_reject_is_kept_in_part() {
    let peer = |namespace: &str, n: u32| PeerIdentity {
        instance: format!("pod-{n:04}").into(),
        identity: format!("spiffe://weft.local/ns/{namespace}/sa/web")
            .parse()
            .unwrap(),
        not_after: 0,
    };
    let mut said = Vec::new();
    for n in 0..1000 {
        said.push((peer("lab", n), "Service/shop/web".to_owned()));
        said.push((peer("lab", 1), format!("Service/lab/s-{n:04}")));
        said.push((peer("shop", n), "Service/shop/web".to_owned()));
        said.push((peer("shop", n), "MeshConfig/mesh".to_owned()));
    }
    for _order in 0..2 {
        said.reverse();
        let mut kept = RejectedOtherwise::default();
        for (peer, resource) in &said {
            kept.add(peer, resource, &"odd");
        }
        let names = |resource: &str| -> Vec<String> {
            let (_, by) = kept.of("shop").find(|(name, _)| *name == resource).unwrap();
            by.iter()
                .map(|one| format!("{} {}", one.peer.identity.namespace(), one.peer.instance))
                .collect()
        };
        let expected = [0, 1, 2, 3].map(|n| format!("shop pod-000{n}"));
        assert_eq!(names("Service/shop/web"), expected);
        assert_eq!(names("MeshConfig/mesh"), expected);
        let of_lab: Vec<&String> = kept.of("lab").map(|(resource, _)| resource).collect();
        assert_eq!((of_lab.len(), &**of_lab[64]), (65, "Service/lab/s-0063"));
    }
}
