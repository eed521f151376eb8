//! Kubernetes quantities (`1500m`, `64Gi`, `1e3`) as integers of a thousandth.
//!
//! The grammar is that of apimachinery's `resource.Quantity`: a decimal number, then a binary suffix, a
//! decimal suffix or an exponent. Fractions are rounded up, as the kubelet rounds requests.

use rackwright_wire::units::{Bytes, MilliCpu, MilliGpu};

/// Suffixes with their value in thousandths of the unit.
const SUFFIXES: [(&str, u128); 13] = [
    ("Ki", 1000 << 10),
    ("Mi", 1000 << 20),
    ("Gi", 1000 << 30),
    ("Ti", 1000 << 40),
    ("Pi", 1000 << 50),
    ("Ei", 1000 << 60),
    ("m", 1),
    ("k", 1_000_000),
    ("M", 1_000_000_000),
    ("G", 1_000_000_000_000),
    ("T", 1_000_000_000_000_000),
    ("P", 1_000_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000_000),
];

/// The quantity in thousandths, rounded up; nothing when it is not a quantity or negative.
pub(crate) fn thousandths(text: &str) -> Option<u128> {
    let (number, factor) = SUFFIXES
        .iter()
        .find_map(|(suffix, factor)| text.strip_suffix(suffix).map(|number| (number, *factor)))
        .unwrap_or((text, 1000));
    let (number, exponent) = match number.split_once(['e', 'E']) {
        Some((number, exponent)) => (number, exponent.parse::<i32>().ok()?),
        None => (number, 0),
    };
    let number = number.strip_prefix('+').unwrap_or(number);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let digits: u128 = format!("0{whole}{fraction}").parse().ok()?;
    let scaled = digits.checked_mul(factor)?;
    let power = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let ten = 10u128.checked_pow(power.unsigned_abs())?;
    if power >= 0 { scaled.checked_mul(ten) } else { Some(scaled.div_ceil(ten)) }
}

/// An amount of CPU.
pub(crate) fn cpu(text: &str) -> Option<MilliCpu> {
    thousandths(text).map(|raw| MilliCpu::new(clamp(raw)).unwrap_or(MilliCpu::MAX))
}

/// A number of devices.
pub(crate) fn gpu(text: &str) -> Option<MilliGpu> {
    thousandths(text).map(|raw| MilliGpu::new(clamp(raw)).unwrap_or(MilliGpu::MAX))
}

/// A size in bytes.
pub(crate) fn bytes(text: &str) -> Option<Bytes> {
    thousandths(text).map(|raw| Bytes::new(clamp(raw.div_ceil(1000))).unwrap_or(Bytes::MAX))
}

/// A plain count, such as of pods.
pub(crate) fn count(text: &str) -> Option<u64> {
    thousandths(text).map(|raw| clamp(raw / 1000))
}

fn clamp(raw: u128) -> u64 {
    u64::try_from(raw).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_as_the_kubelet_reads_them() {
        for (text, milli) in [
            ("2", 2000),
            ("1500m", 1500),
            ("0.5", 500),
            (".5", 500),
            ("1e3", 1_000_000),
            ("1.5e1", 15_000),
            ("12E2", 1_200_000),
        ] {
            assert_eq!(thousandths(text), Some(milli), "{text}");
        }
        assert_eq!(bytes("64Gi"), Some(Bytes::mib(64 * 1024)));
        assert_eq!(bytes("16379524Ki"), Bytes::new(16_379_524 * 1024).ok());
        assert_eq!(bytes("1.5Gi"), Some(Bytes::mib(1536)));
        assert_eq!(bytes("129M"), Bytes::new(129_000_000).ok());
        assert_eq!(bytes("1m"), Bytes::new(1).ok());
        assert_eq!(count("110"), Some(110));
    }

    #[test]
    fn what_is_no_quantity_is_nothing() {
        for text in ["", "m", "-1", "100u", "1.2.3", "e", "five", "1e99"] {
            assert_eq!(thousandths(text), None, "{text:?}");
        }
    }
}
