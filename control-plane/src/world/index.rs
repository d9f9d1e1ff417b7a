//! Persistent maps: a clone costs nothing, and shares what neither side changes afterwards.

use std::borrow::Borrow;
use std::sync::Arc;

/// A map whose clone is a snapshot. Entries lie in chunks, which are copied when they are shared
/// and one of them changes: 64 are a good balance between looking up and changing.
pub type Map<K, V> = immutable_chunkmap::map::Map<K, V, 64>;
/// The same for maps of which there are many small ones: a chunk takes its memory at once.
type SmallMap<K, V> = immutable_chunkmap::map::Map<K, V, 8>;

/// An inverted index: values by key, each once and ascending, of which no key has very many. Most have
/// one, so a set is a vector that is no longer than it has to be.
#[derive(Debug, Clone)]
pub struct Index<K: Ord + Clone, V: Ord + Clone>(Map<K, Arc<Vec<V>>>);

impl<K: Ord + Clone, V: Ord + Clone> Default for Index<K, V> {
    fn default() -> Self {
        Self(Map::new())
    }
}

impl<K: Ord + Clone, V: Ord + Clone> Index<K, V> {
    /// Adds a value to a key.
    pub fn insert(&mut self, key: &K, value: V) {
        let values = self.0.get_or_default_cow(key.clone());
        let Err(place) = values.binary_search(&value) else {
            return;
        };
        let values = Arc::make_mut(values);
        if values.is_empty() {
            values.reserve_exact(1);
        }
        values.insert(place, value);
    }

    /// Takes a value from a key, and the key with its last value.
    pub fn remove(&mut self, key: &K, value: &V) {
        let Some(values) = self.0.get_mut_cow(key) else {
            return;
        };
        if let Ok(place) = values.binary_search(value) {
            Arc::make_mut(values).remove(place);
        }
        if values.is_empty() {
            self.0.remove_cow(key);
        }
    }

    /// Adds a value to a key, or takes it from there.
    pub fn set(&mut self, key: &K, value: &V, there: bool) {
        if there {
            self.insert(key, value.clone());
        } else {
            self.remove(key, value);
        }
    }

    /// The values of a key, ascending.
    pub fn of<Q>(&self, key: &Q) -> impl DoubleEndedIterator<Item = &V>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let values = self.0.get(key).into_iter();
        values.flat_map(|values| values.iter())
    }

    /// Whether a key has any value.
    pub fn has(&self, key: &K) -> bool {
        self.0.get(key).is_some()
    }
}

/// Who serves one service, by the place of their endpoints.
#[derive(Debug, Clone)]
pub struct Endpoints<T: Clone> {
    len: usize,
    by_place: SmallMap<u32, Arc<Vec<T>>>,
}

impl<T: Clone> Default for Endpoints<T> {
    fn default() -> Self {
        Self {
            len: 0,
            by_place: SmallMap::new(),
        }
    }
}

impl<T: Clone> Endpoints<T> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds an endpoint that is not there yet.
    pub fn insert(&mut self, place: u32, endpoint: T) {
        let here = self.by_place.get_or_default_cow(place);
        Arc::make_mut(here).push(endpoint);
        self.len += 1;
    }

    /// Takes out the endpoints at a place that are meant.
    pub fn remove(&mut self, place: u32, is_meant: impl Fn(&T) -> bool) {
        let Some(here) = self.by_place.get_mut_cow(&place) else {
            return;
        };
        let here = Arc::make_mut(here);
        let before = here.len();
        here.retain(|endpoint| !is_meant(endpoint));
        self.len -= before - here.len();
        if here.is_empty() {
            self.by_place.remove_cow(&place);
        }
    }

    /// The endpoints in a range of places.
    pub fn range(&self, places: std::ops::RangeInclusive<u32>) -> impl Iterator<Item = &T> {
        let places = self.by_place.range::<u32, _>(places);
        places.flat_map(|(_, here)| here.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_ends_with_its_last_value_and_a_clone_keeps_it() {
        let mut index = Index::default();
        index.insert(&"a", 2);
        index.insert(&"a", 1);
        index.insert(&"a", 2);
        let before = index.clone();
        index.remove(&"a", &1);
        index.remove(&"b", &1);
        assert_eq!(index.of(&"a").collect::<Vec<_>>(), [&2]);
        index.remove(&"a", &2);
        assert!(!index.has(&"a"));
        assert_eq!(before.of(&"a").collect::<Vec<_>>(), [&1, &2]);
    }
}
