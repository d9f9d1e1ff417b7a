//! Kubernetes' quantities, as far as annotations may hold them.

/// What a quantity counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// Processors.
    Cpu,
    /// Bytes.
    Memory,
}

const CPU: [(&str, u64); 2] = [("m", 1), ("", 1_000)];
const MEMORY: [(&str, u64); 9] = [
    ("Ki", 1_000 << 10),
    ("Mi", 1_000 << 20),
    ("Gi", 1_000 << 30),
    ("Ti", 1_000 << 40),
    ("k", 1_000_000),
    ("M", 1_000_000_000),
    ("G", 1_000_000_000_000),
    ("T", 1_000_000_000_000_000),
    ("", 1_000),
];

/// Thousandths of a positive quantity: digits, at most three of them after a point, and a suffix.
pub(super) fn thousandths(text: &str, unit: Unit) -> Option<u64> {
    let suffixes: &[(&str, u64)] = match unit {
        Unit::Cpu => &CPU,
        Unit::Memory => &MEMORY,
    };
    let end = text.find(|c: char| c != '.' && !c.is_ascii_digit());
    let (number, suffix) = text.split_at(end.unwrap_or(text.len()));
    let (_, factor) = suffixes.iter().find(|(known, _)| *known == suffix)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.len() > 3 {
        return None;
    }
    let parts: u64 = format!("{fraction:0<3}").parse().ok()?;
    let whole: u64 = whole.parse().ok()?;
    let thousandths = whole.checked_mul(1_000)?.checked_add(parts)?;
    let total = thousandths.checked_mul(*factor)?.checked_div(1_000)?;
    (total > 0).then_some(total)
}

/// Processors, rounded up.
pub(super) fn processors(text: &str) -> Option<u64> {
    Some(thousandths(text, Unit::Cpu)?.div_ceil(1_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, unit, expected) in [
            ("100m", Unit::Cpu, Some(100)),
            ("2", Unit::Cpu, Some(2_000)),
            ("0.5", Unit::Cpu, Some(500)),
            ("1.25", Unit::Cpu, Some(1_250)),
            ("0", Unit::Cpu, None),
            ("0.0001", Unit::Cpu, None),
            ("1Mi", Unit::Cpu, None),
            ("", Unit::Cpu, None),
            (".5", Unit::Cpu, None),
            ("1.", Unit::Cpu, None),
            ("1.2.3", Unit::Cpu, None),
            ("-1", Unit::Cpu, None),
            ("64Mi", Unit::Memory, Some(64 * 1024 * 1024 * 1_000)),
            ("1.5Gi", Unit::Memory, Some(1_610_612_736_000)),
            ("128M", Unit::Memory, Some(128_000_000_000)),
            ("1000", Unit::Memory, Some(1_000_000)),
            ("64MB", Unit::Memory, None),
            ("64m", Unit::Memory, None),
            ("99999999999999999999", Unit::Memory, None),
            ("9999999999Ti", Unit::Memory, None),
        ] {
            assert_eq!(thousandths(text, unit), expected, "{text} {unit:?}");
        }
        assert_eq!(processors("1500m"), Some(2));
        assert_eq!(processors("2"), Some(2));
    }
}
