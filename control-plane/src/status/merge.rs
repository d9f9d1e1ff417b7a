//! What the status of an object is to be: a pure function of what it is and how the document stands.

use serde_json::{Value, json};

use super::CONTROLLER;

/// Entries of a policy's status (GEP-713's own limit).
const ANCESTORS_MAX: usize = 16;
/// Of a message, so many bytes are kept (Kubernetes' own limit).
const MESSAGE_MAX: usize = 32 * 1024;

/// A condition that an object is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// What it is about, as in `Accepted`.
    pub kind: &'static str,
    /// Whether it holds.
    pub holds: bool,
    /// Why, in one word.
    pub reason: String,
    /// Why, for people.
    pub message: String,
    /// Where it is true of this generation already, it stays so: what was acknowledged once is not
    /// taken back by a proxy that comes later, or that nothing is heard of.
    pub stays_true: bool,
}

/// How a document stands, in the form that the status of its kind has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DocumentStatus {
    /// A route: conditions for each of its parents, referred to as the route does.
    Route(Vec<(Value, Vec<Condition>)>),
    /// A policy: conditions for what it is for.
    Policy(Value, Vec<Condition>),
    /// Any other.
    Own(Vec<Condition>),
}

/// The status that an object is to have; `None` where it has it. What other controllers have written
/// there stays, and so do times of conditions that have not turned. `now` is in RFC 3339.
pub fn merge(
    existing: &Value,
    standing: &DocumentStatus,
    generation: u64,
    now: &str,
) -> Option<Value> {
    let mut status = match existing.is_object() {
        true => existing.clone(),
        false => json!({}),
    };
    match standing {
        DocumentStatus::Own(conditions) => {
            status["conditions"] = turned(&existing["conditions"], conditions, generation, now);
        }
        DocumentStatus::Route(parents) => {
            status["parents"] = entries(existing, "parents", "parentRef", parents, generation, now);
        }
        DocumentStatus::Policy(target, conditions) => {
            let target = [(target.clone(), conditions.clone())];
            let field = ("ancestors", "ancestorRef");
            let mut all = entries(existing, field.0, field.1, &target, generation, now);
            if let Some(all) = all.as_array_mut() {
                // Ours are the last; where there is no place, an older entry does not go for it.
                all.truncate(ANCESTORS_MAX);
            }
            status["ancestors"] = all;
        }
    }
    (status != *existing).then_some(status)
}

/// Entries of other controllers, and then ours.
fn entries(
    existing: &Value,
    list: &str,
    reference: &str,
    wanted: &[(Value, Vec<Condition>)],
    generation: u64,
    now: &str,
) -> Value {
    let there = existing[list].as_array().cloned().unwrap_or_default();
    let is_ours = |entry: &Value| entry["controllerName"] == CONTROLLER;
    let before = |of: &Value| {
        let found = there
            .iter()
            .find(|entry| is_ours(entry) && entry[reference] == *of);
        found.map_or(Value::Null, |entry| entry["conditions"].clone())
    };
    let ours = wanted.iter().map(|(of, conditions)| {
        json!({
            reference: of,
            "controllerName": CONTROLLER,
            "conditions": turned(&before(of), conditions, generation, now),
        })
    });
    let others = there.iter().filter(|entry| !is_ours(entry)).cloned();
    Value::Array(others.chain(ours).collect())
}

