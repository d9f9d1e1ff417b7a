//! Endpoint slices: the endpoints of a service in parts, so that a change of one endpoint is told
//! without the others and without the service's policies.
//!
//! The sender divides a service's endpoints among `count` slices by a hash of the instance; the
//! receiver uses them when it has all of one `count`.

use crate::balance::hash::hash;
use crate::endpoint::Endpoint;
use crate::name::ServiceName;

/// Endpoints of a slice that a sender aims not to exceed. The hash spreads them unevenly, so that a
/// slice may be a little larger now and then.
pub const ENDPOINTS_EXPECTED: usize = 128;
/// Endpoints of a slice that a receiver takes at most: far beyond any unevenness of the hash.
pub const ENDPOINTS_MAX: usize = 4 * ENDPOINTS_EXPECTED;
/// Slices of a service at most, enough for 393,216 endpoints.
pub const SLICES_MAX: u32 = 4096;
/// Endpoints per slice, on average, beyond which there are more slices: at 96 the fullest of them
/// stays below [`ENDPOINTS_EXPECTED`] with three standard deviations to spare.
const GROW_ABOVE: usize = 96;
/// Endpoints per slice, on average, below which there are fewer slices: so far below
/// [`GROW_ABOVE`] that a number of endpoints that goes up and down a little changes nothing.
const SHRINK_BELOW: usize = 24;

/// A part of a service's endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// The service.
    pub service: ServiceName,
    /// Which of the slices it is, from 0.
    pub index: u32,
    /// How many slices there are, 1 to [`SLICES_MAX`].
    pub count: u32,
    /// The endpoints in it, ordered by instance, each once.
    pub endpoints: Vec<Endpoint>,
}

impl EndpointSlice {
    /// Divides endpoints among `count` slices, and makes every one of them, empty ones too.
    pub fn divide(service: &ServiceName, endpoints: Vec<Endpoint>, count: u32) -> Vec<Self> {
        let slices = (0..count).map(|index| Self {
            service: service.clone(),
            index,
            count,
            endpoints: Vec::new(),
        });
        let mut slices: Vec<Self> = slices.collect();
        for endpoint in endpoints {
            let index = slice_of(&endpoint.instance, count) as usize;
            if let Some(slice) = slices.get_mut(index) {
                slice.endpoints.push(endpoint);
            }
        }
        for slice in &mut slices {
            let endpoints = &mut slice.endpoints;
            endpoints.sort_by(|a, b| a.instance.cmp(&b.instance));
        }
        slices
    }

    /// Its name as a resource: `NAMESPACE/NAME/INDEX-COUNT`.
    pub fn resource_name(&self) -> String {
        resource_name(&self.service.to_string(), self.index, self.count)
    }
}

/// The name of a slice as a resource: `NAMESPACE/NAME/INDEX-COUNT`. `service` is `NAMESPACE/NAME`.
pub fn resource_name(service: &str, index: u32, count: u32) -> String {
    format!("{service}/{index}-{count}")
}

/// The service, `NAMESPACE/NAME`, of a slice with this resource name.
pub fn service_of(resource_name: &str) -> Option<&str> {
    let (service, _) = resource_name.rsplit_once('/')?;
    Some(service)
}

/// Which of `count` slices an instance is in. The same in every version: another answer would
/// send every endpoint of the mesh anew.
pub fn slice_of(instance: &str, count: u32) -> u32 {
    let index = hash(instance.as_bytes()) % u64::from(count.max(1));
    u32::try_from(index).unwrap_or(0)
}

