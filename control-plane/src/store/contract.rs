//! What every engine must do: one suite, run against each.
//!
//! A new engine implements [`Engine`](engine::Engine) and adds a line of `contract!` at the end. A new
//! case is a function in the file of its group and a line in the list.

mod commits;
mod engine;
mod events;
mod history;
mod leases;
mod records;
mod snapshots;

macro_rules! contract {
    ($($module:ident: $engine:ident),+ $(,)?) => {
        $(mod $module {
            use super::engine::$engine;

            cases! { $engine }
        })+
    };
}

/// The list of cases, as tests of an engine.
macro_rules! cases {
    ($engine:ident) => {
        cases! {
            $engine:
            commits {
                commits_change_what_they_say,
                a_listing_is_in_the_order_of_keys,
                a_condition_that_does_not_hold_stops_the_whole_commit,
                of_two_with_the_same_condition_one_wins,
                limits_are_refused,
            }
            events {
                a_listing_and_the_events_after_it_are_every_change_once,
                who_is_too_far_behind_is_told,
            }
            history {
                the_history_tells_every_change_a_page_at_a_time,
                a_page_of_the_history_is_bounded_in_bytes,
                every_kept_revision_can_be_told,
                a_rollback_of_some_touches_no_others_and_expects_what_it_saw,
                the_history_is_bounded_in_bytes,
            }
            records {
                records_are_written_together_or_not_at_all,
                a_record_is_redeemed_once,
                writes_are_made_in_the_order_of_the_calls,
                an_unreadable_record_is_an_error,
            }
            leases {
                a_lease_has_one_holder_at_a_time,
                a_write_with_an_old_fence_is_refused,
                a_lease_outlives_a_restart,
            }
            snapshots {
                a_snapshot_is_the_whole_store,
            }
        }
    };
    ($engine:ident: $($group:ident { $($case:ident),+ $(,)? })+) => {
        $($(
            #[tokio::test]
            async fn $case() {
                if <$engine as super::engine::Engine>::runs(stringify!($group)) {
                    super::$group::$case::<$engine>().await;
                }
            }
        )+)+
    };
}

contract! {
    redb: Redb,
    memory: Memory,
    kubernetes: Cluster,
}
