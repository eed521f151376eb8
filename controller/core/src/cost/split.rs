//! Splitting money without losing any: largest remainder.

/// Splits `total` by weights: every part is within one of its exact share, and the parts sum to the total. Equal
/// remainders go to the earlier weight, so the same input gives the same parts. Without any weight there is nobody to
/// give to, and the answer is `None`.
///
/// Method: Hamilton's (largest remainder). Weights are halved together until they sum to less than 2^63, so that
/// `total * weight` fits; that moves a share by less than one part in 2^60.
pub fn split(total: u64, weights: &[u128]) -> Option<Vec<u64>> {
    let mut shift = 0_u32;
    let sum = loop {
        let sum = weights.iter().try_fold(0_u128, |sum, weight| sum.checked_add(weight >> shift));
        match sum {
            Some(sum) if sum < 1 << 63 => break sum,
            _ => shift += 1,
        }
    };
    if sum == 0 {
        return None;
    }
    let total_wide = u128::from(total);
    let mut parts = Vec::with_capacity(weights.len());
    let mut remainders = Vec::with_capacity(weights.len());
    let mut given = 0_u64;
    for (index, weight) in weights.iter().enumerate() {
        let product = total_wide * (weight >> shift);
        let part = u64::try_from(product / sum).unwrap_or(u64::MAX);
        given = given.saturating_add(part);
        parts.push(part);
        remainders.push((product % sum, index));
    }
    // Largest remainder first; among equals the earlier one.
    remainders.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
    let left = usize::try_from(total.saturating_sub(given)).unwrap_or(usize::MAX);
    for (_, index) in remainders.into_iter().take(left) {
        if let Some(part) = parts.get_mut(index) {
            *part += 1;
        }
    }
    Some(parts)
}

/// `amount * part / whole`, rounded half up; nothing when `whole` is nothing.
pub fn share(amount: u64, part: u64, whole: u64) -> u64 {
    let (amount, part, whole) = (u128::from(amount), u128::from(part), u128::from(whole));
    match whole {
        0 => 0,
        _ => u64::try_from((amount * part + whole / 2) / whole).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_largest_remainders_get_what_is_left() {
        assert_eq!(split(10, &[1, 1, 1]), Some(vec![4, 3, 3]));
        assert_eq!(split(100, &[1, 2, 4]), Some(vec![14, 29, 57]));
        assert_eq!(split(5, &[0, 1]), Some(vec![0, 5]));
        assert_eq!(split(5, &[0, 0]), None);
    }

    proptest! {
        #[test]
        fn parts_sum_to_the_total_and_stay_within_one_of_their_share(
            total in 0_u64..1 << 60,
            weights in proptest::collection::vec(0_u128..1 << 50, 1..40),
        ) {
            let sum: u128 = weights.iter().sum();
            match split(total, &weights) {
                None => prop_assert_eq!(sum, 0),
                Some(parts) => {
                    prop_assert_eq!(parts.iter().sum::<u64>(), total);
                    for (part, weight) in parts.iter().zip(&weights) {
                        let floor = u128::from(total) * weight / sum;
                        prop_assert!(u128::from(*part) == floor || u128::from(*part) == floor + 1);
                    }
                }
            }
        }

        #[test]
        fn huge_weights_lose_nothing(total in any::<u64>(), weights in proptest::collection::vec(any::<u128>(), 1..9)) {
            if let Some(parts) = split(total, &weights) {
                prop_assert_eq!(parts.iter().map(|part| u128::from(*part)).sum::<u128>(), u128::from(total));
            }
        }
    }
}
