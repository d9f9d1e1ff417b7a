//! What the answers of a window took, in sums.

/// Sums over logarithms of latencies.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Samples {
    pub(super) count: u32,
    sum: f64,
    squares: f64,
}

impl Samples {
    pub(super) fn add(&mut self, latency: f64) {
        self.count = self.count.saturating_add(1);
        self.sum += latency;
        self.squares += latency * latency;
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.count = self.count.saturating_add(other.count);
        self.sum += other.sum;
        self.squares += other.squares;
    }

    pub(super) fn mean(self) -> f64 {
        self.sum / f64::from(self.count.max(1))
    }

    /// Of single answers; `None` for fewer than two.
    pub(super) fn variance(self) -> Option<f64> {
        let others = self.count.checked_sub(1).filter(|others| *others > 0)?;
        let about_mean = self.squares - self.sum * self.mean();
        Some((about_mean / f64::from(others)).max(0.0))
    }

    /// The variance of the mean, where single answers vary by so much.
    pub(super) fn variance_of_mean(self, spread: f64) -> f64 {
        spread / f64::from(self.count.max(1))
    }
}