/// Conditions as they are to be: other kinds stay as they are.
fn turned(existing: &Value, wanted: &[Condition], generation: u64, now: &str) -> Value {
    let there = existing.as_array().cloned().unwrap_or_default();
    let mut conditions = there.clone();
    for condition in wanted {
        let status = if condition.holds { "True" } else { "False" };
        let before = there.iter().find(|one| one["type"] == condition.kind);
        let is_true = |before: &&Value| {
            before["status"] == "True" && before["observedGeneration"] == generation
        };
        if condition.stays_true && before.filter(is_true).is_some() {
            continue;
        }
        let same = before.filter(|before| before["status"] == status);
        let since = same.map_or_else(|| json!(now), |same| same["lastTransitionTime"].clone());
        let mut message = condition.message.clone();
        while message.len() > MESSAGE_MAX {
            message.pop();
        }
        let turned = json!({
            "type": condition.kind,
            "status": status,
            "observedGeneration": generation,
            "lastTransitionTime": since,
            "reason": condition.reason,
            "message": message,
        });
        match conditions
            .iter_mut()
            .find(|one| one["type"] == condition.kind)
        {
            Some(place) => *place = turned,
            None => conditions.push(turned),
        }
    }
    Value::Array(conditions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(holds: bool) -> Condition {
        Condition {
            kind: "Accepted",
            holds,
            reason: if holds { "Accepted" } else { "Invalid" }.to_owned(),
            message: String::new(),
            stays_true: false,
        }
    }

    #[test]
    fn what_was_acknowledged_is_not_taken_back_for_the_same_generation() {
        let acknowledged = |holds| DocumentStatus::Own(vec![accepted(holds)]);
        let pending = |stays_true| {
            DocumentStatus::Own(vec![Condition {
                stays_true,
                ..accepted(false)
            }])
        };
        let status = merge(&Value::Null, &acknowledged(true), 3, "t1").unwrap();
        assert_eq!(merge(&status, &pending(true), 3, "t2"), None);
        assert!(merge(&status, &pending(false), 3, "t2").is_some());
        let newer = merge(&status, &pending(true), 4, "t2").unwrap();
        assert_eq!(newer["conditions"][0]["status"], "False");
        assert_eq!(merge(&newer, &pending(true), 4, "t3"), None);
    }

    #[test]
    fn what_is_so_already_is_not_written_again() {
        let standing = DocumentStatus::Own(vec![accepted(true)]);
        let first = merge(&Value::Null, &standing, 1, "t1").unwrap();
        assert_eq!(merge(&first, &standing, 1, "t2"), None);
        // Another generation in the same state keeps the time, another state does not.
        let second = merge(&first, &standing, 2, "t2").unwrap();
        assert_eq!(second["conditions"][0]["lastTransitionTime"], "t1");
        assert_eq!(second["conditions"][0]["observedGeneration"], 2);
        let third = merge(
            &second,
            &DocumentStatus::Own(vec![accepted(false)]),
            2,
            "t3",
        )
        .unwrap();
        assert_eq!(third["conditions"][0]["lastTransitionTime"], "t3");
    }

    #[test]
    fn what_others_have_written_stays() {
        let theirs = json!({"parentRef": {"name": "gw"}, "controllerName": "example.com/x", "conditions": []});
        let gone =
            json!({"parentRef": {"name": "gone"}, "controllerName": CONTROLLER, "conditions": []});
        let existing = json!({"parents": [theirs, gone], "more": 1});
        let web = json!({"name": "web", "kind": "Service", "group": ""});
        let standing = DocumentStatus::Route(vec![(web.clone(), vec![accepted(true)])]);
        let status = merge(&existing, &standing, 1, "t").unwrap();
        assert_eq!(status["more"], 1);
        assert_eq!(status["parents"][0], theirs);
        assert_eq!(status["parents"][1]["parentRef"], web);
        assert_eq!(status["parents"].as_array().unwrap().len(), 2);
        assert_eq!(merge(&status, &standing, 1, "t2"), None);
        // A route that leaves takes its entry with it.
        let left = merge(&status, &DocumentStatus::Route(Vec::new()), 2, "t3").unwrap();
        assert_eq!(left["parents"], json!([theirs]));
        // Conditions of others in our kinds' lists stay, too.
        let existing = json!({"conditions": [{"type": "example.com/Seen", "status": "True"}]});
        let status = merge(
            &existing,
            &DocumentStatus::Own(vec![accepted(true)]),
            1,
            "t",
        )
        .unwrap();
        assert_eq!(status["conditions"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn a_policy_says_it_of_what_it_is_for() {
        let target = json!({"kind": "Service", "name": "web"});
        let standing = DocumentStatus::Policy(target.clone(), vec![accepted(true)]);
        let full = json!({"ancestorRef": {"name": "a"}, "controllerName": "example.com/x"});
        let existing = json!({"ancestors": vec![full; 16]});
        assert_eq!(
            merge(&existing, &standing, 1, "t"),
            None,
            "there is no place"
        );
        let status = merge(&json!({}), &standing, 1, "t").unwrap();
        assert_eq!(status["ancestors"][0]["ancestorRef"], target);
    }
}
