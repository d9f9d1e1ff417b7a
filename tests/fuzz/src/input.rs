//! What targets read off the front of their inputs, and how they cut the rest.

/// An input, read from its front. Behind its end there are zeros.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next byte.
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else {
            return 0;
        };
        self.rest = rest;
        *first
    }

    /// So many bytes, or what is left.
    pub(crate) fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(length.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    /// Everything that is left.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }
}

/// Cuts bytes into pieces whose lengths follow from the seed: single bytes for 0, otherwise short and
/// long ones.
pub(crate) fn pieces(bytes: &[u8], seed: u8) -> impl Iterator<Item = &[u8]> {
    let (mut rest, mut state) = (bytes, u32::from(seed));
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        // A linear congruential generator (Numerical Recipes), of which the upper bits are used.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let length = match (seed, state >> 30) {
            (0, _) => 1,
            (_, 0..3) => 1 + (state >> 20) as usize % 16,
            (_, _) => 1 + (state >> 20) as usize % 600,
        };
        let (piece, behind) = rest.split_at(length.min(rest.len()));
        rest = behind;
        Some(piece)
    })
}