/// How many slices `endpoints` of a service in the mesh are to be in, a power of two, where they
/// are in `now` at present (0: in none yet). One that has no endpoints has one empty slice. Since the
/// answer depends on `now`, a sender that restarts has to know it from before.
pub fn slices_for(endpoints: usize, now: u32) -> u32 {
    let mut count = now.clamp(1, SLICES_MAX).next_power_of_two();
    while count < SLICES_MAX && endpoints > GROW_ABOVE * count as usize {
        count *= 2;
    }
    while count > 1 && endpoints < SHRINK_BELOW * count as usize {
        count /= 2;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Transport;
    use crate::model::Service;
    use proptest::prelude::*;

    fn endpoint(instance: &str) -> Endpoint {
        Endpoint {
            instance: instance.into(),
            workload: "shop/web".parse().unwrap(),
            identity: None,
            zone: String::new(),
            placement: Default::default(),
            weight: 100,
            transport: Transport::Plain,
            ports: Vec::new(),
        }
    }

    fn service() -> Service {
        Service {
            name: "shop/web".parse().unwrap(),
            addresses: Vec::new(),
            ports: Vec::new(),
            endpoints: Vec::new(),
            endpoint_slices: 0,
            distribution: Default::default(),
            policies: Default::default(),
            routes: Vec::new(),
            external: None,
        }
    }

    /// The values are written down: a hash that changes would send every endpoint anew.
    #[test]
    fn where_an_instance_is_never_changes() {
        let cases = [
            ("", [1, 3, 2203]),
            ("i-1", [1, 1, 17]),
            ("i-2", [0, 6, 3734]),
            ("web-7f9c", [0, 2, 778]),
            ("0190a6f2-5b1e-7c1a-8f00-3f6f2c9e0001", [0, 0, 3168]),
        ];
        for (instance, expected) in cases {
            let found = [2, 8, 4096].map(|count| slice_of(instance, count));
            assert_eq!(found, expected, "{instance}");
            assert_eq!((slice_of(instance, 1), slice_of(instance, 0)), (0, 0));
        }
    }

    #[test]
    fn how_many_slices() {
        let cases = [
            // (endpoints, now, expected)
            (0, 0, 1),
            (96, 0, 1),
            (97, 0, 2),
            (192, 0, 2),
            (193, 1, 4),
            (1000, 0, 16),
            (1000, 1, 16),
            // Not fewer at once.
            (96, 2, 2),
            (48, 2, 2),
            (47, 2, 1),
            (100, 4, 4),
            (95, 4, 2),
            (0, 64, 1),
            (0, 4096, 1),
            // What no sender has.
            (100, 3, 4),
            (1, u32::MAX, 1),
            (10_000_000, 0, 4096),
        ];
        for (endpoints, now, expected) in cases {
            assert_eq!(slices_for(endpoints, now), expected, "{endpoints} in {now}");
        }
    }

    #[test]
    fn names() {
        let slices = EndpointSlice::divide(&service().name, vec![endpoint("i-1")], 2);
        let names: Vec<String> = slices.iter().map(EndpointSlice::resource_name).collect();
        assert_eq!(names, ["shop/web/0-2", "shop/web/1-2"]);
        assert_eq!(service_of(&names[0]), Some("shop/web"));
        assert_eq!(service_of("web"), None);
    }

    #[test]
    fn no_slice_is_much_fuller_than_the_others() {
        for endpoints in [97, 500, 1_000, 10_000, 50_000] {
            let all = (0..endpoints).map(|number| endpoint(&format!("{number:08x}-i")));
            let count = slices_for(endpoints, 0);
            let slices = EndpointSlice::divide(&service().name, all.collect(), count);
            let fullest = slices.iter().map(|slice| slice.endpoints.len()).max();
            assert!(
                fullest < Some(ENDPOINTS_MAX / 2),
                "{endpoints}: {fullest:?}"
            );
        }
    }

    proptest! {
        /// However endpoints are divided, and in whatever order the slices are put together: the
        /// service is the same.
        #[test]
        fn any_division_composes_the_same(
            instances in prop::collection::btree_set("[a-z0-9-]{0,12}", 0..60),
            count in 1u32..20,
            turn in 0usize..20,
        ) {
            let endpoints: Vec<Endpoint> = instances.iter().map(|i| endpoint(i)).collect();
            let mut shuffled = endpoints.clone();
            shuffled.reverse();
            let mut slices = EndpointSlice::divide(&service().name, shuffled, count);
            let length = slices.len();
            prop_assert_eq!(length, count as usize);
            slices.rotate_left(turn % length);
            prop_assert_eq!(service().with_endpoints(&slices).endpoints, endpoints);
        }

        /// A count that was chosen stays until the number of endpoints is far away, and is never
        /// such that slices overflow.
        #[test]
        fn counts_are_stable(endpoints in 0usize..400_000, now in 0u32..5_000) {
            let count = slices_for(endpoints, now);
            prop_assert!(count.is_power_of_two() && count <= SLICES_MAX);
            prop_assert_eq!(slices_for(endpoints, count), count);
            prop_assert!(endpoints <= GROW_ABOVE * count as usize || count == SLICES_MAX);
        }
    }
}
